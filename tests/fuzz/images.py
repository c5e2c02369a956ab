"""Images under attack: NIfTI, NRRD, MetaImage and MGZ, DICOM series and segmentations, names."""

import gzip
import random
import re
import shutil
import struct
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pydicom
from mutations import NAMES, NUMBERS, mutated_bytes
from pydicom.dataelem import DataElement
from small import small_case
from small_dicom import GRID, volume, write_series
from targets import HARMLESS, REFUSED, SAME, WrongError, judged, plain

from mixmfl.core.text import printable
from mixmfl.data.cases import Case, describe
from mixmfl.data.dicom.cases import describe_rows, find_all
from mixmfl.data.dicom.masks import DrawnMask
from mixmfl.data.grid import Grid
from mixmfl.data.image import read_image, read_labels, write_image
from mixmfl.data.load_case import LoadedCase, load_case
from mixmfl.data.mapping import mapping_table
from mixmfl.data.modalities import Modalities

Array = npt.NDArray[Any]

SHAPE = (6, 12, 10)
LPS = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
IMAGE_GRID = Grid(SHAPE, (2.0, 1.0, 1.25), (-10.0, 5.0, 3.0), LPS)

# of a NIfTI-1 header: where a field begins, and the form of one of its numbers
_FIELDS = {
    "sizeof_hdr": (0, "<i", 1), "dim": (40, "<h", 8), "datatype": (70, "<h", 1),
    "bitpix": (72, "<h", 1), "pixdim": (76, "<f", 8), "vox_offset": (108, "<f", 1),
    "scl_slope": (112, "<f", 1), "scl_inter": (116, "<f", 1), "xyzt_units": (123, "<b", 1),
    "qform_code": (252, "<h", 1), "sform_code": (254, "<h", 1), "quatern": (256, "<f", 6),
    "srow": (280, "<f", 12), "magic": (344, "<i", 1), "extension": (348, "<i", 1),
}  # fmt: skip
_SHORT = (0, -1, 1, 2, 3, 4, 5, 7, 8, 16, 32, 64, 255, 256, 512, 768, 1024, 1280, 1536, 2304, 32767)
_FLOAT = (
    0.0, -1.0, 1.0, 1e-6, 0.01, 90.0, 101.0, 347.0, 351.0, 352.0, 353.0, 352.5, 400.0, 1e10, -1e10,
    3e38, float("nan"), float("inf"), float("-inf"),
)  # fmt: skip


