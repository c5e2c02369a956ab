"""The optimised CPU form of a network: the same predictions, in less time and memory.

``mdmnet.py`` is the plain form, which trains and validates. What differs here:

- bfloat16 where the CPU multiplies it natively, single precision elsewhere;
- channels last, the order of axes in which oneDNN convolves without copying;
- a bias that an instance norm cancels is not added;
- convolutions of 3 x 3 and 3 x 3 x 3 take fewer products, where ``winograd.py`` gains;
- a modality's feature map is fused as soon as it is computed and then freed: one map per level
  is kept instead of one per modality, and nothing is computed for missing modalities.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from dynamic_network_architectures.building_blocks.residual import (
    BasicBlockD,
    StackedResidualBlocks,
)
from dynamic_network_architectures.building_blocks.residual_encoders import ResidualEncoder
from dynamic_network_architectures.building_blocks.simple_conv_blocks import ConvDropoutNormReLU
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.instancenorm import _InstanceNorm

from mixmfl.core.devices import best_dtype
from mixmfl.inference.sliding_window import Predictor
from mixmfl.networks.base import Encoder, SegmentationNet, place_modalities
from mixmfl.networks.layers import slope_of
from mixmfl.networks.mdmnet import AddingDecoder, Fusion, MDMNet, shares_of_mean, shares_of_slots
from mixmfl.networks.norms import LAST, compiled, norm_relu_
from mixmfl.networks.prototypes import PrototypeMemory
from mixmfl.networks.unet import StackedNet
from mixmfl.networks.winograd import WinogradConvolution, gains

_CONVOLVE = {4: functional.conv2d, 5: functional.conv3d}  # by the axes of a feature map

_ENLARGE = {4: functional.conv_transpose2d, 5: functional.conv_transpose3d}

_SMALL = 1024
"""Voxels below which torch's group norm for channels last is some 20 times slower.

Below it the map is copied to channels first and back, which costs less.
"""

_TOGETHER = 1 << 18
"""Voxels of full resolution that are decoded at a time where several subsets are predicted from."""


def fastest_form(network: SegmentationNet, device: torch.device) -> "SegmentationNet | CPUNetwork":
    """Return the form in which a device predicts fastest; on a CPU the network is taken over."""
    if device.type == "cpu" and supports(network):
        return CPUNetwork(network, best_dtype())
    return network


def show_subsets(subsets: Sequence[Sequence[str]], modalities: Sequence[str]) -> Tensor:
    """Return which of a network's M modalities each of S subsets has, ``(S, M)`` bool."""
    return torch.tensor([[name in subset for name in modalities] for subset in subsets])


def supports(network: SegmentationNet) -> bool:
    """Return whether ``CPUNetwork`` can run the network: its operators are those of nnU-Net."""
    return all(
        isinstance(unit.norm, _InstanceNorm)
        and isinstance(getattr(unit, "nonlin", nn.LeakyReLU()), nn.LeakyReLU)
        for unit in network.modules()
        if isinstance(unit, ConvDropoutNormReLU)
    )


