"""From a folder to cases: which file is which modality of which case, and which can be used.

Training and prediction both find cases here, by names: ``find_cases`` reads the names, and
``describe`` reports what it took each file for. ``load_case`` reads the files themselves.
"""

import contextlib
import fnmatch
import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path

from mixmfl.core.errors import DataError, NoImageError, Refused, why
from mixmfl.core.files import files_below, read_small
from mixmfl.core.text import can_name_file, one_line, plural, quoted
from mixmfl.data.accounting import (
    OPEN,
    FileRecord,
    header_of,
    inside,
    other_format,
    rest_below,
    why_other,
)
from mixmfl.data.case_drafts import Draft, GatheredFile, corrected
from mixmfl.data.case_grouping import Grouped, group
from mixmfl.data.channel_numbers import (
    CHANNEL_FILE,
    HOW_TO_DESCRIBE,
    draft_from_channels,
    only_data_set,
)
from mixmfl.data.file_names import FileName, read_name
from mixmfl.data.image import FILE_ENDINGS, Source
from mixmfl.data.image_files import ImageFile, images_below, stem_of
from mixmfl.data.labels import Labels, read_dataset_json, read_folder_labels
from mixmfl.data.modalities import Modalities
from mixmfl.data.participants import Judgement, excluded_subjects, judged_images
from mixmfl.data.patients import patient_of, patients_by_place
from mixmfl.data.shared_images import Groups, shared_files, shared_images
from mixmfl.data.verdicts import doubts_of_patient, not_to_use

LAYOUTS = """\
  DICOM           files of any name in any nesting (mixmfl_predict, mixmfl_plan_preprocess)
  nnU-Net         imagesTr/case_0000.nii.gz, labelsTr/case.nii.gz, dataset.json with channel_names
  case folders    case/T1.nii.gz, case/t1ce.nii.gz, ..., label case/seg.nii.gz
  modality names  case_t1ce.nii.gz, sub-01/anat/sub-01_T1w.nii.gz, ..., label case_seg.nii.gz"""

_LINES_SHOWN = 20
_LONGEST_BIDSIGNORE = 10_000  # bytes


@dataclass(frozen=True)
class Case:
    """One examination of one patient: its files.

    Attributes:
        name: A name that is unique in the folder, and valid as a file's name.
        images: The file (or series, or array) of each available modality, sorted by modality.
        label: The segmentation, if there is one.
        notes: How its images were recognised, where names alone did not decide.
        patient: Name and ID from DICOM files, else empty; shown only on request.
        warnings: Doubts about the choice of images.
        person: What all examinations of the patient have in common in DICOM files, or in the
            folders around them, else empty; never shown.
    """

    name: str
    images: Mapping[str, Path | Source]
    label: Path | Source | None = None
    notes: tuple[str, ...] = ()
    patient: str = field(default="", repr=False)
    warnings: tuple[str, ...] = ()
    person: str = field(default="", repr=False)

    @property
    def files(self) -> dict[str, Path]:
        """Return the images that are single files, as all images of ``find_cases`` are."""
        return {name: path for name, path in self.images.items() if isinstance(path, Path)}

    def with_warnings(self, warnings: Iterable[str]) -> "Case":
        """Return the case with further doubts."""
        return replace(self, warnings=(*self.warnings, *warnings))

    def only(self, modalities: Collection[str]) -> "Case":
        """Return the case with its images of some modalities alone."""
        images = {name: image for name, image in self.images.items() if name in modalities}
        return replace(self, images=images)


@dataclass(frozen=True)
class MappingEntry:
    """An entry of a user's table: the case and modality of a series or a file.

    Attributes:
        case: The case's name; empty to keep the present case.
        modality: The modality; empty to set it aside; ``accounting.LABEL`` for a segmentation,
            ``accounting.OPEN`` to recognise it as without the table.
        place: The table and the line, for messages.
        is_file: Whether the entry is about a file, by its path, and not about a DICOM series.
    """

    case: str
    modality: str
    place: str
    is_file: bool = False


