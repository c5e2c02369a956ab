"""Dice per subset of modalities, measured on a site's validation cases.

A site sends sums over its validation cases, one per subset of the modalities of a case.
"""

from collections import Counter, defaultdict

from mixmfl.evaluation.subset_dice import Subset, all_subsets
from mixmfl.federated.client.outbound import outgoing
from mixmfl.federated.client.training import site_network
from mixmfl.federated.messages import Message
from mixmfl.federated.state import CASES_PER_SUBSET, MEASURE, RunSettings, Site
from mixmfl.inference.cpu_network import fastest_form
from mixmfl.inference.every_subset import segment_subsets
from mixmfl.networks.prototypes import memory_from_state, memory_to
from mixmfl.planning.plans import Plans
from mixmfl.training.validation import DiceSum, add_dice, dice_sums, no_dice


def measure_at_site(task: Message, site: Site, plans: Plans, settings: RunSettings) -> Message:
    """Return the summed Dice of the site's validation cases from each subset of modalities.

    Args:
        task: Task from ``measure_task``.
        site: The site; at most ``CASES_PER_SUBSET`` of its cases are used per subset.
        plans: Plans of the run.
        settings: Settings of the run.
    """
    usable = set(task.record["modalities"])
    runner = fastest_form(site_network(task, site, plans, settings).eval(), site.device)
    memory = memory_to(memory_from_state(task.tensors), site.device)
    used: Counter[Subset] = Counter()  # number of cases
    sums: dict[Subset, dict[str, DiceSum]] = defaultdict(lambda: no_dice(plans.labels))
    for case in site.validation:
        available = sorted(usable.intersection(case.modalities))
        subsets = [subset for subset in all_subsets(available) if used[subset] < CASES_PER_SUBSET]
        used.update(subsets)
        indices = plans.labels.consecutive().only(case.labelled)
        segmentations = segment_subsets(
            runner, memory, case, subsets, plans, settings.configuration, site.device
        )
        for subset, predicted in segmentations.items():
            sums[subset] = add_dice(sums[subset], predicted.indices, case.labels[:][0], indices)
    rows = [
        [list(subset), dice_sums(sums[subset], site.validation_cases)] for subset in sorted(sums)
    ]
    return outgoing(MEASURE, {"round": task.record["round"], "subsets": rows})
