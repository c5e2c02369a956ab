"""Which model files a file or folder stands for: one, or those of a run's folds, an ensemble.

All commands and functions that take a model ask here.

::

    RUN/model.safetensors              of a run
    RUN/cross_validation.json          of a run in folds: which there are, and what was measured
    RUN/fold_0/model.safetensors       of its folds
    RUN/configurations.json            of a run of several configurations: which is best
    RUN/<configuration>/               each of them, a run in folds
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from mixmfl.core.declarations import entries, one_of, within
from mixmfl.core.errors import ModelError
from mixmfl.core.files import exists, is_file, read_json, read_long_json
from mixmfl.core.records import read_record
from mixmfl.evaluation.mask_quality import Measured
from mixmfl.evaluation.small_components import Components, best_shares
from mixmfl.planning.bounds import MOST_ROUNDS
from mixmfl.planning.nnunet_plans import CONFIGURATIONS

MODEL = "model.safetensors"
CROSS_VALIDATION_FILE = "cross_validation.json"
CONFIGURATIONS_FILE = "configurations.json"

EVERY_CASE = "all"
"""The fold in which every case trains; its model is no part of an ensemble."""

ENSEMBLE = "ensemble"
"""The mean of all configurations that a run compares, as a candidate beside each of them."""

CANDIDATES = (*CONFIGURATIONS, ENSEMBLE)

FOLD_COUNT = 5

FOLD_NAMES = (*map(str, range(FOLD_COUNT)), EVERY_CASE)

Configuration = Annotated[str, one_of(CONFIGURATIONS)]
Candidate = Annotated[str, one_of(CANDIDATES)]
Fold = Annotated[str, one_of(FOLD_NAMES)]
_Rounds = Annotated[
    Mapping[Fold, Annotated[int, within(1, MOST_ROUNDS)]], entries(0, len(FOLD_NAMES))
]


@dataclass(frozen=True)
class FoldsRecord:
    """What ``cross_validation.json`` says.

    Attributes:
        configuration: Configuration of all folds.
        folds: Folds that the run is to have.
        rounds: The round of each fold whose model was measured; empty: not all are done.
        measured: What was measured over all folds and sites; None: not all are done.
        lengths: The rounds that each fold was trained for, at the end.
        format: Number of this form.
    """

    configuration: Configuration
    folds: Annotated[tuple[Fold, ...], entries(1, len(FOLD_NAMES), distinct=True)]
    rounds: _Rounds = field(default_factory=dict)
    measured: Measured | None = None
    lengths: _Rounds = field(default_factory=dict)
    format: Annotated[int, within(1, 1)] = 1


@dataclass(frozen=True)
class ConfigurationsRecord:
    """What ``configurations.json`` says.

    Attributes:
        configurations: Configurations that the run compares.
        best: The best of them, or their ensemble; None: not all are done.
        dice: The mean Dice of each candidate, where that is known.
        components: What the Dice of the ensemble is without small components, where that is known.
    """

    configurations: Annotated[
        tuple[Configuration, ...], entries(1, len(CONFIGURATIONS), distinct=True)
    ]
    best: Candidate | None = None
    dice: Annotated[
        Mapping[Candidate, Annotated[float, within(0, 1)] | None], entries(0, len(CANDIDATES))
    ] = field(default_factory=dict)
    components: Components = field(default_factory=dict)


def holds_folds(folder: Path) -> bool:
    """Say whether a run in folds, of one configuration, was started in a folder."""
    return (folder / CROSS_VALIDATION_FILE).is_file()


def fold_folder(folder: Path, fold: str) -> Path:
    """Return the folder of one fold of a run."""
    return folder / f"fold_{fold}"


def best_configurations(folder: Path) -> list[Path]:
    """Return the folders whose models prediction averages: of a single configuration its own.

    Of several it is that of the best one, or all of theirs where their ensemble is best.

    Raises:
        ModelError: None was chosen yet.
    """
    if not (folder / CONFIGURATIONS_FILE).is_file():
        return [folder]
    record = read_configurations(folder)
    best = record.configurations if record.best == ENSEMBLE else [record.best]
    folders = [folder / name for name in best if name is not None]
    if not folders or not all(map(holds_folds, folders)):
        raise ModelError(
            f"{folder / CONFIGURATIONS_FILE}: no configuration was chosen yet; end the run by "
            "mixmfl_train_federated --resume, or name the folder of one configuration"
        )
    return folders


def small_parts_of(paths: Sequence[Path]) -> dict[str, float] | None:
    """Return which small parts are removed from the mean of models, as was measured of it.

    None where nothing was: then those are removed on which all models agree.

    Args:
        paths: Files and folders that ``model_files`` takes, of which all models are averaged.

    Returns:
        By label the share of its largest component below which others are removed.
    """
    if len(paths) != 1 or not (paths[0] / CONFIGURATIONS_FILE).is_file():
        return None
    record = read_configurations(paths[0])
    return best_shares(record.components) if record.best == ENSEMBLE else None


def models_of_folds(folder: Path) -> dict[str, Path]:
    """Return the model files that prediction averages, by fold.

    Args:
        folder: Folder of a run in folds, of one configuration.

    Raises:
        ModelError: A fold is not trained to its end.
    """
    record = read_folds(folder)
    # that of all cases is no part of the mean, unless it is alone
    folds = [fold for fold in record.folds if fold != EVERY_CASE] or list(record.folds)
    files = {fold: fold_folder(folder, fold) / MODEL for fold in folds}
    if not record.rounds or not all(file.is_file() for file in files.values()):
        raise ModelError(
            f"{folder}: not all of its folds ({', '.join(record.folds)}) are trained; end the "
            "run by mixmfl_train_federated --resume, or name the model files of single folds"
        )
    return files


def model_files(path: Path) -> list[Path]:
    """Return the model files that a file or folder stands for.

    Args:
        path: A model file; the folder of a run; or that of a run in folds, whose models are
            averaged. Of a run of several configurations the best by cross-validation is taken,
            which may be all of them.

    Raises:
        ModelError: There is no model, or a fold is not trained to its end.
    """
    if is_file(path):
        return [path]
    if not exists(path) or not path.is_dir():
        raise ModelError(f"{path}: there is no such model file or run")
    folders = best_configurations(path)
    if all(map(holds_folds, folders)):
        return [file for folder in folders for file in models_of_folds(folder).values()]
    if (path / MODEL).is_file():
        return [path / MODEL]
    raise ModelError(
        f"{path}: holds no {MODEL}; a model file is needed, or the folder of a run that "
        "mixmfl_train_federated has trained to its end"
    )


def model_file(path: Path) -> Path:
    """Return the one model file that a file or folder stands for.

    Raises:
        ModelError: There is no model, or there are several, of folds or configurations.
    """
    files = model_files(path)
    if len(files) > 1:
        raise ModelError(
            f"{path}: holds {len(files)} models, and one model is needed here; name "
            f"one of {', '.join(map(str, files))}. mixmfl_predict -m {path} takes the mean of all"
        )
    return files[0]


def describe_model(path: Path) -> str:
    """Return a path that ``model_files`` takes, and how many models it stands for if several."""
    files = model_files(path)
    return str(path) if len(files) == 1 else f"{path}, the mean of {len(files)} models"


def folder_notes(path: Path) -> list[str]:
    """Return what must be known of a model that is one of several folds, or the mean of them.

    Args:
        path: A file or folder that ``model_files`` takes.
    """
    if path.is_dir():
        folders = filter(holds_folds, best_configurations(path))
        if lengths := [read_folds(folder).lengths for folder in folders]:
            return [note for each in lengths for note in unequal_lengths(each)]
    run, fold = _run_and_fold(path)
    if not fold:
        return []
    record = read_folds(run)
    if record.rounds:
        return []
    return [
        f"{path}: is one of the folds {', '.join(record.folds)}, not all of which are trained. "
        "When they are, this model's file is written again with what all of them measured: other "
        "expected Dice, and maybe other small parts that are removed"
    ]


def notes_of_mean(paths: Sequence[Path]) -> list[str]:
    """Return what must be known of the mean of several models, or of one.

    Args:
        paths: Files and folders that ``model_files`` takes. Folds of one run may be among them.
    """
    notes = [note for path in paths for note in folder_notes(path)]
    chosen: dict[Path, set[str]] = {}
    for run, fold in map(_run_and_fold, paths):
        if fold:
            chosen.setdefault(run, set()).add(fold)
    for run, folds in chosen.items():
        lengths = read_folds(run).lengths
        notes += unequal_lengths({f: n for f, n in lengths.items() if f in folds})
    return notes


def _run_and_fold(path: Path) -> tuple[Path, str]:
    """Return the run in folds that the model of one fold belongs to, and the fold; else ''."""
    folder = (path if path.is_dir() else path.parent).resolve()
    run = folder.parent
    if not holds_folds(run):
        return run, ""
    folds = read_folds(run).folds
    return run, next((fold for fold in folds if fold_folder(run, fold) == folder), "")


def unequal_lengths(rounds: Mapping[str, int]) -> list[str]:
    """Return a warning where folds were trained for unequal numbers of rounds.

    Args:
        rounds: By trained fold its rounds.
    """
    if len(set(rounds.values())) < 2:
        return []
    each = ", ".join(f"fold {fold} for {number}" for fold, number in rounds.items())
    return [
        f"folds were trained for unequal numbers of rounds: {each}. Their mean, and the Dice over "
        "all of them, mix short and long trainings; mixmfl_train_federated --resume --fold FOLD "
        f"--rounds {max(rounds.values())} trains a shorter one on"
    ]


def read_folds(folder: Path) -> FoldsRecord:
    """Read the record of a run in folds.

    Raises:
        ModelError: It is missing or damaged.
    """
    file = folder / CROSS_VALIDATION_FILE
    return read_record(FoldsRecord, read_long_json(file, ModelError), str(file), ModelError)


def read_configurations(folder: Path) -> ConfigurationsRecord:
    """Read the record of a run of several configurations.

    Raises:
        ModelError: It is missing or damaged.
    """
    file = folder / CONFIGURATIONS_FILE
    return read_record(ConfigurationsRecord, read_json(file, ModelError), str(file), ModelError)
