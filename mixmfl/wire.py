"""What travels between server and sites: named tensors and a JSON record, as bytes. No pickles."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import safetensors
import safetensors.torch

from mixmfl.errors import AggregationError
from mixmfl.memory import State

FORMAT = "1"


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
    """Return the message as safetensors, its record in the header."""
    header = {"format": FORMAT, "kind": message.kind, "record": json.dumps(message.record)}
    return safetensors.torch.save(
        {name: tensor.contiguous() for name, tensor in message.tensors.items()}, header
    )


def decode(content: bytes) -> Message:
    """Read what ``encode`` wrote.

    Raises:
        AggregationError: Not a message, or one of another format.
    """
    try:
        tensors = safetensors.torch.load(content)
        size = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + size])["__metadata__"]
        record = json.loads(header["record"])
        kind, found = header["kind"], header["format"]
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        raise AggregationError(f"a message of {len(content)} bytes is damaged: {error}") from None
    if found != FORMAT:
        raise AggregationError(
            f"a message of format {found} came, {FORMAT} is needed; install one version of mixmfl "
            "at all sites"
        )
    return Message(kind, record, tensors)
