"""What ``torch.save`` writes, read as data: a zip of a pickle and of tensors' numbers.

A pickle is a program. Here its steps are taken by hand, those alone that make lists, objects and
numbers, and a name in it is a key of a closed table. ``torch.load(weights_only=True)`` is not
called: up to torch 2.5 a file could run code through it, up to 2.9 a tensor could have more numbers
than its record, and what it unfolds has no bound.
"""

import io
import pickletools
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mixmfl.core.files import SelfClosingFile, digest_of
from mixmfl.core.json_fields import is_whole, shown
from mixmfl.core.tensor_store import MOST_AXES

MOST_PICKLE = 16 * 2**20
"""Bytes of the pickle; that of nnU-Net's largest network, with its optimizer's state, has 1 MB."""

MOST_STEPS = 2_000_000
"""Steps of the pickle; that of nnU-Net's largest network has about 100,000."""

_MOST_USES = 4  # of numbers by tensors: some may share a record

_MOST_DIRECTORY = 8 * 2**20  # bytes of the list of records in a zip, of some 80 bytes each

_STORAGES = {
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
}

_MADE_NOTHING = {
    "_codecs.encode",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.dtype",
    "torch.Size",
    "torch.device",
}
"""Names by which pickles make devices, sizes and numbers of numpy 1 and 2. None is needed."""

_TENSORS = {"torch._utils._rebuild_tensor_v2"}
_PARAMETERS = {"torch._utils._rebuild_parameter"}
_OBJECTS = {"collections.OrderedDict"}
_NAMES = {*_STORAGES, *_MADE_NOTHING, *_TENSORS, *_PARAMETERS, *_OBJECTS}


class Nothing:
    """Stands for what a pickle makes by a name of ``_MADE_NOTHING``."""


@dataclass(frozen=True)
class _Name:
    """A name of code in a pickle, which is looked up nowhere."""

    name: str


@dataclass(frozen=True)
class _Record:
    """Numbers in the archive: the name of their record, their type and how many there are."""

    name: str
    kind: torch.dtype
    count: int


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in an archive, whose numbers were not read yet."""

    record: _Record
    start: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def is_sound(self) -> bool:
        """Whether it has numbers, and its record all of them, and as many as it has."""
        last = sum((size - 1) * by for size, by in zip(self.shape, self.strides, strict=True))
        numbers = 1
        for size in self.shape:
            numbers = min(numbers * size, self.record.count + 1)  # large sizes become no larger
        return 0 < numbers <= self.record.count and self.start + last < self.record.count


class TorchArchive:
    """A file of ``torch.save``.

    Attributes:
        content: What was saved: lists, tuples, objects by name, numbers, texts, ``StoredTensor``
            and ``Nothing``.
    """

    def __init__(self, path: Path) -> None:
        """Read the pickle of a file.

        Raises:
            OSError: The file cannot be read.
            ValueError: It is none of ``torch.save``, asks for code, or is beyond the limits here.
        """
        file = self._file = _Listed(path)
        try:
            self._archive = zipfile.ZipFile(file)
        except (zipfile.BadZipFile, NotImplementedError) as error:
            raise ValueError(f"it is no zip archive: {error}") from None
        records = self._archive.infolist()
        if any(each.compress_type != zipfile.ZIP_STORED or each.flag_bits & 1 for each in records):
            raise ValueError("a record of the archive is compressed or encrypted")
        size = file.most = file.seek(0, io.SEEK_END)
        self._bytes = sum(each.file_size for each in records)
        if self._bytes > size:
            raise ValueError("its records have more bytes than the file")
        names = [each.filename for each in records]
        pickles = [name for name in names if name.endswith("/data.pkl")]
        if len(pickles) != 1 or len({*names}) < len(names):
            raise ValueError("it holds no data.pkl, or a record twice")
        self._folder = pickles[0].removesuffix("data.pkl")
        if f"{self._folder}byteorder" in names and self._read("byteorder", 16) != b"little":
            raise ValueError("its numbers are in another order of bytes than little endian")
        self.content = _Machine().run(self._read("data.pkl", MOST_PICKLE))

    def tensors(self, described: Mapping[str, StoredTensor]) -> dict[str, Tensor]:
        """Return tensors by name, each of which has its numbers for itself.

        Raises:
            OSError: The file cannot be read.
            ValueError: A record is damaged, or a tensor lies beyond its record.
        """
        found, taken = {}, 0
        for name, each in described.items():
            record = each.record
            count = record.count * record.kind.itemsize
            taken += count
            if not each.is_sound or taken > _MOST_USES * self._bytes:
                raise ValueError(f"{shown(name)} is no tensor of numbers that the file holds")
            content = self._read(f"data/{record.name}", count)
            if len(content) != count:
                raise ValueError(f"{shown(name)}: its record has {len(content)} bytes, not {count}")
            numbers = torch.frombuffer(bytearray(content), dtype=record.kind)
            found[name] = numbers.as_strided(each.shape, each.strides, each.start).clone()
        return found

    def sha256(self) -> str:
        """Return the digest of the file that is read, whatever has its name by now."""
        return digest_of(self._file)

    def _read(self, name: str, most: int) -> bytes:
        try:
            if self._archive.getinfo(self._folder + name).file_size > most:
                raise ValueError(f"its record {shown(name)} has more than {most} bytes")
            return self._archive.read(self._folder + name)
        except (KeyError, EOFError, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
            raise ValueError(f"its record {shown(name)} cannot be read: {error}") from None


class _Listed(SelfClosingFile):
    """A zip of which the list of records is short, before it is read at once."""

    most = _MOST_DIRECTORY

    def read(self, size: int | None = -1) -> bytes:
        """Read bytes, as a zip's reader asks for them."""
        if size is not None and size > self.most:
            raise ValueError(f"it lists records in more than {self.most} bytes")
        return super().read(size)


