"""Which model files a folder stands for: the one of a run, or those of its folds, an ensemble.

::

    RUN/model.safetensors              of a run
    RUN/cross_validation.json          of a run in folds: which there are, and what was measured
    RUN/fold_0/model.safetensors       of its folds
    RUN/configurations.json            of a run of several configurations: which is best
    RUN/<configuration>/               each of them, a run in folds
"""

from pathlib import Path

from mixmfl.core.errors import ModelError
from mixmfl.core.files import read_json

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
        raise ModelError(f"-m {path}: there is no such model file or run")
    if (path / CONFIGURATIONS_FILE).is_file():
        best = read_json(path / CONFIGURATIONS_FILE, ModelError).get("best")
        if not isinstance(best, str) or not (path / best / CROSS_VALIDATION_FILE).is_file():
            raise ModelError(
                f"{path / CONFIGURATIONS_FILE}: no configuration was chosen yet; end the run by "
                "mixmfl_train_federated --resume, or name the folder of one configuration by -m"
            )
        return model_files(path / best)
    if (path / CROSS_VALIDATION_FILE).is_file():
        return _models_of_folds(path)
    if (path / MODEL).is_file():
        return [path / MODEL]
    raise ModelError(
        f"-m {path}: holds no {MODEL}; a model file is needed, or the folder of a run that "
        "mixmfl_train_federated has trained to its end"
    )


def _models_of_folds(folder: Path) -> list[Path]:
    record = read_json(folder / CROSS_VALIDATION_FILE, ModelError)
    folds = record.get("folds")
    if not isinstance(folds, list) or not all(isinstance(fold, str) for fold in folds):
        raise ModelError(f"{folder / CROSS_VALIDATION_FILE}: is damaged; it names no folds")
    files = [fold_folder(folder, fold) / MODEL for fold in folds if fold != EVERY_CASE]
    if not record.get("rounds") or not all(file.is_file() for file in files):
        raise ModelError(
            f"{folder}: not all of its folds ({', '.join(folds)}) are trained; end the run by "
            "mixmfl_train_federated --resume, or name the model files of single folds by -m"
        )
    return files
