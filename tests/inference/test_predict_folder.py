"""What prediction keeps, redoes, refuses and tells; by the command where a user sees it."""

import csv
import dataclasses
import json
import logging
import multiprocessing
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small import MODALITIES, small_case, small_plans

from mixmfl.core.errors import DataError
from mixmfl.core.files import sha256
from mixmfl.data import image
from mixmfl.data.cases import Case, find_cases
from mixmfl.data.grid import Grid, make_grid
from mixmfl.data.image import read_grid, read_labels, write_image
from mixmfl.data.load_case import AlignmentOptions, LoadedCase, load_case
from mixmfl.evaluation.mask_quality import Measured, add_sums, sums_of_case
from mixmfl.evaluation.subset_dice import Counts, SubsetDice, add_counts, count_dice
from mixmfl.federated.state import RunSettings, first_state
from mixmfl.inference import model_file as reader
from mixmfl.inference.case_preparation import Recipe, prepare
from mixmfl.inference.model import Model, TrainedOn
from mixmfl.inference.model_file import load_model, save_model
from mixmfl.inference.outcomes import Outcome
from mixmfl.inference.predict_folder import predict_folder
from mixmfl.inference.prediction_options import OutputOptions, PredictionOptions
from mixmfl.inference.report import shown_name
from mixmfl.inference.segmentation import Options, segment
from mixmfl.networks.parameters import network_state
from mixmfl.planning.heads import SKULLS, STRIPPED
from mixmfl.planning.typical import describe_image, merge_typical

Command = Callable[..., int]
AS_USUAL = PredictionOptions()
SHAPE = (6, 20, 18)
GRID = Grid(SHAPE, (2.0, 1.0, 1.0), (0.0, 0.0, 0.0), (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0))


def cases_of(dice: float, number: int) -> Counts:
    """Return the counts of so many cases of the same Dice."""
    return add_counts([count_dice(dice)] * number)


EXPECTED = (
    SubsetDice(("t1",), {"lesion": cases_of(0.4, 20), "core": cases_of(0.2, 20)}),
    SubsetDice(("t1", "t2"), {"lesion": cases_of(0.9, 20), "core": cases_of(0.7, 20)}),
)
CONFIDENCE = {
    "lesion": add_sums(
        [sums_of_case([(c, [1.5 * c * c] * 4)]) for c in (0.36, 0.4, 0.45, 0.5, 0.8)]
    )
}
MEASURED = Measured(EXPECTED, CONFIDENCE)


def save(file: Path, seed: int = 0, measured: Measured = MEASURED) -> Path:
    plans = small_plans()
    state = first_state(plans, RunSettings("2d", seed, 1, 1, 0.01))
    save_model(file, state, plans, "2d", TrainedOn(dict.fromkeys(MODALITIES, 1)), measured)
    return file


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("model") / "m.safetensors")


@pytest.fixture
def model(model_file: Path) -> Model:
    return load_model(model_file)


def write_case(folder: Path, modalities: Sequence[str], seed: int = 0) -> None:
    images, _ = small_case(modalities, seed, SHAPE)
    folder.mkdir(parents=True)
    for name, voxels in images.items():
        voxels[:, :2] = 0  # outside the head
        write_image(folder / f"{name}.nii.gz", voxels, GRID)


@pytest.fixture
def cases(tmp_path: Path) -> Path:
    folder = tmp_path / "cases"
    write_case(folder / "a", ("t1", "t2"))
    write_case(folder / "b", ("t1",), 1)
    write_case(folder / "c", ("flair",), 2)
    return folder


def predicted(
    model: Model,
    cases: Path,
    out: Path,
    asked: PredictionOptions = AS_USUAL,
    **output: Any,
) -> dict[str, Outcome]:
    found, options = find_cases(cases), OutputOptions(**output)
    outcomes = predict_folder([model], found.cases, found.refused, out, asked, options)
    return {outcome.name: outcome for outcome in outcomes}


def statuses(outcomes: Mapping[str, Outcome]) -> dict[str, str]:
    return {name: outcome.status for name, outcome in outcomes.items()}


