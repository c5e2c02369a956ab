"""DICOM: files as series, and series as images; the one door to pydicom."""

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.errors import InvalidDicomError
from pydicom.uid import generate_uid

from mixmfl.errors import DataError
from mixmfl.files import files_below, sha256
from mixmfl.image import Grid, check_directions, make_grid, read_frames

SPACING_TOLERANCE = 0.02  # relative: how far slices may be from evenly spaced

_TAGS = [
    "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "Modality",
    "SeriesNumber", "SeriesDescription", "ProtocolName", "SequenceName", "ContrastBolusAgent",
    "ScanningSequence", "EchoTime", "RepetitionTime", "InversionTime", "ImageType",
    "DiffusionBValue", "Rows", "Columns", "PixelSpacing", "ImageOrientationPatient",
    "NumberOfFrames", "SamplesPerPixel", "PatientName", "PatientID",
]  # fmt: skip


@dataclass(frozen=True)
class Header:
    """What the header of a series says, as far as it tells the sequence.

    Attributes:
        modality: DICOM's: ``"MR"``, ``"CT"``, …
        number: Of the series.
        description: SeriesDescription.
        protocol: ProtocolName.
        agent: ContrastBolusAgent.
        scanning: ScanningSequence, such as ``("SE", "IR")``.
        echo_ms: EchoTime; NaN where it is not told, as the next two.
        repetition_ms: RepetitionTime.
        inversion_ms: InversionTime.
        image_type: ImageType, such as ``("ORIGINAL", "PRIMARY", "M")``.
        b_value: DiffusionBValue, s/mm²; NaN where it is not told.
    """

    modality: str = "MR"
    number: int = 0
    description: str = ""
    protocol: str = ""
    agent: str = ""
    scanning: tuple[str, ...] = ()
    echo_ms: float = math.nan
    repetition_ms: float = math.nan
    inversion_ms: float = math.nan
    image_type: tuple[str, ...] = ()
    b_value: float = math.nan

    @property
    def words(self) -> set[str]:
        """Return the single words of description and image type, in lower case."""
        text = " ".join([self.description, *self.image_type[2:]]).lower()
        for sign in "_-./,()*":
            text = text.replace(sign, " ")
        return set(text.split())


