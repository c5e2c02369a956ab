"""Where a data set comes from, as its dataset.json says: nnU-Net's optional fields, and ours.

``description``, ``reference`` and ``licence`` are nnU-Net's; it reads none of them.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from mixmfl.core.declarations import entries, one_of, text
from mixmfl.core.errors import DataError
from mixmfl.core.files import absolute
from mixmfl.core.records import read_record
from mixmfl.core.text import one_line, quoted
from mixmfl.data.body_parts import ANATOMIES
from mixmfl.data.labels import LONGEST_NAME, MOST_LABELS, read_dataset_json

PATIENTS, SIMULATED, UNKNOWN = "patients", "simulated", "unknown"
SUBJECTS = (PATIENTS, SIMULATED)
"""What the images of a data set may be of."""

MOST_TEXT = 1000  # characters of a field
LEVELS_UP = 3  # of folders above a case, in which its dataset.json is looked for
_NOT_STATED = "Whoever converted this dataset"  # as nnU-Net fills in a licence that nobody named

_Text = Annotated[str, text(MOST_TEXT)]
_Code = Annotated[str, text(16, "[0-9]{4,16}", "a SNOMED CT code, digits,")]


@dataclass(frozen=True)
class Segment:
    """The SNOMED CT codes of a label, for DICOM.

    Attributes:
        type: What it is, such as ``"108369006"``, a tumour.
        category: What kind of thing that is; by default a morphologically abnormal structure.
        region: Where it lies, such as ``"12738006"``, the brain; None: it is not said.
    """

    type: _Code
    category: _Code = "49755003"
    region: _Code | None = None


@dataclass(frozen=True)
class DatasetCard:
    """What dataset.json says of a data set's origin; what is None is not said.

    Attributes:
        name: Name of the data set.
        description: What it is.
        reference: Publication or address.
        licence: Terms under which it may be used.
        anatomy: The part of the body, one of ``ANATOMIES``.
        disease: The disease, or ``healthy``.
        subjects: ``"patients"`` or ``"simulated"``.
        intended_use: What a model of these data is for, and what not.
        segments: Codes of labels, by their names.
    """

    name: _Text | None = None
    description: _Text | None = None
    reference: _Text | None = None
    licence: _Text | None = None
    anatomy: Annotated[str, one_of(ANATOMIES)] | None = None
    disease: _Text | None = None
    subjects: Annotated[str, one_of(SUBJECTS)] | None = None
    intended_use: _Text | None = None
    segments: Annotated[
        Mapping[Annotated[str, text(LONGEST_NAME)], Segment], entries(0, MOST_LABELS)
    ] = field(default_factory=dict)


def read_card(content: Mapping[str, Any], source: str) -> DatasetCard:
    """Read the origin of a data set from its dataset.json.

    Args:
        content: The whole file; fields that are not ours are left alone.
        source: The file's name in messages.

    Raises:
        DataError: A field is something else than it may be.
    """
    names = [each.name for each in dataclasses.fields(DatasetCard)]
    written = {name: content[name] for name in names if content.get(name) not in (None, "")}
    if "licence" not in written and content.get("license"):
        written["licence"] = content["license"]
    for name in ("name", "description", "reference", "licence", "disease", "intended_use"):
        if name in written:
            written[name] = _in_one_line(written[name], f"{source}: {name}")
    if written.get("licence", "").startswith(_NOT_STATED):
        del written["licence"]
    for name in ("anatomy", "subjects"):
        if isinstance(written.get(name), str):
            written[name] = written[name].lower()
    return read_record(DatasetCard, written, source, DataError)


def find_card(place: Path) -> DatasetCard:
    """Return the card of a site's folder: its own fields, and those of dataset.json beside it.

    Raises:
        DataError: A file is damaged, or a field is wrong.
    """
    stated: dict[str, Any] = {}
    for folder in (absolute(place).parent, place):
        content = read_dataset_json(folder)
        read_card(content, str(folder / "dataset.json"))  # an error names the file it is in
        stated |= {name: value for name, value in content.items() if value}
    return read_card(stated, str(place / "dataset.json"))


def subjects_of(place: Path) -> str:
    """Return what dataset.json says of cases in a folder, or in one some levels further up.

    Raises:
        DataError: A file is damaged, or a field is wrong.
    """
    whole = absolute(place)
    for folder in (whole, *whole.parents[:LEVELS_UP]):
        card = read_card(read_dataset_json(folder), str(folder / "dataset.json"))
        if card.subjects:
            return card.subjects
    return UNKNOWN


def _in_one_line(value: Any, source: str) -> str:
    """Return text, or a list of texts, as nnU-Net's users write it, as one line that is not long.

    Raises:
        DataError: It is something else.
    """
    parts = value if isinstance(value, list) else [value]
    if not all(isinstance(part, str) for part in parts):
        raise DataError(f"{source}: is {quoted(value)}; text is needed")
    return one_line(" ".join("; ".join(parts).split()), MOST_TEXT)
