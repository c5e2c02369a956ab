"""What somebody else said, taken field by field: each is of its type, within bounds, or refused.

The content of files and messages is JSON (see ``strict``). Here a reader says of every field what
it may be, and everything beyond is an error that names the source, the field and what was found.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mixmfl.core.errors import MixmflError
from mixmfl.core.text import one_line, quoted, shorten


@dataclass(frozen=True)
class Told:
    """An object of JSON that somebody else wrote.

    Attributes:
        content: As it was read.
        source: What messages call it, such as ``site north`` or a file.
        error: Raised where a field is not what is needed.
    """

    content: Mapping[str, Any]
    source: str
    error: type[MixmflError]

    def __post_init__(self) -> None:
        """Refuse what is no object."""
        if not isinstance(self.content, Mapping):
            raise self.error(f"{self.source}: is {quoted(self.content)}; an object {{…}} is needed")

    def only(self, needed: Collection[str], optional: Collection[str] = ()) -> "Told":
        """Return itself where it has the fields that are needed, and no unknown ones."""
        unknown = [quoted(n, 40) for n in sorted(set(self.content) - {*needed, *optional})]
        missing = [quoted(n) for n in sorted(set(needed) - set(self.content))]
        if unknown or missing:
            raise self.error(
                f"{self.source}: the fields {', '.join(sorted(needed))} are needed; missing: "
                f"{shorten(missing)}, unknown: {shorten(unknown)}"
            )
        return self

    def value(self, name: str) -> Any:
        """Return a field as it is."""
        if name not in self.content:
            raise self.error(f"{self.source}: {one_line(name)}: is missing")
        return self.content[name]

    def wrong(self, name: str, needed: str) -> MixmflError:
        """Return the error that a field is not what is needed."""
        found = quoted(self.content.get(name))
        return self.error(f"{self.source}: {one_line(name)}: is {found}; needed is {needed}")

    def whole(self, name: str, least: int, most: int) -> int:
        """Return a whole number from ``least`` to ``most``."""
        if not is_whole(value := self.value(name), least, most):
            raise self.wrong(name, f"a whole number from {least} to {most}")
        return int(value)

    def real(self, name: str, least: float, most: float) -> float:
        """Return a number from ``least`` to ``most``."""
        if not is_real(value := self.value(name), least, most):
            raise self.wrong(name, f"a number from {least:g} to {most:g}")
        return float(value)

    def truth(self, name: str) -> bool:
        """Return ``true`` or ``false``."""
        if not isinstance(value := self.value(name), bool):
            raise self.wrong(name, "true or false")
        return value

    def word(self, name: str, longest: int = 80) -> str:
        """Return printable text that is not empty."""
        if not is_word(value := self.value(name), longest):
            raise self.wrong(name, f"printable text of 1 to {longest} characters")
        return str(value)

    def choice(self, name: str, words: Collection[str]) -> str:
        """Return one of the words."""
        value = self.value(name)
        if not isinstance(value, str) or value not in words:
            raise self.wrong(name, f"one of {shorten(sorted(words), 20)}")
        return value

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
        """Return a list of at most ``most`` things."""
        value = self.value(name)
        if not isinstance(value, list | tuple) or len(value) > most:
            raise self.wrong(name, f"a list of at most {most}")
        return value

    def inside(self, name: str, most: int) -> "Told":
        """Return an object with at most ``most`` names."""
        value = self.value(name)
        if not isinstance(value, Mapping) or len(value) > most:
            raise self.wrong(name, f"an object of at most {most} names")
        return Told(value, f"{self.source}: {name}", self.error)

    def counts(self, name: str, least: int, most: int, names: int) -> dict[str, int]:
        """Return whole numbers from ``least`` to ``most`` by at most so many ``names``."""
        inner = self.inside(name, names)
        return {key: inner.whole(key, least, most) for key in inner.content}


def is_whole(value: object, least: int, most: int) -> bool:
    """Say whether something is a whole number in a range; true and false are none."""
    return type(value) is int and least <= value <= most


def is_real(value: object, least: float, most: float) -> bool:
    """Say whether something is a number in a range; true, false and NaN are none."""
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
        and least <= value <= most
    )


def is_word(value: object, longest: int = 80) -> bool:
    """Say whether something is printable text, neither empty nor long."""
    return isinstance(value, str) and 0 < len(value) <= longest and value.isprintable()
