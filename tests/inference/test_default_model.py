"""The record of the registered model is somebody's file: what is wrong with it is said."""

import json
from pathlib import Path

import pytest

from mixmfl.core.errors import ModelError
from mixmfl.inference.default_model import registered_model, use_model


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": 5}, r"model\.json: model: is 5"),
        ({"sha256": 5}, r"model\.json: sha256: is 5"),
        ({"other": 1}, "other"),
        ({"model": "t" * 4000}, "^t{999}…: the registered model is gone.{,100}$"),
    ],
)
def test_a_damaged_record_of_the_registered_model_is_refused(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    model = tmp_path / "m.safetensors"
    model.write_bytes(b"weights")
    use_model(model, tmp_path)
    assert registered_model(tmp_path) == model
    record = tmp_path / "model.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), **changes}))
    with pytest.raises(ModelError, match=message):
        registered_model(tmp_path)
