"""What the JSON file beside an image says it is, as dcm2niix and BIDS write one for each image."""

from pathlib import Path

from mixmfl.core.errors import DataError
from mixmfl.core.files import read_json
from mixmfl.core.text import quoted
from mixmfl.data.image import ending_of
from mixmfl.data.modalities import TABLE
from mixmfl.data.sequence_words import read_words

_DESCRIPTIONS = ("SeriesDescription", "ProtocolName")


def sidecar_doubt(image: Path, modality: str) -> str:
    """Return how the JSON file beside an image contradicts its name; empty where it does not.

    T1 with a contrast agent and without are not held against each other: a description often
    leaves the agent out.

    Args:
        image: The image file.
        modality: What it was taken for by its name.
    """
    stem = image.name[: len(image.name) - len(ending_of(image))]
    file = image.with_name(f"{stem}.json")
    if modality not in TABLE or not file.is_file():
        return ""
    try:
        content = read_json(file)
    except DataError:  # whatever it is, it describes no series
        return ""
    for text in map(content.get, _DESCRIPTIONS):
        described = read_words(text).modality if isinstance(text, str) else ""
        if described and {described, modality} != {"t1", "t1c"}:
            if described == modality:
                return ""
            return (
                f"{file.name} beside it says {quoted(text, 60)}, which is {described}, but by its "
                f"name it was taken for {modality}; see which is right"
            )
    return ""
