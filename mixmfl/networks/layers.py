"""Layers that compute what torch's do, in less time on a CPU."""

from typing import Any

import torch
from dynamic_network_architectures.building_blocks.simple_conv_blocks import ConvDropoutNormReLU
from torch import Tensor, nn

from mixmfl.networks.norms import activated_, compiled, copied_channels_last, norm_relu

NARROW = 16
"""Channels below which a bfloat16 convolution of planar maps is slow: it is padded to as many."""


class NormReLU2d(nn.InstanceNorm2d):
    """Instance norm and the leaky ReLU after it, in one.

    Attributes:
        slope: Slope of the leaky ReLU; 1: there is none after this norm.
    """

    slope: float

    def forward(self, maps: Tensor) -> Tensor:
        """Return the maps ``(B, C, Y, X)``, normalised and activated."""
        if maps.device.type == "cpu":
            return norm_relu(maps, self.weight, self.bias, self.eps, self.slope)
        return activated_(super().forward(maps), self.slope)


class NormReLU3d(nn.InstanceNorm3d):
    """``NormReLU2d`` for three axes."""

    slope: float

    def forward(self, maps: Tensor) -> Tensor:
        """Return the maps ``(B, C, Z, Y, X)``, normalised and activated."""
        if maps.device.type == "cpu":
            return norm_relu(maps, self.weight, self.bias, self.eps, self.slope)
        return activated_(super().forward(maps), self.slope)


class AppliedLeakyReLU(nn.LeakyReLU):
    """The leaky ReLU that ``NormReLU2d`` or ``NormReLU3d`` before it has applied."""

    def forward(self, maps: Tensor) -> Tensor:
        """Return the maps as they are."""
        return maps


class Conv2dBeforeNorm(nn.Conv2d):
    """A convolution before an instance norm, which cancels a bias: it is not added.

    The bias stays a parameter, without a gradient, so that weights fit those of nnU-Net.
    """

    def forward(self, maps: Tensor) -> Tensor:
        """Return the convolved maps ``(B, C, Y, X)``."""
        return self._conv_forward(maps, self.weight, None)


class Conv3dBeforeNorm(nn.Conv3d):
    """``Conv2dBeforeNorm`` for three axes."""

    def forward(self, maps: Tensor) -> Tensor:
        """Return the convolved maps ``(B, C, Z, Y, X)``."""
        half = maps.device.type == "cpu" and torch.is_autocast_enabled("cpu")
        if half and maps.shape[2] == 2 and self.kernel_size[0] == 3 and self.stride[0] == 1:
            # torch 2.13 has a wrong gradient of the weights in bfloat16, up to infinity, where maps
            # have two voxels in Z: a third one, as the padding with zeros that follows, is cut off
            thicker = nn.functional.pad(maps, (0, 0, 0, 0, 0, 1))
            return self._conv_forward(thicker, self.weight, None)[:, :, :2]
        return self._conv_forward(maps, self.weight, None)


