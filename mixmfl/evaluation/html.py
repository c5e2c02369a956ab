"""A page of results that opens anywhere: one HTML file, no network, pictures inside.

The markup lies in ``templates/``, which is part of the package: what a caller passes is only ever
filled in, and Jinja2 escapes it. Nothing here writes files.
"""

import base64
import hashlib
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from mixmfl.core.nan import mean
from mixmfl.core.version import __version__
from mixmfl.evaluation.charts import Chart
from mixmfl.evaluation.overlay import PALETTE, REFERENCE_COLOUR

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Picture:
    """A PNG and its caption."""

    caption: str
    png: bytes


@dataclass(frozen=True)
class LegendEntry:
    """The name of an outline in the pictures, and how the outline is drawn."""

    name: str
    colour: str
    dashed: bool = False


def legend(regions: Collection[str], *, reference: bool = True) -> list[LegendEntry]:
    """Return what the outlines of ``overlay`` mean: the regions' colours, then the reference."""
    entries = [LegendEntry(name, PALETTE[n % len(PALETTE)]) for n, name in enumerate(regions)]
    if reference:
        entries.append(LegendEntry("reference (all regions)", REFERENCE_COLOUR, dashed=True))
    return entries


@dataclass(frozen=True)
class HeatTable:
    """A table of one row per subset of modalities, its cells shaded by value.

    A dot says that a modality was given, a ring that it was withheld. The last row is the mean
    over the subsets, without NaN; NaN is shown as a dash.

    Attributes:
        subsets: The modalities of each row.
        modalities: All modalities, one narrow column each.
        columns: A name for each column of ``values``, for example the regions.
        values: One row per subset, one number from 0 to 1 per column.
    """

    subsets: Sequence[Collection[str]]
    modalities: Sequence[str]
    columns: Sequence[str]
    values: Sequence[Sequence[float]]

    def rows(self) -> list[tuple[Collection[str], Sequence[float]]]:
        """Return each subset with its numbers."""
        return list(zip(self.subsets, self.values, strict=True))

    def means(self) -> list[float]:
        """Return the mean of each column, without NaN."""
        return [mean(column) for column in zip(*self.values, strict=True)]


@dataclass(frozen=True)
class CaseRow:
    """What a page shows of one case.

    Attributes:
        name: Name of the case.
        state: What became of the case, in one word.
        lines: What is known of the case, one paragraph each.
        warnings: What must not be overlooked.
        numbers: Numbers by label or region, one per column of the table; NaN is a dash.
        picture: JPEG of the case; None where there is none.
        viewer: Page that a click on the picture opens, relative to this one; empty: none.
        lowest: The lowest estimated Dice of its labels; NaN where nothing is estimated.
    """

    name: str
    state: str
    lines: Sequence[str]
    warnings: Sequence[str]
    numbers: Mapping[str, Sequence[float]] = field(default_factory=dict)
    picture: bytes | None = None
    viewer: str = ""
    lowest: float = math.nan


@dataclass(frozen=True)
class Table:
    """A table of texts.

    Attributes:
        columns: A name for each column; the first names the rows.
        rows: The rows, one text per column.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Section:
    """A part of a page under a heading of its own; what is empty is not shown.

    Attributes:
        title: The heading.
        text: Paragraphs, separated by empty lines.
        table: Numbers by subset of modalities.
        legend: What the outlines in the pictures mean.
        cases: Cases, in the order in which they are shown.
        columns: A name for each of the numbers of ``cases``.
        pictures: Pictures, one below the other.
        facts: Texts by a short heading each.
        tables: Tables of texts.
        charts: Curves, none of them empty.
        warnings: What must not be overlooked in any of it.
    """

    title: str
    text: str = ""
    table: HeatTable | None = None
    legend: Sequence[LegendEntry] = ()
    cases: Sequence[CaseRow] = ()
    columns: Sequence[str] = ()
    pictures: Sequence[Picture] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    tables: Sequence[Table] = ()
    charts: Sequence[Chart] = ()
    warnings: Sequence[str] = ()

    @property
    def listed(self) -> list[tuple[int, CaseRow]]:
        """Return the cases with their numbers on the page, those of the lowest Dice first."""
        numbered = enumerate(self.cases, start=1)
        return sorted(numbered, key=lambda each: (math.isnan(each[1].lowest), each[1].lowest))


def page(
    title: str,
    introduction: str,
    sections: Sequence[Section],
    *,
    notice: str = "",
    alarms: Sequence[str] = (),
) -> str:
    """Return the page as text: nothing in it is loaded from elsewhere.

    Args:
        title: Heading, and title of the window.
        introduction: Paragraphs, separated by empty lines.
        sections: Parts of the page, in the order in which they are shown.
        notice: What stands above everything, and stays there; empty: nothing.
        alarms: What stands there in red.
    """
    return _TEMPLATES.get_template("page.html").render(
        title=title,
        introduction=introduction,
        sections=sections,
        version=__version__,
        notice=notice,
        alarms=alarms,
    )


def fill_viewer(**values: Any) -> str:
    """Return the template of ``viewer.viewer_page``, filled in; what is filled in is escaped."""
    return _TEMPLATES.get_template("viewer.html").render(**values)


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


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


def _digest(script: str) -> str:
    """Return the name of a script's content, by which a page lets the browser run no other."""
    return f"sha256-{_base64(hashlib.sha256(script.encode()).digest())}"


def _decimal(value: float, digits: int) -> str:
    return f"{value:.{digits}f}"


def _shading(value: float) -> str:
    """Return the style of a cell: its background, and black or white, whichever reads better.

    The cell brings both colours, so it is the same in light and dark mode.
    """
    colour = shade(value)
    ink = "#000" if luminance(colour) > 0.179 else "#fff"
    return f"background:#{bytes(colour).hex()};color:{ink}"


# Only files of this package are templates, never a text that is made or read elsewhere.
_TEMPLATES = Environment(
    loader=PackageLoader("mixmfl.evaluation", "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
    auto_reload=False,
)
_TEMPLATES.filters.update(base64=_base64, digest=_digest, decimal=_decimal, shading=_shading)
_TEMPLATES.tests.update(nan=math.isnan)
