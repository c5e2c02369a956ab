"""The table of a benchmark's scores: a row per region of a prediction, as CSV."""

import csv
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mixmfl.core.errors import DataError, why
from mixmfl.core.spreadsheet import from_cell, open_table, write_table
from mixmfl.core.text import one_line, quoted
from mixmfl.evaluation.mask_quality import DiceEstimate
from mixmfl.evaluation.subset_dice import Subset

NAMES = ("method", "seed", "site", "case", "modalities", "region")
NUMBERS = ("dice", "hd95", "estimated_dice", "lowest", "highest", "written_dice")
COLUMNS = (*NAMES, *NUMBERS)

_MOST_LINES = 1_000_000  # 10 methods of 8 seeds on 250 cases of 15 subsets have 3 regions each


@dataclass(frozen=True)
class Row:
    """The scores of one region of one prediction.

    Attributes:
        method: Method that predicted it.
        seed: Seed of the method's training.
        site: Site of the case.
        case: Name of the case, unique at its site.
        modalities: Modalities that the prediction was made from.
        region: Name of the label or region.
        dice: Dice, 0 to 1; NaN where neither mask has the region.
        hd95: HD95 in mm; NaN where a mask does not have the region.
        estimate: Dice that the model expects of the mask that prediction would write; None where it
            cannot tell.
        written: Dice of that mask, which lacks small components; NaN as ``dice``, or where there
            is no estimate.
    """

    method: str
    seed: int
    site: str
    case: str
    modalities: Subset
    region: str
    dice: float
    hd95: float
    estimate: DiceEstimate | None = None
    written: float = math.nan

    @property
    def numbers(self) -> tuple[float, ...]:
        """Return what stands under ``NUMBERS``."""
        each = self.estimate or DiceEstimate(math.nan, math.nan, math.nan)
        return self.dice, self.hd95, each.dice, each.low, each.high, self.written


def write_rows(rows: Iterable[Row], path: Path) -> None:
    """Write a CSV with ``COLUMNS``, whole or not at all; NaN is an empty field."""
    write_table(path, _lines(rows))


def _lines(rows: Iterable[Row]) -> Iterator[Sequence[object]]:
    yield COLUMNS
    for row in rows:
        # all digits, so that the numbers are the same when they are read again
        numbers = ["" if math.isnan(n) else repr(float(n)) for n in row.numbers]
        modalities = "+".join(row.modalities)
        yield [row.method, row.seed, row.site, row.case, modalities, row.region, *numbers]


def read_rows(path: Path) -> list[Row]:
    """Read what ``write_rows`` wrote.

    Raises:
        DataError: The file is missing or is no such table.
    """
    rows = []
    try:
        with open_table(path, "utf-8", _MOST_LINES) as file:
            lines = csv.reader(file, strict=True)
            header = next(lines, [])
            if tuple(header) != COLUMNS:
                raise DataError(
                    f"{path}: its first line is {quoted(','.join(header))}; a table of scores is "
                    f"needed, whose first line is {','.join(COLUMNS)!r}"
                )
            for fields in lines:
                try:
                    rows.append(_parse(fields))
                except ValueError as reason:
                    raise DataError(
                        f"{path}: line {lines.line_num} is damaged ("
                        f"{one_line(str(reason), 300)}); fix or remove it, or write the table again"
                    ) from None
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file") from None
    except (OSError, ValueError, csv.Error) as reason:
        raise DataError(f"{path}: cannot be read as a table of scores ({why(reason)})") from None
    return rows


def _parse(fields: Sequence[str]) -> Row:
    """Return the row of a line.

    Raises:
        ValueError: The line is damaged; the message says how.
    """
    if len(fields) != len(COLUMNS):
        raise ValueError(f"{len(fields)} fields instead of {len(COLUMNS)}")
    method, seed, site, case, modalities, region, *rest = map(from_cell, fields)
    for column, field in zip(NAMES, fields, strict=False):
        if not field:
            raise ValueError(f"no {column}")
    subset = tuple(modalities.split("+"))
    if "" in subset or len(set(subset)) < len(subset):
        raise ValueError(f"modalities {modalities!r}")
    dice, hd95, *estimate, written = map(_parse_number, rest)
    if hd95 < 0 or any(share < 0 or share > 1 for share in (dice, *estimate, written)):
        raise ValueError(f"{', '.join(rest)}: out of range")
    known = None if math.isnan(estimate[0]) else DiceEstimate(*estimate)
    return Row(method, int(seed), site, case, subset, region, dice, hd95, known, written)


def _parse_number(field: str) -> float:
    if not field:
        return math.nan
    number = float(field)
    if not math.isfinite(number):
        raise ValueError(f"number {field}")
    return number
