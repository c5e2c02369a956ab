"""Differential privacy at a site: clipping, noise, and a budget that is kept."""

import csv
import dataclasses
import json
import logging
import math
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_federation import PLANS, SiteStore, write_work
from small_federation import SETTINGS as SHORT
from torch import tensor

from mixmfl.core.errors import AggregationError, PrivacyError
from mixmfl.core.files import locked, write_json
from mixmfl.federated.client import personalization
from mixmfl.federated.client.training import train_at_site
from mixmfl.federated.server import merge
from mixmfl.federated.server.merge import merge_round, train_task
from mixmfl.federated.server.run_record import open_run
from mixmfl.federated.simulation import simulate
from mixmfl.federated.state import Site, first_state, register
from mixmfl.inference.model_file import load_model
from mixmfl.networks.build import build_network
from mixmfl.networks.parameters import network_state
from mixmfl.networks.prototypes import State
from mixmfl.planning.plans import Plans
from mixmfl.training.batches import Batches, PoissonBatches, loader
from mixmfl.training.dp_sgd import clip_blocks, train_privately
from mixmfl.training.privacy_budget import (
    Privacy,
    Spent,
    epsilon_of,
    read_ledger,
    sampling_rate,
    spend,
)
from mixmfl.training.trainer import LocalTraining

SETTINGS = dataclasses.replace(SHORT, local_steps=3)


def privacy(folder: Path, epsilon: float = 1e6, noise: float = 1.0) -> Privacy:
    return Privacy(epsilon, 1e-5, noise, clip=1.0, ledger=folder / "ledger.json")


@pytest.fixture
def site(store: SiteStore) -> Site:
    return store.site("north", [("t1", "t2"), ("t1",), ("t1",)])


def test_epsilon_is_that_of_the_gaussian_mechanism_worked_out_by_hand() -> None:
    # with every case in every step there is no sampling. T steps of noise z have the Renyi
    # divergence a T / (2 z^2) at order a, and epsilon is at most that plus log(1/d) / (a - 1);
    # the least of that over a is r + 2 sqrt(r log(1/d)) with r = T / (2 z^2)
    r = 10 / (2 * 4.0**2)
    known = r + 2 * math.sqrt(r * math.log(1e5))
    found = epsilon_of([Spent(1.0, 4.0, 10)], 1e-5)
    assert 0.8 * known < found < known
    assert epsilon_of([], 1e-5) == 0


def test_epsilon_grows_with_steps_and_falls_with_noise_and_with_rarer_draws() -> None:
    base = epsilon_of([Spent(0.1, 1.0, 100)], 1e-5)
    assert epsilon_of([Spent(0.1, 1.0, 200)], 1e-5) > base
    assert epsilon_of([Spent(0.1, 2.0, 100)], 1e-5) < base
    assert epsilon_of([Spent(0.05, 1.0, 100)], 1e-5) < base
    parts = [Spent(0.1, 1.0, 40), Spent(0.1, 1.0, 60)]
    assert epsilon_of(parts, 1e-5) == pytest.approx(base)
    assert sampling_rate(2, 40) == 0.05
    assert sampling_rate(4, 2) == 1


def test_without_an_accountant_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "dp_accounting", None)
    with pytest.raises(PrivacyError, match=r"pip install 'mixmfl\[privacy\]'"):
        epsilon_of([Spent(1.0, 1.0, 1)], 1e-5)


def test_every_block_is_clipped_so_that_the_whole_has_the_norm() -> None:
    gradient = {
        "shared.a": tensor([3.0, 0.0]),
        "shared.b": tensor([4.0]),
        "decoder.w": tensor([0.1]),
        "fusion.w": tensor([math.nan]),
        "tailored.t1.w": tensor([-8.0]),
    }
    clipped = clip_blocks(gradient, clip=2.0)  # four blocks, each at most 2 / sqrt(4) = 1
    assert clipped["shared.a"].tolist() == pytest.approx([0.6, 0.0])
    assert clipped["shared.b"].tolist() == pytest.approx([0.8])
    assert clipped["decoder.w"].tolist() == pytest.approx([0.1])
    assert clipped["fusion.w"].tolist() == [0.0]
    assert clipped["tailored.t1.w"].tolist() == [-1.0]


