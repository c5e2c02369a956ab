"""How good masks are: Dice, HD95 and volume, per case and per label or region.

The only module that sees MONAI, whose metrics these are. What counts when something is empty is
decided here, in ``score``.
"""

import math
import statistics
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from mixmfl.core.errors import DataError, MixmflError
from mixmfl.core.files import absolute
from mixmfl.core.nan import defined, deviation, mean
from mixmfl.core.spreadsheet import write_table
from mixmfl.core.text import shorten
from mixmfl.data import image
from mixmfl.data.cases import find_cases
from mixmfl.data.grid import grid_difference, to_canonical
from mixmfl.data.label_sets import LabelMap, map_labels
from mixmfl.data.labels import EXAMPLE, Labels, read_folder_labels
from mixmfl.data.modalities import Modalities

Mask = npt.NDArray[Any]
PERCENTILE = 95
COLUMNS = ("case", "label", "dice", "hd95_mm", "volume_ml", "reference_volume_ml")


@dataclass(frozen=True)
class Score:
    """How well the mask of one label or region of one case fits its reference.

    Attributes:
        label: Name of the label or region.
        dice: 0 to 1; NaN where both masks are empty.
        hd95_mm: The larger of the two 95th percentiles of the distances from one surface to the
            other; NaN where a mask is empty.
        volume_ml: Volume of the prediction.
        reference_volume_ml: Volume of the reference.
    """

    label: str
    dice: float
    hd95_mm: float
    volume_ml: float
    reference_volume_ml: float


@dataclass(frozen=True)
class Evaluation:
    """The scores of each case, and why the others have none; both sorted by case."""

    scores: Mapping[str, Sequence[Score]]
    failures: Mapping[str, str]


@dataclass(frozen=True)
class Summary:
    """One metric of one label or region over all cases.

    Attributes:
        label: Name of the label or region.
        metric: ``"dice"`` or ``"hd95_mm"``.
        mean: Mean over the cases where the metric is defined; NaN without any.
        median: Median over the same cases; NaN without any.
        std: Sample standard deviation; NaN below two cases.
        cases: Number of cases where the metric is defined.
        undefined: Number of the other cases; they are in none of the numbers before.
    """

    label: str
    metric: str
    mean: float
    median: float
    std: float
    cases: int
    undefined: int


def score(
    prediction: Mask, reference: Mask, labels: Labels, spacing: Sequence[float]
) -> list[Score]:
    """Compare two masks, for each label and region that ``labels`` has as foreground.

    Where both masks are empty, Dice and HD95 are NaN. Where one is empty, Dice is 0 and HD95 NaN,
    as there is no distance. Voxels with the reference's ignore label count in neither mask, nor in
    the volumes.

    Args:
        prediction: ``(Z, Y, X)``, label values.
        reference: ``(Z, Y, X)``, label values.
        labels: What the values mean.
        spacing: (Z, Y, X) in mm.
    """
    assert prediction.shape == reference.shape, f"{prediction.shape}, {reference.shape}"
    if labels.ignore is not None:
        prediction = np.where(reference == labels.ignore, 0, prediction)
        reference = np.where(reference == labels.ignore, 0, reference)
    # for speed only: MONAI adds a border of background, so a cut at the foreground changes nothing
    box = _bounding_box((prediction != 0) | (reference != 0))
    voxel_ml = math.prod(spacing) / 1000
    scores = []
    for name, values in labels.foreground.items():
        predicted, expected = (np.isin(mask[box], values) for mask in (prediction, reference))
        dice, hd95 = _compare(predicted, expected, spacing)
        scores.append(
            Score(name, dice, hd95, int(predicted.sum()) * voxel_ml, int(expected.sum()) * voxel_ml)
        )
    return scores


