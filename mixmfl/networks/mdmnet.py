"""The networks: what is computed from the modalities that a case has, and from memory.

``P`` stands for the patch's axes, (Y, X) or (Z, Y, X). Level 0 is full resolution.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from dynamic_network_architectures.building_blocks.simple_conv_blocks import StackedConvBlocks
from dynamic_network_architectures.building_blocks.unet_decoder import UNetDecoder
from torch import Tensor, nn

from mixmfl.core.errors import PlansError
from mixmfl.networks.base import (
    DECODER_READS,
    Encoder,
    Encoding,
    SegmentationNet,
    Slots,
    build_encoder,
    initialise,
    read_by_decoder,
    stack_slots,
)
from mixmfl.networks.layers import reads_channels_last
from mixmfl.networks.norms import channels_last
from mixmfl.networks.prototypes import PrototypeMemory, can_recall, recall
from mixmfl.planning.architecture import resolve_architecture, stream_channels
from mixmfl.planning.settings import NetworkSettings


class MDMNet(SegmentationNet):
    """Modality-decoupled U-Net: tailored and shared encoders, memory, fusion, one decoder.

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
        planned = resolve_architecture(architecture)
        del planned["n_conv_per_stage_decoder"]  # nnU-Net's; ours are in the settings
        features = list(planned["features_per_stage"])
        if reserved := [name for name in modalities if hasattr(nn.ModuleDict, name)]:
            raise PlansError(f"{reserved[0]!r} cannot name a modality here; give it another name")
        self.modalities = tuple(modalities)
        self.temperature = settings.temperature
        levels = len(features)
        self.compensated = frozenset(level % levels for level in settings.compensation_levels)

        def encoder(width: float) -> Encoder:
            scaled = [stream_channels(width, channels) for channels in features]
            return build_encoder(1, {**planned, "features_per_stage": scaled})

        self.tailored = nn.ModuleDict()
        if settings.tailored_width:
            self.tailored.update({name: encoder(settings.tailored_width) for name in modalities})
        self.shared = encoder(settings.shared_width) if settings.shared_width else None
        self.fusion = nn.ModuleList(
            Fusion(
                len(modalities),
                stream_channels(settings.tailored_width, channels),
                stream_channels(settings.shared_width, channels),
                channels,
                planned,
                recalls=level in self.compensated,
            )
            for level, channels in enumerate(features)
        )
        any_encoder = next(m for m in self.modules() if isinstance(m, Encoder))
        read = read_by_decoder(any_encoder, features)
        decoder = AddingDecoder if settings.decoder_skips == "added" else UNetDecoder
        decoder_convs = [settings.decoder_convs] * (levels - 1)
        self.decoder = decoder(read, heads, decoder_convs, deep_supervision=True)
        initialise(self)

    def encode(self, images: Tensor, present: Tensor) -> Encoding:
        """Run the encoders of the available modalities, and only those.

        Args:
            images: ``(B, M, *P)``; what a missing modality holds is never read.
            present: ``(B, M)`` bool, the available modalities.
        """
        slots = [
            (index, rows)
            for index in range(len(self.modalities))
            if len(rows := present[:, index].nonzero()[:, 0])
        ]
        # of every modality the images that there are, (N, 1, *P)
        available = [_take(images[:, index : index + 1], rows) for index, rows in slots]
        if reads_channels_last(images):
            available = [channels_last(each) for each in available]

        def placed(by_slot: Sequence[Tensor]) -> list[Tensor | None]:
            level: list[Tensor | None] = [None] * len(self.modalities)
            for (index, rows), maps in zip(slots, by_slot, strict=True):
                level[index] = _among(maps, rows, len(present))
            return level

        shared, tailored = [], []
        if self.shared is not None:
            sizes = [len(rows) for _, rows in slots]
            levels = self.shared(torch.cat(available))
            shared = [placed(maps.split(sizes)) for maps in levels]
        if self.tailored:
            encoders = [self.tailored[self.modalities[index]] for index, _ in slots]
            by_slot = [encoder(each) for encoder, each in zip(encoders, available, strict=True)]
            tailored = [placed(level) for level in zip(*by_slot, strict=True)]
        return Encoding(tailored, shared, present)

    def decode(self, encoding: Encoding, memory: PrototypeMemory) -> Tensor | list[Tensor]:
        """Fill the slots of missing modalities from memory, fuse, decode.

        Returns:
            Logits ``(B, heads, *P)``; in training a list of them, finest first.
        """
        return self.decoder(self._skips(encoding, memory))

    def decode_views(
        self, views: Sequence[Encoding], memory: PrototypeMemory
    ) -> list[Tensor | list[Tensor]]:
        """Return what ``decode`` returns for each view of one batch; the decoder runs once."""
        by_view = [self._skips(view, memory) for view in views]
        joined = [torch.cat(level) for level in zip(*by_view, strict=True)]
        logits = [each.chunk(len(views)) for each in self.decoder(joined)]
        return [list(of_view) for of_view in zip(*logits, strict=True)]

    def _skips(self, encoding: Encoding, memory: PrototypeMemory) -> list[Tensor]:
        """Return the fused map ``(B, C_fused, *P)`` of every level."""
        return [
            self.fuse(
                level,
                encoding.tailored[level] if encoding.tailored else None,
                encoding.shared[level] if encoding.shared else None,
                encoding.present,
                memory,
            )
            for level in range(len(self.fusion))
        ]

    def fuse(
        self,
        level: int,
        tailored: Slots | None,
        shared: Slots | None,
        present: Tensor,
        memory: PrototypeMemory,
    ) -> Tensor:
        """Return the fused feature map of a level, ``(B, C_fused, *P)``.

        Args:
            level: Level of the encoders, from 0.
            tailored: Slots of ``(B, C_tailored, *P)``, or None without such a stream.
            shared: Slots of ``(B, C_shared, *P)``, or None without a shared stream.
            present: ``(B, M)`` bool, the slots that are read.
            memory: Memory of the federation.
        """
        recalled = None
        if level in self.compensated and tailored is not None and shared is not None:
            recalled = self.recall_missing(level, stack_slots(tailored), present, memory)
        return self.fusion[level](tailored, shared, present, recalled)

    def reads_memory(self, level: int, *, complete: bool) -> bool:
        """Return whether the fused map of a level depends on memory.

        Args:
            level: Level of the encoders, from 0.
            complete: Whether all modalities are available.
        """
        return level in self.compensated and not complete

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
    """Fuse one slot per modality and the mean shared feature into one feature map.

    They are concatenated, the shared feature first, then the slots in the order of the modalities,
    and mixed by a convolution of one voxel. A missing modality's slot is empty, or holds what
    memory recalls times a trust that is learnt and starts at 0; a level that recalls nothing has no
    trust.

    The convolution is a sum over what is concatenated, and the mean a sum over modalities: the
    result is a sum of maps, each times some columns of the weight and a share. ``shared_columns``,
    ``slot_columns``, ``shares_of_mean`` and ``shares_of_slots`` say which, here and in the form for
    CPUs.
    """

    def __init__(
        self,
        modalities: int,
        tailored: int,
        shared: int,
        fused: int,
        planned: Mapping[str, Any],
        *,
        recalls: bool,
    ) -> None:
        """Build it with random weights.

        Args:
            modalities: Number of slots.
            tailored: Channels of a slot; 0: there are no slots.
            shared: Channels of the shared feature; 0: there is none.
            fused: Channels of the result.
            planned: nnU-Net's planned operators.
            recalls: Whether ``forward`` gets features recalled from memory.
        """
        super().__init__()
        self.tailored, self.shared = tailored, shared
        self.trust = nn.Parameter(torch.zeros(())) if recalls else None
        self.mix = StackedConvBlocks(
            1,
            planned["conv_op"],
            modalities * tailored + shared,
            fused,
            1,
            1,
            **{name: planned[name] for name in DECODER_READS if name != "conv_op"},
        )

    def shared_columns(self, weight: Tensor) -> Tensor:
        """Return of the convolution's weight ``(C_fused, C, ...)`` what the mean is mixed by."""
        return weight[:, : self.shared]

    def slot_columns(self, weight: Tensor, slot: int) -> Tensor:
        """Return of the convolution's weight ``(C_fused, C, ...)`` what a slot is mixed by."""
        start = self.shared + slot * self.tailored
        return weight[:, start : start + self.tailored]

    def forward(
        self,
        slots: Slots | None,
        shared: Slots | None,
        present: Tensor,
        recalled: Tensor | None,
    ) -> Tensor:
        """Return the fused feature map ``(B, C_fused, *P)``.

        The convolution over the concatenation is a product with a matrix per case. Slots that are
        empty, and the mean over the shared features, are written into these small matrices, so
        that no large map has to be masked, averaged or joined.

        Args:
            slots: Slots of ``(B, C_tailored, *P)``, or None without a tailored stream.
            shared: Slots of ``(B, C_shared, *P)``, or None without a shared stream.
            present: ``(B, M)`` bool, at least one True per row; other slots are not read.
            recalled: ``(B, M, C_tailored, *P)``, zero where ``present``; or None.
        """
        (unit,) = self.mix.convs
        weight = unit.conv.weight.flatten(1)  # (C_fused, what is concatenated)
        terms: list[tuple[Tensor, Tensor]] = []  # matrices (B, C_fused, C), and maps (B, C, *P)

        def add(by_case: Tensor, columns: Tensor, maps: Tensor) -> None:
            terms.append((by_case.to(weight.dtype)[:, None, None] * columns, maps))

        if shared is not None:
            share = shares_of_mean(present)
            for index, maps in enumerate(shared):
                if maps is not None:
                    add(share[:, index], self.shared_columns(weight), maps)
        if slots is not None:
            share = shares_of_slots(present)
            for index, maps in enumerate(slots):
                if maps is not None:
                    add(share[:, index], self.slot_columns(weight, index), maps)
            if recalled is not None:
                assert self.trust is not None  # it was built to recall
                every = torch.ones(len(present), device=weight.device)
                add(every, self.trust * weight[:, self.shared :], recalled.flatten(1, 2))
        # without the convolution's bias, which the norm cancels
        fused: Tensor = unit.all_modules[1:](_sum_of_products(terms))
        return fused


