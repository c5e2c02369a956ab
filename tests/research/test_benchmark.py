"""The benchmark: methods differ in what defines them, share the rest, and resume."""

import csv
import dataclasses
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from small import small_plans, stored_site

from mixmfl.core.errors import DataError
from mixmfl.core.files import sha256
from mixmfl.core.worker_pool import Workers
from mixmfl.federated.server import checkpoint
from mixmfl.federated.server.coordinator import Variation
from mixmfl.federated.server.run_record import open_run
from mixmfl.federated.simulation import simulate
from mixmfl.federated.state import RunSettings
from mixmfl.inference.model_file import load_model
from mixmfl.networks.build import build_network
from mixmfl.networks.mdmnet import MDMNet
from mixmfl.networks.unet import StackedNet
from mixmfl.planning.plans import Plans, replace_settings
from mixmfl.research.benchmark import benchmark_folder, methods, results, summary
from mixmfl.research.benchmark import run as running
from mixmfl.research.benchmark.benchmark_folder import ALL, Benchmark, open_benchmark

Command = Callable[..., int]
NAMES = ("local", "fedavg", "mdm", "mdm+site", "central")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sites, one of which never has T2, with test cases that have all modalities."""
    folder = tmp_path_factory.mktemp("benchmark") / "work"
    plans = small_plans(local_steps=2)
    plans.save(folder / "plans.json")
    stored_site(folder, "north", [("flair", "t1")] * 5, plans)
    stored_site(folder, "south", [("t1", "t2")] * 5, plans)
    for site, tests in (("north", 2), ("south", 1)):
        stored_site(folder, f"{site}_tests", [("flair", "t1", "t2")] * tests, plans)
        (folder / "tests").mkdir(exist_ok=True)
        (folder / "sites" / f"{site}_tests").rename(folder / "tests" / site)
    return folder


@pytest.fixture(scope="module")
def done(work: Path, tmp_path_factory: pytest.TempPathFactory) -> Benchmark:
    opened = open_benchmark(work, tmp_path_factory.mktemp("out") / "out", "2d", "full", "cpu", 0)
    assert running.run_all(opened, NAMES, [0], Workers()) == []
    summary.summarise(opened, "mdm")
    return opened


def rows_of(done: Benchmark) -> list[dict[str, str]]:
    with (done.out / "cases.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_prediction_has_a_row_with_the_columns_asked_for(
    done: Benchmark,
) -> None:
    rows = rows_of(done)
    assert list(rows[0]) == [
        "method", "seed", "site", "case", "modalities", "region", "dice", "hd95",
        "estimated_dice", "lowest", "highest", "written_dice",
    ]  # fmt: skip
    assert {row["method"] for row in rows} == set(NAMES)
    subsets = {row["modalities"] for row in rows}
    assert subsets == {
        "flair", "t1", "t2", "flair+t1", "flair+t2", "t1+t2", "flair+t1+t2"
    }  # fmt: skip
    assert len(rows) == len(NAMES) * 3 * 7 * 2  # cases, subsets, labels


def test_a_local_model_finds_nothing_in_what_its_site_never_had(
    done: Benchmark,
) -> None:
    rows = [row for row in rows_of(done) if row["method"] == "local" and row["site"] == "north"]
    assert all(float(row["dice"]) == 0 for row in rows if row["modalities"] == "t2")
    with_more, without = (
        {(r["case"], r["region"]): r["dice"] for r in rows if r["modalities"] == subset}
        for subset in ("flair+t2", "flair")
    )
    assert with_more == without  # an untrained channel is not fed


def test_budgets_are_equal_and_pooled_data_take_the_steps_of_all_sites(
    done: Benchmark,
) -> None:
    def steps(method: str) -> int:
        runs = (done.folder(method, 0)).glob("*/run.json")
        records = [json.loads(run.read_text()) for run in runs]
        return sum(
            t["settings"]["rounds"] * t["settings"]["local_steps"] * len(t["sites"])
            for t in records
        )

    assert steps("local") == steps("fedavg") == steps("mdm") == steps("central") == 2 * 2 * 2


def test_tables_and_plots_are_there_and_name_every_method(done: Benchmark) -> None:
    table = (done.out / "table.md").read_text()
    for name in NAMES:
        assert f"- `{name}`: " in table
        assert f"\n| {name} | " in table
    assert "## Difference to mdm" in table
    for name in ("subsets.png", "sites.png"):
        assert (done.out / name).read_bytes().startswith(b"\x89PNG")


def test_what_is_done_is_not_done_again(done: Benchmark) -> None:
    scores = done.folder("mdm", 0) / "scores.csv"
    before = scores.stat().st_mtime_ns
    assert running.run_all(done, NAMES, [0], Workers()) == []
    assert scores.stat().st_mtime_ns == before


def test_a_method_that_is_described_otherwise_now_is_not_done(
    done: Benchmark, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert done.is_done("fedavg", 0)
    changed = dataclasses.replace(methods.METHODS["fedavg"], training={"modality_dropping": 0.5})
    monkeypatch.setitem(methods.METHODS, "fedavg", changed)
    assert not done.is_done("fedavg", 0)
    assert ("fedavg", 0) not in done.done()


def test_tables_hold_all_that_is_done_whatever_was_asked_last(
    done: Benchmark, tmp_path: Path
) -> None:
    opened = dataclasses.replace(done, out=tmp_path)
    shutil.copy(done.out / "benchmark.json", tmp_path)
    for name in ("local", "fedavg"):
        shutil.copytree(done.folder(name, 0), opened.folder(name, 0))
        summary.summarise(opened, "mdm")
    assert {row["method"] for row in rows_of(opened)} == {"local", "fedavg"}
    assert "## Difference to local" in (opened.out / "table.md").read_text()


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write the example of the docs into the current folder, and forget it after the test."""
    text = (Path(__file__).parents[2] / "docs" / "benchmark.md").read_text(encoding="utf-8")
    code = text.partition("## A method of your own")[2].partition("```python\n")[2]
    file = tmp_path / "equal_voices.py"
    file.write_text(code.partition("```")[0])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(methods, "METHODS", dict(methods.METHODS))
    monkeypatch.setattr(running, "METHODS", methods.METHODS)
    monkeypatch.setattr(benchmark_folder, "METHODS", methods.METHODS)
    monkeypatch.setattr(methods, "OUTSIDE", {})
    monkeypatch.setattr(running, "OUTSIDE", methods.OUTSIDE)
    monkeypatch.setattr(results, "OUTSIDE", methods.OUTSIDE)
    monkeypatch.delitem(sys.modules, "equal_voices", raising=False)
    return file


