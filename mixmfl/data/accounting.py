"""An account of every file and folder: used, set aside with a reason, or refused."""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mixmfl.core.files import absolute
from mixmfl.core.spreadsheet import table
from mixmfl.data.image import DETACHED, FILE_ENDINGS, OTHER_FORMATS, files_of

LABEL = "label"
"""The ``FileRecord.modality`` of a segmentation."""

OPEN = "?"
"""The modality in the user's table of what is a question: it is read as without the table."""


@dataclass(frozen=True)
class FileRecord:
    """A file or folder, and what it was taken for.

    Attributes:
        path: The file or folder.
        why: The reason why it was taken for that.
        case: The name of its case; empty where it belongs to none.
        modality: Its modality, or ``LABEL``; empty where it is set aside.
        is_series: Whether it stands for a DICOM series; ``path`` is the series' first file.
        is_open: Whether it is a question what it is, or its case is refused.
    """

    path: Path
    why: str
    case: str = ""
    modality: str = ""
    is_series: bool = False
    is_open: bool = False


def rest_below(folder: Path, known: Collection[Path]) -> Iterator[FileRecord]:
    """Yield the other files and folders below a folder, with the reason why each is not read.

    Args:
        folder: The folder to search, with its subfolders.
        known: Files that have a record already.
    """
    known_paths = {absolute(path) for path in known}
    yield from _rest(folder, known_paths, ())


def _rest(folder: Path, known_paths: set[Path], above: tuple[Path, ...]) -> Iterator[FileRecord]:
    real = folder.resolve()
    if real in above:
        yield FileRecord(folder, "a link to a folder that it lies in")
        return
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        yield FileRecord(folder, f"a folder that may not be read ({error.strerror})")
        return
    if not entries:
        yield FileRecord(folder, "an empty folder")
    for entry in entries:
        if entry.name.startswith("."):
            yield FileRecord(entry, "hidden: its name begins with a dot")
        elif absolute(entry) in known_paths:
            pass
        elif is_twin(entry, (*above, real)[0]):
            kind = "folder" if entry.is_dir() else "file"
            yield FileRecord(entry, f"a link to a {kind} that is read where it lies")
        elif entry.is_dir():
            yield from _rest(entry, known_paths, (*above, real))
        else:
            yield FileRecord(entry, _why_not_read(entry))


def is_twin(place: Path, top: Path) -> bool:
    """Say whether a path is a link to a folder, or to a file of its name, below ``top``.

    Args:
        place: The path.
        top: A path without links.
    """
    if not place.is_symlink() or not place.exists():  # a link to itself has no place
        return False
    real = place.resolve()
    is_twin = place.is_dir() or real.name == place.name
    return (
        is_twin
        and real.is_relative_to(top)
        and not any(part.startswith(".") for part in real.relative_to(top).parts)
    )


def _why_not_read(path: Path) -> str:
    if path.is_symlink() and not path.exists():
        return "a link to a file that is not there"
    if not path.is_file():
        return "is no file"
    if not path.stat().st_size:
        return "an empty file"
    if owner := header_of(path):
        return f"the voxels of {owner}"
    if path.name.upper() == "DICOMDIR":
        return "a list of DICOM files, which are found without it"
    if other_format(path):
        return why_other(path)
    if path.name.lower().endswith(FILE_ENDINGS):
        return "an image outside the folders that are read in this layout"
    return "no image that we know"


def header_of(path: Path) -> str:
    """Return the name of the separate header file that a file of voxels belongs to, or nothing."""
    stems = {path.name.split(".")[0], path.stem, Path(path.stem).stem}
    endings = [cased for each in DETACHED for cased in (each, each.upper())]
    headers = [path.with_name(stem + ending) for stem in sorted(stems) for ending in endings]
    return next((e.name for e in headers if e != path and path in files_of(e)[1:]), "")


def other_format(path: Path) -> str:
    """Return the ending of a known image format that is not read; empty for any other file."""
    name = path.name.lower()
    return next((ending for ending in OTHER_FORMATS if name.endswith(ending)), "")


def why_other(path: Path) -> str:
    """Say why a file of a known format is not read, and what to do."""
    what = OTHER_FORMATS[other_format(path)]
    do = "convert it to NIfTI (.nii.gz)"
    if "archive" in what or "packed" in what:
        do = "unpack it"
    elif "header" in what:
        do = "copy its header (.hdr), too"
    return f"{what} is not read; {do}"


def aside_table(records: Iterable[FileRecord], folder: Path) -> str:
    """Return the records as CSV: the path below the folder, and the reason."""
    return table([("path", "why"), *((inside(each.path, folder), each.why) for each in records)])


def inside(path: Path, folder: Path) -> str:
    """Return the path relative to the folder, with slashes; unchanged if it lies elsewhere.

    Where a single file stands for the folder, it is the file's name.
    """
    if path == folder and not folder.is_dir():
        return path.name
    if path.is_relative_to(folder):
        return path.relative_to(folder).as_posix()
    return str(path)


def by_mapping(modality: str, own: str, why: str) -> str:
    """Return the reason to record where the user's table decides.

    Args:
        modality: The modality in the table; empty: set aside.
        own: The modality without the table; empty: set aside.
        why: The reason for ``own``, which must not be lost where the table differs.
    """
    if modality == own and own:
        return "mapping"
    return f"mapping; else {own or 'set aside'} ({why})"
