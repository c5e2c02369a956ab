"""The history of a run as curves and tables, and the bars of what comes after the last round."""

import csv
import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from small import small_plans
from small_federation import SETTINGS, write_work

from mixmfl.federated.server.checkpoint import (
    EACH_CASE,
    Run,
    load_measured,
    load_measured_sites,
    open_run,
)
from mixmfl.federated.server.curves import Curves, scalars
from mixmfl.federated.simulation import simulate, simulate_personalization
from mixmfl.federated.sites import open_sites

PLANS = small_plans(imputation=0.0, personal_rounds=2)
ONE = dataclasses.replace(SETTINGS, rounds=1, local_steps=1)
CASES: dict[str, list[tuple[str, ...]]] = {"north": [("t1", "t2")] * 3, "south": [("flair",)] * 2}
Calls = list[tuple[str, int, int]]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_work(tmp_path_factory.mktemp("work"), CASES, PLANS)


@pytest.fixture(scope="module")
def done(work: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Calls]:
    """Train and personalise, and note what is reported after the last round."""
    calls: Calls = []

    def note(*call: Any) -> None:
        calls.append(call)

    sites = open_sites(work, PLANS, "2d", "0", 0, torch.device("cpu"), 0)
    out = tmp_path_factory.mktemp("done") / "run"
    run = simulate(PLANS, sites, ONE, "0", out, progress=note)
    simulate_personalization(run, sites, note)
    return run, calls


def test_what_follows_the_last_round_is_reported_step_by_step(done: tuple[Run, Calls]) -> None:
    # one validation case of each site, and then two rounds of each
    assert done[1] == [
        *(("measuring Dice of every subset, cases", number, 2) for number in (1, 2)),
        *(("personalised models, rounds", number, 4) for number in (1, 2, 3, 4)),
    ]


def test_tables_have_the_federation_s_dice_and_every_subset(done: tuple[Run, Calls]) -> None:
    run, _ = done
    with (run.folder / "progress.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["federation_dice"] for row in rows} == {f"{run.dice[1]:.4f}"}
    with (run.folder / "subsets.csv").open() as file:
        rows = list(csv.DictReader(file))
    found = {(row["site"], row["modalities"], row["label"]): row for row in rows}
    assert len(found) == len(rows)
    measured, by_site = load_measured(run, 1), load_measured_sites(run, 1)
    assert measured
    assert by_site
    assert by_site.keys() == run.registrations.keys()
    for site, part in {"": measured, **by_site}.items():
        for label, sums in part.largest.items():
            row = found.pop((site, EACH_CASE, label))
            assert row["cases"] == str(sums.cases)
            assert float(row["mean_dice"]) == pytest.approx(sums.dice / sums.cases, abs=1e-4)
        for each in part.expected:
            for label, counts in each.counts.items():
                if not sum(counts):
                    continue
                row = found.pop((site, "+".join(each.modalities), label))
                assert row["cases"] == str(sum(counts))
                # of one case: the middle and the lower end of the range that its Dice is in
                own = counts.index(1)
                assert float(row["median_dice"]) == pytest.approx((own + 0.5) / 20)
                assert float(row["low_dice"]) == pytest.approx(own / 20)
    assert not found


def test_curves_show_what_was_measured_of_each_site(done: tuple[Run, Calls]) -> None:
    run, _ = done
    shown = scalars(run, 1)
    assert shown["learning_rate"] == ONE.learning_rate
    assert shown["dice/federation"] == run.dice[1]
    for site, at_site in run.history[0].items():
        assert shown[f"loss/{site}"] == at_site.loss
        assert shown[f"bytes_sent/{site}"] == at_site.sent_bytes
    assert not any(name.startswith("epsilon") for name in shown)
    left = {"north": dataclasses.replace(run.history[0]["north"], absent="is not connected")}
    away = dataclasses.replace(run, history=[left], dice={1: float("nan")})
    assert scalars(away, 1).keys() == {"learning_rate", "local_steps"}


class _Writer:
    """Stands for TensorBoard's writer."""

    made: "list[_Writer]" = []  # noqa: RUF012

    def __init__(self, folder: str, purge_step: int) -> None:
        self.folder, self.purge, self.closed = folder, purge_step, False
        self.steps: list[int] = []
        self.made.append(self)

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.steps.append(step)

    def flush(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        self.closed = True


def test_every_round_is_written_for_tensorboard_once(
    done: tuple[Run, Calls], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = done
    module: Any = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = _Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    longer = dataclasses.replace(ONE, rounds=3)
    three = dataclasses.replace(run, history=[*run.history] * 3, settings=longer)
    with Curves(1) as curves:
        curves.write(three)
        curves.write(three)
    (writer,) = _Writer.made
    assert (Path(writer.folder), writer.purge) == (run.folder / "tensorboard", 2)
    assert set(writer.steps) == {2, 3}
    assert len(writer.steps) == sum(len(scalars(three, number)) for number in (2, 3))
    assert writer.closed


def test_without_tensorboard_nothing_is_written(
    done: tuple[Run, Calls], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with Curves(0) as curves:
        curves.write(done[0])
    assert not (done[0].folder / "tensorboard").exists()


def test_the_command_writes_events_that_tensorboard_reads(
    work: Path, tmp_path: Path, command: Callable[..., int]
) -> None:
    pytest.importorskip("tensorboard", reason="pip install 'mixmfl[curves]' to test what it reads")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    asked = ["-i", work, "-o", tmp_path / "run", "--local-steps", 1]
    assert command("mixmfl_train_federated", *asked, "--rounds", 1) == 0
    assert command("mixmfl_train_federated", *asked, "--rounds", 2, "--resume") == 0
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    run = open_run(tmp_path / "run")
    assert [e.step for e in events.Scalars("loss/north")] == [1, 2]
    for event, sites in zip(events.Scalars("loss/north"), run.history, strict=True):
        assert event.value == pytest.approx(sites["north"].loss)
