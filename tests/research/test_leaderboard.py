"""The leaderboard: methods of several people by their points."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mixmfl.core.errors import DataError
from mixmfl.research.benchmark.leaderboard import (
    Entry,
    leaderboard_page,
    make_entries,
    read_entries,
)
from mixmfl.research.benchmark.statistics import Estimate

MINE = Entry("mdm", "ours", None, (0, 1), 70.0, 1.5, 60.0, None, 2e6, 9.0)
THEIRS = Entry("Best", "<b>theirs</b>", "0" * 64, (0,), 50.0, None, 61.0, None, None, None)
BENCHMARK = {
    "configuration": "2d",
    "rounds": 3,
    "local_steps": 10,
    "cases": "abc",
    "tests": {"north": 2, "south": 1},
}


def test_methods_are_placed_by_their_points_over_all_subsets_whoevers_they_are() -> None:
    nothing = dataclasses.replace(MINE, method="unknown", subsets=None)
    page = leaderboard_page({"": [MINE, nothing], "theirs.json": [THEIRS]}, BENCHMARK)
    places = [page.index(f"{name}</t") for name in ("Best", "mdm", "unknown")]
    assert places == sorted(places)
    assert "70.0 \u00b1 1.5" in page
    assert "theirs.json" in page
    assert "3 test cases of 2 sites; 3 rounds of 10 steps" in page
    assert "<b>theirs" not in page


def test_a_method_with_personalised_models_says_so() -> None:
    names = ("fedavg", "fedavg+site")
    scores: Any = SimpleNamespace(
        methods=names,
        seeds=dict.fromkeys(names, (0,)),
        points=lambda *_: Estimate(50.0, 1.0),
    )
    plain, personal = make_entries(scores, [])
    assert personal.what == f"{plain.what}; then each site fine-tunes a personalised model"


def test_results_of_others_are_read_back_if_they_are_of_the_same_benchmark(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    content = {
        "benchmark": BENCHMARK,
        "entries": [dataclasses.asdict(THEIRS), dataclasses.asdict(MINE)],
        "more": 1,
    }
    file.write_text(json.dumps(content))
    assert read_entries(file, BENCHMARK) == [THEIRS, MINE]
    with pytest.raises(DataError, match="is of a benchmark with other cases, precision; its num"):
        read_entries(file, {**BENCHMARK, "cases": "abd", "precision": "torch.bfloat16"})
    harmed = [dataclasses.asdict(THEIRS)]
    harmed[0]["subsets"] = 1e9
    for other, why in (
        ({**content, "entries": harmed}, "subsets: is 1000000000.0"),
        ({"benchmark": BENCHMARK}, "is no results.json of mixmfl_benchmark"),
        ({**content, "entries": []}, "entries: has 0 entries"),
    ):
        file.write_text(json.dumps(other))
        with pytest.raises(DataError, match=why):
            read_entries(file, BENCHMARK)
