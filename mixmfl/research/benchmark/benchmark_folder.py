"""What a benchmark compares, and the folder of its results.

::

    OUT/benchmark.json                    what is compared; must be the same to resume
    OUT/runs/<method>/seed<k>/<run>       run folders: one, or one per site for ``local``;
                                          <run>-rate-<r> for each of several learning rates
    OUT/runs/<method>/seed<k>/scores.csv  written last: if it exists, the rest is done
    OUT/runs/<method>/seed<k>/method.json what is trained here; another begins from the start
    OUT/runs/<method>/seed<k>/cost.json, memory.json, reliability.json
    OUT/runs/<method>+site/seed<k>/       the same, and the personalised models that sites kept
    OUT/cases.csv, table.md, subsets.png, sites.png, results.json, leaderboard.html
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from mixmfl.core.devices import autocast_dtype
from mixmfl.core.errors import DataError
from mixmfl.core.files import json_digest, read_long_json, write_json
from mixmfl.federated.sites import open_sites
from mixmfl.federated.state import Site
from mixmfl.planning.plans import Plans
from mixmfl.planning.preprocessed_case import PreprocessedCase, open_cases
from mixmfl.research.benchmark.methods import METHODS, SITE, describe
from mixmfl.research.benchmark.probabilities import Probabilities, read_probabilities
from mixmfl.research.benchmark.records import Cost, description_in, read_cost, read_own
from mixmfl.research.benchmark.scores import Row, read_rows

ALL = "all"
"""Name of the one run of a method that does not train at each site alone."""
QUICK_ROUNDS, QUICK_STEPS = 30, 10


@dataclass(frozen=True)
class Benchmark:
    """What is compared, and where.

    Attributes:
        work: Folder that ``mixmfl_plan_preprocess`` made, with test cases.
        out: Folder for all results.
        plans: The plans in ``work``.
        configuration: ``"2d"`` or ``"3d_fullres"``.
        rounds: Number of rounds of every method.
        local_steps: Gradient steps of a site in a round; a network on pooled data takes those of
            all sites.
        device: Device to compute on, as torch names it.
        workers: Processes that prepare batches, per method.
        learning_rates: Learning rates of which every run chooses its best on its validation cases;
            empty: the planned one.
    """

    work: Path
    out: Path
    plans: Plans
    configuration: str
    rounds: int
    local_steps: int
    device: str
    workers: int
    learning_rates: tuple[float, ...]

    def folder(self, method: str, seed: int) -> Path:
        """Return the folder of a method's runs with a seed."""
        return _folder(self.out, method, seed)

    def is_done(self, method: str, seed: int) -> bool:
        """Return whether a method is trained and scored as it is described now."""
        return _is_scored(self.folder(method, seed), method)

    def done(self) -> list[tuple[str, int]]:
        """Return what is done as pairs of method and seed, methods in the order of ``METHODS``."""
        return done_in(self.out)


def done_in(out: Path) -> list[tuple[str, int]]:
    """Return the methods and seeds that are done in a benchmark's folder."""
    return [
        (name, seed_of(folder))
        for base in METHODS
        for name in (base, base + SITE)
        for folder in sorted((out / "runs" / name).glob("seed*"))
        if _is_scored(folder, name)
    ]


def _folder(out: Path, method: str, seed: int) -> Path:
    return out / "runs" / method / f"seed{seed}"


def seed_of(folder: Path) -> int:
    """Return the seed of a folder of runs."""
    return int(folder.name.removeprefix("seed"))


def _is_scored(folder: Path, method: str) -> bool:
    if not (folder / "scores.csv").is_file():
        return False
    return bool(description_in(folder / "cost.json") == describe(method, seed_of(folder)))


