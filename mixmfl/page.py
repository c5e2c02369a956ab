"""A page of results that opens anywhere: one HTML file, no network, pictures inside.

Data in, text out: nothing here reads or writes files. Whatever a caller passes as text is escaped;
``Html`` marks the few strings that are markup already, and only functions of this module make it.
"""

import base64
import io
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, NewType

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from mixmfl import __version__

Html = NewType("Html", str)
Array = npt.NDArray[Any]
Colour = tuple[int, int, int]

# of Okabe and Ito's colour-blind-safe hues those that stand out on grey, of unequal lightness
PALETTE = ("#56b4e9", "#f0e442", "#ff6e3a", "#cc79a7", "#00c08b", "#e69f00")
REFERENCE_COLOUR = "#ffffff"
LETTER_COLOUR = "#e0e0e0"
INCHES, DPI = 9.6, 125  # width of a picture
MARGIN = 2  # voxels around the head


@dataclass(frozen=True)
class Picture:
    """A PNG and what to say below it."""

    caption: str
    png: bytes


@dataclass(frozen=True)
class Section:
    """A heading, paragraphs (separated by empty lines), markup of this module, pictures."""

    title: str
    text: str = ""
    html: Html = Html("")
    pictures: Sequence[Picture] = ()


# --- pictures ---------------------------------------------------------------------------------


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
    palette: Sequence[str] = PALETTE,
) -> bytes:
    """Draw the axial, coronal and sagittal plane of a case with its outlines, as PNG.

    The prediction's outlines are solid, in the colours of ``palette`` in the order of ``regions``;
    the reference's are dashed and white. Radiological convention: the patient's right is on the
    left, superior is up, and the sagittal plane has anterior on the left. One scale for all.

    Args:
        image: ``(Z, Y, X)``, canonical: indices run inferior to superior, anterior to posterior,
            right to left. The value of its corners is taken for what lies outside the head.
        reference: ``(Z, Y, X)``, label indices; None where there is none.
        prediction: as ``reference``.
        spacing: (Z, Y, X) in mm.
        regions: what to outline: the label indices of each region or label, by name.
        planes: indices (Z, Y, X) to show; else ``lesion_planes`` of the reference, or of the
            prediction where the reference is empty.
        palette: one colour per region, starting over where they run out.
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
    figure = Figure(figsize=(INCHES, INCHES * height / width), dpi=DPI, facecolor="black")
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
        )
        for number, values in enumerate(regions.values()):
            if prediction is not None:
                mask = np.isin(_cut(prediction, view, planes, box), list(values))
                _outline(axes, mask, corner, step, palette[number % len(palette)], "solid", 1.7)
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
    # without the version of matplotlib, so that equal pictures are equal bytes
    FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
    return buffer.getvalue()


def _widest(lesion: Array, axis: int) -> int:
    """Return the slice of ``axis`` with most of the lesion, the middle one of equals."""
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
    if not inside.any():
        return [slice(0, length) for length in inside.shape]
    box = []
    for axis in range(3):
        found = np.flatnonzero(inside.any(axis=tuple(a for a in range(3) if a != axis)))
        first, last = int(found[0]) - MARGIN, int(found[-1]) + MARGIN
        box.append(slice(max(first, 0), min(last + 1, inside.shape[axis])))
    return box


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


# --- tables -----------------------------------------------------------------------------------


def legend(
    regions: Collection[str], *, reference: bool = True, palette: Sequence[str] = PALETTE
) -> Html:
    """Return what the outlines of ``overlay`` mean: the regions' colours, then the reference."""
    lines = [(name, palette[n % len(palette)], "") for n, name in enumerate(regions)]
    if reference:
        lines.append(("reference (all regions)", REFERENCE_COLOUR, ' stroke-dasharray="5 4"'))
    items = "".join(
        '<li><svg viewBox="0 0 40 16" width="40" height="16" aria-hidden="true">'
        '<rect width="40" height="16" rx="3" fill="#000"/>'
        f'<path d="M5 8h30" stroke="{escape(colour)}" stroke-width="2.5"{dashes}/></svg>'
        f"{escape(name)}</li>"
        for name, colour, dashes in lines
    )
    return Html(f'<ul class="legend">{items}</ul>')


