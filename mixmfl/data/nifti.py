"""Reading and writing of NIfTI files; headers are checked against the file.

Places are nibabel's: the sform if its code is above 0, else the qform if its code is above 0, else
voxels of ``pixdim`` around the middle. An image may be one file or a pair, ``.hdr`` and ``.img``.
Only this module, ``freesurfer`` and ``image`` import nibabel.
"""

import contextlib
import io
import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from isal import igzip, isal_zlib
from nibabel.spatialimages import HeaderDataError

from mixmfl.core.errors import DataError
from mixmfl.core.files import only_files
from mixmfl.core.process_memory import available_bytes

Array = npt.NDArray[Any]

ENDINGS = (".nii.gz", ".nii", ".hdr", ".hdr.gz")
PAIRS = (".hdr", ".hdr.gz")
"""Endings of headers whose voxels lie in another file, which ends in one of ``VOXELS``."""

VOXELS = (".img", ".img.gz")

# No image compresses better than this (deflate's limit is 1032), so a header that promises more
# voxels is damaged, which is known before memory is allocated.
LARGEST_COMPRESSION = 1100

_PIECE = 1 << 20  # bytes that are read at a time
_MOST_BEHIND = 1 << 24  # bytes behind the voxels, where a format has anything there
_KNOWN_CODES = range(6)  # of sform and qform, by the standard
# number types by their code in the header, with their name in messages
_REFUSED = {
    1: "single bits", 32: "complex numbers", 128: "colours", 1536: "numbers of 128 bits",
    1792: "complex numbers", 2048: "complex numbers", 2304: "colours",
}  # fmt: skip
# what lies in an image's place instead, by its first bytes
_NO_IMAGES = {
    b"\x1f\x8b": "it is packed by gzip twice", b"PK\x03\x04": "it is a zip archive",
    b"version https://git-lfs": "it is a pointer of Git LFS to the file, which 'git lfs pull' "
    "fetches", b"<": "it is a page or XML, as a failed download leaves it",
}  # fmt: skip
_OTHER_UNITS = {1: "metres", 3: "micrometres"}  # by the lowest three bits of xyzt_units
_PLACES = ("qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x",
           "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z")  # fmt: skip


@dataclass(frozen=True)
class Place:
    """The place of voxels as a NIfTI header writes it, so that masks can copy it.

    Attributes:
        fields: ``pixdim[:4]``, and the fields of qform and sform, by name.
        affine: nibabel's 4x4 matrix from an index to mm, RAS; row by row.
        qform: The matrix that the qform gives, if it has a code and puts some voxel elsewhere by
            more than a hundredth of its side; else None.
        unit: The unit of length that the header states, if it is another than millimetres; else "".
    """

    fields: tuple[tuple[str, tuple[float, ...]], ...]
    affine: tuple[tuple[float, ...], ...]
    qform: tuple[tuple[float, ...], ...] | None
    unit: str = ""

    @property
    def is_stated(self) -> bool:
        """Say whether the header places its voxels at all."""
        return any(value > 0 for name, (value, *_) in self.fields if name.endswith("_code"))


@dataclass(frozen=True)
class Header:
    """The checked content of a NIfTI header.

    Attributes:
        shape: Number of voxels, (Z, Y, X).
        spacing: Millimetres between voxels, (Z, Y, X).
        affine: 4x4 matrix from an index to mm, RAS; row by row.
        place: The place of the voxels, for masks to copy; None where the format is not NIfTI.
        voxels: The file that holds the numbers.
        kind: The type of the numbers in the file.
        start: The byte at which the numbers begin.
        slope: The factor by which the numbers are multiplied.
        intercept: The number that is added after that.
        goes_on: Whether the format has other data behind the numbers.
        deflated: Whether the numbers are a deflated stream, which begins at ``start``; None: they
            are, with the header, where the file begins as gzip does.
        unstated: What the header leaves open about the place, in words; empty: nothing.
    """

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    affine: tuple[tuple[float, ...], ...]
    place: Place | None
    voxels: Path
    kind: np.dtype[Any]
    start: int
    slope: float = 1.0
    intercept: float = 0.0
    goes_on: bool = False
    deflated: bool | None = None
    unstated: str = ""


