"""Losses on features that plans may add to nnU-Net's on masks."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional


def alignment(shared: Tensor, present: Tensor) -> Tensor:
    """Return how far the shared features of a case's modalities are apart.

    Per voxel the mean of ``1 - cos`` between each modality's feature and their mean direction,
    over the cases that show two or more; 0 where none does.

    Args:
        shared: ``(B, M, C, *P)``
        present: ``(B, M)`` bool.
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
    """Return how much the tailored features of images repeat their shared ones.

    The mean squared correlation, over all images and voxels, between each channel of one and each
    of the other: 0 where neither can be told linearly from the other, 1 where all are the same.

    Args:
        tailored: ``(B, M, C, *P)``
        shared: ``(B, M, C_shared, *P)``
        present: ``(B, M)`` bool.
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
"""Losses that plans may give a weight: of tailored and shared features and who is present."""