def test_a_method_of_somebody_else_is_trained_scored_and_told_with_its_code(
    done: Benchmark, outside: Path, tmp_path: Path
) -> None:
    # both sites have as many cases: north doubles, to tell the rule from the planned one
    assert "fromkeys(weights, 1)" in outside.read_text()
    doubled = outside.read_text().replace("(weights, 1)", '(weights, 1 + (site == "north"))')
    outside.write_text(doubled)
    assert methods.choose(["mdm", "equal_voices:EqualVoices"]) == ("mdm", "EqualVoices")
    opened = dataclasses.replace(done, out=tmp_path / "out")
    opened.out.mkdir()
    shutil.copy(done.out / "benchmark.json", opened.out)
    shutil.copytree(done.folder("mdm", 0), opened.folder("mdm", 0))
    assert running.run_all(opened, ["mdm", "EqualVoices"], [0], Workers()) == []
    states = [
        checkpoint.load_state_of(open_run(opened.folder(name, 0) / "all"), 1).weights
        for name in ("mdm", "EqualVoices")
    ]
    assert any(not torch.equal(states[0][name], states[1][name]) for name in states[0])

    summary.summarise(opened, "mdm")
    assert "- `EqualVoices`: every site counts the same" in (opened.out / "table.md").read_text()
    record = json.loads((opened.out / "results.json").read_text())
    assert record["methods"]["EqualVoices"]["code"] == outside.read_text()
    assert record["methods"]["EqualVoices"]["rule"] == "equally"
    assert "code" not in record["methods"]["mdm"]
    assert record["rerun"][0][5:7] == ["--plans", "PLANS"]  # other presets make other plans
    assert record["rerun"][1][8:12] == ["mdm,equal_voices:EqualVoices", "--seeds", "0", "--size"]
    assert record["benchmark"]["tests"] == {"north": 2, "south": 1}
    assert Plans.from_json(record["benchmark"]["plans"], "record") == opened.plans
    (score,) = (
        each
        for each in record["scores"]
        if (each["method"], each["site"], each["modalities"], each["region"])
        == ("EqualVoices", "north", ["t1"], "lesion")
    )
    rows = [
        row
        for row in rows_of(opened)
        if (row["method"], row["site"], row["modalities"], row["region"])
        == ("EqualVoices", "north", "t1", "lesion")
    ]
    assert score["cases"] == len(rows) == 2
    assert score["dice"] == pytest.approx(np.mean([float(row["dice"]) for row in rows]))

    assert opened.is_done("EqualVoices", 0)
    outside.write_text(outside.read_text() + "# changed\n")
    assert not opened.is_done("EqualVoices", 0)


