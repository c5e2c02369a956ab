"""What tables of a BIDS data set say of its subjects and images: excluded, or of bad quality."""

import csv
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mixmfl.core.files import read_small

_TABLE = "participants.tsv"
_LONGEST = 4_000_000  # bytes
_EXCLUDED = re.compile(r"exclude[ds]?|excluded?_(?:subject|participant|scan|image)|exclusion")
_INCLUDED = re.compile(
    r"include[ds]?|included?_(?:subject|participant|scan|image)|usable|to_use|keep"
)
_QUALITY = re.compile(r"(?:[a-z0-9]+_)?(?:qc|qa|quality|rating)(?:_[a-z0-9]+)*")
_YES = {"yes", "y", "true", "1", "1.0", "x", "excluded", "exclude"}
_NO = {"no", "n", "false", "0", "0.0", "excluded", "exclude"}
_BAD = {"fail", "failed", "bad", "poor", "unusable", "reject", "rejected", "excluded", "exclude"}


@dataclass(frozen=True)
class Judgement:
    """What a line of a table says.

    Attributes:
        why: The column and its value.
        excludes: Whether it excludes what the line is of; else it calls it bad.
    """

    why: str
    excludes: bool


def excluded_subjects(folder: Path) -> Mapping[str, str]:
    """Return the subjects that participants.tsv of a data set excludes, each with the reason.

    A column such as ``excluded`` says yes of them, or one such as ``included`` no. What neither
    says, as a reason in words, excludes nobody.
    """
    judged = _judged(folder / _TABLE, "participant_id")
    return {
        subject: f"a subject whom {_TABLE} excludes ({each.why})"
        for subject, each in judged.items()
        if each.excludes
    }


def judged_images(images: Iterable[Path]) -> dict[Path, tuple[Judgement, str]]:
    """Return what ``sub-01_scans.tsv`` says of images of BIDS, with the name of that table.

    It excludes an image as participants.tsv does a subject, or calls it bad in a column such as
    ``qc``.
    """
    tables = {
        image.parent.parent / f"{'_'.join(image.name.split('_')[:entities])}_scans.tsv"
        for image in images
        for entities in (1, 2)  # sub-01, sub-01_ses-1
    }
    return {
        table.parent / file: (judgement, table.name)
        for table in sorted(tables)
        for file, judgement in _judged(table, "filename").items()
    }


def _judged(table: Path, column: str) -> dict[str, Judgement]:
    """Return what the lines of a table say, by the value of a column."""
    try:
        content = read_small(table, _LONGEST)
    except (OSError, ValueError):
        return {}
    lines = content.decode("utf-8-sig", errors="replace").splitlines()
    judged: dict[str, Judgement] = {}
    try:
        for row in csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE):
            for name, value in row.items():
                if not (isinstance(name, str) and isinstance(value, str)):
                    continue  # a line of other length
                key, judgement = (row.get(column) or "").strip(), _judgement(name, value)
                if judgement and not (key in judged and judged[key].excludes):
                    judged[key] = judgement
    except csv.Error:
        return {}
    return judged


def _judgement(column: str, value: str) -> Judgement | None:
    name, answer = column.strip().casefold(), value.strip().casefold()
    excludes = bool(
        (_EXCLUDED.fullmatch(name) and answer in _YES)
        or (_INCLUDED.fullmatch(name) and answer in _NO)
    )
    if excludes or (_QUALITY.fullmatch(name) and answer in _BAD):
        return Judgement(f"{column.strip()}: {value.strip()}", excludes)
    return None
