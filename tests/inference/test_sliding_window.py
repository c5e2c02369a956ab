from functools import partial
from typing import Any

import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.inference.sliding_window_prediction import compute_gaussian
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from small import LABELS, small_plans
from torch import Tensor, nn

from mixmfl.inference.predictor import patches_at_a_time
from mixmfl.inference.sliding_window import predict_volume

CPU = torch.device("cpu")


def plain_network(dim: int) -> nn.Module:
    torch.manual_seed(0)
    convolution: Any = nn.Conv2d if dim == 2 else nn.Conv3d
    return nn.Sequential(convolution(2, 4, 3, padding=1), nn.ReLU(), convolution(4, 3, 1)).eval()


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("step", [0.5, 0.7])
@pytest.mark.parametrize(
    ("patch", "shape"),
    [
        ((16, 16), (5, 37, 30)),
        ((16, 16), (3, 10, 40)),  # smaller than the patch along one axis
        ((8, 16, 16), (13, 30, 21)),
        ((8, 16, 16), (5, 16, 18)),
    ],
)
def test_blended_logits_agree_with_nnunets_predictor(
    patch: tuple[int, ...],
    shape: tuple[int, ...],
    step: float,
    mirror: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # the peer adds up in half precision, in which its weights at the corners of a patch are
    # zero or nearly so; in single precision it must agree everywhere
    monkeypatch.setattr(torch, "half", torch.float32)
    weights = partial(compute_gaussian, dtype=torch.float32)
    monkeypatch.setattr("nnunetv2.inference.predict_from_raw_data.compute_gaussian", weights)
    network = plain_network(len(patch))
    images = torch.randn(2, *shape, generator=torch.Generator().manual_seed(1))
    plans = small_plans(("t1", "t2"), patch=patch)
    peer = nnUNetPredictor(
        tile_step_size=step, use_gaussian=True, use_mirroring=mirror, device=CPU, allow_tqdm=False
    )
    manager = PlansManager(dict(plans.nnunet))
    content = {**LABELS.to_json(), "channel_names": {"0": "t1", "1": "t2"}}
    axes = tuple(range(len(patch))) if mirror else ()
    peer.manual_initialization(
        network, manager, manager.get_configuration(plans.configurations[0]), None, content,
        "any", axes,
    )  # fmt: skip
    want = peer.predict_sliding_window_return_logits(images).float()
    logits = predict_volume(
        network, images, patch, step=step, mirror_axes=axes, batch_size=3, device=CPU
    )
    assert torch.allclose(logits, want, atol=1e-5)


def test_patches_of_a_batch_are_predicted_as_one_by_one() -> None:
    network, images = plain_network(3), torch.randn(2, 13, 30, 21)
    one, many = (
        predict_volume(network, images, (8, 16, 16), step=0.5, batch_size=n, device=CPU)
        for n in (1, 5)
    )
    assert torch.allclose(one, many, atol=1e-5)


def test_every_voxel_gets_the_mean_of_the_patches_that_cover_it() -> None:
    def identity(images: Tensor) -> Tensor:
        return images

    images = torch.randn(1, 11, 29, 23)
    logits = predict_volume(identity, images, (8, 16, 16), step=0.5, device=CPU)
    assert torch.allclose(logits, images, atol=1e-5)


def test_small_patches_go_through_the_network_together_on_a_cpu_and_a_large_one_alone() -> None:
    for patch, count in (((80, 64), 12), ((20, 56, 40), 1), ((96, 112, 80), 1)):
        assert patches_at_a_time({"patch_size": patch, "batch_size": 7}, CPU) == count
    planned = {"patch_size": (80, 64), "batch_size": 7}
    assert patches_at_a_time(planned, torch.device("cuda")) == 7
