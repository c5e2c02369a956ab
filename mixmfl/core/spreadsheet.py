"""Text in CSV files: a spreadsheet must not take it for a formula."""

import re

_BEGINS = r"(?:[\t\r\n]|\s*[=+\-@＝＋－＠])"  # noqa: RUF001  (wide signs are signs in some languages)
_FORMULA = re.compile(f"'*{_BEGINS}")
_MARKED = re.compile(f"'+{_BEGINS}")
_NOTHING = re.compile(r"-|[+-]?\d+(\.\d+)?([eE][+-]?\d+)?")  # calculates nothing: a dash, a number


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