def table(columns: Sequence[str], rows: Sequence[Sequence[str | float]]) -> Html:
    """Return a plain table; numbers are right-aligned, with three decimals where not whole."""
    numeric = [any(not isinstance(row[n], str) for row in rows) for n in range(len(columns))]
    head = "".join(
        f'<th scope="col"{" class=number" * is_number}>{escape(name)}</th>'
        for name, is_number in zip(columns, numeric, strict=True)
    )
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return _scrolling(f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>")


def heat_table(
    subsets: Sequence[Collection[str]],
    modalities: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float]],
    *,
    low: float = 0.0,
    high: float = 1.0,
) -> Html:
    """Return a table of one row per subset of modalities, its cells shaded by value.

    A dot says that a modality was given, a ring that it was withheld. The last row is the mean
    over the subsets, without NaN; NaN is shown as a dash.

    Args:
        subsets: the modalities of each row.
        modalities: all modalities, one narrow column each.
        columns: a name for each column of ``values``, for example the regions.
        values: one row per subset, one number per column.
        low: the value shaded lightest.
        high: the value shaded darkest.
    """
    names = "".join(f'<th scope="col" class="dot">{escape(name)}</th>' for name in modalities)
    names += "".join(f'<th scope="col" class="number">{escape(name)}</th>' for name in columns)
    body = ""
    for subset, row in zip(subsets, values, strict=True):
        dots = "".join(_dot(name in subset) for name in modalities)
        body += f"<tr>{dots}{''.join(_shaded(value, low, high) for value in row)}</tr>"
    means = "".join(_shaded(_mean(column), low, high) for column in zip(*values, strict=True))
    foot = f'<tr><th scope="row" colspan="{len(modalities)}">mean of all rows</th>{means}</tr>'
    return _scrolling(
        f"<thead><tr>{names}</tr></thead><tbody>{body}</tbody><tfoot>{foot}</tfoot>", "heat"
    )


def _scrolling(inner: str, kind: str = "") -> Html:
    """Wrap a table so that on a narrow screen it scrolls, not the page."""
    return Html(f'<div class="scroll" tabindex="0"><table class="{kind}">{inner}</table></div>')


def _cell(value: str | float) -> str:
    if isinstance(value, str):
        return f"<td>{escape(value)}</td>"
    return f'<td class="number">{_number(value)}</td>'


def _number(value: float) -> str:
    if math.isnan(value):
        return '<abbr title="undefined">&ndash;</abbr>'
    return f"{value:d}" if isinstance(value, int) else f"{value:.3f}"


def _dot(present: bool) -> str:
    sign, words = ("●", "given") if present else ("○", "withheld")
    return f'<td class="dot"><span role="img" aria-label="{words}">{sign}</span></td>'


def _shaded(value: float, low: float, high: float) -> str:
    if math.isnan(value):
        return f'<td class="number">{_number(value)}</td>'
    colour = shade((value - low) / (high - low))
    # black or white, whichever reads better; the cell brings both colours, so it is the same in
    # light and dark mode
    ink = "#000" if luminance(colour) > 0.179 else "#fff"
    back = "#" + "".join(f"{part:02x}" for part in colour)
    return f'<td class="number" style="background:{back};color:{ink}">{value:.3f}</td>'


def shade(fraction: float) -> Colour:
    """Return the colour of 0 (pale) to 1 (deep blue); a single hue, so colour-blind safe."""
    stops: tuple[Colour, ...] = ((244, 247, 251), (158, 197, 232), (58, 130, 192), (12, 54, 112))
    place = min(max(fraction, 0.0), 1.0) * (len(stops) - 1)
    lower = min(int(place), len(stops) - 2)
    red, green, blue = (
        round(a + (b - a) * (place - lower))
        for a, b in zip(stops[lower], stops[lower + 1], strict=True)
    )
    return red, green, blue


