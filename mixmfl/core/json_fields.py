"""Checks of JSON in a free form, such as nnU-Net's plans; ``records`` reads what has fixed fields.

The content of files and messages is JSON (see ``strict_json``). The functions check one value, and
``JsonFields`` checks the fields of an object one by one. All of them raise an error that names the
source, the field, what was found and what is needed. A value is never changed or looked up; what
passes can be used as it is.
"""

import math
import re
import reprlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mixmfl.core.errors import MixmflError, PlansError
from mixmfl.core.text import is_printable, one_line, shorten

MOST_NAME = 100
"""Characters of a name."""

_NAME = re.compile(r"[A-Za-z0-9_-]+")  # no dot, so that it is no name of code

_short = reprlib.Repr()
_short.maxstring = _short.maxother = 80


@dataclass(frozen=True)
class Range:
    """Which numbers are taken.

    Attributes:
        least: The least of them.
        greatest: The greatest.
        above: Whether ``least`` itself is too little.
    """

    least: float
    greatest: float
    above: bool = False

    def __contains__(self, number: float) -> bool:
        """Say whether a number is taken; NaN never is."""
        low = number > self.least if self.above else number >= self.least
        return low and number <= self.greatest

    def __str__(self) -> str:
        if self.above:
            return f"above {self.least:g} and at most {self.greatest:.10g}"
        if self.least == self.greatest:
            return f"{self.least:.10g}"
        return f"from {self.least:.10g} to {self.greatest:.10g}"


def shown(value: object) -> str:
    """Return a value as a message shows it: in a line, and short however large it is."""
    return _short.repr(value)


def is_whole(value: object, least: float, most: float) -> bool:
    """Say whether a value is a whole number in a range; true, false and 2.0 are none."""
    return type(value) is int and value in Range(least, most)


