"""DICOM as cases: which series is which modality of whom.

A case is an examination (study). Its modalities are recognised from header fields, which people
fill in; so what was taken for what is shown, and can be corrected in a table (``mapping``).
"""

import dataclasses
import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mixmfl.cases import Case, Found, Refused, find_cases, holds_images
from mixmfl.dicom import Series, find_series
from mixmfl.errors import DataError
from mixmfl.modalities import Modalities
from mixmfl.recognise import recognise, why_set_aside


@dataclass(frozen=True)
class Row:
    """What a series was taken for.

    Attributes:
        series: Which.
        case: Its case's name.
        modality: Empty where it is set aside.
        why: What says so.
    """

    series: Series
    case: str
    modality: str
    why: str


@dataclass(frozen=True)
class Given:
    """What a user's table says of a series.

    Attributes:
        case: Its case's name; empty where that stays as it is.
        modality: Empty where it is set aside.
        place: The table and the line, for messages.
    """

    case: str
    modality: str
    place: str


@dataclass(frozen=True)
class FoundDicom:
    """The DICOM files of a folder.

    Attributes:
        cases: Sorted by name.
        refused: Studies that cannot be used.
        rows: Every series, those set aside too.
    """

    cases: tuple[Case, ...]
    refused: tuple[Refused, ...]
    rows: tuple[Row, ...]


def find_dicom(
    folder: Path,
    modalities: Modalities,
    mapping: Mapping[str, Given] | None = None,
) -> FoundDicom:
    """Find the cases of a folder among its DICOM files, whatever their names and nesting.

    Args:
        folder: To look through, also below.
        modalities: The words for modalities.
        mapping: By series, what a user gave it; see ``mapping``.

    Raises:
        DataError: The mapping names a series that is not there.
    """
    series = find_series(folder)
    known = {each.uid for each in series}
    for uid, given in (mapping or {}).items():
        if uid not in known:
            raise DataError(
                f"{given.place}: no series of {folder} has series_uid {uid!r}; mend or remove the "
                "line"
            )
    names = _name_cases(series, folder)
    rows = []
    for each in series:
        if mapping is not None and each.uid in mapping:
            given = mapping[each.uid]
            rows.append(Row(each, given.case or names[each.study], given.modality, "mapping"))
            continue
        aside = why_set_aside(each)
        modality, why = ("", aside) if aside else recognise(each.header, modalities)
        rows.append(Row(each, names[each.study], modality, why))
    cases, refused, told = [], [], []
    for name in sorted({row.case for row in rows}):
        mine = [row for row in rows if row.case == name]
        try:
            kept = _without_duplicates(mine)
        except DataError as error:
            refused.append(Refused(name, str(error)))
            told += mine
            continue
        told += kept
        images = {row.modality: row.series for row in kept if row.modality}
        notes = [f"{row.modality} is {row.series.name} ({row.why})" for row in kept if row.modality]
        notes += [f"set aside: {row.series.name} ({row.why})" for row in kept if not row.modality]
        if images:
            patient = kept[0].series.patient
            cases.append(Case(name, dict(sorted(images.items())), None, tuple(notes), patient))
        else:
            reasons = "; ".join(f"{row.series.name}: {row.why}" for row in kept)
            refused.append(Refused(name, f"no series of a known modality: {reasons}"))
    return FoundDicom(tuple(cases), tuple(refused), tuple(told))


def find_all(
    folder: Path,
    modalities: Modalities,
    mapping: Mapping[str, Given] | None = None,
) -> tuple[Found, tuple[Row, ...]]:
    """Find the cases of a folder among DICOM files and in all layouts of ``cases.find_cases``.

    Returns:
        The cases, and what every DICOM series was taken for.

    Raises:
        DataError: As ``find_cases``, where there is no DICOM series either; or the mapping names
            a series that is not there.
    """
    dicom = find_dicom(folder, modalities, mapping) if folder.is_dir() else None
    if dicom is None or not dicom.rows:
        return find_cases(folder, modalities), ()
    found = Found((), (), (), "DICOM", None, folder)
    if holds_images(folder):
        found = find_cases(folder, modalities)
        found = dataclasses.replace(found, layout=f"DICOM, and {found.layout}")
    counts = Counter(each.name for each in (*found.cases, *dicom.cases))
    reasons: dict[str, list[str]] = defaultdict(list)
    for item in (*found.refused, *dicom.refused):
        reasons[item.name].append(item.reason)
    for name in (name for name, count in counts.items() if count > 1):
        reasons[name].append("is the name of DICOM and of other files; rename one")
    cases = []
    for case in (*found.cases, *dicom.cases):
        if counts[case.name] == 1:  # beside it there may be files of its name that are no case
            notes = [f"set aside: {reason}" for reason in reasons.pop(case.name, ())]
            cases.append(dataclasses.replace(case, notes=(*case.notes, *notes)))
    refused = [Refused(name, "; ".join(reasons[name])) for name in sorted(reasons)]
    return dataclasses.replace(
        found,
        cases=tuple(sorted(cases, key=lambda case: case.name)),
        refused=tuple(refused),
    ), dicom.rows


def describe_rows(rows: Sequence[Row]) -> str:
    """Return what was set aside, and what the sequences were recognised by."""
    aside = [row for row in rows if not row.modality]
    end = ":" if aside else ""
    lines = [f"recognised {len(rows) - len(aside)} DICOM series, set aside {len(aside)}{end}"]
    lines += [f"  {row.case}: {row.series.name}: {row.why}" for row in aside]
    return "\n".join(lines)


def _without_duplicates(rows: Sequence[Row]) -> list[Row]:
    """Keep one series per modality: original before derived, more voxels, later.

    Raises:
        DataError: The user gave one modality to two series.
    """
    by_modality: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_modality[row.modality].append(row)
    kept = by_modality.pop("", [])
    for modality, mine in sorted(by_modality.items()):
        given = [row for row in mine if row.why == "mapping"]
        if len(given) > 1:
            names = ", ".join(row.series.name for row in given)
            raise DataError(f"the mapping gives {modality} to {len(given)} series: {names}")
        best = given[0] if given else max(mine, key=_rank)
        kept.append(best)
        kept += [
            Row(row.series, row.case, "", f"another {modality}; {best.series.name} is taken")
            for row in mine
            if row is not best
        ]
    return sorted(kept, key=lambda row: (row.series.header.number, row.series.uid))


def _rank(row: Row) -> tuple[bool, int, int, str]:
    series = row.series
    original = "DERIVED" not in {part.upper() for part in series.header.image_type}
    return original, series.slices * series.pixels, series.header.number, series.uid


def _name_cases(series: Sequence[Series], folder: Path) -> dict[str, str]:
    """Return a name for each study: that of its own folder, else one made from its UID.

    Names of patients are in no name.
    """
    tops: dict[str, set[str]] = defaultdict(set)
    for each in series:
        for file in each.files:
            parts = file.relative_to(folder).parts
            tops[each.study].add(parts[0] if len(parts) > 1 else "")
    owners = Counter(top for found in tops.values() for top in found)
    names = {}
    for study, found in tops.items():
        (top, *others) = sorted(found)
        if not others and top and owners[top] == 1:
            names[study] = top
        elif len(tops) == 1:
            names[study] = folder.resolve().name
        else:
            names[study] = f"study-{hashlib.sha256(study.encode()).hexdigest()[:8]}"
    return names
