"""Numbers in names, which may be of one patient's series or of several patients."""

import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mixmfl.data.image_files import ImageFile, Parts, names_of, spaced
from mixmfl.data.sequence_phrases import names_both_echoes
from mixmfl.data.time_points import is_day, is_days_folder, names_patient

# a number that a scanner, a converter or a person gave to a series or to a patient
_NUMBER = re.compile(
    r"(?:(?P<name>(?!(?:s|se|ser|serie|series|scan|im)[ _.-]+\d+$).*[^ _.-])[ _.-]+)?"
    r"(?:s|se|ser|serie|series|scan|im)?[ _.-]*(?P<number>0*\d{1,5})"
)


_SERIES = re.compile(r"(?:s|se|ser|serie|series|scan|im)[ _.-]*0*\d{1,4}")
_OF_SERIES = re.compile(r"seri?e?s?[ _.-]*\d")
_UID = re.compile(r"\d+(?:\.\d+){4,}")


def is_uid(name: str) -> bool:
    """Say whether a name is a DICOM UID, as archives name files by."""
    return bool(_UID.fullmatch(name))


def is_series(name: str) -> bool:
    """Say whether a name is a word for series with its number: S1, series_3."""
    return bool(_SERIES.fullmatch(name.lower()))


def ask_whose_numbers(paths: Sequence[Path]) -> str:
    """Return the question whose the numbers in the names of images are."""
    return (
        f"the numbers in {names_of(paths)} may be of one patient's series or of several patients "
        "with one image each; put each patient's files into a folder and name them by their "
        "modality alone (t1.nii.gz), or say by --mapping which case each is of"
    )


@dataclass(frozen=True)
class Numbered:
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
        """The files of the images."""
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


def _contrast(image: ImageFile) -> str:
    """Return the modality of a series, whose two echoes may be an image each: 12_pd_t2_e1."""
    return "echoes" if names_both_echoes(image.stem) else image.reading.modality or ""


def _without_reformatted(pairs: Sequence[tuple[ImageFile, int]]) -> list[tuple[ImageFile, int]]:
    """Leave out images of the modality and name of another, with more behind: 8_T1_KM_MPR_cor.

    Each image has its number with it.
    """

    def named(image: ImageFile) -> tuple[str, str]:
        return _contrast(image), spaced(image.stem[len(image.reading.head) :])

    names = {named(image) for image, _ in pairs}

    def is_reformatted(image: ImageFile) -> bool:
        kind, own = named(image)
        return any(kind == other and own != name and own.startswith(name) for other, name in names)

    return [(image, number) for image, number in pairs if not is_reformatted(image)]


def numbered_images(home: Parts, images: Sequence[ImageFile]) -> list[Numbered]:
    """Return the groups of images whose numbers may be of series or of patients.

    That is no question where a number comes back, or the modalities do: then they are of patients.
    """
    by_name: dict[str, list[tuple[ImageFile, int]]] = defaultdict(list)
    for image in images:
        number = _NUMBER.fullmatch(_numbered_name(image).lower())
        if not image.reading.head and not (number and not number["name"]):
            return []  # T1.nii.gz: the folder is a case
        if not number or is_uid(image.reading.head):
            continue
        name = _numbered_name(image)[: number.end("name")] if number["name"] else ""
        by_name[name].append((image, int(number["number"])))
    groups = []
    for name, pairs in by_name.items():
        counted = _without_reformatted(pairs)
        modality_of = {number: _contrast(image) for image, number in counted}
        kinds = {_contrast(image) for image, _ in counted}
        # of 9_t1 and 9_t1a dcm2niix wrote both for one series, as of 6_t2star_e1 to _e5, and an ADC
        # is of that of its DWI
        same = all(
            {modality_of[number], _contrast(image)} <= {"dwi", "adc"}
            or modality_of[number] == _contrast(image)
            for image, number in counted
        )
        if len(kinds) < 2 or not same or len(modality_of) > len(kinds) + 1:
            continue
        if name or len(pairs) == len(images):
            groups.append(Numbered(home, name, tuple(image for image, _ in pairs), modality_of))
    return groups


def are_of_series(
    group: Numbered, groups: Sequence[Numbered], labels: Collection[str]
) -> bool | None:
    """Say whether the numbers of a group are of one patient's series.

    Returns:
        False where they are of several patients; None where names do not tell.
    """
    mine = group.modality_of
    is_patient = bool(re.search(r"\d[^ _.-]*$", group.name))  # PAT001_4_t1, not Training_001_t1
    if group.name and group.have_zeros and not is_patient:
        return False
    others = [other.modality_of for other in groups if other is not group]
    shared = [(mine[n], other[n]) for other in others for n in mine.keys() & other.keys()]
    is_protocol = bool(shared) and all(one == other for one, other in shared)
    labelled = {i.reading.head for i in group.images} & set(labels)
    if len(labelled) > 1 and not group.home:
        return False
    if {i.reading.head for i in group.images} <= labelled:  # 001_t1, 001_seg, 002_flair, …
        return None if group.home and is_protocol else False
    if any(map(names_patient, group.home)) and all(is_series(i.reading.head) for i in group.images):
        return True  # P1/E1/S1_t1, P1/E1/S2_t2
    if group.home and all(_OF_SERIES.match(i.reading.head.lower()) for i in group.images):
        return True  # Meier/Series_2_t1, Meier/Series_3_t2
    if group.home and is_patient and spaced(group.name) in spaced(group.home[-1]):
        return True  # P001_MR1/P001_MR1_3_t1, P001_MR1/P001_MR1_5_flair
    if is_day(group.name) and (group.home or len(re.sub(r"\D", "", group.name)) > len("20220301")):
        return True  # 20220301091500_2_t1, 20220301091500_3_flair: of one moment
    if group.name in labels:  # one mask for all: seg.nii.gz
        return True
    if (group.home or group.name) and shared:  # a protocol's numbers come back with each patient
        return is_protocol or None
    first, last = min(mine), max(mine)
    counted = first < 2 and last - first == len(mine) - 1  # 1, 2, 3, as patients are, too
    jumps = last - first > len(mine) - 1
    if counted or len({*mine.values()}) < len(mine):
        return None
    if is_days_folder(group.home):
        return True  # Meier/2019-05-03/3_t1, Meier/2019-05-03/5_flair
    if group.have_zeros and not (group.home and jumps and len(mine) > 2):
        return None
    if group.name and not is_patient:
        return None
    of_patient = names_patient("".join(group.home[-1:])) and min(mine) > 1
    return True if group.are_behind or len(mine) > 2 or of_patient else None
