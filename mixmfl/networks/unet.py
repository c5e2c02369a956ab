"""One plain U-Net with a channel per modality, zero where it is missing: the baselines' network."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from dynamic_network_architectures.building_blocks.unet_decoder import UNetDecoder
from torch import Tensor

from mixmfl.networks.base import (
    Encoding,
    SegmentationNet,
    build_encoder,
    initialise,
    read_by_decoder,
)
from mixmfl.networks.layers import reads_channels_last
from mixmfl.networks.norms import channels_last
from mixmfl.networks.prototypes import PrototypeMemory
from mixmfl.planning.architecture import resolve_architecture


class StackedNet(SegmentationNet):
    """nnU-Net's U-Net with a channel per modality, zero where that is missing.

    It is the baseline: federated averaging without regard to modalities.
    """

    def __init__(
        self, modalities: Sequence[str], heads: int, architecture: Mapping[str, Any]
    ) -> None:
        """Build the network with random weights; ``MDMNet`` describes the arguments."""
        super().__init__()
        planned = resolve_architecture(architecture)
        decoder_convs = planned.pop("n_conv_per_stage_decoder")
        self.modalities = tuple(modalities)
        self.compensated = frozenset()
        self.encoder = build_encoder(len(self.modalities), planned)
        read = read_by_decoder(self.encoder, planned["features_per_stage"])
        self.decoder = UNetDecoder(read, heads, decoder_convs, deep_supervision=True)
        initialise(self)

    def encode(self, images: Tensor, present: Tensor) -> Encoding:
        """Keep the images: their encoding depends on which other modalities are shown."""
        return Encoding([], [], present, images)

    def decode(self, encoding: Encoding, memory: PrototypeMemory) -> Tensor | list[Tensor]:
        """Run the U-Net; memory is not read."""
        assert encoding.images is not None  # as ``encode`` made it
        present, axes = encoding.present, encoding.images.ndim - encoding.present.ndim
        available = present.reshape(*present.shape, *[1] * axes)
        images = torch.where(available, encoding.images, 0)
        if reads_channels_last(images):
            images = channels_last(images)
        return self.decoder(self.encoder(images))