def test_what_is_spent_is_written_before_it_is_used_and_adds_up(tmp_path: Path) -> None:
    mine = privacy(tmp_path, epsilon=3.0, noise=4.0)
    first = spend(mine, 0.1, 100)
    assert first == epsilon_of([Spent(0.1, 4.0, 100)], 1e-5)
    second = spend(mine, 0.1, 100)
    assert second == epsilon_of([Spent(0.1, 4.0, 200)], 1e-5)
    other = spend(dataclasses.replace(mine, noise=8.0), 0.2, 10)
    assert read_ledger(mine.ledger) == [Spent(0.1, 4.0, 200), Spent(0.2, 8.0, 10)]
    before = mine.ledger.read_text()
    with pytest.raises(PrivacyError, match=r"budget is spent: .* and 3 is allowed"):
        spend(mine, 1.0, 1000)
    assert mine.ledger.read_text() == before
    assert first < second < other < 3


def test_jobs_that_spend_at_once_are_all_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(path: Path, content: object) -> None:
        time.sleep(0.05)  # between reading and writing
        write_json(path, content)

    monkeypatch.setattr("mixmfl.training.privacy_budget.write_json", slow)
    mine = privacy(tmp_path)
    jobs = [threading.Thread(target=spend, args=(mine, 0.1, 1)) for _ in range(4)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert read_ledger(mine.ledger) == [Spent(0.1, 1.0, 4)]


def test_a_ledger_that_another_job_does_not_let_go_stops_the_site(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mixmfl.training.privacy_budget._LEDGER_SECONDS", 0.1)
    mine = privacy(tmp_path)
    with (
        locked(tmp_path / "ledger.json.lock", 0, PrivacyError("")),
        pytest.raises(PrivacyError, match=r"ledger.json: another process has been writing to it"),
    ):
        spend(mine, 0.1, 1)
    assert read_ledger(mine.ledger) == []


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("{}", "missing fields ['format', 'spent']"),
        ("no", "cannot be read as JSON"),
        ('{"format": 2, "spent": []}', "format: is 2; it must be 1"),
        ('{"format": true, "spent": []}', "format: is True; it must be 1"),
        ('{"format": 1, "spent": [[0.1, 1]]}', "spent: has 2 entries; it must have 3"),
        ('{"format": 1, "spent": [[0, 1, 1]]}', "spent: is 0; it must be a number above 0 and at"),
        ('{"format": 1, "spent": [[2, 1, 1]]}', "spent: is 2; it must be a number above 0 and at"),
        ('{"format": 1, "spent": [[1, 0, 1]]}', "spent: is 0; it must be a number above 0 and at"),
        ('{"format": 1, "spent": [[1, 1, 1.0]]}', "spent: is 1.0; it must be a whole number"),
        ('{"format": 1, "spent": [[1, 1, 0]]}', "spent: is 0; it must be a whole number from 1"),
    ],
)
def test_a_damaged_ledger_stops_the_site(tmp_path: Path, content: str, found: str) -> None:
    mine = privacy(tmp_path)
    mine.ledger.write_text(content)
    with pytest.raises(PrivacyError, match=rf"ledger.json: .*{re.escape(found)}.*begin a new bud"):
        spend(mine, 0.1, 1)


def test_steps_with_the_same_rate_and_noise_are_summed_in_whatever_order(tmp_path: Path) -> None:
    mine = privacy(tmp_path, epsilon=100)
    for rate in (0.1, 0.2, 0.1):
        spend(mine, rate, 2)
    assert read_ledger(mine.ledger) == [Spent(0.1, mine.noise, 4), Spent(0.2, mine.noise, 2)]


def test_a_ledger_that_would_take_minutes_to_sum_stops_the_site(tmp_path: Path) -> None:
    mine = privacy(tmp_path)
    many = [[1 / n, 1.0, 1] for n in range(1, 1002)]
    mine.ledger.write_text(json.dumps({"format": 1, "spent": many}))
    with pytest.raises(PrivacyError, match="with 1001 pairs of rate and noise, and 1000 are"):
        spend(mine, 0.1, 1)


def test_noise_of_which_no_epsilon_can_be_computed_is_refused() -> None:
    with pytest.raises(
        PrivacyError, match="no epsilon can be computed of 5 steps with noise 1e-300"
    ):
        epsilon_of([Spent(1e-300, 1e-300, 5)], 1e-5)


