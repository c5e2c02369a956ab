"""Named tensors and a JSON header as safetensors: the form of models, states and messages.

Equal content gives equal bytes. Reading runs nothing.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

# one entry, because safetensors writes several in no fixed order
_ENTRY = "mixmfl"

# far beyond what a network needs: 500 tensors have a header of 60 kB
MOST_HEADER_BYTES = 4 * 2**20
MOST_TENSORS = 20_000
MOST_AXES = 8
MOST_DEPTH = 32

_ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "U8": 1, "BOOL": 1}


def pack(tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> bytes:
    """Return tensors and header as bytes."""
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    return safetensors.torch.save(contiguous, {_ENTRY: json.dumps(header)})


def unpack(content: bytes) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return what ``pack`` was given.

    Sizes that the bytes declare are compared with those they have before anything is allocated.

    Raises:
        ValueError: The bytes are damaged, were not made by ``pack``, or declare more than the
            limits of this module.
    """
    declared = _declared(content)
    header = _header(declared.pop("__metadata__", None))
    try:
        return safetensors.torch.load(content), header
    except safetensors.SafetensorError as error:
        raise ValueError(str(error)) from None


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


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of tensors: of their names, types, shapes and numbers."""
    made = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        made.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        # as bytes, so that the types that numpy lacks are hashed too
        made.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return made.hexdigest()


def _declared(content: bytes) -> dict[str, Any]:
    """Return the header of safetensors: 8 bytes of length, then JSON; checked against the rest."""
    size = int.from_bytes(content[:8], "little")
    if not 2 <= size <= min(len(content) - 8, MOST_HEADER_BYTES):
        raise ValueError(
            f"a header of {size} bytes is declared; at most {MOST_HEADER_BYTES} are read, and "
            f"{max(len(content) - 8, 0)} are there"
        )
    declared = _read_json(content[8 : 8 + size])
    if not isinstance(declared, dict) or len(declared) > MOST_TENSORS:
        raise ValueError(f"it does not declare tensors by name, or more than {MOST_TENSORS}")
    end = 0
    for name, told in declared.items():
        if name != "__metadata__":
            end = max(end, _declared_end(name, told))
    if end != len(content) - 8 - size:
        raise ValueError(
            f"tensors of {end} bytes are declared, {len(content) - 8 - size} are there"
        )
    return declared


def _declared_end(name: str, told: Any) -> int:
    """Return where a tensor ends in the buffer; that it is there remains to be seen."""
    try:
        item, shape, (begin, end) = told["dtype"], told["shape"], told["data_offsets"]
        sound = (
            all(type(number) is int and number >= 0 for number in (*shape, begin, end))
            and len(shape) <= MOST_AXES
            # a size above 2^40 beside one of 0 would pass as an empty tensor
            and all(number <= 2**40 for number in shape)
            and end - begin == _ITEM_BYTES[item] * math.prod(shape)
        )
    except (KeyError, TypeError, ValueError):
        sound = False
    if not sound:
        raise ValueError(f"{name[:80]!r}: type, shape and place are not those of a tensor")
    return int(end)


def _read_json(text: bytes | str) -> Any:
    """Read JSON that is strict, not deep, and has finite numbers only."""

    def refuse(word: str) -> None:
        raise ValueError(f"{word} is no JSON number")

    try:
        content = json.loads(text, parse_constant=refuse)
    except RecursionError:
        raise ValueError(f"JSON is nested deeper than {MOST_DEPTH}") from None
    inside = [content]
    for _ in range(MOST_DEPTH):
        inside = [
            inner
            for outer in inside
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not inside:
            return content
    raise ValueError(f"JSON is nested deeper than {MOST_DEPTH}")


def _header(metadata: Any) -> dict[str, Any]:
    text = metadata.get(_ENTRY) if isinstance(metadata, dict) else None
    header = _read_json(text) if isinstance(text, str) else None
    if not isinstance(header, dict):
        raise ValueError("it was not written by mixmfl")
    return header
