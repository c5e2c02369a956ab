"""A run in folds: trained by one command, resumed, and what its folds measured added up."""

import dataclasses
import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from mixmfl.entrypoints import train_federated
from small import both_configurations, small_plans, stored_site
from small_federation import Cases, write_work

from mixmfl.core.errors import ModelError
from mixmfl.core.files import write_json
from mixmfl.evaluation.mask_quality import Measured
from mixmfl.evaluation.small_components import ComponentSums
from mixmfl.federated.server import cross_validation
from mixmfl.federated.server.cross_validation import (
    CrossValidation,
    begin_configurations,
    choice_lines,
    choose_configuration,
    configurations_of,
    pool_folds,
    write_choice,
)
from mixmfl.federated.server.measured import load_measured
from mixmfl.federated.server.reply_records import Compared
from mixmfl.federated.server.run import choose_round
from mixmfl.federated.server.run_record import open_run
from mixmfl.federated.server.subset_validation import merge_measured
from mixmfl.inference.default_model import registered_model
from mixmfl.inference.model_file import load_model
from mixmfl.inference.model_folder import (
    ConfigurationsRecord,
    model_files,
    read_configurations,
    read_folds,
    small_parts_of,
)

Command = Callable[..., int]
Said = pytest.CaptureFixture[str]
CASES: Mapping[str, Cases] = {
    "north": [("t1",), ("t1", "t2"), ("t1",)],
    "south": [("flair",), ("flair",)],
}
SHORT = ("--rounds", 1, "--local-steps", 1, "--seed", 3)


def train(*arguments: object) -> int:
    return train_federated.main([str(each) for each in arguments])


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_work(tmp_path_factory.mktemp("work"), CASES, small_plans())


