"""The Dice of a mask estimated from confidence, against a library's regression."""

import math

import numpy as np
import pytest
from scipy import stats

from mixmfl.evaluation.mask_quality import ConfidenceSums, add_sums, estimate_dice, sums_of_case
from mixmfl.evaluation.small_components import SHARES


def drawn(count: int, seed: int, noise: float = 0.05) -> list[tuple[float, float]]:
    """Return confidence and Dice of masks: a line in the square of confidence, and some noise.

    Args:
        count: How many masks.
        seed: The seed of their generator.
        noise: Standard deviation, as a share of what a mask lacks to a Dice of 1.
    """
    generator = np.random.default_rng(seed)
    confidence = generator.uniform(0.6, 0.95, count)
    line = 1.2 * confidence**2 - 0.25
    dice = line + (1 - line) * generator.normal(0, noise, count)
    return list(zip(confidence.tolist(), dice.tolist(), strict=True))


def sums_of(masks: list[tuple[float, float]]) -> ConfidenceSums:
    """Return the sums where every mask is of another case and has one component of a label."""
    return add_sums([sums_of_case([(sure, [dice] * len(SHARES))]) for sure, dice in masks])


def test_estimate_is_that_of_linear_regression() -> None:
    masks = drawn(20, 0)
    line = stats.linregress([c * c for c, _ in masks], [d for _, d in masks])
    estimate = estimate_dice(sums_of(masks), 0.8)
    assert estimate is not None
    assert estimate.dice == pytest.approx(line.intercept + line.slope * 0.64)
    x = np.array([c * c for c, _ in masks])
    fitted = line.intercept + line.slope * x
    rest = np.array([d for _, d in masks]) - fitted
    error = (rest @ rest) / 18  # with n - 2 degrees of freedom
    of_mask = error * (1 - estimate.dice) ** 2 / np.mean((1 - fitted) ** 2)
    of_line = error * (1 / 20 + (0.64 - x.mean()) ** 2 / ((x - x.mean()) ** 2).sum())
    spread = stats.t(18, estimate.dice, math.sqrt(of_mask + of_line))
    inside = spread.cdf([estimate.low, estimate.high])
    assert inside[1] - inside[0] == pytest.approx(0.9 * (spread.cdf(1) - spread.cdf(0)))
    assert estimate.high - estimate.dice == pytest.approx(estimate.dice - estimate.low)


def test_interval_holds_nine_of_ten_new_masks_good_or_bad() -> None:
    inside: dict[bool, list[bool]] = {True: [], False: []}
    for seed in range(400):
        *known, new = drawn(31, seed, noise=0.1)
        estimate = estimate_dice(sums_of(known), new[0])
        assert estimate is not None
        inside[estimate.dice > 0.5].append(estimate.low <= new[1] <= estimate.high)
    assert np.mean(inside[True]) == pytest.approx(0.9, abs=0.06)
    assert np.mean(inside[False]) == pytest.approx(0.9, abs=0.06)


def test_where_all_masks_are_good_the_interval_is_that_of_one_spread_for_all() -> None:
    """In proportion to what they lack, which is next to nothing, a lesser one's would be huge."""
    masks = [(0.7 + 0.02 * n, 0.95 + 0.004 * n + 0.001 * (-1) ** n) for n in range(10)]
    estimate = estimate_dice(sums_of(masks), 0.8)
    assert estimate is not None
    squares = np.array([c * c for c, _ in masks])
    line = stats.linregress(squares, [d for _, d in masks])
    rest = np.array([d for _, d in masks]) - line.intercept - line.slope * squares
    away = (0.64 - squares.mean()) ** 2 / ((squares - squares.mean()) ** 2).sum()
    spread = stats.t(8, estimate.dice, math.sqrt((rest @ rest) / 8 * (1 + 1 / 10 + away)))
    inside = spread.cdf([estimate.low, estimate.high])
    assert inside[1] - inside[0] == pytest.approx(0.9 * (spread.cdf(1) - spread.cdf(0)))


@pytest.mark.parametrize("good", [True, False])
def test_a_tenth_lies_on_one_side_of_an_interval_that_reaches_an_end(good: bool) -> None:
    """Dice cannot be above 1, so all masks outside are worse ones; likewise at 0."""
    estimate = estimate_dice(sums_of(drawn(6, 2, noise=0.2)), 0.96 if good else 0.5)
    assert estimate is not None
    assert (estimate.high == 1) is good
    assert (estimate.low == 0) is not good
    assert 0 < (estimate.low if good else estimate.high) < 1


def test_masks_of_one_case_count_for_fewer() -> None:
    masks = drawn(12, 1)
    apart = estimate_dice(sums_of(masks), 0.8)
    alike = [(sure, [dice] * len(SHARES)) for sure, dice in masks]
    together = estimate_dice(
        add_sums([sums_of_case(alike[start : start + 2]) for start in range(0, 12, 2)]), 0.8
    )
    assert apart is not None
    assert together is not None
    assert together.dice == pytest.approx(apart.dice)
    # 12 masks of 6 cases count as 12 / 1.3
    assert 1.03 < (together.high - together.low) / (apart.high - apart.low) < 1.1


def test_sites_add_up_to_one_regression_in_any_order() -> None:
    parts = [sums_of(drawn(5, seed)) for seed in range(4)]
    assert add_sums(parts) == add_sums(parts[::-1])
    assert add_sums(parts).cases == 20


def test_a_mask_without_the_label_counts_for_nothing() -> None:
    assert sums_of_case([(math.nan, [0.0] * 4)]) == ConfidenceSums()
    assert sums_of_case([(math.nan, [0.0] * 4), (0.5, [0.25, 0.25, 0.5, 0.5])]) == ConfidenceSums(
        1,
        1,
        x=0.25,
        y=(0.25, 0.25, 0.5, 0.5),
        xx=0.0625,
        xy=(0.0625, 0.0625, 0.125, 0.125),
        yy=(0.0625, 0.0625, 0.25, 0.25),
    )


def test_the_estimate_is_of_the_mask_without_what_is_removed() -> None:
    masks = drawn(20, 0)
    better = [(sure, (dice + 1) / 2) for sure, dice in masks]
    both = [(sure, [dice, dice, (dice + 1) / 2, 0.0]) for sure, dice in masks]
    sums = add_sums([sums_of_case([mask]) for mask in both])
    assert sums.is_possible
    assert estimate_dice(sums, 0.8) == estimate_dice(sums_of(masks), 0.8)
    assert estimate_dice(sums, 0.8, share=0.1) == estimate_dice(sums_of(better), 0.8)
    assert estimate_dice(sums, 0.8, share=0.2) is None  # there surer masks are not better


def test_ends_stay_within_zero_and_one() -> None:
    estimate = estimate_dice(sums_of(drawn(6, 2, noise=0.2)), 0.99)
    assert estimate is not None
    assert 0 <= estimate.low <= estimate.dice <= estimate.high == 1


@pytest.mark.parametrize(
    ("masks", "confidence"),
    [
        (drawn(4, 0), 0.8),  # too few cases
        (drawn(20, 0), math.nan),  # the mask lacks the label
        ([(c, 1 - d) for c, d in drawn(20, 0)], 0.8),  # surer masks are worse
        ([(0.8, 0.5)] * 6, 0.8),  # all equally sure
    ],
)
def test_nothing_is_estimated_where_nothing_can_be_told(
    masks: list[tuple[float, float]], confidence: float
) -> None:
    assert estimate_dice(sums_of(masks), confidence) is None
