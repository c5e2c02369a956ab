"""Curves as inline SVG for a page: points in pixels and ticks; the template draws them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

Point = tuple[float, float]

WIDTH, HEIGHT = 640, 260
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 12, 36

# of middle lightness, to be seen on a light and on a dark page; then again with dashes
COLOURS = (
    "#2f81f7",
    "#e3702a",
    "#2da44e",
    "#a475f9",
    "#bf8700",
    "#db61a2",
    "#1b9aaa",
    "#8b949e",
)
_DASHES = ("", "6 4", "2 3")

_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True)
class Curve:
    """One curve as the template draws it.

    Attributes:
        name: Its name.
        colour: Its colour.
        dash: Its dashes, as SVG has them; empty: none.
        lines: Its parts without gaps, each the text of a polyline's points.
        dots: Points that have no neighbour, as (x, y).
    """

    name: str
    colour: str
    dash: str
    lines: Sequence[str]
    dots: Sequence[Point]


@dataclass(frozen=True)
class Chart:
    """Numbers by round.

    Attributes:
        title: What is drawn.
        curves: By name the points (round, number); NaN makes a gap.
        marks: By name a place on the horizontal axis, which gets a vertical line.
        low: Lower end of the vertical axis; None: by the numbers.
        high: Its upper end.
    """

    title: str
    curves: Mapping[str, Sequence[Point]]
    marks: Mapping[str, float] = field(default_factory=dict)
    low: float | None = None
    high: float | None = None

    @property
    def is_empty(self) -> bool:
        """Say whether there is nothing to draw."""
        return not self._known()

    def drawn(self) -> list[Curve]:
        """Return the curves in pixels."""
        curves = []
        for number, (name, points) in enumerate(self.curves.items()):
            colour = COLOURS[number % len(COLOURS)]
            dash = _DASHES[number // len(COLOURS) % len(_DASHES)]
            parts = _without_gaps(points)
            lines = [" ".join(f"{self._x(x):.1f},{self._y(y):.1f}" for x, y in p) for p in parts]
            alone = [(self._x(p[0][0]), self._y(p[0][1])) for p in parts if len(p) == 1]
            curves.append(Curve(name, colour, dash, lines, alone))
        return curves

    def drawn_marks(self) -> list[tuple[float, str]]:
        """Return where the vertical lines are, and their names."""
        return [(self._x(place), name) for name, place in self.marks.items()]

    def x_ticks(self) -> list[tuple[float, str]]:
        """Return where the ticks of the horizontal axis are, and their whole numbers."""
        first, last = self._across()
        ticks = [value for value in _ticks(first, last, 8) if value == round(value)]
        return [(self._x(value), f"{value:.0f}") for value in ticks]

    def y_ticks(self) -> list[tuple[float, str]]:
        """Return where the ticks of the vertical axis are, and their numbers."""
        return [(self._y(value), f"{value:.6g}") for value in _ticks(*self._up(), 5)]

    def _known(self) -> list[Point]:
        return [p for points in self.curves.values() for p in points if math.isfinite(p[1])]

    def _across(self) -> Point:
        places = [x for points in self.curves.values() for x, _ in points]
        return min(places), max(max(places), min(places) + 1)

    def _up(self) -> Point:
        numbers = [y for _, y in self._known()]
        low = min(numbers) if self.low is None else self.low
        high = max(numbers) if self.high is None else self.high
        return (low, high) if high > low else (low - 0.5, low + 0.5)

    def _x(self, value: float) -> float:
        first, last = self._across()
        return LEFT + (value - first) / (last - first) * (WIDTH - LEFT - RIGHT)

    def _y(self, value: float) -> float:
        low, high = self._up()
        return HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM)


def _without_gaps(points: Sequence[Point]) -> list[list[Point]]:
    """Return the longest parts of a curve in which all numbers are known."""
    parts: list[list[Point]] = [[]]
    for point in points:
        if math.isfinite(point[1]):
            parts[-1].append(point)
        elif parts[-1]:
            parts.append([])
    return [part for part in parts if part]


def _ticks(low: float, high: float, most: int) -> list[float]:
    """Return round numbers from ``low`` to ``high``, about ``most`` of them."""
    raw = (high - low) / most
    size = 10 ** math.floor(math.log10(raw))
    step = next(each * size for each in _STEPS if each * size >= raw * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]
