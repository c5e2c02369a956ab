"""A round at the server: the tasks for the sites, and how their replies are merged.

Messages are plain (see ``messages``); nothing here knows what carries them.
"""

import logging
import math
from collections.abc import Collection, Mapping
from dataclasses import replace

from mixmfl.core.errors import AggregationError, QuorumError
from mixmfl.core.nan import or_nan
from mixmfl.federated.aggregation import Rule, merge_blocks, select_blocks
from mixmfl.federated.messages import Message
from mixmfl.federated.server.reply_records import PersonalReply, read_reply
from mixmfl.federated.server.update_checks import check_answer, check_reply
from mixmfl.federated.server.update_norms import check_norms, reach_of, remember_norms, usual_norms
from mixmfl.federated.state import (
    Diagnostics,
    Personal,
    Registration,
    RunSettings,
    ServerState,
    block_weights,
    learning_rate_of,
)
from mixmfl.networks.prototypes import (
    memory_from_state,
    memory_to_state,
    merge_memories,
)
from mixmfl.planning.plans import Plans

log = logging.getLogger(__name__)


def personalization_task(
    state: ServerState, site: str, registrations: Mapping[str, Registration]
) -> Message:
    """Return the task to make a personalised model: a site trains and validates for it."""
    trained = train_task(state, registrations[site])
    judged = validation_task(state, site, registrations)
    return Message(
        "personalize",
        {"round": state.round, "modalities": judged.record["modalities"]},
        {**judged.tensors, **trained.tensors},
    )


def rounded_weights(state: ServerState, settings: RunSettings) -> ServerState:
    """Return the state with weights as they travel in a round, in half precision by default.

    The server keeps its own in single precision and adds the sites' changes to those, so roundings
    do not add up over rounds. Weights that half precision cannot hold, beyond 65,504, stay as they
    are, with all of their tensor.
    """
    if not settings.half_updates:
        return state
    half = {name: tensor.half() for name, tensor in state.weights.items()}
    whole = {name: each for name, each in state.weights.items() if not half[name].isfinite().all()}
    return replace(state, weights={**half, **whole})


def train_task(
    state: ServerState, registration: Registration, settled: Collection[str] = ()
) -> Message:
    """Return a training task: the site's own blocks, and the memory of all modalities.

    Args:
        state: The server's state.
        registration: Registration of the site.
        settled: Blocks that learn more slowly; see ``LocalTraining``.
    """
    own = select_blocks(state.weights, registration.weights)
    slow = [block for block in settled if block in registration.weights]
    return Message(
        "train",
        {"round": state.round, **({"settled": slow} if slow else {})},
        {**own, **memory_to_state(state.memory)},
    )


def validation_task(
    state: ServerState, site: str, registrations: Mapping[str, Registration]
) -> Message:
    """Return a validation task.

    It has the blocks of the modalities that the site's validation cases have, as far as any site
    trains them; a validation case may have a modality that no training case of its site has.
    """
    trained = {m for r in registrations.values() for m, n in r.modality_cases.items() if n}
    usable = [m for m in registrations[site].validated if m in trained]
    blocks = block_weights(1, dict.fromkeys(usable, 1))
    tensors = {**select_blocks(state.weights, blocks), **memory_to_state(state.memory)}
    return Message("validate", {"round": state.round, "modalities": usable}, tensors)


def read_personal(site: str, reply: Message) -> Personal | None:
    """Return what came of a site's personalised model; None: it had nothing to validate it on.

    Raises:
        AggregationError: The reply is something else, or cannot be true.
    """
    check_answer(site, "personalize", reply)
    record = read_reply(PersonalReply, site, reply)
    return None if record.dice is None else Personal(record.dice, or_nan(record.dice_before))


