"""From a folder to cases: which file is which modality of whom, and whether it can be used.

One door for training and prediction, by names alone: ``find_cases`` looks at them, ``describe``
says what it took for what. ``loading`` reads what the files hold.
"""

import fnmatch
import os
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mixmfl.core.errors import DataError, Refused
from mixmfl.core.files import files_below
from mixmfl.core.text import one_line, plural
from mixmfl.data.accounting import LABEL, Told, inside, other_format, rest_below
from mixmfl.data.case_drafts import Draft, GatheredFile
from mixmfl.data.case_grouping import group, stem_of
from mixmfl.data.file_names import FileName, read_name
from mixmfl.data.image import FILE_ENDINGS, OTHER_FORMATS, Source
from mixmfl.data.labels import Labels, read_dataset_json, read_folder_labels
from mixmfl.data.modalities import Modalities

LAYOUTS = """\
  nnU-Net         imagesTr/case_0000.nii.gz, labelsTr/case.nii.gz, dataset.json with channel_names
  case folders    case/T1.nii.gz, case/t1ce.nii.gz, ..., label case/seg.nii.gz
  modality names  case_t1ce.nii.gz, sub-01/anat/sub-01_T1w.nii.gz, ..., label case_seg.nii.gz"""

_CHANNELS = (
    'names that end in _0000 need a dataset.json whose "channel_names" are modalities that we '
    'know, such as {"0": "T1"}; give others with --alias NAME=ALIAS'
)

_CHANNEL_FILE = re.compile(r"(.+)_(\d{4})")

_CHANNEL = re.compile("[0-9]{1,4}")

_LINES_SHOWN = 20


@dataclass(frozen=True)
class Case:
    """One examination of one patient: its files.

    Attributes:
        name: Unique in its folder, and fit for a file's name.
        images: The file (or series, or array) of each modality that the case has, sorted by
            modality.
        label: The segmentation, if there is one.
        notes: How its images were told apart, where names alone did not say it.
        patient: Name and ID, where files say them (DICOM); told only to who asks.
        warnings: What is doubtful about which images were taken.
    """

    name: str
    images: Mapping[str, Path | Source]
    label: Path | Source | None = None
    notes: tuple[str, ...] = ()
    patient: str = field(default="", repr=False)
    warnings: tuple[str, ...] = ()

    @property
    def files(self) -> dict[str, Path]:
        """Return the images that are single files, as all are that ``find_cases`` finds."""
        return {name: path for name, path in self.images.items() if isinstance(path, Path)}


@dataclass(frozen=True)
class Given:
    """What a user's table says of a series or a file.

    Attributes:
        case: Its case's name; empty where that stays as it is.
        modality: Empty where it is set aside; ``accounting.LABEL`` for a segmentation.
        place: The table and the line, for messages.
        is_file: Whether it is told of a file, by its path, and not of a DICOM series.
    """

    case: str
    modality: str
    place: str
    is_file: bool = False


@dataclass(frozen=True)
class Found:
    """What a folder holds.

    Attributes:
        cases: Sorted by name.
        refused: Sorted by name.
        ignored: Image files beside cases that are neither a known modality nor a label.
        layout: How the files were told apart.
        labels: What the folder's own dataset.json says about labels, if anything.
        folder: Where we looked.
        told: What every image file was taken for, also those of refused cases.
        masks: Refused labels without any image beside them, by name; the images may be DICOM.
    """

    cases: tuple[Case, ...]
    refused: tuple[Refused, ...]
    ignored: tuple[Path, ...]
    layout: str
    labels: Labels | None
    folder: Path
    masks: Mapping[str, Path] = field(default_factory=dict)
    told: tuple[Told, ...] = ()

    @property
    def aside(self) -> tuple[Told, ...]:
        """What is neither used nor part of a refused case."""
        return tuple(each for each in self.told if not each.modality)


