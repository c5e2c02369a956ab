"""Measure what masks of patients gain without small components.

Reads what ``mixmfl_benchmark_patients`` left: models, their validation cases, on which the share
of the largest component is chosen, and test patients, who had no part in it. All are segmented
from every subset of their modalities.
"""

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mixmfl.evaluation.small_components import (
    SHARES,
    ComponentSums,
    add_components,
    components_of_case,
    dice_by_share,
)
from mixmfl.evaluation.subset_dice import Subset
from mixmfl.federated.sites import open_sites
from mixmfl.federated.state import Site
from mixmfl.inference.model import Model
from mixmfl.inference.model_file import load_model
from mixmfl.planning.preprocessed_case import PreprocessedCase, open_cases
from mixmfl.research.benchmark.benchmark_folder import own_modalities
from mixmfl.research.benchmark.scores import Row
from mixmfl.research.benchmark.scoring import masks_of_case
from mixmfl.research.benchmark.statistics import Scores
from mixmfl.research.benchmark.trainers import FOLD
from mixmfl.research.benchmark.trainings import PARTS, Trainings

PLAIN, CHOSEN = "as they are", "chosen share"
FEW, MARGINS, DRAWS = (1, 2, 3, 5, 8, 12), (0.0, 0.005, 0.01, 0.02), 2000
"""Validation cases and Dice of ``--few``, and draws of each."""


def main(argv: Sequence[str] | None = None) -> None:
    """Print the chosen shares, and the gain of each share in points with its intervals."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="of mixmfl_benchmark_patients -o")
    parser.add_argument("--size", default="1000", help="steps that the models were trained for")
    parser.add_argument("--method", default="mdm", help="one that has a single model")
    parser.add_argument(
        "--few",
        action="store_true",
        help="print what shares gain that are chosen on few of the validation cases, with margins",
    )
    options = parser.parse_args(argv)
    pattern = f"*/{options.size}/runs/{options.method}/seed*/all/model.safetensors"
    files = sorted(options.out.glob(pattern))
    if not files:
        sys.exit(f"{options.out}: no {pattern}")
    if options.few:
        print_few(files)
        return
    measured = {}
    for file in files:
        training = file.parents[5]
        measured[training.name] = test_scores(load_model(file), training / "work", file.parts[-3])
    trainings = Trainings(measured)
    for name in (CHOSEN, *map(_name, SHARES[1:])):
        for part in PARTS:
            gain = trainings.difference(name, PLAIN, part)
            each = [
                trainings.mean_of(at, name, part) - trainings.mean_of(at, PLAIN, part)
                for at in trainings.of(name, PLAIN)
            ]
            by_training = " ".join(f"{value:+.1f}" for value in each)
            print(
                f"{name}, {part}: {gain.bootstrap.mean:+.1f} "
                f"[{gain.bootstrap.low:.1f}, {gain.bootstrap.high:.1f}], "
                f"[{gain.student.low:.1f}, {gain.student.high:.1f}]; {by_training}"
            )


def test_scores(model: Model, work: Path, seed: str) -> Scores:
    """Return the Dice of a training's test patients, with every share and the chosen ones."""
    sites, held = sites_and_held(model, work, seed)
    of_held = sums_of_cases(model, held)
    chosen = {name: add_components(each).best_share for name, each in of_held.items()}
    print(f"{work.parent.name}: {chosen}", flush=True)
    rows = []
    for folder in sorted((work / "tests").glob(f"*/{model.configuration}")):
        for case in open_cases(folder):
            for subset, by_label in dice_of_subsets(model, case):
                for label, dice in by_label.items():
                    by_share = dict(zip(SHARES, dice, strict=True))
                    values = {_name(share): value for share, value in by_share.items()}
                    values[CHOSEN] = by_share[chosen[label]]
                    site = folder.parent.name
                    rows += [
                        Row(what, 0, site, case.name, subset, label, value, float("nan"))
                        for what, value in values.items()
                    ]
    return Scores(rows, own_modalities(sites, model.plans))


