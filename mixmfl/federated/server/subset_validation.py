"""Dice per subset of modalities: the task for the sites, and the mean over all sites' cases."""

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence

from mixmfl.core.errors import AggregationError
from mixmfl.core.text import quoted
from mixmfl.evaluation.subset_dice import Subset, SubsetDice
from mixmfl.federated.messages import Message
from mixmfl.federated.server.merge import validation_task
from mixmfl.federated.server.reply_records import MeasureReply, check_round, read_reply
from mixmfl.federated.server.update_checks import check_answer, check_sums
from mixmfl.federated.state import (
    CASES_PER_SUBSET,
    MEASURE,
    Registration,
    ServerState,
)
from mixmfl.planning.plans import Plans
from mixmfl.training.validation import DiceSum

Measured = dict[Subset, dict[str, DiceSum]]


def measure_task(
    state: ServerState, site: str, registrations: Mapping[str, Registration]
) -> Message:
    """Return the task to measure Dice per subset, with the content of a validation task."""
    return dataclasses.replace(validation_task(state, site, registrations), kind=MEASURE)


def read_measured(
    site: str,
    reply: Message,
    round_number: int,
    plans: Plans,
    labelled: Collection[str] | None = None,
) -> Measured:
    """Check a site's reply to ``measure_task`` and return its sums of Dice.

    Raises:
        AggregationError: The reply is something else, or cannot be true.
    """
    check_answer(site, MEASURE, reply)
    check_round(site, MEASURE, reply, round_number)
    measured: Measured = {}
    for subset, dice in read_reply(MeasureReply, site, reply).subsets:
        known = tuple(name for name in sorted(plans.modalities) if name in subset)
        if subset != known or subset in measured:
            raise AggregationError(f"site {site!r} measured {quoted(subset)}; no subset is that")
        check_sums(site, dice, CASES_PER_SUBSET, plans, labelled)
        measured[subset] = {name: DiceSum(*pair) for name, pair in dice.items()}
    return measured


def merge_measured(sites: Sequence[Measured]) -> list[SubsetDice]:
    """Return the mean over all sites' cases, per subset, small subsets first."""
    merged = []
    for subset in sorted({s for measured in sites for s in measured}, key=lambda s: (len(s), s)):
        parts = [measured[subset] for measured in sites if subset in measured]
        dice = {}
        for name in parts[0]:
            # fsum rounds once, so that the order of sites changes no bit
            total = math.fsum(part[name].total for part in parts)
            if cases := sum(part[name].cases for part in parts):
                dice[name] = (total / cases, cases)
        merged.append(SubsetDice(subset, dice))
    return merged
