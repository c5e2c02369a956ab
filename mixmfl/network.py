"""The MDM network: what is computed from the modalities that a case has, and from memory.

``P`` stands for the patch's axes, (Y, X) or (Z, Y, X). Level 0 is full resolution.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from dynamic_network_architectures.building_blocks.plain_conv_encoder import PlainConvEncoder
from dynamic_network_architectures.building_blocks.simple_conv_blocks import StackedConvBlocks
from dynamic_network_architectures.building_blocks.unet_decoder import UNetDecoder
from torch import Tensor, nn

from mixmfl.errors import PlansError
from mixmfl.memory import Memory, State, can_recall, recall
from mixmfl.nnunet import label_manager, resolve_architecture
from mixmfl.plan import NetworkSettings, Plans


@dataclass(frozen=True)
class Encoding:
    """What both streams see in the modalities at hand, a list entry per level.

    Attributes:
        tailored: ``(B, M, C_tailored, *P)``; what an absent modality holds is zero.
        shared: ``(B, M, C_shared, *P)``, likewise.
        present: ``(B, M)`` bool.
    """

    tailored: list[Tensor]
    shared: list[Tensor]
    present: Tensor


class MDMNet(nn.Module):
    """Modality-decoupled U-Net: tailored and shared encoders, memory, slot fusion, one decoder.

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
            modalities: Those of the federation; the order of the input's axis M.
            heads: Output channels.
            architecture: nnU-Net's planned ``arch_kwargs``.
            settings: Ours.

        Raises:
            PlansError: A modality has a name that torch's containers have taken.
        """
        super().__init__()
        planned = resolve_architecture(architecture)
        decoder_convs = planned.pop("n_conv_per_stage_decoder")
        features = list(planned["features_per_stage"])
        levels = len(features)

        def encoder(width: float) -> PlainConvEncoder:
            scaled = [max(1, round(width * channels)) for channels in features]
            return PlainConvEncoder(
                1, **{**planned, "features_per_stage": scaled}, return_skips=True
            )

        if taken := [name for name in modalities if hasattr(nn.ModuleDict, name)]:
            raise PlansError(f"{taken[0]!r} cannot name a modality here; give it another name")
        self.modalities = tuple(modalities)
        self.temperature = settings.temperature
        self.compensated = frozenset(level % levels for level in settings.compensation_levels)
        self.tailored = nn.ModuleDict({m: encoder(settings.tailored_width) for m in modalities})
        self.shared = encoder(settings.shared_width)
        self.fusion = nn.ModuleList(
            SlotFusion(
                max(1, round(settings.tailored_width * channels)),
                max(1, round(settings.shared_width * channels)),
                channels,
                planned,
            )
            for channels in features
        )
        # the decoder only reads sizes and operators off "its encoder"; given as a namespace it
        # does not register that encoder's weights as its own
        self.decoder = UNetDecoder(
            SimpleNamespace(
                output_channels=features,
                strides=self.shared.strides,
                kernel_sizes=self.shared.kernel_sizes,
                **{name: getattr(self.shared, name) for name in _DECODER_READS},
            ),
            heads,
            decoder_convs,
            deep_supervision=True,
        )
        for module in self.modules():
            if isinstance(module, nn.modules.conv._ConvNd):  # as nnU-Net initialises
                nn.init.kaiming_normal_(module.weight, a=1e-2)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def train(self, mode: bool = True) -> "MDMNet":
        """Switch to training, where every resolution is supervised, or to prediction."""
        super().train(mode)
        self.decoder.deep_supervision = mode
        return self

    def encode(self, images: Tensor, present: Tensor) -> Encoding:
        """Run the encoders of the modalities at hand, and only those.

        Args:
            images: ``(B, M, *P)``; what an absent modality holds is never looked at.
            present: ``(B, M)`` bool.
        """
        row, slot = present.nonzero(as_tuple=True)  # N pairs (case, modality)
        shared = self.shared(images[row, slot][:, None])
        batch, count = present.shape
        seen = [f.new_zeros((batch, count, *f.shape[1:])) for f in shared]
        for level, features in enumerate(shared):
            seen[level][row, slot] = features
        kept: list[Tensor] = []
        for index, modality in enumerate(self.modalities):
            rows = row[slot == index]
            if len(rows) == 0:
                continue
            for level, features in enumerate(self.tailored[modality](images[rows, index][:, None])):
                if len(kept) == level:
                    kept.append(features.new_zeros((batch, count, *features.shape[1:])))
                kept[level][rows, index] = features
        return Encoding(kept, seen, present)

    def decode(self, encoding: Encoding, memory: Memory) -> Tensor | list[Tensor]:
        """Fill the slots of absent modalities from memory, fuse, decode.

        Returns:
            Logits ``(B, heads, *P)``; in training a list of them, finest first.
        """
        present = encoding.present
        skips = []
        for level, (slots, seen) in enumerate(zip(encoding.tailored, encoding.shared, strict=True)):
            count = present.sum(dim=1)
            shared = seen.sum(dim=1) / _over(count, seen.ndim - 1)  # (B, C_shared, *P)
            remembered = torch.zeros_like(present)
            if level in self.compensated:
                for index, modality in enumerate(self.modalities):
                    # This is what happens when a case has no T2: its slot is read from memory.
                    rows = (~present[:, index]).nonzero()[:, 0]
                    if len(rows) and can_recall(memory, modality, level):
                        read = recall(shared[rows], memory[modality, level], self.temperature)
                        slot = torch.full_like(rows, index)
                        slots = slots.index_put((rows, slot), read.to(slots.dtype))
                        remembered[rows, index] = True
            skips.append(self.fusion[level](slots, shared, present, remembered))
        return self.decoder(skips)

    def forward(self, images: Tensor, present: Tensor, memory: Memory) -> Tensor | list[Tensor]:
        """Return logits; see ``encode`` and ``decode``."""
        return self.decode(self.encode(images, present), memory)


_DECODER_READS = (
    "conv_op",
    "conv_bias",
    "norm_op",
    "norm_op_kwargs",
    "dropout_op",
    "dropout_op_kwargs",
    "nonlin",
    "nonlin_kwargs",
)


class SlotFusion(nn.Module):
    """Fuse one slot per modality and the mean shared feature into one feature map.

    A gated mean: at every voxel each slot gets a score, slots that are neither measured nor
    remembered none, and a softmax over the slots weighs them. So one modality and four give
    features of one scale, and the order of modalities does not matter.
    """

    def __init__(self, tailored: int, shared: int, fused: int, planned: Mapping[str, Any]) -> None:
        """Args: channels of a slot, of the shared feature, of the result; planned operators."""
        super().__init__()
        self.score = planned["conv_op"](tailored, 1, 1)
        # what being remembered adds to a slot's score; at -2 a memory weighs an eighth of a
        # measurement until training finds out what it is worth
        self.trust = nn.Parameter(torch.tensor(-2.0))
        self.mix = StackedConvBlocks(
            1,
            planned["conv_op"],
            tailored + shared,
            fused,
            1,
            1,
            **{name: planned[name] for name in _DECODER_READS if name != "conv_op"},
        )

    def forward(
        self, slots: Tensor, shared: Tensor, measured: Tensor, remembered: Tensor
    ) -> Tensor:
        """Return the fused feature map ``(B, C_fused, *P)``.

        Args:
            slots: ``(B, M, C_tailored, *P)``
            shared: ``(B, C_shared, *P)``
            measured: ``(B, M)`` bool, at least one True per row.
            remembered: ``(B, M)`` bool, never True where ``measured`` is.
        """
        batch, count = measured.shape
        score = self.score(slots.flatten(0, 1)).unflatten(0, (batch, count))  # (B, M, 1, *P)
        score = score + _over(self.trust * remembered, score.ndim)
        score = score.masked_fill(~_over(measured | remembered, score.ndim), float("-inf"))
        weight = torch.softmax(score, dim=1)
        pooled = (weight * slots).sum(dim=1)  # (B, C_tailored, *P)
        return self.mix(torch.cat([pooled, shared], dim=1))


def build_network(plans: Plans, configuration: str, seed: int) -> MDMNet:
    """Build the planned network, weights drawn from ``seed``; torch's generator is left alone."""
    planned = plans.configuration(configuration)["architecture"]["arch_kwargs"]
    heads = label_manager(plans.labels).num_segmentation_heads
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MDMNet(plans.modalities, heads, planned, plans.network)


def network_state(network: nn.Module) -> State:
    """Return a copy of the parameters, on the CPU, each under one name."""
    # not state_dict(): nnU-Net's blocks register every convolution under two names
    return {
        name: parameter.detach().to("cpu", copy=True)
        for name, parameter in network.named_parameters()
    }


def load_state(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy parameters into the network by name; those that ``state`` lacks stay as they are.

    Raises:
        KeyError: A name is no parameter of the network.
        RuntimeError: A shape does not fit.
    """
    parameters = dict(network.named_parameters())
    with torch.no_grad():
        for name, tensor in state.items():
            parameters[name].copy_(tensor)


def _over(tensor: Tensor, ndim: int) -> Tensor:
    """Append axes of length 1 until there are ``ndim``."""
    return tensor.reshape(*tensor.shape, *[1] * (ndim - tensor.ndim))
