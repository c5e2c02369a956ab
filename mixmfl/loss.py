"""What a prediction is compared with."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mixmfl.labels import Labels


def loss_targets(classes: Sequence[Tensor], labels: Labels) -> list[Tensor]:
    """Turn class indices into what nnU-Net's loss takes, at every resolution.

    Args:
        classes: ``(B, 1, *P)`` integers.
        labels: What they mean.

    Returns:
        Without regions ``(B, 1, *P)`` int64, as given. With regions ``(B, R, *P)`` bool, one
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
