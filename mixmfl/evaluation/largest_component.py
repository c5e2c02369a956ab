"""The largest connected component of a label: kept alone where that was seen to help.

Whether it helps is measured on the sites' validation cases when training ends, as sums that add
up over sites, and is decided per label and run, as nnU-Net decides (Isensee et al. 2021, Nature
Methods 18).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from mixmfl.core.declarations import entries, text, within
from mixmfl.data.labels import LONGEST_NAME, MOST_LABELS
from mixmfl.evaluation.subset_dice import FEWEST_CASES, MOST_CASES

_Sum = Annotated[float, within(0, MOST_CASES)]


@dataclass(frozen=True)
class LargestSums:
    """Dice of one label, each case from all modalities that it has, summed over cases.

    Attributes:
        cases: Number of cases.
        dice: Sum of the Dice of the masks as they are.
        largest: Sum of their Dice if only the largest component of the label is kept.
    """

    cases: Annotated[int, within(0, MOST_CASES)] = 0
    dice: _Sum = 0.0
    largest: _Sum = 0.0

    def to_json(self) -> dict[str, float | int]:
        """Return JSON content."""
        return asdict(self)

    @property
    def is_possible(self) -> bool:
        """Say whether any cases have these sums: each is of numbers from 0 to 1."""
        return max(self.dice, self.largest) <= self.cases

    @property
    def gains(self) -> bool:
        """Say whether keeping the largest component alone raised Dice, over enough cases."""
        return self.cases >= FEWEST_CASES and self.largest - self.dice > 1e-9 * self.cases


Largest = Annotated[
    Mapping[Annotated[str, text(LONGEST_NAME)], LargestSums], entries(0, MOST_LABELS)
]
"""Sums by label or region, as messages and model files have them."""


def keep_largest(
    indices: npt.NDArray[Any], classes: Iterable[Sequence[int]]
) -> tuple[npt.NDArray[Any], int]:
    """Return a mask with the largest component of each of some labels, and the voxels removed.

    Voxels that touch by a face, an edge or a corner are connected, as in nnU-Net. What is removed
    becomes background.

    Args:
        indices: Class indices ``(Z, Y, X)``; left as they are.
        classes: The class indices of each label whose other components are removed.
    """
    kept, removed = indices, 0
    for values in classes:
        parts, count = ndimage.label(np.isin(indices, values), np.ones((3, 3, 3)))
        if count < 2:
            continue
        sizes = np.bincount(parts.ravel())
        sizes[0] = 0
        small = (parts > 0) & (parts != int(sizes.argmax()))
        kept = np.where(small, 0, kept).astype(indices.dtype)
        removed += int(small.sum())
    return kept, removed


def add_largest(parts: Sequence[LargestSums]) -> LargestSums:
    """Return the sums over all parts."""
    return LargestSums(
        sum(each.cases for each in parts),
        math.fsum(each.dice for each in parts),
        math.fsum(each.largest for each in parts),
    )
