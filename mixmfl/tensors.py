"""Named tensors and a JSON header as safetensors: the form of models, states and messages.

Equal content gives equal bytes. Reading runs nothing.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

# one entry, because safetensors writes several in no fixed order
_ENTRY = "mixmfl"


def pack(tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> bytes:
    """Return tensors and header as bytes."""
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    return safetensors.torch.save(contiguous, {_ENTRY: json.dumps(header)})


def unpack(content: bytes) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return what ``pack`` was given.

    Raises:
        ValueError: The bytes are damaged, or were not made by ``pack``.
    """
    try:
        tensors = safetensors.torch.load(content)
    except safetensors.SafetensorError as error:
        raise ValueError(str(error)) from None
    # safetensors: 8 bytes of length, then a JSON header
    size = int.from_bytes(content[:8], "little")
    return tensors, _header(json.loads(content[8 : 8 + size]).get("__metadata__"))


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return what ``pack`` was given, from a file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file cannot be read, is damaged, or was not made by ``pack``.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            header = _header(file.metadata())
            return {name: file.get_tensor(name) for name in file.keys()}, header  # noqa: SIM118
    except FileNotFoundError:
        raise
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(str(error)) from None


def _header(metadata: Mapping[str, str] | None) -> dict[str, Any]:
    header = json.loads((metadata or {}).get(_ENTRY, "null"))
    if not isinstance(header, dict):
        raise ValueError("it was not written by mixmfl")
    return header
