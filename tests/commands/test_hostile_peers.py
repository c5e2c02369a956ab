"""Files and messages of others, one value of which is something else: taken, or refused by us."""

import csv
import dataclasses
import json
import logging
import os
import time
import tracemalloc
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hostile import BINS, TEXTS, fingerprint, spoilt
from hostile import use_fingerprint as use
from mixmfl.entrypoints import _runner
from small import LABELS_JSON, write_case
from small_federation import PLANS, SiteStore
from small_federation import SETTINGS as TWO_ROUNDS

from mixmfl.core.errors import DataError, MixmflError, PlansError, PrivacyError
from mixmfl.core.files import read_json
from mixmfl.core.records import json_of
from mixmfl.core.spreadsheet import cell, from_cell
from mixmfl.core.strict_json import MOST_DIGITS, parse_json
from mixmfl.core.text import one_line, quoted
from mixmfl.data.cases import describe, find_cases
from mixmfl.data.labels import Labels
from mixmfl.evaluation.mask_quality import ConfidenceSums
from mixmfl.evaluation.reliability import Reliability
from mixmfl.evaluation.small_components import ComponentSums
from mixmfl.federated.aggregation import select_blocks
from mixmfl.federated.client.service import ClientService
from mixmfl.federated.client.site_config import SiteConfig
from mixmfl.federated.client.task_checks import check_run_task, check_task, forms_of
from mixmfl.federated.client.training import outgoing_registration
from mixmfl.federated.exchange_log import note
from mixmfl.federated.messages import FAILED, Message, StoredMessage, decode, encode
from mixmfl.federated.secure_aggregation.protocol import Participants
from mixmfl.federated.secure_aggregation.signatures import SignedKey
from mixmfl.federated.server.comparison import read_compared
from mixmfl.federated.server.coordinator import Answer, Answers
from mixmfl.federated.server.merge import personalization_task, train_task, validation_task
from mixmfl.federated.server.orders import (
    PlanningJob,
    TrainingJob,
    load_job,
    plan_remotely,
    read_case_counts,
    read_registration,
    read_statistics,
    save_job,
)
from mixmfl.federated.server.subset_validation import read_measured
from mixmfl.federated.server.update_checks import check_registration, check_reply, check_validation
from mixmfl.federated.state import Minimum, Site, first_state, register
from mixmfl.inference.model_folder import CANDIDATES
from mixmfl.inference.outcomes import Outcome, Records
from mixmfl.planning.fingerprint import MOST_CASES, Fingerprint, grids, median_kept_share
from mixmfl.planning.site_folders import find_sites
from mixmfl.research.benchmark.scores import Row, read_rows, write_rows

SETTINGS = dataclasses.replace(TWO_ROUNDS, rounds=3)


@contextmanager
def bounded(seconds: float, megabytes: float) -> Iterator[None]:
    """Fail where the block takes longer, or more memory at a time."""
    tracemalloc.start()
    began = time.process_time()
    try:
        yield
        taken, most = time.process_time() - began, tracemalloc.get_traced_memory()[1] / 2**20
    finally:
        tracemalloc.stop()
    assert taken < seconds
    assert most < megabytes


def refused_or(take: Callable[[Any], object], content: Any, at: object) -> bool:
    """Say whether something was refused; any error but ours fails the test and says where."""
    reason = ""
    try:
        take(content)
    except MixmflError as error:
        reason = str(error)
    except Exception as error:
        raise AssertionError(f"at {at}: {type(error).__name__}: {error}") from error
    assert len(reason) < 2000
    assert "\x1b" not in reason
    return bool(reason)


# --- JSON


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: f"{text[:12]!r}, {len(text)}")
@pytest.mark.parametrize("form", ["%s", '{"a": %s}', '{"a": [1, %s]}'])
def test_json_beyond_limits_is_refused_by_one_error_of_ours(
    tmp_path: Path, text: str, form: str
) -> None:
    file = tmp_path / "a.json"
    file.write_text(form % text)
    with pytest.raises(PlansError, match=r"a\.json: (cannot be read as JSON|holds a JSON)"):
        read_json(file, PlansError)


