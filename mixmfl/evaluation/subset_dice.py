"""How good a model is expected to be from each subset of modalities, as its file says.

Measured on validation cases when training ends (see ``subset_validation``). The file has counts of
cases by Dice, added up over sites; ``expect`` makes of them what is shown beside a mask.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from typing import Annotated

from mixmfl.core.declarations import entries, text, within
from mixmfl.core.nan import mean, or_none
from mixmfl.core.text import plural
from mixmfl.data.labels import LONGEST_NAME as LONGEST_LABEL
from mixmfl.data.labels import MOST_LABELS
from mixmfl.data.modalities import LONGEST_NAME, MOST_MODALITIES

Subset = tuple[str, ...]
Counts = tuple[int, ...]
"""How many cases have a Dice in each of ``BINS`` equal ranges from 0 to 1."""

BINS = 20

FEWEST_CASES = 5
"""Validation cases with a label, below which nothing is concluded from what they measured of it."""

MOST_CASES = 10**9
"""Most cases behind an expected Dice that is read from a file."""

MOST_SUBSETS = 2**16
"""Most subsets of modalities for which a file may have an expected Dice."""

LOW_DICE = 0.5  # a median below it, and a warning says that a label is segmented badly
FEW_CASES = 3  # fewer say nothing
ENOUGH_CASES = 20  # fewer are filled up by those of a subset inside
LOW, MEDIAN = 0.1, 0.5


@dataclass(frozen=True)
class SubsetDice:
    """Dice from one subset of modalities, as measured.

    Attributes:
        modalities: The subset, sorted.
        counts: By label or region, how many validation cases have which Dice. A case counts for a
            label where its mask or its reference has it.
    """

    modalities: Annotated[
        tuple[Annotated[str, text(LONGEST_NAME)], ...], entries(1, MOST_MODALITIES, distinct=True)
    ]
    counts: Annotated[
        Mapping[
            Annotated[str, text(LONGEST_LABEL)],
            Annotated[tuple[Annotated[int, within(0, MOST_CASES)], ...], entries(BINS, BINS)],
        ],
        entries(0, MOST_LABELS),
    ]

    @property
    def cases(self) -> int:
        """Return how many cases stand behind the label with most of them."""
        return max(map(sum, self.counts.values()), default=0)


Expected = Annotated[Sequence[SubsetDice], entries(0, MOST_SUBSETS)]
"""What a file says of subsets."""


@dataclass(frozen=True)
class LabelDice:
    """Dice to expect of a label.

    Attributes:
        median: Half of the cases have less.
        low: One case in ten has less; the lower end of the range of Dice that it is in.
        cases: How many cases were measured from these very modalities.
    """

    median: Annotated[float, within(0, 1)]
    low: Annotated[float, within(0, 1)]
    cases: Annotated[int, within(0, MOST_CASES)]


@dataclass(frozen=True)
class Expectation:
    """What to expect of masks from one subset of modalities.

    Attributes:
        modalities: The subset, sorted.
        dice: By label or region; a label that nobody measured is missing.
        inside: Parts of the subset, whose cases fill up those of the subset, as these are few or
            none: the best part, then the best part of this one if it has few itself, and so on.
            Empty: the cases are enough, or no part was measured.
        filled: How many cases of these parts count.
        fewest: How many cases count for the label with fewest, those of parts among them.
    """

    modalities: Subset
    dice: Mapping[str, LabelDice] = field(default_factory=dict)
    inside: tuple[Subset, ...] = ()
    filled: int = 0
    fewest: int = 0

    @property
    def median(self) -> float:
        """Return the mean of the labels' medians; NaN where none was measured."""
        return mean(each.median for each in self.dice.values())

    @property
    def low(self) -> float:
        """Return the mean of the labels' lower bounds; NaN where none was measured."""
        return mean(each.low for each in self.dice.values())

    @property
    def cases(self) -> int:
        """Return how many cases were measured of the label with most of them."""
        return max((each.cases for each in self.dice.values()), default=0)

    @property
    def is_known(self) -> bool:
        """Say whether so many cases stand behind every label that it says anything."""
        return self.fewest >= FEW_CASES

    def basis(self) -> str:
        """Return in words what the numbers rest on; empty where there are none."""
        if not self.dice:
            return ""
        measured = plural(self.cases, "validation case")
        if not self.inside:
            return measured
        if not self.cases:
            return f"never measured; at least {self._of_part()}"
        best, rest = self._part()
        return f"{measured}, filled up with {self.filled} from {best}, a part of it{rest}"

    def _of_part(self) -> str:
        """Return in words whose numbers these are where the subset itself was not measured."""
        best, rest = self._part()
        return f"that of {best}, a part of it{rest} ({plural(self.filled, 'case')})"

    def _part(self) -> tuple[str, str]:
        """Return the best part, and in words where its own numbers are from besides."""
        best, *others = ("+".join(part) for part in self.inside)
        return best, f", itself filled up from {' and '.join(others)}" if others else ""

    def limits(self, labels: Iterable[str] = ()) -> list[str]:
        """Say what is hardly known about masks from this subset.

        Args:
            labels: Labels and regions of the masks.
        """
        subset = "+".join(self.modalities)
        known = self._limits(subset)
        if self.dice and (never := [name for name in labels if name not in self.dice]):
            known.append(f"how well {', '.join(never)} is found from {subset} was never measured")
        return known

    def _limits(self, subset: str) -> list[str]:
        if not self.cases:
            part = f"; the expected Dice is {self._of_part()}" if self.inside else ""
            return [f"how good masks from {subset} are was never measured{part}"]
        if self.cases < FEW_CASES:
            return [f"the expected Dice from {subset} rests on {self.basis()}"]
        few = [name for name, each in self.dice.items() if each.cases < FEW_CASES]
        if few:
            return [
                f"the expected Dice of {', '.join(few)} from {subset} rests on fewer than "
                f"{FEW_CASES} validation cases from these"
            ]
        return []

    def warnings(self) -> list[str]:
        """Say what is known to be bad about masks from this subset."""
        bad = [
            f"{name} {each.median:.2f} (one case in ten {low_in_words(each.low)})"
            for name, each in self.dice.items()
            if each.median < LOW_DICE
        ]
        subset = "+".join(self.modalities)
        return [f"low Dice is expected from {subset}: {', '.join(bad)}"] if bad else []


