"""Images as arrays with a grid: reading, writing, and one orientation for all.

Only this module and ``registration`` import SimpleITK; only this module, ``nifti`` and
``freesurfer``, which read these formats, import nibabel. Arrays are (Z, Y, X); their physical place
is in millimetres, LPS: x grows to the patient's left, y to the back, z to the head.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import nibabel as nib
import numpy as np
import numpy.typing as npt
import SimpleITK as sitk  # noqa: N813 - its own documentation's abbreviation

from mixmfl.core.errors import DataError
from mixmfl.core.files import is_file, replacing
from mixmfl.core.text import times
from mixmfl.data import freesurfer, nifti, text_headers

Array = npt.NDArray[Any]

FILE_ENDINGS = (*nifti.ENDINGS, *freesurfer.ENDINGS, *text_headers.ENDINGS)


def ending_of(path: Path) -> str:
    """Return which of ``FILE_ENDINGS`` a file's name has; empty: none."""
    name = path.name.lower()
    return next((ending for ending in FILE_ENDINGS if name.endswith(ending)), "")


# image formats that are not read, by the first ending that fits
OTHER_FORMATS = {
    ".img": "a file of voxels without its header", ".nii.bz2": "NIfTI packed by bzip2",
    ".img.gz": "a file of voxels without its header", ".nii.zip": "NIfTI packed by zip",
    ".nii.xz": "NIfTI packed by xz", ".mnc": "MINC",
    ".mnc.gz": "MINC", ".rec": "Philips PAR/REC", ".par": "Philips PAR/REC", ".xml.rec": "Philips",
    ".head": "AFNI", ".brik": "AFNI", ".brik.gz": "AFNI", ".gipl": "GIPL", ".gipl.gz": "GIPL",
    ".vtk": "VTK", ".mif": "MRtrix", ".mif.gz": "MRtrix", ".tif": "TIFF", ".tiff": "TIFF",
    ".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".bmp": "BMP", ".zip": "a zip archive",
    ".tar": "an archive", ".tar.gz": "an archive", ".tgz": "an archive", ".7z": "an archive",
    ".rar": "an archive", ".npy": "NumPy", ".npz": "NumPy", ".v": "ECAT",
    ".dcm.gz": "DICOM packed by gzip", ".ima.gz": "DICOM packed by gzip",
}  # fmt: skip
WRITTEN_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha")
DETACHED = (*nifti.PAIRS, *text_headers.DETACHED)
"""Endings of headers whose voxels lie in another file."""

# Two grids are one if they agree within these. Headers store 32-bit numbers, and tools round.
SPACING_TOLERANCE = 1e-3  # relative
DIRECTION_TOLERANCE = 1e-3  # of each cosine
ORIGIN_TOLERANCE = 1e-2  # of the smallest voxel side

# No scanner makes images beyond these: the file is damaged, or has other units. The largest number
# of voxels is that of a cube of 1024.
SMALLEST_MM, LARGEST_MM = 1e-3, 100.0  # between voxels
SHORTEST_MM, LONGEST_MM = 1.0, 3000.0  # of an image, along its longest axis
MOST_VOXELS = 1 << 30
# Images of people are not smaller than the first along all axes, where one has as many voxels, nor
# larger than the last along all of them.
SMALL_MM, MANY, LARGE_MM = 40.0, 64, 600.0

LABEL_TOLERANCE = 1e-3  # how far a label may be from an integer: factors of scale are rounded


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


class Source(Protocol):
    """An image that is not one file: a DICOM series, or an array in memory."""

    def read(self) -> tuple[npt.NDArray[np.float32], Grid]:
        """Return the voxels ``(Z, Y, X)`` and their grid; raise ``DataError`` on failure."""

    def sha256(self) -> str:
        """Return a digest of the content."""

    @property
    def name(self) -> str:
        """Return what messages call it."""

    @property
    def size(self) -> int:
        """Return how many voxels it has."""


