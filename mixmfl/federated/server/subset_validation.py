"""Dice per subset of modalities: the task for the sites, and the counts of all sites' cases."""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Protocol, TypeVar

from mixmfl.core.errors import AggregationError
from mixmfl.core.text import quoted
from mixmfl.evaluation.mask_quality import Measured, add_sums
from mixmfl.evaluation.reliability import add_reliability
from mixmfl.evaluation.small_components import Components, add_components
from mixmfl.evaluation.subset_dice import Counts, SubsetDice, add_counts
from mixmfl.federated.messages import Message
from mixmfl.federated.server.merge import validation_task
from mixmfl.federated.server.reply_records import MeasureReply, check_round, read_reply
from mixmfl.federated.server.update_checks import check_answer, check_labelled
from mixmfl.federated.state import (
    CASES_PER_SUBSET,
    MEASURE,
    Registration,
    ServerState,
)
from mixmfl.planning.plans import Plans

T = TypeVar("T")


class _Sums(Protocol):
    @property
    def is_possible(self) -> bool:
        """Whether anything can have these sums."""


S = TypeVar("S", bound=_Sums)


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
    """Check a site's reply to ``measure_task`` and return what it measured.

    Raises:
        AggregationError: The reply is something else, or cannot be true.
    """
    check_answer(site, MEASURE, reply)
    check_round(site, MEASURE, reply, round_number)
    read = read_reply(MeasureReply, site, reply)
    expected: dict[tuple[str, ...], SubsetDice] = {}
    for subset, counts in read.subsets:
        known = tuple(name for name in sorted(plans.modalities) if name in subset)
        if subset != known or subset in expected:
            raise AggregationError(f"site {site!r} measured {quoted(subset)}; no subset is that")
        _check_counts(site, counts, plans, labelled)
        expected[subset] = SubsetDice(subset, dict(counts))
    words = "sums of confidence that are none", "confidence in"
    _check_sums(site, read.confidence, lambda sums: sums.masks, plans, labelled, words)
    words = "voxels by probability that none are", "probabilities of"
    _check_sums(site, read.reliability, lambda sums: sums.cases, plans, labelled, words)
    check_components(site, read.components, plans, labelled)
    return Measured(
        tuple(expected.values()),
        dict(read.confidence),
        dict(read.reliability),
        dict(read.components),
    )


def _check_counts(
    site: str, by_label: Mapping[str, Counts], plans: Plans, labelled: Collection[str] | None
) -> None:
    """Check that counts can be those of a site, which has no more cases than it was asked for.

    Raises:
        AggregationError: They cannot be true, or are of a label that the site does not label.
    """
    if by_label.keys() != plans.labels.foreground.keys() or any(
        sum(counts) > CASES_PER_SUBSET for counts in by_label.values()
    ):
        raise AggregationError(
            f"site {site!r} sent Dice that are no counts of its cases: "
            f"{quoted(dict(by_label), 200)}"
        )
    check_labelled(site, "Dice of", [n for n, counts in by_label.items() if any(counts)], labelled)


def check_components(
    site: str, components: Components, plans: Plans, labelled: Collection[str] | None
) -> None:
    """Check that sums of Dice without small components can be those of a site's cases.

    Raises:
        AggregationError: They cannot be true, or are of a label that the site does not label.
    """
    words = "sums of Dice that no cases have", "Dice without small components of"
    _check_sums(site, components, lambda sums: sums.cases, plans, labelled, words)


def _check_sums(
    site: str,
    by_label: Mapping[str, S],
    number: Callable[[S], int],
    plans: Plans,
    labelled: Collection[str] | None,
    words: tuple[str, str],
) -> None:
    """Check that sums by label can be those of a site's masks, one a case and subset.

    Args:
        site: The site.
        by_label: What it sent.
        number: Returns how many masks or cases are behind sums.
        plans: Plans of the run.
        labelled: Labels that the site labels; None: all.
        words: For messages: what sums are not that cannot be true, and what they are of.

    Raises:
        AggregationError: They cannot be true, or are of a label that the site does not label.
    """
    most = CASES_PER_SUBSET * 2 ** len(plans.modalities)
    if by_label.keys() != plans.labels.foreground.keys() or any(
        not sums.is_possible or number(sums) > most for sums in by_label.values()
    ):
        raise AggregationError(f"site {site!r} sent {words[0]}: {quoted(str(by_label), 200)}")
    check_labelled(site, words[1], [n for n, sums in by_label.items() if number(sums)], labelled)


def merge_measured(sites: Sequence[Measured]) -> Measured:
    """Return the sums over all sites' cases; small subsets come first."""
    merged = []
    by_site = [{each.modalities: each.counts for each in site.expected} for site in sites]
    for subset in sorted({s for each in by_site for s in each}, key=lambda s: (len(s), s)):
        parts = [each[subset] for each in by_site if subset in each]
        pooled = {name: add_counts(part[name] for part in parts) for name in parts[0]}
        merged.append(
            SubsetDice(subset, {name: counts for name, counts in pooled.items() if any(counts)})
        )
    confidence = _added([site.confidence for site in sites], add_sums)
    right = _added([site.reliability for site in sites], add_reliability)
    components = _added([site.components for site in sites], add_components)
    return Measured(
        merged,
        {name: sums for name, sums in confidence.items() if sums.masks},
        {name: each for name, each in right.items() if each.cases},
        {name: sums for name, sums in components.items() if sums.cases},
    )


def _added(by_site: Sequence[Mapping[str, T]], add: Callable[[Sequence[T]], T]) -> dict[str, T]:
    """Return what the sites have of each label, added up."""
    names = dict.fromkeys(name for site in by_site for name in site)
    return {name: add([site[name] for site in by_site if name in site]) for name in names}
