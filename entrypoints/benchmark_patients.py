"""``mixmfl_benchmark_patients``: compare methods on patients, over folds and modality sets."""

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mixmfl.core import devices
from mixmfl.core.errors import MixmflError

from . import _options, _paths, _runner

if TYPE_CHECKING:
    from mixmfl.research.benchmark.benchmark_folder import Benchmark
    from mixmfl.research.benchmark.patients import Study

DESCRIPTION = """\
Compare methods on the patients of several hospitals. DATA holds a folder per hospital and
splits.json with modality sets (what a hospital may train on) and test folds; it is only read. For
every set and fold the command writes a federation, preprocesses it, trains each method and scores
it on the fold's patients from every subset of their modalities; the fold is the seed. OUT gets a
folder per set and fold, and SIZE.md: differences with intervals over patients and trainings. The
same command resumes after an interruption; with more methods, sets or folds, it adds them."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code; see ``--help``."""
    parser = _runner.parser("mixmfl_benchmark_patients", DESCRIPTION)
    parser.add_argument(
        "-i",
        "--input",
        type=_paths.folder("DATA, a folder of patients per hospital and splits.json"),
        required=True,
        metavar="DATA",
        help="folder of patients",
    )
    parser.add_argument(
        "-o",
        "--out",
        type=_paths.new_folder("a folder outside DATA to write to"),
        required=True,
        help="a folder outside DATA",
    )
    parser.add_argument(
        "--methods",
        default="local,fedavg,union,tailored,mdm",
        help="comma-separated; mixmfl_benchmark --list lists them; MODULE:NAME: one of your own, "
        "whose module is here or installed (docs/benchmark.md)",
    )
    parser.add_argument("--sets", default="A,C", help="comma-separated modality sets; default: A,C")
    parser.add_argument(
        "--hospitals",
        default="",
        metavar="H1,H2",
        help="comma-separated; only these take part, and only their patients are tested; default: "
        "all of a modality set",
    )
    parser.add_argument("--folds", default="0,1", help="comma-separated test folds; default: 0,1")
    parser.add_argument(
        "--size",
        default="1000",
        help="steps per site, or quick or full, as in mixmfl_benchmark; default: 1000",
    )
    parser.add_argument(
        "--reference",
        default="mdm",
        help="method that others are compared with; default: mdm",
    )
    parser.add_argument(
        "--preset", default="patients", help="shipped preset or a .json of your own"
    )
    _options.add_configuration(parser)
    parser.add_argument(
        "--only-tables",
        action="store_true",
        help="train nothing; write the tables of finished trainings",
    )
    _options.add_learning_rates(parser)
    _options.add_processes(parser)
    _options.add_device(parser)
    return _runner.run(parser, argv, _work)


def _work(options: argparse.Namespace) -> int:
    from mixmfl.core.worker_pool import Workers
    from mixmfl.research.benchmark import methods, run, summary
    from mixmfl.research.benchmark.patients import read_study
    from mixmfl.research.benchmark.trainings_page import write_page

    names = methods.choose(options.methods.split(","))
    _options.check_processes(options.processes)
    rates = _options.learning_rates(options)  # refused before anything is written
    folds = _folds(options.folds)
    study = read_study(options.input)
    _print_refused(study)
    if options.hospitals:
        study = study.only(options.hospitals.split(","))
    device = str(devices.find_device(options.device))
    failed: list[str] = []
    for fold in folds:
        for modality_set in options.sets.split(","):
            if options.only_tables:
                continue
            try:
                benchmark = _open(options, study, modality_set, fold, device, rates)
                with _runner.bars() as report, Workers(options.processes, report) as pool:
                    reasons = run.run_all(benchmark, names, [fold], pool)
                if benchmark.done():
                    summary.summarise(benchmark, options.reference)
            except MixmflError as error:  # one federation does not stop the others
                reasons = [str(error)]
            failed += [f"{modality_set}{fold}: {reason}" for reason in reasons]
            for reason in reasons:
                print(f"{modality_set}{fold}: {reason}", file=sys.stderr)
    print(write_page(options.out, options.size, options.reference))
    return _runner.SOME_FAILED if failed else 0


def _folds(written: str) -> list[int]:
    if not all(word.isdecimal() for word in written.split(",")):
        raise MixmflError(f"--folds {written}: whole numbers from 0 are needed, as in 0,1")
    return sorted({int(word) for word in written.split(",")})


def _print_refused(study: "Study") -> None:
    for site, refused in study.refused.items():
        for each in refused:
            print(f"{site}/{each.name}: refused, {each.reason}", file=sys.stderr)


def _open(
    options: argparse.Namespace,
    study: "Study",
    modality_set: str,
    fold: int,
    device: str,
    rates: Sequence[float],
) -> "Benchmark":
    """Write a federation and preprocess it, unless that is done, and open its benchmark.

    Another command that does so is waited for, so that several can train for one folder.
    """
    from mixmfl.core.files import locked
    from mixmfl.research.benchmark.benchmark_folder import open_benchmark
    from mixmfl.research.benchmark.patients import write_patients

    folder = options.out / f"{modality_set}{fold}"
    with locked(folder / ".lock", -1, MixmflError(f"{folder}: another command writes it")):
        write_patients(study, modality_set, fold, folder / "federation")
        _runner.run_shown(
            "mixmfl_plan_preprocess", "-i", folder / "federation", "-o", folder / "work",
            "--preset", options.preset, "-c", options.configuration,
            "--processes", options.processes,
        )  # fmt: skip
    return open_benchmark(
        folder / "work",
        folder / options.size,
        options.configuration,
        options.size,
        device,
        0,
        rates,
    )


if __name__ == "__main__":
    sys.exit(main())
