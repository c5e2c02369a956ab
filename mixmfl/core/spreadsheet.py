"""CSV files: a spreadsheet must not take text for a formula, and a table has an end."""

import re
from pathlib import Path

_BEGINS = r"(?:[\t\r\n]|\s*[=+\-@＝＋－＠])"  # noqa: RUF001  (wide signs are signs in some languages)
_FORMULA = re.compile(f"'*{_BEGINS}")
_MARKED = re.compile(f"'+{_BEGINS}")
_NOTHING = re.compile(r"-|[+-]?\d+(\.\d+)?([eE][+-]?\d+)?")  # calculates nothing: a dash, a number


MOST_BYTES = 64 * 2**20
"""The bytes that a table may have; one of a million cases has half of that."""


def check_length(file: Path) -> None:
    """Check, before a table is read, that it is a file that memory can hold.

    Raises:
        ValueError: It is longer, or no file.
        OSError: There is nothing of this name.
    """
    size = file.stat().st_size
    if not file.is_file():
        raise ValueError("it is no file")
    if size > MOST_BYTES:
        raise ValueError(f"it has {size} bytes, and a file of at most {MOST_BYTES} is read")


def cell(value: object) -> object:
    """Return the content of a CSV field for a value, so that a spreadsheet shows text as text.

    An apostrophe before ``=``, ``+``, ``-``, ``@``, a tab or a line end makes a spreadsheet take
    the field for text. Numbers stay as they are. ``from_cell`` takes the apostrophe away.
    """
    if not isinstance(value, str) or _NOTHING.fullmatch(value) or not _FORMULA.match(value):
        return value
    return f"'{value}"


def from_cell(text: str) -> str:
    """Return the text from which ``cell`` made a field."""
    return text[1:] if _MARKED.match(text) else text