def trained(
    site: Site,
    noise: float,
    steps: int = 1,
    seed: int = 0,
    rate: float = 1.0,
    plans: Plans = PLANS,
) -> dict[str, torch.Tensor]:
    network = build_network(plans, "2d", 0)
    batches = Batches(site.training, plans, "2d", (0, 0, "north"), steps)
    train_privately(
        network,
        {},
        {},
        loader(PoissonBatches(batches, rate), 0),
        LocalTraining(plans, "2d", register(site).weights, 1e-2, torch.device("cpu")),
        Privacy(1.0, 1e-5, noise, 1.0, Path("unused")),
        rate * len(site.training),
        np.random.default_rng(seed),
    )
    return network_state(network)


def test_noise_is_added_even_where_nobody_was_drawn(site: Site) -> None:
    before = network_state(build_network(PLANS, "2d", 0))
    silent, noisy = trained(site, 0.0, rate=1e-9), trained(site, 1.0, rate=1e-9)
    name = "decoder.seg_layers.0.weight"
    # AdamW's weight decay alone: 1 - 0.01 * 0.0001
    assert torch.allclose(silent[name], before[name] * (1 - 1e-6), atol=1e-9)
    assert not torch.allclose(noisy[name], silent[name], atol=1e-4)


@pytest.fixture
def gradients(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """Return where the gradient of each step is kept, which plain gradient descent follows."""
    seen: list[torch.Tensor] = []

    class Watched(torch.optim.SGD):
        def __init__(self, groups: list[dict[str, Any]], **rest: object) -> None:
            super().__init__(groups)

        def step(self, closure: None = None) -> None:  # type: ignore[override]
            every = [p.grad.flatten() for g in self.param_groups for p in g["params"]]
            seen.append(torch.cat(every).clone())
            super().step()

    monkeypatch.setattr(torch.optim, "AdamW", Watched)
    monkeypatch.setattr("mixmfl.training.dp_sgd.save_optimizer", lambda *_: {})
    return seen


def test_the_noise_has_the_size_that_is_accounted_for(
    site: Site, gradients: list[torch.Tensor]
) -> None:
    trained(site, noise=5.0)
    # noise 5 times clip 1, over the 3 cases expected; gradients of norm 1 are lost in that
    assert float(gradients[0].std()) == pytest.approx(5 / 3, rel=0.05)


def test_the_proximal_term_is_that_of_a_site_without_privacy(
    site: Site, gradients: list[torch.Tensor]
) -> None:
    near = dataclasses.replace(PLANS, training=dataclasses.replace(PLANS.training, proximal=3.0))
    for plans in (PLANS, near):  # nobody is drawn: all that is seen is noise, and the term
        trained(site, noise=1e-6, steps=2, rate=1e-6, plans=plans)
    first, plain, _, pulled = gradients
    # one step of 0.01 down the first gradient, and mu = 3 times that way
    assert torch.allclose(pulled - plain, -3.0 * 0.01 * first, atol=1e-5 * float(first.abs().max()))


def test_blocks_of_other_modalities_are_left_alone(site: Site) -> None:
    before, after = network_state(build_network(PLANS, "2d", 0)), trained(site, 1.0)
    for name, value in before.items():
        assert torch.equal(value, after[name]) == name.startswith("tailored.flair.")


def test_a_private_reply_has_neither_loss_nor_prototypes_and_is_merged(
    site: Site, tmp_path: Path
) -> None:
    mine = dataclasses.replace(site, privacy=privacy(tmp_path))
    state, registrations = first_state(PLANS, SETTINGS), {"north": register(site)}
    task = train_task(state, registrations["north"])
    replies = [train_at_site(task, mine, PLANS, SETTINGS, {}) for _ in range(2)]
    (one, optimizer), (other, _) = replies
    assert set(one.record) == {"round", "epsilon", "delta"}
    assert not any(name.startswith("memory.") for name in one.tensors)
    assert any(name.endswith(".exp_avg") for name in optimizer)
    # the run's seed decides nothing, or the server could take the noise off
    assert not torch.equal(
        *(reply.tensors["fusion.0.mix.convs.0.conv.weight"] for reply in (one, other))
    )
    assert other.record["epsilon"] > one.record["epsilon"]
    after, shown = merge_round(state, {"north": one}, registrations, PLANS, SETTINGS)
    assert shown.epsilon == {"north": (one.record["epsilon"], 1e-5)}
    assert not shown.loss
    assert not after.memory
    for name in ("epsilon", "delta"):
        bad = dataclasses.replace(one, record={**one.record, name: -1.0})
        with pytest.raises(
            AggregationError, match=f"'north': {name}: is -1.0; it must be a number"
        ):
            merge_round(state, {"north": bad}, registrations, PLANS, SETTINGS)


def test_there_is_more_noise_than_a_server_could_try(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []

    def trained_with(*arguments: object) -> State:
        given.append(arguments)
        return {}

    monkeypatch.setattr("mixmfl.federated.client.training.train_privately", trained_with)
    state, mine = first_state(PLANS, SETTINGS), dataclasses.replace(site, privacy=privacy(tmp_path))
    for _ in range(2):
        train_at_site(train_task(state, register(mine)), mine, PLANS, SETTINGS, {})
    one, other = (generator.bit_generator.seed_seq.entropy for *_, generator in given)
    assert one != other
    assert min(one, other).bit_length() > 96  # of 128


def test_a_site_whose_budget_is_spent_sends_nothing_more_and_the_others_continue(
    tmp_path: Path, store: SiteStore, caplog: pytest.LogCaptureFixture
) -> None:
    # four of two cases in a batch: every case in every step
    once, twice = (epsilon_of([Spent(1.0, 1.0, 3 * n)], 1e-5) for n in (1, 2))
    north = store.site("north", [("t1",), ("t1", "t2")])
    south = store.site("south", [("t1",), ("t2",)])
    mine = privacy(tmp_path, epsilon=(once + twice) / 2)
    sites = [dataclasses.replace(north, privacy=mine), south]
    with caplog.at_level(logging.WARNING):
        run = simulate(PLANS, sites, SETTINGS, "all", tmp_path / "run")
    first, second = open_run(run.folder).history
    assert first["north"].epsilon == pytest.approx(once)
    assert first["north"].loss is None
    assert not first["north"].absent
    assert "the privacy budget is spent" in second["north"].absent
    assert second["south"].loss is not None
    assert "round 2: north: reply rejected: the privacy budget is spent" in caplog.text
    with (run.folder / "progress.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epsilon"] for row in rows] == [f"{once:.3f}", "", "", ""]
    model = load_model(run.folder / "model.safetensors")
    assert model.trained_on.privacy == {"north": {"epsilon": pytest.approx(once), "delta": 1e-5}}


def test_a_model_without_privacy_says_nothing_of_it(tmp_path: Path, site: Site) -> None:
    run = simulate(PLANS, [site], SETTINGS, "all", tmp_path / "run")
    assert load_model(run.folder / "model.safetensors").trained_on.privacy == {}


def test_a_copy_that_stays_at_its_site_costs_no_budget(tmp_path: Path, store: SiteStore) -> None:
    site = store.site("north", [("t1",), ("t1",)], validation=1)
    mine = dataclasses.replace(site, privacy=privacy(tmp_path))
    registrations = {"north": register(mine)}
    task = merge.personalization_task(first_state(PLANS, SETTINGS), "north", registrations)
    personalization.personalize_at_site(task, mine, PLANS, SETTINGS)
    assert read_ledger(privacy(tmp_path).ledger) == []


def test_the_command_trains_with_privacy_and_says_what_was_spent(
    tmp_path: Path, command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    work = write_work(tmp_path / "work", {"north": [("t1",), ("t1", "t2")]})
    base = ("mixmfl_train_federated", "-i", work, "-c", "2d", "--fold", "all")
    out = tmp_path / "run"
    assert command(*base, "-o", out, "--dp-epsilon", 1e3) == 0
    assert "north epsilon " in capsys.readouterr().out
    (spent,) = read_ledger(out / "privacy" / "north.json")
    assert (spent.rate, spent.noise, spent.steps) == (1.0, 1.0, 4)
    assert command(*base, "-o", tmp_path / "b", "--dp-epsilon", 1, "--dp-delta", 1) == 2
    assert "--dp-delta: must be above 0 and below 1" in capsys.readouterr().err
    assert command(*base, "-o", tmp_path / "c", "--dp-epsilon", 0.1) == 2
    assert "0 replies can be used" in capsys.readouterr().err
