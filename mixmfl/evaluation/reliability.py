"""How far a network's probabilities can be taken at their word, and probabilities that can.

A network that says 0.9 is not right in nine voxels of ten. How often it is right is counted on the
sites' validation cases when training ends: per label a reliability histogram, which adds up over
sites and is kept in the model file. A curve through it turns probabilities into calibrated ones.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from scipy.special import expit, logit

from mixmfl.core.declarations import entries, text, within
from mixmfl.data.labels import LONGEST_NAME, MOST_LABELS
from mixmfl.evaluation.subset_dice import FEWEST_CASES, MOST_CASES

Array = npt.NDArray[Any]

BINS = 32
MOST_LOGIT = 8.0
"""Bins are equal in the logit, from minus this to this; the outermost two have what lies beyond."""

EDGES = np.linspace(-MOST_LOGIT, MOST_LOGIT, BINS + 1)[1:-1]
"""Logits between the bins."""

LEVEL = 0.8
"""Of the range of a volume."""

_MOST_VOXELS = 10**15
_CERTAIN = 1e-6  # probabilities nearer to 0 or 1 are taken for this near

_Counts = Annotated[tuple[Annotated[int, within(0, _MOST_VOXELS)], ...], entries(BINS, BINS)]


@dataclass(frozen=True)
class Reliability:
    """The voxels of one label by the probability that the network gives it there.

    Attributes:
        cases: Cases that the voxels are of; a case counts once, with all subsets of its modalities.
        voxels: Number of voxels in each bin.
        confidence: Sum of the probabilities in each bin.
        correct: How many of the voxels are of the label.
    """

    cases: Annotated[int, within(0, MOST_CASES)] = 0
    voxels: _Counts = (0,) * BINS
    confidence: Annotated[
        tuple[Annotated[float, within(0, _MOST_VOXELS)], ...], entries(BINS, BINS)
    ] = (0.0,) * BINS
    correct: _Counts = (0,) * BINS

    @property
    def is_possible(self) -> bool:
        """Say whether voxels can have these counts: as many are right as there are, at most."""
        edges = expit(EDGES)
        lows, highs = np.array([0.0, *edges]), np.array([*edges, 1.0])
        voxels, confidence, correct = map(np.array, (self.voxels, self.confidence, self.correct))
        slack = 1e-5 * voxels  # probabilities are of single precision
        return bool(
            (self.cases > 0 or not voxels.any())
            and (correct <= voxels).all()
            and (confidence >= lows * voxels - slack).all()
            and (confidence <= highs * voxels + slack).all()
        )


Reliabilities = Annotated[
    Mapping[Annotated[str, text(LONGEST_NAME)], Reliability], entries(0, MOST_LABELS)
]
"""Histograms by label or region, as messages and model files have them."""


def add_reliability(parts: Sequence[Reliability]) -> Reliability:
    """Return the sum over all parts; their order changes no bit."""
    return Reliability(
        sum(each.cases for each in parts),
        tuple(map(sum, zip(*(each.voxels for each in parts), strict=True))),
        tuple(map(math.fsum, zip(*(each.confidence for each in parts), strict=True))),
        tuple(map(sum, zip(*(each.correct for each in parts), strict=True))),
    )


@dataclass(frozen=True)
class Calibration:
    """A curve from a network's probability of a label to a calibrated one.

    The logit of the one is a line in the logit of the other (Platt 1999, Probabilistic Outputs for
    Support Vector Machines).

    Attributes:
        slope: Above 0, so that the order of voxels stays.
        offset: Logit that 0.5 becomes.
        cases: Validation cases that it rests on.
    """

    slope: Annotated[float, within(0, 1e6)]
    offset: Annotated[float, within(-1e6, 1e6)]
    cases: Annotated[int, within(0, MOST_CASES)]

    def __call__(self, probability: Array) -> npt.NDArray[np.float32]:
        """Return calibrated probabilities."""
        certain = np.clip(probability, _CERTAIN, 1 - _CERTAIN, dtype=np.float32)
        return np.asarray(expit(self.slope * logit(certain) + self.offset), dtype=np.float32)

    def before(self, calibrated: float) -> float:
        """Return the network's probability that becomes this one."""
        return float(expit((logit(calibrated) - self.offset) / self.slope))


def calibrate(known: Reliability) -> Calibration | None:
    """Return the curve through a histogram, by maximum likelihood.

    Returns:
        None where there is none: fewer than ``FEWEST_CASES`` were measured, all or none of the
        voxels are of the label, or they are not more often right with a higher probability.
    """
    voxels, correct = (np.array(each, dtype=float) for each in (known.voxels, known.correct))
    if known.cases < FEWEST_CASES or not 0 < correct.sum() < voxels.sum():
        return None
    held = voxels > 0
    voxels, correct = voxels[held], correct[held]
    mean = np.clip(np.array(known.confidence)[held] / voxels, _CERTAIN, 1 - _CERTAIN)
    terms = np.stack([logit(mean), np.ones_like(mean)])
    line = np.array([1.0, 0.0])
    for _ in range(100):  # Newton's steps, of which a handful are needed
        expected = expit(line @ terms)
        gradient = terms @ (correct - voxels * expected)
        curvature = (terms * voxels * expected * (1 - expected)) @ terms.T
        step, *_ = np.linalg.lstsq(curvature, gradient, rcond=None)
        line = line + step / max(1.0, float(np.abs(step).max()))
        if np.abs(step).max() < 1e-9:
            break
    slope, offset = map(float, line)
    return Calibration(slope, offset, known.cases) if slope > 1e-3 else None


def entropy(probability: Array) -> npt.NDArray[np.float32]:
    """Return the entropy in bits of having a label or not: 0 where certain, 1 at 0.5."""
    held = np.clip(probability, _CERTAIN, 1 - _CERTAIN, dtype=np.float32)
    return -(held * np.log2(held) + (1 - held) * np.log2(1 - held))


def calibration_error(known: Reliability, calibration: Calibration | None = None) -> float:
    """Return the mean distance of probability and share of right voxels, over likely voxels.

    Likely are bins of a mean probability of 0.05 or more, as it is used: of all voxels nearly every
    one is surely background, and hides all others. NaN where there is none.

    Args:
        known: Histogram of test cases.
        calibration: The curve that is applied to the probabilities; None: none.
    """
    voxels, correct, probability = curve(known, calibration)
    likely = probability >= 0.05
    if not likely.any():
        return math.nan
    return float(np.average(np.abs(probability - correct)[likely], weights=voxels[likely]))


def curve(known: Reliability, calibration: Calibration | None) -> tuple[Array, Array, Array]:
    """Return, of the bins that hold any, their voxels, their right share and mean probability."""
    voxels = np.array(known.voxels, dtype=float)
    held = voxels > 0
    mean = np.array(known.confidence)[held] / voxels[held]
    if calibration is not None:
        mean = calibration(mean)
    return voxels[held], np.array(known.correct)[held] / voxels[held], mean
