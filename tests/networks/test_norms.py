import pytest
import torch
from torch import Tensor
from torch.nn import functional

from mixmfl.networks import norms
from mixmfl.networks.norms import channels_last, norm_relu

pytestmark = pytest.mark.skipif(
    not norms.compiled(), reason="the compiled part is not installed: no compiler was found"
)

# channels that divide a row of 64 numbers, that do not, and more than a row; few and many voxels
SHAPES = [(3, 8, 17, 13), (2, 24, 9, 7), (2, 1, 5, 5), (2, 80, 8, 9), (1, 32, 6, 7, 9)]


def twin(maps: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    normed = functional.group_norm(maps, maps.shape[1], weight, bias, 1e-5)
    return functional.leaky_relu(normed, 0.1)


def ours(maps: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return norm_relu(maps, weight, bias, 1e-5, 0.1)


def compare(
    maps: Tensor, weight: Tensor, bias: Tensor
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Return result and gradients of the compiled part, and those of torch in double precision."""
    above = torch.randn(maps.shape, generator=torch.Generator().manual_seed(1)).to(maps.dtype)
    found = []
    for function, exact in [(ours, False), (twin, True)]:
        given = [
            each.detach().double() if exact else each.detach().clone()
            for each in (maps, weight, bias)
        ]
        result = function(*(each.requires_grad_() for each in given))
        gradients = torch.autograd.grad(result, given, above.to(result.dtype))
        found.append((result.detach(), *gradients))
    return found[0], found[1]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("dtype", "apart"), [(torch.float32, 2e-6), (torch.bfloat16, 4e-3)])
@pytest.mark.parametrize("threads", [1, 3])
def test_norm_and_gradient_are_torchs(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    apart: float,
    threads: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(norms, "_ALONE", 0)
    torch.manual_seed(0)
    channels = shape[1]
    maps = channels_last((torch.randn(shape) * 2 + torch.randn(1)).to(dtype))
    found, exact = compare(maps, torch.randn(channels), torch.randn(channels))
    for one, other in zip(found, exact, strict=True):
        assert (one.double() - other).norm() <= apart * other.norm()
    assert found[0].dtype == dtype
    assert found[0].stride() == maps.stride()


def test_a_mean_far_from_zero_does_not_spoil_the_variance() -> None:
    torch.manual_seed(0)
    # of bfloat16 numbers near 1000 the last bit is 4; squares of them would cancel in float32
    maps = channels_last(1000 + 8 * torch.randn(1, 8, 64, 64).round()).bfloat16()
    found, exact = compare(maps, torch.ones(8), torch.zeros(8))
    assert (found[0].double() - exact[0]).norm() <= 4e-3 * exact[0].norm()


def test_a_nan_stays_one_and_stays_in_its_channel() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        maps = channels_last(torch.randn(2, 8, 9, 9)).to(dtype)
        maps[1, 3, 4, 5] = torch.nan
        result = norm_relu(maps, None, None, 1e-5, 0.01)
        assert result[1, 3].isnan().all()
        result[1, 3] = 0
        assert result.isfinite().all()
