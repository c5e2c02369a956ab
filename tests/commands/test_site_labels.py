"""Three sites that label different classes train one model, from files to scores."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from small import LPS, SHAPE, small_plans, stored_site, write_preset

from mixmfl.core.files import read_json
from mixmfl.data.grid import Grid
from mixmfl.data.image import read_labels, write_image, write_labels
from mixmfl.data.labels import Labels
from mixmfl.federated.state import Site
from mixmfl.planning.plans import Plans

Command = Callable[..., int]

GRID = Grid(SHAPE, (2.0, 1.0, 1.0), (0.0, 0.0, 0.0), LPS)
LABELS = Labels({"background": 0, "tumour": 1, "stroke": 2})
SITES = {
    "east": {"tumour": 2, "stroke": 1},
    "north": {"tumour": 1},
    "south": {"stroke": 1},
}


def write_case(folder: Path, seed: int, values: dict[str, int]) -> None:
    """Write a patient with a tumour and a stroke, of which the mask has what ``values`` names."""
    generator = np.random.default_rng(seed)
    place = {"tumour": np.s_[2:-2, 5:14, 3:9], "stroke": np.s_[3:-3, 16:23, 13:20]}
    bright, mask = np.zeros(SHAPE), np.zeros(SHAPE, dtype=np.int16)
    for name, at in place.items():
        bright[at] = {"tumour": 5, "stroke": -5}[name]
        if name in values:
            mask[at] = values[name]
    for name in ("t1", "t2"):
        image = (generator.normal(20, 1, SHAPE) + bright).astype(np.float32)
        image[:, :2] = 0  # outside the head
        write_image(folder / f"{name}.nii.gz", image, GRID)
    write_labels(folder / "seg.nii.gz", mask, GRID)


@pytest.fixture
def federation(tmp_path: Path) -> Path:
    folder = tmp_path / "federation"
    for number, (site, values) in enumerate(SITES.items()):
        for case in range(2):
            write_case(folder / site / f"{site}{case}", 10 * number + case, values)
        (folder / site / "dataset.json").write_text(
            json.dumps({"labels": {"background": 0, **values}}),
            encoding="utf-8-sig" if site == "south" else "utf-8",  # as some editors save it
        )
    return folder


def test_sites_that_label_different_classes_train_one_model(
    federation: Path, tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    work, run, masks = tmp_path / "work", tmp_path / "run", tmp_path / "masks"
    preset = write_preset(tmp_path / "tiny.json")
    assert command(
        "mixmfl_plan_preprocess", "-i", federation, "-o", work, "--preset", preset,
        "-n", 1, "-c", "2d",
    ) == 0  # fmt: skip
    printed = capsys.readouterr().out
    assert "  tumour (2): east as 2; north as 1\n  stroke (1): east as 1; south as 1\n" in printed
    assert read_json(work / "plans.json")["labels"]["labels"]["tumour"] == 2
    north = read_json(work / "sites" / "north" / "2d" / "north0.json")
    assert north["labelled"] == ["tumour"]
    assert north["class_locations"].keys() == {"2"}
    assert "labelled" not in read_json(work / "sites" / "east" / "2d" / "east0.json")

    assert command(
        "mixmfl_train_federated", "-i", work, "-o", run, "-c", "2d", "--rounds", 2,
        "--local-steps", 12, "--learning-rate", 0.02, "--fold", 0,
    ) == 0  # fmt: skip
    record = read_json(run / "run.json")
    assert record["sites"]["north"]["labelled"] == ["tumour"]
    assert record["sites"]["east"]["labelled"] is None
    last = record["history"][-1]
    judged = {
        site: [n for n, dice in last[site]["dice"].items() if dice is not None] for site in last
    }
    assert judged == {"east": ["tumour", "stroke"], "north": ["tumour"], "south": ["stroke"]}
    assert command("mixmfl_predict", "-i", federation / "north", "-o", masks) == 0
    capsys.readouterr()
    mask, _ = read_labels(masks / "north0.nii.gz")
    # north labels no stroke, yet the model finds it there
    assert (mask[5:7, 18:21, 15:18] == 1).mean() > 0.5
    assert command(
        "mixmfl_evaluate", "-i", masks, "-r", federation / "north", "--labels", work / "plans.json"
    ) == 0  # fmt: skip
    printed = capsys.readouterr().out
    assert "labels: tumour (from" in printed
    assert "stroke" not in printed


def observed_classes(site: Site, plans: Plans) -> list[bool]:
    """Return of which classes a round of training observed prototypes; all memories must agree."""
    from mixmfl.federated.client.training import train_at_site
    from mixmfl.federated.server.merge import train_task
    from mixmfl.federated.state import RunSettings, first_state, register

    settings = RunSettings("2d", 0, 1, 2, 0.01)
    task = train_task(first_state(plans, settings), register(site))
    reply, _ = train_at_site(task, site, plans, settings, {})
    counts = [t for name, t in reply.tensors.items() if name.endswith(".counts")]
    assert counts
    observed = [(found > 0).tolist() for found in counts]
    assert all(each == observed[0] for each in observed)
    return observed[0]


def test_prototypes_are_observed_of_classes_that_the_site_labels_alone(tmp_path: Path) -> None:
    from mixmfl.federated.state import register

    plans = small_plans(labels=LABELS)
    site = stored_site(tmp_path, "north", [("t1",), ("t1",)], plans, labelled=("tumour",))
    assert register(site).labelled == ["tumour"]
    assert observed_classes(site, plans) == [True, True, False]


def test_classes_that_a_site_cannot_tell_apart_are_not_observed(tmp_path: Path) -> None:
    plans = small_plans(labels=Labels({"background": 0, "whole": (1, 2), "core": 2}, (1, 2)))
    site = stored_site(tmp_path, "north", [("t1",), ("t1",)], plans, labelled=("whole",))
    assert site.training[0].class_locations.keys() == {(1, 2)}
    assert observed_classes(site, plans) == [True, False, False]


def test_validation_leaves_out_what_a_case_does_not_label(tmp_path: Path) -> None:
    from mixmfl.networks.build import build_network
    from mixmfl.training.validation import DiceSum, validate

    plans = small_plans(labels=LABELS)
    network = build_network(plans, "2d", 0)
    cases = stored_site(tmp_path, "north", [("t1",)], plans, labelled=("tumour",)).training
    cases += stored_site(tmp_path, "south", [("t1",)], plans).training
    found = validate(network, {}, cases, ("t1",), plans, "2d", torch.device("cpu"))
    assert found["tumour"].cases == 2
    assert found["stroke"].cases == 1
    (alone,) = (
        validate(network, {}, cases[:1], ("t1",), plans, "2d", torch.device("cpu"))[name]
        for name in ("stroke",)
    )
    assert alone == DiceSum(0.0, 0)
