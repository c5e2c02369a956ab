"""The folder of a run: settings, history, and the states to resume or export from.

::

    RUN/run.json                       settings, sites, history; names the states below
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

import csv
import dataclasses
import hashlib
import io
import json
import logging
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch

from mixmfl.core.declarations import entries, text, within
from mixmfl.core.errors import MixmflError, ModelError
from mixmfl.core.files import read_json, write_json, write_text
from mixmfl.core.json_fields import MOST_NAME, Range, fields, named, shown, whole
from mixmfl.core.nan import mean, or_nan, or_none
from mixmfl.core.records import read_record, read_value
from mixmfl.core.spreadsheet import cell
from mixmfl.core.strict_json import MOST_BYTES
from mixmfl.core.text import MOST_LINE, one_line
from mixmfl.data.labels import LONGEST_NAME as LONGEST_LABEL
from mixmfl.data.labels import MOST_LABELS
from mixmfl.evaluation.largest_component import Largest
from mixmfl.evaluation.mask_quality import Confidence, Measured
from mixmfl.evaluation.reliability import Reliabilities
from mixmfl.evaluation.subset_dice import Expected, expect
from mixmfl.federated.secure_aggregation.signatures import MOST_SITES
from mixmfl.federated.server.changes import Change, rounds_flat, settings_of
from mixmfl.federated.server.initial_state import Start
from mixmfl.federated.server.update_checks import check_registration
from mixmfl.federated.state import (
    NETWORK,
    SPLIT,
    Fold,
    Personal,
    Registration,
    RunSettings,
    ServerState,
    first_state,
    learning_rate_of,
)
from mixmfl.federated.tensor_files import FORMAT, load_tensors, save_tensors
from mixmfl.networks.build import build_outline, check_memory
from mixmfl.networks.parameters import check_state
from mixmfl.networks.prototypes import State, memory_from_state, memory_to_state
from mixmfl.planning.bounds import MOST_ROUNDS
from mixmfl.planning.plans import Plans

log = logging.getLogger(__name__)


_RECENT = 10
"""Rounds that tell how long the next ones will take."""

_Any = Annotated[float, within(-1e300, 1e300)]

_Share = Annotated[float, within(0, 1)]


@dataclass(frozen=True)
class SiteRound:
    """A round at one site.

    Attributes:
        loss: Mean training loss; None where it is not known, in a masked run that of all sites.
        dice: Validation Dice of the merged model by label or region; None where no validation
            case has it; empty where this round was not validated.
        sent_bytes: Bytes that the site sent.
        received_bytes: Bytes that the site received for training.
        seconds: Seconds of training and validation.
        absent: Why the site did not take part in the round; empty where it did.
        epsilon: Epsilon that the site had spent after the round; None: it has no privacy budget.
        delta: The delta that this epsilon holds for.
        update_norm: Norm of the change of all weights that the site sent; None: not known, as in a
            masked run.
        memory_mb: Most memory that the site's GPU used; None: not known, as on a network, where
            sites do not tell, and on a CPU.
    """

    loss: _Any | None
    dice: Annotated[
        Mapping[Annotated[str, text(LONGEST_LABEL)], _Share | None], entries(0, MOST_LABELS)
    ]
    sent_bytes: Annotated[int, within(0, 2**63 - 1)]
    received_bytes: Annotated[int, within(0, 2**63 - 1)]
    seconds: Annotated[float, within(0, 2**63)]
    absent: Annotated[str, text(MOST_LINE, least=0)] = ""
    epsilon: _Any | None = None
    delta: _Any | None = None
    update_norm: _Any | None = None
    memory_mb: _Any | None = None


@dataclass
class Run:
    """A run and how far it is.

    Attributes:
        folder: Folder of the run.
        plans: Plans that the run was started with.
        settings: Settings of the rounds that follow; ``changes`` has what they were before.
        fold: Validation fold, or ``"all"``: every case trains.
        registrations: Registrations by site that takes part.
        history: For each round, how it went at every site.
        dice: Mean validation Dice by validated round.
        personal: How well each site's personalised model does; empty where none was asked for.
        stop_when_flat: Rounds without a higher validation Dice after which the run ends; 0: it has
            all its rounds.
        changes: What was changed between rounds, in order.
        start: What its first weights were taken from; None: they are random.
        former: Registrations of sites that took part in earlier rounds, and do not any more.
        split: How the sites split their cases into folds.
        seconds: By round how long it took; those of an earlier version are missing.
    """

    folder: Path
    plans: Plans
    settings: RunSettings
    fold: str
    registrations: Mapping[str, Registration]
    history: list[Mapping[str, SiteRound]] = field(default_factory=list)
    dice: dict[int, float] = field(default_factory=dict)
    personal: dict[str, Personal] = field(default_factory=dict)
    stop_when_flat: int = 0
    changes: list[Change] = field(default_factory=list)
    start: Start | None = None
    former: dict[str, Registration] = field(default_factory=dict)
    split: int = SPLIT
    seconds: dict[int, float] = field(default_factory=dict)

    @property
    def seconds_left(self) -> float:
        """Return how long the rounds that are left will take, if as long as the last ones did.

        NaN where that is not known.
        """
        recent = [self.seconds[number] for number in sorted(self.seconds)[-_RECENT:]]
        return mean(recent) * max(0, self.settings.rounds - len(self.history))

    @property
    def known(self) -> dict[str, Registration]:
        """Return the registrations of all sites that take part or did so."""
        return {**self.former, **self.registrations}

    @property
    def trained_modalities(self) -> set[str]:
        """Return the modalities of the sites that took part in a round."""
        took_part = {site for each in self.history for site, at in each.items() if not at.absent}
        return {m for site in took_part for m, n in self.known[site].modality_cases.items() if n}

    @property
    def is_flat(self) -> bool:
        """Return whether validation Dice has not risen for ``stop_when_flat`` rounds."""
        flat = rounds_flat(self.dice, self.best_round, self.changes)
        return 0 < self.stop_when_flat <= flat

    @property
    def best_round(self) -> int | None:
        """Return the round with the highest mean validation Dice, the first of equals.

        Where sites joined or left, rounds before are not compared: their Dice is of other cases.
        """
        since = max((change.after for change in self.changes if change.of_site), default=0)
        judged = {n: dice for n, dice in self.dice.items() if n > since and not math.isnan(dice)}
        return min(judged, key=lambda number: (-judged[number], number)) if judged else None

    @property
    def modality_cases(self) -> dict[str, int]:
        """Return how many training cases have each modality, also of sites that have left."""
        return {
            name: sum(r.modality_cases.get(name, 0) for r in self.known.values())
            for name in self.plans.modalities
        }

    @property
    def modality_sites(self) -> dict[str, int]:
        """Return how many sites have training cases with each modality of the plans."""
        return {
            name: sum(r.modality_cases.get(name, 0) > 0 for r in self.registrations.values())
            for name in self.plans.modalities
        }


def privacy_spent(run: Run, number: int) -> dict[str, dict[str, float]]:
    """Return epsilon and delta by site, of those that train with privacy, after a round."""
    return {
        site: {"epsilon": at_site.epsilon, "delta": at_site.delta}
        for sites in run.history[:number]
        for site, at_site in sorted(sites.items())
        if at_site.epsilon is not None and at_site.delta is not None
    }


def holds_run(folder: Path) -> bool:
    """Say whether a run was started in a folder."""
    return (folder / "run.json").is_file()


def record_time(folder: Path) -> int:
    """Return when the record of a run was last written, in ns; it is only ever replaced whole."""
    return (folder / "run.json").stat().st_mtime_ns


def start_run(run: Run, state: ServerState | None = None) -> None:
    """Write a new run's record.

    Args:
        run: A run without rounds.
        state: The state that it starts from, if not the random one that its plans and seed give.

    Raises:
        ModelError: The folder holds a run, or anything else.
    """
    if holds_run(run.folder):
        raise ModelError(
            f"{run.folder}: holds a run; nothing was written. Resume it by --resume, or name "
            "another folder"
        )
    plans_file = run.folder / "plans.json"
    begun = plans_file.is_file() and read_json(plans_file) == run.plans.to_json()
    ours = {NETWORK, "plans.json"} if begun else {NETWORK}  # as a kill at the very start leaves it
    names = run.folder.iterdir() if run.folder.is_dir() else ()
    found = sorted(p.name for p in names if not p.name.startswith(".") and p.name not in ours)
    if found:
        raise ModelError(
            f"{run.folder}: holds files that are no run ({', '.join(found[:3])}); nothing was "
            "written. Name another folder"
        )
    run.plans.save(plans_file)
    _write_record(run)
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


def open_run(folder: Path) -> Run:
    """Read a run.

    Raises:
        ModelError: The folder holds none, or one of another format.
    """
    if not holds_run(folder):
        raise ModelError(f"{folder}: holds no run (there is no run.json in it)")
    record = _read_record(folder)
    if record.get("format") != FORMAT:
        raise ModelError(
            f"{folder / 'run.json'}: format {shown(record.get('format'))} was found, {FORMAT} is "
            "needed"
        )
    plans = Plans.load(folder / "plans.json")
    # runs that were begun before it was recorded have none
    if record.get("plans_sha256", _digest(plans.to_json())) != _digest(plans.to_json()):
        raise ModelError(
            f"{folder / 'plans.json'}: is damaged or was changed; the run was started with other "
            "plans. Put those back, from a copy or from plans.json of the folder given by -i"
        )
    try:
        return _read_run(folder, record, plans)
    except MixmflError as error:
        raise ModelError(f"{folder / 'run.json'}: is damaged ({error})") from None


_Site = Annotated[str, text(MOST_NAME)]
_Sites = Annotated[Mapping[_Site, Registration], entries(0, MOST_SITES)]
_Number = Annotated[str, text(9, "[0-9]+", "a round's number")]


@dataclass(frozen=True)
class _Record:
    """``run.json``, but for its digests; ``Run`` says what is in it.

    Fields with a default are those that runs of before do not have.
    """

    format: Annotated[int, within(FORMAT, FORMAT)]
    settings: Any  # a record has every setting; only in a message some have a default
    fold: Fold
    sites: _Sites
    dice: Annotated[Mapping[_Number, _Share | None], entries(0, MOST_ROUNDS)]
    personal: Annotated[Mapping[_Site, tuple[_Share | None, _Share | None]], entries(0, MOST_SITES)]
    history: Annotated[
        tuple[Annotated[Mapping[_Site, SiteRound], entries(0, MOST_SITES)], ...],
        entries(0, MOST_ROUNDS),
    ]
    split: Annotated[int, within(1, SPLIT)] = 1
    former: _Sites = field(default_factory=dict)
    seconds: Annotated[
        Mapping[_Number, Annotated[float, within(0, 2**63)]], entries(0, MOST_ROUNDS)
    ] = field(default_factory=dict)
    stop_when_flat: Annotated[int, within(0, MOST_ROUNDS)] = 0
    changes: Annotated[tuple[Change, ...], entries(0, 10**6)] = ()
    start: Start | None = None


def _read_run(folder: Path, content: Mapping[str, Any], plans: Plans) -> Run:
    """Return the run that a record describes.

    Raises:
        MixmflError: A field is wrong.
    """
    digests = ("sha256", "plans_sha256")
    stored = {name: value for name, value in content.items() if name not in digests}
    record = read_record(_Record, stored, "run", ModelError)
    for site, registration in (*record.sites.items(), *record.former.items()):
        if site.startswith(".") or set(site) & set("/\\"):  # names a file
            raise ModelError(f"{shown(site)} cannot name a site")
        check_registration(site, registration, plans)
    for by_site in (*record.history, record.personal):
        fields(by_site, (), "sites", may=(*record.sites, *record.former))
    settings = read_record(RunSettings, record.settings, "settings", ModelError, whole=True)
    plans.configuration(settings.configuration)
    whole(len(record.history), Range(0, settings.rounds), "rounds in the history", ModelError)
    return Run(
        folder=folder,
        plans=plans,
        settings=settings,
        fold=record.fold,
        registrations=record.sites,
        history=list(record.history),
        dice={int(number): or_nan(dice) for number, dice in record.dice.items()},
        personal={
            site: Personal(or_nan(dice), or_nan(before))
            for site, (dice, before) in record.personal.items()
        },
        stop_when_flat=record.stop_when_flat,
        changes=list(record.changes),
        start=record.start,
        former=dict(record.former),
        split=record.split,
        seconds={int(number): seconds for number, seconds in record.seconds.items()},
    )


def save_round(
    run: Run,
    state: ServerState,
    optimizers: Mapping[str, State],
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
    folder = _round_folder(run, state.round)
    _save_state(run, state)
    for site, optimizer in optimizers.items():
        save_tensors(folder / "optimizers" / f"{site}.safetensors", optimizer)
    run.history.append(sites)
    run.personal.clear()  # they were made from the best of fewer rounds
    if dice is not None:
        run.dice[state.round] = dice
    run.seconds[state.round] = seconds
    _write_record(run)
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
    _write_record(run)


def _save_state(run: Run, state: ServerState) -> None:
    norms = {
        f"norms.{block}": torch.tensor(found, dtype=torch.float64)
        for block, found in state.norms.items()
    }
    save_tensors(
        _round_folder(run, state.round) / "server.safetensors",
        {**state.weights, **memory_to_state(state.memory), **norms},
    )


def save_personal(run: Run, site: str, personal: Personal, own: State) -> None:
    """Save a site's personalised model, then record how well it does."""
    save_tensors(_personal_file(run, site), own)
    record_personal(run, site, personal)


