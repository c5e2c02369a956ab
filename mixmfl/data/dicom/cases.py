"""DICOM as cases: which series is which modality of which case.

A case is an examination (study). Its modalities are recognised from header fields, which people
fill in; so the result is shown to the user, who can correct it in a table (``mapping``).
"""

import dataclasses
import hashlib
import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mixmfl.core.errors import DataError, Refused
from mixmfl.core.text import plural
from mixmfl.data.accounting import OPEN, FileRecord, by_mapping, inside
from mixmfl.data.body_parts import differ, is_besides_head, regions, what_shows_head
from mixmfl.data.cases import (
    Case,
    FolderCases,
    MappingEntry,
    account,
    find_cases,
    holds_images,
    with_known_cases,
    with_known_paths,
    with_shared_images,
)
from mixmfl.data.dicom.files import Damaged
from mixmfl.data.dicom.planes import FEWEST_SLICES
from mixmfl.data.dicom.sequence_type import (
    SEVERAL_DIRECTIONS,
    UNSURE,
    has_agent,
    recognise,
    why_set_aside,
)
from mixmfl.data.dicom.series import Series, find_series
from mixmfl.data.dicom.series_choice import YOU_DECIDE, choose
from mixmfl.data.dicom.shared_series import shared_series
from mixmfl.data.modalities import Modalities
from mixmfl.data.one_examination import SCANNER, of_other_scanners, on_other_days
from mixmfl.data.time_points import are_of_other_times, earlier_in, states_in
from mixmfl.data.verdicts import doubts_of_patient, not_to_use, remark_on

ONE_PART_MM = 50
"""Millimetres from which the middles of two images may be in different parts of the body."""


@dataclass(frozen=True)
class Row:
    """A series, and the modality it was taken for.

    Attributes:
        series: The series.
        case: The name of its case.
        modality: Its modality; empty where it is set aside.
        why: The reason for that.
        is_certain: Whether the reason is more than times of the sequence.
        given: Whether the user's table decided.
    """

    series: Series
    case: str
    modality: str
    why: str
    is_certain: bool = True
    given: bool = False

    @property
    def is_open(self) -> bool:
        """Whether it is a question what the series is, which the user's table answers."""
        asks = self.why.startswith(UNSURE) or self.why.endswith(YOU_DECIDE)
        return asks and not (self.modality or self.given)


@dataclass(frozen=True)
class DicomCases:
    """The cases and series among the DICOM files of a folder.

    Attributes:
        cases: Usable cases, sorted by name.
        refused: Studies that cannot be used.
        rows: Every series, including those set aside.
        damaged: Files that could not be read; a warning of a case or a refusal names each.
        copies: Files that hold the same image as another one.
    """

    cases: tuple[Case, ...]
    refused: tuple[Refused, ...]
    rows: tuple[Row, ...]
    damaged: tuple[Damaged, ...] = ()
    copies: tuple[Path, ...] = ()