def merge_round(
    state: ServerState,
    replies: Mapping[str, Message],
    registrations: Mapping[str, Registration],
    plans: Plans,
    settings: RunSettings,
    *,
    refused: Mapping[str, str] | None = None,
    quorum: int = 1,
    rule: Rule | None = None,
) -> tuple[ServerState, Diagnostics]:
    """Return the server's next state, and what the round showed.

    A reply that fails ``update_checks`` is left out, as if its site had not answered.
    Blocks and prototypes that nobody sent stay as they were. The state given is left as it is.

    Args:
        state: The server's state that the replies were trained from.
        replies: Replies by site; a site that did not reply is left out.
        registrations: Registrations by site.
        plans: Plans of the run.
        settings: Settings of the run.
        refused: Why no message came at all, by site.
        quorum: Sites that must have a part in the round.
        rule: Merges the changes of a block, in place of the rule that the plans name.

    Raises:
        QuorumError: Fewer than ``quorum`` replies can be used.
    """
    accepted, norms, rejected = _check_replies(state, replies, registrations, plans, settings)
    rejected = {**(refused or {}), **rejected}
    for site, reason in sorted(rejected.items()):
        log.warning("round %d: %s: reply rejected: %s", state.round + 1, site, reason)
    if len(accepted) < max(quorum, 1):
        reasons = "; ".join(reason for _, reason in sorted(rejected.items())) or "no site replied"
        raise QuorumError(
            f"round {state.round + 1}: {len(accepted)} replies can be used, {max(quorum, 1)} are "
            f"needed: {reasons}"
        )
    weights = {site: registrations[site].weights for site in accepted}
    changes = {site: select_blocks(accepted[site].tensors, weights[site]) for site in accepted}
    merged = ServerState(
        state.round + 1,
        {
            **state.weights,
            **merge_blocks(
                state.weights,
                changes,
                weights,
                plans.training.aggregation,
                plans.training.trimming,
                norms,
                usual_norms(state.norms, norms),
                rule,
            ),
        },
        merge_memories(
            state.memory,
            {site: memory_from_state(reply.tensors) for site, reply in accepted.items()},
            plans.training.aggregation != "mean",
        ),
        remember_norms(state.norms, norms.values()),
    )
    return merged, _diagnostics(accepted, rejected, norms)


def _diagnostics(
    accepted: Mapping[str, Message],
    rejected: Mapping[str, str],
    norms: Mapping[str, Mapping[str, float]],
) -> Diagnostics:
    """Return what a round showed, from its replies, the refusals and the norms of each update."""
    records = {site: reply.record for site, reply in accepted.items()}
    return Diagnostics(
        {site: float(record["loss"]) for site, record in records.items() if "loss" in record},
        {site: float(r["dice_loss"]) for site, r in records.items() if "dice_loss" in r},
        rejected,
        {s: (float(r["epsilon"]), float(r["delta"])) for s, r in records.items() if "epsilon" in r},
        {
            site: math.hypot(
                *(n for place, n in of_site.items() if not place.startswith("memory."))
            )
            for site, of_site in norms.items()
        },
    )


def _check_replies(
    state: ServerState,
    replies: Mapping[str, Message],
    registrations: Mapping[str, Registration],
    plans: Plans,
    settings: RunSettings,
) -> tuple[dict[str, Message], dict[str, dict[str, float]], dict[str, str]]:
    """Return the replies that can be used and their norms, by site; and why others cannot."""
    rejected, sound = {}, {}
    for site in sorted(replies):
        try:
            if site not in registrations:
                raise AggregationError(f"site {site!r} replied but never registered")
            reply, registration = replies[site], registrations[site]
            sound[site] = check_reply(
                site, reply, state.round, state.weights, registration, plans, settings
            )
        except AggregationError as error:
            rejected[site] = str(error)
    usual = usual_norms(state.norms, sound)
    pace = settings.local_steps, learning_rate_of(state.round, settings)
    reach = reach_of(state.weights, *pace, plans.training.weight_decay)
    for site in list(sound):
        try:
            check_norms(site, sound[site], usual, reach, *pace)
        except AggregationError as error:
            rejected[site] = str(error)
            del sound[site]
    return {site: replies[site] for site in sound}, sound, rejected
