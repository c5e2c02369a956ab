"""Whether a case shows its skull, seen from the images alone.

Two signs tell a whole head from a brain whose surroundings were removed, slice by slice:

- air: far from the head voxels differ from 0, for a scanner's air is noise, and a removed
  background is exactly 0;
- bone: going inwards there is something bright (scalp, fat), then something dark (bone), then
  something bright again (brain), in many directions. It is what shows where air was removed.

``benchmarks/skulls.py`` measures how often the rule is right.
"""

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from mixmfl.planning.slices import slices_first

Array = npt.NDArray[Any]

SLICES = 16
"""Slices that are looked at, evenly spaced over those that are not empty."""

SMALLEST_RADIUS = 40.0  # mm; the top of a head is bone from rim to rim
SECTORS, RING = 24, 2.0  # directions from the middle of the head; mm of depth
DEEPEST_BONE = 18.0  # mm below the skin
DARK = 0.55  # of the brighter layers on both sides
BONE_DIRECTIONS = 0.4  # of the sectors
FINEST = 2.0  # mm; finer slices are thinned out
AIR_LEVEL, AIR_SHARE = 0.01, 0.05  # of the median deep in the head; of the voxels outside
SLICES_NEEDED = 0.4  # of the slices that are looked at


def shows_skull(images: Collection[Array], spacing: Sequence[float]) -> bool:
    """Say whether most images of a case show a skull or the air around a head.

    Args:
        images: ``(Z, Y, X)`` on one canonical grid; a removed background is 0.
        spacing: mm, (Z, Y, X).
    """
    shares = [skull_share(image, spacing) for image in images]
    return sum(share >= SLICES_NEEDED for share in shares) * 2 > len(shares)


def skull_share(image: Array, spacing: Sequence[float]) -> float:
    """Return the share of an image's slices that show a skull or air; 0 where none is of use."""
    turn = slices_first(spacing)
    volume, (_, *sides) = turn(image), turn.of(spacing)
    shown = np.flatnonzero(volume.any(axis=(1, 2)))
    thin_y, thin_x = (max(1, round(FINEST / side)) for side in sides)
    picked = volume[shown[np.linspace(0, len(shown) - 1, min(SLICES, len(shown))).astype(int)]]
    picked, sides = picked[:, ::thin_y, ::thin_x], [thin_y * sides[0], thin_x * sides[1]]
    tissue = tissue_level(picked)
    shares = [_slice_shows_skull(plane, tissue, sides) for plane in picked]
    usable = [each for each in shares if each is not None]
    return float(np.mean(usable)) if usable else 0.0


def tissue_level(image: Array) -> float:
    """Return an intensity between air and tissue: a quarter of the middle one above Otsu's."""
    values = image[image > 0].ravel()
    values = values[:: max(1, values.size // 200_000)]
    if not values.size:
        return 0.0
    if values.min() == values.max():
        return float(values[0]) / 4
    counts, edges = np.histogram(np.minimum(values, np.percentile(values, 99.5)), 256)
    middles = (edges[1:] + edges[:-1]) / 2
    below, total = np.cumsum(counts)[:-1], np.cumsum(counts * middles)
    between = (total[-1] * below / counts.sum() - total[:-1]) ** 2
    both = (below > 0) & (below < counts.sum())  # neither class is empty
    weights = below * (counts.sum() - below)
    between = np.divide(between, weights, out=np.zeros(len(below)), where=both)
    threshold = middles[np.argmax(between)]
    return float(np.median(values[values > threshold])) / 4


def _slice_shows_skull(plane: Array, tissue: float, sides: Sequence[float]) -> bool | None:
    """Return whether a slice shows air or bone; None where it shows too little."""
    parts, number = ndimage.label(ndimage.binary_fill_holes(ndimage.binary_opening(plane > tissue)))
    if not number:
        return None
    head = parts == 1 + np.argmax(np.bincount(parts.ravel())[1:])
    if head.sum() * np.prod(sides) < np.pi * SMALLEST_RADIUS**2:
        return None
    depth = ndimage.distance_transform_edt(head, sampling=sides)
    deep = float(np.median(plane[depth >= min(DEEPEST_BONE, depth.max())]))
    outside = plane[~ndimage.binary_dilation(head, iterations=3)]
    if outside.size and np.mean(np.abs(outside) > AIR_LEVEL * deep) > AIR_SHARE:
        return True
    return _bone_directions(plane, head, depth, sides) >= BONE_DIRECTIONS


def _bone_directions(plane: Array, head: Array, depth: Array, sides: Sequence[float]) -> float:
    """Return the share of directions in which a dark layer lies between two brighter ones."""
    y, x = np.nonzero(head)
    angle = np.arctan2((y - y.mean()) * sides[0], (x - x.mean()) * sides[1])
    sector = np.minimum(((angle + np.pi) * SECTORS / (2 * np.pi)).astype(int), SECTORS - 1)
    rings = int(DEEPEST_BONE / RING) + 3  # the last ones are below the bone
    ring = (depth[head] / RING).astype(int)
    near = ring < rings
    code = (sector * rings + ring)[near]
    layers = ndimage.median(plane[head][near], code, np.arange(SECTORS * rings))
    layers = np.reshape(layers, (SECTORS, rings))
    layers = np.where(np.isnan(layers), -np.inf, layers)  # a ring without a voxel is no layer
    above = np.maximum.accumulate(layers, axis=1)[:, :-2]
    below = np.maximum.accumulate(layers[:, ::-1], axis=1)[:, ::-1][:, 2:]
    between = layers[:, 1:-1]
    dark = np.isfinite(between) & (between < DARK * np.minimum(above, below))
    return float(dark.any(axis=1).mean())
