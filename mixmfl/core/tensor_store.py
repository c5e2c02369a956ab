"""Named tensors with a JSON header in safetensors, as models, checkpoints and messages are kept.

Equal content gives equal bytes. Reading executes no code.
"""

import hashlib
import io
import json
import math
import os
import re
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

from mixmfl.core.errors import why
from mixmfl.core.files import SelfClosingFile, digest_of, unlinked_file
from mixmfl.core.strict_json import parse_json

# one entry, because safetensors writes several in no fixed order
_ENTRY = "mixmfl"

# far beyond what a network needs: 500 tensors have a header of 60 kB
MOST_HEADER_BYTES = 4 * 2**20
MOST_TENSORS = 20_000
MOST_AXES = 8
_MOST_NUMBERS = 2**40

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


class DamageError(ValueError):
    """A file is not what was written."""


class ForeignError(ValueError):
    """A file is something else, such as a text, from its first bytes on."""


Tensors = Mapping[str, Tensor]
"""A state that is only read; its tensors may lie on disk, as those of ``Stored``."""


class Stored(Mapping[str, Tensor]):
    """Tensors in an open safetensors file, read on demand, whole or in parts.

    So a state can be used that is larger than the memory it may take. Nobody else may read from
    the file meanwhile.
    """

    def __init__(self, file: io.FileIO, places: Mapping[str, tuple[Form, int]]) -> None:
        """Take the file, and each tensor's form and first byte by name."""
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
        """Return the shape and type of a tensor, without reading it."""
        return self._places[name][0]

    def part(self, name: str, start: int, stop: int, room: Tensor) -> Tensor:
        """Read the numbers ``start`` to ``stop`` of a tensor into ``room``, and return them.

        Raises:
            OSError: The file cannot be read, or became shorter.
        """
        (_, kind), begin = self._places[name]
        numbers = room[: stop - start]
        self._file.seek(begin + start * kind.itemsize)
        left = memoryview(numbers.view(torch.uint8).numpy().data)
        while len(left):
            count = self._file.readinto(left)
            if not count:
                raise OSError(f"{name}: the file became shorter while it was read")
            left = left[count:]
        return numbers

    def only(self, names: Collection[str]) -> "Stored":
        """Return the tensors of these names."""
        chosen = set(names)
        return Stored(self._file, {n: at for n, at in self._places.items() if n in chosen})

    def under(self, prefix: str) -> "Stored":
        """Return the tensors whose names begin with a prefix, by the rest of their names."""
        matching = {n: at for n, at in self._places.items() if n.startswith(prefix)}
        return Stored(self._file, {n.removeprefix(prefix): at for n, at in matching.items()})

    def sha256(self) -> str:
        """Return the digest of the whole file, whatever has its name by now."""
        return digest_of(self._file)

    def run(self, names: Sequence[str]) -> "Stored | None":
        """Return tensors of one type as one, named ``""``; None if they are not contiguous."""
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
        tensors: Tensors in memory, or ``Stored``.
        name: The tensor's name.
        start: Index of the first number in the flattened tensor.
        stop: Index behind the last number.
        room: A buffer of the tensor's type, at least as long as the part, for what is on disk.
    """
    if isinstance(tensors, Stored):
        return tensors.part(name, start, stop, room)
    return tensors[name].reshape(-1)[start:stop]


Reader = Callable[[int, int, Tensor], Tensor]
"""Reads numbers from a start to a stop, as ``read_part`` does."""


def reader_of(tensors: Mapping[str, Tensor], names: Sequence[str]) -> Reader:
    """Return a function that reads several tensors as one, the numbers of each behind the last.

    Args:
        tensors: Tensors in memory, or ``Stored``.
        names: Names of one or more of the tensors, all of the same type.
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

    Each piece overwrites the one before.
    """
    if not names:
        return
    forms = [form_of(tensors, name) for name in names]
    count = sum(math.prod(shape) for shape, _ in forms)
    read, room = reader_of(tensors, names), torch.empty(min(most, count), dtype=forms[0][1])
    for start in range(0, count, most):
        yield read(start, min(start + most, count), room)


def only(tensors: Mapping[str, Tensor], names: Collection[str]) -> Mapping[str, Tensor]:
    """Return the tensors of these names, without a copy."""
    if isinstance(tensors, Stored):
        return tensors.only(names)
    chosen = set(names)
    return {name: tensor for name, tensor in tensors.items() if name in chosen}


def pack(tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> bytes:
    """Return tensors and header as bytes."""
    return safetensors.torch.save(_contiguous(tensors), {_ENTRY: json.dumps(header)})


def write(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write the bytes of ``pack`` to a file, without holding them in memory.

    Raises:
        OSError: The system cannot write it, as where the disk is full.
    """
    path.touch()
    mode = path.stat().st_mode
    try:
        safetensors.torch.save_file(_contiguous(tensors), path, {_ENTRY: json.dumps(header)})
    except safetensors.SafetensorError as error:
        if not (number := re.search(r"\(os error (\d+)\)", str(error))):
            raise
        code = int(number[1])
        raise OSError(code, os.strerror(code), str(path)) from None
    path.chmod(mode)  # safetensors lets the owner alone read it