def test_a_method_starts_from_the_weights_of_its_seed_and_is_trained_again_from_others(
    done: Benchmark, outside: Path, tmp_path: Path
) -> None:
    opened = dataclasses.replace(done, out=tmp_path / "out", rounds=1)
    shutil.copytree(done.folder("mdm", 0), opened.folder("mdm", 0))
    shutil.copy(done.out / "benchmark.json", opened.out)
    started = methods.Method("starts from a model", init="model{seed}.safetensors")
    methods.METHODS["started"] = started
    folder = opened.folder("started", 0) / "all"
    weights = tmp_path / "model0.safetensors"
    for method in ("mdm", "central"):
        shutil.copy(done.folder(method, 0) / "all" / "model.safetensors", weights)
        assert not opened.is_done("started", 0)
        assert running.run_all(opened, ["started"], [0], Workers()) == []
        assert opened.is_done("started", 0)
        start = open_run(folder).start
        assert start is not None
        assert start.sha256 == sha256(weights)
    summary.summarise(opened, "mdm")
    assert "\n| seed 0: started | " in (opened.out / "table.md").read_text()
    record = json.loads((opened.out / "results.json").read_text())
    assert record["methods"]["started"]["init_sha256"] == {"0": sha256(weights)}
    (cost,) = (each for each in record["costs"] if each["method"] == "started")
    assert cost["validation_dice"] == {"all": {"1": open_run(folder).dice[1]}}

    weights.unlink()
    assert running.run_all(opened, ["started"], [0], Workers()) == [
        "started, seed 0: model0.safetensors: there is no such model file or run"
    ]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "nowhere_here:Mine",
            r"cannot be loaded \(ModuleNotFoundError: .*needed is nowhere_here.py",
        ),
        ("equal_voices:Missing", r"cannot be loaded \(AttributeError"),
        ("equal_voices:equally", "is a function; an instance or a class of"),
        ("colorsys:EqualVoices", r"cannot be loaded \(AttributeError: .*'colorsys'"),
        ("equal_voices:mdm", "there is another method mdm; rename it"),
    ],
)
def test_what_is_no_method_is_refused_in_words(outside: Path, source: str, message: str) -> None:
    outside.write_text(f"{outside.read_text()}\n\nmdm = EqualVoices()\n")
    outside.with_name("colorsys.py").write_text(outside.read_text())  # Python's own goes first
    before = list(sys.path)
    with pytest.raises(DataError, match=message):
        methods.choose([source])
    assert sys.path == before  # nor does anything later come from the folder


