"""Fused maps that attend to prototypes: by hand, and from training to a model file."""

import dataclasses
from pathlib import Path

import torch
from small_federation import SETTINGS, SiteStore
from torch import nn, tensor

from mixmfl.federated.simulation import simulate
from mixmfl.inference.model_file import load_model
from mixmfl.networks.anchored import AnchoredNet, Calibration
from mixmfl.networks.build import build_network
from mixmfl.networks.parameters import load_state, network_state
from mixmfl.networks.prototypes import Prototypes
from mixmfl.research.benchmark.methods import METHODS


def test_a_voxel_reads_the_mean_of_anchors_weighted_by_their_similarity() -> None:
    layer = Calibration(2, 2)
    for linear in (layer.query, layer.key, layer.value):
        nn.init.eye_(linear.weight)
    anchors = tensor([[4.0, 0.0], [0.0, 4.0]])
    fused = tensor([[0.0, 1.0], [0.0, 0.0]])[None]  # (1, C = 2, two voxels)
    read = layer(fused, anchors) - fused
    assert read[0, :, 0].tolist() == [2, 2]  # a zero is as similar to both
    share = 1 / (1 + torch.tensor(-4 / 2**0.5).exp())
    torch.testing.assert_close(read[0, :, 1], torch.stack([4 * share, 4 * (1 - share)]))


def test_without_anchors_and_before_training_it_is_the_network_of_tailored(
    store: SiteStore,
) -> None:
    plans = store.federation({"north": [("t1",)]}).plans
    anchored, tailored = (
        build_network(METHODS[name].apply(plans), "2d", 0).eval()
        for name in ("fedmema", "tailored")
    )
    assert isinstance(anchored, AnchoredNet)
    load_state(anchored, network_state(tailored))
    images, present = torch.randn(2, 3, 16, 16), tensor([[True, False, True], [False, True, True]])
    rows = Prototypes(torch.randn(3, 4), tensor([5.0, 1.0, 0.0]))
    with torch.inference_mode():
        plain = tailored(images, present, {})
        for memory in ({}, {("t1", 2): rows}):
            assert torch.equal(anchored(images, present, memory), plain)
        nn.init.normal_(anchored.get_parameter("fusion.2.calibration.value.weight"))
        assert not torch.equal(anchored(images, present, {("t1", 2): rows}), plain)
        unseen = dataclasses.replace(rows, counts=torch.zeros(3))
        assert torch.equal(anchored(images, present, {("t1", 2): unseen}), plain)


def test_calibration_is_trained_averaged_and_part_of_the_model(
    store: SiteStore, tmp_path: Path
) -> None:
    fed = store.federation({"north": [("flair", "t1")] * 2, "south": [("t1", "t2")] * 2})
    plans = METHODS["fedmema"].apply(fed.plans)
    run = simulate(plans, list(fed.sites.values()), SETTINGS, "all", tmp_path / "run")
    model = load_model(run.folder / "model.safetensors")
    assert model.memory.keys() == {(m, level) for m in ("flair", "t1", "t2") for level in range(3)}
    assert model.weights["fusion.2.calibration.value.weight"].any()
    images = torch.randn(1, 2, 16, 16)
    with torch.inference_mode():
        read = model.predictor(["flair", "t1"])(images)
        forgotten = dataclasses.replace(model, memory={}).predictor(["flair", "t1"])(images)
    assert not torch.equal(read, forgotten)
