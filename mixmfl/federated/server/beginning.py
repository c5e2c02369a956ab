"""How a run begins: a new one, or one that is resumed, perhaps with other settings and sites."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

from mixmfl.core.errors import ModelError
from mixmfl.core.files import clear_unfinished
from mixmfl.core.tensor_store import Tensors
from mixmfl.federated.server.changes import (
    CHANGEABLE,
    Change,
    changes_of_settings,
    changes_of_sites,
    raise_norms,
)
from mixmfl.federated.server.checkpoint import (
    check_can_start,
    follow_record,
    initial_state,
    last_state,
    record_changes,
    start_run,
)
from mixmfl.federated.server.initial_state import Start
from mixmfl.federated.server.joining import changes_of_modalities, start_new_modalities
from mixmfl.federated.server.run import Run
from mixmfl.federated.server.run_record import open_run
from mixmfl.federated.server.secure_aggregation import check_masked_run
from mixmfl.federated.state import ServerState, first_state


@dataclass(frozen=True)
class Beginning:
    """How a run begins, or goes on.

    Attributes:
        resume: Whether the folder holds the run already; its settings and sites must be the same.
        change: Whether a resumed run may have other rounds, local steps, learning rate,
            ``stop_when_flat`` or sites; they hold from the next round on.
        initial: The state that a new run starts from, and what it was taken from; see
            ``start_from``. None: a random one.
        accepted: Called when the run is known to begin or go on as asked, before any of that is
            written.
    """

    resume: bool = False
    change: bool = False
    initial: tuple[ServerState, Start] | None = None
    accepted: Callable[[], None] = lambda: None


NEW = Beginning()
"""A new run, from random weights."""


def begin(
    asked: Run, beginning: Beginning = NEW, *, optimizers: bool = False
) -> tuple[Run, ServerState, dict[str, Tensors]]:
    """Start a run, or resume the one in its folder.

    Args:
        asked: The run to start or resume, with no history.
        beginning: Whether it is resumed, and what it starts from.
        optimizers: Whether the sites' optimizer states are stored with the run.

    Returns:
        The run, the state to resume from, and the optimizer states by site.

    Raises:
        ModelError: The folder holds a run and is not to be resumed; or it holds another run, or
            one of more rounds than are asked for.
    """
    if asked.settings.masked:
        check_masked_run(asked.plans, asked.registrations)
    if not beginning.resume:
        _check_can_be_flat(asked)
        check_can_start(asked)
        beginning.accepted()
        initial, asked.start = beginning.initial or (None, None)
        start_run(asked, initial)
        clear_unfinished(asked.folder, below=True)
        return asked, initial or first_state(asked.plans, asked.settings), {}
    run = open_run(asked.folder)
    _check_same_run(run, asked, change=beginning.change)
    clear_unfinished(run.folder, below=True)
    if run.history:
        follow_record(run)
    state, states = (
        last_state(run, optimizers=optimizers)
        if run.history
        else (initial_state(run), dict[str, Tensors]())
    )
    _change(run, asked, beginning.accepted)
    norms = raise_norms(state.norms, state.round, run.settings, run.changes)
    weights = start_new_modalities(run, state.weights)
    return run, dataclasses.replace(state, norms=norms, weights=weights), states


def _change(run: Run, asked: Run, accepted: Callable[[], None]) -> None:
    """Give a run the settings that were asked for, and record what that changes."""
    done = len(run.history)
    changes = changes_of_settings(run.settings, asked.settings, done)
    if run.stop_when_flat != asked.stop_when_flat:
        _check_can_be_flat(asked)
        before, now = run.stop_when_flat, asked.stop_when_flat
        changes.append(Change(done, "stop_when_flat", before, now))
    sites = changes_of_sites(run.registrations, asked.registrations, run.former, done)
    if sites and run.settings.masked:
        raise ModelError(
            f"{run.folder}: sites cannot join or leave a masked run ({sites[0].what}): the "
            "difference of two sums would show one site's update. Start a new run with these "
            "sites, by --init from this one's model"
        )
    accepted()
    if changes or sites:
        run.settings, run.stop_when_flat = asked.settings, asked.stop_when_flat
        registered = run.registrations
        run.former = {s: r for s, r in run.known.items() if s not in asked.registrations}
        run.registrations = asked.registrations
        record_changes(run, [*changes, *sites, *changes_of_modalities(run, registered)])


def _check_can_be_flat(run: Run) -> None:
    if run.stop_when_flat and not any(r.validated for r in run.registrations.values()):
        raise ModelError(
            "--stop-when-flat: no site has validation cases, so that nothing tells when Dice is "
            "flat; leave it out, or train with --fold 0"
        )


def _check_same_run(stored: Run, asked: Run, *, change: bool) -> None:
    before, now = (
        {
            **dataclasses.asdict(run.settings),
            "fold": run.fold,
            "stop_when_flat": run.stop_when_flat,
            **{f"site {name}": str(r) for name, r in sorted(run.registrations.items())},
            "plans": run.plans.to_json(),
        }
        for run in (stored, asked)
    )
    may = {*CHANGEABLE, "stop_when_flat"} if change else set()
    if change:  # a site that takes part in one only joins or leaves
        may |= {n for n in before.keys() ^ now.keys() if n.startswith("site ")}
    differ = [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]
    if changed := [name for name in differ if name not in may]:
        # sites split their cases by fold and seed: that they differ, too, says nothing more
        if {"fold", "seed"} & {*changed}:
            changed = [name for name in changed if not name.startswith("site ")]
        differences = (
            name if name == "plans" else f"{name} ({before.get(name)}, now {now.get(name)})"
            for name in changed
        )
        raise ModelError(
            f"{stored.folder}: the run was started with other {', '.join(differences)}. Resume it "
            "with the same, or start a new run in another folder"
        )