@pytest.fixture(scope="module")
def whole(work: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train two folds and the model of all cases, once for all tests."""
    home = pytest.MonkeyPatch()
    home.setenv("MIXMFL_HOME", str(tmp_path_factory.mktemp("home")))
    out = tmp_path_factory.mktemp("whole") / "run"
    assert train("-i", work, "-o", out, "--fold", 0, 1, "all", *SHORT) == 0
    home.undo()
    return out


def test_what_all_folds_measured_is_in_every_model(whole: Path) -> None:
    runs = [open_run(whole / f"fold_{fold}") for fold in ("0", "1")]
    assert [run.fold for run in runs] == ["0", "1"]
    measured = [load_measured(run, 1) for run in runs]
    pooled = merge_measured([each for each in measured if each])
    assert pooled.components["lesion"].cases == 4  # two of each site
    for fold in ("0", "1", "all"):
        model = load_model(whole / f"fold_{fold}" / "model.safetensors")
        assert list(model.measured.expected) == pooled.expected
        for name, sums in pooled.components.items():
            known = model.measured.components[name]
            assert known.cases == sums.cases
            assert known.dice == pytest.approx(sums.dice)
            assert known.by_share == pytest.approx(sums.by_share)
        assert model.trained_on.folds == ("0", "1")
    assert model_files(whole) == [whole / f"fold_{n}" / "model.safetensors" for n in (0, 1)]
    rows = (whole / "cross_validation.csv").read_text().splitlines()
    assert {row.partition(",")[0] for row in rows[1:]} == {"", "north", "south"}


def test_a_fold_is_exported_with_what_all_measured(
    whole: Path, tmp_path: Path, command: Command, capsys: Said
) -> None:
    file = tmp_path / "m.safetensors"
    assert command("mixmfl_export", "-i", whole / "fold_1", "-o", file) == 0
    assert file.read_bytes() == (whole / "fold_1" / "model.safetensors").read_bytes()
    capsys.readouterr()
    assert command("mixmfl_export", "-i", whole, "-o", tmp_path / "n.safetensors") == 2
    printed = capsys.readouterr().err
    assert "is a run in folds, and a file holds one model" in printed
    assert f"name one of {whole / 'fold_0'}, {whole / 'fold_1'}, {whole / 'fold_all'}." in printed


def test_folds_are_exported_as_a_folder_that_predicts_as_the_run(
    whole: Path, tmp_path: Path, command: Command, capsys: Said
) -> None:
    out = tmp_path / "ensemble"
    assert command("mixmfl_export", "-i", whole, "-o", out) == 0
    assert "2 models, of which prediction takes the mean: " in capsys.readouterr().out
    files = model_files(out)
    assert [file.read_bytes() for file in files] == [f.read_bytes() for f in model_files(whole)]
    assert sorted(out.iterdir()) == [out / "cross_validation.json", out / "fold_0", out / "fold_1"]
    assert [path for fold in out.glob("fold_*") for path in fold.iterdir()] == files
    assert command("mixmfl_export", "-i", whole, "-o", out) == 2
    assert f"{out}: exists already; name a new folder" in capsys.readouterr().err


def test_what_is_no_model_is_not_exported_in_place_of_a_fold(
    whole: Path, tmp_path: Path, command: Command, capsys: Said
) -> None:
    run, out, letter = tmp_path / "run", tmp_path / "ensemble", tmp_path / "letter.txt"
    shutil.copytree(whole, run)
    letter.write_text("to my doctor")
    model = run / "fold_1" / "model.safetensors"
    model.unlink()
    model.symlink_to(letter)
    assert command("mixmfl_export", "-i", run, "-o", out) == 2
    assert f"{model}: is no model file" in capsys.readouterr().err
    assert not out.exists()


def test_folds_of_a_plain_unet_are_exported_for_nnunet(
    tmp_path: Path, home: Path, command: Command, capsys: Said
) -> None:
    plans = small_plans()
    network = dataclasses.replace(plans.network, form="stacked", compensation_levels=())
    work = write_work(tmp_path / "work", CASES, dataclasses.replace(plans, network=network))
    run, out = tmp_path / "run", tmp_path / "nnunet"
    assert train("-i", work, "-o", run, "--fold", 0, "all", *SHORT) == 0
    capsys.readouterr()
    assert command("mixmfl_export", "-i", run, "--nnunet", out) == 0
    printed = capsys.readouterr()
    assert f"2 models for nnU-Net (fold 0 of round 1, fold all of round 1): {out}" in printed.out
    assert "note: nnU-Net needs every channel (0000 flair, 0001 t1, 0002 t2)" in printed.err
    described = json.loads((out / "dataset.json").read_text())
    assert described["numTraining"] == 3
    checkpoint = out / "fold_all" / "checkpoint_final.pth"
    assert command("mixmfl_export", "-i", run / "fold_0", "--nnunet", out) == 2
    assert f"{out}: exists already; name a new folder" in capsys.readouterr().err
    started = ("-i", work, "-o", tmp_path / "started", "--init", checkpoint, *SHORT)
    assert command("mixmfl_train_federated", *started) == 0
    start = open_run(tmp_path / "started").start
    assert start
    assert all(part.taken == part.tensors > 0 for part in start.parts)


def test_a_network_that_nnunet_lacks_is_not_exported_for_it(
    whole: Path, tmp_path: Path, command: Command, capsys: Said
) -> None:
    assert command("mixmfl_export", "-i", whole, "--nnunet", tmp_path / "nnunet") == 2
    assert "its network is decoupled, with an encoder per modality" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_fold_that_is_missing_is_trained_as_the_others(
    whole: Path, work: Path, tmp_path: Path, home: Path, command: Command, capsys: Said
) -> None:
    out = shutil.copytree(whole, tmp_path / "run")
    expected = (out / "fold_1" / "model.safetensors").read_bytes()
    shutil.rmtree(out / "fold_1")
    folds = ("-i", work, "-o", out)
    assert command("mixmfl_train_federated", *folds, "--fold", 0, 1) == 2
    assert "holds a run in folds; nothing was written. Resume it by --resume" in (
        capsys.readouterr().err
    )
    for options, message in (
        (("--fold", 1, "--seed", 4), "fold_0 has begun with 3, and by the seed sites split"),
        (
            ("--fold", 1, "--init", out / "fold_0" / "model.safetensors"),
            "started from random weights",
        ),
        (("-c", "3d_fullres"), "its folds are of configuration 2d, not 3d_fullres"),
    ):
        assert command("mixmfl_train_federated", *folds, "--resume", *options) == 2
        assert message in capsys.readouterr().err
    assert command("mixmfl_train_federated", *folds, "--resume", "--fold", 0) == 0
    printed = capsys.readouterr().out
    assert "folds 1 are left" in printed
    assert f"{out}: is registered for mixmfl_predict when all of its folds are trained" in printed
    assert not (home / "model.json").exists()
    with pytest.raises(ModelError, match="not all of its folds"):
        model_files(out)
    assert command("mixmfl_train_federated", *folds, "--resume") == 0
    assert (out / "fold_1" / "model.safetensors").read_bytes() == expected
    assert (out / "cross_validation.csv").read_text() == (
        whole / "cross_validation.csv"
    ).read_text()
    printed = capsys.readouterr().out
    assert "fold_*/model.safetensors: each was written again with what all folds meas" in printed
    of_all = out / "fold_all" / "model.safetensors"
    assert f"mixmfl_predict uses {of_all}, if no other is named" in printed
    assert registered_model(home) == of_all


def test_folds_of_unequal_rounds_are_named(tmp_path: Path) -> None:
    found = CrossValidation(tmp_path, "2d", ("0", "1"), Measured(), {}, {"0": 1, "1": 2})
    assert "unequal numbers of rounds: fold 0 for 1, fold 1 for 2." in found.lines()[-1]


def test_the_record_says_how_long_each_fold_was_trained(whole: Path) -> None:
    assert read_folds(whole).lengths == {"0": 1, "1": 1, "all": 1}


def test_configurations_are_not_compared_where_no_case_is_held_back(
    work: Path, tmp_path: Path, command: Command, capsys: Said
) -> None:
    both = ("-i", work, "-o", tmp_path / "run", "-c", "2d", "3d_fullres", "--fold", "all")
    assert command("mixmfl_train_federated", *both) == 2
    assert "--fold all: holds back no case, and by these the better one" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_privacy_that_folds_spend_adds_up_and_their_mean_is_registered(
    work: Path, tmp_path: Path, home: Path, command: Command, capsys: Said
) -> None:
    pytest.importorskip("dp_accounting")
    out = tmp_path / "run"
    folds = ("-i", work, "-o", out, "--fold", 0, 1, *SHORT, "--dp-epsilon", 900)
    assert command("mixmfl_train_federated", *folds, "--sites", "north") == 0
    spent = [open_run(out / f"fold_{n}").history[0]["north"].epsilon for n in (0, 1)]
    assert spent[0] is not None
    assert spent[1] is not None
    assert spent[1] > spent[0]
    assert not (out / "fold_0" / "privacy").exists()
    assert f"mixmfl_predict uses {out}, the mean of 2 models, if no" in capsys.readouterr().out
    assert registered_model(home) == out


def folds_of(name: str, dice: Mapping[str, float], folder: Path) -> CrossValidation:
    largest = {label: ComponentSums(10, 10 * value) for label, value in dice.items()}
    return CrossValidation(folder, name, ("0", "1"), Measured(components=largest), {})


def test_the_configuration_with_the_higher_mean_dice_is_best(tmp_path: Path) -> None:
    flat = folds_of("2d", {"lesion": 0.8, "core": 0.3}, tmp_path)
    full = folds_of("3d_fullres", {"lesion": 0.6, "core": 0.6}, tmp_path)
    assert choose_configuration([flat, full], {}, tmp_path).best == "3d_fullres"
    record = json.loads((tmp_path / "configurations.json").read_text())
    assert record["dice"] == pytest.approx({"2d": 0.55, "3d_fullres": 0.6})
    assert configurations_of(tmp_path) == ["2d", "3d_fullres"]
    assert choose_configuration([flat, flat], {}, tmp_path).best == "2d"
    with pytest.raises(ModelError, match="no fold has validation cases"):
        choose_configuration([folds_of("2d", {}, tmp_path)], {}, tmp_path)
    with pytest.raises(ModelError, match="holds a run; nothing was written"):
        begin_configurations(tmp_path, ["2d", "3d_fullres"], resume=False)
    begin_configurations(tmp_path, ["2d", "3d_fullres"], resume=True)
    assert json.loads((tmp_path / "configurations.json").read_text())["best"] is None


def test_the_ensemble_is_best_where_its_dice_is_higher_on_the_same_cases(tmp_path: Path) -> None:
    flat = folds_of("2d", {"lesion": 0.8, "core": 0.3}, tmp_path)
    full = folds_of("3d_fullres", {"lesion": 0.6, "core": 0.6}, tmp_path)
    small = {"core": ComponentSums(10, 6.0, (6.0, 6.1, 6.2, 6.1)), "lesion": ComponentSums(10, 8.0)}
    alone = {"core": ComponentSums(10, 3.5), "lesion": ComponentSums(10, 8.0)}
    compared = {"2d": alone, "3d_fullres": alone, "ensemble": small}
    record = choose_configuration([flat, full], compared, tmp_path)
    assert record == read_configurations(tmp_path)
    assert record.dice == pytest.approx({"2d": 0.575, "3d_fullres": 0.575, "ensemble": 0.7})
    assert choice_lines(record) == [
        "cross-validated Dice, all on the same cases and voxels: "
        "2d 0.575, 3d_fullres 0.575, ensemble 0.700",
        "best configuration by cross-validated Dice: the ensemble of 2d and 3d_fullres",
        "  prediction removes small parts of: core (below 10 % of its largest)",
    ]
    # nothing of what the folds measured on voxels of their own counts beside it
    assert (
        choose_configuration([full, flat], {**compared, "ensemble": alone}, tmp_path).best == "2d"
    )
    none: Compared = {"2d": {}, "3d_fullres": {}, "ensemble": {}}
    record = choose_configuration([flat, full], none, tmp_path)
    assert (record.best, record.components) == ("3d_fullres", {})
    assert choice_lines(record)[0].endswith("3d_fullres 0.600; no site measured their ensemble")


def test_configurations_are_trained_alike_and_the_best_one_predicts(
    tmp_path: Path, command: Command, capsys: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans = both_configurations()
    planned = plans.configurations
    work, out = write_work(tmp_path / "work", {}, plans), tmp_path / "run"
    for configuration in planned:
        stored_site(work, "north", [("t1",)] * 3, plans, configuration)
    both = ("-i", work, "-o", out, "-c", "3d_fullres", "2d", "--fold", 0, *SHORT)
    assert command("mixmfl_train_federated", *both) == 0
    page = out / "cross_validation.html"
    assert f"its scores: {page}" in capsys.readouterr().out
    record = json.loads((out / "configurations.json").read_text())
    assert list(record["dice"]) == ["2d", "3d_fullres", "ensemble"]
    best = max(record["dice"], key=lambda name: record["dice"][name])
    assert record["best"] == best
    compared = json.loads((out / "3d_fullres" / "fold_0" / "comparison.json").read_text())
    assert compared["components"]["ensemble"] == record["components"]
    assert record["components"]["lesion"]["cases"] == 1
    cells = re.findall(r"<t[dh][^>]*>([^<]*)</t[dh]>", page.read_text())
    for name, dice in record["dice"].items():
        row = cells[cells.index(name) :][:6]  # lesion, core, cases, mean, chosen
        sums = compared["components"][name]
        assert row[1] == f"{sums['lesion']['dice']:.3f}"
        assert row[3:] == ["1", f"{dice:.3f}", "yes" if name == best else ""]

    models = {name: out / name / "fold_0" / "model.safetensors" for name in planned}
    for chosen, files in (
        ("2d", [models["2d"]]),
        ("3d_fullres", [models["3d_fullres"]]),
        ("ensemble", [*models.values()]),
    ):
        (out / "configurations.json").write_text(json.dumps({**record, "best": chosen}))
        assert model_files(out) == files
        copy = tmp_path / chosen
        assert command("mixmfl_export", "-i", out, "-o", copy) == 0
        assert [f.read_bytes() for f in model_files(copy)] == [f.read_bytes() for f in files]
        assert small_parts_of([copy]) == small_parts_of([out])
        assert (small_parts_of([out]) is None) == (chosen != "ensemble")

    before = models["3d_fullres"].read_bytes()
    shutil.rmtree(out / "3d_fullres")  # as if it had been stopped after the first one
    capsys.readouterr()
    assert command("mixmfl_train_federated", "-i", work, "-o", out, "--resume") == 0
    assert json.loads((out / "configurations.json").read_text()) == record
    printed = capsys.readouterr().out
    assert "cross-validated Dice, all on the same cases and voxels: 2d 0." in printed
    assert models["3d_fullres"].read_bytes() == before

    # the first configuration alone is trained on, and its model is another
    longer = ("-i", work, "-o", out / "2d", "--resume", "--rounds", 2)
    assert command("mixmfl_train_federated", *longer) == 0
    again = ("-i", work, "-o", out, "--resume")
    (out / "3d_fullres" / "fold_0" / "comparison.json").unlink()
    with monkeypatch.context() as unasked:
        unasked.setattr("mixmfl.federated.server.coordinator.comparison_tasks", lambda *_: {})
        capsys.readouterr()
        assert command("mixmfl_train_federated", *again) == 0
    assert "none is chosen yet, for no site has compared the models" in capsys.readouterr().out
    with pytest.raises(ModelError, match="no configuration was chosen yet"):
        model_files(out)
    assert command("mixmfl_train_federated", *again) == 0
    rounds = json.loads((out / "3d_fullres" / "fold_0" / "comparison.json").read_text())["rounds"]
    assert rounds["2d"] == choose_round(open_run(out / "2d" / "fold_0"), "best")

    trained = [pool_folds(out / name) for name in planned]
    write_choice(out, choose_configuration(trained, {}, out), trained, {})
    assert "No site measured the mean of both" in page.read_text()
    assert "ensemble" not in re.findall(r"<t[dh][^>]*>([^<]*)</t[dh]>", page.read_text())


def test_models_that_trained_on_every_case_are_named_where_the_ensemble_is_best(
    tmp_path: Path, home: Path, command: Command, capsys: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ensemble(*known: Any) -> ConfigurationsRecord:
        record = dataclasses.replace(choose_configuration(*known), best="ensemble")
        write_json(known[2] / "configurations.json", dataclasses.asdict(record))
        return record

    monkeypatch.setattr(cross_validation, "choose_configuration", ensemble)
    plans = both_configurations()
    work, out = write_work(tmp_path / "work", {}, plans), tmp_path / "run"
    for configuration in plans.configurations:
        stored_site(work, "north", [("t1",)] * 2, plans, configuration)
    both = ("-i", work, "-o", out, "-c", "3d_fullres", "2d", "--fold", 0, "all", *SHORT)
    assert command("mixmfl_train_federated", *both) == 0
    files = [out / name / "fold_all" / "model.safetensors" for name in plans.configurations]
    takes = "takes the mean of those that trained on every case"
    named = f"mixmfl_predict -m {files[0]} {files[1]} {takes}"
    printed = capsys.readouterr().out
    assert f"mixmfl_predict -m {out} takes the mean of 2 models\n{named}\n" in printed
    assert registered_model(home) == out
