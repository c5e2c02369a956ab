"""``mixmfl_demo``: the whole workflow on a phantom federation, from images to an HTML report."""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mixmfl.core import devices
from mixmfl.core.errors import MixmflError

from . import _paths, _runner

if TYPE_CHECKING:
    from mixmfl.data.labels import Labels
    from mixmfl.research.subset_predictions import SubsetScores

DESCRIPTION = """\
Run the whole workflow on a phantom: write four hospitals with different modalities, plan and
preprocess, train federated, and predict the cases of a fifth, unseen hospital from every subset of
modalities. Prints a table of Dice and writes an HTML report. The same command resumes an
interrupted demo."""

INTRODUCTION = """\
Simulated MRI of simulated tumours: a phantom, no patients. The model was trained on four \
hospitals with different modalities; none had all four. Here it segments cases of a fifth \
hospital that it never saw, from every subset of modalities."""

# identifies a demo: a folder with other settings is set aside
SETTINGS = {"version": 2, "seed": 0, "spacing_mm": 3.0, "preset": "demo", "configuration": "2d"}
UNSEEN = "unseen"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code; see ``--help``."""
    parser = _runner.parser("mixmfl_demo", DESCRIPTION)
    parser.add_argument(
        "-o", "--out", type=_paths.new_folder(), default=Path("demo"), help="folder; default: demo"
    )
    return _runner.run(parser, argv, _work)


def _work(options: argparse.Namespace) -> int:
    began = time.monotonic()
    out: Path = options.out
    _claim(out)
    # the demo's model must not become the one that a clinician's mixmfl_predict uses
    os.environ["MIXMFL_HOME"] = str(out / "settings")

    federation, work, run = out / "federation", out / "work", out / "run"
    configuration, preset = str(SETTINGS["configuration"]), str(SETTINGS["preset"])
    _runner.run_shown(
        "mixmfl_demo_data", "-o", federation, "--seed", SETTINGS["seed"],
        "--spacing", SETTINGS["spacing_mm"],
    )  # fmt: skip
    _runner.run_shown(
        "mixmfl_plan_preprocess", "-i", federation, "-o", work, "--preset", preset,
        "-c", configuration,
    )  # fmt: skip
    resume = ["--resume"] if (run / "run.json").is_file() else []
    _runner.run_shown("mixmfl_train_federated", "-i", work, "-o", run, "-c", configuration, *resume)
    _predict_and_show(out)
    print(f"{time.monotonic() - began:.0f} s in all")
    return 0


def _predict_and_show(out: Path) -> None:
    from mixmfl.core.files import write_text
    from mixmfl.data.cases import find_cases
    from mixmfl.data.dataset_card import subjects_of
    from mixmfl.data.labels import read_site_labels
    from mixmfl.evaluation.subset_dice import all_subsets
    from mixmfl.inference.default_model import registered_model
    from mixmfl.inference.model_file import load_model
    from mixmfl.research.subset_predictions import predict_subsets, score_subsets, subset_page

    unseen, masks = out / "federation" / UNSEEN, out / "masks"
    model_file = registered_model(_runner.home())
    model = load_model(model_file, devices.find_device("auto"))
    labels = read_site_labels(unseen, unseen.parent)
    cases = find_cases(unseen, labels_needed=True).cases
    subsets = all_subsets(model.modalities)
    print(f"\n{len(cases)} cases of hospital {UNSEEN!r}, from {len(subsets)} subsets of modalities")

    outcomes = predict_subsets(model, cases, masks, subjects_of(unseen))
    for _, outcome in _runner.progress(outcomes, len(cases) * len(subsets), "predicting"):
        if outcome.status == "failed":
            raise MixmflError(f"case {outcome.name}: {outcome.reason}")
    scores = score_subsets(
        model.modalities,
        masks,
        unseen,
        labels,
        lambda each: _runner.progress(each, len(each), "evaluating"),
    )
    shown = [subset for subset in subsets if len(subset) in (1, len(model.modalities))]
    text = subset_page(
        "mixmfl demo: a phantom hospital that was never seen",
        INTRODUCTION,
        scores,
        cases,
        masks,
        labels,
        shown[::-1],
    )
    write_text(out / "report.html", text)
    _print_table(scores, labels)
    print(f"masks  {masks}\nmodel  {model_file}\npage   {out / 'report.html'}")


def _print_table(scores: "Sequence[SubsetScores]", labels: "Labels") -> None:
    from rich.console import Console
    from rich.table import Table

    from mixmfl.core.nan import mean

    table = Table("modalities used", title="Dice on the unseen phantom hospital")
    names = list(labels.foreground)
    for name in names:
        table.add_column(name.replace("_", " "), justify="right")
    for item in scores:
        table.add_row(", ".join(item.subset), *(f"{item.mean_dice(name):.3f}" for name in names))
    table.add_section()
    means = [mean(item.mean_dice(name) for item in scores) for name in names]
    table.add_row(f"mean of {len(scores)} subsets", *(f"{dice:.3f}" for dice in means))
    Console().print(table)


def _claim(out: Path) -> None:
    """Use a folder for this demo: set aside a demo with other settings, refuse any other files."""
    from mixmfl.core.errors import DataError
    from mixmfl.core.files import read_json, write_json

    record = out / "demo.json"
    if record.is_file():
        if read_json(record) == SETTINGS:
            print(f"{out}: holds a demo; resuming it")
            return
        number = 1
        while (aside := out.with_name(f"{out.name}-old-{number}")).exists():
            number += 1
        out.rename(aside)
        print(f"{out}: held a demo of another version, which was moved to {aside}")
    elif out.is_dir() and any(out.iterdir()):
        raise DataError(f"{out}: holds files that are not a demo; name another folder with -o")
    write_json(record, SETTINGS)


if __name__ == "__main__":
    sys.exit(main())
