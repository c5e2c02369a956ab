"""Which model predicts when none is named: the one registered last on this machine."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

from mixmfl.core.declarations import LONGEST_PATH, text
from mixmfl.core.errors import ModelError
from mixmfl.core.files import exists, read_json, sha256, write_json
from mixmfl.core.records import read_record
from mixmfl.core.text import one_line
from mixmfl.inference.model_folder import model_files


@dataclass(frozen=True)
class _Registered:
    """The record of the registered model: its file, or a run's folder whose models are averaged.

    The SHA-256 is that of the file; of several files, that of theirs in order.
    """

    model: Annotated[str, text(LONGEST_PATH)]
    sha256: Annotated[str, text(64, "[0-9a-f]{64}", "a digest")]


def use_model(model: Path, home: Path) -> None:
    """Register a model file, or what the folder of a run stands for.

    Args:
        model: What ``model_files`` takes.
        home: The user's settings folder of mixmfl.

    Raises:
        ModelError: There is no model.
    """
    files = model_files(model)
    chosen = files[0] if len(files) == 1 else model
    digest = _joined([sha256(file) for file in files])
    write_json(home / "model.json", asdict(_Registered(str(chosen.resolve()), digest)))


def registered_model(home: Path) -> Path:
    """Return the registered model: a file, or the folder of a run; ``model_files`` takes both.

    Raises:
        ModelError: No model is registered, the record is damaged, or the model file is gone or
            has changed.
    """
    model = registered_path(home)
    check_registered(home, [sha256(file) for file in model_files(model)])
    return model


def registered_path(home: Path) -> Path:
    """Return the registered model for who loads it and then calls ``check_registered``.

    Raises:
        ModelError: No model is registered, the record is damaged, or the model file is gone.
    """
    registered = _registered(home)
    model = Path(registered.model)
    if not exists(model):
        raise ModelError(
            f"{one_line(registered.model, 1000)}: the registered model is gone; mixmfl_use_model "
            "MODEL registers another. mixmfl_predict -m MODEL needs none"
        )
    return model


def check_registered(home: Path, digests: Sequence[str]) -> None:
    """Check that files are those of the registered model.

    A file may be exchanged between two looks at it, so who has read models checks what was read.

    Args:
        home: The user's settings folder of mixmfl.
        digests: SHA-256 of each file, as it was read.

    Raises:
        ModelError: They are others, no model is registered, or the record is damaged.
    """
    registered = _registered(home)
    if _joined(digests) != registered.sha256:
        raise ModelError(
            f"{one_line(registered.model, 1000)}: the contents changed since it was registered; if "
            "that is intended, register it again by mixmfl_use_model"
        )


def _registered(home: Path) -> _Registered:
    record = home / "model.json"
    if not record.is_file():
        raise ModelError(
            "no model is registered on this machine; mixmfl_use_model MODEL registers one, and so "
            "does mixmfl_train_federated. mixmfl_predict -m MODEL needs none"
        )
    return read_record(_Registered, read_json(record, ModelError), str(record), ModelError)


def _joined(digests: Sequence[str]) -> str:
    """Return a file's digest, or that of the digests of several."""
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256("".join(digests).encode()).hexdigest()