def read_header(path: Path) -> Header:
    """Read and check the header of a NIfTI-1 or NIfTI-2 file, or of a pair of files.

    Raises:
        DataError: The file is unreadable, no NIfTI file, or its header cannot be that of a
            three-dimensional image with one number per voxel; or the file of its voxels is missing.
    """
    header, voxels = _raw_header(path)
    shape = _shape(path, header)
    kind = _kind(path, header)
    try:
        slope, intercept = header.get_slope_inter()
    except HeaderDataError as error:
        raise damaged(path, error) from None
    first = header.single_vox_offset if voxels == path else 0
    # 0 is no offset that the standard knows in one file; the voxels begin where it has them begin
    # at the earliest. Those of ITK, at 348, and of nibabel, at 0, would not fill the file exactly,
    # which ``read_voxels`` checks
    start = float(header["vox_offset"]) or float(first)
    if not math.isfinite(start) or start < first or start != int(start):
        raise damaged(path, f"its vox_offset is {start:g}")
    spacing, place = _place(path, header, shape)
    return Header(
        shape,
        spacing,
        place.affine,
        place,
        voxels,
        kind,
        int(start),
        1.0 if slope is None else slope,
        intercept or 0.0,
    )


def voxels_of(path: Path) -> Path | None:
    """Return the file with the voxels of a pair's header, which has its name; None without one."""
    stem = path.name[: path.name.lower().index(".hdr")]
    beside = (each for each in sorted(path.parent.iterdir()) if each.name.startswith(stem))
    return next((e for e in beside if e.name[len(stem) :].lower() in VOXELS), None)


def read_voxels(header: Header, scaled: type[np.floating[Any]]) -> Array:
    """Read the voxels, ``(Z, Y, X)``, in the file's type, or in type ``scaled`` if they are scaled.

    ITK is not used: its NIfTI reader silently takes NaN for 0 and fills the missing part of a cut
    file with zeros. A mask predicted from half a brain looks fine where the brain is.

    Raises:
        DataError: The file has fewer or more voxels than the header says, or they do not fit into
            memory.
    """
    path, count = header.voxels, math.prod(header.shape)
    length = count * header.kind.itemsize
    packed, on_disk = header.deflated, path.stat().st_size
    packed = _is_packed(path) if packed is None else packed
    if header.start + length > on_disk * (LARGEST_COMPRESSION if packed else 1):
        raise _too_few(path, header, on_disk, packed)
    is_scaled = (header.slope, header.intercept) != (1.0, 0.0)
    check_memory(path, length + (count * np.dtype(scaled).itemsize if is_scaled else 0))
    content = np.empty(length, dtype=np.uint8)
    with unpacked(path, header.start, header.deflated) as file:
        bytes_read, place = header.start, memoryview(content.data)
        while piece := file.readinto(place[bytes_read - header.start :][:_PIECE]):
            bytes_read += piece
        if bytes_read < header.start + length:
            raise _incomplete(path, header, bytes_read)
        behind = 0
        while behind <= _MOST_BEHIND and (piece := len(file.read(_PIECE))):  # gzip's sum is last
            behind += piece
        if behind > (_MOST_BEHIND if header.goes_on else 0):
            raise DataError(
                f"{path}: goes on behind its last voxel (byte {header.start + length}); size, "
                "number type or offset in its header are not those of its voxels. Copy or export "
                "it again"
            )
    # NIfTI's x runs fastest, as the last axis does in our arrays
    array = content.view(header.kind).reshape(header.shape)
    if not is_scaled:
        return array
    scaled_array = np.empty(header.shape, dtype=scaled)
    slope, intercept = np.float64(header.slope), np.float64(header.intercept)
    with np.errstate(over="ignore"):  # too large for float32 becomes inf, which callers refuse
        for plane, values in zip(scaled_array, array, strict=True):
            plane[...] = values * slope + intercept
    return scaled_array