@dataclass(frozen=True)
class Series:
    """A series, or one echo of it: an image (see ``image.Source``).

    Attributes:
        uid: SeriesInstanceUID; with several echoes in the series, ``#`` and the echo time too.
        study: StudyInstanceUID.
        header: Of its first file.
        files: Sorted by path; each instance once.
        orientations: How many its files have.
        pixels: Columns times rows of a slice.
        slices: Frames of all files.
        patient: Name and ID, for who asks for it.
    """

    uid: str
    study: str
    header: Header
    files: tuple[Path, ...] = field(repr=False)
    orientations: int
    pixels: int
    slices: int
    patient: str = field(default="", repr=False)

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
        """Return a digest of the content of its files, in whatever order they lie."""
        digests = sorted(sha256(file) for file in self.files)
        return hashlib.sha256("".join(digests).encode()).hexdigest()

    def read(self) -> tuple[npt.NDArray[np.float32], Grid]:
        """Return the voxels ``(Z, Y, X)`` and their grid.

        Raises:
            DataError: A file cannot be read, or the slices are no volume.
        """
        slices = self._planes()
        first = slices[0]
        if any(
            not np.allclose(each.axes, first.axes, atol=1e-3)
            or not np.allclose(each.spacing, first.spacing, rtol=1e-3)
            for each in slices
        ):
            raise DataError(f"{self.name}: its slices differ in direction or spacing")
        normal = np.cross(first.axes[:3], first.axes[3:])
        grid_step, direction = self._step(slices, normal)
        axes = np.stack([first.axes[:3], first.axes[3:], direction], axis=1)
        frames: dict[Path, Any] = {}
        voxels: npt.NDArray[np.float32] | None = None
        for index, each in enumerate(slices):
            if each.file not in frames:
                if each.frame is None:
                    frames.clear()  # one slice per file: none is needed again
                frames[each.file] = read_frames(each.file)
            plane = frames[each.file][each.frame or 0]
            if voxels is None:
                voxels = np.empty((len(slices), *plane.shape), dtype=np.float32)
            if plane.shape != voxels.shape[1:]:
                raise DataError(f"{self.name}: its slices differ in size")
            voxels[index] = plane
        assert voxels is not None
        down, across = first.spacing
        grid = make_grid(voxels.shape, (grid_step, down, across), slices[0].place, axes)
        check_directions(grid, self.name)
        return voxels, grid

    def _planes(self) -> "list[_Slice]":
        """Return the planes in the order of ``read``: along the normal of the first.

        Raises:
            DataError: One of them does not say where it lies.
        """
        try:
            slices = [each for file in self.files for each in _slices(file)]
        except (InvalidDicomError, AttributeError, KeyError, ValueError, IndexError) as error:
            raise DataError(f"{self.name}: has no place in space ({error})") from None
        normal = np.cross(slices[0].axes[:3], slices[0].axes[3:])
        return sorted(slices, key=lambda each: float(normal @ each.place))

    def _step(self, slices: "Sequence[_Slice]", normal: Any) -> tuple[float, Any]:
        """Return the distance of the slices in mm, and the direction in which they follow."""
        if len(slices) == 1:
            if not slices[0].thickness > 0:
                raise DataError(f"{self.name}: has one slice, of unknown thickness")
            return slices[0].thickness, normal
        heights = np.array([float(normal @ each.place) for each in slices])
        gaps = np.diff(heights)
        step = float(np.median(gaps))
        if gaps.min() < 0.01:
            raise DataError(
                f"{self.name}: has several images at one place (time points, b-values or echoes); "
                "one volume is needed"
            )
        if np.abs(gaps - step).max() > SPACING_TOLERANCE * step + 0.01:
            at = int(np.abs(gaps - step).argmax())
            raise DataError(
                f"{self.name}: its slices are not evenly spaced ({gaps[at]:.2f} mm behind slice "
                f"{at + 1}, {step:.2f} mm elsewhere); slices are missing"
            )
        way = slices[-1].place - slices[0].place
        return float(np.linalg.norm(way)) / (len(slices) - 1), way / np.linalg.norm(way)


@dataclass(frozen=True)
class _Slice:
    """A plane: its file, the frame in it (None: the only one), and where it lies, LPS, mm."""

    file: Path
    frame: int | None
    place: Any
    axes: Any
    spacing: tuple[float, float]
    thickness: float


def find_series(folder: Path) -> list[Series]:
    """Return all series below a folder, sorted; files that are no DICOM are passed over."""
    groups: dict[tuple[str, str], dict[str, tuple[Path, Any]]] = defaultdict(dict)
    for file in filter(_has_magic, files_below(folder)):
        try:
            content = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=_TAGS)
            key = str(content.StudyInstanceUID), str(content.SeriesInstanceUID)
            groups[key].setdefault(str(content.SOPInstanceUID), (file, content))
        except (InvalidDicomError, OSError, AttributeError, ValueError, KeyError, EOFError):
            continue  # no image: a DICOMDIR, say, or a damaged file, whose slice will be missed
    series = []
    for (study, uid), members in groups.items():
        echoes = Counter(_number(content, "EchoTime") for _, content in members.values())
        split = len(echoes) > 1 and len(set(echoes.values())) == 1
        parts: dict[float, list[tuple[Path, Any]]] = defaultdict(list)
        for file, content in members.values():
            parts[_number(content, "EchoTime") if split else 0.0].append((file, content))
        for echo, part in parts.items():
            series.append(_series(f"{uid}#{echo:g}" if split else uid, study, part))
    return sorted(series, key=lambda each: (each.study, each.header.number, each.uid))