class Nifti:
    """NIfTI in one file and in two, packed or not: what is read is what nibabel reads."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        image = small_case(("t1",), 0, SHAPE)[0]["t1"]
        self.good: dict[str, tuple[bytes, bytes]] = {}
        for name, kind in (("f4", np.float32), ("i2", np.int16)):
            write_image(folder / f"{name}.nii", (10 * image).astype(kind), IMAGE_GRID)
            content = (folder / f"{name}.nii").read_bytes()
            self.good[name] = content[:352], content[352:]
            (folder / f"{name}.nii").unlink()

    def attack(self, draw: random.Random) -> str:
        header, voxels = draw.choice(list(self.good.values()))
        for _ in range(draw.choice((1, 1, 2, 3))):
            header, voxels = self._spoilt(header, voxels, draw)
        path = self._write(header, voxels, draw)
        try:
            outcome = judged(lambda: read_image(path), lambda read: as_nibabel(path, *read))
            judged(lambda: load_case(Case("p", {"t1": path})), finite)
            judged(lambda: read_labels(path), lambda read: HARMLESS)
            return outcome
        finally:
            for file in self.folder.iterdir():
                file.unlink()

    def _spoilt(self, header: bytes, voxels: bytes, draw: random.Random) -> tuple[bytes, bytes]:
        choice = draw.randrange(10)
        if choice == 0:
            return mutated_bytes(header, draw), voxels
        if choice == 1:
            return header, mutated_bytes(voxels, draw)
        if choice == 2:
            return header, voxels[: draw.randrange(len(voxels) + 1)]
        if choice == 3:
            return header, voxels + bytes(draw.choice((1, 4, 1000, 1 << 20)))
        if choice == 4:  # large, and all of it is there, or only announced
            side = draw.choice((200, 700, 1200, 32767))
            made = bytearray(header)
            made[40:48] = struct.pack("<4h", 3, side, side, draw.choice((1, side // 4)))
            return bytes(made), voxels if draw.random() < 0.5 else bytes(min(side, 700) ** 2 * 40)
        if choice == 5:  # NIfTI-2, or the other order of bytes, in name alone
            made = bytearray(header)
            made[:4] = draw.choice((struct.pack("<i", 540), struct.pack(">i", 348)))
            return bytes(made), voxels
        name = draw.choice(list(_FIELDS))
        begin, form, count = _FIELDS[name]
        made, size = bytearray(header), struct.calcsize(form)
        at = begin + size * draw.randrange(count)
        if form == "<f":
            value: float = draw.choice(_FLOAT)
        else:
            value = draw.choice(_SHORT) if form == "<h" else draw.choice((0, 1, 2, 10, 127, -1))
        made[at : at + size] = struct.pack(form, value)
        return bytes(made), voxels

    def _write(self, header: bytes, voxels: bytes, draw: random.Random) -> Path:
        choice = draw.randrange(5)
        if choice == 0:
            path = self.folder / "p_t1.nii"
            path.write_bytes(header + voxels)
        elif choice == 1:  # a pair
            path = self.folder / "p_t1.hdr"
            made = bytearray(header[:348])
            made[344:348] = b"ni1\0"
            made[108:112] = struct.pack("<f", 0) if draw.random() < 0.8 else made[108:112]
            path.write_bytes(made)
            if draw.random() < 0.9:
                path.with_suffix(".img").write_bytes(voxels)
        else:
            path = self.folder / "p_t1.nii.gz"
            packed = gzip.compress(header + voxels, 1)
            if choice == 3:
                packed = mutated_bytes(packed, draw)
            elif choice == 4 and draw.random() < 0.3:  # several members, and something behind
                packed += draw.choice((gzip.compress(b"more"), b"\0" * 10, packed))
            path.write_bytes(packed)
        return path


def as_nibabel(path: Path, array: Array, grid: Grid) -> str:
    """Judge an image that was read by what nibabel makes of the same file."""
    theirs: Any = nib.load(path)
    if theirs.dataobj.offset < 352:  # there nibabel takes the header for voxels
        return HARMLESS
    with np.errstate(all="ignore"):
        values = np.asarray(theirs.dataobj).astype(np.float32)
    values = values.reshape(values.shape[:3])
    if values.T.shape != array.shape or not np.array_equal(values.T, array, equal_nan=True):
        raise WrongError(f"other voxels than nibabel's: {array.shape} and {values.T.shape}")
    return at_their_places(theirs.affine, grid)


def at_their_places(affine: Array, grid: Grid) -> str:
    """Judge a grid by an affine of nibabel's: every corner lies where that puts it."""
    matrix = np.eye(4)
    matrix[:3, :3] = np.reshape(grid.direction, (3, 3)) * grid.spacing[::-1]
    matrix[:3, 3] = grid.origin
    ends = [(0, size - 1) for size in grid.shape[::-1]]
    corners = np.array([(x, y, z, 1.0) for x in ends[0] for y in ends[1] for z in ends[2]]).T
    off = np.abs(np.diag([-1, -1, 1, 1]) @ matrix @ corners - affine @ corners).max()
    length = max(n * step for n, step in zip(grid.shape, grid.spacing, strict=True))
    if not off <= 0.002 * length + 1e-3 * float(np.abs(affine[:3, 3]).max()):
        raise WrongError(f"{off:g} mm from where nibabel puts it")
    return HARMLESS


def finite(loaded: LoadedCase) -> str:
    """Judge a loaded case: all its numbers are finite, on one grid, and its texts are plain."""
    for name, image in loaded.images.items():
        if not np.isfinite(image).all() or image.shape != loaded.canonical.shape:
            raise WrongError(f"{name} is not finite, or not on the case's grid")
    return plain((loaded.name, loaded.notes, loaded.warnings))


