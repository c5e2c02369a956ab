"""Secure aggregation at a site: its key, its masks, and the tasks that it refuses."""

import dataclasses
import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mixmfl.core.errors import PrivacyError
from mixmfl.core.files import json_digest
from mixmfl.core.tensor_store import Tensors, digest, only, pieces
from mixmfl.federated.aggregation import PIECE, select_blocks
from mixmfl.federated.client.outbound import outgoing
from mixmfl.federated.client.summed_sites import SummedSites
from mixmfl.federated.client.training import train_at_site
from mixmfl.federated.messages import Message
from mixmfl.federated.secure_aggregation.crypto import agree, key_pair, key_stream, to_words
from mixmfl.federated.secure_aggregation.protocol import (
    LOSS,
    ROUNDS_WITH,
    Participants,
    bits_of,
    block_length,
)
from mixmfl.federated.secure_aggregation.signatures import Identity, SignedKey
from mixmfl.federated.state import RunSettings, Site, register
from mixmfl.networks.build import PrototypeSizes, prototype_sizes
from mixmfl.networks.parameters import block_of
from mixmfl.networks.prototypes import PARTS, Prototypes, State
from mixmfl.planning.plans import Plans


@dataclass(frozen=True)
class Signer:
    """What a site needs for masked rounds of a run.

    Attributes:
        identity: What the site signs its keys with, and whose it takes.
        run: What signatures are for; see ``run_and_terms``.
        summed: With whom the site's numbers were summed before.
    """

    identity: Identity
    run: str
    summed: SummedSites


def run_and_terms(join: Mapping[str, Any]) -> str:
    """Return the name of a run with a digest of how this site joined it.

    Sites take each other's keys only where it is the same. Else a server that has all but one
    train at a learning rate of next to nothing would read that one's update in the sum.

    Args:
        join: The record of the task ``join``.
    """
    terms = {name: join[name] for name in ("plans", "settings", "fold")}
    return f"{join['run']} {json_digest(terms)}"


@dataclass(frozen=True)
class RoundKey:
    """A site's private key for one masked reply; it is kept in memory only, and used once.

    Attributes:
        round: Number of the round.
        private: The private key.
        signed: The public key as it was sent.
    """

    round: int
    private: bytes = field(repr=False)
    signed: SignedKey


def send_key(task: Message, signer: Signer) -> tuple[Message, RoundKey]:
    """Make a new key for a round, and return the reply with its public half, signed."""
    number = int(task.record["round"])
    private, public = key_pair()
    signed = signer.identity.sign(signer.run, number, public)
    reply = outgoing("keys", {"round": number, **signed.to_json()})
    return reply, RoundKey(number, private, signed)


def train_masked(
    task: Message,
    site: Site,
    plans: Plans,
    settings: RunSettings,
    optimizer_state: Tensors,
    key: RoundKey | None,
    signer: Signer,
) -> tuple[Message, State]:
    """Train, then add to every block a mask for every other holder.

    Args:
        task: A task of kind ``masked``.
        site: The site that does it.
        plans: Plans of the run.
        settings: Settings of the run.
        optimizer_state: Optimizer state after the site's last training, or empty.
        key: The key of ``send_key``; the caller forgets it, whatever comes of this.
        signer: What the site signed the key with, whose keys it takes, and with whom its numbers
            were summed before.

    Returns:
        The reply, and the optimizer state after training.

    Raises:
        PrivacyError: The task asks for what would reveal the site's numbers.
        MixmflError: The loss became NaN or infinite, or the device's memory ran out.
    """
    participants = Participants.from_json(task.record)
    weights = register(site).weights
    mine = [block for block, holders in participants.holders.items() if site.name in holders]
    key = _usable_key(key, participants, site.name, signer)
    _check_blocks(mine, weights, participants)
    signer.summed.agree(participants.holders)
    plain = {"round": participants.round, "blocks": participants.trained}
    reply, after = train_at_site(
        dataclasses.replace(task, kind="train", record=plain), site, plans, settings,
        only(optimizer_state, [n for n in optimizer_state if not n.startswith(ROUNDS_WITH)]),
    )  # fmt: skip
    sizes = prototype_sizes(plans, settings.configuration)
    common = round_digests(task, participants, site.name, optimizer_state)
    tensors: State = {}
    for block in mine:
        holders = participants.holders[block]
        masks = [
            pair_mask(key, participants, site.name, other, f"{block!r}, {common[other]}")
            for other in holders
            if other != site.name
        ]
        words = np.empty(block_length(block, task.tensors, sizes), dtype=np.uint64)
        start = 0
        for values in _to_sum(block, reply, weights, sizes):
            part = words[start : start + len(values)]
            part[:] = to_words(values, bits_of(block), len(holders))
            for seed, add_or_subtract in masks:
                add_or_subtract(part, key_stream(seed, len(part), start), out=part)
            start += len(values)
        tensors[f"masked.{block}"] = torch.from_numpy(words.view(np.int64))
    record = {k: v for k, v in reply.record.items() if k not in ("loss", "dice_loss")}
    rounds = {n: t for n, t in optimizer_state.items() if n.startswith(ROUNDS_WITH)}
    for other, of_both in common.items():
        rounds[f"{ROUNDS_WITH}{other}"] = torch.tensor([*bytes.fromhex(of_both)]).byte()
    return outgoing("masked", record, tensors), {**after, **rounds}


