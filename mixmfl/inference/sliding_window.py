"""Prediction of a whole volume from overlapping patches, blended by a Gaussian."""

from collections.abc import Callable, Sequence
from itertools import chain, combinations, product

import torch
from acvl_utils.cropping_and_padding.padding import pad_nd_image
from nnunetv2.inference.sliding_window_prediction import (
    compute_gaussian,
    compute_steps_for_sliding_window,
)
from torch import Tensor

Predictor = Callable[[Tensor], Tensor]
"""From images ``(B, C, *P)`` to logits ``(B, heads, *P)``."""


@torch.inference_mode()
def predict_volume(
    predictor: Predictor,
    images: Tensor,
    patch_size: Sequence[int],
    *,
    step: float,
    mirror_axes: Sequence[int] = (),
    batch_size: int = 1,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Predict a volume patch by patch, at nnU-Net's positions and with its weights.

    Args:
        predictor: The function that predicts patches.
        images: The volume, ``(C, Z, Y, X)``.
        patch_size: Size of a patch in voxels, (Z, Y, X), or (Y, X) for a 2-D network, which sees
            every slice.
        step: Distance of neighbouring patches as a share of the patch, above 0 and at most 1.
        mirror_axes: Patch axes along which mirrored patches are predicted as well and averaged.
        batch_size: Number of patches predicted at a time.
        device: Device of the network, on which logits are blended, too.
        dtype: Type of the result. Patches are added up in single precision whatever it is, and only
            in the planes that still get some, so that a large volume needs half the memory with
            ``torch.float16``.

    Returns:
        Logits ``(heads, Z, Y, X)`` on ``device``.
    """
    flat = len(patch_size) == 2
    tile = (1, *patch_size) if flat else tuple(patch_size)
    padded, original = pad_nd_image(images, tile, return_slicer=True)
    starts = compute_steps_for_sliding_window(padded.shape[1:], tile, step)
    if flat:  # slices do not overlap: each has a position of its own
        starts[0] = list(range(padded.shape[1]))
    weight = compute_gaussian(
        tuple(patch_size), value_scaling_factor=10, dtype=torch.float32, device=device
    )
    places = [
        tuple(slice(a, a + n) for a, n in zip(place, tile, strict=True))
        for place in product(*starts)
    ]
    batches = [places[first : first + batch_size] for first in range(0, len(places), batch_size)]
    # sums and weights of the planes that still get some: places are sorted by their first plane
    window = max(batch[-1][0].stop - batch[0][0].start for batch in batches)
    total = torch.zeros((window, *padded.shape[2:]), device=device)
    blended, volume = torch.empty(0), torch.empty(0)
    for batch, following in zip(batches, [*batches[1:], None], strict=True):
        patches = torch.stack([padded[(slice(None), *place)] for place in batch]).to(device)
        logits = _mirrored(predictor, patches[:, :, 0] if flat else patches, mirror_axes).float()
        if not len(volume):
            heads = logits.shape[1]
            volume = torch.empty((heads, *padded.shape[1:]), dtype=dtype, device=device)
            blended = torch.zeros((heads, *total.shape), device=device)
        low = batch[0][0].start
        for place, patch in zip(batch, logits * weight, strict=True):
            here = (slice(place[0].start - low, place[0].stop - low), *place[1:])
            blended[(slice(None), *here)] += patch[:, None] if flat else patch
            total[here] += weight[None] if flat else weight
        done = (following[0][0].start if following else padded.shape[1]) - low
        for plane in range(done):  # these get no more
            volume[:, low + plane] = blended[:, plane] / total[plane]
        if done:
            _move_up(blended.transpose(0, 1), done)
            _move_up(total, done)
    return volume[(slice(None), *original[1:])]


def _move_up(planes: Tensor, by: int) -> None:
    """Move planes ``(Z, ...)`` to the front in place, over the first ``by``; zeros come behind."""
    for plane in range(len(planes) - by):
        planes[plane] = planes[plane + by]
    planes[len(planes) - by :] = 0


def _mirrored(predictor: Predictor, patches: Tensor, axes: Sequence[int]) -> Tensor:
    """Return the mean of the logits over all combinations of mirrored patch axes."""
    shifted = [axis + 2 for axis in axes]  # behind the batch and channel axes
    flips = list(chain.from_iterable(combinations(shifted, n) for n in range(len(shifted) + 1)))
    total = predictor(patches)
    for flip in flips[1:]:
        total = total + predictor(patches.flip(flip)).flip(flip)
    return total / len(flips)
