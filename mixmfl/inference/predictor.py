"""Prediction of a preprocessed case by a network."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

from mixmfl.inference.sliding_window import Predictor, predict_volume
from mixmfl.networks.base import SegmentationNet, place_modalities
from mixmfl.networks.prototypes import PrototypeMemory
from mixmfl.planning.nnunet_labels import label_manager
from mixmfl.planning.plans import Plans
from mixmfl.planning.preprocessed_case import PreprocessedCase

_TOGETHER = 1 << 16
"""Voxels of patches that are predicted at once on a CPU."""


@torch.inference_mode()
def segment_stored(
    network: SegmentationNet,
    memory: PrototypeMemory,
    case: PreprocessedCase,
    used: Sequence[str],
    plans: Plans,
    configuration: str,
    device: torch.device,
) -> npt.NDArray[Any]:
    """Return class indices ``(Z, Y, X)`` of a preprocessed case, predicted from ``used``.

    Args:
        network: The network on ``device``, which is put into prediction mode.
        memory: Memory of the federation, on ``device``.
        case: A case with all of ``used``.
        used: The modalities to predict from, at least one.
        plans: Plans of the network.
        configuration: Configuration of the network, ``"2d"`` or ``"3d_fullres"``.
        device: Device to compute on.
    """
    planned = plans.configuration(configuration)
    network.eval()
    channels = [case.modalities.index(name) for name in used]
    logits = predict_volume(
        case_predictor(network, memory, used),
        torch.from_numpy(case.images[:][channels]),
        planned["patch_size"],
        step=1.0,
        batch_size=patches_at_a_time(planned, device),
        device=device,
    )
    predicted = label_manager(plans.labels).convert_logits_to_segmentation(logits.cpu()).numpy()
    if planned["use_mask_for_norm"][0]:
        predicted[case.labels[:][0] < 0] = 0  # outside the head, as ``predict`` has it
    return predicted


def case_predictor(
    network: SegmentationNet, memory: PrototypeMemory, available: Sequence[str]
) -> Predictor:
    """Return a function from images ``(B, K, *P)`` of the available modalities to logits."""

    def predict(images: Tensor) -> Tensor:
        placed, present = place_modalities(images, available, network.modalities)
        with torch.autocast(images.device.type, enabled=images.device.type == "cuda"):
            return network(placed, present, memory)

    return predict


def patches_at_a_time(planned: Mapping[str, Any], device: torch.device) -> int:
    """Return how many patches are predicted at once.

    On a CPU these are small ones alone: the maps of two large ones do not fit into its caches, and
    take twice the memory. Elsewhere it is the planned batch, which fits where training fits it with
    its gradients.
    """
    if device.type == "cpu":
        return max(1, _TOGETHER // math.prod(planned["patch_size"]))
    return int(planned["batch_size"])
