"""Which axis of a case its slices follow, and turning arrays so that it comes first.

Brains are planned with the axes of the body: to the head, to the back, to the left. Hearts, spines
and knees are taken in thick slices of any direction. There the slices' axis is what cases have in
common, as nnU-Net takes it for granted by leaving arrays in the order of the file.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

THICK = 2.0  # times the next largest side of a voxel


@dataclass(frozen=True)
class Turn:
    """Another order of a volume's three axes, some of them run backwards; its places stay.

    Attributes:
        order: The axes taken, first to last.
        flipped: Which of them, as they are counted then, run backwards.
    """

    order: tuple[int, ...] = (0, 1, 2)
    flipped: tuple[int, ...] = ()

    def __call__(self, volume: Array) -> Array:
        """Return a turned view of ``(Z, Y, X)``."""
        return np.flip(volume.transpose(self.order), self.flipped)

    def back(self, volume: Array) -> Array:
        """Return a view of what was turned, as it was before."""
        return np.flip(volume, self.flipped).transpose(np.argsort(self.order))

    def of(self, lengths: Sequence[float]) -> list[float]:
        """Return the spacing of the turned volume, mm."""
        return [float(lengths[axis]) for axis in self.order]

    def then(self, order: Sequence[int]) -> "Turn":
        """Return this turn with its axes put into another order behind it."""
        flipped = tuple(place for place, axis in enumerate(order) if axis in self.flipped)
        return Turn(tuple(self.order[axis] for axis in order), flipped)


# What is seen in a slice stays upright. Along Y the slices run from back to front: so each turn
# is a rotation, no mirroring, and two oblique stacks on either side of 45 degrees come out alike.
_FIRST = (Turn(), Turn((1, 0, 2), (0,)), Turn((2, 0, 1)))


def slice_axis(spacing: Sequence[float]) -> int | None:
    """Return the axis along which voxels are by far longest; None where none is.

    Args:
        spacing: mm, (Z, Y, X).
    """
    longest = int(np.argmax(spacing))
    next_longest = sorted(spacing)[1]
    return longest if spacing[longest] >= THICK * next_longest else None


def slices_first(spacing: Sequence[float]) -> Turn:
    """Return the turn by which a canonical volume's slices come first; none without slices.

    Args:
        spacing: mm, (Z, Y, X), to the head, to the back, to the left.
    """
    return _FIRST[slice_axis(spacing) or 0]


def turn_of(spacing: Sequence[float], plans: Mapping[str, Any]) -> Turn:
    """Return how a canonical case is turned so that its axes are those of the plans."""
    turn = slices_first(spacing) if plans.get("slices_first") else Turn()
    return turn.then(plans["transpose_forward"])


def spacings(
    spacing: Sequence[float], plans: Mapping[str, Any], configuration: str
) -> tuple[list[float], list[float]]:
    """Return a case's and the planned spacing in mm, axes in the planned order.

    A 2-D configuration leaves the first axis as it is.
    """
    before = turn_of(spacing, plans).of(spacing)
    planned = plans["configurations"][configuration]["spacing"]
    return before, [float(mm) for mm in (*before[: 3 - len(planned)], *planned)]
