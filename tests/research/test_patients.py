"""Patients of hospitals as federations, and the benchmark on them."""

import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mixmfl.entrypoints import _runner, benchmark_patients
from small import LABELS_JSON, write_case

from mixmfl.core.errors import DataError, MixmflError
from mixmfl.core.files import locked, read_json, write_json
from mixmfl.core.records import json_of
from mixmfl.evaluation.reliability import BINS, Reliability
from mixmfl.research.benchmark.leaderboard import read_entries
from mixmfl.research.benchmark.methods import find_method
from mixmfl.research.benchmark.patients import LESION, read_study, write_patients
from mixmfl.research.benchmark.scores import Row, write_rows
from mixmfl.research.benchmark.trainings_page import write_page

Command = Callable[..., int]
SPLITS = {
    "modality_sets": {"A": {"north": ["T1"], "south": ["FLAIR", "T1"]}},
    "test_folds": [{"north": ["p0"], "south": ["p0"]}, {"north": ["p1"]}],
}


def study(folder: Path, splits: Any = SPLITS) -> Path:
    """Write two sites: all patients of the north have T1, T2 and FLAIR, the south's no T2."""
    for site, held in (("north", ("t1", "t2", "flair")), ("south", ("t1", "flair"))):
        for number in range(3):
            write_case(folder / site / f"p{number}", held, number)
    (folder / "splits.json").write_text(json.dumps(splits))
    return folder


def test_sites_train_on_the_set_and_test_with_all_that_is_trained(tmp_path: Path) -> None:
    loaded = read_study(study(tmp_path / "data"))
    north, south = loaded.federation("A", 0)
    assert [(case.name, list(case.images)) for case in north.train] == [
        ("p1", ["t1"]), ("p2", ["t1"])
    ]  # fmt: skip
    assert [case.name for case in south.train] == ["p1", "p2"]
    # nobody trains T2, so that plans would not know it
    assert [(case.name, list(case.images)) for case in north.tests] == [("p0", ["flair", "t1"])]
    north, south = loaded.federation("A", 1)
    assert [case.name for case in north.tests] == ["p1"]
    assert (south.tests, len(south.train)) == ((), 3)


def test_a_federation_is_links_beside_the_study(tmp_path: Path) -> None:
    data = study(tmp_path / "data")
    before = sorted(data.rglob("*"))
    out = tmp_path / "federation"
    write_patients(read_study(data), "A", 0, out)
    files = sorted(str(path.relative_to(out)) for path in out.rglob("*.nii.gz"))
    assert "north/p1/t1.nii.gz" in files
    assert "north/p1/flair.nii.gz" not in files
    assert "north_tests/p0/flair.nii.gz" in files
    assert (out / "north" / "p1" / "seg.nii.gz").resolve() == data / "north" / "p1" / "seg.nii.gz"
    assert json.loads((out / "split.json").read_text())["modality_set"] == "A"
    assert json.loads((out / "dataset.json").read_text())["labels"] == dict(LESION.declared)
    assert sorted(data.rglob("*")) == before
    one = read_study(data).only(["north"])
    with pytest.raises(DataError, match=r"federation: is of other hospitals, .* now \(north\)"):
        write_patients(one, "A", 0, out)
    write_patients(read_study(data), "A", 0, out)  # the same is left as it is
    (data / "dataset.json").write_text(json.dumps(LABELS_JSON))
    assert "core" in read_study(data).labels.declared


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        (
            {"test_folds": [{}]},
            r"splits.json: missing fields .'modality",
        ),
        ({**SPLITS, "modality_sets": {}}, "modality_sets: has 0 fields; it must have from 1 to"),
        ({**SPLITS, "test_folds": []}, "test_folds: has 0 entries; it must have from 1 to"),
        ({**SPLITS, "modality_sets": []}, r"modality_sets: an object with fields .* not \[\]"),
        ({**SPLITS, "test_folds": [{"north": "p0"}]}, "north: a list is needed, not 'p0'"),
        ({**SPLITS, "test_folds": [{"north": ["p0", "p0"]}]}, "each may be named once"),
        ({**SPLITS, "test_folds": [{"north": ["p9"]}]}, "'p9' tests in fold 0, but .* no such pat"),
        ({**SPLITS, "modality_sets": {"A": {"north": ["XYZ"]}}}, "'XYZ' is no modality; known are"),
        ({**SPLITS, "test_folds": [{"west": []}]}, "west: there is no such folder"),
    ],
)
def test_splits_that_contradict_the_patients_are_refused(
    tmp_path: Path, splits: Any, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        read_study(study(tmp_path / "data", splits))


def test_what_cannot_be_a_federation_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"splits.json: there is no such file"):
        read_study(tmp_path)
    loaded = read_study(study(tmp_path / "data"))
    with pytest.raises(DataError, match="no modality set 'B', but A"):
        loaded.federation("B", 0)
    assert [site.name for site in loaded.only(["south"]).federation("A", 0)] == ["south"]
    with pytest.raises(DataError, match="no modality set has a hospital 'west', but north, south"):
        loaded.only(["south", "west"])
    with pytest.raises(DataError, match="no fold 2; there are 0 to 1"):
        loaded.federation("A", 2)
    splits = {**SPLITS, "modality_sets": {"A": {"south": ["T2"]}}}
    (loaded.folder / "splits.json").write_text(json.dumps(splits))
    with pytest.raises(DataError, match="trains on t2, which none of its patients outside fold 0"):
        read_study(loaded.folder).federation("A", 0)


