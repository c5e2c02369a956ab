"""First weights taken from another network: what fits is taken, what does not is named.

The other network is one of ours, of the same or of other plans, or nnU-Net's U-Net. A tensor is
taken where it means the same here: an encoder of the same modality, a channel of a stem, a slot of
the fusion, a resolution of the decoder, the head of a label of the same name.
"""

import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor
from torch.nn import functional

from mixmfl.core.declarations import text, within
from mixmfl.core.tensor_store import MOST_TENSORS
from mixmfl.core.text import MOST_LINE, times
from mixmfl.data.labels import Labels
from mixmfl.networks.parameters import block_of
from mixmfl.networks.prototypes import State
from mixmfl.planning.architecture import is_residual
from mixmfl.planning.plans import Plans

NEAREST: Mapping[str, tuple[str, ...]] = {
    "t1": ("t1c", "pd"),
    "t1c": ("t1",),
    "t2": ("flair", "pd", "t2star"),
    "flair": ("t2", "pd"),
    "pd": ("t2", "t1"),
    "dwi": ("flair", "t2"),
    "adc": ("t2", "dwi"),
    "swi": ("t2star", "t2"),
    "t2star": ("swi", "t2"),
}
"""Modalities of a similar contrast, the most similar first."""

SHARED = "the shared encoder"

MEAN = "the mean of the channels"

_STEMS = "stages.0.0.convs.0.conv.weight", "stem.convs.0.conv.weight"
"""The first kernel of an encoder: of plain convolutions, and of residual blocks."""

_FIRST = ".convs.0.conv.weight", ".blocks.0.conv1.conv.weight"
"""Ends of the names of a stage's first kernel: of plain convolutions, and of residual blocks."""

_RESIDUAL = "blocks are residual ones, which add their input"

_MIX = "mix.convs.0.conv.weight"


@dataclass(frozen=True)
class Source:
    """A trained network, its parameters named as ours.

    Attributes:
        form: ``"decoupled"``, or ``"stacked"``: one encoder with a channel per modality.
        modalities: Modalities of the slots or channels, in order; empty for a channel of no known
            modality.
        trained: The modalities that were trained.
        heads: Names of the outputs, in order.
        weights: Parameters by name.
        spacing: mm per voxel, in array order.
        residual: Whether its encoders are of residual blocks.
        sha256: Digest of the checkpoint that it was read from; empty: of none.
    """

    form: str
    modalities: tuple[str, ...]
    trained: tuple[str, ...]
    heads: tuple[str, ...]
    weights: Mapping[str, Tensor]
    spacing: tuple[float, ...]
    residual: bool = False
    sha256: str = ""


def source_of(
    plans: Plans, configuration: str, trained: tuple[str, ...], weights: Mapping[str, Tensor]
) -> Source:
    """Return a network of ours as a source.

    Args:
        plans: Its plans.
        configuration: Its configuration, ``"2d"`` or ``"3d_fullres"``.
        trained: Modalities that it was trained on.
        weights: Its parameters by name.
    """
    planned = plans.configuration(configuration)
    return Source(
        form=plans.network.form,
        modalities=plans.modalities,
        trained=trained,
        heads=head_names(plans.labels),
        weights=weights,
        spacing=tuple(planned["spacing"]),
        residual=is_residual(planned["architecture"]["arch_kwargs"]),
    )


_Words = Annotated[str, text(10_000)]
_Count = Annotated[int, within(0, MOST_TENSORS)]


@dataclass(frozen=True)
class Part:
    """What was taken for a part of the network.

    Attributes:
        name: ``"tailored.t1"``, ``"shared"``, ``"encoder"``, ``"fusion"``, ``"decoder"``,
            ``"heads"`` or ``"memory"``.
        origin: What it was taken from.
        taken: Tensors that were taken.
        tensors: Tensors that the part has.
        left: Why others were not; empty where all were.
    """

    name: _Words
    origin: _Words
    taken: _Count
    tensors: _Count
    left: Annotated[str, text(MOST_LINE, least=0)] = ""