def is_real(value: object, least: float, most: float) -> bool:
    """Say whether a value is a finite number in a range; true, false and NaN are none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return value in Range(least, most)


def is_word(value: object, longest: int = 80) -> bool:
    """Say whether a value is printable text in one line, neither empty nor long."""
    return isinstance(value, str) and 0 < len(value) <= longest and is_printable(value)


def is_text(value: object) -> bool:
    """Say whether a value is printable text that is no longer than a name."""
    return is_word(value, MOST_NAME)


def whole(value: Any, allowed: Range, source: str, error: type[MixmflError] = PlansError) -> int:
    """Check a whole number; True and 2.0 are none."""
    if type(value) is not int:
        raise error(f"{source}: int is needed, not {shown(value)}")
    return _within(value, allowed, source, error)


def real(value: Any, allowed: Range, source: str, error: type[MixmflError] = PlansError) -> float:
    """Check a number, which may be whole."""
    if type(value) not in (int, float):
        raise error(f"{source}: float is needed, not {shown(value)}")
    return _within(value, allowed, source, error)


def _within(value: Any, allowed: Range, source: str, error: type[MixmflError]) -> Any:
    if value not in allowed:
        raise error(f"{source}: is {shown(value)}; it must be {allowed}")
    return value


def flag(value: Any, source: str, error: type[MixmflError] = PlansError) -> bool:
    """Check a truth value; 0 and 1 are none."""
    if type(value) is not bool:
        raise error(f"{source}: true or false is needed, not {shown(value)}")
    return value


def word(
    value: Any, known: Collection[str], source: str, error: type[MixmflError] = PlansError
) -> str:
    """Check a string that must be one of these, to the letter."""
    if type(value) is not str or value not in known:
        raise error(f"{source}: is {shown(value)}; it must be {' or '.join(known)}")
    return value


def name(value: Any, source: str) -> str:
    """Check what only names something: letters, digits, ``_`` and ``-``; not many."""
    if type(value) is not str or len(value) > MOST_NAME or not _NAME.fullmatch(value):
        raise PlansError(
            f"{source}: is {shown(value)}; a name of 1 to {MOST_NAME} characters is needed: "
            "letters, digits, _ and -"
        )
    return value


def listed(
    value: Any, count: int | Range, source: str, error: type[MixmflError] = PlansError
) -> list[Any]:
    """Check a list, of so many entries."""
    if not isinstance(value, list | tuple):
        raise error(f"{source}: a list is needed, not {shown(value)}")
    allowed = Range(count, count) if isinstance(count, int) else count
    if len(value) not in allowed:
        raise error(f"{source}: has {len(value)} entries; it must have {count}")
    return list(value)


def named(
    value: Any, count: Range, source: str, error: type[MixmflError] = PlansError
) -> Mapping[str, Any]:
    """Check an object whose fields may have any names, so many of them."""
    if not isinstance(value, Mapping):
        raise error(f"{source}: an object with fields is needed, not {shown(value)}")
    if len(value) not in count:
        raise error(f"{source}: has {len(value)} fields; it must have {count}")
    return value


def fields(
    value: Any,
    needed: Collection[str],
    source: str,
    *,
    may: Collection[str] = (),
    error: type[MixmflError] = PlansError,
) -> Mapping[str, Any]:
    """Check that an object has all fields that are needed, and no unknown ones.

    Args:
        value: Unchecked JSON, which should be an object.
        needed: Fields that the object must have.
        source: What messages call the object.
        may: Fields that the object may have.
        error: The class of the error that is raised.
    """
    named(value, Range(0, math.inf), source, error)
    unknown = sorted(map(str, value.keys() - {*needed, *may}))
    missing = sorted({*needed} - value.keys())
    if unknown or missing:
        raise error(f"{source}: unknown fields {shown(unknown)}, missing fields {shown(missing)}")
    return value


@dataclass(frozen=True)
class JsonFields:
    """An object of JSON whose fields are checked one by one.

    Attributes:
        content: The object as it was read.
        source: What messages call the object, such as ``site north`` or the name of a file.
        error: The class of the error that is raised where a field is not what is needed.
    """

    content: Mapping[str, Any]
    source: str
    error: type[MixmflError]

    def __post_init__(self) -> None:
        """Refuse content that is no object."""
        named(self.content, Range(0, math.inf), self.source, self.error)

    def only(self, needed: Collection[str], optional: Collection[str] = ()) -> "JsonFields":
        """Return itself where it has the fields that are needed, and no unknown ones."""
        fields(self.content, needed, self.source, may=optional, error=self.error)
        return self

    def value(self, name: str) -> Any:
        """Return a field unchecked."""
        if name not in self.content:
            raise self.error(f"{self._at(name)}: is missing")
        return self.content[name]

    def wrong(self, name: str, needed: str) -> MixmflError:
        """Return the error that a field is not what is needed."""
        return self.error(
            f"{self._at(name)}: is {shown(self.content.get(name))}; needed is {needed}"
        )

    def whole(self, name: str, least: int, most: int) -> int:
        """Return a whole number from ``least`` to ``most``."""
        return whole(self.value(name), Range(least, most), self._at(name), self.error)

    def choice(self, name: str, words: Collection[str]) -> str:
        """Return one of the words."""
        return word(self.value(name), words, self._at(name), self.error)

    def choices(self, name: str, words: Collection[str]) -> tuple[str, ...]:
        """Return a list of some of the words, none of them twice."""
        value = self.value(name)
        if (
            not isinstance(value, list | tuple)
            or not all(isinstance(item, str) and item in words for item in value)
            or len(set(value)) != len(value)
        ):
            raise self.wrong(name, f"a list of {shorten(sorted(words), 20)}, each at most once")
        return tuple(value)

    def items(self, name: str, most: int) -> Sequence[Any]:
        """Return a list of at most ``most`` entries."""
        return listed(self.value(name), Range(0, most), self._at(name), self.error)

    def inside(self, name: str, most: int) -> "JsonFields":
        """Return the object in a field, which has at most ``most`` fields."""
        inner = named(self.value(name), Range(0, most), self._at(name), self.error)
        return JsonFields(inner, self._at(name), self.error)

    def counts(self, name: str, least: int, most: int, names: int) -> dict[str, int]:
        """Return whole numbers from ``least`` to ``most`` by at most so many ``names``."""
        inner = self.inside(name, names)
        return {key: inner.whole(key, least, most) for key in inner.content}

    def _at(self, name: str) -> str:
        return f"{self.source}: {one_line(name)}"
