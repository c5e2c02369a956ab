"""The embedded run: rounds, resuming, the run's folder, and the model that comes of it."""

import csv
import dataclasses
import json
import pickle
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from small import small_plans
from small_federation import SETTINGS as TWO_ROUNDS
from small_federation import SiteStore, equal

from mixmfl.core.errors import ModelError
from mixmfl.core.tensor_store import Stored, Tensors
from mixmfl.federated.server import checkpoint, coordinator, run_record
from mixmfl.federated.server.beginning import Beginning
from mixmfl.federated.server.checkpoint import kept_rounds
from mixmfl.federated.server.export import export_model
from mixmfl.federated.server.progress_plot import draw_progress
from mixmfl.federated.server.run import Run, choose_round
from mixmfl.federated.server.run_record import open_run
from mixmfl.federated.simulation import Callbacks, simulate
from mixmfl.federated.sites import split_fold
from mixmfl.federated.state import SPLIT, Site
from mixmfl.inference.model_file import load_model
from mixmfl.networks.prototypes import State
from mixmfl.planning.plans import Plans

RESUMED = Beginning(resume=True)
SETTINGS = dataclasses.replace(TWO_ROUNDS, rounds=3)


@pytest.fixture(scope="module")
def plans() -> Plans:
    return small_plans(keep_every=2)


