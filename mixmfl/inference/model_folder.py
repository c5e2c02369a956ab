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
from pathlib import Path
from typing import Any

from mixmfl.core.errors import ModelError
from mixmfl.core.files import read_json, read_long_json

MODEL = "model.safetensors"
CROSS_VALIDATION_FILE = "cross_validation.json"
CONFIGURATIONS_FILE = "configurations.json"

EVERY_CASE = "all"
"""The fold in which every case trains; its model is no part of an ensemble."""


def fold_folder(folder: Path, fold: str) -> Path:
    """Return the folder of one fold of a run."""
    return folder / f"fold_{fold}"


def model_files(path: Path) -> list[Path]:
    """Return the model files that a file or folder stands for.

    Args:
        path: A model file; the folder of a run; or that of a run in folds, whose models are
            averaged. Of a run of several configurations the best by cross-validation is taken.

    Raises:
        ModelError: There is no model, or a fold is not trained to its end.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise ModelError(f"{path}: there is no such model file or run")
    folder = _best_configuration(path)
    if (folder / CROSS_VALIDATION_FILE).is_file():
        return _models_of_folds(folder)
    if (folder / MODEL).is_file():
        return [folder / MODEL]
    raise ModelError(
        f"{folder}: holds no {MODEL}; a model file is needed, or the folder of a run that "
        "mixmfl_train_federated has trained to its end"
    )


def model_file(path: Path) -> Path:
    """Return the one model file that a file or folder stands for.

    Raises:
        ModelError: There is no model, or there are several, of folds.
    """
    files = model_files(path)
    if len(files) > 1:
        raise ModelError(
            f"{path}: holds the models of {len(files)} folds, and one model is needed here; name "
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
    if path.is_dir() and (_best_configuration(path) / CROSS_VALIDATION_FILE).is_file():
        record = _folds_record(_best_configuration(path))
        return unequal_lengths(record.get("lengths"))
    run, fold = _run_and_fold(path)
    if not fold:
        return []
    record = _folds_record(run)
    if record.get("rounds"):
        return []
    return [
        f"{path}: is one of the folds {', '.join(record['folds'])}, not all of which are trained. "
        "When they are, this model's file is written again with what all of them measured: other "
        "expected Dice, and maybe other labels of which the largest part is kept"
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
        lengths = _folds_record(run).get("lengths")
        if isinstance(lengths, Mapping):
            notes += unequal_lengths({f: n for f, n in lengths.items() if f in folds})
    return notes


def _run_and_fold(path: Path) -> tuple[Path, str]:
    """Return the run in folds that the model of one fold belongs to, and the fold; else ''."""
    folder = (path if path.is_dir() else path.parent).resolve()
    run = folder.parent
    if not (run / CROSS_VALIDATION_FILE).is_file():
        return run, ""
    folds: list[str] = _folds_record(run)["folds"]
    return run, next((fold for fold in folds if fold_folder(run, fold) == folder), "")


def unequal_lengths(rounds: object) -> list[str]:
    """Return a warning where folds were trained for unequal numbers of rounds.

    Args:
        rounds: The rounds that each fold was trained for; of runs from before nothing is known.
    """
    if not isinstance(rounds, Mapping) or len(set(rounds.values())) < 2:
        return []
    each = ", ".join(f"fold {fold} for {number}" for fold, number in rounds.items())
    return [
        f"folds were trained for unequal numbers of rounds: {each}. Their mean, and the Dice over "
        "all of them, mix short and long trainings; mixmfl_train_federated --resume --fold FOLD "
        f"--rounds {max(rounds.values())} trains a shorter one on"
    ]


def _best_configuration(folder: Path) -> Path:
    """Return the folder of the best of several configurations; of a single one its own folder."""
    if not (folder / CONFIGURATIONS_FILE).is_file():
        return folder
    best = read_json(folder / CONFIGURATIONS_FILE, ModelError).get("best")
    if not isinstance(best, str) or not (folder / best / CROSS_VALIDATION_FILE).is_file():
        raise ModelError(
            f"{folder / CONFIGURATIONS_FILE}: no configuration was chosen yet; end the run by "
            "mixmfl_train_federated --resume, or name the folder of one configuration"
        )
    return folder / best


def _folds_record(folder: Path) -> dict[str, Any]:
    record = read_long_json(folder / CROSS_VALIDATION_FILE, ModelError)
    folds = record.get("folds")
    if not isinstance(folds, list) or not all(isinstance(fold, str) for fold in folds):
        raise ModelError(f"{folder / CROSS_VALIDATION_FILE}: is damaged; it names no folds")
    return record


def _models_of_folds(folder: Path) -> list[Path]:
    record = _folds_record(folder)
    # that of all cases is no part of the mean, unless it is alone
    folds = [fold for fold in record["folds"] if fold != EVERY_CASE] or record["folds"]
    files = [fold_folder(folder, fold) / MODEL for fold in folds]
    if not record.get("rounds") or not all(file.is_file() for file in files):
        raise ModelError(
            f"{folder}: not all of its folds ({', '.join(record['folds'])}) are trained; end the "
            "run by mixmfl_train_federated --resume, or name the model files of single folds"
        )
    return files
