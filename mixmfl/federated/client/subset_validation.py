"""Dice per subset of modalities, measured on a site's validation cases.

A site sends how many of its validation cases have which Dice, for each subset of their modalities,
by label the sums from which the Dice of a mask is estimated, by label how often the network is
right at which probability, and by label the sums that say whether to keep only the largest
component of a mask.
"""

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy.typing as npt

from mixmfl.data.labels import Labels
from mixmfl.evaluation.largest_component import LargestSums, add_largest, keep_largest
from mixmfl.evaluation.mask_quality import ConfidenceSums, add_sums, sums_of_case
from mixmfl.evaluation.reliability import Reliability, add_reliability
from mixmfl.evaluation.subset_dice import (
    BINS,
    Counts,
    Subset,
    add_counts,
    all_subsets,
    count_dice,
)
from mixmfl.federated.client.outbound import outgoing
from mixmfl.federated.client.training import judged_cases, site_network
from mixmfl.federated.messages import Message
from mixmfl.federated.state import CASES_PER_SUBSET, MEASURE, RunSettings, Site
from mixmfl.inference.cpu_network import fastest_form
from mixmfl.inference.every_subset import segment_subsets
from mixmfl.networks.prototypes import memory_from_state, memory_to
from mixmfl.planning.plans import Plans
from mixmfl.training.validation import dice_of_case

S = TypeVar("S", ConfidenceSums, Reliability, LargestSums)


def measure_at_site(
    task: Message,
    site: Site,
    plans: Plans,
    settings: RunSettings,
    step: Callable[[], None] = lambda: None,
) -> Message:
    """Return how many validation cases have which Dice, and what else is measured of their masks.

    Args:
        task: Task from ``measure_task``.
        site: The site; at most ``CASES_PER_SUBSET`` of its cases are used per subset.
        plans: Plans of the run.
        settings: Settings of the run.
        step: Called after every case.
    """
    usable = set(task.record["modalities"])
    runner = fastest_form(site_network(task, site, plans, settings).eval(), site.device)
    memory = memory_to(memory_from_state(task.tensors), site.device)
    used: Counter[Subset] = Counter()  # number of cases
    none = dict.fromkeys(plans.labels.foreground, (0,) * BINS)
    counts: dict[Subset, dict[str, Counts]] = defaultdict(lambda: dict(none))
    sums = dict.fromkeys(plans.labels.foreground, ConfidenceSums())
    right = dict.fromkeys(plans.labels.foreground, Reliability())
    largest = dict.fromkeys(plans.labels.foreground, LargestSums())
    for case in judged_cases(site, usable):
        available = sorted(usable.intersection(case.modalities))
        subsets = [subset for subset in all_subsets(available) if used[subset] < CASES_PER_SUBSET]
        used.update(subsets)
        indices = plans.labels.consecutive().only(case.labelled)
        pairs: dict[str, list[tuple[float, float]]] = defaultdict(list)
        by_subset: dict[str, list[Reliability]] = defaultdict(list)
        segmentations = segment_subsets(
            runner, memory, case, subsets, plans, settings.configuration, site.device
        )
        for subset, predicted in segmentations.items():
            of_case = dice_of_case(predicted.indices, case.labels[:][0], indices)
            for name, dice in of_case.items():
                counts[subset][name] = add_counts([counts[subset][name], count_dice(dice)])
                pairs[name].append((predicted.confidences[name], dice))
            for name, part in predicted.reliabilities(case, plans.labels).items():
                by_subset[name].append(part)
            if subset == tuple(available):
                alone = _dice_of_largest(predicted.indices, case.labels[:][0], indices)
                for name, dice in of_case.items():
                    both = LargestSums(1, dice, alone[name])
                    largest[name] = add_largest([largest[name], both])
        for name, each in pairs.items():
            sums[name] = add_sums([sums[name], sums_of_case(each)])
        for name, parts in by_subset.items():
            one = dataclasses.replace(add_reliability(parts), cases=1)
            right[name] = add_reliability([right[name], one])
        step()
    rows = [
        [
            list(subset),
            {
                name: list(found if sum(found) >= site.validation_cases else none[name])
                for name, found in counts[subset].items()
            },
        ]
        for subset in sorted(counts)
    ]
    fewest = site.validation_cases
    record = {
        "round": task.record["round"],
        "subsets": rows,
        "confidence": _of_enough_cases(sums, ConfidenceSums(), fewest),
        "reliability": _of_enough_cases(right, Reliability(), fewest),
        "largest": _of_enough_cases(largest, LargestSums(), fewest),
    }
    return outgoing(MEASURE, record)


def _of_enough_cases(by_label: Mapping[str, S], nothing: S, fewest: int) -> dict[str, Any]:
    """Return sums by label as JSON content, ``nothing`` in place of those of fewer cases."""
    return {
        name: (sums if sums.cases >= fewest else nothing).to_json()
        for name, sums in by_label.items()
    }


def _dice_of_largest(
    predicted: npt.NDArray[Any], reference: npt.NDArray[Any], indices: Labels
) -> dict[str, float]:
    """Return the Dice of each label if only its largest component is kept.

    Regions share voxels, so that what is removed of one changes others: they keep all components.
    """
    if not indices.has_regions:
        predicted = keep_largest(predicted, indices.foreground.values())[0]
    return dice_of_case(predicted, reference, indices)
