"""Where a model comes from: what dataset.json says of its data, and what the fingerprints count.

Plans carry it, and so the model file; prediction shows it and refuses what it excludes.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from mixmfl.core.declarations import entries, one_of, within
from mixmfl.core.errors import PlansError
from mixmfl.core.text import plural
from mixmfl.data.body_parts import ANATOMIES, is_elsewhere
from mixmfl.data.dataset_card import PATIENTS, SIMULATED, SUBJECTS, UNKNOWN, DatasetCard
from mixmfl.data.dicom.codes import meaning_of
from mixmfl.data.labels import Labels
from mixmfl.data.modalities import MOST_MODALITIES, ModalityName
from mixmfl.planning.fingerprint import MOST_CASES, SPACINGS, Fingerprint, spacing_ranges
from mixmfl.planning.typical import Typical

_Cases = Annotated[int, within(1, MOST_CASES)]
_Spacing = Annotated[float, within(*SPACINGS)]

ALL_SIMULATED = "Trained on simulated images only. Masks of patients mean nothing."


@dataclass(frozen=True)
class ModelCard:
    """Where a model comes from.

    Attributes:
        dataset: What whoever planned says of the data.
        subjects: How many cases are of patients, simulated, or of unknown subjects.
        anatomy: How many cases show which part of the body.
        spacing_mm: For Z, Y and X the spacing that 5, 50 and 95 of a hundred cases do not exceed.
        typical: Per modality what its images are usually like.
    """

    dataset: DatasetCard = field(default_factory=DatasetCard)
    subjects: Annotated[
        Mapping[Annotated[str, one_of((*SUBJECTS, UNKNOWN))], _Cases], entries(0, 3)
    ] = field(default_factory=dict)
    anatomy: Annotated[
        Mapping[Annotated[str, one_of((*ANATOMIES, UNKNOWN))], _Cases],
        entries(0, len(ANATOMIES) + 1),
    ] = field(default_factory=dict)
    spacing_mm: Annotated[tuple[tuple[_Spacing, _Spacing, _Spacing], ...], entries(0, 3)] = ()
    typical: Annotated[Mapping[ModalityName, Typical], entries(0, MOST_MODALITIES)] = field(
        default_factory=dict
    )

    @property
    def missing(self) -> tuple[str, ...]:
        """Return what a user of a model should find and does not, by the names in dataset.json."""
        words = ("description", "licence", "disease", "intended_use")
        stated = dataclasses.asdict(self.dataset)
        missing = [name for name in words if stated[name] is None]
        if not self.anatomies:
            missing.append("anatomy")
        if not set(self.subjects) - {UNKNOWN}:
            missing.append("subjects")
        return tuple(missing)

    @property
    def anatomies(self) -> tuple[str, ...]:
        """Return the parts of the body that the cases show, as far as that is said."""
        named = (self.dataset.anatomy, *self.anatomy)
        return tuple(dict.fromkeys(name for name in named if name and name != UNKNOWN))

    @property
    def is_simulated(self) -> bool:
        """Say whether every case is known to be simulated."""
        return set(self.subjects) == {SIMULATED}

    @property
    def alarm(self) -> str:
        """Return what must stand in red on every page of this model; empty: nothing."""
        if self.is_simulated:
            return ALL_SIMULATED
        if number := self.subjects.get(SIMULATED):
            return f"Trained on simulated images, too: {plural(number, 'case')} are no patients."
        return ""

    def to_json(self) -> dict[str, Any]:
        """Return JSON content, without what is not said."""
        content = dataclasses.asdict(self)
        content["dataset"] = {name: value for name, value in content["dataset"].items() if value}
        return {name: value for name, value in content.items() if value}


def make_card(fingerprint: Fingerprint, dataset: DatasetCard, labels: Labels) -> ModelCard:
    """Return the card of plans that are made from a fingerprint.

    Raises:
        PlansError: The dataset's card has codes for labels that there are none of.
        DataError: A code is in no dictionary.
    """
    if strange := sorted(set(dataset.segments) - set(labels.foreground)):
        raise PlansError(
            f"dataset.json: segments: {strange[0]!r} is no label; these are: "
            f"{', '.join(labels.foreground)}"
        )
    for name, segment in dataset.segments.items():
        for kind, code in dataclasses.asdict(segment).items():
            if code:
                meaning_of(code, f"dataset.json: segments: {name}: {kind}")  # raises
    return ModelCard(
        dataset,
        fingerprint.subjects,
        fingerprint.anatomy,
        tuple(spacing_ranges(fingerprint)),
        fingerprint.typical,
    )


def misuse(card: ModelCard, body_parts: Mapping[str, str], subjects: str) -> str:
    """Return why a case is surely not of the kind that a model was made for; empty: it may be.

    Args:
        card: The model's card.
        body_parts: By modality, the part of the body that an image says it shows, where it does.
        subjects: What the case is, one of ``SUBJECTS`` or ``UNKNOWN``.
    """
    for modality, part in body_parts.items():
        if is_elsewhere(part, card.anatomies):
            made_for = ", ".join(card.anatomies)
            return (
                f"{modality} shows {part} (by its name, description or BodyPartExamined); the "
                f"model was made for: {made_for}"
            )
    if card.is_simulated and subjects != SIMULATED:
        is_patient = "is of a patient" if subjects == PATIENTS else "is not known to be simulated"
        return (
            f"the model was trained on simulated images only, and the case {is_patient} "
            '("subjects" in a dataset.json beside the cases says what they are of)'
        )
    return ""


def misuse_of_any(
    cards: Iterable[ModelCard], body_parts: Mapping[str, str], subjects: str = UNKNOWN
) -> str:
    """Return ``misuse`` of the first model that a case is surely not for; empty: there is none."""
    return next(filter(None, (misuse(card, body_parts, subjects) for card in cards)), "")
