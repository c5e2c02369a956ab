"""A coordinator that is killed between any two changes of its files loses a round at most."""

import dataclasses
import shutil
from itertools import count
from pathlib import Path

import torch
from killed import killed_after
from small import small_plans

from mixmfl.federated.server.beginning import Beginning, begin
from mixmfl.federated.server.checkpoint import save_round
from mixmfl.federated.server.run import Run, SiteRound
from mixmfl.federated.state import Registration, RunSettings, ServerState, first_state

RESUMED = Beginning(resume=True)
PLANS = small_plans(keep_every=10)
SETTINGS = RunSettings("2d", seed=0, rounds=5, local_steps=2, learning_rate=1e-2)
SITES = {"north": Registration(4, {"t1": 4}, ["t1"])}
DONE = {"north": SiteRound(0.5, {"lesion": 0.5}, 10, 10, 1.0)}


def run_in(folder: Path) -> Run:
    return Run(folder, PLANS, SETTINGS, "0", SITES)


def save(run: Run, state: ServerState, number: int) -> None:
    """Save a round in which every weight got another value."""
    weights = {name: torch.full_like(t, number) for name, t in state.weights.items()}
    # the first round is the best, so that the second is dropped after the fourth
    made = dataclasses.replace(state, round=number, weights=weights)
    save_round(run, made, {}, DONE, 1.0 - number / 10, 1.0)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def test_a_coordinator_that_is_killed_while_it_saves_a_round_goes_on(tmp_path: Path) -> None:
    start, whole = first_state(PLANS, SETTINGS), tmp_path / "whole"
    begin(run_in(whole))
    run = begin(run_in(whole), RESUMED)[0]
    for number in (1, 2, 3):
        save(run, start, number)
    before = tmp_path / "before"
    shutil.copytree(whole, before)
    for number in (4, 5):
        save(run, start, number)
    assert not (whole / "rounds" / "00002").exists()
    expected, rounds = files_of(whole), []
    for most in count():
        folder = tmp_path / str(most)
        shutil.copytree(before, folder)
        run = begin(run_in(folder), RESUMED)[0]
        with killed_after(most) as made:
            save(run, start, 4)
        run, state, _ = begin(run_in(folder), RESUMED)
        assert state.round == len(run.history)
        assert all((tensor == state.round).all() for tensor in state.weights.values())
        rounds.append(state.round)
        for number in range(state.round + 1, 6):
            save(run, start, number)
        assert files_of(folder) == expected, f"killed after {most} changes"
        shutil.rmtree(folder)
        if not made.killed:
            break
    assert len(rounds) > 10
    assert rounds == sorted(rounds)
    assert set(rounds) == {3, 4}