def unpack(content: bytes) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the header that ``pack`` turned into bytes.

    Declared sizes are compared with the actual ones before anything is allocated.

    Raises:
        ValueError: The bytes are damaged, were not written by ``pack``, or exceed the limits of
            this module.
    """
    _, header = _declared(len(content), lambda start, stop: content[start:stop])
    try:
        return safetensors.torch.load(content), header
    except safetensors.SafetensorError as error:
        raise ValueError(str(error)) from None


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the header of a file that ``write`` wrote.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file cannot be read, or ``unpack`` would refuse its content.
    """
    try:
        with SelfClosingFile(path) as file:
            stored, header = open_stored(file)
            return dict(stored), header
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ValueError(why(error)) from None


def open_stored(file: io.FileIO) -> tuple[Stored, dict[str, Any]]:
    """Return the tensors of an open file, which are read on demand, and its header.

    Args:
        file: The file; the tensors keep it open.

    Raises:
        ValueError: ``unpack`` would refuse the content.
    """

    def content(start: int, stop: int) -> bytes:
        file.seek(start)
        return file.read(stop - start)

    places, header = _declared(os.fstat(file.fileno()).st_size, content)
    return Stored(file, places), header


def stored(tensors: Mapping[str, Tensor], folder: Path) -> Stored:
    """Write tensors to a file without a name on the disk of ``folder``; they are read on demand."""
    return open_stored(unlinked_file(folder, lambda path: write(path, tensors, {})))[0]


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of the names, types, shapes and numbers of tensors."""
    hasher = hashlib.sha256()
    for name in sorted(tensors):  # one at a time, where they are read from a file
        tensor = tensors[name]
        hasher.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        # as bytes, so that the types that numpy lacks are hashed too
        hasher.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return hasher.hexdigest()


def with_digests(tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> dict[str, Any]:
    """Return the header with a digest of the tensors' numbers and one of all else.

    They show damage. They are no signature: whoever changes a file on purpose makes them again.
    """
    content = {**header, "tensors_sha256": digest(tensors)}
    return {**content, "header_sha256": header_digest(tensors, content)}


def check_header(tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Check header, names, shapes and types against their digest, without reading a tensor.

    Raises:
        DamageError: They are not what ``with_digests`` was given.
    """
    if header.get("header_sha256") != header_digest(tensors, header):
        raise DamageError("it is damaged: its header is not what was written")


def check_tensors(tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Check tensors against their digest, reading them one at a time.

    Raises:
        DamageError: They are not what ``with_digests`` was given.
    """
    if header.get("tensors_sha256") != digest(tensors):
        raise DamageError("it is damaged: its tensors are not those that were written")


def header_digest(tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a header, but for this digest in it, and of the tensors' forms."""
    forms = [(name, str(form_of(tensors, name))) for name in sorted(tensors)]
    content = {name: value for name, value in header.items() if name != "header_sha256"}
    return hashlib.sha256(json.dumps([content, forms]).encode()).hexdigest()


def _contiguous(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def _declared(
    size: int, content: Callable[[int, int], bytes]
) -> tuple[dict[str, tuple[Form, int]], dict[str, Any]]:
    """Read the start of safetensors, 8 bytes of length and then JSON, and check the sizes in it.

    Args:
        size: Bytes of the whole content.
        content: A function that returns the bytes from a start to a stop.

    Returns:
        Each tensor's form and first byte, by name; and the header.
    """
    if not size:
        raise ForeignError("it is empty")
    length = int.from_bytes(content(0, 8), "little")
    if length > size - 8 and content(8, 9) != b"{":
        raise ForeignError("it does not begin as a file of tensors, .safetensors, does")
    if not 2 <= length <= min(size - 8, MOST_HEADER_BYTES):
        raise ValueError(
            f"a header of {length} bytes is declared; at most {MOST_HEADER_BYTES} are read, and "
            f"{max(size - 8, 0)} are there"
        )
    declared = parse_json(content(8, 8 + length))
    if not isinstance(declared, dict) or len(declared) > MOST_TENSORS:
        raise ValueError(f"it does not declare tensors by name, or more than {MOST_TENSORS}")
    header = _header(declared.pop("__metadata__", None))
    spans = {name: _span(name, entry) for name, entry in declared.items()}
    end = 0
    for name, (_, begin, after) in sorted(spans.items(), key=lambda item: item[1][1:]):
        if begin != end:
            raise ValueError(f"{name[:80]!r}: begins at byte {begin}, not where the last ended")
        end = after
    if end != size - 8 - length:
        raise ValueError(f"tensors of {end} bytes are declared, {size - 8 - length} are there")
    return {name: (form, 8 + length + begin) for name, (form, begin, _) in spans.items()}, header


def _span(name: str, entry: Any) -> tuple[Form, int, int]:
    """Return the form of a declared tensor, and where it begins and ends by its declaration."""
    try:
        kind, shape, (begin, end) = _TYPES[entry["dtype"]], entry["shape"], entry["data_offsets"]
        sound = (
            all(type(number) is int and number >= 0 for number in (*shape, begin, end))
            and len(shape) <= MOST_AXES
            # sizes beside one of 0 would pass as an empty tensor, which torch cannot make
            and math.prod(number for number in shape if number) <= _MOST_NUMBERS
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
        raise ForeignError("it was not written by mixmfl")
    return header
