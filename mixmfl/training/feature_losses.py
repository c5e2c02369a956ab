"""Losses on features that plans may add to nnU-Net's loss on masks."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional


def alignment(shared: Tensor, present: Tensor) -> Tensor:
    """Return the distance between the shared features of a case's modalities.

    It is the mean over voxels of ``1 - cos`` between each modality's feature and their mean
    direction, over the cases with two or more modalities; 0 if there is no such case.

    Args:
        shared: ``(B, M, C, *P)``, features of the shared encoder.
        present: ``(B, M)`` bool, the available modalities.
    """
    several = present.sum(dim=1) > 1
    if not several.any():
        return shared.new_zeros(())
    # a blank slice has features of exactly zero: the eps keeps their gradient within bounds
    direction = functional.normalize(shared[several].float(), dim=2, eps=1e-3)
    weight = present[several].float()
    weight = weight.reshape(*weight.shape, *[1] * (shared.ndim - 2))
    mean = functional.normalize((direction * weight).sum(dim=1, keepdim=True), dim=2, eps=1e-3)
    apart = 1 - (direction * mean).sum(dim=2, keepdim=True)
    return (apart * weight).sum() / (weight * torch.ones_like(apart)).sum()


def separation(tailored: Tensor, shared: Tensor, present: Tensor) -> Tensor:
    """Return how strongly tailored and shared features of the same images are correlated.

    It is the mean squared correlation, over all images and voxels, between each channel of one and
    each of the other: 0 if they are linearly uncorrelated, 1 if all channels are the same.

    Args:
        tailored: ``(B, M, C, *P)``, features of the tailored (modality-specific) encoders.
        shared: ``(B, M, C_shared, *P)``, features of the shared encoder.
        present: ``(B, M)`` bool, the available modalities.
    """

    def standardised(features: Tensor) -> Tensor:  # (B, M, C, *P) -> (V, C)
        flat = features[present].float().movedim(1, -1).flatten(0, -2)
        flat = flat - flat.mean(dim=0)
        return flat / flat.norm(dim=0).clamp(min=1e-6)

    return (standardised(tailored).T @ standardised(shared)).square().mean()


LOSSES: Mapping[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "alignment": lambda tailored, shared, present: alignment(shared, present),
    "separation": separation,
}
"""Losses by the name in the plans; each takes tailored, shared and ``present``."""
