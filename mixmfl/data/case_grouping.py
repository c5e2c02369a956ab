"""Grouping of image files into cases, by their folders and the rest of their names.

A case is a folder that holds the images of one patient only, each of another modality; or the
files in one folder whose names differ only in the words for their kind. Files that look like one
patient and cannot be grouped safely are refused: otherwise each piece of a patient would get a mask
from a single sequence.
"""

import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path

from mixmfl.data.accounting import inside
from mixmfl.data.case_identifiers import identifiers
from mixmfl.data.folder_roles import (
    ANY_IMAGE,
    folders_of_labels,
    label_tree_above,
    may_be_name,
    named_by_folder,
    read_file,
    with_places,
    without_stores,
)
from mixmfl.data.image_files import ImageFile, Parts, lower_words, names_of, spaced, stem_of
from mixmfl.data.modalities import Modalities
from mixmfl.data.neighbouring_names import (
    called_as_agents,
    with_agent_of_folder,
    with_ct1,
    with_patients_called_as_agents,
    with_short_flair,
    with_time_points,
    with_words_of_patients,
)
from mixmfl.data.patients import patients_by_place
from mixmfl.data.series_numbers import ask_whose_numbers
from mixmfl.data.time_points import (
    begins_with_examination,
    is_examination,
    is_of_another_state,
)
from mixmfl.data.tool_outputs import (
    without_products_of_tools,
    without_segmentations_of_tools,
    without_templates,
)

_DAY = re.compile(r"(?<!\d)\d{4}-\d{2}-\d{2}(?!\d)")


_WHOSE_IMAGE = (
    "{} lies beside several cases and is named by its kind alone; put it into the folder of its "
    "case, or say by --mapping which case it is of"
)

Key = tuple[Parts, str]  # a place, and the rest of the names of a case's files there


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
    of_labels = folders_of_labels(paths, folder, modalities)
    files = [read_file(path, folder, modalities, of_labels) for path in paths]
    files = with_time_points(files)
    files = with_ct1(files)
    files = with_short_flair(files, modalities)
    files = named_by_folder(files, folder, modalities)
    people = called_as_agents(files, modalities)
    files = with_places(files, modalities, people)
    files = without_products_of_tools(files)
    files = without_segmentations_of_tools(files)
    files = without_templates(files, folder)
    files = with_words_of_patients(files)
    files = with_agent_of_folder(files, folder, people)
    files = with_patients_called_as_agents(files)
    files = _joined_by_name(files, folder)
    rests, unclear = identifiers(files)
    known = [file for file in files if file.reading.is_known]
    rests_at: dict[Parts, set[str]] = defaultdict(set)
    for file in known:
        if file.reading.modality:
            rests_at[file.home].add(rests.get(file.path, file.reading.case))
    case_folders = {
        file.home
        for file in known
        if not rests.get(file.path, file.reading.case)
        # study1_T1, study2_T1 and gt, which may be of either
        and not (
            len(rests_at[file.home]) > 1 and all(map(begins_with_examination, rests_at[file.home]))
        )
    }

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
            key_of[file.path] = _key_of_label(file, key(file), places, folder)
    key_of |= _labels_called_otherwise(files, key_of)
    keys = set(key_of.values())
    name_of = _name_cases(keys, folder)
    imaged = {key_of[file.path] for file in known if file.reading.modality}
    taken = {name_of[key] for key in imaged}
    for place, rest in keys - imaged:  # results/p1_seg beside p1 is of no case that we know
        if name_of[place, rest] in taken:
            name_of[place, rest] = "_".join(filter(None, (*place, rest, "label")))
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
    for one, others in _written_alike(name_of.values()).items():
        faults[one].append(
            f"differs from {others} in upper and lower case or leading zeros alone, and may be of "
            "one patient with it; rename one"
        )
    at_top = [path for path, key in key_of.items() if key == ((), "") and path.parent == folder]
    if len(at_top) == 1 and len(keys) > 2:
        unclear.setdefault(at_top[0], _WHOSE_IMAGE.format(names_of(at_top)))
    nobodys = _of_no_patient(known, key_of, folder)
    unclear |= dict.fromkeys(nobodys, ask_whose_numbers(nobodys))
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
        if len({file.home for file in mine}) == 1 or not _differ_in_processing(images):
            continue
        levels = zip(*(file.home for file in mine), strict=False)
        common = tuple(
            parts[0] for parts in itertools.takewhile(lambda parts: len({*parts}) == 1, levels)
        )
        around = {word for part in (folder.resolve().name, *common) for word in lower_words(part)}
        numbers = {word for word in lower_words(head) if re.search(r"\d", word)}
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
            place=tuple(p for p in moved[file.path] if spaced(p) not in spaced(file.reading.case)),
        )
        if file.path in moved
        else file
        for file in files
    ]