@dataclass(frozen=True)
class InMemory:
    """An array as nibabel gives it, ``(X, Y, Z)``, and its affine.

    Attributes:
        voxels: Numbers, ``(X, Y, Z)``.
        affine: 4x4 matrix from an index to its place in mm, RAS.
    """

    voxels: Array
    affine: Array

    def __str__(self) -> str:
        return self.name

    @property
    def name(self) -> str:
        """Return what messages call it."""
        return "array"

    @property
    def size(self) -> int:
        """Return how many voxels it has."""
        return int(np.size(self.voxels))

    def read(self) -> tuple[npt.NDArray[np.float32], Grid]:
        """Return the voxels ``(Z, Y, X)`` and their grid.

        Raises:
            DataError: The array is not three-dimensional, or the affine is not that of a grid.
        """
        voxels, affine = np.asarray(self.voxels), np.asarray(self.affine, dtype=float)
        if voxels.ndim != 3 or voxels.dtype.kind not in "biuf":
            raise DataError(
                f"array of {voxels.dtype} with shape {voxels.shape}: numbers (X, Y, Z) are needed"
            )
        if affine.shape != (4, 4) or not np.isfinite(affine).all():
            raise DataError(f"affine with shape {affine.shape}: a finite 4x4 matrix is needed")
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        if not (spacing > 0).all():
            raise DataError(f"affine has spacing {tuple(spacing)} mm; it must be positive")
        grid = _grid_of(affine, voxels.shape[::-1], spacing[::-1], "affine")
        with np.errstate(over="ignore"):
            return np.ascontiguousarray(voxels.T, dtype=np.float32), grid

    def sha256(self) -> str:
        """Return a digest of the content."""
        content = np.ascontiguousarray(self.voxels).tobytes() + np.asarray(self.affine).tobytes()
        return hashlib.sha256(content).hexdigest()


def read_grid(path: Path | Source) -> Grid:
    """Read the grid of an image; of a file only the header is read.

    Raises:
        DataError: The file is missing, unreadable, or no three-dimensional scalar image.
    """
    return _open(path)[1] if isinstance(path, Path) else path.read()[1]


def files_of(path: Path) -> tuple[Path, ...]:
    """Return the files that an image is read from: its own, and a separate one of its voxels."""
    name = path.name.lower()
    voxels = None
    if not path.is_file():
        return (path,)
    if name.endswith(nifti.PAIRS):
        voxels = nifti.voxels_of(path)
    elif name.endswith(DETACHED):
        with suppress(DataError):  # where it is damaged its voxels are read from nowhere
            voxels = text_headers.read_header(path).voxels
    return (path, voxels) if voxels not in (None, path) and is_file(voxels) else (path,)


def are_copies(paths: Sequence[Path]) -> bool:
    """Say whether image files hold the same bytes, packed by gzip or not; empty ones do not."""
    try:
        with ExitStack() as stack:
            files = [stack.enter_context(nifti.unpacked(path)) for path in paths]
            length = 0
            while length <= 8 * MOST_VOXELS:
                pieces = {file.read(1 << 20) for file in files}
                if len(pieces) > 1:
                    return False
                (piece,) = pieces
                if not piece:
                    return length > 0
                length += len(piece)
    except DataError:
        pass
    return False


def read_image(path: Path | Source) -> tuple[npt.NDArray[np.float32], Grid]:
    """Read an image as it lies in the file, ``(Z, Y, X)``; values may still be NaN.

    Raises:
        DataError: The grid cannot be read (see ``read_grid``), or the voxels are incomplete.
    """
    if not isinstance(path, Path):
        array, grid = path.read()
        _check_size(grid, path.name)
        return array, grid
    array, grid = _read(path, np.float32)
    with np.errstate(over="ignore"):  # too large for float32 becomes inf, which callers refuse
        return array.astype(np.float32, copy=False), grid


