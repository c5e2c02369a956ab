"""The server's side of a run, however its sites are reached: tasks out, answers in."""

import dataclasses
import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mixmfl.core.errors import AggregationError, QuorumError
from mixmfl.core.process_memory import give_back_memory
from mixmfl.core.tensor_store import Tensors
from mixmfl.core.text import MOST_LINE, one_line
from mixmfl.evaluation.mask_quality import Measured
from mixmfl.evaluation.subset_dice import medians
from mixmfl.federated.aggregation import Rule
from mixmfl.federated.messages import Message
from mixmfl.federated.server.checkpoint import (
    follow_record,
    load_state_of,
    save_round,
)
from mixmfl.federated.server.comparison import (
    comparison_tasks,
    load_compared_sites,
    read_compared_sites,
    save_comparison,
)
from mixmfl.federated.server.export import export_model
from mixmfl.federated.server.measured import load_measured_sites, save_measured
from mixmfl.federated.server.merge import (
    merge_round,
    rounded_weights,
    train_task,
    validation_task,
)
from mixmfl.federated.server.progress_plot import draw_progress
from mixmfl.federated.server.run import Run, SiteRound, SubsetMedians, choose_round
from mixmfl.federated.server.run_page import write_run_page
from mixmfl.federated.server.run_record import open_run, write_record
from mixmfl.federated.server.secure_aggregation import (
    check_masked,
    gather_participants,
    keys_tasks,
    masked_tasks,
    merge_sums,
    sum_blocks,
)
from mixmfl.federated.server.subset_validation import measure_task, merge_measured, read_measured
from mixmfl.federated.server.update_checks import check_validation
from mixmfl.federated.state import Diagnostics, ServerState, Site, mean_dice, read_dice
from mixmfl.networks.build import prototype_sizes
from mixmfl.networks.prototypes import PrototypeMemory
from mixmfl.training.trainer import BatchLoss
from mixmfl.training.validation import DiceSum

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answer:
    """A site's reply, and what it cost.

    Attributes:
        message: The reply.
        sent_bytes: Bytes that the site sent.
        received_bytes: Bytes that the site received.
        seconds: Seconds from the task to the reply.
        memory_mb: Most memory that the site's GPU used for it; None: not known.
    """

    message: Message
    sent_bytes: int
    received_bytes: int
    seconds: float
    memory_mb: float | None = None


@dataclass(frozen=True)
class Answers:
    """The answers of all sites that were asked.

    Attributes:
        came: Answers by site.
        absent: Why there is no usable answer, by site.
    """

    came: Mapping[str, Answer]
    absent: Mapping[str, str] = field(default_factory=dict)


Ask = Callable[[Mapping[str, Message]], Answers]
"""Brings tasks to sites, by name, and their answers back."""


@dataclass(frozen=True)
class Variation:
    """What research changes of the method, throughout a run.

    Attributes:
        edit_memory: Applied to the merged prototypes after every round, for an ablation.
        rule: Merges the sites' changes of a block, in place of the rule that the plans name; not
            in a masked run, where the server sees their sum alone.
        between: Given the run and what brings tasks to its sites, returns what does so instead: it
            may change tasks and answers, keep what stays at a site, or train in another way. Only
            in a simulation.
        loss: Given a site, returns the loss of its batches, in place of that on masks. Only in a
            plain simulation on one device.
    """

    edit_memory: Callable[[PrototypeMemory], PrototypeMemory] | None = None
    rule: Rule | None = None
    between: Callable[[Run, Ask], Ask] | None = None
    loss: Callable[[Site], BatchLoss] | None = None


AS_PLANNED = Variation()
"""The method as the plans have it."""


def train_rounds(
    run: Run,
    state: ServerState,
    ask: Ask,
    optimizers: Mapping[str, Tensors],
    *,
    report: Callable[[Run], None] = lambda run: None,
    pause: Callable[[], bool] = lambda: False,
    quorum: int = 1,
    every_subset: bool = False,
    variation: Variation = AS_PLANNED,
) -> bool:
    """Train for the rounds that are left, or until validation Dice is flat.

    The last round is validated, also where a run is resumed to end at a round that was not.

    Args:
        run: The run; every round is added to it and saved.
        state: The server's state after the rounds that are done.
        ask: Sends tasks to the sites and returns their answers.
        optimizers: Optimizer states by site, where they are stored with the run; ``ask`` changes
            them.
        report: Called after every round.
        pause: Asked before every round whether to stop here.
        quorum: Number of sites that must take part in a round; in a masked one all must.
        every_subset: Whether sites validate from every subset of modalities, too.
        variation: What research changes of the method.

    Returns:
        Whether all rounds are done that the run is to have.

    Raises:
        QuorumError: Fewer than ``quorum`` sites answered with what can be merged.
    """
    while state.round < run.settings.rounds and not run.is_flat:
        if pause():
            return False
        state = _one_round(run, state, ask, optimizers, quorum, every_subset, variation)
        give_back_memory()
        report(run)
    _validate_last(run, state, ask, every_subset)
    return True


