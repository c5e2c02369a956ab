"""Dice per subset of modalities: the task for the sites, and the counts of all sites' cases."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence

from mixmfl.core.errors import AggregationError
from mixmfl.core.text import quoted
from mixmfl.evaluation.subset_dice import Counts, Subset, SubsetDice, add_counts
from mixmfl.federated.messages import Message
from mixmfl.federated.server.merge import validation_task
from mixmfl.federated.server.reply_records import MeasureReply, check_round, read_reply
from mixmfl.federated.server.update_checks import check_answer
from mixmfl.federated.state import (
    CASES_PER_SUBSET,
    MEASURE,
    Registration,
    ServerState,
)
from mixmfl.planning.plans import Plans

Measured = dict[Subset, dict[str, Counts]]


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
    """Check a site's reply to ``measure_task`` and return its counts of Dice.

    Raises:
        AggregationError: The reply is something else, or cannot be true.
    """
    check_answer(site, MEASURE, reply)
    check_round(site, MEASURE, reply, round_number)
    measured: Measured = {}
    for subset, counts in read_reply(MeasureReply, site, reply).subsets:
        known = tuple(name for name in sorted(plans.modalities) if name in subset)
        if subset != known or subset in measured:
            raise AggregationError(f"site {site!r} measured {quoted(subset)}; no subset is that")
        _check_counts(site, counts, plans, labelled)
        measured[subset] = dict(counts)
    return measured


def _check_counts(
    site: str, found: Mapping[str, Counts], plans: Plans, labelled: Collection[str] | None
) -> None:
    """Check that counts can be those of a site, which has no more cases than it was asked for.

    Raises:
        AggregationError: They cannot be true, or are of a label that the site does not label.
    """
    if found.keys() != plans.labels.foreground.keys() or any(
        sum(counts) > CASES_PER_SUBSET for counts in found.values()
    ):
        raise AggregationError(
            f"site {site!r} sent Dice that are no counts of its cases: {quoted(dict(found), 200)}"
        )
    if labelled is not None and (
        strange := [name for name, counts in found.items() if any(counts) and name not in labelled]
    ):
        raise AggregationError(
            f"site {site!r} sent Dice of {', '.join(strange)}, which it does not label"
        )


def merge_measured(sites: Sequence[Measured]) -> list[SubsetDice]:
    """Return the counts of all sites' cases, per subset, small subsets first."""
    merged = []
    for subset in sorted({s for measured in sites for s in measured}, key=lambda s: (len(s), s)):
        parts = [measured[subset] for measured in sites if subset in measured]
        pooled = {name: add_counts(part[name] for part in parts) for name in parts[0]}
        merged.append(
            SubsetDice(subset, {name: counts for name, counts in pooled.items() if any(counts)})
        )
    return merged
