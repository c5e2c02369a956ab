"""The folder of a run, and the states in it to resume or export from.

::

    RUN/run.json                       settings, sites, history; names the states below
    RUN/options.json                   what was asked of it by command
    RUN/plans.json                     the plans it was started with
    RUN/rounds/00012/server.safetensors
    RUN/rounds/00012/optimizers/<site>.safetensors
    RUN/personal/<site>.safetensors
    RUN/expected.json                  Dice from subsets of modalities, of one round
    RUN/network/                       orders and log of a run over a network
    RUN/progress.csv, progress.png
    RUN/model.safetensors

``run.json`` is written after the states it names, so an interrupted round leaves the one before.
"""

import dataclasses
import logging
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch

from mixmfl.core.errors import ModelError
from mixmfl.core.files import read_json, write_text
from mixmfl.core.tensor_store import Tensors, form_of, only, stored
from mixmfl.core.text import quoted
from mixmfl.federated.secure_aggregation.protocol import check_stored_optimizer
from mixmfl.federated.server.changes import Change
from mixmfl.federated.server.kept_options import OPTIONS_FILE
from mixmfl.federated.server.run import Run, SiteRound
from mixmfl.federated.server.run_record import holds_run, round_folder, write_record
from mixmfl.federated.server.run_tables import progress_table
from mixmfl.federated.server.update_norms import NORM_ROUNDS
from mixmfl.federated.state import (
    NETWORK,
    Personal,
    ServerState,
    first_state,
)
from mixmfl.federated.tensor_files import load_tensors, save_tensors
from mixmfl.networks.build import check_memory, parameter_shapes
from mixmfl.networks.parameters import check_state
from mixmfl.networks.prototypes import State, memory_from_state, memory_to_state

log = logging.getLogger(__name__)


def check_can_start(run: Run) -> None:
    """Check that the folder of a new run is free.

    Raises:
        ModelError: The folder holds a run, or anything else.
    """
    if holds_run(run.folder):
        raise ModelError(
            f"{run.folder}: holds a run; nothing was written. Resume it by --resume, or name "
            "another folder"
        )
    plans_file = run.folder / "plans.json"
    ours = {NETWORK, OPTIONS_FILE}
    if plans_file.is_file() and read_json(plans_file) == run.plans.to_json():
        ours.add("plans.json")  # as a kill at the very start leaves it
    names = run.folder.iterdir() if run.folder.is_dir() else ()
    strays = sorted(p.name for p in names if not p.name.startswith(".") and p.name not in ours)
    if strays:
        raise ModelError(
            f"{run.folder}: holds files that are no run ({', '.join(strays[:3])}); nothing was "
            "written. Name another folder"
        )


def start_run(run: Run, state: ServerState | None = None) -> None:
    """Write a new run's record.

    Args:
        run: A run without rounds, which ``check_can_start`` lets begin.
        state: The state that it starts from, if not the random one that its plans and seed give.
    """
    run.plans.save(run.folder / "plans.json")
    write_record(run)
    if state is not None:
        _save_state(run, state)


def initial_state(run: Run) -> ServerState:
    """Return the state before the first round.

    Raises:
        ModelError: It was taken from another network, and is not stored any more.
    """
    if run.start is None:
        return first_state(run.plans, run.settings)
    try:
        return load_state_of(run, 0)
    except ModelError as error:
        raise ModelError(
            f"{run.folder}: began from the weights of {run.start.file}, which cannot be read "
            f"({error}). No round is done; remove the folder and begin again with --init"
        ) from None


def save_round(
    run: Run,
    state: ServerState,
    optimizers: Mapping[str, Tensors],
    sites: Mapping[str, SiteRound],
    dice: float | None,
    seconds: float,
) -> None:
    """Save all that is needed to resume after a round, then record it and drop older states.

    Args:
        run: The run; the round is added to its history.
        state: The server's state after the round.
        optimizers: Optimizer states by site.
        sites: How the round went at each site.
        dice: Mean validation Dice, None where the round was not validated.
        seconds: How long the round took.
    """
    folder = round_folder(run, state.round)
    _save_state(run, state)
    for site, optimizer in optimizers.items():
        save_tensors(folder / "optimizers" / f"{site}.safetensors", optimizer)
    run.history.append(sites)
    run.personal.clear()  # they were made from the best of fewer rounds
    if dice is not None:
        run.dice[state.round] = dice
    run.seconds[state.round] = seconds
    write_record(run)
    follow_record(run)


def follow_record(run: Run) -> None:
    """Drop the states that are not needed any more, and write the table of the rounds.

    A kill may come between this and the record, so that resuming does it, too.
    """
    _drop_states(run)
    write_text(run.folder / "progress.csv", progress_table(run))


def record_changes(run: Run, changes: Sequence[Change]) -> None:
    """Record what holds from the next round on; it is in the run's settings already."""
    run.changes += changes
    write_record(run)


def _save_state(run: Run, state: ServerState) -> None:
    norms = {
        f"norms.{block}": torch.tensor(medians, dtype=torch.float64)
        for block, medians in state.norms.items()
    }
    save_tensors(
        round_folder(run, state.round) / "server.safetensors",
        {**state.weights, **memory_to_state(state.memory), **norms},
    )


def save_personal(run: Run, site: str, personal: Personal, own: State) -> None:
    """Save a site's personalised model, then record how well it does."""
    save_tensors(_personal_file(run, site), own)
    record_personal(run, site, personal)


def record_personal(run: Run, site: str, personal: Personal) -> None:
    """Record how well a personalised model does that is stored at its site."""
    run.personal[site] = personal
    write_record(run)


