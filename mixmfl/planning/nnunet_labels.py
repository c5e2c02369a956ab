"""nnU-Net's view of the labels; apart from its preprocessing, which takes seconds to import."""

from nnunetv2.utilities.label_handling.label_handling import LabelManager

from mixmfl.data.labels import Labels


def label_manager(described: Labels) -> LabelManager:
    """Return nnU-Net's label manager for consecutive class indices."""
    content = described.consecutive().to_json()
    return LabelManager(content["labels"], content.get("regions_class_order"))