def write(path: Path, voxels: Array, affine: Array, place: Place | None) -> None:
    """Write a NIfTI-1 file, packed where its name ends in ``.gz``.

    Args:
        path: The file, which is replaced if it exists.
        voxels: Numbers ``(Z, Y, X)``.
        affine: 4x4 matrix from an index to mm, RAS.
        place: The place of the image that the voxels lie on, which is copied; None writes
            ``affine``.

    Raises:
        DataError: NIfTI has no such size or number type.
        OSError: The file cannot be written.
    """
    header = nib.Nifti1Header()
    try:
        header.set_data_dtype(voxels.dtype)
        header.set_data_shape(voxels.shape[::-1])
    except HeaderDataError as error:
        raise DataError(f"{path}: cannot be written ({error})") from None
    header.set_xyzt_units("mm")
    if place is None:
        header.set_zooms(np.linalg.norm(affine[:3, :3], axis=0))
        header.set_qform(affine, 1)
        header.set_sform(affine, 1)
    else:
        for name, values in place.fields:
            if name == "pixdim":
                header["pixdim"][:4] = values
            else:
                header[name] = values if len(values) > 1 else values[0]
    header.set_data_offset(header.single_vox_offset)
    header["magic"] = header.single_magic
    content = np.ascontiguousarray(voxels, dtype=header.get_data_dtype())
    with path.open("wb") as raw:
        if path.suffix.lower() != ".gz":
            _write_to(raw, header, content)
            return
        # neither name nor time, so that equal images are equal files
        with igzip.IGzipFile(filename="", mode="wb", fileobj=raw, mtime=0) as file:  # type: ignore[no-untyped-call]
            _write_to(file, header, content)


def _write_to(file: Any, header: Any, content: Array) -> None:
    file.write(header.binaryblock + bytes(header.single_vox_offset - header.sizeof_hdr))
    file.write(content.data.cast("B"))


def check_memory(path: Path, needed: int) -> None:
    """Refuse an image before it is read if memory does not hold its voxels.

    Raises:
        DataError: Less memory is available than is needed.
    """
    available = available_bytes()
    if needed > available:  # Linux would give it, and end this process when it is used
        raise DataError(
            f"{path}: its voxels take {needed / 1e9:.1f} GB; {available / 1e9:.1f} GB of "
            "memory are free. Use a machine with more memory, or export a smaller image"
        )


def damaged(path: Path, reason: object) -> DataError:
    """Return the error for a damaged file."""
    return DataError(f"{path}: is incomplete or damaged ({reason}). Copy or export it again")


def not_an_image(path: Path, reason: object) -> DataError:
    """Return the error for a file that is no image."""
    return DataError(
        f"{path}: cannot be read as an image ({reason}). "
        "Needed is a whole NIfTI, NRRD or MetaImage file; copy or export it again"
    )


def _raw_header(path: Path) -> tuple[Any, Path]:
    """Return nibabel's header as the file has it, unrepaired, and the file of the voxels."""
    is_pair = path.name.lower().endswith(PAIRS)
    with unpacked(path) as file:
        start = file.read(nib.Nifti2Header.sizeof_hdr)
    for kind in (nib.Nifti1Header, nib.Nifti2Header):
        if len(start) < kind.sizeof_hdr or not kind.may_contain_header(start):
            continue
        header = kind(start[: kind.sizeof_hdr], check=False)
        if int(header["sizeof_hdr"]) != kind.sizeof_hdr:
            raise damaged(path, f"its sizeof_hdr is {header['sizeof_hdr']}")
        if header["magic"].item() != (kind.pair_magic if is_pair else kind.single_magic):
            raise not_an_image(
                path,
                "it holds voxels, too, and is no header of a pair; its name should end in .nii"
                if is_pair
                else "it is the header of a pair of files; its name should end in .hdr",
            )
        if not is_pair:
            return header, path
        voxels = voxels_of(path)
        if voxels is None:
            raise DataError(
                f"{path}: is the header of a pair of files, and no file .img with its voxels lies "
                "beside it. Copy that, too"
            )
        return header, voxels
    if is_pair and nib.AnalyzeHeader.may_contain_header(start):
        raise DataError(
            f"{path}: is of Analyze 7.5, which does not say where left and right are. Convert it "
            "to NIfTI with the program that wrote it"
        )
    known = (what for first, what in _NO_IMAGES.items() if start.lstrip().startswith(first))
    raise not_an_image(path, next(known, "it has no NIfTI header") if start else "it is empty")


