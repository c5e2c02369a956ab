"""Two configurations and their mean, measured on the same validation cases and voxels of a site.

The site sends of each of the three by label how many cases it counts and sums of their Dice, as
``subset_validation`` does of a single configuration, and under the same minima.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from mixmfl.evaluation.small_components import dice_by_share
from mixmfl.evaluation.subset_dice import Subset
from mixmfl.federated.client.outbound import outgoing
from mixmfl.federated.client.subset_validation import (
    MeasuredComponents,
    measured_subsets,
    segmenter,
)
from mixmfl.federated.client.training import judged_cases
from mixmfl.federated.messages import Message
from mixmfl.federated.state import COMPARE, RunSettings, Site, tensors_of_both
from mixmfl.inference.every_subset import SubsetMask
from mixmfl.inference.model_folder import CANDIDATES, ENSEMBLE
from mixmfl.planning.nnunet_labels import label_manager
from mixmfl.planning.nnunet_preprocessing import onto_grid
from mixmfl.planning.plans import Plans
from mixmfl.planning.preprocessed_case import PreprocessedCase, case_names, open_case

Masks = Mapping[Subset, npt.NDArray[Any]]
"""Class indices ``(Z, Y, X)`` by the subset that they are predicted from."""


def compare_at_site(
    task: Message,
    site: Site,
    plans: Plans,
    settings: RunSettings,
    step: Callable[[], None] = lambda: None,
) -> Message:
    """Return the sums of Dice of two configurations and of their mean.

    All are of the voxels of ``settings.configuration``. A site where a case is preprocessed for one
    configuration only sends sums of no case: it would be split into other folds, and might have
    trained the other network.

    Args:
        task: Task from ``comparison_tasks``, with the networks of both.
        site: The site.
        plans: Plans of both.
        settings: Settings of the run.
        step: Called after every case.
    """
    beside, usable = task.record["beside"], set(task.record["modalities"])
    names = settings.configuration, beside
    segment_own, segment_other = (
        segmenter(
            dataclasses.replace(task, tensors=tensors),
            *(site, plans, dataclasses.replace(settings, configuration=name)),
        )
        for name, tensors in zip(names, tensors_of_both(task), strict=True)
    )
    measured = {candidate: MeasuredComponents(plans.labels) for candidate in CANDIDATES}
    judged = judged_cases(site, usable, plans.labels) if _has_all(site, plans, beside) else ()
    for case, subsets, whole in measured_subsets(judged, usable, site.validation_cases):
        there = open_case(case.folder.with_name(beside), case.name)
        own, other = segment_own(case, subsets), segment_other(there, subsets)
        by_candidate = _masks(own, other, case, there, plans, names)
        reference, known = case.labels[:][0], plans.labels.consecutive().only(case.labelled)
        for candidate, masks in by_candidate.items():
            dice = {s: dice_by_share(indices, reference, known) for s, indices in masks.items()}
            measured[candidate].add(case, dice, whole)
        step()
    components = {name: each.record(site.validation_cases) for name, each in measured.items()}
    return outgoing(COMPARE, {"round": task.record["round"], "components": components})


def _has_all(site: Site, plans: Plans, configuration: str) -> bool:
    """Say whether a site's cases are those that it has for another configuration."""
    cases = (*site.training, *site.validation)
    (folder,) = {case.folder.with_name(configuration) for case in cases}
    if case_names(folder) != tuple(sorted(case.name for case in cases)):
        return False
    planned = plans.preprocessing(configuration)
    others = (open_case(folder, case.name) for case in cases)
    return all(
        (other.planned, other.modalities) == (planned, case.modalities)
        for case, other in zip(cases, others, strict=True)
    )


def _masks(
    own: Mapping[Subset, SubsetMask],
    other: Mapping[Subset, SubsetMask],
    case: PreprocessedCase,
    there: PreprocessedCase,
    plans: Plans,
    names: tuple[str, str],
) -> Mapping[str, Masks]:
    """Return masks by candidate, all on the grid of ``case``.

    The mean is one of probabilities, as ``segment`` takes it of models of several configurations.

    Args:
        own: What the run's configuration segments.
        other: What the other one segments.
        case: The case as preprocessed for the run's configuration.
        there: The case as preprocessed for the other one.
        plans: Plans of both.
        names: The run's configuration and the other one.
    """
    manager, shape = label_manager(plans.labels), case.labels.shape[1:]
    masks: dict[str, dict[Subset, npt.NDArray[Any]]] = {name: {} for name in (*names, ENSEMBLE)}
    for subset, segmented in own.items():
        logits = onto_grid(
            other[subset].logits, there.spacing, shape, case.spacing, plans.nnunet, names[1]
        )
        both = (segmented.logits.float(), logits)
        mean = sum(map(manager.apply_inference_nonlin, both)) / len(both)
        made = {
            names[0]: segmented.indices,
            names[1]: manager.convert_logits_to_segmentation(logits).numpy(),
            ENSEMBLE: manager.convert_probabilities_to_segmentation(mean).numpy(),
        }
        for name, indices in made.items():
            inside = True if segmented.head is None else segmented.head
            masks[name][subset] = np.where(inside, indices, 0)
    return masks
