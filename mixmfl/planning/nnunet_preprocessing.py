"""nnU-Net's preprocessing, and the way back to a case's own grid."""

import logging
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from nnunetv2.preprocessing.normalization.default_normalization_schemes import ZScoreNormalization
from torch import Tensor

from mixmfl.core.errors import DataError
from mixmfl.core.process_memory import available_bytes
from mixmfl.core.text import times
from mixmfl.data.labels import Labels
from mixmfl.planning.nnunet_labels import label_manager
from mixmfl.planning.nnunet_plans import NORMALIZATIONS, check_resampling
from mixmfl.planning.nonzero import box_of, head_mask
from mixmfl.planning.resampling import Resampling, axis_apart, resampled_shape
from mixmfl.planning.skull import tissue_level
from mixmfl.planning.slices import spacings, turn_of

log = logging.getLogger(__name__)

# What a case may become when it is resampled; more comes of a wrong spacing, not of patients
_MOST_AXIS = 1 << 13  # voxels along an axis

_MOST_RESAMPLED = 1 << 29  # voxels: two metres of a body at 1 mm

_MOST_TIMES = 2000  # as many voxels as before: a cube of 12 mm at 1 mm


def preprocess(
    images: Sequence[np.ndarray],
    labels: np.ndarray | None,
    spacing: Sequence[float],
    plans: Mapping[str, Any],
    configuration: str,
    described: Labels,
    labelled: Collection[str] | None = None,
) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Transpose, crop to non-zero, z-score and resample a training case as nnU-Net does.

    Args:
        images: One ``(Z, Y, X)`` array per modality that the case has.
        labels: ``(Z, Y, X)`` class indices.
        spacing: mm, (Z, Y, X).
        plans: nnU-Net's plans.
        configuration: ``"2d"`` or ``"3d_fullres"``.
        described: What the labels mean.
        labelled: Labels and regions that the case labels, from which patches are drawn; None: all.

    Returns:
        The images ``(K, Z', Y', X')`` float32; the labels ``(1, Z', Y', X')``, -1 outside the
        head; and what ``restore`` needs to go back, with nnU-Net's ``class_locations``.
    """
    # only here: with pandas and skimage they take long to import, and prediction does without
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
    from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape

    crop = _Crop(head_mask(images), spacing, plans, configuration)
    # nnU-Net resamples labels in double precision, a few times over
    crop.check_memory(4 * len(images) + 32)
    outside = crop.outside
    if labels is not None:
        cut = crop.cut(labels)[None].astype(np.int16)
        outside = np.where(cut == 0, outside, cut)  # what is labelled is inside
    data = np.stack([crop.normalised(image, outside) for image in images])
    options = check_resampling(crop.planned, "seg", "plans")
    seg = resample_data_or_seg_to_shape(outside, crop.shape, crop.before, crop.after, **options)
    properties = crop.properties()
    if labels is not None:
        manager = label_manager(described)
        classes = manager.foreground_regions if manager.has_regions else manager.foreground_labels
        if labelled is not None:
            labelled_values = [*described.consecutive().only(labelled).foreground.values()]
            classes = [w for w in classes if tuple(np.atleast_1d(w)) in labelled_values]
        if manager.has_ignore_label:  # patches are drawn from what is annotated
            classes = [*classes, [-1, *manager.all_labels]]
        properties["class_locations"] = DefaultPreprocessor._sample_foreground_locations(
            seg, classes
        )
    return data, seg.astype(np.int16 if seg.max() > 127 else np.int8), properties


def preprocess_each(
    images: Sequence[Callable[[], np.ndarray]],
    head: np.ndarray,
    spacing: Sequence[float],
    plans: Mapping[str, Any],
    configuration: str,
) -> tuple[np.ndarray, dict[str, Any]]:
    """Do to the images what ``preprocess`` does, one modality at a time.

    nnU-Net holds all of them three times over, once in double precision, for which a large case
    does not fit into memory.

    Args:
        images: Each returns an array ``(Z, Y, X)``, which is freed before the next is loaded.
        head: ``head_mask`` of all of them.
        spacing: mm, (Z, Y, X).
        plans: nnU-Net's plans.
        configuration: ``"2d"`` or ``"3d_fullres"``.

    Returns:
        The images ``(K, Z', Y', X')`` float32, and what ``restore`` needs to go back.

    Raises:
        DataError: The case is too thin, or memory does not hold it once it is resampled.
    """
    crop = _Crop(head, spacing, plans, configuration)
    crop.check_memory(4 * (len(images) + 1))
    resampled = np.empty((len(images), *crop.shape), dtype=np.float32)
    for channel, load in enumerate(images):
        resampled[channel] = crop.normalised(load(), crop.outside)
    return resampled, crop.properties()


class _Crop:
    """The box of a case's head, and how it is resampled to the planned voxels.

    Attributes:
        planned: nnU-Net's configuration.
        before: Spacing of the case, mm, axes in the planned order.
        after: Planned spacing.
        outside: ``(1, Z', Y', X')`` int8 of the cropped case: 0 in the head, -1 outside.
        shape: Voxels after resampling.
    """

    def __init__(
        self,
        head: np.ndarray,
        spacing: Sequence[float],
        plans: Mapping[str, Any],
        configuration: str,
    ) -> None:
        self.planned = plans["configurations"][configuration]
        self.spacing, self.turn = spacing, turn_of(spacing, plans)
        self.before, self.after = spacings(spacing, plans, configuration)
        turned = self.turn(head)
        self.full = turned.shape
        self.box = box_of(turned)
        self.outside = np.where(turned[self.box], np.int8(0), np.int8(-1))[None]
        self.shape = resampled_shape(self.outside.shape[1:], self.before, self.after)
        if 0 in self.shape:
            place = self.shape.index(0)
            raise DataError(
                f"the head is {self.outside.shape[1 + place]} voxels of {self.before[place]:g} mm "
                f"thick along {'ZYX'[self.turn.order[place]]}, less than half a voxel of the "
                f"{self.after[place]:g} mm that were planned; it is too thin for configuration "
                f"{configuration}"
            )
        most = min(_MOST_RESAMPLED, _MOST_TIMES * self.outside.size)
        if max(self.shape) > _MOST_AXIS or math.prod(self.shape) > most:
            raise DataError(
                f"{self._becomes()}; of such an image at most {most} are made, {_MOST_AXIS} along "
                "an axis. Check the spacing in its files"
            )

    def check_memory(self, bytes_per_voxel: int) -> None:
        """Refuse a case that memory does not hold once it is resampled."""
        needed, free = bytes_per_voxel * math.prod(self.shape), available_bytes()
        if needed > free:  # Linux would give it, and end this process when it is used
            raise DataError(
                f"{self._becomes()}, which take {needed / 1e9:.1f} GB; {free / 1e9:.1f} GB of "
                "memory are free. Check the spacing in its files, or use a machine with more memory"
            )

    def _becomes(self) -> str:
        return (
            f"its voxels of {times(self.before)} mm become {times(self.shape)} voxels of "
            f"{times(self.after)} mm"
        )

    def cut(self, volume: np.ndarray) -> np.ndarray:
        """Return a volume of the case, axes as planned, cropped to the head."""
        return self.turn(volume)[self.box]

    def normalised(self, image: np.ndarray, outside: np.ndarray) -> np.ndarray:
        """Return an image normalised by what is not ``outside`` (-1), and resampled."""
        one = np.array(self.cut(image)[None], dtype=np.float32)
        # what is planned for every modality, and the same for all of them
        masked = self.planned["use_mask_for_norm"][0]
        if self.planned["normalization_schemes"][0] == NORMALIZATIONS["head"]:
            scored = _head_scores(one[0], outside[0] >= 0 if masked else None)
        else:
            scored = ZScoreNormalization(masked, {}).run(one[0], outside[0])
        resampling = _resampling(
            self.planned, "data", scored.shape, self.shape, self.before, self.after
        )
        return resampling(torch.from_numpy(scored)).numpy()

    def properties(self) -> dict[str, Any]:
        """Return what ``restore`` needs to go back."""
        return {
            "spacing": [float(mm) for mm in self.spacing],
            "shape_before_cropping": self.full,
            "bbox_used_for_cropping": [[part.start, part.stop] for part in self.box],
            "shape_after_cropping_and_before_resampling": self.outside.shape[1:],
        }


_QUARTILES = 1.349  # standard deviations of a normal distribution between its quartiles


def _head_scores(image: np.ndarray, inside: np.ndarray | None) -> np.ndarray:
    """Return an image less its middle tissue, over the tissues' spread.

    Of a whole head a mean and a standard deviation say how much air, fat and bone there is, and
    where the brain comes to lie differs from patient to patient. Median and quartiles of what is
    brighter than air say it far less.

    Args:
        image: ``(Z, Y, X)``.
        inside: Where the score is needed, 0 elsewhere; None: everywhere.
    """
    tissue = image[image > tissue_level(image)]
    if not tissue.size:  # nothing above 0
        tissue = image.ravel()
    low, middle, high = np.percentile(tissue, (25, 50, 75))
    scored = (image - middle) / max((high - low) / _QUARTILES, 1e-8)
    if inside is not None:
        scored[~inside] = 0
    return scored.astype(np.float32)


def _resampling(
    planned: Mapping[str, Any],
    what: str,
    shape: Sequence[int],
    new_shape: Sequence[int],
    spacing: Sequence[float],
    new_spacing: Sequence[float],
) -> Resampling:
    """Return the planned resampling of ``"data"`` or ``"probabilities"``.

    Raises:
        PlansError: The plans name another function than nnU-Net's default.
    """
    asked = check_resampling(planned, what, "plans")
    return Resampling(
        tuple(map(int, shape)),
        tuple(map(int, new_shape)),
        asked["order"],
        axis_apart(asked["force_separate_z"], spacing, new_spacing),
        asked["order_z"],
    )


_PLANES = 8  # of the first axis, restored to full size at a time

Maker = Callable[[Tensor], np.ndarray]
"""Makes an array ``(..., n, Y, X)`` of n planes of logits, ``(heads, n, Y, X)``."""


def class_indices_of(described: Labels) -> Maker:
    """Return what makes class indices ``(n, Y, X)`` of logits."""
    order = described.consecutive().regions_class_order if described.has_regions else None
    kind = np.uint8 if len(described.values) < 256 else np.uint16

    def paint(planes: Tensor) -> np.ndarray:
        if order is None:
            return planes.argmax(dim=0).numpy().astype(kind)
        painted = np.zeros(planes.shape[1:], dtype=kind)
        for value, one in zip(order, planes.numpy(), strict=True):
            painted[one > 0] = value  # a probability above one half
        return painted

    return paint


def probabilities_of(described: Labels) -> Maker:
    """Return what makes probabilities ``(heads, n, Y, X)`` float16 of logits."""
    of_logits = label_manager(described).apply_inference_nonlin
    return lambda planes: of_logits(planes).half().numpy()


def restore(
    logits: Tensor,
    properties: Mapping[str, Any],
    plans: Mapping[str, Any],
    configuration: str,
    makers: Sequence[Maker],
) -> list[np.ndarray]:
    """Undo ``preprocess`` on logits ``(heads, Z', Y', X')``, and return what each maker makes.

    Planes are restored a few at a time, so that no class is in memory in full size.

    Returns:
        Arrays ``(..., Z, Y, X)`` on the grid that ``preprocess`` was given, 0 outside its box.
    """
    back = _back(logits, properties, plans, configuration)
    made: list[np.ndarray] = []
    for start in range(0, back.after[0], _PLANES):
        planes = back.planes(logits, start, start + _PLANES)
        parts = [make(planes) for make in makers]
        made = made or [np.empty((*p.shape[:-3], *back.after), p.dtype) for p in parts]
        for whole, part in zip(made, parts, strict=True):
            whole[..., start : start + _PLANES, :, :] = part
    return [_uncrop(whole, properties, plans) for whole in made]


def _back(
    logits: Tensor, properties: Mapping[str, Any], plans: Mapping[str, Any], configuration: str
) -> Resampling:
    planned = plans["configurations"][configuration]
    target = properties["shape_after_cropping_and_before_resampling"]
    before, after = spacings(properties["spacing"], plans, configuration)
    return _resampling(planned, "probabilities", logits.shape[1:], target, after, before)


def onto_grid(
    logits: Tensor,
    spacing: Sequence[float],
    shape: Sequence[int],
    new_spacing: Sequence[float],
    plans: Mapping[str, Any],
    configuration: str,
) -> Tensor:
    """Return logits ``(heads, *shape)`` float32 on the grid of another configuration of a case.

    Both grids are of the same box, as ``preprocess`` crops for every configuration alike.

    Args:
        logits: ``(heads, Z, Y, X)`` on the grid of ``configuration``.
        spacing: mm, (Z, Y, X) of that grid.
        shape: Voxels of the other grid.
        new_spacing: mm of the other grid.
        plans: nnU-Net's plans, whose resampling of probabilities of ``configuration`` is used.
        configuration: ``"2d"`` or ``"3d_fullres"``.
    """
    planned = plans["configurations"][configuration]
    way = _resampling(planned, "probabilities", logits.shape[1:], shape, spacing, new_spacing)
    return way.planes(logits, 0, int(shape[0]))


def _uncrop(
    cropped: np.ndarray, properties: Mapping[str, Any], plans: Mapping[str, Any]
) -> np.ndarray:
    """Put a cropped array ``(..., Z, Y, X)`` into the whole grid, 0 around it, axes as before."""
    if cropped.ndim > 3:
        return np.stack([_uncrop(each, properties, plans) for each in cropped])
    whole = np.zeros(properties["shape_before_cropping"], dtype=cropped.dtype)
    whole[tuple(slice(a, b) for a, b in properties["bbox_used_for_cropping"])] = cropped
    return turn_of(properties["spacing"], plans).back(whole)
