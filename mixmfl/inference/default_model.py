"""Which model predicts when none is named: the one registered last on this machine."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from mixmfl.core.declarations import text
from mixmfl.core.errors import ModelError
from mixmfl.core.files import is_file, read_json, sha256, write_json
from mixmfl.core.records import read_record


@dataclass(frozen=True)
class _Registered:
    """What is registered: a file, and the digest of its content."""

    model: Path
    sha256: Annotated[str, text(64)]


def use_model(model: Path, home: Path) -> None:
    """Register a model file; ``home`` is the user's settings folder of mixmfl.

    Raises:
        ModelError: The file is not there.
    """
    if not model.is_file():
        raise ModelError(f"{model}: there is no such model file")
    write_json(home / "model.json", {"model": str(model.resolve()), "sha256": sha256(model)})


def registered_model(home: Path) -> Path:
    """Return the registered model file.

    Raises:
        ModelError: No model is registered, or its file is gone or has changed.
    """
    record = home / "model.json"
    if not record.is_file():
        raise ModelError(
            "no model is registered on this machine; give one by -m MODEL, register one by "
            "mixmfl_use_model MODEL, or train one"
        )
    known = read_record(_Registered, read_json(record, ModelError), str(record), ModelError)
    model = known.model
    if not is_file(model):
        raise ModelError(
            f"{model}: the registered model is gone; give one by -m MODEL or register one by "
            "mixmfl_use_model MODEL"
        )
    if sha256(model) != known.sha256:
        raise ModelError(
            f"{model}: the contents changed since it was registered; if that is intended, "
            f"register it again by mixmfl_use_model {model}"
        )
    return model