def find_dicom(
    folder: Path, modalities: Modalities, mapping: Mapping[str, MappingEntry] | None = None
) -> DicomCases:
    """Find the cases of a folder among its DICOM files, whatever their names and nesting.

    Args:
        folder: The folder to search, with its subfolders.
        modalities: The words for modalities.
        mapping: The entries of a user's table, by series; see ``mapping``.

    Raises:
        DataError: The mapping names a missing series, or a case in other capitals.
    """
    found = find_series(folder)
    known = {each.uid for each in found.series}
    for uid, entry in (mapping or {}).items():
        if uid not in known:
            raise DataError(
                f"{entry.place}: no series of {folder} has series_uid {uid!r}; fix or remove the "
                "line"
            )
    names = _name_cases(found.series, folder)
    mapping = with_known_cases(mapping or {}, {*names.values()})
    rows = [_row(each, names, modalities, mapping, folder) for each in found.series]
    damage_notes, unowned = _owners_of_damaged(found.damaged, rows, folder)
    cases, refused, all_rows = [], list(unowned), []
    for name in sorted({row.case for row in rows}):
        mine = _of_one_body_part([row for row in rows if row.case == name])
        mine = _without_agent_of_all(mine, modalities)
        try:
            chosen, warnings = _without_duplicates(mine)
        except DataError as error:
            refused.append(Refused(name, str(error)))
            all_rows += mine
            continue
        all_rows += chosen
        images = {row.modality: row.series for row in chosen if row.modality}
        notes = [
            f"{row.modality} is {row.series.name} ({row.why})" for row in chosen if row.modality
        ]
        notes += [f"set aside: {row.series.name} ({row.why})" for row in chosen if not row.modality]
        for modality, series in sorted(images.items()):
            warnings += [f"{modality} ({series.name}) {text}" for text in series.warnings]
        warnings += [
            f"{modality} ({series.name}) {remark}"
            for modality, series in sorted(images.items())
            if (remark := remark_on(series.header.description))
        ]
        warnings += _stacks_left_out(chosen, modalities)
        warnings += _apart(images, mine)
        warnings += on_other_days({modality: each.day for modality, each in images.items()})
        warnings += _of_other_times(images)
        originals = [
            each.header for each in images.values() if "DERIVED" not in each.header.image_type[:1]
        ]
        warnings += of_other_scanners(
            [dict(zip(SCANNER, header.scanner, strict=True)) for header in originals],
            [each.age_years for each in originals if not math.isnan(each.age_years)],
        )
        warnings += damage_notes.get(name, [])
        if images:
            first = chosen[0].series
            warnings += doubts_of_patient(f"{name} {first.patient}")
            cases.append(
                Case(
                    name,
                    dict(sorted(images.items())),
                    None,
                    tuple(notes),
                    first.patient,
                    tuple(warnings),
                    first.person,
                )
            )
        elif not all(_sorted_out(row.series, folder) for row in chosen):
            reasons = "; ".join(
                [*(f"{row.series.name}: {row.why}" for row in chosen), *damage_notes.get(name, [])]
            )
            refused.append(Refused(name, f"no series of a known modality: {reasons}"))
    shared = shared_series(
        {
            case.name: [each for each in case.images.values() if isinstance(each, Series)]
            for case in cases
        }
    )
    cases = with_shared_images(
        cases, [[(name, f"{series.name} of {name}") for name, series in mine] for mine in shared]
    )
    return DicomCases(
        tuple(_with_doubts_of_one_visit(cases)),
        tuple(refused),
        tuple(all_rows),
        found.damaged,
        found.copies,
    )


def _with_doubts_of_one_visit(cases: Sequence[Case]) -> list[Case]:
    """Warn of cases of one patient, day and frame of reference: the patient lay still for both.

    So are two orders for one examination, without and with a contrast agent.
    """
    visits: dict[tuple[str, str, str], set[str]] = defaultdict(set)
    visits_of: dict[str, set[tuple[str, str, str]]] = defaultdict(set)
    for case in cases:
        for image in case.images.values():
            assert isinstance(image, Series)
            visit = case.person, image.date, image.frame_of_reference
            if all(visit):
                visits[visit].add(case.name)
                visits_of[case.name].add(visit)
    doubted = []
    for case in cases:
        beside = set().union(*(visits[visit] for visit in visits_of[case.name])) - {case.name}
        if beside:
            doubt = (
                f"is of the same patient, day and frame of reference as {', '.join(sorted(beside))}"
                ", and may be of one examination with it; if so, give both one case by --mapping"
            )
            case = case.with_warnings([doubt])
        doubted.append(case)
    return doubted


def find_all(
    folder: Path, modalities: Modalities, mapping: Mapping[str, MappingEntry] | None = None
) -> tuple[FolderCases, tuple[Row, ...]]:
    """Find the cases of a folder among DICOM files and in all layouts of ``cases.find_cases``.

    Returns:
        The cases, with a record of every file and folder; and a row for every DICOM series.

    Raises:
        DataError: There is no DICOM series, and ``find_cases`` finds no cases; or the mapping
            names a missing series or file.
    """
    of_files, of_series = split_mapping(mapping)
    dicom = find_dicom(folder, modalities, of_series) if folder.is_dir() else None
    if dicom is None or not (dicom.rows or dicom.damaged):
        return account(find_cases(folder, modalities, mapping=of_files)), ()
    found = find_files_beside(folder, modalities, of_files)
    paths = [inside(each.path, folder) for each in found.records]
    by_path = with_known_paths(of_files, paths)
    given = {path for path, entry in by_path.items() if entry.modality != OPEN}
    found, cases = _without_converted(found, dicom.cases, given)
    return combine(found, dataclasses.replace(dicom, cases=cases)), dicom.rows


