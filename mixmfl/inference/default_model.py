"""Which model predicts when none is named: the one registered last on this machine."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

from mixmfl.core.declarations import LONGEST_PATH, text
from mixmfl.core.errors import ModelError
from mixmfl.core.files import is_file, read_json, sha256, write_json
from mixmfl.core.records import read_record
from mixmfl.core.text import one_line


@dataclass(frozen=True)
class _Registered:
    """The record of the registered model: where its file is, and the SHA-256 of its content."""

    model: Annotated[str, text(LONGEST_PATH)]
    sha256: Annotated[str, text(64, "[0-9a-f]{64}", "a digest")]


def use_model(model: Path, home: Path) -> None:
    """Register a model file; ``home`` is the user's settings folder of mixmfl.

    Raises:
        ModelError: The file is not there.
    """
    if not model.is_file():
        raise ModelError(f"{model}: there is no such model file")
    registered = _Registered(str(model.resolve()), sha256(model))
    write_json(home / "model.json", asdict(registered))


def registered_model(home: Path) -> Path:
    """Return the registered model file.

    Raises:
        ModelError: No model is registered, the record is damaged, or the model file is gone or
            has changed.
    """
    record = home / "model.json"
    if not record.is_file():
        raise ModelError(
            "no model is registered on this machine; give one by -m MODEL, register one by "
            "mixmfl_use_model MODEL, or train one"
        )
    registered = read_record(_Registered, read_json(record, ModelError), str(record), ModelError)
    model, named = Path(registered.model), one_line(registered.model, 1000)
    if not is_file(model):
        raise ModelError(
            f"{named}: the registered model is gone; give one by -m MODEL or register one by "
            "mixmfl_use_model MODEL"
        )
    if sha256(model) != registered.sha256:
        raise ModelError(
            f"{named}: the contents changed since it was registered; if that is intended, "
            "register it again by mixmfl_use_model"
        )
    return model
