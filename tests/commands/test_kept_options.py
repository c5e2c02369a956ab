"""A run that was killed and is resumed keeps every option of the commands before."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from mixmfl.entrypoints import train_federated
from small import small_plans
from small_federation import Cases, write_work

from mixmfl.federated.server.checkpoint import start_run
from mixmfl.federated.server.coordinator import train_rounds
from mixmfl.federated.server.kept_options import KEPT, keep_options, kept_options
from mixmfl.federated.server.run_record import open_run

Command = Callable[..., int]
Printed = pytest.CaptureFixture[str]
CASES: Mapping[str, Cases] = {
    "north": [("t1",), ("t1", "t2"), ("t1",)],
    "south": [("flair",), ("flair",)],
}
NEVER_PASSED_ON = {"input", "out", "resume", "fold", "configuration", "device", "workers", "kit"}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_work(tmp_path_factory.mktemp("work"), CASES, small_plans())


@pytest.fixture
def killed_in(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Return a function that has the process end where a fold's first round would begin."""

    def name(fold: str) -> None:
        def train(run: Any, *rest: Any, **options: Any) -> bool:
            if run.fold == fold:
                raise KeyboardInterrupt
            return train_rounds(run, *rest, **options)

        monkeypatch.setattr("mixmfl.federated.simulation.train_rounds", train)

    return name


def test_every_option_is_kept_or_says_where_and_on_what_a_run_is_trained() -> None:
    """An option that is new is one or the other."""
    parser = train_federated.build_parser()
    names = {action.dest for action in parser._actions} - {"help", "version", "verbose"}
    assert names == {*KEPT} | NEVER_PASSED_ON
    assert not {*KEPT} & NEVER_PASSED_ON


@pytest.mark.parametrize("fold", ["all", "0", "1"])
def test_a_run_killed_in_any_fold_goes_on_in_all_as_it_was_begun(
    fold: str,
    work: Path,
    tmp_path: Path,
    home: Path,
    command: Command,
    capsys: Printed,
    killed_in: Callable[[str], None],
) -> None:
    out = tmp_path / "run"
    begun = ("-i", work, "-o", out, "--fold", "all", 0, 1, "--sites", "north", "--rounds", 3)
    asked = ("--local-steps", 1, "--learning-rate", 0.02, "--seed", 3, "--stop-when-flat", 2)
    killed_in(fold)
    assert command("mixmfl_train_federated", *begun, *asked, "--personalize") == 130
    killed_in("none")
    assert command("mixmfl_train_federated", "-i", work, "-o", out, "--resume") == 0
    printed = capsys.readouterr().out
    assert "as asked before: --" in printed
    assert "fold_all --site SITE" not in printed  # it has none that is kept
    for each in ("all", "0", "1"):
        run = open_run(out / f"fold_{each}")
        assert (run.settings.rounds, run.settings.local_steps) == (3, 1)
        assert (run.settings.learning_rate, run.settings.seed) == (0.02, 3)
        assert run.stop_when_flat == (0 if each == "all" else 2)
        assert list(run.registrations) == ["north"]
        assert list(run.personal) == ([] if each == "all" else ["north"])


def test_a_change_that_was_killed_before_a_fold_had_it_holds_there_too(
    work: Path, tmp_path: Path, home: Path, command: Command, killed_in: Callable[[str], None]
) -> None:
    out = tmp_path / "run"
    of_run = ("-i", work, "-o", out)
    short = ("--rounds", 1, "--local-steps", 1)
    assert command("mixmfl_train_federated", *of_run, "--fold", 0, 1, *short) == 0
    longer = ("--resume", "--rounds", 2, "--stop-when-flat", 3, "--no-personalize")
    killed_in("0")
    assert command("mixmfl_train_federated", *of_run, *longer) == 130
    killed_in("none")
    assert command("mixmfl_train_federated", *of_run, "--resume") == 0
    runs = [open_run(out / f"fold_{fold}") for fold in (0, 1)]
    assert [(len(run.history), run.stop_when_flat) for run in runs] == [(2, 3), (2, 3)]
    # one fold alone is trained on, and a resume of all leaves its length to each
    alone = ("-i", work, "-o", out / "fold_1", "--resume", "--rounds", 3)
    assert command("mixmfl_train_federated", *alone) == 0
    assert command("mixmfl_train_federated", *of_run, "--resume") == 0
    assert [len(open_run(out / f"fold_{fold}").history) for fold in (0, 1)] == [2, 3]


