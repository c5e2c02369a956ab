"""Dice per subset of modalities, measured on a site's validation cases.

A site sends how many of its validation cases have which Dice, for each subset of their modalities,
by label the sums from which the Dice of a mask is estimated, by label how often the network is
right at which probability, and by label the sums that say which small components of a mask to
remove.
"""

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, TypeVar

from mixmfl.core.records import json_of
from mixmfl.data.labels import Labels
from mixmfl.evaluation.mask_quality import ConfidenceSums, add_sums, sums_of_case
from mixmfl.evaluation.reliability import Reliability, add_reliability
from mixmfl.evaluation.small_components import (
    ComponentSums,
    add_components,
    components_of_case,
    dice_by_share,
)
from mixmfl.evaluation.subset_dice import (
    BINS,
    Counts,
    Subset,
    add_counts,
    all_subsets,
    count_dice,
)
from mixmfl.federated.client.outbound import outgoing
from mixmfl.federated.client.partial_sums import JudgedCases
from mixmfl.federated.client.training import judged_cases, site_network
from mixmfl.federated.messages import Message
from mixmfl.federated.state import CASES_PER_SUBSET, MEASURE, RunSettings, Site
from mixmfl.inference.cpu_network import fastest_form
from mixmfl.inference.every_subset import SubsetMask, segment_subsets
from mixmfl.networks.prototypes import memory_from_state, memory_to
from mixmfl.planning.plans import Plans
from mixmfl.planning.preprocessed_case import PreprocessedCase

S = TypeVar("S", ConfidenceSums, Reliability)


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
    segment = segmenter(task, site, plans, settings)
    measured = _Measured(plans.labels)
    judged = judged_cases(site, usable, plans.labels)
    for case, subsets, whole in measured_subsets(judged, usable, site.validation_cases):
        measured.add(case, segment(case, subsets), whole)
        step()
    record = measured.record(fewest=site.validation_cases)
    return outgoing(MEASURE, {"round": task.record["round"], **record})


Segment = Callable[[PreprocessedCase, list[Subset]], dict[Subset, SubsetMask]]


def segmenter(task: Message, site: Site, plans: Plans, settings: RunSettings) -> Segment:
    """Return what segments a case from each of some subsets, by the network of a task."""
    runner = fastest_form(site_network(task, site, plans, settings).eval(), site.device)
    memory = memory_to(memory_from_state(task.tensors), site.device)
    return lambda case, subsets: segment_subsets(
        runner, memory, case, subsets, plans, settings.configuration, site.device
    )


def measured_subsets(
    cases: Collection[PreprocessedCase], usable: Collection[str], fewest: int
) -> Iterator[tuple[PreprocessedCase, list[Subset], Subset]]:
    """Yield each case, the subsets that it is measured from, and that of all that it has.

    A subset is measured on ``CASES_PER_SUBSET`` cases at most, and on so few that those left out
    are enough, or none: else what was measured is withheld, see ``JudgedCases``.

    Args:
        cases: Cases with any usable modality each.
        usable: Modalities that the network can use.
        fewest: Fewest cases that may be left out.
    """
    available = [all_subsets(sorted({*usable}.intersection(case.modalities))) for case in cases]
    left = Counter(subset for subsets in available for subset in subsets)  # cases to measure
    for subset, count in left.items():
        if count > CASES_PER_SUBSET:
            left[subset] = min(CASES_PER_SUBSET, count - fewest)
    for case, subsets in zip(cases, available, strict=True):
        chosen = [subset for subset in subsets if left[subset] > 0]
        left.subtract(chosen)
        yield case, chosen, subsets[-1]


