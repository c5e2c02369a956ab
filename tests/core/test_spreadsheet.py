"""Tables have an end, which is looked for before they are parsed."""

from pathlib import Path

import pytest

from mixmfl.core import spreadsheet
from mixmfl.core.spreadsheet import open_table


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"case\n" + b"a\n" * 20, "it has 21 lines, and at most 20 are read"),
        (b"case\r" + b"a\r" * 20, "it has 21 lines, and at most 20 are read"),
        (b"case\r\n" + b"a\r\n" * 20, "it has 21 lines, and at most 20 are read"),
        (b"case\n" + b"," * 401, "it has 401 separators, and at most 400 are read"),
        (b'"\n",;' * 10 + b";" * 400, "it has 420 separators, and at most 400 are read"),
    ],
)
def test_a_table_of_too_many_rows_or_fields_is_refused_before_it_is_parsed(
    tmp_path: Path, content: bytes, what: str
) -> None:
    table = tmp_path / "table.csv"
    table.write_bytes(content)
    with pytest.raises(ValueError, match=what), open_table(table, most_lines=20):
        pass


def test_a_table_is_read_from_its_start_with_every_line_end_and_mark(tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_bytes("\ufeffcase,größe\r\na,1\r\n".encode())
    with open_table(table, most_lines=20) as file:
        assert file.read() == "case,größe\r\na,1\r\n"
    assert spreadsheet.MOST_LINES >= 500_000
