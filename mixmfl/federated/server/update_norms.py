"""How long updates may be: their norms, what is usual, and how far the optimizer can go.

A reply that is longer than that is refused; see ``update_checks``.
"""

import math
import statistics
from collections.abc import Iterable, Mapping

from torch import Tensor

from mixmfl.core.errors import AggregationError
from mixmfl.core.tensor_store import only
from mixmfl.federated.aggregation import norm_of, select_blocks
from mixmfl.networks.parameters import block_of
from mixmfl.networks.prototypes import State

NORM_FACTOR = 10.0
"""How many times the usual norm an update may have.

Between honest sites and neighbouring rounds norms differ by a factor of two to three, for AdamW's
steps have nearly the same length whatever the gradients are.
"""

_MOST_NORM = 1e19  # of any part of a reply

NORM_ROUNDS = 5
"""Rounds whose norms say what is usual."""

# of AdamW, torch's defaults, which ``train_locally`` leaves as they are
_BETA_1, _BETA_2 = 0.9, 0.999
# by Cauchy and Schwarz no step, in learning rates, takes a parameter further than this, whatever
# the gradients: sqrt(sum a_i^2 / b_i) with the weights a_i, b_i that they have in both moments
_STEP = (1 - _BETA_1) / math.sqrt((1 - _BETA_2) * (1 - _BETA_1**2 / _BETA_2))


def norms_of(tensors: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the norm of a reply's changes by block, and of its prototypes' features by place.

    A norm is not finite where a number in it is not.
    """
    places: dict[str, list[str]] = {}
    for name in tensors:
        if not name.endswith(".counts"):
            remembered = name.startswith("memory.")
            place = name.rpartition(".")[0] if remembered else block_of(name)
            places.setdefault(place, []).append(name)
    return {place: norm_of(only(tensors, names)) for place, names in sorted(places.items())}


def check_finite(site: str, norms: Mapping[str, float]) -> None:
    """Check norms before anything is compared with them, for NaN is neither greater nor less.

    Raises:
        AggregationError: A norm is not finite, or beyond ``_MOST_NORM``.
    """
    for place, norm in norms.items():
        if not norm <= _MOST_NORM:  # nor NaN
            raise AggregationError(
                f"site {site!r} sent {place} with NaN, infinity or a norm beyond 1e19"
            )


def usual_norms(
    recent: Mapping[str, tuple[float, ...]], norms: Mapping[str, Mapping[str, float]]
) -> dict[str, float]:
    """Return by block what norm is usual.

    That is the median over recent rounds of each round's median; without such a round the median
    of this round's, if there are three or more: of fewer nobody can say which is usual.

    Args:
        recent: Medians of the last rounds by block, as ``remember_norms`` returns them.
        norms: Norms of this round by site, then block.
    """
    usual = {}
    for block in sorted({block for of_site in norms.values() for block in of_site}):
        here = [of_site[block] for of_site in norms.values() if block in of_site]
        known = recent.get(block, ()) or (here if len(here) > 2 else ())
        # a block that did not move at all says nothing about how far it may
        if known and (middle := statistics.median(known)) > 0:
            usual[block] = middle
    return usual


def reach_of(
    weights: State, local_steps: int, learning_rate: float, weight_decay: float
) -> dict[str, float]:
    """Return by block how far the optimizer can take it in a round.

    Args:
        weights: Network weights at the start of the round.
        local_steps: Gradient steps of a site in the round.
        learning_rate: Learning rate of the round.
        weight_decay: Weight decay of AdamW.
    """
    reach = {}
    for block in sorted({block_of(name) for name in weights}):
        tensors = select_blocks(weights, [block])
        size = math.sqrt(sum(tensor.numel() for tensor in tensors.values()))
        length = norm_of(tensors)
        steps = local_steps * learning_rate * _STEP * size
        reach[block] = steps + local_steps * learning_rate * weight_decay * (length + steps)
    return reach


def check_norms(
    site: str,
    norms: Mapping[str, float],
    usual: Mapping[str, float],
    reach: Mapping[str, float],
    local_steps: int,
    learning_rate: float,
) -> None:
    """Check that no update is absurdly long.

    It may be at most ``NORM_FACTOR`` times the usual norm, and never longer than the optimizer
    can go in the steps that were asked for, which also holds where nothing is usual yet.

    Args:
        site: Name of the site that sent the reply.
        norms: Norms of the site's update by block.
        usual: Usual norms by block; see ``usual_norms``.
        reach: Longest possible update by block; see ``reach_of``.
        local_steps: Gradient steps of a site in the round.
        learning_rate: Learning rate of the round.

    Raises:
        AggregationError: An update is longer.
    """
    for block, norm in norms.items():
        if block in usual and norm > NORM_FACTOR * usual[block]:
            raise AggregationError(
                f"site {site!r} sent {block} with the norm {norm:.3g}, {norm / usual[block]:.0f} "
                f"times the median of recent rounds ({usual[block]:.3g}); at most "
                f"{NORM_FACTOR:g} times are taken"
            )
        if block.startswith("memory."):
            continue
        if norm > 1.01 * reach[block]:  # for rounding
            raise AggregationError(
                f"site {site!r} sent {block} with an update of the norm {norm:.3g}; {local_steps} "
                f"steps at learning rate {learning_rate:g} cannot go further than "
                f"{reach[block]:.3g}"
            )


def remember_norms(
    recent: Mapping[str, tuple[float, ...]], norms: Iterable[Mapping[str, float]]
) -> dict[str, tuple[float, ...]]:
    """Return the medians of the last rounds by block, with those of the round just done.

    Args:
        recent: Medians of the rounds before, by block.
        norms: Norms of each merged reply by block.
    """
    by_block: dict[str, list[float]] = {}
    for of_reply in norms:
        for block, norm in of_reply.items():
            by_block.setdefault(block, []).append(norm)
    latest = {block: (statistics.median(values),) for block, values in by_block.items()}
    return {
        block: (*recent.get(block, ()), *latest.get(block, ()))[-NORM_ROUNDS:]
        for block in sorted({*recent, *latest})
    }