def find_files_beside(
    folder: Path, modalities: Modalities, mapping: Mapping[str, MappingEntry]
) -> FolderCases:
    """Find the cases of files in a folder that holds DICOM, too; there may be none."""
    if not (holds_images(folder) or mapping):
        return FolderCases((), (), "DICOM", None, folder)
    found = find_cases(folder, modalities, mapping=mapping)
    return dataclasses.replace(found, layout=f"DICOM, and {found.layout}")


def _without_converted(
    found: FolderCases, dicom: Sequence[Case], given: Collection[str]
) -> tuple[FolderCases, tuple[Case, ...]]:
    """Set files aside that lie beside DICOM series of all their modalities, as converters leave.

    Args:
        found: The cases of files.
        dicom: The cases of DICOM series.
        given: Files of the user's table, by path; they are not set aside.

    Returns:
        The cases of files without those that are of DICOM, too, and the cases of DICOM series.
    """
    files_of = {case.name: case.files for case in found.cases}
    aside: dict[Path, str] = {}
    cases = []
    for case in dicom:
        files = files_of.get(case.name, {})
        is_given = any(inside(path, found.folder) in given for path in files.values())
        if files and files.keys() <= case.images.keys() and not is_given:
            for modality, path in files.items():
                aside[path] = f"another {modality}; {case.images[modality].name} is taken"
            names = ", ".join(inside(path, found.folder) for path in files.values())
            doubt = (
                f"its DICOM series are taken, and not {names}, which may be made of them; to take "
                "files, set the series aside by --mapping"
            )
            case = case.with_warnings([doubt])
        cases.append(case)
    records = [
        dataclasses.replace(each, modality="", why=aside[each.path]) if each.path in aside else each
        for each in found.records
    ]
    left = [case for case in found.cases if aside.keys().isdisjoint(case.files.values())]
    return dataclasses.replace(found, cases=tuple(left), records=tuple(records)), tuple(cases)


def split_mapping(
    mapping: Mapping[str, MappingEntry] | None,
) -> tuple[dict[str, MappingEntry], dict[str, MappingEntry]]:
    """Return the entries of a table about files, and those about DICOM series."""
    entries = mapping or {}
    return {key: g for key, g in entries.items() if g.is_file}, {
        key: g for key, g in entries.items() if not g.is_file
    }


def combine(found: FolderCases, dicom: DicomCases, known: Sequence[Path] = ()) -> FolderCases:
    """Merge cases of files and of DICOM series, and account for all other files.

    Two cases of one name are refused.

    Args:
        found: The cases of files.
        dicom: The cases of DICOM series.
        known: Files that are read, though they are no images.
    """
    counts = Counter(each.name for each in (*found.cases, *dicom.cases))
    reasons: dict[str, list[str]] = defaultdict(list)
    for item in (*found.refused, *dicom.refused):
        reasons[item.name].append(item.reason)
    for name in (name for name, count in counts.items() if count > 1):
        reasons[name].append(
            "is the name of DICOM and of other files; rename one, or set one aside by --mapping"
        )
    cases = []
    for case in (*found.cases, *dicom.cases):
        if counts[case.name] == 1:  # files of its name beside it may be no case
            notes = [f"set aside: {reason}" for reason in reasons.pop(case.name, ())]
            cases.append(dataclasses.replace(case, notes=(*case.notes, *notes)))
    refused = [Refused(name, "; ".join(reasons[name])) for name in sorted(reasons)]
    aside = [
        FileRecord(row.series.files[0], f"{row.series.name}: {row.why}", row.case, is_series=True)
        for row in dicom.rows
        if not row.modality
    ]
    aside += [FileRecord(path, "a copy of another file of its series") for path in dicom.copies]
    both = dataclasses.replace(
        found,
        cases=tuple(sorted(cases, key=lambda case: case.name)),
        refused=tuple(refused),
        records=(*found.records, *aside),
    )
    read = [file for row in dicom.rows for file in row.series.files]
    return account(both, [*read, *(each.path for each in dicom.damaged), *known])


def describe_rows(rows: Sequence[Row]) -> str:
    """Return the report of how many series were recognised, and which were set aside."""
    aside = [row for row in rows if not row.modality]
    end = ":" if aside else ""
    lines = [f"recognised {len(rows) - len(aside)} DICOM series, set aside {len(aside)}{end}"]
    lines += [f"  {row.case}: {row.series.name}: {row.why}" for row in aside]
    return "\n".join(lines)