class _Machine:
    """Takes the steps of a pickle; its stack, the marks in it, and what it remembers."""

    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def run(self, pickle: bytes) -> Any:
        """Return what a pickle makes.

        Raises:
            ValueError: It takes a step or names code that is not known here, or too many steps.
        """
        try:
            for number, (step, value, _) in enumerate(pickletools.genops(pickle)):
                if number > MOST_STEPS:
                    raise ValueError(f"its pickle has more than {MOST_STEPS} steps")
                if step.name == "STOP":
                    return self._stack.pop()
                self._take(step.name, value)
        except (IndexError, KeyError, TypeError) as error:
            raise ValueError(f"its pickle is damaged ({type(error).__name__}: {error})") from None
        raise ValueError("its pickle has no end")

    def _take(self, step: str, value: Any) -> None:
        if step in _CONSTANTS:
            self._stack.append(_CONSTANTS[step]())
        elif step in _VALUES:
            self._stack.append(value)
        elif step in _TUPLES:
            self._stack.append(tuple(self._last(_TUPLES[step])))
        elif step in _ACTS:
            _ACTS[step](self)
        elif step in ("BINPUT", "LONG_BINPUT"):
            self._memo[value] = self._stack[-1]
        elif step in ("BINGET", "LONG_BINGET"):
            self._stack.append(self._memo[value])
        elif step == "GLOBAL":
            name = str(value).replace(" ", ".")
            if name not in _NAMES:
                raise ValueError(f"it names {shown(name)}, which is code")
            self._stack.append(_Name(name))
        elif step != "PROTO":
            raise ValueError(f"its pickle has the step {step}, which torch.save does not write")

    def _last(self, count: int) -> list[Any]:
        if len(self._stack) < count:
            raise IndexError("nothing is there")
        taken = self._stack[-count:]
        del self._stack[-count:]
        return taken

    def mark(self) -> None:
        self._marks.append(len(self._stack))

    def _marked(self) -> list[Any]:
        begin = self._marks.pop()
        taken = self._stack[begin:]
        del self._stack[begin:]
        return taken

    def tuple(self) -> None:
        self._stack.append(tuple(self._marked()))

    def append(self) -> None:
        self._extend(self._last(1))

    def appends(self) -> None:
        self._extend(self._marked())

    def _extend(self, items: list[Any]) -> None:
        if type(self._stack[-1]) is not list:
            raise TypeError("something is added to what is no list")
        self._stack[-1].extend(items)

    def item(self) -> None:
        self._update(self._last(2))

    def items(self) -> None:
        self._update(self._marked())

    def _update(self, pairs: list[Any]) -> None:
        made = self._stack[-1]
        for name, value in zip(pairs[::2], pairs[1::2], strict=True):
            # tuples in tuples, each twice, would take for ever to hash, and so would numbers that
            # are chosen to have one hash
            if type(made) is not dict or not (type(name) is str or is_whole(name, 0, 2**31)):
                raise TypeError("a field is set of what is no object, or by no name")
            made[name] = value

    def call(self) -> None:
        called, arguments = self._last(2)
        if type(called) is not _Name or type(arguments) is not tuple:
            raise TypeError("something is called that has no name")
        if called.name in _TENSORS:
            made: Any = _tensor(*arguments[:4])
        elif called.name in _PARAMETERS:
            made = arguments[0]
        elif called.name in _OBJECTS:
            made = {}
        elif called.name in _MADE_NOTHING:
            made = Nothing()
        else:
            raise TypeError(f"{called.name} is called")
        self._stack.append(made)

    def build(self) -> None:
        """Pass over what is set of an object beside its fields; nothing here is needed."""
        made, _ = self._last(2)
        if type(made) not in (Nothing, dict):
            raise TypeError("the state of something else is set")
        self._stack.append(made)

    def record(self) -> None:
        word, kind, name, _, count = self._stack.pop()
        if (
            word != "storage"
            or type(kind) is not _Name
            or type(name) is not str
            or not is_whole(count, 0, 2**40)
        ):
            raise TypeError("numbers are no record of the archive")
        self._stack.append(_Record(name, _STORAGES[kind.name], count))


_CONSTANTS: Mapping[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
}
_VALUES = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE"}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_ACTS: Mapping[str, Callable[[_Machine], None]] = {
    "MARK": _Machine.mark,
    "TUPLE": _Machine.tuple,
    "APPEND": _Machine.append,
    "APPENDS": _Machine.appends,
    "SETITEM": _Machine.item,
    "SETITEMS": _Machine.items,
    "REDUCE": _Machine.call,
    "BUILD": _Machine.build,
    "BINPERSID": _Machine.record,
}


def _tensor(record: Any, start: Any, shape: Any, strides: Any) -> StoredTensor:
    numbers = (*shape, *strides)
    if (
        type(record) is not _Record
        or len(shape) != len(strides)
        or len(shape) > MOST_AXES
        or not all(is_whole(number, 0, 2**40) for number in (start, *numbers))
    ):
        raise TypeError("place, shape and strides are not those of a tensor")
    return StoredTensor(record, start, tuple(shape), tuple(strides))
