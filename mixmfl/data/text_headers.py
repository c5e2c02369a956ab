"""Reading of NRRD and MetaImage, whose headers are text; headers are checked against the file.

The voxels follow the header, or lie in one file beside it, as they are or deflated. Whatever else
the formats allow (text, bzip2, lists of files, several numbers per voxel) is refused. Places are
those of ITK, which is not used: its readers take a longer line, or more axes, to memory that is not
theirs, and let a file have more bytes than its header says.
"""

import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mixmfl.core.errors import DataError
from mixmfl.core.files import is_file, only_files
from mixmfl.core.text import quoted, shorten
from mixmfl.data.nifti import Header, not_an_image, shape_of_volume

NRRD, META = (".nrrd", ".nhdr"), (".mha", ".mhd")
ENDINGS = (*NRRD, *META)
DETACHED = (".nhdr", ".mhd")
"""Endings of headers whose voxels lie in another file."""

UNIT_TOLERANCE = 1e-3  # of the length of a direction

_LONGEST = 1 << 20  # bytes of a header
_MOST_AXES = 5
_NRRD_END = re.compile(rb"\r\n\r\n|\n\n|\r\r")
_NRRD_MAGIC = re.compile(r"NRRD000[1-6]")
_META_END = re.compile(rb"(?m)^[^\S\n]*ElementDataFile\s*[=:][^\n]*(?:\n|\Z)")
_VECTOR = re.compile(r"\(([^()]*)\)|none")

_NRRD_KINDS = {
    "i1": "signed char, int8, int8_t", "u1": "uchar, unsigned char, uint8, uint8_t",
    "i2": "short, short int, signed short, signed short int, int16, int16_t",
    "u2": "ushort, unsigned short, unsigned short int, uint16, uint16_t",
    "i4": "int, signed int, int32, int32_t", "u4": "uint, unsigned int, uint32, uint32_t",
    "i8": "longlong, long long, long long int, signed long long, signed long long int, int64, "
          "int64_t",
    "u8": "ulonglong, unsigned long long, unsigned long long int, uint64, uint64_t",
    "f4": "float", "f8": "double",
}  # fmt: skip
_META_KINDS = {
    "MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4",
    "MET_UINT": "u4", "MET_LONG": "i4", "MET_ULONG": "u4", "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8", "MET_FLOAT": "f4", "MET_DOUBLE": "f8",
}  # fmt: skip
# by a space's name, which of LPS its axes run along (1) or against (-1)
_SPACES = {
    "left-posterior-superior": (1, 1, 1), "lps": (1, 1, 1), "right-anterior-superior": (-1, -1, 1),
    "ras": (-1, -1, 1), "left-anterior-superior": (1, -1, 1), "las": (1, -1, 1),
}  # fmt: skip

_Numbers = npt.NDArray[np.float64]


def read_header(path: Path) -> Header:
    """Read and check the header of a NRRD or MetaImage file.

    Raises:
        DataError: The file is unreadable, none of these formats, names a file elsewhere, or cannot
            be that of a three-dimensional image with one number per voxel.
    """
    try:
        with open(path, "rb", opener=only_files) as file:
            start = file.read(_LONGEST)
    except OSError as error:
        raise not_an_image(path, error) from None
    if path.name.lower().endswith(NRRD):
        return _Nrrd(path, start).header()
    return _Meta(path, start).header()


