"""Checks of JSON in a free form, such as nnU-Net's plans; ``records`` reads what has fixed fields.

The content of files and messages is JSON (see ``strict_json``). Each function checks one value, and
raises an error that names the source, the field, what was found and what is needed. A value is
never changed or looked up; what passes can be used as it is.
"""

import math
import re
import reprlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from mixmfl.core.errors import MixmflError, PlansError
from mixmfl.core.text import is_printable

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


def is_word(value: object, longest: int) -> bool:
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


def real(value: Any, allowed: Range, source: str) -> float:
    """Check a number, which may be whole."""
    if type(value) not in (int, float):
        raise PlansError(f"{source}: float is needed, not {shown(value)}")
    return _within(value, allowed, source, PlansError)


def _within(value: Any, allowed: Range, source: str, error: type[MixmflError]) -> Any:
    if value not in allowed:
        raise error(f"{source}: is {shown(value)}; it must be {allowed}")
    return value


def flag(value: Any, source: str) -> bool:
    """Check a truth value; 0 and 1 are none."""
    if type(value) is not bool:
        raise PlansError(f"{source}: true or false is needed, not {shown(value)}")
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
    differing = {"unknown": unknown, "missing": missing}
    if faults := [f"{how} fields {shown(names)}" for how, names in differing.items() if names]:
        raise error(f"{source}: {', '.join(faults)}")
    return value
