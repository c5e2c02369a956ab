"""JSON that somebody else wrote becomes a dataclass, or one error says what is wrong with it.

What each field may be is declared at the field, see ``declarations``. msgspec judges the values,
strictly: true is no number, 2.0 no whole one, NaN within no bounds, and a value is never changed,
but that a whole number does where any number will do. It names no value that it refuses, so the
sentence for whoever wrote the record is made here.
"""

import dataclasses
import json
import typing
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from mixmfl.core.declarations import (
    LONGEST_PATH,
    count_of,
    is_distinct,
    is_row,
    kinds_of,
    needed,
    optional,
    split,
    text_of,
)
from mixmfl.core.errors import MixmflError, PlansError
from mixmfl.core.json_fields import fields, listed, named, shown
from mixmfl.core.text import is_printable, one_line

T = TypeVar("T")


def read_record(
    kind: type[T],
    content: Any,
    source: str,
    error: type[MixmflError] = PlansError,
    *,
    whole: bool = False,
) -> T:
    """Build a dataclass from JSON.

    Args:
        kind: The dataclass.
        content: Unchecked JSON, which should be an object with the dataclass's fields.
        source: What messages call the content, such as the name of a file.
        error: The class of the error that is raised.
        whole: Whether fields that have a default must be there, too.

    Raises:
        MixmflError: A field is unknown, missing, of another type or beyond its bounds.
    """
    record = typing.cast(type, kind)
    kinds, may = kinds_of(record), frozenset() if whole else _with_default(record)
    fields(content, sorted(kinds.keys() - may), source, may=may, error=error)
    values = {}
    for name in (name for name in kinds if name in content):
        read = _value if name in _slow_fields(record) else _fast
        values[name] = read(kinds[name], content[name], _At(f"{source}: {name}", error, whole))
    return kind(**values)


def read_value(kind: Any, content: Any, source: str, error: type[MixmflError] = PlansError) -> Any:
    """Return JSON that is no record, such as an object with any names, as its declaration says.

    Args:
        kind: The annotation that a field with this content would have.
        content: Unchecked JSON.
        source: What messages call the content.
        error: The class of the error that is raised.

    Raises:
        MixmflError: It is something else, or a value in it is.
    """
    return _value(kind, content, _At(source, error, whole=False))


def json_of(record: Any) -> dict[str, Any]:
    """Return a dataclass as reading its JSON gives it: objects for records, lists for tuples."""
    return json.loads(json.dumps(dataclasses.asdict(record)))


@dataclasses.dataclass(frozen=True)
class _At:
    """Where a value stands; see ``read_record`` for the attributes."""

    source: str
    error: type[MixmflError]
    whole: bool

    def inside(self, name: str) -> "_At":
        """Return where something in the value stands."""
        return dataclasses.replace(self, source=f"{self.source}: {name}")


def _fast(kind: Any, value: Any, at: _At) -> Any:
    """Have msgspec judge a whole value; only where it refuses, look for the entry that is wrong."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError:
        return _value(kind, value, at)


def _value(kind: Any, value: Any, at: _At) -> Any:
    """Return a value as what a field is declared to be, judged entry by entry."""
    plain, declared = split(kind)
    if (beside_null := optional(plain)) is not None:
        if value is None:
            return None
        plain, declared = split(beside_null)
    inner, origin = typing.get_args(plain), typing.get_origin(plain)
    if dataclasses.is_dataclass(plain):
        return read_record(typing.cast(type, plain), value, at.source, at.error, whole=at.whole)
    if origin is Mapping:
        named(value, count_of(declared), at.source, at.error)
        return {
            _value(inner[0], name, at.inside("name")): _value(
                inner[1], each, at.inside(one_line(name))
            )
            for name, each in value.items()
        }
    if origin in (tuple, Sequence):
        count = len(inner) if is_row(plain) else count_of(declared)
        items = listed(value, count, at.source, at.error)
        kinds = inner if is_row(plain) else [inner[0]] * len(items)
        made = [_value(each, item, at) for each, item in zip(kinds, items, strict=True)]
        if is_distinct(declared) and len(set(made)) < len(made):
            raise at.error(f"{at.source}: is {shown(value)}; each may be named once")
        return tuple(made) if origin is tuple else made
    if plain is Path and _is_path(value):
        return Path(value)
    if (meta := text_of(declared)) is None or _is_text(value, meta):
        try:
            return msgspec.convert(value, kind)
        except msgspec.ValidationError:
            pass
    raise at.error(f"{at.source}: is {shown(value)}; it must be {needed(kind)}")


def _is_text(value: Any, meta: msgspec.Meta) -> bool:
    """Say whether a value is printable text, in one line unless more are declared."""
    if not isinstance(value, str) or len(value) > (meta.max_length or 0):
        return False
    return is_printable(value.replace("\n", "") if (meta.extra or {}).get("lines") else value)


def _is_path(value: Any) -> bool:
    """Say whether a value may name a file or folder, which may have any name that disks take."""
    return isinstance(value, str) and 0 < len(value) <= LONGEST_PATH and "\0" not in value


@cache
def _with_default(record: type) -> frozenset[str]:
    """Return the fields of a record that have a default."""
    missing = dataclasses.MISSING
    return frozenset(
        field.name
        for field in dataclasses.fields(record)
        if field.default is not missing or field.default_factory is not missing
    )


@cache
def _slow_fields(record: type) -> frozenset[str]:
    """Return the fields of a record that msgspec alone cannot judge."""
    return frozenset(name for name, kind in kinds_of(record).items() if _has_ours(kind))


def _has_ours(kind: Any) -> bool:
    """Say whether there is in a value what msgspec does not know.

    That is records without unknown fields, paths, printable text and lists of distinct entries.
    """
    plain, declared = split(kind)
    if (
        dataclasses.is_dataclass(plain)
        or plain is Path
        or text_of(declared)
        or is_distinct(declared)
    ):
        return True
    if typing.get_origin(plain) is typing.Literal:
        return False
    return any(map(_has_ours, typing.get_args(plain)))
