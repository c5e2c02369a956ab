"""Images as arrays with a grid: reading and writing of files.

Only this module and ``registration`` import SimpleITK; only this module, ``grid``, ``nifti`` and
``freesurfer`` import nibabel. Arrays are (Z, Y, X) on a grid of ``grid``.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import nibabel as nib
import numpy as np
import numpy.typing as npt

from mixmfl.core.errors import DataError
from mixmfl.core.files import is_file, replacing
from mixmfl.core.text import times
from mixmfl.data import freesurfer, nifti, text_headers
from mixmfl.data import itk as sitk
from mixmfl.data.grid import Grid, affine_ras, grid_difference, grid_of_affine, placed_by, to_show

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

# No scanner makes images beyond these: the file is damaged, or has other units. The largest number
# of voxels is that of a cube of 1024.
SMALLEST_MM, LARGEST_MM = 1e-3, 100.0  # between voxels
SHORTEST_MM, LONGEST_MM = 1.0, 3000.0  # of an image, along its longest axis
MOST_VOXELS = 1 << 30

LABEL_TOLERANCE = 1e-3  # how far a label may be from an integer: factors of scale are rounded
_MOST_VALUES_OF_LABELS = 100  # of lesions and their parts; an image has more
_VALUES_LOOKED_AT = 1_000_000
_PIECE = 1 << 16  # bytes that are read at once where the beginning of a file may tell enough


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
        grid = grid_of_affine(affine, voxels.shape[::-1], spacing[::-1], "affine")
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
    """Say whether images are of the same bytes, in header and voxels, packed by gzip or not.

    Empty ones are not.
    """
    parts = [files_of(path) for path in paths]
    return len({len(each) for each in parts}) == 1 and all(
        map(_are_alike, zip(*parts, strict=True))
    )


def _are_alike(paths: Sequence[Path]) -> bool:
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


def first_values(path: Path, count: int) -> tuple[Array, tuple[int, int, int]]:
    """Return the first so many numbers that differ from the very first one, and the shape.

    They are in the file's order and type; a negative slope of the header is applied. What lies
    behind them is not read.

    Raises:
        DataError: The file is damaged, or ends too early.
    """
    header, _ = _open(path)
    left = math.prod(header.shape) * header.kind.itemsize
    found: list[Array] = []
    background, rest = None, b""
    with nifti.unpacked(header.voxels, header.start, header.deflated) as file:
        while left and sum(map(len, found)) < count:
            piece = file.read(min(left, _PIECE))
            if not piece:
                raise nifti.damaged(path, "it ends too early")
            left -= len(piece)
            piece = rest + piece
            whole = len(piece) - len(piece) % header.kind.itemsize
            rest = piece[whole:]
            values = np.frombuffer(piece[:whole], header.kind).astype(np.float64)
            if background is None and len(values):
                background = values[0]
            found.append(values[values != background])
    values = np.concatenate([*found, np.empty(0)])[:count]
    return values * math.copysign(1, header.slope), header.shape


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


def may_be_labels(path: Path) -> bool:
    """Say whether a file may hold labels: whole numbers of few values. What is damaged may, too."""
    try:
        array, _ = _read(path, np.float64)
    except DataError:
        return True
    values = array.ravel()[:: max(1, array.size // _VALUES_LOOKED_AT)]
    with np.errstate(invalid="ignore"):  # inf - inf
        rounded = np.round(values)
        whole = np.abs(values - rounded) <= LABEL_TOLERANCE
    return bool(whole.all()) and len(np.unique(rounded)) <= _MOST_VALUES_OF_LABELS


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
                if (
                    place is not None
                    and grid_difference(placed_by(place.affine, grid), grid) is not None
                ):
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
    grid = grid_of_affine(np.array(header.affine), header.shape, header.spacing, str(path))
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
    size_text = f"{source}: has {times(grid.shape)} voxels of {times(to_show(grid.spacing))} mm"
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


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep ITK from warnings on stderr about faults that this module checks itself."""
    shown = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(shown)


def _either(endings: tuple[str, ...]) -> str:
    return f"{', '.join(endings[:-1])} or {endings[-1]}"


def _reason(error: RuntimeError) -> str:
    """Return ITK's reason, without positions in its source code and memory."""
    lines = str(error).rpartition("ERROR: ")[2].strip().splitlines()
    return lines[0].partition("): ")[2] or lines[0] if lines else "no reason given"
