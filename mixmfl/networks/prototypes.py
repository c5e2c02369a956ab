"""The memory of modality prototypes: how it is observed, merged, and read for missing modalities.

Pure functions on tensors. A prototype stands for one class in one modality at one encoder level:
the mean of the tailored encoder's features, which is its value.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor
from torch.nn import functional

State = dict[str, Tensor]
"""Tensors by name."""


@dataclass(frozen=True)
class Prototypes:
    """Prototypes of one modality at one level, a row per class.

    Attributes:
        values: ``(K, C_tailored)`` mean tailored features.
        counts: ``(K,)`` voxels behind each row; 0: it was never seen and the row is zero.
    """

    values: Tensor
    counts: Tensor

    def to(self, device: torch.device) -> "Prototypes":
        """Return the prototypes on another device."""
        return Prototypes(*(getattr(self, part).to(device) for part in PARTS))


PARTS = tuple(field.name for field in fields(Prototypes))
"""What prototypes are made of: features by row, and last the counts."""


PrototypeMemory = Mapping[tuple[str, int], Prototypes]
"""Prototypes by modality and encoder level."""


def classes_at(classes: Tensor, features: Tensor) -> Tensor:
    """Return the class of each voxel at the resolution of features, ``(B, *P)`` integers.

    Args:
        classes: ``(B, 1, *P)`` class of each voxel at full resolution.
        features: ``(…, *P)`` features of the same patches at any level.
    """
    size = features.shape[2 - classes.ndim :]
    return functional.interpolate(classes.float(), size, mode="nearest")[:, 0].long()


def classes_of_each(classes: Tensor, num_classes: int) -> Tensor:
    """Return which classes each patch has, ``(B, K)`` bool, of classes ``(B, *P)``."""
    flat = classes.flatten(1).long()
    flat = flat.where((flat >= 0) & (flat < num_classes), num_classes)
    has = torch.zeros(len(flat), num_classes + 1, dtype=torch.bool, device=flat.device)
    return has.scatter_(1, flat, True)[:, :num_classes]


def observe(tailored: Tensor, classes: Tensor, num_classes: int) -> Prototypes:
    """Return the prototypes of one batch.

    Args:
        tailored: ``(B, C_tailored, *P)`` features of one modality.
        classes: ``(B, *P)`` integer class of each voxel at this level; a class outside
            ``0 … num_classes - 1`` (the ignore label) is left out.
        num_classes: Number of classes, K.
    """
    flat = classes.flatten().long()
    known = (flat >= 0) & (flat < num_classes)
    membership = functional.one_hot(flat[known], num_classes).to(tailored.dtype)  # (V, K)
    counts = membership.sum(dim=0)
    share = membership / counts.clamp(min=1)

    features = tailored.movedim(1, -1).flatten(0, -2)[known]  # (V, C)
    return Prototypes(share.T @ features, counts)


def fade(prototypes: Prototypes, share: float) -> Prototypes:
    """Return the prototypes with ``share`` of their counts, so that later ones weigh more."""
    return replace(prototypes, counts=prototypes.counts * share)


def merge_prototypes(parts: Sequence[Prototypes]) -> Prototypes:
    """Return the mean of several sites' prototypes, weighted by their counts, row by row."""
    counts = torch.stack([part.counts for part in parts]).double()  # (S, K)
    total = counts.sum(dim=0)
    share = counts / total.clamp(min=torch.finfo(torch.float64).tiny)  # all zero where none saw it

    values = torch.einsum("sk,skc->kc", share, torch.stack([p.values for p in parts]).double())
    return Prototypes(values.to(parts[0].values.dtype), total.to(parts[0].counts.dtype))


def level_counts(parts: Sequence[Prototypes]) -> list[Prototypes]:
    """Return the prototypes with no count above the median over the sites that saw the class.

    So no site weighs more than the median site.
    """
    counts = torch.stack([part.counts for part in parts]).double()  # (S, K)
    seen = torch.where(counts > 0, counts, torch.nan)
    # of an even number the mean of the two in the middle; NaN where nobody saw it
    middle = seen.nanquantile(0.5, dim=0).nan_to_num(0)
    return [
        replace(part, counts=part.counts.minimum(middle.to(part.counts.dtype))) for part in parts
    ]


def merge_memories(
    before: PrototypeMemory, replies: Mapping[str, PrototypeMemory], levelled: bool = False
) -> PrototypeMemory:
    """Return the memory after a round.

    A modality's prototypes are the count-weighted mean over the sites that replied with it; a
    class that none of them saw this round, or a modality without a reply, stays as it was.

    Args:
        before: The memory that the round started from.
        replies: Memory that each site replied with, by site.
        levelled: Whether counts are first limited by ``level_counts``.
    """
    merged = dict(before)
    for place in sorted({place for memory in replies.values() for place in memory}):
        parts = [replies[site][place] for site in sorted(replies) if place in replies[site]]
        new = merge_prototypes(level_counts(parts) if levelled else parts)
        if place in before:
            new = _where(new.counts > 0, new, before[place])
        merged[place] = new
    return merged


