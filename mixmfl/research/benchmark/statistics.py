"""Statistics of a benchmark, from the scores of single predictions.

A case's *points* are 100 times its mean Dice over the regions. NaN is left out of any mean,
such as the Dice of a region that neither reference nor prediction has; a region that is predicted
but not in the reference has Dice 0. Scores are averaged in two kinds:

    "own"      each case from those of its site's modalities that it has
    "subsets"  each case from every subset of its modalities

Either way the mean is over the cases of a site, then over sites, so that every site counts the
same, then over subsets. It is taken for each seed by itself, so that a standard deviation over
seeds is that of the number beside it.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from mixmfl.core.errors import DataError
from mixmfl.core.nan import deviation, mean
from mixmfl.evaluation.subset_dice import Subset
from mixmfl.research.benchmark.scores import Row

Array = npt.NDArray[Any]
Kind = Literal["own", "subsets"]
KINDS: tuple[Kind, ...] = ("own", "subsets")

RESAMPLES = 10_000
COVERAGE = 95  # per cent


@dataclass(frozen=True)
class Interval:
    """A mean and the ends of its 95 % confidence interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and the sample standard deviation over them, NaN for one seed."""

    mean: float
    std: float

    @classmethod
    def over(cls, seeds: Sequence[float] | Array) -> "Estimate":
        """Return the estimate from a number per seed, ``(seeds,)``; NaN is left out."""
        numbers = [float(value) for value in seeds]
        return cls(mean(numbers), deviation(numbers))


@dataclass(frozen=True)
class Distance:
    """HD95 in mm where it is defined, and the share (0 to 1) of regions where it is not."""

    mm: Estimate
    undefined: float


@dataclass(frozen=True)
class Loss:
    """The points that adding a modality to a subset costs on average; below 0 it gains."""

    points: float
    subset: Subset
    added: str


class Scores:
    """The scores of all predictions, and statistics of them.

    A prediction that was not made counts as NaN: it is left out, and ``missing`` counts it.

    Attributes:
        methods: Methods, in the order in which the rows first name them.
        seeds: Seeds of each method, sorted.
        sites: Sites with cases, in the order of ``own``.
        own: Modalities of each site.
        cases: Pairs of site and case, site by site.
        modalities: Modalities, in the order of the row that has most of them.
        subsets: Subsets predicted from, small ones first.
        regions: Regions, in the order in which the rows first name them.
        missing: By method, the number of predictions of a case from a subset that it lacks and
            another method or seed has.

    Args:
        rows: Scores, in any order.
        own: Modalities of each site; may be empty.

    Raises:
        DataError: There are no rows, a row is repeated, or its site is not in ``own``.
    """

    def __init__(self, rows: Iterable[Row], own: Mapping[str, Sequence[str]]) -> None:
        rows = list(rows)
        if not rows:
            raise DataError("there are no scores to compare; has a method been evaluated?")
        if unknown := sorted({row.site for row in rows} - own.keys()):
            raise DataError(
                f"scores are of the sites {', '.join(unknown)}; known sites are {', '.join(own)}; "
                "are scores and sites of the same benchmark?"
            )
        with_cases = {row.site for row in rows}
        self.sites = tuple(site for site in own if site in with_cases)
        self.own = {site: tuple(own[site]) for site in self.sites}
        cases = dict.fromkeys((row.site, row.case) for row in rows)
        self.cases = tuple(sorted(cases, key=lambda case: self.sites.index(case[0])))
        self.methods = tuple(dict.fromkeys(row.method for row in rows))
        self.regions = tuple(dict.fromkeys(row.region for row in rows))
        self.modalities, self.subsets = _order_subsets({row.modalities: None for row in rows})
        seeds = self._all_seeds = tuple(sorted({row.seed for row in rows}))

        # (methods, seeds, cases, subsets, regions); a seed that a method lacks stays NaN
        axes = (self.methods, seeds, self.cases, self.subsets, self.regions)
        self._dice = np.full([len(axis) for axis in axes], np.nan)
        self._hd95 = self._dice.copy()
        scored = np.zeros(self._dice.shape, dtype=bool)
        places = [{item: n for n, item in enumerate(axis)} for axis in axes]
        for row in rows:
            subset = tuple(name for name in self.modalities if name in row.modalities)
            items = (row.method, row.seed, (row.site, row.case), subset, row.region)
            place = tuple(at[item] for at, item in zip(places, items, strict=True))
            if scored[place]:
                raise DataError(
                    f"{row.method}, seed {row.seed}: {row.region} of case {row.case!r} from "
                    f"{'+'.join(subset)} has two scores; remove one of them"
                )
            scored[place] = True
            self._dice[place] = row.dice
            self._hd95[place] = row.hd95

        self._predicted = np.any(scored, axis=4)  # (methods, seeds, cases, subsets)
        trained = np.any(self._predicted, axis=(2, 3))  # (methods, seeds)
        by_any = np.any(self._predicted, axis=(0, 1))  # (cases, subsets)
        missing = by_any & ~self._predicted & trained[:, :, None, None]
        self.missing = dict(zip(self.methods, missing.sum(axis=(1, 2, 3)).tolist(), strict=True))
        self.seeds = {
            method: tuple(seed for seed, has in zip(seeds, having, strict=True) if has)
            for method, having in zip(self.methods, trained, strict=True)
        }
        self._site_of = np.array([self.sites.index(site) for site, _ in self.cases])
        self._is_own = np.array(  # (cases, subsets), at most one True per case
            [
                self._find_own(site, from_)
                for (site, _), from_ in zip(self.cases, by_any, strict=True)
            ]
        )

    def _find_own(self, site: str, predicted: Array) -> list[bool]:
        """Return which subset is a case's own; ``predicted`` holds those it was predicted from."""
        has = {name for n in np.flatnonzero(predicted) for name in self.subsets[n]}
        own = has.intersection(self.own[site])
        return [own == set(subset) for subset in self.subsets]

    def points(self, method: str, kind: Kind, region: str | None = None) -> Estimate:
        """Return a method's points for one region, or for the mean over regions."""
        return Estimate.over(self._by_seed(self._points(method, region), kind))

    def site_points(self, method: str, site: str) -> Estimate:
        """Return a method's points on a site's cases, each from its own modalities."""
        at_site = self._own(self._points(method))[:, self._site_of == self.sites.index(site)]
        return Estimate.over(_mean(at_site, axis=1))

    def subset_points(self, method: str, subset: Subset) -> Estimate:
        """Return a method's points from one of ``subsets``."""
        from_it = self._points(method)[..., [self.subsets.index(subset)]]
        return Estimate.over(self._by_seed(from_it, "subsets"))

    def hd95(self, method: str, kind: Kind, region: str | None = None) -> Distance:
        """Return a method's HD95, averaged as points are.

        It is undefined where there is a Dice but no distance: one mask has the region, the other
        does not.
        """
        dice = self._of(method, self._dice, region)
        distances = self._of(method, self._hd95, region)
        undefined = np.where(np.isnan(dice), np.nan, np.isnan(distances))
        return Distance(
            Estimate.over(self._by_seed(_mean(distances, axis=3), kind)),
            Estimate.over(self._by_seed(_mean(undefined, axis=3), kind)).mean,
        )

    def largest_loss(self, method: str) -> Loss | None:
        """Return which modality costs a method most when added, and to what.

        Points are averaged as in ``subset_points``, but only over the cases that have both
        subsets. None where no two subsets differ by one modality.
        """
        points = self._points(method)  # (seeds, cases, subsets)
        predicted = self._predicted[self.methods.index(method)]
        losses = []
        for n, subset in enumerate(self.subsets):
            for added in self.modalities:
                more = tuple(name for name in self.modalities if name in (*subset, added))
                if more == subset or more not in self.subsets:
                    continue
                pair = [n, self.subsets.index(more)]
                both = predicted[..., pair].all(axis=2, keepdims=True)
                shared = np.where(both, points[..., pair], np.nan)
                before, after = (
                    Estimate.over(self._by_seed(shared[..., [k]], "subsets")).mean for k in (0, 1)
                )
                losses.append(Loss(before - after, subset, added))
        known = [loss for loss in losses if not math.isnan(loss.points)]
        return max(known, key=lambda loss: loss.points, default=None)

    def difference(self, a: str, b: str, kind: Kind) -> Interval:
        """Return by how many points ``a`` is above ``b``, with the interval.

        Where both methods have the same seeds and predictions, the mean is that of ``points`` of
        ``a`` minus that of ``b``. See ``paired`` for what is compared and ``bootstrap`` for the
        interval; equal arguments give equal intervals.
        """
        points, sites = self.paired(a, b, kind)

        def lead(draws: Array) -> Array:
            by_method = _mean(_average(points, sites, draws), axis=2)  # (N, 2)
            return by_method[:, 0] - by_method[:, 1]

        return bootstrap(lead, np.bincount(sites), np.random.default_rng(0))

    def paired(self, a: str, b: str, kind: Kind) -> tuple[Array, Array]:
        """Return the points of what two methods both predicted, and the sites of these cases.

        Returns:
            Points, ``(2, seeds, cases, subsets)``, NaN where one of the two has no prediction; for
            "own" the only subset is the case's own. Seeds and cases without any prediction are
            left out.
            Number of each case's site in ``sites``, ``(cases,)``.
        """
        methods = [self.methods.index(a), self.methods.index(b)]
        both = self._predicted[methods].all(axis=0)  # (seeds, cases, subsets)
        points = np.where(both, np.stack([self._points(a), self._points(b)]), np.nan)
        if kind == "own":
            points = self._own(points)[..., None]
        known = ~np.isnan(points)
        seeds, cases = known.any(axis=(0, 2, 3)), known.any(axis=(0, 1, 3))
        return points[:, seeds][:, :, cases], self._site_of[cases]

    def case_points(self, method: str, seed: int) -> tuple[Array, Array]:
        """Return the points of a training, and which of them are from a case's own modalities.

        Returns:
            Points, ``(cases, subsets)``, in the order of ``cases`` and ``subsets``; NaN where
            there is no prediction.
            Bool, ``(cases, subsets)``.
        """
        at = self._all_seeds.index(seed)
        return self._points(method)[at], self._is_own

    def _points(self, method: str, region: str | None = None) -> Array:
        """Return a method's points, ``(seeds, cases, subsets)``."""
        return 100 * _mean(self._of(method, self._dice, region), axis=3)

    def _of(self, method: str, values: Array, region: str | None) -> Array:
        """Return a method's part of all values, with the one region or all of them."""
        regions = slice(None) if region is None else [self.regions.index(region)]
        return values[self.methods.index(method)][..., regions]

    def _own(self, values: Array) -> Array:
        """Return the values from own modalities, ``(..., cases, subsets)`` to ``(..., cases)``."""
        return _mean(np.where(self._is_own, values, np.nan), axis=-1)

    def _by_seed(self, values: Array, kind: Kind) -> Array:
        """Return the mean of a kind for every seed: ``(seeds, cases, subsets)`` to one axis."""
        if kind == "own":
            values = self._own(values)[..., None]
        return _average(values, self._site_of, np.ones((1, len(self.cases))))[0]