def print_few(files: Iterable[Path]) -> None:
    """Print what shares gain in test cases that are chosen on few validation cases."""
    known = []
    for file in files:
        model, work = load_model(file), file.parents[5] / "work"
        folders = sorted((work / "tests").glob(f"*/{model.configuration}"))
        tests = [case for folder in folders for case in open_cases(folder)]
        of_held = sums_of_cases(model, sites_and_held(model, work, file.parts[-3])[1])
        of_tests = sums_of_cases(model, tests)
        known += [(of_held[label], of_tests[label]) for label in of_held.keys() & of_tests.keys()]
    print("cases  margin  taken  gain  in every training  draws that lose")
    for cases in FEW:
        for margin in MARGINS:
            generator = np.random.default_rng(0)
            each = [
                100 * choose_on_few(held, tests, cases, margin, generator)
                for held, tests in known
                if len(held) >= cases
            ]
            gains = np.concatenate(each)
            by_training = " ".join(f"{gain.mean():+.1f}" for gain in each)
            print(
                f"{cases:5} {100 * margin:7.1f} {(gains != 0).mean():6.0%} {gains.mean():+5.1f}  "
                f"{by_training}  {(gains < 0).mean():.1%}"
            )


def sites_and_held(
    model: Model, work: Path, seed: str
) -> tuple[list[Site], list[PreprocessedCase]]:
    """Return the sites of a training, and the cases that they held back to validate."""
    number = int(seed.removeprefix("seed"))
    sites = open_sites(work, model.plans, model.configuration, FOLD, number)
    return sites, [case for site in sites for case in site.validation]


def sums_of_cases(
    model: Model, cases: Iterable[PreprocessedCase]
) -> dict[str, list[ComponentSums]]:
    """Return by label what each case adds to the sums that sites measure when training ends."""
    found: dict[str, list[ComponentSums]] = {}
    for case in cases:
        by_label: dict[str, list[tuple[float, ...]]] = {}
        for _, each in dice_of_subsets(model, case):
            for label, dice in each.items():
                by_label.setdefault(label, []).append(dice)
        for label, rows in by_label.items():
            found.setdefault(label, []).append(components_of_case(rows[-1][0], rows))
    return found


def choose_on_few(
    held: Sequence[ComponentSums],
    tests: Sequence[ComponentSums],
    cases: int,
    margin: float,
    generator: np.random.Generator,
) -> npt.NDArray[np.float64]:
    """Return what a share that some validation cases choose gains in test cases, by draw.

    Args:
        held: Validation cases, from which some are drawn 2,000 times, each at most once.
        tests: Test cases; the gain is in Dice, the mean over them.
        cases: How many are drawn.
        margin: Dice that a share must gain in those to be taken.
        generator: Source of the draws.
    """
    by_share = np.array([each.by_share for each in held])
    gains = np.array([each.by_share for each in tests]).mean(axis=0)
    found = []
    for _ in range(DRAWS):
        drawn = by_share[generator.choice(len(held), cases, replace=False)].mean(axis=0)
        best = int(np.argmax(drawn))
        found.append(gains[best] - gains[0] if drawn[best] - drawn[0] > margin else 0.0)
    return np.array(found)


def dice_of_subsets(
    model: Model, case: PreprocessedCase
) -> Iterable[tuple[Subset, dict[str, tuple[float, ...]]]]:
    """Yield the Dice of a case by label for each of ``SHARES``, from every subset."""
    known = model.plans.labels.consecutive().only(case.labelled)
    for subset, mask in masks_of_case(model, case).items():
        if mask is not None:
            yield subset, dice_by_share(mask.indices, case.labels[:][0], known)


def _name(share: float) -> str:
    return f"below {share:.0%}" if share else PLAIN


if __name__ == "__main__":
    main()
