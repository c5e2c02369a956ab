"""Named tensors and a JSON header as safetensors: the form of models, states and messages.

Equal content gives equal bytes. Reading runs nothing.
"""

import hashlib
import io
import json
import math
import os
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from mixmfl.core.files import Held
from mixmfl.core.strict_json import parse_json

# one entry, because safetensors writes several in no fixed order
_ENTRY = "mixmfl"

# far beyond what a network needs: 500 tensors have a header of 60 kB
MOST_HEADER_BYTES = 4 * 2**20
MOST_TENSORS = 20_000
MOST_AXES = 8

_TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}

Form = tuple[tuple[int, ...], torch.dtype]
"""Shape and type of a tensor."""


class Stored(Mapping[str, Tensor]):
    """Tensors in an open file of safetensors, read when they are asked for, whole or in parts.

    So a state can be worked on that is larger than what memory it shall take. Nobody else reads
    from the file meanwhile.
    """

    def __init__(self, file: io.FileIO, places: Mapping[str, tuple[Form, int]]) -> None:
        """Args: the file; by name what a tensor is, and at which byte it begins."""
        self._file = file
        self._places = places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, name: object) -> bool:  # that of Mapping would read the tensor
        return name in self._places

    def __getitem__(self, name: str) -> Tensor:
        shape, kind = self.form(name)
        room = torch.empty(math.prod(shape), dtype=kind)
        return self.part(name, 0, len(room), room).reshape(shape)

    def form(self, name: str) -> Form:
        """Return what a tensor is, without reading it."""
        return self._places[name][0]

    def part(self, name: str, start: int, stop: int, room: Tensor) -> Tensor:
        """Read some of a tensor's numbers into ``room``, and return them.

        Raises:
            OSError: The file cannot be read, or became shorter.
        """
        (_, kind), begin = self._places[name]
        found = room[: stop - start]
        self._file.seek(begin + start * kind.itemsize)
        left = memoryview(found.view(torch.uint8).numpy().data)
        while len(left):
            count = self._file.readinto(left)
            if not count:
                raise OSError(f"{name}: the file became shorter while it was read")
            left = left[count:]
        return found

    def only(self, names: Collection[str]) -> "Stored":
        """Return the same with fewer names."""
        wanted = set(names)
        return Stored(self._file, {n: at for n, at in self._places.items() if n in wanted})

    def under(self, prefix: str) -> "Stored":
        """Return those whose names begin so, by the rest of their names."""
        found = {n: at for n, at in self._places.items() if n.startswith(prefix)}
        return Stored(self._file, {n.removeprefix(prefix): at for n, at in found.items()})

    def run(self, names: Sequence[str]) -> "Stored | None":
        """Return tensors of one type as one, named ``""``; None if they do not lie so."""
        (_, kind), first = self._places[names[0]]
        end = first
        for name in names:
            (shape, _), begin = self._places[name]
            if begin != end:
                return None
            end += math.prod(shape) * kind.itemsize
        return Stored(self._file, {"": ((((end - first) // kind.itemsize,), kind), first)})


def form_of(tensors: Mapping[str, Tensor], name: str) -> Form:
    """Return the shape and type of a tensor."""
    if isinstance(tensors, Stored):
        return tensors.form(name)
    return tuple(tensors[name].shape), tensors[name].dtype


def read_part(
    tensors: Mapping[str, Tensor], name: str, start: int, stop: int, room: Tensor
) -> Tensor:
    """Return some of a tensor's numbers, ``(stop - start,)``.

    Args:
        tensors: In memory, or ``Stored``.
        name: Of the tensor.
        start: The first number, counted as they lie in memory.
        stop: The one behind the last.
        room: Of the tensor's type, at least as long as the part; what is not in memory comes here.
    """
    if isinstance(tensors, Stored):
        return tensors.part(name, start, stop, room)
    return tensors[name].reshape(-1)[start:stop]


Reader = Callable[[int, int, Tensor], Tensor]
"""Reads numbers from a start to a stop, as ``read_part`` does."""


def reader_of(tensors: Mapping[str, Tensor], names: Sequence[str]) -> Reader:
    """Return what reads tensors as if they were one, the numbers of each behind those before.

    Args:
        tensors: In memory, or ``Stored``.
        names: Of one or more of them, all of the same type.
    """
    if isinstance(tensors, Stored) and (run := tensors.run(names)) is not None:
        return partial(run.part, "")  # with one access to the disk for many small tensors
    counts = [math.prod(form_of(tensors, name)[0]) for name in names]
    begins = [0, *accumulate(counts)]

    def read(start: int, stop: int, room: Tensor) -> Tensor:
        place = max(bisect_right(begins, start) - 1, 0)
        while place < len(names) and begins[place] < stop:
            begin = begins[place]
            low, high = max(start, begin), min(stop, begins[place + 1])
            some = room[low - start : high - start]
            some.copy_(read_part(tensors, names[place], low - begin, high - begin, some))
            place += 1
        return room[: stop - start]

    return read


def pieces(tensors: Mapping[str, Tensor], names: Sequence[str], most: int) -> Iterator[Tensor]:
    """Yield the numbers of tensors of one type, one behind the other, up to ``most`` at a time.

    What is yielded is overwritten by the next.
    """
    if not names:
        return
    forms = [form_of(tensors, name) for name in names]
    count = sum(math.prod(shape) for shape, _ in forms)
    read, room = reader_of(tensors, names), torch.empty(min(most, count), dtype=forms[0][1])
    for start in range(0, count, most):
        yield read(start, min(start + most, count), room)


def only(tensors: Mapping[str, Tensor], names: Collection[str]) -> Mapping[str, Tensor]:
    """Return the tensors of these names; none is made or copied."""
    if isinstance(tensors, Stored):
        return tensors.only(names)
    wanted = set(names)
    return {name: tensor for name, tensor in tensors.items() if name in wanted}


def pack(tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> bytes:
    """Return tensors and header as bytes."""
    return safetensors.torch.save(_contiguous(tensors), {_ENTRY: json.dumps(header)})


def write(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write what ``pack`` returns to a file, without having it in memory."""
    path.touch()
    mode = path.stat().st_mode
    safetensors.torch.save_file(_contiguous(tensors), path, {_ENTRY: json.dumps(header)})
    path.chmod(mode)  # safetensors lets the owner alone read it


def unpack(content: bytes) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return what ``pack`` was given.

    Sizes that the bytes declare are compared with those they have before anything is allocated.

    Raises:
        ValueError: The bytes are damaged, were not made by ``pack``, or declare more than the
            limits of this module.
    """
    _, header = _declared(len(content), lambda start, stop: content[start:stop])
    try:
        return safetensors.torch.load(content), header
    except safetensors.SafetensorError as error:
        raise ValueError(str(error)) from None


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return what ``pack`` was given, from a file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file cannot be read, or as ``unpack``.
    """
    try:
        with Held(path) as file:
            stored, header = open_stored(file)
            return dict(stored), header
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ValueError(str(error)) from None


def open_stored(file: io.FileIO) -> tuple[Stored, dict[str, Any]]:
    """Return what ``pack`` was given, from an open file; tensors are read when asked for.

    Args:
        file: Held as long as the tensors are.

    Raises:
        ValueError: As ``unpack``.
    """

    def content(start: int, stop: int) -> bytes:
        file.seek(start)
        return file.read(stop - start)

    places, header = _declared(os.fstat(file.fileno()).st_size, content)
    return Stored(file, places), header


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of tensors: of their names, types, shapes and numbers."""
    made = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        made.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        # as bytes, so that the types that numpy lacks are hashed too
        made.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return made.hexdigest()


def _contiguous(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def _declared(
    size: int, content: Callable[[int, int], bytes]
) -> tuple[dict[str, tuple[Form, int]], dict[str, Any]]:
    """Read the start of safetensors: 8 bytes of length, then JSON; checked against the rest.

    Args:
        size: Of all, in bytes.
        content: Returns the bytes from one place to another.

    Returns:
        By name what a tensor is, and at which byte it begins; and the header.
    """
    length = int.from_bytes(content(0, 8), "little")
    if not 2 <= length <= min(size - 8, MOST_HEADER_BYTES):
        raise ValueError(
            f"a header of {length} bytes is declared; at most {MOST_HEADER_BYTES} are read, and "
            f"{max(size - 8, 0)} are there"
        )
    declared = parse_json(content(8, 8 + length))
    if not isinstance(declared, dict) or len(declared) > MOST_TENSORS:
        raise ValueError(f"it does not declare tensors by name, or more than {MOST_TENSORS}")
    header = _header(declared.pop("__metadata__", None))
    spans = {name: _span(name, told) for name, told in declared.items()}
    end = 0
    for name, (_, begin, after) in sorted(spans.items(), key=lambda item: item[1][1:]):
        if begin != end:
            raise ValueError(f"{name[:80]!r}: begins at byte {begin}, not where the last ended")
        end = after
    if end != size - 8 - length:
        raise ValueError(f"tensors of {end} bytes are declared, {size - 8 - length} are there")
    return {name: (form, 8 + length + begin) for name, (form, begin, _) in spans.items()}, header


def _span(name: str, told: Any) -> tuple[Form, int, int]:
    """Return what a tensor is, and where it begins and ends; if it is there remains to be seen."""
    try:
        kind, shape, (begin, end) = _TYPES[told["dtype"]], told["shape"], told["data_offsets"]
        sound = (
            all(type(number) is int and number >= 0 for number in (*shape, begin, end))
            and len(shape) <= MOST_AXES
            # a size above 2^40 beside one of 0 would pass as an empty tensor
            and all(number <= 2**40 for number in shape)
            and end - begin == kind.itemsize * math.prod(shape)
        )
    except (KeyError, TypeError, ValueError):
        sound = False
    if not sound:
        raise ValueError(f"{name[:80]!r}: type, shape and place are not those of a tensor")
    return (tuple(shape), kind), begin, end


def _header(metadata: Any) -> dict[str, Any]:
    text = metadata.get(_ENTRY) if isinstance(metadata, dict) else None
    header = parse_json(text, MOST_HEADER_BYTES) if isinstance(text, str) else None
    if not isinstance(header, dict):
        raise ValueError("it was not written by mixmfl")
    return header
