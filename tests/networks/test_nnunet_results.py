"""A plain U-Net of ours as nnU-Net's trained model: the installed nnU-Net reads it and agrees."""

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from small import LABELS, SHAPE, small_case, small_plans, with_residual_encoders

from mixmfl.core.errors import ModelError
from mixmfl.data.labels import Labels
from mixmfl.data.modalities import Modalities
from mixmfl.federated.state import RunSettings, ServerState, first_state
from mixmfl.inference.model import Model, TrainedOn
from mixmfl.inference.model_file import load_model, save_model
from mixmfl.networks.base import place_modalities
from mixmfl.networks.nnunet_checkpoint import read_checkpoint
from mixmfl.networks.nnunet_results import check_writable, departures, write_results
from mixmfl.planning.plans import Plans

REGIONS = Labels({"background": 0, "lesion": (1, 2), "core": (2,)}, (1, 2))


def stacked(plans: Plans) -> Plans:
    network = dataclasses.replace(plans.network, form="stacked", compensation_levels=())
    return dataclasses.replace(plans, network=network)


def with_planned(plans: Plans, **planned: Any) -> Plans:
    nnunet = copy.deepcopy(dict(plans.nnunet))
    for configuration in nnunet["configurations"].values():
        configuration.update(planned)
    return dataclasses.replace(plans, nnunet=nnunet)


def random_state(plans: Plans) -> ServerState:
    """Return first weights whose biases and norms are random, too."""
    state = first_state(plans, RunSettings(plans.configurations[0], 0, 1, 1, 0.01))
    generator = torch.Generator().manual_seed(1)
    for tensor in state.weights.values():
        if tensor.ndim < 2:
            tensor.add_(torch.randn(tensor.shape, generator=generator), alpha=0.3)
    return state


def written(plans: Plans, folder: Path) -> tuple[Model, nnUNetPredictor]:
    """Return a model of random weights, and nnU-Net's predictor of what was written of it."""
    state, configuration = random_state(plans), plans.configurations[0]
    file = folder / "model.safetensors"
    save_model(file, state, plans, configuration, TrainedOn(dict.fromkeys(plans.modalities, 1)))
    check_writable(plans, configuration, "it")
    write_results(folder / "nnunet", plans, configuration, {"0": state.weights}, cases=3)
    predictor = nnUNetPredictor(
        use_mirroring=False,
        perform_everything_on_device=False,
        device=torch.device("cpu"),
        allow_tqdm=False,
    )
    predictor.initialize_from_trained_model_folder(str(folder / "nnunet"), (0,))
    return load_model(file), predictor


@pytest.mark.parametrize("patch", [(16, 16), (8, 16, 16)])
@pytest.mark.parametrize("residual", [False, True])
def test_nnunet_has_the_same_logits(patch: tuple[int, ...], residual: bool, tmp_path: Path) -> None:
    plans = stacked(small_plans(patch=patch))
    plans = with_residual_encoders(plans) if residual else plans
    model, predictor = written(plans, tmp_path)
    images = torch.randn(2, 3, *patch, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        theirs = predictor.network.eval()(images)
        ours = model.network(*place_modalities(images, model.modalities, model.modalities), {})
    assert ours.std() > 0.1
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("labels", [LABELS, REGIONS], ids=["labels", "regions"])
@pytest.mark.parametrize("lacking", ["", "t1"])
def test_nnunet_segments_a_case_alike_zeros_for_a_modality_that_it_lacks(
    labels: Labels, lacking: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # nnU-Net's precision on a CPU; of a network that nothing was trained in, other rounding shows
    monkeypatch.setattr("mixmfl.inference.cpu_network.best_dtype", lambda: torch.float32)
    plans = with_planned(
        stacked(small_plans(labels=labels, patch=(8, 16, 16))),
        spacing=[1.5, 1.0, 1.2],
        use_mask_for_norm=[False] * 3,  # else all outside the head becomes background here
    )
    model, predictor = written(plans, tmp_path)
    images, _ = small_case(plans.modalities, 0, SHAPE)
    affine = np.diag([-1.0, -1.0, 2.0, 1.0])  # axes to the left, to the back and to the head
    known = {name: (image.T, affine) for name, image in images.items() if name != lacking}
    ours = model.predict(known).T
    channels = [images[n] if n in known else np.zeros(SHAPE, np.float32) for n in plans.modalities]
    theirs = predictor.predict_single_npy_array(
        np.stack(channels), {"spacing": [2.0, 1.0, 1.0]}, None, None, False
    )
    assert len(np.unique(ours)) > 1
    assert np.mean(ours != theirs) < 0.002  # half precision in between


def test_a_checkpoint_holds_no_code_and_says_what_nnunet_needs(tmp_path: Path) -> None:
    plans = stacked(small_plans(labels=Labels({"background": 0, "lesion": 1, "core": 4})))
    written(plans, tmp_path)
    file = tmp_path / "nnunet" / "fold_0" / "checkpoint_final.pth"
    content = torch.load(file, weights_only=True)
    assert content["inference_allowed_mirroring_axes"] == (0, 1)
    described = json.loads((tmp_path / "nnunet" / "dataset.json").read_text())
    assert described == content["init_args"]["dataset_json"]
    assert described["channel_names"] == {"0": "flair", "1": "t1", "2": "t2"}
    assert described["labels"] == {"background": 0, "lesion": 1, "core": 2}
    assert described["numTraining"] == 3
    source = read_checkpoint(file, Modalities())
    assert source.modalities == plans.modalities
    weights = random_state(plans).weights
    assert source.weights.keys() == weights.keys()
    assert all(torch.equal(source.weights[name], weights[name]) for name in weights)


def test_what_nnunet_does_otherwise_is_listed() -> None:
    plans = stacked(small_plans(labels=Labels({"background": 0, "lesion": 1, "core": 4})))
    plans = dataclasses.replace(
        plans, heads="deepbet", nnunet={**plans.nnunet, "slices_first": True}
    )
    notes = "\n".join(departures(plans, "2d", ["flair", "t2"]))
    assert "every channel (0000 flair, 0001 t1, 0002 t2)" in notes
    assert "no case trained t1: give zeros" in notes
    assert "nnU-Net extracts no brains; give it brains extracted by deepbet" in notes
    assert "nnU-Net turns no case: give it those with axial slices" in notes
    assert "mixmfl_predict makes all outside the head background" in notes
    assert "consecutive values: 2 for 4" in notes
    plain = departures(
        with_planned(stacked(small_plans()), use_mask_for_norm=[False] * 3), "2d", plans.modalities
    )
    assert [note.split()[0:2] for note in plain] == [["nnU-Net", "needs"], ["nnU-Net", "takes"]]


def test_a_network_or_normalisation_that_nnunet_lacks_is_refused() -> None:
    with pytest.raises(ModelError, match=r"it: its network is decoupled, .* needed is a plain U-N"):
        check_writable(small_plans(), "2d", "it")
    heads = with_planned(stacked(small_plans()), normalization_schemes=["HeadNormalization"] * 3)
    with pytest.raises(ModelError, match="by HeadNormalization, which nnU-Net does not have"):
        check_writable(heads, "2d", "it")
