"""What travels between server and sites: named tensors and a JSON record, as bytes. No pickles."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mixmfl.errors import AggregationError
from mixmfl.memory import State
from mixmfl.tensors import pack, unpack

FORMAT = 1

MOST_BYTES = 4 * 2**30
"""Of a message, where its reader knows no closer limit."""

# what a reply may have beyond its task: prototypes, and names in the header
_REPLY_SLACK = 2**20


@dataclass(frozen=True)
class Message:
    """One message.

    Attributes:
        kind: Such as ``"train"``, the same in task and reply; see ``outgoing.SENT``.
        record: Plain JSON content.
        tensors: By name.
    """

    kind: str
    record: Mapping[str, Any]
    tensors: State


def encode(message: Message) -> bytes:
    """Return the message as bytes."""
    header = {"format": FORMAT, "kind": message.kind, "record": message.record}
    return pack(message.tensors, header)


def decode(content: bytes, most_bytes: int = MOST_BYTES) -> Message:
    """Read what ``encode`` wrote.

    Nothing in it is run, and what is not read in full takes no more memory than a few times its
    size; ``tensors`` has the limits on its parts.

    Args:
        content: As it came.
        most_bytes: That are looked at at all.

    Raises:
        AggregationError: Not a message, one of another format, or one beyond the limits.
    """
    if len(content) > most_bytes:
        raise AggregationError(
            f"a message of {len(content)} bytes came, at most {most_bytes} are needed for it"
        )
    try:
        tensors, header = unpack(content)
        kind, record, found = header["kind"], header["record"], header["format"]
        if not isinstance(kind, str) or not isinstance(record, dict):
            raise ValueError("kind or record are none")
    except (KeyError, ValueError) as error:
        raise AggregationError(f"a message of {len(content)} bytes is damaged: {error}") from None
    if found != FORMAT:
        raise AggregationError(
            f"a message of format {found} came, {FORMAT} is needed; install one version of mixmfl "
            "at all sites"
        )
    return Message(kind, record, tensors)


def most_reply_bytes(task: bytes) -> int:
    """Return how large the reply to a task can be: its blocks again, twice as wide, and a little.

    Masked, a number of 4 bytes becomes one of 8.
    """
    return 2 * len(task) + _REPLY_SLACK