def _differ_in_processing(images: Sequence[ImageFile]) -> bool:
    """Say whether each modality has one image, or one that is less processed than others."""
    steps: dict[str | None, list[int]] = defaultdict(list)
    for image in images:
        steps[image.reading.modality].append(len(image.reading.processing))
    return all(counts.count(min(counts)) == 1 for counts in steps.values())


def _key_of_label(
    file: ImageFile, key: Key, places: Mapping[Parts, Collection[str]], folder: Path
) -> Key:
    """Return the case that a label belongs to."""
    place, label_rest = key
    rests = places.get(place, ())
    for rest in (label_rest, file.reading.head, stem_of(file.path)):
        if rest in rests:
            return place, rest
    begun = [rest for rest in rests if rest and spaced(label_rest).startswith(spaced(rest))]
    if begun:  # p1_consensus_seg is of p1
        return place, max(begun, key=len)
    if len(rests) == 1 and place and not label_rest:
        return place, next(iter(rests))
    # Bilder/p1_T1 and Masken/p1, where we know of one of these folders alone what it is for
    mine = (*place, label_rest) if label_rest else place
    if rests or not mine:
        return key
    ends = [
        (other, rest)
        for other, found in places.items()
        for rest in found
        if ((*other, rest) if rest else other)[-len(mine) :] == mine
    ]
    if not ends and label_tree_above(file.path, folder):  # Masken/final/p1_final of Bilder/p1/T1
        words = lower_words(label_rest)
        named = [
            ((other, rest), lower_words("_".join(parts[start:])))
            for other, found in places.items()
            for rest in found
            for parts in [[*other, rest] if rest else other]
            for start in range(len(parts))
        ]
        ends = [
            candidate
            for candidate, name in named
            if words[: len(name)] == name and all(map(str.isalpha, words[len(name) :]))
        ]
    return ends[0] if len(ends) == 1 else key


def _labels_called_otherwise(
    files: Sequence[ImageFile], key_of: Mapping[Path, Key]
) -> dict[Path, Key]:
    """Return the case of each label that is the only one in a patient's folder, under another name.

    So ``BraTS20_Training_355/W39_1998.09.19_Segm`` is of that patient, whom the folder and all
    images in it name. What is called as another patient is (``p1/p2_seg``) is not taken.
    """
    in_folder: dict[Parts, list[ImageFile]] = defaultdict(list)
    for file in files:
        in_folder[file.parents].append(file)
    with_image = {key_of[file.path] for file in files if file.reading.modality}
    places_of = Counter(head for _, head in {(file.parents, file.reading.head) for file in files})
    found = {}
    for parents, mine in in_folder.items():
        labels = [file for file in mine if file.reading.is_label]
        keys = {key_of[file.path] for file in mine if file.reading.modality}
        if len(labels) != 1 or len(keys) != 1 or not parents:
            continue
        (label,), (key,) = labels, keys
        own = label.reading.head
        names = {file.reading.head for file in mine if file.reading.modality}
        if (
            key_of[label.path] not in with_image
            and names == {parents[-1]}
            and re.search(r"\d", own)
            and _shape(own) != _shape(parents[-1])
            and places_of[own] == 1
        ):
            found[label.path] = key
    return found


