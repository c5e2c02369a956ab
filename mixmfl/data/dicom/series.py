"""DICOM files as series, and series as images."""

import hashlib
import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.uid import generate_uid

from mixmfl.core.errors import DataError
from mixmfl.core.files import files_below, sha256
from mixmfl.core.process_memory import available_bytes
from mixmfl.core.text import plural
from mixmfl.data.dicom.files import Damaged, looks_like_dicom, quiet, read_header
from mixmfl.data.dicom.header import DATE, Header, Instance, Plane, read_instance
from mixmfl.data.dicom.identity import (
    digest,
    examinations,
    may_be_several,
    series_of,
    without_copies,
)
from mixmfl.data.dicom.pixels import read_planes
from mixmfl.data.dicom.planes import (
    FEWEST_SLICES,
    arrange,
    directions,
    gaps,
    images_per_place,
    misplaced,
    places,
    separate,
    without_strays,
)
from mixmfl.data.grid import Grid

FEW_OTHERS = 0.8
"""The share of equally scaled images in a series from which the others may be damaged."""

OPPOSITE = -0.5
"""The cosine below which a direction is the opposite of the one that PatientOrientation names."""

SAME_WIDTH = 1.3
"""How many times as wide as its field of view an image may be, or the reverse, unmentioned."""


@dataclass(frozen=True)
class Series:
    """A series, or one echo or component of it: an image (see ``image.Source``).

    Attributes:
        uid: SeriesInstanceUID, with a suffix where that is not unique.
        examination: A unique name of its examination; see ``identity``.
        header: The header that most of its files have.
        files: Its files, sorted by path; each instance once.
        order: For each plane of the volume, in order, the index of its file, and its frame there;
            empty where it is no volume.
        units: What each plane of the volume is divided by; empty where planes are comparable.
        grid: The grid of the volume; None where it is no volume.
        fault: The reason by headers why it cannot be read; empty where none is known.
        is_compressed: Whether only decoding shows that its pixels can be read.
        orientations: The number of different orientations of its planes.
        images_per_place: The number of images at one place: more than one are time points,
            b-values, or images that headers do not distinguish.
        moments: The numbers of time points and b-values; 0 where headers lack them.
        pixels: Columns times rows of a slice.
        slices: The number of planes of all files.
        warnings: Doubts about its completeness.
        is_doubtful: Whether its examination may be of several patients.
        frame_of_reference: FrameOfReferenceUID; empty where it is missing.
        date: StudyDate; empty where it is missing.
        day: The day on which it was acquired, as ``20190312``; empty where it is missing.
        patient: Name and ID, shown only on request.
        person: What all examinations of the patient have in common, ``Instance.person``.
    """

    uid: str
    examination: str
    header: Header
    files: tuple[Path, ...] = field(repr=False)
    order: tuple[tuple[int, int | None], ...] = field(repr=False)
    grid: Grid | None
    fault: str
    is_compressed: bool
    orientations: int
    images_per_place: int
    moments: tuple[int, int]
    pixels: int
    slices: int
    warnings: tuple[str, ...] = ()
    patient: str = field(default="", repr=False)
    person: str = field(default="", repr=False)
    is_doubtful: bool = False
    frame_of_reference: str = ""
    date: str = field(default="", repr=False)
    day: str = field(default="", repr=False)
    units: tuple[float, ...] = field(default=(), repr=False)

    def __str__(self) -> str:
        return self.name

    @property
    def name(self) -> str:
        """Return what messages call it."""
        return f"series {self.header.number} {self.header.description!r}"

    @property
    def size(self) -> int:
        """Return how many voxels it has."""
        return self.slices * self.pixels

    def sha256(self) -> str:
        """Return a digest of the content of its files, independent of their order."""
        digests = sorted(sha256(file) for file in self.files)
        return hashlib.sha256("".join(digests).encode()).hexdigest()

    def read(self) -> tuple[npt.NDArray[np.float32], Grid]:
        """Return the voxels ``(Z, Y, X)`` and their grid.

        Raises:
            DataError: A file cannot be read, or the slices are no volume.
        """
        if self.grid is None or self.fault:
            raise DataError(f"{self.name}: {self.fault}")
        needed, available = 4 * math.prod(self.grid.shape), available_bytes()
        if needed > available:  # Linux would give it, and end this process when it is used
            raise DataError(
                f"{self.name}: its voxels take {needed / 1e9:.1f} GB; {available / 1e9:.1f} GB of "
                "memory are free. Use a machine with more memory"
            )
        try:
            voxels = np.empty(self.grid.shape, dtype=np.float32)
            read, planes = None, None
            for index, (file, frame) in enumerate(self.order):
                if read != file:
                    read, planes = file, read_planes(self.files[file])
                assert planes is not None
                voxels[index] = planes[frame or 0] / (self.units[index] if self.units else 1)
        except DataError as error:
            raise DataError(f"{self.name}: {error}") from None
        except Exception as error:  # of pydicom or GDCM, whatever a damaged file makes them raise
            raise DataError(
                f"{self.name}: {self.files[file].name}: cannot be read "
                f"({type(error).__name__}: {error}). Copy or export it again"
            ) from None
        return voxels, self.grid