def evaluate_folder(
    masks: Path,
    reference: Path,
    labels: Labels,
    *,
    modalities: Modalities | None = None,
    progress: Callable[[Sequence[str]], Iterable[str]] = iter,
    own: Labels | None = None,
) -> Evaluation:
    """Score all masks of a folder; a case that cannot be scored does not stop the others.

    Args:
        masks: Folder of ``CASE.nii.gz`` or another ending that we read.
        reference: A folder of masks with the same names, or of cases with labels in any layout.
        labels: What the values in both mean.
        modalities: The names of modalities in a reference folder of cases.
        progress: Takes the names of the cases and yields each when its turn comes.
        own: What the values in the references mean, where that differs from ``labels``; a
            label or region that the references do not label is not scored.

    Raises:
        DataError: A folder is missing, or no mask has a reference; or the references have labels
            that ``labels`` does not know.
    """
    mapped = map_labels(own or labels, labels)
    predictions, references, failures = _find_pairs(masks, reference, modalities)
    scores = {}
    for name in progress(sorted(predictions.keys() & references.keys())):
        try:
            scores[name] = _score_files(predictions[name], references[name], labels, mapped)
        except MixmflError as error:
            failures[name] = str(error)
    return Evaluation(scores, dict(sorted(failures.items())))


def summarise(evaluation: Evaluation) -> list[Summary]:
    """Return Dice and HD95 over all cases, per label or region, in the order declared."""
    by_label: dict[str, list[Score]] = {}
    for scores in evaluation.scores.values():
        for each in scores:
            by_label.setdefault(each.label, []).append(each)
    return [
        _summarise(label, metric, [getattr(each, metric) for each in scores])
        for label, scores in by_label.items()
        for metric in ("dice", "hd95_mm")
    ]


def write_csv(evaluation: Evaluation, path: Path) -> None:
    """Write a row per case and label or region, whole or not at all; NaN is an empty field."""
    rows: list[Sequence[str]] = [COLUMNS]
    for case, scores in evaluation.scores.items():
        for each in scores:
            label, *numbers = astuple(each)
            rows.append([case, label, *("" if math.isnan(n) else f"{n:.6g}" for n in numbers)])
    write_table(path, rows)


def find_label_description(masks: Path, reference: Path) -> Path:
    """Return the dataset.json that says what the labels mean.

    It is looked for in REFERENCE, in its parent folder (as beside ``labelsTr``), then in MASKS.

    Raises:
        DataError: There is none.
    """
    folders = (reference, absolute(reference).parent, masks)
    for folder in folders:
        if (folder / "dataset.json").is_file():
            return folder / "dataset.json"
    raise DataError(
        "no dataset.json says what the label values mean: looked in "
        f"{', '.join(str(folder) for folder in folders)}. Write one such as {EXAMPLE} and name it "
        "with --labels"
    )


def read_descriptions(
    masks: Path, reference: Path, named: Path | None, own: Path | None = None
) -> tuple[Labels, Labels | None, str]:
    """Return what the values in MASKS mean, what those in REFERENCE mean, and which files say so.

    The second is None where it equals the first.

    Where masks have all the labels that the reference's own dataset.json has, and others, the
    reference is one site's, which labels some of what a federation's model segments.

    Args:
        masks: Folder of masks.
        reference: Folder of references.
        named: A dataset.json, or plans, for the masks; and for references without their own.
        own: A dataset.json for the references.

    Raises:
        DataError: There is no description, or one is damaged.
    """
    reference_labels = Labels.load(own) if own else None
    reference_source = f"; of the reference from {own}" if own else ""
    labels = Labels.load(named) if named else read_folder_labels(masks)
    source = named or masks / "dataset.json"
    if labels is not None and reference_labels is None:
        for folder in (reference, absolute(reference).parent):
            try:
                beside = read_folder_labels(folder)
            except DataError:  # it may be why another is named
                if named is None:
                    raise
                continue
            if beside is not None:
                if set(beside.foreground) <= set(labels.foreground):
                    reference_labels = beside
                    reference_source = f"; of the reference from {folder / 'dataset.json'}"
                break
    if labels is None or (reference_labels is None and named is None):
        source = find_label_description(masks, reference)
        labels = Labels.load(source)
    if (
        reference_labels is not None
        and reference_labels.difference(labels) is None
        and not reference_labels.read_as
    ):
        reference_labels, reference_source = None, ""
    return labels, reference_labels, f"{source}{reference_source}"