def _shape(name: str) -> str:
    """Return a name without its numbers, as names of one collection are alike."""
    return re.sub(r"\d+", "#", name.lower())


def _written_alike(names: Collection[str]) -> dict[str, str]:
    """Return the names that a file system or a person may take for others of them, with these."""
    alike: dict[str, set[str]] = defaultdict(set)
    for name in names:
        alike[_without_zeros(name.casefold())].add(name)
    return {
        name: ", ".join(sorted(group - {name}))
        for group in alike.values()
        for name in group
        if len(group) > 1
    }


def _misplaced(files: Sequence[ImageFile], key_of: Mapping[Path, Key]) -> dict[Path, str]:
    """Return doubts about files whose names tell of another case than the place they lie at."""
    cases = {spaced(rest or place[-1]) for place, rest in key_of.values() if rest or place}
    doubts = {}
    for file in files:
        place, rest = key_of[file.path]
        head = file.reading.head
        if file.reading.is_bids:
            continue
        if is_of_another_state(stem_of(file.path), file.parents):
            doubts[file.path] = "says another state of treatment than the folder it lies in"
        if place and not rest and head and spaced(head) in cases - {spaced(place[-1])}:
            doubts[file.path] = f"begins with {head!r}, the name of another case"
        elif other := next((part for part in file.home if _is_numbered_alike(head, part)), ""):
            doubts[file.path] = f"begins with {head!r}, and lies in the folder {other!r}"
    return doubts


def _is_numbered_alike(name: str, other: str) -> bool:
    """Say whether two names differ in their numbers alone, as those of patients do: p1 and p2."""
    name, other = (_without_zeros(each.casefold()) for each in (name, other))
    words = set(re.findall(r"[a-z]+", name))
    return (
        name != other
        and re.sub(r"\d+", "#", name) == re.sub(r"\d+", "#", other)
        and not words <= ANY_IMAGE  # ser_3 in ser_2
    )


def _without_zeros(name: str) -> str:
    return re.sub(r"(?<!\d)0+(?=\d)", "", name)


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
    asked = len(stems) > 1 and all(map(may_be_name, stems))
    return [file.path for file in named] if asked else []


def _name_cases(keys: Collection[Key], folder: Path) -> dict[Key, str]:
    """Give each case the shortest name that is unique and more than a date or a time point."""
    stored = {place: without_stores(place) for place, _ in keys}
    count = Counter(stored[place] for place, rest in keys if not rest)
    stored = {place: own if count[own] == 1 else place for place, own in stored.items()}
    tops = Counter(stored[place][0] for place, _ in keys if place)
    rests = Counter(rest for _, rest in keys)
    names = {}
    for place, rest in keys:
        if rest:
            is_name = rests[rest] == 1 and not is_examination(rest)
            names[place, rest] = rest if is_name else "_".join((*place, rest))
        elif place:
            own = stored[place]
            is_short = tops[own[0]] == 1 and own == without_stores(own)
            names[place, rest] = own[0] if is_short else "_".join(own)
        else:  # the folder given is itself a case
            names[place, rest] = folder.resolve().name
    return names


def _owner(file: ImageFile, key: Key, keys: Set[Key], beside: Set[Key]) -> Key | None:
    """Return the case that a file of unknown kind lies beside; None if that is unclear."""
    for candidate in (key, (file.place, ""), (file.place, file.reading.head)):
        if candidate in keys:
            return candidate
    stem = spaced(file.reading.case)
    starts = [key for key in keys if key[1] and stem.startswith(spaced(key[1]))]
    if starts:
        return max(starts, key=lambda key: (len(key[1]), key[0] == file.place, key))
    return next(iter(beside)) if len(beside) == 1 else None
