"""Imagined modalities: what one that a case lacks might have shown, for training only.

Where the true class of a voxel is known, the memory tells what a modality's tailored features are
like there; how far a voxel is from the usual is taken over from a modality that is at hand. So a
site trains the decoder to read modalities that it never held, and no image has to be shared.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional

from mixmfl.networks.base import Encoding
from mixmfl.networks.prototypes import PrototypeMemory, Prototypes, can_recall, classes_at

FURTHEST = 4.0
"""Standard deviations from its class that an imagined feature may be."""

_SLOPE = 0.01  # of the LeakyReLU that encoders end in


def deviations(features: Tensor, prototypes: Prototypes, classes: Tensor) -> Tensor:
    """Return how far features are from those of their class, in standard deviations.

    Args:
        features: ``(B, C, *P)``, tailored features of one modality.
        prototypes: Of that modality, one per class.
        classes: ``(B, *P)`` integer class of each voxel; one outside ``0 … K - 1`` (outside the
            head, or the ignore label) gives zero, and so does a channel without any spread.

    Returns:
        ``(B, C, *P)`` float32, within ``FURTHEST`` of zero.
    """
    value, spread, known = _of_class(prototypes, classes)
    apart = (features.float() - value) / spread.clamp(min=torch.finfo(torch.float32).tiny)
    return torch.where(known & (spread > 0), apart.clamp(-FURTHEST, FURTHEST), 0)


def imagine(prototypes: Prototypes, deviations: Tensor, classes: Tensor) -> Tensor:
    """Return features of a modality that deviate so far from those of their class.

    ``leaky_relu(value + spread · deviation)`` of every voxel's class, as the encoders end in that.
    (Our choice.)

    Args:
        prototypes: Of the modality, one per class. A class never seen gives zero.
        deviations: ``(B, C, *P)``, in standard deviations.
        classes: ``(B, *P)``, as in ``deviations``.

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
    """Return the encoding with some of the absent modalities imagined, each by its own draw.

    Each takes the deviations of one modality at hand, drawn anew; the gradient does not follow.

    Args:
        encoding: With a tailored stream; all on one device.
        modalities: Those of the axis M.
        memory: Of the federation; what it does not know at every level has no part.
        classes: ``(B, 1, *P)`` true class of each voxel at full resolution.
        probability: Of each modality that is absent and known.
        generator: Of all that is drawn, on the same device.

    Returns:
        None where nothing is imagined.
    """
    levels = range(len(encoding.tailored))
    known = torch.tensor(
        [all(can_recall(memory, name, level) for level in levels) for name in modalities],
        device=classes.device,
    )
    givers = encoding.present & known  # (B, M)
    cases, number = givers.shape

    def draw(*shape: int) -> Tensor:
        return torch.rand(shape, device=classes.device, generator=generator)

    imagined = ~encoding.present & known & (draw(cases, number) < probability)
    imagined &= givers.any(dim=1, keepdim=True)
    # of every imagined modality: the one at hand with the highest draw
    giver = draw(cases, number, number).masked_fill(~givers[:, None], -1).argmax(dim=2)
    if not imagined.any():
        return None
    tailored = []
    for level, features in enumerate(encoding.tailored):
        at_level = classes_at(classes, features)
        filled = features.clone()
        for taker, giving in product(range(number), repeat=2):
            rows = imagined[:, taker] & (giver[:, taker] == giving)
            if not rows.any():
                continue
            given = features[rows, giving].detach()
            apart = deviations(given, memory[modalities[giving], level], at_level[rows])
            found = imagine(memory[modalities[taker], level], apart, at_level[rows])
            filled[rows, taker] = found.to(filled.dtype)
        tailored.append(filled)
    return replace(encoding, tailored=tailored, imagined=imagined)


def _of_class(prototypes: Prototypes, classes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return value and spread ``(B, C, *P)`` of every voxel's class; where it is one."""
    known = (classes >= 0) & (classes < len(prototypes.values))
    row = torch.where(known, classes, 0)
    value, spread = (rows[row].movedim(-1, 1) for rows in (prototypes.values, prototypes.spreads))
    return value, spread, known[:, None]
