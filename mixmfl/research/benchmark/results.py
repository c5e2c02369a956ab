"""Results of a benchmark as one JSON file, with all that is needed to run it again.

Cases are not named in it: numbers are means over the cases of a site.
"""

import dataclasses
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mixmfl.core.errors import DataError
from mixmfl.core.files import read_long_json
from mixmfl.core.nan import mean, or_none
from mixmfl.core.version import __version__
from mixmfl.research.benchmark.leaderboard import Entry
from mixmfl.research.benchmark.methods import OUTSIDE, base_of, describe, what_is
from mixmfl.research.benchmark.records import Cost
from mixmfl.research.benchmark.scores import Row

FORMAT = 1

_NEEDED = "configuration", "rounds", "local_steps", "plans", "tests"


def results_json(
    out: Path, rows: Sequence[Row], costs: Sequence[Cost], entries: Sequence[Entry]
) -> dict[str, Any]:
    """Return what a benchmark found, and from what, as JSON content.

    Args:
        out: Folder of the benchmark.
        rows: All scores in it.
        costs: Bytes and seconds of each method and seed.
        entries: What its methods are on a leaderboard, ``leaderboard.make_entries``.

    Raises:
        DataError: The benchmark's record is damaged.
    """
    opened = read_long_json(out / "benchmark.json")
    if missing := [name for name in _NEEDED if name not in opened]:
        raise DataError(f"{out / 'benchmark.json'}: is damaged; it has no {', '.join(missing)}")
    names = list(dict.fromkeys(row.method for row in rows))
    tests = {site: len(cases) for site, cases in opened["tests"].items()}
    return {
        "format": FORMAT,
        "versions": {
            "mixmfl": __version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
            "machine": platform.machine(),
        },
        # the data by their digest: training and test cases, and what they were made from
        "benchmark": {**opened, "tests": tests},
        "methods": {
            name: _described(name, sorted({row.seed for row in rows if row.method == name}))
            for name in names
        },
        "rerun": _commands(opened, names, sorted({row.seed for row in rows})),
        "costs": [
            {
                "method": cost.method,
                "seed": cost.seed,
                "sent_bytes": cost.sent_bytes,
                "seconds": cost.seconds,
                "learning_rates": dict(cost.learning_rates),
                "validation_dice": {name: dict(dice) for name, dice in cost.dice.items()},
            }
            for cost in costs
        ],
        "entries": [dataclasses.asdict(entry) for entry in entries],
        "scores": _scores(rows),
    }


def _described(name: str, seeds: Sequence[int]) -> dict[str, Any]:
    """Return what a method is, of one that is not ours with its code."""
    described = {"what": what_is(name), **describe(name, seeds[0])}
    if "init_sha256" in described:
        described["init_sha256"] = {seed: describe(name, seed)["init_sha256"] for seed in seeds}
    if outside := OUTSIDE.get(base_of(name)):
        described["code"] = outside.file.read_text(encoding="utf-8")
    return described


def _commands(
    opened: dict[str, Any], names: Sequence[str], seeds: Sequence[int]
) -> list[list[str]]:
    """Return the commands that make these numbers, with capitals for folders and files.

    PLANS is a file with the plans that ``benchmark`` has.
    """
    steps = opened["rounds"] * opened["local_steps"]
    written = [_source(name) for name in names]
    rates = ",".join(f"{rate:g}" for rate in opened.get("learning_rates", ()))
    configuration = opened["configuration"]
    return [
        [
            *("mixmfl_plan_preprocess", "-i", "FEDERATION", "-o", "WORK"),
            *("--plans", "PLANS", "-c", configuration),
        ],
        [
            *("mixmfl_benchmark", "-i", "WORK", "-o", "OUT", "-c", configuration),
            *("--methods", ",".join(written), "--seeds", ",".join(map(str, seeds))),
            *("--size", _size(opened, steps)),
            *(("--learning-rates", rates) if rates else ()),
        ],
    ]


def _size(opened: dict[str, Any], steps: int) -> str:
    """Return the option that gives this budget; a small one is that of ``quick``."""
    planned = opened["plans"]["training"]["local_steps"]
    return str(steps) if opened["local_steps"] == planned else "quick"


def _source(name: str) -> str:
    """Return how a method is named on the command line."""
    outside = OUTSIDE.get(base_of(name))
    return f"{outside.source}{name.removeprefix(base_of(name))}" if outside else name


def _scores(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return mean Dice and HD95 per method, seed, site, subset and region."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        key = row.method, row.seed, row.site, row.modalities, row.region
        groups.setdefault(key, []).append(row)
    return [
        {
            "method": method,
            "seed": seed,
            "site": site,
            "modalities": list(subset),
            "region": region,
            "cases": len(scored),
            "dice": or_none(mean(row.dice for row in scored)),
            "hd95_mm": or_none(mean(row.hd95 for row in scored)),
        }
        for (method, seed, site, subset, region), scored in groups.items()
    ]
