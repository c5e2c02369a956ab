"""Finding files, writing them whole or not at all, and reading JSON with checks."""

import errno
import hashlib
import io
import json
import os
import shutil
import stat
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from mixmfl.core.errors import DataError, MixmflError, why
from mixmfl.core.strict_json import MOST_BYTES, MOST_BYTES_SETTINGS, parse_json

UNFINISHED = ".writing-"
"""Beginning of the names of half-written files and folders."""

_DAY = 86_400.0
"""Seconds after which a half-written folder is left over, where the disk has no locks."""

_MOST_WAYS, _MOST_LEVELS = 100, 64


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside ``path``; it replaces ``path`` if the block succeeds.

    The temporary name keeps the suffixes of ``path``, which libraries choose a format by, and
    starts with a dot, so that a reader of the folder never takes it for a finished file.

    Half-written files of the same ``path`` that killed processes left are removed first. A living
    process locks what it writes, so that its files are left alone.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # a digest, because the file's name may be as long as the disk allows
    begin = f"{UNFINISHED}{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:8]}-"
    for left in list(path.parent.glob(f"{begin}*")):
        _remove_left(left)
    while True:
        with (
            tempfile.TemporaryDirectory(prefix=begin, dir=path.parent) as name,
            ExitStack() as held,
        ):
            folder = Path(name)
            with suppress(OSError):
                held.enter_context(_folder_locked(folder, shared=True))
            if not folder.exists():  # another process took it for left over before it was locked
                continue
            yield folder / path.name
            os.replace(folder / path.name, path)
            return


@contextmanager
def _folder_locked(folder: Path, *, shared: bool) -> Iterator[None]:
    """Lock a folder, which the system frees where this process dies.

    A writer's lock is shared, because NFS gives no other for what is opened to be read.

    Raises:
        BlockingIOError: Another process has locked it.
        OSError: The folder is gone, or this system or disk has no such locks.
    """
    if sys.platform == "win32":
        raise OSError(errno.ENOLCK, "folders cannot be locked on Windows")
    import fcntl

    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(opened, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        yield
    finally:
        os.close(opened)


def _remove_left(folder: Path) -> None:
    """Remove a half-written folder, unless a living process may still write to it."""
    try:
        with _folder_locked(folder, shared=False):
            shutil.rmtree(folder, ignore_errors=True)
    except BlockingIOError:
        return
    except OSError:
        with suppress(OSError):
            if time.time() - folder.lstat().st_mtime > _DAY:
                shutil.rmtree(folder, ignore_errors=True)


def only_files(path: str, flags: int) -> int:
    """Open what is a file, as ``opener`` of ``open``; a pipe would block whoever reads it.

    Raises:
        OSError: It cannot be opened, or is a pipe, a device or a socket.
    """
    opened = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # Windows has no such pipes
    kind = os.fstat(opened).st_mode
    if not stat.S_ISREG(kind) and not stat.S_ISDIR(kind):  # open() refuses folders itself
        os.close(opened)
        raise OSError(errno.EINVAL, "it is a pipe or a device, and a file is needed", path)
    return opened


class SelfClosingFile(io.FileIO):
    """A file that is read, and closes itself when nothing refers to it any more."""

    def __init__(self, path: Path) -> None:
        """Open a file; see ``only_files`` for what is raised."""
        super().__init__(path, opener=only_files)

    def __del__(self) -> None:
        self.close()


class UnlinkedFile(SelfClosingFile):
    """An open file without a name, for reading; it disappears when nothing refers to it.

    Attributes:
        left: The file's path, where the system cannot remove an open file (Windows).
    """

    left: Path | None = None

    def __del__(self) -> None:
        super().__del__()
        if self.left is not None:
            self.left.unlink(missing_ok=True)


def unlinked_file(folder: Path, write: Callable[[Path], object]) -> UnlinkedFile:
    """Write a file, remove its name, and return it open for reading.

    So nothing is left on disk, even if this process is killed.

    Args:
        folder: A folder on the disk that holds the file; it is made if it does not exist.
        write: A function that writes the content to a path.
    """
    folder.mkdir(parents=True, exist_ok=True)
    number, name = tempfile.mkstemp(prefix=UNFINISHED, dir=folder)
    os.close(number)
    path = Path(name)
    try:
        write(path)
        file = UnlinkedFile(path)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    try:
        path.unlink()
    except PermissionError:
        file.left = path
    return file


def clear_unfinished(folder: Path, *, below: bool = False) -> None:
    """Remove from a folder what killed processes left half written, whatever it was to become.

    Args:
        folder: The folder; it need not exist.
        below: Whether the folders in it are searched, too.
    """
    for path in list((folder.rglob if below else folder.glob)(f"{UNFINISHED}*")):
        if path.is_dir() and not path.is_symlink():
            _remove_left(path)
        else:
            path.unlink(missing_ok=True)


@contextmanager
def locked(path: Path, seconds: float, refusal: MixmflError) -> Iterator[None]:
    """Hold a lock that one process holds at a time; the system frees it where a process dies.

    Args:
        path: The lock's file, which stays.
        seconds: How long to wait for the lock; a negative number waits for ever.
        refusal: The error to raise if another process still holds the lock.
    """
    # imported here, because it takes half of the time that a command needs to show its --help
    from filelock import FileLock, Timeout

    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=seconds)
    except Timeout:
        raise refusal from None
    try:
        yield
    finally:
        lock.release()


