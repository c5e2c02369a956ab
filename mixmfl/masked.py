"""Rounds in which the server learns sums over sites and no site's own numbers.

After Bonawitz et al. 2017, Practical Secure Aggregation for Privacy-Preserving Machine Learning,
in the form against a server that is curious but follows the protocol, for sites that hold
different blocks. What crosses in a round::

    keys      server asks; each site sends two public keys of this round
    shares    server passes the keys on; each site shares its secrets among all, sealed
    masked    server passes the shares on, and the weights; each site trains, and sends its blocks
              weighted, in fixed point, plus its own mask and one per pair of holders
    unmask    server says who replied; each site sends, for each of these, its share of their own
              masks, and for each other its share of their key: never both of one site

The masks of a pair cancel in the sum. The own mask keeps a reply hidden that comes after its
sender was given up and its key revealed. Own masks are shared per block, so that a block whose
holders became fewer than three stays hidden. Messages are plain; nothing here knows what carries
them. ``masks`` has the arithmetic.
"""

import dataclasses
import logging
import math
import secrets
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mixmfl.aggregate import PIECE, add_changes, block_of, select_blocks
from mixmfl.door import check_norms, norms_of, reach_of, remember_norms, usual_norms
from mixmfl.errors import AggregationError, PlansError, PrivacyError, QuorumError
from mixmfl.masks import (
    SEED_BYTES,
    Words,
    agree,
    from_words,
    join_secret,
    key_pair,
    key_stream,
    open_sealed,
    seal,
    split_secret,
    sum_words,
    to_words,
)
from mixmfl.memory import PARTS, Prototypes, State, memory_to_state, merge_memories
from mixmfl.network import PrototypeSizes, prototype_sizes
from mixmfl.outgoing import outgoing
from mixmfl.plan import Plans
from mixmfl.rounds import (
    Diagnostics,
    Registration,
    RunSettings,
    ServerState,
    Site,
    learning_rate_of,
    perform,
    register,
    train_at_site,
    train_task,
)
from mixmfl.tensors import form_of, pieces, read_part
from mixmfl.wire import Message

log = logging.getLogger(__name__)

FEWEST_SUMMED = 3
"""A sum over two tells each of them the other's part."""

LOSS = "loss"
"""The block that all sites hold: the sum of their losses, and how many these are."""

KINDS = ("keys", "shares", "masked", "unmask")

TRAINING = ("train", "masked")
"""Kinds of tasks in which a site takes gradient steps, and needs its optimiser's moments."""

# bits after the point. Weights times updates stay below 2^30 / sites, to 2^-33; a prototype's
# feature times its voxels below 2^38 / sites, to 2^-25
_WEIGHT_BITS, _MEMORY_BITS = 32, 24

Mask = tuple[bytes, int]
"""The seed of a key stream, and whether it is added (1) or taken away (-1)."""


@dataclass(frozen=True)
class Roster:
    """Who has a part in a round, and in what.

    Attributes:
        round: Counted from 0.
        keys: Public keys by site, hexadecimal: for sealed shares, and for masks.
        holders: Sites by block, sorted; only of blocks that are summed.
        threshold: Shares that give a secret.
    """

    round: int
    keys: Mapping[str, tuple[str, str]]
    holders: Mapping[str, tuple[str, ...]]
    threshold: int

    def place(self, site: str) -> int:
        """Return a site's number among the participants, from 1."""
        return sorted(self.keys).index(site) + 1

    def to_json(self) -> dict[str, Any]:
        """Return the roster as a record."""
        return {
            "round": self.round,
            "keys": {site: list(pair) for site, pair in sorted(self.keys.items())},
            "holders": {block: list(sites) for block, sites in sorted(self.holders.items())},
            "threshold": self.threshold,
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "Roster":
        """Read what ``to_json`` wrote.

        Raises:
            PrivacyError: With so few sites or shares nothing would be hidden.
        """
        made = cls(
            int(record["round"]),
            {site: (pair[0], pair[1]) for site, pair in record["keys"].items()},
            {block: tuple(sites) for block, sites in record["holders"].items()},
            int(record["threshold"]),
        )
        fewest = min((len(sites) for sites in made.holders.values()), default=0)
        if fewest < FEWEST_SUMMED or 2 * made.threshold <= len(made.keys):
            raise PrivacyError(
                f"a masked round was asked for with {fewest} holders of a block and "
                f"{made.threshold} of {len(made.keys)} shares to reveal a secret; at least "
                f"{FEWEST_SUMMED} holders and more than half of the shares are needed"
            )
        return made


@dataclass(frozen=True)
class Secrets:
    """What a site keeps during a round, and forgets after it.

    Attributes:
        round: It is for.
        seal_key: Private key for sealed shares.
        mask_key: Private key for masks.
        roster: Of the round; None: it did not come yet.
        seeds: Of its own masks, by block.
        kept: Shares of the other sites' secrets, and of its own, by site.
        sent: Whether its masked reply was made: it may be asked to unmask.
    """

    round: int
    seal_key: bytes = field(repr=False)
    mask_key: bytes = field(repr=False)
    roster: Roster | None = None
    seeds: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    kept: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, repr=False)
    sent: bool = False


