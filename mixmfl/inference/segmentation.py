"""From a loaded case to its mask, by one model or the mean of several.

``case_preparation.prepare`` comes first and needs no network; ``segment`` runs it.
"""

import dataclasses
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from mixmfl.core.errors import DataError, ModelError
from mixmfl.core.process_memory import available_bytes, give_back_memory
from mixmfl.core.text import times
from mixmfl.data.load_case import LoadedCase
from mixmfl.evaluation.reliability import Calibration
from mixmfl.evaluation.small_components import remove_small
from mixmfl.inference.case_preparation import (
    AS_THEY_ARE,
    ModelInput,
    Prepared,
    Recipe,
    extraction_for,
    prepare,
)
from mixmfl.inference.confidence import confidences, heads_of, volume_ranges
from mixmfl.inference.predictor import patches_at_a_time
from mixmfl.inference.sliding_window import Predictor, predict_volume
from mixmfl.inference.steps import STEP
from mixmfl.planning.brains import BrainExtraction
from mixmfl.planning.model_card import misuse_of_any
from mixmfl.planning.nnunet_labels import label_manager
from mixmfl.planning.nnunet_plans import largest_map
from mixmfl.planning.nnunet_preprocessing import Maker, class_indices_of, probabilities_of, restore
from mixmfl.planning.plans import Plans

Array = npt.NDArray[Any]


class SegmentationModel(Protocol):
    """What the segmentation of a case needs of a model; ``model.Model`` is one."""

    @property
    def plans(self) -> Plans:
        """The plans that the model was trained with."""

    @property
    def configuration(self) -> str:
        """``"2d"`` or ``"3d_fullres"``."""

    @property
    def recipe(self) -> Recipe:
        """What preprocessing needs to know of the model."""

    @property
    def device(self) -> torch.device:
        """The device that the model computes on."""

    @property
    def calibrations(self) -> Mapping[str, Calibration]:
        """Curves of calibrated probabilities, by label or region, where they are known."""

    @property
    def component_shares(self) -> Mapping[str, float]:
        """The share of a label's largest component below which others are removed, by label."""

    def predictor(self, available: Sequence[str]) -> Predictor:
        """Return a function from images ``(B, K, *P)`` of the available modalities to logits."""


@dataclass(frozen=True)
class Options:
    """How a network is run over a volume.

    Attributes:
        step: Distance of neighbouring patches, as a share of the patch.
        mirror: Whether to average over mirrored patches as well: slower, a little better.
        small_parts: By label, the share of its largest component below which others are removed,
            as measured of the mean of these models; None: what all of them would remove goes.
    """

    step: float = STEP
    mirror: bool = False
    small_parts: Mapping[str, float] | None = None


def check_models_agree(recipes: Sequence[Recipe]) -> None:
    """Check that models can be averaged.

    Raises:
        ModelError: There is no model, or the models' labels differ.
    """
    if not recipes:
        raise ModelError("at least one model is needed")
    for other in recipes[1:]:
        if (change := recipes[0].plans.labels.difference(other.plans.labels)) is not None:
            raise ModelError(f"the models cannot be averaged, their labels differ: {change}")


def predict_case(
    models: Sequence[SegmentationModel],
    case: LoadedCase,
    options: Options | None = None,
    brains: BrainExtraction = AS_THEY_ARE,
    force: bool = False,
) -> Array:
    """Return class indices ``(Z, Y, X)`` on a case's canonical grid.

    What is doubtful about the case is reported by ``warnings``.

    Args:
        models: One model, or several that are averaged; see ``segment``.
        case: A case with at least one modality of each model.
        options: How the networks are run.
        brains: How brains are extracted at this place; the models say whether they are.
        force: Whether a case is segmented that the models were not made for.

    Raises:
        DataError: A model knows none of the case's modalities, or the case is too thin; or
            it is not what a model was made for, or far from what it was planned for.
        MixmflError: ``extraction_for`` raised it.
    """
    if reason := misuse_of_any((model.plans.card for model in models), {}):
        if not force:
            raise DataError(f"case {case.name!r}: {reason}. force=True segments it all the same")
        warnings.warn(f"case {case.name!r}: {reason}", stacklevel=3)
    recipes = [model.recipe for model in models]
    brains = extraction_for(recipes, brains)
    case = dataclasses.replace(case, images=dict(case.images))  # prepare takes them out
    prepared = prepare(case, recipes, brains, force)
    for doubt in (*case.warnings, *prepared.doubts):
        warnings.warn(f"case {case.name!r}: {doubt}", stacklevel=3)
    return segment(models, prepared, options or Options()).indices


