"""A preprocessed case segmented from many subsets of its modalities, each encoded once.

Segmenting from every subset by itself encodes a modality as often as there are subsets with it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mixmfl.data.labels import Labels
from mixmfl.evaluation.reliability import Reliability
from mixmfl.evaluation.subset_dice import Subset
from mixmfl.inference.confidence import confidences, reliabilities
from mixmfl.inference.cpu_network import CPUNetwork, show_subsets
from mixmfl.inference.sliding_window import Predictor, predict_volume
from mixmfl.networks.base import SegmentationNet, place_modalities
from mixmfl.networks.prototypes import PrototypeMemory
from mixmfl.planning.nnunet_labels import label_manager
from mixmfl.planning.plans import Plans
from mixmfl.planning.preprocessed_case import PreprocessedCase

_AT_A_TIME = 1 << 18
"""Voxels of patches, times subsets, that are predicted at a time; a large patch is alone."""


@dataclass(frozen=True)
class SubsetMask:
    """What a case is segmented as from one subset of its modalities.

    Attributes:
        indices: Class indices ``(Z, Y, X)``.
        confidences: How sure the network is of each label or region, as ``confidences`` has it.
        logits: ``(heads, Z, Y, X)``.
        head: ``(Z, Y, X)`` bool, outside which the mask is background; None: no restriction.
    """

    indices: npt.NDArray[Any]
    confidences: Mapping[str, float]
    logits: Tensor
    head: npt.NDArray[Any] | None

    def reliabilities(self, case: PreprocessedCase, labels: Labels) -> dict[str, Reliability]:
        """Return how often the network is right at which probability, by label of the case."""
        return reliabilities(self.logits, labels, case.labels[:][0], case.labelled, self.head)


@torch.inference_mode()
def segment_subsets(
    runner: SegmentationNet | CPUNetwork,
    memory: PrototypeMemory,
    case: PreprocessedCase,
    subsets: Sequence[Subset],
    plans: Plans,
    configuration: str,
    device: torch.device,
) -> dict[Subset, SubsetMask]:
    """Segment a preprocessed case from each subset.

    Args:
        runner: The network on ``device``, which is put into prediction mode, or its optimised CPU
            form.
        memory: Memory of the federation, on ``device``.
        case: A case with all modalities of all subsets.
        subsets: Subsets of at least one modality each; may be empty.
        plans: Plans of the network.
        configuration: Configuration of the network, ``"2d"`` or ``"3d_fullres"``.
        device: Device to compute on.
    """
    if not subsets:
        return {}
    if isinstance(runner, SegmentationNet):
        runner.eval()
    planned = plans.configuration(configuration)
    used = [name for name in case.modalities if any(name in subset for subset in subsets)]
    channels = [case.modalities.index(name) for name in used]
    at_once = _AT_A_TIME // (len(subsets) * math.prod(planned["patch_size"]))
    logits = predict_volume(
        subsets_predictor(runner, memory, used, subsets),
        torch.from_numpy(case.images[:][channels]),
        planned["patch_size"],
        step=1.0,
        batch_size=max(1, at_once),
        device=device,
    ).cpu()
    manager = label_manager(plans.labels)
    # outside the head is background, as ``predict`` has it
    head = case.labels[:][0] >= 0 if planned["use_mask_for_norm"][0] else None
    masks = {}
    for subset, part in zip(subsets, logits.chunk(len(subsets)), strict=True):
        predicted: npt.NDArray[Any] = manager.convert_logits_to_segmentation(part).numpy()
        if head is not None:
            predicted[~head] = 0
        sure = confidences(part, plans.labels, head)
        masks[subset] = SubsetMask(np.asarray(predicted), sure, part, head)
    return masks


def subsets_predictor(
    runner: SegmentationNet | CPUNetwork,
    memory: PrototypeMemory,
    available: Sequence[str],
    subsets: Sequence[Subset],
) -> Predictor:
    """Return a function from images ``(B, K, *P)`` to logits ``(B, S * heads, *P)``.

    Args:
        runner: The network in prediction mode, or its optimised CPU form.
        memory: Memory of the federation.
        available: The K modalities.
        subsets: S subsets, each of at least one of these modalities.
    """
    if isinstance(runner, CPUNetwork):
        return runner.subsets_predictor(memory, available, subsets)
    shown = show_subsets(subsets, runner.modalities)  # (S, M)

    def predict(images: Tensor) -> Tensor:
        placed, present = place_modalities(images, available, runner.modalities)
        with torch.autocast(images.device.type, enabled=images.device.type == "cuda"):
            encoding = runner.encode(placed, present)
            views = (encoding.restricted_to(row.to(images.device)) for row in shown)
            logits = [runner.decode(view, memory) for view in views]
        return torch.cat(cast(list[Tensor], logits), dim=1)  # in training they were lists

    return predict
