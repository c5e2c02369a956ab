"""Every method under equal conditions: trained and scored on test cases, in a folder of its own.

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

import dataclasses
import hashlib
import math
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mixmfl.core.devices import autocast_dtype
from mixmfl.core.errors import DataError
from mixmfl.core.files import read_long_json, write_json, write_text
from mixmfl.core.nan import or_nan, or_none
from mixmfl.core.version import __version__
from mixmfl.core.worker_pool import Workers
from mixmfl.evaluation.metrics import score
from mixmfl.evaluation.subset_dice import Subset, all_subsets
from mixmfl.federated.server.coordinator import Variation
from mixmfl.federated.server.export import export_model
from mixmfl.federated.simulation import simulate_personalization
from mixmfl.federated.sites import open_sites
from mixmfl.federated.state import RunSettings, Site
from mixmfl.inference.every_subset import SubsetMask, segment_subsets
from mixmfl.inference.model import Model
from mixmfl.inference.model_file import load_model
from mixmfl.planning.plans import Plans
from mixmfl.planning.preprocessed_case import PreprocessedCase, case_names, open_case
from mixmfl.research.benchmark.leaderboard import leaderboard_page, make_entries, read_entries
from mixmfl.research.benchmark.methods import (
    METHODS,
    OUTSIDE,
    SITE,
    Method,
    base_of,
    describe,
    find_method,
    register,
)
from mixmfl.research.benchmark.plots import draw_sites, draw_subsets
from mixmfl.research.benchmark.probabilities import (
    Probabilities,
    add_probabilities,
    compare_probabilities,
    read_probabilities,
    write_probabilities,
)
from mixmfl.research.benchmark.records import read_cost, read_memory, read_own
from mixmfl.research.benchmark.results import results_json
from mixmfl.research.benchmark.rounds import rounds_section
from mixmfl.research.benchmark.scores import Row, read_rows, write_rows
from mixmfl.research.benchmark.statistics import Cost, Scores
from mixmfl.research.benchmark.tables import markdown
from mixmfl.research.benchmark.trainers import FOLD, Job, Trained, in_rounds
from mixmfl.research.recall_quality import RecallQuality, recall_quality

LEADERBOARD = "leaderboard.html"
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
    workers: int = 0
    learning_rates: tuple[float, ...] = ()

    def folder(self, method: str, seed: int) -> Path:
        """Return the folder of a method's runs with a seed."""
        return self.out / "runs" / method / f"seed{seed}"

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


def seed_of(folder: Path) -> int:
    """Return the seed of a folder of runs."""
    return int(folder.name.removeprefix("seed"))


def _is_scored(folder: Path, method: str) -> bool:
    if not (folder / "scores.csv").is_file():
        return False
    return read_cost(folder / "cost.json").method == describe(method, seed_of(folder))


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
    """Return a digest of what all training and test cases were made from."""
    files = sorted(work.glob(f"sites/*/{configuration}/*.json"))
    files += sorted(work.glob(f"tests/*/{configuration}/*.json"))
    origins = [f"{file.relative_to(work)} {read_long_json(file)['origin']}" for file in files]
    return hashlib.sha256("\n".join(origins).encode()).hexdigest()


def test_cases(benchmark: Benchmark) -> dict[str, list[PreprocessedCase]]:
    """Return the test cases of every site that has some.

    Raises:
        DataError: No site has test cases, or they were preprocessed with other plans.
    """
    folders = sorted((benchmark.work / "tests").glob(f"*/{benchmark.configuration}"))
    tests = {f.parent.name: [open_case(f, name) for name in case_names(f)] for f in folders}
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


def run_all(
    benchmark: Benchmark, methods: Sequence[str], seeds: Sequence[int], workers: Workers
) -> list[str]:
    """Train and score what is not done yet; a method that fails does not stop the others.

    Args:
        benchmark: The benchmark; no other process may use its folder.
        methods: Names of the methods, with or without ``+site``.
        seeds: Seeds of the first weights, the validation split and every draw.
        workers: Processes for methods side by side.

    Returns:
        Each method and seed that failed, with the reason.
    """
    trained = list(dict.fromkeys(map(base_of, methods)))
    personal = {base_of(name) for name in methods if name.endswith(SITE)}
    jobs = {
        f"{name}, seed {seed}": (
            *(run_one, benchmark, name, seed),
            *(name in personal, OUTSIDE[name].source if name in OUTSIDE else ""),
        )
        for seed in seeds
        for name in trained
        if not all(benchmark.is_done(each, seed) for each in methods if base_of(each) == name)
    }
    _, failed = workers.run(jobs, "methods x seeds")
    return [f"{item.name}: {item.reason}" for item in failed]


