"""How good a model is expected to be from each subset of modalities, as its file says.

Measured on validation cases when training ends (see ``subset_validation``); plain numbers here.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Annotated, Any

from mixmfl.core.declarations import entries, text, within
from mixmfl.core.nan import mean
from mixmfl.core.text import plural
from mixmfl.data.labels import LONGEST_NAME as LONGEST_LABEL
from mixmfl.data.labels import MOST_LABELS
from mixmfl.data.modalities import LONGEST_NAME, MOST_MODALITIES

Subset = tuple[str, ...]

MOST_CASES = 10**9
"""Most cases behind an expected Dice that is read from a file."""

MOST_SUBSETS = 2**16
"""Most subsets of modalities for which a file may have an expected Dice."""

LOW_DICE = 0.5  # below it, a warning says that a label is segmented badly
FEW_CASES = 3  # fewer say little


@dataclass(frozen=True)
class SubsetDice:
    """Dice from one subset of modalities.

    Attributes:
        modalities: The subset, sorted.
        dice: By label or region: the mean over validation cases, and over how many. A case counts
            for a label where its mask or its reference has it.
    """

    modalities: Annotated[
        tuple[Annotated[str, text(LONGEST_NAME)], ...], entries(1, MOST_MODALITIES, distinct=True)
    ]
    dice: Annotated[
        Mapping[
            Annotated[str, text(LONGEST_LABEL)],
            tuple[Annotated[float, within(0, 1)], Annotated[int, within(1, MOST_CASES)]],
        ],
        entries(0, MOST_LABELS),
    ]

    @property
    def mean(self) -> float:
        """Return the mean over labels and regions; NaN where none was measured."""
        return mean(dice for dice, cases in self.dice.values() if cases)

    @property
    def cases(self) -> int:
        """Return how many cases stand behind the label with most of them."""
        return max((cases for _, cases in self.dice.values()), default=0)

    def warnings(self) -> list[str]:
        """Say what is known to be bad, or hardly known, about masks from this subset."""
        subset = "+".join(self.modalities)
        if not self.cases:
            return [f"how good masks from {subset} are was never measured"]
        warnings = []
        bad = [
            f"{n} {dice:.2f}" for n, (dice, count) in self.dice.items() if count and dice < LOW_DICE
        ]
        if bad:
            warnings.append(f"low Dice is expected from {subset}: {', '.join(bad)}")
        if self.cases < FEW_CASES:
            counted = plural(self.cases, "validation case")
            warnings.append(f"the expected Dice from {subset} rests on {counted}")
        return warnings

    def to_json(self) -> dict[str, Any]:
        """Return JSON content."""
        return {
            "modalities": list(self.modalities),
            "dice": {name: [dice, cases] for name, (dice, cases) in self.dice.items()},
        }


Expected = Annotated[Sequence[SubsetDice], entries(0, MOST_SUBSETS)]
"""What a file says of subsets."""


def all_subsets(modalities: Sequence[str]) -> list[Subset]:
    """Return the 2^M - 1 non-empty subsets, small ones first."""
    sizes = range(1, len(modalities) + 1)
    return [subset for size in sizes for subset in combinations(modalities, size)]


def find(known: Sequence[SubsetDice], modalities: Iterable[str]) -> SubsetDice:
    """Return what is known of a subset; without a measurement its ``dice`` is empty."""
    subset = tuple(sorted(modalities))
    return next((each for each in known if each.modalities == subset), SubsetDice(subset, {}))


def least(measured: Sequence[SubsetDice]) -> SubsetDice:
    """Return what may be expected of the mean of several models: per label the worst of them."""
    names = set.intersection(*(set(each.dice) for each in measured))
    dice = {
        name: (min(e.dice[name][0] for e in measured), min(e.dice[name][1] for e in measured))
        for name in measured[0].dice
        if name in names
    }
    return SubsetDice(measured[0].modalities, dice)
