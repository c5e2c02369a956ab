"""Layers that compute what torch's do, in less time on a CPU."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mixmfl.planning.architecture import resolve_architecture

NARROW = 16
"""Channels below which a bfloat16 convolution of planar maps is slow: it is padded to as many."""


class InstanceNorm2d(nn.InstanceNorm2d):
    """Instance norm as a group norm of one channel each, for which torch has a kernel on CPUs."""

    def forward(self, maps: Tensor) -> Tensor:
        """Return the normalised maps ``(B, C, Y, X)``."""
        return _grouped(self, maps) if maps.device.type == "cpu" else super().forward(maps)


class InstanceNorm3d(nn.InstanceNorm3d):
    """``InstanceNorm2d`` for three axes."""

    def forward(self, maps: Tensor) -> Tensor:
        """Return the normalised maps ``(B, C, Z, Y, X)``."""
        return _grouped(self, maps) if maps.device.type == "cpu" else super().forward(maps)


def _grouped(norm: nn.InstanceNorm2d | nn.InstanceNorm3d, maps: Tensor) -> Tensor:
    # contiguous: torch's group norm is many times slower on maps with channels last
    return functional.group_norm(maps.contiguous(), maps.shape[1], norm.weight, norm.bias, norm.eps)


_FASTER = {nn.InstanceNorm2d: InstanceNorm2d, nn.InstanceNorm3d: InstanceNorm3d}
"""By the layers that plans may name."""


def planned_layers(architecture: Mapping[str, Any]) -> dict[str, Any]:
    """Return planned ``arch_kwargs`` with classes for names, those of this module where it can.

    Raises:
        PlansError: A name is not one that plans may have.
    """
    planned = resolve_architecture(architecture)
    return {**planned, "norm_op": _FASTER[planned["norm_op"]]}


def speed_up_narrow(network: nn.Module) -> None:
    """Have 2-D convolutions to few channels read maps with channels last, by autocast on a CPU."""
    for module in network.modules():
        # a convolution of one voxel gains nothing
        if (
            isinstance(module, nn.Conv2d)
            and module.out_channels < NARROW
            and max(module.kernel_size) > 1
        ):
            module.register_forward_pre_hook(_read_channels_last)


def _read_channels_last(module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    (maps,) = inputs
    if maps.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        return (_ChannelsLast.apply(maps),)  # type: ignore[no-untyped-call]
    return inputs


class _ChannelsLast(torch.autograd.Function):
    """A copy of maps with channels last, whose gradient is planar again, as what is before it."""

    @staticmethod
    def forward(context: Any, maps: Tensor) -> Tensor:
        """Return the copy of maps ``(B, C, Y, X)``."""
        # clone() and not contiguous(), which leaves the strides of a single channel as they are
        rows = maps.movedim(1, -1).clone(memory_format=torch.contiguous_format)
        return rows.movedim(-1, 1)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        """Return the gradient of the maps; of mixed layouts, an elementwise operation is slow."""
        return gradient.contiguous()
