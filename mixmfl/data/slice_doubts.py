"""Signs that a slice of an image is not where it belongs, or is not of the image.

Neighbouring slices of a body are alike, but never the same. A slice that is like neither of its
neighbours, while these are like each other, was exchanged for another, or lost; one that is more
like them when it is mirrored, was mirrored.
"""

import math
from hashlib import sha256
from typing import Any

import numpy as np
import numpy.typing as npt

from mixmfl.core.text import plural, shorten
from mixmfl.data.grid import Grid

# How much higher the correlation of the neighbours is than the slice's own with either. Of 470
# images of patients it was up to 0.03; where two slices a quarter of the head apart were exchanged
# on purpose, in the median 0.18.
UNLIKE = 0.06
# How many times as far from 1 the correlation with either neighbour is as that of the mirrored
# slice. Of 470 images of patients it was up to 1.20; of slices that were mirrored on purpose more
# than the limit in 48 % (left to right) and 84 % (front to back).
MIRRORED = 1.35
SAME = 1e-3  # correlations nearer to 1 do not differ
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
    few = slices[:, ::step, ::step]
    if len(few) < FEWEST_SLICES or few[0].size < FEWEST_PIXELS:
        return []
    inner = range(1, len(few) - 1)
    mirrored = [z + 1 for z in inner if _is_mirrored(*few[z - 1 : z + 2])]
    empty = _empty(few)
    known = {*mirrored, *empty}
    unlike = [z + 1 for z in inner if z + 1 not in known and _is_unlike(*few[z - 1 : z + 2])]
    return [
        f"{plural(len(numbers), 'slice')} of {len(few)} (number {shorten(numbers)} along axis "
        f"{'ZYX'[axis]} of its file) {'is' if len(numbers) == 1 else 'are'} {doubt}. Look at it"
        for numbers, doubt in (
            (
                unlike,
                "like neither neighbour, while these are like each other; slices may have been "
                "exchanged, mirrored or lost",
            ),
            (empty, "empty between slices that are not; slices may have been lost"),
            (mirrored, "more like both neighbours if mirrored; slices may have been mirrored"),
            (_copied(few), "the same as another; slices may have been copied or lost"),
        )
        if numbers
    ]


def _empty(slices: npt.NDArray[Any]) -> list[int]:
    """Return the numbers of slices of one value between slices that show the head."""
    shown = [z for z, slice_ in enumerate(slices) if np.count_nonzero(slice_) >= FEWEST_PIXELS]
    between = range(min(shown, default=0) + 1, max(shown, default=0))
    return [z + 1 for z in between if not np.ptp(slices[z]) > 0]


def _copied(slices: npt.NDArray[Any]) -> list[int]:
    """Return the numbers of slices that show the head, and are the same as one before."""
    seen: set[bytes] = set()
    copied = []
    for number, slice_ in enumerate(slices, start=1):
        content = sha256(slice_.tobytes()).digest()
        if content in seen:
            copied.append(number)
        elif np.count_nonzero(slice_) >= FEWEST_PIXELS and np.ptp(slice_) > 0:
            seen.add(content)
    return copied


def _is_mirrored(
    before: npt.NDArray[Any], slice_: npt.NDArray[Any], after: npt.NDArray[Any]
) -> bool:
    """Say whether a slice is clearly more like both neighbours once it is mirrored."""
    if min(map(np.count_nonzero, (before, slice_, after))) < FEWEST_PIXELS:
        return False
    ways = slice_, slice_[:, ::-1], slice_[::-1], slice_[::-1, ::-1]
    flat = np.stack([each.ravel() for each in (before, after, *ways)], dtype=np.float64)
    flat -= flat.mean(axis=1, keepdims=True)
    length = np.linalg.norm(flat, axis=1, keepdims=True)
    flat /= np.where(length > 0, length, 1)
    to_before, to_after = flat[:2] @ flat.T
    own, *others = 1 - np.stack([to_before, to_after], axis=1)[2:]
    return bool(
        to_before[1] > ALIKE and any((own > MIRRORED * (other + SAME)).all() for other in others)
    )


def _is_unlike(before: npt.NDArray[Any], slice_: npt.NDArray[Any], after: npt.NDArray[Any]) -> bool:
    """Say whether a slice is like neither neighbour where both show the head."""
    head = (before != 0) & (after != 0)
    if np.count_nonzero(head) < FEWEST_PIXELS:
        return False
    three = np.stack([before[head], slice_[head], after[head]], dtype=np.float64)
    three -= three.mean(axis=1, keepdims=True)
    length = np.linalg.norm(three, axis=1, keepdims=True)
    three /= np.where(length > 0, length, 1)
    ((_, one, across), (*_, other), _) = three @ three.T
    return bool(across > ALIKE and across - max(one, other) > UNLIKE)
