from typing import Any

import pytest
import torch
from dynamic_network_architectures.building_blocks.residual import BasicBlockD
from dynamic_network_architectures.building_blocks.simple_conv_blocks import ConvDropoutNormReLU
from small import random_network
from torch import Tensor, nn
from torch.nn.modules.instancenorm import _InstanceNorm

from mixmfl.networks import norms
from mixmfl.networks.base import SegmentationNet
from mixmfl.networks.layers import (
    AppliedLeakyReLU,
    Conv2dBeforeNorm,
    Conv3dBeforeNorm,
    ConvTranspose2d,
    ConvTranspose3d,
    NormReLU2d,
    NormReLU3d,
    speed_up,
)
from mixmfl.networks.mdmnet import MDMNet

FORMS: list[dict[str, Any]] = [
    {},
    {"form": "stacked", "compensation_levels": ()},
    {"decoder_skips": "added"},
    {"residual": True},
]
OURS = (
    *(NormReLU2d, NormReLU3d, AppliedLeakyReLU, ConvTranspose2d, ConvTranspose3d),
    *(Conv2dBeforeNorm, Conv3dBeforeNorm),
)


def plain(network: SegmentationNet) -> SegmentationNet:
    """Let the network compute by torch's own layers."""
    for module in network.modules():
        if isinstance(module, OURS):
            (module.__class__,) = module.__class__.__bases__
        module._forward_pre_hooks.clear()
    return network


def step(network: SegmentationNet, patch: tuple[int, ...], half: bool) -> tuple[float, Tensor]:
    """Return a loss, and its gradient for all parameters."""
    images = torch.randn(4, 3, *patch, generator=torch.Generator().manual_seed(1))
    present = torch.tensor([[True, True, False], [True, False, False]] * 2)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
        logits = network.train()(images, present, {})
    losses = [level.float().log_softmax(dim=1)[:, 1].mean() for level in logits]
    loss = torch.stack(losses).sum()
    loss.backward()  # type: ignore[no-untyped-call]
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in network.parameters()]
    return loss.item(), torch.cat([gradient.flatten() for gradient in gradients])


@pytest.mark.parametrize("settings", FORMS)
@pytest.mark.parametrize("patch", [(16, 16), (8, 16, 16)])
@pytest.mark.parametrize(("half", "apart"), [(False, 1e-5), (True, 0.03)])
def test_loss_and_gradient_are_those_of_torchs_own_layers(
    norm_part: str, patch: tuple[int, ...], settings: dict[str, Any], half: bool, apart: float
) -> None:
    if half and settings.get("residual"):
        apart *= 3  # of some 11 layers one after another each rounds; other networks have 3
    loss, gradient = step(random_network(patch, **settings), patch, half)
    expected, same = step(plain(random_network(patch, **settings)), patch, half)
    assert loss == pytest.approx(expected, rel=apart)
    assert (gradient - same).norm() < apart * same.norm()


def test_a_bias_that_a_norm_cancels_is_not_added() -> None:
    for patch in [(16, 16), (8, 16, 16)]:
        for settings in FORMS:
            network = random_network(patch, **settings)
            step(network, patch, half=False)
            given = {name: p.grad for name, p in network.named_parameters()}
            cancelled = {name for name in given if name.endswith("conv.bias")}
            assert cancelled
            assert all(given[name] is None for name in cancelled)
            assert given["decoder.seg_layers.0.bias"] is not None


def test_every_norm_of_a_network_is_the_faster_one() -> None:
    for patch, faster in [((16, 16), NormReLU2d), ((8, 16, 16), NormReLU3d)]:
        for settings in FORMS:
            network = random_network(patch, **settings)
            norms = [module for module in network.modules() if isinstance(module, _InstanceNorm)]
            assert norms
            assert {type(norm) for norm in norms} == {faster}
            # of each, the activation is applied once; after a sum it is torch's
            units = [each for each in network.modules() if isinstance(each, ConvDropoutNormReLU)]
            assert len(units) == len(norms)
            for unit in units:
                activated = hasattr(unit, "nonlin")
                assert unit.norm.slope == (0.01 if activated else 1)
                assert not activated or type(unit.nonlin) is AppliedLeakyReLU
            blocks = [each for each in network.modules() if isinstance(each, BasicBlockD)]
            assert bool(blocks) == settings.get("residual", False)
            assert all(type(block.nonlin2) is nn.LeakyReLU for block in blocks)


@pytest.mark.parametrize("half", [False, True])
def test_narrow_convolutions_read_channels_last_in_half_precision_or_with_the_compiled_part(
    norm_part: str, half: bool
) -> None:
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
    assert all(each == {half or norm_part == "compiled"} for each in read.values())


def test_gradients_before_a_narrow_convolution_are_planar() -> None:
    conv = nn.Conv2d(4, 4, 3)
    speed_up(conv)
    maps = torch.randn(2, 4, 6, 5, requires_grad=True)
    gradients: list[Tensor] = []
    before = maps.clone()
    before.register_hook(gradients.append)  # type: ignore[no-untyped-call]
    with norms.by_torch(), torch.autocast("cpu", dtype=torch.bfloat16):
        conv(before).sum().backward()
    assert gradients[0].is_contiguous()


def test_fused_maps_are_of_half_precision_in_half_precision(norm_part: str) -> None:
    network = random_network()
    assert isinstance(network, MDMNet)
    types: list[torch.dtype] = []
    for fusion in network.fusion:
        fusion.register_forward_hook(lambda *given: types.append(given[-1].dtype))
    step(network, (16, 16), half=True)
    assert types == [torch.bfloat16] * len(network.fusion)


def test_a_transposed_convolution_has_the_gradients_of_torchs() -> None:
    for planned, faster, axes in [
        (nn.ConvTranspose2d, ConvTranspose2d, (3, 5)),
        (nn.ConvTranspose3d, ConvTranspose3d, (2, 3, 5)),
    ]:
        for last in (False, True):
            module = planned(4, 6, 2, 2)
            maps = torch.randn(2, 4, *axes)
            maps = maps.contiguous(memory_format=norms.LAST[maps.ndim]) if last else maps
            results: list[tuple[Tensor, Any]] = []
            for expected in (planned, faster):
                network = nn.Sequential(module)
                if results:
                    speed_up(network)
                assert type(network[0]) is expected
                given = [maps.clone().requires_grad_(), *module.parameters()]
                out = network(given[0])
                results.append((out, torch.autograd.grad(out.square().sum(), given)))
            torch.testing.assert_close(results[1], results[0])


@pytest.mark.parametrize("stride", [(1, 1, 1), (1, 2, 2)])
def test_maps_of_two_voxels_in_z_have_the_gradients_of_single_precision(
    stride: tuple[int, int, int],
) -> None:
    torch.manual_seed(1)
    maps, weight = torch.randn(2, 16, 2, 9, 8), 0.05 * torch.randn(16, 16, 3, 3, 3)
    found = []
    for half in (False, True):
        module = Conv3dBeforeNorm(16, 16, 3, stride, padding=1)
        module.weight = nn.Parameter(weight.clone())
        given = maps.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            made = module(given)
        made.float().backward(torch.linspace(-1, 1, made.numel()).reshape(made.shape))
        found.append([made.float(), given.grad, module.weight.grad])
    for single, other in zip(*found, strict=True):
        assert (single - other).norm() < 0.02 * single.norm()
