"""How numbers of things and lists of them are said, in messages and in what commands print."""

from collections.abc import Sequence


def plural(count: int, word: str) -> str:
    """Return a number of things in words, such as ``1 case`` and ``2 cases``."""
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def shorten(values: Sequence[object], most: int = 5) -> str:
    """Return the first few of the values, and how many there are where that is not all."""
    if not values:
        return "none"
    more = f", … ({len(values)} in all)" if len(values) > most else ""
    return ", ".join(map(str, values[:most])) + more
