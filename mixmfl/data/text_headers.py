"""The text headers of NRRD and MetaImage, checked before ITK reads them.

ITK would read any file of the machine that a header names, wait for ever for a pipe, and write a
long line over memory that is not its own.
"""

import re
from pathlib import Path

from mixmfl.core.errors import DataError
from mixmfl.core.files import is_file, only_files
from mixmfl.core.text import quoted
from mixmfl.data import nifti

# what names the voxels' file in a header of NRRD and of MetaImage; blanks before a name are those
# of its own line, as many empty lines would be searched once from each
_VOXELS_FILE = re.compile(rb"(?im)^[^\S\n]*(?:data ?file\s*:|ElementDataFile\s*[=:])([^\n]+)")
# ITK takes this key letter for letter
_END_OF_META = re.compile(rb"(?m)^[^\S\n]*ElementDataFile\s*[=:][^\n]*")
_END_OF_NRRD = re.compile(rb"\n\n")
# ITK writes a longer line over memory that is not its own; a comment of NRRD, or a key of the
# user's with its value, may be long
_LONG_LINE = {
    "nrrd": re.compile(rb"(?m)^(?!#|[^:\n]*:=)[^\n]{501}"),
    "meta": re.compile(rb"(?m)^[^\n]{256}"),
}
_AXES = re.compile(rb"(?im)^[^\S\n]*NDims\s*[=:]\s*([2-5])\s*$")
_SIZE = re.compile(rb"(?im)^[^\S\n]*DimSize\s*[=:]\s*((?:\d{1,6}[ \t]+)*\d{1,6})\s*$")
# what says, in either header, how large voxels are, and where they lie
_STATED = {
    "nrrd": (re.compile(rb"(?im)^[^\S\n]*(spacings|space directions)\s*:"),
             re.compile(rb"(?im)^[^\S\n]*space directions\s*:")),
    "meta": (re.compile(rb"(?im)^[^\S\n]*Element(Spacing|Size)\s*[=:]"),
             re.compile(rb"(?im)^[^\S\n]*(TransformMatrix|Orientation|Rotation)\s*[=:]")),
}  # fmt: skip
_LONGEST_HEADER = 1 << 20  # bytes of a text header


def voxels_of(path: Path) -> Path | None:
    """Return the file that a header names for its voxels, if any; it need not exist."""
    found = _VOXELS_FILE.search(_start_of(path))
    return path.parent / found[1].decode("utf-8", "replace").strip() if found else None


def check_header(path: Path) -> str:
    """Check that a header can be read, and names no file but one beside it.

    Returns:
        What the header leaves open about the place of the voxels; empty: nothing.

    Raises:
        DataError: It names another place, several files, or something that is no file.
    """
    start = _start_of(path)
    ending = path.suffix.lower()
    form = "nrrd" if ending in (".nrrd", ".nhdr") else "meta"
    is_whole = len(start) < _LONGEST_HEADER
    if form == "nrrd":  # of which a carriage return alone ends a line, too
        start = start.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    # ITK reads no further
    end = (_END_OF_META if form == "meta" else _END_OF_NRRD).search(start)
    start = start[: end.end()] if end else start
    names = [n.decode("utf-8", "replace").strip() for n in _VOXELS_FILE.findall(start)]
    if not (names and (end or is_whole) if ending == ".nhdr" else end):
        raise nifti.not_an_image(
            path, "its header has no end, or does not say where its voxels are"
        )
    if long := _LONG_LINE[form].search(start):
        raise nifti.not_an_image(
            path, f"a line of its header has {len(long[0])} characters or more"
        )
    if form == "meta":  # without them ITK reads memory that is not its own
        axes, sizes = _AXES.findall(start), _SIZE.findall(start)
        if len(axes) != 1 or [len(size.split()) for size in sizes] != [int(axes[0])]:
            raise nifti.not_an_image(path, "its header has no NDims from 2 to 5, with its DimSize")
    for name in names:
        if name == "LOCAL" and ending == ".mha":
            continue
        # a list or a pattern of files names others
        is_one = name == Path(name).name and not name.startswith("LIST") and "%" not in name
        if not is_one or not is_file(path.parent / name):
            raise DataError(
                f"{path}: says that its voxels are in {quoted(name)}; needed is one file in the "
                "same folder. Save the image as one file, such as NIfTI"
            )
    size, place = _STATED[form]
    open_ = [
        words
        for words, pattern in (("how large its voxels are", size), ("where it lies", place))
        if not pattern.search(start)
    ]
    if not open_:
        return ""
    return (
        f"its header does not say {' or '.join(open_)}; ITK's default was taken, of which spacing "
        "and directions may be wrong"
    )


def _start_of(path: Path) -> bytes:
    with open(path, "rb", opener=only_files) as file:
        return file.read(_LONGEST_HEADER)