def _row(
    series: Series,
    names: Mapping[str, str],
    modalities: Modalities,
    mapping: Mapping[str, MappingEntry],
    folder: Path,
) -> Row:
    """Return the row of a series, without regard to the other series."""
    name = names[series.examination]
    if aside := _sorted_out(series, folder) or why_set_aside(series):
        row = Row(series, name, "", aside)
    else:
        recognised = recognise(series.header, modalities)
        row = Row(series, name, recognised.modality, recognised.why, recognised.is_certain)
    if series.uid not in mapping:
        return row
    entry = mapping[series.uid]
    if entry.modality == OPEN:
        return dataclasses.replace(row, case=entry.case or name)
    why = by_mapping(entry.modality, row.modality, row.why)
    return Row(series, entry.case or name, entry.modality, why, given=True)


def _sorted_out(series: Series, folder: Path) -> str:
    """Return why a person does not want a series to be used, by its description or its folders."""
    if words := not_to_use(series.header.description):
        return f"its description says {words!r}"
    around = [{*file.parent.relative_to(folder).parts} for file in series.files]
    folders = (part for part in sorted(set.intersection(*around)) if not_to_use(part))
    return next((f"a series of the folder {part!r}" for part in folders), "")


def _of_one_body_part(rows: Sequence[Row]) -> list[Row]:
    """Set aside series of other parts of the body in an examination of the head.

    BodyPartExamined is chosen from a list, and may be wrong. So nothing is set aside for what the
    FLAIR has in that field, too; and a series that lies where the head does becomes a question if
    no other is of its modality.
    """
    parts = [row.series.header.shown_part for row in rows]
    by_flair = [row for row in rows if _is_head_by_flair(row)]
    shown = what_shows_head(parts, [row.modality for row in by_flair])
    heads = [row for row, part in zip(rows, parts, strict=True) if "head" in regions(part)]
    heads = heads or by_flair
    elsewhere = [row for row in rows if shown and _is_elsewhere(row)]
    modalities = {row.modality for row in rows if row not in elsewhere}
    result = []
    for row in rows:
        header = row.series.header
        near = [
            head
            for head in heads
            if not header.part_by_words and _lie_together(row.series, head.series)
        ]
        why = f"is of {header.shown_part}; {shown}"
        if row not in elsewhere:
            result.append(row)
        elif row.given:
            result.append(dataclasses.replace(row, why=f"{row.why}; {why.replace(';', ',')}"))
        elif any(head.series.header.body_part == header.body_part for head in near):
            result.append(row)
        else:
            if near and row.modality not in modalities:
                why = f"{UNSURE}: BodyPartExamined says {header.body_part}, but it lies where the "
                why += "head does"
            result.append(_aside(row, why))
    return result


def _is_elsewhere(row: Row) -> bool:
    """Say whether a series that may be used is of another part of the body than the head."""
    return bool(row.given or row.modality) and is_besides_head(row.series.header.shown_part)


def _is_head_by_flair(row: Row) -> bool:
    """Say whether a series is of the head because it is a FLAIR, whatever BodyPartExamined says."""
    return row.modality == "flair" and not row.series.header.part_by_words


def _lie_together(one: Series, other: Series) -> bool:
    """Say whether headers place the middles of two images so near that they show one part."""
    if one.grid is None or other.grid is None or not one.frame_of_reference:
        return False
    apart = math.dist(one.grid.middle, other.grid.middle)
    return one.frame_of_reference == other.frame_of_reference and apart < ONE_PART_MM


def _without_other_parts(rows: Sequence[Row]) -> tuple[list[Row], list[str]]:
    """Leave out the chosen series that show parts of the body without a region in common.

    Returns:
        The series, and a warning, or nothing. Those that lie together stay, with a warning, if
        BodyPartExamined alone says that they differ.
    """
    parts = {
        row.series.uid: "HEAD" if _is_head_by_flair(row) else row.series.header.shown_part
        for row in rows
        if row.modality and not row.given
    }
    known = [row for row in rows if regions(parts.get(row.series.uid, ""))]
    if not differ([parts[row.series.uid] for row in known]):
        return list(rows), []
    listed = ", ".join(f"{row.series.name} {parts[row.series.uid]}" for row in known)
    doubt = f"the parts of the body that headers name differ ({listed})"
    by_words = [row.series.header.part_by_words for row in known]
    if not differ(by_words) and all(_lie_together(known[0].series, row.series) for row in known):
        return list(rows), [f"{doubt}, but these series lie at one place; look at them"]
    reason = f"{doubt}; {YOU_DECIDE}"
    return [_aside(row, reason) if row in known else row for row in rows], [reason]


