"""Differences of methods over many trainings, each of which tests other patients.

A *training* is done once by all methods under equal conditions: a fold, a modality set and a seed.
Its patients are scored from every subset of their modalities, and a mean is over a *part* of it:

    "own"      each case from those of its site's modalities that it has
    "subsets"  each case from every subset of its modalities
    "lacking"  each case from every subset but the one of all that it has
    "single"   each case from every single modality
    "full"     each case from all that it has

Whatever the part, the mean is over the subsets of a case, then over the cases of a site, then over
sites, then over trainings.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

from mixmfl.core.errors import DataError
from mixmfl.core.nan import defined, deviation, mean
from mixmfl.evaluation.subset_dice import Subset
from mixmfl.research.benchmark.statistics import (
    COVERAGE,
    RESAMPLES,
    Array,
    Estimate,
    Interval,
    Scores,
)

Part = Literal["own", "subsets", "lacking", "single", "full"]
PARTS: tuple[Part, ...] = ("own", "subsets", "lacking", "single", "full")

Sites = Mapping[str, Array]
"""A number for each case of a training, by site, ``(cases,)``; no site is empty."""


@dataclass(frozen=True)
class Difference:
    """By how many points one method is above another over the trainings that both did.

    Attributes:
        bootstrap: The mean, and the interval of ``hierarchical_bootstrap``.
        student: The mean, and Student's interval over the trainings' means.
        trainings: Number of trainings.
        better: Number of trainings in which the first method is above the other.
    """

    bootstrap: Interval
    student: Interval
    trainings: int
    better: int

    @property
    def widest(self) -> Interval:
        """Return the mean with the lower of both low ends and the higher of both high ends."""
        both = (self.bootstrap, self.student)
        ends = [(each.low, each.high) for each in both]
        if any(math.isnan(end) for pair in ends for end in pair):
            return Interval(self.bootstrap.mean, math.nan, math.nan)
        return Interval(
            self.bootstrap.mean, min(low for low, _ in ends), max(high for _, high in ends)
        )


@dataclass(frozen=True)
class Addition:
    """What adding a modality to a subset costs on average; points below 0 are a gain."""

    points: Interval
    subset: Subset
    added: str


class Trainings:
    """The scores of many trainings, and statistics of them.

    Attributes:
        scores: Scores by the name of a federation, such as ``"A0"``; each may have several seeds.
        methods: Methods, in the order in which ``scores`` first names them.
        sites: Sites, in the order in which ``scores`` first names them.
        modalities: Modalities of the federation with most of them.
        subsets: Subsets of ``modalities`` that are predicted from, small ones first.

    Raises:
        DataError: There are no scores.
    """

    def __init__(self, scores: Mapping[str, Scores]) -> None:
        """Take the scores; see the attributes."""
        if not scores:
            raise DataError("there are no trainings to compare; has a method been scored?")
        self.scores = dict(scores)
        federations = list(self.scores.values())
        self.methods = tuple(dict.fromkeys(name for each in federations for name in each.methods))
        self.sites = tuple(dict.fromkeys(name for each in federations for name in each.sites))
        self.modalities = max((each.modalities for each in federations), key=len)
        subsets = dict.fromkeys(subset for each in federations for subset in each.subsets)
        self.subsets = tuple(sorted(subsets, key=len))

    def of(self, *methods: str) -> list[tuple[str, int]]:
        """Return the trainings that all these methods did: federation and seed."""
        return [
            (name, seed)
            for name, each in self.scores.items()
            for seed in sorted(
                set.intersection(*(set(each.seeds.get(method, ())) for method in methods))
            )
        ]

    def points(self, method: str, part: Part) -> Estimate:
        """Return a method's points: mean and standard deviation over its trainings."""
        return Estimate.over([self.mean_of(at, method, part) for at in self.of(method)])

    def mean_of(self, training: tuple[str, int], method: str, part: Part) -> float:
        """Return a method's points in one training, which is one of those that ``of`` returns."""
        return _mean_of(self._part(training, part, method))

    def site_points(self, method: str, site: str) -> Estimate:
        """Return a method's points at one site, on own modalities."""
        by_training = [self._part(at, "own", method).get(site) for at in self.of(method)]
        return Estimate.over([float(values.mean()) for values in by_training if values is not None])

    def distance(self, method: str) -> Estimate:
        """Return a method's HD95 in mm on own modalities, where it is defined."""
        done = [each for each in self.scores.values() if method in each.methods]
        return Estimate.over([each.hd95(method, "own").mm.mean for each in done])

    def subset_points(self, method: str, subset: Subset) -> Estimate:
        """Return a method's points from one of ``subsets``."""
        by_training = [
            _by_site(self.scores[at[0]], self._from(at, method, subset)) for at in self.of(method)
        ]
        return Estimate.over([_mean_of(sites) for sites in by_training])

    def difference(self, a: str, b: str, part: Part) -> Difference:
        """Return by how many points ``a`` is above ``b``; equal arguments give equal intervals."""
        trainings = [self._part(at, part, a, b) for at in self.of(a, b)]
        means = [_mean_of(sites) for sites in trainings]
        return Difference(
            hierarchical_bootstrap(trainings, np.random.default_rng(0)),
            student_interval(means),
            len(means),
            sum(value > 0 for value in means),
        )

    def worst_addition(self, method: str) -> Addition | None:
        """Return which modality costs most when added to a subset, over cases that have both.

        It is None where no two subsets differ by one modality. As the worst of many it is above 0
        even for a method that no addition changes systematically.
        """
        worst: tuple[float, Subset, str, list[Sites]] | None = None
        for subset, added in itertools.product(self.subsets, self.modalities):
            more = tuple(name for name in self.modalities if name in (*subset, added))
            if added in subset or more not in self.subsets:
                continue
            trainings = [
                _by_site(
                    self.scores[at[0]],
                    self._from(at, method, subset) - self._from(at, method, more),
                )
                for at in self.of(method)
            ]
            cost = mean(_mean_of(sites) for sites in trainings)
            if not math.isnan(cost) and (worst is None or cost > worst[0]):
                worst = (cost, subset, added, trainings)
        if worst is None:
            return None
        interval = hierarchical_bootstrap(worst[3], np.random.default_rng(0))
        return Addition(interval, worst[1], worst[2])

    def _part(self, at: tuple[str, int], part: Part, method: str, other: str = "") -> Sites:
        """Return the points of a method's cases, or by how many they are above another's."""
        scores, seed = self.scores[at[0]], at[1]
        points, own = scores.case_points(method, seed)  # (cases, subsets)
        if other:
            points = points - scores.case_points(other, seed)[0]  # NaN where one has none
        sizes = np.array([[len(subset) for subset in scores.subsets]])
        most = np.where(np.isnan(points), 0, sizes).max(axis=1, keepdims=True)
        chosen: dict[Part, Array] = {
            "own": own,
            "subsets": np.ones_like(own),
            "lacking": sizes < most,
            "single": np.broadcast_to(sizes == 1, own.shape),
            "full": sizes == most,
        }
        rows = np.where(chosen[part], points, np.nan).tolist()
        return _by_site(scores, np.array([mean(row) for row in rows]))

    def _from(self, at: tuple[str, int], method: str, subset: Subset) -> Array:
        """Return the points of a method's cases from a subset, ``(cases,)``, NaN without it."""
        scores, seed = self.scores[at[0]], at[1]
        points, _ = scores.case_points(method, seed)
        if subset not in scores.subsets:
            return np.full(len(points), np.nan)
        return points[:, scores.subsets.index(subset)]


