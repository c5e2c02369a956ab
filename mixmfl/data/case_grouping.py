"""Grouping of image files into cases, by their folders and the rest of their names.

A case is a folder that holds the images of one patient only, each of another modality; or the
files in one folder whose names differ only in the words for their kind. Files that look like one
patient and cannot be grouped safely are refused: otherwise each piece of a patient would get a mask
from a single sequence.
"""

import itertools
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path

from mixmfl.data.accounting import inside, other_format
from mixmfl.data.file_names import BY_PROGRAM, SHORT_MAKERS, FileName, maker_in, read_name
from mixmfl.data.image import ending_of
from mixmfl.data.modalities import Modalities
from mixmfl.data.patients import patients_by_place
from mixmfl.data.sequence_vocabulary import AFTER, PROCESSING
from mixmfl.data.sequence_words import agent_in, agent_in_name, without_accents
from mixmfl.data.time_points import (
    are_of_other_times,
    is_day,
    is_examination,
    is_of_another_state,
    names_examination,
)

# folders that sort one case's files by kind, as those named after modalities and labels do too
_KIND_FOLDERS = {
    "anat", "dwi", "perf", "image", "images", "imagestr", "imagests", "nifti", "nii", "scans",
    "resources", "files", "structural", "anatomical", "rawdata", "data",
}  # fmt: skip
# folders of what a person sorted out, as words
_REJECTED = {
    f" {name} "
    for name in ("not used", "notused", "unused", "exclude", "excluded", "rejected", "discarded",
                 "trash", "papierkorb", "nicht verwendet", "ausgeschlossen", "backup", "backups",
                 "sicherung", "sicherungskopie", "sauvegarde", "$recycle bin", "#recycle", "@eadir",
                 "macosx")
}  # fmt: skip
_NUMBERED_KINDS = {"anat", "dwi", "swi", "perf"}  # of OASIS: anat2, swi1
_ORIGINALS = {"orig", "original", "originals", "raw"}  # beside them, "pre" is preprocessed
_OTHER_T = re.compile(r"(?<![a-z0-9])t[03-9](?![a-z0-9])")
_T1_OR_T2 = re.compile(r"(?<![a-z0-9])t[12](?![a-z0-9])")
_CT1 = re.compile(r"(?<![a-z0-9])ct1(?![a-z0-9])")
_BESIDE_CT1 = ("t1", "t1w", "ct", "ct0", "ct2", "ct3", "at1", "st1", "t1c", "t1ce", "t1gd", "t1km")
_SERIES_FOLDERS = {"scans", "scan"}  # of XNAT: each folder within is a series, by its number
# what SPM and CAT12 write before the name of an image that they made something of
_SPM = re.compile(r"(?:s\d{0,2}|r|w|m|c[1-6]|p[0-3]|i?y_|u_|ples_l[gp]a_)+")
_LONGEST_PREFIX = 16
# beside a word for processing: resampled_1mm, skull_stripped
_HOW_PROCESSED = re.compile(r"\d{1,2}mm|iso(?:\d{1,2}mm|tropic)?|skull")
_BEFORE = ("pre", "prae", "pra")
_OF_ARCHIVE = re.compile(r"\d+\.\d{6}-(.+?)(?:-\d+)?")  # 3.000000-AX T1-11111, of TCIA
_DAY = re.compile(r"(?<!\d)\d{4}-\d{2}-\d{2}(?!\d)")
_OF_BIDS = ("dataset_description.json", "rawdata", "derivatives")  # files of its topmost folder
_NO_DATA = {"sourcedata", "code", "stimuli", "phenotype"}  # in the folder of a BIDS data set
_ANY_IMAGE = {"scan", "img", "series", "ser", "file", "volume", "vol", "brain", "head", "mr", "mri"}
_HOW_TO_NAME = (
    "looks like one patient, or like several of one image each; name the files PATIENT_t1.nii.gz, "
    "or by their modality alone (t1.nii.gz) in a folder per patient, or say by --mapping"
)
_WHOSE_NUMBERS = (
    "the numbers in {} may be of one patient's series or of several patients with one image each; "
    "put each patient's files into a folder and name them by their modality alone (t1.nii.gz), or "
    "say by --mapping which case each is of"
)
_WHICH_DAY = (
    "{} have other days or times in their names, and may be of one examination or of several; put "
    "each examination's files into a folder and name them by their modality alone (t1.nii.gz), or "
    "say by --mapping which case each is of"
)
# a number that a scanner, a converter or a person gave to a series or to a patient
_NUMBER = re.compile(
    r"(?:(?P<name>.*[^ _.-])[ _.-]+)?(?:s|se|ser|serie|series|scan|im)?[ _.-]*(?P<number>\d{1,5})"
)

Parts = tuple[str, ...]
Key = tuple[Parts, str]  # a place, and the rest of the names of a case's files there


@dataclass(frozen=True)
class ImageFile:
    """An image file, and what its own path says.

    Attributes:
        path: The file.
        reading: The reading of its name, or of the folder that is named in its stead.
        parents: The folders it lies in below the one searched, without one that ``reading`` is of.
        place: ``parents`` without those that sort one case's files (``anat``, ``labels``) and those
            that repeat the case's name; filled in once all names are read.
        home: Like ``place``, with the folders that repeat the case's name, too.
    """

    path: Path
    reading: FileName
    parents: Parts
    place: Parts = ()
    home: Parts = ()


