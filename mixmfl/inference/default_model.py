"""Which model predicts when none is named: the one registered last on this machine."""

from pathlib import Path

from mixmfl.core.errors import ModelError
from mixmfl.core.files import read_json, sha256, write_json


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
    content = read_json(record, ModelError)
    model = Path(str(content.get("model")))
    if not model.is_file():
        raise ModelError(
            f"{model}: the registered model is gone; give one by -m MODEL or register one by "
            "mixmfl_use_model MODEL"
        )
    if sha256(model) != content.get("sha256"):
        raise ModelError(
            f"{model}: the contents changed since it was registered; if that is intended, "
            f"register it again by mixmfl_use_model {model}"
        )
    return model
