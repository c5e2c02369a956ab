"""Images as arrays with a grid: reading, writing, and one orientation for all.

The only module that sees nibabel and isal, and with ``grids`` that sees SimpleITK. Arrays run
(Z, Y, X); their physical place is in millimetres, LPS: x grows to the patient's left, y to the
back, z to the head.
"""

import hashlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import nibabel as nib
import numpy as np
import numpy.typing as npt
import SimpleITK as sitk  # noqa: N813 - its own documentation's abbreviation
from isal import igzip, isal_zlib
from nibabel.spatialimages import HeaderDataError

from mixmfl.errors import DataError
from mixmfl.files import replacing

Array = npt.NDArray[Any]

FILE_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")
WRITTEN_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha")  # those that are one file

# by the last ending; named, because ITK would try its readers of all other formats, too
_READERS = {
    ".gz": "NiftiImageIO", ".nii": "NiftiImageIO", ".nrrd": "NrrdImageIO", ".nhdr": "NrrdImageIO",
    ".mha": "MetaImageIO", ".mhd": "MetaImageIO",
}  # fmt: skip

# Two grids are one if they agree within these. Headers store 32-bit numbers, and tools round.
SPACING_TOLERANCE = 1e-3  # relative
DIRECTION_TOLERANCE = 1e-3  # of each cosine
ORIGIN_TOLERANCE = 1e-2  # of the smallest voxel side

# No image compresses better than this (deflate's limit is 1032), so a header that promises more
# voxels is damaged, and we need not ask for the memory to find out.
LARGEST_COMPRESSION = 1100

# Behind the voxels a file may have some padding. A small file that unpacks to much more than its
# header says would fill the memory.
MOST_BEHIND = 1 << 20


@dataclass(frozen=True)
class Grid:
    """Where the voxels of an image are.

    Attributes:
        shape: Voxels, (Z, Y, X).
        spacing: Millimetres between voxels, (Z, Y, X).
        origin: Centre of the first voxel, (x, y, z) in mm, LPS.
        direction: 3x3 matrix row by row; its columns are the directions, LPS, in which the X, Y
            and Z axes of the array run.
    """

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    origin: tuple[float, float, float]
    direction: tuple[float, float, float, float, float, float, float, float, float]


