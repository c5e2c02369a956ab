"""Who owns a parameter, and how the owners' versions become one. Pure functions, no messages."""

import math
import statistics
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from mixmfl.errors import AggregationError
from mixmfl.memory import State
from mixmfl.tensors import Form, Lazy, form_of, only, pieces, read_part

FEWEST_HOLDERS = {"mean": 1, "clipped": 1, "median": 3, "trimmed": 3}
"""From how many holders of a block on a rule is that rule; with fewer it is ``clipped``.

Of two values that differ nothing tells which one is hostile; clipping bounds what either can do.
"""

PIECE = 2**17
"""Numbers of a tensor that are worked on at once: few enough to stay in the cache of a core."""

MOST_NUMBERS = 2**22
"""The same of all sites together, where a rule needs them side by side."""


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


def select_blocks(state: Mapping[str, Tensor], blocks: Collection[str]) -> Mapping[str, Tensor]:
    """Return the parameters of the blocks that a site uses: all that it is sent, and sends."""
    return only(state, {name for name in state if block_of(name) in blocks})


def average(
    states: Mapping[str, Mapping[str, Tensor]], weights: Mapping[str, Mapping[str, float]]
) -> State:
    """Average the sites' parameters by name, each site weighted per block.

    A parameter is averaged over the sites that sent it: a site without T2 has no say in the T2
    encoder. With equal blocks and weights everywhere this is FedAvg (McMahan et al. 2017). Sums
    run over sites in the order of their names, in float64. The inputs are left as they are, and
    where they are not in memory no more of them is there at once than a piece.

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
        block, form = block_of(name), form_of(states[holders[0]], name)
        total = sum(weights[site].get(block, 0) for site in holders)
        if not total > 0:
            raise AggregationError(
                f"{name}: none of its sites {holders} has a training case for it"
            )
        for site in holders:
            if (shape := form_of(states[site], name)[0]) != form[0]:
                raise AggregationError(
                    f"{name}: site {site!r} sent shape {shape}, site {holders[0]!r} "
                    f"sent {form[0]}; were both started from the same plans?"
                )
        shares = [weights[site].get(block, 0) / total for site in holders]
        mean = torch.empty(min(PIECE, math.prod(form[0])), dtype=torch.float64)
        merged[name] = _by_pieces(
            [states[site] for site in holders],
            *(name, form, PIECE),
            partial(_weighted_sum, shares=shares, total=mean),
        )
    return merged


def _by_pieces(
    states: Sequence[Mapping[str, Tensor]],
    name: str,
    form: Form,
    most: int,
    merge: Callable[[Iterator[Tensor]], Tensor],
) -> Tensor:
    """Return what a rule makes of all versions of a tensor.

    Args:
        states: Whose versions.
        name: Of the tensor.
        form: Of each version, and of what is returned.
        most: Numbers of a version that are worked on at once.
        merge: The rule; is given the same piece of all versions, one after another, in float64,
            and must be done with one when it takes the next.
    """
    shape, kind = form
    merged = torch.empty(shape, dtype=kind)
    flat = merged.view(-1)
    room = torch.empty(min(most, len(flat)), dtype=kind)
    exact = torch.empty_like(room, dtype=torch.float64)
    for start in range(0, len(flat), most):
        stop = min(start + most, len(flat))
        parts = (read_part(state, name, start, stop, room) for state in states)
        flat[start:stop] = merge(exact[: stop - start].copy_(piece) for piece in parts)
    return merged


def _weighted_sum(pieces: Iterable[Tensor], shares: Sequence[float], total: Tensor) -> Tensor:
    """Return the weighted sum of pieces, which overwrites ``total``."""
    for place, (piece, share) in enumerate(zip(pieces, shares, strict=True)):
        if not place:
            total = total[: len(piece)].zero_()
        total.add_(piece, alpha=share)
    return total


def update_norm(before: State, after: Mapping[str, Tensor]) -> float:
    """Return the Euclidean norm of ``after`` minus ``before``, over the tensors of ``after``.

    Differences are rounded to the tensors' type, their squares are added in float64.
    """
    norms = []
    for name in sorted(after):
        origin = before[name].reshape(-1)
        for start, stop, part in pieces(after, name, PIECE):
            norms.append(length_of(part - origin[start:stop]))
    return math.hypot(*norms)


def length_of(tensor: Tensor) -> float:
    """Return the Euclidean norm of a tensor, its squares added in float64."""
    return float(torch.linalg.vector_norm(tensor, dtype=torch.float64))


class _Clipped(Lazy):
    """A state drawn towards another one."""

    def __init__(self, before: State, after: Mapping[str, Tensor], share: float) -> None:
        self._before, self._after, self._share = before, after, share

    def __iter__(self) -> Iterator[str]:
        return iter(self._after)

    def __len__(self) -> int:
        return len(self._after)

    def __contains__(self, name: object) -> bool:
        return name in self._after

    def form(self, name: str) -> Form:
        return form_of(self._after, name)

    def part(self, name: str, start: int, stop: int, room: Tensor) -> Tensor:
        new = read_part(self._after, name, start, stop, room).double()
        old = self._before[name].reshape(-1)[start:stop].double()
        return room[: stop - start].copy_(old + (new - old) * self._share)

    def only(self, names: Collection[str]) -> "_Clipped":
        return _Clipped(self._before, only(self._after, names), self._share)


def clip_update(
    before: State, after: Mapping[str, Tensor], norm: float, most: float
) -> Mapping[str, Tensor]:
    """Return ``after``, drawn towards ``before`` until their distance is at most ``most``.

    Args:
        before: That the update starts from.
        after: Where it ends.
        norm: Of the update.
        most: Of the result.
    """
    return after if norm <= most else _Clipped(before, after, most / norm)


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


BY_COORDINATE: Mapping[str, Callable[[Sequence[Tensor], float], Tensor]] = {
    "median": lambda values, trimming: median(values),
    "trimmed": trimmed_mean,
}
"""Rules that see all sites' versions of a piece at once, and the plans' ``trimming``."""


def merge_blocks(
    before: State,
    states: Mapping[str, Mapping[str, Tensor]],
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
            norms = {site: update_norm(before, part) for site, part in parts.items()}
            longest = usual.get(block, statistics.median(norms.values()))
            parts = {s: clip_update(before, part, norms[s], longest) for s, part in parts.items()}
        if chosen in ("mean", "clipped"):
            merged |= average(parts, weights)
            continue
        at_once = partial(_at_once, rule=BY_COORDINATE[chosen], trimming=trimming)
        sources = list(parts.values())
        most = min(PIECE, max(1, MOST_NUMBERS // len(sources)))
        for name in sources[0]:
            form = form_of(sources[0], name)
            merged[name] = _by_pieces(sources, name, form, most, at_once)
    return merged


def _at_once(
    pieces: Iterable[Tensor], rule: Callable[[Sequence[Tensor], float], Tensor], trimming: float
) -> Tensor:
    return rule([piece.clone() for piece in pieces], trimming)