@dataclass(frozen=True)
class FoundSeries:
    """The DICOM series and damaged files below a folder.

    Attributes:
        series: The series, sorted by examination and number.
        damaged: Files that could not be read, sorted by path.
        copies: Files that hold the same image as another one.
    """

    series: tuple[Series, ...]
    damaged: tuple[Damaged, ...]
    copies: tuple[Path, ...] = ()


def find_series(folder: Path) -> FoundSeries:
    """Find all series below a folder; files that are not DICOM are passed over."""
    instances, damaged, others = [], [], []
    with quiet():
        for file in files_below(folder):
            if file.name.upper() == "DICOMDIR":  # lists the others
                continue
            if not looks_like_dicom(file):
                others.append(file)
                continue
            try:
                instance = read_instance(file)
            except DataError as error:
                damaged.append(Damaged(file, str(error)))
            except Exception as error:  # of pydicom, whatever a damaged file makes it raise
                damaged.append(Damaged(file, f"{type(error).__name__}: {error}"))
            else:
                if instance is not None:
                    instances.append(instance)
    named = {_pattern(each.file) for each in instances}
    damaged += [
        Damaged(file, "does not begin as DICOM does") for file in others if _pattern(file) in named
    ]
    damaged.sort(key=lambda each: each.path)
    files = {each.file for each in instances}
    found = examinations(without_copies(instances), folder)
    doubtful = {name for name, mine in found.items() if may_be_several(mine, folder)}
    groups = [
        (examination, uid, without_copies(part, are_one_series=True))
        for examination, mine in found.items()
        for uid, part in series_of(mine, folder).items()
    ]
    copies = sorted(files - {each.file for _, _, part in groups for each in part})
    by_uid: dict[str, list[tuple[str, list[Instance]]]] = defaultdict(list)
    for examination, uid, part in groups:
        by_uid[uid].append((examination, part))
    strays = [part for _, _, part in groups if len(part) < FEWEST_SLICES]
    all_series = []
    for examination, uid, part in groups:
        unique = f"{uid}@{digest(examination)}" if len(by_uid[uid]) > 1 else uid
        elsewhere = [mine for key, mine in by_uid[uid] if key != examination]
        divided = _divided(part, elsewhere)
        images = _images(unique, examination, part, _doubts(part, strays), divided)
        all_series += [replace(each, is_doubtful=examination in doubtful) for each in images]
    all_series.sort(key=lambda each: (each.examination, each.header.number, each.uid))
    return FoundSeries(tuple(all_series), tuple(damaged), tuple(copies))


def source_headers(series: Series) -> tuple[list[Any], list[int]]:
    """Return pydicom's headers of a series, to which a segmentation of it refers.

    Returns:
        The headers, without pixels: one per slice, sorted, or the one of an enhanced image; and
        for each plane of ``Series.read`` its index among all frames of the headers.

    Raises:
        DataError: A file cannot be read.
    """
    frames = [frame for _, frame in series.order]
    whole = frames[0] is None
    files = [series.files[file] for file, _ in (series.order if whole else series.order[:1])]
    headers = []
    for file in files:
        try:
            content, _ = read_header(file, [], [])
        except Exception as error:  # of pydicom, whatever a damaged file makes it raise
            raise DataError(f"{file.name}: cannot be read ({error})") from None
        headers.append(content)
    return headers, list(range(len(files))) if whole else [frame or 0 for frame in frames]


def stable_uid(*parts: str) -> str:
    """Return a UID that depends on the parts only."""
    return str(generate_uid(entropy_srcs=list(parts)))


def _pattern(file: Path) -> tuple[Path, str]:
    """Return the folder and the name of a file with numbers replaced, which a series shares."""
    return file.parent, re.sub(r"\d+", "#", file.name)


