"""What travels between server and sites: named tensors and a JSON record, as bytes. No pickles."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from mixmfl.core.errors import AggregationError
from mixmfl.core.files import UnlinkedFile, unlinked_file
from mixmfl.core.json_fields import is_whole, shown
from mixmfl.core.tensor_store import open_stored, pack, unpack, write

FAILED = "failed"
"""The kind of a reply that only says that a task could not be done."""

SENT: Mapping[str, Mapping[str, str]] = {
    "fingerprint": {
        "fingerprint": "statistics of the training cases: counts, histograms and sums, no row per "
        "case",
        "labels": "what the labels mean",
    },
    "preprocess": {
        "cases": "how many cases could be used, and how many could not",
    },
    "join": {
        "registration": "the number of training cases, how many have each modality, which "
        "modalities the validation cases have, and which labels the site knows if not all",
    },
    "train": {
        "round": "number of the round",
        "loss": "mean training loss of the round",
        "dice_loss": "the Dice part of that loss; the rest is cross-entropy",
        "epsilon": "epsilon spent so far",
        "delta": "the delta it holds for",
    },
    "validate": {
        "round": "number of the round",
        "dice": "per label or region the sum of Dice over the validation cases, and their number",
    },
    "measure": {
        "round": "number of the round",
        "subsets": "for every subset of modalities and every label or region, how many validation "
        "cases have a Dice in each of 20 equal ranges",
        "confidence": "per label or region, over the masks of the validation cases: their number, "
        "and sums of confidence and Dice, of their squares and products; those with Dice of masks "
        "as they are and without components below 5, 10 and 20 % of the largest",
        "reliability": "per label or region, over the voxels of the validation cases: how many "
        "have a probability in each of 32 ranges, the sum of these probabilities, and how many of "
        "the voxels are of the label",
        "components": "per label or region, over the validation cases: their number, the sum of "
        "Dice from all their modalities, and, as means over all subsets, the sum of Dice of masks "
        "as they are and without components below 5, 10 and 20 % of the largest",
    },
    "compare": {
        "round": "number of the round",
        "components": "of two configurations and of the mean of both, the same as in measure",
    },
    "keys": {
        "round": "number of the round",
        "key": "a public key of this round, for masks",
        "certificate": "the site's certificate, from its kit",
        "signature": "the site's signature under the key, for the other sites",
    },
    "masked": {
        "round": "number of the round",
        "epsilon": "epsilon spent so far",
        "delta": "the delta it holds for",
    },
    "personalize": {
        "dice": "mean validation Dice of the personalised model",
        "dice_before": "mean validation Dice of the global model",
    },
    "model": {},
    "failed": {
        "error": "the kind of error, without its text",
        "version": "the site's version of mixmfl",
        "refused": "which of the hospital's limits, or what in its policy, forbids the task",
    },
}
"""What a message of each kind may carry beside tensors, in plain words."""

FORMAT = 5

MOST_BYTES = 4 * 2**30
"""Largest message, where its reader knows no closer limit."""

# what a reply may have beyond its task: statistics, names in the header, and prototypes, of which a
# thousand labels, four modalities and three levels of 320 channels have 30 MB where they are masked
_REPLY_SLACK = 64 * 2**20


@dataclass(frozen=True)
class Message:
    """One message.

    Attributes:
        kind: Kind of the message, such as ``"train"``, the same in task and reply; see ``SENT``.
        record: Plain JSON content.
        tensors: Tensors by name; those of a ``StoredMessage`` are read when they are used.
    """

    kind: str
    record: Mapping[str, Any]
    tensors: Mapping[str, Tensor]


class StoredMessage:
    """A message as bytes on disk, in a file without a name that is gone when nobody uses it.

    Large messages take no memory while they wait, and leave nothing behind.
    """

    def __init__(self, file: UnlinkedFile) -> None:
        """Take a complete file."""
        self._file = file
        self.size = os.fstat(file.fileno()).st_size

    @classmethod
    def pack(cls, message: Message, folder: Path) -> "StoredMessage":
        """Write a message; the file lies on the disk of ``folder``."""
        header = _header(message)
        return cls(unlinked_file(folder, lambda path: write(path, message.tensors, header)))

    @classmethod
    def store(cls, content: bytes, folder: Path) -> "StoredMessage":
        """Write the bytes of a message."""
        return cls(unlinked_file(folder, lambda path: path.write_bytes(content)))

    @cached_property
    def sha256(self) -> str:
        """Return the digest of the bytes."""
        digest = hashlib.sha256()
        for start in range(0, self.size, 1 << 20):
            digest.update(self.read(start, 1 << 20))
        return digest.hexdigest()

    def read(self, start: int, count: int) -> bytes:
        """Return up to ``count`` bytes from a place on; threads may do so at once."""
        return os.pread(self._file.fileno(), count, start)

    def open(self, most_bytes: int = MOST_BYTES) -> Message:
        """Read the message, as ``decode`` does; its tensors stay on disk until they are asked for.

        Raises:
            AggregationError: Not a message, one of another format, or one beyond the limits.
        """
        _check_size(self.size, most_bytes)
        try:
            return _message(*open_stored(self._file))
        except (KeyError, ValueError) as error:
            raise _damaged(self.size, error) from None


def encode(message: Message) -> bytes:
    """Return the message as bytes."""
    return pack(message.tensors, _header(message))


def decode(content: bytes, most_bytes: int = MOST_BYTES) -> Message:
    """Read what ``encode`` wrote.

    Nothing in it is run, and reading it takes no more memory than a few times its size;
    ``tensor_store`` has the limits on its parts.

    Args:
        content: The bytes of a message.
        most_bytes: Largest message that is read.

    Raises:
        AggregationError: Not a message, one of another format, or one beyond the limits.
    """
    _check_size(len(content), most_bytes)
    try:
        return _message(*unpack(content))
    except (KeyError, ValueError) as error:
        raise _damaged(len(content), error) from None


def most_reply_bytes(task_bytes: int) -> int:
    """Return how large the reply to a task can be: its blocks again, four times as wide, and more.

    Weights travel in 2 bytes to a site, and in a masked reply become numbers of 8.
    """
    return 4 * task_bytes + _REPLY_SLACK


def _header(message: Message) -> dict[str, Any]:
    return {"format": FORMAT, "kind": message.kind, "record": message.record}


def _message(tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> Message:
    kind, record, version = header["kind"], header["record"], header["format"]
    if not isinstance(kind, str) or not isinstance(record, dict):
        raise ValueError("kind or record are none")
    if not is_whole(version, FORMAT, FORMAT):
        raise AggregationError(
            f"a message of format {shown(version)} came, {FORMAT} is needed; install one version "
            "of mixmfl at all sites"
        )
    return Message(kind, record, tensors)


def _check_size(size: int, most_bytes: int) -> None:
    if size > most_bytes:
        raise AggregationError(
            f"a message of {size} bytes came, at most {most_bytes} are needed for it"
        )


def _damaged(size: int, error: Exception) -> AggregationError:
    return AggregationError(f"a message of {size} bytes is damaged: {error}")
