from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mixmfl.networks import norms, winograd
from mixmfl.networks.winograd import WinogradConvolution, gains

KINDS = [
    pytest.param(
        kind,
        dtype,
        id=name,
        marks=pytest.mark.skipif(
            not winograd.computes(kind),
            reason="no compiler was found, or this CPU lacks the instructions",
        ),
    )
    for kind, dtype, name in [
        (0, torch.float32, "avx2"),
        (1, torch.float32, "avx512"),
        (2, torch.bfloat16, "bf16"),
    ]
]

# sides that tiles of 4 divide and do not, one voxel, more tiles than are computed together
SHAPES = [(2, 8, 12), (1, 5, 6), (3, 1, 7), (2, 50, 47), (1, 3, 8, 8), (2, 4, 7, 30), (1, 1, 9, 2)]


def exact(conv: nn.Conv2d | nn.Conv3d, maps: Tensor) -> Tensor:
    convolve: Any = nn.functional.conv2d if maps.ndim == 4 else nn.functional.conv3d
    result: Tensor = convolve(maps.double(), conv.weight.detach().double(), None, 1, conv.padding)
    return result


@pytest.mark.parametrize(("kind", "dtype"), KINDS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("channels", [(16, 16), (32, 48), (48, 32)])
@pytest.mark.parametrize("threads", [1, 3])
def test_a_convolution_is_torchs(
    shape: tuple[int, ...],
    channels: tuple[int, int],
    threads: int,
    kind: int,
    dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(norms, "_ALONE", 0)
    monkeypatch.setitem(winograd._KINDS, dtype, (kind,))
    torch.manual_seed(0)
    cases, *patch = shape
    maps = torch.randn(cases, channels[0], *patch).to(dtype)
    kernels = [(3, 3)] if len(patch) == 2 else [(3, 3, 3), (1, 3, 3)]
    for kernel in kernels:
        made: Any = nn.Conv2d if len(patch) == 2 else nn.Conv3d
        conv = made(*channels, kernel, padding=[size // 2 for size in kernel], bias=False)
        assert gains(conv, dtype)
        found = WinogradConvolution(conv.weight.detach(), dtype)(maps)
        truth = exact(conv, maps)
        assert found.dtype == dtype
        assert found.is_contiguous(memory_format=norms.LAST[maps.ndim])
        apart, most = (found.double() - truth).abs(), truth.abs().max()
        # rounded at 36 points: in bfloat16 1 % of the result, at a voxel more
        assert apart.norm() < (0.015 if dtype == torch.bfloat16 else 2e-6) * truth.norm()
        assert apart.max() < (0.05 if dtype == torch.bfloat16 else 1e-5) * most


@pytest.mark.parametrize(("kind", "dtype"), KINDS)
def test_numbers_worked_out_by_hand(
    kind: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(winograd._KINDS, dtype, (kind,))
    weight = torch.zeros(16, 16, 3, 3)
    weight[0, 1] = torch.arange(1.0, 10).reshape(3, 3)
    maps = torch.zeros(1, 16, 4, 4)
    maps[0, 1, 1, 2] = 1  # the weights come out around it, turned round
    found = WinogradConvolution(weight, dtype)(maps.to(dtype)).float()
    wanted = torch.tensor([[0.0, 9, 8, 7], [0, 6, 5, 4], [0, 3, 2, 1], [0, 0, 0, 0]])
    assert torch.allclose(found[0, 0], wanted, atol=0.1 if dtype == torch.bfloat16 else 1e-5)
    assert not found[0, 1:].any()


@pytest.mark.skipif(not winograd.compiled(), reason="the compiled part is not installed")
def test_which_convolutions_gain() -> None:
    def asked(before: int, after: int, kernel: int = 3, **more: Any) -> bool:
        conv = nn.Conv3d(before, after, kernel, **{"padding": 1, **more})
        return gains(conv, torch.float32)

    assert asked(16, 128)
    assert not asked(8, 16)
    assert not asked(16, 24)
    assert not asked(16, 144)
    assert not asked(16, 16, kernel=1, padding=0)
    assert not asked(16, 16, kernel=5, padding=2)
    assert not asked(16, 16, padding=0)
    assert not asked(16, 16, stride=2)
    assert not asked(16, 16, dilation=2, padding=2)
    assert not asked(16, 16, groups=2)
    with winograd.by_torch():
        assert not winograd.compiled()
        assert not asked(16, 16)


def test_bfloat16_is_left_to_units_for_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(winograd, "_kind_for", lambda dtype: 2)
    conv = nn.Conv2d(16, 16, 3, padding=1)
    for able, want in [({"avx512_bf16": True}, True), ({"amx_bf16": True}, False)]:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda able=able: able, raising=False)
        assert gains(conv, torch.bfloat16) == want
        assert gains(conv, torch.float32)
