"""Dice per subset of modalities, measured on a site's validation cases.

A site sends sums over its validation cases, as it does in validation rounds, here one per subset
of modalities that such a case can form.
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
from mixmfl.training.validation import DiceSum, add_dice, no_dice


def measure_at_site(task: Message, site: Site, plans: Plans, settings: RunSettings) -> Message:
    """Return the summed Dice of the site's validation cases from each subset of modalities.

    Args:
        task: From ``measure_task``.
        site: At most ``CASES_PER_SUBSET`` of its cases are used per subset.
        plans: Of the run.
        settings: Of the run.
    """
    usable = set(task.record["modalities"])
    runner = fastest_form(site_network(task, site, plans, settings).eval(), site.device)
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