def head_names(labels: Labels) -> tuple[str, ...]:
    """Return what a network's outputs are of: labels by their index, or regions as declared."""
    if labels.has_regions:
        return tuple(labels.foreground)
    of_value = {value: name for name, (value, *_) in labels.foreground.items()}
    return tuple(of_value.get(value, "background") for value in labels.values)


def origin_of(modality: str, trained: Iterable[str]) -> str:
    """Return what the encoder of a modality starts from: itself, or the nearest that was trained.

    Where there is none of a similar contrast, it is ``SHARED``.
    """
    known = set(trained)
    return next((m for m in (modality, *NEAREST.get(modality, ())) if m in known), SHARED)


def take_weights(
    fresh: Mapping[str, Tensor], modalities: Sequence[str], heads: Sequence[str], source: Source
) -> tuple[State, list[Part]]:
    """Return first weights: those of another network where they fit, else the fresh ones.

    Args:
        fresh: Random first weights of the network, by name.
        modalities: Its modalities, in the order of its slots or channels.
        heads: Names of its outputs, in order.
        source: The other network.
    """
    reader = _Reader(fresh, tuple(modalities), tuple(heads), source)
    read = {name: reader.read(name, own) for name, own in fresh.items()}
    state, read_of_part = dict[str, Tensor](), dict[str, list[tuple[str, str]]]()
    for name, own in fresh.items():
        tensor, origin, reason = read[name]
        kernel = _kernel_of(name)
        if kernel != name and kernel in read and read[kernel][0] is None:
            # a bias or a norm of the same length says nothing behind another convolution
            tensor, origin, reason = None, "", ""
        state[name] = own if tensor is None else tensor.to(own.dtype, copy=True)
        part = "heads" if ".seg_layers." in name else block_of(name)
        read_of_part.setdefault(part, []).append((origin, reason))
    parts = []
    for part, entries in read_of_part.items():
        origins = dict.fromkeys(origin for origin, reason in entries if origin)
        reasons = dict.fromkeys(reason for _, reason in entries if reason)
        taken = sum(bool(origin) for origin, _ in entries)
        parts.append(
            Part(part, ", ".join(origins) or "-", taken, len(entries), _shortened(list(reasons)))
        )
    return state, parts


def _kernel_of(name: str) -> str:
    """Return the name of the kernel that a bias or norm belongs to; of a kernel its own."""
    layer = name.rpartition(".")[0]
    return f"{layer.removesuffix('.norm')}{'.conv' * layer.endswith('.norm')}.weight"


def _shortened(reasons: Sequence[str]) -> str:
    more = f"; and {len(reasons) - 1} more" if len(reasons) > 2 else ""
    return "; ".join(reasons[: 1 if more else 2]) + more


_Read = tuple[Tensor | None, str, str]
"""A tensor or None, what it is from, and why it is not taken or not whole."""


