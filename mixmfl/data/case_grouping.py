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
from functools import cache
from pathlib import Path

from mixmfl.data.case_identifiers import identifiers
from mixmfl.data.case_keys import CaseKeys, keys_of_known
from mixmfl.data.case_questions import (
    brought_to_other_states,
    misplaced,
    of_doubtful_parts,
    of_doubtful_times,
    of_other_parts,
    questions_about,
    remarks_about,
)
from mixmfl.data.contrast_agent import agent_in
from mixmfl.data.folder_roles import (
    folders_of_labels,
    is_bids,
    named_by_folder,
    read_file,
    with_places,
    without_stores,
)
from mixmfl.data.image_files import ImageFile, Key, Parts, lower_words, spaced
from mixmfl.data.modalities import Modalities, words_of
from mixmfl.data.neighbouring_names import (
    called_as_agents,
    with_agent_of_folder,
    with_agents_alone,
    with_ct1,
    with_labels_before,
    with_names_of_folders,
    with_numbered_patients,
    with_parts_of_dixon,
    with_patients_called_as_agents,
    with_patients_called_as_labels,
    with_short_flair,
    with_subjects,
    with_techniques_before,
    with_time_points,
    with_words_of_patients,
)
from mixmfl.data.patients import patients_by_place
from mixmfl.data.time_points import is_examination
from mixmfl.data.tool_outputs import (
    without_derivatives,
    without_products_of_tools,
    without_segmentations_of_tools,
    without_templates,
)

_DAY = re.compile(r"(?<!\d)\d{4}-\d{2}-\d{2}(?!\d)")


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
    files = _read(folder, paths, modalities)
    rests, unclear = identifiers(files)
    keys = CaseKeys(files, rests)
    known = [file for file in files if file.reading.is_known]
    key_of = keys_of_known(files, keys, folder)
    home_of = {key_of[file.path]: file.home for file in known if file.reading.modality}
    name_of = _name_all({*key_of.values()}, {*home_of}, folder)
    in_folders = sum(not rest for _, rest in name_of)
    return Grouped(
        _placed(files, keys, key_of, name_of, folder),
        questions_about(known, key_of, name_of, unclear, folder),
        "a folder per case" if 2 * in_folders > len(name_of) else "names with modality",
        patients_by_place(
            {name: (home_of.get(key, key[0]), key[1]) for key, name in name_of.items()}
        ),
    )


def _read(folder: Path, paths: Sequence[Path], modalities: Modalities) -> list[ImageFile]:
    """Read names, and what folders, names beside them and programs' outputs decide about them."""
    of_labels = folders_of_labels(paths, folder, modalities)
    seen = cache(is_bids)  # of one search: folders change between two
    files = [read_file(path, folder, modalities, of_labels, seen) for path in paths]
    files = without_derivatives(files)
    files = with_names_of_folders(with_time_points(files), modalities)
    files = with_ct1(files)
    files = with_short_flair(files, modalities)
    files = with_patients_called_as_labels(with_labels_before(files, modalities), modalities)
    files = with_techniques_before(with_numbered_patients(with_subjects(files, modalities)))
    files = named_by_folder(files, folder, modalities)
    files = with_parts_of_dixon(files)
    people = called_as_agents(files, modalities)
    files = with_places(files, modalities, people)
    files = without_products_of_tools(files)
    files = without_segmentations_of_tools(files)
    files = without_templates(files, folder)
    files = with_words_of_patients(files)
    files = with_agent_of_folder(files, folder, people)
    files = with_agents_alone(with_patients_called_as_agents(files), folder)
    return _joined_by_name(files, folder)


def _placed(
    files: Sequence[ImageFile],
    keys: CaseKeys,
    key_of: Mapping[Path, Key],
    name_of: Mapping[Key, str],
    folder: Path,
) -> tuple[tuple[ImageFile, str], ...]:
    """Return all files with the names of their cases; those of unknown kind go where they lie."""
    beside: dict[Path, set[Key]] = defaultdict(set)
    for path, key in key_of.items():
        beside[path.parent].add(key)
    known = [file for file in files if file.reading.is_known]
    of_patient: dict[Parts, Key] = {}
    for file in known:
        if patient := _folder_in_name(file):
            of_patient.setdefault(patient, key_of[file.path])
    elsewhere = of_other_parts(known, key_of) | brought_to_other_states(known)
    doubts = of_doubtful_times(known, key_of) | of_doubtful_parts(known, key_of)
    doubts |= misplaced(known, key_of)
    remarks = remarks_about(known, key_of)
    placed = []
    for file in files:
        if file.reading.is_known:
            if why := elsewhere.get(file.path):
                file = replace(file, reading=file.reading.set_aside(why))
            elif doubt := doubts.get(file.path):
                reading = replace(file.reading, modality=None, is_label=False, doubt=doubt)
                file = replace(file, reading=reading)
            elif remark := remarks.get(file.path):
                file = replace(file, reading=replace(file.reading, remark=remark))
            placed.append((file, name_of[key_of[file.path]]))
        else:
            near = beside[file.path.parent] if file.path.parent != folder else set()
            owner = _owner(file, keys.key(file), name_of.keys(), near)
            if owner is None and file.reading.aside:
                owner = of_patient.get(_folder_in_name(file))
            name = name_of[owner] if owner else "_".join(file.place) or file.reading.case
            placed.append((file, name))
    return tuple(placed)


