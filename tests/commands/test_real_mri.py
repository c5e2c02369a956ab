"""All commands on real patients; see ``MIXMFL_TEST_DATA`` in ``conftest.py``.

Two hospitals with a patient or two each, and minutes of training: far from a good model, but the
lesions that it finds are there. Floors of Dice are well below what was reached, so that another
machine's rounding cannot fail a test, and well above what a model that learnt nothing reaches.
Where the floor is 0, so few cases trained the modality that a mask is all that can be asked for.
"""

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("reading_process")]

Command = Callable[..., int]
Cases = Mapping[str, Sequence[str]]  # modalities by case

LESION = {"labels": {"background": 0, "lesion": 1}}
TUMOUR = {
    "labels": {"background": 0, "whole tumour": [1, 2, 3, 4], "core": [1, 3, 4], "enhancing": 4},
    "regions_class_order": [2, 1, 4],
}
ROUNDS = 4
STEPS = {"2d": 80, "3d_fullres": 30}  # of each site in a round


def link_cases(source: Path, folder: Path, cases: Cases) -> None:
    """Make a site of links to patients' files."""
    for name, modalities in cases.items():
        (folder / name).mkdir(parents=True)
        for file in (*modalities, "seg"):
            (folder / name / f"{file}.nii.gz").symlink_to(source / name / f"{file}.nii.gz")


def make_federation(
    source: Path, folder: Path, sites: Mapping[str, Cases], labels: Mapping[str, Any]
) -> Path:
    """Make a federation of links; its site ``unseen`` is held out."""
    if not source.is_dir():
        pytest.skip(f"{source} is not there")
    for site, cases in sites.items():
        link_cases(source, folder / site, cases)
    (folder / "dataset.json").write_text(json.dumps(labels))
    (folder / "federation.json").write_text(json.dumps({"held_out": ["unseen"]}))
    return folder


def small_preset(path: Path, spacing: float) -> Path:
    """Write the demo's preset for images of another spacing."""
    preset = json.loads(files("mixmfl.plans").joinpath("demo.json").read_text("utf-8"))
    preset["planner"].update(
        memory_gb=0.3,
        base_features=16,
        max_features_2d=128,
        max_features_3d=128,
        target_spacing=[spacing] * 3,
    )
    path.write_text(json.dumps(preset))
    return path


def train(
    command: Command, federation: Path, configuration: str, spacing: float, folder: Path
) -> Path:
    """Plan, preprocess and train; return the model, which is registered, too."""
    preset = small_preset(folder / "preset.json", spacing)
    work, run = folder / "work", folder / "run"
    plan = ["-i", federation, "-o", work, "--preset", preset, "-c", configuration, "-n", 1]
    assert command("mixmfl_plan_preprocess", *plan) == 0
    length = ["--rounds", ROUNDS, "--local-steps", STEPS[configuration]]
    asked = ["-i", work, "-o", run, "-c", configuration, "--fold", "all", *length]
    assert command("mixmfl_train_federated", *asked) == 0
    return run / "model.safetensors"


def dice_from(
    command: Command, federation: Path, modalities: Sequence[str], folder: Path
) -> dict[str, float]:
    """Predict the unseen patient from some modalities; return Dice by label or region."""
    masks = folder / "+".join(modalities)
    asked = ["-i", federation / "unseen", "-o", masks, "--modalities", ",".join(modalities)]
    assert command("mixmfl_predict", *asked) == 0
    table = masks / "scores.csv"
    compared = ["-i", masks, "-r", federation / "unseen", "-o", table]
    assert command("mixmfl_evaluate", *compared) == 0
    with table.open(newline="") as file:
        return {row["label"]: float(row["dice"]) for row in csv.DictReader(file)}


def assert_on_grid_of(image: Path, mask: Path, orientation: str) -> None:
    wanted, found = nib.load(image), nib.load(mask)
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found.affine, wanted.affine, atol=1e-4)
    assert "".join(nib.aff2axcodes(found.affine)) == orientation


