"""A run that is resumed with other settings: what changes from which round on, and when it ends."""

import csv
import dataclasses
import json
import shutil
from collections.abc import Callable
from html import unescape
from pathlib import Path

import pytest
from small import small_plans
from small_federation import SETTINGS, SiteStore, write_work

from mixmfl.core.errors import ModelError
from mixmfl.core.files import locked
from mixmfl.federated.server.beginning import Beginning
from mixmfl.federated.server.changes import Change, raise_norms, rounds_flat, settings_of
from mixmfl.federated.server.checkpoint import load_state_of, record_changes, save_personal
from mixmfl.federated.server.measured import load_measured, load_measured_sites, save_measured
from mixmfl.federated.server.run import Run, choose_round, last_good_round
from mixmfl.federated.server.run_record import open_run, record_digest
from mixmfl.federated.server.subset_validation import merge_measured
from mixmfl.federated.simulation import Callbacks, simulate
from mixmfl.federated.state import Personal, Site, learning_rate_of

CHANGED = Beginning(resume=True, change=True)
PLANS = small_plans()
FROZEN = dataclasses.replace(SETTINGS, rounds=2, local_steps=1, learning_rate=1e-6)
LONGER = dataclasses.replace(FROZEN, rounds=4, local_steps=2, learning_rate=1e-2)


@pytest.fixture(scope="module")
def sites(store: SiteStore) -> list[Site]:
    return [
        store.site("north", [("t1", "t2"), ("t1",)], validation=1),
        store.site("south", [("flair",)]),
    ]


@pytest.fixture(scope="module")
def frozen(tmp_path_factory: pytest.TempPathFactory, sites: list[Site]) -> Run:
    """Train two rounds in which nothing is learnt, so that Dice is flat from the first on."""
    return simulate(PLANS, sites, FROZEN, "0", tmp_path_factory.mktemp("frozen") / "run")


@pytest.fixture
def out(frozen: Run, tmp_path: Path) -> Path:
    return shutil.copytree(frozen.folder, tmp_path / "run")


def test_a_round_has_the_settings_of_its_time() -> None:
    changes = [
        Change(2, "rounds", 4, 8),
        Change(2, "learning_rate", 0.5, 0.1),
        Change(5, "rounds", 8, 6),
        Change(5, "stop_when_flat", 0, 3),
    ]
    now = dataclasses.replace(SETTINGS, rounds=6, learning_rate=0.1)
    settings = [settings_of(number, now, changes) for number in range(6)]
    assert [each.rounds for each in settings] == [4, 4, 8, 8, 8, 6]
    assert [each.learning_rate for each in settings] == [0.5, 0.5, 0.1, 0.1, 0.1, 0.1]
    # the schedule of so many rounds, as if they had been meant from the start
    assert learning_rate_of(3, settings[3]) == pytest.approx(0.1 * (5 / 8) ** 0.9)


def test_usual_norms_rise_with_steps_times_learning_rate_and_never_fall() -> None:
    before = dataclasses.replace(SETTINGS, rounds=10, local_steps=2, learning_rate=0.1)
    norms = {"decoder": (1.0, 2.0)}

    def raised(**now: float) -> float:
        changes = [Change(9, name, getattr(before, name), value) for name, value in now.items()]
        settings = dataclasses.replace(before, **now)  # type: ignore[arg-type]
        return raise_norms(norms, 9, settings, changes)["decoder"][1]

    # the tenth of ten rounds has 0.1^0.9 of the rate, the ninth 0.2^0.9, the tenth of 100 0.91^0.9
    assert raised(rounds=100) == pytest.approx(2 * (0.91 / 0.2) ** 0.9)
    assert raised(local_steps=20) == pytest.approx(2 * 10 * (0.1 / 0.2) ** 0.9)
    assert raised(local_steps=1) == 2.0
    assert raise_norms(norms, 9, before, []) == norms
    assert raise_norms(norms, 9, before, [Change(3, "rounds", 4, 10)]) == norms


def test_flat_rounds_are_counted_from_the_best_and_anew_after_a_change() -> None:
    dice = {10: 0.5, 20: 0.7, 30: 0.6, 40: 0.7}
    assert rounds_flat(dice, 20, []) == 20
    assert rounds_flat(dice, 20, [Change(33, "rounds", 40, 50)]) == 7
    assert rounds_flat({10: float("nan")}, None, []) == 0