# --- at a site ---------------------------------------------------------------------------------


def perform_at_site(
    task: Message,
    site: Site,
    plans: Plans,
    settings: RunSettings,
    optimizer_state: State,
    before: Secrets | None,
    *,
    uniform: bool = False,
) -> tuple[Message, State, Secrets | None]:
    """Do what any task of a round asks of a site, masked or not.

    Args:
        task: From the server.
        site: That does it.
        plans: Of the run.
        settings: Of the run; in a masked one a plain ``train`` task is refused.
        optimizer_state: Of the site's last round, or empty.
        before: What this function returned last as secrets, or None.
        uniform: As it registered.

    Returns:
        The reply; the optimiser's moments after training, else nothing; and the secrets to keep
        for the next task, in memory only.

    Raises:
        PrivacyError: The task asks for what would reveal the site's numbers.
        MixmflError: As ``rounds.perform``.
    """
    if task.kind not in KINDS:
        if settings.masked and task.kind == "train":
            raise PrivacyError("a plain reply was asked for in a run that was agreed to be masked")
        return *perform(task, site, plans, settings, optimizer_state), before
    moments: State = {}

    def train(plain: Message) -> Message:
        reply, made = train_at_site(plain, site, plans, settings, optimizer_state)
        moments.update(made)
        return reply

    weights = register(site, uniform=uniform).weights
    sizes = prototype_sizes(plans, settings.configuration)
    reply, after = _answer(task, site.name, before, weights, sizes, train)
    return reply, moments, after


def _answer(
    task: Message,
    site: str,
    before: Secrets | None,
    weights: Mapping[str, int],
    sizes: Mapping[int, PrototypeSizes],
    train: Callable[[Message], Message],
) -> tuple[Message, Secrets | None]:
    """Return the reply to one of ``KINDS``, and the secrets to keep; none after the last."""
    number = int(task.record["round"])
    if task.kind == "keys":
        (seal_key, seal_public), (mask_key, mask_public) = key_pair(), key_pair()
        record = {"round": number, "seal": seal_public.hex(), "mask": mask_public.hex()}
        return outgoing("keys", record), Secrets(number, seal_key, mask_key)
    if before is None or before.round != number:
        raise PrivacyError(f"a {task.kind!r} task came for round {number}, which has no keys here")
    if task.kind == "shares":
        return _share(task, site, before)
    if task.kind == "masked":
        return _mask(task, site, before, weights, sizes, train)
    return _unmask(task, site, before), None


def _share(task: Message, site: str, before: Secrets) -> tuple[Message, Secrets]:
    """Share the round's secrets among all participants, sealed for each."""
    roster = Roster.from_json(task.record)
    if before.roster is not None or site not in roster.keys:
        raise PrivacyError("the secrets of a round are shared once, with a site that is in it")
    seeds = {
        block: secrets.token_bytes(SEED_BYTES)
        for block, holders in roster.holders.items()
        if site in holders
    }
    others = sorted(roster.keys)
    key_shares = split_secret(before.mask_key, len(others), roster.threshold)
    seed_shares = {
        block: split_secret(seed, len(others), roster.threshold) for block, seed in seeds.items()
    }
    sealed, own = {}, {}
    for place, other in enumerate(others):
        content = {
            "key": key_shares[place],
            "seeds": {block: shares[place] for block, shares in seed_shares.items()},
        }
        if other == site:
            own = {site: content}
        else:
            sealed[other] = seal(_seal_key(before, roster, site, site, other), content)
    reply = outgoing("shares", {"round": before.round, "sealed": sealed})
    kept = Secrets(before.round, before.seal_key, before.mask_key, roster, seeds, own)
    return reply, kept