def luminance(colour: Colour) -> float:
    """Return the relative luminance of an sRGB colour, 0 to 1, as WCAG 2 defines it."""
    linear = [
        part / 255 / 12.92 if part <= 10 else ((part / 255 + 0.055) / 1.055) ** 2.4
        for part in colour
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


# --- the page ---------------------------------------------------------------------------------


def page(title: str, introduction: str, sections: Sequence[Section]) -> str:
    """Return the page as text: nothing in it is loaded from elsewhere.

    Args:
        title: heading and title of the window.
        introduction: paragraphs, separated by empty lines.
        sections: in the order in which they are shown.
    """
    links = "".join(
        f'<li><a href="#part{number}">{escape(section.title)}</a></li>'
        for number, section in enumerate(sections, 1)
    )
    parts = "".join(_section(number, section) for number, section in enumerate(sections, 1))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<header><h1>{escape(title)}</h1>{_paragraphs(introduction)}</header>
<nav aria-label="Contents"><ul>{links}</ul></nav>
<main>{parts}</main>
<footer>mixmfl {escape(__version__)}: research software, not for diagnosis.</footer>
</body>
</html>
"""


def _section(number: int, section: Section) -> str:
    pictures = "".join(
        f'<figure><div class="scroll" tabindex="0"><img alt="{escape(picture.caption)}" '
        f'src="data:image/png;base64,{base64.b64encode(picture.png).decode("ascii")}"></div>'
        f"<figcaption>{escape(picture.caption)}</figcaption></figure>"
        for picture in section.pictures
    )
    return (
        f'<section id="part{number}"><h2>{escape(section.title)}</h2>'
        f"{_paragraphs(section.text)}{section.html}{pictures}</section>"
    )


def _paragraphs(text: str) -> str:
    parts = (part.strip() for part in text.split("\n\n"))
    return "".join(f"<p>{escape(part)}</p>" for part in parts if part)


# the browser itself refuses whatever would be loaded from elsewhere
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

_STYLE = """
:root{--back:#fff;--ink:#1b1f24;--soft:#57606a;--line:#d8dee4;--link:#0b5cad}
@media(prefers-color-scheme:dark){
:root{--back:#14171a;--ink:#e6e9ec;--soft:#a3abb3;--line:#343a40;--link:#7cb8f2}}
*{box-sizing:border-box}
body{margin:0 auto;padding:2.5rem 1.25rem;max-width:62rem;background:var(--back);color:var(--ink);
font:1rem/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
h1{margin:0 0 .75rem;font-size:1.9rem;line-height:1.2}
h2{margin:0 0 .5rem;font-size:1.3rem;line-height:1.3}
p{margin:.5rem 0;max-width:44rem}
a{color:var(--link)}
nav ul,.legend{display:flex;flex-wrap:wrap;gap:.35rem 1.4rem;margin:1rem 0;padding:0;
list-style:none}
section{margin-top:2rem;padding-top:1.5rem;border-top:1px solid var(--line)}
.legend li{display:flex;align-items:center;gap:.5rem}
.scroll{overflow-x:auto;margin:1rem 0}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{padding:.3rem .75rem;border-bottom:1px solid var(--line);text-align:left}
thead th{vertical-align:bottom;font-weight:600;color:var(--soft)}
.number,th.number{text-align:right}
.heat td.number{min-width:5.5rem;text-align:center;border:2px solid var(--back)}
.heat th.number,.dot{text-align:center}
.dot{padding:.3rem .5rem}
tfoot th,tfoot td{border-top:2px solid var(--line);font-weight:600}
abbr{text-decoration:none}
figure{margin:1.25rem 0}
figure .scroll{margin:0}
img{display:block;width:100%;min-width:40rem;height:auto;background:#000;border-radius:6px}
figcaption{margin-top:.4rem;color:var(--soft);font-size:.925rem}
footer{margin-top:3rem;padding-top:1rem;border-top:1px solid var(--line);color:var(--soft);
font-size:.875rem}
@media print{nav{display:none}figure,tr{break-inside:avoid}}
"""