def read_frames(path: Path, name: str) -> Array:
    """Read the planes of a DICOM file, ``(frames, Y, X)``, however they are compressed.

    Args:
        path: The DICOM file.
        name: The file's name in messages.

    Raises:
        DataError: The planes cannot be read.
    """
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(path))
    with _quiet():
        try:
            image = reader.Execute()
        except RuntimeError as error:
            raise DataError(
                f"{name}: its pixels cannot be read ({_reason(error)}). Copy or export it again"
            ) from None
    planes = read_back(image)
    return planes[None] if planes.ndim == 2 else planes


def read_labels(path: Path | Source) -> tuple[Array, Grid]:
    """Read a label image, ``(Z, Y, X)``, int16 where its values fit, else int32.

    Raises:
        DataError: The image cannot be read (see ``read_image``), or a value is no integer of 32
            bits.
    """
    array, grid = _read(path, np.float64) if isinstance(path, Path) else path.read()
    if array.dtype.kind == "f":
        rounded = np.round(array)
        with np.errstate(invalid="ignore"):  # inf - inf
            whole = np.isfinite(array) & (np.abs(array - rounded) <= LABEL_TOLERANCE)
        if not whole.all():
            if not np.isfinite(array).all():
                raise DataError(
                    f"{path}: holds NaN or infinity; labels must be integers. Replace them by 0, "
                    'or by the value of "ignore" where nobody has labelled'
                )
            raise DataError(
                f"{path}: holds the value {array[~whole][0]}; labels must be integers. "
                "Was it resampled with interpolation? Use nearest neighbour for labels"
            )
        array = rounded
    lowest, highest = array.min(), array.max()
    for kind in (np.int16, np.int32):
        if np.iinfo(kind).min <= lowest and highest <= np.iinfo(kind).max:
            return array.astype(kind), grid
    raise DataError(f"{path}: holds values from {lowest} to {highest}; labels have 32 bits at most")


def write_labels(path: Path, labels: Array, grid: Grid) -> None:
    """Write integers as uint8, uint16 or int16, the first that fits; whole or not at all.

    Args:
        path: Its ending, one of ``WRITTEN_ENDINGS``, chooses the format; a file there is replaced.
        labels: ``(Z, Y, X)``.
        grid: Where the voxels are.

    Raises:
        DataError: The ending is not one of ``WRITTEN_ENDINGS``, or the file cannot be written.
    """
    lowest, highest = int(labels.min()), int(labels.max())
    for kind in (np.uint8, np.uint16, np.int16):
        if np.iinfo(kind).min <= lowest and highest <= np.iinfo(kind).max:
            write_image(path, labels.astype(kind), grid)
            return
    raise DataError(f"{path}: labels from {lowest} to {highest} do not fit into 16 bits")


def write_image(path: Path, image: Array, grid: Grid) -> None:
    """Write an image in the array's own type, whole or not at all; see ``write_labels``."""
    assert image.shape == grid.shape, f"array {image.shape} on a grid of {grid.shape}"
    if not path.name.lower().endswith(WRITTEN_ENDINGS):
        raise DataError(
            f"{path}: cannot be written; its name must end in {_either(WRITTEN_ENDINGS)}"
        )
    with replacing(path) as temporary:
        try:
            if path.name.lower().endswith(nifti.ENDINGS):
                affine, place = affine_ras(grid), grid.place
                if place is not None and difference(_placed(place.affine, grid), grid) is not None:
                    place = None  # a grid that was made from that of a file
                nifti.write(temporary, image, affine, place)
                return
            sitk.WriteImage(to_sitk(image, grid), str(temporary), useCompression=True)
        except RuntimeError as error:
            raise DataError(f"{path}: cannot be written ({_reason(error)})") from None
        except OSError as error:
            raise DataError(f"{path}: cannot be written ({error.strerror})") from None