def voxels(image: Any) -> np.ndarray:
    return np.asarray(image.dataobj)


@pytest.mark.parametrize(
    ("configuration", "floors"),
    [
        ("2d", {"flair": 0.25, "t2": 0.0, "flair+t1": 0.25, "flair+t1+t1c+t2": 0.3}),
        ("3d_fullres", {"flair": 0.2, "t2": 0.0, "flair+t1": 0.2, "flair+t1+t1c+t2": 0.2}),
    ],
)
def test_lesions_are_found_by_hospitals_that_have_no_modality_in_common(
    real_mri: Path,
    command: Command,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    configuration: str,
    floors: Mapping[str, float],
) -> None:
    source = real_mri / "ms_mni"
    sites: dict[str, Cases] = {
        "north": {"patient19": ("T1", "FLAIR")},
        "south": {"patient07": ("T2", "T1c")},  # 1300 voxels of lesion teach little about T2
        "unseen": {"patient26": ("T1", "T1c", "T2", "FLAIR")},
    }
    federation = make_federation(source, tmp_path / "federation", sites, LESION)
    train(command, federation, configuration, 2.0, tmp_path)
    masks = tmp_path / "masks"
    for subset, floor in floors.items():
        dice = dice_from(command, federation, subset.split("+"), masks)
        assert dice["lesion"] >= floor, subset
        mask = masks / subset / "patient26.nii.gz"
        assert_on_grid_of(source / "patient26" / "T1.nii.gz", mask, "LAS")
        assert set(np.unique(voxels(nib.load(mask)))) <= {0, 1}

    # the same patient in another orientation, beside a case whose file is cut off
    clinic = tmp_path / "clinic"
    (clinic / "turned").mkdir(parents=True)
    (clinic / "cut").mkdir()
    for modality in sites["unseen"]["patient26"]:
        original = nib.load(source / "patient26" / f"{modality}.nii.gz")
        turned = nib.as_closest_canonical(original)  # nibabel's canonical orientation is RAS
        nib.save(turned, clinic / "turned" / f"{modality}.nii.gz")
    whole = (source / "patient26" / "T1.nii.gz").read_bytes()
    (clinic / "cut" / "T1.nii.gz").write_bytes(whole[: len(whole) // 2])
    export = tmp_path / "last.safetensors"
    last = ["-i", tmp_path / "run", "-o", export, "--round", "last"]
    assert command("mixmfl_export", *last) == 0
    assert command("mixmfl_use_model", export) == 0
    capsys.readouterr()
    assert command("mixmfl_predict", "-i", clinic, "-o", masks / "clinic") == 1
    printed = capsys.readouterr()
    assert str(export) in printed.out
    assert "cut: FAILED" in printed.err
    assert "1 of 2 cases failed" in printed.out
    assert [path.name for path in (masks / "clinic").glob("*.nii.gz")] == ["turned.nii.gz"]
    found = nib.load(masks / "clinic" / "turned.nii.gz")
    assert nib.aff2axcodes(found.affine) == ("R", "A", "S")
    first = nib.as_closest_canonical(nib.load(masks / "flair+t1+t1c+t2" / "patient26.nii.gz"))
    np.testing.assert_array_equal(voxels(found), voxels(first))


@pytest.mark.parametrize(
    ("configuration", "floors"),
    [
        ("2d", {"flair": 0.5, "t1c": 0.0, "flair+t1c": 0.5}),
        ("3d_fullres", {"flair": 0.4, "t1c": 0.0, "flair+t1c": 0.4}),
    ],
)
def test_tumours_and_their_overlapping_regions_are_found(
    real_mri: Path,
    command: Command,
    tmp_path: Path,
    configuration: str,
    floors: Mapping[str, float],
) -> None:
    source = real_mri / "brats2015"
    sites: dict[str, Cases] = {
        "north": {"pat0001": ("T1c", "FLAIR"), "pat0004": ("T1c",)},
        "south": {"pat0003": ("FLAIR",)},
        "unseen": {"pat0002": ("T1c", "FLAIR")},
    }
    federation = make_federation(source, tmp_path / "federation", sites, TUMOUR)
    train(command, federation, configuration, 3.0, tmp_path)
    masks = tmp_path / "masks"
    for subset, floor in floors.items():
        dice = dice_from(command, federation, subset.split("+"), masks)
        assert set(dice) == {"whole tumour", "core", "enhancing"}
        assert dice["whole tumour"] >= floor, subset
        mask = masks / subset / "pat0002.nii.gz"
        assert_on_grid_of(source / "pat0002" / "FLAIR.nii.gz", mask, "LPS")
        assert set(np.unique(voxels(nib.load(mask)))) <= {0, 2, 1, 4}


def dice_between(one: np.ndarray, other: np.ndarray) -> float:
    return 2 * float((one & other).sum()) / float(one.sum() + other.sum())


def test_one_patient_as_archives_store_it_gets_one_mask(
    real_mri: Path, command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from small_dicom import write_series

    from mixmfl.data.grid import Grid, to_canonical
    from mixmfl.data.image import read_image, read_labels, write_image
    from mixmfl.data.registration import resample

    source = real_mri / "ms_mni"
    sites: dict[str, Cases] = {
        "north": {"patient19": ("T1", "FLAIR")},
        "south": {"patient07": ("T1", "FLAIR")},
        "unseen": {"patient26": ("T1", "FLAIR")},
    }
    federation = make_federation(source, tmp_path / "federation", sites, LESION)
    model = train(command, federation, "2d", 2.0, tmp_path)
    clinic = tmp_path / "clinic"
    for name in ("LAS", "RAS", "regridded", "FLAIR_alone"):
        (clinic / name).mkdir(parents=True)
    patient = source / "patient26"
    for modality in ("T1", "FLAIR"):
        file = patient / f"{modality}.nii.gz"
        (clinic / "LAS" / file.name).symlink_to(file)
        nib.save(nib.as_closest_canonical(nib.load(file)), clinic / "RAS" / file.name)
        image, grid = read_image(file)
        tags: dict[str, Any] = {"SeriesDescription": modality, "RescaleIntercept": "0"}
        step = float(np.abs(image).max()) / 32000  # the scanner's numbers were whole ones, too
        tags["RescaleSlope"] = f"{step:.8f}"
        stored = np.round(image / float(tags["RescaleSlope"])).astype(np.int16)
        write_series(clinic / "DICOM" / modality, stored, grid, **tags)
    (clinic / "regridded" / "FLAIR.nii.gz").symlink_to(patient / "FLAIR.nii.gz")
    (clinic / "FLAIR_alone" / "FLAIR.nii.gz").symlink_to(patient / "FLAIR.nii.gz")
    image, grid = read_image(patient / "T1.nii.gz")
    thick = Grid((91, 218, 182), (2.0, 1.0, 1.0), grid.origin, grid.direction)
    write_image(clinic / "regridded" / "T1.nii.gz", resample(image, grid, thick), thick)

    masks = tmp_path / "masks"
    asked = ["-i", clinic, "-o", masks, "-m", model, "--dicom-seg", "--reference", "flair"]
    assert command("mixmfl_predict", *asked) == 0
    assert "t1 was resampled onto the grid of flair" in (masks / "cases.csv").read_text()
    found = {}
    for name in ("LAS", "RAS", "DICOM", "regridded", "FLAIR_alone"):
        values, there = read_labels(masks / f"{name}.nii.gz")
        turned, place = to_canonical(values, there)
        found[name] = turned > 0
        wanted = to_canonical(*read_image(patient / "FLAIR.nii.gz"))[1]
        np.testing.assert_allclose(place.origin, wanted.origin, atol=1e-3)
    assert found["LAS"].any()
    for name, least in (("RAS", 0.99), ("DICOM", 0.99), ("regridded", 0.8)):
        dice = dice_between(found[name], found["LAS"])
        assert dice >= least, f"{name} against LAS: Dice {dice:.4f}"
    assert (masks / "DICOM.dcm").is_file()
