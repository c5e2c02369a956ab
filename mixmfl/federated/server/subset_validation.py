"""Dice per subset of modalities: the task for the sites, and the mean over all sites' cases."""

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence

from mixmfl.core.errors import AggregationError
from mixmfl.core.text import quoted
from mixmfl.evaluation.subset_dice import Subset, SubsetDice
from mixmfl.federated.messages import Message
from mixmfl.federated.server.merge import validation_task
from mixmfl.federated.server.update_checks import check_answer, check_validation
from mixmfl.federated.state import (
    CASES_PER_SUBSET,
    MEASURE,
    Registration,
    ServerState,
    read_dice,
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
    subsets = reply.record.get("subsets")
    if (
        reply.kind != MEASURE
        or not isinstance(subsets, list)
        or len(subsets) >= 2 ** len(plans.modalities)
    ):
        raise AggregationError(
            f"site {site!r} sent a {quoted(reply.kind)} reply; a {MEASURE!r} reply is needed"
        )
    measured: Measured = {}
    for item in subsets:
        if not (
            isinstance(item, list)
            and len(item) == 2
            and isinstance(item[0], list)
            and item[0]
            and tuple(map(str, item[0])) not in measured
            and item[0] == [name for name in sorted(plans.modalities) if name in item[0]]
        ):
            raise AggregationError(f"site {site!r} measured {quoted(item)}; no subset is that")
        dice = Message("validate", {"round": reply.record.get("round"), "dice": item[1]}, {})
        check_validation(site, dice, round_number, CASES_PER_SUBSET, plans, labelled)
        measured[tuple(item[0])] = read_dice(dice)
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