def _compare(predicted: Mask, expected: Mask, spacing: Sequence[float]) -> tuple[float, float]:
    """Return Dice and HD95 in mm of two bool masks, ``(Z, Y, X)``."""
    if not predicted.any() and not expected.any():
        return math.nan, math.nan
    if not predicted.any() or not expected.any():
        return 0.0, math.nan
    import torch  # only here: MONAI takes seconds to import
    from monai.metrics import compute_dice, compute_hausdorff_distance

    pair = [torch.from_numpy(mask)[None, None] for mask in (predicted, expected)]  # (1, 1, Z, Y, X)
    with warnings.catch_warnings():
        # MONAI 1.5 and 1.6 use an argument of their own that they have deprecated
        warnings.filterwarnings(
            "ignore", message=".*always_return_as_numpy", category=FutureWarning
        )
        distance = compute_hausdorff_distance(
            *pair, include_background=True, percentile=PERCENTILE, spacing=list(spacing)
        )
    return compute_dice(*pair).item(), distance.item()


def _bounding_box(mask: Mask) -> tuple[slice, ...]:
    """Return the smallest box around what is True; an empty one if nothing is."""
    boxes: list[tuple[slice, ...]] = ndimage.find_objects(mask.astype(np.uint8))
    return boxes[0] if boxes else (slice(0, 0),) * mask.ndim


def _summarise(label: str, metric: str, values: Sequence[float]) -> Summary:
    known = defined(values)
    return Summary(
        label,
        metric,
        mean=mean(known),
        median=statistics.median(known) if known else math.nan,
        std=deviation(known),
        cases=len(known),
        undefined=len(values) - len(known),
    )


def _score_files(mask: Path, reference: Path, labels: Labels, mapped: LabelMap) -> list[Score]:
    predicted, grid = to_canonical(*image.read_labels(mask))
    expected, reference_grid = to_canonical(*image.read_labels(reference))
    difference = grid_difference(grid, reference_grid)
    if difference:
        raise DataError(
            f"{mask} has {difference} in {reference}. Both must share one grid; resample the mask "
            "to the reference (nearest neighbour), or predict from the images of the reference"
        )
    try:
        path, option = mask, "--labels"
        predicted = labels.to_values(labels.to_indices(predicted))
        path, option = reference, option if mapped.labelled is None else "--reference-labels"
        expected = labels.to_values(mapped.to_indices(expected))
    except DataError as error:
        raise DataError(f"{path}: {error}. Another description is named with {option}") from None
    return score(predicted, expected, labels.only(mapped.labelled), grid.spacing)


def _find_pairs(
    masks: Path, reference: Path, modalities: Modalities | None
) -> tuple[dict[str, Path], dict[str, Path], dict[str, str]]:
    """Return the masks, their references, and why cases have none, each by case."""
    predictions, failures = _list_masks(masks)
    if not predictions and not failures:
        raise DataError(
            f"{masks} holds no masks; needed are files such as CASE.nii.gz, one per case"
        )
    references, reasons = _list_masks(reference)
    if not predictions.keys() & references.keys():  # then REFERENCE is a folder of cases
        cases = find_cases(reference, modalities)
        references = {case.name: case.label for case in cases.cases if isinstance(case.label, Path)}
        reasons = {refused.name: refused.reason for refused in cases.refused}
    for name in (predictions.keys() | references.keys()) - failures.keys():
        if name not in references:
            failures[name] = reasons.get(
                name, f"{predictions[name]} has no reference in {reference}"
            )
        elif name not in predictions:
            failures[name] = f"{references[name]} has no mask in {masks}"
    if not predictions.keys() & references.keys():
        raise DataError(
            f"no mask has a reference: {masks} holds {shorten(sorted(predictions))}; {reference} "
            f"has references for {shorten(sorted(references))}. A mask is named as its case, such "
            "as CASE.nii.gz"
        )
    return predictions, references, failures


def _list_masks(folder: Path) -> tuple[dict[str, Path], dict[str, str]]:
    """Return the images directly in a folder by name without ending, and why others are refused."""
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder")
    masks: dict[str, Path] = {}
    duplicates: dict[str, str] = {}
    for path in sorted(folder.iterdir()):
        ending = next((e for e in image.FILE_ENDINGS if path.name.lower().endswith(e)), None)
        if ending is None or path.name.startswith(".") or not path.is_file():
            continue
        name = path.name[: -len(ending)]
        if name in masks:
            duplicates[name] = f"{masks[name]} and {path} are one case's; keep one of them"
        masks[name] = path
    return {name: path for name, path in masks.items() if name not in duplicates}, duplicates
