"""Convolutions of bytes against those of the same numbers in double precision."""

import pytest
import torch
from byte_products import needs_byte_products
from torch.nn import functional

from mixmfl.core.devices import multiplies_bytes
from mixmfl.inference.eight_bits import ByteConvolution
from mixmfl.networks.norms import Bytes


@needs_byte_products
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_convolution_is_torchs_with_rounded_weights(
    axes: int, stride: int, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    numbers = torch.randint(0, 256, (2, 16, *(9, 8, 7)[:axes]), dtype=torch.uint8)
    maps = Bytes(
        numbers.contiguous(
            memory_format=torch.channels_last if axes == 2 else torch.channels_last_3d
        ),
        step=0.05,
        zero=7,
    )
    # all 127 steps of each output channel are whole: nothing is lost when weights are rounded
    weight = torch.randint(-126, 127, (24, 16, *[3] * axes)).double()
    weight[:, 0, 0, 0] = 127
    weight[3] = 0  # a channel without a scale
    weight *= torch.logspace(-6, 6, 24, dtype=torch.double).reshape(-1, 1, *[1] * axes)
    found = ByteConvolution(weight.float(), [stride] * axes, [1] * axes, dtype)(maps)
    convolve = functional.conv2d if axes == 2 else functional.conv3d
    exact = convolve(0.05 * (numbers.double() - 7), weight, None, stride, 1)
    apart = (found.double() - exact).abs() / exact.abs().amax(dim=(0, 2, 3), keepdim=True).clamp(
        min=1e-30
    )
    assert found.dtype == dtype
    assert apart.max() < (2**-8 if dtype == torch.bfloat16 else 1e-6)


def test_8_bits_are_for_cpus_that_multiply_them_natively(monkeypatch: pytest.MonkeyPatch) -> None:
    for able, want in (
        ({"avx512_vnni": True}, True),
        ({"avx_vnni": True}, True),
        ({"amx_int8": True}, True),
        ({"avx2": True, "avx512_vnni": False}, False),  # sums would be cut off
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda able=able: able, raising=False)
        assert multiplies_bytes() == want
    monkeypatch.delattr(torch.cpu, "get_capabilities")  # as in older versions
    assert not multiplies_bytes()
