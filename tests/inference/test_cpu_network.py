"""The optimised CPU form of a network against the plain one."""

import copy
from typing import Any

import pytest
import torch
from dynamic_network_architectures.building_blocks.simple_conv_blocks import ConvDropoutNormReLU
from small import MODALITIES, random_network
from torch import Tensor, nn

from mixmfl.core.devices import best_dtype
from mixmfl.inference.cpu_network import CPUNetwork, supports
from mixmfl.inference.predictor import case_predictor
from mixmfl.networks import winograd
from mixmfl.networks.base import SegmentationNet
from mixmfl.networks.prototypes import PrototypeMemory, Prototypes

needs_winograd = pytest.mark.skipif(
    not winograd.compiled(), reason="the compiled part is not installed: no compiler was found"
)
SUBSETS = (("t1",), ("flair", "t2"), MODALITIES)


def plain_and_optimised(
    built: SegmentationNet,
    available: tuple[str, ...],
    dtype: torch.dtype = torch.float32,
    patch: tuple[int, ...] = (16, 16),
    memory: PrototypeMemory | None = None,
) -> tuple[Tensor, Tensor]:
    images = torch.randn(2, len(available), *patch, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        plain = case_predictor(built, memory or {}, available)(images)
        optimised = CPUNetwork(copy.deepcopy(built), dtype)  # it takes the network over
        return plain, optimised.predictor(memory or {}, available)(images)


@pytest.mark.usefixtures("norm_part")
@pytest.mark.parametrize("available", SUBSETS)
@pytest.mark.parametrize("patch", [(16, 16), (8, 16, 12)])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"form": "stacked"},
        {"tailored_width": 0.0},
        {"shared_width": 0.0},
        {"decoder_skips": "added"},
        {"residual": True},
        {"residual": True, "form": "stacked"},
    ],
)
def test_logits_are_those_of_the_plain_form(
    settings: dict[str, Any], patch: tuple[int, ...], available: tuple[str, ...]
) -> None:
    settings = {"compensation_levels": (), **settings}
    plain, optimised = plain_and_optimised(
        random_network(patch, **settings), available, patch=patch
    )
    assert optimised.dtype == torch.float32
    assert torch.allclose(optimised, plain, atol=1e-4)


@pytest.mark.parametrize("form", ["decoupled", "anchored"])
@pytest.mark.parametrize("available", SUBSETS)
def test_memory_is_asked_as_by_the_plain_form(available: tuple[str, ...], form: str) -> None:
    built = random_network(compensation_levels=(-1,), form=form)
    level = 2
    generator = torch.Generator().manual_seed(3)
    memory = {
        (name, level): Prototypes(
            torch.randn(3, 4, generator=generator),
            torch.ones(3),
        )
        for name in MODALITIES
    }
    plain, optimised = plain_and_optimised(built, available, memory=memory)
    assert torch.allclose(optimised, plain, atol=1e-4)
    forgetful, _ = plain_and_optimised(built, available)
    complete = form == "decoupled" and available == MODALITIES  # anchors are always read
    assert torch.allclose(plain, forgetful) == complete


def test_half_precision_gives_the_same_up_to_its_rounding() -> None:
    plain, optimised = plain_and_optimised(random_network(), ("t1", "t2"), torch.bfloat16)
    assert optimised.dtype == torch.float32
    # 8 bits, rounded some ten times on the way
    assert (optimised - plain).abs().max() < 10 * 2**-8 * plain.abs().max()


@needs_winograd
@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
@pytest.mark.parametrize("patch", [(32, 32), (16, 32, 32)])
@pytest.mark.parametrize("settings", [{}, {"residual": True}, {"form": "stacked"}])
def test_convolutions_in_fewer_products_give_the_same(
    settings: dict[str, Any], patch: tuple[int, ...], dtype: torch.dtype, most: float
) -> None:
    if dtype == torch.bfloat16 and best_dtype() != dtype:
        pytest.skip("this CPU does not multiply bfloat16 natively")
    built = random_network(patch, features=(32, 32, 64), **settings)
    plain, optimised = plain_and_optimised(built, ("t1", "t2"), dtype, patch)
    with winograd.by_torch():
        _, usual = plain_and_optimised(built, ("t1", "t2"), dtype, patch)
    assert not torch.equal(usual, optimised)
    assert (optimised - plain).norm() < most * plain.norm()


@needs_winograd
def test_a_nan_among_weights_shows() -> None:
    built = random_network(features=(32, 32, 64))
    built.decoder.stages[0].convs[0].conv.weight.data[0, 0, 0, 0] = torch.nan
    _, optimised = plain_and_optimised(built, ("t1", "t2"))
    assert optimised.isnan().any()


def test_weights_are_stored_once() -> None:
    built = random_network()
    names = {name for name, weight in built.named_parameters() if weight.ndim > 2}
    before = sum(weight.numel() for weight in built.parameters())
    CPUNetwork(built, torch.float32)
    left = {name for name, weight in built.named_parameters() if weight.ndim > 2}
    # the fusion's, which the plain form may have to do, and heads that only training has
    assert all(name.startswith(("fusion.", "decoder.seg_layers.")) for name in left)
    assert left < names
    assert sum(weight.numel() for weight in built.parameters()) < before / 4


def test_half_precision_is_for_cpus_that_multiply_it_natively(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for able, want in (
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"avx512_f": True, "avx512_bf16": False}, torch.float32),
        ({"amx_bf16": True}, torch.bfloat16),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda able=able: able, raising=False)
        assert best_dtype() == want
    monkeypatch.delattr(torch.cpu, "get_capabilities")  # as in older versions
    assert best_dtype() == torch.float32


def test_other_operators_than_nnunets_are_left_to_the_plain_form() -> None:
    built = random_network()
    assert supports(built)
    unit = next(m for m in built.modules() if isinstance(m, ConvDropoutNormReLU))
    unit.nonlin = nn.GELU()
    assert not supports(built)
