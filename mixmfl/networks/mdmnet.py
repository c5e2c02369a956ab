"""The networks: what is computed from the modalities that a case has, and from memory.

``P`` stands for the patch's axes, (Y, X) or (Z, Y, X). Level 0 is full resolution.
"""

from collections.abc import Mapping, Sequence
from functools import reduce
from operator import add
from typing import Any

import torch
from dynamic_network_architectures.building_blocks.plain_conv_encoder import PlainConvEncoder
from dynamic_network_architectures.building_blocks.simple_conv_blocks import StackedConvBlocks
from dynamic_network_architectures.building_blocks.unet_decoder import UNetDecoder
from torch import Tensor, nn

from mixmfl.core.errors import PlansError
from mixmfl.networks.base import (
    _DECODER_READS,
    Encoding,
    SegmentationNet,
    _initialise,
    _over,
    _read_by_decoder,
    hide_missing,
)
from mixmfl.networks.layers import planned_layers
from mixmfl.networks.prototypes import PrototypeMemory, can_recall, recall
from mixmfl.planning.architecture import stream_channels
from mixmfl.planning.settings import NetworkSettings


class MDMNet(SegmentationNet):
    """Modality-decoupled U-Net: tailored, shared and joint encoders, memory, fusion, one decoder.

    After the idea of MDM-MixMFL (Hu et al., arXiv 2509.02541); the building blocks are those of
    nnU-Net's plain convolutional U-Net, and the forms of fusion and read-out are our choice.
    """

    def __init__(
        self,
        modalities: Sequence[str],
        heads: int,
        architecture: Mapping[str, Any],
        settings: NetworkSettings,
    ) -> None:
        """Build the network with random weights (from torch's global generator).

        Args:
            modalities: Modalities of the federation, in the order of the input's axis M.
            heads: Output channels.
            architecture: nnU-Net's planned ``arch_kwargs``.
            settings: Settings of the network in our plans.

        Raises:
            PlansError: A modality's name is an attribute of torch's containers.
        """
        super().__init__()
        planned = planned_layers(architecture)
        del planned["n_conv_per_stage_decoder"]  # nnU-Net's; ours are in the settings
        features = list(planned["features_per_stage"])
        if reserved := [name for name in modalities if hasattr(nn.ModuleDict, name)]:
            raise PlansError(f"{reserved[0]!r} cannot name a modality here; give it another name")
        self.modalities = tuple(modalities)
        self.temperature = settings.temperature
        levels = len(features)
        self.compensated = frozenset(level % levels for level in settings.compensation_levels)

        def encoder(width: float, images: int = 1) -> PlainConvEncoder:
            scaled = [stream_channels(width, channels) for channels in features]
            return PlainConvEncoder(
                images, **{**planned, "features_per_stage": scaled}, return_skips=True
            )

        self.tailored = nn.ModuleDict()
        if settings.tailored_width:
            self.tailored.update({name: encoder(settings.tailored_width) for name in modalities})
        self.shared = encoder(settings.shared_width) if settings.shared_width else None
        joint = settings.joint_width
        self.joint = encoder(joint, len(self.modalities)) if joint else None
        self.fusion = nn.ModuleList(
            Fusion(
                len(modalities),
                stream_channels(settings.tailored_width, channels),
                stream_channels(settings.shared_width, channels),
                channels,
                planned,
                gated=settings.fusion == "gated",
                recalls=level in self.compensated,
                joint=stream_channels(settings.joint_width, channels),
            )
            for level, channels in enumerate(features)
        )
        any_encoder = next(m for m in self.modules() if isinstance(m, PlainConvEncoder))
        read = _read_by_decoder(any_encoder, features)
        decoder = AddingDecoder if settings.decoder_skips == "added" else UNetDecoder
        decoder_convs = [settings.decoder_convs] * (levels - 1)
        self.decoder = decoder(read, heads, decoder_convs, deep_supervision=True)
        _initialise(self)

    def encode(self, images: Tensor, present: Tensor) -> Encoding:
        """Run the encoders of the available modalities, and only those.

        Args:
            images: ``(B, M, *P)``; what a missing modality holds is never read.
            present: ``(B, M)`` bool, the available modalities.
        """
        row, slot = present.nonzero(as_tuple=True)  # N pairs (case, modality)
        shared: list[Tensor] = []
        if self.shared is not None:
            features = self.shared(images[row, slot][:, None])
            pairs = row * present.shape[1] + slot
            shared = [_among(maps, pairs, present.numel()) for maps in features]
            shared = [maps.reshape(*present.shape, *maps.shape[1:]) for maps in shared]
        slots: dict[str, list[Tensor]] = {}
        for index, (modality, encoder) in enumerate(self.tailored.items()):
            rows = present[:, index].nonzero()[:, 0]
            if len(rows):
                features = encoder(images[rows, index][:, None])
                slots[modality] = [_among(maps, rows, len(present)) for maps in features]
        tailored = [
            torch.stack(
                [
                    slots[name][level] if name in slots else torch.zeros_like(maps)
                    for name in self.tailored
                ],
                dim=1,
            )
            for level, maps in enumerate(next(iter(slots.values()), []))
        ]
        return Encoding(tailored, shared, present, None if self.joint is None else images)

    def decode(self, encoding: Encoding, memory: PrototypeMemory) -> Tensor | list[Tensor]:
        """Run the joint encoder, fill the slots of missing modalities from memory, fuse, decode.

        Returns:
            Logits ``(B, heads, *P)``; in training a list of them, finest first.
        """
        present = encoding.present
        filled = present if encoding.imputed is None else present | encoding.imputed
        joint: list[Tensor] = []
        if self.joint is not None:
            assert encoding.images is not None  # as ``encode`` made it
            joint = self.joint(hide_missing(encoding.images, present))
        skips = [
            self.fuse(
                level,
                encoding.tailored[level] if encoding.tailored else None,
                encoding.shared[level] if encoding.shared else None,
                present,
                filled,
                memory,
                joint[level] if joint else None,
            )
            for level in range(len(self.fusion))
        ]
        return self.decoder(skips)

    def fuse(
        self,
        level: int,
        tailored: Tensor | None,
        shared: Tensor | None,
        present: Tensor,
        filled: Tensor,
        memory: PrototypeMemory,
        joint: Tensor | None = None,
    ) -> Tensor:
        """Return the fused feature map of a level, ``(B, C_fused, *P)``.

        Args:
            level: Level of the encoders, from 0.
            tailored: ``(B, M, C_tailored, *P)``, or None without such a stream.
            shared: ``(B, M, C_shared, *P)``, or None without a shared stream.
            present: ``(B, M)`` bool, the slots of ``shared`` that are read.
            filled: ``(B, M)`` bool, the slots of ``tailored`` that are read.
            memory: Memory of the federation.
            joint: ``(B, C_joint, *P)``, or None without a joint encoder.
        """
        recalled = None
        if level in self.compensated and tailored is not None:
            recalled = self.recall_missing(level, tailored, filled, memory)
        return self.fusion[level](tailored, filled, shared, present, recalled, joint)

    def recall_missing(
        self, level: int, slots: Tensor, present: Tensor, memory: PrototypeMemory
    ) -> Tensor:
        """Return recalled features of missing modalities, ``(B, M, C_tailored, *P)``, else zero.

        Args:
            level: Level of the encoders, from 0.
            slots: ``(B, M, C_tailored, *P)``, tailored features of the available modalities.
            present: ``(B, M)`` bool, the available modalities.
            memory: Memory of the federation; a modality that it lacks stays zero.
        """
        recalled = torch.zeros_like(slots)
        for index, modality in enumerate(self.modalities):
            # A case without T2 has its slot read from memory here, where plans compensate.
            rows = (~present[:, index]).nonzero()[:, 0]
            if len(rows) and can_recall(memory, modality, level):
                read = self.recall(modality, level, slots[rows], present[rows], memory)
                slot = torch.full_like(rows, index)
                recalled = recalled.index_put((rows, slot), read.to(slots.dtype))
        return recalled

    def recall(
        self,
        modality: str,
        level: int,
        slots: Tensor,
        present: Tensor,
        memory: PrototypeMemory,
    ) -> Tensor:
        """Return the recalled features of one modality, ``(B, C_tailored, *P)``.

        Args:
            modality: A modality that memory knows at this level.
            level: Level of the encoders, from 0.
            slots: ``(B, M, C_tailored, *P)``, tailored features of the available modalities.
            present: ``(B, M)`` bool, the available modalities; ``modality`` itself is not read.
            memory: Memory of the federation.
        """
        at_level = {name: rows for (name, at), rows in memory.items() if at == level}
        features = {
            name: (slots[:, number], present[:, number])
            for number, name in enumerate(self.modalities)
            if name != modality and can_recall(memory, name, level)
        }
        if not features:  # memory knows none of the available modalities
            return torch.zeros_like(slots[:, 0])
        return recall(features, at_level, modality, self.temperature)


