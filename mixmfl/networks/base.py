"""What every segmentation network of ours can do, and how its parameters start."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, TypeAlias

import torch
from dynamic_network_architectures.building_blocks.plain_conv_encoder import PlainConvEncoder
from dynamic_network_architectures.building_blocks.residual_encoders import ResidualEncoder
from dynamic_network_architectures.building_blocks.unet_decoder import UNetDecoder
from torch import Tensor, nn

from mixmfl.networks.layers import speed_up
from mixmfl.networks.prototypes import PrototypeMemory
from mixmfl.planning.architecture import is_residual

Encoder: TypeAlias = PlainConvEncoder | ResidualEncoder
"""An encoder of plain convolutions, or of residual blocks; it returns a map per level."""

Slots = Sequence[Tensor | None]
"""A map ``(B, C, *P)`` per modality; zero in cases that lack it, None where all cases do."""


def stack_slots(slots: Slots) -> Tensor:
    """Return slots as ``(B, M, C, *P)``, zero where a modality is missing."""
    some = next(maps for maps in slots if maps is not None)
    return torch.stack([torch.zeros_like(some) if maps is None else maps for maps in slots], dim=1)


@dataclass(frozen=True)
class Encoding:
    """What a network encodes of the available modalities, a list entry per level.

    Attributes:
        tailored: Slots of ``(B, C_tailored, *P)``. Empty where the network has no tailored stream.
        shared: Slots of ``(B, C_shared, *P)``. Empty where the network has no shared stream.
        present: ``(B, M)`` bool, the available modalities; the others have no weight in ``decode``.
        images: ``(B, M, *P)``, kept by a stacked network, which has neither stream; else None.
    """

    tailored: Sequence[Slots]
    shared: Sequence[Slots]
    present: Tensor
    images: Tensor | None = None

    def restricted_to(self, shown: Tensor) -> "Encoding":
        """Return the encoding as if only ``shown``, ``(B, M)`` bool, were available."""
        return dataclasses.replace(self, present=self.present & shown)


class SegmentationNet(nn.Module, ABC):
    """What training, validation and prediction need of a network.

    Attributes:
        modalities: Modalities of the federation, in the order of the input's axis M.
        compensated: Levels, from 0, at which memory stands in for missing modalities.
        decoder: nnU-Net's decoder, with deep supervision in training.
    """

    modalities: tuple[str, ...]
    compensated: frozenset[int]
    decoder: UNetDecoder

    def train(self, mode: bool = True) -> "SegmentationNet":
        """Switch to training, where every resolution is supervised, or to prediction."""
        super().train(mode)
        self.decoder.deep_supervision = mode
        return self

    @abstractmethod
    def encode(self, images: Tensor, present: Tensor) -> Encoding:
        """Encode the available modalities.

        Args:
            images: ``(B, M, *P)``; what a missing modality holds is never read.
            present: ``(B, M)`` bool, the available modalities.
        """

    @abstractmethod
    def decode(self, encoding: Encoding, memory: PrototypeMemory) -> Tensor | list[Tensor]:
        """Decode what ``encode`` returned.

        Returns:
            Logits ``(B, heads, *P)``; in training a list of them, finest first.
        """

    def decode_views(
        self, views: Sequence[Encoding], memory: PrototypeMemory
    ) -> list[Tensor | list[Tensor]]:
        """Return what ``decode`` returns for each of several views of one batch."""
        return [self.decode(view, memory) for view in views]

    def forward(
        self, images: Tensor, present: Tensor, memory: PrototypeMemory
    ) -> Tensor | list[Tensor]:
        """Return logits; see ``encode`` and ``decode``."""
        return self.decode(self.encode(images, present), memory)


DECODER_READS = (
    "conv_op",
    "conv_bias",
    "norm_op",
    "norm_op_kwargs",
    "dropout_op",
    "dropout_op_kwargs",
    "nonlin",
    "nonlin_kwargs",
)
"""What a decoder reads off its encoder beside sizes: the planned operators."""


def place_modalities(
    images: Tensor, available: Sequence[str], modalities: Sequence[str]
) -> tuple[Tensor, Tensor]:
    """Return a network's input from images of the available modalities.

    Args:
        images: ``(B, K, *P)``
        available: The K modalities.
        modalities: The M modalities of the network.

    Returns:
        Images ``(B, M, *P)``, zero where a modality is missing, and ``(B, M)`` bool, the available.
    """
    slots = [modalities.index(name) for name in available]
    placed = images.new_zeros((len(images), len(modalities), *images.shape[2:]))
    placed[:, slots] = images
    present = torch.zeros((len(images), len(modalities)), dtype=torch.bool, device=images.device)
    present[:, slots] = True
    return placed, present


def build_encoder(channels: int, planned: Mapping[str, Any]) -> Encoder:
    """Build a planned encoder with random weights.

    Args:
        channels: Channels of its input.
        planned: nnU-Net's planned ``arch_kwargs`` without those of the decoder, layers as classes.
    """
    kind = ResidualEncoder if is_residual(planned) else PlainConvEncoder
    return kind(channels, **planned, return_skips=True)


def read_by_decoder(encoder: Encoder, features: Sequence[int]) -> SimpleNamespace:
    """Return the sizes and operators that a decoder of ``features`` channels reads off its encoder.

    They come as a namespace, so that the decoder does not register the encoder's weights as its
    own.
    """
    return SimpleNamespace(
        output_channels=list(features),
        strides=encoder.strides,
        kernel_sizes=encoder.kernel_sizes,
        **{name: getattr(encoder, name) for name in DECODER_READS},
    )


def initialise(network: nn.Module) -> None:
    """Draw the weights of convolutions as nnU-Net does."""
    speed_up(network)
    for module in network.modules():
        # on the device "meta" there are shapes and no numbers to draw
        if isinstance(module, nn.modules.conv._ConvNd) and not module.weight.is_meta:
            nn.init.kaiming_normal_(module.weight, a=1e-2)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
