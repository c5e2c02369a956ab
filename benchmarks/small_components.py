"""Measure what masks of patients gain without small components.

Reads what ``mixmfl_benchmark_patients`` left: models, their validation cases, on which the share
of the largest component is chosen, and test patients, who had no part in it. All are segmented
from every subset of their modalities.
"""

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from mixmfl.evaluation.small_components import (
    SHARES,
    ComponentSums,
    add_components,
    components_of_case,
    dice_by_share,
)
from mixmfl.evaluation.subset_dice import Subset
from mixmfl.federated.sites import open_sites
from mixmfl.inference.model import Model
from mixmfl.inference.model_file import load_model
from mixmfl.planning.preprocessed_case import PreprocessedCase, case_names, open_case
from mixmfl.research.benchmark.run import masks_of_case, own_modalities
from mixmfl.research.benchmark.scores import Row
from mixmfl.research.benchmark.statistics import Scores
from mixmfl.research.benchmark.trainers import FOLD
from mixmfl.research.benchmark.trainings import PARTS, Trainings

PLAIN, CHOSEN = "as they are", "chosen share"


def main(argv: Sequence[str] | None = None) -> None:
    """Print the chosen shares, and the gain of each share in points with its intervals."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="of mixmfl_benchmark_patients -o")
    parser.add_argument("--size", default="1000", help="steps that the models were trained for")
    parser.add_argument("--method", default="mdm", help="one that has a single model")
    options = parser.parse_args(argv)
    pattern = f"*/{options.size}/runs/{options.method}/seed*/all/model.safetensors"
    measured = {}
    for file in sorted(options.out.glob(pattern)):
        training = file.parents[5]
        measured[training.name] = test_scores(load_model(file), training / "work", file.parts[-3])
    if not measured:
        sys.exit(f"{options.out}: no {pattern}")
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
    number = int(seed.removeprefix("seed"))
    sites = open_sites(work, model.plans, model.configuration, FOLD, number)
    held = [case for site in sites for case in site.validation]
    chosen = {name: sums.best_share for name, sums in validation_sums(model, held).items()}
    print(f"{work.parent.name}: {chosen}", flush=True)
    rows = []
    for folder in sorted((work / "tests").glob(f"*/{model.configuration}")):
        for name in case_names(folder):
            case = open_case(folder, name)
            for subset, by_label in dice_of_subsets(model, case):
                for label, dice in by_label.items():
                    by_share = dict(zip(SHARES, dice, strict=True))
                    values = {_name(share): value for share, value in by_share.items()}
                    values[CHOSEN] = by_share[chosen[label]]
                    site = folder.parent.name
                    rows += [
                        Row(what, 0, site, name, subset, label, value, float("nan"))
                        for what, value in values.items()
                    ]
    return Scores(rows, own_modalities(sites, model.plans))


def validation_sums(model: Model, cases: Iterable[PreprocessedCase]) -> dict[str, ComponentSums]:
    """Return by label what validation cases have, as sites measure it when training ends."""
    found: dict[str, ComponentSums] = {}
    for case in cases:
        by_label: dict[str, list[tuple[float, ...]]] = {}
        for _, each in dice_of_subsets(model, case):
            for label, dice in each.items():
                by_label.setdefault(label, []).append(dice)
        for label, rows in by_label.items():
            parts = [found.get(label, ComponentSums()), components_of_case(rows[-1][0], rows)]
            found[label] = add_components(parts)
    return found


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
