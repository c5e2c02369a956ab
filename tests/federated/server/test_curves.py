"""The history of a run as curves and tables, and the bars of what comes after the last round."""

import csv
import dataclasses
import json
import logging
import math
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any
from unittest.mock import MagicMock

import pytest
from small import small_plans
from small_federation import SETTINGS, write_work

from mixmfl.evaluation.charts import Chart
from mixmfl.federated.server.curves import Curves, scalars, subset_scalars
from mixmfl.federated.server.measured import load_measured, load_measured_sites
from mixmfl.federated.server.run import Run
from mixmfl.federated.server.run_page import write_run_page
from mixmfl.federated.server.run_record import open_run
from mixmfl.federated.server.run_tables import EACH_CASE
from mixmfl.federated.server.tracking import usual_trackers
from mixmfl.federated.simulation import Callbacks, simulate, simulate_personalization
from mixmfl.federated.sites import open_sites

PLANS = small_plans(personal_rounds=2)
ONE = dataclasses.replace(SETTINGS, rounds=1, local_steps=1)
CASES: dict[str, list[tuple[str, ...]]] = {"north": [("t1", "t2")] * 3, "south": [("flair",)] * 2}
Calls = list[tuple[str, int, int]]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_work(tmp_path_factory.mktemp("work"), CASES, PLANS)


@pytest.fixture(scope="module")
def done(work: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Calls]:
    """Train and personalise, and note what is reported after the last round."""
    calls: Calls = []

    def note(*call: Any) -> None:
        calls.append(call)

    sites = open_sites(work, PLANS, "2d", "0", 0)
    out = tmp_path_factory.mktemp("done") / "run"
    run = simulate(PLANS, sites, ONE, "0", out, callbacks=Callbacks(progress=note))
    simulate_personalization(run, sites, note)
    return run, calls


def test_what_follows_the_last_round_is_reported_step_by_step(done: tuple[Run, Calls]) -> None:
    # one validation case of each site, and then two rounds of each
    assert done[1] == [
        *(("measuring Dice of every subset, cases", number, 2) for number in (1, 2)),
        *(("personalised models, rounds", number, 4) for number in (1, 2, 3, 4)),
    ]


