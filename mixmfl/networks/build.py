"""From plans to a network, and the sizes of its prototypes."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from types import MappingProxyType

import torch
from torch import Tensor

from mixmfl.networks.anchored import AnchoredNet
from mixmfl.networks.base import SegmentationNet
from mixmfl.networks.mdmnet import MDMNet
from mixmfl.networks.parameters import check_forms, shapes_of
from mixmfl.networks.prototypes import Prototypes
from mixmfl.networks.unet import StackedNet
from mixmfl.planning.architecture import stream_channels
from mixmfl.planning.nnunet_labels import label_manager
from mixmfl.planning.plans import Plans


def build_network(plans: Plans, configuration: str, seed: int) -> SegmentationNet:
    """Build the planned network, weights drawn from ``seed``; torch's generator is left alone."""
    planned = plans.configuration(configuration)["architecture"]["arch_kwargs"]
    heads = label_manager(plans.labels).num_segmentation_heads
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if plans.network.form == "stacked":
            return StackedNet(plans.modalities, heads, planned)
        if plans.network.form == "anchored":
            return AnchoredNet(plans.modalities, heads, planned, plans.network)
        return MDMNet(plans.modalities, heads, planned, plans.network)


@dataclass(frozen=True)
class PrototypeSizes:
    """Sizes of the prototypes of one modality at one level.

    Attributes:
        rows: Rows of every part, one per class.
        tailored: Channels of a value.
        voxels: Voxels of a patch at this level.
    """

    rows: int
    tailored: int
    voxels: int

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every part, in the order of ``prototypes.PARTS``."""
        return {"values": (self.rows, self.tailored), "counts": (self.rows,)}

    def unseen(self) -> Prototypes:
        """Return prototypes of classes that were never seen."""
        return Prototypes(**{part: torch.zeros(shape) for part, shape in self.shapes.items()})


def prototype_sizes(plans: Plans, configuration: str) -> dict[int, PrototypeSizes]:
    """Return the sizes of prototypes by level of compensation; empty where there is no memory."""
    planned = plans.configuration(configuration)
    architecture = planned["architecture"]["arch_kwargs"]
    levels = architecture["n_stages"]
    sizes = {}
    for level in sorted({level % levels for level in plans.network.compensation_levels}):
        channels = architecture["features_per_stage"][level]
        patch = list(planned["patch_size"])
        for strides in architecture["strides"][: level + 1]:
            patch = [-(-size // by) for size, by in zip(patch, strides, strict=True)]
        sizes[level] = PrototypeSizes(
            len(plans.labels.values),
            stream_channels(plans.network.tailored_width, channels),
            math.prod(patch),
        )
    return sizes


def memory_shapes(
    modalities: Iterable[str], sizes: Mapping[int, PrototypeSizes]
) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor that the memory of these modalities can have, by name."""
    return {
        f"memory.{modality}.{level}.{part}": shape
        for modality in modalities
        for level, size in sizes.items()
        for part, shape in size.shapes.items()
    }


def build_outline(plans: Plans, configuration: str) -> SegmentationNet:
    """Build the planned network in prediction mode with shapes alone: weights take no memory."""
    with torch.device("meta"):
        return build_network(plans, configuration, seed=0).eval()


def parameter_shapes(plans: Plans, configuration: str) -> Mapping[str, tuple[int, ...]]:
    """Return the shape of every parameter of the planned network, by name.

    Shapes are kept, as building a network takes longer than comparing a stored state with it.
    """
    decides = [
        plans.modalities,
        plans.labels.to_json(),
        asdict(plans.network),
        plans.configuration(configuration)["architecture"],
    ]
    return _shapes(_Planned(json.dumps(decides, sort_keys=True), plans, configuration))


@dataclass(frozen=True)
class _Planned:
    """Plans of a network, equal to others by what decides on the network, as JSON."""

    decides: str
    plans: Plans = field(compare=False)
    configuration: str = field(compare=False)


@lru_cache(maxsize=8)
def _shapes(planned: _Planned) -> Mapping[str, tuple[int, ...]]:
    return MappingProxyType(shapes_of(build_outline(planned.plans, planned.configuration)))


def check_memory(state: Mapping[str, Tensor], plans: Plans, configuration: str) -> None:
    """Check that a state is memory as planned, in whole places; none of it is read.

    Raises:
        ValueError: A tensor is missing, is not planned, or has another shape or type.
    """
    shapes = memory_shapes(plans.modalities, prototype_sizes(plans, configuration))
    places = {name.rpartition(".")[0] for name in state}
    needed = {name: shape for name, shape in shapes.items() if name.rpartition(".")[0] in places}
    if unmatched := sorted(state.keys() ^ needed.keys()):
        raise ValueError(f"{unmatched[0][:80]!r} is missing, or is not planned")
    check_forms(state, needed)
