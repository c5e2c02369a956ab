"""Probabilities against how often they are right: counted, added up, corrected."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from scipy.special import expit, logit

from mixmfl.evaluation.reliability import (
    BINS,
    EDGES,
    Calibration,
    Reliability,
    add_reliability,
    calibrate,
    calibration_error,
    entropy,
)


def drawn(seed: int, cases: int, slope: float = 1.0, offset: float = 0.0) -> Reliability:
    """Return the histogram of voxels that are right as a curve of their probability says."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(-2, 3, 200_000)
    right = generator.random(len(logits)) < expit(slope * logits + offset)
    bins = np.digitize(logits, EDGES)
    voxels, confidence, correct = (
        np.bincount(bins, weights, BINS) for weights in (None, expit(logits), right)
    )
    return Reliability(
        cases, tuple(map(int, voxels)), tuple(map(float, confidence)), tuple(map(int, correct))
    )


def test_the_curve_that_voxels_were_drawn_from_is_found() -> None:
    found = calibrate(drawn(0, 5, 0.6, -0.8))
    assert found is not None
    assert found.slope == pytest.approx(0.6, abs=0.02)
    assert found.offset == pytest.approx(-0.8, abs=0.03)
    assert found.cases == 5
    certain = found(np.array([0.0, 0.3, 1.0]))
    assert certain[1] == pytest.approx(expit(found.slope * logit(0.3) + found.offset), rel=1e-5)
    assert 0 < certain[0] < certain[2] < 1
    assert found.before(float(certain[1])) == pytest.approx(0.3, rel=1e-4)


def test_calibrated_probabilities_are_right_as_often_as_they_say() -> None:
    sites = [drawn(seed, 3, 0.5, -1.0) for seed in range(2)]
    curve = calibrate(add_reliability(sites))
    new = drawn(9, 5, 0.5, -1.0)
    assert calibration_error(new) > 0.15
    assert calibration_error(new, curve) < 0.02
    honest = calibrate(drawn(1, 5))
    assert honest is not None
    assert (honest.slope, honest.offset) == pytest.approx((1, 0), abs=0.03)


def test_sites_add_up_in_any_order() -> None:
    parts = [drawn(seed, seed) for seed in range(4)]
    assert add_reliability(parts) == add_reliability(parts[::-1])
    assert add_reliability(parts).cases == 6
    assert all(each.is_possible for each in (Reliability(), *parts[1:], add_reliability(parts)))


def test_nothing_is_calibrated_where_nothing_can_be_told() -> None:
    enough = drawn(0, 5)
    none = (0,) * BINS
    for unknown in (
        drawn(0, 4),
        dataclasses.replace(enough, correct=none),
        dataclasses.replace(enough, correct=enough.voxels),
        drawn(0, 5, -0.5),  # surer voxels are less often right
        Reliability(),
    ):
        assert calibrate(unknown) is None
    assert math.isnan(calibration_error(Reliability()))


@pytest.mark.parametrize(
    "spoil",
    [
        {"cases": 0},
        {"correct": (10**6,) * BINS},
        {"confidence": (0.0,) * BINS},  # the uppermost bin has none below 0.999
        {"confidence": (10.0**6,) * BINS},
    ],
)
def test_counts_that_no_voxels_have_are_known(spoil: dict[str, Any]) -> None:
    assert drawn(0, 5).is_possible
    assert not dataclasses.replace(drawn(0, 5), **spoil).is_possible


def test_entropy_is_a_bit_where_nothing_is_known() -> None:
    assert entropy(np.array([0.5, 0.11, 0.0, 1.0])) == pytest.approx([1, 0.5, 0, 0], abs=1e-3)
    assert Calibration(1.0, 0.0, 5)(np.array([0.25]))[0] == pytest.approx(0.25)