def test_tables_have_the_federation_s_dice_and_every_subset(done: tuple[Run, Calls]) -> None:
    run, _ = done
    with (run.folder / "progress.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["federation_dice"] for row in rows} == {f"{run.dice[1]:.4f}"}
    assert {row["round_seconds"] for row in rows} == {f"{run.seconds[1]:.2f}"}
    assert {row["site"]: row["update_norm"] for row in rows} == {
        site: f"{each.update_norm:.5g}" for site, each in run.history[0].items()
    }
    for row in rows:
        parts = float(row["dice_loss"]), float(row["cross_entropy"])
        assert sum(parts) == pytest.approx(float(row["loss"]), abs=2e-5)
        assert -1 <= parts[0] < 0 < parts[1]
    assert {row["seconds_left"] for row in rows} == {"0"}  # the only round is the last
    assert {row["gpu_memory_mb"] for row in rows} == {""}  # on a CPU
    with (run.folder / "subsets.csv").open() as file:
        rows = list(csv.DictReader(file))
    found = {(row["site"], row["modalities"], row["label"]): row for row in rows}
    assert len(found) == len(rows)
    measured, by_site = load_measured(run, 1), load_measured_sites(run, 1)
    assert measured
    assert by_site
    assert by_site.keys() == run.registrations.keys()
    for site, part in {"": measured, **by_site}.items():
        for label, sums in part.components.items():
            row = found.pop((site, EACH_CASE, label))
            assert row["cases"] == str(sums.cases)
            assert float(row["mean_dice"]) == pytest.approx(sums.dice / sums.cases, abs=1e-4)
        for each in part.expected:
            for label, counts in each.counts.items():
                if not sum(counts):
                    continue
                row = found.pop((site, "+".join(each.modalities), label))
                assert row["cases"] == str(sum(counts))
                # of one case: the middle and the lower end of the range that its Dice is in
                own = counts.index(1)
                assert float(row["median_dice"]) == pytest.approx((own + 0.5) / 20)
                assert float(row["low_dice"]) == pytest.approx(own / 20)
    assert not found


def test_curves_show_what_was_measured_of_each_site(done: tuple[Run, Calls]) -> None:
    run, _ = done
    shown = scalars(run, 1)
    assert shown["learning_rate"] == ONE.learning_rate
    assert shown["dice/federation"] == run.dice[1]
    for site, at_site in run.history[0].items():
        assert shown[f"loss/{site}"] == at_site.loss
        parts = shown[f"loss_dice/{site}"], shown[f"loss_cross_entropy/{site}"]
        assert parts == (at_site.dice_loss, at_site.cross_entropy)
        assert shown[f"bytes_sent/{site}"] == at_site.sent_bytes
    assert not any(name.startswith("epsilon") for name in shown)
    longer = dataclasses.replace(run, settings=dataclasses.replace(run.settings, rounds=4))
    longer.seconds = {1: 10.0}
    assert (run.seconds_left, longer.seconds_left) == (0, 30)
    older = {
        site: dataclasses.replace(each, dice_loss=None) for site, each in run.history[0].items()
    }
    assert not any(
        n.startswith("loss_") for n in scalars(dataclasses.replace(run, history=[older]), 1)
    )
    longer.seconds = {}
    assert math.isnan(longer.seconds_left)
    left = {"north": dataclasses.replace(run.history[0]["north"], absent="is not connected")}
    away = dataclasses.replace(run, history=[left], dice={1: math.nan}, seconds={})
    assert scalars(away, 1).keys() == {"learning_rate", "local_steps"}


def test_rounds_have_the_dice_from_every_subset_where_it_is_asked_for(
    work: Path, tmp_path: Path
) -> None:
    plans = dataclasses.replace(
        PLANS, training=dataclasses.replace(PLANS.training, validate_every=2)
    )
    sites = open_sites(work, PLANS, "2d", "0", 0)
    calls: Calls = []
    run = simulate(
        *(plans, sites, dataclasses.replace(ONE, rounds=3), "0", tmp_path / "run"),
        every_subset=True,
        callbacks=Callbacks(progress=lambda *call: calls.append(call)),
    )
    assert run.subset_dice.keys() == {2, 3} == run.dice.keys()  # the rounds that are validated
    assert not calls  # nor is the exported model, that of the last, measured once more
    assert open_run(run.folder).subset_dice == run.subset_dice
    assert open_run(run.folder).history == run.history
    number = 3
    assert json.loads((run.folder / "expected.json").read_text())["round"] == number
    with (run.folder / "subsets.csv").open() as file:
        measured = {
            (row["site"], row["modalities"], row["label"]): row["median_dice"]
            for row in csv.DictReader(file)
            if row["median_dice"]
        }
    with (run.folder / "progress.csv").open() as file:
        rows = {(int(row["round"]), row["site"]): row for row in csv.DictReader(file)}
    shown = scalars(run, number)
    for (site, subset, label), median in measured.items():
        column = f"dice_{label}_from_{subset}"
        for name in [site] if site else run.registrations:
            row = rows[number, name]
            assert row[column if site else f"federation_{column}"] == median
        curve = shown[f"dice_of_{label}_from_{subset}/{site or 'all sites'}"]
        assert f"{curve:.3f}" == median
    assert len({subset for _, subset, _ in measured}) == 4  # t1, t2 and both, flair
    first, second = (rows[n, "north"]["dice_core_from_t1"] for n in (1, 2))
    assert (first, second != "") == ("", True)
    assert subset_scalars(run) == {}  # no number is written twice
    assert "Median validation Dice from each subset" in write_run_page(run).read_text()


class _Records:
    """Stands for TensorBoard's writer of records; a record has the fields of its event."""

    made: "list[_Records]" = []  # noqa: RUF012

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.events = file, list[dict[str, Any]]()
        self.made.append(self)

    def write(self, fields: dict[str, Any]) -> None:
        self.events.append(fields)

    def flush(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        self.file.close()


TENSORBOARD = (
    *("tensorboard", "tensorboard.compat", "tensorboard.compat.proto"),
    "tensorboard.compat.proto.summary_pb2",
    *("tensorboard.summary", "tensorboard.summary.writer"),
    "tensorboard.summary.writer.record_writer",
)


def install_tensorboard(monkeypatch: pytest.MonkeyPatch, records: type[_Records]) -> None:
    library = MagicMock()
    library.RecordWriter = records
    library.event_pb2.Event = lambda **fields: MagicMock(SerializeToString=lambda: fields)
    library.Summary = lambda value: value
    library.Summary.Value = lambda tag, simple_value: (tag, simple_value)
    for name in TENSORBOARD:
        monkeypatch.setitem(sys.modules, name, library)


def test_every_round_is_written_for_tensorboard_once(
    done: tuple[Run, Calls], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = dataclasses.replace(done[0], folder=tmp_path)
    install_tensorboard(monkeypatch, _Records)
    monkeypatch.setattr(_Records, "made", [])
    longer = dataclasses.replace(ONE, rounds=3)
    three = dataclasses.replace(run, history=[*run.history] * 3, settings=longer)
    with Curves(["tensorboard"], tmp_path) as curves:
        curves.write(three)
        curves.write(three)
    (records,) = _Records.made
    version, *rounds = records.events
    assert version["file_version"] == "brain.Event:2"
    assert {each["step"]: dict(each["summary"]) for each in rounds} == {
        number: scalars(three, number) for number in (1, 2, 3)
    }
    assert len(rounds) == 3
    assert records.file.closed
    (file,) = (tmp_path / "tensorboard").iterdir()
    assert re.fullmatch(r"events\.out\.tfevents\.\d+\.mixmfl", file.name)  # not the machine's name


def test_a_run_has_a_page_that_loads_nothing(done: tuple[Run, Calls], tmp_path: Path) -> None:
    run = done[0]
    assert (run.folder / "run.html").is_file()
    nasty = 'west <script>alert("1")</script>'
    renamed = dataclasses.replace(
        run,
        folder=tmp_path,
        settings=dataclasses.replace(ONE, rounds=3),
        registrations={nasty: run.registrations["north"]},
        history=[{nasty: run.history[0]["north"]}] * 3,
    )
    for name in ("expected.json", "run.json"):
        shutil.copy(run.folder / name, tmp_path)
    text = write_run_page(renamed).read_text()
    assert nasty not in text
    assert "west &lt;script&gt;" in text
    assert not re.search(r"(src|href)=.(?!#|data:)", text)
    assert text.count('<svg viewBox="0 0 640 260"') == 4  # loss, Dice, norms, learning rate
    colours = re.findall(r'stroke="(#\w+)"[^<]*/></svg>west &lt;script', text)
    assert len(colours) == 3  # loss, Dice, norms
    assert len(set(colours)) == 1
    assert "3 of 3; the model is of round 1" in text
    measured = load_measured(run, 1)
    assert measured
    assert text.count('aria-label="given"') == sum(len(e.modalities) for e in measured.expected)


def test_a_curve_has_a_gap_where_nothing_is_known_and_a_dot_where_a_point_is_alone() -> None:
    points = [(1, 0.0), (2, 1.0), (3, math.nan), (4, 0.5), (5, math.nan), (6, 1.0), (7, 0.0)]
    chart = Chart("t", {"a": points, "b": []}, {"best": 4}, 0, 1)
    a, b = chart.drawn()
    assert a.lines == ["56.0,224.0 151.3,12.0", "342.0,118.0", "532.7,12.0 628.0,224.0"]
    assert a.dots == [(342.0, 118.0)]
    assert (b.lines, b.dots) == ([], [])
    assert a.colour != b.colour
    assert chart.drawn_marks() == [(342.0, "best")]
    assert [text for _, text in chart.x_ticks()] == list("1234567")
    assert [text for _, text in chart.y_ticks()] == ["0", "0.2", "0.4", "0.6", "0.8", "1"]
    assert Chart("t", {"a": [(1, math.nan)]}).is_empty
    assert len(Chart("t", {"a": [(1, 3.0)]}).y_ticks()) > 1  # one number has room around it


def test_tensorboard_is_written_only_where_it_is_installed_and_can_be_imported(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    install_tensorboard(monkeypatch, _Records)
    for spec, names in ((None, ()), ("found", ("tensorboard",))):
        monkeypatch.setattr("importlib.util.find_spec", lambda name, spec=spec: spec)
        assert usual_trackers() == names
    monkeypatch.setitem(sys.modules, TENSORBOARD[-1], None)  # an import of None fails
    assert usual_trackers() == ()
    assert "tensorboard is installed, but cannot be imported" in caplog.text


def test_a_tracker_that_fails_does_not_end_the_run(
    done: tuple[Run, Calls],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Full(_Records):
        def flush(self) -> None:
            self.close()
            raise OSError("the disk\nis full")

    install_tensorboard(monkeypatch, Full)
    other = mlflow_stand_in()
    monkeypatch.setitem(sys.modules, "mlflow", other)
    run = dataclasses.replace(done[0], folder=tmp_path)
    with Curves(["tensorboard", "mlflow"], tmp_path) as curves:
        curves.write(run)
        curves.write(dataclasses.replace(run, history=[*run.history] * 2))
    (record,) = caplog.records  # once, and of one alone
    assert r"tensorboard: writes no more curves (OSError: the disk\nis full)" in record.message
    assert {call.args[3] for call in other.entities.Metric.call_args_list} == {1, 2}


def mlflow_stand_in() -> MagicMock:
    library = MagicMock()
    client = library.MlflowClient.return_value
    client.get_experiment_by_name.return_value = None
    client.search_runs.return_value = []

    def make(place: str) -> MagicMock:
        Path(place.removeprefix("sqlite:///")).touch()
        return client

    library.MlflowClient.side_effect = make
    return library


def test_mlflow_gets_every_round_and_a_database_in_the_run(
    done: tuple[Run, Calls], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = dataclasses.replace(done[0], folder=tmp_path)
    library = mlflow_stand_in()
    monkeypatch.setitem(sys.modules, "mlflow", library)
    monkeypatch.delenv("MLFLOW_DISABLE_TELEMETRY", raising=False)
    client = library.MlflowClient.return_value
    logger = logging.getLogger("mlflow")
    logger.setLevel(logging.INFO)  # as MLflow does when it is imported
    with Curves(["mlflow"], tmp_path) as curves:
        curves.write(run)
        curves.write(run)
    assert logger.level == logging.WARNING  # else how it makes its tables stands between rounds
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"  # else a server of its makers is asked
    makes, opens = library.MlflowClient.call_args_list
    assert opens.args == (f"sqlite:///{tmp_path / 'mlflow.db'}",)
    assert not Path(makes.args[0].removeprefix("sqlite:///")).exists()  # whole, or not there
    assert (tmp_path / "mlflow.db").is_file()
    client.log_batch.assert_called_once()  # a call for a round, as each waits for the disk
    made = [(*call.args[:2], call.args[3]) for call in library.entities.Metric.call_args_list]
    assert made == [(name, value, 1) for name, value in scalars(run, 1).items()]
    client.set_terminated.assert_called_once()


def test_weights_and_biases_get_every_round_offline(
    done: tuple[Run, Calls], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = dataclasses.replace(done[0], folder=tmp_path)
    library = MagicMock()
    monkeypatch.setitem(sys.modules, "wandb", library)
    monkeypatch.delenv("WANDB_ERROR_REPORTING", raising=False)
    with Curves(["wandb"], tmp_path) as curves:
        curves.write(run)
        curves.write(run)
    opened = library.init.call_args.kwargs
    assert (opened["mode"], opened["dir"]) == ("offline", str(tmp_path))
    assert os.environ["WANDB_ERROR_REPORTING"] == "false"
    settings = library.Settings.call_args.kwargs  # what is synchronised later names no path or host
    assert settings["host"] == "-"
    assert settings["x_disable_meta"] is settings["x_disable_machine_info"] is True
    assert settings["x_save_requirements"] is False
    library.init.return_value.log.assert_called_once_with(scalars(run, 1), step=1)
    library.init.return_value.finish.assert_called_once()


@pytest.fixture
def two_rounds(done: tuple[Run, Calls], tmp_path: Path) -> list[Run]:
    """Return a run after its first round, and after its second, with what was measured then."""
    history = [*done[0].history] * 2
    fold = dataclasses.replace(done[0], folder=tmp_path / "run" / "fold_0", history=history)
    fold.folder.mkdir(parents=True)
    shutil.copy(done[0].folder / "expected.json", fold.folder)
    return [dataclasses.replace(fold, history=history[:1]), fold]


def write_twice(tracker: str, two_rounds: list[Run]) -> None:
    """Write a round, and in a command that goes on both, though the first is written already."""
    for shown in two_rounds:
        with Curves([tracker], shown.folder.parent) as curves:
            curves.write(shown)
            if len(shown.history) == 2:
                curves.write_subsets(shown)


def everything(run: Run) -> dict[str, list[tuple[int, float]]]:
    """Return what a tracker should have of a run of two rounds: step and value by name."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for number in (1, 2):
        for name, value in scalars(run, number).items():
            curves.setdefault(name, []).append((number, value))
    return curves | {name: [(2, value)] for name, value in subset_scalars(run).items()}


@pytest.mark.filterwarnings("ignore")  # of its own libraries
def test_mlflow_reads_what_was_written_also_by_a_run_that_goes_on(two_rounds: list[Run]) -> None:
    mlflow = pytest.importorskip("mlflow", reason="pip install mlflow to test what it reads")
    write_twice("mlflow", two_rounds)
    run = two_rounds[1]
    place = run.folder.parent
    client = mlflow.MlflowClient(f"sqlite:///{place / 'mlflow.db'}")
    (experiment,) = (e for e in client.search_experiments() if e.name == "mixmfl")
    (found,) = client.search_runs([experiment.experiment_id])
    assert (found.info.run_name, found.info.status) == ("run/fold_0", "FINISHED")
    assert found.data.params["fold"] == run.fold
    assert {
        name: [(each.step, each.value) for each in client.get_metric_history(found.info.run_id, n)]
        for name in everything(run)
        if (n := name.replace("+", "_"))
    } == everything(run)
    # the next fold is a run of its own in the same database
    other = dataclasses.replace(two_rounds[0], folder=place / "fold_1")
    with Curves(["mlflow"], place) as curves:
        curves.write(other)
    names = {each.info.run_name for each in client.search_runs([experiment.experiment_id])}
    assert names == {"run/fold_0", "run/fold_1"}


def test_the_last_folder_of_weights_and_biases_has_every_round(two_rounds: list[Run]) -> None:
    # syncing a folder replaces what was synced before of its run
    wandb = pytest.importorskip("wandb", reason="pip install wandb to test what it writes")
    from wandb.proto.wandb_internal_pb2 import Record

    write_twice("wandb", two_rounds)
    wandb.teardown()  # its process may write after a run has been finished
    run = two_rounds[1]
    place = run.folder.parent
    (file,) = (place / "wandb" / "latest-run").glob("*.wandb")
    records = [Record.FromString(each) for each in read_log(file.read_bytes())]
    (begun,) = (each.run for each in records if each.HasField("run"))
    assert (begun.display_name, begun.host) == ("run/fold_0", "-")
    found: dict[str, list[tuple[int, float]]] = {}
    for each in records:
        values = {"/".join(i.nested_key): i.value_json for i in each.history.item}
        for name in values.keys() - {"_step", "_runtime", "_timestamp"}:
            found.setdefault(name, []).append((int(values["_step"]), json.loads(values[name])))
    assert found.keys() == everything(run).keys()
    for name, curve in everything(run).items():
        expected: list[Any] = [(step, pytest.approx(value)) for step, value in curve]
        assert found[name] == expected


def read_log(data: bytes) -> Iterator[bytes]:
    """Yield the records of a file of Weights & Biases, which has the form of LevelDB's logs."""
    at, part, block = 7, b"", 32768
    while at + 7 <= len(data):
        if block - at % block < 7:
            at += block - at % block
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        part += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or its last part
            yield part
            part = b""


def test_tensorboard_reads_what_was_written_also_after_a_kill(two_rounds: list[Run]) -> None:
    pytest.importorskip("tensorboard", reason="pip install 'mixmfl[curves]' to test what it reads")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = two_rounds[1]
    with Curves(["tensorboard"], run.folder.parent) as curves:
        curves.write(run)
    (file,) = (run.folder / "tensorboard").iterdir()
    file.write_bytes(file.read_bytes()[:-5])  # the second round is cut off
    write_twice("tensorboard", two_rounds)
    events = EventAccumulator(str(run.folder / "tensorboard")).Reload()
    for name, curve in everything(run).items():
        assert [(e.step, e.value) for e in events.Scalars(name)] == [
            (step, pytest.approx(value)) for step, value in curve
        ]


def test_a_run_that_was_killed_after_its_last_round_is_in_trackers_that_are_named_then(
    work: Path, tmp_path: Path, command: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ["-i", work, "-o", tmp_path / "run", "--sites", "north", "--rounds", 1]
    assert command("mixmfl_train_federated", *asked, "--local-steps", 1) == 0
    (tmp_path / "run" / "expected.json").unlink()  # it was measured after the round
    library = mlflow_stand_in()
    monkeypatch.setitem(sys.modules, "mlflow", library)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name == "mlflow" or None)
    again = ["mixmfl_train_federated", *asked, "--resume", "--track", "mlflow"]
    assert command(*again) == 0
    made = {call.args[0]: call.args[3] for call in library.entities.Metric.call_args_list}
    assert made["loss/north"] == made["dice_of_lesion_from_t1/all sites"] == 1
    library.entities.Metric.reset_mock()
    assert command(*again) == 0  # it has ended, and nothing is new
    library.entities.Metric.assert_not_called()


def test_a_tracker_that_is_not_installed_is_named_before_anything_is_trained(
    work: Path,
    tmp_path: Path,
    command: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "run"
    for spec, message in (
        (None, "--track wandb: is not installed; pip install 'mixmfl[wandb]'"),
        ("found", "wandb is installed, but cannot be imported (ModuleNotFoundError: "),
    ):
        monkeypatch.setattr("importlib.util.find_spec", lambda name, spec=spec: spec)
        monkeypatch.setitem(sys.modules, "wandb", None)
        assert command("mixmfl_train_federated", "-i", work, "-o", out, "--track", "wandb") == 2
        assert message in capsys.readouterr().err
    assert not out.exists()


def test_the_command_writes_events_that_tensorboard_reads(
    work: Path, tmp_path: Path, command: Callable[..., int]
) -> None:
    pytest.importorskip("tensorboard", reason="pip install 'mixmfl[curves]' to test what it reads")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    asked = ["-i", work, "-o", tmp_path / "run", "--local-steps", 1]
    assert command("mixmfl_train_federated", *asked, "--rounds", 1) == 0
    assert command("mixmfl_train_federated", *asked, "--rounds", 2, "--resume") == 0
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    run = open_run(tmp_path / "run")
    assert [e.step for e in events.Scalars("loss/north")] == [1, 2]
    for event, sites in zip(events.Scalars("loss/north"), run.history, strict=True):
        assert event.value == pytest.approx(sites["north"].loss)