def test_json_is_read_with_and_without_a_byte_order_mark_and_to_the_last_digit(
    tmp_path: Path,
) -> None:
    whole = int("9" * MOST_DIGITS)
    written = {"ä": [whole, -1, 0.1, 5e-324, 1.7976931348623157e308, True, None, "\U0001f9e0"]}
    for encoding in ("utf-8", "utf-8-sig"):
        for ascii_only in (True, False):
            text = json.dumps(written, ensure_ascii=ascii_only)
            (tmp_path / "a.json").write_text(text, encoding=encoding)
            assert read_json(tmp_path / "a.json") == written
    assert float(whole) < float("inf")
    (tmp_path / "a.json").write_text(json.dumps(written), encoding="utf-16")
    with pytest.raises(DataError, match="cannot be read as JSON"):
        read_json(tmp_path / "a.json")


def test_a_long_file_is_not_read_to_its_end(tmp_path: Path) -> None:
    with (tmp_path / "a.json").open("wb") as file:
        file.truncate(2**40)  # no room on the disk is taken
    with bounded(5, 300), pytest.raises(DataError, match="bytes are not read"):
        read_json(tmp_path / "a.json")


def test_the_error_names_what_an_object_has_twice() -> None:
    with pytest.raises(ValueError, match="an object has 'b' twice"):
        parse_json('{"a": {"b": 1, "c": 2, "b": 1}}')


# --- dataset.json, federation.json, orders


def test_a_spoilt_dataset_json_is_taken_or_refused(tmp_path: Path) -> None:
    file = tmp_path / "dataset.json"
    regions = {
        "labels": {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "ignore": 9},
        "regions_class_order": [1, 2],
    }
    refused = 0
    for written in (LABELS_JSON, regions):
        for at, content in spoilt(written):
            file.write_text(json.dumps(content))
            refused += refused_or(lambda path: Labels.load(path).consecutive(), file, at)
    assert refused > 200


def test_spoilt_names_of_channels_are_taken_or_refused(tmp_path: Path) -> None:
    for name in ("imagesTr/p0_0000.nii.gz", "imagesTr/p0_0001.nii.gz", "labelsTr/p0.nii.gz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    written = {**LABELS_JSON, "channel_names": {"0": "T1", "1": "FLAIR"}}
    long = {**LABELS_JSON, "channel_names": {"9" * 5000: "T1"}}
    twice = {**LABELS_JSON, "channel_names": {"0": "T1", "00": "T2"}}
    for at, content in (*spoilt(written), ((), long), ((), twice)):
        (tmp_path / "dataset.json").write_text(json.dumps(content))
        refused = refused_or(find_cases, tmp_path, at)
        assert refused or content not in (long, twice)


def test_a_spoilt_federation_json_is_taken_or_refused(tmp_path: Path) -> None:
    for name in ("north", "south", "unseen"):
        write_case(tmp_path / name / "p0", ("t1",), 0)
    (tmp_path / "dataset.json").write_text(json.dumps(LABELS_JSON))
    written = {"held_out": ["unseen"], "tests": {"north": "south"}}
    for at, content in spoilt(written):
        (tmp_path / "federation.json").write_text(json.dumps(content))
        refused_or(find_sites, tmp_path, at)


def test_spoilt_orders_are_taken_or_refused(tmp_path: Path) -> None:
    file = tmp_path / "orders.json"
    orders = (
        TrainingJob(tmp_path, tmp_path / "run", ("north", "south"), "abc", SETTINGS, "0"),
        PlanningJob(tmp_path, ("north",), "demo", ("2d",), (5, 100)),
    )
    for each in orders:
        save_job(each, file)
        for at, content in spoilt(json.loads(file.read_text())):
            file.write_text(json.dumps(content))
            refused_or(load_job, file, at)


# --- fingerprints


def test_a_spoilt_fingerprint_costs_no_time_and_is_refused_by_its_field() -> None:
    use(fingerprint())
    with bounded(20, 50):
        refused = [at for at, content in spoilt(fingerprint()) if refused_or(use, content, at)]
    assert len(refused) > 700
    with pytest.raises(PlansError, match=r"site north: axes: 0\.9375x128: is -1; it must be"):
        use({**fingerprint(), "axes": [*fingerprint()["axes"][:1], {"0.9375x128": -1}, {}]})


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        ({"modality_cases": {"t1": 4}}, "t2 is in one of them only"),
        ({"intensities": {"t1": [0] * BINS}}, "t2 is in one of them only"),
        ({"modality_cases": {"t1": 4, "t2": 5}}, "modality_cases: 5 of its 4 cases"),
        ({"modality_cases": {"t1": 1, "t2": 1}}, "fewer than its cases"),
        ({"intensities": {"t1": [10**9] * BINS, "t2": [0] * BINS}}, "t1: more voxels than its 4"),
        ({"kept_share": {"0.57": 4}}, "kept_share: name: is '0.57'; it must be 0.00 or 0.05 or"),
        ({"axes": [{"1x20": 4}] * 2}, "axes: has 2 entries; it must have 3"),
        ({"axes": [{"1x9000": 4}] * 3}, "axes Z: '1x9000' is no spacing"),
        ({"axes": [{"\uff11x20": 4}] * 3}, "axes Z: .* is no spacing"),
        ({"cases": MOST_CASES + 1}, "cases: is 1000001; it must be"),
    ],
)
def test_a_fingerprint_that_contradicts_itself_is_refused(spoil: dict[str, Any], why: str) -> None:
    with pytest.raises(PlansError, match=why):
        use({**fingerprint(), **spoil})


