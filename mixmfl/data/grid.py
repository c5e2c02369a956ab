"""Where the voxels of an image are, and one orientation for all images.

Arrays are (Z, Y, X); their physical place is in millimetres, LPS: x grows to the patient's left, y
to the back, z to the head.
"""

from dataclasses import dataclass, field
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

from mixmfl.core.errors import DataError
from mixmfl.data import nifti

Array = npt.NDArray[Any]

# Two grids are one if they agree within these. Headers store 32-bit numbers, and tools round.
SPACING_TOLERANCE = 1e-3  # relative
DIRECTION_TOLERANCE = 1e-3  # of each cosine
ORIGIN_TOLERANCE = 1e-2  # of the smallest voxel side
_FLIP = np.diag([-1.0, -1.0, 1.0, 1.0])  # from LPS to RAS, and back


@dataclass(frozen=True)
class Grid:
    """The place of an image's voxels.

    Attributes:
        shape: Number of voxels, (Z, Y, X).
        spacing: Millimetres between voxels, (Z, Y, X).
        origin: Centre of the first voxel, (x, y, z) in mm, LPS.
        direction: 3x3 matrix row by row; its columns are the directions, LPS, in which the X, Y
            and Z axes of the array run.
        place: The place as the image's NIfTI header writes it, which masks of it copy; None without
            such a header.
        unstated: What a header of another format leaves open about the place; empty: nothing.
    """

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    origin: tuple[float, float, float]
    direction: tuple[float, float, float, float, float, float, float, float, float]
    place: nifti.Place | None = field(default=None, compare=False, repr=False)
    unstated: str = field(default="", compare=False, repr=False)

    @property
    def middle(self) -> tuple[float, ...]:
        """The middle of the image, (x, y, z) in mm, LPS."""
        steps = (np.array(self.shape[::-1]) - 1) / 2 * self.spacing[::-1]
        return tuple(np.array(self.origin) + np.reshape(self.direction, (3, 3)) @ steps)


def grid_difference(a: Grid, b: Grid) -> str | None:
    """Describe how two grids differ; None where they are equal within tolerance."""
    if a.shape != b.shape:
        return f"shape {a.shape} against {b.shape}"
    if not np.allclose(a.spacing, b.spacing, rtol=SPACING_TOLERANCE, atol=0):
        return f"spacing {to_show(a.spacing)} mm against {to_show(b.spacing)} mm"
    if not np.allclose(a.direction, b.direction, rtol=0, atol=DIRECTION_TOLERANCE):
        return f"direction {to_show(a.direction)} against {to_show(b.direction)}"
    if not np.allclose(a.origin, b.origin, rtol=0, atol=ORIGIN_TOLERANCE * min(a.spacing)):
        return f"origin {to_show(a.origin)} mm against {to_show(b.origin)} mm"
    return None


def is_on_qform(label: Grid, grid: Grid) -> bool:
    """Say whether a label lies on an image by the image's qform, although the sform counts.

    Tools on ITK write such labels. A label that was drawn on an image has the image's voxels,
    wherever a later registration puts these by the sform.
    """
    qform = grid.place.qform if grid.place is not None else None
    return qform is not None and grid_difference(label, placed_by(qform, grid)) is None


def to_canonical(array: Array, grid: Grid) -> tuple[Array, Grid]:
    """Turn an array so that Z runs to the head, Y to the back, X to the patient's left.

    Axes are swapped and flipped, nothing is interpolated: on an oblique grid each axis is the
    nearest one, and the returned grid stays oblique.

    Args:
        array: ``(Z, Y, X)`` as read.
        grid: The array's grid.

    Returns:
        The turned array, contiguous, and its grid: the place of every voxel is unchanged.
    """
    source, flipped = _canonical_axes(grid)
    turned = np.flip(array.transpose(source), flipped)
    return np.ascontiguousarray(turned), canonical_grid(grid)


def canonical_grid(grid: Grid) -> Grid:
    """Return the grid that ``to_canonical`` returns, of which all orders of axes have the same."""
    source, flipped = _canonical_axes(grid)
    # the same in file order (x, y, z), as origin and direction are
    direction = np.reshape(grid.direction, (3, 3))
    first = np.zeros(3)  # index of the voxel that becomes the first
    columns = np.empty((3, 3))
    for axis, taken in enumerate(source):
        column = direction[:, 2 - taken]
        if axis in flipped:
            first[2 - taken] = grid.shape[taken] - 1
            column = -column
        columns[:, 2 - axis] = column
    origin = grid.origin + direction @ (first * grid.spacing[::-1])
    shape, spacing = ([values[taken] for taken in source] for values in (grid.shape, grid.spacing))
    return make_grid(shape, spacing, origin, columns)


