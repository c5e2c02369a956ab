"""Measure what the distance of patches costs in time, and in Dice to the truth, on labelled cases.

As in ``python benchmarks/overlap.py -m model.safetensors -i north_tests south_tests``. Each case is
predicted from all modalities that it has and from each alone, with all steps in turn. Labels have
to be on the grid of the image that the mask gets.
"""

import argparse
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mixmfl.core.nan import mean
from mixmfl.core.process_memory import keep_freed_memory
from mixmfl.data.cases import Case, find_cases
from mixmfl.data.image import read_labels
from mixmfl.evaluation.metrics import score
from mixmfl.inference.model import Model
from mixmfl.inference.model_file import load_model

STEPS = (0.5, 0.6, 2 / 3, 0.75, 1.0)
DRAWS = 10_000
LARGE = 30.0
"""Volume of the labels of a case, in ml, from which on its lesion is called large."""


class Mask(NamedTuple):
    """A mask of a case: its mean Dice over labels, the labels' volume, and seconds of the CPU."""

    case: str
    step: float
    dice: float
    volume: float
    seconds: float


def main(argv: Sequence[str] | None = None) -> int:
    """Print a line per step: time over that of the first, and Dice minus that of the first."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-m", "--model", type=Path, required=True)
    parser.add_argument("-i", "--input", type=Path, nargs="+", required=True, metavar="CASES")
    options = parser.parse_args(argv)
    keep_freed_memory()
    model = load_model(options.model)
    folders = [find_cases(folder, labels_needed=True) for folder in options.input]
    cases = [case for folder in folders for case in folder.cases]
    masks = [mask for case in cases for mask in measure(model, case)]
    first = [mask for mask in masks if mask.step == STEPS[0]]
    print(f"{len(cases)} cases, {len(first)} masks; Dice {100 * mean(m.dice for m in first):.1f}")
    parts: dict[str, Callable[[Mask], bool]] = {
        "all": lambda mask: True,
        f"below {LARGE:g} ml": lambda mask: mask.volume < LARGE,
        f"from {LARGE:g} ml on": lambda mask: mask.volume >= LARGE,
    }
    for step in STEPS[1:]:
        other = [mask for mask in masks if mask.step == step]
        ratio = sum(m.seconds for m in first) / sum(m.seconds for m in other)
        print(f"step {step:.2f}: {ratio:.2f} times as fast; Dice, points:")
        for name, part in parts.items():
            print(f"  {name}: {difference(first, other, part)}")
    return 0


def measure(model: Model, case: Case) -> Iterator[Mask]:
    """Yield the masks of a case from all of its modalities and from each, with all steps."""
    assert case.label is not None
    truth, grid = read_labels(case.label)
    images = {name: path for name, path in case.images.items() if name in model.modalities}
    chosen = [images, *({name: path} for name, path in images.items() if len(images) > 1)]
    for some in chosen:
        for step in STEPS:
            began = time.process_time()
            with warnings.catch_warnings(action="ignore"):
                mask = model.predict(some, step=step, force=True).T
            seconds = time.process_time() - began
            scores = score(mask, truth, model.plans.labels, grid.spacing)
            volume = sum(each.reference_volume_ml for each in scores)
            yield Mask(case.name, step, mean(each.dice for each in scores), volume, seconds)


def difference(before: Sequence[Mask], after: Sequence[Mask], part: Callable[[Mask], bool]) -> str:
    """Return the mean difference of Dice over cases, with a bootstrap's 95 % interval over them."""
    by_case: dict[str, list[float]] = {}
    for a, b in zip(before, after, strict=True):
        if part(a) and not np.isnan(a.dice - b.dice):
            by_case.setdefault(a.case, []).append(100 * (b.dice - a.dice))
    means = np.array([np.mean(values) for values in by_case.values()])
    if not len(means):
        return "no case"
    drawn = np.random.default_rng(0).choice(means, (DRAWS, len(means))).mean(axis=1)
    low, high = np.percentile(drawn, (2.5, 97.5))
    return f"{means.mean():+.2f} [{low:.2f}, {high:.2f}] ({len(means)} cases)"


if __name__ == "__main__":
    sys.exit(main())