def to_sitk(image: Array, grid: Grid) -> Any:
    """Return an array ``(Z, Y, X)`` as a SimpleITK image."""
    converted = sitk.GetImageFromArray(image)
    converted.SetSpacing(grid.spacing[::-1])
    converted.SetOrigin(grid.origin)
    converted.SetDirection(grid.direction)
    return converted


def to_nibabel(array: Array, grid: Grid) -> Any:
    """Return an array ``(Z, Y, X)`` as a nibabel image, whose places are RAS."""
    return nib.Nifti1Image(np.ascontiguousarray(array.T), affine_ras(grid))


def read_back(image: Any) -> Array:
    """Return the array ``(Z, Y, X)`` of a SimpleITK image."""
    return sitk.GetArrayFromImage(image)


def difference(a: Grid, b: Grid) -> str | None:
    """Describe how two grids differ; None where they are equal within tolerance."""
    if a.shape != b.shape:
        return f"shape {a.shape} against {b.shape}"
    if not np.allclose(a.spacing, b.spacing, rtol=SPACING_TOLERANCE, atol=0):
        return f"spacing {_round(a.spacing)} mm against {_round(b.spacing)} mm"
    if not np.allclose(a.direction, b.direction, rtol=0, atol=DIRECTION_TOLERANCE):
        return f"direction {_round(a.direction)} against {_round(b.direction)}"
    if not np.allclose(a.origin, b.origin, rtol=0, atol=ORIGIN_TOLERANCE * min(a.spacing)):
        return f"origin {_round(a.origin)} mm against {_round(b.origin)} mm"
    return None


def is_on_qform(label: Grid, grid: Grid) -> bool:
    """Say whether a label lies on an image by the image's qform, although the sform counts.

    Tools on ITK write such labels. A label that was drawn on an image has the image's voxels,
    wherever a later registration puts these by the sform.
    """
    qform = grid.place.qform if grid.place is not None else None
    return qform is not None and difference(label, _placed(qform, grid)) is None


def doubts(grid: Grid) -> tuple[list[str], list[str]]:
    """Return notes and warnings about the place and size of an image by its header."""
    place = grid.place
    lengths = [n * step for n, step in zip(grid.shape, grid.spacing, strict=True)]
    notes: list[str] = []
    warnings: list[str] = []
    if (max(lengths) < SMALL_MM and max(grid.shape) >= MANY) or min(lengths) > LARGE_MM:
        warnings.append(
            f"it is {times(_round(tuple(lengths)))} mm large, which no image of a person is; "
            "does its header count in millimetres? Of an animal it may be right"
        )
    if grid.unstated:
        warnings.append(grid.unstated)
    if place is None:
        return notes, warnings
    if not place.is_stated:
        return notes, [
            *warnings,
            "its header does not say where it lies (sform and qform have code 0); nibabel's "
            "default was taken, where left and right may be exchanged",
        ]
    if place.unit:
        warnings.append(
            f"its header counts in {place.unit}; its numbers were taken as millimetres, as nibabel "
            "and FSL do. Look at its spacing"
        )
    if place.qform is not None:
        signs = [np.sign(np.linalg.det(np.array(each))) for each in (place.affine, place.qform)]
        if signs[0] != signs[1]:
            warnings.append(
                "its sform and its qform are mirror images of each other; the sform was taken. "
                "Look which of them has left and right as they are"
            )
        else:
            notes.append("its sform differs from its qform; the sform was taken")
    pixdim = dict(place.fields)["pixdim"][3:0:-1]
    if not np.allclose(grid.spacing, pixdim, rtol=0.02, atol=0):
        warnings.append(
            f"by its sform it has voxels of {times(_round(grid.spacing))} mm, by its pixdim of "
            f"{times(pixdim)} mm; the sform was taken"
        )
    return notes, warnings


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


