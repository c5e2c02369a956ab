"""Dice of validation cases during a run."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from mixmfl.data.labels import Labels
from mixmfl.data.patients import patient_of
from mixmfl.inference.predictor import segment_stored
from mixmfl.networks.base import SegmentationNet
from mixmfl.networks.prototypes import PrototypeMemory
from mixmfl.planning.plans import Plans
from mixmfl.planning.preprocessed_case import PreprocessedCase, labels_in


@dataclass(frozen=True)
class DiceSum:
    """Dice of one label or region, summed over cases, so that sites' sums add up.

    Attributes:
        total: Sum over the cases in which Dice is defined.
        cases: Number of these cases; Dice is undefined where neither mask nor reference has the
            label.
        patients: Whose references have the label: where the mask alone has it, Dice is 0, and so
            the sum is that of the others. They stay at the site.
    """

    total: float
    cases: int
    patients: frozenset[str] = frozenset()


@torch.inference_mode()
def validate(
    network: SegmentationNet,
    memory: PrototypeMemory,
    cases: Iterable[PreprocessedCase],
    modalities: Collection[str],
    plans: Plans,
    configuration: str,
    device: torch.device,
) -> dict[str, DiceSum]:
    """Return the Dice of every label or region over whole preprocessed cases that label it.

    Every case is predicted from those of ``modalities`` that it has, with patches that do not
    overlap and are not mirrored: a fast, slightly pessimistic estimate of the Dice of ``predict``.
    """
    sums = dict.fromkeys(plans.labels.foreground, DiceSum(0.0, 0))
    for case in cases:
        used = tuple(name for name in case.modalities if name in modalities)
        if not used:
            continue
        predicted = segment_stored(network, memory, case, used, plans, configuration, device)
        indices = plans.labels.consecutive().only(case.labelled)
        dice = dice_of_case(predicted, case.labels[:][0], indices)
        sums = add_dice(sums, dice, case, plans.labels)
    return sums


def dice_sums(sums: Mapping[str, DiceSum], fewest: int) -> dict[str, list[float | int]]:
    """Return sums as a message has them; one over fewer than ``fewest`` patients is as of none."""
    return {
        name: [dice.total, dice.cases] if are_enough(dice.patients, fewest) else [0.0, 0]
        for name, dice in sums.items()
    }


def are_enough(patients: Collection[str], fewest: int) -> bool:
    """Say whether a number of some patients may leave a site; without a floor any may."""
    return fewest <= 1 or len(patients) >= fewest


def add_dice(
    sums: Mapping[str, DiceSum], dice: Mapping[str, float], case: PreprocessedCase, labels: Labels
) -> dict[str, DiceSum]:
    """Return the sums over previous cases with the Dice of one more case added, by label."""
    added, has = dict(sums), labels_in(case, labels)
    for name, value in dice.items():
        before = sums[name]
        patient = {patient_of(case.name, case.patient)} if name in has else set()
        behind = before.patients | patient
        added[name] = DiceSum(before.total + value, before.cases + 1, behind)
    return added


def dice_of_case(
    predicted: npt.NDArray[Any], reference: npt.NDArray[Any], indices: Labels
) -> dict[str, float]:
    """Return the Dice of each label or region that a case's mask or its reference has.

    Args:
        predicted: Class indices ``(Z, Y, X)``.
        reference: Class indices ``(Z, Y, X)``; negative outside the head.
        indices: The labels of the case, by class index (``Labels.consecutive``).
    """
    counted = indices.counted(reference)
    dice = {}
    for name, values in indices.foreground.items():
        a, b = (np.isin(mask, values) & counted for mask in (predicted, reference))
        size = int(a.sum()) + int(b.sum())
        if size:
            dice[name] = 2 * int((a & b).sum()) / size
    return dice