def open_benchmark(
    work: Path,
    out: Path,
    configuration: str,
    size: str,
    device: str,
    workers: int,
    learning_rates: Sequence[float] = (),
) -> Benchmark:
    """Open a benchmark, and make its folder if there is none.

    Args:
        work: Folder that ``mixmfl_plan_preprocess`` made, with test cases.
        out: A new folder, or that of the same benchmark.
        configuration: ``"2d"`` or ``"3d_fullres"``.
        size: ``"quick"``, ``"full"``: rounds and steps as planned; or a number of steps of a site
            in the whole training, such as ``"1000"``, in rounds of as many steps as planned.
        device: Device to compute on, as torch names it.
        workers: Processes that prepare batches, per method.
        learning_rates: See ``Benchmark``.

    Raises:
        PlansError: There are no plans.
        DataError: ``out`` holds other files, or a benchmark with other plans or another budget;
            there is no test case; or ``size`` is no number of whole rounds.
    """
    plans = Plans.load(work / "plans.json")
    rounds, local_steps = _budget(size, plans)
    rates = tuple(sorted(set(learning_rates)))
    benchmark = Benchmark(
        work, out, plans, configuration, rounds, local_steps, device, workers, rates
    )
    tests = {site: [case.name for case in cases] for site, cases in test_cases(benchmark).items()}
    sites = open_sites(work, plans, configuration, "all", 0)
    if unknown := sorted(set(tests) - {site.name for site in sites}):
        raise DataError(f"{work / 'tests'}: {unknown[0]!r} is no site that trains in {work}")
    record = out / "benchmark.json"
    settings = {
        "configuration": configuration,
        "rounds": rounds,
        "local_steps": local_steps,
        "plans": plans.to_json(),
        "own": {site: list(names) for site, names in own_modalities(sites, plans).items()},
        "tests": tests,
        "cases": _digest(work, configuration),
        "precision": str(autocast_dtype(torch.device(device))),  # of training and of scoring
        **({"learning_rates": list(rates)} if rates else {}),
    }
    if record.is_file():
        before = read_long_json(record)
        compared = dict.fromkeys([*settings, *before])
        if changed := [name for name in compared if before.get(name) != settings.get(name)]:
            raise DataError(
                f"{out}: holds a benchmark with other {', '.join(changed)}; its numbers would not "
                "compare. Name another folder by -o"
            )
    elif out.is_dir() and any(out.iterdir()):
        raise DataError(f"{out}: holds files that are no benchmark; name another folder by -o")
    else:
        write_json(record, settings)
    return benchmark


def _budget(size: str, plans: Plans) -> tuple[int, int]:
    """Return the number of rounds, and of steps of a site in a round, of a size."""
    local_steps = plans.training.local_steps
    if size == "quick":
        return QUICK_ROUNDS, QUICK_STEPS
    if size == "full":
        return plans.training.rounds, local_steps
    steps = int(size) if size.isdecimal() else 0
    if not steps or steps % local_steps:
        raise DataError(
            f"size {size!r}: quick, full or a number of steps is needed, which is a multiple of "
            f"the {local_steps} steps that the plans have in a round"
        )
    return steps // local_steps, local_steps


def _digest(work: Path, configuration: str) -> str:
    """Return a digest of all cases, alike for whoever has copies of their files."""
    files = sorted(work.glob(f"sites/*/{configuration}/*.json"))
    files += sorted(work.glob(f"tests/*/{configuration}/*.json"))
    made_of = []
    for file in files:  # a record grows with the case: one is kept at a time
        case = read_long_json(file)
        made_of.append([file.relative_to(work).as_posix(), case["planned"], case["content"]])
    return json_digest(made_of)


def test_cases(benchmark: Benchmark) -> dict[str, list[PreprocessedCase]]:
    """Return the test cases of every site that has some.

    Raises:
        DataError: No site has test cases, or they were preprocessed with other plans.
    """
    folders = sorted((benchmark.work / "tests").glob(f"*/{benchmark.configuration}"))
    tests = {folder.parent.name: open_cases(folder) for folder in folders}
    tests = {site: cases for site, cases in tests.items() if cases}
    planned = benchmark.plans.preprocessing(benchmark.configuration)
    if any(case.planned != planned for cases in tests.values() for case in cases):
        raise DataError(
            f"{benchmark.work / 'tests'}: was preprocessed with other plans; run "
            f"mixmfl_plan_preprocess -c {benchmark.configuration} again"
        )
    if not tests:
        raise DataError(
            f"{benchmark.work}: holds no test cases for {benchmark.configuration}. Put them in "
            'folders of the federation that federation.json names, {"tests": {"SITE": "FOLDER"}}, '
            "and run mixmfl_plan_preprocess again; mixmfl_demo_data --tests and "
            "mixmfl_split_federation do that"
        )
    return tests


def own_modalities(sites: Sequence[Site], plans: Plans) -> dict[str, tuple[str, ...]]:
    """Return by site the modalities that any of its cases has, in the order of the plans."""
    return {
        site.name: tuple(
            name
            for name in plans.modalities
            if any(name in case.modalities for case in (*site.training, *site.validation))
        )
        for site in sites
    }


def known_own(out: Path) -> Mapping[str, tuple[str, ...]]:
    """Return each site's own modalities, as they were when a benchmark's folder was made."""
    return read_own(out / "benchmark.json")


def read_results(out: Path) -> tuple[list[Row], list[Cost]]:
    """Return the scores and costs of all that is done in a benchmark's folder."""
    rows, costs = [], []
    for method, seed in done_in(out):
        folder = _folder(out, method, seed)
        rows += read_rows(folder / "scores.csv")
        costs.append(read_cost(folder / "cost.json", method, seed))
    return rows, costs


def read_tested(out: Path) -> dict[str, list[Probabilities]]:
    """Return by method how its models' probabilities compare, where it has one model."""
    by_method: dict[str, list[Probabilities]] = {}
    for method, seed in done_in(out):
        known = read_probabilities(_folder(out, method, seed) / "reliability.json")
        if known is not None:
            by_method.setdefault(method, []).append(known)
    return by_method