@dataclass(frozen=True)
class Grouped:
    """The case that each file belongs to.

    Attributes:
        files: All files, each with the name of its case.
        faults: Reasons why a case cannot be used, by the case's name.
        layout: The layout by which the files were grouped.
        patients: The patient of each case whose folders tell more of it than its name.
    """

    files: tuple[tuple[ImageFile, str], ...]
    faults: Mapping[str, tuple[str, ...]]
    layout: str
    patients: Mapping[str, str]


def group(folder: Path, paths: Sequence[Path], modalities: Modalities) -> Grouped:
    """Gather the files of cases by the words in their names.

    A folder with a file that is named by its kind alone (``T1.nii.gz``) is one case, with all
    that lies in it and below. Other files belong together by what is left of their names; the
    same rest at two places is two cases.
    """
    files = [_read_file(path, folder, modalities) for path in paths]
    files = _with_time_points(files)
    files = _with_ct1(files)
    files = _named_by_folder(files, folder, modalities)
    people = _called_as_agents(files, modalities)
    files = _placed(files, modalities, people)
    files = _without_products_of_tools(files)
    files = _without_segmentations_of_tools(files)
    files = _with_words_of_patients(files)
    files = _with_agent_of_folder(files, folder, people)
    files = _with_patients_called_as_agents(files)
    files = _joined_by_name(files, folder)
    rests, unclear = _rests(files)
    known = [file for file in files if file.reading.is_known]
    case_folders = {file.home for file in known if not rests.get(file.path, file.reading.case)}

    def key(file: ImageFile) -> Key:
        tops = (file.home[:length] for length in range(1, len(file.home) + 1))
        top = next((top for top in tops if top in case_folders), None)
        rest = rests.get(file.path, file.reading.case)
        return (top, "") if top else (file.place if rest else file.home, rest)

    key_of = {file.path: key(file) for file in known if file.reading.modality}
    places: dict[Parts, set[str]] = defaultdict(set)  # where cases are, with their rests
    for place, rest in key_of.values():
        places[place].add(rest)
    for file in known:
        if file.reading.is_label:
            key_of[file.path] = _key_of_label(file, key(file), places)
    keys = set(key_of.values())
    name_of = _name_cases(keys, folder)
    beside: dict[Path, set[Key]] = defaultdict(set)
    for path, each in key_of.items():
        beside[path.parent].add(each)
    misplaced = _misplaced(known, key_of)
    placed, faults = [], defaultdict(list)
    for file in files:
        if file.reading.is_known:
            if doubt := misplaced.get(file.path):
                reading = replace(file.reading, modality=None, is_label=False, doubt=doubt)
                file = replace(file, reading=reading)
            placed.append((file, name_of[key_of[file.path]]))
        else:
            near = beside[file.path.parent] if file.path.parent != folder else set()
            owner = _owner(file, key(file), keys, near)
            name = name_of[owner] if owner else "_".join(file.place) or file.reading.case
            placed.append((file, name))
    for name, count in Counter(name_of.values()).items():
        if count > 1:
            its_files = [path for path, key in key_of.items() if name_of[key] == name]
            listed = ", ".join(inside(path, folder) for path in its_files)
            faults[name].append(f"is the name of {count} cases: {listed}; rename one")
    for one, others in _differ_in_case_alone(name_of.values()).items():
        faults[one].append(f"differs from {others} in upper and lower case alone; rename one")
    nobodys = _of_no_patient(known, key_of, folder)
    unclear |= dict.fromkeys(nobodys, _WHOSE_NUMBERS.format(_names(nobodys)))
    questions = {(name_of[key_of[path]], question) for path, question in unclear.items()}
    for name, question in sorted(questions):
        faults[name].append(question)
    in_folders = sum(not rest for _, rest in name_of)
    layout = "a folder per case" if 2 * in_folders > len(name_of) else "names with modality"
    home_of = {key_of[file.path]: file.home for file in known if file.reading.modality}
    patients = patients_by_place(
        {name: (home_of.get(key, key[0]), key[1]) for key, name in name_of.items()}
    )
    return Grouped(
        tuple(placed), {name: tuple(texts) for name, texts in faults.items()}, layout, patients
    )


def _read_file(path: Path, folder: Path, modalities: Modalities) -> ImageFile:
    parents = tuple(map(_composed, path.relative_to(folder).parts[:-1]))
    file_name = read_name(stem_of(path), modalities, parents[-1] if parents else "")
    if file_name.head.isdecimal() and _in_series_folder(parents):  # scans/5/NIFTI/5_flair.nii.gz
        file_name = replace(file_name, case="", head="")
    if parents and _is_label_folder(parents[-1], modalities) and not file_name.aside:
        file_name = replace(file_name, modality=None, is_label=True, doubt="")  # labels/p01.nii.gz
    if file_name.is_label and (maker := next(filter(None, map(maker_in, parents)), "")):
        file_name = replace(file_name, is_label=False, aside=f"{BY_PROGRAM} ({maker})")
    if rejected := next((part for part in parents if _spaced(part) in _REJECTED), ""):
        aside = f"a file of the folder {rejected!r}"
        file_name = replace(file_name, modality=None, is_label=False, doubt="", aside=aside)
    if _NO_DATA & set(parents) and any((folder / each).exists() for each in _OF_BIDS):
        aside = f"a file of {'/'.join(parents)}, which is no raw data of BIDS"
        file_name = replace(
            file_name, modality=None, is_label=False, doubt="", aside=aside, is_bids=True
        )
    if "derivatives" in parents:
        parents = parents[: parents.index("derivatives")]
        # BIDS: made from the original image, which is what we read
        if file_name.modality or file_name.doubt:
            aside = "an image of BIDS derivatives; the original is what is read"
            file_name = replace(file_name, modality=None, doubt="", aside=aside)
    return ImageFile(path, file_name, parents)


