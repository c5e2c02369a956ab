"""How sure a network is of the mask that it made: the mean probability over a label's voxels."""

import math
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

from mixmfl.data.labels import Labels

_PLANES = 16
"""Planes of a volume whose probabilities are in memory at once."""


@torch.inference_mode()
def confidences(
    logits: Tensor, described: Labels, head: npt.NDArray[Any] | None = None
) -> dict[str, float]:
    """Return the mean probability of every label or region over the voxels that it is given to.

    Args:
        logits: ``(heads, Z, Y, X)``: a head per class, background first, of which the largest
            wins; or with regions one per region, which are where they are above 0.
        described: Labels of the network.
        head: ``(Z, Y, X)`` bool, voxels that count; None: all do.

    Returns:
        By name 0.5 to 1 with two classes or with regions, 1 / K to 1 with K classes; NaN where
        no voxel is given to the label.
    """
    count = len(logits)
    totals = torch.zeros(count, dtype=torch.float64)
    voxels = torch.zeros(count, dtype=torch.float64)
    for start in range(0, logits.shape[1], _PLANES):
        planes = logits[:, start : start + _PLANES].float()
        if described.has_regions:
            probability = planes.sigmoid()
            given = planes > 0
        else:
            probability = planes.softmax(dim=0)
            winner = planes.argmax(dim=0)
            given = torch.stack([winner == index for index in range(count)])
        if head is not None:
            given &= torch.from_numpy(head[start : start + _PLANES])
        given, probability = given.flatten(1).cpu(), probability.flatten(1).cpu()
        totals += torch.where(given, probability, 0).sum(dim=1, dtype=torch.float64)
        voxels += given.sum(dim=1)
    heads: list[int] = list(range(count))
    if not described.has_regions:  # in the order of the values
        index = described.consecutive().foreground
        heads = [index[name][0] for name in described.foreground]
    return {
        name: float(totals[number] / voxels[number]) if voxels[number] else math.nan
        for name, number in zip(described.foreground, heads, strict=True)
    }
