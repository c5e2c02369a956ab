"""From a folder to cases: which file is which modality of whom, and whether it can be used.

One door for training and prediction, by names alone: ``find_cases`` looks at them, ``describe``
says what it took for what. ``loading`` reads what the files hold.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mixmfl.errors import DataError
from mixmfl.files import files_below
from mixmfl.image import FILE_ENDINGS, Source
from mixmfl.labels import Labels, read_dataset_json, read_folder_labels
from mixmfl.modalities import FileName, Modalities
from mixmfl.wording import one_line, plural

LAYOUTS = """\
  nnU-Net         imagesTr/case_0000.nii.gz, labelsTr/case.nii.gz, dataset.json with channel_names
  case folders    case/T1.nii.gz, case/t1ce.nii.gz, ..., label case/seg.nii.gz
  modality names  case_t1ce.nii.gz, sub-01/anat/sub-01_T1w.nii.gz, ..., label case_seg.nii.gz"""

_EXTEND = "if a file is a modality that we do not know by this name, give --alias NAME=ALIAS"
_CHANNELS = (
    'names that end in _0000 need a dataset.json whose "channel_names" are modalities that we '
    'know, such as {"0": "T1"}; give others with --alias NAME=ALIAS'
)
_CHANNEL_FILE = re.compile(r"(.+)_(\d{4})")
_CHANNEL = re.compile("[0-9]{1,4}")
# folders that sort one case's files by kind, as those named after modalities and labels do too
_KIND_FOLDERS = {"anat", "dwi", "perf", "image", "images", "imagestr", "imagests"}
_LINES_SHOWN = 20

Parts = tuple[str, ...]
Key = tuple[Parts, str]  # a place, and the rest of the names of a case's files there


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
    """

    name: str
    images: Mapping[str, Path | Source]
    label: Path | None = None
    notes: tuple[str, ...] = ()
    patient: str = field(default="", repr=False)

    @property
    def files(self) -> dict[str, Path]:
        """Return the images that are single files, as all are that ``find_cases`` finds."""
        return {name: path for name, path in self.images.items() if isinstance(path, Path)}


