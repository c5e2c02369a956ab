"""What the commands are given by mistake: one clear message, and nothing half written."""

import dataclasses
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from small import DEMO_PRESET, LABELS, small_case, small_plans, write_model
from small_federation import write_work

from mixmfl.data.grid import Grid
from mixmfl.data.image import write_image, write_labels

Command = Callable[..., int]
Output = pytest.CaptureFixture[str]


def write_case(folder: Path, modalities: Sequence[str]) -> None:
    images, labels = small_case(modalities, seed=1)
    grid = Grid(labels.shape, (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0))
    folder.mkdir(parents=True)
    for name, image in images.items():
        image[:, :2] = 0  # outside the head
        write_image(folder / f"{name}.nii.gz", image, grid)
    write_labels(folder / "seg.nii.gz", labels, grid)


@pytest.fixture
def federation(tmp_path: Path) -> Path:
    folder = tmp_path / "federation"
    write_case(folder / "north" / "n0", ("t1", "t2"))
    write_case(folder / "south" / "s0", ("flair",))
    (folder / "dataset.json").write_text(json.dumps(LABELS.to_json()))
    return folder


@pytest.fixture
def work(tmp_path: Path) -> Path:
    plans = small_plans(rounds=1, local_steps=1)
    return write_work(tmp_path / "work", {"north": [("t1", "t2")]}, plans)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model.safetensors")


def refused(printed: Output, command: str) -> str:
    """Return the one message on stderr, which names the command."""
    message = printed.readouterr().err
    assert message.startswith(f"{command}: ")
    assert message.count("\n") == 1
    return message


def test_a_model_that_is_none_is_named_before_any_case_is_listed(
    federation: Path, tmp_path: Path, command: Command, capsys: Output
) -> None:
    model = federation / "dataset.json"
    asked = ["-i", federation / "north", "-o", tmp_path / "masks", "-m", model]
    assert command("mixmfl_predict", *asked) == 2
    printed = capsys.readouterr()
    assert f"{model}: is no model file" in printed.err
    assert printed.out == ""


# --- planning


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        # a negative memory sent nnU-Net's planner round and round for ever
        (("planner", "memory_gb"), -1, "planner: memory_gb: is -1; it must be a number above 0"),
        (("planner", "base_features"), 0, "base_features: is 0; it must be a whole number from 1"),
        (
            ("planner", "target_spacing"),
            [0, 1, 1],
            "target_spacing: is 0; it must be a number from 0.05",
        ),
        (
            ("planner", "target_spacing"),
            [1, 1],
            "target_spacing: has 2 entries; it must have 3",
        ),
        (("network", "temperature"), 0, "temperature: is 0; it must be a number from 0.0001"),
        (("network", "compensation_levels"), [9], "compensation_levels: 2d has"),
        (
            ("training", "modality_dropping"),
            7,
            "modality_dropping: is 7; it must be a number from 0 to 1",
        ),
        (("training", "learning_rate"), float("inf"), "Infinity is no JSON number"),
        (("training", "keep_every"), 0, "keep_every: is 0; it must be a whole number from 1"),
    ],
)
def test_a_preset_whose_numbers_mean_nothing_is_refused(
    federation: Path,
    tmp_path: Path,
    command: Command,
    capsys: Output,
    place: tuple[str, str],
    value: object,
    message: str,
) -> None:
    preset = json.loads(DEMO_PRESET.read_text())
    preset[place[0]][place[1]] = value
    mine, out = tmp_path / "mine.json", tmp_path / "out"
    mine.write_text(json.dumps(preset))
    asked = ["-i", federation, "-o", out, "--preset", mine, "-n", 1, "-c", "2d"]
    assert command("mixmfl_plan_preprocess", *asked) == 2
    assert message in refused(capsys, "mixmfl_plan_preprocess")
    assert not (out / "plans.json").exists()


def test_damaged_plans_are_refused(
    work: Path, tmp_path: Path, command: Command, capsys: Output
) -> None:
    file = work / "plans.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "modalities": 3}))
    assert command("mixmfl_train_federated", "-i", work, "-o", tmp_path / "run") == 2
    assert "modalities: a list is needed, not 3" in refused(capsys, "mixmfl_train_federated")
    assert not (tmp_path / "run").exists()