def _images(
    uid: str,
    examination: str,
    instances: Sequence[Instance],
    warnings: tuple[str, ...],
    divided: str,
) -> list[Series]:
    """Return the images of a series: one, or its echoes or components.

    ``divided`` is the reason why a part of it is elsewhere, or nothing.
    """
    planes, strays = without_strays([plane for each in instances for plane in each.planes])
    parts = separate(planes)
    if strays:
        parts.append(("aside", strays))
        warnings += (
            f"has {plural(len(strays), 'image')} without a place or in another direction, first "
            f"{strays[0].file.name}; they are left out",
        )
    by_file = {each.file: each for each in instances}
    images = []
    for label, part in parts:
        files = sorted({plane.file for plane in part})
        mine = [by_file[file] for file in files]
        numbers = {file: number for number, file in enumerate(files)}
        fault, grid = divided or _fault(mine, part), None
        order: list[int] = []
        try:
            order, grid = arrange(part)
        except DataError as error:
            fault = fault or str(error)
        first = next(each for each in mine if each.header == _usual(mine))
        header = _of_part(_usual(mine), part) if label else _usual(mine)
        images.append(
            Series(
                f"{uid}#{label}" if label else uid,
                examination,
                header,
                tuple(files),
                tuple((numbers[part[index].file], part[index].frame) for index in order),
                grid,
                fault,
                any(each.is_compressed for each in mine),
                directions(part),
                images_per_place(part),
                _moments(part),
                part[0].shape[0] * part[0].shape[1],
                len(part),
                (*warnings, *gaps(part, grid), *_exchanged(part, mine)),
                first.who,
                first.person,
                frame_of_reference=first.frame_of_reference,
                date=first.visit[DATE],
                day=first.day,
                units=_units([part[index] for index in order]),
            )
        )
    return images


def _of_part(header: Header, planes: Sequence[Plane]) -> Header:
    """Return a header with the times and kind of these planes; a file may hold several images."""
    (echo, component, kind), physics = planes[0].variety, planes[0].physics
    repetition, inversion, flip = map(float, physics[:3])
    agent, phase = planes[0].agent
    return replace(
        header,
        agent=agent,
        phase=phase,
        echo_ms=float(echo),
        component=component,
        image_type=(*header.image_type[:2], *kind.split("\\")) if kind else header.image_type,
        repetition_ms=repetition,
        inversion_ms=inversion,
        flip_degrees=flip,
    )


def _usual(instances: Sequence[Instance]) -> Header:
    """Return the header that most files have; a single one may be damaged."""
    return Counter(each.header for each in instances).most_common(1)[0][0]


def _fault(instances: Sequence[Instance], planes: Sequence[Plane]) -> str:
    """Say why the pixels of a series cannot be read together; empty where they can."""
    if fault := next((each.fault for each in instances if each.fault), ""):
        return fault
    usual = Counter(each.pixels for each in instances).most_common(1)[0][0]
    for each in instances:
        if each.pixels != usual:
            return (
                f"{each.file.name} stores pixels as {' '.join(each.pixels)}, the others as "
                f"{' '.join(usual)} (bits, bits used, highest, sign, kind, samples); they cannot "
                "be compared"
            )
    unscaled = [plane for plane in planes if math.isnan(plane.scale[0])]
    if 0 < len(unscaled) < len(planes):
        return f"{unscaled[0].file.name} lacks the RescaleSlope that others have"
    return ""


def _units(planes: Sequence[Plane]) -> tuple[float, ...]:
    """Return what planes must be divided by to be comparable; empty where they are already.

    Philips may scale each image by itself, and RescaleSlope then leads to numbers for display.
    """
    units = tuple(plane.unit for plane in planes)
    if not units or not all(unit > 0 for unit in units) or max(units) < 1.001 * min(units):
        return ()
    return units


def _exchanged(planes: Sequence[Plane], instances: Sequence[Instance]) -> list[str]:
    """Return a warning if a few images have places that SliceLocation or their numbers contradict.

    Of numbers that do not follow the places at all, as interleaved ones, nothing is said.
    """
    numbers = {each.file: float(each.number) for each in instances}
    for name, values in (
        ("SliceLocation", [plane.location for plane in planes]),
        ("InstanceNumber", [numbers[plane.file] for plane in planes]),
    ):
        if few := misplaced(planes, values):
            first = few[0].file.name
            return [
                f"has {plural(len(few), 'image')} whose place contradicts the order by {name}, "
                f"first {first}; slices may have been exchanged"
            ]
    return []


def _moments(planes: Sequence[Plane]) -> tuple[int, int]:
    """Return how many time points and b-values headers name."""
    times = {plane.moment[0] for plane in planes} - {""}
    weightings = {plane.moment[1] for plane in planes} - {"nan"}
    return len(times), len(weightings)


