"""Secure aggregation at a site: its secrets, its masks, and the tasks that it refuses."""

import dataclasses
import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mixmfl.core.errors import PrivacyError
from mixmfl.core.json_fields import JsonFields
from mixmfl.core.tensor_store import pieces
from mixmfl.core.text import quoted
from mixmfl.federated.aggregation import PIECE, select_blocks
from mixmfl.federated.client.outbound import outgoing
from mixmfl.federated.client.training import train_at_site
from mixmfl.federated.messages import Message
from mixmfl.federated.secure_aggregation.crypto import (
    SEED_BYTES,
    agree,
    key_pair,
    open_sealed,
    seal,
    split_secret,
    to_words,
)
from mixmfl.federated.secure_aggregation.protocol import (
    FEWEST_SUMMED,
    LOSS,
    Participants,
    add_masks,
    bits_of,
    block_length,
    is_hexadecimal,
    pair_mask,
)
from mixmfl.federated.state import RunSettings, Site, register
from mixmfl.networks.build import PrototypeSizes, prototype_sizes
from mixmfl.networks.prototypes import PARTS, Prototypes, State
from mixmfl.planning.plans import Plans


@dataclass(frozen=True)
class Secrets:
    """A site's secrets during one round; they are deleted after it.

    Attributes:
        round: Number of the round.
        seal_key: Private key for sealed shares.
        mask_key: Private key for masks.
        roster: Participants of the round; None: not received yet.
        seeds: Seeds of the site's own masks, by block.
        kept: Shares of the other sites' secrets and of its own, by site.
        sent: Whether the site has made its masked reply, so that it may be asked to unmask.
    """

    round: int
    seal_key: bytes = field(repr=False)
    mask_key: bytes = field(repr=False)
    roster: Participants | None = None
    seeds: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    kept: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, repr=False)
    sent: bool = False


def answer_masked(
    task: Message,
    site: Site,
    plans: Plans,
    settings: RunSettings,
    optimizer_state: State,
    before: Secrets | None,
) -> tuple[Message, State, Secrets | None]:
    """Do a task of a masked round.

    Args:
        task: One of ``protocol.KINDS``.
        site: The site that does it.
        plans: Plans of the run.
        settings: Settings of the run.
        optimizer_state: Optimizer state after the site's last training, or empty.
        before: Secrets that this function returned last, or None.

    Returns:
        The reply; the optimizer state after training, otherwise empty; and the secrets for the
        next task, which are kept in memory only.

    Raises:
        PrivacyError: The task asks for what would reveal the site's numbers.
        MixmflError: The loss became NaN or infinite, or the device's memory ran out.
    """
    after: State = {}

    def train(plain: Message) -> Message:
        reply, optimizer = train_at_site(plain, site, plans, settings, optimizer_state)
        after.update(optimizer)
        return reply

    weights = register(site).weights
    sizes = prototype_sizes(plans, settings.configuration)
    reply, secrets_after = _answer(task, site.name, before, weights, sizes, train)
    return reply, after, secrets_after


def _answer(
    task: Message,
    site: str,
    before: Secrets | None,
    weights: Mapping[str, int],
    sizes: Mapping[int, PrototypeSizes],
    train: Callable[[Message], Message],
) -> tuple[Message, Secrets | None]:
    """Return the reply to one of ``KINDS``, and the secrets to keep; None after the last task."""
    number = int(task.record["round"])
    if task.kind == "keys":
        (seal_key, seal_public), (mask_key, mask_public) = key_pair(), key_pair()
        record = {"round": number, "seal": seal_public.hex(), "mask": mask_public.hex()}
        return outgoing("keys", record), Secrets(number, seal_key, mask_key)
    if before is None or before.round != number:
        raise PrivacyError(
            f"the server sent a {task.kind!r} task for round {number}, which has no keys here"
        )
    if task.kind == "shares":
        return _share(task, site, before)
    if task.kind == "masked":
        return _mask(task, site, before, weights, sizes, train)
    return _unmask(task, site, before), None


def _share(task: Message, site: str, before: Secrets) -> tuple[Message, Secrets]:
    """Share the round's secrets among all participants, sealed for each."""
    roster = Participants.from_json(task.record)
    if before.roster is not None or site not in roster.keys:
        raise PrivacyError(
            "a site shares its secrets once per round, and only in rounds that it takes part in"
        )
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
    after = Secrets(before.round, before.seal_key, before.mask_key, roster, seeds, own)
    return reply, after