def _mask(
    task: Message,
    site: str,
    before: Secrets,
    weights: Mapping[str, int],
    sizes: Mapping[int, PrototypeSizes],
    train: Callable[[Message], Message],
) -> tuple[Message, Secrets]:
    """Train, then add the masks of all pairs and the own one to every block."""
    roster = before.roster
    if roster is None or before.sent:
        raise PrivacyError("a round is masked once, after its secrets were shared")
    kept = dict(before.kept)
    for other, sealed in task.record["sealed"].items():
        kept[other] = open_sealed(_seal_key(before, roster, site, other, site), sealed)
    plain = {"round": before.round, "blocks": task.record["blocks"]}
    reply = train(dataclasses.replace(task, kind="train", record=plain))
    tensors: State = {}
    for block, seed in before.seeds.items():
        holders = [other for other in roster.holders[block] if other in kept]
        if len(holders) < FEWEST_SUMMED:
            continue  # the others did not share their secrets, so nobody could unmask it
        masks = [
            _pair_mask(before.mask_key, roster, site, other, block)
            for other in holders
            if other != site
        ]
        words = np.empty(_length(block, task.tensors, sizes), dtype=np.uint64)
        start = 0
        for values in _to_sum(block, reply, weights, sizes):
            part = words[start : start + len(values)]
            part[:] = to_words(values, _bits(block), len(holders))
            _add_masks(part, start, [(seed, 1), *masks])
            start += len(values)
        tensors[f"masked.{block}"] = torch.from_numpy(words.view(np.int64))
    told = {k: v for k, v in reply.record.items() if k != "loss"}
    after = Secrets(
        before.round, before.seal_key, before.mask_key, roster, before.seeds, kept, sent=True
    )
    return outgoing("masked", told, tensors), after


def _unmask(task: Message, site: str, before: Secrets) -> Message:
    """Send shares of what removes masks: of who replied the own masks', of the others the key's."""
    roster, replied = before.roster, set(task.record["replied"])
    if (
        roster is None
        or not before.sent
        or site not in replied
        or not replied <= set(before.kept)
        or len(replied) < max(roster.threshold, FEWEST_SUMMED)
    ):
        raise PrivacyError(
            f"round {before.round + 1} was to be unmasked for {len(replied)} sites, which would "
            "reveal more than their sum"
        )
    seeds: dict[str, dict[str, str]] = {}
    for other in sorted(replied):
        for block, share in before.kept[other]["seeds"].items():
            if len(replied & set(roster.holders[block])) >= FEWEST_SUMMED:
                seeds.setdefault(block, {})[other] = share
    dropped = {other: before.kept[other]["key"] for other in sorted(set(before.kept) - replied)}
    return outgoing("unmask", {"round": before.round, "seeds": seeds, "dropped": dropped})


def _to_sum(
    block: str,
    reply: Message,
    weights: Mapping[str, int],
    sizes: Mapping[int, PrototypeSizes],
) -> Iterator[npt.NDArray[np.float64]]:
    """Yield a site's part of a sum, a piece at a time."""
    if block == LOSS:
        loss = reply.record.get("loss")
        yield np.array([0.0, 0.0] if loss is None else [float(loss), 1.0])
    elif block.startswith("memory."):
        found = _prototypes(block, reply.tensors, sizes)
        counts = found.counts.double()
        features = [found.keys, found.values, found.spreads]
        sums = [(rows.double() * counts[:, None]).flatten() for rows in features]
        yield torch.cat([*sums, counts]).numpy()
    else:
        names = sorted(select_blocks(reply.tensors, [block]))
        for change in pieces(reply.tensors, names, PIECE):
            yield change.double().numpy() * weights[block]


def _prototypes(
    block: str, tensors: Mapping[str, Tensor], sizes: Mapping[int, PrototypeSizes]
) -> Prototypes:
    """Return a modality's prototypes at a level; zero where a site has none to tell."""
    size = sizes[int(block.rpartition(".")[2])]
    if f"{block}.counts" not in tensors:
        return size.unseen()
    return Prototypes(*(tensors[f"{block}.{part}"] for part in PARTS))


