"""Dice per subset of modalities, measured on a site's validation cases.

A site sends how many of its validation cases have which Dice, for each subset of their modalities,
by label the sums from which the Dice of a mask is estimated, by label how often the network is
right at which probability, and by label the sums that say which small components of a mask to
remove.
"""

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from mixmfl.data.labels import Labels
from mixmfl.data.patients import patient_of
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
from mixmfl.federated.client.training import judged_cases, site_network
from mixmfl.federated.messages import Message
from mixmfl.federated.state import CASES_PER_SUBSET, MEASURE, RunSettings, Site
from mixmfl.inference.cpu_network import fastest_form
from mixmfl.inference.every_subset import SubsetMask, segment_subsets
from mixmfl.networks.prototypes import memory_from_state, memory_to
from mixmfl.planning.plans import Plans
from mixmfl.planning.preprocessed_case import PreprocessedCase, labels_in
from mixmfl.training.validation import are_enough

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
    for case, subsets, whole in measured_subsets(judged_cases(site, usable), usable):
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
    cases: Iterable[PreprocessedCase], usable: Collection[str]
) -> Iterator[tuple[PreprocessedCase, list[Subset], Subset]]:
    """Yield each case, the subsets that it is measured from, and that of all that it has.

    A subset is measured on ``CASES_PER_SUBSET`` cases at most.

    Args:
        cases: Cases with any usable modality each.
        usable: Modalities that the network can use.
    """
    used: Counter[Subset] = Counter()  # number of cases
    for case in cases:
        available = all_subsets(sorted({*usable}.intersection(case.modalities)))
        subsets = [subset for subset in available if used[subset] < CASES_PER_SUBSET]
        used.update(subsets)
        yield case, subsets, available[-1]


class MeasuredComponents:
    """Sums of Dice without small components, over the validation cases of a site, by label."""

    def __init__(self, labels: Labels) -> None:
        """Begin with no case of any label or region."""
        self._labels = labels
        self._sums = dict.fromkeys(labels.foreground, ComponentSums())
        self._patients: dict[str, set[str]] = defaultdict(set)

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
        has = labels_in(case, self._labels)
        for name, of_whole in dice.get(whole, {}).items():
            of_subsets = [by_label[name] for by_label in dice.values() if name in by_label]
            of_case = components_of_case(of_whole[0], of_subsets)
            self._sums[name] = add_components([self._sums[name], of_case])
            if name in has:
                self._patients[name].add(patient_of(case.name, case.patient))

    def record(self, fewest: int) -> dict[str, Any]:
        """Return a reply's field, without labels that fewer than ``fewest`` patients have."""
        return {
            name: (sums if are_enough(self._patients[name], fewest) else ComponentSums()).to_json()
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
        # by label those whose references have it: else Dice is 0, and a sum that of the others
        self._patients: dict[str, dict[Subset, set[str]]] = defaultdict(lambda: defaultdict(set))

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
        for name in labels_in(case, self._labels):
            for subset in segmentations:
                self._patients[name][subset].add(patient_of(case.name, case.patient))

    def record(self, fewest: int) -> dict[str, Any]:
        """Return the reply's fields, without what fewer than ``fewest`` patients stand behind."""
        rows = [
            [
                list(subset),
                {
                    name: list(
                        counts
                        if are_enough(self._patients[name][subset], fewest)
                        else self._none[name]
                    )
                    for name, counts in by_name.items()
                },
            ]
            for subset, by_name in sorted(self._counts.items())
        ]

        enough = {
            name
            for name in self._labels.foreground
            if are_enough(set[str]().union(*self._patients[name].values()), fewest)
        }

        def of_enough(by_label: Mapping[str, S], nothing: S) -> dict[str, Any]:
            return {
                name: (sums if name in enough else nothing).to_json()
                for name, sums in by_label.items()
            }

        return {
            "subsets": rows,
            "confidence": of_enough(self._confidence, ConfidenceSums()),
            "reliability": of_enough(self._reliability, Reliability()),
            "components": self._components.record(fewest),
        }