@dataclass(frozen=True)
class _Reader:
    """Finds for each parameter of a network what it is in another one; see ``take_weights``."""

    fresh: Mapping[str, Tensor]
    modalities: tuple[str, ...]
    heads: tuple[str, ...]
    source: Source

    def read(self, name: str, own: Tensor) -> _Read:
        """Return what there is for a parameter."""
        block, rest = block_of(name), ""
        if block in ("shared", "encoder") or block.startswith("tailored."):
            rest = name.removeprefix(f"{block}.")
            return self._encoder(block, rest, own)
        if block == "fusion":
            return self._fusion(name, own)
        return self._decoder(name, own)

    def _encoder(self, block: str, rest: str, own: Tensor) -> _Read:
        source = self.source
        residual = any(f"{block}.{stem}" in self.fresh for stem in _STEMS[1:])
        if source.residual and not residual:
            return None, "", f"its {_RESIDUAL}, and ours do not: preset resenc-m plans such ones"
        if residual and not source.residual:
            return None, "", f"our {_RESIDUAL}, and its do not: preset wide plans plain ones"
        if block == "encoder" and source.form != "stacked":
            return None, "", "one encoder of all modalities cannot be made of several"
        there, origin = self._encoder_there(block, rest)
        here, widths = (_stage_widths(*of) for of in ((self.fresh, block), (source.weights, there)))
        if here and widths and not any(map(operator.eq, here, widths)):
            setting = "shared_width" if block == "shared" else "tailored_width"
            reason = f"its stages have {_listed(widths)} channels, ours {_listed(here)}"
            return None, "", f"{reason}: plan with another {setting} to take it"
        theirs = source.weights.get(f"{there}.{rest}")
        if source.form == "stacked" and theirs is not None and rest in _STEMS:
            return self._stem(block, rest, theirs, own)
        return self._fitting(theirs, own, rest, origin)

    def _encoder_there(self, block: str, rest: str) -> tuple[str, str]:
        """Return which encoder of the source a parameter is read from, and what that is called."""
        source = self.source
        if source.form == "stacked":
            return "encoder", "encoder"
        if block == "shared":
            return "shared", "shared"
        origin = origin_of(block.removeprefix("tailored."), source.trained)
        if f"tailored.{origin}.{rest}" in source.weights:
            return f"tailored.{origin}", origin
        return "shared", SHARED  # without such a modality, or without tailored encoders

    def _stem(self, block: str, rest: str, theirs: Tensor, own: Tensor) -> _Read:
        """Split a stem ``(C, channels, *kernel)`` by channel.

        The norm behind it takes out its scale, so that a channel alone needs no factor.
        """
        if theirs.ndim != own.ndim:
            return self._fitting(theirs, own, rest, "")
        wanted = self.modalities if block == "encoder" else (block.removeprefix("tailored."),)
        columns, origins = [], []
        for modality in wanted:
            origin = MEAN if block == "shared" else origin_of(modality, self.source.trained)
            origins.append(MEAN if origin == SHARED else origin)
            columns.append(self._channel(theirs, origins[-1]))
        label = "by channel" if block == "encoder" else origins[0]
        return self._fitting(torch.cat(columns, dim=1), own, rest, label)

    def _channel(self, stem: Tensor, origin: str) -> Tensor:
        if origin == MEAN:
            return stem.mean(dim=1, keepdim=True)
        number = self.source.modalities.index(origin)
        return stem[:, number : number + 1]

    def _fusion(self, name: str, own: Tensor) -> _Read:
        source = self.source
        if source.form == "stacked":
            return None, "", "a plain U-Net has none"
        mix = source.weights.get(name)
        if mix is None or not name.endswith(_MIX):
            return self._fitting(mix, own, name, "same level")
        level = name.split(".")[1]
        mine, theirs = (_widths(weights, level) for weights in (self.fresh, source.weights))
        if mine != theirs:
            here, there = (" and ".join(map(str, widths)) for widths in (mine, theirs))
            return None, "", f"streams have {there} channels there, {here} here"
        tailored, shared = mine
        slots = (own.shape[1] - shared) // tailored if tailored else 0
        if slots <= 1 and mix.shape == own.shape:  # of one stream: nothing is by slot
            return self._fitting(mix, own, name, "same level")
        begin = [mix[:, :shared]]
        for modality in self.modalities:
            origin = origin_of(modality, source.trained)
            if origin == SHARED and shared == tailored:
                begin.append(mix[:, :shared])
            elif origin == SHARED:
                return None, "", f"no slot is like that of {modality}"
            else:
                start = shared + source.modalities.index(origin) * tailored
                begin.append(mix[:, start : start + tailored])
        return self._fitting(torch.cat(begin, dim=1), own, name, "by modality")

    def _decoder(self, name: str, own: Tensor) -> _Read:
        """Find what is at the same resolution: the decoder counts from the deepest one."""
        words = name.split(".")
        deeper = _decoder_stages(self.source.weights) - _decoder_stages(self.fresh)
        words[2] = str(int(words[2]) + deeper)
        theirs = self.source.weights.get(".".join(words))
        if words[1] != "seg_layers" or theirs is None:
            return self._fitting(theirs, own, name, "decoder")
        if theirs.ndim != own.ndim or theirs.shape[1:] != own.shape[1:]:
            return self._fitting(theirs, own, name, "")
        if len(theirs) != len(self.source.heads):
            return (
                None,
                "",
                f"{name} has {len(theirs)} heads, and its labels {len(self.source.heads)}",
            )
        if not theirs.to(own.dtype).isfinite().all():
            return None, "", f"{name} holds NaN or infinity"
        joined, new = own.clone(), []
        for row, head in enumerate(self.heads):
            if head in self.source.heads:
                joined[row] = theirs[self.source.heads.index(head)]
            else:
                new.append(head)
        if len(new) == len(self.heads):
            return None, "", f"its heads are of {', '.join(self.source.heads)}"
        return joined, "by label", f"new: {', '.join(new)}" if new else ""

    def _fitting(self, theirs: Tensor | None, own: Tensor, name: str, origin: str) -> _Read:
        if theirs is None:
            return None, "", f"{name} is not in it"
        if theirs.shape != own.shape:
            inflated = None if ".transpconvs." in name else _inflated(theirs, own)
            if inflated is None:
                return None, "", f"{name} is {times(theirs.shape)} there, {times(own.shape)} here"
            theirs, origin = inflated, f"{origin} (inflated)"
        if not theirs.to(own.dtype).isfinite().all():
            return None, "", f"{name} holds NaN or infinity"
        return theirs, origin, ""