class CPUNetwork:
    """A network's forward pass, for prediction on a CPU.

    Attributes:
        network: The plain form, which ``supports`` accepts. It is taken over: weights that are kept
            here in another form are removed from it, so that they are stored once.
        dtype: Type of feature maps and convolutions; norms are computed in single precision.
    """

    def __init__(self, network: SegmentationNet, dtype: torch.dtype) -> None:
        """Take the network over; see the attributes."""
        self.network = network
        self.dtype = dtype
        # levels that are fused by the plain form need it whole
        plain = set(network.fusion.modules()) if isinstance(network, MDMNet) else set()
        self._units = {
            module: _Unit(module, dtype, keep=module in plain)
            for module in network.modules()
            if isinstance(module, ConvDropoutNormReLU)
        }
        self._weights = {
            module: _packed(module, dtype)
            for module in (*network.decoder.transpconvs, network.decoder.seg_layers[-1])
        }

    def predictor(self, memory: PrototypeMemory, available: Sequence[str]) -> Predictor:
        """Return a function from images ``(B, K, *P)`` of the available modalities to logits."""

        def predict(images: Tensor) -> Tensor:
            images = images.to(self.dtype)
            if isinstance(self.network, MDMNet):
                return self._decode(self._fuse(self.network, images, available, memory))
            assert isinstance(self.network, StackedNet)
            placed, _ = place_modalities(images, available, self.network.modalities)
            return self._decode(list(self._encode(self.network.encoder, placed)))

        return predict

    def subsets_predictor(
        self, memory: PrototypeMemory, available: Sequence[str], subsets: Sequence[Sequence[str]]
    ) -> Predictor:
        """Return a function from images ``(B, K, *P)`` to the logits from every subset of them.

        Each modality is encoded once, whatever the number of subsets.

        Args:
            memory: Memory of the federation.
            available: The K modalities.
            subsets: S subsets, each of at least one of these modalities.

        Returns:
            A function that returns ``(B, S * heads, *P)``, subset by subset.
        """
        shown = show_subsets(subsets, self.network.modalities)  # (S, M)

        def predict(images: Tensor) -> Tensor:
            images = images.to(self.dtype)
            # several small maps at a time cost little more than one; large ones would not fit
            count = max(1, _TOGETHER // math.prod((len(images), *images.shape[2:])))
            chunks = torch.split(shown, count)
            if isinstance(self.network, MDMNet):
                levels = self._gather(self.network, images, available, memory)
                logits = [self._decode([level.fused_from(c) for level in levels]) for c in chunks]
            else:
                assert isinstance(self.network, StackedNet)
                placed, _ = place_modalities(images, available, self.network.modalities)
                encoder = self.network.encoder
                logits = [
                    self._decode(list(self._encode(encoder, _hide(placed, c)))) for c in chunks
                ]
            joined = torch.cat(logits)
            by_subset = joined.reshape(len(shown), len(images), *joined.shape[1:])
            return by_subset.movedim(0, 1).flatten(1, 2)

        return predict

    def _gather(
        self, network: MDMNet, images: Tensor, available: Sequence[str], memory: PrototypeMemory
    ) -> "list[_Joined | _Gathered]":
        """Return every level with the maps of all modalities of images ``(B, K, *P)``."""
        slots, present = _slots_of(network, available)
        levels: list[_Joined | _Gathered] = [
            _Gathered(network, level, present, memory)
            if network.reads_memory(level, complete=False)
            else _Joined(*self._fusing(network, level))
            for level in range(len(network.fusion))
        ]
        self._add_maps(network, images, slots, levels)
        return levels

    def _fusing(self, network: MDMNet, level: int) -> "tuple[Fusion, _Unit]":
        """Return what fuses the maps of a level, and its convolution."""
        fusion = cast(Fusion, network.fusion[level])
        return fusion, self._units[fusion.mix.convs[0]]

    def _encode(self, encoder: Encoder, images: Tensor) -> Iterator[Tensor]:
        """Yield the feature map ``(B, C, *P)`` of every level of images ``(B, N, *P)``."""
        maps = images.contiguous(memory_format=LAST[images.ndim])
        if isinstance(encoder, ResidualEncoder):
            maps = self._convolve(encoder.stem, [maps])
        for stage in encoder.stages:
            if isinstance(stage, StackedResidualBlocks):
                for block in stage.blocks:
                    maps = self._add(block, maps)
            else:
                maps = self._convolve(stage, [maps])
            yield maps

    def _add(self, block: BasicBlockD, maps: Tensor) -> Tensor:
        """Return what a residual block makes of a map: two convolutions of it, and itself."""
        added = maps
        for module in block.skip if isinstance(block.skip, nn.Sequential) else ():
            if isinstance(module, ConvDropoutNormReLU):
                added = self._convolve(module, [added])
            else:  # a mean over blocks, which torch has not in half precision in 3-D
                means = module(added.float())
                added = means.to(self.dtype, memory_format=LAST[maps.ndim])
        maps = self._convolve(block.conv1, [maps])
        maps = self._convolve(block.conv2, [maps])
        return functional.leaky_relu_(maps.add_(added), block.nonlin2.negative_slope)

    def _fuse(
        self, network: MDMNet, images: Tensor, available: Sequence[str], memory: PrototypeMemory
    ) -> list[Tensor]:
        """Return the fused map ``(B, C_fused, *P)`` of every level."""
        slots, present = _slots_of(network, available)
        complete = bool(present.all())
        levels = [
            _Gathered(network, level, present, memory)
            if network.reads_memory(level, complete=complete)
            else _Summed(*self._fusing(network, level), present)
            for level in range(len(network.fusion))
        ]
        self._add_maps(network, images, slots, levels)
        return [level.fused() for level in levels]

    def _add_maps(
        self, network: MDMNet, images: Tensor, slots: Sequence[int], levels: "Sequence[_Level]"
    ) -> None:
        """Encode images ``(B, K, *P)`` of the modalities ``slots`` and add all maps to levels."""
        for index, slot in enumerate(slots):
            image = images[:, index : index + 1]
            if network.shared is not None:
                for level, maps in zip(levels, self._encode(network.shared, image), strict=True):
                    level.add_shared(maps, slot)
            if network.tailored:
                encoder = network.tailored[network.modalities[slot]]
                for level, maps in zip(levels, self._encode(encoder, image), strict=True):
                    level.add_tailored(maps, slot)

    def _decode(self, skips: list[Tensor]) -> Tensor:
        """Return logits ``(B, heads, *P)``; ``skips`` is emptied, to free its maps."""
        decoder, maps = self.network.decoder, [skips.pop()]  # a list, from which it is taken
        for up, stage in zip(decoder.transpconvs, decoder.stages, strict=True):
            maps = [self._join(up, maps, skips)]
            maps = [self._convolve(stage, maps)]
        (finest,), last = maps, decoder.seg_layers[-1]
        logits = _CONVOLVE[finest.ndim](finest, self._weights[last], last.bias.to(self.dtype))
        return logits.float()

    def _join(self, up: nn.Module, below: list[Tensor], skips: list[Tensor]) -> Tensor:
        """Return a map, enlarged, joined with the next skip; both are taken off their lists."""
        if isinstance(self.network.decoder, AddingDecoder):
            return self._enlarge(up, below.pop()).add_(skips.pop())
        # not by torch.cat: the skip is freed before its other half is computed
        half = skips[-1].shape[1]
        size = (len(skips[-1]), 2 * half, *skips[-1].shape[2:])
        layout = LAST[len(size)]
        joined = torch.empty(size, dtype=self.dtype, memory_format=layout)
        joined[:, half:] = skips.pop()
        joined[:, :half] = self._enlarge(up, below.pop())
        return joined

    def _enlarge(self, up: Any, maps: Tensor) -> Tensor:
        bias = None if up.bias is None else up.bias.to(self.dtype)
        return _ENLARGE[maps.ndim](maps, self._weights[up], bias, up.stride)

    def _convolve(self, stage: nn.Module, inputs: list[Tensor]) -> Tensor:
        """Return what a stage makes of a map, which is taken off ``inputs``, to free it."""
        maps = inputs.pop()
        for module in stage.modules():
            if isinstance(module, ConvDropoutNormReLU):
                unit = self._units[module]
                maps = unit.convolve(maps)
                maps = unit.finish(maps)
        return maps


class _Unit:
    """A convolution, its instance norm and its activation."""

    def __init__(self, module: ConvDropoutNormReLU, dtype: torch.dtype, *, keep: bool) -> None:
        """Args: the layers; the type of maps; whether the layers keep their weights."""
        conv = module.conv
        self.stride, self.padding = conv.stride, conv.padding
        self.norm, self.slope = module.norm, slope_of(module)
        self._winograd = None
        if gains(conv, dtype):
            self._winograd = WinogradConvolution(_packed(conv, torch.float32, keep=keep), dtype)
        else:
            self.weight = _packed(conv, dtype, keep=keep)

    def convolve(self, maps: Tensor) -> Tensor:
        """Return the convolved maps; without a bias, which the norm would cancel."""
        if self._winograd is not None:
            return self._winograd(maps)
        convolve = _CONVOLVE[maps.ndim]
        return convolve(maps, self.weight, None, self.stride, self.padding)

    def finish(self, maps: Tensor) -> Tensor:
        """Return the convolved maps after norm and activation."""
        norm, last = self.norm, LAST[maps.ndim]
        if compiled() and norm.affine:
            maps = maps.contiguous(memory_format=last)
            return norm_relu_(maps, norm.weight, norm.bias, norm.eps, self.slope)
        # an instance norm is a group norm of one channel each, which torch has for channels last
        small = math.prod(maps.shape[2:]) < _SMALL
        maps = maps.contiguous() if small else maps
        maps = functional.group_norm(maps, maps.shape[1], norm.weight, norm.bias, norm.eps)
        return functional.leaky_relu_(maps, self.slope).contiguous(memory_format=last)


def _slots_of(network: MDMNet, available: Sequence[str]) -> tuple[list[int], Tensor]:
    """Return the slots of the available modalities, and the same as ``(1, M)`` bool."""
    slots = [network.modalities.index(name) for name in available]
    present = torch.zeros((1, len(network.modalities)), dtype=torch.bool)
    present[:, slots] = True
    return slots, present


class _Summed:
    """A level whose slots are concatenated: its convolution is a sum over the modalities."""

    def __init__(self, fusion: Fusion, unit: _Unit, present: Tensor) -> None:
        """Args: the fusion; its convolution; the modalities of the case, ``(1, M)`` bool."""
        self.fusion, self.unit = fusion, unit
        (self.of_mean,), (self.of_slots,) = shares_of_mean(present), shares_of_slots(present)
        self.total: Tensor | None = None  # (B, *P, C_fused)

    def add_shared(self, maps: Tensor, slot: int) -> None:
        """Add a modality's share of the mean over shared maps, ``(B, C_shared, *P)``."""
        self._add(maps, self.fusion.shared_columns(self.unit.weight), self.of_mean[slot])

    def add_tailored(self, maps: Tensor, slot: int) -> None:
        """Add a modality's tailored map, ``(B, C_tailored, *P)``."""
        columns = self.fusion.slot_columns(self.unit.weight, slot)
        self._add(maps, columns, self.of_slots[slot])

    def fused(self) -> Tensor:
        """Return the fused map ``(B, C_fused, *P)``."""
        assert self.total is not None  # a case has a modality
        return self.unit.finish(self.total.movedim(-1, 1))

    def _add(self, maps: Tensor, weight: Tensor, share: Tensor) -> None:
        """Add a map, convolved with weights ``(C_fused, C, 1, ...)``, times ``share``."""
        first = self.total is None
        if self.total is None:
            self.total = maps.new_empty((len(maps), *maps.shape[2:], len(weight)))
        total = self.total.flatten(0, -2)  # (voxels, C_fused), a view
        rows = maps.movedim(1, -1).flatten(0, -2)
        alpha = share.item()
        torch.addmm(total, rows, weight.flatten(1).T, beta=not first, alpha=alpha, out=total)


class _Joined:
    """A level as ``_Summed``, that gives any subset's sum once it has all maps."""

    def __init__(self, fusion: Fusion, unit: _Unit) -> None:
        """Args: the fusion; its convolution."""
        self.fusion, self.unit = fusion, unit
        self.maps: list[Tensor] = []
        self.weights: list[Tensor] = []  # (C_fused, C) of each map
        self.places: list[tuple[bool, int]] = []  # of each map: is it tailored, and its slot
        self.joined: Tensor | None = None  # (B, *P, C of all maps)

    def add_shared(self, maps: Tensor, slot: int) -> None:
        """Add a modality's shared map, ``(B, C_shared, *P)``."""
        self._add((False, slot), maps, self.fusion.shared_columns(self.unit.weight))

    def add_tailored(self, maps: Tensor, slot: int) -> None:
        """Add a modality's tailored map, ``(B, C_tailored, *P)``."""
        self._add((True, slot), maps, self.fusion.slot_columns(self.unit.weight, slot))

    def fused_from(self, shown: Tensor) -> Tensor:
        """Return the fused maps ``(S * B, C_fused, *P)`` from subsets ``(S, M)`` bool."""
        if self.joined is None:  # so that a subset's sum is one product
            self.joined = torch.cat([maps.movedim(1, -1) for maps in self.maps], dim=-1)
            self.maps.clear()
        sums = []
        for own, mean in zip(shares_of_slots(shown), shares_of_mean(shown), strict=True):
            counts = [float((own if tailored else mean)[slot]) for tailored, slot in self.places]
            weighted = [weight * count for weight, count in zip(self.weights, counts, strict=True)]
            sums.append(self.joined @ torch.cat(weighted, dim=1).T)  # (B, *P, C_fused)
        return self.unit.finish(torch.cat(sums).movedim(-1, 1))

    def _add(self, place: tuple[bool, int], maps: Tensor, weight: Tensor) -> None:
        self.maps.append(maps)
        self.weights.append(weight.flatten(1))
        self.places.append(place)


class _Gathered:
    """A level that needs the maps of all modalities at once; it is fused by the plain form."""

    def __init__(
        self, network: MDMNet, level: int, present: Tensor, memory: PrototypeMemory
    ) -> None:
        """Args: the network and a level; the case's modalities, ``(1, M)`` bool; the memory."""
        self.network, self.level, self.memory, self.present = network, level, memory, present
        self.shared: Tensor | None = None
        self.tailored: Tensor | None = None
        self.dtype = torch.float32

    def add_shared(self, maps: Tensor, slot: int) -> None:
        """Keep a modality's shared map, ``(B, C_shared, *P)``."""
        self.shared = self._put(self.shared, maps, slot)

    def add_tailored(self, maps: Tensor, slot: int) -> None:
        """Keep a modality's tailored map, ``(B, C_tailored, *P)``."""
        self.tailored = self._put(self.tailored, maps, slot)

    def fused(self) -> Tensor:
        """Return the fused map ``(B, C_fused, *P)``."""
        return self.fused_from(self.present)

    def fused_from(self, shown: Tensor) -> Tensor:
        """Return the fused maps ``(S * B, C_fused, *P)`` from subsets ``(S, M)`` bool."""
        gathered = self.shared if self.tailored is None else self.tailored
        assert gathered is not None  # a network has a stream
        tailored, shared = (
            None if maps is None else maps.unbind(1) for maps in (self.tailored, self.shared)
        )
        fused = torch.cat(
            [
                self.network.fuse(self.level, tailored, shared, at, self.memory)
                for at in shown[:, None].expand(-1, len(gathered), -1)
            ]
        )
        return fused.to(self.dtype, memory_format=LAST[fused.ndim])

    def _put(self, gathered: Tensor | None, maps: Tensor, slot: int) -> Tensor:
        self.dtype = maps.dtype
        if gathered is None:
            shape = (len(maps), self.present.shape[1], *maps.shape[1:])
            gathered = torch.zeros(shape, dtype=torch.float32)
        gathered[:, slot] = maps
        return gathered


_Level = _Summed | _Joined | _Gathered


def _hide(placed: Tensor, shown: Tensor) -> Tensor:
    """Return images ``(S * B, M, *P)``: ``placed``, ``(B, M, *P)``, restricted to each subset."""
    seen = shown.reshape(len(shown), 1, -1, *[1] * (placed.ndim - 2))
    return torch.where(seen, placed, 0).flatten(0, 1)


def _packed(module: nn.Module, dtype: torch.dtype, *, keep: bool = False) -> Tensor:
    """Return a convolution's weight as it is used here; unless ``keep``, the module's is freed."""
    weight = module.get_parameter("weight").detach()
    if not keep:
        module.weight = nn.Parameter(weight.new_empty(0), requires_grad=False)
    return weight.to(dtype, memory_format=LAST[weight.ndim])