def _doubts(instances: Sequence[Instance], strays: Sequence[Sequence[Instance]]) -> tuple[str, ...]:
    """Return warnings that images may be missing or damaged where the grid shows no gap.

    ``strays`` are the files of every series that has too few images.
    """
    doubts = []
    folders, header = {each.file.parent for each in instances}, _usual(instances)
    lost = [
        each
        for stray in strays
        for each in stray
        if stray is not instances
        and each.file.parent in folders
        and _may_be_of(each, instances[0], header)
    ]
    if lost and len(instances) >= FEWEST_SLICES:
        doubts.append(
            f"may lack slices: {plural(len(lost), 'file')} beside it, first {lost[0].file.name}, "
            "say much the same as its own, and are of another patient, examination or series, or "
            "of none"
        )
    planes = [plane for each in instances for plane in each.planes]
    slices, images = max(each.slices for each in instances), max(e.images for e in instances)
    count, here = len(planes), places(planes)
    if len(instances) < (parts := max(each.parts for each in instances)):
        doubts.append(
            f"has {len(instances)} of {parts} files of its concatenation; it lacks slices or images"
        )
    elif 0 < here < slices:
        doubts.append(f"has images of {here} places; the scanner made {slices}")
    elif 0 < count < images and images % count:
        doubts.append(f"has {count} images; the scanner made {images}")
    elif gap := _gap(instances):
        doubts.append(gap)
    if width := _other_width(instances):
        doubts.append(width)
    if turned := next((each for each in instances if _is_turned(each)), None):
        doubts.append(
            f"has PatientOrientation {' '.join(turned.orientation)}, and ImageOrientationPatient "
            f"the opposite, first {turned.file.name}; it may have been mirrored"
        )
    if written := [each for each in instances if each.shows_text]:
        doubts.append(
            f"has text in the pixels of {plural(len(written), 'file')} by BurnedInAnnotation, "
            f"first {written[0].file.name}; it may cover what is to be segmented. Look at it"
        )
    scales = Counter(plane.scale for plane in planes)
    usual, times = scales.most_common(1)[0]
    if FEW_OTHERS * count <= times < count:
        other = next(plane for plane in planes if plane.scale != usual)
        doubts.append(
            f"has another RescaleSlope or RescaleIntercept in {plural(count - times, 'image')}, "
            f"first {other.file.name}; look at it"
        )
    return tuple(doubts)


def _divided(instances: Sequence[Instance], others: Sequence[Sequence[Instance]]) -> str:
    """Say that images of a series are under other examinations, too; empty where none are.

    Those of a series whose SeriesInstanceUID an anonymiser gave twice have its numbers again.
    """
    numbers, header = {each.number for each in instances}, _usual(instances)
    away = [
        each
        for other in others
        for each in other
        if each.header.number == header.number
        and each.header.description == header.description
        and numbers.isdisjoint(each.number for each in other)
    ]
    if len(numbers) < len(instances) or len(away) < FEWEST_SLICES:
        return ""
    return (
        f"has {plural(len(instances), 'image')}, and {len(away)} more of its SeriesInstanceUID are "
        f"under another patient or examination, first {away[0].file.name}; it would lack slices"
    )


def _may_be_of(stray: Instance, other: Instance, header: Header) -> bool:
    """Say whether a file beside a series may be a damaged part of it."""
    if not (stray.study and stray.series):
        return bool(other.study and other.series)
    pairs = (
        (stray.study, other.study),
        (stray.series, other.series),
        (stray.patient, other.patient),
    )
    return any(a == b and any(a) for a, b in pairs) and (
        stray.header.number == header.number or stray.header.description == header.description
    )


def _is_turned(instance: Instance) -> bool:
    """Say whether PatientOrientation names the opposite of the way that columns or rows run."""
    axes = instance.planes[0].axes if instance.planes else ()
    return any(
        axes["LPHRAF".index(way[0]) % 3 + offset] * (1 if way[0] in "LPH" else -1) < OPPOSITE
        for way, offset in zip(instance.orientation, (0, 3), strict=False)
        if axes and way and way[0] in "LPHRAF"
    )


def _other_width(instances: Sequence[Instance]) -> str:
    """Say that pixels are of another size than the scanner's field of view has; else nothing."""
    for each in instances:
        for plane in each.planes:
            if not (plane.spacing and each.diameter > 0):
                continue
            width = max(np.multiply(plane.shape, plane.spacing))
            if not 1 / SAME_WIDTH < width / each.diameter < SAME_WIDTH:
                return (
                    f"is {width:.4g} mm wide by PixelSpacing and {each.diameter:.4g} mm by "
                    "ReconstructionDiameter; it was resampled or cropped, and its spacing may be "
                    "wrong"
                )
            return ""
    return ""


def _gap(instances: Sequence[Instance]) -> str:
    """Say which image numbers are missing, if only a few are; else return nothing."""
    numbers = {each.number for each in instances}
    if len(numbers) != len(instances):
        return ""
    first, last = min(numbers), max(numbers)
    are_whole = last - first + 1 == len(numbers)
    if are_whole and 1 < first <= len(numbers) + 1:
        return f"has image numbers that begin with {first}; images before it may be missing"
    if not 0 < last - first + 1 - len(numbers) <= len(numbers) // 10:
        return ""  # none, or too many to count one by one: a file may have any number
    missing = [number for number in range(first, last + 1) if number not in numbers]
    return f"image {', '.join(map(str, missing[:5]))} of its numbers is missing"
