"""How the sites' changes of a block are merged, by rules that plans name. Pure functions."""

import math
import statistics
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mixmfl.core.errors import AggregationError
from mixmfl.core.tensor_store import Form, form_of, only, pieces, reader_of
from mixmfl.federated.weighted_sums import add_weighted
from mixmfl.networks.parameters import block_of
from mixmfl.networks.prototypes import State

PIECE = 2**18
"""Numbers that are worked on at once: few enough to stay in a cache, enough to be worth a call."""

TOGETHER = 4
"""Sites whose pieces are added up at once: their sum is read and written once for all of them."""

MOST_NUMBERS = 2**22
"""Numbers of all sites together that are worked on at once, where a rule compares sites."""


def select_blocks(state: Mapping[str, Tensor], blocks: Collection[str]) -> Mapping[str, Tensor]:
    """Return the parameters of the blocks that a site uses: all that it is sent, and sends."""
    return only(state, {name for name in state if block_of(name) in blocks})


def changes_between(before: Mapping[str, Tensor], after: State, kind: torch.dtype) -> State:
    """Return by how much tensors changed, rounded to a type.

    Args:
        before: Tensors before, by name; they may be more than those of ``after``.
        after: Tensors after, by name.
        kind: Type of the result.
    """
    return {name: (tensor - before[name]).to(kind) for name, tensor in after.items()}


def add_changes(before: Mapping[str, Tensor], changes: Mapping[str, Tensor]) -> State:
    """Return the tensors that changed as they are after it, in the type that they had before.

    Args:
        before: Tensors before, by name; they may be more than those of ``changes``.
        changes: Changes by name, in the type of ``before`` or a shorter one.
    """
    return {name: before[name] + change for name, change in changes.items()}


def average(
    changes: Mapping[str, Mapping[str, Tensor]],
    weights: Mapping[str, Mapping[str, float]],
    scales: Mapping[str, float] | None = None,
) -> State:
    """Average the sites' changes by name, each site weighted per block.

    A parameter's change is averaged over the sites that sent it: a site without T2 does not change
    the T2 encoder. Added to the weights that all began with, and with equal blocks and weights
    everywhere, this is FedAvg (McMahan et al. 2017). Sums are in single precision, in the order of
    the sites' names; changes are short beside the weights that they are added to, so little is lost
    beside the rounding of these.
    The inputs are left as they are, and where they are not in memory no more of them is there at
    once than a few pieces.

    Args:
        changes: Changes by site, then by the tensor's name.
        weights: Aggregation weights by site, then block, as ``block_weights`` returns them.
        scales: Factor for the changes of a site; 1 where the site is missing.

    Raises:
        AggregationError: Sites disagree on a shape or type, or nobody who sent a parameter has a
            case behind it.
    """
    merged: State = {}
    for block, names, sources in _shared_out(changes):
        total = sum(weights[site].get(block, 0) for site in sources)
        if not total > 0:
            raise AggregationError(
                f"{names[0]}: none of its sites {list(sources)} has a training case for it"
            )
        shares = torch.tensor(
            [weights[s].get(block, 0) / total * (scales or {}).get(s, 1.0) for s in sources]
        )
        forms = _common_forms(sources, names)
        mean = torch.zeros(_count(forms))
        for start, stop, first, rows in _side_by_side(sources, forms, PIECE, TOGETHER):
            add_weighted(mean[start:stop], rows, shares[first : first + len(rows)])
        merged |= _split(mean, forms)
    return merged


def _shared_out(
    changes: Mapping[str, Mapping[str, Tensor]],
) -> Iterator[tuple[str, list[str], dict[str, Mapping[str, Tensor]]]]:
    """Yield a block, names of tensors in it, and the changes of just those sites that sent these.

    Names are in order, and so are sites.
    """
    holders: dict[str, list[str]] = {}
    for site in sorted(changes):
        for name in changes[site]:
            holders.setdefault(name, []).append(site)
    groups: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for name in sorted(holders):
        groups.setdefault((block_of(name), tuple(holders[name])), []).append(name)
    for (block, sites), names in groups.items():
        yield block, names, {site: changes[site] for site in sites}