class Source(Protocol):
    """An image that is not one file: a DICOM series, or an array in memory."""

    def read(self) -> tuple[npt.NDArray[np.float32], Grid]:
        """Return the voxels ``(Z, Y, X)`` and their grid; raise ``DataError`` where it cannot."""

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
        affine: 4x4, from an index to its place in mm, RAS.
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
            DataError: It is not three-dimensional, or the affine is no grid's.
        """
        voxels, affine = np.asarray(self.voxels), np.asarray(self.affine, dtype=float)
        if voxels.ndim != 3 or voxels.dtype.kind not in "biuf":
            raise DataError(
                f"array of {voxels.dtype} with shape {voxels.shape}: numbers (X, Y, Z) are needed"
            )
        if affine.shape != (4, 4) or not np.isfinite(affine).all():
            raise DataError(f"affine with shape {affine.shape}: a finite 4x4 matrix is needed")
        lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
        spacing = np.linalg.norm(lps[:3, :3], axis=0)
        if not (spacing > 0).all():
            raise DataError(f"affine has spacing {tuple(spacing)} mm; it must be positive")
        grid = make_grid(voxels.shape[::-1], spacing[::-1], lps[:3, 3], lps[:3, :3] / spacing)
        check_directions(grid, "affine")
        with np.errstate(over="ignore"):
            return np.ascontiguousarray(voxels.T, dtype=np.float32), grid

    def sha256(self) -> str:
        """Return a digest of the content."""
        content = np.ascontiguousarray(self.voxels).tobytes() + np.asarray(self.affine).tobytes()
        return hashlib.sha256(content).hexdigest()


def read_grid(path: Path) -> Grid:
    """Read the grid of an image from its header alone.

    Raises:
        DataError: The file is missing, unreadable, or no three-dimensional scalar image.
    """
    return _open(path)[1]


def read_image(path: Path | Source) -> tuple[npt.NDArray[np.float32], Grid]:
    """Read an image as it lies in the file, ``(Z, Y, X)``; values may still be NaN.

    Raises:
        DataError: As ``read_grid``, or the voxels are incomplete.
    """
    if not isinstance(path, Path):
        return path.read()
    array, grid = _read(path)
    with np.errstate(over="ignore"):  # too large for float32 becomes inf, which callers refuse
        return array.astype(np.float32), grid


def read_frames(path: Path, name: str) -> Array:
    """Read the planes of a DICOM file, ``(frames, Y, X)``, however they are compressed.

    Args:
        path: Of the file.
        name: What messages call it.

    Raises:
        DataError: They cannot be read.
    """
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(path))
    with _quiet():
        try:
            found = reader.Execute()
        except RuntimeError as error:
            raise DataError(
                f"{name}: its pixels cannot be read ({_reason(error)}). Copy or export it again"
            ) from None
    planes = read_back(found)
    return planes[None] if planes.ndim == 2 else planes


def read_labels(path: Path) -> tuple[Array, Grid]:
    """Read a label image, ``(Z, Y, X)``, int16 where its values fit, else int32.

    Raises:
        DataError: As ``read_image``, or a value is no integer of 32 bits.
    """
    array, grid = _read(path)
    if array.dtype.kind == "f":
        whole = np.isfinite(array) & (array == np.round(array))
        if not whole.all():
            raise DataError(
                f"{path}: holds the value {array[~whole][0]}; labels must be integers. "
                "Was it resampled with interpolation? Use nearest neighbour for labels"
            )
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
        DataError: The ending is not one of ours, or the file cannot be written.
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
            sitk.WriteImage(
                to_sitk(image, grid), str(temporary), useCompression=path.suffix != ".nii"
            )
        except RuntimeError as error:
            raise DataError(f"{path}: cannot be written ({_reason(error)})") from None


def to_sitk(image: Array, grid: Grid) -> Any:
    """Return SimpleITK's form of an array ``(Z, Y, X)``."""
    made = sitk.GetImageFromArray(image)
    made.SetSpacing(grid.spacing[::-1])
    made.SetOrigin(grid.origin)
    made.SetDirection(grid.direction)
    return made


def to_nibabel(array: Array, grid: Grid) -> Any:
    """Return nibabel's form of an array ``(Z, Y, X)``, whose places are RAS."""
    matrix = np.eye(4)
    matrix[:3, :3] = np.reshape(grid.direction, (3, 3)) * np.array(grid.spacing[::-1])
    matrix[:3, 3] = grid.origin
    return nib.Nifti1Image(np.ascontiguousarray(array.T), np.diag([-1.0, -1.0, 1.0, 1.0]) @ matrix)


def read_back(image: Any) -> Array:
    """Return the array ``(Z, Y, X)`` of SimpleITK's form."""
    return sitk.GetArrayFromImage(image)


def difference(a: Grid, b: Grid) -> str | None:
    """Say in words how two grids differ; None where they are one within tolerance."""
    if a.shape != b.shape:
        return f"shape {a.shape} against {b.shape}"
    if not np.allclose(a.spacing, b.spacing, rtol=SPACING_TOLERANCE, atol=0):
        return f"spacing {_round(a.spacing)} mm against {_round(b.spacing)} mm"
    if not np.allclose(a.direction, b.direction, rtol=0, atol=DIRECTION_TOLERANCE):
        return f"direction {_round(a.direction)} against {_round(b.direction)}"
    if not np.allclose(a.origin, b.origin, rtol=0, atol=ORIGIN_TOLERANCE * min(a.spacing)):
        return f"origin {_round(a.origin)} mm against {_round(b.origin)} mm"
    return None