def hierarchical_bootstrap(trainings: Sequence[Sites], rng: np.random.Generator) -> Interval:
    """Return the mean over trainings and its percentile interval over trainings and cases.

    10,000 times, trainings are drawn with replacement, and for each draw of one, its cases with
    replacement within each site; a case's subsets stay together, for its number is their mean
    (Davison & Hinkley, Bootstrap Methods and their Application, 1997, section 3.8). With one
    training the interval is over its cases alone; without any number all three are NaN.

    Args:
        trainings: By training a number for each case, by site; trainings without cases are left
            out.
        rng: Random generator of the draws.
    """
    known = [sites for sites in trainings if sites]
    if not known:
        return Interval(math.nan, math.nan, math.nan)
    center = mean(_mean_of(sites) for sites in known)
    picked = rng.integers(len(known), size=(RESAMPLES, len(known)))
    drawn = np.empty(picked.shape)
    for number, sites in enumerate(known):
        here = picked == number
        means = [
            values[rng.integers(len(values), size=(int(here.sum()), len(values)))].mean(axis=1)
            for values in sites.values()
        ]
        drawn[here] = np.mean(means, axis=0)
    tail = (100 - COVERAGE) / 2
    low, high = np.percentile(drawn.mean(axis=1), [tail, 100 - tail])
    return Interval(center, float(low), float(high))


def student_interval(means: Sequence[float]) -> Interval:
    """Return the mean and its Student's interval, whose ends are NaN below two numbers."""
    known = defined(means)
    if len(known) < 2:
        return Interval(mean(known), math.nan, math.nan)
    quantile = float(stats.t.ppf(0.5 + COVERAGE / 200, len(known) - 1))
    half = quantile * deviation(known) / math.sqrt(len(known))
    return Interval(mean(known), mean(known) - half, mean(known) + half)


def _mean_of(sites: Sites) -> float:
    """Return the mean over cases, then over sites; NaN without any."""
    return mean(float(values.mean()) for values in sites.values())


def _by_site(scores: Scores, numbers: Array) -> Sites:
    """Return numbers ``(cases,)`` by site, without those that are NaN."""
    by_site: dict[str, list[float]] = {}
    for (site, _), value in zip(scores.cases, numbers.tolist(), strict=True):
        if not math.isnan(value):
            by_site.setdefault(site, []).append(value)
    return {site: np.array(values) for site, values in by_site.items()}