def test_a_run_goes_on_with_more_rounds_other_steps_and_another_rate(
    frozen: Run, out: Path, sites: list[Site], caplog: pytest.LogCaptureFixture
) -> None:
    save_personal(open_run(out), "north", Personal(dice=0.4, dice_before=0.3), {})
    run = simulate(PLANS, sites, LONGER, "0", out, beginning=CHANGED)
    assert (
        open_run(out).changes
        == run.changes
        == [
            Change(2, "rounds", 2, 4),
            Change(2, "local_steps", 1, 2),
            Change(2, "learning_rate", 1e-6, 1e-2),
        ]
    )
    # a rate of 10^4 times the one before moves weights as far: no site is left out for it
    assert "rejected" not in caplog.text
    assert [{site: r.loss for site, r in each.items()} for each in run.history[:2]] == [
        {site: r.loss for site, r in each.items()} for each in frozen.history
    ]
    assert not run.personal  # it was of the best of two rounds
    with (out / "progress.csv").open() as file:
        north = [row for row in csv.DictReader(file) if row["site"] == "north"]
    assert [float(row["learning_rate"]) for row in north] == pytest.approx(
        [1e-6, 1e-6 * 0.5**0.9, 1e-2 * 0.5**0.9, 1e-2 * 0.25**0.9], rel=1e-5
    )
    assert [row["local_steps"] for row in north] == ["1", "1", "2", "2"]
    again = simulate(PLANS, sites, LONGER, "0", out, beginning=CHANGED)
    assert again.changes == run.changes


def test_a_run_that_is_ended_between_two_validations_has_its_last_round_validated(
    sites: list[Site], tmp_path: Path
) -> None:
    def stop(run: Run) -> None:
        if len(run.history) == 2:
            raise KeyboardInterrupt

    rarely = small_plans(validate_every=3)
    with pytest.raises(KeyboardInterrupt):
        simulate(rarely, sites, LONGER, "0", tmp_path, callbacks=Callbacks(stop))
    assert not open_run(tmp_path).dice
    shorter = dataclasses.replace(LONGER, rounds=2)
    run = simulate(rarely, sites, shorter, "0", tmp_path, beginning=CHANGED)
    assert (run.best_round, len(run.history)) == (2, 2)
    stored = open_run(tmp_path)
    assert stored.dice == run.dice
    assert stored.history == run.history
    assert stored.history[-1]["north"].dice.keys() == {"lesion", "core"}
    assert f"{run.dice[2]:.4f}" in (tmp_path / "progress.csv").read_text()


def test_a_site_that_was_away_when_the_model_was_measured_is_asked_after_a_resume(
    store: SiteStore, tmp_path: Path
) -> None:
    cases = [("t1", "t2"), ("t1",)]
    sites = [store.site("north", cases, validation=1), store.site("south", cases, validation=1)]
    run = simulate(PLANS, sites, FROZEN, "0", tmp_path)
    number = choose_round(run, "best")
    whole = load_measured_sites(run, number)
    assert whole is not None
    assert whole.keys() == {"north", "south"}
    save_measured(run, number, whole["south"], {"south": whole["south"]})
    simulate(PLANS, sites, FROZEN, "0", tmp_path, beginning=Beginning(resume=True))
    assert load_measured_sites(run, number) == whole
    assert load_measured(run, number) == merge_measured([whole["north"], whole["south"]])


def test_a_run_is_not_made_shorter_than_it_is_nor_changed_unasked(
    out: Path, sites: list[Site]
) -> None:
    one = dataclasses.replace(FROZEN, rounds=1)
    with pytest.raises(ModelError, match=r"--rounds 1: the run has done 2 rounds already; name 2"):
        simulate(PLANS, sites, one, "0", out, beginning=CHANGED)
    seeded = dataclasses.replace(LONGER, seed=3)
    with pytest.raises(ModelError, match=r"started with other seed \(0, now 3\)\. Resume"):
        simulate(PLANS, sites, seeded, "0", out, beginning=CHANGED)
    with pytest.raises(ModelError, match=r"other learning_rate \(1e-06, now 0\.01\), local_steps"):
        simulate(PLANS, sites, LONGER, "0", out, beginning=Beginning(resume=True))


def test_a_flat_run_ends_and_goes_on_where_it_is_asked_to(
    tmp_path: Path, out: Path, sites: list[Site]
) -> None:
    longer = dataclasses.replace(FROZEN, rounds=5)
    run = simulate(PLANS, sites, longer, "0", out, beginning=CHANGED, stop_when_flat=1)
    assert (len(run.history), run.highest_round) == (3, 1)  # one flat round since it was asked for
    assert run.best_round == 3  # the last of equals is exported
    run = simulate(PLANS, sites, longer, "0", out, beginning=CHANGED, stop_when_flat=1)
    assert len(run.history) == 3
    run = simulate(PLANS, sites, longer, "0", out, beginning=CHANGED)
    assert len(run.history) == 5
    with pytest.raises(ModelError, match=r"--stop-when-flat: no site has validation cases"):
        simulate(PLANS, sites[1:], longer, "0", tmp_path / "other", stop_when_flat=1)