def _with_time_points(files: Sequence[ImageFile]) -> list[ImageFile]:
    """Leave a name undecided whose T1 or T2 is a time point, as in p1_T1_FLAIR beside p1_T0_FLAIR.

    There is no T0 and no T3 among the sequences, so such a name beside it shows what is counted.
    """

    def patterns(file: ImageFile, counted: re.Pattern[str]) -> set[tuple[Path, str]]:
        stem, folder = stem_of(file.path).lower(), file.path.parent
        return {
            (
                folder.parent if folder.name.lower() == each[0] else folder,
                f"{stem[: each.start()]}#{stem[each.end() :]}",
            )
            for each in counted.finditer(stem)
        }

    times = {each for file in files for each in patterns(file, _OTHER_T)}
    # T1/P5_T1_FLAIR beside T2/P5_T2_FLAIR: of two times, or two kinds of FLAIR
    counted: dict[tuple[Path, str], set[Path]] = defaultdict(set)
    for file in files:
        if file.reading.modality and _T1_OR_T2.fullmatch(file.path.parent.name.lower()):
            for pattern in patterns(file, _T1_OR_T2):
                counted[pattern].add(file.path.parent)
    times |= {pattern for pattern, folders in counted.items() if len(folders) > 1}
    doubt = (
        "has a T1 or T2 that may be a time point, for another name has a T0, T2 or T3 in its place"
    )
    return [
        replace(file, reading=replace(file.reading, modality=None, doubt=doubt))
        if file.reading.modality and times & patterns(file, _T1_OR_T2)
        else file
        for file in files
    ]


def _with_ct1(files: Sequence[ImageFile]) -> list[ImageFile]:
    """Read CT1 beside T1 as a T1 with contrast agent, as tools for gliomas call it.

    Beside CT or CT2 it may be a computed tomography, and beside AT1 or ST1 a coronal T1.
    """
    names = {(file.path.parent, stem_of(file.path).lower()) for file in files}
    decided = []
    for file in files:
        stem = stem_of(file.path).lower()
        parts = _CT1.split(stem)
        beside = {each for each in _BESIDE_CT1 if (file.path.parent, each.join(parts)) in names}
        if file.reading.doubt and len(parts) == 2 and beside and beside <= {"t1", "t1w"}:
            file = replace(file, reading=replace(file.reading, modality="t1c", doubt=""))
        decided.append(file)
    return decided


def _in_series_folder(parents: Parts) -> bool:
    return any(part.lower() in _SERIES_FOLDERS for part in parents[:-1])


def _called_as_agents(files: Sequence[ImageFile], modalities: Modalities) -> set[Parts]:
    """Return the folders that a word for an agent names, and that may be a patient's: Gado, KM.

    Beside them lie folders without such a word that hold an image of the same bare name.
    """
    names: dict[Parts, set[str]] = defaultdict(set)
    for file in files:
        if file.parents and file.reading.modality and not file.reading.case:
            names[file.parents].add(stem_of(file.path).lower())

    def is_of_agent(part: str) -> bool:
        return agent_in(part) in ("with", "without")

    others: dict[Parts, set[str]] = defaultdict(set)
    for parents, stems in names.items():
        sorts = parents[-1].lower() in _KIND_FOLDERS | _ORIGINALS
        made = all(word in PROCESSING for word in _words(parents[-1]))
        is_known = read_name(parents[-1], modalities).is_known
        if not (sorts or made or is_known or agent_in(parents[-1])):
            others[parents[:-1]] |= stems
    return {
        parents
        for parents, stems in names.items()
        if is_of_agent(parents[-1]) and stems & others[parents[:-1]]
    }