def with_known_cases(
    mapping: Mapping[str, MappingEntry], names: Collection[str]
) -> dict[str, MappingEntry]:
    """Return a table's entries with the names of cases as they are without it.

    Spreadsheets write ``1`` for ``001``, which is that case. ``P1`` beside ``p1`` is no guess.

    Args:
        mapping: The entries of the user's table.
        names: The cases as they are without it.

    Raises:
        DataError: A row has the name of another case in other capitals; its image would be a
            patient of its own.
    """
    numbers = Counter(name.lstrip("0") for name in names if name.isdecimal())
    counted = {n: name for name in names if numbers[n := name.lstrip("0")] == 1 and n}
    mapping = {
        key: replace(entry, case=counted.get(entry.case, entry.case))
        if entry.case not in names
        else entry
        for key, entry in mapping.items()
    }
    written = {name.casefold(): name for name in names}
    for entry in mapping.values():
        if entry.case and entry.modality and entry.case not in names:
            other = written.setdefault(entry.case.casefold(), entry.case)
            if other != entry.case:
                raise DataError(
                    f"{entry.place}: case {quoted(entry.case)} differs from {quoted(other)} in "
                    "upper and lower case alone; write both alike, or rename one"
                )
    return mapping


def with_known_paths(
    mapping: Mapping[str, MappingEntry], paths: Collection[str]
) -> dict[str, MappingEntry]:
    """Return a table's entries by the paths of files, whatever way its accents are stored in.

    Raises:
        DataError: Two lines are about one file.
    """
    count = Counter(map(_composed, paths))
    stored = {key: path for path in paths if count[key := _composed(path)] == 1}
    known: dict[str, MappingEntry] = {}
    for path, entry in mapping.items():
        own = path if path in paths else stored.get(_composed(path), path)
        if own in known:
            raise DataError(
                f"{entry.place}: file {quoted(path)} is given before, in {known[own].place}"
            )
        known[own] = entry
    return known


def _composed(path: str) -> str:
    return unicodedata.normalize("NFC", path)


@dataclass(frozen=True)
class FolderCases:
    """The cases and other files of a folder.

    Attributes:
        cases: Usable cases, sorted by name.
        refused: Cases that cannot be used, sorted by name.
        layout: The layout by which the files were grouped.
        labels: The label description of the folder's own dataset.json, if there is one.
        folder: The folder that was searched.
        records: A record of every image file, including those of refused cases.
        masks: Refused labels without any image beside them, by name; the images may be DICOM.
    """

    cases: tuple[Case, ...]
    refused: tuple[Refused, ...]
    layout: str
    labels: Labels | None
    folder: Path
    masks: Mapping[str, Path] = field(default_factory=dict)
    records: tuple[FileRecord, ...] = ()

    @property
    def aside(self) -> tuple[FileRecord, ...]:
        """Records of files that are neither used nor part of a refused case."""
        return tuple(each for each in self.records if not each.modality)


