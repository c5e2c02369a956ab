"""Masks from DICOM Segmentation objects, on the grid of an image of their case."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mixmfl.core.errors import DataError
from mixmfl.core.files import sha256
from mixmfl.core.text import one_line, quoted
from mixmfl.data.dicom.elements import by_frame, frames_of, number_in
from mixmfl.data.dicom.files import quiet, read_whole
from mixmfl.data.grid import Grid
from mixmfl.data.label_sets import patterns, plain_name
from mixmfl.data.labels import Labels

MODALITY = "SEG"
"""DICOM's word for a segmentation, in the header of its series."""

_KINDS = ("BINARY", "FRACTIONAL", "LABELMAP")
_OFF_GRID = 0.02  # share of a voxel by which a frame may be off the grid
_TURNED, _STRETCHED = 1e-3, 1e-3  # direction cosines; spacing, relative


@dataclass(frozen=True)
class DrawnMask:
    """A Segmentation object as a label image: an ``image.Source``.

    Attributes:
        file: The file that holds the object.
        grids: The grids of the case's images, by modality; all frames must lie on one of them.
        labels: The label description; each segment is the label or region of its name.
    """

    file: Path
    grids: Mapping[str, Grid] = field(repr=False, compare=False)
    labels: Labels = field(repr=False, compare=False)

    def __str__(self) -> str:
        return str(self.file)

    @property
    def name(self) -> str:
        """Return what messages call it."""
        return self.file.name

    @property
    def files(self) -> tuple[Path, ...]:
        """Return the files that it is read from."""
        return (self.file,)

    @property
    def size(self) -> int:
        """Return how many voxels it has, which is as many as its image."""
        return max((int(np.prod(grid.shape)) for grid in self.grids.values()), default=0)

    def sha256(self) -> str:
        """Return a digest of the file."""
        return sha256(self.file)

    def read(self) -> tuple[npt.NDArray[np.float32], Grid]:
        """Return the label values ``(Z, Y, X)`` and their grid.

        Raises:
            DataError: The object cannot be read, lies on no image's grid, or has segments that
                are not among the labels.
        """
        try:
            with quiet():
                content = read_whole(self.file)
                frames = content.pixel_array.reshape(-1, int(content.Rows), int(content.Columns))
                places = by_frame(content)
                segments = {
                    int(segment.SegmentNumber): self._label_of(str(segment.SegmentLabel))
                    for segment in content.SegmentSequence
                }
                if frames_of(content) != len(frames) or len(places) != len(frames):
                    raise DataError(f"announces {len(places)} planes, but holds {len(frames)}")
                grid, corners = self._place(places, frames.shape[1:])
                member = self._paint(content, frames, places, corners, segments, grid)
        except DataError as error:
            raise DataError(f"{self.file}: {error}") from None
        except Exception as error:  # of pydicom, whatever a damaged file makes it raise
            raise DataError(
                f"{self.file}: cannot be read as a DICOM segmentation ({type(error).__name__}: "
                f"{one_line(error, 300)}). Export it again, or give the mask as NIfTI"
            ) from None
        return self._values(member, grid), grid

    def _label_of(self, segment: str) -> str:
        """Return the label or region of a segment, or ``"background"`` or ``"ignore"``."""
        known = {plain_name(name): name for name in self.labels.declared}
        known |= {plain_name(name): other for name, other in self.labels.renamed.items()}
        if plain_name(segment) not in known:
            raise DataError(
                f"has the segment {quoted(segment)}, which is not among the labels "
                f'{", ".join(self.labels.foreground)}. Declare it under "labels" in dataset.json; '
                'by "label_map" it may be another label, "background" or "ignore"'
            )
        return known[plain_name(segment)]

    def _place(self, frames: list[Any], shape: tuple[int, ...]) -> tuple[Grid, list[list[int]]]:
        """Return the grid that all frames lie on, and the first voxel (z, y, x) of each frame."""
        for grid in self.grids.values():
            located = [_corner(frame, grid) for frame in frames]
            corners = [corner for corner in located if corner is not None]
            if len(corners) == len(located) and all(
                start >= 0 and start + size <= most
                for corner in corners
                for start, size, most in zip(corner, (1, *shape), grid.shape, strict=True)
            ):
                return grid, corners
        raise DataError(
            f"does not lie on the grid of {', '.join(self.grids) or 'any image'}. Masks are never "
            "resampled: have the series taken that it was drawn on (--mapping), or resample it"
        )

    def _paint(
        self,
        content: Any,
        frames: npt.NDArray[Any],
        places: list[Any],
        corners: list[list[int]],
        segments: Mapping[int, str],
        grid: Grid,
    ) -> dict[str, npt.NDArray[np.bool_]]:
        """Return the mask of each label, ``(Z, Y, X)``."""
        kind = str(content.get("SegmentationType", "BINARY")).upper()
        if kind not in _KINDS:
            raise DataError(f"has SegmentationType {quoted(kind)}; {', '.join(_KINDS)} are read")
        most = number_in(content, "MaximumFractionalValue") if kind == "FRACTIONAL" else 1.0
        if not most > 0:  # NaN, too, with which every voxel would be outside
            raise DataError("has no MaximumFractionalValue, so its fractions have no meaning")
        member = {name: np.zeros(grid.shape, dtype=bool) for name in {*segments.values()}}
        _, height, width = (1, *frames.shape[1:])
        for frame, place, (z, y, x) in zip(frames, places, corners, strict=True):
            if kind == "LABELMAP":
                drawn = {number: frame == number for number in segments}
            else:
                number = int(number_in(place, "ReferencedSegmentNumber"))
                drawn = {number: 2 * frame.astype(float) >= most}
            for number, here in drawn.items():
                member[segments[number]][z, y : y + height, x : x + width] |= here
        return member

    def _values(
        self, member: Mapping[str, npt.NDArray[np.bool_]], grid: Grid
    ) -> npt.NDArray[np.float32]:
        """Return the value of each voxel, by the labels and regions that it belongs to.

        Raises:
            DataError: A voxel belongs to labels that the description keeps apart.
        """
        names = [name for name in member if name not in ("background", "ignore")]
        # one number per set of labels
        code = np.zeros(grid.shape, dtype=np.int64)
        for name in names:
            code = 2 * code + member[name]
        codes, which = np.unique(code, return_inverse=True)
        value_of = {pattern: value for value, pattern in patterns(self.labels).items()}
        values = []
        for number in codes.tolist():
            bits = f"{number:0{max(1, len(names))}b}"
            inside = frozenset(n for n, bit in zip(names, bits, strict=False) if bit == "1")
            if inside not in value_of:
                raise DataError(
                    f"{self.file}: has voxels in {' and '.join(sorted(inside))} and in no other "
                    "label, but dataset.json has no value for these; regions that overlap are "
                    "lists of values there"
                )
            values.append(value_of[inside])
        voxels = np.array(values, dtype=np.float32)[which].reshape(code.shape)
        if "ignore" in member and self.labels.ignore is not None:
            voxels[member["ignore"]] = self.labels.ignore
        return voxels


def _corner(frame: Any, grid: Grid) -> list[int] | None:
    """Return the voxel (z, y, x) at which a frame begins; None if it is not on the grid."""
    axes = np.reshape(grid.direction, (3, 3))  # columns: X, Y, Z
    along = np.array(frame.get("ImageOrientationPatient"), dtype=float).reshape(2, 3)
    spacing = np.array(frame.get("PixelSpacing"), dtype=float)  # down, across
    if not np.allclose(along, axes[:, :2].T, rtol=0, atol=_TURNED):
        return None
    if not np.allclose(spacing, grid.spacing[1:], rtol=_STRETCHED, atol=0):
        return None
    place = np.array(frame.get("ImagePositionPatient"), dtype=float) - grid.origin
    index = np.linalg.solve(axes, place) / np.array(grid.spacing)[::-1]  # x, y, z
    whole = np.rint(index)
    if not np.allclose(index, whole, rtol=0, atol=_OFF_GRID):
        return None
    return [int(number) for number in whole[::-1]]
