"""Sites that join or leave a run between rounds, and a modality that joins with them."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from small import small_plans, stored_site
from small_federation import SETTINGS, SiteStore, write_work

from mixmfl.core.errors import ModelError
from mixmfl.federated.messages import Message
from mixmfl.federated.server.beginning import Beginning, begin
from mixmfl.federated.server.changes import Change
from mixmfl.federated.server.checkpoint import load_optimizers, load_state_of, record_changes
from mixmfl.federated.server.joining import start_new_modalities
from mixmfl.federated.server.progress_plot import draw_progress
from mixmfl.federated.server.run import Run
from mixmfl.federated.server.run_record import open_run
from mixmfl.federated.simulation import Callbacks, simulate
from mixmfl.federated.state import Site, register
from mixmfl.networks.parameters import block_of
from mixmfl.training.privacy_budget import Privacy

CHANGED = Beginning(resume=True, change=True)
PLANS = small_plans(("flair", "t1", "t1c"))
TWO = dataclasses.replace(SETTINGS, rounds=2, local_steps=1)
FOUR = dataclasses.replace(TWO, rounds=4)


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Site]:
    cases = {"north": [("t1",), ("t1",)], "south": [("flair",), ("t1",)], "east": [("t1c",)] * 2}
    folder = tmp_path_factory.mktemp("sites")
    return {name: stored_site(folder, name, each, PLANS, "2d", 1) for name, each in cases.items()}


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, sites: dict[str, Site]) -> Run:
    """Train north and south for two rounds."""
    begun = [sites["north"], sites["south"]]
    return simulate(PLANS, begun, TWO, "0", tmp_path_factory.mktemp("two") / "run")


@pytest.fixture
def out(two: Run, tmp_path: Path) -> Path:
    return shutil.copytree(two.folder, tmp_path / "run")


def test_a_site_leaves_and_another_joins_with_its_modality(
    out: Path, sites: dict[str, Site], two: Run
) -> None:
    asked: list[tuple[str, str, set[str]]] = []

    def note(site: str, task: Message, reply: Message) -> None:
        blocks = {block_of(name) for name in task.tensors if not name.startswith("memory.")}
        asked.append((site, task.kind, blocks))

    now = [sites["south"], sites["east"]]
    easy = open_run(out)
    easy.dice[1] = 0.99
    record_changes(easy, [])
    run = simulate(
        PLANS, now, FOUR, "0", out, beginning=CHANGED, callbacks=Callbacks(after_task=note)
    )
    assert [change.text for change in open_run(out).changes] == [
        "rounds 2 -> 4",
        "site east joins with 1 training case",
        "site north leaves; the model keeps what it learnt from its 1 training case",
        "modality t1 has no site any more; its encoder stays in the model as it is",
        "modality t1c joins with 1 training case, its encoder starts from t1",
    ]
    assert [set(each) for each in run.history] == [{"north", "south"}] * 2 + [{"south", "east"}] * 2
    assert {site for site, *_ in asked} == {"south", "east"}
    assert ("east", "train", {"tailored.t1c", "shared", "fusion", "decoder"}) in asked
    # north's blocks and those of its modality stay in the model, as it has trained them
    assert run.modality_cases == {"flair": 1, "t1": 1, "t1c": 1}
    kept = "tailored.t1.stages.0.0.convs.0.conv.weight"
    before, after = (load_state_of(*at).weights[kept] for at in ((two, 2), (run, 4)))
    assert torch.equal(before, after)
    assert ("south", "validate", {"tailored.t1", "shared", "fusion", "decoder"}) in asked
    # Dice of other cases is not compared: the best is of the rounds since
    assert run.best_round in (3, 4)
    # the optimizer state of north waits for it; east has its own
    states = load_optimizers(run, 4)
    assert set(states) == {"north", "south", "east"}
    assert all(
        torch.equal(states["north"][name], tensor)
        for name, tensor in load_optimizers(two, 2)["north"].items()
    )
    # back again, as it was
    three = [*now, sites["north"]]
    five = dataclasses.replace(FOUR, rounds=5)
    run = simulate(PLANS, three, five, "0", out, beginning=CHANGED)
    assert set(run.history[-1]) == {"north", "south", "east"}
    assert run.former == {}
    assert [change.text for change in run.changes[5:]] == [
        "rounds 4 -> 5",
        "site north comes back with 1 training case",
        "modality t1 comes back with 1 training case",
    ]


def test_a_joining_modality_starts_from_the_nearest_also_after_an_interruption(
    out: Path, sites: dict[str, Site], two: Run
) -> None:
    registrations = {name: register(site) for name, site in sites.items()}
    asked = Run(out, PLANS, FOUR, "0", registrations)
    stored = load_state_of(two, 2).weights
    mixed = "fusion.0.mix.convs.0.conv.weight"  # 2 shared channels, then 2 of each slot
    for _ in range(2):  # the second time, nothing is asked to change
        run, state, _ = begin(asked, CHANGED)
        assert len(run.changes) == 3
        name = "stages.{}.0.convs.0.conv.weight"
        for level in range(3):
            assert torch.equal(
                state.weights[f"tailored.t1c.{name.format(level)}"],
                stored[f"tailored.t1.{name.format(level)}"],
            )
        assert torch.equal(state.weights[mixed][:, 6:8], stored[mixed][:, 4:6])
        assert torch.equal(state.weights[mixed][:, :6], stored[mixed][:, :6])
        others = [n for n in stored if block_of(n) not in ("tailored.t1c", "fusion")]
        assert all(torch.equal(state.weights[n], stored[n]) for n in others)
    # after the round it is as that round left it
    run.history.append(two.history[-1])
    assert start_new_modalities(run, state.weights) is state.weights


def test_sites_are_not_changed_where_that_would_reveal_or_mix_up_cases(
    out: Path, tmp_path: Path, sites: dict[str, Site]
) -> None:
    north, south = sites["north"], sites["south"]
    with pytest.raises(ModelError, match=r"started with other .*site south"):
        simulate(PLANS, [north], TWO, "0", out, beginning=Beginning(resume=True))
    more = dataclasses.replace(north, training=(*north.training, *north.validation), validation=())
    words = r"started with other site north \(\d+ training cases? with .*, now .*with nothing\)\. R"
    with pytest.raises(ModelError, match=words):
        simulate(PLANS, [more, south], FOUR, "0", out, beginning=CHANGED)
    with pytest.raises(ModelError, match=r"started with other fold \(0, now 1\)\. Resume"):
        simulate(PLANS, [more, south], FOUR, "1", out, beginning=CHANGED)
    begin(Run(out, PLANS, FOUR, "0", {"south": register(south)}), CHANGED)
    with pytest.raises(ModelError, match=r"site north took part before with other cases .* name"):
        simulate(PLANS, [more, south], FOUR, "0", out, beginning=CHANGED)
    masked = dataclasses.replace(TWO, masked=True)
    three = {name: register(south) for name in "abc"}
    begin(Run(tmp_path / "masked", PLANS, masked, "0", three))
    four = Run(tmp_path / "masked", PLANS, masked, "0", {**three, "d": register(south)})
    with pytest.raises(ModelError, match=r"cannot join or leave a masked run \(site d\).*--init"):
        begin(four, CHANGED)


def test_a_site_with_a_dollar_in_its_name_is_drawn(out: Path) -> None:
    run = open_run(out)
    record_changes(run, [Change(1, "site a$\\b$c", 0, 3)])
    draw_progress(run, out / "progress.png")
    named = {site: f"{site}$\\b$" for site in run.known}
    odd = dataclasses.replace(
        run,
        registrations={named[site]: each for site, each in run.registrations.items()},
        former={named[site]: each for site, each in run.former.items()},
        history=[{named[site]: at for site, at in sites.items()} for sites in run.history],
    )
    draw_progress(odd, out / "progress.png")


def test_a_site_with_a_budget_resumes_with_its_optimizer_and_never_without_privacy(
    tmp_path: Path,
    store: SiteStore,
    command: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    plans = small_plans()
    site = store.site("north", [("t1", "t2"), ("t1",)])
    private = dataclasses.replace(
        site, privacy=Privacy(1e9, 1e-5, 1.0, 1.0, tmp_path / "ledger.json")
    )
    one = dataclasses.replace(TWO, rounds=1)
    run = simulate(plans, [private], one, "all", tmp_path / "run")
    assert load_optimizers(open_run(run.folder), 1)["north"]
    work = write_work(tmp_path / "work", {"north": [("t1", "t2"), ("t1",)]}, plans)
    asked = ["-i", work, "-o", run.folder, "--resume", "--rounds", 2]
    assert command("mixmfl_train_federated", *asked) == 2
    assert "north trained with differential privacy, which holds only if" in capsys.readouterr().err