def find_cases(
    folder: str | PathLike[str],
    modalities: Modalities | None = None,
    *,
    labels_needed: bool = False,
    mapping: Mapping[str, MappingEntry] | None = None,
) -> FolderCases:
    """Find the cases of a folder by the names of its files.

    Of an image the beginning is read, to find it in another case. All of it is read only where its
    folder or first word says label and the rest says a sequence: then the values of one file tell
    labels from the images of a diagnosis; and where several fit a modality, and a name has unknown
    words. Files that may be copies are compared.

    Args:
        folder: A folder in one of ``LAYOUTS``, which is detected; or a single image as a case.
        modalities: The words for modalities; the default are those of ``sequence_words``.
        labels_needed: Whether to refuse a case without a label, as training must.
        mapping: The entries of the user's table, by path below the folder.

    Raises:
        NoImageError: The folder holds no image.
        DataError: The folder is missing, its dataset.json is damaged, or the mapping names a
            missing file.
    """
    folder, modalities = Path(folder), modalities or Modalities()
    if folder.is_file():
        return _single(folder, modalities, mapping or {})
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder. Needed is one of\n{LAYOUTS}")
    if not os.access(folder, os.R_OK | os.X_OK):
        raise DataError(f"{folder}: may not be read. Ask who owns it")
    files = images_below(folder)
    if not files:
        raise _no_image(folder)

    labels = None
    described = only_data_set(folder, files)
    if read_dataset_json(described):
        with contextlib.nullcontext() if labels_needed else contextlib.suppress(DataError):
            labels = read_folder_labels(described)
    layout = "nnU-Net's channel numbers"
    drafts = draft_from_channels(described, modalities)
    if drafts is not None:
        patients: Mapping[str, str] = patients_by_place({name: ((), name) for name in drafts})
    else:
        grouped = group(folder, files, modalities)
        drafts = _draft_from_names(folder, grouped)
        layout, patients = grouped.layout, grouped.patients
    _correct(drafts, folder, mapping or {})

    cases, refused, records = _choose(drafts, folder, labels_needed, patients)
    cases, more = _with_unread(cases, folder, modalities)
    images = {case.name: [*case.files.values()] for case in cases}
    masks = {case.name: [case.label] for case in cases if isinstance(case.label, Path)}

    def named(groups: Groups) -> list[list[tuple[str, str]]]:
        return [[(name, inside(path, folder)) for name, path in mine] for mine in groups]

    cases = with_shared_images(cases, named(shared_images(images)))
    cases = _with_shared(cases, named(shared_files(masks)), "mask")
    return FolderCases(
        tuple(cases), tuple(refused), layout, labels, folder, _masks(drafts), (*records, *more)
    )


def _no_image(folder: Path) -> NoImageError:
    endings = ", ".join(FILE_ENDINGS)
    others = [
        f"{inside(path, folder)}: {why_other(path)}"
        for path in files_below(folder)
        if other_format(path)
    ]
    unread = f"; {'; '.join(others[:5])}" if others else ""
    return NoImageError(
        f"{folder}: holds no image ({endings}){unread}. Needed is one of\n{LAYOUTS}"
    )


def _masks(drafts: Mapping[str, Draft]) -> dict[str, Path]:
    """Return the labels that lie beside no image, though perhaps beside a mask of the head."""
    labels_of = {
        name: [file for file in draft.files if file.reading.is_label]
        for name, draft in drafts.items()
    }
    return {
        name: labels[0].path
        for name, labels in labels_of.items()
        if len(labels) == 1
        and not drafts[name].faults
        and all(file in labels or file.reading.aside for file in drafts[name].files)
    }


def _choose(
    drafts: Mapping[str, Draft], folder: Path, labels_needed: bool, patients: Mapping[str, str]
) -> tuple[list[Case], list[Refused], list[FileRecord]]:
    """Choose the files of every case; return usable cases, refused ones and a record per file.

    ``patients`` has the patient of each case whose name does not tell it.
    """
    cases: list[Case] = []
    refused: list[Refused] = []
    nobodys: list[Refused] = []
    records: list[FileRecord] = []
    imaged = {
        file.path.parent for d in drafts.values() for file in d.files if file.reading.modality
    }
    for name, draft in sorted(drafts.items()):
        chosen = draft.choose(folder, labels_needed)
        fault = chosen.fault
        if not fault and not can_name_file(name):
            fault = "a file cannot have this name; rename the case"
        if draft.files and all(_is_set_aside(file) for file in draft.files):
            # by the user, or by BIDS
            nobodys += [Refused(name, fault)] if not all(file.given for file in draft.files) else []
        elif fault and not labels_needed and _are_labels_beside(draft, imaged):
            nobodys.append(Refused(name, fault))
            why = "a label; of which of the cases beside it is not known"
            labels = {file.path for file in draft.files if file.reading.is_label}
            of_labels = [
                replace(each, modality="", why=why) if each.path in labels else each
                for each in chosen.records
            ]
            chosen = replace(chosen, records=tuple(of_labels))
        elif fault:
            refused.append(Refused(name, fault))
        else:
            person = patients.get(name, "")
            warnings = (*chosen.warnings, *doubts_of_patient(name))
            images = dict(chosen.images)
            cases.append(Case(name, images, chosen.label, warnings=warnings, person=person))
        given = {file.path for file in draft.files if file.given}
        records += [
            replace(
                each, case=name, is_open=(each.is_open or bool(fault)) and each.path not in given
            )
            for each in chosen.records
        ]
    return cases, refused if cases or refused else nobodys, records


