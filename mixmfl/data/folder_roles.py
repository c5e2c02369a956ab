"""What the folders around an image are for: sorting by kind or series, results, rejects.

The other folders are the image's place, which tells the patient and the examination.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence, Set
from dataclasses import replace
from pathlib import Path

from mixmfl.data.body_parts import part_in
from mixmfl.data.contrast_agent import agent_in
from mixmfl.data.file_names import (
    BY_PROGRAM,
    FITS_LABEL,
    MADE_IN_BIDS,
    OF_ARCHIVE,
    FileName,
    maker_in,
    read_name,
)
from mixmfl.data.image import may_be_labels
from mixmfl.data.image_files import (
    ImageFile,
    Parts,
    composed,
    is_unpacked,
    lower_words,
    spaced,
    stem_of,
)
from mixmfl.data.modalities import Modalities, names_part, words_of
from mixmfl.data.sequence_phrases import (
    SHORT_NAME,
    meaning_of,
    with_skull_in_a_word,
    without_accents,
)
from mixmfl.data.sequence_vocabulary import PROCESSING
from mixmfl.data.series_numbers import is_uid
from mixmfl.data.time_points import is_days_folder, is_examination
from mixmfl.data.verdicts import not_to_use

# folders that sort one case's files by kind, as those named after modalities and labels do too
KIND_FOLDERS = {
    "anat", "dwi", "perf", "image", "images", "imagestr", "imagests", "nifti", "nii", "nrrd",
    "scans", "resources", "files", "structural", "anatomical", "rawdata", "data",
    # converters
    "dcm2niix", "dcm2nii", "mrconvert", "mriconvert", "mcverter", "mricron", "mricrogl",
    "dicom2nifti", "dcm2nifti", "dcm2bids", "heudiconv", "dcmstack", "plastimatch",
}  # fmt: skip

# folders of what a person sorted out, as words
_REJECTED = {
    f" {name} "
    for name in ("trash", "papierkorb", "augmented", "augmentation", "backup", "backups",
                 "sicherung", "sicherungskopie", "sauvegarde", "$recycle bin", "#recycle",
                 "@eadir", "macosx", "#snapshot", "~snapshot", "lost+found",
                 "system volume information",
                 "dataforqc")  # of the FeTS tool, whose images are in DataForFeTS
}  # fmt: skip

# names that any image may have, as words
ANY_IMAGE = {
    "scan", "img", "series", "ser", "file", "volume", "vol", "brain", "head", "mr", "mri", "im",
    "se", "serie", "s",
}  # fmt: skip

_NUMBERED_KINDS = {"anat", "dwi", "swi", "perf"}  # of OASIS: anat2, swi1

# beside them, "pre" is preprocessed, and "brain" has no skull
_ORIGINALS = {"orig", "original", "originals", "raw", "unstripped"}

_SERIES_FOLDERS = {"scans", "scan"}  # of XNAT: each folder within is a series, by its number

# beside a word for processing: resampled_1mm, skull_stripped
_HOW_PROCESSED = re.compile(
    r"111|\d{1,2}mm|iso(?:\d{1,2}mm|tropic)?|skull|space|(?:in|on)?to|in|on|"
    r"extract(?:ed|ion)|field|correction|raw|brats"
)
_NATIVE = re.compile(r"native(?:[ _-]?space)?", re.IGNORECASE)

# of UK Biobank: patient, kind of data, visit, repetition
_OF_BIOBANK = re.compile(r"^(\d{7})_\d{5}_(\d_\d)$")

_BEFORE = (["pre"], ["prae"], ["pra"])

# folders that store a collection, or a part of it, as words: raw, archive/2024, train, batch_2
_STORES = {
    "raw", "rawdata", "data", "dataset", "datasets", "daten", "donnees", "datos", "dati",
    "gegevens", "archive", "archives", "archiv", "archivo", "archivio", "archief", "old", "alt",
    "ancien", "new", "neu", "nouveau", "copy", "kopie", "copie", "copia", "export", "exports",
    "import", "download", "downloads", "batch", "part", "teil", "partie", "lot", "charge",
    "train", "training", "trainingdata", "traindata", "val", "valid", "validation",
    "validationdata", "test", "tests", "testing", "testdata", "testingdata", "holdout", "fold",
    "split", "cases", "patients", "patienten", "subjects", "of", "from", "set",
}  # fmt: skip

_OF_BIDS = ("dataset_description.json", "rawdata", "derivatives")  # files of its topmost folder

# ends of names of folders of labels alone, as words; a folder per case may be below
_LABEL_TREES = tuple(
    f" {name} "
    for name in ("label", "mask", "seg", "segs", "gt", "roi", "rois",
                 "labels", "labelstr", "labelsts", "masks", "segmentations", "annotations",
                 "delineations", "groundtruth", "ground truth", "masken", "segmentierungen",
                 "masques", "mascaras", "maschere", "maskers")
)  # fmt: skip

# what programs write beside the masks that they predict
_RECORDS = {"mixmfl": ("cases.json", "cases.csv"), "nnU-Net": ("predict_from_raw_data_args.json",)}

# in the folder of a BIDS data set; the last is what dcm2bids leaves
_NO_DATA = {"sourcedata", "code", "stimuli", "phenotype", "tmp_dcm2bids"}


def without_stores(parts: Parts) -> Parts:
    """Return folders without those that store a collection or a part of it; one stays."""
    return tuple(part for part in parts if not is_store(part)) or parts[-1:]


def is_store(part: str) -> bool:
    """Say whether a folder's name says that it only stores a collection: raw, archive, batch_2."""
    words = [word.strip("0123456789") for word in re.findall(r"[a-z0-9]+", without_accents(part))]
    named = [word for word in words if word]
    return bool(named) and all(word in _STORES for word in named)