def find_cases(
    folder: Path,
    modalities: Modalities | None = None,
    *,
    labels_needed: bool = False,
    mapping: Mapping[str, Given] | None = None,
) -> Found:
    """Find the cases of a folder by the names of its files; no image is opened.

    Args:
        folder: In one of ``LAYOUTS``; which one is found out. Or a single image, which is a case.
        modalities: The words for modalities; without it those of ``sequence_words``.
        labels_needed: Whether a case without label is refused, as training must.
        mapping: What the user's table says, by path below the folder.

    Raises:
        DataError: The folder is missing or holds no image, its dataset.json is damaged, or the
            mapping names a file that is not there.
    """
    modalities = modalities or Modalities()
    if folder.is_file():
        return _single(folder, modalities, mapping or {})
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder. Needed is one of\n{LAYOUTS}")
    if not os.access(folder, os.R_OK | os.X_OK):
        raise DataError(f"{folder}: may not be read. Ask who owns it")
    files = _image_files(folder)
    if not files:
        endings = ", ".join(FILE_ENDINGS)
        others = [f"{inside(path, folder)} ({OTHER_FORMATS[other_format(path)]})"
                  for path in files_below(folder) if other_format(path)]  # fmt: skip
        unread = f"; not read are {', '.join(others[:5])}: convert them" if others else ""
        raise DataError(
            f"{folder}: holds no image ({endings}){unread}. Needed is one of\n{LAYOUTS}"
        )

    labels = read_folder_labels(folder)
    layout = "nnU-Net's channel numbers"
    drafts = _draft_from_channels(folder, modalities)
    if drafts is None:
        drafts, layout = _draft_from_names(folder, files, modalities)
    _correct(drafts, folder, mapping or {})

    cases: list[Case] = []
    refused: list[Refused] = []
    told: list[Told] = []
    for name, draft in sorted(drafts.items()):
        chosen = draft.choose(folder, labels_needed)
        fault = chosen.fault
        if not fault and not name.isprintable():
            fault = "a file cannot have this name; rename the case"
        if draft.files and all(_is_set_aside(file) for file in draft.files):
            pass  # by the user, or by BIDS
        elif fault:
            refused.append(Refused(name, fault))
        else:
            cases.append(Case(name, dict(chosen.images), chosen.label, warnings=chosen.warnings))
        told += [replace(each, case=name) for each in chosen.told]
    aside = {each.path for each in told if not each.modality}
    ignored = tuple(
        file.path
        for case in cases
        for file in drafts[case.name].files
        if file.path in aside and not file.said.is_known
    )
    masks = {
        name: draft.files[0].path
        for name, draft in drafts.items()
        if len(draft.files) == 1 and draft.files[0].said.is_label and not draft.faults
    }
    cases, more = _with_unread(cases, folder, modalities)
    return Found(
        tuple(cases), tuple(refused), ignored, layout, labels, folder, masks, (*told, *more)
    )


def holds_images(folder: Path) -> bool:
    """Say whether there is an image file of those that ``find_cases`` looks for."""
    return folder.is_dir() and bool(_image_files(folder))


def account(found: Found, known: Sequence[Path] = ()) -> Found:
    """Tell of every file and folder that was met, those that are no image, too.

    Args:
        found: With ``told`` for the images.
        known: Files that are told elsewhere, such as those of DICOM series.
    """
    if not found.folder.is_dir():
        return found
    seen = [*known, *(each.path for each in found.told)]
    return replace(found, told=(*found.told, *rest_below(found.folder, seen)))


def describe(found: Found) -> str:
    """Return what was taken for what, as commands print it before they do anything else."""
    count = Counter(modality for case in found.cases for modality in case.images)
    held = [f"{modality} in {count[modality]}" for modality in sorted(count)]
    held.append(f"label in {sum(case.label is not None for case in found.cases)}")
    lines = [
        f"{found.folder}: {plural(len(found.cases), 'case')} (layout: {found.layout})",
        f"  {', '.join(held)}",
    ]
    cases = []
    for case in found.cases:
        files = [f"{modality}: {path.name}" for modality, path in case.images.items()]
        if case.label:
            files.append(f"label: {case.label.name}")
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
    """Say whether a file makes no case that could be refused."""
    return (file.given and not file.said.is_known) or bool(file.said.is_bids and file.said.aside)