def test_a_second_run_redoes_only_what_would_come_out_different(
    model: Model, cases: Path, tmp_path: Path
) -> None:
    out = tmp_path / "masks"
    assert statuses(predicted(model, cases, out)) == {"a": "done", "b": "done", "c": "done"}
    before = {f.name: f.stat().st_mtime_ns for f in out.glob("*.nii.gz")}
    again = predicted(model, cases, out)
    assert statuses(again) == {"a": "kept", "b": "kept", "c": "kept"}
    assert again["a"].reason == "made before by the same model and settings from the same images"
    assert again["a"].volumes_ml.keys() == {"lesion", "core"}  # as in the first run
    assert {f.name: f.stat().st_mtime_ns for f in out.glob("*.nii.gz")} == before

    shutil.copy(cases / "a" / "t1.nii.gz", cases / "b" / "t1.nii.gz")  # other inputs
    (out / "c.nii.gz").unlink()
    assert statuses(predicted(model, cases, out)) == {"a": "kept", "b": "done", "c": "done"}
    write_case(tmp_path / "new", ("t2",), 9)
    shutil.copy(tmp_path / "new" / "t2.nii.gz", cases / "b")  # one modality more
    assert statuses(predicted(model, cases, out)) == {"a": "kept", "b": "done", "c": "kept"}
    asked = PredictionOptions(networks=Options(mirror=True))
    assert set(statuses(predicted(model, cases, out, asked)).values()) == {"done"}
    other = load_model(save(tmp_path / "other.safetensors", seed=1))
    assert set(statuses(predicted(other, cases, out, asked)).values()) == {"done"}


def test_fast_is_a_distance_of_patches(
    model_file: Path, cases: Path, command: Callable[..., int], tmp_path: Path
) -> None:
    asked = ["-i", cases, "-m", model_file, "-o", tmp_path / "masks", "--no-report", "--force"]
    for more, step in [([], 0.55), (["--fast"], 0.67), (["--fast", "--step", "0.5"], 0.5)]:
        assert command("mixmfl_predict", *asked, *more) == 0
        made = json.loads((tmp_path / "masks" / "cases.json").read_text())["cases"]
        assert {case["settings"]["step"] for case in made.values()} == {step}


def test_a_case_is_predicted_from_the_sequences_that_can_be_used(
    model: Model, cases: Path, tmp_path: Path
) -> None:
    (cases / "a" / "t1.nii.gz").write_bytes(b"")
    (cases / "a" / "flair.nii.gz").symlink_to(tmp_path / "nowhere")
    out = tmp_path / "masks"
    drop = PredictionOptions(alignment=AlignmentOptions(leave_out=True))
    outcome = predicted(model, cases, out, drop, report=True)["a"]
    assert (outcome.status, outcome.used, outcome.missing) == ("done", ("t2",), ("flair", "t1"))
    assert outcome.reference == "t2"
    assert [w.partition(":")[0] for w in outcome.warnings[:2]] == [
        "flair was left out", "t1 was left out",
    ]  # fmt: skip
    for table in ("cases.csv", "cases.json", "report.html"):
        assert "t1 was left out: " in (out / table).read_text()
    assert predicted(model, cases, out, drop)["a"].status == "kept"
    write_case(tmp_path / "mended", ("t1",), 5)
    shutil.copy(tmp_path / "mended" / "t1.nii.gz", cases / "a")
    assert predicted(model, cases, out, drop)["a"].used == ("t1", "t2")
    strict = predicted(model, cases, tmp_path / "strict")["a"]
    assert strict.status == "failed"
    assert "there is no such file" in strict.reason


def test_expected_dice_is_that_of_the_sequences_that_are_left(cases: Path, tmp_path: Path) -> None:
    (cases / "a" / "t1.nii.gz").write_bytes(b"")
    known = [
        SubsetDice(("t1", "t2"), {"lesion": cases_of(0.9, 20)}),
        SubsetDice(("t2",), {"lesion": cases_of(0.2, 20)}),
    ]
    model = load_model(save(tmp_path / "m.safetensors", measured=Measured(known)))
    asked = PredictionOptions(alignment=AlignmentOptions(leave_out=True), least_dice=0.5)
    outcome = predicted(model, cases, tmp_path / "masks", asked)["a"]
    assert outcome.status == "failed"
    assert "one case in ten has a Dice below 0.20 from t2 (mean over" in outcome.reason