@pytest.mark.parametrize(
    "name", ["../../x", "<script>", "T1", "", "t1\n", "a.b", "x" * 40, "t\uff11"]
)
def test_a_modality_has_a_plain_name(name: str) -> None:
    with pytest.raises(PlansError, match="it must be a modality's name"):
        use(fingerprint(4, **{name: 4}))


def test_a_million_cases_cost_no_more_than_twenty_thousand() -> None:
    million = fingerprint(MOST_CASES, t1=MOST_CASES)
    with bounded(2, 20):
        use(million)
        spacings, sizes = grids(Fingerprint.from_json(million, "site north"))
    assert (spacings[0, 0], spacings[-1, 0], sizes[-1, 0]) == (0.9375, 1.0, 20)
    assert np.median(spacings) == 1.0


def test_medians_are_those_of_the_cases_one_by_one() -> None:
    shares = {"0.10": 2, "0.55": 1, "0.60": 3}
    one = {**fingerprint(6, t1=6), "kept_share": shares}
    parsed = Fingerprint.from_json(one, "site north")
    one_by_one = [float(share) for share, n in shares.items() for _ in range(n)]
    assert median_kept_share(parsed) == np.median(one_by_one)
    spacings, sizes = grids(parsed)
    assert spacings[:, 1].tolist() == [0.9375, 1, 1, 1, 1, 1]
    assert sizes[:, 1].tolist() == [128, 20, 20, 20, 20, 20]


# --- what a coordinator sends


@pytest.fixture(scope="module")
def site(store: SiteStore) -> Site:
    return store.site("north", [("t1", "t2"), ("t1",), ("t2",)], validation=1)


@pytest.fixture(scope="module")
def tasks(site: Site) -> list[Message]:
    """Return one honest task of every kind of a run, but those of masked rounds."""
    registration, state = register(site), first_state(PLANS, SETTINGS)
    settings = dataclasses.asdict(SETTINGS)
    join = {"version": "0", "run": "abc", "plans": {}, "settings": settings, "fold": "0"}
    validate = validation_task(
        dataclasses.replace(state, round=1), "north", {"north": registration}
    )
    key = SignedKey("ab" * 32, "aa", "bb")
    participants = Participants(0, dict.fromkeys("abc", key), {"loss": ("a", "b", "c")})
    return [
        Message("fingerprint", {"version": "0", "minimum": [5, 100]}, {}),
        Message("preprocess", {"plans": {}, "configurations": ["2d"]}, {}),
        Message("join", join, {}),
        train_task(state, registration),
        validate,
        dataclasses.replace(validate, kind="measure"),
        personalization_task(dataclasses.replace(state, round=1), "north", {"north": registration}),
        Message("keys", {"round": 0}, {}),
        dataclasses.replace(
            train_task(state, registration), kind="masked", record=participants.to_json()
        ),
        Message("model", {}, {"file": torch.zeros(9, dtype=torch.uint8)}),
    ]


