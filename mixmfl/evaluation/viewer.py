"""An interactive page of one case's slices, which opens anywhere: nilearn's viewer."""

import json
import re
from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
import numpy.typing as npt

from mixmfl.data.image import Grid, to_nibabel
from mixmfl.evaluation.overlay import PALETTE, lesion_planes

_POLICY = "default-src 'none'; img-src data:; script-src 'unsafe-inline'; style-src 'unsafe-inline'"

_RED = "margin:0;padding:.5rem;background:#b42318;color:#fff;font:bold 1rem sans-serif"

_PLACE_OF_TITLE = "the-title-of-this-page"

Array = npt.NDArray[Any]


def viewer_page(
    image: Array, mask: Array, grid: Grid, title: str, classes: int, alarms: Sequence[str] = ()
) -> str:
    """Return an HTML page with three planes that follow the mouse; no network is needed.

    Radiological convention, as the pictures of ``overlay``.

    Args:
        image: ``(Z, Y, X)``, canonical.
        mask: ``(Z, Y, X)`` class indices.
        grid: Grid of the image and the mask.
        title: Title that is shown above the planes.
        classes: Number of classes, with background.
        alarms: What stands in red above the title.
    """
    from matplotlib.colors import ListedColormap
    from nilearn.plotting import view_img

    z, y, x = lesion_planes(mask != 0)
    # the viewer mirrors the picture, but neither its marks nor its coordinates
    mirrored = (image.shape[2] - 1 - x, y, z)
    place = np.array(grid.origin) + np.reshape(grid.direction, (3, 3)) @ (
        np.array(mirrored) * grid.spacing[::-1]
    )
    view = view_img(
        to_nibabel(mask.astype(np.float32), grid),
        bg_img=to_nibabel(image.astype(np.float32), grid),
        cut_coords=tuple((place * [-1, -1, 1]).tolist()),  # nilearn counts in RAS
        threshold=0.5,
        cmap=ListedColormap(_colours(classes)),
        symmetric_cmap=False,
        vmin=0,
        vmax=max(classes - 1, 1),
        colorbar=False,
        resampling_interpolation="nearest",
        opacity=0.45,
        black_bg=True,
        radiological=True,
        annotate=False,
        show_lr=True,
        title=_PLACE_OF_TITLE,
        width_view=1100,
    )
    # nilearn escapes no title, neither in the head of the page nor in the JSON inside its script
    text = view.get_standalone()
    text = text.replace(f'"{_PLACE_OF_TITLE}"', json.dumps(title).replace("<", r"\u003c"))
    text = text.replace(_PLACE_OF_TITLE, escape(title))
    # its icon would be fetched; and the browser itself refuses whatever else might be
    text = re.sub(r"<link\b[^>]*>", "", text)
    policy = f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
    text = re.sub(r"(<head\b[^>]*>)", rf"\1{policy}", text, count=1)
    red = "".join(f'<p style="{_RED}" role="alert">{escape(alarm)}</p>' for alarm in alarms)
    return re.sub(r"(<body\b[^>]*>)", lambda found: found[0] + red, text, count=1)


def _colours(classes: int) -> Sequence[str]:
    """Return a colour per class index; the colour of background is never seen."""
    return ["#000000", *(PALETTE[n % len(PALETTE)] for n in range(max(classes - 1, 1)))]