def shares_of_mean(present: Tensor) -> Tensor:
    """Return each modality's share of the mean shared feature, of the available ``(B, M)`` bool."""
    return present / present.sum(dim=1, keepdim=True)


def shares_of_slots(present: Tensor) -> Tensor:
    """Return what each modality's slot is multiplied by, of the available ``(B, M)`` bool.

    It decides what a case without T2 is fused from: the slot of T2 counts nothing, whatever it
    holds, and the others count as ever.
    """
    return present.float()


def _sum_of_products(terms: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Return the sum of matrices ``(B, F, C)`` times maps ``(B, C, *P)``."""
    size = terms[0][1].shape[2:]
    if all(maps.stride(1) == 1 for _, maps in terms):  # channels last: no large map is joined
        rows = [maps.movedim(1, -1).flatten(1, -2) for _, maps in terms]  # (B, voxels, C)
        turned = [matrix.transpose(1, 2).to(rows[0].dtype) for matrix, _ in terms]
        mixed: Tensor = _RowsTimes.apply(*rows, *turned)  # type: ignore[no-untyped-call]
        return mixed.reshape(len(mixed), *size, -1).movedim(-1, 1)
    joined = torch.cat([matrix for matrix, _ in terms], dim=2)
    mixed = joined @ torch.cat([maps.flatten(2) for _, maps in terms], dim=1)
    return mixed.reshape(*mixed.shape[:2], *size)


class _RowsTimes(torch.autograd.Function):
    """The sum of rows ``(B, voxels, C)`` times matrices ``(B, C, F)``, added up in place."""

    @staticmethod
    def forward(context: Any, *given: Tensor) -> Tensor:
        """Return the sum ``(B, voxels, F)``; all rows are given first, then as many matrices."""
        count = len(given) // 2
        total = given[0] @ given[count]
        for rows, matrix in zip(given[1:count], given[count + 1 :], strict=True):
            total.baddbmm_(rows, matrix)
        context.save_for_backward(*given)
        return total

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        """Return the gradients, in the order of the arguments."""
        given = context.saved_tensors
        count = len(given) // 2
        turned = gradient.transpose(1, 2)  # this way round the sum over voxels takes half the time
        return (
            *(gradient @ matrix.transpose(1, 2) for matrix in given[count:]),
            *((turned @ rows).transpose(1, 2) for rows in given[:count]),
        )


class AddingDecoder(UNetDecoder):
    """nnU-Net's decoder, but for skips that are added to what comes from below.

    A resolution's first convolution then has half the channels to read.
    """

    def __init__(
        self, encoder: Any, heads: int, convs: Sequence[int], *, deep_supervision: bool
    ) -> None:
        """Build it with random weights; the arguments are those of nnU-Net's decoder."""
        super().__init__(encoder, heads, convs, deep_supervision)
        planned = {name: getattr(encoder, name) for name in DECODER_READS if name != "conv_op"}
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


def _take(maps: Tensor, rows: Tensor) -> Tensor:
    """Return the maps at the ascending ``rows``; all of them are not copied."""
    return maps if len(rows) == len(maps) else maps[rows]


def _among(maps: Tensor, rows: Tensor, count: int) -> Tensor:
    """Return maps ``(count, C, *P)``: ``maps`` at the ascending ``rows``, elsewhere zero."""
    if len(rows) == count:
        return maps
    return maps.new_zeros((count, *maps.shape[1:])).index_copy(0, rows, maps)