def test_what_is_unlike_the_cases_of_the_plan_is_a_warning(tmp_path: Path) -> None:
    plans = small_plans(patch=(4, 16, 16))
    planned = {**plans.configuration("3d_fullres"), "use_mask_for_norm": [True] * 3}
    nested = {**plans.nnunet, "configurations": {"3d_fullres": planned}}
    recipe = Recipe(dataclasses.replace(plans, nnunet=nested), "3d_fullres", MODALITIES)

    def doubts(shape: tuple[int, ...], spacing: tuple[float, ...], edge: int) -> list[str]:
        voxels = small_case(("t1",), 0, shape)[0]["t1"]
        voxels[:, :edge], voxels[:, -edge:] = 0, 0
        grid = make_grid(shape, spacing, (0, 0, 0), GRID.direction)
        loaded = LoadedCase("p", {"t1": voxels}, None, grid, grid, "t1")
        return list(prepare(loaded, [dataclasses.replace(recipe), recipe]).doubts)

    assert doubts((12, 20, 18), (2.9, 1, 1), 3) == []
    assert doubts((4, 20, 18), (3.1, 1, 1), 3) == [
        "its voxels of 3.1 x 1 x 1 mm are far from the 1 x 1 x 1 mm of the model",
        "it shows 4 slices only",
    ]
    assert doubts((6, 20, 18), (1, 1, 1), 3) == []
    card = dataclasses.replace(plans.card, spacing_mm=((1, 1, 2),) * 3)
    deep = {"3d_fullres": {**planned, "patch_size": [16, 16, 16]}}
    deep_plans = dataclasses.replace(plans, nnunet={**nested, "configurations": deep}, card=card)
    first, recipe = recipe, Recipe(deep_plans, "3d_fullres", MODALITIES)
    assert doubts((12, 20, 18), (2.9, 1, 1), 3) == [
        "its slices are 2.9 mm thick, and the model was planned for 1 x 1 x 1 mm"
    ]
    assert doubts((12, 20, 18), (2, 1, 1), 3) == []  # as in the cases of the plan
    assert doubts((6, 20, 18), (1, 1, 1), 3) == ["it shows 6 slices only"]
    recipe = first
    assert doubts((12, 20, 18), (1, 0.3, 1), 3)[0].startswith(
        "its voxels of 1 x 0.3 x 1 mm are far"
    )
    (skull,) = doubts((12, 42, 18), (1, 1, 1), 1)
    assert skull.startswith("95% of its voxels are other than 0: its background was not removed")


def test_an_image_far_from_the_usual_is_refused_unless_forced(
    model: Model, cases: Path, tmp_path: Path
) -> None:
    usual = merge_typical(
        {"t1": described}
        for seed in range(12)
        if (described := describe_image(small_case(("t1",), seed, SHAPE)[0]["t1"], (20, 10, 10)))
    )
    assert usual["t1"].images == 12
    card = dataclasses.replace(model.plans.card, typical=usual)
    model = dataclasses.replace(model, plans=dataclasses.replace(model.plans, card=card))
    found = predicted(model, cases, tmp_path / "masks")
    assert statuses(found) == {"a": "failed", "b": "failed", "c": "done"}  # c has no t1
    assert found["b"].reason.startswith("t1: the head measures 12 x 18 x 18 mm, usually")
    assert found["b"].reason.count("usual below") > 1  # all that was found
    assert found["b"].reason.endswith("or predict it all the same by --force")
    assert (
        statuses(predicted(model, cases, tmp_path / "t2", PredictionOptions(only=("t2",))))["a"]
        == "done"
    )
    forced = predicted(model, cases, tmp_path / "forced", PredictionOptions(force=True))
    assert statuses(forced) == {"a": "done", "b": "done", "c": "done"}
    assert any(w.startswith("t1: the head measures 12 x 18") for w in forced["b"].warnings)


def test_images_of_brains_under_each_others_names_are_a_warning() -> None:
    shape, spacing = (12, 24, 20), (2.0, 1.0, 1.0)
    grid = make_grid(shape, spacing, (0, 0, 0), GRID.direction)

    def pair(seed: int) -> dict[str, np.ndarray]:
        images = small_case(("t1", "t2"), seed, shape)[0]
        return {"t1": images["t1"], "t2": 30 - images["t2"]}

    usual = merge_typical(
        {name: described for name, image in pair(seed).items()
         if (described := describe_image(image, spacing))} for seed in range(12)
    )  # fmt: skip
    plans = small_plans(patch=(4, 16, 16))
    card = dataclasses.replace(plans.card, typical=usual)

    def doubts_of(heads: str, **images: np.ndarray) -> list[str]:
        planned = dataclasses.replace(plans, card=card, heads=heads)
        loaded = LoadedCase("p", images, None, grid, grid, "t1")
        recipe = Recipe(planned, "3d_fullres", MODALITIES)
        doubts = prepare(loaded, [recipe], force=True).doubts  # they are unusual in more ways
        return [each for each in doubts if "names exchanged" in each]

    t1, t2 = pair(20).values()
    assert doubts_of(STRIPPED, t1=t1, t2=t2) == []
    (both,) = doubts_of(STRIPPED, t1=t2, t2=t1)
    assert both.startswith("t1, t2: they look like each other: are their names exchanged?")
    cut = np.arange(12)[:, None, None] < 8  # a part of a head looks like anything
    assert doubts_of(STRIPPED, t1=np.where(cut, 0, t2), t2=np.where(cut, 0, t1)) == []
    assert doubts_of(SKULLS, t1=t2, t2=t1) == []