def run_one(benchmark: Benchmark, name: str, seed: int, personal: bool, source: str = "") -> None:
    """Train and score one method, resuming a run that was interrupted.

    Args:
        benchmark: The benchmark.
        name: Name of the method, without ``+site``.
        seed: Seed of everything random.
        personal: Whether to fine-tune and score the sites' personalised models, too.
        source: Where a method that is not ours is from: another process has not loaded it.
    """
    if source and name not in METHODS:
        register(source)
    method = find_method(name)
    plans = method.apply(benchmark.plans)
    device = torch.device(benchmark.device)
    sites = [
        dataclasses.replace(site, device=device, workers=benchmark.workers)
        for site in open_sites(benchmark.work, plans, benchmark.configuration, FOLD, seed)
    ]
    folder = benchmark.folder(name, seed)
    _begin(folder, describe(name, seed))
    trained: dict[str, Trained] = {}
    for federation, members in _federations(method, sites).items():
        settings = RunSettings(
            benchmark.configuration,
            seed,
            benchmark.rounds,
            benchmark.local_steps * (len(sites) if method.sites == "pooled" else 1),
            plans.training.learning_rate,
        )
        tried = _train_each_rate(benchmark, method, plans, members, settings, folder / federation)
        trained[federation] = max(tried, key=lambda each: each.best_dice)
    files = {site: file for each in trained.values() for site, file in each.files.items()}
    cost = Cost(
        name,
        seed,
        _sent_bytes(method, trained),
        sum(each.seconds for each in trained.values()),
        {federation: each.learning_rate for federation, each in trained.items()},
        {
            federation: {str(number): dice for number, dice in each.dice.items()}
            for federation, each in trained.items()
        },
    )
    if not benchmark.is_done(name, seed):
        of_site = {site.name: files[site.name if site.name in files else ALL] for site in sites}
        _score(benchmark, cost, of_site)
    if not personal:
        return
    run = trained[ALL].run
    assert run is not None  # ``choose`` refuses +site of other methods
    began = time.monotonic()
    simulate_personalization(run, sites)
    personalised = {}
    for site in sites:
        personalised[site.name] = files[site.name]
        if site.name in run.personal and run.personal[site.name].kept:
            file = benchmark.folder(name + SITE, seed) / f"{site.name}.safetensors"
            export_model(run.folder, "best", file, site.name)
            personalised[site.name] = file
    seconds = cost.seconds + time.monotonic() - began
    cost = dataclasses.replace(cost, method=name + SITE, seconds=seconds)
    _score(benchmark, cost, personalised)


def _train_each_rate(
    benchmark: Benchmark,
    method: Method,
    plans: Plans,
    sites: Sequence[Site],
    settings: RunSettings,
    out: Path,
) -> list[Trained]:
    """Train a federation once, or once per learning rate of the benchmark."""
    by_folder = {
        out.with_name(f"{out.name}-rate-{rate:g}"): dataclasses.replace(
            settings, learning_rate=rate
        )
        for rate in benchmark.learning_rates
    } or {out: settings}
    variation, init = Variation(method.edit_memory, method.rule), method.init_file(settings.seed)
    train = method.trainer or in_rounds
    return [
        train(Job(plans, sites, each, folder, variation, init))
        for folder, each in by_folder.items()
    ]


def _begin(folder: Path, described: Mapping[str, Any]) -> None:
    """Record what a training is of; what is there of a method that was another is removed.

    A run knows its plans, but not the rule that merges its updates, nor whose weights it began
    with: resumed, it would be finished as what it was, and scored as what it is called now.
    """
    record, cost = folder / "method.json", folder / "cost.json"
    before = described
    if record.is_file():
        before = read_long_json(record)
    elif cost.is_file():
        before = read_cost(cost).method
    if before != described:
        shutil.rmtree(folder)
    write_json(record, described)


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


