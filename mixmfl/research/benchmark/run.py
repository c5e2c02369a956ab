"""Every method under equal conditions: trained and scored on test cases, in a folder of its own."""

import dataclasses
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from mixmfl.core.files import read_long_json, write_json
from mixmfl.core.worker_pool import Workers
from mixmfl.federated.server.coordinator import Variation
from mixmfl.federated.server.export import export_model
from mixmfl.federated.server.run import Run
from mixmfl.federated.simulation import simulate_personalization
from mixmfl.federated.sites import open_sites
from mixmfl.federated.state import RunSettings, Site
from mixmfl.planning.plans import Plans
from mixmfl.research.benchmark.benchmark_folder import ALL, Benchmark
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
from mixmfl.research.benchmark.records import Cost, description_in
from mixmfl.research.benchmark.scoring import score_models
from mixmfl.research.benchmark.trainers import FOLD, Job, Trained, in_rounds


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
        score_models(benchmark, cost, of_site)
    if not personal:
        return
    run = trained[ALL].run
    assert run is not None  # ``choose`` refuses +site of other methods
    _personalise(benchmark, cost, run, sites, files)


def _personalise(
    benchmark: Benchmark, cost: Cost, run: Run, sites: Sequence[Site], files: Mapping[str, Path]
) -> None:
    """Fine-tune the personalised models of a run's sites, and score them as ``+site``.

    Args:
        benchmark: The benchmark.
        cost: What the method and the seed cost until here.
        run: The run that all sites trained in.
        sites: The sites.
        files: Their models, for those that keep the global one.
    """
    began, name = time.monotonic(), cost.method + SITE
    simulate_personalization(run, sites)
    personalised = {}
    for site in sites:
        personalised[site.name] = files[site.name]
        if site.name in run.personal and run.personal[site.name].kept:
            file = benchmark.folder(name, cost.seed) / f"{site.name}.safetensors"
            export_model(run.folder, "best", file, site.name)
            personalised[site.name] = file
    seconds = cost.seconds + time.monotonic() - began
    score_models(benchmark, dataclasses.replace(cost, method=name, seconds=seconds), personalised)


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
        before = description_in(cost)
    if before != described:
        shutil.rmtree(folder)
    write_json(record, described)


def _sent_bytes(method: Method, trained: Mapping[str, Trained]) -> float | None:
    """Return the bytes that a site sent in training, mean over sites; None where it sent images."""
    if method.sites != "together":
        return 0.0 if method.sites == "alone" else None
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