def test_plans_that_do_not_fit_the_site_are_not_put_into_its_folder(
    federation: Path, tmp_path: Path, command: Command, capsys: Output
) -> None:
    received, out = tmp_path / "received.json", tmp_path / "out"
    small_plans(("t1",)).save(received)
    asked = ["-i", federation / "north", "--site", "-o", out, "--plans", received, "-n", 1]
    assert command("mixmfl_plan_preprocess", *asked) == 2
    message = refused(capsys, "mixmfl_plan_preprocess")
    assert "site north: has t2, but the plans know only t1" in message
    assert not out.exists()


def test_a_held_out_folder_that_is_not_there_is_told(
    federation: Path, tmp_path: Path, command: Command, capsys: Output
) -> None:
    (federation / "federation.json").write_text('{"held_out": ["suoth"]}')
    assert command("mixmfl_plan_preprocess", "-i", federation, "-o", tmp_path / "out") == 2
    assert "holds out 'suoth'" in refused(capsys, "mixmfl_plan_preprocess")
    (federation / "federation.json").unlink()
    (federation / "federation.json").symlink_to("/not/mounted")
    assert command("mixmfl_plan_preprocess", "-i", federation, "-o", tmp_path / "out") == 2
    assert "federation.json: there is no such file" in refused(capsys, "mixmfl_plan_preprocess")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_no_site_is_to_be_named(
    federation: Path, tmp_path: Path, command: Command, capsys: Output
) -> None:
    (federation / "notes").mkdir()
    assert command("mixmfl_plan_preprocess", "-i", federation, "-o", tmp_path / "out") == 2
    message = capsys.readouterr().err
    assert "notes: holds no image" in message
    assert f'or name it in {federation / "federation.json"}: {{"held_out": ["notes"]}}' in message


def test_a_folder_whose_name_would_command_a_terminal_is_no_site(
    federation: Path, tmp_path: Path, command: Command, capsys: Output
) -> None:
    (federation / "south").rename(federation / "so\x1b[2Juth")
    assert command("mixmfl_plan_preprocess", "-i", federation, "-o", tmp_path / "out") == 2
    message = refused(capsys, "mixmfl_plan_preprocess")
    assert r"'so\x1b[2Juth': is a folder of a site, and so the site's name" in message
    assert not (tmp_path / "out").exists()


def test_a_link_to_nowhere_is_one_bad_case_and_the_others_go_on(
    federation: Path, tmp_path: Path, command: Command, capsys: Output
) -> None:
    shutil.copytree(federation / "south" / "s0", federation / "south" / "s1")
    (federation / "south" / "s1" / "flair.nii.gz").unlink()
    (federation / "south" / "s1" / "flair.nii.gz").symlink_to(tmp_path / "nowhere.nii.gz")
    out = tmp_path / "out"
    asked = ["-i", federation / "south", "--site", "-o", out, "-n", 1, "--fingerprint-only"]
    assert command("mixmfl_plan_preprocess", *asked) == 1
    message = capsys.readouterr().err
    assert "south/s1: case 's1'" in message
    assert "there is no such file" in message
    assert json.loads((out / "sites" / "south" / "fingerprint.json").read_text())["cases"] == 1


# --- training


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (("--learning-rate", "inf"), "--learning-rate: must be above 0"),
        (("--deadline", "nan"), "--deadline: must be above 0"),
        (("--seed", "-1"), "--seed: must be from 0"),
        (("--seed", "99999999999999999999"), "--seed: must be from 0"),
        (("--workers", "-1"), "--workers: must be 0 or more"),
        (("--masked", "--updates", "half"), "--updates: with --masked sites send fixed-point"),
        (("--device", "meta"), "--device meta: cannot be used here"),
    ],
)
def test_an_option_that_cannot_be_is_refused_before_anything_is_written(
    work: Path,
    tmp_path: Path,
    command: Command,
    capsys: Output,
    asked: Sequence[str],
    message: str,
) -> None:
    options = ["-i", work, "-o", tmp_path / "run", "-c", "2d", *asked]
    assert command("mixmfl_train_federated", *options) == 2
    assert message in refused(capsys, "mixmfl_train_federated")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (("--sites", "nort"), "there is no site nort; the sites are north. Name some of these"),
        (
            ("-c", "3d_fullres"),
            "configuration 3d_fullres is not preprocessed for any site; choose one that is by -c "
            "(2d), or run mixmfl_plan_preprocess -c 3d_fullres",
        ),
    ],
)
def test_a_site_or_configuration_that_is_not_there_is_told_from_those_that_are(
    work: Path,
    tmp_path: Path,
    command: Command,
    capsys: Output,
    asked: Sequence[str],
    message: str,
) -> None:
    flat, full = small_plans(rounds=1, local_steps=1), small_plans(patch=(8, 16, 16))
    planned = {**flat.nnunet["configurations"], **full.nnunet["configurations"]}
    both = dataclasses.replace(flat, nnunet={**flat.nnunet, "configurations": planned})
    both.save(work / "plans.json")
    assert command("mixmfl_train_federated", "-i", work, "-o", tmp_path / "run", *asked) == 2
    assert message in refused(capsys, "mixmfl_train_federated")
    assert not (tmp_path / "run").exists()