def finish(run: Run, ask: Ask, beside: Path | None = None) -> Path:
    """Draw how a run went, export the model of its best round, and write the page of both.

    Returns the model's file.

    Args:
        run: A run with at least one round.
        ask: Sends tasks to the sites, which measure the model's Dice from every subset of
            modalities, unless that was done before.
        beside: Folder of a run of the same fold and another configuration that has ended, with
            which and with whose mean the sites compare this one's model; None: there is none.
    """
    draw_progress(run, run.folder / "progress.png")
    _measure(run, ask)
    if beside is not None:
        _compare(run, open_run(beside), ask)
    model = run.folder / "model.safetensors"
    export_model(run.folder, "best", model)
    write_run_page(run)
    return model


def _measure(run: Run, ask: Ask) -> None:
    """Have sites measure the model, unless they did: who was away then is asked now."""
    number = choose_round(run, "best")
    measured = load_measured_sites(run, number)
    asked = [
        site
        for site, registration in run.registrations.items()
        if measured is None or (registration.validated and site not in measured)
    ]
    if not asked:
        return
    measured = dict(measured or {})
    measured |= _measured(run, load_state_of(run, number), ask, asked)
    save_measured(run, number, _merged(measured), measured)


def _measured(
    run: Run, state: ServerState, ask: Ask, asked: Collection[str]
) -> dict[str, Measured]:
    """Have sites measure a state's Dice from every subset; return what they measured."""
    measured = {}
    answers = ask({site: measure_task(state, site, run.known) for site in asked})
    for site, answer in answers.came.items():
        try:
            labelled = run.registrations[site].labelled
            measured[site] = read_measured(site, answer.message, state.round, run.plans, labelled)
        except AggregationError as error:
            log.warning("%s: the Dice that it measured are left out: %s", site, error)
    return measured


def _merged(measured: Mapping[str, Measured]) -> Measured:
    return merge_measured([measured[site] for site in sorted(measured)])


def _compare(run: Run, beside: Run, ask: Ask) -> None:
    """Have sites compare two models, unless they did: who was away is asked after a resume."""
    compared = load_compared_sites(run, beside)
    asked = [
        site
        for site, registration in run.registrations.items()
        if site in beside.known
        and (compared is None or (registration.validated and site not in compared))
    ]
    if compared is not None and not asked:
        return
    states = (load_state_of(each, choose_round(each, "best")) for each in (run, beside))
    answers = ask(comparison_tasks(run, beside, asked, *states))
    new = read_compared_sites(run, {site: each.message for site, each in answers.came.items()})
    if new or not asked:
        save_comparison(run, beside, {**(compared or {}), **new})


def _one_round(
    run: Run,
    state: ServerState,
    ask: Ask,
    optimizers: Mapping[str, Tensors],
    quorum: int,
    every_subset: bool,
    variation: Variation,
) -> ServerState:
    """Let the sites train, merge their replies, validate where it is time to, and save."""
    began = time.monotonic()
    sent = rounded_weights(state, run.settings)
    state, diagnostics, trained = (
        _masked_round(run, state, sent, ask)
        if run.settings.masked
        else _plain_round(run, state, sent, ask, quorum, variation.rule)
    )
    if variation.edit_memory is not None:
        state = dataclasses.replace(state, memory=variation.edit_memory(state.memory))
    every = run.plans.training.validate_every
    due = state.round % every == 0 or state.round == run.settings.rounds
    here = {site for answers in trained for site in answers}  # the others are not waited for
    judged = _validate(run, state, ask, here) if due else {}
    dice = _read_validation(run, state.round, judged)
    measured = _measured(run, state, ask, sorted(here)) if due and every_subset else {}
    sites = {
        site: _site_round(
            diagnostics,
            site,
            dice.get(site, {}),
            [answers[site] for answers in trained if site in answers],
            judged.get(site),
            measured.get(site),
        )
        for site in run.registrations
    }
    if measured:
        run.subset_dice[state.round] = _medians(_merged(measured))
    mean = mean_dice(dice.values()) if due else None
    save_round(run, state, optimizers, sites, mean, time.monotonic() - began)
    if measured:  # after the round: one that is repeated has other weights
        save_measured(run, state.round, _merged(measured), measured)
    return state


def _validate(
    run: Run, state: ServerState, ask: Ask, sites: Collection[str]
) -> Mapping[str, Answer]:
    """Have sites measure a state's Dice on their validation cases; return their answers."""
    sent = rounded_weights(state, run.settings)
    return ask({site: validation_task(sent, site, run.known) for site in sorted(sites)}).came


def _validate_last(run: Run, state: ServerState, ask: Ask, every_subset: bool) -> None:
    """Validate the last round where that was not done, and record it."""
    if not run.history or state.round in run.dice:
        return
    last = run.history[-1]
    here = [site for site in run.registrations if site in last and not last[site].absent]
    dice = _read_validation(run, state.round, _validate(run, state, ask, here))
    measured = _measured(run, state, ask, here) if every_subset else {}
    run.history[-1] = {
        site: dataclasses.replace(
            each, dice=_means(dice.get(site, {})), subset_dice=_medians(measured.get(site))
        )
        for site, each in last.items()
    }
    if measured:
        run.subset_dice[state.round] = _medians(_merged(measured))
    run.dice[state.round] = mean_dice(dice.values())
    write_record(run)
    follow_record(run)
    if measured:
        save_measured(run, state.round, _merged(measured), measured)