class _Text:
    """The fields of a header, and what both formats do with them."""

    def __init__(self, path: Path, end: int | None) -> None:
        """Args: end: the byte behind the header; None: it has no end."""
        if end is None:
            raise not_an_image(path, "its header has no end, or does not say where its voxels are")
        self.path, self.end = path, end
        self.fields: dict[str, str] = {}

    def add(self, name: str, value: str) -> None:
        """Take a field.

        Raises:
            DataError: It is there twice.
        """
        if name in self.fields:
            raise not_an_image(self.path, f"its header has {quoted(name)} twice")
        self.fields[name] = value.strip()

    def refused(self, name: str, needed: str) -> DataError:
        """Return the error for a field that cannot be used."""
        return not_an_image(
            self.path, f"its header has {name} {quoted(self.fields.get(name, ''))}; {needed}"
        )

    def whole(self, name: str, usual: int | None = None) -> int:
        """Return a whole number; ``usual`` where there is none."""
        value = self.fields.get(name, "" if usual is None else str(usual))
        if not re.fullmatch(r"-?[0-9]{1,18}", value):
            raise self.refused(name, "a whole number is needed")
        return int(value)

    def numbers(self, name: str, count: int) -> _Numbers:
        """Return so many numbers, which may be NaN."""
        words = self.fields[name].split()
        try:
            if len(words) == count:
                return np.array([float(word) for word in words])
        except ValueError:
            pass
        raise self.refused(name, f"needed are {count} numbers")

    def sizes(self, name: str, axes: int) -> list[int]:
        """Return the number of voxels along each axis."""
        words = self.fields.get(name, "").split()
        if not all(re.fullmatch("[0-9]{1,9}", word) and int(word) for word in words):
            raise self.refused(name, "needed are positive numbers of voxels")
        if not 2 <= axes <= _MOST_AXES or len(words) != axes:
            raise self.refused(name, f"needed are as many sizes as axes, 2 to {_MOST_AXES}")
        return [int(word) for word in words]

    def one_per_voxel(self, count: int) -> None:
        """Check that a voxel has one number."""
        if count != 1:
            raise DataError(
                f"{self.path}: has {count} numbers per voxel (colour, vector or complex); needed "
                "is one"
            )

    def beside(self, name: str) -> Path:
        """Return the file that a header names for its voxels, which lies beside it."""
        name = name.removeprefix("./")
        # a list or a pattern of files names others
        is_one = name == Path(name).name and not name.startswith("LIST") and "%" not in name
        if not is_one or not is_file(self.path.parent / name):
            raise DataError(
                f"{self.path}: says that its voxels are in {quoted(name)}; needed is one file in "
                "the same folder. Save the image as one file, such as NIfTI"
            )
        return self.path.parent / name

    def made(
        self,
        shape: tuple[int, int, int],
        kind: str,
        voxels: Path,
        skipped: int,
        place: tuple[_Numbers, _Numbers, _Numbers],
        stated: tuple[bool, bool],
        *,
        deflated: bool,
    ) -> Header:
        """Return the header.

        Args:
            shape: Number of voxels, (Z, Y, X).
            kind: Type of the numbers as numpy writes it.
            voxels: The file that holds them.
            skipped: Bytes before them, behind the header where that is in the same file; -1: the
                numbers are the last of the file.
            place: Directions of X, Y and Z, LPS, a row each, of length 1; spacing and origin
                (x, y, z) in mm.
            stated: Whether the header says how large voxels are, and where they lie.
            deflated: Whether the numbers are deflated.
        """
        directions, spacing, origin = place
        with np.errstate(over="ignore", under="ignore"):
            single = spacing.astype(np.float32)  # as NIfTI has it: its square is finite and not 0
        if not (np.isfinite(single).all() and (single > 0).all()):
            shown = tuple(spacing[::-1].tolist())
            raise DataError(f"{self.path}: has spacing {shown} mm; it must be positive and finite")
        if not (np.isfinite(directions).all() and np.isfinite(origin).all()):
            raise not_an_image(self.path, "its place is not finite")
        affine = np.eye(4)
        affine[:3, :3], affine[:3, 3] = (directions * spacing[:, None]).T, origin
        affine[:2] *= -1  # RAS
        number = np.dtype(kind)
        start = self.end if voxels == self.path else 0
        if skipped < 0:
            at_the_end = voxels.stat().st_size - math.prod(shape) * number.itemsize
            start = max(start, at_the_end)
        open_ = [
            words
            for words, is_stated in zip(
                ("how large its voxels are", "where it lies"), stated, strict=True
            )
            if not is_stated
        ]
        return Header(
            shape,
            (float(spacing[2]), float(spacing[1]), float(spacing[0])),
            tuple(map(tuple, affine.tolist())),
            None,
            voxels,
            number,
            start + max(skipped, 0),
            deflated=deflated,
            unstated=f"its header does not say {' or '.join(open_)}; ITK's default was taken, of "
            "which spacing and directions may be wrong"
            if open_
            else "",
        )