def _common_forms(
    sources: Mapping[str, Mapping[str, Tensor]], names: Sequence[str]
) -> dict[str, Form]:
    """Return what the tensors of these names are, at all of the sites.

    Raises:
        AggregationError: They are not the same everywhere, or not of one type.
    """
    one, *others = sources
    forms = {name: form_of(sources[one], name) for name in names}
    kinds = {kind for _, kind in forms.values()}
    if len(kinds) > 1:
        raise AggregationError(
            f"{names[0]}: site {one!r} sent its block in {sorted(map(str, kinds))}"
        )
    for site in others:
        for name, first in forms.items():
            if (form := form_of(sources[site], name)) != first:
                raise AggregationError(
                    f"{name}: site {site!r} sent shape {form[0]} {form[1]}, site {one!r} "
                    f"sent {first[0]} {first[1]}; were both started from the same plans?"
                )
    return forms


def _count(forms: Mapping[str, Form]) -> int:
    return sum(math.prod(shape) for shape, _ in forms.values())


def _split(flat: Tensor, forms: Mapping[str, Form]) -> State:
    """Return the tensors whose numbers lie in ``flat``, one behind the other."""
    parts = torch.split(flat, [math.prod(shape) for shape, _ in forms.values()])
    return {
        name: part.view(shape)
        for (name, (shape, _)), part in zip(forms.items(), parts, strict=True)
    }


def _side_by_side(
    sources: Mapping[str, Mapping[str, Tensor]], forms: Mapping[str, Form], most: int, together: int
) -> Iterator[tuple[int, int, int, Tensor]]:
    """Yield tensors of several sites, one behind the other, piece by piece and some sites at once.

    Args:
        sources: Tensors by site.
        forms: Shapes and types of the tensors, the same at all sites.
        most: Most numbers in a piece.
        together: Most sites at once.

    Yields:
        Where the piece starts and stops, which site is the first, and ``(sites, stop - start)`` in
        the type of the tensors, which the next overwrites.
    """
    readers = [reader_of(source, list(forms)) for source in sources.values()]
    count = _count(forms)
    kind = next(iter(forms.values()))[1]
    rows = torch.empty(min(together, len(readers)), min(most, count), dtype=kind)
    for start in range(0, count, most):
        stop = min(start + most, count)
        for first in range(0, len(readers), together):
            some = readers[first : first + together]
            for row, read in zip(rows[:, : stop - start], some, strict=False):
                read(start, stop, row)
            yield start, stop, first, rows[: len(some), : stop - start]


def norm_of(changes: Mapping[str, Tensor]) -> float:
    """Return the Euclidean norm over all tensors; it is not finite where any number is not.

    Squares are added in single precision, so that one beyond 1e19 is not finite either.

    Args:
        changes: All of one type.
    """
    norms = (
        float(torch.linalg.vector_norm(part, dtype=torch.float32))
        for part in pieces(changes, sorted(changes), PIECE)
    )
    return math.sqrt(math.fsum(norm**2 for norm in norms))


@dataclass(frozen=True)
class BlockChanges:
    """All that an aggregation rule may use: the changes of one block, and settings.

    Sites are those that hold the block and sent it: one without T2 is not among those of the T2
    encoder.

    Attributes:
        changes: Changes by site, then by the tensor's name.
        weights: Aggregation weights by site, then block.
        norms: Norm of the change by site.
        usual_norm: Norm that a change usually has.
        trimming: Setting ``trimming`` of the plans.
    """

    changes: Mapping[str, Mapping[str, Tensor]]
    weights: Mapping[str, Mapping[str, float]]
    norms: Mapping[str, float]
    usual_norm: float
    trimming: float


Rule = Callable[[BlockChanges], State]
"""Merges the sites' changes of one block into one change."""


@dataclass(frozen=True)
class RegisteredRule:
    """An aggregation rule.

    Attributes:
        merge: The function.
        fewest_holders: How many sites must hold a block; with fewer the rule is ``clipped``.
    """

    merge: Rule
    fewest_holders: int


RULES: dict[str, RegisteredRule] = {}
"""Aggregation rules by the name that plans have for them."""


def aggregation_rule(name: str, *, fewest_holders: int = 1) -> Callable[[Rule], Rule]:
    """Register the decorated function as an aggregation rule.

    Args:
        name: What plans call the rule; one of ``settings.Aggregation``.
        fewest_holders: How many sites must hold a block; with fewer the rule is ``clipped``. A
            rule that compares sites needs three: of two values that differ nothing tells which
            one is hostile, while clipping bounds what either can do.
    """

    def register(rule: Rule) -> Rule:
        RULES[name] = RegisteredRule(rule, fewest_holders)
        return rule

    return register


@aggregation_rule("mean")
def mean(block: BlockChanges) -> State:
    """Return the weighted mean of the changes; see ``average``."""
    return average(block.changes, block.weights)


