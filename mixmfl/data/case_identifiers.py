"""The part of an image's name that identifies its case, among the names beside it."""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from mixmfl.data.body_parts import differ, part_in, what_shows_head
from mixmfl.data.image_files import ImageFile, Parts, name_read, names_of, spaced, stem_of
from mixmfl.data.series_numbers import (
    Numbered,
    are_of_series,
    ask_whose_numbers,
    is_series,
    is_uid,
    numbered_images,
)
from mixmfl.data.time_points import (
    are_of_other_times,
    is_day,
    is_days_folder,
    is_examination,
    names_examination,
    names_patient,
)

_HOW_TO_NAME = (
    "looks like one patient, or like several of one image each; name the files PATIENT_t1.nii.gz, "
    "or by their modality alone (t1.nii.gz) in a folder per patient, or say by --mapping"
)

_WHICH_DAY = (
    "{} have other days, times, sides or parts of the body in their names, and may be of one "
    "examination or of several; put each examination's files into a folder and name them by their "
    "modality alone (t1.nii.gz), or say by --mapping which case each is of"
)


# the words of a name up to the first with a number, as patients have, and what follows
_PATIENT_AND_REST = re.compile(r"([^\d]*\d[^ _.-]*)[ _.-]*(.*)")

# a number that no scanner gives to a series, and that is no time
_LONG_NUMBER = re.compile(r"(?<!\d)(?!(?:19|20)\d{6}(?!\d))\d{7,13}(?!\d)")


def identifiers(files: Sequence[ImageFile]) -> tuple[dict[Path, str], dict[Path, str]]:
    """Return the part of each image's name that identifies its case, and questions about images.

    Converters write times and numbers behind the words, which differ within one patient. So the
    part before the words identifies the patient, unless the numbers behind them come back with
    other modalities: ``t1_001`` and ``t2_001``.
    """
    at_home: dict[Parts, list[ImageFile]] = defaultdict(list)
    labels_at: dict[Parts, set[str]] = defaultdict(set)
    for file in files:
        if file.reading.modality and not file.reading.is_bids:
            at_home[file.home].append(file)
        elif file.reading.is_label:
            labels_at[file.home].add(file.reading.case)
    numbered = [each for home, mine in at_home.items() for each in numbered_images(home, mine)]
    homes_of = Counter(head for mine in at_home.values() for head in {i.reading.head for i in mine})
    rests: dict[Path, str] = {}
    unclear: dict[Path, str] = {}
    for home, mine in at_home.items():
        rests.update(_parts_of_names(home, mine))
        if any(each.home == home and not each.name for each in numbered):
            continue  # see below
        head = mine[0].reading.head
        is_of_series = any(map(names_patient, home)) and is_series(head)  # P1/E2/S1_T1
        if len(mine) == 1 and (is_of_series or (head.isdecimal() and is_days_folder(home))):
            rests[mine[0].path] = ""
            continue
        is_one, question = _is_one_patient(home, mine, rests, homes_of)
        if is_one:
            rests.update((image.path, "") for image in mine)
        if question:
            unclear.update((image.path, question) for image in mine)
    of_series = [are_of_series(each, numbered, labels_at[each.home]) for each in numbered]
    for each, are_series in zip(numbered, of_series, strict=True):
        if are_series:
            for path in each.paths:
                unclear.pop(path, None)
    unclear |= _in_pieces(at_home, rests) | _of_other_times(at_home, rests)
    for each, are_series in zip(numbered, of_series, strict=True):
        if are_series is False:
            rests.update({image.path: image.reading.case for image in each.images})
            continue
        rests.update(dict.fromkeys(each.paths, each.name))
        if are_series is None:
            unclear.update(dict.fromkeys(each.paths, ask_whose_numbers(each.paths)))
    if any(of_series) and None not in of_series:
        rests.update(_alone_in_folders(at_home, numbered))
    return rests, unclear


def _alone_in_folders(
    at_home: Mapping[Parts, Sequence[ImageFile]], numbered: Sequence[Numbered]
) -> dict[Path, str]:
    """Return the images that are alone in a folder, named by the number of a series as others are.

    So is ``Weiss/3_t1`` beside ``Meier/3_t1`` and ``Meier/5_flair``: each is of its folder.
    """
    of_protocol = {pair for each in numbered if not each.name for pair in each.modality_of.items()}
    return {
        image.path: ""
        for home, (image, *others) in at_home.items()
        if home and not others and image.reading.head.isdecimal()
        if (int(image.reading.head), image.reading.modality) in of_protocol
    }


