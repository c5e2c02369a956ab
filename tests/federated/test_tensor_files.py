"""Files of a run: those of another version, and states that are not of the plans."""

from pathlib import Path

import pytest
import torch
from small import small_plans

from mixmfl.core.errors import ModelError
from mixmfl.federated import tensor_files
from mixmfl.federated.secure_aggregation.protocol import check_stored_optimizer
from mixmfl.federated.secure_aggregation.signatures import MOST_SITES
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
    needed = r": format 3 was found, 4 is needed; resume with the version .* began the run"
    with pytest.raises(ModelError, match=f"north.safetensors{needed}"):
        tensor_files.load_tensors(state)
    with pytest.raises(ModelError, match=f"run.json{needed}"):
        run_record.open_run(run)


def test_a_stored_optimizer_state_may_have_digests_of_masked_rounds() -> None:
    plans, digest = small_plans(), torch.zeros(32, dtype=torch.uint8)
    check_stored_optimizer(plans, "2d", {"rounds with north": digest})
    with pytest.raises(ValueError, match="'rounds with north' is no digest"):
        check_stored_optimizer(plans, "2d", {"rounds with north": digest[:31]})
    with pytest.raises(ValueError, match="no state of AdamW's"):
        check_stored_optimizer(plans, "2d", {"rounds": digest})
    many = {f"rounds with {number}": digest for number in range(MOST_SITES + 1)}
    with pytest.raises(ValueError, match="digests of rounds with"):
        check_stored_optimizer(plans, "2d", many)