def from_canonical(array: Array, grid: Grid) -> Array:
    """Turn a canonical array back; the exact inverse of ``to_canonical``.

    Args:
        array: ``(Z, Y, X)`` in canonical orientation.
        grid: The grid of the file, onto which the array is turned back.
    """
    source, flipped = _canonical_axes(grid)
    return np.ascontiguousarray(np.flip(array, flipped).transpose(np.argsort(source)))


def _canonical_axes(grid: Grid) -> tuple[tuple[int, int, int], tuple[int, ...]]:
    """Return the array axis of each canonical axis, and the canonical axes to flip."""
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(grid.direction, (3, 3))
    source, flipped = [0, 0, 0], []
    # row i: the world axis nearest to file axis i, and whether it runs along (1) or against (-1)
    for axis, (world, sign) in enumerate(nib.orientations.io_orientation(affine)):
        canonical = 2 - int(world)  # x, y, z are array axes 2, 1, 0
        source[canonical] = 2 - axis
        if sign < 0:
            flipped.append(canonical)
    return (source[0], source[1], source[2]), tuple(flipped)


def grid_of_affine(affine: Array, shape: Any, spacing: Any, source: str) -> Grid:
    """Return the right-angled grid nearest to an affine of nibabel's.

    Args:
        affine: 4x4 matrix from an index to mm, RAS.
        shape: Number of voxels, (Z, Y, X).
        spacing: Millimetres between voxels, (Z, Y, X).
        source: The image's name in messages.

    Raises:
        DataError: The axes are too far from right angles.
    """
    lps = _FLIP @ affine
    with np.errstate(all="ignore"):  # of an axis without a direction comes NaN, refused below
        direction = lps[:3, :3] / np.linalg.norm(lps[:3, :3], axis=0)
    grid = make_grid(shape, spacing, lps[:3, 3], direction)
    check_directions(grid, source)
    if np.array_equal(direction.T @ direction, np.eye(3)):
        return grid
    u, _, v = np.linalg.svd(direction)  # their product is the nearest matrix with right angles
    return make_grid(shape, spacing, lps[:3, 3], u @ v)


def placed_by(rows: tuple[tuple[float, ...], ...], grid: Grid) -> Grid:
    """Return the grid at the place of an affine from a NIfTI header."""
    affine = np.array(rows)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)[::-1]
    return grid_of_affine(affine, grid.shape, spacing, "header")


def affine_ras(grid: Grid) -> Array:
    """Return the affine of a grid as nibabel has it, 4x4, from an index (x, y, z) to mm, RAS."""
    return _FLIP @ affine_lps(grid)


def affine_lps(grid: Grid) -> Array:
    """Return the affine of a grid as ITK has it, 4x4, from an index (x, y, z) to mm, LPS."""
    matrix = np.eye(4)
    matrix[:3, :3] = np.reshape(grid.direction, (3, 3)) * np.array(grid.spacing[::-1])
    matrix[:3, 3] = grid.origin
    return matrix


def check_directions(grid: Grid, source: str) -> None:
    """Check that a grid's axes are at right angles.

    Raises:
        DataError: The axes are not at right angles.
    """
    direction = np.reshape(grid.direction, (3, 3))
    if not np.allclose(direction.T @ direction, np.eye(3), atol=DIRECTION_TOLERANCE):
        raise DataError(
            f"{source}: has direction {to_show(grid.direction)}; its axes must be at right angles. "
            "Resample it to a grid without shear"
        )


def make_grid(shape: Any, spacing: Any, origin: Any, direction: Any) -> Grid:
    """Make a grid of plain numbers, so that it compares, prints and serialises."""
    z, y, x = map(int, shape)
    dz, dy, dx = map(float, spacing)
    # adding zero turns -0.0, which headers are full of, into 0.0
    ox, oy, oz = (float(value) + 0.0 for value in origin)
    a, b, c, d, e, f, g, h, i = (float(value) + 0.0 for value in np.ravel(direction))
    return Grid((z, y, x), (dz, dy, dx), (ox, oy, oz), (a, b, c, d, e, f, g, h, i))


def to_show(values: tuple[float, ...]) -> tuple[float, ...]:
    """Return numbers with the digits that a message shows."""
    return tuple(round(value, 4) for value in values)
