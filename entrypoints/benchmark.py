"""``mixmfl_benchmark``: train and score methods under equal conditions."""

import argparse
import sys
from collections.abc import Sequence

from mixmfl.core import devices
from mixmfl.core.errors import MixmflError

from . import _options, _paths, _runner

DESCRIPTION = """\
Train every method on the sites in WORK with the same plans, cases, gradient steps, augmentation and
validation, and score each on the sites' test cases from every subset of modalities. OUT gets
table.md, cases.csv (a row per prediction and region), results.json, leaderboard.html, subsets.png
and sites.png. The same command resumes after an interruption; with more methods or seeds, it adds
them."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code; see ``--help``."""
    parser = _runner.parser("mixmfl_benchmark", DESCRIPTION)
    _options.add_work(parser, "output of mixmfl_plan_preprocess for a federation with test cases")
    parser.add_argument(
        "-o",
        "--out",
        type=_paths.new_folder(),
        required=True,
        help="folder for runs, tables and plots, which may have those of this benchmark so far",
    )
    parser.add_argument(
        "--methods",
        default="baselines",
        help="comma-separated; baselines (default) and ablation are groups of methods; NAME+site: "
        "each site also fine-tunes the model for itself; MODULE:NAME: a method of your own, whose "
        "module is here or installed (docs/benchmark.md)",
    )
    parser.add_argument("--list", action=_List, nargs=0, help="list the methods and exit")
    parser.add_argument(
        "--reference", default="mdm", help="method that others are compared with; default: mdm"
    )
    parser.add_argument("--seeds", default="0,1,2", help="comma-separated; default: 0,1,2")
    parser.add_argument(
        "--size",
        default="quick",
        help="quick (default): a few minutes per method and seed on a small phantom; full: the "
        "plans' own rounds and steps; or a number of steps per site",
    )
    _options.add_configuration(parser)
    parser.add_argument(
        "--others",
        type=_paths.file("a results.json of mixmfl_benchmark"),
        nargs="+",
        default=[],
        metavar="FILE",
        help="results.json of other people for the same benchmark, whose methods join "
        "leaderboard.html",
    )
    parser.add_argument(
        "-n",
        "--processes",
        type=int,
        help="trainings in parallel; default: CPU cores, with a GPU 1",
    )
    _options.add_workers(parser)
    _options.add_learning_rates(parser)
    _options.add_device(parser)
    return _runner.run(parser, argv, _work)


class _List(argparse.Action):
    """The action of ``--list``: it lists the methods and exits, like ``--help``."""

    def __call__(self, *_: object) -> None:
        from mixmfl.research.benchmark import methods

        for name, method in methods.METHODS.items():
            print(f"{name:24} {method.what}")
        raise SystemExit(0)


def _work(options: argparse.Namespace) -> int:
    from mixmfl.core.text import plural
    from mixmfl.core.worker_pool import Workers
    from mixmfl.research.benchmark import benchmark_folder, methods, run, summary

    names = methods.choose(options.methods.split(","))
    try:
        seeds = sorted({int(seed) for seed in options.seeds.split(",")})
    except ValueError:
        seeds = []
    if not seeds or seeds[0] < 0:
        raise MixmflError(f"--seeds {options.seeds}: whole numbers from 0 are needed, as in 0,1,2")
    device = devices.find_device(options.device)
    processes = options.processes
    if processes is None:
        processes = 1 if device.type == "cuda" else devices.cores()
    _options.check_processes(processes)
    workers = _options.workers(options.workers, device)
    benchmark = benchmark_folder.open_benchmark(
        options.input,
        options.out,
        options.configuration,
        options.size,
        str(device),
        workers,
        _options.learning_rates(options),
    )
    with _runner.bars() as report, Workers(processes, report) as pool:
        failed = run.run_all(benchmark, names, seeds, pool)
    if failed:
        heading = f"{plural(len(failed), 'training')} failed:"
        print(heading, *failed, sep="\n  ", file=sys.stderr)
    for path in summary.summarise(benchmark, options.reference, options.others):
        print(path)
    return _runner.SOME_FAILED if failed else 0


if __name__ == "__main__":
    sys.exit(main())
