"""A masked round at the server: participants, tasks, and the sum of the replies."""

import dataclasses
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mixmfl.core.errors import AggregationError, PlansError
from mixmfl.core.tensor_store import form_of, read_part
from mixmfl.federated.aggregation import PIECE, add_changes, select_blocks
from mixmfl.federated.messages import Message
from mixmfl.federated.secure_aggregation.crypto import from_words, sum_words
from mixmfl.federated.secure_aggregation.protocol import (
    FEWEST_SUMMED,
    LOSS,
    MEMORY_BITS,
    Participants,
    bits_of,
    block_length,
)
from mixmfl.federated.server.merge import train_task
from mixmfl.federated.server.reply_records import (
    KeyReply,
    PrivateReply,
    QuietReply,
    check_round,
    read_reply,
)
from mixmfl.federated.server.update_norms import (
    check_finite,
    check_norms,
    norms_of,
    reach_of,
    remember_norms,
    usual_norms,
)
from mixmfl.federated.state import (
    Diagnostics,
    Registration,
    RunSettings,
    ServerState,
    learning_rate_of,
)
from mixmfl.networks.build import PrototypeSizes, prototype_sizes
from mixmfl.networks.parameters import block_of
from mixmfl.networks.prototypes import Prototypes, State, memory_to_state, merge_memories
from mixmfl.planning.plans import Plans

log = logging.getLogger(__name__)


def check_masked_run(plans: Plans, registrations: Mapping[str, Registration]) -> None:
    """Check that a run can be masked, and say which blocks will not be trained.

    Raises:
        PlansError: The rule of aggregation needs each site's numbers, or there are too few sites.
    """
    if plans.training.aggregation != "mean":
        raise PlansError(
            f"aggregation is {plans.training.aggregation!r}, which compares the sites' updates; in "
            'a masked run the server sees their sum only. Plan with "mean", or train without masks'
        )
    if len(registrations) < FEWEST_SUMMED:
        raise PlansError(
            f"{len(registrations)} sites would take part in a masked run; {FEWEST_SUMMED} are "
            "needed, for a sum over fewer hides nothing"
        )
    for name in plans.labels.foreground if plans.network.compensation_levels else ():
        those = [s for s, t in registrations.items() if t.labelled is None or name in t.labelled]
        if 0 < len(those) < FEWEST_SUMMED:
            raise PlansError(
                f"{name!r} is labelled by {' and '.join(sorted(those))} alone: a sum of its "
                f"prototypes would be theirs, and {FEWEST_SUMMED} sites are needed to hide each "
                "other. Train without masks, or plan without prototypes (network: "
                "compensation_levels empty)"
            )
    for modality in plans.modalities:
        holders = sum(r.modality_cases.get(modality, 0) > 0 for r in registrations.values())
        if 0 < holders < FEWEST_SUMMED:
            log.warning(
                "%s is held by %d of the %d sites that a sum needs: its encoder is not trained, "
                "and keeps its first weights",
                modality,
                holders,
                FEWEST_SUMMED,
            )


def summed_blocks(weights: State, registrations: Mapping[str, Registration]) -> tuple[str, ...]:
    """Return the blocks that enough sites hold to be summed; the others are not trained."""
    held = [block for r in registrations.values() for block in r.weights]
    blocks = {block_of(name) for name in weights}
    return tuple(sorted(block for block in blocks if held.count(block) >= FEWEST_SUMMED))


def keys_tasks(number: int, registrations: Mapping[str, Registration]) -> dict[str, Message]:
    """Return the tasks that ask the sites for the public keys of a round."""
    return {site: Message("keys", {"round": number}, {}) for site in registrations}


def gather_participants(
    state: ServerState,
    replies: Mapping[str, Message],
    registrations: Mapping[str, Registration],
    sizes: Mapping[int, PrototypeSizes],
) -> Participants:
    """Return the participants of a round, from the sites' replies to ``keys``.

    Raises:
        AggregationError: A reply has no key.
    """
    keys = {}
    for site, reply in sorted(replies.items()):
        check_round(site, "keys", reply, state.round)
        keys[site] = read_reply(KeyReply, site, reply).signed
    sites = tuple(sorted(replies))
    holders: dict[str, tuple[str, ...]] = {LOSS: sites}
    for block in summed_blocks(state.weights, registrations):
        who = tuple(site for site in sites if block in registrations[site].weights)
        holders[block] = who
        if block.startswith("tailored."):
            modality = block.removeprefix("tailored.")
            holders |= {f"memory.{modality}.{level}": who for level in sizes}
    return Participants(state.round, keys, holders)


def masked_tasks(
    state: ServerState, participants: Participants, registrations: Mapping[str, Registration]
) -> dict[str, Message]:
    """Return the tasks to train, and to send masked blocks."""
    return {
        site: Message(
            "masked", participants.to_json(), train_task(state, registrations[site]).tensors
        )
        for site in participants.keys
    }


def check_masked(
    site: str,
    reply: Message,
    participants: Participants,
    state: ServerState,
    sizes: Mapping[int, PrototypeSizes],
) -> None:
    """Check that a masked reply has the blocks that were asked for; what is in them is hidden.

    Raises:
        AggregationError: The reply is of another kind, or has other fields or tensors.
    """
    lengths = {
        f"masked.{block}": block_length(block, state.weights, sizes)
        for block, who in participants.holders.items()
        if site in who
    }
    forms = {name: form_of(reply.tensors, name) for name in reply.tensors}
    check_round(site, "masked", reply, participants.round)
    read_reply(PrivateReply if "epsilon" in reply.record else QuietReply, site, reply)
    if forms != {name: ((length,), torch.int64) for name, length in lengths.items()}:
        raise AggregationError(
            f"site {site!r} sent a reply to round {participants.round} that has not the masked "
            "blocks that were asked for"
        )