def record_personal(run: Run, site: str, personal: Personal) -> None:
    """Record how well a personalised model does that is stored at its site."""
    run.personal[site] = personal
    _write_record(run)


def load_state_of(run: Run, number: int) -> ServerState:
    """Return the server's state after a round.

    Raises:
        ModelError: That round's state is not stored, or is damaged.
    """
    file = _round_folder(run, number) / "server.safetensors"
    if not file.is_file():
        stored = ", ".join(map(str, kept_rounds(run))) or "none yet"
        raise ModelError(
            f"{run.folder}: the state of round {number} is not stored; stored are: {stored}"
        )
    tensors = load_tensors(file)
    norms = {
        name.removeprefix("norms."): tuple(tensors.pop(name).flatten().tolist())
        for name in sorted(tensors)
        if name.startswith("norms.")
    }
    memory = {name: t for name, t in tensors.items() if name.startswith("memory.")}
    weights = {name: t for name, t in tensors.items() if name not in memory}
    try:
        check_state(build_outline(run.plans, run.settings.configuration), weights)
        check_memory(memory, run.plans, run.settings.configuration)
    except ValueError as error:
        raise _strange(file, error) from None
    return ServerState(number, weights, memory_from_state(memory), norms)


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
    file = _personal_file(run, site)
    own = load_tensors(file)
    try:
        check_state(build_outline(run.plans, run.settings.configuration), own, whole=False)
    except ValueError as error:
        raise _strange(file, error) from None
    return own


