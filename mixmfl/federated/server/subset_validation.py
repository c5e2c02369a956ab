"""Dice per subset of modalities: the task for the sites, and the counts of all sites' cases."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from mixmfl.core.errors import AggregationError
from mixmfl.core.json_fields import is_whole
from mixmfl.core.text import quoted
from mixmfl.evaluation.subset_dice import BINS, Counts, Subset, SubsetDice, add_counts
from mixmfl.federated.messages import Message
from mixmfl.federated.server.merge import validation_task
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
    subsets = reply.record.get("subsets")
    if (
        reply.kind != MEASURE
        or not is_whole(reply.record.get("round"), round_number, round_number)
        or set(reply.record) != {"round", "subsets"}
        or not isinstance(subsets, list)
        or len(subsets) >= 2 ** len(plans.modalities)
    ):
        raise AggregationError(
            f"site {site!r} sent a {quoted(reply.kind)} reply to round "
            f"{quoted(reply.record.get('round'))}; a {MEASURE!r} reply to round {round_number} was "
            "asked for"
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
        measured[tuple(item[0])] = _read_counts(site, item[1], plans, labelled)
    return measured


def _read_counts(
    site: str, content: Any, plans: Plans, labelled: Collection[str] | None
) -> dict[str, Counts]:
    """Check counts by label or region, of which a site has no more than it was asked for.

    Raises:
        AggregationError: They are something else, or of a label that the site does not label.
    """
    if (
        not isinstance(content, Mapping)
        or content.keys() != plans.labels.foreground.keys()
        or not all(
            isinstance(counts, list)
            and len(counts) == BINS
            and all(is_whole(number, 0, CASES_PER_SUBSET) for number in counts)
            and sum(counts) <= CASES_PER_SUBSET
            for counts in content.values()
        )
    ):
        raise AggregationError(
            f"site {site!r} sent Dice that are no counts of its cases: {quoted(content, 200)}"
        )
    if labelled is not None and (
        strange := [
            name for name, counts in content.items() if any(counts) and name not in labelled
        ]
    ):
        raise AggregationError(
            f"site {site!r} sent Dice of {', '.join(strange)}, which it does not label"
        )
    return {name: tuple(counts) for name, counts in content.items()}


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
