"""What the system says of a file of tensors that cannot be written."""

import errno
from pathlib import Path

import pytest
import safetensors.torch
from torch import ones

from mixmfl.core.errors import explain
from mixmfl.core.tensor_store import write


def test_a_full_disk_is_an_error_of_the_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "Error while serializing: I/O error: No space left on device (os error 28)"

    def full(*_: object) -> None:
        raise safetensors.SafetensorError(text)

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(OSError, match="No space left") as caught:
        write(tmp_path / "weights", {"a": ones(1)}, {})
    assert caught.value.errno == errno.ENOSPC
    assert explain(caught.value).startswith(f"{tmp_path / 'weights'}: the disk is full; free space")
    text = "Error while serializing: another one"
    with pytest.raises(safetensors.SafetensorError, match="another one"):
        write(tmp_path / "weights", {"a": ones(1)}, {})