@dataclass(frozen=True)
class BlockSum:
    """The sum of a block over its holders, in which their masks cancel, computed part by part.

    Attributes:
        name: Name of the masked block in the replies.
        replies: Tensors of the holders' replies.
        bits: Binary digits after the point.
        length: Number of numbers in the block.
    """

    name: str
    replies: tuple[Mapping[str, Tensor], ...]
    bits: int
    length: int

    def part(self, start: int, stop: int) -> npt.NDArray[np.float64]:
        """Return some of its numbers, ``(stop - start,)``."""
        room = torch.empty(stop - start, dtype=torch.int64)
        parts = (read_part(reply, self.name, start, stop, room) for reply in self.replies)
        return from_words(sum_words(part.numpy().view(np.uint64) for part in parts), self.bits)

    def whole(self) -> npt.NDArray[np.float64]:
        """Return all of its numbers."""
        return self.part(0, self.length)


def sum_blocks(participants: Participants, replies: Mapping[str, Message]) -> dict[str, BlockSum]:
    """Return the sum over the holders, by block.

    Args:
        participants: Participants of the round.
        replies: Masked replies of all of them, by site.
    """
    sums = {}
    for block, holders in sorted(participants.holders.items()):
        name = f"masked.{block}"
        sources = tuple(replies[site].tensors for site in holders)
        length = math.prod(form_of(sources[0], name)[0])
        sums[block] = BlockSum(name, sources, bits_of(block), length)
    return sums


def merge_sums(
    state: ServerState,
    participants: Participants,
    replies: Mapping[str, Message],
    sums: Mapping[str, BlockSum],
    registrations: Mapping[str, Registration],
    plans: Plans,
    settings: RunSettings,
) -> tuple[ServerState, Diagnostics]:
    """Return the server's next state from sums over sites, and what the round showed.

    The mean update must pass the checks of a site's update; one that does not is left out whole,
    for nobody can say whose fault it is. The loss of every site is the mean over all.

    Args:
        state: The server's state that the replies were trained from.
        participants: Participants of the round.
        replies: Masked replies by site.
        sums: Sums by block, from ``sum_blocks``.
        registrations: Registrations by site.
        plans: Plans of the run.
        settings: Settings of the run.
    """
    changes: State = {}
    seen: dict[tuple[str, int], Prototypes] = {}
    sizes = prototype_sizes(plans, settings.configuration)
    for block, total in sums.items():
        if block.startswith("memory."):
            _, modality, level = block.split(".")
            seen[modality, int(level)] = _merged_prototypes(total.whole(), sizes[int(level)])
        elif block != LOSS:
            weight = sum(registrations[site].weights[block] for site in participants.holders[block])
            changes |= _mean_changes(select_blocks(state.weights, [block]), total, weight)
    norms = norms_of({**changes, **memory_to_state(seen)})
    rejected: dict[str, str] = {}
    pace = settings.local_steps, learning_rate_of(state.round, settings)
    reach = reach_of(state.weights, *pace, plans.training.weight_decay)
    try:
        check_finite("sum of all", norms)
        check_norms("sum of all", norms, usual_norms(state.norms, {"sum": norms}), reach, *pace)
        if any((prototypes.counts < 0).any() for prototypes in seen.values()):
            raise AggregationError("the sum of all has a count < 0")
        after = ServerState(
            state.round + 1,
            {**state.weights, **add_changes(state.weights, changes)},
            merge_memories(state.memory, {"all": seen}),
            remember_norms(state.norms, [norms]),
        )
    except AggregationError as error:
        rejected = dict.fromkeys(replies, str(error))
        after = dataclasses.replace(state, round=state.round + 1)
    *totals, count = sums[LOSS].whole()
    shown = [] if rejected or count < 1 else sorted(replies)
    loss, dice_loss = (dict.fromkeys(shown, total / max(count, 1)) for total in totals)
    records = {site: reply.record for site, reply in sorted(replies.items())}
    return after, Diagnostics(
        loss,
        dice_loss,
        rejected,
        {s: (float(r["epsilon"]), float(r["delta"])) for s, r in records.items() if "epsilon" in r},
    )


def _mean_changes(before: Mapping[str, Tensor], total: BlockSum, weight: float) -> State:
    """Return how tensors change by a sum that has all of their numbers, in the order of names."""
    changes, begin = State(), 0
    for name in sorted(before):
        changes[name] = torch.empty_like(before[name])
        flat = changes[name].view(-1)
        for start in range(0, len(flat), PIECE):
            stop = min(start + PIECE, len(flat))
            flat[start:stop] = torch.from_numpy(total.part(begin + start, begin + stop) / weight)
        begin += len(flat)
    return changes


def _merged_prototypes(total: npt.NDArray[np.float64], size: PrototypeSizes) -> Prototypes:
    sums, counts = np.split(total, [size.rows * size.tailored])
    values = sums.reshape(size.rows, -1) / np.maximum(counts, 2.0**-MEMORY_BITS)[:, None]
    return Prototypes(torch.from_numpy(values).float(), torch.from_numpy(counts).float())