def test_training_takes_the_preprocessed_configuration_where_none_is_named(
    work: Path, tmp_path: Path, command: Command, capsys: Output
) -> None:
    assert command("mixmfl_train_federated", "-i", work, "-o", tmp_path, "--rounds", 0) == 2
    assert "--rounds: must be above 0" in refused(capsys, "mixmfl_train_federated")


def test_cases_that_other_plans_preprocessed_are_refused(
    work: Path, tmp_path: Path, command: Command, capsys: Output
) -> None:
    small_plans(("t1",)).save(work / "plans.json")
    assert command("mixmfl_train_federated", "-i", work, "-o", tmp_path / "run", "-c", "2d") == 2
    printed = capsys.readouterr().err
    assert "was preprocessed with other plans than" in printed
    assert not (tmp_path / "run").exists()


def test_a_site_named_twice_trains_once_and_nobody_is_told_a_dice_of_nan(
    work: Path, tmp_path: Path, command: Command, capsys: Output
) -> None:
    options = ["-i", work, "-o", tmp_path / "run", "-c", "2d", "--sites", "north", "north"]
    options += ["--rounds", 1, "--local-steps", 1]
    assert command("mixmfl_train_federated", *options) == 0
    printed = capsys.readouterr().out
    assert printed.count("site north") == 1
    assert "0 validation cases" in printed
    assert "nan" not in printed


# --- models


def test_a_damaged_model_neither_predicts_nor_is_registered(
    model: Path, federation: Path, tmp_path: Path, command: Command, capsys: Output
) -> None:
    model.write_bytes(model.read_bytes()[:5000])
    masks = tmp_path / "masks"
    assert command("mixmfl_predict", "-i", federation / "north", "-o", masks, "-m", model) == 2
    assert "cannot be read as a model" in refused(capsys, "mixmfl_predict")
    assert not masks.exists()
    assert command("mixmfl_use_model", model) == 2
    assert "cannot be read as a model" in refused(capsys, "mixmfl_use_model")


# --- prediction


def test_one_unknown_modality_among_those_asked_for_is_refused(
    model: Path, federation: Path, tmp_path: Path, command: Command, capsys: Output
) -> None:
    asked = ["-i", federation / "north", "-o", tmp_path / "masks", "-m", model]
    assert command("mixmfl_predict", *asked, "--modalities", "t1,t3") == 2
    assert "--modalities t3: the model knows flair, t1, t2" in refused(capsys, "mixmfl_predict")
    assert not (tmp_path / "masks").exists()


def test_modalities_are_asked_for_in_any_words_that_files_may_use(
    model: Path, federation: Path, tmp_path: Path, command: Command, capsys: Output
) -> None:
    asked = ["-i", federation / "north", "-o", tmp_path / "masks", "-m", model]
    assert command("mixmfl_predict", *asked, "--modalities", "T1w, T2") == 0
    assert "n0: done from t1, t2, without flair" in capsys.readouterr().out


@pytest.mark.parametrize("place", [".", "masks", "n0/masks"])
def test_masks_are_not_put_among_the_cases_where_they_would_pass_for_references(
    model: Path, federation: Path, command: Command, capsys: Output, place: str
) -> None:
    cases = federation / "north"
    before = sorted(cases.rglob("*"))
    assert command("mixmfl_predict", "-i", cases, "-o", cases / place, "-m", model) == 2
    assert "the next run would read masks as cases" in refused(capsys, "mixmfl_predict")
    assert sorted(cases.rglob("*")) == before


def test_over_a_network_how_cases_are_read_is_not_the_coordinators_to_say(
    tmp_path: Path, command: Command, capsys: Output
) -> None:
    given = ("--register", "--reference", "t1", "--alias", "t2=zwei")
    assert command("mixmfl_plan_preprocess", "--kit", tmp_path, "-o", tmp_path, *given) == 2
    printed = capsys.readouterr().err
    assert "--alias, --reference, --register: over a network each hospital reads its own" in printed
