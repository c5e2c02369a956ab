"""Pictures of a case: three planes through its lesion, outlines over the image, as PNG."""

import io
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

Array = npt.NDArray[Any]

# of Okabe and Ito's colour-blind-safe hues those that stand out on grey, of unequal lightness
PALETTE = ("#56b4e9", "#f0e442", "#ff6e3a", "#cc79a7", "#00c08b", "#e69f00")
REFERENCE_COLOUR = "#ffffff"
LETTER_COLOUR = "#e0e0e0"
INCHES, DPI = 9.6, 125  # width of a picture
SMALL_INCHES, SMALL_DPI = 7.2, 100
MARGIN = 2  # voxels around the head


@dataclass(frozen=True)
class _View:
    """A plane of a canonical array: its normal, and the letters left, right, top, bottom."""

    name: str
    normal: int
    letters: str


_VIEWS = (_View("Axial", 0, "RLAP"), _View("Coronal", 1, "RLSI"), _View("Sagittal", 2, "APSI"))


def lesion_planes(lesions: Array) -> tuple[int, int, int]:
    """Return the indices (Z, Y, X) of the planes through the largest lesion.

    The lesion is the largest connected one; each axis shows the slice in which it is widest (the
    middle one of several). Without a lesion it is the centre of the volume.

    Args:
        lesions: ``(Z, Y, X)``, True where there is a lesion of any kind.
    """
    pieces, count = ndimage.label(lesions)
    if count == 0:
        z, y, x = (length // 2 for length in lesions.shape)
        return z, y, x
    largest = pieces == 1 + int(np.bincount(pieces.ravel())[1:].argmax())
    z, y, x = (_widest(largest, axis) for axis in range(3))
    return z, y, x


def overlay(
    image: Array,
    reference: Array | None,
    prediction: Array | None,
    spacing: Sequence[float],
    regions: Mapping[str, Collection[int]],
    *,
    planes: tuple[int, int, int] | None = None,
    small: bool = False,
) -> bytes:
    """Draw the axial, coronal and sagittal plane of a case with its outlines, as PNG.

    The prediction's outlines are solid, in the colours of ``PALETTE`` in the order of ``regions``;
    the reference's are dashed and white. Radiological convention: the patient's right is on the
    left, superior is up, and the sagittal plane has anterior on the left. One scale for all.

    Args:
        image: ``(Z, Y, X)``, canonical: indices run inferior to superior, anterior to posterior,
            right to left. The value of most corners is that of the background.
        reference: ``(Z, Y, X)``, label indices; None where there is none.
        prediction: ``(Z, Y, X)``, label indices; None where there is none.
        spacing: (Z, Y, X) in mm.
        regions: What to outline: the label indices of each region or label, by name.
        planes: Indices (Z, Y, X) to show; None: ``lesion_planes`` of the reference, or of the
            prediction where the reference is empty.
        small: Whether to draw a JPEG of half the size instead, for pages of many cases.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    marked = sorted({value for values in regions.values() for value in values})
    lesions = [np.isin(mask, marked) for mask in (reference, prediction) if mask is not None]
    if planes is None:
        planes = lesion_planes(next(filter(np.any, lesions), np.zeros_like(image)))
    head = _head(image)
    low, high = np.percentile(image[head], [1, 99]) if head.any() else (0.0, 1.0)
    shown = np.where(head, image, low)  # background would be grey in a z-scored image
    box = _box(np.logical_or.reduce([head, *lesions]))

    # one axes for all planes, in mm from the upper left corner, so that they share a scale
    views = [v for v in _VIEWS if all(image.shape[axis] > 1 for axis in _axes(v))]
    sizes = [[(box[a].stop - box[a].start) * spacing[a] for a in _axes(v)] for v in views]
    gap, title = 5.0, 0.03 * sum(across for _, across in sizes)
    width = sum(across for _, across in sizes) + gap * (len(views) - 1)
    height = title + max(down for down, _ in sizes)
    inches, dpi = (SMALL_INCHES, SMALL_DPI) if small else (INCHES, DPI)
    figure = Figure(figsize=(inches, inches * height / width), dpi=dpi, facecolor="black")
    axes = figure.add_axes((0, 0, 1, 1))
    left = 0.0
    for view, (down, across) in zip(views, sizes, strict=True):
        top = title + (height - title - down) / 2
        corner = (left, top)
        step = [spacing[axis] for axis in _axes(view)]
        axes.imshow(
            _cut(shown, view, planes, box),
            cmap="gray",
            vmin=low,
            vmax=high,
            extent=(left, left + across, top + down, top),
            interpolation="bilinear",
            origin="upper",  # a setting of the user's may have the other
        )
        for number, values in enumerate(regions.values()):
            if prediction is not None:
                mask = np.isin(_cut(prediction, view, planes, box), list(values))
                _outline(axes, mask, corner, step, PALETTE[number % len(PALETTE)], "solid", 1.7)
        for values in regions.values():
            if reference is not None:
                mask = np.isin(_cut(reference, view, planes, box), list(values))
                _outline(axes, mask, corner, step, REFERENCE_COLOUR, (0, (3, 3)), 1.0)
        _write_letters(axes, view, corner, (down, across))
        left += across + gap
    _draw_scale(axes, height, sizes[0][1])
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()
    buffer = io.BytesIO()
    if small:
        FigureCanvasAgg(figure).print_jpg(buffer, pil_kwargs={"quality": 80})
        return buffer.getvalue()
    # without the version of matplotlib, so that equal pictures are equal bytes
    FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
    return buffer.getvalue()


def _widest(lesion: Array, axis: int) -> int:
    """Return the slice of ``axis`` with most of the lesion; of several, the middle one."""
    others = tuple(other for other in range(3) if other != axis)
    areas = lesion.sum(axis=others)
    equals = np.flatnonzero(areas == areas.max())
    return int(equals[len(equals) // 2])


def _head(image: Array) -> Array:
    """Return where the image is not background, the value that most of its corners have."""
    z, y, x = (max(length - 1, 1) for length in image.shape)
    values, counts = np.unique(image[::z, ::y, ::x], return_counts=True)
    return image != values[counts.argmax()]


def _box(inside: Array) -> list[slice]:
    """Return the bounding box of what is True, with a margin; everything if nothing is."""
    boxes = ndimage.find_objects(inside.astype(np.uint8))
    if not boxes:
        return [slice(0, length) for length in inside.shape]
    return [
        slice(max(axis.start - MARGIN, 0), min(axis.stop + MARGIN, length))
        for axis, length in zip(boxes[0], inside.shape, strict=True)
    ]


def _axes(view: _View) -> tuple[int, int]:
    """Return which axes of the array run down and across the picture."""
    down, across = (axis for axis in range(3) if axis != view.normal)
    return down, across


def _cut(array: Array, view: _View, planes: tuple[int, int, int], box: list[slice]) -> Array:
    """Return the plane as it is seen, row 0 on top, ``(down, across)``."""
    index: list[Any] = list(box)
    index[view.normal] = planes[view.normal]
    cut: Array = array[tuple(index)]
    return cut if view.normal == 0 else cut[::-1]  # Z runs upwards


def _outline(
    axes: Any,
    mask: Array,
    corner: tuple[float, float],
    step: Sequence[float],
    colour: str,
    style: Any,
    width: float,
) -> None:
    """Draw the outline of ``mask``, ``(down, across)``, with a dark seam for bright tissue."""
    from matplotlib.patheffects import Normal, Stroke

    if not mask.any():
        return
    closed = np.pad(mask, 1).astype(float)  # so that outlines close at the edge of the picture
    down, across = (
        start + (np.arange(n) - 0.5) * s
        for start, n, s in zip(corner[::-1], closed.shape, step, strict=True)
    )
    drawn = axes.contour(
        across, down, closed, levels=[0.5], colors=[colour], linewidths=width, linestyles=[style]
    )
    drawn.set_path_effects([Stroke(linewidth=width + 1, foreground="#00000090"), Normal()])


def _write_letters(
    axes: Any, view: _View, corner: tuple[float, float], size: tuple[float, float]
) -> None:
    """Write the plane's name above it and the directions at its edges."""
    from matplotlib.patheffects import withStroke

    left, top = corner
    down, across = size
    seam = [withStroke(linewidth=2, foreground="black")]
    axes.text(left + across / 2, 2, view.name, color=LETTER_COLOUR, size=10, ha="center", va="top")
    places = (
        (0.015, 0.5, "left", "center"),
        (0.985, 0.5, "right", "center"),
        (0.5, 0.012, "center", "top"),
        (0.5, 0.985, "center", "bottom"),
    )
    for letter, (x, y, ha, va) in zip(view.letters, places, strict=True):
        axes.text(
            left + x * across,
            top + y * down,
            letter,
            color=LETTER_COLOUR,
            size=10,
            ha=ha,
            va=va,
            weight="bold",
            path_effects=seam,
        )


def _draw_scale(axes: Any, bottom: float, across: float) -> None:
    """Draw a bar of 5 cm (1 cm on small pictures) in the lower left corner."""
    length = 50 if across > 100 else 10
    axes.plot([3, 3 + length], [bottom - 3] * 2, color=LETTER_COLOUR, linewidth=2)
    axes.text(3, bottom - 5, f"{length // 10} cm", color=LETTER_COLOUR, size=8, va="bottom")