def holds_images(folder: Path) -> bool:
    """Say whether the folder holds an image file that ``find_cases`` would use."""
    return folder.is_dir() and bool(images_below(folder))


def account(found: FolderCases, known: Sequence[Path] = ()) -> FolderCases:
    """Add records of all files and folders that are no images, and warn of what these say.

    Args:
        found: The cases of a folder, with records of its images.
        known: Files that are accounted for elsewhere, such as those of DICOM series.
    """
    if not found.folder.is_dir():
        return found
    seen = [*known, *(each.path for each in found.records)]
    others = tuple(rest_below(found.folder, seen))
    return replace(
        found,
        cases=tuple(_with_notes(found.cases, [each.path for each in others], found.folder)),
        records=(*found.records, *others),
    )


def _with_notes(cases: Sequence[Case], others: Sequence[Path], folder: Path) -> list[Case]:
    """Warn of cases in whose folder, or above it, a file or folder is called "do not use"."""
    notes = [path for path in others if not_to_use(path.name)]
    warned = []
    for case in cases:
        files = [
            file for image in case.images.values() for file in getattr(image, "files", [image])
        ]
        warnings = [
            f"{inside(note, folder)}: {not_to_use(note.name)!r} is the name of what lies beside or "
            "above its images; see whether it is to be used"
            for note in notes
            if any(note.parent in file.parents for file in files)
        ]
        warned.append(case.with_warnings(warnings))
    return warned


def describe(found: FolderCases) -> str:
    """Return the report of what each file was taken for, which commands print first."""
    count = Counter(modality for case in found.cases for modality in case.images)
    counts = [f"{modality} in {count[modality]}" for modality in sorted(count)]
    counts.append(f"label in {sum(case.label is not None for case in found.cases)}")
    lines = [
        f"{found.folder}: {plural(len(found.cases), 'case')} (layout: {found.layout})",
        f"  {', '.join(counts)}",
    ]
    cases = []
    for case in found.cases:
        used = {**case.images, **({"label": case.label} if case.label else {})}
        names = Counter(image.name for image in used.values())  # of T1/p1 and FLAIR/p1 one alone
        files = [
            f"{what}: {inside(image, found.folder)}"
            if isinstance(image, Path) and names[image.name] > 1
            else f"{what}: {image.name}"
            for what, image in used.items()
        ]
        cases.append(f"  {case.name} -> {', '.join(files)}")
    lines.extend(_first_of(cases))
    if found.refused:
        lines.append(f"refused {plural(len(found.refused), 'case')}:")
        lines.extend(f"  {one_line(refused.name)}: {refused.reason}" for refused in found.refused)
    if aside := [each for each in found.aside if not each.is_series]:
        lines.append(f"set aside {plural(len(aside), 'file')}:")
        lines += _first_of([f"  {inside(each.path, found.folder)}: {each.why}" for each in aside])
    return "\n".join(lines)


def _is_set_aside(file: GatheredFile) -> bool:
    """Say whether a file was set aside on purpose, and so makes no case to refuse."""
    return (file.given and not file.reading.is_known) or bool(
        (file.reading.is_bids or file.reading.is_nobodys) and file.reading.aside
    )