def test_every_field_of_a_task_is_typed_and_bounded(site: Site, tasks: list[Message]) -> None:
    forms = forms_of(PLANS, SETTINGS)

    def check(task: Message) -> None:
        check_task(task)
        if task.kind not in ("fingerprint", "preprocess", "join"):
            check_run_task(task, PLANS, SETTINGS, site, forms)

    for task in tasks:
        check(task)
        taken = {
            at
            for at, record in spoilt(task.record)
            if isinstance(record, dict)
            and not refused_or(check, dataclasses.replace(task, record=record), (task.kind, at))
        }
        # what is checked elsewhere, and what happens to be right
        assert not {at[0] for at in taken if at} - {
            *("version", "plans", "minimum", "settings", "round", "modalities"),
            *("keys", "holders", "configurations", "run", "fold"),
        }, task.kind


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("local_steps", 10**12),
        ("rounds", 10**15),
        ("learning_rate", 1e300),
        ("learning_rate", "0.1"),
        ("learning_rate", 0),
        ("seed", -1),
        ("masked", "no"),
        ("configuration", "3d_lowres"),
        ("also", 1),
    ],
)
def test_a_join_beyond_bounds_is_refused_before_work_begins(
    tmp_path: Path, name: str, value: object
) -> None:
    house = SiteConfig("north", tmp_path / "data", tmp_path, minimum=Minimum())
    settings = {**dataclasses.asdict(SETTINGS), name: value}
    record = {"run": "abc", "plans": PLANS.to_json(), "settings": settings, "fold": "0"}
    task = StoredMessage.store(encode(Message("join", record, {})), tmp_path)
    reply = ClientService(house).answer(task)
    refusal = decode(reply.read(0, reply.size))
    assert (refusal.kind, refusal.record["error"]) == (FAILED, "AggregationError")
    assert "the coordinator's task 'join': settings" in house.problem_log.read_text()
    assert name in house.problem_log.read_text()


