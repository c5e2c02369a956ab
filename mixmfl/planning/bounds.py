"""Values of JSON that comes from elsewhere, checked: their type, and that they are within bounds.

Everything here raises ``PlansError`` with where the value stands, what was found and what is
needed. A value is never changed, converted or looked up; what passes can be used as it is.
"""

import math
import re
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mixmfl.core.errors import PlansError

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
        return f"from {self.least:.10g} to {self.greatest:.10g}"


def shown(value: object) -> str:
    """Return a value as a message shows it: in a line, and short however large it is."""
    return _short.repr(value)


def whole(value: Any, allowed: Range, source: str) -> int:
    """Check a whole number; True and 2.0 are none."""
    if type(value) is not int:
        raise PlansError(f"{source}: int is needed, not {shown(value)}")
    return _within(value, allowed, source)


def real(value: Any, allowed: Range, source: str) -> float:
    """Check a number, which may be whole."""
    if type(value) not in (int, float):
        raise PlansError(f"{source}: float is needed, not {shown(value)}")
    return _within(value, allowed, source)


def _within(value: Any, allowed: Range, source: str) -> Any:
    if value not in allowed:
        raise PlansError(f"{source}: is {shown(value)}; it must be {allowed}")
    return value


def flag(value: Any, source: str) -> bool:
    """Check a truth value; 0 and 1 are none."""
    if type(value) is not bool:
        raise PlansError(f"{source}: true or false is needed, not {shown(value)}")
    return value


def word(value: Any, known: Sequence[str], source: str) -> str:
    """Check a string that must be one of these, to the letter."""
    if type(value) is not str or value not in known:
        raise PlansError(f"{source}: is {shown(value)}; it must be {' or '.join(known)}")
    return value


def name(value: Any, source: str) -> str:
    """Check what only names something: letters, digits, ``_`` and ``-``; not many."""
    if type(value) is not str or len(value) > MOST_NAME or not _NAME.fullmatch(value):
        raise PlansError(
            f"{source}: is {shown(value)}; a name of 1 to {MOST_NAME} characters is needed: "
            "letters, digits, _ and -"
        )
    return value


def is_text(value: object) -> bool:
    """Say whether a value is text in a line that is neither empty nor long."""
    return type(value) is str and 0 < len(value) <= MOST_NAME and value.isprintable()


def listed(value: Any, count: int | Range, source: str) -> list[Any]:
    """Check a list, of so many entries."""
    if not isinstance(value, list | tuple):
        raise PlansError(f"{source}: a list is needed, not {shown(value)}")
    allowed = Range(count, count) if isinstance(count, int) else count
    if len(value) not in allowed:
        raise PlansError(f"{source}: has {len(value)} entries; it must have {count}")
    return list(value)


def named(value: Any, count: Range, source: str) -> Mapping[str, Any]:
    """Check an object whose fields may have any names, so many of them."""
    if not isinstance(value, Mapping):
        raise PlansError(f"{source}: an object with fields is needed, not {shown(value)}")
    if len(value) not in count:
        raise PlansError(f"{source}: has {len(value)} fields; it must have {count}")
    return value


def fields(
    value: Any, needed: Sequence[str], source: str, *, may: Sequence[str] = ()
) -> Mapping[str, Any]:
    """Check an object's fields: those needed are there, and none is strange.

    Args:
        value: Maybe an object.
        needed: Fields that must be there.
        source: Where it stands.
        may: Fields that may be there.
    """
    named(value, Range(0, math.inf), source)
    unknown = sorted(map(str, value.keys() - {*needed, *may}))
    missing = sorted({*needed} - value.keys())
    if unknown or missing:
        raise PlansError(
            f"{source}: unknown fields {shown(unknown)}, missing fields {shown(missing)}"
        )
    return value
