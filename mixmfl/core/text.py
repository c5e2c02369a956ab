"""Wording of messages, logs and output, and text of others made safe to show."""

import unicodedata
from collections.abc import Iterable, Sequence

MOST_LINE = 10_000
"""The characters that a line of a log may have."""


def plural(count: int, word: str) -> str:
    """Return a count with its noun, such as ``1 case`` and ``2 cases``."""
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def shorten(values: Sequence[object], most: int = 5) -> str:
    """Return the first few values as text, and how many there are if some are left out."""
    if not values:
        return "none"
    more = f", … ({len(values)} in all)" if len(values) > most else ""
    return ", ".join(map(str, values[:most])) + more


def each_once(texts: Iterable[tuple[str, str]]) -> list[str]:
    """Return texts about something, each once, after the names of all that it is about.

    Args:
        texts: A name and a text about it, any number of times.
    """
    about: dict[str, dict[str, None]] = {}
    for name, text in texts:
        about.setdefault(text, {})[name] = None
    return [f"{', '.join(names)}: {text}" for text, names in about.items()]


def is_printable(text: str) -> bool:
    """Say whether text has neither line ends nor control characters nor the like.

    Any space is printable, such as the no-break space and the space of Chinese and Japanese, which
    stand in names of folders; of Python's ``isprintable`` only U+0020 is.
    """
    return text.isprintable() or all(map(_is_shown, text))


def can_name_file(name: str) -> bool:
    """Say whether a file can be called by a name wherever it lies, and seen there.

    A slash or, on Windows, a backslash would lead to another folder, and so would two dots; a name
    that begins with a dot is hidden. Whether it is too long is the disk's to say.
    """
    fits = bool(name) and is_printable(name)
    return fits and not name.startswith(".") and not {"/", "\\"} & set(name)


def printable(text: str) -> str:
    """Return text for a terminal: line ends stay, other control characters are escaped."""
    return "".join(c if _is_shown(c) or c == "\n" else _escaped(c) for c in text)


def one_line(what: object, most: int = 80) -> str:
    """Return text of others, such as a name or a version, as one short line for a log.

    Line ends and other characters that are not printable are escaped as Python does.

    Args:
        what: Any object; its ``str`` is shown.
        most: The characters that the line may have; longer text is cut.
    """
    text = str(what)
    line = "".join(c if _is_shown(c) else _escaped(c) for c in text[: most + 1])
    return line if len(line) <= most else f"{line[: most - 1]}…"


def times(values: Sequence[float]) -> str:
    """Return the sizes along axes as people write them: ``1 x 0.5 x 0.5``."""
    return " x ".join(f"{value:g}" for value in values)


def quoted(what: object, most: int = 80) -> str:
    """Return the ``repr`` of an object from elsewhere, cut to ``most`` characters."""
    return one_line(repr(what), most)


def in_plot(text: str) -> str:
    """Return text for matplotlib: no dollar begins a formula, no ``_`` hides it in a legend."""
    plain = text.replace("$", r"\$")
    return f" {plain}" if plain.startswith("_") else plain


def _is_shown(character: str) -> bool:
    return character.isprintable() or unicodedata.category(character) == "Zs"


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
