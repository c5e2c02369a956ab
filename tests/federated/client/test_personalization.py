"""The personalised model of a site: made there, kept in the run, exported by the commands."""

import dataclasses
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small import small_plans
from small_federation import SETTINGS as TWO_ROUNDS
from small_federation import SiteStore, equal, write_work

from mixmfl.core import tensor_store
from mixmfl.core.errors import ModelError
from mixmfl.federated.client import client
from mixmfl.federated.client.personalization import Personalised, personalize_at_site
from mixmfl.federated.client.training import train_at_site, validate_at_site
from mixmfl.federated.messages import Message
from mixmfl.federated.server.checkpoint import load_state_of, save_personal
from mixmfl.federated.server.export import export_model
from mixmfl.federated.server.merge import personalization_task
from mixmfl.federated.server.run import Run
from mixmfl.federated.server.run_record import open_run
from mixmfl.federated.simulation import simulate, simulate_personalization
from mixmfl.federated.state import (
    Personal,
    Site,
    first_state,
    mean_dice,
    read_dice,
    register,
)
from mixmfl.networks.parameters import block_of
from mixmfl.networks.prototypes import Prototypes, State
from mixmfl.planning.plans import Plans

SETTINGS = dataclasses.replace(TWO_ROUNDS, rounds=1)
NORTHS_BLOCKS = {"tailored.t1", "tailored.t2", "shared", "fusion", "decoder"}


@pytest.fixture(scope="module")
def plans() -> Plans:
    return small_plans(personal_rounds=2, personal_learning_rate=5e-3)


@pytest.fixture(scope="module")
def sites(store: SiteStore) -> list[Site]:
    # north validates on flair too, which only south trains; south has nothing to validate on
    cases = [("t1", "t2"), ("t1",), ("flair", "t1")]
    return [
        store.site("north", cases, validation=1),
        store.site("south", [("flair",), ("flair", "t1")]),
        store.site("west", [("t1",), ("t1",)], validation=1),
    ]


@pytest.fixture
def task(sites: list[Site], plans: Plans) -> Message:
    ones = torch.ones(3, 4)
    memory = {("t2", 2): Prototypes(ones, torch.ones(3))}
    state = dataclasses.replace(first_state(plans, SETTINGS), memory=memory)
    return personalization_task(state, "north", {site.name: register(site) for site in sites})


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, plans: Plans, sites: list[Site]) -> Path:
    return simulate(plans, sites, SETTINGS, "0", tmp_path_factory.mktemp("trained") / "run").folder


@pytest.fixture
def run(tmp_path: Path, trained: Path) -> Run:
    """Return a run that a test may change."""
    return open_run(shutil.copytree(trained, tmp_path / "run"))


def sharing(plans: Plans, share: float) -> Plans:
    training = dataclasses.replace(plans.training, personal_share=share)
    return dataclasses.replace(plans, training=training)


# --- at the site


def test_a_copy_lies_between_the_model_and_what_fine_tuning_makes_of_it(
    task: Message, sites: list[Site], plans: Plans
) -> None:
    north = sites[0]
    before = {name: tensor.clone() for name, tensor in task.tensors.items()}
    # fine-tuning is two rounds, at the learning rate of its own
    settings = dataclasses.replace(SETTINGS, rounds=2, learning_rate=5e-3, half_updates=False)
    tuned, optimizer = dict(before), State()
    for number in range(2):
        step = Message("train", {"round": number}, tuned)
        reply, optimizer = train_at_site(step, north, plans, settings, optimizer)
        tuned |= {n: tuned[n] + t for n, t in reply.tensors.items() if not n.startswith("memory.")}

    def made(share: float) -> tuple[Personal, State]:
        personalised = personalize_at_site(task, north, sharing(plans, share), SETTINGS)
        return personalised.result, personalised.blocks

    (same, start), (_, middle), (better, end) = made(0.0), made(0.5), made(1.0)
    own = [name for name in before if block_of(name) in NORTHS_BLOCKS]
    assert equal(start, {name: before[name] for name in own})
    assert equal(end, {name: tuned[name] for name in own})
    assert middle.keys() == end.keys()
    for name in own:
        assert torch.allclose(middle[name], (before[name] + tuned[name]) / 2, atol=1e-6)
    assert not equal(start, end)
    assert equal(dict(task.tensors), before)

    # and both are judged as a round is
    for tensors_, found in ((before, same.dice_before), (before, same.dice), (tuned, better.dice)):
        judged = validate_at_site(
            Message("validate", task.record, tensors_), north, plans, SETTINGS
        )
        assert found == mean_dice([read_dice(judged)])
    assert better.dice_before == same.dice_before != better.dice


def test_the_same_seed_gives_the_same_copy_and_another_seed_does_not(
    task: Message, sites: list[Site], plans: Plans
) -> None:
    one, again, other = (
        personalize_at_site(task, sites[0], plans, dataclasses.replace(SETTINGS, seed=seed))
        for seed in (0, 0, 1)
    )
    assert one.result == again.result == again.sent
    assert equal(one.blocks, again.blocks)
    assert not equal(one.blocks, other.blocks)


@pytest.mark.parametrize(
    ("dice", "before", "kept"),
    [
        (0.51, 0.50, True),
        (0.50, 0.50, False),
        (0.49, 0.50, False),
        (math.nan, math.nan, False),  # nothing to validate on
    ],
)
def test_a_copy_is_kept_only_where_it_is_better(dice: float, before: float, kept: bool) -> None:
    assert Personal(dice, before).kept is kept