def _strange(file: Path, error: ValueError) -> ModelError:
    return ModelError(f"{file}: is not of the network that the plans describe ({error})")


def save_measured(
    run: Run, number: int, measured: Measured, by_site: Mapping[str, Measured]
) -> None:
    """Save what was measured of a round's model on validation cases, of all sites and of each."""
    sites = {site: each.to_json() for site, each in by_site.items()}
    content = {"round": number, **measured.to_json(), "sites": sites}
    write_json(run.folder / "expected.json", {**content, "sha256": _digest(content)})
    write_text(run.folder / "subsets.csv", subsets_table(measured, by_site))


def load_measured(run: Run, number: int) -> Measured | None:
    """Return what ``save_measured`` saved of a round; None where that is not the round measured.

    Raises:
        ModelError: The file is damaged.
    """
    found = _load_measured(run, number)
    return None if found is None else found[0]


def load_measured_sites(run: Run, number: int) -> dict[str, Measured] | None:
    """Return what each site measured of a round; None where that is not the round measured.

    Raises:
        ModelError: The file is damaged.
    """
    found = _load_measured(run, number)
    return None if found is None else found[1]


def _load_measured(run: Run, number: int) -> tuple[Measured, dict[str, Measured]] | None:
    """Return what was measured at all sites and at each.

    Raises:
        ModelError: The file is damaged.
    """
    file = run.folder / "expected.json"
    if not file.is_file():
        return None
    content = read_json(file, ModelError, most_bytes=MOST_BYTES)
    try:
        if content["sha256"] != _digest(content):
            raise ValueError("it is not what was written")
        if content["round"] != number:
            return None
        # those of earlier versions have no sites, and nothing of reliability and largest components
        found = named(content.get("sites", {}), Range(0, MOST_SITES), "sites", ModelError)
        sites = {site: read_measured_json(each, one_line(site)) for site, each in found.items()}
        return read_measured_json(content, "all sites"), sites
    except (KeyError, ValueError, ModelError) as error:
        raise ModelError(
            f"{file}: is damaged ({error}); remove it, and mixmfl_train_federated --resume "
            "measures again"
        ) from None


