"""Signs in the voxels of an image that a part of it is lost, or that its values are inverted."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from mixmfl.data.grid import Grid, to_canonical

FEWEST_PLANES = 16  # along an axis; fewer are not conclusive
MOST_SLICES = 64  # that are looked at
BRIGHT = 0.2  # of the 98th percentile: above it is body, below it may be air

# The last plane before an empty part of the field of view has so many of the bright voxels of the
# fullest plane. Of 470 images of patients it had up to 0.10; of halved ones at least 0.62.
CUT = 0.5
LEAST_EMPTY = 0.15  # of the planes, from which a part of the field of view counts as empty

# How much brighter the border is than the middle, of the range of the values. Of 470 images of
# patients it was darker by 0.11 at least; of 95 % of them, inverted, brighter by 0.50.
BRIGHTER = 0.1

# Neighbours of which one is near the upper end of 8 bits and the other near 0, by voxels.
WRAPPED = 1e-4

# The correlation of T1 before and after a contrast agent. Of 149 patients' pairs it was at least
# 0.18, and of one image with another that is inverted it has the opposite sign.
OPPOSED = -0.1
FEWEST_VOXELS = 1000
MOST_COMPARED = 2**18  # voxels of an image, to see what it is to another one


def doubts_about_content(array: npt.NDArray[Any], grid: Grid) -> list[str]:
    """Return warnings about the voxels of an image; empty without any.

    Args:
        array: The image, ``(Z, Y, X)``, with a background of 0 where that is one value.
        grid: Its grid.
    """
    if min(array.shape[1:]) < FEWEST_PLANES:
        return []
    canonical = to_canonical(array, grid)[0]
    slices = canonical[:: max(1, len(canonical) // MOST_SLICES)]
    dark, bright = np.percentile(slices[:, ::2, ::2], [2, 98])
    doubts = []
    for axis, name in ((1, "front to back"), (2, "left to right")):
        if bright > 0 and _is_cut(slices, BRIGHT * bright, axis):
            doubts.append(
                f"it ends as if cut off along its axis from {name}, and is empty behind; a part of "
                "the head may be lost. Look at it"
            )
    border = np.concatenate([np.take(slices, [0, -1], axis).ravel() for axis in (1, 2)])
    middle = slices[tuple(slice(n // 3, n - n // 3) for n in slices.shape)]
    is_centred = slices.min() < 0 < slices.max()  # z-scored, with air at the middle of the values
    if not is_centred and np.median(border) - np.median(middle) > BRIGHTER * (bright - dark):
        doubts.append("it is brighter at its border than inside; its values may be inverted")
    if _wrapped_share(slices) > WRAPPED:
        doubts.append(
            "its brightest voxels lie beside nearly black ones: numbers above 255 may have been "
            "stored in 8 bits, so that they begin again at 0. Look at it"
        )
    return doubts


def doubts_about_pairs(images: Mapping[str, npt.NDArray[Any]]) -> list[str]:
    """Return a warning if T1 before and after a contrast agent are as an image and its negative.

    Args:
        images: The images of a case by modality, on one grid.
    """
    if not {"t1", "t1c"} <= set(images):
        return []
    one, other = some_voxels([images["t1"], images["t1c"]])
    both = (one != 0) & (other != 0)
    if np.count_nonzero(both) < FEWEST_VOXELS:
        return []
    pair = np.stack([one[both], other[both]]).astype(np.float64)
    if not np.ptp(pair, axis=1).all() or np.corrcoef(pair).min() > OPPOSED:
        return []
    return [
        "t1 and t1c are like an image and its negative: one of them is inverted, or of another "
        "modality. Look at them"
    ]


def some_voxels(images: Iterable[npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
    """Return voxels at the same places of images of one shape, enough to compare them by."""
    return [image.flat[:: max(1, image.size // MOST_COMPARED)] for image in images]


def _wrapped_share(slices: npt.NDArray[Any]) -> float:
    """Return how many neighbours jump from one end of 8 bits to the other, by voxels.

    A 0 does not count, as it is the background of a bright brain's border. It is 0 for images that
    do not fill 8 bits with whole numbers.
    """
    if slices.min() < 0 or not 250 <= slices.max() <= 255 or (slices % 1).any():
        return 0.0
    top, low = slices >= 224, (slices >= 1) & (slices <= 32)
    jumps = 0
    for axis in (1, 2):
        pairs = [(np.delete(one, -1, axis), np.delete(other, 0, axis))
                 for one, other in ((top, low), (low, top))]  # fmt: skip
        jumps += sum(int(np.count_nonzero(one & other)) for one, other in pairs)
    return jumps / slices.size


def _is_cut(slices: npt.NDArray[Any], level: float, axis: int) -> bool:
    """Say whether the image ends within its field of view where it is still full."""
    across = tuple(other for other in range(3) if other != axis)
    body = np.count_nonzero(slices > level, axis=across)
    filled = np.flatnonzero(slices.any(axis=across))
    ends = (filled[0], filled[0]), (len(body) - 1 - filled[-1], filled[-1])
    return any(
        empty >= LEAST_EMPTY * len(body) and body[end] > CUT * body.max() for empty, end in ends
    )
