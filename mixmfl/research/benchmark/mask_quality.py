"""How well a model tells which of its masks are good, on test cases."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from mixmfl.core.nan import mean
from mixmfl.evaluation.mask_quality import LOOK_CLOSELY
from mixmfl.evaluation.subset_dice import LOW_DICE, Subset
from mixmfl.research.benchmark.scores import Row

REVIEWED = 0.25
"""Share of the masks that somebody looks at: those of lowest estimated Dice."""


@dataclass(frozen=True)
class EstimateQuality:
    """Estimated against true Dice of masks as prediction writes them, of those with an estimate.

    Attributes:
        masks: Number of these masks: each label, subset, case and training is one.
        share: Share of these masks among all whose true Dice is defined.
        rank_correlation: Spearman's.
        error: Mean absolute error.
        blind_error: Mean absolute error of an estimate that is the mean true Dice of all masks of
            the label from that subset, which no estimate that ignores the mask can beat by much.
        covered: Share of masks whose true Dice lies in the interval.
        bad: Number of masks with a true Dice below ``LOW_DICE``.
        found: How many of these are among the ``REVIEWED`` of lowest estimate, of each training.
        warned: Number of masks with an estimate below ``LOOK_CLOSELY``, as a warning says.
        bad_warned: How many of these are bad.
    """

    masks: int
    share: float
    rank_correlation: float
    error: float
    blind_error: float
    covered: float
    bad: int
    found: int
    warned: int
    bad_warned: int


def estimate_quality(trainings: Iterable[Sequence[Row]]) -> EstimateQuality | None:
    """Compare estimated with true Dice; None where nothing was estimated.

    Args:
        trainings: The rows of one method, by training.
    """
    pairs: list[tuple[float, float]] = []
    blind: list[float] = []
    covered: list[bool] = []
    scored = bad = found = warned = bad_warned = 0
    for rows in trainings:
        rows = [row for row in rows if not math.isnan(row.dice)]
        scored += len(rows)
        known = [(row, row.estimate) for row in rows if row.estimate is not None]
        alike: dict[tuple[Subset, str], list[float]] = {}
        for row, estimate in known:
            pairs.append((estimate.dice, row.written))
            covered.append(estimate.low <= row.written <= estimate.high)
            alike.setdefault((row.modalities, row.region), []).append(row.written)
        blind += [abs(dice - mean(group)) for group in alike.values() for dice in group]
        worst = sorted(known, key=lambda pair: pair[1].dice)[: round(REVIEWED * len(known))]
        bad += sum(row.written < LOW_DICE for row, _ in known)
        found += sum(row.written < LOW_DICE for row, _ in worst)
        flagged = [row for row, estimate in known if estimate.dice < LOOK_CLOSELY]
        warned += len(flagged)
        bad_warned += sum(row.written < LOW_DICE for row in flagged)
    if len(pairs) < 2:
        return None
    estimated, true = np.array(pairs).T
    return EstimateQuality(
        masks=len(pairs),
        share=len(pairs) / scored,
        rank_correlation=float(stats.spearmanr(estimated, true).statistic),
        error=float(np.abs(estimated - true).mean()),
        blind_error=mean(blind),
        covered=float(np.mean(covered)),
        bad=bad,
        found=found,
        warned=warned,
        bad_warned=bad_warned,
    )
