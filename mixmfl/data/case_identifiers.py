"""The part of an image's name that identifies its case, among the names beside it."""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from mixmfl.data.image_files import ImageFile, Parts, names_of, spaced, stem_of
from mixmfl.data.series_numbers import are_of_series, ask_whose_numbers, numbered_images
from mixmfl.data.time_points import are_of_other_times, is_day, names_examination

_HOW_TO_NAME = (
    "looks like one patient, or like several of one image each; name the files PATIENT_t1.nii.gz, "
    "or by their modality alone (t1.nii.gz) in a folder per patient, or say by --mapping"
)

_WHICH_DAY = (
    "{} have other days or times in their names, and may be of one examination or of several; put "
    "each examination's files into a folder and name them by their modality alone (t1.nii.gz), or "
    "say by --mapping which case each is of"
)


def identifiers(files: Sequence[ImageFile]) -> tuple[dict[Path, str], dict[Path, str]]:
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
    numbered = [each for home, mine in at_home.items() for each in numbered_images(home, mine)]
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
                    unclear.update(dict.fromkeys(paths, _WHICH_DAY.format(names_of(paths))))
        elif len(by_head) == 1 and home and len({rests[path] for path in paths}) == 1:
            # p01/DICOM_t1_5: the folder is the patient
            if not re.search(r"\d", mine[0].reading.head):
                rests.update(dict.fromkeys(paths, ""))
        elif apart and home:
            rests.update(dict.fromkeys(paths, ""))
            # beside T1.nii.gz, or in a folder of its name, p01_FLAIR.nii.gz is of no other patient
            others = [head for head in by_head if head and spaced(head) not in spaced(home[-1])]
            # p1_t1.nii, or anna_t1.nii, and bert_flair.nii
            may_be_people = any(re.search(r"\d", head) for head in others) or not repeated
            if may_be_people and (len(others) > 1 or len(others) == len(by_head)):
                unclear.update(dict.fromkeys(paths, _HOW_TO_NAME))
    by_rest: dict[tuple[Parts, str], list[ImageFile]] = defaultdict(list)
    for home, mine in at_home.items():
        for image in mine:
            by_rest[home, rests[image.path]].append(image)
    for together in by_rest.values():
        if are_of_other_times([stem_of(image.path) for image in together]):
            paths = [image.path for image in together]
            unclear.update(dict.fromkeys(paths, _WHICH_DAY.format(names_of(paths))))
    for each in numbered:
        are_series = are_of_series(each, numbered, labels_at[each.home])
        if are_series is False:
            rests.update({image.path: image.reading.case for image in each.images})
            continue
        rests.update(dict.fromkeys(each.paths, each.name))
        if are_series is None:
            unclear.update(dict.fromkeys(each.paths, ask_whose_numbers(each.paths)))
    return rests, unclear


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
        return not (home and spaced(home[-1]) in spaced(head))
    # p01/t1_5, p01/t1_9: what counts from 5 counts series; patients are 001, 002
    return not (home and all(re.fullmatch(r"[1-9][\d_]*", case) for case in by_case))