class Fusion(nn.Module):
    """Fuse one slot per modality, the mean shared and the joint feature into one feature map.

    Concatenated, in the order of the modalities, or in the gated form as a mean of the slots,
    weighted at every voxel by a softmax over the available ones. A missing modality's slot is
    empty, or holds what memory recalls times a trust that is learnt and starts at 0; a level that
    recalls nothing has no trust.
    """

    def __init__(
        self,
        modalities: int,
        tailored: int,
        shared: int,
        fused: int,
        planned: Mapping[str, Any],
        *,
        gated: bool,
        recalls: bool,
        joint: int = 0,
    ) -> None:
        """Build it with random weights.

        Args:
            modalities: Number of slots.
            tailored: Channels of a slot; 0: there are no slots.
            shared: Channels of the shared feature; 0: there is none.
            fused: Channels of the result.
            planned: nnU-Net's planned operators.
            gated: Whether slots are fused by a gated mean, not concatenated.
            recalls: Whether ``forward`` gets features recalled from memory.
            joint: Channels of the joint feature; 0: there is none.
        """
        super().__init__()
        self.joint = joint
        self.score = planned["conv_op"](tailored, 1, 1) if gated and tailored else None
        self.trust = nn.Parameter(torch.zeros(())) if recalls else None
        self.mix = StackedConvBlocks(
            1,
            planned["conv_op"],
            joint + shared + (1 if gated else modalities) * tailored,
            fused,
            1,
            1,
            **{name: planned[name] for name in _DECODER_READS if name != "conv_op"},
        )

    def forward(
        self,
        slots: Tensor | None,
        filled: Tensor,
        shared: Tensor | None,
        present: Tensor,
        recalled: Tensor | None,
        joint: Tensor | None = None,
    ) -> Tensor:
        """Return the fused feature map ``(B, C_fused, *P)``.

        The convolution over the concatenation is a product with a matrix per case. Slots that are
        empty, and the mean over the shared features, are written into these small matrices, so
        that no large map has to be masked, averaged or joined.

        Args:
            slots: ``(B, M, C_tailored, *P)``, or None without a tailored stream.
            filled: ``(B, M)`` bool, at least one True per row; other slots are not read.
            shared: ``(B, M, C_shared, *P)``, or None without a shared stream.
            present: ``(B, M)`` bool, at least one True per row: the slots of ``shared`` that the
                mean is over.
            recalled: ``(B, M, C_tailored, *P)``, zero where ``filled``; or None.
            joint: ``(B, C_joint, *P)``, or None without a joint encoder.
        """
        (unit,) = self.mix.convs
        weight = unit.conv.weight.flatten(1)  # (C_fused, what is concatenated)
        terms: list[tuple[Tensor, Tensor]] = []  # matrices (B, C_fused, C), and maps (B, C, *P)
        start = 0  # of the columns of what comes next
        if joint is not None:
            start = joint.shape[1]
            terms.append((weight[:, :start].expand(len(joint), -1, -1), joint))
        if shared is not None:
            columns = weight[:, start : start + shared.shape[2]]
            start += shared.shape[2]
            share = present / present.sum(dim=1, keepdim=True)
            matrix = torch.einsum("bm,fc->bfmc", share, columns)
            terms.append((matrix.flatten(2), shared.flatten(1, 2)))
        if slots is not None and self.score is not None:
            score = self.score(slots.flatten(0, 1)).unflatten(0, filled.shape)
            hidden = ~_over(filled, score.ndim)
            gated = score.masked_fill(hidden, -torch.inf).softmax(dim=1) * slots
            if recalled is not None:
                assert self.trust is not None  # it was built to recall
                gated = gated + self.trust * recalled
            terms.append((weight[:, start:].expand(len(slots), -1, -1), gated.sum(dim=1)))
        elif slots is not None:
            by_slot = weight[:, start:].unflatten(1, slots.shape[1:3])
            matrix = torch.einsum("bm,fmc->bfmc", filled.to(weight.dtype), by_slot)
            terms.append((matrix.flatten(2), slots.flatten(1, 2)))
            if recalled is not None:
                assert self.trust is not None  # it was built to recall
                matrix = (self.trust * weight[:, start:]).expand(len(slots), -1, -1)
                terms.append((matrix, recalled.flatten(1, 2)))
        mixed = reduce(add, (matrix @ maps.flatten(2) for matrix, maps in terms))
        if unit.conv.bias is not None:
            # in the type of the maps: else the fused map would be float32 in half precision, too
            mixed = mixed + unit.conv.bias[:, None].to(mixed.dtype)
        fused: Tensor = unit.all_modules[1:](
            mixed.reshape(*mixed.shape[:2], *terms[0][1].shape[2:])
        )
        return fused


