"""Who owns a parameter, and how the owners' versions become one. Pure functions, no messages."""

import math
import statistics
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from mixmfl.errors import AggregationError
from mixmfl.memory import State

FEWEST_HOLDERS = {"mean": 1, "clipped": 1, "median": 3, "trimmed": 3}
"""From how many holders of a block on a rule is that rule; with fewer it is ``clipped``.

Of two values that differ nothing tells which one is hostile; clipping bounds what either can do.
"""


def block_of(name: str) -> str:
    """Return the block that a parameter belongs to: ``tailored.<modality>`` or its first word."""
    first, *rest = name.split(".")
    return f"{first}.{rest[0]}" if first == "tailored" else first


def block_weights(cases: int, modality_cases: Mapping[str, int]) -> dict[str, int]:
    """Return what a site's word counts for, per block that it uses.

    A tailored encoder by the site's training cases that have the modality, the shared encoder by
    its (case, modality) pairs, fusion, decoder and a stacked network's encoder by its cases.

    Args:
        cases: Training cases of the site.
        modality_cases: How many of them have each modality.
    """
    weights = {
        f"tailored.{name}": count for name, count in sorted(modality_cases.items()) if count > 0
    }
    by_cases = dict.fromkeys(("encoder", "fusion", "decoder"), cases)
    return {**weights, "shared": sum(modality_cases.values()), **by_cases}


def select_blocks(state: Mapping[str, Tensor], blocks: Collection[str]) -> State:
    """Return the parameters of the blocks that a site uses: all that it is sent, and sends."""
    return {name: tensor for name, tensor in state.items() if block_of(name) in blocks}


def average(states: Mapping[str, State], weights: Mapping[str, Mapping[str, float]]) -> State:
    """Average the sites' parameters by name, each site weighted per block.

    A parameter is averaged over the sites that sent it: a site without T2 has no say in the T2
    encoder. With equal blocks and weights everywhere this is FedAvg (McMahan et al. 2017). Sums
    run over sites in the order of their names, in float64. The inputs are left as they are.

    Args:
        states: By site.
        weights: By site, then block, as ``block_weights`` gives them.

    Raises:
        AggregationError: Sites disagree on a shape, or nobody who sent a parameter has a case
            behind it.
    """
    merged: State = {}
    for name in sorted({name for state in states.values() for name in state}):
        holders = sorted(site for site in states if name in states[site])
        block, first = block_of(name), states[holders[0]][name]
        total = sum(weights[site].get(block, 0) for site in holders)
        if not total > 0:
            raise AggregationError(
                f"{name}: none of its sites {holders} has a training case for it"
            )
        mean = torch.zeros_like(first, dtype=torch.float64)
        for site in holders:
            tensor = states[site][name]
            if tensor.shape != first.shape:
                raise AggregationError(
                    f"{name}: site {site!r} sent shape {tuple(tensor.shape)}, site {holders[0]!r} "
                    f"sent {tuple(first.shape)}; were both started from the same plans?"
                )
            mean.add_(tensor, alpha=weights[site].get(block, 0) / total)
        merged[name] = mean.to(first.dtype)
    return merged


def update_norm(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> float:
    """Return the Euclidean norm of ``after`` minus ``before``, over the tensors of ``after``."""
    squares = [(after[n].double() - before[n].double()).square().sum() for n in sorted(after)]
    return math.sqrt(sum(float(square) for square in squares))


def clip_update(before: Mapping[str, Tensor], after: State, most: float) -> State:
    """Return ``after``, drawn towards ``before`` until their distance is at most ``most``."""
    norm = update_norm(before, after)
    if norm <= most:
        return after
    return {
        n: (before[n].double() + (after[n].double() - before[n].double()) * (most / norm)).to(
            after[n].dtype
        )
        for n in after
    }


def median(values: Sequence[Tensor]) -> Tensor:
    """Return the median by coordinate, of an even number the mean of the two in the middle."""
    ordered = torch.stack(list(values)).double().sort(dim=0).values
    return (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2


def trimmed_mean(values: Sequence[Tensor], share: float) -> Tensor:
    """Return the mean by coordinate without the greatest and the least values.

    Args:
        values: Three or more.
        share: Of the values that is left out at each end, rounded down; at least one value is.
    """
    ordered = torch.stack(list(values)).double().sort(dim=0).values
    cut = min(max(1, math.floor(share * len(ordered))), (len(ordered) - 1) // 2)
    return ordered[cut : len(ordered) - cut].mean(dim=0)


def merge_blocks(
    before: Mapping[str, Tensor],
    states: Mapping[str, State],
    weights: Mapping[str, Mapping[str, float]],
    rule: str,
    trimming: float,
    usual: Mapping[str, float],
) -> State:
    """Merge the sites' parameters block by block, by a rule.

    ``mean`` is ``average``. ``clipped`` is the same after the update of each site was shortened
    to the usual norm (Sun et al. 2019, Can You Really Backdoor Federated Learning?). ``median``
    and ``trimmed`` work by coordinate (Yin et al. 2018, Byzantine-Robust Distributed Learning),
    and there every site counts the same: by overstating its cases it would buy a greater say.

    Args:
        before: That the sites started from.
        states: By site.
        weights: By site, then block.
        rule: One of ``FEWEST_HOLDERS``, which says when another takes its place.
        trimming: Of ``trimmed``.
        usual: Norm of an update by block; one that is not there is the median of these updates.

    Raises:
        AggregationError: As ``average``.
    """
    merged: State = {}
    for block in sorted({block_of(name) for state in states.values() for name in state}):
        parts = {site: select_blocks(states[site], [block]) for site in sorted(states)}
        parts = {site: part for site, part in parts.items() if part}
        chosen = rule if len(parts) >= FEWEST_HOLDERS[rule] else "clipped"
        if chosen == "clipped":
            norms = [update_norm(before, part) for part in parts.values()]
            most = usual.get(block, statistics.median(norms))
            parts = {site: clip_update(before, part, most) for site, part in parts.items()}
        if chosen in ("mean", "clipped"):
            merged |= average(parts, weights)
        else:
            for name in next(iter(parts.values())):
                values = [part[name] for part in parts.values()]
                found = median(values) if chosen == "median" else trimmed_mean(values, trimming)
                merged[name] = found.to(values[0].dtype)
    return merged
