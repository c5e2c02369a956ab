"""What is attacked: good files and messages of each kind, how they are spoilt, and what must hold.

A target makes a good thing in a folder, and ``attack`` gives the product one mutation of it. The
product refuses it with an error of ours, or takes it. What it takes must be right, and what that
means is said at each target; else ``WrongError`` is raised. Any other exception is a crash.
"""

import dataclasses
import math
import random
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

from mixmfl.core.errors import MixmflError
from mixmfl.core.text import is_printable

REFUSED, SAME, HARMLESS = "refused", "same", "harmless"

MOST_REASON = 4000
"""Characters that the reason of a refusal may have."""

T = TypeVar("T")


class WrongError(AssertionError):
    """The product took something and made something else of it than it means."""


class Target(Protocol):
    """Something that is attacked."""

    def __init__(self, folder: Path) -> None:
        """Make the good thing in a folder that is empty."""

    def attack(self, draw: random.Random) -> str:
        """Give the product one mutation; return ``REFUSED``, ``SAME`` or ``HARMLESS``."""


def judged(take: Callable[[], T], judge: Callable[[T], str]) -> str:
    """Return the outcome of an attack: a refusal in words of ours, or what ``judge`` says."""
    try:
        taken = take()
    except MixmflError as error:
        check_reason(str(error))
        return REFUSED
    return judge(taken)


def check_reason(reason: str) -> None:
    """Check that a refusal can be shown to a person."""
    if not 0 < len(reason) <= MOST_REASON:
        raise WrongError(f"a refusal of {len(reason)} characters: {reason[:200]!r}")


def plain(taken: Any) -> str:
    """Judge a record that was read: text in one line, finite numbers, nothing that is endless."""
    for count, value in enumerate(_values(taken)):
        if count > 200_000:
            raise WrongError("more than 200,000 values were taken")
        if isinstance(value, str) and value and not is_printable(value):
            raise WrongError(f"the text {value[:80]!r} was taken")
        if isinstance(value, float) and math.isinf(value):
            raise WrongError("an infinite number was taken")
    return HARMLESS


def _values(taken: Any) -> Iterator[Any]:
    if dataclasses.is_dataclass(taken) and not isinstance(taken, type):
        for field in dataclasses.fields(taken):
            yield from _values(getattr(taken, field.name))
    elif isinstance(taken, Mapping):
        for name, value in taken.items():
            yield name
            yield from _values(value)
    elif isinstance(taken, list | tuple | set | frozenset):
        for value in taken:
            yield from _values(value)
    else:
        yield taken