@aggregation_rule("clipped")
def clipped(block: BlockChanges) -> State:
    """Return the weighted mean of the changes, each shortened to the usual norm.

    Sun et al. 2019, Can You Really Backdoor Federated Learning?
    """
    scales = {site: shortening(norm, block.usual_norm) for site, norm in block.norms.items()}
    return average(block.changes, block.weights, scales)


@aggregation_rule("median", fewest_holders=3)
def median(block: BlockChanges) -> State:
    """Return the median of the changes by coordinate; every site counts the same.

    Yin et al. 2018, Byzantine-Robust Distributed Learning.
    """
    return _by_coordinate(block.changes, median_of)


@aggregation_rule("trimmed", fewest_holders=3)
def trimmed(block: BlockChanges) -> State:
    """Return the trimmed mean of the changes by coordinate; every site counts the same.

    Yin et al. 2018, Byzantine-Robust Distributed Learning.
    """
    return _by_coordinate(block.changes, lambda rows: trimmed_mean(rows, block.trimming))


def median_of(rows: Tensor) -> Tensor:
    """Return the median by coordinate, of an even number the mean of the two in the middle.

    Args:
        rows: ``(sites, N)``.
    """
    ordered = rows.sort(dim=0).values
    return (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2


def trimmed_mean(rows: Tensor, share: float) -> Tensor:
    """Return the mean by coordinate without the greatest and the least values.

    Args:
        rows: ``(sites, N)``, of three sites or more.
        share: Share of the values that is left out at each end, rounded down; at least one is.
    """
    ordered = rows.sort(dim=0).values
    cut = min(max(1, math.floor(share * len(ordered))), (len(ordered) - 1) // 2)
    return ordered[cut : len(ordered) - cut].mean(dim=0)


def merge_blocks(
    before: State,
    changes: Mapping[str, Mapping[str, Tensor]],
    weights: Mapping[str, Mapping[str, float]],
    rule: str,
    trimming: float,
    norms: Mapping[str, Mapping[str, float]],
    usual: Mapping[str, float],
    own: Rule | None = None,
) -> State:
    """Merge the sites' changes block by block, by a rule, and return the weights after them.

    In ``median`` and ``trimmed`` every site counts the same, for by overstating its cases it would
    get a larger aggregation weight.

    Args:
        before: The weights that the sites started from.
        changes: Changes by site, then by the tensor's name.
        weights: Aggregation weights by site, then block.
        rule: Name of one of ``RULES``; a block that too few sites hold is merged by ``clipped``.
        trimming: Setting ``trimming`` of the plans.
        norms: Norms of the changes by site, then block.
        usual: Usual norm of a change by block; the median of ``norms`` where a block is missing.
        own: A rule that is used in place of the named one, however few sites hold a block.

    Raises:
        AggregationError: Sites disagree on a shape or type, or nobody who sent a parameter has a
            training case for it.
    """
    merged: State = {}
    for block in sorted({block_of(name) for change in changes.values() for name in change}):
        parts = {site: select_blocks(changes[site], [block]) for site in sorted(changes)}
        parts = {site: part for site, part in parts.items() if part}
        lengths = {site: norms[site][block] for site in parts}
        of_holders = {site: weights[site] for site in parts}
        usual_norm = usual.get(block, statistics.median(lengths.values()))
        chosen = RULES[rule if len(parts) >= RULES[rule].fewest_holders else "clipped"]
        merge = own or chosen.merge
        change = merge(BlockChanges(parts, of_holders, lengths, usual_norm, trimming))
        merged |= add_changes(before, change)
    return merged


def shortening(norm: float, most: float) -> float:
    """Return what a change of a norm is multiplied by, so that its norm is at most ``most``."""
    return 1.0 if norm <= most else most / norm


def _by_coordinate(
    changes: Mapping[str, Mapping[str, Tensor]], merge: Callable[[Tensor], Tensor]
) -> State:
    """Merge the changes of a block, which all of the sites sent, piece by piece.

    Args:
        changes: Changes by site, then by the tensor's name.
        merge: Makes ``(N,)`` of ``(sites, N)``.
    """
    forms = _common_forms(changes, sorted(next(iter(changes.values()))))
    merged = torch.empty(_count(forms))
    most = min(PIECE, max(1, MOST_NUMBERS // len(changes)))
    for start, stop, _, rows in _side_by_side(changes, forms, most, len(changes)):
        merged[start:stop] = merge(rows.float())
    return _split(merged, forms)
