"""The main job as a user runs it: from two sites' folders to masks, by the commands."""

import csv
import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import blosc2
import numpy as np
import pytest
from small import LABELS_JSON, LPS, SHAPE, write_case, write_preset

from mixmfl.core.files import read_json
from mixmfl.data.grid import Grid
from mixmfl.data.image import read_grid, read_labels, write_image

Command = Callable[..., int]
Direction = tuple[float, float, float, float, float, float, float, float, float]


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "federation"
    for number in range(3):
        write_case(folder / "north" / f"n{number}", ("t1", "t2"), number)
        write_case(folder / "south" / f"s{number}", ("flair", "t1"), 10 + number)
    shutil.rmtree(folder / "north" / "n2")
    write_case(folder / "north" / "n2", ("t2",), 2)
    write_case(folder / "clinic" / "c0", ("flair", "t1", "t2"), 20)
    write_case(folder / "clinic" / "c1", ("flair",), 21)
    (folder / "dataset.json").write_text(json.dumps(LABELS_JSON))
    (folder / "federation.json").write_text('{"held_out": ["clinic"]}')
    return folder


@pytest.fixture(scope="module")
def preset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("preset") / "tiny.json"
    return write_preset(file, rounds=2, local_steps=2)


@pytest.fixture(scope="module")
def work(federation: Path, preset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from mixmfl.core.worker_pool import Workers
    from mixmfl.planning.federation_plans import make_plans
    from mixmfl.planning.fingerprint import merge_fingerprints
    from mixmfl.planning.plans import load_preset
    from mixmfl.planning.preprocess import preprocess_site
    from mixmfl.planning.site_fingerprint import fingerprint_site
    from mixmfl.planning.site_folders import find_sites

    out = tmp_path_factory.mktemp("work")
    sites = find_sites(federation).sites
    with Workers() as workers:
        fingerprints = [fingerprint_site(s, out / "sites" / s.name, workers)[0] for s in sites]
        plans = make_plans(
            merge_fingerprints(fingerprints), sites[0].labels, load_preset(str(preset))
        )
        plans.save(out / "plans.json")
        for site in sites:
            for name in plans.configurations:
                preprocess_site(site, plans, name, out / "sites" / site.name, workers)
    return out


@pytest.fixture(scope="module")
def run(work: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train once for all tests of prediction."""

    from mixmfl.federated.simulation import simulate
    from mixmfl.federated.sites import open_sites
    from mixmfl.federated.state import RunSettings
    from mixmfl.planning.plans import Plans

    out = tmp_path_factory.mktemp("runs") / "run"
    plans = Plans.load(work / "plans.json")
    settings = RunSettings("2d", 0, 2, 30, 0.02)
    sites = open_sites(work, plans, "2d", "all", 0)
    simulate(plans, sites, settings, "all", out)
    return out


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_two_sites_go_from_images_to_evaluated_masks(
    request: pytest.FixtureRequest,
    federation: Path,
    preset: Path,
    tmp_path: Path,
    command: Command,
    capsys: pytest.CaptureFixture[str],
    configuration: str,
) -> None:
    if configuration == "2d":  # once with a process that reads, which takes long to start
        request.getfixturevalue("reading_process")
    work, run, masks = tmp_path / "work", tmp_path / "run", tmp_path / "masks"
    assert command(
        "mixmfl_plan_preprocess", "-i", federation, "-o", work, "--preset", preset, "-n", 1,
        "-c", configuration,
    ) == 0  # fmt: skip
    printed = capsys.readouterr().out
    assert "clinic: held out" in printed
    assert f"site north, {configuration}: 3 cases preprocessed" in printed
    assert command(
        "mixmfl_train_federated", "-i", work, "-o", run, "-c", configuration, "--fold", 0
    ) == 0  # fmt: skip
    printed = capsys.readouterr().out
    assert "site north: 2 training cases" in printed
    assert "round 2/2  loss north" in printed
    assert command("mixmfl_predict", "-i", federation / "clinic", "-o", masks) == 0
    printed = capsys.readouterr().out
    assert "c0: done from flair, t1, t2, expected Dice" in printed
    assert "c1: done from flair, without t1, t2" in printed
    assert f"model {run / 'model.safetensors'}" in printed  # the one registered by training
    assert command(
        "mixmfl_evaluate", "-i", masks, "-r", federation / "clinic", "-o", tmp_path / "scores.csv"
    ) == 0  # fmt: skip
    with (tmp_path / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["case"], row["label"]) for row in rows] == [
        (case, label) for case in ("c0", "c1") for label in ("lesion", "core")
    ]
    for case in ("c0", "c1"):
        mask, grid = read_labels(masks / f"{case}.nii.gz")
        assert grid == read_grid(federation / "clinic" / case / "flair.nii.gz")
        assert set(np.unique(mask)) <= {0, 1, 4}
        assert not mask[:, :2].any()  # outside the head


def test_training_learns_the_lesion(run: Path, federation: Path, tmp_path: Path) -> None:
    from mixmfl.data.cases import find_cases
    from mixmfl.data.labels import Labels
    from mixmfl.evaluation.metrics import evaluate_folder
    from mixmfl.inference.model_file import load_model
    from mixmfl.inference.predict_folder import predict_folder

    found = find_cases(federation / "clinic")
    model = load_model(run / "model.safetensors")
    outcomes = list(predict_folder([model], found.cases, (), tmp_path))
    assert [outcome.status for outcome in outcomes] == ["done", "done"]
    labels = Labels.from_dataset_json(LABELS_JSON, "here")
    scores = evaluate_folder(tmp_path, federation / "clinic", labels).scores
    assert all(case[0].dice > 0.6 for case in scores.values())


def test_a_second_run_keeps_what_is_done_and_redoes_what_is_not(
    federation: Path, preset: Path, tmp_path: Path, command: Command,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    ours = tmp_path / "federation"
    shutil.copytree(federation, ours)
    arguments = ["mixmfl_plan_preprocess", "-i", ours, "-o", tmp_path / "work", "-n", 1]
    arguments += ["--preset", preset, "-c", "2d"]
    assert command(*arguments) == 0
    plans = (tmp_path / "work" / "plans.json").read_bytes()
    stored = tmp_path / "work" / "sites" / "north" / "2d"
    (stored / "n0.json").unlink()  # as an interruption leaves it
    shutil.rmtree(ours / "south" / "s1")  # gone: must not be trained on
    write_case(ours / "south" / "s7", ("t1",), 99)
    capsys.readouterr()
    assert command(*arguments) == 0
    printed = capsys.readouterr().out
    assert "is kept (--replan makes it again)" in printed
    assert "site north, 2d: 1 case preprocessed, 2 kept" in printed
    assert "site south, 2d: 1 case preprocessed, 2 kept" in printed
    assert (tmp_path / "work" / "plans.json").read_bytes() == plans
    names = {f.stem for f in (stored.parents[1] / "south" / "2d").glob("*.json")}
    assert names == {"s0", "s2", "s7"}


def test_hospitals_plan_and_preprocess_apart_as_they_would_together(
    federation: Path, preset: Path, tmp_path: Path, command: Command
) -> None:
    together, apart = tmp_path / "together", tmp_path / "apart"
    assert command(
        "mixmfl_plan_preprocess", "-i", federation, "-o", together, "--preset", preset, "-n", 1,
    ) == 0  # fmt: skip
    for site in ("north", "south"):
        assert command(
            "mixmfl_plan_preprocess", "-i", federation / site, "--site", "-o", apart / site,
            "--fingerprint-only", "-n", 1,
        ) == 0  # fmt: skip
    fingerprints = [apart / s / "sites" / s / "fingerprint.json" for s in ("north", "south")]
    assert command(
        "mixmfl_plan_preprocess", "--merge", *fingerprints, "-o", apart / "server",
        "--preset", preset, "--labels", federation / "dataset.json",
    ) == 0  # fmt: skip
    plans = apart / "server" / "plans.json"
    assert read_json(plans) == read_json(together / "plans.json")
    assert command(
        "mixmfl_plan_preprocess", "-i", federation / "north", "--site", "-o", apart / "north",
        "--plans", plans, "-n", 1, "-c", "2d",
    ) == 0  # fmt: skip
    for suffix in (".images.b2nd", ".labels.b2nd"):
        one, other = (
            (where / "sites" / "north" / "2d" / f"n0{suffix}").read_bytes()
            for where in (together, apart / "north")
        )
        assert one == other


def test_processes_change_nothing(
    federation: Path, preset: Path, work: Path, tmp_path: Path, command: Command
) -> None:
    assert command(
        "mixmfl_plan_preprocess", "-i", federation, "-o", tmp_path, "--preset", preset, "-n", 2,
        "-c", "2d",
    ) == 0  # fmt: skip
    assert read_json(tmp_path / "plans.json") == read_json(work / "plans.json")
    stored = sorted((work / "sites").glob("*/2d/*.b2nd"))
    assert len(stored) == 12
    for file in stored:
        # the numbers alone, for a file also says how many threads wrote it
        written = blosc2.open(str(tmp_path / file.relative_to(work)))[:]
        np.testing.assert_array_equal(written, blosc2.open(str(file))[:])


def test_a_site_that_grows_a_modality_must_be_planned_for(
    federation: Path, work: Path, tmp_path: Path, command: Command,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    ours = tmp_path / "site"
    write_case(ours / "x0", ("t1", "pd"), 3)
    (ours / "dataset.json").write_text(json.dumps(LABELS_JSON))
    assert command(
        "mixmfl_plan_preprocess", "-i", ours, "--site", "-o", tmp_path / "w", "-n", 1,
        "--plans", work / "plans.json",
    ) == 2  # fmt: skip
    assert "has pd, but the plans know only flair, t1, t2" in capsys.readouterr().err


def test_every_orientation_of_a_case_gives_the_mask_of_its_twin(
    run: Path, federation: Path, tmp_path: Path
) -> None:
    from mixmfl.data.cases import Case
    from mixmfl.inference.model_file import load_model
    from mixmfl.inference.predict_folder import predict_folder

    model = load_model(run / "model.safetensors")
    source = federation / "clinic" / "c0"
    original = read_grid(source / "t1.nii.gz")
    from mixmfl.data.grid import to_canonical
    from mixmfl.data.image import read_image

    cases = []
    for code, direction in {
        "LPS": LPS,
        "RAS": (-1.0, 0, 0, 0, -1, 0, 0, 0, 1),
        "LAS": (1.0, 0, 0, 0, -1, 0, 0, 0, 1),
        "coronal": (1.0, 0, 0, 0, 0, 1, 0, -1, 0),
        "sagittal": (0, 0, -1.0, 1, 0, 0, 0, -1, 0),
    }.items():
        for name in ("flair", "t1", "t2"):
            voxels, _ = read_image(source / f"{name}.nii.gz")
            turned, grid = turn(voxels, original, direction)
            back, there = to_canonical(turned, grid)
            assert np.array_equal(back, voxels)
            assert there.spacing == original.spacing
            (tmp_path / code).mkdir(exist_ok=True)
            write_image(tmp_path / code / f"{name}.nii.gz", turned, grid)
        files = {n: tmp_path / code / f"{n}.nii.gz" for n in ("flair", "t1", "t2")}
        cases.append(Case(code, files))
    outcomes = list(predict_folder([model], cases, (), tmp_path / "masks"))
    assert [o.reason for o in outcomes] == [""] * len(cases)
    masks = {}
    for case in cases:
        mask, grid = read_labels(tmp_path / "masks" / f"{case.name}.nii.gz")
        assert grid == read_grid(case.files["t1"])
        masks[case.name], _ = to_canonical(mask, grid)
    assert masks["LPS"].any()
    for code, mask in masks.items():
        assert np.array_equal(mask, masks["LPS"]), code


def turn(canonical: np.ndarray, grid: Grid, direction: Direction) -> tuple[np.ndarray, Grid]:
    """Store canonical voxels on axes of another direction, without moving them in space."""
    columns = np.array(direction).reshape(3, 3)
    axes = [int(np.argmax(np.abs(columns[:, i]))) for i in range(3)]  # stored x, y, z run along
    signs = [int(np.sign(columns[axes[i], i])) for i in range(3)]
    xyz = canonical.transpose(2, 1, 0)
    stored = xyz.transpose(axes)
    spacing = np.array(grid.spacing[::-1])
    first = np.zeros(3)
    for i, (axis, sign) in enumerate(zip(axes, signs, strict=True)):
        if sign < 0:
            stored = np.flip(stored, i)
            first[axis] = (xyz.shape[axis] - 1) * spacing[axis]
    origin = np.array(grid.origin) + first
    turned = np.ascontiguousarray(stored.transpose(2, 1, 0))
    z, y, x = (float(spacing[axis]) for axis in axes[::-1])
    place = (float(origin[0]), float(origin[1]), float(origin[2]))
    return turned, Grid(turned.shape, (z, y, x), place, direction)


def test_masks_that_are_there_are_kept_unless_asked(
    run: Path, federation: Path, tmp_path: Path, command: Command,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (tmp_path / "c0.nii.gz").write_text("drawn by a colleague")
    arguments = ["mixmfl_predict", "-i", federation / "clinic", "-o", tmp_path]
    arguments += ["-m", run / "model.safetensors"]
    assert command(*arguments) == 0
    printed = capsys.readouterr().out
    assert "c0: c0.nii.gz is there and is not as we wrote it; --overwrite replaces it" in printed
    assert (tmp_path / "c0.nii.gz").read_text() == "drawn by a colleague"
    assert command(*arguments, "--overwrite") == 0
    assert read_labels(tmp_path / "c0.nii.gz")[0].shape == SHAPE


def test_hiding_a_modality_is_as_if_the_case_never_had_it(
    run: Path, federation: Path, tmp_path: Path, command: Command
) -> None:
    model = run / "model.safetensors"
    lacking = tmp_path / "lacking" / "c0"
    shutil.copytree(federation / "clinic" / "c0", lacking)
    (lacking / "t2.nii.gz").unlink()
    (lacking / "flair.nii.gz").unlink()
    source = tmp_path / "full"
    shutil.copytree(federation / "clinic" / "c0", source / "c0")
    for cases, extra, out in (
        (lacking.parent, (), "a"),
        (source, ("--modalities", "t1"), "b"),
    ):
        arguments = ("mixmfl_predict", "-i", cases, "-o", tmp_path / out, "-m", model)
        assert command(*arguments, *extra) == 0
    one, other = ((tmp_path / out / "c0.nii.gz").read_bytes() for out in "ab")
    assert one == other


def test_a_modality_that_nobody_trained_is_not_predicted_from(
    work: Path, federation: Path, tmp_path: Path, command: Command,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    run, cases = tmp_path / "run", tmp_path / "cases"
    assert command(
        "mixmfl_train_federated", "-i", work, "-o", run, "-c", "2d", "--sites", "south",
        "--rounds", 1, "--local-steps", 1,
    ) == 0  # fmt: skip
    shutil.copytree(federation / "clinic", cases)
    write_case(cases / "p9", ("t2",), 5)
    capsys.readouterr()
    assert command("mixmfl_predict", "-i", cases, "-o", tmp_path / "masks") == 1
    printed = capsys.readouterr()
    assert "p9: FAILED: has t2; the model needs at least one of flair, t1" in printed.err
    assert "c0: done from flair, t1" in printed.out


def test_test_cases_are_preprocessed_by_the_plans_and_tell_them_nothing(
    federation: Path, preset: Path, tmp_path: Path, command: Command
) -> None:
    ours = tmp_path / "ours"

    def plan(out: str) -> int:
        return command(
            "mixmfl_plan_preprocess", "-i", ours, "-o", tmp_path / out, "--preset", preset,
            "-c", "2d", "-n", 1,
        )  # fmt: skip

    shutil.copytree(federation, ours)
    (ours / "federation.json").write_text('{"held_out": ["clinic"]}')
    assert plan("without") == 0
    shutil.copytree(ours / "south", ours / "north_tests")
    (ours / "federation.json").write_text(
        '{"held_out": ["clinic"], "tests": {"north": "north_tests"}}'
    )
    assert plan("work") == 0
    without, plans = (tmp_path / name / "plans.json" for name in ("without", "work"))
    assert without.read_bytes() == plans.read_bytes()
    tested = {file.stem for file in (tmp_path / "work" / "tests" / "north" / "2d").glob("*.json")}
    trained = {file.stem for file in (tmp_path / "work" / "sites" / "south" / "2d").glob("*.json")}
    assert tested == trained != set()
    assert not (tmp_path / "work" / "sites" / "north_tests").exists()

    # what tested before must not silently test, or train, otherwise
    (ours / "federation.json").write_text('{"held_out": ["clinic", "north_tests"]}')
    assert plan("work") == 2
    (ours / "federation.json").write_text('{"tests": {"nroth": "north_tests"}}')
    assert plan("work2") == 2


def test_links_are_sites_by_their_own_names_and_held_out_names_must_be_folders(
    federation: Path, tmp_path: Path
) -> None:
    from mixmfl.core.errors import DataError
    from mixmfl.planning.site_folders import find_sites

    ours = tmp_path / "federation"
    ours.mkdir()
    for name in ("north", "south"):
        data = tmp_path / name / "data"
        data.parent.mkdir()
        shutil.copytree(federation / name, data)
        (ours / name).symlink_to(data)
    (ours / "dataset.json").write_text(json.dumps(LABELS_JSON))
    assert [site.name for site in find_sites(ours).sites] == ["north", "south"]
    for slip in ("north/", "./north", "nort"):
        (ours / "federation.json").write_text(json.dumps({"held_out": [slip]}))
        with pytest.raises(DataError, match="there is no such folder; fix or remove the name"):
            find_sites(ours)


def test_a_site_that_left_the_federation_is_not_trained_on(
    federation: Path, work: Path, tmp_path: Path, command: Command,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    shutil.copytree(work, tmp_path / "work")
    ours = tmp_path / "federation"
    shutil.copytree(federation, ours)
    (ours / "federation.json").write_text('{"held_out": ["clinic", "south"]}')
    assert command("mixmfl_plan_preprocess", "-i", ours, "-o", tmp_path / "work", "-n", 1) == 2
    assert "holds south, which the federation does not train on" in capsys.readouterr().err


def test_cases_of_other_plans_are_not_trained_on(
    federation: Path, work: Path, tmp_path: Path, command: Command,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    ours = tmp_path / "work"
    shutil.copytree(work, ours)
    content = json.loads((ours / "plans.json").read_text())
    content["nnunet"]["configurations"]["2d"]["spacing"] = [2.0, 2.0]
    (ours / "plans.json").write_text(json.dumps(content))
    train = ["mixmfl_train_federated", "-i", ours, "-c", "2d", "--rounds", 1, "--local-steps", 1]
    assert command(*train, "-o", tmp_path / "run") == 2
    assert "was preprocessed with other plans than" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert command("mixmfl_plan_preprocess", "-i", federation, "-o", ours, "-c", "2d", "-n", 1) == 0
    assert "site north, 2d: 3 cases preprocessed" in capsys.readouterr().out
    assert command(*train, "-o", tmp_path / "run") == 0


def test_a_damaged_fingerprint_is_taken_again(
    federation: Path, preset: Path, tmp_path: Path, command: Command
) -> None:
    arguments = ["mixmfl_plan_preprocess", "-i", federation, "-o", tmp_path, "-n", 1]
    arguments += ["--preset", preset, "--fingerprint-only"]
    assert command(*arguments) == 0
    for name in ("fingerprint.json", "cases.json"):
        file = tmp_path / "sites" / "north" / name
        before = file.read_bytes()
        file.write_bytes(before[:50])
        assert command(*arguments) == 0
        assert file.read_bytes() == before


def test_several_models_are_averaged(run: Path, federation: Path, tmp_path: Path) -> None:
    from mixmfl.data.cases import find_cases
    from mixmfl.data.load_case import load_case
    from mixmfl.federated.server.export import export_model
    from mixmfl.inference.model_file import load_model
    from mixmfl.inference.segmentation import predict_case

    export_model(run, "last", tmp_path / "m.safetensors")
    model = load_model(tmp_path / "m.safetensors")
    case = load_case(find_cases(federation / "clinic").cases[0])
    one = predict_case([model], case)
    assert np.array_equal(predict_case([model, model], case), one)
    unsure = model.network
    for parameter in unsure.decoder.seg_layers.parameters():
        parameter.data.zero_()  # a model that is sure of nothing
    other = dataclasses.replace(model, runner=unsure)
    assert not np.array_equal(predict_case([other], case), one)
    assert predict_case([model, other], case).shape == one.shape


def test_a_model_can_be_chosen_for_this_machine(
    run: Path, federation: Path, tmp_path: Path, command: Command,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    arguments = ("mixmfl_predict", "-i", federation / "clinic", "-o", tmp_path / "masks")
    assert command(*arguments) == 2
    assert "no model is registered on this machine" in capsys.readouterr().err
    assert command("mixmfl_use_model") == 2
    mine = tmp_path / "mine.safetensors"
    assert command("mixmfl_export", "-i", run, "-o", mine, "--round", "last") == 0
    assert command("mixmfl_export", "-i", run, "-o", mine) == 2
    assert "exists already; --overwrite replaces it" in capsys.readouterr().err
    assert command("mixmfl_use_model", mine) == 0
    assert f"mixmfl_predict uses {mine}" in capsys.readouterr().out
    assert command(*arguments) == 0
    mine.write_bytes(b"something else")
    assert command(*arguments, "--overwrite") == 2
    assert "the contents changed since it was registered" in capsys.readouterr().err
    mine.unlink()
    assert command(*arguments) == 2
    assert "the registered model is gone" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "give one of -i FEDERATION, --merge"),
        (("-i", Path(__file__).parent, "--merge", __file__), "give one of -i FEDERATION, --merge"),
        (("-i", Path(__file__).parent, "-n", 0), "-n 0: at least 1 process is needed"),
        (("--merge", __file__), "--merge needs --labels"),
    ],
)
def test_options_that_contradict_each_other_are_refused(
    options: tuple[object, ...], message: str, tmp_path: Path, command: Command,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert command("mixmfl_plan_preprocess", "-o", tmp_path / "work", *options) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "work").exists()