def to_canonical(array: Array, grid: Grid) -> tuple[Array, Grid]:
    """Turn an array so that Z runs to the head, Y to the back, X to the patient's left.

    Axes are swapped and flipped, nothing is interpolated: on an oblique grid each axis is the
    nearest one, and the returned grid stays oblique.

    Args:
        array: ``(Z, Y, X)`` as read.
        grid: The array's grid.

    Returns:
        The turned array, contiguous, and its grid: every voxel is where it was.
    """
    source, flipped = _canonical_axes(grid)
    turned = np.flip(array.transpose(source), flipped)

    # the same in file order (x, y, z), which origin and direction have
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
    return np.ascontiguousarray(turned), make_grid(
        turned.shape, [grid.spacing[taken] for taken in source], origin, columns
    )


def from_canonical(array: Array, grid: Grid) -> Array:
    """Turn a canonical array back; the exact inverse of ``to_canonical``.

    Args:
        array: ``(Z, Y, X)`` in canonical orientation.
        grid: The grid of the file, onto which the array goes back.
    """
    source, flipped = _canonical_axes(grid)
    return np.ascontiguousarray(np.flip(array, flipped).transpose(np.argsort(source)))


def _canonical_axes(grid: Grid) -> tuple[tuple[int, int, int], tuple[int, ...]]:
    """Return for each canonical axis the array axis it is taken from, and which to flip then."""
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


def _read(path: Path) -> tuple[Array, Grid]:
    reader, grid = _open(path)
    on_disk = path.stat().st_size
    detached = path.suffix.lower() in (".nhdr", ".mhd")
    if not detached and math.prod(grid.shape) > on_disk * LARGEST_COMPRESSION:
        raise DataError(
            f"{path}: promises {math.prod(grid.shape)} voxels, but has {on_disk} bytes; it is "
            "incomplete or damaged. Copy or export it again"
        )
    header = _nifti_header(path)
    if header is not None:
        return _read_nifti(path, header, grid), grid
    # a fourth axis of one entry is taken off by the reader itself
    reader.SetExtractSize([*grid.shape[::-1], *[0] * (reader.GetDimension() - 3)])
    with _quiet():
        try:
            return sitk.GetArrayFromImage(reader.Execute()), grid
        except RuntimeError as error:
            raise DataError(
                f"{path}: its voxels cannot be read; the file is incomplete or damaged "
                f"({_reason(error)}). Copy or export it again"
            ) from None


def _read_nifti(path: Path, header: Any, grid: Grid) -> Array:
    """Read the voxels of a NIfTI file, ``(Z, Y, X)``.

    Not with ITK: its NIfTI reader takes NaN for 0 and fills what a cut file lacks with zeros,
    and says nothing. A mask predicted from half a brain looks fine where the brain is.
    """
    try:
        slope, intercept = header.get_slope_inter()
        start, kind = header.get_data_offset() or header.single_vox_offset, header.get_data_dtype()
        needed = start + math.prod(grid.shape) * kind.itemsize
        with _unpacked(path) as file:
            content = file.read(needed)
            rest = len(file.read(MOST_BEHIND + 1))  # to the end, where gzip has its checksum
    except HeaderDataError as error:
        raise _damaged(path, error) from None
    if rest > MOST_BEHIND:
        raise DataError(
            f"{path}: goes on for more than {MOST_BEHIND} bytes behind its last voxel; the header "
            "is not that of the voxels. Copy or export it again"
        )
    if len(content) < needed:
        raise DataError(
            f"{path}: is incomplete ({len(content)} bytes found, {needed} needed). Copy or export "
            "it again"
        )
    # NIfTI's x runs fastest, as the last axis does in our arrays
    array = np.frombuffer(content, kind, math.prod(grid.shape), start).reshape(grid.shape)
    if slope in (None, 1.0) and not intercept:
        return array
    return array * np.float64(slope) + np.float64(intercept)