@dataclass(frozen=True)
class Segmented:
    """What the networks make of a case.

    Attributes:
        indices: Class indices ``(Z, Y, X)`` on the case's canonical grid.
        confidences: How sure a single model is of each label or region, as ``confidences`` has it;
            empty with several models, whose mean was never measured on validation cases.
        volume_ranges_ml: Ranges of the volumes, as ``confidence.volume_ranges`` returns them; empty
            with several models, too.
        probabilities: By label or region its probability ``(Z, Y, X)`` float32, 0 outside the head,
            calibrated where the model is; empty unless asked for.
        removed: By label, the voxels that became background with small components, if any.
        component_shares: The share of a label's largest component below which others were removed.
    """

    indices: Array
    confidences: Mapping[str, float]
    volume_ranges_ml: Mapping[str, tuple[float, float]]
    probabilities: Mapping[str, Array]
    removed: Mapping[str, int]
    component_shares: Mapping[str, float]


def segment(
    models: Sequence[SegmentationModel],
    prepared: Prepared,
    options: Options,
    probabilities: bool = False,
) -> Segmented:
    """Run the networks over a case.

    Models that share their input, such as the folds of a run, are averaged in their logits, and
    these results in their probabilities, as nnU-Net does with folds and with configurations. Small
    components go as the options say, or those that all models would remove.

    Args:
        models: One model, or several that are averaged.
        prepared: The case, prepared for these models.
        options: How the networks are run.
        probabilities: Whether to return the probabilities, too, which takes memory.
    """
    described = models[0].plans.labels
    sharing: dict[int, list[SegmentationModel]] = {}
    for model, case in zip(models, prepared.inputs, strict=True):
        sharing.setdefault(id(case), []).append(model)
    sure: Mapping[str, float] = {}
    ranges: Mapping[str, tuple[float, float]] = {}
    curves: Mapping[str, Calibration] = {}  # of the mean of several nothing was measured
    if len(sharing) == 1:
        case = prepared.inputs[0]
        logits = _mean_logits(models, case, options)
        if len(models) == 1:
            curves = models[0].calibrations
            inside = None if prepared.head is None else np.any(case.images != 0, axis=0)
            sure = confidences(logits, described, inside)
            ranges = volume_ranges(logits, described, curves, _voxel_ml(case), inside)
        makers = [class_indices_of(described)]
        if probabilities:
            makers.append(probabilities_of(described))
        mask, *restored = _restore(models[0], case, logits, makers)
    else:
        cases = {id(case): case for case in prepared.inputs}
        restored = [_mean_probabilities([(cases[at], sharing[at]) for at in sharing], options)]
        mask = label_manager(described).convert_probabilities_to_segmentation(restored[0])
    shares: Mapping[str, Array] = {}
    if probabilities:
        shares = {
            name: _calibrated(restored[0][head], curves.get(name))
            for name, head in heads_of(described).items()
        }
    if prepared.head is not None:
        mask[~prepared.head] = 0
        for share in shares.values():
            share[~prepared.head] = 0
    small = _common_shares(models) if options.small_parts is None else options.small_parts
    mask, removed = remove_small(mask, described.consecutive(), small)
    return Segmented(mask, sure, ranges, shares, removed, small)


def _restore(
    model: SegmentationModel, case: ModelInput, logits: torch.Tensor, makers: Sequence[Maker]
) -> list[Array]:
    """Return what makers make of the logits of a model's configuration, on the case's grid."""
    return restore(logits, case.properties, model.plans.nnunet, model.configuration, makers)