def _single(file: Path, modalities: Modalities, mapping: Mapping[str, Given]) -> Found:
    """Return the case that a single image is."""
    if not file.name.lower().endswith(FILE_ENDINGS):
        ending = other_format(file)
        what = f"{OTHER_FORMATS[ending]} is not read; convert it to NIfTI" if ending else (
            f"is no image that we read ({', '.join(FILE_ENDINGS)})"
        )  # fmt: skip
        raise DataError(f"{file}: {what}. Of DICOM files, name the folder")
    said = read_name(stem_of(file), modalities)
    given = mapping.get(file.name)
    modality = given.modality if given else said.modality
    name = (given.case if given else "") or said.head or said.case or stem_of(file)
    if not modality or modality == LABEL:
        why = said.doubt or (f"its name says {said.aside}" if said.aside else "no word of it does")
        raise DataError(
            f"{file}: its name does not say which modality it is ({why}); known are "
            f"{', '.join(modalities.names)}. Rename it, such as {stem_of(file)}_t1.nii.gz, or say "
            "by --mapping what it is"
        )
    told = (Told(file, "mapping" if given else "its name", name, modality),)
    case = Case(name, {modality: file})
    return Found((case,), (), (), "a single file", None, file, told=told)


def _correct(drafts: dict[str, Draft], folder: Path, mapping: Mapping[str, Given]) -> None:
    """Move the files of the user's table to where it says.

    Raises:
        DataError: It names a file that is no image of the folder.
    """
    owners = {
        inside(file.path, folder): (name, file)
        for name, draft in drafts.items()
        for file in draft.files
    }
    for path, given in mapping.items():
        if path not in owners:
            raise DataError(
                f"{given.place}: {folder} holds no image {path!r}; mend or remove the line"
            )
        name, file = owners[path]
        drafts[name].files.remove(file)
        is_label = given.modality == LABEL
        said = FileName(file.said.case, None if is_label else given.modality or None, is_label)
        drafts.setdefault(given.case or name, Draft()).add(file.path, said, given=True)
    for name in [name for name, draft in drafts.items() if not draft.files]:
        del drafts[name]
    for draft in drafts.values():
        if draft.files and all(file.given for file in draft.files):
            draft.faults.clear()  # they were about what the user has decided


def _with_unread(
    cases: Sequence[Case], folder: Path, modalities: Modalities
) -> tuple[list[Case], list[Told]]:
    """Warn where an image of a case lies in a format that is not read."""
    warnings: dict[str, list[str]] = defaultdict(list)
    told = []
    paths = [path for path in files_below(folder) if other_format(path)]
    for path in paths:
        modality = read_name(stem_of(path), modalities).modality
        beside = [
            case.name for case in cases
            if any(file.parent in (path.parent, *path.parents) and file.parent != folder
                   for file in case.files.values())
        ]  # fmt: skip
        head = read_name(stem_of(path), modalities).head
        owner = beside[0] if len(beside) == 1 else head if head in {c.name for c in cases} else ""
        why = f"{OTHER_FORMATS[other_format(path)]} is not read; convert it to NIfTI (.nii.gz)"
        told.append(Told(path, why, owner))
        if owner and modality:
            warnings[owner].append(f"{inside(path, folder)}: {why}")
    return [
        replace(case, warnings=(*case.warnings, *warnings.get(case.name, ()))) for case in cases
    ], told


