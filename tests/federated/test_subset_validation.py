"""Expected Dice per subset of modalities: measured by the sites, carried by the model file."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from small_federation import PLANS, SiteStore
from small_federation import SETTINGS as SHORT

from mixmfl.core.errors import ModelError
from mixmfl.evaluation.subset_dice import SubsetDice, find, least
from mixmfl.federated.client import subset_validation
from mixmfl.federated.server.checkpoint import choose_round, save_expected
from mixmfl.federated.server.export import export_model
from mixmfl.federated.server.subset_validation import Measured, merge_measured
from mixmfl.federated.simulation import simulate
from mixmfl.inference import cpu_network
from mixmfl.inference.model import load_model
from mixmfl.training.validation import DiceSum, validate

SETTINGS = dataclasses.replace(SHORT, local_steps=3)


def test_the_model_file_says_what_dice_its_sites_measured(
    tmp_path: Path, store: SiteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_network, "best_dtype", lambda: torch.float32)  # as validation computes
    north = store.site("north", [("t1", "t2"), ("t1", "t2"), ("t1",)], validation=1)
    south = store.site("south", [("flair",), ("flair", "t1")], validation=1)
    run = simulate(PLANS, [north, south], SETTINGS, "0", tmp_path / "run")
    model = load_model(tmp_path / "run" / "model.safetensors")
    assert [each.modalities for each in model.expected] == [("flair",), ("t1",), ("flair", "t1")]

    both = [
        validate(model.network, model.memory, site.validation, ["t1"], PLANS, "2d", model.device)
        for site in (north, south)
    ]
    for name in ("lesion", "core"):
        total = sum(part[name].total for part in both)
        cases = sum(part[name].cases for part in both)
        assert cases == 2
        dice, count = find(model.expected, ["t1"]).dice[name]
        assert count == 2
        assert dice == pytest.approx(total / cases)
    assert find(model.expected, ["t1", "flair"]).cases == 1
    assert find(model.expected, ["t2"]).cases == 0

    record = tmp_path / "run" / "expected.json"
    before = record.stat().st_mtime_ns
    simulate(PLANS, [north, south], SETTINGS, "0", tmp_path / "run", resume=True)
    assert record.stat().st_mtime_ns == before  # what was measured is not measured again
    other = next(n for n in (1, 2) if n != choose_round(run, "best"))
    save_expected(run, other, [*model.expected])
    export_model(tmp_path / "run", "best", tmp_path / "m.safetensors")
    assert load_model(tmp_path / "m.safetensors").expected == ()
    content = json.loads(record.read_text())
    for damaged in ({**content, "round": 9}, {"round": 1, "expected": []}, {}):
        record.write_text(json.dumps(damaged))
        with pytest.raises(ModelError, match=r"expected.json: is damaged .* remove it"):
            export_model(tmp_path / "run", "best", tmp_path / "m.safetensors")


def test_without_validation_cases_nothing_is_expected(tmp_path: Path, store: SiteStore) -> None:
    site = store.site("north", [("t1", "t2")])
    simulate(PLANS, [site], SETTINGS, "all", tmp_path / "run")
    assert load_model(tmp_path / "run" / "model.safetensors").expected == ()


def test_a_site_measures_few_cases_of_a_subset(
    tmp_path: Path, store: SiteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subset_validation, "CASES_PER_SUBSET", 2)
    cases = [("t1",), ("t1",), ("t1", "t2"), ("t1",)]
    site = store.site("north", cases, validation=3)
    settings = dataclasses.replace(SETTINGS, rounds=1, local_steps=1)
    simulate(PLANS, [site], settings, "0", tmp_path / "run")
    expected = load_model(tmp_path / "run" / "model.safetensors").expected
    # the training case has no T2, so that its encoder is not used
    assert [(each.modalities, each.cases) for each in expected] == [(("t1",), 2)]


def test_sums_of_sites_become_one_mean() -> None:
    north: Measured = {("t1",): {"a": DiceSum(1.5, 2), "b": DiceSum(0.0, 0)}}
    south: Measured = {
        ("t1",): {"a": DiceSum(0.3, 1), "b": DiceSum(0.0, 0)},
        ("t2",): {"a": DiceSum(1.0, 1)},
    }
    one, other = merge_measured([north, south])
    assert one.modalities == ("t1",)
    assert one.dice.keys() == {"a"}
    assert one.dice["a"] == pytest.approx((0.6, 3))  # (1.5 + 0.3) / 3
    assert other == SubsetDice(("t2",), {"a": (1.0, 1)})


def test_several_models_are_expected_to_be_as_good_as_the_worst() -> None:
    one = SubsetDice(("t1",), {"a": (0.8, 5), "b": (0.5, 3)})
    other = SubsetDice(("t1",), {"a": (0.7, 9)})
    assert least([one, other]).dice == {"a": (0.7, 5)}
    assert one.mean == pytest.approx(0.65)


def test_what_a_reader_must_know_of_a_subset_is_said() -> None:
    assert SubsetDice(("t1", "t2"), {}).warnings() == [
        "how good masks from t1+t2 are was never measured"
    ]
    assert SubsetDice(("t1",), {"a": (0.9, 3), "b": (0.49, 3)}).warnings() == [
        "low Dice is expected from t1: b 0.49"
    ]
    assert SubsetDice(("t1",), {"a": (0.9, 1)}).warnings() == [
        "the expected Dice from t1 rests on 1 validation case"
    ]
    assert SubsetDice(("t1",), {"a": (0.5, 3)}).warnings() == []