def _shape(path: Path, header: Any) -> tuple[int, int, int]:
    number, *sizes = (int(value) for value in header["dim"])
    if not 1 <= number <= 7:
        raise not_an_image(path, f"its header has {number} dimensions")
    sizes = sizes[:number]
    if min(sizes) < 1:
        raise not_an_image(path, f"its header has {' x '.join(map(str, sizes))} voxels")
    return shape_of_volume(path, sizes)


def shape_of_volume(path: Path, sizes: Sequence[int]) -> tuple[int, int, int]:
    """Return the shape (Z, Y, X) of a file's sizes along X, Y, Z and axes of one entry."""
    if len(sizes) < 3 or any(size != 1 for size in sizes[3:]):
        raise DataError(
            f"{path}: is {len(sizes)}-dimensional, {' x '.join(map(str, sizes))} voxels; "
            "needed is one three-dimensional volume per file"
        )
    x, y, z = sizes[:3]
    return z, y, x


def _kind(path: Path, header: Any) -> "np.dtype[Any]":
    code, bits = int(header["datatype"]), int(header["bitpix"])
    if code in _REFUSED:
        raise DataError(
            f"{path}: holds {_REFUSED[code]}, or several numbers per voxel (colour, vector or "
            "complex); needed is one"
        )
    try:
        kind: np.dtype[Any] = header.get_data_dtype()
    except (HeaderDataError, KeyError):
        raise not_an_image(path, f"NIfTI has no number type {code}") from None
    if kind.kind not in "iuf" or kind.itemsize == 0:
        raise not_an_image(path, f"NIfTI has no number type {code}")
    if bits != 8 * kind.itemsize:
        raise damaged(path, f"its voxels have {bits} bits by bitpix, and are {kind} by datatype")
    return kind


def _place(
    path: Path, header: Any, shape: tuple[int, int, int]
) -> tuple[tuple[float, float, float], Place]:
    """Return the spacing (Z, Y, X) in mm and the place; the module describes the rules."""
    pixdim = tuple(header["pixdim"][3:0:-1].tolist())
    if not all(math.isfinite(step) and step > 0 for step in pixdim):
        raise DataError(f"{path}: has spacing {pixdim} mm; it must be positive and finite")
    for name, prefixes in (("sform", ("srow_",)), ("qform", ("quatern_", "qoffset_"))):
        code = int(header[f"{name}_code"])
        if code not in _KNOWN_CODES:
            raise damaged(path, f"its {name}_code is {code}; 0 to 5 are known")
        values = [header[field] for field in _PLACES if field.startswith(prefixes)]
        if code and not all(np.isfinite(value).all() for value in values):
            raise DataError(f"{path}: its {name} is not finite; export it again")
    fields = [("pixdim", tuple(header["pixdim"][:4].astype(float).tolist()))]
    fields += [(n, tuple(np.ravel(header[n]).astype(float).tolist())) for n in _PLACES]
    affine = _affine(path, header)
    other = None
    if header["sform_code"] > 0 and header["qform_code"] > 0:
        with contextlib.suppress(DataError):  # a qform that nobody needs
            qform = _qform(path, header)
            if np.abs((affine - qform) @ _corners(shape)).max() > 0.01 * min(pixdim):
                other = tuple(map(tuple, qform.tolist()))
    unit = _OTHER_UNITS.get(int(header["xyzt_units"]) % 8, "")
    # pixdim is less rounded than the length of a turned axis, and says the same nearly always
    spacing = np.linalg.norm(affine[:3, :3], axis=0)[::-1]
    spacing = np.where(np.isclose(spacing, pixdim, rtol=1e-5, atol=0), pixdim, spacing)
    z, y, x = spacing.tolist()
    if not all(math.isfinite(step) and step > 0 for step in (z, y, x)):
        raise DataError(f"{path}: has spacing {(z, y, x)} mm; it must be positive and finite")
    return (z, y, x), Place(tuple(fields), tuple(map(tuple, affine.tolist())), other, unit)


def _affine(path: Path, header: Any) -> Array:
    if header["sform_code"] > 0:
        return np.asarray(header.get_sform(), dtype=float)
    if header["qform_code"] > 0:
        return _qform(path, header)
    return np.asarray(header.get_base_affine(), dtype=float)