def _read(path: Path, scaled: type[np.floating[Any]]) -> tuple[Array, Grid]:
    """Read voxels in the file's type, or in type ``scaled`` where a header scales them."""
    header, grid = _open(path)
    return nifti.read_voxels(header, scaled), grid


def _open(path: Path) -> tuple[nifti.Header, Grid]:
    """Read and check a header, before any voxel is read."""
    if not is_file(path):
        raise DataError(f"{path}: there is no such file")
    name = path.name.lower()
    if not name.endswith(FILE_ENDINGS):
        raise DataError(
            f"{path}: is no image we read; its name must end in {_either(FILE_ENDINGS)}"
        )
    formats = (freesurfer, text_headers, nifti)
    header = next(each for each in formats if name.endswith(each.ENDINGS)).read_header(path)
    grid = _grid_of(np.array(header.affine), header.shape, header.spacing, str(path))
    grid = replace(grid, place=header.place, unstated=header.unstated)
    _check_size(grid, str(path))
    return header, grid


def _check_size(grid: Grid, source: str) -> None:
    """Refuse images that no scanner makes, and that would take all memory and time.

    Raises:
        DataError: Voxels are too small, too large or too many, or the image is too long.
    """
    count = math.prod(grid.shape)
    if count > MOST_VOXELS:
        raise DataError(
            f"{source}: promises {count} voxels, but at most {MOST_VOXELS} are read. Its header is "
            "damaged, or it is too large; export it again"
        )
    size_text = f"{source}: has {times(grid.shape)} voxels of {times(_round(grid.spacing))} mm"
    if not all(SMALLEST_MM <= step <= LARGEST_MM for step in grid.spacing):
        raise DataError(
            f"{size_text}; from {SMALLEST_MM:g} to {LARGEST_MM:g} mm are believed. Does its header "
            "count in millimetres? Export it again"
        )
    longest = max(n * step for n, step in zip(grid.shape, grid.spacing, strict=True))
    if not SHORTEST_MM <= longest <= LONGEST_MM:
        raise DataError(
            f"{size_text}, and is {round(longest, 3):g} mm long; {SHORTEST_MM:g} to "
            f"{LONGEST_MM:g} mm are believed. Does its header count in millimetres? Export it "
            "again, with the right spacing"
        )


def _grid_of(affine: Array, shape: Any, spacing: Any, source: str) -> Grid:
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


def _placed(rows: tuple[tuple[float, ...], ...], grid: Grid) -> Grid:
    """Return the grid at the place of an affine from a NIfTI header."""
    affine = np.array(rows)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)[::-1]
    return _grid_of(affine, grid.shape, spacing, "header")


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
            f"{source}: has direction {_round(grid.direction)}; its axes must be at right angles. "
            "Resample it to a grid without shear"
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep ITK from warnings on stderr about faults that this module checks itself."""
    shown = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(shown)


def make_grid(shape: Any, spacing: Any, origin: Any, direction: Any) -> Grid:
    """Make a grid of plain numbers, so that it compares, prints and serialises."""
    z, y, x = map(int, shape)
    dz, dy, dx = map(float, spacing)
    # adding zero turns -0.0, which headers are full of, into 0.0
    ox, oy, oz = (float(value) + 0.0 for value in origin)
    a, b, c, d, e, f, g, h, i = (float(value) + 0.0 for value in np.ravel(direction))
    return Grid((z, y, x), (dz, dy, dx), (ox, oy, oz), (a, b, c, d, e, f, g, h, i))


def _round(values: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(round(value, 4) for value in values)


def _either(endings: tuple[str, ...]) -> str:
    return f"{', '.join(endings[:-1])} or {endings[-1]}"


def _reason(error: RuntimeError) -> str:
    """Return ITK's reason, without positions in its source code and memory."""
    lines = str(error).rpartition("ERROR: ")[2].strip().splitlines()
    return lines[0].partition("): ")[2] or lines[0] if lines else "no reason given"