def low_in_words(low: float) -> str:
    """Return where the worst tenth of the cases lies, by its lower bound."""
    return f"below {low:.2f}" if low else "near 0"


def all_subsets(modalities: Sequence[str]) -> list[Subset]:
    """Return the 2^M - 1 non-empty subsets, small ones first."""
    sizes = range(1, len(modalities) + 1)
    return [subset for size in sizes for subset in combinations(modalities, size)]


def count_dice(dice: float) -> Counts:
    """Return the counts of a single case."""
    own = min(int(dice * BINS), BINS - 1)
    return tuple(int(number == own) for number in range(BINS))


def add_counts(parts: Iterable[Counts]) -> Counts:
    """Return the sum of counts; in any order it is the same, for all are integers."""
    return tuple(map(sum, zip(*parts, strict=True)))


def expect(known: Sequence[SubsetDice], modalities: Iterable[str]) -> Expectation:
    """Return what to expect of masks from some modalities.

    Where fewer than ``ENOUGH_CASES`` of a label were measured from them, its counts are filled up
    to as many with those of the best measured part of the subset, themselves filled up by the same
    rule: with a further modality masks should not become worse, and one lucky or unlucky case must
    not say otherwise. Where none was measured, the part alone is a bound from below.

    The best part has the highest mean Dice, if ``FEW_CASES`` with a Dice of 0 were among its cases.
    """
    subset = tuple(sorted(modalities))
    own = next((each for each in known if each.modalities == subset), SubsetDice(subset, {}))
    inside = [each for each in known if each.cases and {*each.modalities} < {*subset}]
    parts: list[_Filled] = []
    if not _has_enough(own):
        for each in sorted(inside, key=lambda each: len(each.modalities)):
            parts.append(_fill(each, parts))
    filled = _fill(own, parts)
    dice = {
        name: _label_dice(counts, sum(own.counts.get(name, ())))
        for name, counts in filled.counts.items()
    }
    fewest = round(min(map(sum, filled.counts.values()), default=0))
    return Expectation(subset, dice, filled.inside, filled.added, fewest)


