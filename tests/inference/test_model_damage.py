"""A model file that is not what was written makes no mask, whatever the damage."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from killed import files_up_to
from small import model_bytes, write_case, write_model

from mixmfl.core.errors import DataError, ModelError
from mixmfl.core.tensor_store import pack, read
from mixmfl.inference.model_file import apply_personal_weights, load_model

Command = Callable[..., int]
MESSAGE = r"cannot be read as a model \(.*\); copy it again, or export it again with mixmfl_export"


def twins(tensors: dict[str, torch.Tensor]) -> tuple[str, str]:
    """Return the names of two tensors of one shape and different numbers."""
    names = sorted(tensors)
    return next(
        (one, other)
        for one in names
        for other in names
        if tensors[one].shape == tensors[other].shape and not tensors[one].equal(tensors[other])
    )


def swap_numbers(tensors: dict[str, torch.Tensor], header: dict[str, Any]) -> None:
    one, other = twins(tensors)
    tensors[one], tensors[other] = tensors[other], tensors[one]


def read_as_int32(tensors: dict[str, torch.Tensor], header: dict[str, Any]) -> None:
    name = min(tensors)
    tensors[name] = tensors[name].view(torch.int32)


def change_one_number(tensors: dict[str, torch.Tensor], header: dict[str, Any]) -> None:
    tensors[min(tensors)].flatten()[0] += 1e-3


def change_spacing(tensors: dict[str, torch.Tensor], header: dict[str, Any]) -> None:
    header["plans"]["nnunet"]["configurations"]["2d"]["spacing"] = [1.0, 9.0]


def lose_digest(tensors: dict[str, torch.Tensor], header: dict[str, Any]) -> None:
    del header["tensors_sha256"]


@pytest.mark.parametrize(
    "change", [swap_numbers, read_as_int32, change_one_number, change_spacing, lose_digest]
)
def test_what_is_well_formed_but_not_what_was_written_is_refused(
    model: Path, tmp_path: Path, change: Callable[..., None]
) -> None:
    tensors, header = read(model)
    change(tensors, header)
    file = tmp_path / "m.safetensors"
    file.write_bytes(pack(tensors, header))
    with pytest.raises(ModelError, match=MESSAGE):
        load_model(file)


def test_names_that_changed_places_in_the_declaration_are_refused(
    model: Path, tmp_path: Path
) -> None:
    content = model.read_bytes()
    length = int.from_bytes(content[:8], "little")
    declared = json.loads(content[8 : 8 + length])
    one, other = twins(read(model)[0])
    declared[one], declared[other] = declared[other], declared[one]
    text = json.dumps(declared).encode()
    file = tmp_path / "m.safetensors"
    file.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    with pytest.raises(ModelError, match="its tensors are not those that were written"):
        load_model(file)


@pytest.mark.parametrize("seed", range(3))
def test_no_flipped_bit_is_read(model: Path, tmp_path: Path, seed: int) -> None:
    content, draw = model.read_bytes(), random.Random(seed)
    length = 8 + int.from_bytes(content[:8], "little")
    file = tmp_path / "m.safetensors"
    # as many in the header, which is short, as in the numbers
    places = [draw.randrange(length) for _ in range(15)]
    places += [draw.randrange(length, len(content)) for _ in range(15)]
    for place in places:
        damaged = bytearray(content)
        damaged[place] ^= 1 << draw.randrange(8)
        file.write_bytes(damaged)
        with pytest.raises(ModelError):
            load_model(file)


@pytest.mark.parametrize("change", [lambda c: c[:-4], lambda c: c + b"\0\0\0\0"])
def test_a_short_file_and_a_long_one_are_refused(
    model: Path, tmp_path: Path, change: Callable[[bytes], bytes]
) -> None:
    file = tmp_path / "m.safetensors"
    file.write_bytes(change(model.read_bytes()))
    with pytest.raises(ModelError, match=MESSAGE):
        load_model(file)


def test_every_command_that_reads_a_model_refuses_a_damaged_one(
    model: Path, tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors, header = read(model)
    swap_numbers(tensors, header)
    file = tmp_path / "m.safetensors"
    file.write_bytes(pack(tensors, header))
    write_case(tmp_path / "cases" / "p01", ("t1",), 0)
    for name, *options in (
        ("mixmfl_use_model", file),
        ("mixmfl_predict", "-i", tmp_path / "cases", "-o", tmp_path / "masks", "-m", file),
        ("mixmfl_doctor", "-m", file, "--device", "cpu"),
    ):
        assert command(name, *options) != 0
        printed = capsys.readouterr()
        assert "its tensors are not those that were written" in printed.out + printed.err, name


def test_a_personal_model_is_whole_and_made_from_a_whole_one_alone(
    model: Path, tmp_path: Path
) -> None:
    tensors, header = read(model)
    name = next(name for name in tensors if name.startswith("network."))
    own = {name.removeprefix("network."): tensors[name] + 1}
    apply_personal_weights(model, own, tmp_path / "own.safetensors")
    assert (
        load_model(tmp_path / "own.safetensors")
        .weights[name.removeprefix("network.")]
        .equal(tensors[name] + 1)
    )
    swap_numbers(tensors, header)
    damaged = tmp_path / "m.safetensors"
    damaged.write_bytes(pack(tensors, header))
    with pytest.raises(ModelError, match=MESSAGE):
        apply_personal_weights(damaged, own, tmp_path / "never.safetensors")
    assert not (tmp_path / "never.safetensors").exists()


def test_a_file_whose_digests_were_made_again_is_read(model: Path, tmp_path: Path) -> None:
    """They show damage, no forgery: docs/model-file.md says so."""
    tensors, header = read(model)
    change_one_number(tensors, header)
    (tmp_path / "m.safetensors").write_bytes(model_bytes(tensors, header))
    load_model(tmp_path / "m.safetensors")


@pytest.mark.filterwarnings("ignore:.* ends as if cut off")
def test_weights_whose_outputs_are_not_finite_make_no_mask(model: Path, tmp_path: Path) -> None:
    """They are finite themselves; NaN beside a class would be background in silence."""
    tensors, header = read(model)
    large = {name: t * 1e3 if t.is_floating_point() else t for name, t in tensors.items()}
    (tmp_path / "m.safetensors").write_bytes(model_bytes(large, header))
    image = np.random.default_rng(0).normal(10, 1, (16, 16, 6)).astype(np.float32)
    image[:8] = 0  # background
    with pytest.raises(DataError, match="outputs for this case are not finite, so there is no"):
        load_model(tmp_path / "m.safetensors").predict({"t1": (image, np.eye(4))})


def test_a_full_disk_is_an_error_of_the_system_and_the_old_file_stays(tmp_path: Path) -> None:
    file = write_model(tmp_path / "m.safetensors")
    before = file.read_bytes()
    with pytest.raises(OSError, match="File too large"), files_up_to(1000):
        write_model(file)
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]
