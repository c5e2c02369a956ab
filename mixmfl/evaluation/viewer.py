"""An interactive page of one case: all its images side by side in one plane, with outlines.

A page is one file that needs no network. Images and mask are in it as pictures, with a case's axial
slices as tiles; a script of this package cuts the other planes out of them.
"""

import io
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mixmfl.evaluation.html import fill_viewer, legend
from mixmfl.evaluation.overlay import lesion_planes

QUALITY = 85  # of JPEG

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class CaseTexts:
    """What a viewer says of its case.

    Attributes:
        title: Name of the case.
        lines: What is known of the case, one paragraph each.
        warnings: What must not be overlooked.
        volumes_ml: Volumes by label or region.
        notice: What stands above everything; empty: nothing.
        alarms: What stands there in red.
    """

    title: str
    lines: Sequence[str]
    warnings: Sequence[str]
    volumes_ml: Mapping[str, float]
    notice: str
    alarms: Sequence[str]


def viewer_page(
    images: Mapping[str, Array],
    mask: Array,
    spacing: Sequence[float],
    regions: Mapping[str, Collection[int]],
    texts: CaseTexts,
) -> str:
    """Return the page as text; it begins at the largest lesion.

    Radiological convention, as the pictures of ``overlay``.

    Args:
        images: By modality ``(Z, Y, X)`` uint8, canonical: indices run inferior to superior,
            anterior to posterior, right to left.
        mask: ``(Z, Y, X)`` class indices.
        spacing: (Z, Y, X) in mm.
        regions: What to outline: the class indices of each label or region, by name.
        texts: What is said of the case.
    """
    key = legend(regions, reference=False)
    across = math.ceil(math.sqrt(mask.shape[0] * mask.shape[1] / mask.shape[2]))
    data = {
        "shape": list(mask.shape),
        "spacing": list(map(float, spacing)),
        "tiles": across,
        "start": list(lesion_planes(mask != 0)),
        "regions": [
            {"values": sorted(map(int, values)), "colour": entry.colour}
            for entry, values in zip(key, regions.values(), strict=True)
        ],
    }
    # a picture holds bytes, and there may be more classes
    low, high = (_tiles(part, across) for part in divmod(mask.astype(np.int32), 256)[::-1])
    return fill_viewer(
        texts=texts,
        legend=key,
        images={
            name: _picture(np.dstack([tiles] * 3), "jpg")
            for name, image in images.items()
            for tiles in (_tiles(image, across),)
        },
        mask=_picture(np.dstack([low, high, low]), "png"),
        data=data,
    )


def _tiles(volume: Array, across: int) -> Array:
    """Return the axial slices of ``(Z, Y, X)``, values up to 255, as rows of so many tiles."""
    z, y, x = volume.shape
    down = -(-z // across)
    filled = np.zeros((down * across, y, x), dtype=np.uint8)
    filled[:z] = volume
    return filled.reshape(down, across, y, x).swapaxes(1, 2).reshape(down * y, across * x)


def _picture(pixels: Array, form: str) -> bytes:
    """Return ``(rows, columns, 3)`` as a picture."""
    from matplotlib.image import imsave

    buffer = io.BytesIO()
    if form == "jpg":
        imsave(buffer, pixels, format=form, origin="upper", pil_kwargs={"quality": QUALITY})
    else:  # without the version of matplotlib, so that equal pictures are equal bytes
        unmarked: Any = {"Software": None}
        imsave(buffer, pixels, format=form, origin="upper", metadata=unmarked)
    return buffer.getvalue()
