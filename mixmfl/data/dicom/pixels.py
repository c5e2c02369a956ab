"""The pixels of a DICOM file, scaled so that its planes are comparable."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.encaps import generate_frames
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MRImageStorage,
    RLELossless,
    generate_uid,
)

from mixmfl.core.errors import DataError
from mixmfl.data.dicom.decoder import decode
from mixmfl.data.dicom.elements import by_frame, frames_of, number_in, scale_of
from mixmfl.data.dicom.files import Stored, quiet, read_whole
from mixmfl.data.dicom.pixel_format import pixel_fault

Array = npt.NDArray[Any]

_NEEDED = (
    "Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated",
    "BitsStored", "HighBit", "PixelRepresentation", "NumberOfFrames", "PixelData",
)  # fmt: skip


def read_planes(file: Path) -> npt.NDArray[np.float32]:
    """Read the planes of a file, ``(frames, Y, X)``.

    Each plane is rescaled by its own slope and intercept. Padding becomes the background: 0, or the
    intercept where that is below 0. Where high numbers are dark (MONOCHROME1), they are inverted.

    Raises:
        DataError: There are fewer planes than announced, or they cannot be read.
    """
    with quiet():
        content = read_whole(file)
        raw = _decoded(content, file)
        frames = frames_of(content)
        if raw.shape != (frames, content.Rows, content.Columns):
            raise DataError(f"{file.name}: announces {frames} planes, but holds {raw.shape}")
        padding = _padding(content, raw)
        if content.get("PhotometricInterpretation") == "MONOCHROME1":
            raw = _turned_round(content, raw)
        values = by_frame(content)
        planes = np.empty(raw.shape, dtype=np.float32)
        for number, plane in enumerate(raw):
            own = values[number if len(values) == frames else 0]
            slope, intercept = scale_of(own)
            slope, intercept = np.nan_to_num(slope, nan=1.0), np.nan_to_num(intercept)
            if slope == 0:
                raise DataError(f"{file.name}: has RescaleSlope 0, so its pixels are lost")
            with np.errstate(over="ignore"):  # becomes inf, which callers refuse
                planes[number] = plane * slope + intercept
            if padding is not None:
                planes[number][padding[number]] = min(0.0, intercept)
        return planes


def _decoded(content: Any, file: Path) -> Array:
    """Return the stored numbers, ``(frames, Y, X)``, without rescaling."""
    syntax = _syntax(content)
    name = next(
        (n for n in ("PixelData", "FloatPixelData", "DoubleFloatPixelData") if n in content), ""
    )
    if not name:
        raise DataError(f"{file.name}: holds no pixels")
    size = len(content[name].value or b"")
    fault = pixel_fault(content, Stored(None if syntax.is_compressed else size, size), file)
    if fault:
        raise DataError(fault)
    if syntax.is_compressed:
        _check_complete(content, file, syntax)
    if not syntax.is_compressed or syntax == RLELossless:
        content.file_meta.TransferSyntaxUID = syntax
        _check_bits(content, file, syntax)
        array, _ = get_decoder(syntax).as_array(content, raw=True)
        return array if array.ndim == 3 else array[None]
    with tempfile.TemporaryDirectory() as folder:
        bare = _bare(content, syntax, Path(folder) / "pixels.dcm")
        return decode(bare, file.name, (frames_of(content), content.Rows, content.Columns))


def _check_bits(content: Any, file: Path, syntax: UID) -> None:
    """Check that pixels lie in the lowest bits and need no more than the header says.

    Bits above are cut off, for graphics were stored there; numbers that need them would be, too.

    Raises:
        DataError: They lie in other bits, or need more.
    """
    bits, used = int(content.BitsAllocated), int(content.BitsStored)
    if used == bits or bits > 32 or "PixelData" not in content or syntax.is_compressed:
        return
    if int(content.get("HighBit", used - 1)) != used - 1:
        raise DataError(
            f"{file.name}: stores {used} of {bits} bits up to bit {content.HighBit} (HighBit); "
            "needed are the lowest. Export it again"
        )
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    raw = np.frombuffer(content.PixelData, f"{order}u{bits // 8}")
    padding = number_in(content, "PixelPaddingValue")
    raw = raw[raw != padding % (1 << bits)] if not np.isnan(padding) else raw
    above = raw >> used
    if content.PixelRepresentation == 1:  # a sign may fill the bits above
        above = above[above != (1 << (bits - used)) - 1]
    graphics = sum(
        1 << int(element.value) - used
        for element in content
        if element.tag.group & 0xFF01 == 0x6000
        and element.tag.element == 0x0102
        and element.value is not None
        and int(element.value) >= used
    )
    if (above & ~np.array(graphics, above.dtype)).any():
        raise DataError(
            f"{file.name}: has numbers of more than {used} bits (BitsStored), and no graphics that "
            "may lie in the others. Export it again"
        )


def _syntax(content: Any) -> UID:
    """Return the transfer syntax of a file; if it is missing, the one that pydicom detected."""
    uid = content.file_meta.get("TransferSyntaxUID")
    if uid is not None and UID(uid).is_transfer_syntax:
        return UID(uid)
    implicit, little = content.original_encoding
    if implicit:
        return ImplicitVRLittleEndian
    return ExplicitVRLittleEndian if little else ExplicitVRBigEndian


def _check_complete(content: Any, file: Path, syntax: UID) -> None:
    """Check that no compressed plane is missing or cut.

    JPEG decoders fill the missing part of a cut plane silently.

    Raises:
        DataError: A plane is missing or cut.
    """
    frames = frames_of(content)
    planes = list(generate_frames(content.PixelData, number_of_frames=frames))
    if len(planes) != frames:
        raise DataError(f"{file.name}: holds {len(planes)} compressed planes, {frames} needed")
    if syntax != RLELossless:
        for number, plane in enumerate(planes, start=1):
            if not plane.rstrip(b"\0\xff").endswith(b"\xff\xd9"):
                raise DataError(
                    f"{file.name}: plane {number} of {frames} ends before its end mark; the file "
                    "is incomplete. Copy or export it again"
                )


def _bare(content: Any, syntax: UID, path: Path) -> Path:
    """Write a file with only the compressed pixels, so that GDCM does not rescale them."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = MRImageStorage, syntax
    meta.MediaStorageSOPInstanceUID = generate_uid()
    bare = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    bare.SOPClassUID, bare.SOPInstanceUID = MRImageStorage, meta.MediaStorageSOPInstanceUID
    for name in _NEEDED:
        if name in content:
            bare[name] = content[name]
    bare.PhotometricInterpretation = "MONOCHROME2"
    bare.save_as(path, enforce_file_format=True)
    return path


