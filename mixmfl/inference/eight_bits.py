"""Convolutions of 8-bit integers on CPUs that multiply these natively.

A convolution before an instance norm needs no calibration: the norm cancels the scale of what it
reads, and gives its result in a known range. So weights are rounded once, for each output channel
on a scale of its own, and maps as they come (``norms.Bytes``).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from mixmfl.networks.norms import Bytes


class ByteConvolution:
    """A convolution without bias of maps as bytes, by weights as bytes."""

    def __init__(
        self, weight: Tensor, stride: Sequence[int], padding: Sequence[int], dtype: torch.dtype
    ) -> None:
        """Round the weights.

        Args:
            weight: ``(C_out, C_in, *kernel)``
            stride: Stride by axis.
            padding: Zeros at each end by axis.
            dtype: Type of the result, float32 or bfloat16.
        """
        axes = weight.ndim - 2
        largest = weight.float().abs().flatten(1).amax(dim=1)
        self._steps = torch.where(largest == 0, 1.0, largest / 127)  # (C_out,); of a NaN, NaN
        self._zeros = torch.zeros(len(weight), dtype=torch.int64)
        rounded = (weight.float() / self._steps.reshape(-1, 1, *[1] * axes)).round()
        self._form = list(stride), list(padding), [1] * axes, 1  # with dilation and groups
        self._weight = torch.ops.onednn.qconv_prepack(
            # scale and zero of the maps are named when it runs
            rounded.to(torch.int8),
            self._steps,
            1.0,
            0,
            *self._form,
            None,
        )
        self._dtype = dtype

    def __call__(self, maps: Bytes) -> Tensor:
        """Return the convolved maps ``(B, C_out, *P)``, with channels last."""
        convolved: Tensor = torch.ops.onednn.qconv_pointwise(
            maps.numbers,
            maps.step,
            maps.zero,
            self._weight,
            self._steps,
            self._zeros,
            None,
            *self._form,
            *(1.0, 0, self._dtype),  # of the result, which is no bytes
            *("none", [], ""),  # nothing is computed behind it
        )
        return convolved
