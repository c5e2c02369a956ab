"""Cases that a model was not made for: refused, or predicted by force, and pages in red."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from small import MODALITIES, small_case, small_plans
from small_dicom import volume, write_series

from mixmfl.data.grid import Grid
from mixmfl.data.image import write_image
from mixmfl.federated.state import RunSettings, first_state
from mixmfl.inference.model import TrainedOn
from mixmfl.inference.model_file import save_model
from mixmfl.planning.model_card import ALL_SIMULATED, ModelCard
from mixmfl.planning.plans import Plans

Command = Callable[..., int]
GRID = Grid((6, 20, 18), (2.0, 1.0, 1.0), (0.0, 0.0, 0.0), (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0))


def model_of(file: Path, card: ModelCard) -> str:
    plans: Plans = dataclasses.replace(small_plans(), card=card)
    state = first_state(plans, RunSettings("2d", 0, 1, 1, 0.01))
    save_model(file, state, plans, "2d", TrainedOn(dict.fromkeys(MODALITIES, 1)))
    return str(file)


def test_a_phantoms_model_segments_patients_by_force_only_and_says_so_in_red(
    tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    card = ModelCard(subjects={"simulated": 9}, anatomy={"brain": 9})
    model = model_of(tmp_path / "m.safetensors", card)
    cases = tmp_path / "study" / "cases"
    images, _ = small_case(("t1",), 0, GRID.shape)
    (cases / "a").mkdir(parents=True)
    write_image(cases / "a" / "t1.nii.gz", images["t1"], GRID)
    asked = ("mixmfl_predict", "-i", cases, "-o", tmp_path / "masks", "-m", model)
    assert command(*asked) == 1
    assert "trained on simulated images only, and the case is not known" in capsys.readouterr().err
    assert command(*asked, "--force") == 0
    assert "was predicted by --force although the model was trained" in capsys.readouterr().out
    for page in ("report.html", "report/a.html"):
        assert f'role="alert">{ALL_SIMULATED}</p>' in (tmp_path / "masks" / page).read_text(), page
    (origin,) = json.loads((tmp_path / "masks" / "cases.json").read_text())["models"].values()
    assert origin["alarm"] == ALL_SIMULATED
    assert origin["origin"]["planned from"] == "9 cases simulated"

    (tmp_path / "study" / "dataset.json").write_text('{"subjects": "simulated"}')
    out = tmp_path / "phantoms"
    assert command("mixmfl_predict", "-i", cases, "-o", out, "-m", model, "--no-report") == 0
    assert "--force" not in (out / "cases.csv").read_text()


def test_a_series_of_another_part_of_the_body_is_refused(
    tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    model = model_of(tmp_path / "m.safetensors", ModelCard(anatomy={"brain": 9}))
    for case, description, part in (("p1", "T2", "PROSTATE"), ("p2", "T2 tra Knie", "")):
        write_series(
            tmp_path / "cases" / case,
            volume(0),
            PatientID=case,
            SeriesDescription=description,
            BodyPartExamined=part,
        )
    (tmp_path / "cases" / "p3").mkdir()
    (tmp_path / "cases" / "p3" / "T2_HWS.nii.gz").touch()
    asked = ("mixmfl_predict", "-i", tmp_path / "cases", "-o", tmp_path / "masks", "-m", model)
    assert command(*asked, "--no-report") == 1
    errors = capsys.readouterr().err
    for part in ("PROSTATE", "KNEE", "CSPINE"):
        shown = f"t2 shows {part} (by its name, description or BodyPartExamined)"
        assert f"{shown}; the model was made for: brain. --force predicts" in errors
