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
holders became fewer than three stays hidden. Messages are plain; nothing of this knows what carries
them. ``masked_site`` and ``masked_server`` are the two ends, ``masks`` has the arithmetic, and here
is what both ends agree on.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeGuard

import numpy as np
from torch import Tensor

from mixmfl.core.declarations import entries, text, within
from mixmfl.core.errors import PrivacyError
from mixmfl.core.json_fields import is_word, shown
from mixmfl.core.records import read_record
from mixmfl.core.tensor_store import form_of
from mixmfl.core.text import shorten
from mixmfl.federated.aggregation import select_blocks
from mixmfl.federated.messages import MOST_ROUNDS
from mixmfl.federated.secure_aggregation.crypto import SEED_BYTES, Words, agree, key_stream
from mixmfl.networks.build import PrototypeSizes

FEWEST_SUMMED = 3
"""Fewest sites in a sum: from a sum over two, each of them can compute the other's part."""

LOSS = "loss"
"""The block that all sites hold: the sum of their losses, and how many these are."""

MOST_SITES = 1000
"""Most sites in a masked round: every site shares its secrets with every other."""

MOST_BLOCKS = 2000
"""Most blocks that are summed in a round; a modality's prototypes at a level are one."""

_DIGITS = "0123456789abcdef"

_MOST_SEALED = 2**18  # hexadecimal digits; 300 blocks have 100,000

KINDS = ("keys", "shares", "masked", "unmask")

TRAINING = ("train", "masked")
"""Kinds of tasks in which a site takes gradient steps, and needs its optimizer state."""

# bits after the point. Weights times updates stay below 2^30 / sites, to 2^-33; a prototype's
# feature times its voxels below 2^38 / sites, to 2^-25
WEIGHT_BITS, MEMORY_BITS = 32, 24

SiteName = Annotated[str, text(80)]

BlockName = Annotated[str, text(100)]

Sealed = Annotated[str, text(_MOST_SEALED, f"[{_DIGITS}]+", "hexadecimal digits")]
"""Sealed shares of a site."""

_Key = Annotated[
    str, text(2 * SEED_BYTES, f"[{_DIGITS}]{{{2 * SEED_BYTES}}}", "hexadecimal digits of a key")
]

Mask = tuple[bytes, int]
"""The seed of a key stream, and whether it is added (1) or taken away (-1)."""


@dataclass(frozen=True)
class Participants:
    """Who has a part in a round, and in what.

    Attributes:
        round: Counted from 0.
        keys: Public keys by site, hexadecimal: for sealed shares, and for masks.
        holders: Sites by block, sorted; only of blocks that are summed.
        threshold: Shares that give a secret.
    """

    round: Annotated[int, within(0, MOST_ROUNDS)]
    keys: Annotated[Mapping[SiteName, tuple[_Key, _Key]], entries(0, MOST_SITES)]
    holders: Annotated[
        Mapping[
            BlockName,
            Annotated[tuple[SiteName, ...], entries(0, MOST_SITES, distinct=True)],
        ],
        entries(0, MOST_BLOCKS),
    ]
    threshold: Annotated[int, within(1, MOST_SITES)]

    def place(self, site: str) -> int:
        """Return a site's number among the participants, from 1."""
        return sorted(self.keys).index(site) + 1

    def to_json(self) -> dict[str, Any]:
        """Return the participants as a record."""
        return {
            "round": self.round,
            "keys": {site: list(pair) for site, pair in sorted(self.keys.items())},
            "holders": {block: list(sites) for block, sites in sorted(self.holders.items())},
            "threshold": self.threshold,
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "Participants":
        """Read what ``to_json`` wrote.

        Raises:
            PrivacyError: So few sites or shares would hide nothing, or a field is wrong.
        """
        source = "who has a part in a masked round"
        participants = read_record(cls, record, source, PrivacyError)
        for block, sites in participants.holders.items():
            if not set(sites) <= participants.keys.keys():
                known = shorten(sorted(participants.keys), 20)
                raise PrivacyError(
                    f"{source}: holders: {block}: is {shown(sites)}; needed is a list of {known}, "
                    "each at most once"
                )
        if participants.threshold > len(participants.keys):
            raise PrivacyError(
                f"{source}: threshold: is {participants.threshold}; it must be at most the number "
                f"of sites, {len(participants.keys)}"
            )
        fewest = min((len(sites) for sites in participants.holders.values()), default=0)
        if fewest < FEWEST_SUMMED or 2 * participants.threshold <= len(participants.keys):
            raise PrivacyError(
                f"a masked round was asked for with {fewest} holders of a block and "
                f"{participants.threshold} of {len(participants.keys)} shares to reveal a secret; "
                f"at least {FEWEST_SUMMED} holders and more than half of the shares are needed"
            )
        return participants


def are_keys(pair: Any) -> bool:
    """Say whether something is a pair of public keys, as hexadecimal digits."""
    return (
        isinstance(pair, list | tuple)
        and len(pair) == 2
        and all(is_hexadecimal(key) and len(key) == 2 * SEED_BYTES for key in pair)
    )


def are_sealed(sealed: Any, most: int = _MOST_SEALED) -> TypeGuard[Mapping[str, str]]:
    """Say whether something is sealed shares by site, each of at most so many digits."""
    return (
        isinstance(sealed, Mapping)
        and len(sealed) <= MOST_SITES
        and all(is_word(site) and is_hexadecimal(text, most) for site, text in sealed.items())
    )


def is_hexadecimal(text: Any, longest: int = 256) -> bool:
    """Say whether something is text of hexadecimal digits, an even number or not."""
    return isinstance(text, str) and 0 < len(text) <= longest and not text.strip(_DIGITS)


def pair_mask(mask_key: bytes, roster: Participants, site: str, other: str, block: str) -> Mask:
    """Return what a site adds to a block for one other holder, who adds the opposite."""
    first, second = sorted((site, other))
    purpose = f"mask, round {roster.round}, {first!r} and {second!r}, {block!r}"
    seed = agree(mask_key, bytes.fromhex(roster.keys[other][1]), purpose)
    return seed, 1 if site == first else -1


def add_masks(words: Words, start: int, masks: Iterable[Mask]) -> None:
    """Add masks to a piece of a block that begins at its number ``start``."""
    for seed, sign in masks:
        stream = key_stream(seed, len(words), start)
        (np.add if sign > 0 else np.subtract)(words, stream, out=words)


def block_length(
    block: str, weights: Mapping[str, Tensor], sizes: Mapping[int, PrototypeSizes]
) -> int:
    """Return how many numbers a block has.

    Args:
        block: ``LOSS``, a block of the network, or a modality's prototypes at a level.
        weights: Network weights, with at least the tensors of the block.
        sizes: Sizes of the prototypes by level.
    """
    if block == LOSS:
        return 2
    if block.startswith("memory."):
        size = sizes[int(block.rpartition(".")[2])]
        return sum(math.prod(shape) for shape in size.shapes.values())
    names = select_blocks(weights, [block])
    return sum(math.prod(form_of(names, name)[0]) for name in names)


def bits_of(block: str) -> int:
    """Return how many bits after the point the numbers of a block are summed with."""
    return MEMORY_BITS if block.startswith("memory.") else WEIGHT_BITS