@dataclass(frozen=True)
class Refused:
    """Files that look like a case but cannot be used as one, and why."""

    name: str
    reason: str


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
    """

    cases: tuple[Case, ...]
    refused: tuple[Refused, ...]
    ignored: tuple[Path, ...]
    layout: str
    labels: Labels | None
    folder: Path


def find_cases(
    folder: Path, modalities: Modalities | None = None, *, labels_needed: bool = False
) -> Found:
    """Find the cases of a folder by the names of its files; no image is opened.

    Args:
        folder: In one of ``LAYOUTS``; which one is found out.
        modalities: The words for modalities; without it those of ``modalities.TABLE``.
        labels_needed: Whether a case without label is refused, as training must.

    Raises:
        DataError: The folder is missing or holds no image, or its dataset.json is damaged.
    """
    modalities = modalities or Modalities()
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder. Needed is one of\n{LAYOUTS}")
    files = _image_files(folder)
    if not files:
        endings = ", ".join(FILE_ENDINGS)
        raise DataError(f"{folder}: holds no image ({endings}). Needed is one of\n{LAYOUTS}")

    labels = read_folder_labels(folder)
    layout = "nnU-Net's channel numbers"
    drafts = _draft_from_channels(folder, modalities)
    if drafts is None:
        drafts, layout = _draft_from_names(folder, files, modalities)

    cases: list[Case] = []
    refused: list[Refused] = []
    ignored: list[Path] = []
    for name, draft in sorted(drafts.items()):
        fault = draft.fault(name, folder, labels_needed)
        if fault:
            refused.append(Refused(name, fault))
        else:
            cases.append(draft.case(name))
            ignored.extend(draft.unknown)
    return Found(tuple(cases), tuple(refused), tuple(ignored), layout, labels, folder)


def holds_images(folder: Path) -> bool:
    """Say whether there is an image file of those that ``find_cases`` looks for."""
    return folder.is_dir() and bool(_image_files(folder))


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
    if found.ignored:
        lines.append(f"ignored {plural(len(found.ignored), 'file')}:")
        lines.extend(_first_of([f"  {path.relative_to(found.folder)}" for path in found.ignored]))
    return "\n".join(lines)


@dataclass
class _Draft:
    """A case while its files are gathered."""

    images: dict[str, list[Path]] = field(default_factory=lambda: defaultdict(list))
    labels: list[Path] = field(default_factory=list)
    unknown: list[Path] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def add(self, path: Path, said: FileName) -> None:
        if said.modality:
            self.images[said.modality].append(path)
        elif said.is_label:
            self.labels.append(path)
        else:
            self.unknown.append(path)

    def case(self, name: str) -> Case:
        images: dict[str, Path | Source] = {
            modality: paths[0] for modality, paths in sorted(self.images.items())
        }
        return Case(name, images, self.labels[0] if self.labels else None)

    def fault(self, name: str, folder: Path, labels_needed: bool) -> str | None:
        """Say why this is no case that can be used; None where it is one."""
        if self.faults:
            return "; ".join(self.faults)
        for kind, paths in (*sorted(self.images.items()), ("label", self.labels)):
            if len(paths) > 1:
                return f"{len(paths)} files for {kind}: {_list(paths, folder)}; keep one of them"
        if not self.images:
            files = _list([*self.labels, *self.unknown], folder)
            numbers = any(_CHANNEL_FILE.fullmatch(_stem(path)) for path in self.unknown)
            return f"no known modality, only {files}; {_CHANNELS if numbers else _EXTEND}"
        if not name.isprintable():
            return "a file cannot have this name; rename the case"
        if labels_needed and not self.labels:
            return "no label, which training needs"
        return None


def _draft_from_channels(folder: Path, modalities: Modalities) -> dict[str, _Draft] | None:
    """Gather the cases of nnU-Net's raw layout; None where the folder is not in it."""
    subfolders = (folder / name for name in ("imagesTr", "imagesTs"))
    images = next(filter(Path.is_dir, subfolders), folder)
    files = {path: _CHANNEL_FILE.fullmatch(_stem(path)) for path in _image_files(images)}
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

    drafts: dict[str, _Draft] = defaultdict(_Draft)
    for path, match in files.items():
        if match is None:
            drafts[_stem(path)].unknown.append(path)
        elif int(match[2]) in channels:
            drafts[match[1]].add(path, FileName(match[1], channels[int(match[2])]))
        else:
            drafts[match[1]].faults.append(
                f"{path.name} is channel {int(match[2])}, but channel_names has {sorted(channels)}"
            )
    labels = images.absolute().parent / images.absolute().name.replace("images", "labels")
    if labels != images.absolute() and labels.is_dir():
        for path in _image_files(labels):
            drafts[_stem(path)].labels.append(path)
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


@dataclass(frozen=True)
class _File:
    """An image file, and what can be told without looking at the others.

    Attributes:
        path: The file.
        said: What its name says.
        ambiguity: Why its name cannot be read; empty where it can.
        place: The folders it lies in below the one given, without those that sort one case's
            files (``anat``, ``labels``) and those that repeat the case's name.
    """

    path: Path
    said: FileName
    ambiguity: str
    place: Parts


def _draft_from_names(
    folder: Path, paths: Sequence[Path], modalities: Modalities
) -> tuple[dict[str, _Draft], str]:
    """Gather the cases of all other layouts by the words in the names; return the layout too.

    A folder with a file that is named by its kind alone (``T1.nii.gz``) is one case, with all
    that lies in it and below. Other files belong together by what is left of their names; the
    same rest at two places is two cases.
    """
    files = [_read_file(path, folder, modalities) for path in paths]
    known = [file for file in files if file.said.is_known]
    case_folders = {file.place for file in known if not file.said.case}

    def key(file: _File) -> Key:
        tops = (file.place[:length] for length in range(1, len(file.place) + 1))
        top = next((top for top in tops if top in case_folders), None)
        return (top, "") if top else (file.place, file.said.case)

    key_of = {file.path: key(file) for file in known}
    name_of = _name_cases(set(key_of.values()), folder)
    drafts: dict[str, _Draft] = defaultdict(_Draft)
    for file in known:
        drafts[name_of[key_of[file.path]]].add(file.path, file.said)
    for file in files:
        if not file.said.is_known:
            owner = _owner(file, key(file), key_of, folder)
            draft = drafts[name_of[owner] if owner else "_".join(file.place) or _stem(file.path)]
            draft.add(file.path, file.said)
            if file.ambiguity:
                draft.faults.append(f"{file.path.relative_to(folder)}: {file.ambiguity}")
    for name, count in Counter(name_of.values()).items():
        if count > 1:
            files_of = [path for path, key in key_of.items() if name_of[key] == name]
            drafts[name].faults.append(
                f"is the name of {count} cases: {_list(files_of, folder)}; rename one"
            )
    in_folders = sum(not rest for _, rest in name_of)
    return drafts, "a folder per case" if 2 * in_folders > len(name_of) else "names with modality"