def _seal_key(mine: Secrets, roster: Roster, site: str, sender: str, receiver: str) -> bytes:
    """Return the key for shares from one site to another, of which ``site`` is one."""
    other = receiver if site == sender else sender
    purpose = f"shares, round {roster.round}, {sender!r} to {receiver!r}"
    return agree(mine.seal_key, bytes.fromhex(roster.keys[other][0]), purpose)


def _pair_mask(mask_key: bytes, roster: Roster, site: str, other: str, block: str) -> Mask:
    """Return what a site adds to a block for one other holder, who adds the opposite."""
    first, second = sorted((site, other))
    purpose = f"mask, round {roster.round}, {first!r} and {second!r}, {block!r}"
    seed = agree(mask_key, bytes.fromhex(roster.keys[other][1]), purpose)
    return seed, 1 if site == first else -1


def _add_masks(words: Words, start: int, masks: Iterable[Mask]) -> None:
    """Add masks to a piece of a block that begins at its number ``start``."""
    for seed, sign in masks:
        stream = key_stream(seed, len(words), start)
        (np.add if sign > 0 else np.subtract)(words, stream, out=words)


# --- at the server -----------------------------------------------------------------------------


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
    for modality in plans.modalities:
        holders = sum(told.modality_cases.get(modality, 0) > 0 for told in registrations.values())
        if 0 < holders < FEWEST_SUMMED:
            log.warning(
                "%s is held by %d of the %d sites that a sum needs: its encoder is not trained, "
                "and stays as it is at first",
                modality,
                holders,
                FEWEST_SUMMED,
            )


def summed_blocks(weights: State, registrations: Mapping[str, Registration]) -> tuple[str, ...]:
    """Return the blocks that enough sites hold to be summed; the others are not trained."""
    held = [block for told in registrations.values() for block in told.weights]
    blocks = {block_of(name) for name in weights}
    return tuple(sorted(block for block in blocks if held.count(block) >= FEWEST_SUMMED))


def keys_tasks(number: int, registrations: Mapping[str, Registration]) -> dict[str, Message]:
    """Return what asks the sites for the public keys of a round."""
    return {site: Message("keys", {"round": number}, {}) for site in registrations}


