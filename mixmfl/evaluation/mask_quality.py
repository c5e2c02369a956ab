"""How good this very mask is: its Dice, estimated from the network's own confidence.

A network is less sure of its bad masks. How its confidence goes with Dice is measured on the
sites' validation cases when training ends, as sums that add up over sites, and kept in the model
file: Dice is regressed on the square of confidence, by label, over the masks from every subset of
modalities. Prediction removes small components, and which ones is known only when all sites have
answered: so sites sum Dice for each share of the largest component that may be chosen.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated

from scipy.special import stdtr, stdtrit

from mixmfl.core.declarations import entries, text, within
from mixmfl.data.labels import LONGEST_NAME, MOST_LABELS
from mixmfl.evaluation.reliability import Reliabilities
from mixmfl.evaluation.small_components import SHARES, Components
from mixmfl.evaluation.subset_dice import FEWEST_CASES, MOST_CASES, MOST_SUBSETS, Expected

COVERAGE = 0.9
"""Share of masks whose Dice is meant to lie in the interval of the estimate."""

LOOK_CLOSELY = 0.6
"""A warning says that a mask with a lower estimate is to be looked at closely.

It is above the Dice of a bad mask, so that most bad ones are warned of: estimates are not exact."""

_LEAST_MISSING = 0.1
"""Of a Dice of 1: the spread of better masks is taken to be that of these."""

_ALIKE = 0.3
"""Correlation of what masks of one case differ from the line, as measured on patients."""

_MOST = float(MOST_CASES) * MOST_SUBSETS

_Sum = Annotated[float, within(0, _MOST)]
_ByShare = Annotated[tuple[_Sum, ...], entries(len(SHARES), len(SHARES))]
_NOTHING = (0.0,) * len(SHARES)


@dataclass(frozen=True)
class ConfidenceSums:
    """Sums over masks of one label, ``x`` being the square of confidence and ``y`` the Dice.

    Those with ``y`` are one for each of ``SHARES``, of the masks without the components below that
    share of the largest.

    Attributes:
        cases: Cases that the masks are of.
        masks: Masks in which the label is; a case has one from every subset of its modalities.
        x: Sum of ``x``.
        y: Sum of ``y``.
        xx: Sum of ``x * x``.
        xy: Sum of ``x * y``.
        yy: Sum of ``y * y``.
    """

    cases: Annotated[int, within(0, MOST_CASES)] = 0
    masks: Annotated[int, within(0, MOST_CASES * MOST_SUBSETS)] = 0
    x: _Sum = 0.0
    y: _ByShare = _NOTHING
    xx: _Sum = 0.0
    xy: _ByShare = _NOTHING
    yy: _ByShare = _NOTHING

    @property
    def is_possible(self) -> bool:
        """Say whether any masks have these sums: each is of numbers from 0 to 1."""
        n, slack = self.masks, 1e-9 * self.masks
        squares = [(self.x, self.xx), *zip(self.y, self.yy, strict=True)]
        return (
            (self.cases <= n if n else not self.cases)
            and all(
                total <= n and total**2 / max(n, 1) <= square + slack and square <= total + slack
                for total, square in squares
            )
            and all(xy <= min(self.x, y) + slack for y, xy in zip(self.y, self.xy, strict=True))
        )


Confidence = Annotated[
    Mapping[Annotated[str, text(LONGEST_NAME)], ConfidenceSums], entries(0, MOST_LABELS)
]
"""Sums by label or region, as messages and model files have them."""


@dataclass(frozen=True)
class Measured:
    """What is measured on validation cases when training ends.

    Attributes:
        expected: How many cases have which Dice, by subset of modalities.
        confidence: How Dice goes with confidence, by label or region.
        reliability: How often the network is right at which probability, by label or region.
        components: What Dice is without small components, by label or region.
    """

    expected: Expected = ()
    confidence: Confidence = field(default_factory=dict)
    reliability: Reliabilities = field(default_factory=dict)
    components: Components = field(default_factory=dict)


@dataclass(frozen=True)
class DiceEstimate:
    """The estimated Dice of one label in one mask.

    Attributes:
        dice: The estimate, 0 to 1.
        low: Lower end of the interval of ``COVERAGE``.
        high: Its upper end.
    """

    dice: Annotated[float, within(0, 1)]
    low: Annotated[float, within(0, 1)]
    high: Annotated[float, within(0, 1)]


def in_words(estimates: Mapping[str, DiceEstimate]) -> str:
    """Return estimates by label or region as text, such as ``lesion 0.71 (0.48 to 0.94)``."""
    return ", ".join(
        f"{name} {each.dice:.2f} ({each.low:.2f} to {each.high:.2f})"
        for name, each in estimates.items()
    )


def look_closely(estimates: Mapping[str, DiceEstimate]) -> list[str]:
    """Return a warning about the labels that are probably segmented badly in this mask."""
    bad = {name: each for name, each in estimates.items() if each.dice < LOOK_CLOSELY}
    return [f"look closely: this mask's Dice is estimated at {in_words(bad)}"] if bad else []


def sums_of_case(masks: Iterable[tuple[float, Sequence[float]]]) -> ConfidenceSums:
    """Return the sums over the masks of one label and case.

    Args:
        masks: Confidence of each mask, and its Dice for each of ``SHARES``; one whose confidence is
            NaN, as where it lacks the label, is left out.
    """
    known = [(c * c, dice) for c, dice in masks if not math.isnan(c)]
    if not known:
        return ConfidenceSums()
    x = [x for x, _ in known]
    by_share = list(zip(*(dice for _, dice in known), strict=True))
    return ConfidenceSums(
        cases=1,
        masks=len(known),
        x=math.fsum(x),
        y=tuple(map(math.fsum, by_share)),
        xx=math.fsum(a * a for a in x),
        xy=tuple(math.fsum(a * b for a, b in zip(x, y, strict=True)) for y in by_share),
        yy=tuple(math.fsum(b * b for b in y) for y in by_share),
    )


def add_sums(parts: Sequence[ConfidenceSums]) -> ConfidenceSums:
    """Return the sums over all parts; their order changes no bit."""

    def by_share(each: Iterable[Sequence[float]]) -> tuple[float, ...]:
        return tuple(map(math.fsum, zip(*each, strict=True)))

    return ConfidenceSums(
        sum(each.cases for each in parts),
        sum(each.masks for each in parts),
        math.fsum(each.x for each in parts),
        by_share(each.y for each in parts),
        math.fsum(each.xx for each in parts),
        by_share(each.xy for each in parts),
        by_share(each.yy for each in parts),
    )


def estimate_dice(
    sums: ConfidenceSums, confidence: float, share: float = 0.0
) -> DiceEstimate | None:
    """Return the Dice that is estimated for one label of a mask.

    Least squares, with the interval for a new observation (Draper and Smith 1998, Applied
    Regression Analysis, section 3.1). Masks of a case resemble each other, so they count for fewer
    (the design effect; Kish 1965, Survey Sampling, section 5.4). Good masks differ less from the
    line than bad ones: the standard deviation is taken to be in proportion to what the estimate
    lacks to 1 (a spread that depends on the mean; Carroll and Ruppert 1988, Transformation and
    Weighting in Regression, chapter 3).

    Args:
        sums: Sums of the label over the validation cases.
        confidence: Mean probability of the label over the voxels that the network gives it.
        share: The share below which components are then removed from the mask, of ``SHARES``.

    Returns:
        The estimate; None where there is none: the mask lacks the label (``confidence`` is
        NaN), fewer than ``FEWEST_CASES`` were measured, or Dice does not rise with confidence.
    """
    if math.isnan(confidence) or sums.cases < FEWEST_CASES:
        return None
    chosen = SHARES.index(share)
    x, y = sums.x / sums.masks, sums.y[chosen] / sums.masks
    spread = max(0.0, sums.xx / sums.masks - x * x)
    together = sums.xy[chosen] / sums.masks - x * y
    if spread < 1e-9 or together <= 0:
        return None
    slope = together / spread
    rest = max(0.0, sums.yy[chosen] / sums.masks - y * y - slope * together)
    known = sums.masks / (1 + (sums.masks / sums.cases - 1) * _ALIKE)
    free = known - 2
    away = confidence * confidence - x
    dice = min(1.0, max(0.0, y + slope * away))
    # the mean of (1 - estimate)^2 over the masks; 0 where all are perfect
    missing = max((1 - y) ** 2 + slope * together, _LEAST_MISSING**2)
    of_mask = rest * max(1 - dice, _LEAST_MISSING) ** 2 / missing
    of_line = rest * (1 + away * away / spread) / known
    variance = (of_mask + of_line) * known / free
    return DiceEstimate(dice, *_interval(dice, math.sqrt(variance), free))


def _interval(centre: float, scale: float, free: float) -> tuple[float, float]:
    """Return the shortest interval with ``COVERAGE`` of what lies in 0 to 1 of a Student's t."""
    scale = max(scale, 1e-9)

    def quantile(share: float) -> float:
        # what scipy.stats takes for its t, and a second less to import
        return float(centre + scale * stdtrit(free, share))

    below = float(stdtr(free, (0 - centre) / scale))
    inside = float(stdtr(free, (1 - centre) / scale)) - below
    half = quantile((1 + COVERAGE * inside) / 2) - centre
    if centre + half > 1:
        return max(0.0, quantile(below + (1 - COVERAGE) * inside)), 1.0
    if centre < half:
        return 0.0, min(1.0, quantile(below + COVERAGE * inside))
    return centre - half, centre + half