def load_state_of(run: Run, number: int) -> ServerState:
    """Return the server's state after a round.

    Raises:
        ModelError: That round's state is not stored, or is damaged.
    """
    file = round_folder(run, number) / "server.safetensors"
    if not file.is_file():
        stored = ", ".join(map(str, kept_rounds(run))) or "none yet"
        raise ModelError(
            f"{run.folder}: the state of round {number} is not stored; stored are: {stored}"
        )
    tensors = load_tensors(file, partial(_check_server_state, run))
    norms = {
        name.removeprefix("norms."): tuple(tensors.pop(name).flatten().tolist())
        for name in sorted(tensors)
        if name.startswith("norms.")
    }
    memory = {name: t for name, t in tensors.items() if name.startswith("memory.")}
    weights = {name: t for name, t in tensors.items() if name not in memory}
    return ServerState(number, weights, memory_from_state(memory), norms)


def _check_server_state(run: Run, tensors: Tensors) -> None:
    """Check that a stored state is of the network that the plans describe; none of it is read.

    Raises:
        ValueError: A tensor is missing, is not planned, or has another shape or type.
    """
    norms = [name for name in tensors if name.startswith("norms.")]
    for name in norms:
        shape, kind = form_of(tensors, name)
        if len(shape) != 1 or shape[0] > NORM_ROUNDS or kind != torch.float64:
            raise ValueError(f"{quoted(name)} has the shape {shape} of {kind}")
    memory = [name for name in tensors if name.startswith("memory.")]
    weights = only(tensors, tensors.keys() - {*norms, *memory})
    check_state(parameter_shapes(run.plans, run.settings.configuration), weights)
    check_memory(only(tensors, memory), run.plans, run.settings.configuration)


def load_personal(run: Run, site: str) -> State:
    """Return the blocks of a site's personalised model.

    Raises:
        ModelError: The site has none, or the global model is better on its validation cases.
    """
    if site not in run.personal:
        others = ", ".join(run.personal) or "none"
        raise ModelError(
            f"{run.folder}: site {site!r} has no personalised model; sites that have one: "
            f"{others}. mixmfl_train_federated --personalize makes them, where a site has "
            "validation cases"
        )
    personal = run.personal[site]
    if not personal.kept:
        raise ModelError(
            f"{run.folder}: site {site!r} does better with the global model (validation Dice "
            f"{personal.dice_before:.3f}, personalised model {personal.dice:.3f}); export the "
            "global model, without --site"
        )
    shapes = parameter_shapes(run.plans, run.settings.configuration)
    return load_tensors(_personal_file(run, site), partial(check_state, shapes, whole=False))


def load_optimizers(run: Run, number: int) -> dict[str, Tensors]:
    """Return the sites' optimizer states after a round; checked here, and read on demand."""
    folder = round_folder(run, number) / "optimizers"
    trained = {
        site
        for sites in run.history[:number]
        for site, at_site in sites.items()
        if at_site.loss is not None or at_site.epsilon is not None
    }
    check = partial(check_stored_optimizer, run.plans, run.settings.configuration)
    return {
        site: stored(load_tensors(folder / f"{site}.safetensors", check), run.folder)
        for site in sorted(trained)
    }


def last_state(run: Run, *, optimizers: bool) -> tuple[ServerState, dict[str, Tensors]]:
    """Return the states to resume a run from: the server's after its last round, the optimizers'.

    Where these are damaged, those of the round before are taken, and the run forgets the rounds
    after it.

    Args:
        run: A run with at least one round; shortened where its last states are damaged.
        optimizers: Whether the sites' optimizer states are stored with the run.

    Raises:
        ModelError: No round's states can be read.
    """
    for number in reversed(kept_rounds(run)):
        try:
            state = load_state_of(run, number)
            optimizer_states = load_optimizers(run, number) if optimizers else {}
        except ModelError as error:
            log.warning("round %d cannot be resumed from: %s", number, error)
            continue
        if number < len(run.history):
            log.warning("%s: resumes from round %d", run.folder, number)
            del run.history[number:]
            run.dice = {at: dice for at, dice in run.dice.items() if at <= number}
            run.seconds = {at: took for at, took in run.seconds.items() if at <= number}
            run.subset_dice = {at: dice for at, dice in run.subset_dice.items() if at <= number}
            run.personal.clear()
            run.changes = [
                dataclasses.replace(change, after=min(change.after, number))
                for change in run.changes
            ]
            (run.folder / "expected.json").unlink(missing_ok=True)  # of a round that is repeated
        return state, optimizer_states
    raise ModelError(f"{run.folder}: no state of its {len(run.history)} rounds can be resumed from")


def kept_rounds(run: Run) -> list[int]:
    """Return the rounds whose states are stored and recorded."""
    return [number for number in _stored_rounds(run) if number <= len(run.history)]


def _drop_states(run: Run) -> None:
    """Remove the states but those of the last two rounds, of the best, and of ``keep_every``."""
    last, keep_every = len(run.history), run.plans.training.keep_every
    for number, folder in _round_folders(run):  # also one that a kill left half removed
        if number >= last - 1:  # the one before the last serves where the last is damaged
            continue
        if number != run.best_round and number % keep_every:
            shutil.rmtree(folder)
        else:  # nothing resumes from here, and only that needs the optimizers
            shutil.rmtree(folder / "optimizers", ignore_errors=True)


def _stored_rounds(run: Run) -> list[int]:
    return [n for n, folder in _round_folders(run) if (folder / "server.safetensors").exists()]


def _round_folders(run: Run) -> list[tuple[int, Path]]:
    """Return the folders of rounds with their numbers, in order, whatever is left in them."""
    folders = (run.folder / "rounds").glob("*")
    return sorted((int(folder.name), folder) for folder in folders if folder.name.isdecimal())


def _personal_file(run: Run, site: str) -> Path:
    return run.folder / "personal" / f"{site}.safetensors"
