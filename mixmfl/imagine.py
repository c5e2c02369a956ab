"""Imagined modalities: what one that a case lacks might have shown, for training only.

A modality's tailored features are drawn about its prototypes by the true class of every voxel. So
a site trains the decoder to read modalities that it never held, and no image has to be shared.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from mixmfl.memory import Memory, Prototypes, can_recall, classes_at
from mixmfl.network import Encoding

COARSENESS = 4
"""Voxels of a level, along each axis, over which the smooth half of the noise varies."""

_SHARE = 0.7  # of white and of smooth noise: about sqrt(1/2), so that variances add up to one
_SLOPE = 0.01  # of the encoders' LeakyReLU


def imagine(prototypes: Prototypes, classes: Tensor, generator: torch.Generator) -> Tensor:
    """Draw tailored features of a modality, given what is where.

    ``leaky_relu(value + spread · noise)`` of every voxel's class; the noise is half white, half
    smooth, for neighbours are alike, and the encoders end in the same LeakyReLU. (Our choice.)

    Args:
        prototypes: One per class, on the device of ``classes``. A class never seen gives zero.
        classes: ``(B, *P)`` integer class of each voxel; one outside ``0 … K - 1`` (outside the
            head, or the ignore label) gives zero.
        generator: Of the noise, on the same device.

    Returns:
        ``(B, C_tailored, *P)``, of the prototypes' type.
    """
    values, spreads = prototypes.values, prototypes.spreads
    known = (classes >= 0) & (classes < len(values))
    row = torch.where(known, classes, 0).long()
    shape = (len(classes), values.shape[1], *classes.shape[1:])
    noise = spreads[row].movedim(-1, 1) * _noise(shape, values, generator)
    features = functional.leaky_relu(values[row].movedim(-1, 1) + noise, _SLOPE)
    return torch.where(known[:, None], features, 0)


def _noise(shape: Sequence[int], like: Tensor, generator: torch.Generator) -> Tensor:
    def white(size: Sequence[int]) -> Tensor:
        return torch.randn(size, dtype=like.dtype, device=like.device, generator=generator)

    coarse = white([*shape[:2], *(max(2, length // COARSENESS) for length in shape[2:])])
    mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[len(shape) - 2]
    return _SHARE * functional.interpolate(coarse, shape[2:], mode=mode) + _SHARE * white(shape)


def imagine_absent(
    encoding: Encoding,
    modalities: Sequence[str],
    memory: Memory,
    classes: Tensor,
    probability: float,
    generator: torch.Generator,
) -> Encoding | None:
    """Return the encoding with some of the absent modalities imagined, each by its own draw.

    Args:
        encoding: With a tailored stream; all on one device.
        modalities: Those of the axis M.
        memory: Of the federation; what it does not know at every level is not imagined.
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
    absent = ~encoding.present & known
    drawn = torch.rand(absent.shape, device=classes.device, generator=generator) < probability
    imagined = absent & drawn
    if not imagined.any():
        return None
    tailored = []
    for level, features in enumerate(encoding.tailored):
        at_level = classes_at(classes, features)
        filled = features.clone()
        for index, modality in enumerate(modalities):
            rows = imagined[:, index]
            if rows.any():
                found = imagine(memory[modality, level], at_level[rows], generator)
                filled[rows, index] = found.to(filled.dtype)
        tailored.append(filled)
    return replace(encoding, tailored=tailored, imagined=imagined)