def _folder_in_name(file: ImageFile) -> Parts:
    """Return the folder whose name has a number and is in a file's name, as a patient's is."""
    stem = spaced(file.stem)
    for depth, part in enumerate(file.parents):
        if re.search(r"\d", part) and spaced(part) in stem:
            return file.parents[: depth + 1]
    return ()


def _name_all(keys: Set[Key], imaged: Set[Key], folder: Path) -> dict[Key, str]:
    """Name all cases; labels of no case that we know, as ``results/p1_seg``, have another name."""
    name_of = _name_cases(keys, folder)
    taken = {name_of[key] for key in imaged}
    return {
        key: "_".join(filter(None, (*key[0], key[1], "label")))
        if key not in imaged and name in taken
        else name
        for key, name in name_of.items()
    }


def _joined_by_name(files: Sequence[ImageFile], folder: Path) -> list[ImageFile]:
    """Bring images of one patient together that lie in a folder each, by name and folder.

    As archives write them: ``002_S_0295/MPRAGE/2011-06-02/I239487/ADNI_002_S_0295_MR_….nii``. All
    numbers that identify the patient in the files' names must be in the names of the folders around
    all of them, for a number alone may come back with another patient. Days are examinations.
    """
    by_patient: dict[tuple[str, str], list[ImageFile]] = defaultdict(list)
    for file in files:
        if file.reading.is_known and re.search(r"\d", head := file.reading.head):
            day = next((d[0] for part in file.home for d in _DAY.finditer(part)), "")
            named = (p for p in file.home if re.search(r"\d", p) and spaced(p) in spaced(head))
            by_patient[next(named, head), day].append(file)
    for (patient, day), mine in list(by_patient.items()):
        if not _go_on_alike(heads := {file.reading.head for file in mine}):
            del by_patient[patient, day]
            for head in heads:
                by_patient[head, day] = [file for file in mine if file.reading.head == head]
    days = Counter(patient for patient, _ in by_patient)
    moved: dict[Path, Parts] = {}
    renamed: dict[Path, str] = {}
    for (patient, day), mine in by_patient.items():
        images = [file for file in mine if file.reading.modality]
        if len({file.home for file in mine}) == 1 or not _differ_in_processing(images):
            continue
        levels = zip(*(file.home for file in mine), strict=False)
        common = tuple(
            parts[0] for parts in itertools.takewhile(lambda parts: len({*parts}) == 1, levels)
        )
        times = {part for file in mine for part in file.home[len(common) :] if agent_in(part)}
        if len(times) > 1:
            continue  # p1/pre/p1_T1 and p1/post/p1_FLAIR
        around = {word for part in (folder.resolve().name, *common) for word in lower_words(part)}
        heads = {file.reading.head for file in mine}
        words = {word for head in heads for word in lower_words(head)}
        if {word for word in words if re.search(r"\d", word)} <= around:
            home = common
            if day and days[patient] > 1:
                at = next((at for at, part in enumerate(common) if day in part), len(common))
                home = (*common[:at], day)
            moved.update({file.path: home for file in mine})
            is_once_more = len(images) > len({image.reading.modality for image in images})
            if len(heads) > 1 or is_once_more:
                renamed.update({file.path: patient for file in mine})
    joined = []
    for file in files:
        if file.path in moved:
            home, reading = moved[file.path], file.reading
            if name := renamed.get(file.path):
                reading = replace(reading, case=name, head=name)
            place = tuple(part for part in home if spaced(part) not in spaced(reading.case))
            file = replace(file, reading=reading, home=home, place=place)
        joined.append(file)
    return joined


def _go_on_alike(heads: Collection[str]) -> bool:
    """Say whether names begin with the shortest, with nothing behind that tells an examination."""
    shortest = min(heads, key=len)
    behind = [head[len(shortest) :] for head in heads if head.startswith(shortest)]
    is_told = any(re.search(r"\d", text) or any(map(agent_in, words_of(text))) for text in behind)
    return len(behind) == len(heads) and not is_told


def _differ_in_processing(images: Sequence[ImageFile]) -> bool:
    """Say whether each modality has one image, or one that is less processed than others."""
    steps: dict[str | None, list[int]] = defaultdict(list)
    for image in images:
        steps[image.reading.modality].append(len(image.reading.processing))
    return all(counts.count(min(counts)) == 1 for counts in steps.values())


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
