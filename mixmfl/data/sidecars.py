"""What the JSON file beside an image says it is, as dcm2niix and BIDS write one for each image."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mixmfl.core.errors import DataError
from mixmfl.core.files import read_json
from mixmfl.core.text import quoted
from mixmfl.data.body_parts import described_part, is_besides_head, what_shows_head
from mixmfl.data.image import ending_of
from mixmfl.data.modalities import TABLE
from mixmfl.data.one_examination import SCANNER, of_other_scanners, on_other_days, plain_scanner
from mixmfl.data.sequence_words import read_words

_DESCRIPTIONS = ("SeriesDescription", "ProtocolName")
# what scanners call diffusion images, and anatomical ones that they corrected for motion
_PERHAPS = ("diffusion tensor series", "functional")
_WRITTEN = {"ManufacturerModelName": "ManufacturersModelName"}  # by dcm2niix and BIDS


def sidecar_of(image: Path) -> Mapping[str, str]:
    """Return the texts and numbers of the JSON file beside an image; empty where it has none."""
    stem = image.name[: len(image.name) - len(ending_of(image))]
    file = image.with_name(f"{stem}.json")
    if not file.is_file():
        return {}
    try:
        content: Mapping[str, Any] = read_json(file)
    except DataError:  # whatever it is, it describes no series
        return {}
    return {
        name: str(value) for name, value in content.items() if isinstance(value, (str, int, float))
    }


def sidecar_doubts(sidecars: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """Return how descriptions contradict the names of images, by modality.

    What a name calls a T1 with a contrast agent may be described without it, as descriptions often
    leave the agent out.

    Args:
        sidecars: The JSON content beside each image of a case, by what its name was taken for.
    """
    found = ((modality, _doubt(content, modality)) for modality, content in sidecars.items())
    doubts = {modality: doubt for modality, doubt in found if doubt}
    parts = {m: described_part(_description(content)) for m, content in sidecars.items()}
    if shown := what_shows_head(parts.values(), sidecars):
        for modality, part in parts.items():
            if is_besides_head(part):
                doubts[modality] = f"the JSON file beside it says {part}, but {shown}"
    return doubts


def sidecars_apart(sidecars: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Return warnings of images that were made on other days or scanners by their JSON files."""
    days = {m: each.get("AcquisitionDateTime", "")[:10] for m, each in sidecars.items()}
    scanners = [
        {name: plain_scanner(name, each.get(_WRITTEN.get(name, name), "")) for name in SCANNER}
        for each in sidecars.values()
    ]
    return [
        *on_other_days({m: day.replace("-", "") for m, day in days.items()}),
        *of_other_scanners(scanners),
    ]


def _description(content: Mapping[str, str]) -> str:
    return " ".join(filter(None, map(content.get, _DESCRIPTIONS)))


def _doubt(content: Mapping[str, str], modality: str) -> str:
    for text in filter(None, map(content.get, _DESCRIPTIONS)):
        reading = read_words(text)
        described = reading.modality or reading.set_aside
        if described in _PERHAPS:
            continue
        if modality not in TABLE or described == modality:
            return ""
        if described and (modality, described) != ("t1c", "t1"):
            return (
                f"the JSON file beside it says {quoted(text, 60)}, which is {described}, but by "
                f"its name it was taken for {modality}; see which is right"
            )
    return ""