def _usable_key(
    key: RoundKey | None, participants: Participants, name: str, signer: Signer
) -> RoundKey:
    """Return a site's key of a round, if every participant's key is the one that its site sent.

    Raises:
        PrivacyError: The site has no key of this round, or somebody's key is another.
    """
    if key is None or key.round != participants.round:
        raise PrivacyError(
            f"the server asked for masked numbers of round {participants.round + 1}, for which "
            "this site has no key; it uses each once, and loses it when it restarts"
        )
    if participants.keys.get(name) != key.signed:
        raise PrivacyError(
            f"the coordinator passes on another key as that of this site in round "
            f"{participants.round + 1} than the one that it sent; nothing is sent"
        )
    signer.identity.check(signer.run, participants.round, participants.keys)
    return key


def _check_blocks(
    mine: Collection[str], weights: Collection[str], participants: Participants
) -> None:
    """Check that the server names as a site's blocks those that the site has.

    Args:
        mine: Blocks that the server counts the site among the holders of.
        weights: Blocks that the site registers with.
        participants: Who takes part in the round, and with what.

    Raises:
        PrivacyError: It names others.
    """
    trained = {*participants.trained}
    if LOSS not in mine or {*weights} & trained != {*mine} & trained:
        raise PrivacyError(
            "the server asked for masked numbers of blocks that are not those this site holds"
        )


def pair_mask(
    key: RoundKey, participants: Participants, site: str, other: str, purpose: str
) -> tuple[bytes, np.ufunc]:
    """Return the seed of the mask that two sites share, and what this one does with the mask."""
    first, second = sorted((site, other))
    purpose = f"mask, round {participants.round}, {first!r} and {second!r}, {purpose}"
    seed = agree(key.private, bytes.fromhex(participants.keys[other].key), purpose)
    return seed, np.add if site == first else np.subtract


def round_digests(
    task: Message, participants: Participants, site: str, optimizer_state: Tensors
) -> dict[str, str]:
    """Return, by other site, a digest of what the server must have sent to both, now and before.

    That is who takes part, with which keys, and all tensors that both have: those of the blocks
    that only some sites hold where both do, and all others. What was sent before counts because an
    update depends on the optimizer state, too: a server that had one site train an earlier round
    from other weights, and then all of them the same round again, would read that site's update in
    the difference of the two sums.
    """
    before = {
        name.removeprefix(ROUNDS_WITH): bytes(tensor.tolist()).hex()
        for name, tensor in optimizer_state.items()
        if name.startswith(ROUNDS_WITH)
    }
    names: dict[str, list[str]] = {}
    for name in sorted(task.tensors):
        block = block_of(name)
        names.setdefault(block if block.startswith("tailored.") else "", []).append(name)
    parts = {block: digest(only(task.tensors, chosen)) for block, chosen in names.items()}
    return {
        other: hashlib.sha256(
            json.dumps(
                [before.get(other, ""), participants.to_json()]
                + [
                    part
                    for block, part in parts.items()
                    if not block or {site, other} <= {*participants.holders.get(block, ())}
                ]
            ).encode()
        ).hexdigest()
        for other in participants.keys
        if other != site
    }


def _to_sum(
    block: str,
    reply: Message,
    weights: Mapping[str, int],
    sizes: Mapping[int, PrototypeSizes],
) -> Iterator[npt.NDArray[np.float64]]:
    """Yield the values that a site adds to the sum of a block, in pieces."""
    if block == LOSS:
        loss = reply.record.get("loss")
        parts = [0.0] * 3 if loss is None else [float(loss), float(reply.record["dice_loss"]), 1.0]
        yield np.array(parts)
    elif block.startswith("memory."):
        prototypes = _prototypes(block, reply.tensors, sizes)
        counts = prototypes.counts.double()
        sums = (prototypes.values.double() * counts[:, None]).flatten()
        yield torch.cat([sums, counts]).numpy()
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
