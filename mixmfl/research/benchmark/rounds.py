"""How many rounds methods need to the same validation Dice: what a start from weights is worth."""

import math
from collections.abc import Mapping, Sequence

from mixmfl.research.benchmark.records import Cost
from mixmfl.research.benchmark.tables import UNDEFINED, number, table

SHARES = (0.8, 0.9, 0.95, 1.0)
"""Shares of the reference's highest Dice that are looked for."""


def rounds_to(dice: Mapping[int, float], level: float) -> int | None:
    """Return the first validated round with a Dice of ``level`` or more; None: there is none."""
    return min((number for number, value in dice.items() if value >= level), default=None)


def rounds_section(costs: Mapping[str, Sequence[Cost]], reference: str) -> str:
    """Return a section of a page: in which round each method first has the reference's Dice.

    Args:
        costs: Costs of the trainings by federation, whose name may be empty.
        reference: The method whose highest validation Dice is looked for.

    Returns:
        The section, in Markdown; empty where there is no other method to compare.
    """
    rows = []
    for federation, of_federation in costs.items():
        for seed in sorted({cost.seed for cost in of_federation}):
            by_method = {c.method: _dice_of(c) for c in of_federation if c.seed == seed}
            known = {method: dice for method, dice in by_method.items() if dice}
            if reference not in known or len(known) < 2:
                continue
            highest = max(known[reference].values())
            training = f"{federation}, seed {seed}" if federation else f"seed {seed}"
            for method, dice in known.items():
                best = max(dice.values())
                first = [rounds_to(dice, share * highest) for share in SHARES]
                rows.append(
                    [
                        f"{training}: {method}",
                        f"{number(100 * best)} ({rounds_to(dice, best)})",
                        *(UNDEFINED if each is None else str(each) for each in first),
                    ]
                )
    if not rows:
        return ""
    header = ["training", "highest (round)"]
    header += [f"{share:.0%} of {reference}'s" for share in SHARES]
    words = (
        "Validation Dice in points, mean over the sites' validation cases, each from all that it "
        "has; then the first round in which it is that share of the highest of "
        f"{reference}, the same cases being held back. It is looked at where rounds are validated "
        "(`validate_every` in the plans). Methods without a global model are left out."
    )
    return f"\n## Rounds to the same Dice\n\n{table(header, rows)}\n\n{words}\n"


def _dice_of(cost: Cost) -> dict[int, float]:
    """Return the validation Dice of a training of one model, by round; empty where it has more."""
    if len(cost.dice) != 1:
        return {}
    (dice,) = cost.dice.values()
    return {int(number): value for number, value in dice.items() if not math.isnan(value)}
