"""Resampling as nnU-Net does it (skimage's ``resize``, after scipy's splines), as matrix products.

A spline on a regular grid is a product of splines along the axes, and what it does along one is
linear. So each axis has a matrix, made by asking scipy's spline for what becomes of unit vectors,
and a volume is multiplied by three of them: some hundred times faster than point by point.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from nnunetv2.configuration import ANISO_THRESHOLD
from scipy import ndimage
from torch import Tensor


@dataclass(frozen=True)
class Resampling:
    """From one grid to another over the same box.

    Attributes:
        before: Voxels, (Z, Y, X).
        after: Voxels, (Z, Y, X).
        order: Order of the spline: 1 or 3.
        apart: Axis along which ``order_apart`` holds instead, because its voxels are much longer;
            None: there is none.
        order_apart: Order of the spline along that axis.
    """

    before: tuple[int, ...]
    after: tuple[int, ...]
    order: int
    apart: int | None = None
    order_apart: int = 0

    def __call__(self, volume: Tensor) -> Tensor:
        """Return ``(Z', Y', X')`` of ``(Z, Y, X)`` float32, within its range of values.

        The range is that of a slice where one axis is apart.
        """
        if self.before == self.after:
            return volume
        together = [axis for axis in range(3) if axis != self.apart]
        low, high = volume.amin(together, keepdim=True), volume.amax(together, keepdim=True)
        for axis in together:
            volume = _along(axis, self._matrix(axis), volume)
        volume = volume.clamp(low, high)
        return (
            volume if self.apart is None else _along(self.apart, self._matrix(self.apart), volume)
        )

    def planes(self, volumes: Tensor, start: int, stop: int) -> Tensor:
        """Return the planes of Z' from ``start`` to ``stop`` of ``(C, Z, Y, X)``, float32.

        Only the planes that they are made from are looked at. For splines of order 0 and 1, whose
        values never leave the range of what they are made from.
        """
        matrix = self._matrix(0)
        if matrix is None:
            volumes = volumes[:, start:stop].float()
        else:
            rows = matrix[start:stop]
            used = rows.any(dim=0).nonzero()
            low, high = int(used[0]), int(used[-1]) + 1
            volumes = _along(0, rows[:, low:high], volumes[:, low:high].float())
        for axis in (1, 2):
            volumes = _along(axis, self._matrix(axis), volumes)
        return volumes

    def _matrix(self, axis: int) -> Tensor | None:
        before, after = self.before[axis], self.after[axis]
        order = self.order_apart if axis == self.apart else self.order
        return None if before == after else _weights(before, after, order)


def resampled_shape(
    shape: Sequence[int], spacing: Sequence[float], new_spacing: Sequence[float]
) -> tuple[int, ...]:
    """Return how many voxels a volume has after resampling, along each axis, as nnU-Net rounds it.

    Args:
        shape: Voxels before.
        spacing: mm before.
        new_spacing: mm after.
    """
    lengths = zip(shape, spacing, new_spacing, strict=True)
    return tuple(round(float(before / after * voxels)) for voxels, before, after in lengths)


def axis_apart(
    forced: bool | None, spacing: Sequence[float], new_spacing: Sequence[float]
) -> int | None:
    """Return the axis that nnU-Net resamples by itself, as its voxels are much longer; else None.

    It is that of the old voxels, or else of the new ones, where one side is longer than all others.

    Args:
        forced: Whether the longest side is taken however little longer it is; None: only where it
            is more than ``ANISO_THRESHOLD`` times the shortest.
        spacing: mm before.
        new_spacing: mm after.
    """
    if forced is False:
        return None
    limit = 0.0 if forced else ANISO_THRESHOLD
    long = next((s for s in (spacing, new_spacing) if max(s) / min(s) > limit), None)
    if long is None or [*long].count(max(long)) > 1:
        return None
    return [*long].index(max(long))


@lru_cache(maxsize=32)
def _weights(before: int, after: int, order: int) -> Tensor:
    """Return what a row of ``before`` voxels is multiplied by, ``(after, before)`` float32."""
    units = np.eye(before)
    if order == 0:  # nnU-Net asks scipy for the points then, which rounds halves in another way
        points = [before / after * (np.arange(after) + 0.5) - 0.5]
        made = [ndimage.map_coordinates(unit, points, order=0, mode="nearest") for unit in units]
    else:
        made = [
            ndimage.zoom(unit, after / before, order=order, mode="nearest", grid_mode=True)
            for unit in units
        ]
    return torch.from_numpy(np.stack(made, axis=1)).float()


def _along(axis: int, matrix: Tensor | None, volumes: Tensor) -> Tensor:
    """Multiply ``(..., Z, Y, X)`` along an axis, 0 for Z; None: by nothing."""
    if matrix is None:
        return volumes
    if axis == 2:
        return volumes @ matrix.T
    if axis == 1:
        return matrix @ volumes
    *outer, _, height, width = volumes.shape
    return (matrix @ volumes.flatten(-2)).reshape(*outer, len(matrix), height, width)