class MeasuredComponents:
    """Sums of Dice without small components, over the validation cases of a site, by label.

    Attributes:
        judged: The cases.
        measured: The names of those that are in the sums.
    """

    def __init__(self, labels: Labels) -> None:
        """Begin with no case of any label or region."""
        self._sums = dict.fromkeys(labels.foreground, ComponentSums())
        self.judged, self.measured = JudgedCases(labels), set[str]()

    def add(
        self,
        case: PreprocessedCase,
        dice: Mapping[Subset, Mapping[str, tuple[float, ...]]],
        whole: Subset,
    ) -> None:
        """Add a case.

        Args:
            case: The case.
            dice: What ``dice_by_share`` returns of its mask from each subset.
            whole: The subset of all modalities that it has.
        """
        self.judged.add(case)
        self.measured |= {case.name} if whole in dice else set()
        for name, of_whole in dice.get(whole, {}).items():
            of_subsets = [by_label[name] for by_label in dice.values() if name in by_label]
            of_case = components_of_case(of_whole[0], of_subsets)
            self._sums[name] = add_components([self._sums[name], of_case])

    def record(self, fewest: int) -> dict[str, Any]:
        """Return a reply's field, without labels whose sums tell of fewer than some patients."""
        return {
            name: json_of(
                sums if self.judged.may_leave(name, [self.measured], fewest)[0] else ComponentSums()
            )
            for name, sums in self._sums.items()
        }


class _Measured:
    """What is added up over the validation cases of a site, by label or region."""

    def __init__(self, labels: Labels) -> None:
        self._labels = labels
        self._none = dict.fromkeys(labels.foreground, (0,) * BINS)
        self._counts: dict[Subset, dict[str, Counts]] = defaultdict(lambda: dict(self._none))
        self._confidence = dict.fromkeys(labels.foreground, ConfidenceSums())
        self._reliability = dict.fromkeys(labels.foreground, Reliability())
        self._components = MeasuredComponents(labels)
        self._measured = defaultdict[Subset, set[str]](set)  # names of cases

    def add(
        self, case: PreprocessedCase, segmentations: Mapping[Subset, SubsetMask], whole: Subset
    ) -> None:
        """Add a case.

        Args:
            case: The case.
            segmentations: What was predicted of it from each subset.
            whole: The subset of all modalities that it has.
        """
        reference, known = case.labels[:][0], self._labels.consecutive().only(case.labelled)
        masks: dict[str, list[tuple[float, tuple[float, ...]]]] = defaultdict(list)
        by_subset: dict[str, list[Reliability]] = defaultdict(list)
        by_share: dict[Subset, dict[str, tuple[float, ...]]] = {}
        for subset, predicted in segmentations.items():
            by_share[subset] = dice_by_share(predicted.indices, reference, known)
            for name, dice in by_share[subset].items():
                counts = self._counts[subset]
                counts[name] = add_counts([counts[name], count_dice(dice[0])])
                masks[name].append((predicted.confidences[name], dice))
            for name, part in predicted.reliabilities(case, self._labels).items():
                by_subset[name].append(part)
        for name, each in masks.items():
            self._confidence[name] = add_sums([self._confidence[name], sums_of_case(each)])
        self._components.add(case, by_share, whole)
        for name, parts in by_subset.items():
            one = dataclasses.replace(add_reliability(parts), cases=1)
            self._reliability[name] = add_reliability([self._reliability[name], one])
        for subset in segmentations:
            self._measured[subset].add(case.name)

    def record(self, fewest: int) -> dict[str, Any]:
        """Return the reply's fields, without sums that tell of fewer than some patients."""
        masks = set[str]().union(*self._measured.values())
        subsets = sorted(self._counts, key=lambda subset: (-len(self._measured[subset]), subset))
        sums = [self._components.measured, masks, *(self._measured[s] for s in subsets)]
        enough, rows = set[str](), {subset: dict(self._none) for subset in sorted(subsets)}
        for name in self._labels.foreground:
            _, of_masks, *of_subsets = self._components.judged.may_leave(name, sums, fewest)
            enough |= {name} if of_masks else set()
            for subset, leaves in zip(subsets, of_subsets, strict=True):
                if leaves:
                    rows[subset][name] = self._counts[subset][name]

        def of_enough(by_label: Mapping[str, S], nothing: S) -> dict[str, Any]:
            return {
                name: json_of(sums if name in enough else nothing)
                for name, sums in by_label.items()
            }

        return {
            "subsets": [
                [list(subset), {name: list(counts) for name, counts in row.items()}]
                for subset, row in rows.items()
                if any(map(any, row.values()))
            ],
            "confidence": of_enough(self._confidence, ConfidenceSums()),
            "reliability": of_enough(self._reliability, Reliability()),
            "components": self._components.record(fewest),
        }
