"""One plain U-Net with a channel per modality, zero where it is missing: the baselines' network."""

from collections.abc import Mapping, Sequence
from typing import Any

from dynamic_network_architectures.building_blocks.plain_conv_encoder import PlainConvEncoder
from dynamic_network_architectures.building_blocks.unet_decoder import UNetDecoder
from torch import Tensor

from mixmfl.networks.base import (
    Encoding,
    SegmentationNet,
    _initialise,
    _read_by_decoder,
    hide_missing,
)
from mixmfl.networks.layers import planned_layers
from mixmfl.networks.prototypes import PrototypeMemory


class StackedNet(SegmentationNet):
    """nnU-Net's plain U-Net with a channel per modality, zero where that is missing.

    It is the baseline: federated averaging without regard to modalities.
    """

    def __init__(
        self, modalities: Sequence[str], heads: int, architecture: Mapping[str, Any]
    ) -> None:
        """Build the network with random weights; ``MDMNet`` describes the arguments."""
        super().__init__()
        planned = planned_layers(architecture)
        decoder_convs = planned.pop("n_conv_per_stage_decoder")
        self.modalities = tuple(modalities)
        self.compensated = frozenset()
        self.encoder = PlainConvEncoder(len(self.modalities), **planned, return_skips=True)
        read = _read_by_decoder(self.encoder, planned["features_per_stage"])
        self.decoder = UNetDecoder(read, heads, decoder_convs, deep_supervision=True)
        _initialise(self)

    def encode(self, images: Tensor, present: Tensor) -> Encoding:
        """Keep the images: their encoding depends on which other modalities are shown."""
        return Encoding([], [], present, images)

    def decode(self, encoding: Encoding, memory: PrototypeMemory) -> Tensor | list[Tensor]:
        """Run the U-Net; memory is not read."""
        assert encoding.images is not None  # as ``encode`` made it
        return self.decoder(self.encoder(hide_missing(encoding.images, encoding.present)))