def _mean_probabilities(
    groups: Sequence[tuple[ModelInput, Sequence[SegmentationModel]]], options: Options
) -> Array:
    """Return the mean probabilities ``(heads, Z, Y, X)`` of all models.

    Args:
        groups: Inputs, each with the models that share it.
        options: How the networks are run.
    """
    total: Array | None = None
    for case, alike in groups:
        makers = [probabilities_of(alike[0].plans.labels)]
        (each,) = _restore(alike[0], case, _mean_logits(alike, case, options), makers)
        each *= len(alike)
        total = each if total is None else np.add(total, each, out=total)
    assert total is not None
    total /= sum(len(alike) for _, alike in groups)
    return total


def _common_shares(models: Sequence[SegmentationModel]) -> dict[str, float]:
    """Return by label the share of its largest component below which all models remove others."""
    each = [model.component_shares for model in models]
    names = [name for name in each[0] if all(name in shares for shares in each)]
    return {name: min(shares[name] for shares in each) for name in names}


def _voxel_ml(case: ModelInput) -> float:
    """Return the volume of a voxel after resampling."""
    cropped = case.properties["shape_after_cropping_and_before_resampling"]
    before = math.prod(cropped) * math.prod(case.properties["spacing"])
    return before / math.prod(case.images.shape[1:]) / 1000


def _calibrated(probability: Array, calibration: Calibration | None) -> Array:
    return probability.astype(np.float32) if calibration is None else calibration(probability)


_MAPS = 3
"""Least number of feature maps in memory at once, in single precision."""

_PLANES = 16
"""Least number of planes of a volume whose outputs are in memory at once, in single precision."""


def _mean_logits(
    models: Sequence[SegmentationModel], case: ModelInput, options: Options
) -> torch.Tensor:
    first = _logits(models[0], case, options)
    if len(models) == 1:
        return first
    total = first.float()
    for model in models[1:]:
        total += _logits(model, case, options)
    return (total / len(models)).to(first.dtype)


def _bytes_needed(planned: Mapping[str, Any], heads: int, shape: Sequence[int]) -> int:
    """Return the memory that maps and outputs of a volume ``(Z, Y, X)`` take at least."""
    tile = (1, *planned["patch_size"])[-3:]
    z, y, x = map(max, shape, tile)
    outputs = 2 * z + 4 * max(tile[0], _PLANES)  # of a voxel of a plane, and of one label
    return 4 * _MAPS * largest_map(planned) + heads * y * x * outputs


def _logits(model: SegmentationModel, case: ModelInput, options: Options) -> torch.Tensor:
    planned = model.plans.configuration(model.configuration)
    labels = model.plans.labels
    heads = max(len(labels.values), len(labels.foreground))
    needed, free = _bytes_needed(planned, heads, case.images.shape[1:]), available_bytes()
    if model.device.type == "cpu" and needed > free:
        raise DataError(
            f"{times(case.images.shape[1:])} voxels, in patches of {times(planned['patch_size'])}, "
            f"take {needed / 1e9:.1f} GB in this model of {heads} labels; {free / 1e9:.1f} GB of "
            "memory are free. Use a machine with more memory"
        )
    logits = predict_volume(
        model.predictor(case.available),
        torch.from_numpy(case.images),
        planned["patch_size"],
        step=options.step,
        mirror_axes=range(len(planned["patch_size"])) if options.mirror else (),
        batch_size=patches_at_a_time(planned, model.device),
        device=model.device,
        dtype=torch.float16,  # a large volume's logits take the most memory of all
    ).cpu()
    give_back_memory()  # that of feature maps, which the rest of a case does not need
    if not logits.sum(dtype=torch.float32).isfinite():  # NaN would be background in the mask
        raise DataError(
            "the network's outputs for this case are not finite, so there is no mask; look for "
            "extreme values in its images, or use another model"
        )
    return logits