def folders_of_labels(paths: Sequence[Path], folder: Path, modalities: Modalities) -> set[Path]:
    """Return the folders whose files are labels, whatever these are called: ``labels/p1_T1``.

    Below ``masks`` so is ``masks/p1/T1`` if another ``p1`` holds images, and ``masks/final/p1`` if
    images elsewhere are of ``p1``. A folder is called as
    labels and holds none where a case has images of several kinds, or an image and a label, in it
    and no image beside it: ``Tumor/p1_T1`` and ``Tumor/p1_T2``, and ``lesion01`` as a patient. Nor
    does it where its files are called as images, and the first, the middle or the last has the
    values of one: a single one may be damaged.
    """
    places = {path.parent for path in paths} - {folder}
    named = {place for place in places if _is_label_folder(place.name, modalities)}
    called: dict[str, list[Path]] = defaultdict(list)
    for place in places:
        called[place.name].append(place)
    cases = {
        read_name(stem_of(path), modalities).case
        for path in paths
        if not label_tree_above(path, folder)
    }
    trees = set()
    for place in places - named:
        if above := label_tree_above(place, folder):
            stems = {stem_of(path) for path in paths if path.parent == place}
            is_twin = any(above not in other.parents for other in called[place.name])
            if is_twin or stems <= cases:
                trees.add(place)
    named -= _holding_images(named, paths, modalities)
    named |= trees
    called_as_images: dict[Path, list[Path]] = defaultdict(list)
    for path in paths:
        if path.parent in named and read_name(stem_of(path), modalities).modality:
            called_as_images[path.parent].append(path)
    return named - {
        place
        for place, found in called_as_images.items()
        if not all(map(may_be_labels, {found[0], found[len(found) // 2], found[-1]}))
    }


def label_tree_above(path: Path, folder: Path) -> Path | None:
    """Return the folder of labels alone that a path lies in at any depth; None without any."""
    around = path.relative_to(folder).parents
    trees = (folder / each for each in around if spaced(each.name).endswith(_LABEL_TREES))
    return next(trees, None)


def _holding_images(named: Set[Path], paths: Sequence[Path], modalities: Modalities) -> set[Path]:
    kinds: dict[tuple[Path, str], set[str]] = defaultdict(set)
    for path in paths:
        if path.parent in named:
            reading = read_name(stem_of(path), modalities)
            kinds[path.parent, reading.case].add(reading.modality or "label" * reading.is_label)
    several = {key for key, found in kinds.items() if len(found - {""}) > 1}
    if not several:
        return set()
    beside: set[tuple[Path, str]] = set()
    elsewhere: set[tuple[Path, str]] = set()
    for path in paths:
        case = read_name(stem_of(path), modalities).case
        beside.add((path.parent, case))
        if path.parent not in named:
            elsewhere.update((place, case) for place in path.parents)
    places_of: dict[tuple[Path, str], set[Path]] = defaultdict(set)
    for place, case in beside:
        if place not in named and may_be_name(place.name):
            places_of[place.parent, case].add(place)

    def is_beside_patients(place: Path, case: str) -> bool:
        """Say whether other people's folders hold images of such names: Gtv, Meier, Schulz."""
        return not case and len(places_of[place.parent, case]) > 1

    return {
        place
        for place, case in several
        if (place.parent, case) not in (beside if place.name[-1].isdecimal() else elsewhere)
        or is_beside_patients(place, case)
    }


def is_bids(folder: Path) -> bool:
    """Say whether a folder is a data set of BIDS."""
    return any((folder / each).exists() for each in _OF_BIDS) or any(folder.glob("sub-*"))


def read_file(
    path: Path,
    folder: Path,
    modalities: Modalities,
    of_labels: Set[Path] = frozenset(),
    is_data_set: Callable[[Path], bool] = is_bids,
) -> ImageFile:
    """Return an image file as its own name and the folders around it have it.

    Args:
        path: The file.
        folder: The folder that was searched.
        modalities: Known modalities.
        of_labels: The folders whose files are labels.
        is_data_set: ``is_bids``, which for many files remembers what it saw.
    """
    around = path.parent.parent if is_unpacked(path.parent, path) else path.parent
    parents = tuple(
        _OF_BIOBANK.sub(r"\1_\2", composed(part)) for part in around.relative_to(folder).parts
    )
    file_name = read_name(stem_of(path), modalities, parents[-1] if parents else "")
    if file_name.head.isdecimal() and _in_series_folder(parents):  # scans/5/NIFTI/5_flair.nii.gz
        file_name = replace(file_name, case="", head="")
    unknown = not (file_name.is_known or file_name.aside or file_name.doubt)
    if unknown and names_part(file_name.case):  # edema.nii.gz, p01_infarct.nii.gz
        case = "_".join(words_of(file_name.case)[:-1])
        file_name = FileName(case, is_label=True, head=case)
    if path.parent in of_labels and not file_name.aside:
        file_name = replace(file_name, modality=None, is_label=True, doubt="")  # labels/p01.nii.gz
    ai = frozenset(("ai",)) if label_tree_above(path, folder) else frozenset()
    makers = (maker_in(part, ai) for part in parents)
    may_be_label = file_name.is_label or file_name.doubt.startswith(FITS_LABEL)
    if may_be_label and (maker := next(filter(None, makers), "")):
        file_name = file_name.set_aside(f"{BY_PROGRAM} ({maker})")
    if file_name.is_label and (maker := _written_by(path.parent)):
        file_name = replace(file_name, is_label=False, aside=f"{BY_PROGRAM} ({maker})")
    named_by_bids = stem_of(path).startswith("sub-")
    rejected = next(
        (
            part
            for part in parents
            if spaced(part) in _REJECTED
            or not_to_use(part)
            or (named_by_bids and part.endswith("_wf"))  # of nipype, where it works
        ),
        "",
    )
    words = not_to_use(stem_of(path))
    if rejected or words or "~" in (path.name[0], stem_of(path)[-1:]):
        why = repr(words) if words else "an editor's backup"
        why = f"a file of the folder {rejected!r}" if rejected else why
        file_name = replace(file_name.set_aside(why), is_nobodys=True)
    if any(
        part in _NO_DATA and is_data_set(folder.joinpath(*parents[:depth]))
        for depth, part in enumerate(parents)
    ):
        why = f"a file of {'/'.join(parents)}, which is no raw data of BIDS"
        file_name = replace(file_name.set_aside(why), is_bids=True)
    if (made := _made_at(parents, file_name, folder, is_data_set)) is not None:
        parents = parents[:made]
        # BIDS: made from the original image, which is what we read
        if not file_name.is_label:
            aside = file_name.aside or MADE_IN_BIDS
            file_name = replace(file_name.set_aside(aside), is_bids=True)
    return ImageFile(path, file_name, parents)


def _written_by(folder: Path) -> str:
    """Return the program whose records of predicted masks lie in a folder, or nothing."""
    found = (name for name, records in _RECORDS.items()
             if all((folder / each).exists() for each in records))  # fmt: skip
    return next(found, "")


def _made_at(
    parents: Parts, file_name: FileName, folder: Path, is_data_set: Callable[[Path], bool]
) -> int | None:
    """Return the depth of BIDS's derivatives, or of a program's folder beside its raw subjects."""
    lower = [part.lower() for part in parents]
    if "derivatives" in lower:
        return lower.index("derivatives")
    if file_name.is_bids:
        for depth, part in enumerate(parents):
            if maker_in(part) and is_data_set(folder.joinpath(*parents[:depth])):
                return depth
    return None


def _in_series_folder(parents: Parts) -> bool:
    return any(part.lower() in _SERIES_FOLDERS for part in parents[:-1])


def _is_label_folder(name: str, modalities: Modalities) -> bool:
    file_name = read_name(name, modalities)
    return file_name.is_label and not file_name.case


def with_places(
    files: Sequence[ImageFile], modalities: Modalities, people: Set[Parts]
) -> list[ImageFile]:
    """Give files their place, of which folders that sort by kind are no part."""
    kinds: dict[Parts, set[str]] = defaultdict(set)
    for file in files:
        for depth in range(len(file.parents) if file.reading.modality else 0):
            kinds[file.parents[: depth + 1]].add(file.reading.modality or "")
    patients = {*people}  # FLAIR-001/T1.nii: a folder that holds more than the kind in its name
    for parents, found in kinds.items():
        named = read_name(parents[-1], modalities)
        is_series = bool(named.modality) or _in_series_folder(parents)
        if named.is_label or (is_series and len(found) > 1):
            patients.add(parents)
    groups = _folders_of_groups(files, modalities)
    series = _folders_of_series(kinds)
    contents: dict[Parts, set[str]] = defaultdict(set)
    for file in files:
        for depth in range(1, len(file.parents) + 1):
            name = f"{file.reading.case}/{file.reading.modality}"  # p1_T1_bet is of p1_T1
            rest = "/".join((*file.parents[depth:], name))
            contents[file.parents[:depth]].add(rest if file.reading.case else "")
    holding = {file.parents for file in files if file.reading.modality}
    processed = {each for each in contents if _is_processed(each[-1], each[:-1], contents, holding)}
    placed = []
    for file in files:
        around = [file.parents[: depth + 1] for depth in range(len(file.parents))]
        made = {each: each[-1] for each in around if each in processed}
        beside = _beside_originals(file.parents, made, processed, contents)
        home = _home(replace(file, parents=beside), modalities, patients, {*made, *series}, groups)
        reading = replace(file.reading, processing=(*file.reading.processing, *made.values()))
        case = reading.case if reading.is_known else reading.head or reading.case
        place = tuple(part for part in home if spaced(part) not in spaced(case))
        placed.append(replace(file, reading=reading, home=home, place=place))
    return placed


def _folders_of_groups(files: Sequence[ImageFile], modalities: Modalities) -> set[Parts]:
    """Return the folders that diagnoses name: ``lesion/001_T1`` beside ``tumor/001_T1``.

    Each is called as labels are, and holds images that another of them has by the same name.
    """
    holding: dict[tuple[Parts, str, str], set[Parts]] = defaultdict(set)
    for file in files:
        reading = file.reading
        if reading.modality and reading.case and file.parents:
            name = read_name(file.parents[-1], modalities)
            if name.is_label and not name.case:
                image = file.parents[:-1], reading.case, reading.modality
                holding[image].add(file.parents)
    return {place for places in holding.values() if len(places) > 1 for place in places}


def _folders_of_series(kinds: Mapping[Parts, Set[str]]) -> set[Parts]:
    """Return the folders of series, where each of several has an image of another modality.

    UIDs name them, or numbers alone in the folder of an examination: ``P01/P01_MR1/4``.
    """
    beside: dict[Parts, list[Parts]] = defaultdict(list)
    for parents in kinds:
        if is_uid(parents[-1]) or (parents[-1].isdecimal() and _is_of_examination(parents[:-1])):
            beside[parents[:-1]].append(parents)
    return {
        each
        for several in beside.values()
        if len(several) == sum(len(kinds[each]) for each in several)
        and len(several) == len(set().union(*(kinds[each] for each in several)))
        for each in several
    }


def _is_of_examination(parents: Parts) -> bool:
    """Say whether a folder is a day's, or called as its patient around it and an examination."""
    if len(parents) < 2:
        return False
    patient, name = parents[-2:]
    behind = name.removeprefix(patient).lstrip(" _-.")
    return is_days_folder(parents) or (behind != name and is_examination(behind))


def _beside_originals(
    parents: Parts,
    made: Collection[Parts],
    processed: Set[Parts],
    contents: Mapping[Parts, Set[str]],
) -> Parts:
    """Return folders with those of processed images replaced by the one that holds the originals.

    So ``bet/p1_T1_bet`` is of the case of ``in/p1_T1``.
    """
    for folder in made:
        originals = [
            other
            for other, names in contents.items()
            if other[:-1] == folder[:-1] and other not in processed and names & contents[folder]
        ]
        if len(originals) == 1:
            parents = (*originals[0], *parents[len(folder) :])
    return parents


def _is_processed(
    part: str, above: Parts, contents: Mapping[Parts, Set[str]], holding: Set[Parts]
) -> bool:
    """Say whether a folder's name says that its images were made of those in another one.

    Short words are left to patients, as they may be initials, unless a folder beside it holds an
    image of the same name, with the patient in it, or the one around it is among those ``holding``
    images.
    """

    def beside() -> list[Parts]:
        return [other for other in contents if other[:-1] == above and other[-1] != part]

    def is_beside_originals() -> bool:
        return any(is_of_originals(other[-1]) or is_native_space(other[-1]) for other in beside())

    if part.lower() == "pre":
        return is_beside_originals()
    words = [
        word
        for word in lower_words(_without_step(part))
        if word not in KIND_FOLDERS and not _HOW_PROCESSED.fullmatch(word)
    ]
    made = "".join(words) in PROCESSING or all(word in PROCESSING for word in words)
    if not words or not made:
        return False
    mine = contents[(*above, part)] - {""}
    return (
        len(part) > 7
        or "t88" in words
        or is_beside_originals()
        or (bool(above) and above in holding)
        or any(contents[other] & mine for other in beside())
    )


def _home(
    file: ImageFile,
    modalities: Modalities,
    patients: Set[Parts] = frozenset(),
    processed: Set[Parts] = frozenset(),
    groups: Set[Parts] = frozenset(),
) -> Parts:
    """Return a file's folders without those that sort by kind.

    Those of ``patients`` and of ``groups`` of them do not, although their names say a kind; those
    of ``processed`` images do.
    """

    def is_sorting(depth: int) -> bool:
        part = file.parents[depth]
        kind = read_name(part, modalities)
        may_be_patient = part[-1].isdecimal() or not (depth or file.reading.case)
        if kind.is_label and may_be_patient and file.parents[: depth + 1] in patients:
            return False  # lesion01/T1, Gtv/T1
        if file.parents[: depth + 1] in groups:
            return False
        if part.lower() in KIND_FOLDERS or is_of_originals(part):
            return True
        if kind.is_known and not kind.case:
            return True
        if part.lower().rstrip("0123456789") in _NUMBERED_KINDS:
            return True
        is_in_scans = depth and file.parents[depth - 1].lower() in _SERIES_FOLDERS
        if is_in_scans and file.parents[: depth + 1] not in patients:
            return True  # scans/4-T1, but not scans/p1 with several images
        if depth and _is_plane(part):
            return True
        # images_structural, images_segm
        words = [word for word in lower_words(part) if word not in KIND_FOLDERS]
        rest = read_name("_".join(words), modalities)
        if len(words) < len(lower_words(part)) and (not words or rest.is_label) and not rest.case:
            return True
        if file.parents[: depth + 1] in patients and agent_in(part):
            return False
        # "with_contrast", but not "pre", which may be before surgery
        if lower_words(part)[-1:] not in _BEFORE and agent_in(part) in ("with", "without"):
            return True
        if file.parents[: depth + 1] in processed:
            return True
        if file.parents[: depth + 1] in patients:
            return False
        # a folder per sequence: VSD.Brain.MR_T1.54512/VSD.Brain.MR_T1.54512.mha, 5_MASK/MASK.nii
        same = kind.modality is not None and kind.modality == file.reading.modality
        return same or (kind.is_label and file.reading.is_label)

    return tuple(part for depth, part in enumerate(file.parents) if not is_sorting(depth))


def _is_plane(part: str) -> bool:
    """Say whether a folder's name is a plane in which images were made, as axial is, at length."""
    is_plane = all(meaning_of(word) == "orientation" for word in words_of(part))
    return is_plane and len(part) > SHORT_NAME and not part_in(part)


def named_by_folder(
    files: Sequence[ImageFile], folder: Path, modalities: Modalities
) -> list[ImageFile]:
    """Read a folder's name where the file's name has no known word: ``T1/scan.nii``.

    The folder may lie further up if the file is the only one below it, as in XNAT's
    ``SCANS/4-T1/NIFTI/image.nii.gz``.
    """
    below = Counter(place for file in files for place in file.path.parents)
    # T1/p1.nii.gz and T1/p2.nii.gz, or labels/p1.nii.gz: so FLAIR/p1.nii.gz, alone in its folder,
    # is of p1
    shared = {
        file.stem
        for file in files
        if below[file.path.parent] > 1 or (file.reading.is_label and file.reading.case == file.stem)
    }
    # site/T1/anna, site/T1/bert and site/FLAIR/anna: patients, whom both folders have
    names = Counter((file.path.parent.parent, file.stem) for file in files)
    labelled = {
        (file.path.parent.parent, file.stem)
        for file in files
        if file.reading.is_label and below[file.path.parent] > 1
    }  # site1/labels/001 and site1/labels/002
    people = {
        file.path
        for file in files
        if below[file.path.parent] > 1
        and names[name := (file.path.parent.parent, file.stem)] > 1
        and (name in labelled or may_be_name(re.sub(r"\d+", "", name[1])))
    }
    twins = Counter(place.name for place in {file.path.parent for file in files})
    return [
        _named_above_patient(file, below, twins, modalities)
        or _named_by_its_folder(file, folder, below, shared, people, modalities)
        for file in files
    ]


def _named_above_patient(
    file: ImageFile, below: Mapping[Path, int], twins: Mapping[str, int], modalities: Modalities
) -> ImageFile | None:
    """Read the folder of a sequence that has a folder per patient, as in ``T1w/P01/img.nii.gz``."""
    patient, around = file.path.parent, file.path.parent.parent
    if len(file.parents) < 2 or below[patient] > 1 or file.reading.is_known or file.reading.doubt:
        return None
    if not (below[around] > 1 or twins[patient.name] > 1) or file.reading.aside:
        return None
    above = read_name(composed(around.name), modalities)
    if not above.is_known or above.case or _home(file, modalities)[-1:] != file.parents[-1:]:
        return None
    reading = replace(above, case="", head="")
    return ImageFile(file.path, reading, (*file.parents[:-2], file.parents[-1]))


def _named_by_its_folder(
    file: ImageFile,
    folder: Path,
    below: Mapping[Path, int],
    shared: Set[str],
    people: Set[Path],
    modalities: Modalities,
) -> ImageFile:
    reading = file.reading
    if reading.is_known or reading.aside or reading.doubt or reading.is_bids:
        return file
    home = _home(file, modalities)
    for place in file.path.parents:
        if place == folder or (below[place] > 1 and place != file.path.parent):
            return file
        name = OF_ARCHIVE.sub(r"\1", composed(place.name))
        above, alone = read_name(name, modalities), below[place] == 1
        parents = tuple(map(composed, place.relative_to(folder).parts[:-1]))
        tail = _words_of_kind(file.stem)
        if above.modality and not above.case and (alone or not home or tail or file.path in people):
            # T1/p01_post and T1/p01_brain are read as p01_T1_post and p01_T1_brain
            stem = file.stem
            patient = stem[: len(stem) - len(tail)].rstrip(" _-.")
            is_patient = not alone or (not home and stem in shared)
            reading = read_name("_".join(filter(None, (patient, name, tail))), modalities)
            if not (tail and (reading.modality or reading.doubt)):
                case = file.reading.case if is_patient else ""
                reading = FileName(case, above.modality, head=case, processing=above.processing)
            return ImageFile(file.path, reading, parents)
        if alone and (above.is_known or above.doubt or above.aside):
            if {part.lower() for part in parents} & _SERIES_FOLDERS and above.head.isdecimal():
                above = replace(above, case="", head="")
            return ImageFile(file.path, above, parents)
        if below[place] > 1:
            return file
    return file


def is_of_originals(part: str) -> bool:
    """Say whether a folder's name says that other images were made of its own: raw, with_skull."""
    return with_skull_in_a_word(_without_step(part).lower()) in _ORIGINALS


def _without_step(part: str) -> str:
    """Return a folder's name without the number of a step before it: 01_raw, 02_preprocessed."""
    return re.sub(r"^\d{1,2}[ _.-]+(?=\D)", "", part)


def is_native_space(part: str) -> bool:
    """Say whether a folder's name may be about the space of its images, and not about an agent."""
    return bool(_NATIVE.fullmatch(part))


def may_be_name(stem: str) -> bool:
    """Say whether a file's name may be a patient's, and is not that of any image or a number."""
    words = [word for word in lower_words(with_skull_in_a_word(stem)) if not word.isdecimal()]
    no_names = KIND_FOLDERS | ANY_IMAGE | _ORIGINALS | PROCESSING
    return bool(words) and not all(word in no_names for word in words)


def _words_of_kind(stem: str) -> str:
    """Return the end of a name that speaks of an agent or of processing, and not of the patient."""
    tail = ""
    for match in reversed([*re.finditer(r"[^ _.-]+", stem)]):
        if not (agent_in(match[0]) or match[0].lower() in PROCESSING):
            break
        tail = stem[match.start() :]
    return tail