def _means(dice: Mapping[str, DiceSum]) -> dict[str, float | None]:
    """Return the mean Dice of each label or region over a site's cases; None without any."""
    return {name: each.total / each.cases if each.cases else None for name, each in dice.items()}


def _site_round(
    diagnostics: Diagnostics,
    site: str,
    dice: Mapping[str, DiceSum],
    trained: Sequence[Answer],
    judged: Answer | None,
    measured: Measured | None,
) -> SiteRound:
    """Return what is recorded of a round at a site.

    Args:
        diagnostics: What the round showed.
        site: Name of the site.
        dice: Its sums of Dice by label or region; empty: they are not known.
        trained: Its answers in training, step by step.
        judged: Its answer in validation, if it had to give one.
        measured: What it measured from every subset of modalities, if it did.
    """
    answers = [*trained, *([] if judged is None else [judged])]
    epsilon, delta = diagnostics.epsilon.get(site, (None, None))
    return SiteRound(
        loss=diagnostics.loss.get(site),
        dice=_means(dice),
        sent_bytes=sum(answer.sent_bytes for answer in trained),
        received_bytes=sum(answer.received_bytes for answer in trained),
        seconds=sum(answer.seconds for answer in answers),
        absent=one_line(diagnostics.rejected.get(site, ""), MOST_LINE),
        epsilon=epsilon,
        delta=delta,
        update_norm=diagnostics.norms.get(site),
        dice_loss=diagnostics.dice_loss.get(site),
        memory_mb=_most_memory(answers),
        subset_dice=_medians(measured),
    )


def _medians(measured: Measured | None) -> SubsetMedians:
    return medians(measured.expected) if measured else {}


def _most_memory(answers: Sequence[Answer]) -> float | None:
    return max((each.memory_mb for each in answers if each.memory_mb is not None), default=None)


Trained = tuple[ServerState, Diagnostics, list[Mapping[str, Answer]]]
"""The state after a round, what it showed, and the answers of the sites, step by step."""


def _plain_round(
    run: Run, state: ServerState, sent: ServerState, ask: Ask, quorum: int, rule: Rule | None
) -> Trained:
    """Let the sites train from ``sent``, and merge the replies that pass the checks."""
    settled = run.start.settled if run.start else ()
    asked = ask({site: train_task(sent, r, settled) for site, r in run.registrations.items()})
    merged, diagnostics = merge_round(
        state,
        {site: answer.message for site, answer in asked.came.items()},
        run.registrations,
        run.plans,
        run.settings,
        refused=asked.absent,
        quorum=quorum,
        rule=rule,
    )
    return merged, diagnostics, [asked.came]


def _masked_round(run: Run, state: ServerState, sent: ServerState, ask: Ask) -> Trained:
    """Let the sites train from ``sent``, and learn only the sum over all of them; see ``protocol``.

    Raises:
        QuorumError: A site is missing. The round can be repeated.
    """
    registrations, steps = run.registrations, list[Mapping[str, Answer]]()
    sizes = prototype_sizes(run.plans, run.settings.configuration)

    def answers(tasks: Mapping[str, Message]) -> dict[str, Message]:
        asked = ask(tasks)
        steps.append(asked.came)
        if missing := sorted(set(tasks) - set(asked.came)):
            raise AggregationError(
                "a masked round is a sum over all sites of the run, or "
                "none, and there is no answer from "
                + "; ".join(f"{s} ({asked.absent.get(s, 'did not answer')})" for s in missing)
            )
        return {site: answer.message for site, answer in asked.came.items()}

    try:
        keys = answers(keys_tasks(state.round, registrations))
        participants = gather_participants(state, keys, registrations, sizes)
        replies = answers(masked_tasks(sent, participants, registrations))
        for site, reply in replies.items():
            check_masked(site, reply, participants, state, sizes)
    except AggregationError as error:  # of one site, and without it no sum is made
        raise QuorumError(f"round {state.round + 1}: {error}") from None
    sums = sum_blocks(participants, replies)
    merged, diagnostics = merge_sums(
        state, participants, replies, sums, registrations, run.plans, run.settings
    )
    for site, reason in sorted(diagnostics.rejected.items()):
        log.warning("round %d: %s: does not take part: %s", state.round + 1, site, reason)
    return merged, diagnostics, steps


def _read_validation(
    run: Run, number: int, judged: Mapping[str, Answer]
) -> dict[str, dict[str, DiceSum]]:
    """Return the sums of Dice by site; those that cannot be true are left out."""
    dice = {}
    for site, answer in judged.items():
        try:
            labelled = run.registrations[site].labelled
            check_validation(site, answer.message, number, None, run.plans, labelled)
            dice[site] = read_dice(answer.message)
        except AggregationError as error:
            log.warning("round %d: %s: validation rejected: %s", number, site, error)
    return dice
