import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from mixmfl.core.errors import DataError
from mixmfl.evaluation.mask_quality import DiceEstimate
from mixmfl.research.benchmark.scores import COLUMNS, Row, read_rows, write_rows

NAN = math.nan
FIRST = Row("mdm", 3, "north", "n, 1", ("t1", "t1c"), "core", 1 / 3, 2.718281828459045)
FIRST = replace(FIRST, estimate=DiceEstimate(0.75, 0.5, 0.875), written=0.625)


def test_rows_are_read_as_they_were_written(tmp_path: Path) -> None:
    empty = Row("mdm", 3, "north", "ü2", ("t2",), "core", NAN, NAN)
    write_rows([FIRST, empty], tmp_path / "cases.csv")
    text = (tmp_path / "cases.csv").read_text(encoding="utf-8").splitlines()
    assert text[0] == ",".join(COLUMNS)
    assert text[0].startswith("method,seed,site,case,modalities,region,dice,hd95,estimated_dice")
    assert text[1].endswith(",0.75,0.5,0.875,0.625")
    assert text[2] == "mdm,3,north,ü2,t2,core,,,,,,"
    again, undefined = read_rows(tmp_path / "cases.csv")
    assert again == FIRST
    assert math.isnan(undefined.dice)
    assert math.isnan(undefined.hd95)
    zeros = replace(undefined, dice=0.0, hd95=0.0, written=0.0)
    assert zeros == replace(empty, dice=0.0, hd95=0.0, written=0.0)


def test_a_table_that_could_not_be_finished_leaves_the_old_one(tmp_path: Path) -> None:
    def broken() -> Iterator[Row]:
        yield replace(FIRST, case="n2")
        raise RuntimeError("no more")

    write_rows([FIRST], tmp_path / "cases.csv")
    with pytest.raises(RuntimeError, match="no more"):
        write_rows(broken(), tmp_path / "cases.csv")
    assert read_rows(tmp_path / "cases.csv") == [FIRST]
    assert [file.name for file in tmp_path.iterdir()] == ["cases.csv"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("mdm,0,north,n1,t1,lesion,0.5,,,,", "11 fields instead of 12"),
        ("mdm,zero,north,n1,t1,lesion,0.5,1,,,,", "invalid literal for int.*'zero'"),
        ("mdm,0,,n1,t1,lesion,0.5,1,,,,", "no site"),
        ("mdm,0,north,n1,t1++t2,lesion,0.5,1,,,,", r"modalities 't1\+\+t2'"),
        ("mdm,0,north,n1,t1+t1,lesion,0.5,1,,,,", r"modalities 't1\+t1'"),
        ("mdm,0,north,n1,t1,lesion,half,1,,,,", "could not convert string to float: 'half'"),
        ("mdm,0,north,n1,t1,lesion,nan,1,,,,", "number nan"),
        ("mdm,0,north,n1,t1,lesion,1.5,1,,,,", "1.5, 1, , , , : out of range"),
        ("mdm,0,north,n1,t1,lesion,0.5,1,1.5,0,1,", "0.5, 1, 1.5, 0, 1, : out of range"),
        ("mdm,0,north,n1,t1,lesion,0.5,-1,,,,", "0.5, -1, , , , : out of range"),
    ],
)
def test_a_damaged_line_is_named(tmp_path: Path, line: str, reason: str) -> None:
    path = tmp_path / "cases.csv"
    path.write_text(f"{','.join(COLUMNS)}\nmdm,0,north,n1,t1,lesion,0.5,1,,,,\n{line}\n")
    with pytest.raises(DataError, match=rf"cases\.csv: line 3 is damaged \({reason}\); fix or"):
        read_rows(path)


def test_what_is_no_table_of_scores_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cases.csv"
    with pytest.raises(DataError, match=r"cases\.csv: there is no such file"):
        read_rows(path)
    for text in ("", "case,label\na,b\n"):
        path.write_text(text)
        with pytest.raises(DataError, match="a table of scores is needed, whose first line is"):
            read_rows(path)
    for content in (b"\xff\xfe\x00", f'{",".join(COLUMNS)}\n"mdm'.encode()):
        path.write_bytes(content)
        with pytest.raises(DataError, match="cannot be read as a table of scores"):
            read_rows(path)