def test_what_is_refused_is_not_kept(
    work: Path, tmp_path: Path, home: Path, command: Command, capsys: Printed
) -> None:
    out = tmp_path / "run"
    short = ("-i", work, "-o", out, "--rounds", 1, "--local-steps", 1)
    assert command("mixmfl_train_federated", *short) == 0
    before = (out / "options.json").read_bytes()
    for wrong in (("--rounds", 0), ("--seed", 9), ("--sites", "nowhere"), ()):
        resume = ("--resume",) if wrong else ()
        again = ("-i", work, "-o", out, *resume, *wrong)
        assert command("mixmfl_train_federated", *again) == 2, wrong
        assert (out / "options.json").read_bytes() == before, wrong
    assert command("mixmfl_train_federated", "-i", work, "-o", out, "--resume") == 0


def test_a_run_killed_before_it_began_is_resumed_as_it_was_asked_for(
    work: Path, tmp_path: Path, home: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def end(*_: object) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "run"
    monkeypatch.setattr("mixmfl.federated.server.beginning.start_run", end)
    short = ("-i", work, "-o", out, "--rounds", 1, "--local-steps", 1, "--stop-when-flat", 2)
    assert command("mixmfl_train_federated", *short) == 130
    assert not (out / "run.json").exists()
    monkeypatch.setattr("mixmfl.federated.server.beginning.start_run", start_run)
    assert command("mixmfl_train_federated", "-i", work, "-o", out, "--resume") == 0
    run = open_run(out)
    assert (len(run.history), run.stop_when_flat) == (1, 2)


def test_privacy_that_was_asked_for_holds_after_a_kill(
    work: Path, tmp_path: Path, home: Path, command: Command, killed_in: Callable[[str], None]
) -> None:
    pytest.importorskip("dp_accounting")
    out = tmp_path / "run"
    begun = ("-i", work, "-o", out, "--sites", "north", "--rounds", 1, "--local-steps", 1)
    killed_in("0")
    private = ("--dp-epsilon", 900, "--dp-noise", 1.5)
    assert command("mixmfl_train_federated", *begun, *private) == 130
    killed_in("none")
    assert command("mixmfl_train_federated", "-i", work, "-o", out, "--resume") == 0
    assert open_run(out).history[0]["north"].epsilon is not None


def test_folds_of_which_nothing_is_known_say_so(
    work: Path, tmp_path: Path, home: Path, command: Command, capsys: Printed
) -> None:
    out = tmp_path / "run"
    out.mkdir()
    record = {"configuration": "2d", "folds": ["0"], "format": 1}
    (out / "cross_validation.json").write_text(json.dumps(record))
    short = ("--rounds", 1, "--local-steps", 1)
    assert command("mixmfl_train_federated", "-i", work, "-o", out, "--resume", *short) == 0
    assert "what was asked of them first is not known" in capsys.readouterr().out


def test_kept_options_that_are_damaged_are_refused(
    work: Path, tmp_path: Path, home: Path, command: Command, capsys: Printed
) -> None:
    for options, message in (
        ({"rounds": ("--rounds", "many")}, "its options.json is damaged; remove it"),
        ({"rounds": ("--rounds", "1", "--kit", str(tmp_path))}, "its options.json is damaged"),
        ({"device": ("--device", "cpu")}, "device is no option of a run"),
    ):
        keep_options(tmp_path, options)
        assert command("mixmfl_train_federated", "-i", work, "-o", tmp_path, "--resume") == 2
        assert message in capsys.readouterr().err
    assert kept_options(tmp_path / "none") == {}