class _Nrrd(_Text):
    """A header of NRRD, https://teem.sourceforge.net/nrrd/format.html."""

    def __init__(self, path: Path, start: bytes) -> None:
        """Args: start: the first bytes of the file, with the whole header."""
        found = _NRRD_END.search(start)
        alone = path.name.lower().endswith(".nhdr") and len(start) < _LONGEST
        super().__init__(path, found.end() if found else len(start) if alone else None)
        magic, *lines = re.split(r"\r\n|\n|\r", start[: self.end].decode("utf-8", "replace"))
        if not _NRRD_MAGIC.fullmatch(magic):
            raise not_an_image(path, "it does not begin as NRRD does")
        for line in lines:
            name, colon, value = line.partition(":")
            if line.startswith("#") or value.startswith("=") or not line.strip():
                continue  # comments, and keys of the user's
            if not colon:
                raise not_an_image(path, f"its header has the line {quoted(line)}")
            self.add(re.sub(r"\s", "", name.lower()), value)

    def header(self) -> Header:
        """Return what is needed to read the voxels."""
        kind = next(
            (k for k, names in _NRRD_KINDS.items() if self._word("type") in names.split(", ")), ""
        )
        if not kind:
            raise self.refused("type", "a type of whole numbers or float is needed")
        if kind[1] != "1":
            if self._word("endian") not in ("little", "big"):
                raise self.refused("endian", "little or big is needed")
            kind = f"{'<' if self._word('endian') == 'little' else '>'}{kind}"
        if self._word("encoding") not in ("raw", "gzip", "gz"):
            raise self.refused("encoding", "raw and gzip are read")
        deflated = self._word("encoding") != "raw"
        skipped = self.whole("byteskip", 0)
        if self.whole("lineskip", 0) or skipped < -1 or (deflated and skipped):
            raise self.refused("byteskip", "bytes before raw voxels are skipped, and no lines")
        sizes = self.sizes("sizes", self.whole("dimension"))
        spatial = self._spatial(len(sizes))
        self.one_per_voxel(math.prod(n for n, is_axis in zip(sizes, spatial, strict=True)
                                     if not is_axis))  # fmt: skip
        shape = shape_of_volume(
            self.path, [n for n, is_axis in zip(sizes, spatial, strict=True) if is_axis]
        )
        voxels = self.beside(self.fields["datafile"]) if "datafile" in self.fields else self.path
        if voxels == self.path and self.path.name.lower().endswith(".nhdr"):
            raise not_an_image(self.path, "its header does not say where its voxels are")
        place, stated = self._place(spatial)
        return self.made(shape, kind, voxels, skipped, place, stated, deflated=deflated)

    def _word(self, name: str) -> str:
        return " ".join(self.fields.get(name, "").lower().split())

    def _spatial(self, axes: int) -> list[bool]:
        """Return of each axis whether it is one of space, as far as directions or kinds say."""
        if "spacedirections" in self.fields:
            vectors = [found[0] for found in _VECTOR.finditer(self.fields["spacedirections"])]
            if len(vectors) == axes:
                return [vector != "none" for vector in vectors]
            raise self.refused("spacedirections", f"needed are {axes} vectors")
        kinds = self.fields.get("kinds", "").split() or ["domain"] * axes
        if len(kinds) != axes:
            raise self.refused("kinds", f"needed are {axes}")
        return [kind.lower() in ("domain", "space", "time", "none", "???") for kind in kinds]

    def _place(
        self, spatial: Sequence[bool]
    ) -> tuple[tuple[_Numbers, _Numbers, _Numbers], tuple[bool, bool]]:
        """Return directions, spacing and origin, and what the header says of them; see ``made``."""
        for name in ("spaceunits", "units"):
            units = re.findall(r'"([^"]*)"', self.fields.get(name, ""))
            if strange := [unit for unit in units if unit.strip() not in ("mm", "", "???", "none")]:
                raise self.refused(name, f"needed are mm, not {shorten(strange)}")
        axes = [number for number, is_axis in enumerate(spatial) if is_axis][:3]
        space = re.sub("-time$|(?<=s)t$", "", self._word("space"))
        origin, signs = np.zeros(3), _SPACES.get(space)
        if "spacedirections" not in self.fields:
            spacing = np.ones(3)
            if "spacings" in self.fields:
                spacing = self.numbers("spacings", len(spatial))[axes]
            return (np.eye(3), spacing, origin), ("spacings" in self.fields, False)
        vectors = [found[1] for found in _VECTOR.finditer(self.fields["spacedirections"])]
        rows = np.array([self._vector("spacedirections", vectors[axis]) for axis in axes])
        if "spaceorigin" in self.fields:
            (found,) = _VECTOR.findall(self.fields["spaceorigin"]) or [""]
            origin = self._vector("spaceorigin", found)
        with np.errstate(all="ignore"):
            spacing = np.linalg.norm(rows, axis=1)
            directions = rows / spacing[:, None]
        turned = np.array(signs or (1, 1, 1))
        return (directions * turned, spacing, origin * turned), (True, signs is not None)

    def _vector(self, name: str, text: str) -> _Numbers:
        try:
            vector = np.array([float(word) for word in text.split(",")])
        except ValueError:
            vector = np.zeros(0)
        if len(vector) < 3 or vector[3:].any():  # a fourth is of time
            raise self.refused(name, "needed are vectors of three numbers")
        return vector[:3]


