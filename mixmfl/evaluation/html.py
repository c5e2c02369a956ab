"""A page of results that opens anywhere: one HTML file, no network, pictures inside.

Data in, text out: nothing here reads or writes files. Whatever a caller passes as text is escaped;
``Html`` marks the few strings that are markup already, and only functions of this module make it.
"""

import base64
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import NewType
from urllib.parse import quote

from mixmfl.core.nan import mean
from mixmfl.core.version import __version__
from mixmfl.evaluation.overlay import PALETTE, REFERENCE_COLOUR

Html = NewType("Html", str)
Colour = tuple[int, int, int]


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
    means = "".join(_shaded(mean(column), low, high) for column in zip(*values, strict=True))
    foot = f'<tr><th scope="row" colspan="{len(modalities)}">mean of all rows</th>{means}</tr>'
    return _scrolling(
        f"<thead><tr>{names}</tr></thead><tbody>{body}</tbody><tfoot>{foot}</tfoot>", "heat"
    )


@dataclass(frozen=True)
class CaseRow:
    """What a page shows of one case.

    Attributes:
        name: Of the case.
        state: One word: what became of it.
        lines: What is known of it, one paragraph each.
        warnings: What must not be overlooked.
        numbers: By label or region, one per column of the table; NaN is a dash.
        picture: JPEG; None where there is none.
        viewer: Where a click on the picture leads, relative to the page; empty: nowhere.
    """

    name: str
    state: str
    lines: Sequence[str] = ()
    warnings: Sequence[str] = ()
    numbers: Mapping[str, Sequence[float]] = field(default_factory=dict)
    picture: bytes | None = None
    viewer: str = ""


def case_list(rows: Sequence[CaseRow], columns: Sequence[str]) -> Html:
    """Return the cases one below the other; a browser draws only those that are in sight.

    Args:
        rows: In the order in which they are shown.
        columns: A name for each of their numbers.
    """
    return Html("".join(_case(row, columns) for row in rows))


def _case(row: CaseRow, columns: Sequence[str]) -> str:
    lines = "".join(f"<p>{escape(line)}</p>" for line in row.lines)
    warnings = "".join(f"<li>{escape(line)}</li>" for line in row.warnings)
    numbers = ""
    if row.numbers:
        heads = "<td></td>" + "".join(
            f'<th scope="col" class="number">{escape(name)}</th>' for name in columns
        )
        body = ""
        for name, values in row.numbers.items():
            cells = "".join(f'<td class="number">{_short(value)}</td>' for value in values)
            body += f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>'
        numbers = _scrolling(f"<thead><tr>{heads}</tr></thead><tbody>{body}</tbody>")
    picture = ""
    if row.picture is not None:
        content = base64.b64encode(row.picture).decode("ascii")
        picture = (
            f'<img loading="lazy" decoding="async" alt="three planes of {escape(row.name)}" '
            f'src="data:image/jpeg;base64,{content}">'
        )
        if row.viewer:
            picture = (
                f'<a href="{escape(quote(row.viewer))}" target="_blank" '
                f'title="open the slices of {escape(row.name)}">{picture}</a>'
            )
    return (
        f'<article class="case"><div class="told"><h3>{escape(row.name)} '
        f'<span class="state {escape(row.state)}">{escape(row.state)}</span></h3>{lines}'
        f"{f'<ul class=warnings>{warnings}</ul>' if warnings else ''}{numbers}</div>"
        f'<div class="seen">{picture}</div></article>'
    )


def _short(value: float) -> str:
    return _number(value) if math.isnan(value) else f"{value:.2f}"


def _scrolling(inner: str, kind: str = "") -> Html:
    """Wrap a table so that on a narrow screen it scrolls, not the page."""
    return Html(f'<div class="scroll" tabindex="0"><table class="{kind}">{inner}</table></div>')


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
.case{display:grid;grid-template-columns:minmax(16rem,2fr) 3fr;gap:1.25rem;padding:1.1rem 0;
border-top:1px solid var(--line);content-visibility:auto;contain-intrinsic-size:auto 20rem}
.case h3{margin:0 0 .35rem;font-size:1.05rem;overflow-wrap:anywhere}
.case p{margin:.2rem 0;font-size:.9rem}
.case .scroll{margin:.5rem 0 0}.case th,.case td{padding:.2rem .6rem;font-size:.85rem}
.case img{min-width:0}
.state{font-size:.78rem;font-weight:600;padding:.1rem .5rem;border-radius:1rem;color:#fff;
background:#1a7f37;vertical-align:middle}
.state.failed{background:#b42318}.state.kept{background:#57606a}
.warnings{margin:.4rem 0;padding:.4rem .6rem .4rem 1.5rem;border-left:4px solid #d9822b;
font-size:.875rem;background:color-mix(in srgb,#d9822b 12%,transparent)}
@media(max-width:46rem){.case{grid-template-columns:1fr}}
footer{margin-top:3rem;padding-top:1rem;border-top:1px solid var(--line);color:var(--soft);
font-size:.875rem}
@media print{nav{display:none}figure,tr{break-inside:avoid}}
"""