class AddingDecoder(UNetDecoder):
    """nnU-Net's decoder, but for skips that are added to what comes from below.

    A resolution's first convolution then has half the channels to read.
    """

    def __init__(
        self, encoder: Any, heads: int, convs: Sequence[int], *, deep_supervision: bool
    ) -> None:
        """Build it with random weights; the arguments are those of nnU-Net's decoder."""
        super().__init__(encoder, heads, convs, deep_supervision)
        planned = {name: getattr(encoder, name) for name in _DECODER_READS if name != "conv_op"}
        deepest_first = zip(
            convs, encoder.output_channels[-2::-1], encoder.kernel_sizes[-2::-1], strict=True
        )
        self.stages = nn.ModuleList(
            StackedConvBlocks(count, encoder.conv_op, channels, channels, kernel, 1, **planned)
            for count, channels, kernel in deepest_first
        )

    def forward(self, skips: Sequence[Tensor]) -> Tensor | list[Tensor]:
        """Return logits of fused maps, finest first; see ``SegmentationNet.decode``."""
        *others, maps = skips
        logits: list[Tensor] = []
        for up, stage, head in zip(self.transpconvs, self.stages, self.seg_layers, strict=True):
            maps = stage(up(maps) + others.pop())
            if self.deep_supervision:
                logits.insert(0, head(maps))
        return logits or self.seg_layers[-1](maps)


def _among(maps: Tensor, rows: Tensor, count: int) -> Tensor:
    """Return maps ``(count, C, *P)``: ``maps`` at the ascending ``rows``, elsewhere zero."""
    if len(rows) == count:
        return maps
    return maps.new_zeros((count, *maps.shape[1:])).index_copy(0, rows, maps)