def bootstrap(
    statistic: Callable[[Array], Array], cases: Sequence[int] | Array, rng: np.random.Generator
) -> Interval:
    """Return a statistic of all cases and its percentile interval.

    Cases are drawn with replacement within each site, so that every site keeps its weight; the
    interval holds the middle 95 % of the statistic of 10,000 such draws (Efron & Tibshirani, An
    Introduction to the Bootstrap, 1993, chapter 13). A site's only case is always drawn; where no
    site has two, the interval's ends are NaN, as are all three without any case.

    Args:
        statistic: Function from how often each case is drawn, ``(N, cases)``, to ``(N,)`` numbers;
            a draw whose number is NaN is left out.
        cases: Number of cases of each site, in the order in which ``statistic`` takes them.
        rng: Random generator that draws the cases.
    """
    if not sum(cases):
        return Interval(math.nan, math.nan, math.nan)
    value = float(statistic(np.ones((1, sum(cases)))).item())
    if math.isnan(value) or max(cases) == 1:
        return Interval(value, math.nan, math.nan)
    draws = [rng.multinomial(n, np.full(n, 1 / n), size=RESAMPLES) for n in cases if n]
    tail = (100 - COVERAGE) / 2
    low, high = np.nanpercentile(statistic(np.concatenate(draws, axis=1)), [tail, 100 - tail])
    return Interval(value, float(low), float(high))


