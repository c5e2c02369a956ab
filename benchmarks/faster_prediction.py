"""Measure what faster ways of predicting gain in time, and lose in Dice to the truth.

As in ``python benchmarks/faster_prediction.py -m model.safetensors -i north_tests south_tests``.
Each labelled case is predicted from all modalities that it has and from each alone, in all ways in
turn: with patches at several distances, and on a CPU with convolutions by torch and in fewer
products. Labels have to be on the grid of the image that the mask gets.
"""

import argparse
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from mixmfl.networks import winograd

STEPS = (0.5, 0.55, 0.6, 2 / 3, 0.75, 1.0)
DRAWS = 10_000
LARGE = 30.0
"""Volume of the labels of a case, in ml, from which on its lesion is called large."""


class Way(NamedTuple):
    """A way of predicting: distance of patches, and whether convolutions are torch's."""

    step: float
    by_torch: bool


class Mask(NamedTuple):
    """A mask of a case.

    Attributes:
        case: Name of the case.
        way: How it was predicted.
        dice: Mean Dice over labels, to the truth.
        same: Mean Dice over labels, to the mask that was predicted in the first way.
        volume: Volume of the labels of the case, in ml.
        seconds: CPU seconds of the prediction.
    """

    case: str
    way: Way
    dice: float
    same: float
    volume: float
    seconds: float


def main(argv: Sequence[str] | None = None) -> int:
    """Print a line per way: time over that of the first, and Dice minus that of the first."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-m", "--model", type=Path, required=True)
    parser.add_argument("-i", "--input", type=Path, nargs="+", required=True, metavar="CASES")
    parser.add_argument(
        "--steps", type=float, nargs="+", default=STEPS, help="the first is what others are held to"
    )
    options = parser.parse_args(argv)
    keep_freed_memory()
    ways = [Way(step, by_torch) for step in options.steps for by_torch in (True, False)]
    with winograd.by_torch():
        usual = load_model(options.model)
    models = {True: usual, False: load_model(options.model)}
    folders = [find_cases(folder, labels_needed=True) for folder in options.input]
    cases = [case for folder in folders for case in folder.cases]
    masks = [mask for case in cases for mask in measure(models, ways, case)]
    first = [mask for mask in masks if mask.way == ways[0]]
    print(f"{len(cases)} cases, {len(first)} masks; Dice {100 * mean(m.dice for m in first):.1f}")
    parts: dict[str, Callable[[Mask], bool]] = {
        "all": lambda mask: True,
        f"below {LARGE:g} ml": lambda mask: mask.volume < LARGE,
        f"from {LARGE:g} ml on": lambda mask: mask.volume >= LARGE,
    }
    for way in ways[1:]:
        other = [mask for mask in masks if mask.way == way]
        ratio = sum(m.seconds for m in first) / sum(m.seconds for m in other)
        form = ", convolutions by torch" if way.by_torch else ""
        same = mean(m.same for m in other), min(m.same for m in other)
        print(f"step {way.step:.2f}{form}: {ratio:.2f} times as fast")
        print(
            "  Dice to the first mask: mean {:.4f}, least {:.4f}; to the truth, points:".format(
                *same
            )
        )
        for name, part in parts.items():
            print(f"  {name}: {difference(first, other, part)}")
    return 0


def measure(models: Mapping[bool, Model], ways: Sequence[Way], case: Case) -> Iterator[Mask]:
    """Yield the masks of a case from all of its modalities and from each, in all ways.

    Args:
        models: The model, by whether its convolutions are torch's.
        ways: Ways of predicting.
        case: A case with a label.
    """
    assert case.label is not None
    truth, grid = read_labels(case.label)
    model = models[False]
    images = {name: path for name, path in case.images.items() if name in model.modalities}
    chosen = [images, *({name: path} for name, path in images.items() if len(images) > 1)]
    for some in chosen:
        first = None
        for way in ways:
            began = time.process_time()
            with warnings.catch_warnings(action="ignore"):
                mask = models[way.by_torch].predict(some, step=way.step, force=True).T
            seconds = time.process_time() - began
            scores = score(mask, truth, model.plans.labels, grid.spacing)
            volume = sum(each.reference_volume_ml for each in scores)
            first = mask if first is None else first
            to_first = score(mask, first, model.plans.labels, grid.spacing)
            dice, same = (mean(each.dice for each in several) for several in (scores, to_first))
            yield Mask(case.name, way, dice, same, volume, seconds)


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