def read_measured_json(content: Any, source: str) -> Measured:
    """Read what ``Measured.to_json`` wrote, maybe among other fields.

    Raises:
        ModelError: A field is missing or wrong.
    """
    content = named(content, Range(0, 10), source, ModelError)
    if missing := {"expected", "confidence"} - content.keys():
        raise ModelError(f"{source}: {sorted(missing)[0]} is missing")
    return Measured(
        read_value(Expected, content["expected"], f"{source}: expected", ModelError),
        read_value(Confidence, content["confidence"], f"{source}: confidence", ModelError),
        read_value(
            Reliabilities, content.get("reliability", {}), f"{source}: reliability", ModelError
        ),
        read_value(Largest, content.get("largest", {}), f"{source}: largest", ModelError),
    )


def load_optimizers(run: Run, number: int) -> dict[str, State]:
    """Return the sites' optimizer states after a round."""
    folder = _round_folder(run, number) / "optimizers"
    trained = {
        site
        for sites in run.history[:number]
        for site, at_site in sites.items()
        if at_site.loss is not None or at_site.epsilon is not None
    }
    return {site: load_tensors(folder / f"{site}.safetensors") for site in sorted(trained)}


def last_state(run: Run, *, optimizers: bool) -> tuple[ServerState, dict[str, State]]:
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


