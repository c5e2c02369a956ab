"""Compare the Dice that models expect from each subset of modalities with that of test patients.

Reads what ``mixmfl_benchmark_patients`` left: of each training, the counts that its sites sent and
the scores of its test patients, who had no part in them.
"""

import argparse
import csv
import math
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median

from mixmfl.core.files import read_json
from mixmfl.core.records import read_value
from mixmfl.core.strict_json import MOST_BYTES
from mixmfl.evaluation.subset_dice import ENOUGH_CASES, FEW_CASES, Expected, SubsetDice, expect
from mixmfl.research.benchmark.scores import read_rows

DROP = 0.1
"""A further modality that lowers the expected Dice by more is counted."""


@dataclass(frozen=True)
class Comparison:
    """One label of one training, from one subset of modalities.

    Attributes:
        cases: How many validation cases measured it.
        expected: Median of the expected Dice.
        median: Median over the test patients.
        below: Share of the test patients with less than the expected lower bound.
    """

    cases: int
    expected: float
    median: float
    below: float


def main(argv: Sequence[str] | None = None) -> None:
    """Print a table as CSV: a row per number of validation cases behind a subset."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "folders", type=Path, nargs="+", metavar="OUT", help="of mixmfl_benchmark_patients -o"
    )
    files = sorted(
        file for out in parser.parse_args(argv).folders for file in out.rglob("all/expected.json")
    )
    found: list[Comparison] = []
    drops = pairs = 0
    for file in files:
        content = read_json(file, most_bytes=MOST_BYTES)
        known = read_value(Expected, content["expected"], str(file))
        scores = file.parents[1] / "scores.csv"
        found += compare(known, scores)
        names = {name for each in known for name in each.modalities}
        steps = [
            expect(known, each.modalities).median - expect(known, {*each.modalities, name}).median
            for each in known
            for name in names.difference(each.modalities)
        ]
        drops += sum(step > DROP for step in steps)
        pairs += len(steps)
    table = csv.writer(sys.stdout)
    table.writerow(["cases", "subsets", "mean error", "expected too high by", "patients below"])
    for name, fewest, most in (
        ("any", 0, sys.maxsize),
        (f"fewer than {FEW_CASES}", 0, FEW_CASES),
        (f"{FEW_CASES} to {ENOUGH_CASES - 1}", FEW_CASES, ENOUGH_CASES),
        (f"{ENOUGH_CASES} and more", ENOUGH_CASES, sys.maxsize),
    ):
        rows = [each for each in found if fewest <= each.cases < most]
        if rows:
            errors = [each.expected - each.median for each in rows]
            numbers = fmean(map(abs, errors)), fmean(errors), fmean(each.below for each in rows)
            table.writerow([name, len(rows), *(f"{number:.3f}" for number in numbers)])
    print(
        f"{len(files)} trainings; lower by more than {DROP} with a modality more: {drops}/{pairs}"
    )


def compare(known: Sequence[SubsetDice], scores: Path) -> list[Comparison]:
    """Compare what was expected with a training's table of scores."""
    dice = defaultdict(list)
    for row in read_rows(scores):
        if not math.isnan(row.dice):  # neither mask nor reference has the label
            dice[row.modalities, row.region].append(row.dice)
    found = []
    for (modalities, region), values in dice.items():
        expected = expect(known, modalities).dice.get(region)
        if expected is not None:
            below = fmean(value < expected.low for value in values)
            found.append(Comparison(expected.cases, expected.median, median(values), below))
    return found


if __name__ == "__main__":
    main()