class OtherImages:
    """NRRD, MetaImage and MGZ: what is read has finite numbers on a grid that can be."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "images"
        self.folder.mkdir()
        image = small_case(("t1",), 0, SHAPE)[0]["t1"]
        for name in ("a.nrrd", "a.mha"):
            write_image(folder / name, image, IMAGE_GRID)
        nib.MGHImage(image.T, np.diag([1.0, 1.0, 2.0, 1.0])).to_filename(str(folder / "a.mgz"))
        self.good = {name: (folder / name).read_bytes() for name in ("a.nrrd", "a.mha", "a.mgz")}
        self.good["a.mgh"] = gzip.decompress(self.good["a.mgz"])

    def attack(self, draw: random.Random) -> str:
        name = draw.choice(list(self.good))
        content = self.good[name]
        if name.endswith((".nrrd", ".mha")) and draw.random() < 0.6:
            content = self._text(content, draw)
        else:
            content = mutated_bytes(content, draw, draw.choice((0, 300)))
        path = self.folder / f"p_t1{Path(name).suffix}"
        path.write_bytes(content)
        return judged(lambda: load_case(Case("p", {"t1": path})), finite)

    def _text(self, content: bytes, draw: random.Random) -> bytes:
        """Change a line of a text header."""
        end = content.index(b"\n\n") if content.startswith(b"NRRD") else content.index(b"LOCAL")
        lines = content[:end].split(b"\n")
        number = draw.randrange(len(lines))
        words = lines[number].split(b" ")
        number_text = str(draw.choice(NUMBERS)).encode()
        words[draw.randrange(len(words))] = draw.choice((
            number_text, b"9" * 400, b"", b"nan", b"inf", b"none", b"../../../etc/passwd", b"LIST",
            b"/dev/zero", b"(1,0,0)", b"bzip2", b"txt", b"hex", b"double", b"block", b"\xff\xfe",
            draw.choice(NAMES).encode("utf-8", "surrogatepass"),
        ))  # fmt: skip
        lines[number] = b" ".join(words)
        if draw.random() < 0.2:
            lines.insert(number, draw.choice((lines[number], b"data file: /etc/passwd", b"a:=b")))
        return b"\n".join(lines) + content[end:]


class Dicom:
    """One file of a series is spoilt: the voxels are those of before, but for its own slice.

    Or the case is refused, or has a warning, or the table of series shows of the file.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "case"
        write_series(self.folder, volume(), SeriesDescription="T1 tra")
        self.files = {file: file.read_bytes() for file in sorted(self.folder.iterdir())}
        self.good = self._load()

    def _load(self) -> tuple[LoadedCase | None, str, bool]:
        """Return the case, all that is said of it, and whether there is a warning."""
        found, rows = find_all(self.folder, Modalities())
        shown = describe(found) + describe_rows(rows) + mapping_table(rows, self.folder)
        shown += "".join(each.reason for each in found.refused)
        if not found.cases:
            return None, shown, False
        case = found.cases[0]
        loaded = load_case(case)
        warnings = (*case.warnings, *loaded.warnings)
        return loaded, shown + "".join((*warnings, *case.notes)), bool(warnings)

    def attack(self, draw: random.Random) -> str:
        file = draw.choice(list(self.files))
        whole = draw.random() < 0.6
        own = spoil_elements(file, draw) if whole else self._spoil_bytes(file, draw)
        try:
            return judged(self._load, lambda loaded: self._right(*loaded, own))
        finally:
            for path, content in self.files.items():
                path.write_bytes(content)

    def _spoil_bytes(self, file: Path, draw: random.Random) -> bool:
        content = self.files[file]
        header = len(content) - 2 * GRID.shape[1] * GRID.shape[2]
        made = mutated_bytes(content, draw, draw.choice((0, header)))
        file.write_bytes(made)
        return True  # which of its numbers were changed is not known

    def _right(self, loaded: LoadedCase | None, shown: str, warned: bool, own: bool) -> str:
        if "\x1b" in shown or "\x00" in shown:
            raise WrongError("a control character is shown")
        good = self.good[0]
        if loaded is None or good is None:
            return REFUSED
        finite(loaded)
        image, before = loaded.images["t1"], good.images["t1"]
        if loaded.canonical != good.canonical or image.shape != before.shape:
            if warned or shown != self.good[1]:
                return HARMLESS
            raise WrongError(f"another grid without a word: {loaded.canonical}")
        slices = {int(z) for z in np.argwhere(image != before)[:, 0]}
        if (len(slices) > 1 or (slices and not own)) and not warned:
            raise WrongError(f"slices {sorted(slices)} are others without a word")
        return HARMLESS if slices else SAME


_DICOM_VALUES: tuple[Any, ...] = (
    None, "", " ", "0", "-1", "1e400", "nan", "1\\2\\3", "\\\\\\", "9" * 1000, "x" * 70_000, "../x",
    "1.2.840.10008.1.2.4.90", "MONOCHROME1", "RGB", "2021", "20219999", "T1\x1b[31m", "=1+1", "<b>",
    0, 1, -1, 65535, 2**31, 1e300, [], ["0", "0"], [0.0] * 6, [1.0, 0, 0, 1.0, 0, 0], b"\0" * 7,
)  # fmt: skip


def spoil_elements(file: Path, draw: random.Random) -> bool:
    """Change elements of a DICOM file; return whether the voxels of this file may be others."""
    content: Any = pydicom.dcmread(file)
    voxels = {"PixelData", "RescaleSlope", "RescaleIntercept", "PixelRepresentation", "BitsStored",
              "PhotometricInterpretation", "HighBit", "BitsAllocated"}  # fmt: skip
    own = False
    for _ in range(draw.choice((1, 1, 2))):
        element = draw.choice(list(content))
        own = own or element.keyword in voxels
        choice = draw.randrange(5)
        try:
            if choice == 0:
                del content[element.tag]
            elif choice == 1:
                kind = draw.choice(("OB", "UN", "SQ", "DS", "IS", "US", "FD", "PN", "UI", "LT"))
                content[element.tag] = DataElement(element.tag, kind, element.value)
            elif choice == 2 and isinstance(element.value, bytes):
                element.value = element.value[: draw.randrange(len(element.value) + 1)]
            else:
                element.value = draw.choice(_DICOM_VALUES)
        except Exception:  # pydicom does not even hold such a value
            continue
    try:
        content.save_as(file)
    except Exception:  # nor write it; so the file is as it was
        own = False
    if draw.random() < 0.1:
        file.write_bytes(nested(file.read_bytes(), draw.choice((1, 30, 300, 3000, 100_000))))
    return own