def _padding(content: Any, raw: Array) -> npt.NDArray[np.bool_] | None:
    """Return for each pixel whether it is padding; None where there is none.

    Padding lies at an edge of a plane, or its number is beyond all others. What the header names
    otherwise is a number of the head.
    """
    first = number_in(content, "PixelPaddingValue")
    last = number_in(content, "PixelPaddingRangeLimit")
    if np.isnan(first):
        return None
    low, high = sorted((_as_stored(first, raw), _as_stored(first if np.isnan(last) else last, raw)))
    padding = np.asarray((raw >= low) & (raw <= high))
    others = raw[~padding]
    at_edge = padding[:, [0, -1]].any() or padding[:, :, [0, -1]].any()
    if not at_edge and others.size and others.min() < low and high < others.max():
        return None
    return padding


def _as_stored(value: float, raw: Array) -> float:
    """Return a value in the range of the pixels' type: some headers have another sign."""
    if raw.dtype.kind not in "iu":
        return value
    limits, whole = np.iinfo(raw.dtype), 2.0 ** (8 * raw.dtype.itemsize)
    if value > limits.max:
        return value - whole
    return value + whole if value < limits.min else value


def _turned_round(content: Any, raw: Array) -> Array:
    """Return inverted numbers, which grow with brightness from the darkest possible value."""
    if raw.dtype.kind == "i":
        return -1 - raw
    return (1 << int(content.BitsStored)) - 1 - raw