def choose_round(run: Run, which: str) -> int:
    """Return the round that ``best``, ``last`` or a number means.

    Raises:
        ModelError: There is no such round.
    """
    if not run.history:
        raise ModelError(f"{run.folder}: no round is done yet")
    if which == "last":
        return len(run.history)
    if which == "best":
        # without validation cases nothing is known to be better than the last
        return run.best_round or len(run.history)
    if not which.isdecimal():
        raise ModelError(f"round {which!r}: give best, last or a number")
    return int(which)


def progress_table(run: Run) -> str:
    """Return the history as CSV: a row per round and site."""
    names = list(run.plans.labels.foreground)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = [f"dice_{name}" for name in names]
    writer.writerow(
        [
            "round",
            "site",
            "learning_rate",
            "local_steps",
            "loss",
            *columns,
            "federation_dice",
            "sent_bytes",
            "received_bytes",
            "seconds",
            "absent",
            "epsilon",
            "update_norm",
            "gpu_memory_mb",
            "round_seconds",
        ]
    )
    for number, sites in enumerate(run.history, start=1):
        settings = settings_of(number - 1, run.settings, run.changes)
        federation = or_none(run.dice.get(number, math.nan))
        for site, at_site in sites.items():
            dice: Sequence[float | None] = [at_site.dice.get(name) for name in names]
            writer.writerow(
                [
                    number,
                    cell(site),
                    f"{learning_rate_of(number - 1, settings):.6g}",
                    settings.local_steps,
                    "" if at_site.loss is None else f"{at_site.loss:.5f}",
                    *("" if value is None else f"{value:.4f}" for value in (*dice, federation)),
                    at_site.sent_bytes,
                    at_site.received_bytes,
                    f"{at_site.seconds:.2f}",
                    cell(at_site.absent),
                    "" if at_site.epsilon is None else f"{at_site.epsilon:.3f}",
                    "" if at_site.update_norm is None else f"{at_site.update_norm:.5g}",
                    "" if at_site.memory_mb is None else f"{at_site.memory_mb:.0f}",
                    f"{run.seconds[number]:.2f}" if number in run.seconds else "",
                ]
            )
    return text.getvalue()


EACH_CASE = "all of each case"
"""What stands for the modalities in a table where every case is from all that it has."""