def _by_head(images: Sequence[ImageFile]) -> dict[str, list[ImageFile]]:
    by_head: dict[str, list[ImageFile]] = defaultdict(list)
    for image in images:
        by_head[image.reading.head].append(image)
    return by_head


def _parts_of_names(home: Parts, images: Sequence[ImageFile]) -> dict[Path, str]:
    """Return the part of each name in one folder that identifies its case, as names alone tell."""
    rests = {}
    for head, group in _by_head(images).items():
        by_case: dict[str, list[ImageFile]] = defaultdict(list)
        for image in group:
            by_case[image.reading.case].append(image)
        for case, same in by_case.items():
            rest = case if _suffix_separates_cases(by_case, head, home) else head
            rests.update(dict.fromkeys((image.path for image in same), rest))
    return rests


def _is_one_patient(
    home: Parts, images: Sequence[ImageFile], rests: Mapping[Path, str], homes_of: Mapping[str, int]
) -> tuple[bool, str]:
    """Say whether all images of a folder are of one patient, and what to ask about that.

    Args:
        home: The folder; empty for the one that was searched.
        images: The images in it.
        rests: The part of each name that identifies its case, as names alone tell.
        homes_of: The number of folders in which names begin with each head.
    """
    heads = list(_by_head(images))
    paths = [image.path for image in images]
    count = len({image.reading.modality for image in images})
    if len(heads) == 1:
        if home and is_uid(heads[0]) and re.search(r"\d", home[-1]):
            return True, ""  # S01/20190101/1.2.840.113619.2.5_T1
        if re.search(r"\d", heads[0]) or len({rests[path] for path in paths}) > 1:
            return False, ""
        numbers = [_LONG_NUMBER.findall(stem_of(path)) for path in paths]
        is_patient = not heads[0] or spaced(heads[0]) in spaced(home[-1]) if home else False
        if not is_patient and len(paths) > 1 and all(numbers):
            # file_brain_T1_201_6002688 and file_brain_FLAIR_200_6002425, of fastMRI
            several = len({each[-1] for each in numbers}) == len(paths)
            return False, ask_whose_numbers(paths) if several else ""
        return bool(home), ""  # p01/DICOM_t1_5: the folder is the patient
    # 20220301091500_2_T1: with the series' number, as dcm2niix -f %t_%s_%d writes them
    times = [head if is_day(head) else re.sub(r"[ _-]\d{1,4}$", "", head) for head in heads]
    if count == len(images) and all(map(is_day, times)):
        if len({re.sub(r"[-_.]", "", head)[:8] for head in heads}) > 1:
            return False, ""
        return True, "" if home else _WHICH_DAY.format(names_of(paths))  # of several, perhaps
    if not home or not len({rests[path] for path in paths}) == len(images) == count:
        return False, _HOW_TO_NAME if _are_numbered_in_patient(home, heads) else ""
    if all(map(is_uid, heads)):
        return True, ""
    # beside T1.nii.gz, or in a folder of its name, p01_FLAIR.nii.gz is of no other patient
    others = [head for head in heads if head and spaced(head) not in spaced(home[-1])]
    # p1_t1.nii, or anna_t1.nii, and bert_flair.nii
    repeated = max(homes_of[head] for head in heads) > 1
    may_be_people = any(re.search(r"\d", head) for head in others) or not repeated
    is_asked = may_be_people and (len(others) > 1 or len(others) == len(heads))
    return True, _HOW_TO_NAME if is_asked else ""


def _are_numbered_in_patient(home: Parts, heads: Sequence[str]) -> bool:
    """Say whether numbers in the folder of one patient may be of series: PAT1/MR3_t1, PAT1/MR9_t1.

    Those of examinations, and with the patient's name before them, are cases.
    """
    owner = next((part for part in reversed(home) if names_patient(part)), "")
    return bool(owner) and all(
        re.search(r"\d", head)
        and not (is_examination(head) or names_examination(head))
        and spaced(owner) not in spaced(head)
        for head in heads
    )