class _Meta(_Text):
    """A header of MetaImage, https://itk.org/Wiki/ITK/MetaIO/Documentation."""

    def __init__(self, path: Path, start: bytes) -> None:
        """Args: start: the first bytes of the file, with the whole header."""
        found = _META_END.search(start)
        super().__init__(path, found.end() if found else None)
        for line in start[: self.end].decode("utf-8", "replace").split("\n"):
            name, _, value = line.replace(":", "=", "=" not in line).partition("=")
            if line.strip() and name.strip() != "Comment":
                self.add(name.strip(), value)

    def header(self) -> Header:
        """Return what is needed to read the voxels."""
        if "BinaryData" in self.fields and not self._says("BinaryData"):
            raise self.refused("BinaryData", "voxels as text are not read")
        kind = _META_KINDS.get(self.fields.get("ElementType", ""))
        if kind is None:
            raise self.refused("ElementType", f"known are {', '.join(_META_KINDS)}")
        for name, neutral in (
            ("ElementToIntensityFunctionSlope", 1), ("ElementToIntensityFunctionOffset", 0)
        ):  # fmt: skip
            if name in self.fields and self.numbers(name, 1)[0] != neutral:
                raise self.refused(name, "ITK does not scale by it; save the image as NIfTI")
        big = self._says("BinaryDataByteOrderMSB") or self._says("ElementByteOrderMSB")
        axes = self.whole("NDims")
        sizes = self.sizes("DimSize", axes)
        self.one_per_voxel(self.whole("ElementNumberOfChannels", 1))
        shape, name = shape_of_volume(self.path, sizes), self.fields["ElementDataFile"]
        local = name in ("LOCAL", "Local", "local")
        skipped = self.whole("HeaderSize", 0)
        if skipped < -1 or (local and skipped > 0):
            raise self.refused("HeaderSize", "bytes before voxels in a file of their own, or -1")
        place, stated = self._place(axes)
        return self.made(
            shape,
            f"{'>' if big else '<'}{kind}",
            self.path if local else self.beside(name),
            skipped,
            place,
            stated,
            deflated=self._says("CompressedData"),
        )

    def _says(self, name: str) -> bool:
        begin = self.fields.get(name, "F")[:1].lower()
        if begin not in ("t", "1", "f", "0"):
            raise self.refused(name, "True or False is needed")
        return begin in ("t", "1")

    def _place(self, axes: int) -> tuple[tuple[_Numbers, _Numbers, _Numbers], tuple[bool, bool]]:
        """Return directions, spacing and origin, and what the header says of them; see ``made``."""
        sizes = self._first("ElementSpacing", "ElementSize")
        spacing = self.numbers(sizes, axes)[:3] if sizes else np.ones(3)
        begin = self._first("Offset", "Position", "Origin")
        origin = self.numbers(begin, axes)[:3] if begin else np.zeros(3)
        turned = self._first("TransformMatrix", "Orientation", "Rotation")
        directions = np.eye(3)
        if turned:
            directions = self.numbers(turned, axes**2).reshape(axes, axes)[:3, :3]
            if not np.allclose(np.linalg.norm(directions, axis=1), 1, rtol=0, atol=UNIT_TOLERANCE):
                raise DataError(
                    f"{self.path}: has {turned} {quoted(self.fields[turned])}; its axes must be at "
                    "right angles, and each of length 1. Save it as NIfTI"
                )
        return (directions, spacing, origin), (bool(sizes), bool(turned))

    def _first(self, *names: str) -> str:
        """Return the first of these names that the header has; empty: none."""
        return next((name for name in names if name in self.fields), "")