def subsets_table(measured: Measured, by_site: Mapping[str, Measured]) -> str:
    """Return Dice from subsets of modalities as CSV: a row per site, subset and label.

    Args:
        measured: What was measured at all sites; their rows have no site.
        by_site: The same of each site.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["site", "modalities", "label", "mean_dice", "median_dice", "low_dice", "cases"]
    )
    for site, found in {"": measured, **by_site}.items():
        for label, sums in found.largest.items():
            if sums.cases:
                average = f"{sums.dice / sums.cases:.4f}"
                writer.writerow([cell(site), EACH_CASE, cell(label), average, "", "", sums.cases])
        for each in found.expected:
            subset = "+".join(each.modalities)
            for label, dice in expect([each], each.modalities).dice.items():  # itself alone
                numbers = f"{dice.median:.3f}", f"{dice.low:.3f}", dice.cases
                writer.writerow([cell(site), subset, cell(label), "", *numbers])
    return text.getvalue()


def _write_record(run: Run) -> None:
    content: dict[str, Any] = {
        "format": FORMAT,
        "settings": dataclasses.asdict(run.settings),
        "fold": run.fold,
        "split": run.split,
        "plans_sha256": _digest(run.plans.to_json()),
        "sites": {site: dataclasses.asdict(r) for site, r in run.registrations.items()},
        "former": {site: dataclasses.asdict(r) for site, r in run.former.items()},
        "dice": {str(n): or_none(dice) for n, dice in run.dice.items()},
        "seconds": {str(n): seconds for n, seconds in run.seconds.items()},
        "personal": {
            site: [or_none(personal.dice), or_none(personal.dice_before)]
            for site, personal in run.personal.items()
        },
        "stop_when_flat": run.stop_when_flat,
        "changes": [dataclasses.asdict(change) for change in run.changes],
        "start": None if run.start is None else dataclasses.asdict(run.start),
        "history": [
            {site: dataclasses.asdict(at_site) for site, at_site in sites.items()}
            for sites in run.history
        ],
    }
    content["sha256"] = _digest(content)
    if run.history:
        write_json(_round_folder(run, len(run.history)) / "run.json", content)
    write_json(run.folder / "run.json", content)


def _digest(content: Mapping[str, Any]) -> str:
    """Return the SHA-256 of JSON content, but for the field that holds it."""
    text = json.dumps({name: value for name, value in content.items() if name != "sha256"})
    return hashlib.sha256(text.encode()).hexdigest()


def _read_record(folder: Path) -> dict[str, Any]:
    """Read a run's record; where it is damaged, the newest that a round was saved with."""
    rounds = sorted((folder / "rounds").glob("*/run.json"), reverse=True)
    for file in (folder / "run.json", *rounds):
        try:
            record = read_json(file, ModelError, most_bytes=MOST_BYTES)
            if record.get("format") == FORMAT and record.get("sha256") != _digest(record):
                raise ModelError(f"{file}: is damaged; it is not what was written")
        except ModelError as error:
            log.warning("%s", error)
            continue
        return record
    raise ModelError(f"{folder / 'run.json'}: is damaged, and no round has a record that is not")


def _drop_states(run: Run) -> None:
    """Remove the states but those of the last two rounds, of the best, and of ``keep_every``."""
    last, keep_every = len(run.history), run.plans.training.keep_every
    folders = sorted(f for f in (run.folder / "rounds").iterdir() if f.name.isdecimal())
    for folder in folders:  # also one that a killed process had begun to remove
        number = int(folder.name)
        if number >= last - 1:  # the one before the last serves where the last is damaged
            continue
        if number != run.best_round and number % keep_every:
            shutil.rmtree(folder)
        else:  # nothing resumes from here, and only that needs the optimizers
            shutil.rmtree(folder / "optimizers", ignore_errors=True)


def _stored_rounds(run: Run) -> list[int]:
    files = (run.folder / "rounds").glob("*/server.safetensors")
    return sorted(int(file.parent.name) for file in files if file.parent.name.isdecimal())


def _round_folder(run: Run, number: int) -> Path:
    return run.folder / "rounds" / f"{number:05d}"


def _personal_file(run: Run, site: str) -> Path:
    return run.folder / "personal" / f"{site}.safetensors"
