"""Who owns a parameter, and how the owners' versions become one. Pure functions, no messages."""

from collections.abc import Mapping

import torch
from torch import Tensor

from mixmfl.errors import AggregationError
from mixmfl.memory import State


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


def select_blocks(state: Mapping[str, Tensor], blocks: Mapping[str, int]) -> State:
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