def _without_agent_of_all(rows: Sequence[Row], modalities: Modalities) -> list[Row]:
    """Leave a T1 undecided if only ContrastBolusAgent makes it a T1c, and all series have that.

    Then the field was filled in for the whole examination, with what is before the agent.
    """
    headers = [row.series.header for row in rows if row.series.header.modality == "MR"]
    if not all(map(has_agent, headers)) or {row.modality for row in rows} <= {"t1", "t1c"}:
        return list(rows)

    def is_by_field(row: Row) -> bool:
        header = row.series.header
        silent = recognise(dataclasses.replace(header, agent=""), modalities)
        return row.modality == "t1c" and not row.given and silent.modality != "t1c"

    agent = f"{UNSURE}: every series of the examination names the contrast agent"
    return [
        _aside(row, f"{agent} {row.series.header.agent!r}") if is_by_field(row) else row
        for row in rows
    ]


def _without_duplicates(rows: Sequence[Row]) -> tuple[list[Row], list[str]]:
    """Choose one series per modality, and return warnings about the choice.

    Raises:
        DataError: The user gave one modality to two series.
    """
    by_modality: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_modality[row.modality].append(row)
    chosen = by_modality.pop("", [])
    warnings = [
        f"{row.series.name} is not used, {row.why}; {YOU_DECIDE}"
        for row in chosen
        if row.why.startswith(UNSURE)
    ]
    if any("#" in row.series.examination for row in rows):
        warnings.append(
            "its StudyInstanceUID is not unique: files of other patients or folders have it, or "
            "have none; they were kept apart"
        )
    if len({row.series.date for row in rows if row.series.date}) > 1:
        warnings.append(
            "its series have a StudyDate each, and one frame of reference; they are taken for one "
            "examination"
        )
    if len(by_modality) > 1 and any(row.series.is_doubtful and row.modality for row in rows):
        warnings.append(
            "its files name no patient and lie in a folder per series whose names are not those of "
            "series: are they of one patient? If not, give them other cases by --mapping"
        )
    for modality, mine in sorted(by_modality.items()):
        mapped = [row for row in mine if row.given]
        if len(mapped) > 1:
            names = ", ".join(row.series.name for row in mapped)
            raise DataError(f"the mapping gives {modality} to {len(mapped)} series: {names}")
        if mapped:
            chosen += mapped
            reason = f"another {modality}; {mapped[0].series.name} is taken"
            chosen += [_aside(row, reason) for row in mine if row not in mapped]
            continue
        row_of = {id(row.series): row for row in mine}
        series = [row.series for row in mine]
        guessed = {id(row.series) for row in mine if not row.is_certain}
        choice = choose(modality, series, guessed, is_agent_named="t1c" in by_modality)
        if choice.taken is not None:
            chosen.append(row_of[id(choice.taken)])
        chosen += [_aside(row_of[id(each)], reason) for each, reason in choice.reasons]
        warnings += [choice.warning] if choice.warning else []
    chosen, doubts = _without_other_parts(chosen)
    chosen.sort(key=lambda row: (row.series.header.number, row.series.uid))
    return chosen, [*warnings, *doubts]


def _aside(row: Row, why: str) -> Row:
    return dataclasses.replace(row, modality="", why=why)


def _stacks_left_out(rows: Sequence[Row], modalities: Modalities) -> list[str]:
    """Warn of series that would be the only ones of a modality, and have several directions."""
    available = {row.modality for row in rows}
    warnings = []
    for row in rows:
        if row.why == SEVERAL_DIRECTIONS:
            modality = recognise(row.series.header, modalities).modality
            if modality and modality not in available:
                warnings.append(
                    f"{modality} is left out: {row.series.name} has {SEVERAL_DIRECTIONS}; store "
                    "each direction as a series of its own, or convert it by dcm2niix"
                )
    return warnings


def _apart(images: Mapping[str, Series], rows: Sequence[Row]) -> list[str]:
    """Return a warning if a case's images have several frames of reference; else nothing.

    Their places are then not comparable. If no two series of the examination share one, an
    anonymiser may have given each its own.
    """
    by_frame: dict[str, list[str]] = defaultdict(list)
    for modality, series in images.items():
        by_frame[series.frame_of_reference].append(modality)
    by_frame.pop("", None)
    times = Counter(row.series.frame_of_reference for row in rows)
    if len(by_frame) < 2 or max(times[frame] for frame in by_frame) < 2:
        return []
    groups = "; ".join(", ".join(sorted(names)) for names in by_frame.values())
    return [
        f"its images have {len(by_frame)} frames of reference ({groups}): the patient lay down "
        "again between them, or they are of several patients; look whether they lie on each other"
    ]


