"""Rounds in which the server learns sums over sites and no site's own numbers.

After Bonawitz et al. 2017, Practical Secure Aggregation for Privacy-Preserving Machine Learning,
for sites that hold different blocks, and without what that has for sites that drop out: a sum is
over all sites of the run, or is not made. For the difference of two sums, one with a site and one
without, is that site's numbers. What crosses in a round::

    keys      server asks; each site sends a public key of this round, which it signed
    masked    server passes the keys on, and the weights; each site trains, and sends its blocks
              weighted, in fixed point, plus one mask per pair of holders

The masks of a pair cancel in the sum of all holders, and no other sum can be read. They are
derived from who takes part, with which keys, and from the weights, so that sites that received
different things have masks that do not cancel. Messages are plain; nothing of this knows what
carries them. ``secure_aggregation`` of ``client`` and of ``server`` are the two ends, ``crypto``
has the arithmetic, and here is what both ends agree on.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from mixmfl.core.declarations import entries, text, within
from mixmfl.core.errors import PrivacyError
from mixmfl.core.json_fields import shown
from mixmfl.core.records import read_record
from mixmfl.core.tensor_store import form_of, only
from mixmfl.core.text import quoted, shorten
from mixmfl.federated.aggregation import select_blocks
from mixmfl.federated.secure_aggregation.signatures import MOST_SITES, SignedKey, SiteName
from mixmfl.networks.build import PrototypeSizes
from mixmfl.planning.bounds import MOST_ROUNDS
from mixmfl.planning.plans import Plans
from mixmfl.training.trainer import check_optimizer

FEWEST_SUMMED = 3
"""Fewest sites in a sum: from a sum over two, each of them can compute the other's part."""

LOSS = "loss"
"""The block that all sites hold: sums of losses and of their Dice parts, and how many these are."""

MOST_BLOCKS = 2000
"""Most blocks that are summed in a round; a modality's prototypes at a level are one."""

KINDS = ("keys", "masked")

TRAINING = ("train", "masked")
"""Kinds of tasks in which a site takes gradient steps, and needs its optimizer state."""

# bits after the point. Weights times updates stay below 2^30 / sites, to 2^-33; a prototype's
# feature times its voxels below 2^38 / sites, to 2^-25
WEIGHT_BITS, MEMORY_BITS = 32, 24

ROUNDS_WITH = "rounds with "
"""In an optimizer state, before a site's name: digest of all rounds that both sites trained in."""

_DIGEST = ((32,), torch.uint8)  # shape and type of a SHA-256

BlockName = Annotated[str, text(100)]


@dataclass(frozen=True)
class Participants:
    """Who has a part in a round, and in what.

    Attributes:
        round: Counted from 0.
        keys: Public key by site, with what shows whose it is.
        holders: Sites by block, sorted; only of blocks that are summed.
    """

    round: Annotated[int, within(0, MOST_ROUNDS)]
    keys: Annotated[Mapping[SiteName, SignedKey], entries(0, MOST_SITES)]
    holders: Annotated[
        Mapping[
            BlockName,
            Annotated[tuple[SiteName, ...], entries(0, MOST_SITES, distinct=True)],
        ],
        entries(0, MOST_BLOCKS),
    ]

    @property
    def trained(self) -> tuple[str, ...]:
        """Return the blocks of the network that are summed, and so are trained."""
        return tuple(
            block for block in self.holders if block != LOSS and not block.startswith("memory.")
        )

    def to_json(self) -> dict[str, Any]:
        """Return the participants as a record."""
        return {
            "round": self.round,
            "keys": {site: signed.to_json() for site, signed in sorted(self.keys.items())},
            "holders": {block: list(sites) for block, sites in sorted(self.holders.items())},
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "Participants":
        """Read what ``to_json`` wrote.

        Raises:
            PrivacyError: So few sites would hide nothing, or a field is wrong.
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
        fewest = min((len(sites) for sites in participants.holders.values()), default=0)
        if fewest < FEWEST_SUMMED:
            raise PrivacyError(
                f"a masked round was asked for with {fewest} holders of a block; at least "
                f"{FEWEST_SUMMED} are needed, for a sum over fewer hides nothing"
            )
        return participants


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
        return 3
    if block.startswith("memory."):
        size = sizes[int(block.rpartition(".")[2])]
        return sum(math.prod(shape) for shape in size.shapes.values())
    names = select_blocks(weights, [block])
    return sum(math.prod(form_of(names, name)[0]) for name in names)


def bits_of(block: str) -> int:
    """Return how many bits after the point the numbers of a block are summed with."""
    return MEMORY_BITS if block.startswith("memory.") else WEIGHT_BITS


def check_stored_optimizer(plans: Plans, configuration: str, state: Mapping[str, Tensor]) -> None:
    """Check what a site stores between rounds: AdamW's state, and digests of masked rounds.

    None of it is read.

    Raises:
        ValueError: A tensor is neither, is missing, or has another shape or type; or there are more
            digests than a run has sites.
    """
    digests = [name for name in state if name.startswith(ROUNDS_WITH)]
    if len(digests) > MOST_SITES:
        raise ValueError(f"it has digests of rounds with {len(digests)} sites")
    if strange := [name for name in digests if form_of(state, name) != _DIGEST]:
        raise ValueError(f"{quoted(strange[0])} is no digest")
    check_optimizer(plans, configuration, only(state, state.keys() - {*digests}))
