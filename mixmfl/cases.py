"""From a folder to cases: which file is which modality of whom, and whether it can be used.

One door for training and prediction. ``find_cases`` looks at names only, ``describe`` says what it
took for what, ``load_case`` reads the voxels and refuses what would give a wrong mask.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from mixmfl import image
from mixmfl.errors import DataError
from mixmfl.files import read_json
from mixmfl.grids import FULL_COVERAGE, finest, fit, mirror, register, resample
from mixmfl.image import Grid, Source
from mixmfl.labels import EXAMPLE, REGIONS_EXAMPLE, Labels
from mixmfl.modalities import FileName, Modalities

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
# folders that sort one case's files by kind, as those named after modalities and labels do too
_KIND_FOLDERS = {"anat", "dwi", "perf", "image", "images", "imagestr", "imagests"}
_LINES_SHOWN = 20

_MIRRORED = "Convert it again from its source: which side is left was lost"

FEWEST_VALUES = 8  # that an image has; label files have fewer

S = TypeVar("S")
T = TypeVar("T")
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


@dataclass(frozen=True)
class Placing:
    """What may be done where the images of a case do not lie on each other.

    Attributes:
        reference: The modality whose grid the others are brought onto, and masks get; empty, or
            where a case lacks it: that with the largest in-plane resolution. A label decides
            before both: it was drawn on the grid that it has.
        register: Whether images whose headers are wrong are registered (rigidly); otherwise such
            a case is refused.
    """

    reference: str = ""
    register: bool = False


_AS_HEADERS_SAY = Placing()


@dataclass(frozen=True)
class LoadedCase:
    """A case's voxels, checked and in canonical orientation.

    Attributes:
        name: The case's.
        images: ``(Z, Y, X)`` of each modality, finite, sorted by modality.
        labels: ``(Z, Y, X)`` class indices; None without a label file or a description.
        grid: The grid of the reference's file, onto which ``image.from_canonical`` leads back.
        canonical: The grid of these arrays.
        reference: The modality that this grid is of.
        notes: What was done to bring the images together.
        warnings: What is doubtful about that.
    """

    name: str
    images: dict[str, npt.NDArray[np.float32]]
    labels: npt.NDArray[np.int16] | None
    grid: Grid
    canonical: Grid
    reference: str
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


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
        endings = ", ".join(image.FILE_ENDINGS)
        raise DataError(f"{folder}: holds no image ({endings}). Needed is one of\n{LAYOUTS}")

    content = _read_dataset_json(folder)
    labels = None
    if "labels" in content:
        labels = Labels.from_dataset_json(content, str(folder / "dataset.json"))
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
        lines.extend(f"  {refused.name}: {refused.reason}" for refused in found.refused)
    if found.ignored:
        lines.append(f"ignored {plural(len(found.ignored), 'file')}:")
        lines.extend(_first_of([f"  {path.relative_to(found.folder)}" for path in found.ignored]))
    return "\n".join(lines)


def plural(count: int, word: str) -> str:
    """Return a number of things in words, such as ``1 case`` and ``2 cases``."""
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def choose_reference(
    case: Case, grids: Mapping[str, Grid], label: Grid | None, wanted: str = ""
) -> str:
    """Return the modality whose grid a case's images are brought onto; see ``Placing``.

    Args:
        case: For messages.
        grids: Of the images.
        label: The label's grid, where the case has one.
        wanted: ``Placing.reference``.

    Raises:
        DataError: The label is on the grid of none of the images.
    """
    best = wanted if wanted in grids else finest(grids)
    if label is None:
        return best
    order = [best, *(name for name in grids if name != best)]
    differences = {name: image.difference(label, grids[name]) for name in order}
    for name, difference in differences.items():
        if difference is None:
            return name
    raise DataError(
        f"case {case.name!r}: label and {best} differ in {differences[best]} ({case.label}, "
        f"{case.images[best]}), and no other image is on the label's grid either. Resample the "
        f"label to {best} by nearest neighbour first"
    )


def voxels_of(case: Case) -> int:
    """Return how many voxels the largest image of a case has, from headers alone.

    Raises:
        DataError: A file is unreadable, or no three-dimensional scalar image.
    """
    return max(
        math.prod(_named(case, image.read_grid, source).shape)
        if isinstance(source, Path)
        else source.size
        for source in case.images.values()
    )


def load_case(
    case: Case, labels: Labels | None = None, placing: Placing = _AS_HEADERS_SAY
) -> LoadedCase:
    """Read a case, check it, bring it onto one grid, and turn it to canonical orientation.

    Args:
        case: From ``find_cases``.
        labels: What the label file's values mean; without it the label file is not read.
        placing: What to do with images that are not on one grid.

    Raises:
        DataError: An image holds NaN or the same value everywhere, or does not lie where the
            reference does; or the label is on no image's grid or holds values not declared.
    """
    arrays, grids = {}, {}
    for modality, path in case.images.items():
        array, grids[modality] = _named(case, image.read_image, path)
        _check_voxels(case, modality, array)
        arrays[modality] = _background_at_zero(array)
    drawn = case.label if labels is not None else None
    label_grid = _named(case, image.read_grid, drawn) if drawn is not None else None
    reference = choose_reference(case, grids, label_grid, placing.reference)
    grid = grids[reference]
    notes: list[str] = []
    warnings: list[str] = []
    images, canonical = {}, grid
    for modality in case.images:
        if modality != reference:
            arrays[modality] = _onto_reference(
                case, modality, reference, arrays, grids, placing, notes, warnings
            )
    for modality in case.images:
        images[modality], canonical = image.to_canonical(arrays.pop(modality), grid)

    indices = None
    if labels is not None and drawn is not None:
        array, _ = _named(case, image.read_labels, drawn)
        try:
            indices = labels.to_indices(image.to_canonical(array, grid)[0])
        except DataError as error:
            raise DataError(
                f"case {case.name!r}: label ({case.label}) {error}. Mend the file, or declare its "
                'values under "labels" in dataset.json'
            ) from None
    return LoadedCase(
        case.name, images, indices, grid, canonical, reference, tuple(notes), tuple(warnings)
    )


def _check_voxels(case: Case, modality: str, array: npt.NDArray[np.float32]) -> None:
    path = case.images[modality]
    bad = array.size - int(np.count_nonzero(np.isfinite(array)))
    if bad:
        raise DataError(
            f"case {case.name!r}: {modality} ({path}) holds {plural(bad, 'voxel')} of NaN or "
            "infinity; needed are finite numbers. Replace them, for example by the background"
        )
    if array.min() == array.max():
        raise DataError(
            f"case {case.name!r}: {modality} ({path}) is empty, every voxel is "
            f"{array.flat[0]:g}. Remove the file if the case lacks this modality"
        )
    if values := _few_values(array):
        raise DataError(
            f"case {case.name!r}: {modality} ({path}) holds only the values "
            f"{', '.join(f'{value:g}' for value in values)}; a label was given as an image. Name "
            "the file as a label, or remove it"
        )


def _few_values(array: npt.NDArray[np.float32]) -> list[float]:
    """Return the values of an image if they are as few as a label's; else none."""
    flat = array.ravel()
    for step in (max(1, flat.size // 100_000), 1):  # a sample tells nearly always
        values = np.unique(flat[::step])
        if len(values) >= FEWEST_VALUES:
            return []
    return [float(value) for value in values]


def _onto_reference(
    case: Case,
    modality: str,
    reference: str,
    arrays: Mapping[str, npt.NDArray[np.float32]],
    grids: Mapping[str, Grid],
    placing: Placing,
    notes: list[str],
    warnings: list[str],
) -> npt.NDArray[np.float32]:
    """Return an image on the reference's grid, checked to show the same place; add what to tell.

    Raises:
        DataError: It does not, and may not be registered, or registering did not help.
    """
    fixed, onto, moving, own = (
        arrays[reference],
        grids[reference],
        arrays[modality],
        grids[modality],
    )
    difference = image.difference(own, onto)
    found = fit(fixed, onto, moving, own)
    if found.fault is None:
        if found.coverage < FULL_COVERAGE:
            warnings.append(
                f"{modality} shows {found.coverage:.0%} of the head that {reference} shows"
            )
        if difference is None:
            return moving
        notes.append(f"{modality} was resampled onto the grid of {reference} ({difference})")
        return resample(moving, own, onto)
    where = f"{case.images[modality]}, {case.images[reference]}"
    refused = f"case {case.name!r}: {modality} does not lie on {reference}: {found.fault} ({where})"
    if found.is_mirrored:  # a head is so symmetric that it could be registered all the same
        raise DataError(f"{refused}. {_MIRRORED}")
    if not placing.register:
        raise DataError(f"{refused}. Look at both; --register registers them rigidly")
    moved = register(fixed, onto, moving, own)
    after = fit(fixed, onto, moving, own, moved)
    told = (
        f"shift {moved.shift_mm:.1f} mm, turn {moved.angle:.1f} degrees, mutual information "
        f"{found.similarity:.3f} before and {after.similarity:.3f} after"
    )
    # not "<": without numbers to compare, nothing says that registering helped
    if after.fault is not None or not after.similarity > found.similarity:
        raise DataError(
            f"{refused}, and registering did not mend it "
            f"({told}{'; ' + after.fault if after.fault else ''})"
        )
    # ``after`` knows mirror planes that are those of the grid; the head may have been turned
    other = mirror(moving, own)
    mirrored = fit(fixed, onto, other, own, register(fixed, onto, other, own)).similarity
    if not after.similarity > mirrored:
        raise DataError(
            f"{refused}, and registered it fits better mirrored left to right ({told}, "
            f"{mirrored:.3f} mirrored). {_MIRRORED}"
        )
    done = f"{modality} was registered to {reference} ({told})"
    notes.append(done)
    warnings.append(f"{done}; look at both")
    return resample(moving, own, onto, moved)


def _background_at_zero(array: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Shift an image whose background is one value other than 0, as z-scoring leaves it.

    Cropping and normalisation tell the head by its voxels not being 0. An image has such a
    background where all its eight corners hold that very value.
    """
    corners = array[np.ix_(*[(0, -1)] * 3)]
    value = corners.flat[0]
    return array - value if value != 0 and (corners == value).all() else array


def read_site_labels(site_folder: Path, federation_folder: Path) -> Labels:
    """Read what a site's labels mean: from its own dataset.json, else from the federation's.

    Raises:
        DataError: Neither holds a label description, or it is damaged.
    """
    for folder in (site_folder, federation_folder):
        content = _read_dataset_json(folder)
        if "labels" in content:
            return Labels.from_dataset_json(content, str(folder / "dataset.json"))
    raise DataError(
        f"{site_folder}: what do its labels mean? Needed is a dataset.json there, or for all "
        f"sites in {federation_folder}, such as\n  {EXAMPLE}\n"
        f"or, for regions that overlap,\n  {REGIONS_EXAMPLE}"
    )


def agree_on_labels(sites: Mapping[str, Labels]) -> Labels:
    """Return the label description that all sites share.

    Raises:
        DataError: Some differ; the message says which and where.
    """
    first, *others = sorted(sites)
    differences = [
        f"  {site} against {first}: {difference}"
        for site in others
        if (difference := sites[site].difference(sites[first]))
    ]
    if differences:
        raise DataError(
            "the sites' dataset.json describe labels differently, but one network serves all:\n"
            + "\n".join(differences)
        )
    return sites[first]


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
        content = _read_dataset_json(source)
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
    if not isinstance(written, Mapping) or not all(str(key).isdecimal() for key in written):
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


def _image_files(folder: Path, above: tuple[Path, ...] = ()) -> list[Path]:
    """Return the image files below, sorted, through links but not in circles."""
    real = folder.resolve()
    if real in above:
        return []
    files = []
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith("."):  # hidden, and macOS's "._" twins of real files
            continue
        if entry.is_dir():
            files.extend(_image_files(entry, (*above, real)))
        elif entry.name.lower().endswith(image.FILE_ENDINGS):
            files.append(entry)
    return files


def _stem(path: Path) -> str:
    ending = next(end for end in image.FILE_ENDINGS if path.name.lower().endswith(end))
    return path.name[: -len(ending)]


def _read_dataset_json(folder: Path) -> dict[str, Any]:
    path = folder / "dataset.json"
    return read_json(path) if path.is_file() else {}


def _named(case: Case, read: Callable[[S], T], path: S) -> T:
    """Read a file, and let the error say which case it is of."""
    try:
        return read(path)
    except DataError as error:
        raise DataError(f"case {case.name!r}: {error}") from None


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