def _draft_from_channels(folder: Path, modalities: Modalities) -> dict[str, Draft] | None:
    """Gather the cases of nnU-Net's raw layout; None where the folder is not in it."""
    subfolders = (folder / name for name in ("imagesTr", "imagesTs"))
    images = next(filter(Path.is_dir, subfolders), folder)
    files = {path: _CHANNEL_FILE.fullmatch(stem_of(path)) for path in _image_files(images)}
    if not any(files.values()):
        return None
    for source in (folder, folder.absolute().parent):  # its own description, or its federation's
        content = read_dataset_json(source)
        written = content.get("channel_names", content.get("modality"))  # nnU-Net v2's key, v1's
        if written is not None:
            break
    if written is None and images == folder:
        return None
    channels = _read_channels(written, folder, modalities)

    drafts: dict[str, Draft] = defaultdict(Draft)
    for path, match in files.items():
        if match is None:
            drafts[stem_of(path)].add(path, FileName(stem_of(path)))
        elif int(match[2]) in channels:
            drafts[match[1]].add(path, FileName(match[1], channels[int(match[2])]))
        else:
            drafts[match[1]].add(path, FileName(match[1]))
            drafts[match[1]].faults.append(
                f"{path.name} is channel {int(match[2])}, but channel_names has {sorted(channels)}"
            )
    labels = images.absolute().parent / images.absolute().name.replace("images", "labels")
    if labels != images.absolute() and labels.is_dir():
        for path in _image_files(labels):
            drafts[stem_of(path)].add(path, FileName(stem_of(path), is_label=True))
    return drafts


def _read_channels(written: Any, folder: Path, modalities: Modalities) -> dict[int, str | None]:
    """Return the modality of each channel number, None where its name is not known.

    Raises:
        DataError: There is no such description, or two channels are one modality.
    """
    names = written if isinstance(written, Mapping) else {}
    numbers = {int(key) for key in names if _CHANNEL.fullmatch(key)}
    if not numbers or len(numbers) != len(names):
        raise DataError(
            f'{folder}: files named case_0000 need "channel_names" in dataset.json, such as '
            '{"channel_names": {"0": "T1", "1": "FLAIR"}}'
        )
    known = {int(key): modalities.find(str(name)) for key, name in written.items()}
    for modality, count in Counter(filter(None, known.values())).items():
        if count > 1:
            channels = [key for key, found in sorted(known.items()) if found == modality]
            raise DataError(
                f"{folder}: dataset.json says that channels {channels} are all {modality}; "
                "each must be another modality"
            )
    return known


def _draft_from_names(
    folder: Path, paths: Sequence[Path], modalities: Modalities
) -> tuple[dict[str, Draft], str]:
    """Gather the cases of all other layouts by the words in the names; return the layout too."""
    grouped = group(folder, paths, modalities)
    hidden = _bids_ignored(folder)
    drafts: dict[str, Draft] = defaultdict(Draft)
    for file, name in grouped.files:
        said = file.said
        if any(fnmatch.fnmatch(inside(file.path, folder), pattern) for pattern in hidden):
            said = FileName(said.case, aside="a file that .bidsignore names")
        draft = drafts[name]
        draft.add(file.path, said)
        if _CHANNEL_FILE.fullmatch(stem_of(file.path)):
            draft.hint = _CHANNELS
    for name, faults in grouped.faults.items():
        drafts[name].faults += faults
    return drafts, grouped.layout


def _bids_ignored(folder: Path) -> list[str]:
    """Return the patterns of files that a BIDS data set declares to be none of its own."""
    try:
        lines = (folder / ".bidsignore").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return []
    patterns = [line.strip().strip("/") for line in lines if line.strip() and line[0] != "#"]
    return [each for pattern in patterns for each in (pattern, f"{pattern}/*", f"*/{pattern}")]


def _image_files(folder: Path) -> list[Path]:
    return [file for file in files_below(folder) if file.name.lower().endswith(FILE_ENDINGS)]


def _first_of(lines: Sequence[str]) -> list[str]:
    left = len(lines) - _LINES_SHOWN
    return [*lines[:_LINES_SHOWN], f"  … and {left} more"] if left > 0 else list(lines)
