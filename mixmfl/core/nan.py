"""Numbers that may be undefined (NaN, in JSON null), as Dice is where no mask has the label."""

import math
import statistics
from collections.abc import Iterable


def defined(numbers: Iterable[float]) -> list[float]:
    """Return the numbers that are not NaN."""
    return [number for number in numbers if not math.isnan(number)]


def mean(numbers: Iterable[float]) -> float:
    """Return the mean of the defined numbers; NaN where none is.

    Their sum is rounded once (``math.fsum``), so that their order changes no bit.
    """
    known = defined(numbers)
    return statistics.fmean(known) if known else math.nan


def deviation(numbers: Iterable[float]) -> float:
    """Return the sample standard deviation of the defined numbers; NaN for fewer than two."""
    known = defined(numbers)
    return statistics.stdev(known) if len(known) > 1 else math.nan


def or_none(number: float) -> float | None:
    """Return a number as JSON can hold it: NaN as None."""
    return None if math.isnan(number) else number


def or_nan(number: float | None) -> float:
    """Return the number that ``or_none`` turned into JSON."""
    return math.nan if number is None else number