def _qform(path: Path, header: Any) -> Array:
    if header["pixdim"][0] not in (-1, 0, 1):
        raise damaged(path, f"its pixdim[0] is {header['pixdim'][0]:g}; 1 or -1 is needed")
    usual = header.copy()
    if usual["pixdim"][0] == 0:  # by the standard: as 1
        usual["pixdim"][0] = 1
    try:
        return np.asarray(usual.get_qform(), dtype=float)
    except (HeaderDataError, ValueError, TypeError, np.linalg.LinAlgError) as error:
        raise damaged(path, f"its qform is no rotation: {error}") from None


def _corners(shape: tuple[int, int, int]) -> Array:
    """Return the indices (x, y, z, 1) of an image's corners, ``(4, 8)``."""
    ends = [(0, n - 1) for n in shape[::-1]]
    return np.array([*(grid.ravel() for grid in np.meshgrid(*ends)), [1] * 8])


def _too_few(path: Path, header: Header, on_disk: int, packed: bool) -> DataError:
    count = math.prod(header.shape)
    if packed or count > on_disk * LARGEST_COMPRESSION:
        return DataError(
            f"{path}: promises {count} voxels, but has {on_disk} bytes; it is incomplete or "
            "damaged. Copy or export it again"
        )
    return _incomplete(path, header, on_disk)


def _incomplete(path: Path, header: Header, bytes_read: int) -> DataError:
    needed = header.start + math.prod(header.shape) * header.kind.itemsize
    return DataError(
        f"{path}: is incomplete ({bytes_read} bytes found, {needed} needed). "
        "Copy or export it again"
    )


def _is_packed(path: Path) -> bool:
    try:
        with open(path, "rb", opener=only_files) as raw:
            return raw.read(2) == b"\x1f\x8b"
    except PermissionError as error:
        raise _forbidden(path, error) from None
    except OSError as error:
        raise damaged(path, error) from None


@contextlib.contextmanager
def unpacked(path: Path, start: int = 0, deflated: bool | None = None) -> Iterator[Any]:
    """Open a file for reading from a byte on.

    Args:
        path: The file.
        start: The byte.
        deflated: Whether a deflated stream begins there; None: the file as a whole is read through
            gzip where its first bytes say so, and the byte is one of what was packed.

    Raises:
        DataError: The file may not be read, is damaged, or ends too early.
    """
    packed = _is_packed(path) if deflated is None else False
    try:
        with open(path, "rb", opener=only_files) as raw:
            if packed:
                with igzip.IGzipFile(fileobj=raw) as file:  # type: ignore[no-untyped-call]
                    skipped = 0
                    while piece := len(file.read(min(_PIECE, start - skipped))):
                        skipped += piece
                    yield file
                return
            raw.seek(start)
            yield _Inflated(raw) if deflated else raw
    except PermissionError as error:
        raise _forbidden(path, error) from None
    # the last is isal's, of a header without end
    except (OSError, EOFError, zlib.error, isal_zlib.error, OverflowError) as error:  # type: ignore[misc] # stub: an instance
        raise damaged(path, error) from None


class _Inflated:
    """What a stream was deflated from, by zlib or gzip; what lies behind the stream is left."""

    def __init__(self, raw: io.BufferedReader) -> None:
        """Take a file, at the begin of the stream."""
        self._raw, self._stream = raw, zlib.decompressobj(47)  # with a header of either

    def read(self, most: int) -> bytes:
        """Return up to so many bytes; none: the stream has ended, and its sum is right.

        Raises:
            EOFError: It goes on, and the file does not.
            zlib.error: It is damaged.
        """
        while most and not self._stream.eof:  # 0 would be no limit to zlib
            piece = self._stream.unconsumed_tail or self._raw.read(_PIECE)
            if made := self._stream.decompress(piece, most):
                return made
            if not piece:
                raise EOFError("its stream of voxels has no end")
        return b""

    def readinto(self, room: memoryview) -> int:
        """Fill room with the next bytes, and return how many these are."""
        made = self.read(len(room))
        room[: len(made)] = made
        return len(made)


def _forbidden(path: Path, error: OSError) -> DataError:
    return DataError(f"{path}: may not be read ({error.strerror}). Ask who owns it")
