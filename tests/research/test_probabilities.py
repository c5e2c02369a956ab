"""What calibration is worth on test cases, against values worked out by hand."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.special import expit, logit

from mixmfl.core.errors import DataError
from mixmfl.core.files import read_json, write_json
from mixmfl.evaluation.reliability import BINS, Calibration, Reliability
from mixmfl.research.benchmark.plots import draw_reliability
from mixmfl.research.benchmark.probabilities import (
    Probabilities,
    RangedVolume,
    add_probabilities,
    calibration_quality,
    read_probabilities,
    write_probabilities,
)


def voxels_of(right: float) -> Reliability:
    """Return 1000 voxels of a probability of 0.7, of which a share is of the label."""
    at = int(np.digitize(logit(0.7), np.linspace(-8, 8, BINS + 1)[1:-1]))
    voxels, confidence, correct = ([0.0] * BINS for _ in range(3))
    voxels[at], confidence[at], correct[at] = 1000, 700.0, 1000 * right
    return Reliability(1, tuple(map(int, voxels)), tuple(confidence), tuple(map(int, correct)))


HALVED = Calibration(1.0, float(logit(0.5) - logit(0.7)), 14)  # 0.7 becomes 0.5
FIRST = Probabilities(
    {"lesion": HALVED}, {"lesion": voxels_of(0.45)}, (RangedVolume(4.0, 3.0, 9.0),)
)
SECOND = Probabilities(
    {"lesion": HALVED, "core": Calibration(1.0, 0.0, 9)},
    {"lesion": voxels_of(0.55), "core": voxels_of(0.7), "rare": voxels_of(0.1)},
    (RangedVolume(10.0, 11.0, 13.0), RangedVolume(0.0, 0.0, 1.0)),
)


def test_numbers_of_two_trainings() -> None:
    quality = calibration_quality([FIRST, SECOND, Probabilities({}, {"core": voxels_of(0.2)}, ())])
    assert quality is not None
    assert (quality.trainings, quality.cases) == (2, (9, 14))
    assert quality.error == pytest.approx((0.25 + 0.15 + 0) / 3)
    assert quality.calibrated_error == pytest.approx((0.05 + 0.05 + 0) / 3, abs=1e-6)
    assert quality.excess == pytest.approx((0.5 / 0.45 + 0.5 / 0.55 + 1) / 3, abs=1e-6)
    assert quality.covered == pytest.approx(2 / 3)
    assert quality.width == pytest.approx((6 / 4 + 2 / 10) / 2)  # where there is a volume
    assert calibration_quality([]) is None


def test_cases_of_a_model_add_up_and_are_read_again(tmp_path: Path) -> None:
    both = add_probabilities([FIRST, SECOND])
    assert both.tested["lesion"].voxels == tuple(2 * n for n in voxels_of(0.5).voxels)
    assert both.tested["core"] == voxels_of(0.7)
    assert len(both.volumes) == 3
    file = tmp_path / "reliability.json"
    assert read_probabilities(file) is None
    write_probabilities(file, both)
    assert read_probabilities(file) == both
    write_json(file, {**read_json(file), "volumes": [{"true": -1.0, "low": 0.0, "high": 0.0}]})
    with pytest.raises(DataError, match=r"reliability.json: volumes: .*true: is -1"):
        read_probabilities(file)


def test_the_plot_has_both_curves(tmp_path: Path) -> None:
    draw_reliability([FIRST, SECOND], tmp_path / "a.png")
    few = Probabilities({"lesion": HALVED}, {"lesion": Reliability()}, ())
    draw_reliability([few], tmp_path / "b.png")
    one, other = (np.array(Image.open(tmp_path / f"{name}.png")) for name in "ab")
    changed = (one != other).any(axis=(0, 2))
    assert changed[: len(changed) // 2].any()
    assert changed[len(changed) // 2 :].any()
    assert expit(HALVED.offset + logit(0.7)) == pytest.approx(0.5)
