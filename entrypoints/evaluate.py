"""``mixmfl_evaluate``: compare masks with references."""

import argparse
import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from . import _options, _paths, _runner

if TYPE_CHECKING:
    from mixmfl.evaluation.metrics import Summary

DESCRIPTION = """\
Compare masks with references: Dice, 95th percentile of the surface distances (HD95) and volume,
per case and per label or region.

REFERENCE is a folder of masks with the same names as those in MASKS, or a folder of cases with
labels. What the label values mean is read from the dataset.json in REFERENCE, beside it or in
MASKS. If REFERENCE is from a site that labels only some of the model's labels, name the model's
description with --labels (for example WORK/plans.json): only what the site labels is scored. If
both masks of a case are empty, Dice and HD95 are undefined; if one is empty, Dice is 0 and HD95
undefined. Undefined values are counted, but are not part of any mean.

Exit code: 0 all cases were evaluated, 1 some could not be, 2 nothing could start."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code; see ``--help``."""
    parser = _runner.parser("mixmfl_evaluate", DESCRIPTION)
    parser.add_argument(
        "-i",
        "--masks",
        type=_paths.folder("MASKS, a folder of masks"),
        required=True,
        metavar="MASKS",
        help="folder of masks",
    )
    parser.add_argument(
        "-r",
        "--reference",
        type=_paths.folder("REFERENCE, a folder of masks or of cases with labels"),
        required=True,
        metavar="REFERENCE",
        help="folder",
    )
    parser.add_argument(
        "-o",
        "--out",
        type=_paths.new_file(),
        metavar="OUT.csv",
        help="write a row per case and region",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace OUT.csv if it exists")
    parser.add_argument(
        "--labels",
        type=_paths.LABELS,
        metavar="FILE",
        help="the dataset.json, or plans.json, to use",
    )
    parser.add_argument(
        "--reference-labels",
        type=_paths.LABELS,
        metavar="FILE",
        help="the dataset.json of REFERENCE, if its labels differ from those of MASKS",
    )
    _options.add_alias(parser)
    return _runner.run(parser, argv, _evaluate)


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
            print(f"table of all cases: {options.out}")
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