@pytest.fixture(scope="module")
def sites(store: SiteStore) -> list[Site]:
    return [
        store.site("north", [("t1", "t2"), ("t1",)], validation=1),
        store.site("south", [("flair",), ("flair", "t1")], validation=1),
    ]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, plans: Plans, sites: list[Site]) -> Run:
    """Train once for all tests that compare with a whole run, or change a copy of its folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coordinator, "draw_progress", draw_progress)
        return simulate(plans, sites, SETTINGS, "0", tmp_path_factory.mktemp("whole") / "run")


@pytest.fixture
def out(whole: Run, tmp_path: Path) -> Path:
    """Return the folder of a whole run, which a test may change."""
    return shutil.copytree(whole.folder, tmp_path / "run")


def weights(run: Run) -> State:
    return dict(load_model(run.folder / "model.safetensors").network.named_parameters())


def test_the_same_seed_gives_equal_weights_and_another_seed_does_not(
    tmp_path: Path, plans: Plans, sites: list[Site]
) -> None:
    one_round = dataclasses.replace(TWO_ROUNDS, rounds=1)
    first, again, other = (
        simulate(plans, sites, dataclasses.replace(one_round, seed=seed), "0", tmp_path / name)
        for name, seed in (("first", 0), ("again", 0), ("other", 1))
    )
    assert equal(weights(first), weights(again))
    one, same = ((r.folder / "model.safetensors").read_bytes() for r in (first, again))
    assert one == same
    assert not equal(weights(first), weights(other))


def test_the_order_in_which_sites_are_given_changes_nothing(
    tmp_path: Path, plans: Plans, sites: list[Site], store: SiteStore
) -> None:
    east = store.site("east", [("t2",), ("t1", "t2"), ("t1",)], validation=1)
    one = simulate(plans, [*sites, east], TWO_ROUNDS, "0", tmp_path / "a")
    other = simulate(plans, [east, *reversed(sites)], TWO_ROUNDS, "0", tmp_path / "b")
    assert one.best_round == other.best_round
    for mine, turned in zip(one.history, other.history, strict=True):
        assert {site: each.loss for site, each in mine.items()} == {
            site: each.loss for site, each in turned.items()
        }
    models = [(r.folder / "model.safetensors").read_bytes() for r in (one, other)]
    assert models[0] == models[1]


class _KilledError(Exception):
    """Stands for the process being killed."""


def test_a_run_killed_between_any_two_rounds_resumes_to_equal_weights(
    tmp_path: Path, plans: Plans, sites: list[Site], whole: Run
) -> None:

    def kill(run: Run) -> None:
        raise _KilledError

    out = tmp_path / "cut"
    with pytest.raises(_KilledError):
        simulate(plans, sites, SETTINGS, "0", out, callbacks=Callbacks(kill))
    with pytest.raises(_KilledError):
        simulate(plans, sites, SETTINGS, "0", out, beginning=RESUMED, callbacks=Callbacks(kill))
    resumed = simulate(plans, sites, SETTINGS, "0", out, beginning=RESUMED)
    assert len(resumed.history) == 3
    assert equal(weights(whole), weights(resumed))
    assert [r["north"].loss for r in resumed.history] == [r["north"].loss for r in whole.history]


def test_optimizer_states_wait_on_disk(
    tmp_path: Path, plans: Plans, sites: list[Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Mapping[str, Tensors]] = []
    save = checkpoint.save_round

    def watched(run: Run, state: Any, optimizers: Mapping[str, Tensors], *rest: Any) -> None:
        seen.append(dict(optimizers))
        save(run, state, optimizers, *rest)

    monkeypatch.setattr(coordinator, "save_round", watched)
    one_round = dataclasses.replace(TWO_ROUNDS, rounds=1)
    simulate(plans, sites, one_round, "0", tmp_path / "run")
    simulate(
        plans,
        sites,
        TWO_ROUNDS,
        "0",
        tmp_path / "run",
        beginning=Beginning(resume=True, change=True),
    )
    assert len(seen) == TWO_ROUNDS.rounds
    for optimizers in seen:
        assert sorted(optimizers) == ["north", "south"]
        assert all(isinstance(each, Stored) and len(each) > 0 for each in optimizers.values())


def test_a_round_cut_off_while_it_is_saved_is_done_again(
    tmp_path: Path, plans: Plans, sites: list[Site], whole: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "cut"
    written: list[int] = []
    real = checkpoint.save_round

    def cut_short(run: Run, state: object, *rest: object) -> None:
        written.append(1)
        if len(written) == 2:
            # states are on disk, the record that names them is not
            folder = run.folder / "rounds" / "00002"
            folder.mkdir()
            (folder / "server.safetensors").write_bytes(b"half")
            raise _KilledError
        real(run, state, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(coordinator, "save_round", cut_short)
    with pytest.raises(_KilledError):
        simulate(plans, sites, SETTINGS, "0", out)
    monkeypatch.setattr(coordinator, "save_round", real)
    assert equal(
        weights(whole), weights(simulate(plans, sites, SETTINGS, "0", out, beginning=RESUMED))
    )


def test_a_folder_that_holds_a_run_or_anything_else_is_not_written_to(
    tmp_path: Path, plans: Plans, sites: list[Site], out: Path
) -> None:
    with pytest.raises(ModelError, match=r"holds a run; nothing was written.*--resume"):
        simulate(plans, sites, SETTINGS, "0", out)
    other = tmp_path / "mine"
    other.mkdir()
    (other / "thesis.txt").write_text("dear")
    with pytest.raises(ModelError, match="holds files that are no run"):
        simulate(plans, sites, SETTINGS, "0", other)
    assert [f.name for f in other.iterdir()] == ["thesis.txt"]
    with pytest.raises(ModelError, match="holds no run"):
        simulate(plans, sites, SETTINGS, "0", tmp_path / "nothing", beginning=RESUMED)


def test_a_run_killed_before_its_first_record_starts_again(
    tmp_path: Path, plans: Plans, sites: list[Site]
) -> None:
    out = tmp_path / "run"
    plans.save(out / "plans.json")
    (out / ".DS_Store").touch()
    one_round = dataclasses.replace(SETTINGS, rounds=1)
    assert len(simulate(plans, sites, one_round, "0", out).history) == 1


def test_a_site_may_have_any_name_and_strangers_in_the_folder_do_no_harm(
    tmp_path: Path, plans: Plans, store: SiteStore
) -> None:
    sites = [store.site("server", [("t1",), ("t1", "t2")])]
    out = tmp_path / "run"
    run = simulate(plans, sites, SETTINGS, "0", out)
    (out / "rounds" / ".DS_Store").touch()
    (out / "rounds" / "notes").mkdir()
    resumed = simulate(plans, sites, SETTINGS, "0", out, beginning=RESUMED)
    assert equal(weights(run), weights(resumed))
    assert kept_rounds(resumed) == [2, 3]


def test_a_process_per_device_gives_the_same_run(
    tmp_path: Path, plans: Plans, sites: list[Site], whole: Run
) -> None:
    apart = [
        dataclasses.replace(site, device=torch.device("cpu", number))
        for number, site in enumerate(sites)
    ]
    out = tmp_path / "apart"
    steps: list[tuple[int, int]] = []
    together = simulate(
        *(plans, apart, SETTINGS, "0", out),
        callbacks=Callbacks(progress=lambda what, *step: steps.append(step)),
    )
    assert steps == [(1, 2), (2, 2)]  # the validation case of each site
    assert equal(weights(whole), weights(together))
    assert [r["north"].loss for r in whole.history] == [r["north"].loss for r in together.history]


@pytest.mark.parametrize("damaged", ["server.safetensors", "optimizers/south.safetensors"])
@pytest.mark.parametrize("how", ["a bit", "cut", "gone"])
def test_a_damaged_state_falls_back_to_the_round_before(
    whole: Run,
    out: Path,
    plans: Plans,
    sites: list[Site],
    damaged: str,
    how: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    before = weights(whole)
    file = out / "rounds" / "00003" / damaged
    content = bytearray(file.read_bytes())
    if how == "a bit":
        content[-5] ^= 1  # of a number, which no format would notice
    file.write_bytes(content if how == "a bit" else content[:-100])
    if how == "gone":
        file.unlink()
    (out / "model.safetensors").unlink()
    resumed = simulate(plans, sites, SETTINGS, "0", out, beginning=RESUMED)
    assert len(resumed.history) == 3
    assert equal(before, weights(resumed))
    if damaged.startswith("optimizers") or how != "gone":
        assert "round 3 cannot be resumed from" in caplog.text
    assert f"{out}: resumes from round 2" in caplog.text


def test_a_damaged_record_falls_back_to_the_newest_that_is_whole(
    out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    record = out / "run.json"
    record.write_text(record.read_text().replace('"rounds": 3', '"rounds": 9'))
    assert open_run(out).settings == SETTINGS  # the last round's copy
    assert f"{record}: is damaged" in caplog.text
    for copy in out.glob("rounds/*/run.json"):
        copy.write_text("{")
    with pytest.raises(ModelError, match="is damaged, and no round has a record that is not"):
        open_run(out)


def test_a_run_whose_plans_changed_is_neither_resumed_nor_exported(
    tmp_path: Path, out: Path
) -> None:
    file = out / "plans.json"
    content = json.loads(file.read_text())
    content["nnunet"]["configurations"]["2d"]["spacing"] = [1.0, 9.0]
    file.write_text(json.dumps(content))
    message = r"plans.json: is damaged or was changed; the run was started with other plans"
    with pytest.raises(ModelError, match=message):
        open_run(out)
    with pytest.raises(ModelError, match=message):
        export_model(out, "best", tmp_path / "m.safetensors")


def test_a_run_is_resumed_only_as_it_was_started(
    plans: Plans, sites: list[Site], out: Path
) -> None:
    faster = dataclasses.replace(SETTINGS, learning_rate=1.0)
    with pytest.raises(ModelError, match=r"other learning_rate \(0\.01, now 1\.0\)\. Resume"):
        simulate(plans, sites, faster, "0", out, beginning=RESUMED)
    with pytest.raises(ModelError, match="started with other site south"):
        simulate(plans, sites[:1], SETTINGS, "0", out, beginning=RESUMED)
    with pytest.raises(ModelError, match="started with other plans"):
        simulate(small_plans(keep_every=3), sites, SETTINGS, "0", out, beginning=RESUMED)


def test_last_best_and_every_second_state_are_kept_and_can_be_exported(
    tmp_path: Path, sites: list[Site]
) -> None:
    plans = small_plans(keep_every=2, validate_every=3)
    settings = dataclasses.replace(SETTINGS, rounds=5)
    out = tmp_path / "run"
    run = simulate(plans, sites, settings, "0", out)
    assert set(run.dice) == {3, 5}
    assert kept_rounds(run) == sorted({2, 4, 5, run.best_round or 5})
    assert choose_round(run, "last") == 5
    assert choose_round(run, "best") == run.best_round
    number, digest = export_model(out, "4", tmp_path / "four.safetensors")
    assert number == 4
    assert load_model(tmp_path / "four.safetensors").round == 4
    assert digest == export_model(out, "4", tmp_path / "again.safetensors")[1]
    with pytest.raises(ModelError, match="the state of round 1 is not stored; stored are: 2, "):
        export_model(out, "1", tmp_path / "one.safetensors")
    with pytest.raises(ModelError, match="give best, last or a number"):
        export_model(out, "first", tmp_path / "one.safetensors")
    assert not (tmp_path / "one.safetensors").exists()


def test_progress_is_told_per_round_and_site(whole: Run) -> None:
    out = whole.folder
    with (out / "progress.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["round"], row["site"]) for row in rows] == [
        (str(n), site) for n in (1, 2, 3) for site in ("north", "south")
    ]
    assert float(rows[0]["loss"]) == pytest.approx(whole.history[0]["north"].loss, abs=1e-5)
    assert 0 <= float(rows[-1]["dice_lesion"]) <= 1
    # a tailored encoder less each way, but for the memory that only grows on the server
    assert all(int(row["sent_bytes"]) > 0 for row in rows)
    assert (out / "progress.png").read_bytes().startswith(b"\x89PNG")


def test_nothing_in_a_run_is_a_pickle(whole: Run) -> None:
    files = [f for f in whole.folder.rglob("*") if f.is_file()]
    assert {f.suffix for f in files} == {".json", ".csv", ".png", ".html", ".safetensors"}
    for file in files:
        with pytest.raises(Exception):  # noqa: B017, PT011 - whatever the unpickler says
            pickle.loads(file.read_bytes())


def test_a_damaged_run_is_told(tmp_path: Path, out: Path) -> None:
    (out / "rounds" / "00003" / "server.safetensors").write_bytes(b"no")
    with pytest.raises(ModelError, match=r"server\.safetensors: cannot be read"):
        export_model(out, "last", tmp_path / "x.safetensors")


def test_sites_split_their_cases_into_five_that_cover_all_once() -> None:
    cases = {f"p{n:02d}": ("t1",) for n in range(12)}
    held = [split_fold(cases, str(fold), 0, "north")[1] for fold in range(5)]
    assert sorted(case for fold in held for case in fold) == sorted(cases)
    assert [len(fold) for fold in held] == [3, 3, 2, 2, 2]
    for fold in range(5):
        training, validation = split_fold(cases, str(fold), 0, "north")
        assert sorted((*training, *validation)) == sorted(cases)
    turned = dict(reversed(cases.items()))
    assert split_fold(turned, "1", 0, "north") == split_fold(cases, "1", 0, "north")
    assert split_fold(cases, "1", 1, "north") != split_fold(cases, "1", 0, "north")
    assert split_fold(cases, "1", 0, "south") != split_fold(cases, "1", 0, "north")


def test_cases_with_the_same_modalities_are_dealt_out_over_the_folds() -> None:
    cases = {f"p{n:02d}": ("t1", "t2") if n < 5 else ("t1",) for n in range(15)}
    for seed in range(3):
        for fold in range(5):
            held = split_fold(cases, str(fold), seed, "north")[1]
            assert sorted(len(cases[name]) for name in held) == [1, 1, 2]


def test_every_one_of_few_cases_validates_once() -> None:
    assert split_fold({"a": ("t1",)}, "0", 0, "s") == (("a",), ())
    three = dict.fromkeys("abc", ("t1",))
    held = [split_fold(three, str(fold), 0, "s")[1] for fold in range(5)]
    assert [len(names) for names in held] == [1, 1, 1, 0, 0]
    assert sorted(name for names in held for name in names) == ["a", "b", "c"]
    assert split_fold(dict.fromkeys("ab", ("t1",)), "all", 0, "s") == (("a", "b"), ())


def test_no_patient_both_trains_and_validates() -> None:
    cases = {f"sub-{n:02d}_ses-{k}": ("t1",) for n in range(10) for k in (1, 2)}
    # and examinations whose names say nothing, of one DICOM patient
    cases |= dict.fromkeys(("a", "b"), ("t1",))
    dicom = {"a": "0f", "b": "0f", "sub-00_ses-1": ""}
    for seed in range(5):
        held = [split_fold(cases, str(fold), seed, "north", dicom)[1] for fold in range(5)]
        assert sorted(name for names in held for name in names) == sorted(cases)
        for names in held:
            assert {
                f"sub-{name[4:6]}_ses-{k}" for name in names if "sub" in name for k in (1, 2)
            } == {name for name in names if "sub" in name}
            assert ("a" in names) == ("b" in names)


def test_a_run_whose_cases_were_split_otherwise_is_not_read(out: Path) -> None:
    file = out / "run.json"
    record = json.loads(file.read_text())
    assert record["split"] == SPLIT
    record["split"] -= 1
    record["sha256"] = run_record.record_digest(record)
    file.write_text(json.dumps(record))
    with pytest.raises(ModelError, match=r"another version .*split: is 3; .*resume with .*--init"):
        open_run(out)
