from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small import write_preset

from mixmfl.data import registration
from mixmfl.data.registration import AlignmentCheck
from mixmfl.evaluation.subset_dice import all_subsets

Command = Callable[..., int]
Output = pytest.CaptureFixture[str]
CASES = 1  # of each hospital


def once(fit: Callable[..., AlignmentCheck]) -> Callable[..., AlignmentCheck]:
    """Compare each pair of images with each other once."""
    known: dict[tuple[object, ...], AlignmentCheck] = {}

    def compared(*images: Any) -> AlignmentCheck:
        pair = tuple(e.tobytes() if isinstance(e, np.ndarray) else e for e in images)
        if pair not in known:
            known[pair] = fit(*images)
        return known[pair]

    return compared


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Make the demo small; it is the same program otherwise."""
    preset = write_preset(tmp_path / "tiny.json", rounds=1, local_steps=1, validate_every=1)
    (found,) = entry_points(group="console_scripts", name="mixmfl_demo")
    small = {"spacing_mm": 8.0, "preset": str(preset)}
    module = found.load().__globals__
    run_shown = module["_runner"].run_shown
    fewer = {"mixmfl_demo_data": ("--cases", CASES), "mixmfl_plan_preprocess": ("-n", 1)}

    def run_small(name: str, *arguments: object) -> None:
        run_shown(name, *arguments, *fewer.get(name, ()))

    monkeypatch.setattr(module["_runner"], "run_shown", run_small)
    # a case is loaded up to 18 times
    monkeypatch.setattr("mixmfl.data.load_case.fit", once(registration.fit))
    monkeypatch.setitem(module, "SETTINGS", module["SETTINGS"] | small)
    return module["SETTINGS"]


def test_the_demo_goes_from_nothing_to_a_table_and_a_page_and_goes_on_where_it_was(
    tmp_path: Path,
    home: Path,
    command: Command,
    settings: dict[str, Any],
    capsys: Output,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    out = tmp_path / "demo"
    assert command("mixmfl_demo", "-o", out) == 0
    printed = capsys.readouterr().out
    for step in ("mixmfl_demo_data", "mixmfl_plan_preprocess", "mixmfl_train_federated"):
        assert f"\n$ {step} " in printed
    assert f"{CASES} cases of hospital 'unseen', from 15 subsets of modalities" in printed
    rows = [line for line in printed.splitlines() if line.startswith("│")]
    assert len(rows) == 16
    assert rows[14].startswith("│ flair, t1, t1c, t2 ")
    assert rows[15].startswith("│ mean of 15 subsets ")
    subsets = all_subsets(("flair", "t1", "t1c", "t2"))
    masks = {"+".join(subset): len(list((out / "masks" / "+".join(subset)).glob("*.nii.gz")))
             for subset in subsets}  # fmt: skip
    assert masks == dict.fromkeys(masks, CASES)
    page = (out / "report.html").read_text()
    assert "phantom" in page
    assert page.count("data:image/png") == CASES * 5  # each modality alone, and all four
    assert not list(home.iterdir())  # the clinician's registered model is not the demo's

    # as an interruption leaves it: a mask is missing
    (out / "masks" / "t1" / "unseen_phantom01.nii.gz").unlink()
    model = (out / "run" / "model.safetensors").read_bytes()
    assert command("mixmfl_demo", "-o", out) == 0
    printed = capsys.readouterr().out
    assert "holds a demo; resuming it" in printed
    assert "exists already" in printed
    assert "--resume" in printed
    assert (out / "masks" / "t1" / "unseen_phantom01.nii.gz").is_file()
    assert (out / "run" / "model.safetensors").read_bytes() == model

    # another version of the demo, whose files would not fit
    (out / "demo.json").write_text('{"version": 0}')
    (out / "masks" / "precious.txt").write_text("notes")
    settings["spacing_mm"] = 0.1  # so that it stops at its first step
    assert command("mixmfl_demo", "-o", out) == 2
    assert "held a demo of another version, which was moved to" in capsys.readouterr().out
    assert (tmp_path / "demo-old-1" / "masks" / "precious.txt").read_text() == "notes"


def test_the_demo_does_not_write_into_a_folder_of_yours(
    tmp_path: Path, command: Command, settings: dict[str, Any], capsys: Output
) -> None:
    (tmp_path / "thesis.txt").write_text("dear")
    assert command("mixmfl_demo", "-o", tmp_path) == 2
    assert "holds files that are not a demo; name another folder" in capsys.readouterr().err
    assert {f.name for f in tmp_path.iterdir()} == {"thesis.txt", "tiny.json"}


def test_all_subsets_are_those_that_are_not_empty_small_ones_first() -> None:
    assert all_subsets(("a", "b", "c")) == [
        ("a",), ("b",), ("c",), ("a", "b"), ("a", "c"), ("b", "c"), ("a", "b", "c"),
    ]  # fmt: skip
