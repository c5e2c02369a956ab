from typing import Any

import pytest
import torch
from small import random_network
from torch import Tensor, nn
from torch.nn.modules.instancenorm import _InstanceNorm

from mixmfl.networks.base import SegmentationNet
from mixmfl.networks.layers import InstanceNorm2d, InstanceNorm3d, speed_up_narrow
from mixmfl.networks.mdmnet import MDMNet

FORMS: list[dict[str, Any]] = [
    {},
    {"form": "stacked", "compensation_levels": ()},
    {"decoder_skips": "added"},
]


def plain(network: SegmentationNet) -> SegmentationNet:
    """Let the network compute by torch's own layers."""
    for module in network.modules():
        if isinstance(module, InstanceNorm2d | InstanceNorm3d):
            (module.__class__,) = module.__class__.__bases__
        module._forward_pre_hooks.clear()
    return network


def step(network: SegmentationNet, patch: tuple[int, ...], half: bool) -> tuple[float, Tensor]:
    """Return a loss, and its gradient for all parameters."""
    images = torch.randn(4, 3, *patch, generator=torch.Generator().manual_seed(1))
    present = torch.tensor([[True, True, False]] * 4)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
        logits = network.train()(images, present, {})
    losses = [level.float().log_softmax(dim=1)[:, 1].mean() for level in logits]
    loss = torch.stack(losses).sum()
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.item(), torch.cat(
        [p.grad.flatten() for p in network.parameters() if p.grad is not None]
    )


@pytest.mark.parametrize("settings", FORMS)
@pytest.mark.parametrize("patch", [(16, 16), (8, 16, 16)])
@pytest.mark.parametrize(("half", "apart"), [(False, 1e-5), (True, 0.03)])
def test_loss_and_gradient_are_those_of_torchs_own_layers(
    patch: tuple[int, ...], settings: dict[str, Any], half: bool, apart: float
) -> None:
    loss, gradient = step(random_network(patch, **settings), patch, half)
    expected, same = step(plain(random_network(patch, **settings)), patch, half)
    assert loss == pytest.approx(expected, rel=apart)
    assert (gradient - same).norm() < apart * same.norm()


def test_every_norm_of_a_network_is_the_faster_one() -> None:
    for patch, faster in [((16, 16), InstanceNorm2d), ((8, 16, 16), InstanceNorm3d)]:
        for settings in FORMS:
            network = random_network(patch, **settings)
            norms = [module for module in network.modules() if isinstance(module, _InstanceNorm)]
            assert norms
            assert {type(norm) for norm in norms} == {faster}


@pytest.mark.parametrize("half", [False, True])
def test_narrow_convolutions_read_channels_last_in_half_precision_alone(half: bool) -> None:
    network = random_network()
    read: dict[int, set[bool]] = {}  # by channels: whether channels came last

    def note(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        (maps,) = inputs
        assert isinstance(module, nn.Conv2d)
        if max(module.kernel_size) > 1:
            read.setdefault(module.in_channels, set()).add(maps.stride(1) == 1)

    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            assert module.out_channels < 16
            module.register_forward_hook(note)
    step(network, (16, 16), half)
    assert 1 in read
    assert len(read) > 1
    assert all(each == {half} for each in read.values())


def test_gradients_before_a_narrow_convolution_are_planar() -> None:
    conv = nn.Conv2d(4, 4, 3)
    speed_up_narrow(conv)
    maps = torch.randn(2, 4, 6, 5, requires_grad=True)
    gradients: list[Tensor] = []
    before = maps.clone()
    before.register_hook(gradients.append)  # type: ignore[no-untyped-call]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        conv(before).sum().backward()
    assert gradients[0].is_contiguous()


def test_fused_maps_are_of_half_precision_in_half_precision() -> None:
    network = random_network()
    assert isinstance(network, MDMNet)
    types: list[torch.dtype] = []
    for fusion in network.fusion:
        fusion.register_forward_hook(lambda *given: types.append(given[-1].dtype))
    step(network, (16, 16), half=True)
    assert types == [torch.bfloat16] * len(network.fusion)
