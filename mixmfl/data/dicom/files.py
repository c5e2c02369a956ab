"""DICOM files as they are on disk: with or without preamble, whole or damaged.

Only this module, ``pixels`` and ``series`` import pydicom.
"""

import io
import logging
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from pydicom import config
from pydicom.datadict import tag_for_keyword
from pydicom.filereader import read_dataset, read_partial
from pydicom.tag import BaseTag, Tag

from mixmfl.core.errors import DataError

MOST_BYTES = 1 << 30
"""The bytes that a deflated file may unpack to."""

_PREAMBLE = 128
_DEFLATED = "1.2.840.10008.1.2.1.99"
_DIRECTORY = "1.2.840.10008.1.3.10"  # the class of a DICOMDIR, which lists files
_ENDINGS = (".dcm", ".dicom", ".ima")
_PIXELS = {Tag("PixelData"), Tag("FloatPixelData"), Tag("DoubleFloatPixelData")}
_UNDEFINED = 0xFFFFFFFF


@dataclass(frozen=True)
class Damaged:
    """A file that is DICOM, or is named so, and could not be read.

    Attributes:
        path: The file.
        reason: The reason why it could not be read.
    """

    path: Path
    reason: str


@dataclass(frozen=True)
class Stored:
    """How many bytes of pixels a file announces and has.

    Attributes:
        announced: Bytes by the header; None where the pixels are packed into fragments.
        found: Bytes from the first pixel to the end of the file; None where the whole file is
            deflated.
    """

    announced: int | None
    found: int | None


@contextmanager
def quiet() -> Iterator[None]:
    """Keep pydicom from warnings for every file about values that do no harm here."""
    logger, settings = logging.getLogger("pydicom"), config.settings
    before = logger.level, settings.reading_validation_mode, settings.writing_validation_mode
    logger.setLevel(logging.CRITICAL)
    settings.reading_validation_mode = config.IGNORE
    settings.writing_validation_mode = config.IGNORE
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before[0])
        settings.reading_validation_mode, settings.writing_validation_mode = before[1:]


def looks_like_dicom(path: Path) -> bool:
    """Say whether a file is DICOM by its first bytes or its name."""
    if not path.is_file():  # for example a pipe, which would block
        return False
    try:
        return _start(path) is not None or path.name.lower().endswith(_ENDINGS)
    except OSError:
        return True  # reading it will report the error


def read_header(path: Path, names: list[str], private: list[tuple[int, int]]) -> tuple[Any, Any]:
    """Read the header of a file.

    Args:
        path: A file that ``looks_like_dicom``.
        names: Names of the elements to read; an empty list reads all.
        private: Numbers of private elements to read.

    Returns:
        pydicom's header, and how the pixels are ``Stored``, or None without pixels. Both are None
        if the file is a list of other files.

    Raises:
        DataError: The file is not DICOM, or is damaged.
    """
    tags = [*map(tag_for_keyword, names), *(Tag(*tag) for tag in private)]
    pixel_elements: list[tuple[str | None, int]] = []

    def at_pixels(tag: BaseTag, kind: str | None, length: int) -> bool:
        if tag in _PIXELS:
            pixel_elements.append((kind, length))
        return tag in _PIXELS

    with _opened(path) as (file, is_deflated):
        content: Any = read_partial(
            file,
            at_pixels,
            force=True,
            specific_tags=[BaseTag(tag) for tag in tags if tag is not None] or None,
        )
        sop_class = content.file_meta.get("MediaStorageSOPClassUID") or content.get("SOPClassUID")
        if sop_class == _DIRECTORY:
            return None, None
        if not pixel_elements:
            return content, None
        ((kind, length),) = pixel_elements
        before = 12 if kind in ("OB", "OW", "OF", "OD", "UN") else 8
        rest = None if is_deflated else _size(file) - file.tell() - before
        return content, Stored(None if length == _UNDEFINED else length, rest)


def read_whole(path: Path) -> Any:
    """Read a file with its pixels, as a dataset of pydicom.

    Raises:
        DataError: The file is not DICOM, or is damaged.
    """
    with _opened(path) as (file, _):
        return read_partial(file, force=True)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[BinaryIO, bool]]:
    """Open a file for pydicom, also without a preamble; say whether it is deflated."""
    start = _start(path)
    if start is None:
        raise DataError("does not begin as DICOM does")
    with path.open("rb") as raw:
        head = raw.read(_PREAMBLE + 4)
        raw.seek(start)
        is_deflated = _is_deflated(raw)
        if is_deflated:
            _check_deflated(raw)
        raw.seek(0)
        if start == 0 or head[_PREAMBLE : _PREAMBLE + 4] == b"DICM":
            yield raw, is_deflated
        else:  # what is before it would mislead pydicom
            raw.seek(start)
            yield io.BytesIO(raw.read()), is_deflated


def _start(path: Path) -> int | None:
    """Return the byte at which the elements begin, with or without a preamble; None if none do."""
    with path.open("rb") as file:
        head = file.read(_PREAMBLE + 4 + 8)
    if head[_PREAMBLE : _PREAMBLE + 4] == b"DICM":
        return _PREAMBLE + 4
    if head[:4] == b"DICM":
        return 4
    return next((at for at in (0, _PREAMBLE + 4) if _is_element(head[at : at + 8])), None)


def _is_element(head: bytes) -> bool:
    """Say whether bytes begin an element of group 2 or 8, which come first in a file."""
    if len(head) < 8:
        return False
    for order in "<>":
        group, number, kind, length = struct.unpack(f"{order}HH2sH", head)
        if group not in (2, 8) or number > 0x60:
            continue
        is_explicit = kind.isalpha() and kind.isupper()
        long = struct.unpack(f"{order}I", head[4:])[0]
        if (is_explicit and length < 1 << 12) or (group == 8 and 0 < long < 1 << 12):
            return True
    return False


def _is_deflated(raw: BinaryIO) -> bool:
    """Say whether a file is deflated, behind its first group, at whose end it is then.

    The group is read as pydicom does it, which unpacks what is behind it without a bound.
    """
    start = raw.tell()
    group = read_dataset(raw, False, True, stop_when=_is_behind)
    try:
        list(group)[:1]
    except NotImplementedError:  # its elements do not say their types
        raw.seek(start)
        group = read_dataset(raw, True, True, stop_when=_is_behind)
    return bool(group.get("TransferSyntaxUID") == _DEFLATED)


def _is_behind(tag: BaseTag, kind: str | None, length: int) -> bool:
    return tag.group != 2


def _check_deflated(raw: BinaryIO) -> None:
    """Check that what is left of a deflated file does not unpack to more than ``MOST_BYTES``.

    Raises:
        DataError: It unpacks to more.
    """
    unpacker, size = zlib.decompressobj(-zlib.MAX_WBITS), 0
    while not unpacker.eof and (packed := unpacker.unconsumed_tail or raw.read(1 << 16)):
        size += len(unpacker.decompress(packed, 1 << 20))
        if size > MOST_BYTES:
            raise DataError(f"unpacks to more than {MOST_BYTES} bytes")


def _size(file: BinaryIO) -> int:
    place = file.tell()
    size = file.seek(0, io.SEEK_END)
    file.seek(place)
    return size
