"""A run that starts from the weights of a file: its first state, its record, and the command."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from small import MODALITIES, small_plans, write_model
from small_federation import SETTINGS, SiteStore, write_work

from mixmfl.core.errors import ModelError
from mixmfl.core.files import sha256
from mixmfl.data.labels import Labels
from mixmfl.data.modalities import Modalities
from mixmfl.federated.aggregation import select_blocks
from mixmfl.federated.server.beginning import Beginning
from mixmfl.federated.server.checkpoint import load_state_of
from mixmfl.federated.server.export import export_model
from mixmfl.federated.server.initial_state import Start, start_from
from mixmfl.federated.server.run_record import open_run
from mixmfl.federated.simulation import Callbacks, simulate
from mixmfl.federated.state import ServerState, Site, first_state
from mixmfl.inference.model import Model, TrainedOn
from mixmfl.inference.model_file import load_model, save_model
from mixmfl.networks.build import prototype_sizes
from mixmfl.networks.prototypes import memory_to_state
from mixmfl.planning.plans import Plans

ONE = dataclasses.replace(SETTINGS, rounds=1, local_steps=1, seed=7)


def kill_at_the_start(
    plans: Plans, site: Site, out: Path, initial: tuple[ServerState, Start]
) -> None:
    """Begin a run from these weights, and kill it in its first round."""

    def kill(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate(
            plans,
            [site],
            ONE,
            "0",
            out,
            beginning=Beginning(initial=initial),
            callbacks=Callbacks(after_task=kill),
        )


def test_a_run_of_the_same_plans_starts_with_all_of_a_model(
    tmp_path: Path, store: SiteStore
) -> None:
    plans = small_plans()
    model, out = tmp_path / "old.safetensors", tmp_path / "run"
    sizes = prototype_sizes(plans, "2d")
    memory = {(m, level): size.unseen() for level, size in sizes.items() for m in MODALITIES}
    old = dataclasses.replace(first_state(plans, SETTINGS), memory=memory)
    save_model(model, old, plans, "2d", TrainedOn(dict.fromkeys(MODALITIES, 1)))
    # what is remembered of a modality that nobody had is not of its encoder, which is flair's
    save_model(tmp_path / "two.safetensors", old, plans, "2d", TrainedOn({"flair": 1, "t1": 1}))
    two = start_from(tmp_path / "two.safetensors", plans, ONE, Modalities())[0].memory
    assert {modality for modality, _ in two} == {"flair", "t1"}
    state, start = start_from(model, plans, ONE, Modalities())
    assert all(part.taken == part.tensors for part in start.parts)
    assert {part.name for part in start.parts} >= {"tailored.t1", "shared", "fusion", "memory"}
    site = store.site("north", [("t1", "t2"), ("t1",)], validation=1)
    kill_at_the_start(plans, site, out, (state, start))
    model.unlink()  # what a run starts from is in its folder
    run = simulate(plans, [site], ONE, "0", out, beginning=Beginning(resume=True))
    assert run.start == open_run(out).start == start
    first = load_state_of(run, 0)
    assert all(torch.equal(first.weights[name], old.weights[name]) for name in old.weights)
    assert memory_to_state(first.memory).keys() == memory_to_state(memory).keys()
    trained = load_state_of(run, 1).weights
    moved = {n for n in trained if not torch.equal(trained[n], old.weights[n])}
    # not the random weights of seed 7, and of the modality that no site has not a bit else
    assert moved
    assert not any(name.startswith("tailored.flair") for name in moved)
    export_model(out, "0", tmp_path / "again.safetensors")


def test_beside_a_new_modality_what_was_trained_before_learns_more_slowly(
    tmp_path: Path, store: SiteStore
) -> None:
    plans = small_plans()
    model = tmp_path / "two.safetensors"
    save_model(model, first_state(plans, SETTINGS), plans, "2d", TrainedOn({"flair": 1, "t1": 1}))
    state, start = start_from(model, plans, ONE, Modalities())
    assert start.settled == ("decoder", "shared", "tailored.flair", "tailored.t1")
    slow = f"at 0.2 of the learning rate unless masked: {', '.join(start.settled)}"
    assert start.lines()[-1] == slow
    # a decoder with a new head has to learn it
    more = small_plans(labels=Labels({"background": 0, "lesion": 1, "cyst": 2}))
    assert "decoder" not in start_from(model, more, ONE, Modalities())[1].settled
    # and where no modality is new all blocks learn alike
    save_model(model, state, plans, "2d", TrainedOn(dict.fromkeys(MODALITIES, 1)))
    assert start_from(model, plans, ONE, Modalities())[1].settled == ()

    site = store.site("north", [("t1", "t2"), ("t1", "t2")], validation=1)
    beginning = Beginning(initial=(state, start))
    run = simulate(plans, [site], ONE, "0", tmp_path / "run", beginning=beginning)
    trained = load_state_of(run, 1).weights
    moved = {
        block: max(
            (trained[n] - state.weights[n]).abs().max() for n in select_blocks(trained, [block])
        )
        for block in ("shared", "tailored.t1", "tailored.t2", "fusion")
    }
    rate = ONE.learning_rate
    assert all(0.1 * rate < moved[block] < 0.3 * rate for block in ("shared", "tailored.t1"))
    assert all(0.9 * rate < moved[block] < 1.2 * rate for block in ("tailored.t2", "fusion"))


def test_a_start_that_is_lost_before_the_first_round_is_said(
    tmp_path: Path, store: SiteStore
) -> None:
    plans, out = small_plans(), tmp_path / "run"
    initial = start_from(write_model(tmp_path / "m.safetensors"), plans, ONE, Modalities())
    site = store.site("north", [("t1", "t2"), ("t1",)], validation=1)
    kill_at_the_start(plans, site, out, initial)
    (out / "rounds" / "00000" / "server.safetensors").write_bytes(b"half")
    with pytest.raises(
        ModelError, match=r"weights of m.safetensors, which cannot be read .*--init"
    ):
        simulate(plans, [site], ONE, "0", out, beginning=Beginning(resume=True))


def test_prototypes_of_other_labels_are_left_and_a_start_that_is_none_is_refused(
    tmp_path: Path,
) -> None:
    model = write_model(tmp_path / "m.safetensors")
    plans = small_plans(labels=Labels({"background": 0, "lesion": 1, "cyst": 2}))
    state, start = start_from(model, plans, ONE, Modalities())
    assert not state.memory
    lines = start.lines()
    assert lines[0] == "started from m.safetensors:"
    assert lines[1].split() == ["part", "from", "tensors", "not", "taken"]
    assert any("heads" in line and "by label" in line and "new: cyst" in line for line in lines)
    assert any("memory" in line and "its labels are others" in line for line in lines)
    deep = small_plans(patch=(8, 16, 16))
    three = dataclasses.replace(ONE, configuration="3d_fullres")
    with pytest.raises(ModelError, match=r"nothing of its encoders fits these plans \(stages.0.0"):
        start_from(model, deep, three, Modalities())


def test_the_command_says_what_was_taken_and_starts_only_new_runs_so(
    tmp_path: Path, command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    work = write_work(tmp_path / "work", {"north": [("t1",), ("t2",)]}, small_plans())
    model = write_model(tmp_path / "m.safetensors")
    asked = ["-i", work, "-o", tmp_path / "run", "--rounds", 1, "--local-steps", 1]
    assert command("mixmfl_train_federated", *asked, "--init", tmp_path / "no.safetensors") == 2
    assert (
        "no.safetensors: there is no such file or folder; needed is a model file"
        in capsys.readouterr().err
    )
    assert not (tmp_path / "run").exists()
    assert command("mixmfl_train_federated", *asked, "--init", model) == 0
    printed = capsys.readouterr().out
    assert "started from m.safetensors:\n  part            from" in printed
    assert "round 1/1" in printed.split("started from")[1]
    assert "from m.safetensors<" in (tmp_path / "run" / "run.html").read_text()
    assert command("mixmfl_train_federated", *asked, "--resume") == 0
    assert command("mixmfl_train_federated", *asked, "--init", model, "--resume") == 2
    assert "--init: " in capsys.readouterr().err
    assert load_model(tmp_path / "run" / "model.safetensors").round == 1


def test_the_digest_of_a_start_is_of_what_was_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_model(tmp_path / "m.safetensors")
    before = sha256(file)

    def replaced(path: Path) -> Model:
        model = load_model(path)
        path.unlink()
        path.write_text("another")
        return model

    monkeypatch.setattr("mixmfl.federated.server.initial_state.load_model", replaced)
    assert start_from(file, small_plans(), ONE, Modalities())[1].sha256 == before