def test_a_damaged_state_forgets_what_was_measured_and_keeps_what_was_changed(
    out: Path, sites: list[Site]
) -> None:
    record_changes(open_run(out), [Change(2, "rounds", 9, 2)])
    assert (out / "expected.json").is_file()
    (out / "rounds" / "00002" / "server.safetensors").write_bytes(b"half")

    def end_before_measuring(run: Run) -> None:
        if len(run.history) == LONGER.rounds:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate(
            *(PLANS, sites, LONGER, "0", out),
            beginning=CHANGED,
            callbacks=Callbacks(end_before_measuring),
        )
    run = open_run(out)
    assert not (out / "expected.json").exists()
    assert {change.after for change in run.changes} == {1}
    assert load_state_of(run, 4).round == 4


def test_a_run_of_another_version_is_refused_with_what_to_do(out: Path) -> None:
    content = json.loads((out / "run.json").read_text())
    del content["changes"], content["sha256"]
    content["sha256"] = record_digest(content)
    (out / "run.json").write_text(json.dumps(content))
    with pytest.raises(
        ModelError, match=r"another version .*missing fields \['changes'\]\); resume with the ver"
    ):
        open_run(out)


def test_what_a_command_changes_is_printed_before_a_round_has_it(
    tmp_path: Path,
    command: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    work = write_work(tmp_path / "work", {"north": [("t1",)]}, PLANS)
    asked = ["-i", work, "-o", tmp_path / "run", "--fold", "all"]
    assert command("mixmfl_train_federated", *asked, "--rounds", 1, "--local-steps", 1) == 0

    def end(*_: object, **__: object) -> None:
        raise ModelError("no round is trained")

    monkeypatch.setattr("mixmfl.federated.simulation.train_rounds", end)
    assert command("mixmfl_train_federated", *asked, "--resume", "--rounds", 4) == 2
    assert "from round 2 on: rounds 1 -> 4\n" in capsys.readouterr().out
    monkeypatch.undo()
    # a change that no round has had yet is shown again
    assert command("mixmfl_train_federated", *asked, "--resume", "--local-steps", 2) == 0
    printed = capsys.readouterr().out
    assert (
        "from round 2 on: rounds 1 -> 4\nfrom round 2 on: local_steps 1 -> 2\nround 2/4" in printed
    )
    assert printed.count("from round") == 2


def test_the_command_resumes_as_before_but_for_what_it_is_told(
    tmp_path: Path, command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    work = write_work(tmp_path / "work", {"north": [("t1",), ("t1",), ("t2",)]}, PLANS)
    asked = ["-i", work, "-o", tmp_path / "run"]
    assert command("mixmfl_train_federated", *asked, "--resume") == 2
    assert "run holds no run; leave it out to start one" in capsys.readouterr().err
    begun = ["--rounds", 1, "--local-steps", 1, "--seed", 4, "--fold", 1, "--updates", "single"]
    assert command("mixmfl_train_federated", *asked, *begun) == 0
    assert "until now it used" not in capsys.readouterr().out
    more = ["--rounds", 4, "--learning-rate", 1e-12, "--stop-when-flat", 1]
    assert command("mixmfl_train_federated", *asked, "--resume", *more) == 0
    printed = capsys.readouterr().out
    assert (
        "from round 2 on: rounds 1 -> 4\nfrom round 2 on: learning_rate 0.01 -> 1e-12\n" in printed
    )
    assert "from round 2 on: stop_when_flat 0 -> 1\nround 2/4  loss north" in printed
    page = unescape((tmp_path / "run" / "run.html").read_text())
    changed = "rounds 1 -> 4, learning_rate 0.01 -> 1e-12, stop_when_flat 0 -> 1"
    assert f"from round 2 on: {changed}" in page
    assert "after 1 round without a higher Dice" in page
    run = open_run(tmp_path / "run")
    settings = run.settings
    assert (settings.seed, settings.local_steps, run.fold) == (4, 1, "1")
    assert not settings.half_updates
    if len(run.history) < 4:
        assert (
            f"ended after round {len(run.history)} of 4: validation Dice was not above" in printed
        )
    capsys.readouterr()
    assert command("mixmfl_train_federated", *asked, "--resume") == 0  # nothing is left to do
    assert open_run(tmp_path / "run").changes == run.changes
    assert command("mixmfl_train_federated", *asked, "--resume", "--stop-when-flat", -1) == 2
    assert "--stop-when-flat: must be 0 or more rounds" in capsys.readouterr().err
    with locked(tmp_path / "run" / ".lock", 0, ModelError("free")):
        assert command("mixmfl_train_federated", *asked, "--resume", "--rounds", 9) == 2
    assert "run: another command trains this run; nothing was changed." in capsys.readouterr().err
    assert open_run(tmp_path / "run").settings == run.settings


def test_the_last_round_near_the_highest_dice_is_exported() -> None:
    assert last_good_round({}) is None
    assert last_good_round({10: 0.6, 20: 0.625, 30: 0.58}) == 30  # 0.045 below
    assert last_good_round({10: 0.6, 20: 0.625, 30: 0.57}) == 20  # 0.055 below
    assert last_good_round({10: 0.62, 20: 0.6, 30: 0.1}) == 20
