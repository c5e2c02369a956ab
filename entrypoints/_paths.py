"""Paths that commands take: each is checked before any work, and what is wrong is said in words."""

import argparse
import os
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path

from mixmfl.core.errors import MixmflError, why


@dataclass(frozen=True)
class PathArgument:
    """The type of an option that names a file or folder.

    Attributes:
        what: What is needed there, as messages say it.
        kind: ``"file"``, ``"folder"``, or ``"file or folder"``.
        is_made: Whether the command makes it; else it must be there.
    """

    what: str
    kind: str
    is_made: bool = False

    def __call__(self, text: str) -> Path:
        """Return the path of an option's text; none stands for the current folder silently."""
        if not text:
            raise argparse.ArgumentTypeError(
                f"is empty, as a variable of a shell is that was not set; needed is {self.what}"
            )
        return Path(text)

    def check(self, option: str, path: Path) -> None:
        """Check what is there, or whether it can be made.

        Raises:
            MixmflError: The option cannot be used.
        """
        try:
            found = self._fault_of_place(path) if self.is_made else self._fault(path)
        except OSError as error:
            found = why(error)
        if found:
            raise MixmflError(f"{option} {path}: {found}; needed is {self.what}")

    def _fault(self, path: Path) -> str:
        """Return what is wrong with a path to read; empty: nothing."""
        try:
            status = path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return f"there is no such {self.kind}"
        is_folder = stat.S_ISDIR(status.st_mode)
        if wrong := self._wrong_kind(is_folder):
            return wrong
        if stat.S_ISREG(status.st_mode) and not status.st_size:
            return "is an empty file"
        if not os.access(path, os.R_OK | (os.X_OK if is_folder else 0)):
            return "this user may not read it; ask who owns it"
        return ""

    def _fault_of_place(self, path: Path) -> str:
        """Return why nothing can be written at a path; empty: it can."""
        if path.exists():
            if wrong := self._wrong_kind(path.is_dir()):
                return wrong
            if path.is_file():
                return "" if os.access(path, os.W_OK) else "this user may not write to it"
            if not path.is_dir():  # a device, such as /dev/null
                return ""
        above = path
        while not above.exists():
            above = above.parent
        if not above.is_dir():
            return f"{above} is a file, and nothing can be made in it"
        try:
            # permissions alone do not tell it, as of a full or a read-only disk
            with tempfile.TemporaryFile(dir=above):  # it has no name that could be left over
                return ""
        except OSError as error:
            return f"nothing can be made in {above} ({error.strerror})"

    def _wrong_kind(self, is_folder: bool) -> str:
        if is_folder and self.kind == "file":
            return "is a folder, and no file"
        if not is_folder and self.kind == "folder":
            return "is a file, and no folder"
        return ""


def folder(what: str) -> PathArgument:
    """Return the type of an option that names a folder that is there."""
    return PathArgument(what, "folder")


def file(what: str) -> PathArgument:
    """Return the type of an option that names a file that is there."""
    return PathArgument(what, "file")


def either(what: str) -> PathArgument:
    """Return the type of an option that names a file or folder that is there."""
    return PathArgument(what, "file or folder")


def new_folder(what: str = "a folder to write to") -> PathArgument:
    """Return the type of an option that names a folder that the command writes to."""
    return PathArgument(what, "folder", is_made=True)


def new_file(what: str = "the name of a file to write") -> PathArgument:
    """Return the type of an option that names a file that the command writes."""
    return PathArgument(what, "file", is_made=True)


def new_either(what: str) -> PathArgument:
    """Return the type of an option that names a file or folder that the command writes."""
    return PathArgument(what, "file or folder", is_made=True)


CASES = folder("a folder of cases")
WORK = folder("WORK, the folder that mixmfl_plan_preprocess wrote")
MODEL = either("a model file, or the folder of a run of mixmfl_train_federated")
RUN = folder("RUN, the folder of a run of mixmfl_train_federated")
KIT = folder("a kit, a folder that mixmfl_provision wrote")
LABELS = file("a dataset.json, or a plans.json, that says what labels mean")
MAPPING = file("a table that mixmfl_predict --write-mapping wrote")


def check_paths(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Check all paths that a command was given, in the order of its options.

    Raises:
        MixmflError: One of them cannot be used.
    """
    for action in parser._actions:
        if isinstance(action.type, PathArgument):
            given = getattr(options, action.dest)
            option = action.option_strings[0] if action.option_strings else str(action.metavar)
            for path in given if isinstance(given, list) else [given]:
                if path is not None:
                    action.type.check(option, path)
