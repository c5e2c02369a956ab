"""What travels between server and sites: named tensors and a JSON record, as bytes. No pickles."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mixmfl.errors import AggregationError
from mixmfl.memory import State
from mixmfl.tensors import pack, unpack

FORMAT = 1


@dataclass(frozen=True)
class Message:
    """One message.

    Attributes:
        kind: ``"train"`` or ``"validate"``, the same in task and reply.
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


def decode(content: bytes) -> Message:
    """Read what ``encode`` wrote.

    Raises:
        AggregationError: Not a message, or one of another format.
    """
    try:
        tensors, header = unpack(content)
        kind, record, found = header["kind"], header["record"], header["format"]
    except (KeyError, ValueError) as error:
        raise AggregationError(f"a message of {len(content)} bytes is damaged: {error}") from None
    if found != FORMAT:
        raise AggregationError(
            f"a message of format {found} came, {FORMAT} is needed; install one version of mixmfl "
            "at all sites"
        )
    return Message(kind, record, tensors)