class ConvTranspose2d(nn.ConvTranspose2d):
    """A transposed convolution whose bias has its gradient in less time on a CPU."""

    def forward(self, maps: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Return the enlarged maps ``(B, C, Y, X)``."""
        return _enlarge(self, maps) if _simple(self, maps) else super().forward(maps, output_size)


class ConvTranspose3d(nn.ConvTranspose3d):
    """``ConvTranspose2d`` for three axes."""

    def forward(self, maps: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Return the enlarged maps ``(B, C, Z, Y, X)``."""
        return _enlarge(self, maps) if _simple(self, maps) else super().forward(maps, output_size)


_Transposed = nn.ConvTranspose2d | nn.ConvTranspose3d


def _simple(module: _Transposed, maps: Tensor) -> bool:
    """Return whether a transposed convolution is one of a decoder: its blocks do not overlap."""
    own = module.kernel_size == module.stride and not any(map(int, module.padding))
    return maps.device.type == "cpu" and own and module.bias is not None and module.groups == 1


def _enlarge(module: _Transposed, maps: Tensor) -> Tensor:
    half = torch.is_autocast_enabled("cpu")
    dtype = torch.get_autocast_dtype("cpu") if half else maps.dtype
    assert module.bias is not None  # see _simple
    given = (each.to(dtype) for each in (maps, module.weight, module.bias))
    return _Enlarge.apply(*given, list(module.stride))  # type: ignore[no-untyped-call]


class _Enlarge(torch.autograd.Function):
    """A transposed convolution; torch's is slow at the gradient of its bias."""

    @staticmethod
    def forward(
        context: Any, maps: Tensor, weight: Tensor, bias: Tensor, stride: list[int]
    ) -> Tensor:
        """Return the enlarged maps."""
        context.save_for_backward(maps, weight)
        context.stride = stride
        zeros, ones = [0] * len(stride), [1] * len(stride)
        return torch.ops.aten.convolution(maps, weight, bias, stride, zeros, ones, True, zeros, 1)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of maps, weight and bias."""
        maps, weight = context.saved_tensors
        axes = len(context.stride)
        options = context.stride, [0] * axes, [1] * axes, True, [0] * axes, 1, [True, True, False]
        of_maps, of_weight, _ = torch.ops.aten.convolution_backward(
            gradient, maps, weight, None, *options
        )
        if gradient.stride(1) == 1:  # channels last: a product with ones is the quickest sum
            rows = gradient.movedim(1, -1).flatten(0, -2)
            of_bias = (rows.new_ones(1, len(rows)) @ rows)[0]
        else:
            of_bias = gradient.sum(dim=[0, *range(2, gradient.ndim)])
        return of_maps, of_weight, of_bias, None


_FASTER: dict[type[nn.Module], type[nn.Module]] = {
    nn.InstanceNorm2d: NormReLU2d,
    nn.InstanceNorm3d: NormReLU3d,
    nn.LeakyReLU: AppliedLeakyReLU,
    nn.Conv2d: Conv2dBeforeNorm,
    nn.Conv3d: Conv3dBeforeNorm,
    nn.ConvTranspose2d: ConvTranspose2d,
    nn.ConvTranspose3d: ConvTranspose3d,
}


def slope_of(unit: ConvDropoutNormReLU) -> float:
    """Return the slope of a unit's leaky ReLU; 1 where it has none, as before a sum."""
    return float(unit.nonlin.negative_slope) if hasattr(unit, "nonlin") else 1.0


def reads_channels_last(images: Tensor) -> bool:
    """Return whether a network computes in less time from these images with channels last."""
    return images.device.type == "cpu" and compiled()


def speed_up(network: nn.Module) -> None:
    """Let a network compute in less time, most of all on a CPU.

    Norms with the activation behind them, the convolutions before them, and transposed ones become
    those of this module. By autocast 2-D convolutions to few channels read maps with channels
    last, where norms do not have their compiled part.
    """
    for module in network.modules():
        if isinstance(module, ConvDropoutNormReLU):
            module.norm.slope = slope_of(module)
            parts = [module.norm, *([module.nonlin] if hasattr(module, "nonlin") else [])]
            if not hasattr(module, "dropout"):  # which may drop the bias of some channels
                parts.append(module.conv)
            for part in parts:
                part.__class__ = _FASTER[type(part)]
        elif type(module) in (nn.ConvTranspose2d, nn.ConvTranspose3d):
            module.__class__ = _FASTER[type(module)]
        # a convolution of one voxel gains nothing
        if (
            isinstance(module, nn.Conv2d)
            and module.out_channels < NARROW
            and max(module.kernel_size) > 1
        ):
            module.register_forward_pre_hook(_read_channels_last)


def _read_channels_last(module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    (maps,) = inputs
    if maps.device.type == "cpu" and torch.is_autocast_enabled("cpu") and not compiled():
        return (_ChannelsLast.apply(maps),)  # type: ignore[no-untyped-call]
    return inputs


class _ChannelsLast(torch.autograd.Function):
    """A copy of maps with channels last, whose gradient is planar again, as what is before it."""

    @staticmethod
    def forward(context: Any, maps: Tensor) -> Tensor:
        """Return the copy of maps ``(B, C, Y, X)``."""
        return copied_channels_last(maps)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        """Return the gradient of the maps; of mixed layouts, an elementwise operation is slow."""
        return gradient.contiguous()
