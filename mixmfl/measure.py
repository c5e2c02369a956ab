"""What Dice to expect from which modalities: measured by the sites when training ends.

A site tells sums over its validation cases, as it does in validation rounds, here one per subset
of modalities that such a case can form.
"""

import dataclasses
from collections.abc import Sequence

from mixmfl.expected import Subset, SubsetDice, all_subsets
from mixmfl.plan import Plans
from mixmfl.rounds import RunSettings, Site, read_dice, validate_at_site
from mixmfl.train import DiceSum
from mixmfl.wire import Message

MOST_CASES = 16  # of a site per subset: their number doubles with every modality

Measured = dict[Subset, dict[str, DiceSum]]


def measure_at_site(task: Message, site: Site, plans: Plans, settings: RunSettings) -> Measured:
    """Return the summed Dice of the site's validation cases from each subset of modalities.

    Args:
        task: From ``validation_task``.
        site: At most ``MOST_CASES`` of its cases are used per subset.
        plans: Of the run.
        settings: Of the run.
    """
    usable = set(task.record["modalities"])
    held = {tuple(m for m in case.modalities if m in usable) for case in site.validation}
    subsets = sorted({subset for names in held for subset in all_subsets(sorted(names))})
    found = {}
    for subset in subsets:
        having = [case for case in site.validation if set(subset) <= set(case.modalities)]
        asked = dataclasses.replace(task, record={**task.record, "modalities": list(subset)})
        few = dataclasses.replace(site, validation=tuple(having[:MOST_CASES]))
        found[subset] = read_dice(validate_at_site(asked, few, plans, settings))
    return found


def merge_measured(sites: Sequence[Measured]) -> list[SubsetDice]:
    """Return the mean over all sites' cases, per subset, small subsets first."""
    merged = []
    for subset in sorted({s for told in sites for s in told}, key=lambda s: (len(s), s)):
        parts = [told[subset] for told in sites if subset in told]
        dice = {}
        for name in parts[0]:
            total = sum(part[name].total for part in parts)
            if cases := sum(part[name].cases for part in parts):
                dice[name] = (total / cases, cases)
        merged.append(SubsetDice(subset, dice))
    return merged
