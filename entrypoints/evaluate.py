"""``mixmfl_evaluate``: compare masks with references."""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from . import _options, _runner

if TYPE_CHECKING:
    from mixmfl.evaluation.metrics import Summary

DESCRIPTION = """\
Compare masks with references: Dice, 95th percentile of the surface distances (HD95) and volume,
per case and per label or region.

REFERENCE is a folder of masks with the same names as those in MASKS, or a folder of cases with
labels. What the label values mean is read from the dataset.json in REFERENCE, beside it or in
MASKS. Where REFERENCE is of a site that labels some of what a model of several sites finds, name
the model's description with --labels (WORK/plans.json is one): only what the site labels is
scored. Where both masks of a case are empty, Dice and HD95 are undefined; where one is, Dice is 0
and HD95 undefined. Undefined values are counted, and in no mean.

Exit code: 0 all cases are evaluated, 1 some could not be, 2 nothing could start."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see ``--help``."""
    made = _runner.parser("mixmfl_evaluate", DESCRIPTION)
    made.add_argument(
        "-i", "--masks", type=Path, required=True, metavar="MASKS", help="folder of masks"
    )
    made.add_argument(
        "-r", "--reference", type=Path, required=True, metavar="REFERENCE", help="folder"
    )
    made.add_argument(
        "-o", "--out", type=Path, metavar="OUT.csv", help="write a row per case and region"
    )
    made.add_argument("--overwrite", action="store_true", help="replace OUT.csv if it is there")
    made.add_argument(
        "--labels", type=Path, metavar="FILE", help="the dataset.json, or plans.json, to use"
    )
    made.add_argument(
        "--reference-labels",
        type=Path,
        metavar="FILE",
        help="the dataset.json of REFERENCE, where its labels are not those of MASKS",
    )
    _options.add_alias(made)
    return _runner.run(made, argv, _evaluate)


def _evaluate(options: argparse.Namespace) -> int:
    from mixmfl.core.errors import DataError
    from mixmfl.data.modalities import Modalities
    from mixmfl.evaluation import metrics

    if options.out and options.out.exists() and not options.overwrite:
        raise DataError(f"{options.out} exists; name another file, or replace it with --overwrite")
    labels, own, source = metrics.read_descriptions(
        options.masks, options.reference, options.labels, options.reference_labels
    )
    scored = [name for name in labels.foreground if own is None or name in own.foreground]
    print(f"labels: {', '.join(scored)} (from {source})")
    evaluation = metrics.evaluate_folder(
        options.masks,
        options.reference,
        labels,
        modalities=Modalities().with_aliases(options.alias),
        progress=lambda names: _runner.progress(names, len(names), "evaluating"),
        own=own,
    )
    for name, reason in evaluation.failures.items():
        _runner.complain("mixmfl_evaluate", f"case {name!r}: {reason}")
    if evaluation.scores:
        _print_table(metrics.summarise(evaluation))
        if options.out:
            metrics.write_csv(evaluation, options.out)
            print(f"every case: {options.out}")
    print(f"cases: {len(evaluation.scores)} evaluated, {len(evaluation.failures)} not")
    return _runner.SOME_FAILED if evaluation.failures else 0


def _print_table(summaries: "Sequence[Summary]") -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table("region", "metric")
    for name in ("mean", "median", "std", "cases", "undefined"):
        table.add_column(name, justify="right")
    for each in summaries:
        metric, digits = ("Dice", 3) if each.metric == "dice" else ("HD95 mm", 1)
        numbers = (each.mean, each.median, each.std)
        table.add_row(
            escape(each.label) if each.metric == "dice" else "",
            metric,
            *("-" if math.isnan(number) else f"{number:.{digits}f}" for number in numbers),
            str(each.cases),
            str(each.undefined),
            end_section=each.metric != "dice",
        )
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
