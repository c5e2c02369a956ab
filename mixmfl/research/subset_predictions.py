"""Every case from every subset of modalities: predicted, scored against truth, shown in a page."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mixmfl.core.errors import DataError
from mixmfl.core.nan import mean
from mixmfl.data.cases import Case
from mixmfl.data.grid import to_canonical
from mixmfl.data.image import read_labels
from mixmfl.data.labels import Labels
from mixmfl.data.load_case import load_case
from mixmfl.evaluation.html import HeatTable, Picture, Section, legend, page
from mixmfl.evaluation.metrics import Evaluation, evaluate_folder
from mixmfl.evaluation.overlay import overlay
from mixmfl.evaluation.subset_dice import Subset, all_subsets
from mixmfl.inference.model import Model
from mixmfl.inference.outcomes import Outcome
from mixmfl.inference.predict_folder import predict_folder
from mixmfl.inference.prediction_options import PredictionOptions


@dataclass(frozen=True)
class SubsetScores:
    """The scores of predictions from one subset of modalities.

    Attributes:
        subset: The modalities that were used.
        evaluation: Evaluation of every case.
    """

    subset: Subset
    evaluation: Evaluation

    def mean_dice(self, label: str) -> float:
        """Return the mean Dice of a label or region over cases; NaN where none has it."""
        return mean(
            score.dice
            for scores in self.evaluation.scores.values()
            for score in scores
            if score.label == label
        )


def predict_subsets(
    model: Model, cases: Sequence[Case], out: Path, subjects: str
) -> Iterator[tuple[Subset, Outcome]]:
    """Predict every case from every subset of the model's modalities, one folder per subset.

    Args:
        model: The model.
        cases: The cases; each has all of the model's modalities.
        out: Folder of the subsets' folders.
        subjects: What the cases are, as ``dataset_card.subjects_of`` says.

    Yields:
        Subset and outcome of each prediction, as soon as it is done.

    Raises:
        DataError: A case lacks a modality, so that not every subset is available.
    """
    for case in cases:
        if missing := set(model.modalities) - set(case.images):
            raise DataError(f"case {case.name!r}: lacks {', '.join(sorted(missing))}")
    for subset in all_subsets(model.modalities):
        folder = masks_folder(out, subset)
        options = PredictionOptions(only=subset, subjects=subjects)
        for outcome in predict_folder([model], cases, (), folder, options):
            yield subset, outcome


def masks_folder(out: Path, subset: Subset) -> Path:
    """Return the folder of the masks of a subset."""
    return out / "+".join(subset)


def score_subsets(
    modalities: Sequence[str],
    out: Path,
    reference: Path,
    labels: Labels,
    progress: Callable[[Sequence[Subset]], Iterable[Subset]],
) -> list[SubsetScores]:
    """Score the masks that ``predict_subsets`` wrote.

    Args:
        modalities: Modalities of the model.
        out: Folder of the masks.
        reference: Folder of the cases, with their labels.
        labels: Meaning of the labels.
        progress: Function that wraps the subsets, to show progress.
    """
    return [
        SubsetScores(subset, evaluate_folder(masks_folder(out, subset), reference, labels))
        for subset in progress(all_subsets(modalities))
    ]


def subset_page(
    title: str,
    introduction: str,
    scores: Sequence[SubsetScores],
    cases: Sequence[Case],
    masks: Path,
    labels: Labels,
    shown: Sequence[Subset],
) -> str:
    """Return a page: Dice by subset and region, and pictures of each case for some subsets.

    Args:
        title: Title of the page.
        introduction: Introduction of the page.
        scores: Scores of all subsets.
        cases: The cases, with their labels.
        masks: Folder that ``predict_subsets`` wrote the masks to.
        labels: Meaning of the labels.
        shown: Subsets to draw; the image under the outline is the subset's last modality.
    """
    regions = list(labels.foreground)
    modalities = sorted({name for item in scores for name in item.subset})
    values = [[item.mean_dice(name) for name in regions] for item in scores]
    table = HeatTable([item.subset for item in scores], modalities, regions, values)
    key = legend(labels.consecutive().foreground)
    sections = [Section("Dice by modalities used", "Mean over the cases.", table=table)]
    for case in cases:
        pictures = _draw_case(case, masks, labels, shown)
        sections.append(Section(case.name, legend=key, pictures=pictures))
    return page(title, introduction, sections)


def _draw_case(case: Case, masks: Path, labels: Labels, shown: Sequence[Subset]) -> list[Picture]:
    loaded = load_case(case, labels)
    pictures = []
    for subset in shown:
        values, grid = read_labels(masks_folder(masks, subset) / f"{case.name}.nii.gz")
        prediction, _ = to_canonical(labels.to_indices(values), grid)
        png = overlay(
            loaded.images[subset[-1]],
            loaded.labels,
            prediction,
            loaded.canonical.spacing,
            labels.consecutive().foreground,
        )
        pictures.append(Picture(f"from {', '.join(subset)}; drawn on {subset[-1]}", png))
    return pictures
