"""How things are said in messages, logs and what commands print; also what others called them."""

from collections.abc import Sequence

MOST_LINE = 10_000
"""Characters of a line in a log."""


def plural(count: int, word: str) -> str:
    """Return a number of things in words, such as ``1 case`` and ``2 cases``."""
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def shorten(values: Sequence[object], most: int = 5) -> str:
    """Return the first few of the values, and how many there are where that is not all."""
    if not values:
        return "none"
    more = f", … ({len(values)} in all)" if len(values) > most else ""
    return ", ".join(map(str, values[:most])) + more


def printable(text: str) -> str:
    """Return text for a terminal: lines stay lines, what else steers a terminal is written out."""
    return "".join(c if c.isprintable() or c == "\n" else _escaped(c) for c in text)


def one_line(what: object, most: int = 80) -> str:
    """Return what somebody else wrote, such as a name or a version, as one short line for a log.

    Line ends and whatever else is not printable are written out as Python does.

    Args:
        what: Anything.
        most: Characters; what is longer is cut.
    """
    text = str(what)
    line = "".join(c if c.isprintable() else _escaped(c) for c in text[: most + 1])
    return line if len(line) <= most else f"{line[: most - 1]}…"


def quoted(what: object, most: int = 80) -> str:
    """Return what somebody else sent as Python would write it, cut to ``most`` characters."""
    return one_line(repr(what), most)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