def make_roster(
    state: ServerState,
    replies: Mapping[str, Message],
    registrations: Mapping[str, Registration],
    sizes: Mapping[int, PrototypeSizes],
) -> Roster:
    """Return who has a part in a round, of those who sent keys.

    Raises:
        QuorumError: They are too few for any block.
    """
    keys = {}
    for site, reply in sorted(replies.items()):
        pair = reply.record.get("seal"), reply.record.get("mask")
        if reply.kind == "keys" and reply.record.get("round") == state.round and _are_keys(pair):
            keys[site] = (str(pair[0]), str(pair[1]))
    holders: dict[str, tuple[str, ...]] = {LOSS: tuple(keys)}
    for block in summed_blocks(state.weights, registrations):
        who = tuple(site for site in keys if block in registrations[site].weights)
        holders[block] = who
        if block.startswith("tailored."):
            modality = block.removeprefix("tailored.")
            holders |= {f"memory.{modality}.{level}": who for level in sizes}
    holders = {block: who for block, who in holders.items() if len(who) >= FEWEST_SUMMED}
    if LOSS not in holders:
        raise QuorumError(
            f"round {state.round + 1}: {len(keys)} sites sent keys; a masked round needs "
            f"{FEWEST_SUMMED}, for a sum over fewer hides nothing"
        )
    return Roster(state.round, keys, holders, len(keys) // 2 + 1)


def shares_tasks(roster: Roster) -> dict[str, Message]:
    """Return what asks the participants to share their secrets."""
    return {site: Message("shares", roster.to_json(), {}) for site in roster.keys}


def masked_tasks(
    state: ServerState,
    roster: Roster,
    shared: Mapping[str, Message],
    registrations: Mapping[str, Registration],
) -> dict[str, Message]:
    """Return what asks those who shared their secrets to train and to send masked blocks."""
    blocks = list(summed_blocks(state.weights, registrations))
    tasks = {}
    for site in sorted(shared):
        sealed = {
            other: reply.record["sealed"][site]
            for other, reply in sorted(shared.items())
            if other != site
        }
        plain = train_task(state, registrations[site])
        record = {**plain.record, "blocks": blocks, "sealed": sealed}
        tasks[site] = Message("masked", record, plain.tensors)
    return tasks


def are_shares(site: str, reply: Message, roster: Roster) -> bool:
    """Say whether a reply has sealed shares for every other participant."""
    sealed = reply.record.get("sealed")
    return (
        reply.kind == "shares"
        and reply.record.get("round") == roster.round
        and isinstance(sealed, Mapping)
        and sealed.keys() == roster.keys.keys() - {site}
        and all(isinstance(text, str) for text in sealed.values())
    )


def check_masked(
    site: str,
    reply: Message,
    roster: Roster,
    shared: Collection[str],
    state: ServerState,
    sizes: Mapping[int, PrototypeSizes],
) -> None:
    """Check that a masked reply has the blocks that were asked for; what is in them is hidden.

    Raises:
        AggregationError: It has not.
    """
    lengths = {
        f"masked.{block}": _length(block, state.weights, sizes)
        for block, who in roster.holders.items()
        if site in who and len(set(who) & set(shared)) >= FEWEST_SUMMED
    }
    found = {name: form_of(reply.tensors, name) for name in reply.tensors}
    if (
        reply.kind != "masked"
        or reply.record.get("round") != roster.round
        or set(reply.record) not in ({"round"}, {"round", "epsilon", "delta"})
        or not all(isinstance(reply.record.get(n, 0.0), float) for n in ("epsilon", "delta"))
        or found != {name: ((length,), torch.int64) for name, length in lengths.items()}
    ):
        raise AggregationError(
            f"site {site!r} sent a {reply.kind!r} reply to round {reply.record.get('round')} that "
            "has not the masked blocks that were asked for"
        )


def unmask_tasks(roster: Roster, replied: Collection[str]) -> dict[str, Message]:
    """Return what asks those who replied for what removes the masks from the sum."""
    record = {"round": roster.round, "replied": sorted(replied)}
    return {site: Message("unmask", record, {}) for site in sorted(replied)}


@dataclass(frozen=True)
class BlockSum:
    """The sum of a block over the holders that replied, of which no more is made than asked for.

    Attributes:
        name: Of the masked block in the replies.
        replies: Tensors of the holders' replies.
        masks: What is added to take the masks off.
        bits: After the point.
        length: How many numbers it has.
    """

    name: str
    replies: tuple[Mapping[str, Tensor], ...]
    masks: tuple[Mask, ...] = field(repr=False)
    bits: int
    length: int

    def part(self, start: int, stop: int) -> npt.NDArray[np.float64]:
        """Return some of its numbers, ``(stop - start,)``."""
        room = torch.empty(stop - start, dtype=torch.int64)
        parts = (read_part(reply, self.name, start, stop, room) for reply in self.replies)
        total = sum_words(part.numpy().view(np.uint64) for part in parts)
        _add_masks(total, start, self.masks)
        return from_words(total, self.bits)

    def whole(self) -> npt.NDArray[np.float64]:
        """Return all of its numbers."""
        return self.part(0, self.length)


def sum_blocks(
    roster: Roster,
    shared: Collection[str],
    replies: Mapping[str, Message],
    reveals: Mapping[str, Message],
) -> dict[str, BlockSum]:
    """Return the sum over the holders that replied, by block; a block of too few is left out.

    Args:
        roster: Of the round.
        shared: Sites that shared their secrets, so that others added masks for them.
        replies: Masked, by site.
        reveals: Replies to ``unmask``, by site.

    Raises:
        QuorumError: Too few sites revealed their shares.
        PrivacyError: Shares do not belong together.
    """
    told = {
        roster.place(site): reply.record
        for site, reply in reveals.items()
        if _reveals(reply, roster)
    }
    if len(told) < roster.threshold:
        raise QuorumError(
            f"round {roster.round + 1}: {len(told)} sites helped to unmask the sum, "
            f"{roster.threshold} are needed"
        )
    dropped = {
        site: join_secret(
            {
                place: said["dropped"][site]
                for place, said in told.items()
                if site in said["dropped"]
            },
            roster.threshold,
        )
        for site in sorted(set(shared) - set(replies))
    }
    sums = {}
    for block, who in sorted(roster.holders.items()):
        here = [site for site in who if site in replies]
        if len(here) < FEWEST_SUMMED:
            continue
        masks: list[Mask] = []
        for site in here:
            shares = {
                place: said["seeds"][block][site]
                for place, said in told.items()
                if site in said["seeds"].get(block, {})
            }
            masks.append((join_secret(shares, roster.threshold), -1))
        for gone in (site for site in who if site in dropped):
            for site in here:  # what the site added for the one that is gone, seen from that one
                masks.append(_pair_mask(dropped[gone], roster, gone, site, block))
        name = f"masked.{block}"
        sources = tuple(replies[site].tensors for site in here)
        length = math.prod(form_of(sources[0], name)[0])
        sums[block] = BlockSum(name, sources, tuple(masks), _bits(block), length)
    return sums


def merge_sums(
    state: ServerState,
    roster: Roster,
    replies: Mapping[str, Message],
    sums: Mapping[str, BlockSum],
    registrations: Mapping[str, Registration],
    plans: Plans,
    settings: RunSettings,
) -> tuple[ServerState, Diagnostics]:
    """Return the server's next state from sums over sites, and what the round showed.

    The mean update must pass the door as a site's would; one that does not is left out whole, for
    nobody can say whose fault it is. The loss of every site is the mean over all.

    Args:
        state: That the replies were trained from.
        roster: Of the round.
        replies: Masked, by site.
        sums: From ``sum_blocks``.
        registrations: By site.
        plans: Of the run.
        settings: Of the run.
    """
    changes: State = {}
    seen: dict[tuple[str, int], Prototypes] = {}
    sizes = prototype_sizes(plans, settings.configuration)
    for block, total in sums.items():
        if block.startswith("memory."):
            _, modality, level = block.split(".")
            seen[modality, int(level)] = _merged_prototypes(total.whole(), sizes[int(level)])
        elif block != LOSS:
            here = [site for site in roster.holders[block] if site in replies]
            weight = sum(registrations[site].weights[block] for site in here)
            changes |= _mean_changes(select_blocks(state.weights, [block]), total, weight)
    norms = norms_of({**changes, **memory_to_state(seen)})
    rejected: dict[str, str] = {}
    pace = settings.local_steps, learning_rate_of(state.round, settings)
    reach = reach_of(state.weights, *pace, plans.training.weight_decay)
    try:
        check_norms("sum of all", norms, usual_norms(state.norms, {"sum": norms}), reach, *pace)
        if any((found.counts < 0).any() for found in seen.values()):
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
    total_loss, sites = sums[LOSS].whole()
    loss = {} if rejected or sites < 1 else dict.fromkeys(sorted(replies), total_loss / sites)
    said = {site: reply.record for site, reply in sorted(replies.items())}
    return after, Diagnostics(
        loss,
        rejected,
        {s: (float(r["epsilon"]), float(r["delta"])) for s, r in said.items() if "epsilon" in r},
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
    lengths = [math.prod(shape) for shape in size.shapes.values()]
    *features, counts = np.split(total, np.cumsum(lengths)[:-1])
    least = np.maximum(counts, 2.0**-_MEMORY_BITS)[:, None]
    means = [rows.reshape(size.rows, -1) / least for rows in features]
    keys, values, spreads, behind = (torch.from_numpy(part).float() for part in (*means, counts))
    return Prototypes(keys, values, spreads, behind)


def _length(block: str, weights: Mapping[str, Tensor], sizes: Mapping[int, PrototypeSizes]) -> int:
    if block == LOSS:
        return 2
    if block.startswith("memory."):
        size = sizes[int(block.rpartition(".")[2])]
        return sum(math.prod(shape) for shape in size.shapes.values())
    names = select_blocks(weights, [block])
    return sum(math.prod(form_of(names, name)[0]) for name in names)


def _bits(block: str) -> int:
    return _MEMORY_BITS if block.startswith("memory.") else _WEIGHT_BITS


def _reveals(reply: Message, roster: Roster) -> bool:
    seeds, dropped = reply.record.get("seeds"), reply.record.get("dropped")
    return (
        reply.kind == "unmask"
        and reply.record.get("round") == roster.round
        and isinstance(seeds, Mapping)
        and isinstance(dropped, Mapping)
        and all(isinstance(part, Mapping) for part in seeds.values())
        and all(
            isinstance(share, str) and _is_hexadecimal(share)
            for part in (*seeds.values(), dropped)
            for share in part.values()
        )
    )


def _are_keys(pair: Sequence[Any]) -> bool:
    return all(
        isinstance(key, str) and len(key) == 2 * SEED_BYTES and _is_hexadecimal(key) for key in pair
    )


def _is_hexadecimal(text: str) -> bool:
    return 0 < len(text) <= 256 and set(text) <= set("0123456789abcdef")