def nested(content: bytes, depth: int) -> bytes:
    """Return DICOM that begins with sequences in one another, as deep as that."""
    begin = 132 + 12 + int.from_bytes(content[140:144], "little")  # behind the group of the file
    opened = bytes.fromhex("08004011") + b"SQ\0\0" + b"\xff" * 4 + b"\xfe\xff\x00\xe0" + b"\xff" * 4
    closed = bytes.fromhex("feff0de000000000feffdde000000000")
    return content[:begin] + opened * depth + closed * depth + content[begin:]


class Segmentations:
    """A DICOM segmentation: its mask is the one that was drawn, or is refused.

    Of what may mean another mask, such as another segment, labels of the description come out.
    """

    def __init__(self, folder: Path) -> None:
        from seg_object import write_segmentation

        self.file, self.grid, self.labels = write_segmentation(folder)
        self.good = self.file.read_bytes()
        self.mask = self._read()[0]

    def _read(self) -> tuple[Array, Grid]:
        return DrawnMask(self.file, {"t1": self.grid}, self.labels).read()

    def attack(self, draw: random.Random) -> str:
        if draw.random() < 0.5:
            spoil_elements(self.file, draw)
        else:
            self.file.write_bytes(mutated_bytes(self.good, draw))
        try:
            return judged(self._read, self._right)
        finally:
            self.file.write_bytes(self.good)

    def _right(self, read: tuple[Array, Grid]) -> str:
        mask, grid = read
        known = {value for value in self.labels.declared.values() if isinstance(value, int)}
        if grid != self.grid or mask.shape != self.mask.shape:
            raise WrongError("a mask on another grid")
        if not {int(value) for value in np.unique(mask)} <= known:
            raise WrongError(f"labels {np.unique(mask)[:5]}")
        return SAME if np.array_equal(mask, self.mask) else HARMLESS


class FileNames:
    """Names of files, folders and links: cases have names that disks and pages can hold."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "cases"
        write_image(folder / "a.nii.gz", small_case(("t1",), 0, SHAPE)[0]["t1"], IMAGE_GRID)
        self.content = (folder / "a.nii.gz").read_bytes()

    def attack(self, draw: random.Random) -> str:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        for _ in range(draw.randrange(1, 7)):
            self._put(draw)
        return judged(self._find, self._right)

    def _put(self, draw: random.Random) -> None:
        words = ("_t1", "_T1w", "_flair", "", "_0000", "_seg", "sub-01_T2w", "t1c", "FLAIR-1")
        place = self.folder
        for _ in range(draw.choice((0, 0, 1, 2))):
            place = place / (draw.choice((*NAMES, "imagesTr", "anat", "p1", "t1")) or "x")
        ending = draw.choice((".nii.gz", ".nii", ".NII.GZ", ".nrrd", ".dcm", "", ".hdr", ".csv"))
        name = draw.choice((*NAMES, "p1", "p2")) + draw.choice(words) + ending
        try:
            inside = place.resolve().is_relative_to(self.folder.resolve())
            file = place / name
            if not inside or not file.parent.resolve().is_relative_to(self.folder.resolve()):
                return
            if "/" in name and not file.resolve().is_relative_to(self.folder.resolve()):
                return
            file.parent.mkdir(parents=True, exist_ok=True)
            choice = draw.randrange(8)
            if choice == 0:
                file.symlink_to(draw.choice((self.folder, file, "/nowhere", "/dev/zero", "..")))
            elif choice == 1:
                file.mkdir()
            else:
                file.write_bytes(self.content)
        except (OSError, ValueError, UnicodeError):  # no disk takes this name
            return

    def _find(self) -> Any:
        found, rows = find_all(self.folder, Modalities())
        table = mapping_table(rows, self.folder, found.records)
        return found, describe(found), table

    def _right(self, shown: Any) -> str:
        found, lines, table = shown
        for case in found.cases:
            if set(case.name) & set("/\\\0") or case.name.startswith("."):
                raise WrongError(f"a case {case.name!r}")
            plain(case.name)
        for line in printable(lines).split("\n"):  # as a command shows it
            plain(line)
        for row in table.splitlines()[1:]:
            for field in row.split(","):
                text = field.strip('" ')
                if text[:1] in tuple("=+@\t\r") and not re.fullmatch(r"[+-]?[\d.]*", text):
                    raise WrongError(f"a formula in the table: {field!r}")
        return HARMLESS
