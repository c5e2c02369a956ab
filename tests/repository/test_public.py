"""What ``import mixmfl`` offers, and that it stays so."""

import dataclasses
import importlib
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest

import mixmfl
from mixmfl.core.errors import DataError


def test_the_public_names_are_these_and_each_is_there() -> None:
    assert mixmfl.__all__ == [
        *("Model", "__version__", "find_cases", "load_model"),
        *("plan_federation", "simulate_federation"),
    ]
    assert dir(mixmfl) == sorted(mixmfl.__all__)
    assert mixmfl.load_model is importlib.import_module("mixmfl.inference.model_file").load_model
    assert mixmfl.Model is importlib.import_module("mixmfl.inference.model").Model
    federation = importlib.import_module("mixmfl.research.federation")
    assert mixmfl.plan_federation is federation.plan_federation
    assert mixmfl.simulate_federation is federation.simulate_federation
    assert mixmfl.find_cases is importlib.import_module("mixmfl.data.cases").find_cases
    with pytest.raises(AttributeError, match="module 'mixmfl' has no attribute 'nonsense'"):
        mixmfl.nonsense  # noqa: B018


def test_public_names_are_imported_when_they_are_asked_for() -> None:
    code = "import mixmfl, sys; mixmfl.find_cases; print('torch' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout == "False\n"


def test_cases_are_found_in_a_folder_that_is_named_by_a_string(tmp_path: Path) -> None:
    (tmp_path / "p01").mkdir()
    nibabel.save(nibabel.Nifti1Image(np.ones((4, 4, 4)), np.eye(4)), tmp_path / "p01" / "t1.nii")
    (case,) = mixmfl.find_cases(str(tmp_path)).cases
    assert (case.name, list(case.images)) == ("p01", ["t1"])


def test_a_model_predicts_from_words_paths_images_and_arrays_alike(
    model: Path, tmp_path: Path
) -> None:
    loaded = mixmfl.load_model(str(model))
    voxels = np.random.default_rng(0).normal(100, 20, (20, 22, 6)).astype(np.float32)
    affine = np.diag([-2.0, -2.0, 3.0, 1.0])
    image = nibabel.Nifti1Image(voxels, affine)
    file = tmp_path / "p01_T1.nii"
    nibabel.save(image, file)
    masks = []
    for each in (str(file), file, image, (voxels, affine)):
        with pytest.warns(UserWarning, match="its background was not removed"):
            masks.append(loaded.predict({"t1": each}))
    assert masks[0].shape == voxels.shape
    assert all(np.array_equal(masks[0], mask) for mask in masks[1:])


@pytest.mark.filterwarnings("ignore:case 'case'. .* its background was not removed")
def test_a_model_of_simulated_images_segments_only_when_forced(model: Path) -> None:
    loaded = mixmfl.load_model(model)
    card = dataclasses.replace(loaded.plans.card, subjects={"simulated": 4})
    plans = dataclasses.replace(loaded.plans, card=card)
    loaded = dataclasses.replace(loaded, plans=plans)
    images = {"t1": (np.random.default_rng(0).normal(100, 20, (20, 22, 6)), np.eye(4))}
    with pytest.raises(DataError, match=r"trained on simulated images only.*force=True segments"):
        loaded.predict(images)
    with pytest.warns(UserWarning, match="trained on simulated images only"):
        assert loaded.predict(images, force=True).shape == (20, 22, 6)


def test_what_is_no_image_is_refused_in_words(model: Path, tmp_path: Path) -> None:
    loaded = mixmfl.load_model(model)
    with pytest.raises(DataError, match=r"t1: .* is a folder, and one image file is needed"):
        loaded.predict({"t1": tmp_path})
    with pytest.raises(TypeError, match="images by modality are needed"):
        loaded.predict(tmp_path)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"t1: a path, an image of nibabel or a pair .* not nd"):
        loaded.predict({"t1": np.zeros((3, 3, 3))})