OPENED: dict[str, Any] = {
    "configuration": "2d",
    "rounds": 1,
    "local_steps": 20,
    "plans": {"training": {"local_steps": 20}},
    "tests": {"north": ["p0"]},
}


COST: dict[str, Any] = {"sent_bytes": None, "seconds": 60.0, "learning_rates": {}, "dice": {}}


def test_the_page_is_of_all_that_is_done_at_a_size(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no method has been scored at size 20"):
        write_page(tmp_path, "20", "tailored")
    for fold, gain in enumerate((0.1, 0.2)):
        out = tmp_path / f"A{fold}" / "20"
        write_json(out / "benchmark.json", {**OPENED, "own": {"north": ["t1"]}})
        for method, dice in (("mdm", 0.5 + gain), ("tailored", 0.5)):
            folder = out / "runs" / method / f"seed{fold}"
            described = find_method(method).describe()
            cost = {**COST, "sent_bytes": 5.0, "method": described}
            write_json(folder / "cost.json", cost)
            rows = [
                Row(method, fold, "north", f"p{fold}", subset, "lesion", dice, 1.0)
                for subset in (("t1",), ("t2",), ("t1", "t2"))
            ]
            write_rows(rows, folder / "scores.csv")
        # 1000 voxels of a probability of 0.7 that becomes 0.5, of which 450 are right
        voxels, correct = (tuple(n * (at == 17) for at in range(BINS)) for n in (1000, 450))
        confidence = tuple(0.7 * n for n in voxels)
        probabilities = {
            "curves": {"lesion": {"slope": 1.0, "offset": -math.log(7 / 3), "cases": 14}},
            "tested": {"lesion": json_of(Reliability(1, voxels, confidence, correct))},
            "volumes": [{"true": 4.0, "low": 3.0, "high": 9.0}],
        }
        write_json(out / "runs" / "mdm" / f"seed{fold}" / "reliability.json", probabilities)
    text = write_page(tmp_path, "20", "tailored").read_text()
    assert "| mdm, all subsets | +15.0 [+10.0, +20.0] | +15.0 [-48.5, +78.5] |" in text
    assert "| mdm | 65.0 ± 7.1 |" in text
    assert "| A1, seed 1 | 50.0 | 70.0 | 1 case |" in text
    assert "2 of 2" in text
    assert "| mdm | 2 | 14 to 14 | 25.0 | 5.0 | 1.11 | 100% | 1.5 |" in text
    assert not (tmp_path / "20-reliability.png").exists()  # the reference has none
    write_page(tmp_path, "20", "mdm")
    assert (tmp_path / "20-reliability.png").is_file()


def test_the_command_goes_from_patients_to_a_page(
    tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    data = study(tmp_path / "data")
    (data / "dataset.json").write_text(json.dumps(LABELS_JSON))
    preset = json.loads((Path(__file__).parents[2] / "plans" / "patients.json").read_text())
    preset["planner"].update(memory_gb=0.01, base_features=4, target_spacing=None)
    preset["training"].update(local_steps=1)
    (tmp_path / "tiny.json").write_text(json.dumps(preset))
    arguments = [
        "mixmfl_benchmark_patients", "-i", data, "-o", tmp_path / "out",
        "--preset", tmp_path / "tiny.json",
        "--methods", "mdm,fedavg", "--sets", "A", "--folds", "0", "--size", "1", "-n", "1",
        "--device", "cpu",
    ]  # fmt: skip
    assert command(*arguments) == 0
    page = tmp_path / "out" / "1.md"
    assert "| fedavg, own modalities |" in page.read_text()
    assert "No model here has calibrated probabilities" in page.read_text()
    scores = tmp_path / "out" / "A0" / "1" / "runs" / "fedavg" / "seed0" / "scores.csv"
    before = scores.stat().st_mtime_ns
    assert command(*arguments) == 0  # finished results are kept
    assert scores.stat().st_mtime_ns == before
    assert command(*arguments, "--sets", "A,B", "--only-tables") == 0
    assert command(*arguments, "--sets", "A,B") == 1
    assert "B0: " in capsys.readouterr().err
    assert command(*arguments, "--size", "many") == 2  # and no page
    assert "quick, full or a number of steps is needed" in capsys.readouterr().err
    assert command(*arguments, "--hospitals", "west", "--only-tables") == 2
    assert "no modality set has a hospital 'west'" in capsys.readouterr().err
    assert command(*arguments, "--folds", "x") == 2
    assert "--folds x: whole numbers from 0 are needed" in capsys.readouterr().err
    # a colleague has the same files elsewhere, and of another day
    for file in shutil.copytree(data, tmp_path / "theirs").rglob("*.nii.gz"):
        os.utime(file, (1, 1))
    arguments[2], arguments[4] = tmp_path / "theirs", tmp_path / "their_out"
    assert command(*arguments, "--methods", "fedavg", "--reference", "fedavg") == 0
    ours, theirs = (tmp_path / out / "A0" / "1" / "results.json" for out in ("out", "their_out"))
    assert read_entries(theirs, read_json(ours)["benchmark"])[0].method == "fedavg"


def test_a_second_command_waits_while_the_first_writes_the_federation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, lock = study(tmp_path / "data"), tmp_path / "out" / "A0" / ".lock"
    (data / "dataset.json").write_text(json.dumps(LABELS_JSON))
    held = list[bool]()

    def preprocess(*arguments: Any) -> None:
        with pytest.raises(MixmflError, match="held"), locked(lock, 0, MixmflError("held")):
            pass
        held.append((lock.parent / "federation").is_dir())
        raise MixmflError("stops here")

    monkeypatch.setattr(_runner, "run_shown", preprocess)
    options = ["--methods", "mdm", "--sets", "A", "--folds", "0", "-n", "1", "--device", "cpu"]
    assert benchmark_patients.main(["-i", str(data), "-o", str(lock.parents[1]), *options])
    assert held == [True]
    with locked(lock, 0, MixmflError("held")):  # it is free again, also after an error
        pass


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("cost.json", {"seconds": "60"}, "cost.json: seconds: is '60'; it must be a number"),
        ("cost.json", {"speed": 1}, r"cost.json: unknown fields \['speed'\]"),
        (
            "benchmark.json",
            {"own": ["t1"]},
            r"benchmark.json: own: an object with fields .* .'t1'",
        ),
    ],
)
def test_a_damaged_record_of_a_benchmark_is_refused(
    tmp_path: Path, name: str, change: dict[str, Any], message: str
) -> None:
    out = tmp_path / "A0" / "20"
    write_json(out / "benchmark.json", {**OPENED, "own": {"north": ["t1"]}})
    folder = out / "runs" / "mdm" / "seed0"
    method = find_method("mdm").describe()
    write_json(folder / "cost.json", {**COST, "method": method})
    write_rows([Row("mdm", 0, "north", "p0", ("t1",), "lesion", 0.5, 1.0)], folder / "scores.csv")
    assert "mdm" in write_page(tmp_path, "20", "mdm").read_text()
    file = folder / name if name == "cost.json" else out / name
    write_json(file, {**read_json(file), **change})
    with pytest.raises(DataError, match=message):
        write_page(tmp_path, "20", "mdm")
