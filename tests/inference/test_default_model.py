"""The record of the registered model is somebody's file: what is wrong with it is said."""

import json
import shutil
from pathlib import Path

import pytest
from mixmfl.entrypoints import train_federated

from mixmfl.core.errors import ModelError
from mixmfl.core.files import sha256, write_json
from mixmfl.inference.default_model import (
    check_registered,
    registered_model,
    registered_path,
    use_model,
)


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


def test_the_folder_of_a_run_is_registered_as_what_it_stands_for(tmp_path: Path) -> None:
    run, home = tmp_path / "run", tmp_path / "home"
    for fold in ("0", "1"):
        (run / f"fold_{fold}").mkdir(parents=True)
        (run / f"fold_{fold}" / "model.safetensors").write_bytes(fold.encode())
    use_model(run / "fold_1", home)
    assert registered_model(home) == run / "fold_1" / "model.safetensors"
    record = {"configuration": "2d", "folds": ["0", "1"], "rounds": {"0": 1, "1": 1}}
    write_json(run / "cross_validation.json", record)
    use_model(run, home)
    assert registered_model(home) == registered_path(home) == run
    (run / "fold_1" / "model.safetensors").write_bytes(b"other")
    with pytest.raises(ModelError, match=r"run: the contents changed since it was registered; if"):
        registered_model(home)
    with pytest.raises(ModelError, match="the contents changed since it was registered"):
        check_registered(home, [sha256(f) for f in sorted(run.glob("*/*.safetensors"))])
    assert registered_path(home) == run  # who loads the files looks at them then
    shutil.rmtree(run)
    with pytest.raises(ModelError, match=r"is gone; mixmfl_use_model MODEL registers another"):
        registered_model(home)


def test_a_training_says_which_model_it_takes_the_place_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("first", "second"):
        (tmp_path / name).write_bytes(name.encode())
        train_federated._register(tmp_path / name)
    first, second = (tmp_path / name for name in ("first", "second"))
    assert capsys.readouterr().out == (
        f"mixmfl_predict uses {first}, if no other is named (mixmfl_use_model changes that)\n"
        f"mixmfl_predict uses {second}, if no other is named (mixmfl_use_model changes that)\n"
        f"until now it used {first}\n"
    )
    train_federated._register(second)
    assert "until now" not in capsys.readouterr().out