def medians(known: Expected) -> dict[str, dict[str, float]]:
    """Return the median Dice by subset, its modalities joined by ``+``, and label, as measured."""
    return {
        "+".join(each.modalities): {
            name: dice.median for name, dice in expect([each], each.modalities).dice.items()
        }
        for each in known
    }


def least(models: Sequence[Expectation]) -> Expectation:
    """Return what may be expected of the mean of several models: per label the worst of them."""
    names = set.intersection(*(set(each.dice) for each in models))
    dice = {
        name: LabelDice(
            min(each.dice[name].median for each in models),
            min(each.dice[name].low for each in models),
            min(each.dice[name].cases for each in models),
        )
        for name in models[0].dice
        if name in names
    }
    worst = min(models, key=lambda each: each.filled + each.cases)
    fewest = min(each.fewest for each in models)
    return dataclasses.replace(worst, modalities=models[0].modalities, dice=dice, fewest=fewest)


@dataclass(frozen=True)
class Expectations:
    """What may be expected of masks of several models; it travels to another process.

    Attributes:
        models: The modalities that each model takes, and what was measured of it.
    """

    models: tuple[tuple[frozenset[str], tuple[SubsetDice, ...]], ...]

    def of(self, images: Iterable[str]) -> Expectation:
        """Return what to expect of masks from some modalities; of several models, the least."""
        given = frozenset(images)
        return least([expect(known, takes & given) for takes, known in self.models])

    def worth(self, images: Iterable[str]) -> float:
        """Return the median of the expected Dice, mean over labels; 0 where nothing is known."""
        return or_none(self.of(images).median) or 0.0


@dataclass(frozen=True)
class _Filled:
    """Counts of a subset with those of a part of it beside.

    Attributes:
        modalities: The subset, sorted.
        counts: By label, of those with any case.
        inside: The part, and those with which it was filled up itself; empty if nothing of it
            counts.
        added: How many of their cases count, of the label with most of them.
    """

    modalities: Subset
    counts: Mapping[str, Sequence[float]]
    inside: tuple[Subset, ...] = ()
    added: int = 0

    @cached_property
    def worth(self) -> float:
        """Return by how much this is to be preferred to other parts of a subset."""
        return mean(
            sum((number + 0.5) / BINS * count for number, count in enumerate(counts))
            / (sum(counts) + FEW_CASES)
            for counts in self.counts.values()
        )


def _has_enough(each: SubsetDice) -> bool:
    """Say whether so many cases were measured of every label that none is filled up."""
    return min(map(sum, each.counts.values()), default=0) >= ENOUGH_CASES


def _fill(own: SubsetDice, parts: Iterable[_Filled]) -> _Filled:
    """Return the counts of a subset, those of few cases with as many of its best part."""
    counts: dict[str, Sequence[float]] = {n: each for n, each in own.counts.items() if sum(each)}
    if _has_enough(own):
        return _Filled(own.modalities, counts)
    inside = [each for each in parts if {*each.modalities} < {*own.modalities}]
    part = max(inside, key=lambda each: (each.worth, each.modalities), default=None)
    if part is None:
        return _Filled(own.modalities, counts)
    most = 0
    for name, other in part.counts.items():
        here = counts.get(name, (0,) * BINS)
        there = sum(other)
        added = max(0.0, min(ENOUGH_CASES - sum(here), there))
        counts[name] = [one + added / there * more for one, more in zip(here, other, strict=True)]
        most = max(most, round(added))
    if not most:
        return _Filled(own.modalities, counts)
    return _Filled(own.modalities, counts, (part.modalities, *part.inside), most)


def _label_dice(counts: Sequence[float], cases: int) -> LabelDice:
    """Return median and lower bound of counts that are not all 0, and the cases as given."""
    total, below = sum(counts), 0.0
    at: dict[float, int] = {}
    for number, count in enumerate(counts):
        below += count
        for quantile in (LOW, MEDIAN):
            if count and below >= quantile * total - 1e-9:
                at.setdefault(quantile, number)
    return LabelDice((at[MEDIAN] + 0.5) / BINS, at[LOW] / BINS, cases)
