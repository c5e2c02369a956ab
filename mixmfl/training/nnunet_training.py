"""nnU-Net's patches, augmentation and loss, as its trainer sets them up."""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss, DC_and_CE_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from torch import Tensor

from mixmfl.data.labels import Labels
from mixmfl.planning.nnunet_labels import label_manager

log = logging.getLogger(__name__)


class Loss(NamedTuple):
    """The loss of a batch.

    Attributes:
        total: What is minimised, a scalar: the Dice part and the cross-entropy part.
        dice: The Dice part of it, a scalar from -1 to 0, without a gradient.
    """

    total: Tensor
    dice: Tensor


Compare = Callable[[Any, Sequence[Tensor]], Loss]
"""Takes the lists of logits and of targets per supervised resolution, finest first."""


class PatchChooser:
    """Chooses patches as nnU-Net's data loader does, at random or centred on foreground."""

    def __init__(self, patch_size: Sequence[int], described: Labels) -> None:
        """Args: patch_size: the network's, in voxels; described: the labels of the plans."""
        geometry = _augmentation_geometry(tuple(patch_size))
        cases = SimpleNamespace(identifiers=["any"])
        self._loader = nnUNetDataLoader(
            cases, 1, geometry.initial_patch_size, patch_size, label_manager(described)
        )

    def box(
        self, shape: Sequence[int], foreground: bool, locations: Mapping[Any, np.ndarray]
    ) -> list[list[int]]:
        """Return ``[[start, end], …]`` per axis; it may exceed an image that is smaller.

        Uses numpy's global generator, as nnU-Net does: call it inside ``batches.seeded``.
        """
        starts, ends = self._loader.get_bbox(np.array(shape), foreground, locations)
        return [[int(a), int(b)] for a, b in zip(starts, ends, strict=True)]


@cache
def training_transforms(
    patch_size: tuple[int, ...],
    strides: tuple[tuple[int, ...], ...],
    modalities: int,
    masked: bool,
) -> Any:
    """Return nnU-Net's augmentation for an image with ``modalities`` channels.

    It returns the labels as class indices at every resolution of deep supervision.
    """
    geometry = _augmentation_geometry(patch_size)
    composed = _trainer().get_training_transforms(
        patch_size,
        geometry.rotation,
        supervision_scales(strides),
        geometry.mirror_axes,
        geometry.flat,
        use_mask_for_norm=[masked] * modalities,
    )
    for transform in composed.transforms:
        inner = getattr(transform, "transform", transform)
        if isinstance(inner, GaussianBlurTransform):
            # a benchmark would choose the faster of direct and Fourier convolution, and results
            # would depend on the machine's load
            inner.benchmark = False
    return composed


@cache
def _augmentation_geometry(patch_size: tuple[int, ...]) -> SimpleNamespace:
    trainer = SimpleNamespace(
        configuration_manager=SimpleNamespace(patch_size=list(patch_size)),
        print_to_log_file=lambda *_: None,
    )
    rotation, flat, initial, mirror = (
        _trainer().configure_rotation_dummyDA_mirroring_and_inital_patch_size(trainer)
    )
    return SimpleNamespace(
        rotation=rotation, flat=flat, initial_patch_size=initial, mirror_axes=mirror
    )


def _trainer() -> Any:
    # importing it takes a third of the memory and most of the time; only training needs it
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    return nnUNetTrainer


def supervision_scales(strides: Sequence[Sequence[int]]) -> list[list[float]]:
    """Return the resolution of every supervised output as a share of the patch's, finest first."""
    return [[float(s) for s in row] for row in 1 / np.cumprod(np.vstack(strides), axis=0)][:-1]


def supervision_targets(classes: Sequence[Tensor], labels: Labels) -> list[Tensor]:
    """Convert class indices to the targets of ``supervision_loss``, at every resolution.

    Args:
        classes: Class indices ``(B, 1, *P)`` per resolution.
        labels: Labels of the plans.

    Returns:
        Without regions ``(B, 1, *P)`` int64, unchanged. With regions ``(B, R, *P)`` bool, one
        channel per region in the order declared, and last the ignored voxels where the labels
        have an ignore value.
    """
    if not labels.has_regions:
        return [item.long() for item in classes]
    indices = labels.consecutive()
    regions = [*indices.foreground.values()]
    if indices.ignore is not None:
        regions.append((indices.ignore,))
    members = [torch.tensor(region) for region in regions]
    return [
        torch.cat([torch.isin(item, region.to(item)) for region in members], dim=1)
        for item in classes
    ]


def supervision_loss(
    described: Labels, outputs: int, batch_dice: bool, own: Labels | None = None
) -> Compare:
    """Return nnU-Net's loss: Dice + CE (with regions: Dice + BCE), halved per coarser output.

    The loss takes the lists of logits and of ``supervision_targets``, finest first.

    Args:
        described: Labels of the plans.
        outputs: Number of supervised resolutions.
        batch_dice: Whether Dice is computed over the whole batch.
        own: Labels of cases that label only a part of ``described``; None: all of it.
    """
    dice = {"batch_dice": batch_dice, "smooth": 1e-5, "ddp": False}
    ignored = (own or described).consecutive().ignore
    if described.has_regions:
        loss = DC_and_BCE_loss(
            {},
            {**dice, "do_bg": True},
            use_ignore_label=ignored is not None,
            dice_class=MemoryEfficientSoftDiceLoss,
        )
    else:
        loss = DC_and_CE_loss(
            {**dice, "do_bg": False},
            {},
            ignore_label=ignored,
            dice_class=MemoryEfficientSoftDiceLoss,
        )
    weights = np.array([0.5**i for i in range(outputs)])
    if outputs > 1:
        weights[-1] = 0  # as nnU-Net: the coarsest output is too coarse to learn from
    weights = weights / weights.sum()
    supervised = DeepSupervisionWrapper(loss, weights)
    seen: list[Tensor] = []  # by resolution; nnU-Net returns the sum of both parts alone
    loss.dc.register_forward_hook(lambda module, given, found: seen.append(found.detach()))

    def compare(logits: Sequence[Tensor], targets: Sequence[Tensor]) -> Loss:
        seen.clear()
        total = supervised(logits, targets)
        # a resolution of weight 0 is the last, and not computed
        dice = [each * float(weight) for each, weight in zip(seen, weights, strict=False)]
        return Loss(total, torch.stack(dice).sum())

    return compare