def _of_other_times(images: Mapping[str, Series]) -> list[str]:
    """Return a warning if descriptions tell of other times or states of treatment; else nothing."""
    studies = {each.header.study for each in images.values()}
    texts = {
        modality: f"{each.header.study * (len(studies) > 1)} {each.header.description}"
        for modality, each in images.items()
    }
    states = [words for text in texts.values() if (words := states_in(text))]
    earlier = any(map(earlier_in, texts.values()))
    differ_in_state = len(states) > 1 and not set.intersection(*states)
    if not (earlier or differ_in_state or (not states and are_of_other_times([*texts.values()]))):
        return []
    listed = ", ".join(f"{modality} {images[modality].name}" for modality in texts)
    if len(studies) > 1:
        listed += f"; StudyDescription {', '.join(map(repr, sorted(studies)))}"
    return [
        f"descriptions tell of other days, times or states of treatment ({listed}): its images may "
        "be of two examinations; if so, give them other cases by --mapping"
    ]


def _owners_of_damaged(
    damaged: Sequence[Damaged], rows: Sequence[Row], folder: Path
) -> tuple[dict[str, list[str]], list[Refused]]:
    """Return warnings about damaged files, by the case in their folder; refuse the other files."""
    places: dict[str, set[Path]] = defaultdict(set)
    for row in rows:
        places[row.case] |= {file.parent for file in row.series.files}
    by_folder: dict[Path, list[Damaged]] = defaultdict(list)
    for each in damaged:
        by_folder[each.path.parent].append(each)
    owned: dict[str, list[str]] = defaultdict(list)
    unowned = []
    for place, mine in sorted(by_folder.items()):
        inside = place.relative_to(folder)
        text = (
            f"{plural(len(mine), 'file')} of {folder.resolve().name / inside} cannot be read as "
            f"DICOM, so slices or sequences may be missing; first {mine[0].path.name} "
            f"({mine[0].reason})"
        )
        owners = [case for case, folders in places.items() if place in folders]
        if not owners:
            owners = [c for c, folders in places.items() if place.is_relative_to(_common(folders))]
            owners = owners if len(owners) == 1 else []
        for case in owners:
            owned[case].append(text)
        if not owners:
            name = inside.parts[0] if inside.parts else folder.resolve().name
            unowned.append(Refused(name, text))
    return owned, unowned


def _common(folders: Iterable[Path]) -> Path:
    """Return the common parent of folders."""
    levels = zip(*(each.parts for each in folders), strict=False)
    same = itertools.takewhile(lambda level: len(set(level)) == 1, levels)
    return Path(*(level[0] for level in same))


def _name_cases(series: Sequence[Series], folder: Path) -> dict[str, str]:
    """Return a name for each examination: that of its own folder, else one made from its UID.

    No name contains a patient's name.
    """
    places: dict[str, list[Path]] = defaultdict(list)
    for each in series:
        places[each.examination] += {file.parent.relative_to(folder) for file in each.files}
    slices: Counter[str] = Counter()
    for each in series:
        slices[each.examination] += each.slices
    names = {}
    for examination, mine in places.items():
        # a few images of another examination do not take a folder's name away
        others = [
            place
            for key in places
            if key != examination and slices[key] >= min(FEWEST_SLICES, slices[examination])
            for place in places[key]
        ]
        top = _common(mine)
        own = next(
            (
                Path(*top.parts[:depth])
                for depth in range(1, len(top.parts) + 1)
                if not any(place.is_relative_to(Path(*top.parts[:depth])) for place in others)
            ),
            None,
        )
        if own is not None:
            names[examination] = "_".join(own.parts)
        elif len(places) == 1:
            names[examination] = folder.resolve().name
        else:
            names[examination] = f"study-{hashlib.sha256(examination.encode()).hexdigest()[:8]}"
    doubles = {name for name, count in Counter(names.values()).items() if count > 1}
    return {
        examination: f"{name}-{hashlib.sha256(examination.encode()).hexdigest()[:8]}"
        if name in doubles
        else name
        for examination, name in names.items()
    }