def _are_labels_beside(draft: Draft, imaged: Collection[Path]) -> bool:
    """Say whether a draft has labels that name nobody, and no image, all beside other cases'."""
    files = draft.files
    labels = [file for file in files if file.reading.is_label]
    named = any(file.reading.case or file.given for file in labels)
    silent = all(file.reading.is_label or file.reading.aside for file in files)
    return bool(labels) and silent and not named and all(f.path.parent in imaged for f in files)


def _single(file: Path, modalities: Modalities, mapping: Mapping[str, MappingEntry]) -> FolderCases:
    """Return a single image as the only case."""
    if not file.name.lower().endswith(FILE_ENDINGS):
        what = why_other(file) if other_format(file) else (
            f"is no image that we read ({', '.join(FILE_ENDINGS)})"
        )  # fmt: skip
        raise DataError(f"{file}: {what}. Of DICOM files, name the folder")
    file_name = read_name(stem_of(file), modalities)
    hint = (
        f"known are {', '.join(modalities.names)}. Rename it, such as {stem_of(file)}_t1.nii.gz, "
        "or say by --mapping what it is"
    )
    drafts = {file_name.head or file_name.case or stem_of(file): Draft(hint=hint)}
    for draft in drafts.values():
        draft.add(file, file_name)
    own = {path: entry for path, entry in mapping.items() if path == file.name}
    _correct(drafts, file.parent, own)
    cases, refused, records = _choose(drafts, file.parent, labels_needed=False, patients={})
    return FolderCases(
        tuple(cases), tuple(refused), "a single file", None, file, records=tuple(records)
    )


def _correct(drafts: dict[str, Draft], folder: Path, mapping: Mapping[str, MappingEntry]) -> None:
    """Move files to the cases and modalities of the user's table.

    A file that is not read, such as a hidden one, may stand there as set aside, as in the table
    that is written.

    Raises:
        DataError: The table names a file that is no image of the folder, or a case in other
            capitals.
    """
    mapping = with_known_cases(mapping, drafts)
    owners = {
        inside(file.path, folder): (name, file)
        for name, draft in drafts.items()
        for file in draft.files
    }
    for path, entry in with_known_paths(mapping, owners).items():
        if path not in owners and not entry.modality and (folder / path).is_file():
            continue
        if path not in owners:
            raise DataError(
                f"{entry.place}: {folder} holds no image {path!r}; fix or remove the line"
            )
        name, file = owners[path]
        is_open = entry.modality == OPEN
        if is_open and entry.case in ("", name):
            continue
        drafts[name].files.remove(file)
        mine = drafts.setdefault(entry.case or name, Draft())
        mine.files.append(file if is_open else corrected(file, entry.modality))
    for name in [name for name, draft in drafts.items() if not draft.files]:
        del drafts[name]
    for draft in drafts.values():
        if draft.files and all(file.given for file in draft.files):
            draft.faults.clear()  # they were about what the user has decided


def _with_unread(
    cases: Sequence[Case], folder: Path, modalities: Modalities
) -> tuple[list[Case], list[FileRecord]]:
    """Warn where an image of a case lies in a format that is not read."""
    warnings: dict[str, list[str]] = defaultdict(list)
    records = []
    paths = [p for p in files_below(folder) if other_format(p) and not header_of(p)]
    for path in paths:
        modality = read_name(stem_of(path), modalities).modality
        beside = [
            case.name for case in cases
            if any(file.parent in (path.parent, *path.parents) and file.parent != folder
                   for file in case.files.values())
        ]  # fmt: skip
        head = read_name(stem_of(path), modalities).head
        owner = beside[0] if len(beside) == 1 else head if head in {c.name for c in cases} else ""
        why = why_other(path)
        records.append(FileRecord(path, why, owner))
        if owner and modality:
            warnings[owner].append(f"{inside(path, folder)}: {why}")
    return [case.with_warnings(warnings[case.name]) for case in cases], records