def files_below(folder: Path) -> Iterator[Path]:
    """Yield the files below a folder, sorted, following links but not in circles.

    Hidden files are passed over, and so are macOS's ``._`` twins of real files, and pipes and
    devices, which would block whoever reads them.

    Args:
        folder: The folder to search.

    Raises:
        DataError: Folders are nested too deeply, or links lead to one folder in too many ways: a
            few links to folders of links multiply to any number of ways.
    """
    yield from _files_below(folder, (), Counter())


def _files_below(folder: Path, above: tuple[Path, ...], ways: Counter[Path]) -> Iterator[Path]:
    """Args: above: the folders around this one; ways: how often each was searched so far."""
    real = folder.resolve()
    if real in above:
        return
    ways[real] += 1
    if ways[real] > _MOST_WAYS:
        raise DataError(
            f"{folder}: links lead to {real} in more than {_MOST_WAYS} ways; a folder is searched "
            "by as many at most. Remove links, or name a folder without them"
        )
    if len(above) == _MOST_LEVELS:
        raise DataError(
            f"{above[0]}: has more than {_MOST_LEVELS} folders inside each other; no more are "
            "searched. Name the folder that the images are in"
        )
    try:
        entries = sorted(folder.iterdir())
    except PermissionError:  # ``data.accounting`` reports what may not be read
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _files_below(entry, (*above, real), ways)
        elif entry.is_file() or not entry.exists():  # a link to nothing is reported when it is read
            yield entry


def folder_bytes(folder: Path) -> int:
    """Return the bytes of all files in a folder; no link is followed."""
    paths = (os.path.join(at, name) for at, _, names in os.walk(folder) for name in names)
    total = 0
    for path in paths:
        with suppress(OSError):  # it was removed in between
            total += os.lstat(path).st_size
    return total


def absolute(path: Path) -> Path:
    """Return a path from the root on, without ``.`` and ``..``; links stay."""
    return Path(os.path.abspath(path))


def is_file(path: Path) -> bool:
    """Say whether a path is a file; False for a name that no disk can have."""
    return exists(path) and path.is_file()


def exists(path: Path) -> bool:
    """Say whether a path exists; False for a name that no disk can have."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Write JSON that people can read, whole or not at all.

    NaN is no JSON: a ``ValueError`` is a fault of the caller.
    """
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def sha256(path: Path) -> str:
    """Return the digest of a file's content."""
    with open(path, "rb", opener=only_files) as file:
        return digest_of(file)


def digest_of(file: io.FileIO | io.BufferedReader) -> str:
    """Return the SHA-256 of all that is in an open file, of which another may have the name now."""
    digest, room = hashlib.sha256(), memoryview(bytearray(1 << 20))
    file.seek(0)
    while count := file.readinto(room):  # hashlib.file_digest comes with Python 3.11
        digest.update(room[:count])
    return digest.hexdigest()


def json_digest(content: Any) -> str:
    """Return the SHA-256 of JSON content, such as plans, whatever the order of fields in it."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_small(path: Path, most_bytes: int = MOST_BYTES_SETTINGS) -> bytes:
    """Read a file that is short by its nature, such as a key or settings.

    Raises:
        OSError: It cannot be read, or is no file.
        ValueError: It is longer.
    """
    with open(path, "rb", opener=only_files) as file:
        content = file.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise ValueError(f"more than {most_bytes} bytes are not read")
    return content


def who_may_write(path: Path) -> tuple[str, Path] | None:
    """Return who else may decide what a file or folder holds, and what they may write to.

    That is it or the folder that it is in. Whoever may write to a folder may exchange what it
    holds, unless its sticky bit is set. A group of its owner alone, as many systems make, is none.

    Returns:
        ``"everybody"`` or the name of a group, and the path; None: nobody else.
    """
    if sys.platform == "win32":
        return None
    import grp
    import pwd

    whole = path.resolve()
    for bit in (stat.S_IWOTH, stat.S_IWGRP):
        for place in (whole, whole.parent, absolute(path).parent):  # a link may be exchanged, too
            of_place = place.stat()
            if not of_place.st_mode & bit or (place != whole and of_place.st_mode & stat.S_ISVTX):
                continue
            if bit == stat.S_IWOTH:
                return "everybody", place
            name, members = str(of_place.st_gid), set[str]()
            owner = str(of_place.st_uid)
            with suppress(KeyError):  # ids without a name, as in a container
                owner = pwd.getpwuid(of_place.st_uid).pw_name
                name, _, _, listed = grp.getgrgid(of_place.st_gid)
                members = {*listed}
            if name != owner or members - {owner}:
                return name, place
    return None


def read_long_json(path: Path, error: type[MixmflError] = DataError) -> dict[str, Any]:
    """Read a record that grows with cases or rounds, as ``read_json`` reads any other."""
    return read_json(path, error, MOST_BYTES)


def read_json(
    path: Path, error: type[MixmflError] = DataError, most_bytes: int = MOST_BYTES_SETTINGS
) -> dict[str, Any]:
    """Read a JSON object, strictly: see ``strict_json.parse_json``.

    Args:
        path: The file.
        error: The class of the error that is raised.
        most_bytes: The bytes that the file may have.

    Raises:
        MixmflError: The file is missing, is no JSON, or holds no object; of class ``error``.
    """
    try:
        content = parse_json(read_small(path, most_bytes), most_bytes)
    except FileNotFoundError:
        raise error(f"{path}: there is no such file") from None
    except (OSError, ValueError) as reason:
        raise error(f"{path}: cannot be read as JSON ({why(reason)})") from None
    if not isinstance(content, dict):
        raise error(f"{path}: holds a JSON {type(content).__name__}, an object {{…}} is needed")
    return content
