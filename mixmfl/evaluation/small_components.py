"""Small connected components of a label: removed where that was seen to raise Dice.

A component is small beside the largest of its label in the same mask. Which share of the largest
it must have to stay is measured on the sites' validation cases when training ends, as sums that
add up over sites, and is chosen per label and run. nnU-Net decides alike whether to keep the
largest component alone (Isensee et al. 2021, Nature Methods 18); a component of a fifth of the
largest or more stays here, as it may be a lesion of its own.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from mixmfl.core.declarations import entries, text, within
from mixmfl.data.labels import LONGEST_NAME, MOST_LABELS, Labels
from mixmfl.evaluation.subset_dice import FEWEST_CASES, MOST_CASES

SHARES = (0.0, 0.05, 0.1, 0.2)
"""Shares of the largest component's voxels, below which components are removed; 0: none is."""

_Sum = Annotated[float, within(0, MOST_CASES)]


@dataclass(frozen=True)
class ComponentSums:
    """Dice of one label, summed over cases.

    Attributes:
        cases: Number of cases.
        dice: Sum of the Dice of the masks from all modalities that a case has.
        by_share: For each of ``SHARES``, the sum of Dice if components below that share of the
            largest are removed, each case with its mean over all subsets of its modalities.
    """

    cases: Annotated[int, within(0, MOST_CASES)] = 0
    dice: _Sum = 0.0
    by_share: Annotated[tuple[_Sum, ...], entries(len(SHARES), len(SHARES))] = (0.0,) * len(SHARES)

    @property
    def is_possible(self) -> bool:
        """Say whether any cases have these sums: each is of numbers from 0 to 1."""
        return max(self.dice, *self.by_share) <= self.cases

    @property
    def best_share(self) -> float:
        """Return the share with the highest Dice; 0 where too few cases were measured."""
        if self.cases < FEWEST_CASES:
            return 0.0
        noise = 1e-9 * self.cases  # of sums in another order
        gains = [value - self.by_share[0] for value in self.by_share]
        return next(s for s, gain in zip(SHARES, gains, strict=True) if gain >= max(gains) - noise)


Components = Annotated[
    Mapping[Annotated[str, text(LONGEST_NAME)], ComponentSums], entries(0, MOST_LABELS)
]
"""Sums by label or region, as messages and model files have them."""


def best_shares(components: Components) -> dict[str, float]:
    """Return the best share of each label of which small components are removed."""
    return {name: sums.best_share for name, sums in components.items() if sums.best_share}


def shares_text(shares: Mapping[str, float]) -> str:
    """Return of which labels components are removed, below which share; empty: of none."""
    return ", ".join(
        f"{name} (below {100 * share:.0f} % of its largest)" for name, share in shares.items()
    )


def remove_small(
    indices: npt.NDArray[Any], labels: Labels, shares: Mapping[str, float]
) -> tuple[npt.NDArray[Any], dict[str, int]]:
    """Return a mask without the small components of some labels, and the voxels removed of each.

    Voxels that touch by a face, an edge or a corner are connected, as in nnU-Net. What is removed
    becomes background.

    Args:
        indices: Class indices ``(Z, Y, X)``; left as they are.
        labels: The labels of the mask, none of them regions, by class index
            (``Labels.consecutive``).
        shares: By label, the share of its largest component's voxels that a component must have to
            stay.
    """
    kept, removed = indices.copy(), {}
    boxes = ndimage.find_objects(indices)  # a label of few voxels takes the time of few
    for name, share in shares.items():
        (value,) = labels.foreground[name]
        box = boxes[value - 1] if value <= len(boxes) else None
        if box is None:
            continue
        parts, sizes = _components(indices[box] == value)
        small = (sizes < share * sizes.max())[parts] & (parts > 0)
        kept[box][small] = 0
        if count := int(small.sum()):
            removed[name] = count
    return kept, removed


def dice_by_share(
    predicted: npt.NDArray[Any], reference: npt.NDArray[Any], indices: Labels
) -> dict[str, tuple[float, ...]]:
    """Return the Dice without small components, for each of ``SHARES``.

    Regions share voxels, so that what is removed of one changes others: they keep all components.

    Args:
        predicted: Class indices ``(Z, Y, X)``.
        reference: Class indices ``(Z, Y, X)``; negative outside the head.
        indices: The labels of the case, by class index (``Labels.consecutive``).

    Returns:
        The Dice of each label or region that the mask or its reference has.
    """
    counted = indices.counted(reference)
    shares = (0.0,) * len(SHARES) if indices.has_regions else SHARES
    sums = {}
    for name, values in indices.foreground.items():
        parts, sizes = _components(np.isin(predicted, values))
        truth = np.isin(reference, values) & counted
        of_mask, of_both = (
            np.bincount(parts[where], minlength=len(sizes)) for where in (counted, truth)
        )
        of_mask[0] = of_both[0] = 0  # what is in no component
        kept = [sizes >= share * sizes.max() for share in shares]
        totals = [int(of_mask[each].sum()) + int(truth.sum()) for each in kept]
        if totals[0]:
            sums[name] = tuple(
                2 * int(of_both[each].sum()) / total if total else 1.0  # both are empty
                for each, total in zip(kept, totals, strict=True)
            )
    return sums


def _components(mask: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Return the number of each voxel's component, 0 where there is none, and voxels by number."""
    parts, _ = ndimage.label(mask, np.ones((3, 3, 3)))
    sizes = np.bincount(parts.ravel(), minlength=1)
    sizes[0] = 0
    return parts, sizes


def components_of_case(whole: float, by_subset: Sequence[Sequence[float]]) -> ComponentSums:
    """Return what one case adds to the sums of a label.

    Args:
        whole: Dice of the mask from all modalities of the case.
        by_subset: Dice for each of ``SHARES``, from each subset of its modalities.
    """
    means = tuple(fmean(column) for column in zip(*by_subset, strict=True))
    return ComponentSums(1, whole, means)


def add_components(parts: Sequence[ComponentSums]) -> ComponentSums:
    """Return the sums over all parts."""
    return ComponentSums(
        sum(each.cases for each in parts),
        math.fsum(each.dice for each in parts),
        tuple(math.fsum(column) for column in zip(*(each.by_share for each in parts), strict=True)),
    )
