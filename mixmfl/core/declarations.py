"""What a field of a record may be, declared in its annotation, and the same in words.

A record is a dataclass; ``records.read_record`` reads one. Its annotations are msgspec's, made by
the functions here::

    rounds: Annotated[int, within(1, 100_000), setting("rounds", "exchanges with the server")] = 200

Messages and the tables of the docs say what is needed by ``needed``, so that a bound stands once.
"""

import re
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import Meta

from mixmfl.core.json_fields import Range

LONGEST_PATH = 4096


def within(least: float, greatest: float, *, above: bool = False) -> Meta:
    """Return which numbers a field may be; with ``above``, ``least`` itself is too little."""
    return Meta(gt=least, le=greatest) if above else Meta(ge=least, le=greatest)


def entries(least: int, greatest: int, *, distinct: bool = False) -> Meta:
    """Return how many entries a list or an object may have; ``distinct``: none of them twice."""
    return Meta(
        min_length=least, max_length=greatest, extra={"distinct": True} if distinct else None
    )


def text(
    longest: int,
    pattern: str = "",
    needed: str = "printable text",
    *,
    least: int = 1,
    lines: bool = False,
) -> Meta:
    """Return which text a field may be; it is printable.

    Args:
        longest: The characters that it may have.
        pattern: Regular expression that the whole text must match; empty: any text will do.
        needed: What the pattern takes, for messages.
        least: The characters that it must have; 0: it may be empty.
        lines: Whether line ends may be in it.
    """
    return Meta(
        min_length=least,
        max_length=longest,
        pattern=rf"^(?:{pattern})\Z" if pattern else None,
        extra={"needed": f"{needed} of {least} to {longest} characters", "lines": lines},
    )


def one_of(words: Sequence[str]) -> Meta:
    """Return which words a field may be, where its type is not a ``Literal``."""
    return Meta(
        min_length=1,
        max_length=max(map(len, words)),
        pattern=rf"^(?:{'|'.join(map(re.escape, words))})\Z",
        extra={"needed": " or ".join(words)},
    )


def setting(unit: str, reason: str) -> Meta:
    """Return what people must know of a setting.

    Args:
        unit: The unit of a number, or what it counts; ``"word"`` of a choice.
        reason: What it does and why it is as it is; Markdown, with links as in ``docs/``.
    """
    return Meta(description=reason, extra={"unit": unit})


@dataclass(frozen=True)
class Declared:
    """What is declared of a setting, in words.

    Attributes:
        name: Name of the field.
        unit: Unit of the value.
        needed: Which values are taken.
        reason: What it does and why it is as it is.
    """

    name: str
    unit: str
    needed: str
    reason: str


def settings_of(kind: type) -> list[Declared]:
    """Return what is declared of the settings of a dataclass, in its order."""
    found = []
    for name, field_kind in kinds_of(kind).items():
        (meta,) = (meta for meta in split(field_kind)[1] if meta.description)
        unit = (meta.extra or {})["unit"]
        found.append(Declared(name, unit, needed(field_kind), meta.description or ""))
    return found


@cache
def kinds_of(record: type) -> Mapping[str, Any]:
    """Return the annotations of a record's fields by name.

    Raises:
        TypeError: A number has no bounds, or a text no length: a mistake in the record.
    """
    kinds = typing.get_type_hints(record, include_extras=True)
    for name, kind in kinds.items():
        needed(kind, f"{record.__name__}.{name}")
    return kinds


def split(kind: Any) -> tuple[Any, tuple[Meta, ...]]:
    """Return the type in an annotation, and what is declared beside it."""
    if typing.get_origin(kind) is Annotated:
        plain, *declared = typing.get_args(kind)
        return plain, tuple(meta for meta in declared if isinstance(meta, Meta))
    return kind, ()


def optional(plain: Any) -> Any:
    """Return what a field may be beside None; None where the type is no such union."""
    if typing.get_origin(plain) in (typing.Union, types.UnionType):
        first, second = typing.get_args(plain)  # only ever `something | None`
        return first if second is type(None) else None
    return None


def bounds_of(declared: Sequence[Meta], name: str) -> Range:
    """Return which numbers are declared.

    Raises:
        TypeError: None are.
    """
    for meta in declared:
        least = meta.ge if meta.gt is None else meta.gt
        if least is not None and meta.le is not None:
            return Range(least, meta.le, above=meta.gt is not None)
    raise TypeError(f"{name}: a number needs bounds; declare them by within()")


def count_of(declared: Sequence[Meta], name: str = "a field") -> Range:
    """Return how many entries a list or an object may have.

    Raises:
        TypeError: It is not declared.
    """
    for meta in declared:
        if meta.min_length is not None and meta.max_length is not None:
            return Range(meta.min_length, meta.max_length)
    raise TypeError(f"{name}: a list or an object needs bounds; declare them by entries()")


def is_row(plain: Any) -> bool:
    """Say whether a type is a tuple in which every place has its own type."""
    return typing.get_origin(plain) is tuple and typing.get_args(plain)[-1] is not ...


def text_of(declared: Sequence[Meta]) -> Meta | None:
    """Return what ``text`` or ``one_of`` declare of a text; None: it may be any text."""
    return next((meta for meta in declared if meta.extra and "needed" in meta.extra), None)


def is_distinct(declared: Sequence[Meta]) -> bool:
    """Say whether no entry of a list may be there twice."""
    return any(meta.extra and "distinct" in meta.extra for meta in declared)


def needed(kind: Any, name: str = "a field") -> str:
    """Return in words what a field must be.

    Args:
        kind: Annotation of the field.
        name: What an error calls the field.

    Raises:
        TypeError: It is a number, a text, a list or an object without bounds.
    """
    plain, declared = split(kind)
    inner, origin = typing.get_args(plain), typing.get_origin(plain)
    if (beside_null := optional(plain)) is not None:
        return f"{needed(beside_null, name)}, or null"
    if plain is bool:
        return "true or false"
    if plain in (int, float):
        whole = "whole " if plain is int else ""
        return f"a {whole}number {bounds_of(declared, name)}"
    if plain is str:
        if (meta := text_of(declared)) is None:
            raise TypeError(f"{name}: a text needs a length; declare it by text() or one_of()")
        return str((meta.extra or {})["needed"])
    if plain is Path:
        return f"a path of 1 to {LONGEST_PATH} characters"
    if origin is Literal:
        return " or ".join(map(str, inner))
    if origin is Mapping:
        count_of(declared, name)
        return f"an object that has by name ({needed(inner[0], name)}) {needed(inner[1], name)}"
    if origin in (tuple, Sequence):
        each = needed(inner[0], name)
        if is_row(plain):
            return f"a list of {len(inner)} entries, each {each}"
        count = count_of(declared, name)
        return f"a list of {count.least:g} to {count.greatest:g} entries, each {each}"
    return "an object with fields"
