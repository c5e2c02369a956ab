"""What prediction does with skulls, by what the model file says of the cases it was made from."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from skull_head import BRAIN_MM, GRID, RADIUS, brain_alone, brain_tool, write_head
from small import small_plans

from mixmfl.core.errors import MixmflError, PlansError
from mixmfl.data.cases import find_cases
from mixmfl.data.image import read_labels
from mixmfl.federated.state import RunSettings, first_state
from mixmfl.inference.model import Model, TrainedOn
from mixmfl.inference.model_file import load_model, save_model
from mixmfl.inference.outcomes import Outcome
from mixmfl.inference.predict_folder import predict_folder
from mixmfl.inference.prediction_options import PredictionOptions
from mixmfl.inference.segmentation import Options
from mixmfl.planning import brains
from mixmfl.planning.brains import BrainExtraction, asked_extraction
from mixmfl.planning.typical import describe_image, merge_typical

NOTHING = BrainExtraction()


def model_of(folder: Path, heads: str) -> Model:
    # a patch that holds a slice of the head at its own spacing, so that one tile does
    plans = dataclasses.replace(small_plans(("flair", "t1"), patch=(96, 96)), heads=heads)
    plans.nnunet["configurations"]["2d"]["spacing"] = [2.0, 2.0]
    state = first_state(plans, RunSettings("2d", 0, 1, 1, 0.01))
    file = folder / f"{heads}.safetensors"
    save_model(file, state, plans, "2d", TrainedOn({"flair": 1, "t1": 1}))
    return load_model(file)


def predict(
    model: Model, folder: Path, asked: BrainExtraction = NOTHING, stripped: bool = False
) -> Outcome:
    if not (folder / "cases").exists():
        write_head(folder / "cases" / "p01", stripped)
    found = find_cases(folder / "cases")
    out = folder / "masks"
    options = PredictionOptions(networks=Options(1.0), brains=asked)
    (outcome,) = predict_folder([model], found.cases, found.refused, out, options)
    return outcome


def test_a_skull_that_the_model_does_not_know_is_a_warning(tmp_path: Path) -> None:
    outcome = predict(model_of(tmp_path, "stripped"), tmp_path)
    assert outcome.status == "done"
    assert any(warning.startswith("it shows its skull") for warning in outcome.warnings)
    assert "it shows its skull" in (tmp_path / "masks" / "cases.csv").read_text()


def test_what_a_skull_explains_is_not_said_again(tmp_path: Path) -> None:
    model = model_of(tmp_path, "stripped")
    typical = merge_typical(
        {name: described}
        for seed in range(12)
        for name in ("flair", "t1")
        if (described := describe_image(brain_alone(seed), GRID.spacing))
    )
    card = dataclasses.replace(model.plans.card, typical=typical)
    model = dataclasses.replace(model, plans=dataclasses.replace(model.plans, card=card))
    outcome = predict(model, tmp_path)
    assert outcome.status == "done", outcome.reason
    (skull,) = (each for each in outcome.warnings if "usual" in each or "skull" in each)
    assert skull.endswith("than is estimated, or remove it by --brain-only")


def test_a_missing_skull_is_a_warning_for_a_model_of_whole_heads(tmp_path: Path) -> None:
    outcome = predict(model_of(tmp_path, "skulls"), tmp_path, stripped=True)
    assert any(warning.startswith("its skull was removed") for warning in outcome.warnings)


@pytest.mark.parametrize(
    ("heads", "stripped"), [("stripped", True), ("skulls", False), ("mixed", False)]
)
def test_a_head_as_the_models_is_no_warning(tmp_path: Path, heads: str, stripped: bool) -> None:
    outcome = predict(model_of(tmp_path, heads), tmp_path, stripped=stripped)
    assert outcome.status == "done"
    assert not [warning for warning in outcome.warnings if "skull, which" in warning]
    assert not [warning for warning in outcome.warnings if "was removed; the" in warning]


@pytest.mark.parametrize("heads", ["own", "stripped"])
def test_an_own_command_makes_the_case_as_the_models_are(tmp_path: Path, heads: str) -> None:
    asked = asked_extraction(False, brain_tool(tmp_path))
    outcome = predict(model_of(tmp_path, heads), tmp_path, asked)
    assert outcome.status == "done"
    assert not any("skull" in warning for warning in outcome.warnings)
    assert any("the brain was extracted by own from t1" in note for note in outcome.notes)
    mask, _ = read_labels(tmp_path / "masks" / "p01.nii.gz")  # on the grid of the files
    assert mask.shape == RADIUS.shape
    assert (mask[RADIUS >= BRAIN_MM] == 0).all()


def test_a_case_is_predicted_again_where_extraction_changed(tmp_path: Path) -> None:
    model = model_of(tmp_path, "stripped")
    assert predict(model, tmp_path).status == "done"
    assert predict(model, tmp_path).status == "kept"
    asked = asked_extraction(False, brain_tool(tmp_path))
    assert predict(model, tmp_path, asked).status == "done"


def test_a_case_whose_extraction_fails_is_told_alone(tmp_path: Path) -> None:
    write_head(tmp_path / "cases" / "p02", stripped=True)
    write_head(tmp_path / "cases" / "p01")
    found = find_cases(tmp_path / "cases")
    asked = asked_extraction(False, brain_tool(tmp_path, "sys.exit('no licence')"))
    options = PredictionOptions(brains=asked)
    model, out = model_of(tmp_path, "own"), tmp_path / "masks"
    outcomes = predict_folder([model], found.cases, (), out, options)
    by_name = {outcome.name: outcome for outcome in outcomes}
    assert by_name["p02"].status == "done"
    assert by_name["p01"].status == "failed"
    assert "--brain-command failed (exit code 1): no licence" in by_name["p01"].reason


def test_what_the_model_needs_is_asked_for_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(PlansError, match="each place extracts brains by its own command"):
        predict(model_of(tmp_path, "own"), tmp_path)
    monkeypatch.setattr(brains, "find_spec", lambda name: None)
    with pytest.raises(MixmflError, match=r"mixmfl\[brain\]"):
        predict(model_of(tmp_path, "deepbet"), tmp_path)
    assert not (tmp_path / "masks").exists()


def test_from_python_a_command_works_too(tmp_path: Path) -> None:
    write_head(tmp_path / "p01")
    images = {name: tmp_path / "p01" / f"{name}.nii.gz" for name in ("t1", "flair")}
    model = model_of(tmp_path, "own")
    mask = model.predict(images, brain_command=brain_tool(tmp_path))
    assert (np.asarray(mask).T[RADIUS >= BRAIN_MM] == 0).all()
