"""What Dice to expect from which modalities: measured by the sites when training ends.

A site tells sums over its validation cases, as it does in validation rounds, here one per subset
of modalities that such a case can form.
"""

import dataclasses
import math
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence

from mixmfl.door import check_answer, check_validation
from mixmfl.errors import AggregationError
from mixmfl.every_subset import segment_subsets
from mixmfl.expected import Subset, SubsetDice, all_subsets
from mixmfl.memory import memory_from_state, memory_to
from mixmfl.outgoing import outgoing
from mixmfl.plan import Plans
from mixmfl.quick import quickest
from mixmfl.rounds import (
    Registration,
    RunSettings,
    ServerState,
    Site,
    read_dice,
    site_network,
    validation_task,
)
from mixmfl.train import DiceSum, add_dice, no_dice
from mixmfl.wire import Message
from mixmfl.wording import quoted

CASES_PER_SUBSET = 16  # of a site per subset: their number doubles with every modality

MEASURE = "measure"

Measured = dict[Subset, dict[str, DiceSum]]


def measure_task(
    state: ServerState, site: str, registrations: Mapping[str, Registration]
) -> Message:
    """Return what a site is sent to measure: what it is sent to validate."""
    return dataclasses.replace(validation_task(state, site, registrations), kind=MEASURE)


def measure_at_site(task: Message, site: Site, plans: Plans, settings: RunSettings) -> Message:
    """Return the summed Dice of the site's validation cases from each subset of modalities.

    Args:
        task: From ``measure_task``.
        site: At most ``CASES_PER_SUBSET`` of its cases are used per subset.
        plans: Of the run.
        settings: Of the run.
    """
    usable = set(task.record["modalities"])
    runner = quickest(site_network(task, site, plans, settings).eval(), site.device)
    memory = memory_to(memory_from_state(task.tensors), site.device)
    used: Counter[Subset] = Counter()  # cases
    sums: dict[Subset, dict[str, DiceSum]] = defaultdict(lambda: no_dice(plans.labels))
    for case in site.validation:
        held = sorted(usable.intersection(case.modalities))
        asked = [subset for subset in all_subsets(held) if used[subset] < CASES_PER_SUBSET]
        used.update(asked)
        indices = plans.labels.consecutive().only(case.labelled)
        found = segment_subsets(
            runner, memory, case, asked, plans, settings.configuration, site.device
        )
        for subset, predicted in found.items():
            sums[subset] = add_dice(sums[subset], predicted, case.labels[:][0], indices)
    told = [
        [list(subset), {name: [dice.total, dice.cases] for name, dice in sums[subset].items()}]
        for subset in sorted(sums)
    ]
    return outgoing(MEASURE, {"round": task.record["round"], "subsets": told})


def read_measured(
    site: str,
    reply: Message,
    round_number: int,
    plans: Plans,
    labelled: Collection[str] | None = None,
) -> Measured:
    """Check and take what ``measure_at_site`` returned; ``labelled`` as in ``check_validation``.

    Raises:
        AggregationError: It is something else, or cannot be true.
    """
    check_answer(site, MEASURE, reply)
    told = reply.record.get("subsets")
    if (
        reply.kind != MEASURE
        or not isinstance(told, list)
        or len(told) >= 2 ** len(plans.modalities)
    ):
        raise AggregationError(
            f"site {site!r} sent a {quoted(reply.kind)} reply; a {MEASURE!r} reply is needed"
        )
    measured: Measured = {}
    for item in told:
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
    for subset in sorted({s for told in sites for s in told}, key=lambda s: (len(s), s)):
        parts = [told[subset] for told in sites if subset in told]
        dice = {}
        for name in parts[0]:
            # fsum rounds once, so that the order of sites changes no bit
            total = math.fsum(part[name].total for part in parts)
            if cases := sum(part[name].cases for part in parts):
                dice[name] = (total / cases, cases)
        merged.append(SubsetDice(subset, dice))
    return merged