# --- in the run's folder


class _KilledError(Exception):
    """Raised in place of killing the process."""


def test_a_site_whose_copy_is_made_is_not_asked_again(
    run: Run, sites: list[Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    model = run.folder / "model.safetensors"
    before = model.read_bytes()

    def killed_at_the_second(task: Message, site: Site, *arguments: Any) -> Personalised:
        asked.append(site.name)
        if len(asked) == 2:
            raise _KilledError
        return personalize_at_site(task, site, *arguments)

    monkeypatch.setattr(client, "personalize_at_site", killed_at_the_second)
    with pytest.raises(_KilledError):
        simulate_personalization(run, sites)
    resumed = open_run(run.folder)
    assert resumed.personal == run.personal
    assert list(resumed.personal) == ["north"]
    simulate_personalization(resumed, sites)
    simulate_personalization(resumed, sites)
    assert asked == ["north", "west", "west"]  # south has nothing to validate on

    personal = open_run(run.folder).personal
    assert personal["north"] == run.personal["north"]
    assert list(personal) == ["north", "west"]
    assert not math.isnan(personal["west"].dice_before)
    assert model.read_bytes() == before


def test_an_exported_copy_is_the_model_of_all_but_for_the_sites_own_blocks(
    run: Run, tmp_path: Path
) -> None:
    weights = load_state_of(run, 1).weights
    own = {n: tensor + 1 for n, tensor in weights.items() if block_of(n) in NORTHS_BLOCKS}
    save_personal(run, "north", Personal(dice=0.6, dice_before=0.5), own)
    of_all, mine = run.folder / "model.safetensors", tmp_path / "mine.safetensors"
    before = of_all.read_bytes()
    number, _ = export_model(run.folder, "best", mine, site="north")
    assert number == 1
    (common, header), (found, my_header) = tensor_store.read(of_all), tensor_store.read(mine)
    assert my_header.pop("expected") == []  # what was measured is the Dice of the global model
    assert header.pop("expected") != []
    for name in ("confidence", "reliability", "components"):
        assert my_header.pop(name) == {}
        assert header.pop(name) != {}
    digests = ("tensors_sha256", "header_sha256")
    assert all(my_header.pop(name) != header.pop(name) for name in digests)
    assert my_header == header
    assert found.keys() == common.keys()
    changed = {name for name in found if not torch.equal(found[name], common[name])}
    assert changed == {f"network.{name}" for name in own}
    assert all(torch.equal(found[f"network.{name}"], own[name]) for name in own)
    export_model(run.folder, "best", of_all)
    assert of_all.read_bytes() == before


def test_a_site_without_a_copy_that_it_uses_exports_none(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "mine.safetensors"

    def refused(site: str) -> str:
        with pytest.raises(ModelError) as caught:
            export_model(run.folder, "best", out, site)
        assert not out.exists()
        return str(caught.value)

    assert "site 'north' has no personalised model; sites that have one: none. mixmfl_train" in (
        refused("north")
    )
    save_personal(run, "north", Personal(dice=0.4, dice_before=0.5), {})
    assert "site 'south' has no personalised model; sites that have one: north" in refused("south")
    assert "'north' does better with the global model (validation Dice 0.500, personalised" in (
        refused("north")
    )
    assert "model 0.400); export the global model, without --site" in refused("north")


# --- by the commands


def test_sites_personalise_and_export_by_the_commands(
    tmp_path: Path, command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    # the global model learns next to nothing in its one round: a personalised one must be better
    plans = small_plans(
        rounds=1,
        local_steps=12,
        learning_rate=1e-7,
        personal_rounds=3,
        personal_learning_rate=1e-2,
        personal_share=1.0,
    )
    work, run, mine = tmp_path / "work", tmp_path / "run", tmp_path / "mine.safetensors"
    # south has none to validate on
    north = [("t1", "t2"), ("t1",), ("t1", "t2")]
    write_work(work, {"north": north, "south": [("flair",)]}, plans)
    asked = ["-i", work, "-o", run, "-c", "2d", "--personalize"]
    assert command("mixmfl_train_federated", *asked) == 0
    printed = capsys.readouterr().out
    (dice, before) = re.findall(
        r"site north: personalised model, validation Dice (\S+), global model (\S+); kept\n",
        printed,
    )[0]
    assert float(dice) > float(before) + 0.1
    assert "no personalised model, for lack of validation cases: south\n" in printed
    assert f"mixmfl_export -i {run} --site SITE -o FILE.safetensors" in printed
    again = command("mixmfl_train_federated", *asked, "--resume")
    assert again == 0
    assert f"site north: personalised model, validation Dice {dice}" in capsys.readouterr().out

    model = (run / "model.safetensors").read_bytes()
    export = ["-i", run, "-o", mine, "--site"]
    assert command("mixmfl_export", *export, "north", "--round", 2) == 2
    assert "are made from the best round, 1, and there is none of round 2; leave out --round" in (
        capsys.readouterr().err
    )
    assert command("mixmfl_export", *export, "south") == 2
    assert "site 'south'" in capsys.readouterr().err
    assert not mine.exists()
    assert command("mixmfl_export", *export, "north") == 0
    assert f"of site north, based on the global model of round 1: {mine}" in capsys.readouterr().out
    assert command("mixmfl_use_model", mine) == 0
    assert mine.read_bytes() != model == (run / "model.safetensors").read_bytes()
