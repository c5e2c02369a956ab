"""Maps of probability and entropy, and the range of a volume, from a small model."""

import csv
import dataclasses
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from scipy.special import expit
from small import MODALITIES, small_case, small_plans

from mixmfl.data.cases import find_cases
from mixmfl.data.grid import Grid
from mixmfl.data.image import write_image
from mixmfl.data.labels import Labels
from mixmfl.evaluation.mask_quality import ConfidenceSums, Measured
from mixmfl.evaluation.reliability import BINS, Reliability
from mixmfl.federated.state import RunSettings, first_state
from mixmfl.inference.model import Model, TrainedOn
from mixmfl.inference.model_file import load_model, save_model
from mixmfl.inference.outcomes import Outcome
from mixmfl.inference.predict_folder import predict_folder
from mixmfl.inference.prediction_options import OutputOptions
from mixmfl.inference.uncertainty import Maps, unestimated

SHAPE = (6, 20, 18)
LAS = (-1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
GRID = Grid(SHAPE, (2.0, 1.0, 1.0), (9.0, -3.0, 2.0), LAS)


def overconfident(cases: int) -> Reliability:
    """Return voxels, as many in every bin, that are right as half of their logit says."""
    middles = np.linspace(-7.75, 7.75, BINS)
    right = tuple(round(1000 * float(each)) for each in expit(middles / 2))
    confidence = tuple(1000 * float(each) for each in expit(middles))
    return Reliability(cases, (1000,) * BINS, confidence, right)


def model_of(folder: Path, cases: int = 5, seed: int = 0, labels: Any = None) -> Model:
    plans = small_plans() if labels is None else small_plans(labels=labels)
    state = first_state(plans, RunSettings("2d", seed, 1, 1, 0.01))
    measured = Measured(reliability={"lesion": overconfident(cases)}) if cases else Measured()
    file = folder / f"m{seed}-{cases}.safetensors"
    save_model(file, state, plans, "2d", TrainedOn(dict.fromkeys(MODALITIES, 1)), measured)
    return load_model(file)


def predicted(models: list[Model], cases: Path, out: Path, report: bool = False) -> Outcome:
    found, output = find_cases(cases), OutputOptions(report=report, uncertainty=True)
    (outcome,) = predict_folder(models, found.cases, found.refused, out, output=output)
    return outcome


@pytest.fixture
def cases(tmp_path: Path) -> Path:
    voxels = small_case(("t1",), 0, SHAPE)[0]["t1"]
    voxels[:, :2] = 0  # outside the head
    (tmp_path / "cases" / "p").mkdir(parents=True)
    write_image(tmp_path / "cases" / "p" / "t1.nii.gz", voxels, GRID)
    return tmp_path / "cases"


def maps_of(out: Path) -> dict[str, np.ndarray]:
    return {
        file.name: np.asarray(nib.load(file).dataobj) for file in (out / "uncertainty").iterdir()
    }


def test_maps_are_calibrated_where_the_model_is_and_lie_on_the_image(
    cases: Path, tmp_path: Path
) -> None:
    calibrated, plain = tmp_path / "calibrated", tmp_path / "plain"
    outcome = predicted([model_of(tmp_path)], cases, calibrated)
    assert outcome.limits[-1].startswith("probabilities of core are not calibrated: the model")
    found = maps_of(calibrated)
    assert sorted(found) == [
        "p.core.uncalibrated_entropy.nii.gz",
        "p.core.uncalibrated_probability.nii.gz",
        "p.lesion.entropy.nii.gz",
        "p.lesion.probability.nii.gz",
    ]
    image = nib.load(cases / "p" / "t1.nii.gz")
    for name, values in found.items():
        assert np.array_equal(nib.load(calibrated / "uncertainty" / name).affine, image.affine)
        assert not values[image.get_fdata() == 0].any()
    few = predicted([model_of(tmp_path, cases=4)], cases, plain)
    assert few.limits[-1] == (
        "probabilities of lesion, core are not calibrated: measured on 4 validation "
        "cases; at least 5 are needed, with and without the label in them"
    )
    raw = maps_of(plain)["p.lesion.uncalibrated_probability.nii.gz"]
    inside = raw > 0.001  # maps are rounded
    halved = expit(np.log(raw[inside] / (1 - raw[inside])) / 2)
    p = found["p.lesion.probability.nii.gz"][inside]
    assert len(p) > 1000
    assert p == pytest.approx(halved, abs=0.03)  # the bins are wide
    bits = -p * np.log2(p) - (1 - p) * np.log2(1 - p)
    assert found["p.lesion.entropy.nii.gz"][inside] == pytest.approx(bits, abs=2e-3)

    again = predicted([model_of(tmp_path)], cases, calibrated)
    assert again.status == "kept"
    assert again.volume_ranges_ml == outcome.volume_ranges_ml
    (calibrated / "uncertainty" / "p.lesion.entropy.nii.gz").unlink()
    again = predicted([model_of(tmp_path)], cases, calibrated)
    assert again.status == "done"


def test_why_the_dice_of_a_mask_is_not_estimated(tmp_path: Path) -> None:
    model = model_of(tmp_path)
    start = "this mask's Dice is not estimated, of lesion, core: "
    assert unestimated([model]) == [f"{start}the model file does not say what was measured"]
    assert unestimated([model, model]) == [f"{start}the mean of several models was never measured"]
    measured = Measured(confidence={"lesion": ConfidenceSums(cases=4, masks=8)})
    few = dataclasses.replace(model, measured=measured)
    assert unestimated([few]) == [
        f"{start}measured on 4 validation cases; at least 5 are needed, and in them Dice must "
        "rise with confidence"
    ]


def test_maps_of_several_models_are_not_calibrated(cases: Path, tmp_path: Path) -> None:
    out = tmp_path / "masks"
    models = [model_of(tmp_path, seed=seed) for seed in (0, 1)]
    outcome = predicted(models, cases, out)
    assert outcome.limits[-1] == (
        "probabilities of lesion, core are not calibrated: the mean of several models was "
        "never measured"
    )
    assert outcome.volume_ranges_ml == {}

    def by_class(folder: Path) -> np.ndarray[Any, Any]:
        maps = maps_of(folder)
        named = [
            maps[f"p.{name}.uncalibrated_probability.nii.gz"].astype(float)
            for name in ("lesion", "core")
        ]
        return np.stack([np.maximum(1 - sum(named), 0), *named])

    each = []
    for seed in (0, 1):
        predicted([model_of(tmp_path, 0, seed)], cases, tmp_path / str(seed))
        each.append(by_class(tmp_path / str(seed)))
    product = np.sqrt(each[0] * each[1])  # models of one input are averaged in their logits
    inside = np.stack(each).min(axis=(0, 1)) > 0.02  # where rounding of the maps says little
    assert inside.sum() > 100
    want = product[:, inside] / product[:, inside].sum(axis=0)
    assert by_class(out)[:, inside] == pytest.approx(want, abs=3e-3)


def test_the_range_of_a_volume_holds_the_voxels_between_two_probabilities(
    cases: Path, tmp_path: Path
) -> None:
    out = tmp_path / "masks"
    outcome = predicted([model_of(tmp_path)], cases, out, report=True)
    probability = maps_of(out)["p.lesion.probability.nii.gz"]
    low, high = outcome.volume_ranges_ml["lesion"]
    # the network's voxels are 2 mm in the plane of slices of 2 mm, as those of the image are 1 mm
    assert low == pytest.approx(0.002 * (probability > 0.9).sum(), abs=0.01)
    assert high == pytest.approx(0.002 * (probability > 0.1).sum(), rel=0.02)
    assert list(outcome.volume_ranges_ml) == ["lesion"]
    with (out / "cases.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert float(row["volume_to_ml_lesion"]) == pytest.approx(high, abs=1e-3)
    assert row["volume_from_ml_core"] == ""
    text = (out / "report.html").read_text()
    assert f"by calibrated probabilities: lesion {low:.1f} to {high:.1f} ml." in text


def test_labels_that_no_file_can_be_called_have_numbers(tmp_path: Path) -> None:
    labels = Labels({"background": 0, "a/b": 1, "a b": 2})
    assert Maps.of([model_of(tmp_path, 0, labels=labels)]).words == {
        "a/b": "label1",
        "a b": "label2",
    }
    labels = dataclasses.replace(labels, declared={"background": 0, "a/b": 1, "Ödem": 2})
    assert Maps.of([model_of(tmp_path, 0, 2, labels)]).words == {"a/b": "a_b", "Ödem": "Ödem"}
