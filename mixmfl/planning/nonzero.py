"""Where the images of a case are not zero, which is what nnU-Net keeps of them."""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage


def head_mask(images: Sequence[np.ndarray]) -> np.ndarray:
    """Return where any image is not zero, ``(Z, Y, X)`` bool, holes filled."""
    head = images[0] != 0
    for image in images[1:]:
        head |= image != 0
    return ndimage.binary_fill_holes(head)


def nonzero_box(images: Sequence[np.ndarray]) -> tuple[slice, slice, slice]:
    """Return the box around the voxels that are non-zero in any image, holes filled."""
    return box_of(head_mask(images))


def box_of(mask: np.ndarray) -> tuple[slice, slice, slice]:
    """Return the box around a mask ``(Z, Y, X)``, which is not empty."""
    ((z, y, x),) = ndimage.find_objects(mask.astype(np.uint8))
    return z, y, x