def _read_file(path: Path, folder: Path, modalities: Modalities) -> _File:
    parents = path.relative_to(folder).parts[:-1]
    said, ambiguity = _read_name(_stem(path), modalities)
    if parents and _read_name(parents[-1], modalities)[0] == FileName("", is_label=True):
        said, ambiguity = FileName(said.case, is_label=True), ""  # labels/p01.nii.gz
    if "derivatives" in parents:
        parents = parents[: parents.index("derivatives")]
        if said.modality:  # BIDS: made from the image that we read as it came
            said = FileName(_stem(path))

    def is_sorting(part: str) -> bool:
        kind = _read_name(part, modalities)[0]
        return part.lower() in _KIND_FOLDERS or (kind.is_known and not kind.case)

    place = tuple(
        part for part in parents if not is_sorting(part) and _spaced(part) not in _spaced(said.case)
    )
    return _File(path, said, ambiguity, place)


def _read_name(stem: str, modalities: Modalities) -> tuple[FileName, str]:
    """Return what a name says, and why it cannot be read where it is ambiguous."""
    try:
        return modalities.read_name(stem), ""
    except DataError as error:
        return FileName(stem), str(error)


def _name_cases(keys: Collection[Key], folder: Path) -> dict[Key, str]:
    """Name each case as briefly as tells it from the others."""
    tops = Counter(place[0] for place, _ in keys if place)
    rests = Counter(rest for _, rest in keys)
    names = {}
    for place, rest in keys:
        if rest:
            names[place, rest] = rest if rests[rest] == 1 else "_".join((*place, rest))
        elif place:
            names[place, rest] = place[0] if tops[place[0]] == 1 else "_".join(place)
        else:  # the folder given is itself a case
            names[place, rest] = folder.resolve().name
    return names


def _owner(file: _File, key: Key, key_of: Mapping[Path, Key], folder: Path) -> Key | None:
    """Return the case that a file of unknown kind lies beside, if that is clear."""
    keys = set(key_of.values())
    for candidate in (key, (file.place, "")):
        if candidate in keys:
            return candidate
    stem = _spaced(file.said.case)
    starts = [key for key in keys if key[1] and stem.startswith(_spaced(key[1]))]
    if starts:
        return max(starts, key=lambda key: (len(key[1]), key[0] == file.place, key))
    beside = {key for path, key in key_of.items() if path.parent == file.path.parent}
    return beside.pop() if len(beside) == 1 and file.path.parent != folder else None


def _image_files(folder: Path) -> list[Path]:
    return [file for file in files_below(folder) if file.name.lower().endswith(FILE_ENDINGS)]


def _stem(path: Path) -> str:
    ending = next(end for end in FILE_ENDINGS if path.name.lower().endswith(end))
    return path.name[: -len(ending)]


def _spaced(name: str) -> str:
    """Return a name's words between spaces, so that ``in`` compares whole words."""
    return f" {' '.join(re.findall(r'[^ _.-]+', name.lower()))} "


def _list(paths: Sequence[Path], folder: Path) -> str:
    return ", ".join(
        str(path.relative_to(folder) if path.is_relative_to(folder) else path) for path in paths
    )


def _first_of(lines: Sequence[str]) -> list[str]:
    left = len(lines) - _LINES_SHOWN
    return [*lines[:_LINES_SHOWN], f"  … and {left} more"] if left > 0 else list(lines)