def summarise(benchmark: Benchmark, reference: str, others: Sequence[Path] = ()) -> list[Path]:
    """Write tables and plots of all that is done, and return the files.

    Args:
        benchmark: The benchmark.
        reference: Method that the others are compared with, if it is done.
        others: Other people's ``results.json`` of the same benchmark, for the leaderboard.

    Raises:
        DataError: No method is done, or one of ``others`` is of another benchmark.
    """
    rows, costs = read_results(benchmark.out)
    scores = Scores(rows, known_own(benchmark.out))
    made = {"": make_entries(scores, costs)}
    results = results_json(benchmark.out, rows, costs, made[""])
    compared = results["benchmark"]
    made |= {str(file): read_entries(file, compared) for file in others}
    if reference not in scores.methods:
        reference = scores.methods[0]
    names = "cases.csv", "table.md", "subsets.png", "sites.png", "results.json", LEADERBOARD
    files = [benchmark.out / name for name in names]
    write_rows(rows, files[0])
    page = markdown(scores, costs, reference, "Benchmark", _introduction(benchmark, scores))
    speed = rounds_section({"": costs}, reference)
    write_text(files[1], page + speed + _memory_section(benchmark, scores))
    draw_subsets(scores, files[2])
    draw_sites(scores, files[3])
    write_json(files[4], results)
    write_text(files[5], leaderboard_page(made, compared))
    return files


def read_results(out: Path) -> tuple[list[Row], list[Cost]]:
    """Return the scores and costs of all that is done in a benchmark's folder."""
    rows, costs = [], []
    for method, seed in done_in(out):
        folder = out / "runs" / method / f"seed{seed}"
        rows += read_rows(folder / "scores.csv")
        cost = read_cost(folder / "cost.json")
        sent = or_nan(cost.sent_bytes)
        costs.append(Cost(method, seed, sent, cost.seconds, cost.learning_rates, cost.dice))
    return rows, costs


def read_tested(out: Path) -> dict[str, list[Probabilities]]:
    """Return by method what was found of its models' probabilities, where it has one model."""
    found: dict[str, list[Probabilities]] = {}
    for method, seed in done_in(out):
        known = read_probabilities(out / "runs" / method / f"seed{seed}" / "reliability.json")
        if known is not None:
            found.setdefault(method, []).append(known)
    return found


def known_own(out: Path) -> Mapping[str, tuple[str, ...]]:
    """Return each site's own modalities, as they were when a benchmark's folder was made."""
    return read_own(out / "benchmark.json")


def _memory_section(benchmark: Benchmark, scores: Scores) -> str:
    """Return the section on recall in the methods with a memory, mean over their seeds."""
    lines = []
    for method in scores.methods:
        by_place: dict[tuple[str, int], list[list[float]]] = {}
        for seed in scores.seeds[method]:
            for recall in read_memory(benchmark.folder(method, seed) / "memory.json"):
                errors = [recall.error, recall.blind_error, recall.best_error]
                place = (recall.modality, recall.level)
                by_place.setdefault(place, []).append([recall.accuracy, *errors, recall.trust])
        for (modality, level), seeds in sorted(by_place.items()):
            means = " | ".join(f"{mean:.2f}" for mean in np.mean(seeds, axis=0))
            lines.append(f"| {method} | {modality} | {level} | {means} |")
    if not lines:
        return ""
    head = [
        "",
        "## Memory",
        "",
        "| method | modality | level | right class | error | of class-blind mean | of true class "
        "| trust |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    caption = (
        "Each modality of the test cases hidden in turn and recalled from the others. Right class: "
        "share of a class's voxels whose most similar prototype is of that class, mean over "
        "classes. Error: squared distance to the true tailored features as a share of that of "
        "zeros, mean over classes; beside it the error of the mean of all values, and of the true "
        "class's value, which is the best that recall could reach. Trust: the factor by "
        "which the network multiplies recalled features. Level 0 is full resolution."
    )
    return "\n".join([*head, *lines, "", caption, ""])


