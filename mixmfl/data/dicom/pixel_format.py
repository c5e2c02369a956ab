"""Whether the pixels that a DICOM header announces can be there, and can be read."""

from pathlib import Path
from typing import Any

from mixmfl.data.dicom.elements import frames_of, integer_in, text_in
from mixmfl.data.dicom.files import Stored
from mixmfl.data.image import MOST_VOXELS

LARGEST_COMPRESSION = 20_000
"""The highest compression of pixels: an empty plane in JPEG 2000 takes some hundred bytes."""

# how pixels may be compressed: RLE, and what GDCM reads of JPEG, JPEG-LS and JPEG 2000
_COMPRESSIONS = {
    f"1.2.840.10008.1.2.{kind}" for kind in ("5", "4.50", "4.51", "4.57", "4.70", "4.80", "4.81",
                                             "4.90", "4.91")
}  # fmt: skip


def pixel_fault(content: Any, stored: Stored, file: Path) -> str:
    """Say why the pixels of a file do not fit its header; empty where they do.

    Args:
        content: The header of the file.
        stored: How many bytes of pixels there are.
        file: The file, for messages.
    """
    rows, columns, frames = (
        integer_in(content, "Rows"),
        integer_in(content, "Columns"),
        frames_of(content),
    )
    samples = integer_in(content, "SamplesPerPixel") or 1
    bits, used = integer_in(content, "BitsAllocated"), integer_in(content, "BitsStored")
    kind = text_in(content, "PhotometricInterpretation")
    if rows < 1 or columns < 1:
        return f"{file.name}: says {rows} rows and {columns} columns"
    if rows * columns * frames > MOST_VOXELS:
        return f"{file.name}: announces {rows * columns * frames} voxels; at most {MOST_VOXELS}"
    if samples != 1 or kind not in ("MONOCHROME2", "MONOCHROME1", ""):
        return f"{file.name}: is in colour ({kind}); needed is one number per pixel"
    if bits not in (8, 16, 32, 64) or not 1 <= used <= bits:
        return f"{file.name}: says {used} of {bits} bits per pixel; needed are 1 to 8, 16 or 32"
    if "ModalityLUTSequence" in content and "RescaleSlope" not in content:
        return f"{file.name}: stores its values by a table (ModalityLUTSequence), which is not read"
    needed = rows * columns * frames * bits // 8
    if stored.announced is None:  # compressed
        syntax = content.file_meta.get("TransferSyntaxUID") or ""
        if syntax not in _COMPRESSIONS:
            name = getattr(syntax, "name", "") or "no known syntax"
            return (
                f"{file.name}: is compressed as {name!r}, which is not read; export it without "
                "compression"
            )
        if stored.found is not None and needed > stored.found * LARGEST_COMPRESSION:
            return f"{file.name}: announces {needed} bytes of pixels, and has {stored.found}"
        return ""
    held = stored.announced if stored.found is None else min(stored.announced, stored.found)
    if held < needed:
        return f"{file.name}: holds {held} bytes of pixels, {needed} needed"
    return ""
