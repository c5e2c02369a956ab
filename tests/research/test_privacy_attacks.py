"""Attacks under every protection: what is measured, the table, and the command."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from small_federation import PLANS, write_work
from small_federation import SETTINGS as SHORT

from mixmfl.core.errors import DataError
from mixmfl.federated.state import Site
from mixmfl.research.privacy_attacks import AttackResult, Protection, attack_table, measure
from mixmfl.research.reconstruction import Likeness

SETTINGS = dataclasses.replace(SHORT, rounds=4)


def test_it_measures_every_protection_and_writes_what_it_found(
    sites: list[Site], tmp_path: Path
) -> None:
    protections = (Protection("none"), Protection("noisy", masked=True, noise=1.0))
    table = measure(PLANS, sites, SETTINGS, tmp_path / "out", protections=protections, iterations=2)
    assert (tmp_path / "out" / "table.md").read_text() == table + "\n"
    content = json.loads((tmp_path / "out" / "attack.json").read_text())
    plain, noisy = content["results"]
    for result in (plain, noisy):
        for name in ("loss", "gradient"):
            assert 0 <= result["low"][name] <= result["auc"][name] <= result["high"][name] <= 1
        assert -1 <= result["likeness"]["trained"] <= 1
    assert plain["epsilon"] is None
    assert noisy["epsilon"] > 0
    assert noisy["sent_bytes"] > 1.5 * plain["sent_bytes"]
    with pytest.raises(DataError, match="is not empty; nothing was written"):
        measure(PLANS, sites, SETTINGS, tmp_path / "out", protections=protections)


def test_the_table_has_a_row_per_protection() -> None:
    one, low, high = {"loss": 0.75}, {"loss": 0.7}, {"loss": 0.8}
    like = Likeness(0.31, 0.17)
    result = AttackResult("none", one, low, high, like, 0.5, float("nan"), 2e6, 1e6, 1.5)
    heads, under, row = attack_table([result]).splitlines()
    assert heads == (
        "| protection | AUC by loss | likeness (to others) | epsilon | Dice | sent MB "
        "| received MB | seconds |"
    )
    assert under == "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    assert row == "| none | 0.75 (0.70 to 0.80) | 0.31 (0.17) |  | 0.500 | 2.00 | 1.00 | 1.50 |"


def test_the_command_says_what_is_wrong_before_it_trains(
    tmp_path: Path, command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    base = ("mixmfl_measure_privacy", "-i", tmp_path, "-o", tmp_path / "out")
    assert command(*base, "--rounds", 0) == 2
    assert "--rounds: must be above 0" in capsys.readouterr().err
    assert command(*base, "--iterations", -1) == 2
    assert "--iterations: must be 0 or more" in capsys.readouterr().err
    write_work(tmp_path, {"north": [("t1",)]})
    assert command(*base) == 2
    assert "site north: 1 case cannot be split; two are needed" in capsys.readouterr().err
