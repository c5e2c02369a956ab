"""Imputation of the features of missing modalities, for training only.

Where the true class of a voxel is known, the memory gives the mean and the spread of a modality's
tailored features there; the voxel's deviation is copied from an available modality. So a site
trains the decoder to read modalities that it never held, and no image has to be shared.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional

from mixmfl.networks.base import Encoding, stack_slots
from mixmfl.networks.prototypes import PrototypeMemory, Prototypes, can_recall, classes_at

FURTHEST = 4.0
"""The most standard deviations by which an imputed feature may differ from its class."""

_SLOPE = 0.01  # of the LeakyReLU that encoders end in


def deviations(features: Tensor, prototypes: Prototypes, classes: Tensor) -> Tensor:
    """Return how far features are from those of their class, in standard deviations.

    Args:
        features: ``(B, C, *P)``, tailored features of one modality.
        prototypes: Prototypes of that modality, one per class.
        classes: ``(B, *P)`` integer class of each voxel; one outside ``0 … K - 1`` (outside the
            head, or the ignore label) gives zero, and so does a channel without any spread.

    Returns:
        ``(B, C, *P)`` float32, within ``FURTHEST`` of zero.
    """
    value, spread, known = _of_class(prototypes, classes)
    apart = (features.float() - value) / spread.clamp(min=torch.finfo(torch.float32).tiny)
    return torch.where(known & (spread > 0), apart.clamp(-FURTHEST, FURTHEST), 0)


def impute(prototypes: Prototypes, deviations: Tensor, classes: Tensor) -> Tensor:
    """Return features of a missing modality, from its prototypes and given deviations.

    At every voxel ``leaky_relu(value + spread · deviation)``, with the value and spread of its
    class; the encoders end in that activation. (Our choice.)

    Args:
        prototypes: Prototypes of the modality, one per class. A class never seen gives zero.
        deviations: ``(B, C, *P)``, in standard deviations.
        classes: ``(B, *P)`` integer class of each voxel; one outside ``0 … K - 1`` gives zero.

    Returns:
        ``(B, C, *P)`` float32.
    """
    value, spread, known = _of_class(prototypes, classes)
    return torch.where(known, functional.leaky_relu(value + spread * deviations, _SLOPE), 0)


def impute_missing(
    encoding: Encoding,
    modalities: Sequence[str],
    memory: PrototypeMemory,
    classes: Tensor,
    probability: float,
    generator: torch.Generator,
) -> Encoding | None:
    """Return the encoding with some of the missing modalities imputed, each by its own draw.

    Each takes the deviations of one available modality, drawn for it; no gradient flows back.

    Args:
        encoding: An encoding with a tailored stream; all on one device.
        modalities: The modalities of the axis M.
        memory: Memory of the federation; modalities unknown to it at any level have no part.
        classes: ``(B, 1, *P)`` true class of each voxel at full resolution.
        probability: Probability that a modality which is missing and known is imputed.
        generator: Random generator of the draws, on the same device.

    Returns:
        The encoding; None where nothing is imputed.
    """
    levels = range(len(encoding.tailored))
    known = torch.tensor(
        [all(can_recall(memory, name, level) for level in levels) for name in modalities],
        device=classes.device,
    )
    donors = encoding.present & known  # (B, M)
    cases, number = donors.shape

    def draw(*shape: int) -> Tensor:
        return torch.rand(shape, device=classes.device, generator=generator)

    imputed = ~encoding.present & known & (draw(cases, number) < probability)
    imputed &= donors.any(dim=1, keepdim=True)
    # of every imputed modality: the available one with the highest draw
    donor = draw(cases, number, number).masked_fill(~donors[:, None], -1).argmax(dim=2)
    if not imputed.any():
        return None
    tailored = []
    for level, slots in enumerate(encoding.tailored):
        filled = stack_slots(slots)
        at_level = classes_at(classes, filled)
        for recipient, donor_index in product(range(number), repeat=2):
            rows = imputed[:, recipient] & (donor[:, recipient] == donor_index)
            if not rows.any():
                continue
            donated = filled[rows, donor_index].detach()
            apart = deviations(donated, memory[modalities[donor_index], level], at_level[rows])
            received = impute(memory[modalities[recipient], level], apart, at_level[rows])
            filled[rows, recipient] = received.to(filled.dtype)
        tailored.append(filled.unbind(dim=1))
    return replace(encoding, tailored=tailored, imputed=imputed)


def _of_class(prototypes: Prototypes, classes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return value and spread ``(B, C, *P)`` of each voxel's class, and whether it is a class."""
    known = (classes >= 0) & (classes < len(prototypes.values))
    row = torch.where(known, classes, 0)
    value, spread = (rows[row].movedim(-1, 1) for rows in (prototypes.values, prototypes.spreads))
    return value, spread, known[:, None]