def test_what_is_unusual_of_all_images_of_a_case_is_one_warning() -> None:
    shape = (12, 24, 20)
    grid = make_grid(shape, (2.0, 1.0, 1.0), (0, 0, 0), GRID.direction)
    smaller = [small_case(("t1", "t2"), seed, shape)[0] for seed in range(12)]
    usual = merge_typical(
        {name: described}
        for images in smaller
        for name, image in images.items()
        if (described := describe_image(image, (4.0, 2.0, 2.0)))
    )
    plans = small_plans(patch=(4, 16, 16))
    plans = dataclasses.replace(plans, card=dataclasses.replace(plans.card, typical=usual))
    loaded = LoadedCase("p", smaller[0], None, grid, grid, "t1")
    doubts = prepare(loaded, [Recipe(plans, "3d_fullres", MODALITIES)], force=True).doubts
    (extent,) = (each for each in doubts if "the head measures" in each)
    assert extent.startswith("t1, t2: the head measures")


def test_a_mask_that_a_user_corrected_is_left_alone(
    model: Model, cases: Path, tmp_path: Path
) -> None:
    out = tmp_path / "masks"
    predicted(model, cases, out)
    mask = out / "a.nii.gz"
    mask.write_bytes(mask.read_bytes() + b"corrected by hand")
    corrected = mask.read_bytes()
    other = load_model(save(tmp_path / "other.safetensors", seed=1))
    outcomes = predicted(other, cases, out)
    assert statuses(outcomes) == {"a": "kept", "b": "done", "c": "done"}
    assert "a.nii.gz is there and is not as we wrote it" in outcomes["a"].reason
    assert "a,kept,a.nii.gz is there and is not as we wrote it" in (out / "cases.csv").read_text()
    assert mask.read_bytes() == corrected
    assert statuses(predicted(other, cases, out))["a"] == "kept"
    assert statuses(predicted(other, cases, out, overwrite=True))["a"] == "done"
    assert mask.read_bytes() != corrected


def test_the_row_of_a_corrected_mask_keeps_what_is_known_and_warns_of_what_is_old(
    model: Model, cases: Path, tmp_path: Path
) -> None:
    out = tmp_path / "masks"
    before = predicted(model, cases, out, report=True)["a"]
    mask = out / "a.nii.gz"
    written = mask.read_bytes()
    mask.write_bytes(written + b"corrected by hand")
    for _ in range(2):  # the warning appears once, however often it is run
        outcome = predicted(model, cases, out, report=True)["a"]
        assert (outcome.status, outcome.used) == ("kept", ("t1", "t2"))
        assert outcome.volumes_ml == before.volumes_ml
        assert len(outcome.warnings) == len(before.warnings) + 1
        assert "are of the mask before it was edited" in outcome.warnings[-1]
    assert "of the mask before it was edited" in (out / "report.html").read_text()
    mask.write_bytes(written)
    outcome = predicted(model, cases, out, report=True)["a"]
    assert outcome.reason.startswith("made before by the same model")
    assert outcome.warnings == before.warnings


def damaged(cases: Path) -> None:
    (cases / "a" / "t2.nii.gz").write_bytes(b"damaged")


def twice(cases: Path) -> None:
    for name, other in (("t1", "t2"), ("t2", "t1")):  # a copy of its own would count once
        shutil.copy(cases / "a" / f"{other}.nii.gz", cases / "a" / f"{name}w.nii.gz")


@pytest.mark.parametrize(
    ("spoil", "asked"),
    [
        (damaged, AS_USUAL),
        (twice, AS_USUAL),
        (lambda _: None, PredictionOptions(least_dice=0.99)),
    ],
)
def test_what_was_written_stays_ours_although_the_case_failed_since(
    model: Model,
    cases: Path,
    tmp_path: Path,
    spoil: Callable[[Path], object],
    asked: PredictionOptions,
) -> None:
    out, good = tmp_path / "masks", tmp_path / "good"
    shutil.copytree(cases, good)
    predicted(model, cases, out, report=True)
    spoil(cases)
    failed = predicted(model, cases, out, asked, report=True)["a"]
    assert failed.status == "failed"
    assert failed.warnings == ("a.nii.gz is of an earlier run",)
    mended = predicted(model, good, out, report=True)["a"]
    assert (mended.status, mended.reason) == ("done", "")
    assert predicted(model, good, out, report=True)["a"].status == "kept"


