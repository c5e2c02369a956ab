"""What became of every file and folder met: used, set aside with its reason, or refused."""

import csv
import io
import os
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mixmfl.core.spreadsheet import cell
from mixmfl.data.image import FILE_ENDINGS, OTHER_FORMATS

LABEL = "label"
"""What ``Told.modality`` says of a segmentation."""


@dataclass(frozen=True)
class Told:
    """What a file or folder was taken for.

    Attributes:
        path: Which.
        why: What says so.
        case: Its case's name; empty where it has none.
        modality: One, or ``LABEL``; empty where it is set aside.
        is_series: Whether it stands for a DICOM series; ``path`` is its first file.
    """

    path: Path
    why: str
    case: str = ""
    modality: str = ""
    is_series: bool = False


def rest_below(folder: Path, known: Collection[Path]) -> Iterator[Told]:
    """Yield what lies in a folder and was not told yet, each with why it is not looked at.

    Args:
        folder: To look through, also below.
        known: Files that were told of.
    """
    told = {_here(path) for path in known}
    yield from _rest(folder, told, ())


def _rest(folder: Path, told: set[Path], above: tuple[Path, ...]) -> Iterator[Told]:
    real = folder.resolve()
    if real in above:
        yield Told(folder, "a link to a folder that it lies in")
        return
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        yield Told(folder, f"a folder that may not be read ({error.strerror})")
        return
    if not entries:
        yield Told(folder, "an empty folder")
    for entry in entries:
        if entry.name.startswith("."):
            yield Told(entry, "hidden: its name begins with a dot")
        elif entry.is_dir():
            yield from _rest(entry, told, (*above, real))
        elif _here(entry) not in told:
            yield Told(entry, _why_not_read(entry))


def _why_not_read(path: Path) -> str:
    if path.is_symlink() and not path.exists():
        return "a link to a file that is not there"
    if not path.is_file():
        return "is no file"
    if not path.stat().st_size:
        return "an empty file"
    ending = other_format(path)
    if ending:
        return f"{OTHER_FORMATS[ending]} is not read; convert it to NIfTI (.nii.gz)"
    if path.name.lower().endswith(FILE_ENDINGS):
        return "an image outside the folders that are read in this layout"
    if owner := _header_of(path):
        return f"the voxels of {owner}"
    return "no image that we know"


def _header_of(path: Path) -> str:
    """Return the header, in a file of its own, that a file of voxels belongs to."""
    stem = path.name.split(".")[0]
    found = (path.with_name(f"{stem}{ending}") for ending in (".mhd", ".nhdr"))
    return next((each.name for each in found if each.is_file() and each != path), "")


def other_format(path: Path) -> str:
    """Return the ending of an image's format that is known but not read; empty where it is none."""
    name = path.name.lower()
    return next((ending for ending in OTHER_FORMATS if name.endswith(ending)), "")


def _here(path: Path) -> Path:
    """Return a path by which two of the same file are equal; its own link, if it is one, stays."""
    return Path(os.path.abspath(path))


def aside_table(told: Iterable[Told], folder: Path) -> str:
    """Return what was set aside as CSV: path below the folder, and why."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(("path", "why"))
    for each in told:
        writer.writerow((cell(inside(each.path, folder)), cell(each.why)))
    return text.getvalue()


def inside(path: Path, folder: Path) -> str:
    """Return a path below a folder as tables tell it, with slashes; else as it is."""
    if path.is_relative_to(folder):
        return path.relative_to(folder).as_posix()
    return str(path)
