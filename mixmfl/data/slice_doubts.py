"""Signs that a slice of an image is not where it belongs, or is not of the image.

Neighbouring slices of a body are alike. A slice that is like neither of its neighbours, while these
are like each other, was exchanged for another, mirrored, or lost.
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from mixmfl.core.text import plural, shorten
from mixmfl.data.image import Grid

# How much higher the correlation of the neighbours is than the slice's own with either. Of 470
# images of patients it was up to 0.03; where two slices a quarter of the head apart were exchanged
# on purpose, in the median 0.18, and where one was mirrored left to right 0.13.
UNLIKE = 0.06
ALIKE = 0.4  # the least correlation of the neighbours
FEWEST_SLICES, FEWEST_PIXELS = 8, 1024  # fewer are not conclusive
MOST_PIXELS = 1 << 14  # of a slice that are compared
_THICKER = 1.2  # the axis of the slices has voxels so much longer than the others


def doubts_about_slices(array: npt.NDArray[Any], grid: Grid) -> list[str]:
    """Return a warning about slices of an image as it lies in its file; empty without any.

    Args:
        array: The image, ``(Z, Y, X)``.
        grid: Its grid. Slices are those of the axis with the longest voxels, else of the first.
    """
    axis = int(np.argmax(grid.spacing))
    axis = axis if grid.spacing[axis] > _THICKER * sorted(grid.spacing)[1] else 0
    slices = np.moveaxis(array, axis, 0)
    step = max(1, math.isqrt(slices[0].size // MOST_PIXELS))
    few = slices[:, ::step, ::step].astype(np.float64)
    if len(few) < FEWEST_SLICES or few[0].size < FEWEST_PIXELS:
        return []
    unlike = [z + 1 for z in range(1, len(few) - 1) if _is_unlike(*few[z - 1 : z + 2])]
    if not unlike:
        return []
    are = "is" if len(unlike) == 1 else "are"
    return [
        f"{plural(len(unlike), 'slice')} of {len(few)} (number {shorten(unlike)} along axis "
        f"{'ZYX'[axis]} of its file) {are} like neither neighbour, while these are like each "
        "other; slices may have been exchanged, mirrored or lost. Look at it"
    ]


def _is_unlike(
    before: npt.NDArray[np.float64], slice_: npt.NDArray[np.float64], after: npt.NDArray[np.float64]
) -> bool:
    """Say whether a slice is like neither neighbour where both show the head."""
    head = (before != 0) & (after != 0)
    if np.count_nonzero(head) < FEWEST_PIXELS:
        return False
    three = np.stack([before[head], slice_[head], after[head]])
    if (np.ptp(three, axis=1) > 0).tolist() == [True, False, True]:
        return True  # it is empty, and they are not, however unlike they are
    three -= three.mean(axis=1, keepdims=True)
    length = np.linalg.norm(three, axis=1, keepdims=True)
    three /= np.where(length > 0, length, 1)
    ((_, one, across), (*_, other), _) = three @ three.T
    return bool(across > ALIKE and across - max(one, other) > UNLIKE)