def test_the_command_orders_nothing_that_no_hospital_would_do(
    tmp_path: Path, command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    PLANS.save(tmp_path / "plans.json")
    asked = ("-i", tmp_path, "-o", tmp_path / "run", "-c", "2d", "--kit", tmp_path)
    assert command("mixmfl_train_federated", *asked, "--local-steps", 10**12) == 2
    printed = capsys.readouterr().err
    assert "the settings of the run: local_steps: is 1000000000000; it must be a whole" in printed


def test_tensors_that_the_run_has_not_are_refused(site: Site, tasks: list[Message]) -> None:
    forms, train = forms_of(PLANS, SETTINGS), tasks[3]
    first = next(iter(train.tensors))
    memory = {n: torch.zeros(s, dtype=k) for n, (s, k) in forms.items() if "memory.t1.2" in n}
    good = {**train.tensors, **memory}
    check_run_task(dataclasses.replace(train, tensors=good), PLANS, SETTINGS, site, forms)
    half = dataclasses.replace(train, tensors={**good, first: good[first].half()})
    check_run_task(half, PLANS, SETTINGS, site, forms)
    personal = personalization_task(first_state(PLANS, SETTINGS), "x", {"x": register(site)})
    short = {n: t.half() for n, t in personal.tensors.items()}
    with pytest.raises(MixmflError, match=r"came as .*float16"):  # it is made from exact weights
        check_run_task(dataclasses.replace(personal, tensors=short), PLANS, SETTINGS, site, forms)
    for tensors, why in (
        ({**good, "../x": torch.zeros(1)}, "have no tensor '../x'"),
        ({**good, first: torch.zeros(10**6)}, rf"{first} came as \(1000000,\)"),
        ({**good, first: good[first].double()}, f"{first} came as .*float64"),
        (
            {n: t.half() if n == "memory.t1.2.values" else t for n, t in good.items()},
            "memory.t1.2.values came as .*float16",
        ),
        ({n: t for n, t in good.items() if n != first}, f"{first} is missing"),
        (
            {n: t for n, t in good.items() if n != "memory.t1.2.values"},
            "memory.t1.2.values is missing",
        ),
    ):
        with pytest.raises(MixmflError, match=why):
            check_run_task(
                dataclasses.replace(train, tensors=tensors), PLANS, SETTINGS, site, forms
            )
    stray = Message("keys", {"round": 0}, good)
    with pytest.raises(MixmflError, match="tensors; none belong"):
        check_task(stray)


# --- what a site sends


def test_every_field_of_a_reply_is_typed_and_bounded(site: Site) -> None:
    registration, state = register(site), first_state(PLANS, SETTINGS)
    weights = select_blocks(state.weights, registration.weights)
    moved = {
        name: torch.zeros_like(tensor, dtype=torch.float16) for name, tensor in weights.items()
    }
    trained = Message("train", {"round": 0, "loss": 0.5, "dice_loss": -0.5}, moved)
    dice = {name: [0.5, 1] for name in PLANS.labels.foreground}

    def joined(reply: Message) -> None:
        check_registration("north", read_registration("north", reply), PLANS)

    cases = {"cases": {"2d": [3, 0]}}
    counts = {name: [1] * 3 + [0] * 17 for name in PLANS.labels.foreground}
    statistics = {"fingerprint": None, "labels": PLANS.labels.to_json()}
    checks: list[tuple[Message, Callable[[Message], object]]] = [
        (outgoing_registration(registration), joined),
        (Message("preprocess", cases, {}), lambda m: read_case_counts("north", m, ["2d"])),
        (Message("fingerprint", statistics, {}), lambda m: read_statistics("north", m)),
        (
            trained,
            lambda m: check_reply("north", m, 0, state.weights, registration, PLANS, SETTINGS),
        ),
        (
            Message("validate", {"round": 1, "dice": dice}, {}),
            lambda m: check_validation("north", m, 1, None, PLANS),
        ),
        (
            Message(
                "measure",
                {
                    "round": 1,
                    "subsets": [[["t1"], counts], [["t1", "t2"], counts]],
                    "confidence": dict.fromkeys(counts, json_of(ConfidenceSums())),
                    "reliability": dict.fromkeys(counts, json_of(Reliability())),
                    "components": dict.fromkeys(
                        counts, json_of(ComponentSums(1, 0.5, (0.5, 0.6, 0.6, 0.6)))
                    ),
                },
                {},
            ),
            lambda m: read_measured("north", m, 1, PLANS),
        ),
        (
            Message(
                "compare",
                {
                    "round": 1,
                    "components": dict.fromkeys(
                        CANDIDATES, dict.fromkeys(counts, json_of(ComponentSums(1, 0.5)))
                    ),
                },
                {},
            ),
            lambda m: read_compared("north", m, 1, PLANS),
        ),
    ]
    for reply, check in checks:
        check(reply)
        results = [
            refused_or(check, dataclasses.replace(reply, record=record), (reply.kind, at))
            for at, record in spoilt(reply.record)
            if isinstance(record, dict)
        ]
        assert sum(results) > len(results) / 2, reply.kind


def test_a_site_whose_statistics_cannot_be_is_named_with_the_field_and_stops_no_other(
    tmp_path: Path,
) -> None:
    labels = {"labels": {"background": 0, "lesion": 4}}
    spoilt_by: dict[str, dict[str, Any]] = {
        "east": {"fingerprint": fingerprint(), "labels": []},
        "north": {"fingerprint": fingerprint(), "labels": labels},
        "south": {"fingerprint": {**fingerprint(), "cases": 10**18}, "labels": labels},
        "west": {"fingerprint": fingerprint(), "labels": labels, "also": 1},
    }

    def ask(tasks: Mapping[str, Message]) -> Answers:
        fingerprints = {site: Message("fingerprint", spoilt_by[site], {}) for site in tasks}
        return Answers({site: Answer(message, 1, 1, 0.0) for site, message in fingerprints.items()})

    orders = PlanningJob(tmp_path, tuple(spoilt_by), "demo", ("2d",), (5, 100))
    with pytest.raises(DataError) as caught:
        plan_remotely(orders, ask)
    lines = str(caught.value).splitlines()
    assert [line.split(":")[0].strip() for line in lines[1:4]] == ["east", "south", "west"]
    assert "site east: is []; an object" in lines[1]
    assert "site south: cases: is 1000000000000000000; it must be a whole" in lines[2]
    assert "site 'west' sent what was not asked for: 'also'" in lines[3]
    assert not list(tmp_path.iterdir())


# --- masked rounds


def test_a_roster_in_which_a_site_counts_twice_is_refused() -> None:
    key = SignedKey("ab" * 32, "aa", "bb")
    good = Participants(0, dict.fromkeys("abc", key), {"loss": ("a", "b", "c")}).to_json()
    assert Participants.from_json(good).holders == {"loss": ("a", "b", "c")}
    for spoil, why in (
        ({"loss": ["a", "a", "a"]}, "each may be named once"),
        ({"loss": ["a", "b", "x"]}, "needed is a list of a, b, c"),
    ):
        with pytest.raises(PrivacyError, match=rf"holders: loss: is .*; {why}"):
            Participants.from_json({**good, "holders": spoil})


# --- names in logs, on a terminal, in tables


def test_what_others_wrote_stays_one_line_of_a_log(tmp_path: Path) -> None:
    note(tmp_path / "a.log", "nothing from x: a\n2026 sent to north: forged\x1b[2J\u2028\r")
    (line,) = (tmp_path / "a.log").read_text(encoding="utf-8").splitlines()
    assert line.endswith(r"a\n2026 sent to north: forged\x1b[2J\u2028\r")
    assert one_line("Größe") == "Größe"
    assert one_line("x" * 100) == "x" * 79 + "…"
    assert quoted("a\u202eb") == r"'a\u202eb'"


def test_a_terminal_is_not_steered_by_a_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    _runner.complain("mixmfl_x", "case 'a\x1b]0;evil\x07': two\nlines")
    assert capsys.readouterr().err.endswith("case 'a\\x1b]0;evil\\x07': two\nlines\n")
    caplog.set_level(logging.WARNING, "mixmfl")  # as a command has it
    options = Namespace(log=tmp_path / "a.log", quiet=False)
    with _runner.output(options) as say:
        say("p1\x1b[31m: done")
        logging.getLogger("mixmfl.x").warning("site %s: late", "a\nforged")
    assert capsys.readouterr().out == "p1\\x1b[31m: done\n"
    printed, warned = (tmp_path / "a.log").read_text().splitlines()
    assert printed.endswith(r"p1\x1b[31m: done")
    assert warned.endswith(r"site a\nforged: late")


def test_text_is_no_formula_in_a_table_and_comes_back_as_it_was(tmp_path: Path) -> None:
    for text in ("=1+1", "+1 a", "-x", "@SUM(A1)", "\ta", "\r", " =1", "'=1", "\uff1d1"):
        assert cell(text) == f"'{text}"
        assert from_cell(f"'{text}") == text
    for text, shown in (
        ("x;=1", "x;'=1"),
        ("a;'=1;  -b|@c", "a;''=1;'  -b|'@c"),
        ('x;"=1', "x;'\"=1"),
        ("\t=1", "'\t'=1"),
        ("a\n+1", "a\n'+1"),
        (";=", ";'="),
    ):
        assert cell(text) == shown
        assert from_cell(shown) == text
    assert cell("left; 3 mm; a - b") == "left; 3 mm; a - b"
    for value in ("-", "-0.5", "1e-05", "p1", "it's", "'90s", 3, -1.5, "", "2024-01-01"):
        assert cell(value) == value
        assert from_cell(str(value)) == str(value)
    rows = [Row("a", 0, "=s", "@c", ("t1",), "-lesion", 0.5, 1.0)]
    write_rows(rows, tmp_path / "scores.csv")
    assert ",'=s,'@c,t1,'-lesion," in (tmp_path / "scores.csv").read_text()
    assert read_rows(tmp_path / "scores.csv") == rows
    records = Records(tmp_path / "masks")
    records.add(Outcome('=HYPERLINK("x")', "failed", "@reason", notes=("+note",)))
    with (tmp_path / "masks" / "cases.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["case"] == '\'=HYPERLINK("x")'
    assert (row["reason"], row["notes"]) == ("'@reason", "'+note")
    assert Records(tmp_path / "masks")['=HYPERLINK("x")'] == records['=HYPERLINK("x")']


def test_a_file_whose_name_is_no_text_is_told_like_any_other(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"a\xff_t1.nii.gz")).touch()
    (tmp_path / "b\n\x1b[31m_t1.nii.gz").touch()
    found = find_cases(tmp_path)
    lines = describe(found).splitlines()
    assert r"  a\udcff: a file cannot have this name; rename the case" in lines
    assert r"  b\n\x1b[31m: a file cannot have this name; rename the case" in lines
    records = Records(tmp_path / "masks")
    for item in found.refused:
        records.add(Outcome(item.name, "failed", f"{item.name}: {item.reason}"))
    outcomes = Records(tmp_path / "masks").outcomes
    assert [each.name for each in outcomes] == [r"a\udcff", r"b\n\x1b[31m"]
    assert "\x1b" not in (tmp_path / "masks" / "cases.csv").read_text(encoding="utf-8")