def _placed(
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
        if named.is_label or (named.modality and len(found) > 1):
            patients.add(parents)
    contents: dict[Parts, set[str]] = defaultdict(set)
    for file in files:
        for depth in range(1, len(file.parents) + 1):
            rest = "/".join((*file.parents[depth:], stem_of(file.path)))
            contents[file.parents[:depth]].add(rest if file.reading.case else "")
    placed = []
    for file in files:
        made = {
            file.parents[: depth + 1]: part
            for depth, part in enumerate(file.parents)
            if _is_processed(part, file.parents[:depth], contents)
        }
        home = _home(file, modalities, patients, {*made})
        reading = replace(file.reading, processing=(*file.reading.processing, *made.values()))
        case = reading.case if reading.is_known else reading.head or reading.case
        place = tuple(part for part in home if _spaced(part) not in _spaced(case))
        placed.append(replace(file, reading=reading, home=home, place=place))
    return placed


def _is_processed(part: str, above: Parts, contents: Mapping[Parts, Set[str]]) -> bool:
    """Say whether a folder's name says that its images were made of those in another one.

    Short words are left to patients, as they may be initials, unless a folder beside it holds an
    image of the same name, with the patient in it.
    """
    beside = [other for other in contents if other[:-1] == above and other[-1] != part]
    if part.lower() == "pre":
        return any(other[-1].lower() in _ORIGINALS for other in beside)
    words = [
        word
        for word in _words(part)
        if word not in _KIND_FOLDERS and not _HOW_PROCESSED.fullmatch(word)
    ]
    if not words or not all(word in PROCESSING for word in words):
        return False
    mine = contents[(*above, part)] - {""}
    return len(part) > 7 or any(contents[other] & mine for other in beside)


def _home(
    file: ImageFile,
    modalities: Modalities,
    patients: Set[Parts] = frozenset(),
    processed: Set[Parts] = frozenset(),
) -> Parts:
    """Return a file's folders without those that sort by kind.

    Args:
        file: The file.
        modalities: Known modalities.
        patients: Folders that are a patient's although their names say a kind.
        processed: Folders of images that were made of others.
    """

    def is_sorting(depth: int) -> bool:
        part = file.parents[depth]
        kind = read_name(part, modalities)
        if part.lower() in (_KIND_FOLDERS | _ORIGINALS) or (kind.is_known and not kind.case):
            return True
        if part.lower().rstrip("0123456789") in _NUMBERED_KINDS:
            return True
        if depth and file.parents[depth - 1].lower() in _SERIES_FOLDERS:
            return True
        # images_structural, images_segm
        words = [word for word in _words(part) if word not in _KIND_FOLDERS]
        rest = read_name("_".join(words), modalities)
        if len(words) < len(_words(part)) and (not words or rest.is_label) and not rest.case:
            return True
        if file.parents[: depth + 1] in patients and agent_in(part):
            return False
        # "with_contrast", but not "pre", which may be before surgery
        if part.lower() not in _BEFORE and agent_in(part) in ("with", "without"):
            return True
        if file.parents[: depth + 1] in processed:
            return True
        if file.parents[: depth + 1] in patients:
            return False
        # a folder per sequence: VSD.Brain.MR_T1.54512/VSD.Brain.MR_T1.54512.mha, 5_MASK/MASK.nii
        same = kind.modality is not None and kind.modality == file.reading.modality
        return same or (kind.is_label and file.reading.is_label)

    return tuple(part for depth, part in enumerate(file.parents) if not is_sorting(depth))


def _is_label_folder(name: str, modalities: Modalities) -> bool:
    file_name = read_name(name, modalities)
    return file_name.is_label and not file_name.case


def _named_by_folder(
    files: Sequence[ImageFile], folder: Path, modalities: Modalities
) -> list[ImageFile]:
    """Read a folder's name where the file's name has no known word: ``T1/scan.nii``.

    The folder may lie further up if the file is the only one below it, as in XNAT's
    ``SCANS/4-T1/NIFTI/image.nii.gz``.
    """
    below = Counter(place for file in files for place in file.path.parents)
    # T1/p1.nii.gz and T1/p2.nii.gz: so FLAIR/p1.nii.gz, alone in its folder, is of p1
    shared = {stem_of(file.path) for file in files if below[file.path.parent] > 1}
    return [_named_by_its_folder(file, folder, below, shared, modalities) for file in files]


def _named_by_its_folder(
    file: ImageFile,
    folder: Path,
    below: Mapping[Path, int],
    shared: Set[str],
    modalities: Modalities,
) -> ImageFile:
    if file.reading.is_known or file.reading.aside or file.reading.doubt:
        return file
    home = _home(file, modalities)
    for place in file.path.parents:
        if place == folder or (below[place] > 1 and place != file.path.parent):
            return file
        name = _OF_ARCHIVE.sub(r"\1", _composed(place.name))
        above, alone = read_name(name, modalities), below[place] == 1
        parents = tuple(map(_composed, place.relative_to(folder).parts[:-1]))
        tail = _words_of_kind(stem_of(file.path))
        if above.modality and not above.case and (alone or not home or tail):
            # T1/p01_post and T1/p01_brain are read as p01_T1_post and p01_T1_brain
            stem = stem_of(file.path)
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


def _words_of_kind(stem: str) -> str:
    """Return the end of a name that speaks of an agent or of processing, and not of the patient."""
    tail = ""
    for match in reversed([*re.finditer(r"[^ _.-]+", stem)]):
        if not (agent_in(match[0]) or match[0].lower() in (*_BEFORE, *PROCESSING)):
            break
        tail = stem[match.start() :]
    return tail


def _without_products_of_tools(files: Sequence[ImageFile]) -> list[ImageFile]:
    """Set aside what SPM or dcm2nii made of an image beside it or in the folder above.

    SPM writes ``c1T1`` and ``wmT1``; dcm2nii ``o`` before the name of the image that it turned
    upright, and ``co`` before that of the one that it cropped, too.
    """
    by_stem: dict[Path, dict[str, ImageFile]] = defaultdict(dict)
    for file in files:
        by_stem[file.path.parent][stem_of(file.path)] = file

    def is_of_dcm2nii(prefix: str, original: ImageFile) -> bool:
        name, beside = stem_of(original.path), by_stem[original.path.parent]
        both = f"o{name}" in beside and f"co{name}" in beside
        return prefix in ("o", "co") and (both or bool(re.match(r"\d{8}", name)))

    def original_of(file: ImageFile) -> tuple[int, ImageFile | None]:
        stem, folder = stem_of(file.path), file.path.parent
        for at in reversed(range(1, min(len(stem), _LONGEST_PREFIX))):
            name = stem[at:]
            original = by_stem[folder].get(name) or by_stem.get(folder.parent, {}).get(name)
            if original and (_SPM.fullmatch(stem[:at]) or is_of_dcm2nii(stem[:at], original)):
                return at, original
        return 0, None

    originals = [original_of(file) for file in files]
    # letters alone may begin a patient's name, as in sam_T1 beside am_T1
    sure = {
        original.path.parent
        for file, (at, original) in zip(files, originals, strict=True)
        if original and re.search(r"[\d_]", stem_of(file.path)[:at])
    }
    left = []
    for file, (at, original) in zip(files, originals, strict=True):
        if original:
            stem, name = stem_of(file.path), stem_of(original.path)
            turned = is_of_dcm2nii(stem[:at], original)
            clear = re.search(r"[\d_]", stem[:at]) or (
                not original.reading.case or original.path.parent in sure
            )
            is_patient = at == 1 and name[0].isdecimal()  # s01_T1 beside 01_T1
            if turned or (clear and not is_patient):
                aside = f"an image that {'dcm2nii' if turned else 'SPM'} made of {name}"
                reading = FileName(original.reading.case, head=original.reading.head, aside=aside)
                file = replace(file, reading=reading, place=original.place, home=original.home)
        left.append(file)
    return left


def _without_segmentations_of_tools(files: Sequence[ImageFile]) -> list[ImageFile]:
    """Set aside labels that the files beside them show to be by a program.

    FAST writes ``T1_seg`` beside ``T1_pve_0``, HD-GLIO ``segmentation`` beside ``T1_r2s_bet``, UK
    Biobank ``final_mask`` beside ``bianca_mask``, FreeSurfer ``mask.mgz`` in its folder ``mri``;
    ``lst_lesions`` is LST's where no image is of a patient called LST.
    """
    patients = {
        name.lower()
        for file in files
        for name in (file.reading.head, file.reading.case, *file.parents)
        if file.reading.modality
    }
    beside: dict[Path, set[str]] = defaultdict(set)
    for file in files:
        beside[file.path.parent].add(stem_of(file.path).lower())

    def maker(file: ImageFile) -> str:
        stem, others = stem_of(file.path).lower(), beside[file.path.parent]
        image = re.sub(r"_seg$", "", stem)
        if image != stem and any(
            other.startswith((f"{image}_pve", f"{image}_mixel")) for other in others
        ):
            return "FAST"
        if stem == "segmentation" and any("_r2s_bet" in other for other in others):
            return "HD-GLIO"
        if stem == "final_mask" and "bianca_mask" in others:
            return "BIANCA"
        head = file.reading.head
        if head.lower() not in patients and (made := maker_in(head, SHORT_MAKERS)):
            return made
        is_freesurfer = file.path.parent.name == "mri" and file.path.suffix.lower() == ".mgz"
        return "FreeSurfer" if is_freesurfer else ""

    return [
        replace(file, reading=replace(file.reading, is_label=False, aside=f"{BY_PROGRAM} ({made})"))
        if file.reading.is_label and (made := maker(file))
        else file
        for file in files
    ]


def _with_words_of_patients(files: Sequence[ImageFile]) -> list[ImageFile]:
    """Decide on a T1 with a short unknown word that comes back with other sequences.

    So "abc" of ``T1_abc`` beside ``FLAIR_abc`` is about the patient, not about a contrast agent.
    """
    others: dict[Parts, set[str]] = defaultdict(set)
    for file in files:
        if file.reading.modality not in (None, "t1", "t1c"):
            others[file.home].update(_words(without_accents(stem_of(file.path))))

    def around(file: ImageFile) -> set[str]:
        above = file.home[:-1]  # of a folder per image
        return others[file.home] | (others[above] if above else set())

    return [
        replace(file, reading=replace(file.reading, modality="t1", doubt="", unknown=()))
        if file.reading.unknown and around(file).issuperset(file.reading.unknown)
        else file
        for file in files
    ]


def _with_agent_of_folder(
    files: Sequence[ImageFile], folder: Path, people: Set[Parts]
) -> list[ImageFile]:
    """Read what a folder says of the contrast agent of a T1 whose own name does not say it.

    So ``post_contrast/T1.nii.gz`` is a T1 with contrast agent; ``post/T1.nii.gz`` is undecided, as
    it may be after surgery, unless a T1 with contrast agent lies beside it.
    """
    with_agent = {file.path.parent for file in files if file.reading.modality == "t1c"}
    refined = []
    for file in files:
        parts = map(_composed, reversed(file.path.relative_to(folder).parts[:-1]))
        spoken = ((part, agent) for part in parts for agent in (agent_in(part),) if agent)
        part, agent = next(spoken, ("", ""))
        if agent and part != _composed(file.path.parent.name):  # it may have another reason
            agent = "unclear" if agent == "with" else agent
        if file.parents in people:
            agent = "unclear"
        reading = file.reading
        own = agent_in_name(stem_of(file.path))
        doubt = f"says {reading.modality}, and the folder {part!r} tells of a contrast agent"
        if reading.is_bids or reading.modality not in ("t1", "t1c"):
            pass
        elif reading.modality == "t1c":
            if agent == "without":
                reading = replace(reading, modality=None, doubt=f"{doubt} to come")
        elif agent == "with" and own != "without":
            reading = replace(reading, modality="t1c")
        elif (agent == "with") or (
            agent == "unclear" and own != "without" and file.path.parent not in with_agent
        ):
            reading = replace(reading, modality=None, doubt=doubt)
        refined.append(replace(file, reading=reading))
    return refined


def _with_patients_called_as_agents(files: Sequence[ImageFile]) -> list[ImageFile]:
    """Leave a T1 undecided whose word for an agent all other sequences of its case have, too.

    So ``Gado`` of ``T1_Gado`` beside ``FLAIR_Gado`` may be a patient, whom it then names.
    """
    by_case: dict[tuple[Parts, str], list[ImageFile]] = defaultdict(list)
    for file in files:
        if file.reading.modality and not file.reading.is_bids:
            by_case[file.home, file.reading.case].append(file)
    patient_of: dict[Path, str] = {}
    for mine in by_case.values():
        words = [dict.fromkeys(_words(stem_of(file.path))) for file in mine]
        kinds = {file.reading.modality for file in mine}
        shared = [word for word in words[0] if all(word in each for each in words)]
        names = [word for word in shared if agent_in(word) == "with"]
        signs = any(each.keys() & AFTER for each in words)
        if (
            "t1c" in kinds
            and len(kinds) > 1
            and "t1" not in kinds
            and len(names) == 1
            and not signs
        ):
            patient_of.update({file.path: names[0] for file in mine})
    decided = []
    for file in files:
        if name := patient_of.get(file.path):
            reading = replace(file.reading, case=name, head=name)
            if reading.modality == "t1c":
                doubt = f"has {name!r}, as all names beside it: a contrast agent, or the patient"
                reading = replace(reading, modality=None, doubt=doubt)
            file = replace(file, reading=reading)
        decided.append(file)
    return decided


def _joined_by_name(files: Sequence[ImageFile], folder: Path) -> list[ImageFile]:
    """Bring images of one patient together that lie in a folder each, by name and folder.

    As archives write them: ``002_S_0295/MPRAGE/2011-06-02/I239487/ADNI_002_S_0295_MR_….nii``. All
    numbers that identify the patient in the files' names must be in the names of the folders around
    all of them, for a number alone may come back with another patient. Days are examinations.
    """
    by_patient: dict[tuple[str, str], list[ImageFile]] = defaultdict(list)
    for file in files:
        if file.reading.is_known and re.search(r"\d", file.reading.head):
            day = next((d[0] for part in file.home for d in _DAY.finditer(part)), "")
            by_patient[file.reading.head, day].append(file)
    days = Counter(head for head, _ in by_patient)
    moved: dict[Path, Parts] = {}
    for (head, day), mine in by_patient.items():
        images = [file for file in mine if file.reading.modality]
        if len({file.home for file in mine}) == 1 or len(images) != len(
            {file.reading.modality for file in images}
        ):
            continue
        levels = zip(*(file.home for file in mine), strict=False)
        common = tuple(
            parts[0] for parts in itertools.takewhile(lambda parts: len({*parts}) == 1, levels)
        )
        around = {word for part in (folder.resolve().name, *common) for word in _words(part)}
        numbers = {word for word in _words(head) if re.search(r"\d", word)}
        if numbers <= around:
            home = common
            if day and days[head] > 1:
                at = next((at for at, part in enumerate(common) if day in part), len(common))
                home = (*common[:at], day)
            moved.update({file.path: home for file in mine})
    return [
        replace(
            file,
            home=moved[file.path],
            place=tuple(
                p for p in moved[file.path] if _spaced(p) not in _spaced(file.reading.case)
            ),
        )
        if file.path in moved
        else file
        for file in files
    ]


def _rests(files: Sequence[ImageFile]) -> tuple[dict[Path, str], dict[Path, str]]:
    """Return the part of each image's name that identifies its case, and questions about images.

    Converters write times and numbers behind the words, which differ within one patient. So the
    part before the words identifies the patient, unless the numbers behind them come back with
    other modalities: ``t1_001`` and ``t2_001``.
    """
    rests: dict[Path, str] = {}
    unclear: dict[Path, str] = {}
    at_home: dict[Parts, list[ImageFile]] = defaultdict(list)
    labels_at: dict[Parts, set[str]] = defaultdict(set)
    for file in files:
        if file.reading.modality and not file.reading.is_bids:
            at_home[file.home].append(file)
        elif file.reading.is_label:
            labels_at[file.home].add(file.reading.case)
    numbered = [each for home, mine in at_home.items() for each in _numbered(home, mine)]
    homes_of = Counter(head for mine in at_home.values() for head in {i.reading.head for i in mine})
    for home, mine in at_home.items():
        by_head: dict[str, list[ImageFile]] = defaultdict(list)
        for image in mine:
            by_head[image.reading.head].append(image)
        for head, group in by_head.items():
            by_case: dict[str, list[ImageFile]] = defaultdict(list)
            for image in group:
                by_case[image.reading.case].append(image)
            for case, same in by_case.items():
                rest = case if _suffix_separates_cases(by_case, head, home) else head
                rests.update(dict.fromkeys((image.path for image in same), rest))
        paths = [image.path for image in mine]
        count = len({image.reading.modality for image in mine})
        apart = len(by_head) > 1 and len({rests[path] for path in paths}) == len(mine) == count
        repeated = max(homes_of[head] for head in by_head) > 1
        if any(each.home == home and not each.name for each in numbered):
            pass  # see below
        elif len(by_head) > 1 and count == len(mine) and all(map(is_day, by_head)):
            days = {re.sub(r"[-_.]", "", head)[:8] for head in by_head}
            if len(days) == 1:
                rests.update(dict.fromkeys(paths, ""))
                if not home:  # of several patients, perhaps
                    unclear.update(dict.fromkeys(paths, _WHICH_DAY.format(_names(paths))))
        elif len(by_head) == 1 and home and len({rests[path] for path in paths}) == 1:
            if not re.search(
                r"\d", mine[0].reading.head
            ):  # p01/DICOM_t1_5: the folder is the patient
                rests.update(dict.fromkeys(paths, ""))
        elif apart and home:
            rests.update(dict.fromkeys(paths, ""))
            # beside T1.nii.gz, or in a folder of its name, p01_FLAIR.nii.gz is of no other patient
            others = [head for head in by_head if head and _spaced(head) not in _spaced(home[-1])]
            if (
                any(re.search(r"\d", head) for head in others)
                # anna_t1.nii and bert_flair.nii
                or not repeated
            ) and (len(others) > 1 or len(others) == len(by_head)):
                unclear.update(dict.fromkeys(paths, _HOW_TO_NAME))
    by_rest: dict[tuple[Parts, str], list[ImageFile]] = defaultdict(list)
    for home, mine in at_home.items():
        for image in mine:
            by_rest[home, rests[image.path]].append(image)
    for together in by_rest.values():
        if are_of_other_times([stem_of(image.path) for image in together]):
            paths = [image.path for image in together]
            unclear.update(dict.fromkeys(paths, _WHICH_DAY.format(_names(paths))))
    for each in numbered:
        are_series = _are_series(each, numbered, labels_at[each.home])
        if are_series is False:
            rests.update({image.path: image.reading.case for image in each.images})
            continue
        rests.update(dict.fromkeys(each.paths, each.name))
        if are_series is None:
            unclear.update(dict.fromkeys(each.paths, _WHOSE_NUMBERS.format(_names(each.paths))))
    return rests, unclear


def _names(paths: Sequence[Path]) -> str:
    return ", ".join(sorted(path.name for path in paths))


@dataclass(frozen=True)
class _Numbered:
    """Images of one folder whose names differ in a number and the modality.

    Attributes:
        home: The folder.
        name: The part of their names before the numbers; empty where they begin with these.
        images: The images.
        modality_of: The modality of each number.
    """

    home: Parts
    name: str
    images: tuple[ImageFile, ...]
    modality_of: Mapping[int, str]

    @property
    def paths(self) -> list[Path]:
        return [image.path for image in self.images]

    @property
    def are_behind(self) -> bool:
        """Whether the numbers are behind the words for the modality, as in ``t1_5``."""
        return not any(image.reading.head for image in self.images)

    @property
    def have_zeros(self) -> bool:
        """Whether a number begins with 0, as numbers of patients do."""
        return any(re.search(r"(?<!\d)0\d*$", _numbered_name(image)) for image in self.images)


def _numbered_name(image: ImageFile) -> str:
    return image.reading.head or image.reading.case


def _numbered(home: Parts, images: Sequence[ImageFile]) -> list[_Numbered]:
    """Return the groups of images whose numbers may be of series or of patients.

    That is no question where a number comes back, or the modalities do: then they are of patients.
    """
    by_name: dict[str, list[tuple[ImageFile, int]]] = defaultdict(list)
    for image in images:
        number = _NUMBER.fullmatch(_numbered_name(image).lower())
        if not image.reading.head and not (number and not number["name"]):
            return []  # T1.nii.gz: the folder is a case
        if not number:
            continue
        name = _numbered_name(image)[: number.end("name")] if number["name"] else ""
        by_name[name].append((image, int(number["number"])))
    groups = []
    for name, pairs in by_name.items():
        modality_of = {number: image.reading.modality or "" for image, number in pairs}
        kinds = {*modality_of.values()}
        if len(kinds) < 2 or len(modality_of) < len(pairs) or len(pairs) > len(kinds) + 1:
            continue
        if name or len(pairs) == len(images):
            groups.append(_Numbered(home, name, tuple(image for image, _ in pairs), modality_of))
    return groups


def _are_series(
    group: _Numbered, groups: Sequence[_Numbered], labels: Collection[str]
) -> bool | None:
    """Say whether the numbers of a group are of one patient's series.

    Returns:
        False where they are of several patients; None where names do not tell.
    """
    mine = group.modality_of
    is_patient = bool(re.search(r"\d[^ _.-]*$", group.name))  # PAT001_4_t1, not Training_001_t1
    if group.name and group.have_zeros and not is_patient:
        return False
    if {i.reading.head for i in group.images} <= set(labels):  # 001_t1, 001_seg, 002_flair, …
        return False
    if group.name in labels:  # one mask for all: seg.nii.gz
        return True
    others = [other.modality_of for other in groups if other is not group]
    shared = [(mine[n], other[n]) for other in others for n in mine.keys() & other.keys()]
    if (group.home or group.name) and shared:  # a protocol's numbers come back with each patient
        return True if all(one == other for one, other in shared) else None
    first, last = min(mine), max(mine)
    counted = first < 2 and last - first == len(mine) - 1  # 1, 2, 3, as patients are, too
    jumps = last - first > len(mine) - 1
    if counted or len({*mine.values()}) < len(mine):
        return None
    if group.have_zeros and not (group.home and jumps and len(mine) > 2):
        return None
    if group.name and not is_patient:
        return None
    return True if group.are_behind or len(mine) > 2 else None


def _suffix_separates_cases(
    by_case: Mapping[str, Sequence[ImageFile]], head: str, home: Parts
) -> bool:
    """Say whether files of one head are several cases, told apart by the end of their names."""
    if len(by_case) == 1:
        return True
    if head in by_case:  # beside FLAIR, FLAIR_old is of no other case
        return False
    if all(names_examination(case[len(head) :]) for case in by_case):
        return True
    # an ADC is made of its DWI, and has its number
    modality_sets = [
        {"dwi" if image.reading.modality == "adc" else image.reading.modality for image in images}
        for images in by_case.values()
    ]
    if len(set.union(*modality_sets)) > 1:
        return any(len(modalities) > 1 for modalities in modality_sets)
    if head:  # p01/p01_t1_5, p01/p01_t1_9
        return not (home and _spaced(home[-1]) in _spaced(head))
    # p01/t1_5, p01/t1_9: what counts from 5 counts series; patients are 001, 002
    return not (home and all(re.fullmatch(r"[1-9][\d_]*", case) for case in by_case))


def _key_of_label(file: ImageFile, key: Key, places: Mapping[Parts, Collection[str]]) -> Key:
    """Return the case that a label belongs to."""
    place, label_rest = key
    rests = places.get(place, ())
    for rest in (label_rest, file.reading.head):
        if rest in rests:
            return place, rest
    begun = [rest for rest in rests if rest and _spaced(label_rest).startswith(_spaced(rest))]
    if begun:  # p1_consensus_seg is of p1
        return place, max(begun, key=len)
    return (place, next(iter(rests))) if len(rests) == 1 and place and not label_rest else key


def _differ_in_case_alone(names: Collection[str]) -> dict[str, str]:
    """Return the names that a file system may take for others of them, with these."""
    alike: dict[str, set[str]] = defaultdict(set)
    for name in names:
        alike[name.casefold()].add(name)
    return {
        name: ", ".join(sorted(group - {name}))
        for group in alike.values()
        for name in group
        if len(group) > 1
    }


def _misplaced(files: Sequence[ImageFile], key_of: Mapping[Path, Key]) -> dict[Path, str]:
    """Return doubts about files whose names tell of another case than the place they lie at."""
    cases = {_spaced(rest or place[-1]) for place, rest in key_of.values() if rest or place}
    doubts = {}
    for file in files:
        place, rest = key_of[file.path]
        head = file.reading.head
        if file.reading.is_bids:
            continue
        if is_of_another_state(stem_of(file.path), file.parents):
            doubts[file.path] = "says another state of treatment than the folder it lies in"
        if place and not rest and head and _spaced(head) in cases - {_spaced(place[-1])}:
            doubts[file.path] = f"begins with {head!r}, the name of another case"
    return doubts


def _of_no_patient(
    files: Sequence[ImageFile], key_of: Mapping[Path, Key], folder: Path
) -> list[Path]:
    """Return files that folders for sequences make one case, and whose names may be patients'."""
    named = [
        file
        for file in files
        if key_of[file.path] == ((), "")
        and file.path.parent != folder
        and len(file.parents) + 1 < len(file.path.relative_to(folder).parts)
    ]
    stems = {stem_of(file.path) for file in named}
    asked = len(stems) > 1 and all(map(_may_be_name, stems))
    return [file.path for file in named] if asked else []


def _may_be_name(stem: str) -> bool:
    """Say whether a file's name may be a patient's, and is not that of any image or a number."""
    words = [word for word in _words(stem) if not word.isdecimal()]
    return bool(words) and not all(word in _KIND_FOLDERS | _ANY_IMAGE for word in words)


def _name_cases(keys: Collection[Key], folder: Path) -> dict[Key, str]:
    """Give each case the shortest name that is unique and more than a date or a time point."""
    tops = Counter(place[0] for place, _ in keys if place)
    rests = Counter(rest for _, rest in keys)
    names = {}
    for place, rest in keys:
        if rest:
            is_name = rests[rest] == 1 and not is_examination(rest)
            names[place, rest] = rest if is_name else "_".join((*place, rest))
        elif place:
            names[place, rest] = place[0] if tops[place[0]] == 1 else "_".join(place)
        else:  # the folder given is itself a case
            names[place, rest] = folder.resolve().name
    return names


def _owner(file: ImageFile, key: Key, keys: Set[Key], beside: Set[Key]) -> Key | None:
    """Return the case that a file of unknown kind lies beside; None if that is unclear."""
    for candidate in (key, (file.place, ""), (file.place, file.reading.head)):
        if candidate in keys:
            return candidate
    stem = _spaced(file.reading.case)
    starts = [key for key in keys if key[1] and stem.startswith(_spaced(key[1]))]
    if starts:
        return max(starts, key=lambda key: (len(key[1]), key[0] == file.place, key))
    return next(iter(beside)) if len(beside) == 1 else None


def stem_of(path: Path) -> str:
    """Return an image's name without its ending."""
    ending = ending_of(path) or other_format(path)
    return _composed(path.name[: len(path.name) - len(ending)])


def _composed(name: str) -> str:
    """Return a name with each letter and its accent as one character; macOS takes them apart."""
    return unicodedata.normalize("NFC", name)


def _words(name: str) -> list[str]:
    return _spaced(name).split()


def _spaced(name: str) -> str:
    """Return a name's words between spaces, so that ``in`` compares whole words."""
    return f" {' '.join(re.findall(r'[^ _.-]+', name.lower()))} "
