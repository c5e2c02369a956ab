"""How well estimates tell good masks from bad ones, against values worked out by hand."""

import math

import pytest

from mixmfl.evaluation.mask_quality import DiceEstimate
from mixmfl.research.benchmark.mask_quality import estimate_quality
from mixmfl.research.benchmark.scores import Row


def row(dice: float, estimated: float | None) -> Row:
    estimate = (
        None
        if estimated is None
        else DiceEstimate(estimated, max(0.0, estimated - 0.1), min(1.0, estimated + 0.1))
    )
    raw = dice / 2  # of the mask with the small components, which nothing was estimated of
    return Row("mdm", 0, "north", "a", ("t1",), "lesion", raw, math.nan, estimate, dice)


def test_numbers_of_two_trainings() -> None:
    first = [row(0.9, 0.8), row(0.7, 0.75), row(0.2, 0.35), row(0.4, 0.6)]
    second = [row(0.8, 0.82), row(0.6, None), row(math.nan, 0.7), row(0.45, 0.5)]
    quality = estimate_quality([first, second])
    assert quality is not None
    assert (quality.masks, quality.bad) == (6, 3)
    assert quality.share == pytest.approx(6 / 7)  # Dice of one mask is undefined
    assert quality.error == pytest.approx((0.1 + 0.05 + 0.15 + 0.2 + 0.02 + 0.05) / 6)
    assert quality.covered == pytest.approx(4 / 6)
    assert quality.found == 1  # the worst one of four, and none of two
    assert (quality.warned, quality.bad_warned) == (2, 2)  # estimates of 0.35 and 0.5, not of 0.6
    means = [0.55] * 4 + [0.625] * 2  # of the trainings, from the same subset
    true = [0.9, 0.7, 0.2, 0.4, 0.8, 0.45]
    blind = sum(abs(a - b) for a, b in zip(true, means, strict=True)) / 6
    assert quality.blind_error == pytest.approx(blind)


def test_correlation_is_of_ranks() -> None:
    quality = estimate_quality([[row(0.1, 0.5), row(0.2, 0.6), row(0.9, 0.61)]])
    assert quality is not None
    assert quality.rank_correlation == pytest.approx(1)


def test_nothing_estimated_is_nothing_told() -> None:
    assert estimate_quality([[row(0.5, None), row(0.6, None)]]) is None
    assert estimate_quality([]) is None
