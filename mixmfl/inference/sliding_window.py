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
from torch.nn import functional

Predictor = Callable[[Tensor], Tensor]
"""From images ``(B, C, *P)`` to logits ``(B, heads, *P)``."""


@torch.inference_mode()
def predict_volume(
    predictor: Predictor,
    images: Tensor,
    patch_size: Sequence[int],
    *,
    step: float = 0.5,
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
    volume: Tensor | None = None
    # sums and weights of the planes from `low` on, down to the last that a patch has touched
    low, blended, total = 0, torch.empty(0), torch.zeros(0, *padded.shape[2:], device=device)
    for first in range(0, len(places), batch_size):
        chosen = places[first : first + batch_size]
        patches = torch.stack([padded[(slice(None), *place)] for place in chosen]).to(device)
        logits = _mirrored(predictor, patches[:, :, 0] if flat else patches, mirror_axes).float()
        if volume is None:
            size = (logits.shape[1], *padded.shape[1:])
            volume = torch.empty(size, dtype=dtype, device=device)
            blended = torch.zeros((size[0], 0, *size[2:]), device=device)
        more = chosen[-1][0].stop - low - len(total)  # places are sorted by their first plane
        if more > 0:
            pad = (0, 0, 0, 0, 0, more)
            blended, total = functional.pad(blended, pad), functional.pad(total, pad)
        for place, patch in zip(chosen, logits * weight, strict=True):
            here = (slice(place[0].start - low, place[0].stop - low), *place[1:])
            blended[(slice(None), *here)] += patch[:, None] if flat else patch
            total[here] += weight[None] if flat else weight
        rest = places[first + batch_size :]
        done = (rest[0][0].start if rest else padded.shape[1]) - low
        if done > 0:  # these planes get no more
            volume[:, low : low + done] = blended[:, :done] / total[:done]
            blended, total, low = blended[:, done:], total[done:], low + done
    assert volume is not None  # an image has at least one patch
    return volume[(slice(None), *original[1:])]


def _mirrored(predictor: Predictor, patches: Tensor, axes: Sequence[int]) -> Tensor:
    """Return the mean of the logits over all combinations of mirrored patch axes."""
    shifted = [axis + 2 for axis in axes]  # behind the batch and channel axes
    flips = list(chain.from_iterable(combinations(shifted, n) for n in range(len(shifted) + 1)))
    total = predictor(patches)
    for flip in flips[1:]:
        total = total + predictor(patches.flip(flip)).flip(flip)
    return total / len(flips)