def withhold_rare(
    memory: PrototypeMemory, cases: int, voxels: int, behind: Mapping[tuple[str, int], Tensor]
) -> PrototypeMemory:
    """Return the memory without the rows that rest on few cases or voxels, as if never seen.

    Args:
        memory: Memory of a site.
        cases: Least number of cases, of as many patients, behind a row.
        voxels: Least number of voxels behind a row.
        behind: For each of the prototypes ``(K,)`` how many patients are behind each row; 0 where
            it is not named.
    """
    released = {}
    for place, prototypes in memory.items():
        counted = behind.get(place, torch.zeros_like(prototypes.counts))
        enough = (counted.to(prototypes.counts.device) >= cases) & (prototypes.counts >= voxels)
        unseen = Prototypes(*(torch.zeros_like(getattr(prototypes, part)) for part in PARTS))
        released[place] = _where(enough, prototypes, unseen)
    return released


def _where(rows: Tensor, one: Prototypes, other: Prototypes) -> Prototypes:
    """Return the rows of ``one`` where ``rows``, ``(K,)`` bool, is True, else of ``other``."""

    def choose(mine: Tensor, theirs: Tensor) -> Tensor:
        return torch.where(rows.reshape(-1, *[1] * (mine.ndim - 1)), mine, theirs)

    return Prototypes(*(choose(getattr(one, part), getattr(other, part)) for part in PARTS))


def memory_to(memory: PrototypeMemory, device: torch.device) -> PrototypeMemory:
    """Return the memory on another device."""
    return {place: prototypes.to(device) for place, prototypes in memory.items()}


def can_recall(memory: PrototypeMemory, modality: str, level: int) -> bool:
    """Return whether the memory knows any class of a modality at a level."""
    place = (modality, level)
    return place in memory and bool((memory[place].counts > 0).any())


def recall(
    features: Mapping[str, tuple[Tensor, Tensor]],
    memory: Mapping[str, Prototypes],
    missing: str,
    temperature: float,
) -> Tensor:
    """Recall a missing modality's tailored features, by means of the available modalities.

    Each available modality compares its tailored feature at a voxel with its own values, one per
    class. Their mean likeness picks among the missing modality's values:
    ``softmax(mean over available m of cos(t_m - v̄_m, v_m - v̄_m) / temperature) @ v`` over the
    classes that the missing modality and an available one have seen, where ``v̄_m`` is the mean
    value of those classes: features of one level have much in common whatever the class, and taking
    the mean off leaves what separates the classes.

    Args:
        features: By modality, tailored features ``(B, C_tailored, *P)``, and ``(B,)`` bool, the
            cases in which it is available.
        memory: Prototypes of this level, by modality.
        missing: The missing modality.
        temperature: Above 0; the smaller, the nearer to picking one prototype.

    Returns:
        ``(B, C_tailored, *P)``; zero in a case of which no class is known.
    """
    any_features = next(iter(features.values()))[0]
    shape, rows = any_features.shape, len(memory[missing].counts)
    total = any_features.new_zeros((shape[0], *shape[2:], rows))
    votes = any_features.new_zeros((shape[0], rows))
    for modality, (tailored, here) in features.items():
        if modality in memory and here.any():
            seen = memory[modality].counts > 0
            likeness = _likeness(tailored[here], memory[modality].values, seen)
            total[here] = total[here] + likeness * seen
            votes[here] = votes[here] + seen.to(votes.dtype)
    mean = total / votes.clamp(min=1).reshape(shape[0], *[1] * (len(shape) - 2), rows)
    known = (votes > 0) & (memory[missing].counts > 0)
    return _mix(mean, known, memory[missing], temperature)


def _likeness(features: Tensor, rows: Tensor, seen: Tensor) -> Tensor:
    """Return the cosine ``(B, *P, K)`` of features and rows, each less the mean row seen."""
    rows = rows.to(features.dtype)
    centre = rows[seen].mean(dim=0)
    # a blank slice has features of exactly zero: the eps keeps their gradient within bounds
    asked = functional.normalize(features.movedim(1, -1) - centre, dim=-1, eps=1e-3)
    return asked @ functional.normalize(rows - centre, dim=-1, eps=1e-3).T


def _mix(likeness: Tensor, known: Tensor, prototypes: Prototypes, temperature: float) -> Tensor:
    """Return values mixed by likeness ``(B, *P, K)`` over rows ``known``, ``(B, K)`` bool."""
    where = known.reshape(len(known), *[1] * (likeness.ndim - 2), -1)
    least = torch.finfo(likeness.dtype).min  # not -inf, of which nothing but NaN would be left
    attention = torch.softmax((likeness / temperature).masked_fill(~where, least), dim=-1)
    attention = torch.where(where.any(dim=-1, keepdim=True), attention, 0)
    return (attention @ prototypes.values.to(likeness.dtype)).movedim(-1, 1)


def memory_to_state(memory: PrototypeMemory) -> State:
    """Return the memory as tensors by name, ``memory.<modality>.<level>.<part>``; see ``PARTS``."""
    return {
        f"memory.{modality}.{level}.{part}": getattr(prototypes, part)
        for (modality, level), prototypes in sorted(memory.items())
        for part in PARTS
    }


def memory_from_state(state: Mapping[str, Tensor]) -> PrototypeMemory:
    """Return the memory that ``memory_to_state`` wrote; other names are ignored."""
    places: Iterable[tuple[str, int]] = {
        (name.split(".")[1], int(name.split(".")[2]))
        for name in state
        if name.startswith("memory.")
    }
    return {
        (modality, level): Prototypes(
            *(state[f"memory.{modality}.{level}.{part}"] for part in PARTS)
        )
        for modality, level in sorted(places)
    }