def test_an_interrupted_method_resumes_to_the_same_scores(
    done: Benchmark, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open_benchmark(work, tmp_path / "out", "2d", "full", "cpu", 0)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(running, "score_models", killed)
        with pytest.raises(KeyboardInterrupt):
            running.run_one(opened, "mdm", 0, False)
    assert not opened.is_done("mdm", 0)
    running.run_one(opened, "mdm", 0, False)
    one, other = (b.folder("mdm", 0) / "scores.csv" for b in (done, opened))
    assert one.read_bytes() == other.read_bytes()


def test_cases_that_changed_make_it_another_benchmark(work: Path, tmp_path: Path) -> None:
    ours = tmp_path / "work"
    shutil.copytree(work, ours)
    open_benchmark(ours, tmp_path / "out", "2d", "full", "cpu", 0)
    file = next((ours / "tests" / "north" / "2d").glob("*.json"))
    record = json.loads(file.read_text())
    file.write_text(json.dumps({**record, "content": "a corrected label"}))
    with pytest.raises(DataError, match="a benchmark with other cases"):
        open_benchmark(ours, tmp_path / "out", "2d", "full", "cpu", 0)


@pytest.mark.parametrize("name", ["memory-zero", "memory-random-values"])
def test_an_ablation_of_the_memory_reaches_the_model_and_changes_nothing_else_in_it(
    tmp_path: Path, name: str
) -> None:
    plans = replace_settings(small_plans(local_steps=2), {"compensation_levels": [-1]}, {})
    sites = [
        stored_site(tmp_path, "north", [("flair", "t1")] * 2, plans),
        stored_site(tmp_path, "south", [("t1", "t2")] * 2, plans),
    ]
    settings = RunSettings("2d", 0, rounds=1, local_steps=2, learning_rate=0.01)
    models = []
    for folder, edit in (("true", None), (name, methods.METHODS[name].edit_memory)):
        run = simulate(plans, sites, settings, "all", tmp_path / folder, variation=Variation(edit))
        models.append(load_model(run.folder / "model.safetensors"))
    true, edited = models
    assert true.memory.keys() == edited.memory.keys() != set()
    for place, prototypes in true.memory.items():
        rows, wrong = prototypes.values, edited.memory[place].values
        assert not torch.equal(rows, wrong)
        if name == "memory-zero":
            assert not wrong.any()
        else:
            assert torch.allclose(rows.norm(dim=1), wrong.norm(dim=1), atol=1e-5)


def test_a_method_is_scored_with_the_learning_rate_that_its_validation_cases_favour(
    work: Path, tmp_path: Path
) -> None:
    rates = (0.01, 1e-9)  # with the second it stays as it was drawn
    opened = open_benchmark(work, tmp_path / "out", "2d", "full", "cpu", 0, rates)
    assert running.run_all(opened, ["fedavg"], [0], Workers()) == []
    folder = opened.folder("fedavg", 0)
    dice = {}
    for rate in rates:
        run = open_run(folder / f"all-rate-{rate:g}")
        assert run.settings.learning_rate == rate
        assert run.best_round
        dice[rate] = run.dice[run.best_round]
    assert dice[0.01] != dice[1e-9]  # else nothing is chosen
    chosen = max(dice, key=dice.__getitem__)
    assert json.loads((folder / "cost.json").read_text())["learning_rates"] == {"all": chosen}

    alone = open_benchmark(work, tmp_path / "alone", "2d", "full", "cpu", 0, (chosen,))
    assert running.run_all(alone, ["fedavg"], [0], Workers()) == []
    one, other = (f / "scores.csv" for f in (folder, alone.folder("fedavg", 0)))
    assert one.read_bytes() == other.read_bytes()
    with pytest.raises(DataError, match="a benchmark with other learning_rates"):
        open_benchmark(work, opened.out, "2d", "full", "cpu", 0)


def test_a_folder_of_another_budget_is_refused(done: Benchmark, work: Path) -> None:
    with pytest.raises(DataError, match="other rounds, local_steps"):
        open_benchmark(work, done.out, "2d", "quick", "cpu", 0)


def test_a_work_folder_without_test_cases_is_refused(tmp_path: Path) -> None:
    plans = small_plans()
    plans.save(tmp_path / "plans.json")
    stored_site(tmp_path, "north", [("t1",)] * 2, plans)
    with pytest.raises(DataError, match="holds no test cases for 2d"):
        open_benchmark(tmp_path, tmp_path / "out", "2d", "full", "cpu", 0)
    assert not (tmp_path / "out").exists()


def test_one_failed_training_does_not_stop_the_others(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open_benchmark(work, tmp_path / "out", "2d", "full", "cpu", 0)

    def only_mdm(asked: Benchmark, name: str, seed: int, personal: bool, source: str) -> None:
        if name != "mdm":
            raise DataError("no such luck")

    monkeypatch.setattr(running, "run_one", only_mdm)
    assert running.run_all(opened, ["local", "mdm"], [0], Workers()) == [
        "local, seed 0: no such luck"
    ]


def test_a_personalised_model_is_scored_only_where_its_site_keeps_it(
    done: Benchmark,
) -> None:
    record = json.loads((done.folder("mdm", 0) / ALL / "run.json").read_text())
    scores = {
        name: {
            (r["site"], r["case"], r["modalities"], r["region"]): r["dice"]
            for r in rows_of(done)
            if r["method"] == name
        }
        for name in ("mdm", "mdm+site")
    }
    assert record["personal"]
    for site, (dice, before) in record["personal"].items():
        same = all(
            value == scores["mdm"][key]
            for key, value in scores["mdm+site"].items()
            if key[0] == site
        )
        copy = done.folder("mdm+site", 0) / f"{site}.safetensors"
        assert copy.is_file() == (dice > before)
        assert same or dice > before


@pytest.mark.parametrize("name", methods.METHODS)
def test_every_method_gives_plans_that_build_a_network_which_runs(name: str) -> None:
    plans = methods.find_method(name).apply(small_plans())
    network = build_network(plans, "2d", 0).eval()
    assert isinstance(network, StackedNet if plans.network.form == "stacked" else MDMNet)
    present = torch.tensor([[True, False, True]])
    logits = network(torch.zeros(1, 3, 16, 16), present, {})
    assert logits.shape == (1, 3, 16, 16)


def test_a_method_replaces_only_what_it_names() -> None:
    plans = small_plans()
    for name in methods.METHODS:
        method = methods.find_method(name)
        changed = method.apply(plans)
        for part, changes in (("network", method.network), ("training", method.training)):
            before, after = (dataclasses.asdict(getattr(p, part)) for p in (plans, changed))
            assert {key for key in before if before[key] != after[key]} <= set(changes)
        assert changed.nnunet == plans.nnunet


def test_a_stacked_network_sees_zeros_where_a_modality_is_missing() -> None:
    plans = methods.find_method("fedavg").apply(small_plans())
    network = build_network(plans, "2d", 0).eval()
    images = torch.randn(1, 3, 16, 16)
    present = torch.tensor([[True, False, True]])
    silent = images.clone()
    silent[:, 1] = 0
    spoiled = images.clone()
    spoiled[:, 1] = np.nan
    expected = network(silent, torch.ones_like(present), {})
    assert torch.equal(network(spoiled, present, {}), expected)
    assert not torch.equal(network(images, torch.ones_like(present), {}), expected)


def test_groups_and_slips_in_names_of_methods() -> None:
    assert methods.choose(["baselines", "mdm", "mdm+site"]) == (*methods.BASELINES, "mdm+site")
    for slip in ("mdn", "local+site", "central+site", "+site"):
        with pytest.raises(DataError):
            methods.choose([slip])


def test_the_command_lists_methods_and_refuses_what_it_cannot_do(
    work: Path, tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as ended:
        command("mixmfl_benchmark", "--list")
    assert ended.value.code == 0
    assert "central" in capsys.readouterr().out
    for bad in (["--methods", "best"], ["--seeds", "a"], ["--seeds", "-1"], ["-n", "0"]):
        assert command("mixmfl_benchmark", "-i", work, "-o", out, *bad) == 2
    assert not out.exists()


def test_the_command_resumes_a_folder_and_names_what_it_wrote(
    done: Benchmark,
    work: Path,
    command: Command,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = rows_of(done)
    asked = ("-i", work, "-o", done.out, "--size", "full", "--seeds", "0", "--device", "cpu")
    assert command("mixmfl_benchmark", *asked, "-n", 1, "--methods", ",".join(NAMES)) == 0
    printed = capsys.readouterr().out.splitlines()
    assert {"table.md", "cases.csv", "subsets.png", "sites.png"} <= {
        Path(line).name for line in printed
    }
    assert all(Path(line).is_file() for line in printed)
    assert rows_of(done) == before  # nothing was trained again


def test_the_command_reports_which_trainings_failed_and_ends_with_one(
    done: Benchmark,
    work: Path,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(asked: Benchmark, name: str, seed: int, personal: bool, source: str) -> None:
        if seed == 1:
            raise DataError("no such luck")

    monkeypatch.setattr(running, "run_one", fail)
    asked = ("-i", work, "-o", done.out, "--size", "full", "--seeds", "1,0", "--device", "cpu")
    assert command("mixmfl_benchmark", *asked, "-n", 1, "--methods", "mdm") == 1
    printed = capsys.readouterr()
    assert "1 training failed:\n  mdm, seed 1: no such luck" in printed.err
    assert "table.md" in printed.out  # of what is done


def test_a_plan_model_of_a_benchmark_can_be_loaded(done: Benchmark) -> None:
    model = load_model(done.folder("fedavg", 0) / ALL / "model.safetensors")
    assert isinstance(model.network, StackedNet)
    assert not model.memory