def _open(path: Path) -> tuple[Any, Grid]:
    """Read and check a header; the reader returned has not touched the voxels."""
    if not path.is_file():
        raise DataError(f"{path}: there is no such file")
    if not path.name.lower().endswith(FILE_ENDINGS):
        raise DataError(
            f"{path}: is no image we read; its name must end in {_either(FILE_ENDINGS)}"
        )
    _check_nifti_header(path)
    reader = sitk.ImageFileReader()
    reader.SetImageIO(_READERS[path.suffix.lower()])
    reader.SetFileName(str(path))
    with _quiet():
        try:
            reader.ReadImageInformation()
        except RuntimeError as error:
            raise DataError(
                f"{path}: cannot be read as an image ({_reason(error)}). "
                "Needed is a whole NIfTI-1, NRRD or MetaImage file; copy or export it again"
            ) from None
    size, dimension = reader.GetSize(), reader.GetDimension()
    if dimension < 3 or any(length != 1 for length in size[3:]):
        raise DataError(
            f"{path}: is {dimension}-dimensional, {' x '.join(map(str, size))} voxels; "
            "needed is one three-dimensional volume per file"
        )
    if reader.GetNumberOfComponents() != 1:
        raise DataError(
            f"{path}: has {reader.GetNumberOfComponents()} numbers per voxel (colour, vector or "
            "complex); needed is one"
        )
    direction = np.reshape(reader.GetDirection(), (dimension, dimension))[:3, :3]
    grid = make_grid(size[2::-1], reader.GetSpacing()[2::-1], reader.GetOrigin()[:3], direction)
    if not all(math.isfinite(step) and step > 0 for step in grid.spacing):
        raise DataError(f"{path}: has spacing {grid.spacing} mm; it must be positive and finite")
    check_directions(grid, str(path))
    return reader, grid


def check_directions(grid: Grid, source: str) -> None:
    """Check that a grid's axes are at right angles.

    Raises:
        DataError: They are not.
    """
    direction = np.reshape(grid.direction, (3, 3))
    if not np.allclose(direction.T @ direction, np.eye(3), atol=DIRECTION_TOLERANCE):
        raise DataError(
            f"{source}: has direction {_round(grid.direction)}; its axes must be at right angles. "
            "Resample it to a grid without shear"
        )


def _nifti_header(path: Path) -> Any:
    """Return nibabel's header as the file has it, unrepaired; None where it is no NIfTI-1."""
    if not path.name.lower().endswith((".nii", ".nii.gz")):
        return None
    with _unpacked(path) as file:
        start = file.read(nib.Nifti1Header.sizeof_hdr)
    if not nib.Nifti1Header.may_contain_header(start):
        return None
    return nib.Nifti1Header(start, check=False)


def _check_nifti_header(path: Path) -> None:
    """Refuse a broken spacing or place, which ITK's NIfTI reader silently takes for 1 or 0 mm."""
    header = _nifti_header(path)
    if header is None:
        return
    spacing = tuple(header["pixdim"][3:0:-1].tolist())
    if header["dim"][0] >= 3 and not all(math.isfinite(step) and step > 0 for step in spacing):
        raise DataError(f"{path}: has spacing {spacing} mm; it must be positive and finite")
    for code, prefixes in (("sform_code", ("srow_",)), ("qform_code", ("quatern_", "qoffset_"))):
        placed = [header[name] for name in header if name.startswith(prefixes)]
        if header[code] > 0 and not all(np.isfinite(value).all() for value in placed):
            raise DataError(f"{path}: its {code[:5]} is not finite; export it again")


@contextmanager
def _unpacked(path: Path) -> Iterator[Any]:
    """Open a file for reading, through gzip where its first bytes say so.

    Raises:
        DataError: It may not be read; or what is read of it is damaged or ends too early.
    """
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            if not packed:
                yield raw
                return
            with igzip.IGzipFile(fileobj=raw) as file:  # type: ignore[no-untyped-call]
                yield file
    except PermissionError as error:
        raise DataError(f"{path}: may not be read ({error.strerror}). Ask who owns it") from None
    except (OSError, EOFError, isal_zlib.error) as error:  # type: ignore[misc] # stub: an instance
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(f"{path}: is incomplete or damaged ({error}). Copy or export it again")


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep ITK from warning on stderr about what we check ourselves."""
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
    """Return what ITK said, without the places in its source and in memory."""
    said = str(error).rpartition("ERROR: ")[2].strip().splitlines()
    return said[0].partition("): ")[2] or said[0] if said else "no reason given"