def _introduction(benchmark: Benchmark, scores: Scores) -> str:
    """Return the introduction of the page: the budget, and what each method is."""
    lines = [
        f"Every method took {benchmark.rounds} rounds of {benchmark.local_steps} gradient steps "
        f"at each site ({benchmark.configuration}), or as many in all on pooled data, with the "
        f"same plans, cases, augmentation and validation. mixmfl {__version__}, torch "
        f"{torch.__version__}.",
        "",
    ]
    more = benchmark.plans.training.personal_rounds
    for name in scores.methods:
        personal = ""
        if name.endswith(SITE):
            personal = f"; then each site fine-tunes a personalised model in {more} more rounds"
        lines.append(f"- `{name}`: {find_method(name).what}{personal}")
    return "\n".join(lines)


def _sent_bytes(method: Method, trained: Mapping[str, Trained]) -> float:
    """Return the bytes that a site sent in training, mean over sites; NaN where it sent images."""
    if method.sites != "together":
        return 0.0 if method.sites == "alone" else math.nan
    return trained[ALL].sent_bytes


def _federations(method: Method, sites: Sequence[Site]) -> dict[str, list[Site]]:
    """Return the sites that train together, by name of the run."""
    if method.sites == "alone":
        return {site.name: [site] for site in sites}
    if method.sites == "pooled":
        training = tuple(case for site in sites for case in site.training)
        validation = tuple(case for site in sites for case in site.validation)
        return {
            ALL: [dataclasses.replace(sites[0], name=ALL, training=training, validation=validation)]
        }
    return {ALL: list(sites)}


def _score(benchmark: Benchmark, cost: Cost, files: Mapping[str, Path]) -> None:
    """Score a method's models on their sites' test cases; ``scores.csv`` is written last."""
    tests = test_cases(benchmark)
    models = {file: load_model(file, benchmark.device) for file in set(files.values())}
    rows: list[Row] = []
    probabilities: list[Probabilities] = []
    for site, cases in tests.items():
        model = models[files[site]]
        for case in cases:
            masks = masks_of_case(model, case)
            rows += score_case(model, case, masks, site, cost.method, cost.seed)
            known = [(case, mask) for mask in masks.values() if mask is not None]
            probabilities.append(compare_probabilities(model, known))
    folder = benchmark.folder(cost.method, cost.seed)
    quality: list[RecallQuality] = []
    if len(models) == 1:  # one model for all sites is measured on all cases
        (model,) = models.values()
        quality = recall_quality(model, [case for cases in tests.values() for case in cases])
        write_probabilities(folder / "reliability.json", add_probabilities(probabilities))
    write_json(folder / "memory.json", {"recall": [dataclasses.asdict(q) for q in quality]})
    record = {
        "sent_bytes": or_none(cost.sent_bytes),
        "seconds": cost.seconds,
        "method": describe(cost.method, cost.seed),
        "learning_rates": dict(cost.learning_rates),
        "dice": {name: dict(dice) for name, dice in cost.dice.items()},
    }
    write_json(folder / "cost.json", record)
    write_rows(rows, folder / "scores.csv")


def masks_of_case(model: Model, case: PreprocessedCase) -> dict[Subset, SubsetMask | None]:
    """Return the masks of a case from every subset of its modalities.

    It is None where the model knows none of them.
    """
    used = {
        subset: tuple(name for name in subset if name in model.modalities)
        for subset in all_subsets([m for m in model.plans.modalities if m in case.modalities])
    }
    masks = segment_subsets(
        model.runner,
        model.memory,
        case,
        [known for known in dict.fromkeys(used.values()) if known],
        model.plans,
        model.configuration,
        model.device,
    )
    return {subset: masks.get(known) for subset, known in used.items()}


def score_case(
    model: Model,
    case: PreprocessedCase,
    masks: Mapping[Subset, SubsetMask | None],
    site: str,
    method: str,
    seed: int,
) -> Iterator[Row]:
    """Yield a row per subset of the case's modalities and label or region.

    Masks are scored on the grid of preprocessing. A mask that is None is empty: Dice is 0 where the
    truth has the region.
    """
    labels = model.plans.labels.consecutive()
    truth = np.maximum(case.labels[:][0], 0)  # -1 is outside the head
    nothing = np.zeros_like(truth)
    for subset, found in masks.items():
        estimates = model.estimates(found.confidences) if found else {}
        indices = found.indices if found else nothing
        for each in score(indices, truth, labels.only(case.labelled), case.spacing):
            scores = each.dice, each.hd95_mm, estimates.get(each.label)
            yield Row(method, seed, site, case.name, subset, each.label, *scores)
