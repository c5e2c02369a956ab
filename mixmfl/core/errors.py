"""Errors that a user can fix, one class per kind of remedy.

Every message says what was looked at, what was found, what is needed and what to do. Commands
print it without a traceback; any other exception is a bug in mixmfl.
"""

import errno
from dataclasses import dataclass

_FOUND = {
    errno.ENOENT: "there is no such file or folder, or none can be made there; check the path",
    errno.EACCES: "this user may not read or write it; ask who owns it, or name another place",
    errno.EPERM: "the system forbids it; ask who owns it, or name another place",
    errno.EROFS: "lies on a disk that is read-only; name another place",
    errno.ENOTDIR: "a file stands in this path where a folder is needed; name another place",
    errno.EISDIR: "is a folder, and a file is needed; name a file",
    errno.EEXIST: "something of this name is there already; remove it, or name another place",
    errno.ENOTEMPTY: "is a folder that holds files; remove it, or name another place",
    errno.ENAMETOOLONG: "the name is longer than the disk takes; name a shorter one",
    errno.ENOSPC: "the disk is full; free space, and run the same command again",
    errno.EDQUOT: "this user's share of the disk is used up; free space, and run the same "
    "command again",
    errno.EIO: "the disk failed to read or write; ask who looks after it",
    errno.EMFILE: "too many files are open at once; raise the system's limit (ulimit -n)",
}


@dataclass(frozen=True)
class Refused:
    """Files that look like a case but cannot be used as one, and why."""

    name: str
    reason: str


class MixmflError(Exception):
    """Base of all errors that a user can fix."""


class DataError(MixmflError):
    """A folder, an image or a label is missing, damaged or of the wrong kind."""


class NoImageError(DataError):
    """A folder holds no image that is read."""


class PlansError(MixmflError):
    """Plans, presets or fingerprints are missing, damaged, or do not fit together."""


class AggregationError(MixmflError):
    """The updates of the sites cannot be merged."""


class QuorumError(AggregationError):
    """Fewer sites answered than a round needs."""


class PrivacyError(MixmflError):
    """A site's privacy settings forbid the requested task."""


class RefusalError(PrivacyError):
    """A hospital's limits, policy or people forbid what a coordinator asks for.

    Attributes:
        reason: Why, in words that the coordinator may read: they name no file, case or count.
    """

    def __init__(self, reason: str, at_home: str = "") -> None:
        """Args: reason: see above; at_home: what the hospital alone reads of it."""
        super().__init__(". ".join(filter(None, (reason, at_home))))
        self.reason = reason


class ModelError(MixmflError):
    """A model file or a checkpoint is missing, damaged, or of another version."""


def explain(error: Exception) -> str:
    """Return the path that the system looked at, and what ``why`` says of it."""
    name = (error.filename2 or error.filename) if isinstance(error, OSError) else None
    return why(error) if name is None else f"{name}: {why(error)}"


def why(error: Exception) -> str:
    """Return what the system found and what to do, in words; of other errors their own text.

    Python's text of a system's error has a number, and a name in quotes, in place of that.
    """
    if not isinstance(error, OSError) or error.errno is None:  # of a library: its own sentence
        return str(error)
    return _FOUND.get(error.errno, f"cannot be read or written ({error.strerror})")