def _order_subsets(chosen: Iterable[Subset]) -> tuple[Subset, tuple[Subset, ...]]:
    """Return the modalities, in the order of the largest subset, and the subsets, small first."""
    chosen = list(chosen)
    fullest = max(chosen, key=len)
    modalities = tuple(dict.fromkeys(name for subset in (fullest, *chosen) for name in subset))
    places = {tuple(sorted(map(modalities.index, subset))) for subset in chosen}
    in_order = sorted(places, key=lambda subset: (len(subset), subset))
    return modalities, tuple(tuple(modalities[n] for n in subset) for subset in in_order)


def _average(values: Array, sites: Array, draws: Array) -> Array:
    """Return the mean over the cases of a site, then over sites, then over subsets.

    Args:
        values: Numbers, ``(..., cases, subsets)``; NaN is left out.
        sites: Number of each case's site, ``(cases,)``.
        draws: How often each case counts, ``(N, cases)``.

    Returns:
        ``(N, ...)``
    """
    known = ~np.isnan(values)
    filled = np.where(known, values, 0)
    means = []
    for site in np.unique(sites):
        at_site = sites == site
        total, count = (
            np.tensordot(draws[:, at_site].astype(float), each[..., at_site, :], axes=(1, -2))
            for each in (filled, known.astype(float))
        )  # (N, ..., subsets)
        means.append(_divide(total, count))
    return _mean(_mean(np.stack(means), axis=0), axis=-1)


def _mean(values: Array, axis: int) -> Array:
    """Return the mean without NaN; NaN where there is nothing else, with no warning."""
    known = ~np.isnan(values)
    return _divide(np.where(known, values, 0).sum(axis=axis), known.sum(axis=axis))


def _divide(total: Array, count: Array) -> Array:
    """Return their quotient, NaN where both are 0."""
    with np.errstate(invalid="ignore"):
        return total / count