def test_a_mask_is_ours_although_we_were_killed_before_the_table_was_written(
    model: Model, cases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "masks"
    output = OutputOptions(report=True)
    run = predict_folder([model], find_cases(cases).cases, (), out, output=output)

    def killed(self: object, outcome: Outcome) -> Outcome:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("mixmfl.inference.predict_folder._Run.note", killed)
        with pytest.raises(KeyboardInterrupt):
            list(run)
    assert (out / "a.nii.gz").is_file()
    assert not list(out.glob(".writing-*"))
    outcomes = predicted(model, cases, out, report=True)
    assert statuses(outcomes) == {"a": "done", "b": "done", "c": "done"}


@pytest.mark.usefixtures("reading_process")
def test_the_reading_process_is_gone_while_the_last_case_is_predicted(
    model: Model, cases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readers = []

    def count(*arguments: Any) -> Any:
        readers.append(len(multiprocessing.active_children()))
        return segment(*arguments)

    monkeypatch.setattr("mixmfl.inference.predict_folder.segment", count)
    predicted(model, cases, tmp_path / "masks")
    assert readers == [1, 1, 0]


def test_the_network_is_that_of_the_file_although_the_file_was_replaced(tmp_path: Path) -> None:
    file = save(tmp_path / "m.safetensors", seed=1)
    model, original = load_model(file), network_state(load_model(file).network)
    save(tmp_path / "m.safetensors", seed=2)  # another file by its name
    loaded = network_state(model.network)
    assert all(torch.equal(loaded[name], weight) for name, weight in original.items())
    other = network_state(load_model(file).network)
    assert not all(torch.equal(other[name], weight) for name, weight in original.items())


def test_the_digest_of_a_model_is_of_what_was_read_although_the_file_was_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = save(tmp_path / "m.safetensors", seed=1)
    before, read = sha256(file), reader._read_tensors

    def replaced(*of_file: Any) -> Any:
        save(file, seed=2)
        return read(*of_file)

    monkeypatch.setattr(reader, "_read_tensors", replaced)
    assert load_model(file).sha256 == before != sha256(file)


@pytest.mark.parametrize("name", ["report", "uncertainty"])
def test_nothing_is_written_through_a_link_in_the_folder_of_masks(
    model: Model, cases: Path, tmp_path: Path, name: str
) -> None:
    (tmp_path / "masks").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "masks" / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=f"{name}: is a link, and files would be written where"):
        predicted(model, cases, tmp_path / "masks", overwrite=True)


def test_what_is_beside_a_mask_that_is_not_there_yet_is_not_replaced_either(
    model: Model, cases: Path, tmp_path: Path
) -> None:
    out = tmp_path / "masks"
    (out / "uncertainty").mkdir(parents=True)
    mine = out / "uncertainty" / "a.core.uncalibrated_entropy.nii.gz"
    mine.write_text("mine")
    (out / "b.nii.gz").symlink_to(tmp_path / "nowhere")
    outcomes = predicted(model, cases, out, uncertainty=True)
    assert statuses(outcomes) == {"a": "failed", "b": "kept", "c": "done"}
    assert outcomes["a"].reason == (
        f"{mine.relative_to(out)} is there and is not ours; --overwrite replaces it"
    )
    assert mine.read_text() == "mine"
    assert (out / "b.nii.gz").is_symlink()
    outcomes = predicted(model, cases, out, uncertainty=True, overwrite=True)
    assert {outcomes[name].status for name in "ab"} == {"done"}
    assert not (tmp_path / "nowhere").exists()


def test_two_cases_do_not_write_the_same_file(model: Model, tmp_path: Path) -> None:
    """A name may be what the page calls another case, and some disks know no upper case."""
    cases, called = tmp_path / "cases", shown_name("anna")
    write_case(cases / "anna", ("t1",))
    (anna,) = find_cases(cases).cases
    named = [anna, *(dataclasses.replace(anna, name=name) for name in ("Anna", called))]
    outcomes = {
        each.name: each
        for each in predict_folder(
            [model], named, (), tmp_path / "masks", AS_USUAL, OutputOptions(report=True)
        )
    }
    assert statuses(outcomes) == {"anna": "done", "Anna": "failed", called: "failed"}
    assert "Anna.nii.gz would be of case 'anna', too, or differ" in outcomes["Anna"].reason
    assert f"report/{called}.jpg would be of case 'anna', too" in outcomes[called].reason


def test_a_name_that_no_disk_takes_costs_its_case_alone(model: Model, tmp_path: Path) -> None:
    cases = tmp_path / "cases"
    for name in ("a", "x" * 255, "z"):
        write_case(cases / name, ("t1",))
    outcomes = predicted(model, cases, tmp_path / "masks")
    assert statuses(outcomes) == {"a": "done", "x" * 255: "failed", "z": "done"}
    assert "the name is longer than the disk takes" in outcomes["x" * 255].reason


def test_a_full_disk_costs_the_case_that_it_met(
    model: Model, cases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = image.write_labels

    def full(path: Path, *rest: Any) -> None:
        if path.name == "b.nii.gz":
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        write(path, *rest)

    out = tmp_path / "masks"
    with monkeypatch.context() as patch:
        patch.setattr("mixmfl.inference.case_files.write_labels", full)
        outcomes = predicted(model, cases, out)
    assert statuses(outcomes) == {"a": "done", "b": "failed", "c": "done"}
    assert outcomes["b"].reason.startswith("the disk is full; free space")
    assert sorted(f.name for f in out.glob("*.nii.gz")) == ["a.nii.gz", "c.nii.gz"]
    assert statuses(predicted(model, cases, out)) == {"a": "kept", "b": "done", "c": "kept"}


def test_ctrl_c_leaves_whole_files_and_the_next_run_resumes(
    model: Model, cases: Path, tmp_path: Path
) -> None:
    out = tmp_path / "masks"
    run = predict_folder([model], find_cases(cases).cases, (), out)
    assert next(run).name == "a"
    run.close()  # as an exception in the loop over it does
    for mask in out.glob("*.nii.gz"):
        assert read_labels(mask)[0].shape == SHAPE
    assert not list(out.glob(".writing-*"))
    outcomes = predicted(model, cases, out)
    assert outcomes["a"].status == "kept"
    assert set(statuses(outcomes).values()) <= {"kept", "done"}


def segmented_confidence(model: Model, folder: Path) -> float:
    """Return how sure a model is of the lesion in a case."""
    (case,) = find_cases(folder).cases
    prepared = prepare(load_case(case), [model.recipe])
    return segment([model], prepared, Options()).confidences["lesion"]


def test_the_table_shows_what_a_mask_rests_on_and_what_to_expect(
    model_file: Path, cases: Path, tmp_path: Path, command: Command,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = tmp_path / "masks"
    write_case(cases / "d", ("pd",))
    shutil.copy(cases / "b" / "t1.nii.gz", cases / "b" / "pd.nii.gz")
    assert command("mixmfl_predict", "-i", cases, "-o", out, "-m", model_file) == 1
    printed = capsys.readouterr()
    assert (
        "a: done from t1, t2, without flair, expected Dice 0.82 (one in ten below 0.80), "
        "this mask's Dice lesion 0." in printed.out
    )
    with (out / "cases.csv").open(newline="") as file:
        rows = {row["case"]: row for row in csv.DictReader(file)}
    assert {name: row["status"] for name, row in rows.items()} == {
        "a": "done", "b": "done", "c": "done", "d": "failed"
    }  # fmt: skip
    a, b, c = rows["a"], rows["b"], rows["c"]
    assert (a["modalities"], a["missing"], a["reference"]) == ("t1+t2", "flair", "t1")
    columns = ("expected_dice_lesion", "low_dice_lesion", "cases_lesion", "expected_from")
    assert [a[name] for name in columns] == ["0.925", "0.900", "20", "20 validation cases"]
    dice = [float(a[f"mask_dice_{name}lesion"]) for name in ("", "from_", "to_")]
    sure = segmented_confidence(load_model(model_file), cases / "a")
    assert dice == pytest.approx([1.5 * sure * sure] * 3, abs=2e-3)  # all lie on a line
    assert a["mask_dice_core"] == ""  # nothing was measured
    assert f"look closely: this mask's Dice is estimated at lesion {dice[0]:.2f}" in a["warnings"]
    assert (
        "low Dice is expected from t1: lesion 0.42 (one case in ten below 0.40), core 0.23"
        in b["warnings"]
    )
    assert "pd: not used, for the model knows flair, t1, t2 only" in b["notes"]
    assert "not used" not in a["notes"]
    assert "how good masks from flair are was never measured" in c["limits"]
    assert c["expected_dice_lesion"] == ""
    assert rows["d"]["reason"].startswith("has pd; the model needs at least one of")
    mask, _ = read_labels(out / "a.nii.gz")
    assert float(a["volume_ml_core"]) == pytest.approx((mask == 2).sum() * 2 / 1000, abs=1e-3)
    assert float(a["seconds"]) > 0
    assert float(a["peak_memory_mb"]) > 50
    record = json.loads((out / "cases.json").read_text())["cases"]
    assert record["a"]["models"] == [load_model(model_file).sha256]
    assert record["a"]["inputs"].keys() == {"t1", "t2"}


def test_less_than_the_least_expected_dice_is_refused(
    model_file: Path, cases: Path, tmp_path: Path, command: Command,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = tmp_path / "masks"
    asked = ["-i", cases, "-o", out, "-m", model_file, "--min-expected-dice"]
    assert command("mixmfl_predict", *asked, "0.5") == 1
    printed = capsys.readouterr().err
    assert (
        "b: FAILED: --min-expected-dice 0.5: one case in ten has a Dice below 0.30 from t1"
        in printed
    )
    assert (
        "c: FAILED: --min-expected-dice: Dice from flair is not known for this model (never"
        in printed
    )
    assert [f.name for f in out.glob("*.nii.gz")] == ["a.nii.gz"]
    assert command("mixmfl_predict", *asked, "2") == 2
    assert "--min-expected-dice 2: must be from 0 to 1" in capsys.readouterr().err


def test_quiet_prints_trouble_only_and_the_log_has_it_all(
    model_file: Path, cases: Path, tmp_path: Path, command: Command,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    write_case(cases / "d", ("pd",))
    log = tmp_path / "run.log"
    asked = ["-i", cases, "-o", tmp_path / "masks", "-m", model_file, "--quiet", "--log", log]
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # as in a process of its own
    assert command("mixmfl_predict", *asked) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    text = log.read_text()
    assert "a: done from t1, t2" in text
    assert "d: FAILED: has pd" in text
    assert command("mixmfl_predict", *asked[:-1], tmp_path) == 2
    assert f"--log {tmp_path}: is a folder, and no file" in capsys.readouterr().err


def test_a_run_that_was_interrupted_before_its_first_mask_goes_on(
    model: Model, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    output = OutputOptions(set_aside="path,why\n")
    for _ in range(2):
        assert list(predict_folder([model], [], [], tmp_path / "out", output=output)) == []
    assert (tmp_path / "out" / "set_aside.csv").exists()


def test_a_table_of_someone_else_is_not_replaced(
    model_file: Path, cases: Path, tmp_path: Path, command: Command,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = tmp_path / "masks"
    out.mkdir()
    (out / "cases.csv").write_text("my patients")
    asked = ["-i", cases, "-o", out, "-m", model_file]
    assert command("mixmfl_predict", *asked) == 2
    assert "cases.csv: is not ours; it would be replaced" in capsys.readouterr().err
    assert (out / "cases.csv").read_text() == "my patients"
    (out / "cases.json").write_text('{"format": "mixmfl cases 99"}')
    assert command("mixmfl_predict", *asked) == 2
    assert "has format 'mixmfl cases 99'; 'mixmfl cases 3' is needed" in capsys.readouterr().err
    assert command("mixmfl_predict", *asked, "--overwrite") == 0


def test_a_case_in_memory_gives_the_mask_of_its_files(
    model: Model, cases: Path, tmp_path: Path
) -> None:
    import nibabel as nib

    predicted(model, cases, tmp_path / "masks")
    want = np.asarray(nib.load(tmp_path / "masks" / "a.nii.gz").dataobj)
    files: dict[str, Any] = {n: cases / "a" / f"{n}.nii.gz" for n in ("t1", "t2")}
    assert np.array_equal(model.predict(files), want)
    loaded = {name: nib.load(file) for name, file in files.items()}
    arrays: dict[str, Any] = {name: (i.get_fdata(), i.affine) for name, i in loaded.items()}
    mask = model.predict(arrays)
    assert np.array_equal(mask, want)
    assert mask.dtype == np.uint8
    turned = nib.as_closest_canonical(loaded["t1"])
    mixed: dict[str, Any] = {"t1": (turned.get_fdata(), turned.affine), "t2": files["t2"]}
    predicted_turned = nib.Nifti1Image(model.predict(mixed, reference="t1"), turned.affine)
    want_turned = nib.as_closest_canonical(nib.load(tmp_path / "masks" / "a.nii.gz"))
    assert np.array_equal(np.asarray(predicted_turned.dataobj), np.asarray(want_turned.dataobj))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ({}, "no image; at least one is needed of flair, t1, t2"),
        ({"pd": "x.nii"}, "'pd': the model knows flair, t1, t2"),
        ({"t1": (np.ones((3, 3)), np.eye(4))}, r"shape \(3, 3\): numbers \(X, Y, Z\) are needed"),
        ({"t1": (np.ones((3, 3, 3)), np.eye(3))}, "a finite 4x4 matrix is needed"),
        ({"t1": (np.ones((3, 3, 3)), np.diag([1, 0, 1, 1]))}, "it must be positive"),
        ({"t1": "nowhere.nii.gz"}, "nowhere.nii.gz: there is no such file"),
    ],
)
def test_what_cannot_be_predicted_in_memory_is_refused(
    model: Model, images: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        model.predict(images)


def test_images_on_other_grids_come_onto_the_finest(
    model: Model, cases: Path, tmp_path: Path
) -> None:
    coarse = Grid((6, 10, 9), (2.0, 2.0, 2.0), (0.5, 0.5, 0.0), GRID.direction)
    images, _ = small_case(("t2",), 0, SHAPE)
    voxels = images["t2"].reshape(6, 10, 2, 9, 2).mean(axis=(2, 4))
    voxels[:, 0] = 0
    write_image(cases / "a" / "t2.nii.gz", voxels, coarse)
    outcome = predicted(model, cases, tmp_path / "masks")["a"]
    assert (outcome.status, outcome.reference) == ("done", "t1")
    assert outcome.notes[0].startswith("t2 was resampled onto the grid of t1 (shape (6, 10, 9)")
    assert read_grid(tmp_path / "masks" / "a.nii.gz") == GRID
    asked = PredictionOptions(alignment=AlignmentOptions(reference="t2"))
    assert predicted(model, cases, tmp_path / "masks", asked)["a"].reference == "t2"
    assert read_grid(tmp_path / "masks" / "a.nii.gz") == coarse


def test_a_case_of_no_known_modality_has_its_reason(model: Model, tmp_path: Path) -> None:
    case = Case("x", {"pd": tmp_path / "pd.nii.gz"})
    (outcome,) = predict_folder([model], [case], (), tmp_path / "masks")
    assert outcome.reason == "has pd; the model needs at least one of flair, t1, t2"


def test_a_missing_model_is_reported_before_the_folder_is_read(
    tmp_path: Path, command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    asked = ["mixmfl_predict", "-i", tmp_path / "empty", "-o", tmp_path / "masks"]
    assert command(*asked) == 2
    assert "no model is registered on this machine" in capsys.readouterr().err
    assert command(*asked, "-m", tmp_path) == 2
    assert f"{tmp_path}: holds no model.safetensors; a model file" in capsys.readouterr().err


def test_the_command_reports_every_file_and_takes_a_table_of_files(
    model_file: Path,
    cases: Path,
    tmp_path: Path,
    command: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.rmtree(cases / "c")
    shutil.copy(cases / "a" / "t1.nii.gz", cases / "a" / "t2w.nii.gz")  # another image
    shutil.copy(cases / "a" / "t2.nii.gz", cases / "a" / "TOF.nii.gz")
    (cases / "b" / "t2.mnc").write_bytes(b"x")
    (cases / "notes.txt").write_text("none")
    (cases / "empty").mkdir()
    out, table = tmp_path / "masks", tmp_path / "table.csv"
    asked = ["mixmfl_predict", "-i", cases, "-o", out, "-m", model_file, "--no-report"]
    assert command(*asked) == 0
    printed = capsys.readouterr().out
    assert "not used: 2 files for t2: a/t2.nii.gz, a/t2w.nii.gz; keep one of them" in printed
    assert "b/t2.mnc: MINC is not read; convert it to NIfTI (.nii.gz)" in printed
    assert f"6 files set aside, with reasons: {out / 'set_aside.csv'}" in printed
    rows = list(csv.reader((out / "set_aside.csv").read_text(encoding="utf-8").splitlines()))
    assert [row[0] for row in rows] == [
        "path", "a/t2.nii.gz", "a/t2w.nii.gz", "a/TOF.nii.gz", "b/t2.mnc", "empty", "notes.txt",
    ]  # fmt: skip

    assert command(*asked, "--write-mapping", table) == 0
    assert "0 DICOM series, 5 image files" in capsys.readouterr().out
    lines = table.read_text(encoding="utf-8").splitlines()
    mended = [line.replace("a,?,", "a,t2,") if "a/t2w" in line else line for line in lines]
    table.write_text("\n".join(mended), encoding="utf-8")
    assert command(*asked, "--mapping", table) == 0
    assert "a: done from t1, t2" in capsys.readouterr().out
