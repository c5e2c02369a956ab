"""How sure a network is of what it segments: its probabilities, in a few numbers per label."""

import math
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import expit
from torch import Tensor

from mixmfl.data.labels import Labels
from mixmfl.evaluation.reliability import BINS, EDGES, LEVEL, Calibration, Reliability

_PLANES = 16
"""Planes of a volume whose probabilities are in memory at once."""

_EDGES = torch.from_numpy(expit(EDGES)).float()


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
    for part, planes, probability in _by_planes(logits, described):
        if described.has_regions:
            given = planes > 0
        else:
            winner = planes.argmax(dim=0)
            given = torch.stack([winner == index for index in range(count)])
        if head is not None:
            given &= torch.from_numpy(head[part])
        given, probability = given.flatten(1).cpu(), probability.flatten(1).cpu()
        totals += torch.where(given, probability, 0).sum(dim=1, dtype=torch.float64)
        voxels += given.sum(dim=1)
    return {
        name: float(totals[number] / voxels[number]) if voxels[number] else math.nan
        for name, number in heads_of(described).items()
    }


@torch.inference_mode()
def reliabilities(
    logits: Tensor,
    described: Labels,
    truth: npt.NDArray[Any],
    labelled: Collection[str] | None = None,
    head: npt.NDArray[Any] | None = None,
) -> dict[str, Reliability]:
    """Return how often the network is right at which probability, in one case.

    Args:
        logits: Logits of the network, as ``confidences`` takes them.
        described: Labels of the network.
        truth: ``(Z, Y, X)`` class indices; negative outside the head.
        labelled: Labels and regions that the case labels; None: all.
        head: ``(Z, Y, X)`` bool, voxels that count; None: all do.
    """
    known = described.consecutive().only(labelled)
    counted = known.counted(truth) if head is None else known.counted(truth) & head
    heads = heads_of(described)
    sums = {name: np.zeros((3, BINS)) for name in known.foreground}
    for part, _, probability in _by_planes(logits, described):
        inside = torch.from_numpy(counted[part])
        for name, values in known.foreground.items():
            probabilities = probability[heads[name]].cpu()[inside]
            right = torch.from_numpy(np.isin(truth[part], values))[inside]
            bins = torch.bucketize(probabilities, _EDGES, right=True)
            for row, weights in enumerate((None, probabilities.double(), right.double())):
                sums[name][row] += torch.bincount(bins, weights, minlength=BINS).numpy()
    return {
        name: Reliability(
            1,
            tuple(map(int, voxels)),
            tuple(map(float, confidence)),
            tuple(map(int, correct)),
        )
        for name, (voxels, confidence, correct) in sums.items()
    }


@torch.inference_mode()
def volume_ranges(
    logits: Tensor,
    described: Labels,
    calibrations: Mapping[str, Calibration],
    voxel_ml: float,
    head: npt.NDArray[Any] | None,
) -> dict[str, tuple[float, float]]:
    """Return a range of each label's volume in ml, where its probabilities are calibrated.

    The label's true voxels are taken for those whose calibrated probability is above a number that
    is drawn once per case, evenly from 0 to 1. Then the volume lies with probability ``LEVEL``
    between those of the voxels above the highest and above the lowest ``(1 - LEVEL) / 2``. Voxels
    that err together as much as they can are the widest case of all that have these probabilities.

    Args:
        logits: Logits of the network, as ``confidences`` takes them.
        described: Labels of the network.
        calibrations: By label or region, the curve of its probabilities.
        voxel_ml: Volume of a voxel.
        head: ``(Z, Y, X)`` bool, voxels that count; None: all do.
    """
    heads, tail = heads_of(described), (1 - LEVEL) / 2
    limits = {
        name: [calibration.before(at) for at in (1 - tail, tail)]
        for name, calibration in calibrations.items()
    }
    voxels = {name: [0, 0] for name in calibrations}
    for part, _, probability in _by_planes(logits, described):
        for name, each in limits.items():
            probabilities = probability[heads[name]].cpu()
            if head is not None:
                probabilities = probabilities[torch.from_numpy(head[part])]
            for end, limit in enumerate(each):
                voxels[name][end] += int((probabilities > limit).sum())
    return {name: (low * voxel_ml, high * voxel_ml) for name, (low, high) in voxels.items()}


def heads_of(described: Labels) -> dict[str, int]:
    """Return the head of the network for each label or region; those of labels are by value."""
    names = list(described.foreground)
    if described.has_regions:
        return {name: number for number, name in enumerate(names)}
    index = described.consecutive().foreground
    return {name: index[name][0] for name in names}


def _by_planes(logits: Tensor, described: Labels) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Yield a few planes at a time: which, their logits and their probabilities."""
    for start in range(0, logits.shape[1], _PLANES):
        part = slice(start, start + _PLANES)
        planes = logits[:, part].float()
        yield part, planes, planes.sigmoid() if described.has_regions else planes.softmax(dim=0)
