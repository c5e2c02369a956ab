"""A model file that cannot be used is refused with its reason, whoever reads it."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from small import model_bytes, write_model
from torch import Tensor

from mixmfl.core import tensor_store
from mixmfl.core.errors import ModelError
from mixmfl.inference.model_file import load_model

Spoil = Callable[[Path], object]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model.safetensors")


def with_content(change: Callable[[dict[str, Tensor], dict[str, Any]], object]) -> Spoil:
    """Change what the file holds, by its tensors and its header."""

    def spoil(file: Path) -> None:
        held, header = tensor_store.read(file)
        change(held, header)
        file.write_bytes(model_bytes(held, header))

    return spoil


def without_a_weight(held: dict[str, Tensor], header: dict[str, Any]) -> None:
    del held[next(name for name in held if name.startswith("network."))]


def with_nan(held: dict[str, Tensor], header: dict[str, Any]) -> None:
    next(t for name, t in held.items() if name.startswith("network.")).fill_(torch.nan)


def of_an_older_version(held: dict[str, Tensor], header: dict[str, Any]) -> None:
    """Write it as a version did whose plans had no ``temperature``."""
    del header["plans"]["network"]["temperature"]
    header["mixmfl_version"] = "0.0.7"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: f.write_bytes(f.read_bytes()[:5000]), "cannot be read as a model"),
        (
            lambda f: f.write_bytes(b""),
            r"is no model file \(it is empty\); needed is a model\.safe",
        ),
        (lambda f: f.write_text("# Read me\n"), r"is no model file \(it does not begin as a file"),
        (lambda f: f.write_bytes(pickle.dumps({"w": 1})), "is no model file"),
        (lambda f: torch.save({"network.w": torch.ones(3)}, f), "is no model file"),
        (
            lambda f: safetensors.torch.save_file({"w": torch.ones(3)}, f),
            r"is no model file \(it was not written by mixmfl\)",
        ),
        (Path.unlink, "there is no such model file"),
        (
            with_content(lambda _, header: header.update(format="mixmfl model 99")),
            "format 'mixmfl model 99' was found, 'mixmfl model 2' is needed",
        ),
        (
            with_content(lambda _, header: header.update(format="x", mixmfl_version="9.0")),
            r"wrote it \(mixmfl 9\.0\)",
        ),
        (with_content(of_an_older_version), r"has a header of mixmfl 0\.0\.7; one of mixmfl \d"),
        (
            with_content(of_an_older_version),
            r"\(plans: network: missing fields \['temperature'\]\)\. Install the version that w",
        ),
        (
            with_content(lambda _, header: header.pop("components")),
            r"not that of a model of mixmfl .* \(header: missing fields \['components'\]\); export",
        ),
        (
            lambda f: f.write_bytes(model_bytes({}, {"format": "mixmfl model 2"})),
            r"has a header of mixmfl of an unknown version; .*missing fields",
        ),
        (with_content(without_a_weight), "1 tensors are missing, such as "),
        (with_content(with_nan), r"1 tensors hold NaN or infinity, such as network\."),
        (
            with_content(lambda _, header: header.update(plans="{")),
            r"not that of a model of mixmfl .* \(plans: plans of",
        ),
        (
            with_content(lambda held, _: held.update({"memory.t1": torch.ones(1)})),
            "do not fit together",
        ),
        (
            with_content(lambda held, _: held.update({"memory.t1.0.values": torch.ones(1)})),
            "do not fit",
        ),
    ],
)
def test_what_is_no_model_is_refused(model: Path, spoil: Spoil, message: str) -> None:
    load_model(model)
    spoil(model)
    with pytest.raises(ModelError, match=message):
        load_model(model)