def with_shared_images(
    cases: Sequence[Case], groups: Iterable[Sequence[tuple[str, str]]]
) -> list[Case]:
    """Warn of images that several cases have, and take these cases for one patient's.

    So a patient under two names does not both train and validate.

    Args:
        cases: The cases.
        groups: What is the same image, each with its case and as a message calls it.
    """
    groups = list(groups)
    person_of = {case.name: patient_of(case.name, case.person) for case in cases}
    shared: set[str] = set()
    for mine in groups:
        people = {person_of[name] for name, _ in mine}
        one = min(people)
        person_of |= {name: one for name, person in person_of.items() if person in people}
        shared.add(one)
    return [
        replace(case, person=person_of[case.name]) if person_of[case.name] in shared else case
        for case in _with_shared(cases, groups, "image")
    ]


def _with_shared(
    cases: Sequence[Case], groups: Iterable[Sequence[tuple[str, str]]], what: str
) -> list[Case]:
    """Warn of images or masks that several cases have."""
    warnings: dict[str, list[str]] = defaultdict(list)
    for mine in groups:
        for name, own in mine:
            others = sorted(other for case, other in mine if case != name)
            warnings[name].append(
                f"{own}: is the same {what} as {', '.join(others)} of another case; see whose it is"
            )
    return [case.with_warnings(warnings[case.name]) for case in cases]


def _draft_from_names(folder: Path, grouped: Grouped) -> dict[str, Draft]:
    """Gather the cases of all other layouts, which are grouped by the words in file names."""
    hidden = _bids_ignored(folder)
    excluded = excluded_subjects(folder)
    judged = judged_images(file.path for file, _ in grouped.files if file.reading.is_bids)
    drafts: dict[str, Draft] = defaultdict(Draft)
    for file, name in grouped.files:
        file_name = _as_judged(file, judged)
        if any(fnmatch.fnmatch(inside(file.path, folder), pattern) for pattern in hidden):
            file_name = FileName(file_name.case, aside="a file that .bidsignore names")
        names = (*file.parents, file_name.case.partition("_")[0])
        if why_excluded := next((excluded[each] for each in names if each in excluded), ""):
            file_name = replace(file_name.set_aside(why_excluded), is_nobodys=True)
        draft = drafts[name]
        draft.add(file.path, file_name)
        if CHANNEL_FILE.fullmatch(file.stem):
            draft.hint = HOW_TO_DESCRIBE
    for name, faults in grouped.faults.items():
        drafts[name].faults += faults
    return drafts


def _as_judged(file: ImageFile, judged: Mapping[Path, tuple[Judgement, str]]) -> FileName:
    """Return the reading of a file, set aside or with a remark if its table says so."""
    if file.path not in judged:
        return file.reading
    judgement, table = judged[file.path]
    if judgement.excludes:
        why = f"an image that {table} excludes ({judgement.why})"
        return replace(file.reading.set_aside(why), is_nobodys=True)
    remark = f"is bad by {table} ({judgement.why}); see that it is good enough"
    return replace(file.reading, remark=remark)


def _bids_ignored(folder: Path) -> list[str]:
    """Return the patterns of files that a BIDS data set declares not to be part of it."""
    try:
        content = read_small(folder / ".bidsignore", _LONGEST_BIDSIGNORE)
        lines = content.decode("utf-8").splitlines()
    except OSError:
        return []
    except ValueError as error:
        raise DataError(
            f"{folder / '.bidsignore'}: cannot be read as text ({why(error)})"
        ) from None
    patterns = [line.strip().strip("/") for line in lines if line.strip() and line[0] != "#"]
    return [each for pattern in patterns for each in (pattern, f"{pattern}/*", f"*/{pattern}")]


def _first_of(lines: Sequence[str]) -> list[str]:
    left = len(lines) - _LINES_SHOWN
    return [*lines[:_LINES_SHOWN], f"  … and {left} more"] if left > 0 else list(lines)