def _mask(
    task: Message,
    site: str,
    before: Secrets,
    weights: Mapping[str, int],
    sizes: Mapping[int, PrototypeSizes],
    train: Callable[[Message], Message],
) -> tuple[Message, Secrets]:
    """Train, then add to every block the masks of all pairs and the site's own mask."""
    roster = before.roster
    if roster is None or before.sent:
        raise PrivacyError(
            "a site sends its masked reply once per round, after it has shared its secrets"
        )
    kept = dict(before.kept)
    for other, sealed in task.record["sealed"].items():
        if other not in roster.keys or other == site:
            raise PrivacyError(
                f"the server sent shares of {quoted(other)}, which does not take part in the round"
            )
        kept[other] = _read_shares(
            open_sealed(_seal_key(before, roster, site, other, site), sealed), roster, other
        )
    plain = {"round": before.round, "blocks": task.record["blocks"]}
    reply = train(dataclasses.replace(task, kind="train", record=plain))
    tensors: State = {}
    for block, seed in before.seeds.items():
        holders = [other for other in roster.holders[block] if other in kept]
        if len(holders) < FEWEST_SUMMED:
            continue  # the others did not share their secrets, so the sum could not be unmasked
        masks = [
            pair_mask(before.mask_key, roster, site, other, block)
            for other in holders
            if other != site
        ]
        words = np.empty(block_length(block, task.tensors, sizes), dtype=np.uint64)
        start = 0
        for values in _to_sum(block, reply, weights, sizes):
            part = words[start : start + len(values)]
            part[:] = to_words(values, bits_of(block), len(holders))
            add_masks(part, start, [(seed, 1), *masks])
            start += len(values)
        tensors[f"masked.{block}"] = torch.from_numpy(words.view(np.int64))
    record = {k: v for k, v in reply.record.items() if k != "loss"}
    after = Secrets(
        before.round, before.seal_key, before.mask_key, roster, before.seeds, kept, sent=True
    )
    return outgoing("masked", record, tensors), after


def _read_shares(content: Any, roster: Participants, sender: str) -> Mapping[str, Any]:
    """Return another site's shares, made by its ``_share``; the server cannot read them."""
    fields = JsonFields(content, f"the shares of site {sender!r}", PrivacyError).only(
        ["key", "seeds"]
    )
    seeds = fields.inside("seeds", len(roster.holders))
    held = {block for block, holders in roster.holders.items() if sender in holders}
    if (
        seeds.content.keys() != held
        or not is_hexadecimal(fields.value("key"))
        or not all(map(is_hexadecimal, seeds.content.values()))
    ):
        raise PrivacyError(f"{fields.source}: are not those of the blocks that it holds")
    return fields.content


def _unmask(task: Message, site: str, before: Secrets) -> Message:
    """Return shares of secrets: of a site that replied, its own masks' seeds; else its mask key."""
    roster, replied = before.roster, set(task.record["replied"])
    if (
        roster is None
        or not before.sent
        or site not in replied
        or not replied <= set(before.kept)
        or len(replied) < max(roster.threshold, FEWEST_SUMMED)
    ):
        raise PrivacyError(
            f"the server asked to unmask round {before.round + 1} for {len(replied)} sites, which "
            "would reveal more than their sum"
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
    """Yield the values that a site adds to the sum of a block, in pieces."""
    if block == LOSS:
        loss = reply.record.get("loss")
        yield np.array([0.0, 0.0] if loss is None else [float(loss), 1.0])
    elif block.startswith("memory."):
        prototypes = _prototypes(block, reply.tensors, sizes)
        counts = prototypes.counts.double()
        features = [prototypes.values, prototypes.spreads]
        sums = [(rows.double() * counts[:, None]).flatten() for rows in features]
        yield torch.cat([*sums, counts]).numpy()
    else:
        names = sorted(select_blocks(reply.tensors, [block]))
        for change in pieces(reply.tensors, names, PIECE):
            yield change.double().numpy() * weights[block]


def _prototypes(
    block: str, tensors: Mapping[str, Tensor], sizes: Mapping[int, PrototypeSizes]
) -> Prototypes:
    """Return a modality's prototypes at a level; zeros where the site reports none."""
    size = sizes[int(block.rpartition(".")[2])]
    if f"{block}.counts" not in tensors:
        return size.unseen()
    return Prototypes(*(tensors[f"{block}.{part}"] for part in PARTS))


def _seal_key(mine: Secrets, roster: Participants, site: str, sender: str, receiver: str) -> bytes:
    """Return the key that seals shares from ``sender`` to ``receiver``; ``site`` is one of them."""
    other = receiver if site == sender else sender
    purpose = f"shares, round {roster.round}, {sender!r} to {receiver!r}"
    return agree(mine.seal_key, bytes.fromhex(roster.keys[other][0]), purpose)
