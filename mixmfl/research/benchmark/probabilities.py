"""How far a model's probabilities can be trusted on test cases, as they are and calibrated."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np

from mixmfl.core.declarations import entries, text, within
from mixmfl.core.errors import DataError
from mixmfl.core.files import read_long_json, write_json
from mixmfl.core.records import read_record
from mixmfl.data.labels import LONGEST_NAME, MOST_LABELS
from mixmfl.evaluation.reliability import (
    Calibration,
    Reliabilities,
    Reliability,
    add_reliability,
    calibration_error,
)
from mixmfl.evaluation.subset_dice import MOST_CASES, MOST_SUBSETS
from mixmfl.inference.confidence import volume_ranges
from mixmfl.inference.every_subset import SubsetMask
from mixmfl.inference.model import Model
from mixmfl.planning.preprocessed_case import PreprocessedCase

_Label = Annotated[str, text(LONGEST_NAME)]
_Millilitres = Annotated[float, within(0, 1e9)]


@dataclass(frozen=True)
class RangedVolume:
    """The volume of a label in a case, and the range that a mask's probabilities give it, in ml."""

    true: _Millilitres
    low: _Millilitres
    high: _Millilitres


@dataclass(frozen=True)
class Probabilities:
    """The file ``reliability.json``, of one training.

    Attributes:
        curves: The model's calibrations, by label or region.
        tested: The voxels of test cases from all subsets of their modalities.
        volumes: Volumes of labels with a calibration, one for each case and subset.
    """

    curves: Annotated[Mapping[_Label, Calibration], entries(0, MOST_LABELS)]
    tested: Reliabilities
    volumes: Annotated[tuple[RangedVolume, ...], entries(0, MOST_CASES * MOST_SUBSETS)]


def compare_probabilities(
    model: Model, tested: Iterable[tuple[PreprocessedCase, SubsetMask]]
) -> Probabilities:
    """Compare the probabilities behind masks with the truth.

    Args:
        model: The model.
        tested: Test cases with their masks, one for each subset.
    """
    labels, parts, volumes = model.plans.labels, dict[str, list[Reliability]](), []
    for case, mask in tested:
        voxel_ml = math.prod(case.spacing) / 1000
        ranges = volume_ranges(mask.logits, labels, model.calibrations, voxel_ml, mask.head)
        for name, reliability in mask.reliabilities(case, labels).items():
            parts.setdefault(name, []).append(reliability)
            if name in ranges:
                volumes.append(RangedVolume(sum(reliability.correct) * voxel_ml, *ranges[name]))
    sums = {name: add_reliability(each) for name, each in parts.items()}
    return Probabilities(model.calibrations, sums, tuple(volumes))


def add_probabilities(parts: Sequence[Probabilities]) -> Probabilities:
    """Return what was found in all cases of one model."""
    names = dict.fromkeys(name for each in parts for name in each.tested)
    tested = {
        name: add_reliability([each.tested[name] for each in parts if name in each.tested])
        for name in names
    }
    return Probabilities(parts[0].curves, tested, tuple(v for each in parts for v in each.volumes))


def write_probabilities(file: Path, probabilities: Probabilities) -> None:
    """Write ``reliability.json``."""
    write_json(file, asdict(probabilities))


def read_probabilities(file: Path) -> Probabilities | None:
    """Return what ``write_probabilities`` wrote; None where there is no such file.

    Raises:
        DataError: A field is unknown, missing or wrong.
    """
    if not file.is_file():
        return None
    return read_record(Probabilities, read_long_json(file), str(file), DataError)


@dataclass(frozen=True)
class CalibrationQuality:
    """What calibration is worth, mean over trainings and labels that have one.

    Attributes:
        trainings: Number of trainings with a calibration.
        cases: Validation cases behind a calibration: fewest and most.
        error: Mean distance of probability and share of right voxels, as the network says it; see
            ``calibration_error``.
        calibrated_error: Mean distance, after calibration.
        excess: Sum of the calibrated probabilities over the number of voxels of the label.
        covered: Share of the volumes, over all trainings, inside their range.
        width: Median width of the ranges, as a share of the true volume.
    """

    trainings: int
    cases: tuple[int, int]
    error: float
    calibrated_error: float
    excess: float
    covered: float
    width: float


def calibration_quality(trainings: Sequence[Probabilities]) -> CalibrationQuality | None:
    """Return what calibration is worth; None where nothing was calibrated."""
    known = [
        (each.tested[name], calibration)
        for each in trainings
        for name in each.tested
        if (calibration := each.curves.get(name)) is not None
    ]
    if not known:
        return None
    cases = [calibration.cases for _, calibration in known]
    volumes = [volume for each in trainings for volume in each.volumes]
    return CalibrationQuality(
        sum(bool(each.curves) for each in trainings),
        (min(cases), max(cases)),
        float(np.mean([calibration_error(tested) for tested, _ in known])),
        float(np.mean([calibration_error(*each) for each in known])),
        float(np.mean([_excess(*each) for each in known])),
        float(np.mean([each.low <= each.true <= each.high for each in volumes])),
        float(np.median([(each.high - each.low) / each.true for each in volumes if each.true])),
    )


def _excess(tested: Reliability, calibration: Calibration) -> float:
    voxels = np.array(tested.voxels, dtype=float)
    mean = np.divide(tested.confidence, voxels, out=np.zeros_like(voxels), where=voxels > 0)
    return float(voxels @ calibration(mean)) / sum(tested.correct)