def _of_other_times(
    at_home: Mapping[Parts, Sequence[ImageFile]], rests: Mapping[Path, str]
) -> dict[Path, str]:
    """Return questions about images of one case whose names tell other times, sides or parts."""
    by_rest: dict[tuple[Parts, str], list[ImageFile]] = defaultdict(list)
    for home, mine in at_home.items():
        for image in mine:
            by_rest[home, rests[image.path]].append(image)
    return {
        image.path: _WHICH_DAY.format(names_of([each.path for each in images]))
        for images in by_rest.values()
        if are_of_other_times([each.stem for each in images]) or _mix_parts(images)
        for image in images
    }


def _in_pieces(
    at_home: Mapping[Parts, Sequence[ImageFile]], rests: Mapping[Path, str]
) -> dict[Path, str]:
    """Return a question about images that may be one patient's, and each of another modality.

    So ``p01_T1`` beside ``p01_01_FLAIR``, and ``p1_Skyra_T1`` beside ``p1_Aera_FLAIR``.
    """
    pieces: dict[tuple[Parts, str], dict[str, list[ImageFile]]] = defaultdict(dict)
    for home, mine in at_home.items():
        for image in mine:
            if rests[image.path] and (parts := _PATIENT_AND_REST.fullmatch(rests[image.path])):
                pieces[home, parts[1]].setdefault(parts[2], []).append(image)
    unclear: dict[Path, str] = {}
    for behind in pieces.values():
        images = [image for mine in behind.values() for image in mine]
        are_cases = any(map(is_examination, behind)) or any(map(names_examination, behind))
        are_numbered = "" not in behind and any(re.search(r"\d", each) for each in behind)
        is_each_new = len({image.reading.modality for image in images}) == len(images)
        if len(behind) > 1 and is_each_new and not (are_cases or are_numbered):
            unclear |= dict.fromkeys(
                (image.path for image in images),
                f"{names_of([image.path for image in images])}: {_HOW_TO_NAME}",
            )
    return unclear


def _mix_parts(images: Sequence[ImageFile]) -> bool:
    """Say whether images show other parts of the body, of which none is the head.

    Beside the head other parts are set aside, and of T2_neck and T2_pelvis the T2 alone is asked.
    """
    modalities = Counter(image.reading.modality or "" for image in images)
    parts = [part_in(name_read(image)) for image in images]
    if what_shows_head(parts, modalities):
        return False
    pairs = zip(parts, images, strict=True)
    return differ([part for part, each in pairs if modalities[each.reading.modality or ""] == 1])


def _suffix_separates_cases(
    by_case: Mapping[str, Sequence[ImageFile]], head: str, home: Parts
) -> bool:
    """Say whether files of one head are several cases, told apart by the end of their names."""
    if len(by_case) == 1:
        return True
    if head in by_case:  # beside FLAIR, FLAIR_old is of no other case
        return False
    if all(names_examination(case[len(head) :]) for case in by_case):
        # T1_wk04 and FLAIR_wk12, and nothing else: one patient in pieces, perhaps
        images = [image for mine in by_case.values() for image in mine]
        is_in_pieces = len({image.reading.modality for image in images}) == len(by_case)
        names = [image.stem for image in images]
        return not (is_in_pieces and len(images) == len(by_case) and are_of_other_times(names))
    # an ADC is made of its DWI, and has its number
    modality_sets = [
        {"dwi" if image.reading.modality == "adc" else image.reading.modality for image in images}
        for images in by_case.values()
    ]
    if len(set.union(*modality_sets)) > 1:
        # p1/T1_1, p1/T1_2 and p1/FLAIR_1: a repeated T1, or a second examination without FLAIR
        counts = all(re.fullmatch(r"[1-9]\d?", case) for case in by_case)
        if (
            counts
            and home
            and re.search(r"\d", home[-1])
            and len({*map(frozenset, modality_sets)}) > 1
        ):
            return False
        return any(len(modalities) > 1 for modalities in modality_sets)
    if head:  # p01/p01_t1_5, p01/p01_t1_9
        return not (home and spaced(home[-1]) in spaced(head))
    # p01/t1_5, p01/t1_9: what counts from 5 counts series; patients are 001, 002
    return not (home and all(re.fullmatch(r"[1-9][\d_]*", case) for case in by_case))
