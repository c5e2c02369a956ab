"""CSV files: a spreadsheet must not take text for a formula, and a table has an end."""

import csv
import io
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TextIO

from mixmfl.core.files import only_files, write_text
from mixmfl.core.text import quoted

_SIGN = r"[=+\-@＝＋－＠]"  # noqa: RUF001  (wide signs are signs in some languages)
_BEGINS = rf"(?:[\t\r\n]|\s*{_SIGN})"
_FORMULA = re.compile(f"'*{_BEGINS}")
_MARKED = re.compile(f"'+{_BEGINS}")
# where a semicolon, a bar or a tab separates fields, which a field's quotes do not stop
_SPLIT = r"(?<=[;|\t\r\n])"
_INNER = rf"(?=(?:[^\S\t\r\n]|['\"])*{_SIGN})"
_INNER_FORMULA = re.compile(_SPLIT + _INNER)
_INNER_MARKED = re.compile(f"{_SPLIT}'{_INNER}")
_NOTHING = re.compile(r"-|[+-]?\d+(\.\d+)?([eE][+-]?\d+)?")  # calculates nothing: a dash, a number


MOST_BYTES = 64 * 2**20
"""The bytes that a table may have; one of a million cases has half of that."""


MOST_LINES = 500_000
"""The lines that a table may have which people write or edit; reading so many takes seconds."""

_MOST_COLUMNS = 1000

_MOST_FIELDS = 20  # per line, in the mean


@contextmanager
def open_table(
    path: Path, encoding: str = "utf-8-sig", most_lines: int = MOST_LINES
) -> Iterator[TextIO]:
    """Open a table for ``csv``, if it is a file that memory can hold and time suffices for.

    Args:
        path: The file.
        encoding: How its text is encoded.
        most_lines: The lines that it may have, with a mean of 20 fields each.

    Raises:
        ValueError: It is longer.
        OSError: There is nothing of this name, or no file.
    """
    with open(path, "rb", opener=only_files) as file:
        size = os.fstat(file.fileno()).st_size
        if size > MOST_BYTES:
            raise ValueError(f"it has {size} bytes, and a file of at most {MOST_BYTES} is read")
        lines, fields = _count(file)
        if lines > most_lines:
            raise ValueError(f"it has {lines} lines, and at most {most_lines} are read")
        if fields > _MOST_FIELDS * most_lines:
            raise ValueError(
                f"it has {fields} separators, and at most {_MOST_FIELDS * most_lines} are read"
            )
        file.seek(0)
        yield io.TextIOWrapper(file, encoding=encoding, newline="")


def _count(file: BinaryIO) -> tuple[int, int]:
    """Return at most how many lines and separators of fields a file has, before it is parsed."""
    lines = fields = 0
    while piece := file.read(1 << 20):
        lines += max(piece.count(b"\n"), piece.count(b"\r"))
        fields += sum(map(piece.count, (b",", b";", b"\t")))
    return lines, fields


def check_columns(names: Sequence[str] | None) -> list[str]:
    """Return the names of a table's columns, of which each is there once.

    Raises:
        ValueError: One is there twice, or they are too many.
    """
    columns = list(names or ())
    if len(columns) > _MOST_COLUMNS:
        raise ValueError(f"it has {len(columns)} columns, and at most {_MOST_COLUMNS} are read")
    if twice := [name for name in columns if name and columns.count(name) > 1]:
        raise ValueError(f"it has the column {quoted(twice[0])} twice")
    return columns


def table(rows: Iterable[Iterable[object]]) -> str:
    """Return rows as CSV, their fields as ``cell`` returns them."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(map(cell, row) for row in rows)
    return text.getvalue()


def write_table(path: Path, rows: Iterable[Iterable[object]]) -> None:
    """Write rows as CSV, whole or not at all."""
    write_text(path, table(rows))


def cell(value: object) -> object:
    """Return the content of a CSV field for a value, so that a spreadsheet shows text as text.

    An apostrophe before ``=``, ``+``, ``-``, ``@``, a tab or a line end makes a spreadsheet take
    the field for text; so it does within the field behind what separates fields in some countries.
    Numbers stay as they are. ``from_cell`` takes the apostrophes away.
    """
    if not isinstance(value, str) or _NOTHING.fullmatch(value):
        return value
    text = _INNER_FORMULA.sub("'", value)
    return f"'{text}" if _FORMULA.match(text) else text


def from_cell(text: str) -> str:
    """Return the text from which ``cell`` made a field."""
    if "'" not in text:
        return text
    return _INNER_MARKED.sub("", text[1:] if _MARKED.match(text) else text)
