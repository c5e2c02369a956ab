"""Files of a run that another version of mixmfl wrote."""

from pathlib import Path

import pytest
import torch
from small import small_plans

from mixmfl.core.errors import ModelError
from mixmfl.federated import tensor_files
from mixmfl.federated.server import run_record
from mixmfl.federated.server.checkpoint import start_run
from mixmfl.federated.server.run import Run
from mixmfl.federated.state import RunSettings


def test_files_of_another_format_are_refused_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, state = tmp_path / "run", tmp_path / "north.safetensors"
    with monkeypatch.context() as earlier:
        for module in (tensor_files, run_record):
            earlier.setattr(module, "FORMAT", 3)
        start_run(Run(run, small_plans(), RunSettings("2d", 0, 2, 1, 1e-3), "0", {}))
        tensor_files.save_tensors(state, {"seen": torch.ones(1)})
        assert tensor_files.load_tensors(state)["seen"] == 1
    needed = r": format 3 was found, 4 is needed; go on with the version .* began the run"
    with pytest.raises(ModelError, match=f"north.safetensors{needed}"):
        tensor_files.load_tensors(state)
    with pytest.raises(ModelError, match=f"run.json{needed}"):
        run_record.open_run(run)