def source_headers(series: Series) -> tuple[list[Any], list[int]]:
    """Return pydicom's headers of a series, as a segmentation of it refers to them.

    Returns:
        The headers, without pixels: one per slice, sorted, or the one of an enhanced image; and
        for each plane of ``Series.read`` its number among all frames of these.
    """
    planes = series._planes()
    if planes[0].frame is None:
        found = [pydicom.dcmread(each.file, stop_before_pixels=True) for each in planes]
        return found, list(range(len(planes)))
    order = [each.frame or 0 for each in planes]
    return [pydicom.dcmread(planes[0].file, stop_before_pixels=True)], order


def stable_uid(*parts: str) -> str:
    """Return a UID that is the same for the same parts."""
    return str(generate_uid(entropy_srcs=list(parts)))


def _has_magic(file: Path) -> bool:
    if not file.is_file():  # a pipe, say, which would be waited for
        return False
    try:
        with file.open("rb") as opened:
            return opened.read(132)[128:] == b"DICM"
    except OSError:
        return False


def _series(uid: str, study: str, members: Sequence[tuple[Path, Any]]) -> Series:
    members = sorted(members, key=lambda member: member[0])
    contents = [content for _, content in members]
    first = contents[0]
    directions = {
        tuple(round(float(part), 2) for part in content.get("ImageOrientationPatient") or ())
        for content in contents
    }
    patient = f"{first.get('PatientName', '')} {first.get('PatientID', '')}".strip()
    return Series(
        uid,
        study,
        _header(first),
        tuple(file for file, _ in members),
        max(1, len(directions)),
        int(first.get("Rows") or 0) * int(first.get("Columns") or 0),
        sum(int(content.get("NumberOfFrames") or 1) for content in contents),
        patient,
    )


def _header(content: Any) -> Header:
    def text(name: str) -> str:
        return " ".join(str(content.get(name) or "").split())

    def several(name: str) -> tuple[str, ...]:
        value = content.get(name) or ()
        return (value,) if isinstance(value, str) else tuple(map(str, value))

    number = _number(content, "SeriesNumber")
    return Header(
        text("Modality"),
        0 if math.isnan(number) else int(number),
        text("SeriesDescription"),
        text("ProtocolName"),
        text("ContrastBolusAgent"),
        several("ScanningSequence"),
        _number(content, "EchoTime"),
        _number(content, "RepetitionTime"),
        _number(content, "InversionTime"),
        several("ImageType"),
        _number(content, "DiffusionBValue"),
    )


def _number(content: Any, name: str) -> float:
    try:
        return float(content.get(name))
    except (TypeError, ValueError):
        return math.nan


def _slices(file: Path) -> list[_Slice]:
    """Return the planes of a file: one, or those of an enhanced multi-frame image."""
    content = pydicom.dcmread(file, stop_before_pixels=True)
    if "PerFrameFunctionalGroupsSequence" not in content:
        return [_slice(file, None, content, content, content)]
    shared = content.SharedFunctionalGroupsSequence[0]
    found = []
    for number, frame in enumerate(content.PerFrameFunctionalGroupsSequence):

        def part(name: str, frame: Any = frame) -> Any:
            return (frame if name in frame else shared)[name][0]

        found.append(
            _slice(
                file,
                number,
                part("PlanePositionSequence"),
                part("PlaneOrientationSequence"),
                part("PixelMeasuresSequence"),
            )
        )
    return found


def _slice(file: Path, frame: int | None, place: Any, axes: Any, pixels: Any) -> _Slice:
    down, across = (float(mm) for mm in pixels.PixelSpacing)
    return _Slice(
        file,
        frame,
        np.array(place.ImagePositionPatient, dtype=float),
        np.array(axes.ImageOrientationPatient, dtype=float),
        (down, across),
        _number(pixels, "SliceThickness"),
    )