def _inflated(kernel: Tensor, own: Tensor) -> Tensor | None:
    """Return a convolution's kernel with zeros around it, as large as ours; None: it does not fit.

    It computes the same: nnU-Net's kernels are 1 x 3 x 3 where slices are thick, 3 x 3 x 3 else.

    Args:
        kernel: ``(C, channels, *sides)``.
        own: Our kernel in its place.
    """
    if kernel.ndim < 4 or kernel.ndim != own.ndim or kernel.shape[:2] != own.shape[:2]:
        return None
    pairs = list(zip(own.shape[2:], kernel.shape[2:], strict=True))
    if any(ours < theirs or ours % 2 == 0 or theirs % 2 == 0 for ours, theirs in pairs):
        return None
    around = [(ours - theirs) // 2 for ours, theirs in reversed(pairs)]  # the last axis first
    return functional.pad(kernel, [side for n in around for side in (n, n)])


def _widths(weights: Mapping[str, Tensor], level: str) -> tuple[int, int]:
    """Return the channels of a tailored and of the shared encoder at a level; 0: there is none."""
    tailored = shared = 0
    for name, tensor in weights.items():
        if f".stages.{level}." in f".{name}" and name.endswith(_FIRST):
            if name.startswith("tailored."):
                tailored = tensor.shape[0]
            elif name.startswith("shared."):
                shared = tensor.shape[0]
    return tailored, shared


def _stage_widths(weights: Mapping[str, Tensor], block: str) -> list[int]:
    """Return the channels of an encoder's stages, from full resolution down."""
    of_stage = {
        int(name.removeprefix(f"{block}.stages.").partition(".")[0]): len(tensor)
        for name, tensor in weights.items()
        if name.startswith(f"{block}.stages.") and name.endswith(_FIRST)
    }
    return [of_stage[stage] for stage in sorted(of_stage)]


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


def _decoder_stages(weights: Mapping[str, Tensor]) -> int:
    return len({n.split(".")[2] for n in weights if n.startswith("decoder.transpconvs.")})
