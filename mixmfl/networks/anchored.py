"""A U-Net whose fused maps attend to the federation's prototypes: a baseline's network."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mixmfl.networks.base import Slots
from mixmfl.networks.mdmnet import MDMNet
from mixmfl.networks.prototypes import PrototypeMemory
from mixmfl.planning.architecture import stream_channels
from mixmfl.planning.settings import NetworkSettings


class AnchoredNet(MDMNet):
    """Tailored encoders, fusion and one decoder; fused maps are calibrated by anchors.

    After FedMEMA (Dai et al., AAAI 2024, arXiv 2403.11803), where anchors are mean features of all
    modalities together, of cases that the server has. Here they are the memory: a row per
    modality and class, from the sites that have the modality.
    """

    def __init__(
        self,
        modalities: Sequence[str],
        heads: int,
        architecture: Mapping[str, Any],
        settings: NetworkSettings,
    ) -> None:
        """Build the network with random weights; ``MDMNet`` describes the arguments."""
        # no level of it has a slot filled from memory
        without = dataclasses.replace(settings, compensation_levels=())
        super().__init__(modalities, heads, architecture, without)
        features = architecture["features_per_stage"]
        self.anchored = {level % len(features) for level in settings.compensation_levels}
        for level in sorted(self.anchored):
            channels = features[level]
            anchors = stream_channels(settings.tailored_width, channels)
            # in the fusion, so that it belongs to that block
            self.fusion[level].add_module("calibration", Calibration(channels, anchors))

    def reads_memory(self, level: int, *, complete: bool) -> bool:
        """Return whether a level attends to the memory, whichever modalities are available."""
        return level in self.anchored

    def fuse(
        self,
        level: int,
        tailored: Slots | None,
        shared: Slots | None,
        present: Tensor,
        memory: PrototypeMemory,
    ) -> Tensor:
        """Return the calibrated fused map of a level; see ``MDMNet.fuse``."""
        fused = super().fuse(level, tailored, shared, present, memory)
        anchors = [
            rows.values[rows.counts > 0]
            for (_, at), rows in sorted(memory.items(), key=lambda item: item[0])
            if at == level
        ]
        if level not in self.anchored or not anchors:
            return fused
        calibrated: Tensor = self.fusion[level].get_submodule("calibration")(
            fused, torch.cat(anchors)
        )
        return calibrated


class Calibration(nn.Module):
    """A fused map plus what its voxels read off the anchors by scaled dot-product attention.

    The values' weights are zero at first: then the map stays as it is.
    """

    def __init__(self, channels: int, anchors: int) -> None:
        """Build it with random weights.

        Args:
            channels: Channels of the fused map.
            anchors: Channels of an anchor.
        """
        super().__init__()
        self.query = nn.Linear(channels, channels, bias=False)
        self.key = nn.Linear(anchors, channels, bias=False)
        self.value = nn.Linear(anchors, channels, bias=False)
        nn.init.zeros_(self.value.weight)

    def forward(self, fused: Tensor, anchors: Tensor) -> Tensor:
        """Return the calibrated map ``(B, C, *P)``.

        Args:
            fused: ``(B, C, *P)``
            anchors: ``(N, C_tailored)``, at least one.
        """
        rows = fused.movedim(1, -1)  # (B, *P, C)
        keys, values = self.key(anchors), self.value(anchors)
        scores = self.query(rows) @ keys.T / keys.shape[1] ** 0.5  # (B, *P, N)
        read = scores.softmax(dim=-1).to(values.dtype) @ values
        return fused + read.movedim(-1, 1).to(fused.dtype)
