"""A site's service and the coordinator exchange messages directly, without a network."""

import dataclasses
import hashlib
import json
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from masked_federation import write_keys
from small import (
    LABELS_JSON,
    both_configurations,
    small_plans,
    stored_site,
    write_model,
    write_site,
)

import mixmfl
from mixmfl.core import version
from mixmfl.core.errors import DataError, MixmflError, PrivacyError, QuorumError
from mixmfl.core.files import folder_bytes, read_json, write_json
from mixmfl.data.image import read_image, write_image
from mixmfl.data.load_case import AlignmentOptions
from mixmfl.evaluation.mask_quality import Measured
from mixmfl.evaluation.subset_dice import BINS
from mixmfl.federated import messages
from mixmfl.federated.client import service, site_config
from mixmfl.federated.client.approval import Approval, answer_job
from mixmfl.federated.client.audit_log import verify_log
from mixmfl.federated.client.limits import Limits
from mixmfl.federated.client.outbound import outbound_table
from mixmfl.federated.client.outbound_preview import preview_of_site
from mixmfl.federated.client.service import ClientService
from mixmfl.federated.client.site_config import SiteConfig
from mixmfl.federated.exchange_log import describe_exchange
from mixmfl.federated.messages import SENT, Message, StoredMessage, decode, encode
from mixmfl.federated.secure_aggregation.crypto import key_pair
from mixmfl.federated.secure_aggregation.identities import simulated_identities
from mixmfl.federated.secure_aggregation.protocol import KINDS as MASKED_KINDS
from mixmfl.federated.secure_aggregation.protocol import Participants
from mixmfl.federated.server.checkpoint import load_state_of
from mixmfl.federated.server.comparison import load_comparison
from mixmfl.federated.server.coordinator import Answer, Answers
from mixmfl.federated.server.merge import personalization_task, train_task, validation_task
from mixmfl.federated.server.orders import (
    PlanningJob,
    TrainingJob,
    job_file,
    load_job,
    plan_remotely,
    read_refusals,
    save_job,
    train_remotely,
)
from mixmfl.federated.server.run_record import open_run
from mixmfl.federated.server.secure_aggregation import (
    gather_participants,
    keys_tasks,
    masked_tasks,
)
from mixmfl.federated.server.subset_validation import measure_task
from mixmfl.federated.simulation import simulate
from mixmfl.federated.sites import open_sites
from mixmfl.federated.state import (
    MEASURE,
    NETWORK_MINIMUM,
    NOT_CONNECTED,
    REFUSES,
    Minimum,
    RunSettings,
    Site,
    first_state,
    register,
)
from mixmfl.federated.tensor_files import save_tensors
from mixmfl.inference.model import TrainedOn
from mixmfl.inference.model_file import load_model, save_model
from mixmfl.networks.build import prototype_sizes
from mixmfl.networks.prototypes import State
from mixmfl.planning.brains import BrainExtraction
from mixmfl.planning.fingerprint import INTENSITY_EDGES, Fingerprint
from mixmfl.planning.plans import Plans, replace_settings, settings_digest
from mixmfl.training.privacy_budget import Privacy

SETTINGS = RunSettings("2d", seed=0, rounds=3, local_steps=2, learning_rate=1e-2)
LONG = RunSettings("2d", seed=0, rounds=6, local_steps=1, learning_rate=1e-2)
TWO_FASTER = RunSettings("2d", seed=0, rounds=2, local_steps=1, learning_rate=2e-2)
CASES = {
    "north": [("t1", "t2"), ("t1",), ("t2",)],
    "south": [("flair",), ("flair", "t1"), ("flair",)],
}


def fingerprint_of(cases: int, **modality_cases: int) -> dict[str, Any]:
    axis, bins = {"1x20": cases}, (0,) * (len(INTENSITY_EDGES) - 1)
    histograms = dict.fromkeys(modality_cases, bins)
    kept = {"1.00": cases}
    return Fingerprint(
        cases,
        modality_cases,
        (axis,) * 3,
        (axis,) * 3,
        {"none": cases},
        kept,
        histograms,
        {"stripped": cases},
        {"patients": cases},
        {"brain": cases},
        {},
    ).to_json()


def answer(hospital: ClientService, content: bytes) -> bytes:
    """Return a site's reply to a task, noted as sent."""
    reply = hospital.answer(StoredMessage.store(content, Path(tempfile.gettempdir())))
    hospital.note_reply(reply, taken=True)
    return reply.read(0, reply.size)


class Federation:
    """Sites that are asked directly; one that is down does not answer."""

    def __init__(self, *configs: SiteConfig) -> None:
        self.configs = {config.name: config for config in configs}
        self.restart()
        self.down: set[str] = set()
        self.asked: list[tuple[str, str]] = []

    def ask(self, tasks: Mapping[str, Message]) -> Answers:
        came, absent = {}, {}
        for name, task in tasks.items():
            if name in self.down:
                absent[name] = NOT_CONNECTED
                continue
            self.asked.append((name, task.kind))
            content = encode(task)
            back = answer(self.hospitals[name], content)
            reply = decode(back)
            if reply.kind == messages.FAILED:
                refused = reply.record.get("refused")
                could_not = f"could not do it ({reply.record['error']})"
                absent[name] = could_not if refused is None else f"{REFUSES}: {refused}"
            else:
                came[name] = Answer(reply, len(back), len(content), 0.0)
        return Answers(came, absent)

    def restart(self) -> None:
        self.hospitals = {name: ClientService(config) for name, config in self.configs.items()}


NO_FLOORS = Limits(validation_cases=1, training_cases=1)  # so that few small cases do


def configs_of(
    folder: Path, sites: Mapping[str, Sequence[Sequence[str]]], plans: Plans
) -> list[SiteConfig]:
    """Store sites' cases, and return how the sites would be started."""
    for name, cases in sites.items():
        stored_site(folder / name, name, cases, plans)
    identities = simulated_identities(list(sites))
    return [
        SiteConfig(
            name,
            folder / "nothing",
            folder / name,
            minimum=Minimum(),
            limits=NO_FLOORS,
            keys=write_keys(folder / "keys" / name, identities[name]),
        )
        for name in sites
    ]


def listen_to(federation: Federation, site: str) -> dict[str, Message]:
    """Return what will hold a hospital's last answer of each kind."""
    hospital, answer = federation.hospitals[site], federation.hospitals[site].answer
    sent: dict[str, Message] = {}

    def listen(stored: StoredMessage) -> StoredMessage:
        back = answer(stored)
        sent[back.open().kind] = back.open()
        return back

    hospital.answer = listen  # type: ignore[method-assign]
    return sent


@pytest.fixture
def plans() -> Plans:
    return small_plans()


@pytest.fixture
def federation(tmp_path: Path, plans: Plans) -> Federation:
    plans.save(tmp_path / "plans.json")
    return Federation(*configs_of(tmp_path, CASES, plans))


@pytest.fixture
def orders(tmp_path: Path) -> TrainingJob:
    return TrainingJob(tmp_path, tmp_path / "run", tuple(sorted(CASES)), "abc123", SETTINGS, "0")


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return the model of the same run in one process."""
    folder, plans = tmp_path_factory.mktemp("simulated"), small_plans()
    sites: list[Site] = []
    for name, cases in CASES.items():
        stored_site(folder / name, name, cases, plans)
        sites += open_sites(folder / name, plans, "2d", "0", 0, [name])
    run = simulate(plans, sites, SETTINGS, "0", folder / "run")
    return (run.folder / "model.safetensors").read_bytes()


def train(federation: Federation, orders: TrainingJob, stop_after: int = 100) -> bool:
    """Train with all hospitals, and stop after some rounds."""
    done = len(open_run(orders.out).history) if (orders.out / "run.json").is_file() else 0

    def pause() -> bool:
        return len(open_run(orders.out).history) >= done + stop_after

    return train_remotely(orders, federation.ask, pause)


def test_hospitals_train_what_one_process_would(
    federation: Federation, orders: TrainingJob, simulated: bytes
) -> None:
    assert train(federation, orders)
    model = (orders.out / "model.safetensors").read_bytes()
    assert model == simulated
    for config in federation.configs.values():  # the model is every hospital's to use
        assert (config.work / "runs" / "abc123" / "model.safetensors").read_bytes() == model


def test_hospitals_measure_every_subset_in_rounds_where_they_are_asked_to(
    federation: Federation, orders: TrainingJob, simulated: bytes
) -> None:
    asked = dataclasses.replace(orders, every_subset=True)
    save_job(asked, job_file(orders.out))
    assert load_job(job_file(orders.out)) == asked
    assert train(federation, asked)
    run = open_run(orders.out)
    assert run.subset_dice.keys() == run.dice.keys()
    assert all(run.subset_dice.values())
    assert federation.asked.count(("north", MEASURE)) == len(run.dice)  # in validated rounds alone
    assert (orders.out / "model.safetensors").read_bytes() == simulated


def test_hospitals_compare_configurations_as_one_process_would(tmp_path: Path) -> None:
    plans = both_configurations()
    federation = Federation(*configs_of(tmp_path, CASES, plans))
    for name, cases in CASES.items():
        stored_site(tmp_path / name, name, cases, plans, "3d_fullres")
    plans.save(tmp_path / "plans.json")
    settings = dataclasses.replace(SETTINGS, rounds=1)
    flat, full, here = (tmp_path / name for name in ("flat", "full", "here"))
    first = TrainingJob(tmp_path, flat, tuple(sorted(CASES)), "first", settings, "0")
    assert train(federation, first)
    settings = dataclasses.replace(settings, configuration="3d_fullres")
    second = dataclasses.replace(first, out=full, name="second", settings=settings, beside=flat)
    save_job(second, tmp_path / "orders.json")
    assert load_job(tmp_path / "orders.json") == second
    assert train(federation, second)
    sites = [
        site
        for name in CASES
        for site in open_sites(tmp_path / name, plans, "3d_fullres", "0", 0, [name])
    ]
    run = simulate(plans, sites, settings, "0", here, beside=flat)
    compared = load_comparison(run, open_run(flat))
    assert compared == load_comparison(open_run(full), open_run(flat))
    assert compared is not None
    assert compared["ensemble"]["lesion"].cases == sum(len(site.validation) for site in sites) > 0


def test_a_run_resumes_after_coordinator_and_sites_were_restarted(
    federation: Federation, orders: TrainingJob, simulated: bytes
) -> None:
    assert not train(federation, orders, stop_after=1)
    federation.restart()
    assert not train(federation, orders, stop_after=1)
    assert train(federation, orders)
    model = (orders.out / "model.safetensors").read_bytes()
    assert model == simulated


def test_a_coordinator_gets_no_masked_sum_without_a_site_that_was_in_one(
    tmp_path: Path, plans: Plans
) -> None:
    """Not by a new run, nor after all have restarted; the hospitals may agree to it."""
    plans.save(tmp_path / "plans.json")
    cases = {name: [("t1", "t2"), ("t1",)] for name in "abcd"}
    federation = Federation(*configs_of(tmp_path, cases, plans))
    masked = dataclasses.replace(SETTINGS, rounds=2, masked=True)

    def run(name: str, sites: str) -> TrainingJob:
        return TrainingJob(tmp_path, tmp_path / name, tuple(sites), name, masked, "0")

    assert not train(federation, run("one", "abcd"), stop_after=1)
    federation.down = {"d"}
    with pytest.raises(QuorumError, match=r"none, and there is no answer from d \(is not connec"):
        train(federation, run("one", "abcd"))
    federation.down = set()
    federation.restart()
    state = tmp_path / "a" / "runs" / "one" / "optimizer" / "00000.safetensors"
    whole = state.read_bytes()
    state.write_bytes(whole[:-1])
    with pytest.raises(QuorumError, match=r"no answer from a \(could not do it \(PrivacyError\)"):
        train(federation, run("one", "abcd"))
    assert (
        "without it this site's masks do not cancel"
        in (tmp_path / "a" / "problems.log").read_text()
    )
    state.write_bytes(whole)
    assert train(federation, run("one", "abcd"))
    federation.restart()
    with pytest.raises(QuorumError, match=r"no answer from a \(could not do it \(PrivacyError\)"):
        train(federation, run("two", "abc"))
    reason = (tmp_path / "a" / "problems.log").read_text()
    assert "was summed over a, b, c, d before, and is asked for over a, b, c now" in reason
    for config in federation.configs.values():
        config.summed_file.unlink()
    assert train(federation, run("two", "abc"))


def test_a_service_sends_nothing_for_a_key_that_the_coordinator_made_up(
    tmp_path: Path, plans: Plans
) -> None:
    """And an honest coordinator gets its sum afterwards: nothing was recorded of the attack."""
    cases = {name: [("t1", "t2"), ("t1",)] for name in "abc"}
    federation = Federation(*configs_of(tmp_path, cases, plans))
    masked = dataclasses.replace(SETTINGS, masked=True)
    settings = {
        name: register(
            config.open(plans, masked.configuration, "0", 0),
        )
        for name, config in federation.configs.items()
    }
    state, sizes = first_state(plans, masked), prototype_sizes(plans, masked.configuration)
    for name in settings:
        assert asks(federation, name, join_task(plans, masked)) == "join"

    def participants() -> Participants:
        came = federation.ask(keys_tasks(0, settings)).came
        return gather_participants(state, {n: a.message for n, a in came.items()}, settings, sizes)

    honest = participants()
    false = dataclasses.replace(honest.keys["b"], key=key_pair()[1].hex())
    forged = dataclasses.replace(honest, keys={**honest.keys, "b": false})
    reason = asks(federation, "a", masked_tasks(state, forged, settings)["a"])
    assert "as that of site 'b' in round 1 is not shown to be of that site: its signature" in reason
    assert not federation.configs["a"].summed_file.exists()
    lines = federation.configs["a"].exchange_log.read_text().splitlines()
    assert "sent to coordinator: failed, record error version, 0 tensors" in lines[-1]
    # nor where it has the others learn next to nothing, so that the sum is the update of one
    slow = dataclasses.replace(masked, learning_rate=1e-12)
    for name in ("b", "c"):
        assert asks(federation, name, join_task(plans, slow)) == "join"
    tasks = masked_tasks(state, participants(), settings)
    reason = asks(federation, "a", tasks["a"])
    assert "its signature is not of this federation, run, plans, settings, round and key" in reason
    for name in ("b", "c"):
        assert asks(federation, name, join_task(plans, masked)) == "join"
    tasks = masked_tasks(state, participants(), settings)
    assert [asks(federation, name, tasks[name]) for name in settings] == ["masked"] * 3


def audited(config: SiteConfig) -> list[dict[str, Any]]:
    verify_log(config.audit_log.file)
    return [json.loads(line) for line in config.audit_log.file.read_text().splitlines()]


def test_all_that_left_is_recorded_and_each_job_with_who_approved(
    tmp_path: Path, federation: Federation, plans: Plans
) -> None:
    orders = TrainingJob(tmp_path, tmp_path / "run", ("north", "south"), "abc", SETTINGS, "0")
    assert train(federation, orders)
    north = federation.configs["north"]
    entries = audited(north)
    approved, *sent = entries
    assert approved["what"] == "approved"
    assert approved["by"] == "the site's limits, without a policy"
    assert approved["facts"]["rounds"].startswith("3 of 2 steps, learning rate 0.01, 2d, fold 0")
    leaves = "train: round, loss, dice_loss, epsilon, delta, changes of weights"
    assert leaves in approved["facts"]["leaves"]
    asked = [kind for name, kind in federation.asked if name == "north"]
    assert [entry["kind"] for entry in sent] == asked
    assert {(entry["what"], entry["to"]) for entry in sent} == {("sent", "the coordinator")}
    assert {entry["run"] for entry in sent} == {"abc"}
    # the same digests are in the other log, and at the coordinator in RUN/network/exchange.log
    log = north.exchange_log.read_text()
    assert all(f"{e['bytes']} bytes, sha256 {e['sha256']}" in log for e in sent)
    used = json.loads(north.used_file.read_text())
    assert used["bytes"] == sum(entry["bytes"] for entry in sent)
    (job,) = north.jobs.iterdir()
    assert json.loads(job.read_text())["facts"] == approved["facts"]


def test_a_job_beyond_the_policy_is_refused_before_anything_leaves(
    tmp_path: Path, federation: Federation, plans: Plans
) -> None:
    file = tmp_path / "policy.json"
    config = dataclasses.replace(federation.configs["north"], approval=Approval(file))
    federation.configs["north"] = config
    federation.restart()
    write_json(file, {"until": "2999-01-01", "rounds": 2, "planning": False})
    reason = asks(federation, "north", join_task(plans))
    assert "does not cover this job: rounds 3, and it approves of 2" in reason
    statistics = Message("fingerprint", {"minimum": [5, 100]}, {})
    assert "it approves of no statistics" in asks(federation, "north", statistics)
    write_json(file, {"until": "2999-01-01", "rounds": 0, "planning": False})
    record = {"plans": plans.to_json(), "configurations": ["2d"]}
    assert "of no preprocessing" in asks(federation, "north", Message("preprocess", record, {}))
    assert [entry["kind"] for entry in audited(config)] == [messages.FAILED] * 3
    at_most = {"until": "2999-01-01", "rounds": 3}
    write_json(file, {**at_most, "limits": {"local_steps": 1}})  # the option allows more
    assert "asks for local steps 2; this site allows 1" in asks(
        federation, "north", join_task(plans)
    )
    write_json(file, at_most)
    assert asks(federation, "north", join_task(plans)) == "join"
    (opened,) = open_sites(tmp_path / "north", plans, "2d", "0", 0)
    task = train_task(first_state(plans, SETTINGS), register(opened))
    assert asks(federation, "north", task) == "train"
    write_json(file, {**at_most, "limits": {"training_cases": 9}})
    assert "must rest on 9 or more" in asks(federation, "north", task)
    write_json(file, {**at_most, "limits": {"rounds": 1}})
    assert "asks for rounds 3; this site allows 1" in asks(federation, "north", task)
    write_json(file, {**at_most, "minimum": {"cases": 5, "voxels": 0}, "limits": {"jobs": 9}})
    assert asks(federation, "north", task) == "train"
    client = federation.hospitals["north"]._run().client
    assert client.site.minimum == Minimum(5, 0)
    write_json(file, {"until": "2001-01-01", "rounds": 3})  # the last day is over
    assert "does not cover this job any more: it ended on" in asks(federation, "north", task)


def test_a_policy_that_became_stricter_while_a_person_was_asked_holds(
    tmp_path: Path, federation: Federation, plans: Plans, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, at_most = tmp_path / "policy.json", {"until": "2999-01-01", "rounds": 3}
    config = dataclasses.replace(federation.configs["north"], approval=Approval(file, ask=True))
    federation.configs["north"] = config
    federation.restart()

    def decide(*_: object) -> str:
        write_json(file, {**at_most, "limits": {"training_cases": 9}})
        return "a person"

    monkeypatch.setattr(Approval, "decide", decide)
    write_json(file, at_most)
    assert "must rest on 9 or more" in asks(federation, "north", join_task(plans))


def test_every_request_for_statistics_preprocessing_and_a_run_is_counted(
    federation: Federation, plans: Plans
) -> None:
    """A refused one, too, for its record stays; as do keys of masked rounds that nobody trains."""
    config, forever = federation.configs["north"], {"until": "2999-01-01", "rounds": 9}
    policy = config.work / "policy.json"
    write_json(policy, {**forever, "planning": False})
    federation.configs["north"] = dataclasses.replace(config, approval=Approval(policy))
    limit(federation, "north", jobs=3, rounds=3)
    masked = join_task(plans, dataclasses.replace(SETTINGS, masked=True))
    statistics = Message("fingerprint", {"minimum": [5, 100]}, {})
    assert "it approves of no statistics" in asks(federation, "north", statistics)
    assert asks(federation, "north", masked) == "join"
    federation.restart()
    assert asks(federation, "north", masked) == "join"
    for number in range(3):
        asks(federation, "north", Message("keys", {"round": number}, {}))
    reason = asks(federation, "north", Message("keys", {"round": 0}, {}))
    assert "was asked for 3 rounds" in reason
    preprocess = Message("preprocess", {"plans": plans.to_json(), "configurations": ["2d"]}, {})
    for task in (statistics, masked, preprocess):
        assert "was asked for 3 jobs" in asks(federation, "north", task)


def test_no_more_bytes_leave_than_the_hospital_allows(federation: Federation, plans: Plans) -> None:
    assert asks(federation, "north", join_task(plans)) == "join"
    used = json.loads(federation.configs["north"].used_file.read_text())["bytes"]
    limit(federation, "north", bytes=2 * used)
    assert asks(federation, "north", join_task(plans)) == "join"
    reason = asks(federation, "north", join_task(plans))
    assert f"has sent {2 * used} bytes, and" in reason
    assert f"beyond the {2 * used} of --max-bytes" in reason


def test_no_coordinator_fills_the_disk_of_a_hospital(
    federation: Federation, plans: Plans, tmp_path: Path
) -> None:
    config = federation.configs["north"]
    assert asks(federation, "north", join_task(plans)) == "join"
    (opened,) = open_sites(tmp_path / "north", plans, "2d", "0", 0)
    task = train_task(first_state(plans, SETTINGS), register(opened))
    held, more = folder_bytes(config.work), 4 * len(encode(task))
    limit(federation, "north", disk=held + more + 20_000)  # logs grow by less than that
    assert asks(federation, "north", join_task(plans)) == "join"
    assert asks(federation, "north", task) == "train"
    stored = folder_bytes(config.work) - held
    assert more / 4 < stored < more  # the state of the optimizer
    reason = asks(federation, "north", task)
    assert "stored more than the" in reason
    assert f" {held + more + 20_000} bytes of --max-disk" in reason
    assert str(folder_bytes(config.work)) not in reason  # it leaves, and tells of the cases' sizes


def test_preprocessing_ends_where_a_hospital_has_no_more_room(tmp_path: Path) -> None:
    data = tmp_path / "data"
    write_site(data, [("t1", "t2")] * 3, "patient")
    limits = dataclasses.replace(NO_FLOORS, disk=130_000)
    config = SiteConfig("north", data, tmp_path / "north", minimum=Minimum(), limits=limits)
    orders = PlanningJob(tmp_path, ("north",), "demo", ("2d",), (0, 0))
    with pytest.raises(MixmflError, match=r"more than the 130000 bytes of --max-disk"):
        plan_remotely(orders, Federation(config).ask)
    assert 0 < len([*(config.folder / "2d").glob("*.json")]) < 3


def test_a_policy_bounds_the_days_of_a_run_and_the_settings_of_its_plans(
    federation: Federation, plans: Plans, tmp_path: Path
) -> None:
    file = tmp_path / "policy.json"
    config = dataclasses.replace(federation.configs["north"], approval=Approval(file))
    federation.configs["north"] = config
    federation.restart()
    of_run = {"until": "2999-01-01", "rounds": 9, "planning": False}
    write_json(file, {**of_run, "presets": ["0" * 64]})
    preset = settings_digest(plans)
    reason = asks(federation, "north", join_task(plans))
    assert f"the plans' settings {preset} are not those that it names" in reason
    other = replace_settings(plans, {}, {"personal_rounds": 3})
    write_json(file, {**of_run, "presets": [preset], "days": 30})
    assert "are not those that it names" in asks(federation, "north", join_task(other))
    assert asks(federation, "north", join_task(plans)) == "join"
    (opened,) = open_sites(tmp_path / "north", plans, "2d", "0", 0)
    task = train_task(first_state(plans, SETTINGS), register(opened))
    assert asks(federation, "north", task) == "train"
    (joined,) = config.work.glob("runs/*/joined.json")
    content = json.loads(joined.read_text())
    write_json(joined, {**content, "begun": content["begun"] - 31 * 86_400})
    longer = dataclasses.replace(SETTINGS, rounds=4)  # another job, and the same run
    assert "and it approves of 30 days" in asks(federation, "north", join_task(plans, longer))
    write_json(file, {**of_run, "days": 32})
    assert asks(federation, "north", join_task(plans, longer)) == "join"
    assert json.loads(joined.read_text())["begun"] == content["begun"] - 31 * 86_400
    write_json(file, {**of_run, "days": 30})  # that is over while it trains
    assert "does not cover this job any more: the run was joined on" in asks(
        federation, "north", task
    )


def test_what_cannot_be_recorded_is_not_given_away(
    federation: Federation, plans: Plans, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = federation.configs["north"]
    config.audit_log.file.write_text("cut off")
    with pytest.raises(PrivacyError, match="its last line is cut off or damaged"):
        answer(federation.hospitals["north"], encode(Message("fingerprint", {"minimum": "?"}, {})))
    assert "failed is not sent: " in config.problem_log.read_text().splitlines()[-1]


def test_a_site_without_a_key_joins_no_masked_run(federation: Federation, plans: Plans) -> None:
    masked = join_task(plans, dataclasses.replace(SETTINGS, masked=True))
    north = federation.configs["north"]
    federation.configs["north"] = dataclasses.replace(north, keys=None)
    federation.restart()
    assert "has no key of a kit to sign its part with" in asks(federation, "north", masked)
    federation.configs["north"] = north
    federation.restart()
    assert north.keys is not None
    key = north.keys.folder / "client.key"
    other = simulated_identities(["north"])["north"].private
    for content, reason in (
        (other, "client.key: is not the key of "),
        (b"?", "keys/north: the key or a certificate cannot be read"),
    ):
        key.write_bytes(content)
        assert reason in asks(federation, "north", masked)
    key.unlink()
    assert "client.key: there is no such file; put the hospital's private key" in asks(
        federation, "north", masked
    )
    assert asks(federation, "north", join_task(plans)) == "join"  # a plain one needs none


def asks(federation: Federation, site: str, task: Message) -> str:
    """Return the kind of the reply, and where it is a failure its reason at the site."""
    kind = decode(answer(federation.hospitals[site], encode(task))).kind
    if kind != messages.FAILED:
        return kind
    return federation.configs[site].problem_log.read_text().splitlines()[-1]


def test_who_asks_for_ever_for_what_is_not_done_fills_no_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every task and every answer is logged, so they come ever more slowly."""
    waited: list[float] = []
    monkeypatch.setattr("time.sleep", waited.append)
    monkeypatch.setattr(service, "_FAILED_IN_A_ROW", 3)
    (config,) = configs_of(tmp_path, {"alpha": [("t1",)] * 4}, small_plans())
    hospital = ClientService(config)
    join, nonsense = encode(join_task(small_plans())), encode(Message("nonsense", {}, {}))
    for sent, waits in (
        *((nonsense, 0),) * 3,
        *((nonsense, number + 1) for number in range(2)),
        (join, 2),
        *((nonsense, 2),) * 3,
        (nonsense, 3),
    ):
        assert (decode(answer(hospital, sent)).kind == "join") is (sent is join)
        assert len(waited) == waits
    assert config.audit_log.file.read_text().count('"kind": "failed"') == 9


def join_task(plans: Plans, settings: RunSettings = SETTINGS, run: str = "abc") -> Message:
    record = {"run": run, "plans": plans.to_json(), "settings": vars(settings), "fold": "0"}
    return Message("join", record, {})


def limit(federation: Federation, site: str, **limits: Any) -> None:
    config = federation.configs[site]
    federation.configs[site] = dataclasses.replace(
        config, limits=dataclasses.replace(config.limits, **limits)
    )
    federation.restart()


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        ({"masked_only": True}, "starts a run without masks, and this site takes part in masked"),
        ({"rounds": 2}, "asks for rounds 3; this site allows 2 (--max-rounds)"),
        ({"local_steps": 1}, "asks for local steps 2; this site allows 1 (--max-local-steps)"),
        ({"learning_rate": 1e-3}, "learning rate 0.01; this site allows 0.001 (--max-learning-"),
    ],
)
def test_a_run_beyond_the_limits_of_the_hospital_is_not_joined(
    federation: Federation, plans: Plans, limits: dict[str, Any], reason: str
) -> None:
    limit(federation, "north", **limits)
    assert reason in asks(federation, "north", join_task(plans))
    within = dataclasses.replace(SETTINGS, rounds=2, local_steps=1, learning_rate=1e-3, masked=True)
    assert asks(federation, "north", join_task(plans, within)) == "join"


def test_plans_that_need_more_memory_than_the_machine_has_are_refused(
    federation: Federation, plans: Plans, monkeypatch: pytest.MonkeyPatch
) -> None:
    hungry = Mock(return_value=1e6)
    monkeypatch.setattr("mixmfl.training.hardware.training_memory_gb", hungry)
    reason = asks(federation, "north", join_task(plans))
    assert "takes some 1000000 GB for feature maps alone, and cpu has " in reason
    assert not federation.configs["north"].jobs.exists()  # nobody was asked


@pytest.mark.parametrize(
    ("kinds", "limits"),
    [(("train",), {"rounds": 3}), (("validate", "measure", "personalize"), {"queries": 3})],
)
def test_what_a_coordinator_used_up_is_remembered_over_restarts_and_runs(
    tmp_path: Path, federation: Federation, plans: Plans, kinds: Sequence[str],
    limits: dict[str, int],
) -> None:  # fmt: skip
    limit(federation, "north", **limits)
    (opened,) = open_sites(tmp_path / "north", plans, "2d", "0", 0)
    registered = {"north": register(opened)}
    state = first_state(plans, SETTINGS)
    tasks = {
        "train": train_task(state, registered["north"]),
        "validate": validation_task(state, "north", registered),
        "measure": measure_task(state, "north", registered),
        "personalize": personalization_task(state, "north", registered),
    }
    for number, kind in enumerate([*kinds, *kinds, *kinds][:3]):
        federation.restart()
        assert asks(federation, "north", join_task(plans, run=f"run{number}")) == "join"
        assert asks(federation, "north", tasks[kind]) == kind
    federation.restart()
    assert asks(federation, "north", join_task(plans)) == "join"
    for kind in kinds:
        (name,) = limits
        assert f"was asked for 3 {name}, and" in asks(federation, "north", tasks[kind])
    for damaged in ("{", '{"rounds": 1}', '{"rounds": -9, "queries": -9}'):
        federation.configs["north"].used_file.write_text(damaged)
        assert "used.json" in asks(federation, "north", tasks[kinds[0]])


def test_a_masked_run_is_not_joined_again_without_masks(
    federation: Federation, plans: Plans
) -> None:
    masked = join_task(plans, dataclasses.replace(SETTINGS, masked=True))
    assert asks(federation, "north", masked) == "join"
    federation.restart()
    assert "run abc was joined before with other plans" in asks(
        federation, "north", join_task(plans)
    )
    assert asks(federation, "north", masked) == "join"


def test_no_dice_of_fewer_cases_than_the_hospital_wants_is_sent(
    federation: Federation, orders: TrainingJob
) -> None:
    """Else a coordinator that asks with chosen weights learns about a single case."""
    limit(federation, "north", validation_cases=2)
    sent = listen_to(federation, "north")
    assert train(federation, dataclasses.replace(orders, personalize=True))
    assert {tuple(dice) for dice in sent["validate"].record["dice"].values()} == {(0.0, 0)}
    for _, dice in sent["measure"].record["subsets"]:
        assert {tuple(counts) for counts in dice.values()} == {(0,) * BINS}
    assert sent["personalize"].record == {"dice": None, "dice_before": None}


def test_a_site_keeps_no_model_but_one_of_the_run(
    tmp_path: Path, federation: Federation, orders: TrainingJob, plans: Plans
) -> None:
    assert train(federation, orders)
    kept = tmp_path / "north" / "runs" / "abc123" / "model.safetensors"
    before = kept.read_bytes()
    other = small_plans(keep_every=7)
    file = tmp_path / "other.safetensors"
    save_model(file, first_state(other, SETTINGS), other, "2d", TrainedOn({"t1": 1}))
    for content, reason in (
        (b"anything", "is no model file"),
        (file.read_bytes(), "a model of other plans than those of the run"),
    ):
        tensor = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        assert reason in asks(federation, "north", Message("model", {}, {"file": tensor}))
    assert kept.read_bytes() == before


def test_a_round_that_is_asked_for_again_starts_from_the_same_optimizer_state(
    federation: Federation, plans: Plans
) -> None:
    north = federation.hospitals["north"]
    join = Message(
        "join",
        {
            "version": mixmfl.__version__,
            "run": "abc",
            "plans": plans.to_json(),
            "settings": vars(SETTINGS),
            "fold": "0",
        },
        {},
    )
    joined = decode(answer(north, encode(join))).record["registration"]
    site = federation.configs["north"].work
    state = first_state(plans, SETTINGS)
    (opened,) = open_sites(site, plans, "2d", "0", 0)
    registration = register(opened)
    assert joined["cases"] == registration.cases
    first = encode(train_task(state, registration))
    second = encode(train_task(type(state)(1, state.weights, {}), registration))
    answer(north, first)
    once = answer(north, second)
    assert answer(north, second) == once  # not from the state after the first try
    without = ClientService(federation.configs["south"])
    assert decode(answer(without, first)).kind == messages.FAILED  # it never joined
    (site / "runs" / "abc" / "optimizer" / "00000.safetensors").write_bytes(b"damaged")
    assert answer(north, second) != once  # starts from an empty state
    assert (
        "the optimizer state of round 1 is left out"
        in federation.configs["north"].problem_log.read_text()
    )


def test_a_lost_site_is_left_out_and_reconnects(
    federation: Federation, orders: TrainingJob
) -> None:
    assert not train(federation, orders, stop_after=1)
    federation.down = {"south"}
    assert not train(federation, orders, stop_after=1)
    federation.down = set()
    federation.restart()
    assert train(federation, orders)
    history = open_run(orders.out).history
    assert [reports["south"].absent for reports in history] == ["", NOT_CONNECTED, ""]
    assert all(reports["north"].loss is not None for reports in history)


def test_a_round_below_its_quorum_does_not_count(
    federation: Federation, orders: TrainingJob
) -> None:
    strict = TrainingJob(**{**vars(orders), "quorum": 2})
    assert not train(federation, strict, stop_after=1)
    federation.down = {"south"}
    with pytest.raises(QuorumError, match=r"round 2: 1 replies can be used, 2 are needed"):
        train(federation, strict)
    assert len(open_run(orders.out).history) == 1


def test_a_new_run_waits_for_nobody_but_tells_who_is_missing(
    federation: Federation, orders: TrainingJob
) -> None:
    federation.down = {"south"}
    with pytest.raises(DataError, match=r"join: no usable answer.*\n  south: is not connected"):
        train(federation, orders)
    assert not (orders.out / "run.json").exists()


def test_a_hospital_that_refuses_is_named_with_its_reason_and_the_others_train(
    federation: Federation, orders: TrainingJob
) -> None:
    limit(federation, "north", rounds=2)
    reason = "refuses: the coordinator asks for rounds 3; this site allows 2 (--max-rounds)"
    assert train(federation, orders)
    assert open_run(orders.out).registrations.keys() == {"south"}
    assert read_refusals(job_file(orders.out)) == [f"north: join: {reason}"]
    left = decode(answer(federation.hospitals["north"], encode(join_task(small_plans()))))
    assert left.record["refused"] == reason.removeprefix("refuses: ")


@pytest.mark.parametrize("too_few", ["quorum", "masked", "all"])
def test_where_the_others_are_too_few_a_refusal_ends_a_new_run_with_its_reason(
    federation: Federation, orders: TrainingJob, too_few: str
) -> None:
    """So it does in a masked one: the first sum decides which hospitals are in all later ones."""
    masked = dataclasses.replace(SETTINGS, masked=too_few == "masked")
    orders = dataclasses.replace(orders, settings=masked, quorum=2 if too_few == "quorum" else 1)
    for name in ("north", "south") if too_few == "all" else ("north",):
        limit(federation, name, rounds=2)
    with pytest.raises(DataError, match=r"join: no usable.*\n  north: refuses: the coordinator as"):
        train(federation, orders)
    assert not (orders.out / "run.json").exists()


def test_a_refusal_names_no_file_and_no_person(tmp_path: Path, federation: Federation) -> None:
    """What the hospital reads of it in its own log does."""
    config, plans, policy = federation.configs["north"], small_plans(), tmp_path / "policy.json"
    write_json(policy, {"until": "2999-01-01", "rounds": 2})
    asked = dataclasses.replace(config, approval=Approval(policy, ask=True))
    task = encode(join_task(plans))

    def refused(site: SiteConfig) -> str:
        federation.configs["north"] = site
        federation.restart()
        reason = str(decode(answer(federation.hospitals["north"], task)).record["refused"])
        log = config.problem_log.read_text().splitlines()[-1]
        assert reason in log
        assert str(tmp_path) in log
        return reason

    reasons = [refused(dataclasses.replace(config, approval=Approval(policy)))]
    (job,) = config.jobs.iterdir()
    answer_job(job, approved=False)
    reasons.append(refused(asked))
    for used in ({"jobs": 0}, {"bytes": 0}):
        reasons.append(
            refused(dataclasses.replace(config, limits=Limits(**{**vars(NO_FLOORS), **used})))
        )
    assert reasons == [
        "the hospital's policy does not cover this job: rounds 3, and it approves of 2",
        "a person at the hospital refused this job",
        "this site was asked for 2 jobs, and --max-jobs allows 0; nothing more is sent unless the "
        "hospital raises it",
        reasons[-1],
    ]
    assert "of --max-bytes" in reasons[-1]


def test_a_plan_is_made_without_a_hospital_that_refuses(tmp_path: Path) -> None:
    configs = []
    for name in ("north", "south"):
        write_site(tmp_path / "data" / name, [("t1",)] * 2, f"{name}_patient")
        site = SiteConfig(name, tmp_path / "data" / name, tmp_path / name, minimum=Minimum())
        configs.append(dataclasses.replace(site, limits=NO_FLOORS))
    federation, out = Federation(*configs), tmp_path / "work"
    limit(federation, "south", jobs=0)
    plan_remotely(PlanningJob(out, ("north", "south"), "demo", ("2d",), (0, 0)), federation.ask)
    assert json.loads((out / "preprocessed.json").read_text()) == {"north": {"2d": [2, 0]}}
    reason = (
        "refuses: this site was asked for 0 jobs, and --max-jobs allows 0; nothing more is sent "
        "unless the hospital raises it"
    )
    kinds = ("fingerprint", "preprocess")
    assert read_refusals(job_file(out)) == [f"south: {kind}: {reason}" for kind in kinds]


def test_a_hospital_that_comes_back_with_other_cases_is_left_out(
    federation: Federation, orders: TrainingJob
) -> None:
    assert not train(federation, orders, stop_after=1)
    lost = federation.configs["south"].work / "sites" / "south" / "2d" / "p0.json"
    kept = lost.read_bytes()
    lost.unlink()
    federation.restart()
    assert not train(federation, orders, stop_after=1)
    absent = open_run(orders.out).history[-1]["south"].absent
    assert absent == "did not join with the cases that it registered"
    lost.write_bytes(kept)
    assert train(federation, orders)


def test_personalised_models_stay_at_the_site(
    tmp_path: Path, federation: Federation, orders: TrainingJob
) -> None:
    assert train(federation, TrainingJob(**{**vars(orders), "personalize": True}))
    personal = open_run(orders.out).personal
    assert set(personal) == set(CASES)  # each has a validation case
    for name, config in federation.configs.items():
        own = config.work / "runs" / "abc123" / "own_model.safetensors"
        assert own.is_file() == personal[name].kept
        if personal[name].kept:
            assert load_model(own).measured == Measured()
    assert not (orders.out / "personal").exists()
    assert "personalize" in {kind for _, kind in federation.asked}


@pytest.mark.parametrize(
    ("planned", "limits", "reason"),
    [
        ({"personal_rounds": 4}, {"rounds": 3}, "personal rounds 4; this site allows 3 (--max-r"),
        (
            {"personal_rounds": 1, "personal_learning_rate": 1.0},
            {"learning_rate": 0.5},
            "personal learning rate 1; this site allows 0.5 (--max-learning-rate)",
        ),
    ],
)
def test_a_personalised_model_is_made_within_the_limits_of_a_run(
    federation: Federation, planned: dict[str, Any], limits: dict[str, Any], reason: str
) -> None:
    """Its rounds and learning rate stand in the plans, which are the coordinator's."""
    stored = small_plans()
    plans = dataclasses.replace(stored, training=dataclasses.replace(stored.training, **planned))
    limit(federation, "north", **limits)
    assert asks(federation, "north", join_task(plans)) == "join"
    opened = federation.configs["north"].open(plans, "2d", "0", 0)
    task = personalization_task(first_state(plans, SETTINGS), "north", {"north": register(opened)})
    assert reason in asks(federation, "north", task)


def test_a_longer_run_leaves_no_personalised_model_of_the_shorter_one(
    federation: Federation, orders: TrainingJob
) -> None:
    short = dataclasses.replace(SETTINGS, rounds=1)
    assert train(federation, dataclasses.replace(orders, settings=short, personalize=True))
    kept = [name for name, report in open_run(orders.out).personal.items() if report.kept]
    assert kept
    assert train(federation, dataclasses.replace(orders, settings=TWO_FASTER))
    run = open_run(orders.out)
    assert not run.personal
    assert [str(change) for change in run.changes] == [
        "from round 2 on: rounds 1 -> 2",
        "from round 2 on: local_steps 2 -> 1",
        "from round 2 on: learning_rate 0.01 -> 0.02",
    ]
    for config in federation.configs.values():
        assert not list((config.work / "runs" / "abc123").glob("own*"))
        assert (
            "the coordinator changed run abc123: rounds 1 -> 2, local_steps 2 -> 1, "
            "learning_rate 0.01 -> 0.02"
        ) in config.exchange_log.read_text()


def test_a_run_is_joined_again_as_before_and_not_where_that_is_not_known(
    federation: Federation, plans: Plans
) -> None:
    assert asks(federation, "north", join_task(plans)) == "join"
    assert asks(federation, "north", join_task(plans, TWO_FASTER)) == "join"
    masked = dataclasses.replace(TWO_FASTER, masked=True)
    assert "run abc was joined before with" in asks(federation, "north", join_task(plans, masked))
    limit(federation, "north", learning_rate=0.01)
    assert "--max-learning-rate" in asks(federation, "north", join_task(plans, TWO_FASTER))
    file = federation.configs["north"].work / "runs" / "abc" / "joined.json"
    file.write_text(json.dumps({"sha256": "0" * 64}))
    refusal = asks(federation, "north", join_task(plans))
    assert "missing fields ['begun', 'schedule'], so how the run was joined is not" in refusal


def test_a_hospital_joins_a_run_when_it_is_connected_and_another_leaves(
    federation: Federation, orders: TrainingJob
) -> None:
    alone = dataclasses.replace(orders, sites=("north",))
    assert not train(federation, alone, stop_after=1)
    federation.down = {"south"}
    both = dataclasses.replace(orders, settings=dataclasses.replace(SETTINGS, rounds=4))
    assert not train(federation, both, stop_after=1)
    assert set(open_run(orders.out).registrations) == {"north"}
    federation.down = set()
    assert not train(federation, both, stop_after=1)
    federation.asked.clear()
    assert train(federation, dataclasses.replace(both, sites=("south",)))
    run = open_run(orders.out)
    assert [sorted(each) for each in run.history] == [
        *(["north"], ["north"], ["north", "south"], ["south"])
    ]
    assert {site for site, _ in federation.asked} == {"south"}
    assert [change.text for change in run.changes] == [
        "rounds 3 -> 4",
        "site south joins with 2 training cases",
        "modality flair joins with 2 training cases, its encoder starts from t2",
        "site north leaves; the model keeps what it learnt from its 2 training cases",
        "modality t2 has no site any more; its encoder stays in the model as it is",
    ]


def test_hospitals_start_from_the_weights_that_the_coordinator_has(
    tmp_path: Path, federation: Federation, orders: TrainingJob
) -> None:
    model = write_model(tmp_path / "old.safetensors")
    orders = dataclasses.replace(orders, init=model)
    assert not train(federation, orders, stop_after=0)
    model.unlink()  # the coordinator keeps what it starts from
    assert not train(federation, orders, stop_after=1)
    run = open_run(orders.out)
    assert run.start is not None
    assert all(part.taken == part.tensors for part in run.start.parts if part.name != "memory")
    old = first_state(small_plans(), RunSettings("2d", 0, 1, 1, 0.01)).weights
    first = load_state_of(run, 0).weights
    assert all(torch.equal(first[name], old[name]) for name in old)


def test_hospitals_plan_together_and_preprocess_each_its_own(tmp_path: Path) -> None:
    configs = {}
    for name, modalities in {"north": ("t1", "t2"), "south": ("flair", "t1")}.items():
        data = tmp_path / "data" / name
        write_site(data, [modalities] * 2, f"{name}_patient")
        configs[name] = SiteConfig(name, data, tmp_path / name, minimum=Minimum(), limits=NO_FLOORS)
    federation = Federation(*configs.values())
    out = tmp_path / "work"
    plan_remotely(PlanningJob(out, tuple(configs), "demo", ("2d",), (0, 0)), federation.ask)
    plans = Plans.load(out / "plans.json")
    assert plans.modalities == ("flair", "t1", "t2")
    assert json.loads((out / "preprocessed.json").read_text()) == {
        name: {"2d": [2, 0]} for name in configs
    }
    settings = RunSettings("2d", 0, 1, 1, 0.01)
    orders = TrainingJob(out, tmp_path / "run", tuple(configs), "abc", settings, "all")
    assert train_remotely(orders, federation.ask, lambda: False)
    for name, config in configs.items():  # nothing that could be kept or sent names a patient
        assert "patient" not in config.exchange_log.read_text(), name
    # planning again asks nobody for statistics
    federation.asked.clear()
    plan_remotely(PlanningJob(out, tuple(configs), "demo", ("2d",), (0, 0)), federation.ask)
    assert {kind for _, kind in federation.asked} == {"preprocess"}


def test_hospitals_that_label_different_classes_plan_and_train_together(tmp_path: Path) -> None:
    core: dict[str, Any] = {
        "labels": {"background": 0, "Kern": 4},
        "label_map": {"Kern": "core", "1": "background"},
    }
    configs = {}
    for name, described in (("north", LABELS_JSON), ("south", core)):
        data = tmp_path / "data" / name
        write_site(data, [("t1",)] * 2, described=described)
        configs[name] = SiteConfig(name, data, tmp_path / name, minimum=Minimum(), limits=NO_FLOORS)
    federation = Federation(*configs.values())
    out, names = tmp_path / "work", tuple(configs)
    plan_remotely(PlanningJob(out, names, "demo", ("2d",), (0, 0)), federation.ask)
    assert Plans.load(out / "plans.json").labels.to_json() == LABELS_JSON
    settings = RunSettings("2d", 0, 1, 1, 0.01)
    orders = TrainingJob(out, tmp_path / "run", names, "abc", settings, "0")
    assert train_remotely(orders, federation.ask, lambda: False)
    run = open_run(tmp_path / "run")
    assert run.registrations["north"].labelled is None
    assert run.registrations["south"].labelled == ["core"]
    dice = run.history[0]["south"].dice
    assert dice["lesion"] is None
    assert dice["core"] is not None


def test_small_counts_stay_at_the_hospital_unless_both_sides_lower_the_minimum(
    tmp_path: Path,
) -> None:
    data = tmp_path / "data"
    write_site(data, [("t1",), ("t1", "t2"), ("t1", "t2")])

    def minimum_of(here: Minimum, asked: Minimum) -> dict[str, Any] | None:
        north = ClientService(SiteConfig("north", data, tmp_path / "work", minimum=here))
        record = {"version": mixmfl.__version__, "minimum": list(vars(asked).values())}
        reply = decode(answer(north, encode(Message("fingerprint", record, {}))))
        return reply.record["fingerprint"]

    assert minimum_of(NETWORK_MINIMUM, NETWORK_MINIMUM) is None  # three cases
    assert minimum_of(Minimum(3, 0), NETWORK_MINIMUM) is None
    assert minimum_of(NETWORK_MINIMUM, Minimum(3, 0)) is None
    both = minimum_of(Minimum(3, 0), Minimum(3, 0))
    assert both is not None
    assert both["cases"] == 3
    assert sum(both["intensities"]["t1"]) > 0
    assert sum(both["intensities"]["t2"]) == 0  # of two cases only


def test_a_dry_run_lists_what_leaves_and_sends_nothing(tmp_path: Path) -> None:
    data = tmp_path / "data"
    write_site(data, [("t1", "t2")] * 5, "secret")
    config = SiteConfig("north", data, tmp_path / "work")
    found, missing = preview_of_site(config)
    assert {item.kind for item in found} == {"fingerprint"}
    assert "depends on the plans, which have not arrived yet" in missing
    federation = Federation(config)
    plan_remotely(PlanningJob(tmp_path, ("north",), "demo", ("2d",), (5, 100)), federation.ask)
    log = config.exchange_log.read_text()
    found, missing = preview_of_site(config)
    assert "twice as many, or for masked numbers, four times as many" in missing
    kinds = set(SENT) - {*MASKED_KINDS, "model"}  # a reply to model says nothing
    assert {item.kind for item in found} == kinds
    trained = sum(item.size for item in found if item.kind == "train" and item.shape is not None)
    assert "secret" not in outbound_table(found)
    assert config.exchange_log.read_text() == log  # nothing was sent
    # and what it said is what a round sends
    settings = RunSettings("2d", 0, 1, 1, 0.01)
    orders = TrainingJob(tmp_path, tmp_path / "run", ("north",), "abc", settings, "0")
    sent = listen_to(federation, "north")
    assert train_remotely(orders, federation.ask, lambda: False)
    assert sum(tensor.nbytes for tensor in sent["train"].tensors.values()) == trained
    assert set(sent) == {"join", "train", "validate", "measure", "model"}
    fields = {(item.kind, item.name) for item in found}
    for kind in sent:
        assert {(kind, n) for n in (*sent[kind].record, *sent[kind].tensors)} <= fields


@pytest.mark.parametrize(
    ("task", "error"),
    [
        (Message("delete", {}, {}), "AggregationError"),
        (Message("train", {"round": 0}, {}), "AggregationError"),  # nothing was joined
        (Message("fingerprint", {"version": "0.0.9"}, {}), "PlansError"),
        (Message("preprocess", {}, {}), "AggregationError"),
        (Message("fingerprint", {"minimum": [0, 0]}, {}), "DataError"),  # its folder is not there
    ],
)
def test_a_failure_is_reported_without_its_reason(
    federation: Federation, task: Message, error: str
) -> None:
    config = federation.configs["north"]
    reply = decode(answer(federation.hospitals["north"], encode(task)))
    reason = {"error": error, "version": mixmfl.__version__}
    assert (reply.kind, reply.record, reply.tensors) == (messages.FAILED, reason, {})
    assert f"{task.kind} failed: {error}: " in config.problem_log.read_text()
    assert f"sent to coordinator: {messages.FAILED}" in config.exchange_log.read_text()


def of_version(number: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the hospitals be of another version than the coordinator."""
    for module in (service, version):
        monkeypatch.setattr(module, "__version__", number)


def test_another_version_is_logged_at_the_site_too(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_version("9.9.0", monkeypatch)
    task = Message("fingerprint", {"version": mixmfl.__version__, "minimum": [0, 0]}, {})
    reply = decode(answer(federation.hospitals["north"], encode(task)))
    assert reply.record["version"] == "9.9.0"
    problems = federation.configs["north"].problem_log.read_text()
    assert f"the coordinator runs mixmfl {mixmfl.__version__}, this site 9.9.0; install" in problems


def test_hospitals_are_updated_in_the_middle_of_a_run_and_its_model_is_the_same(
    federation: Federation,
    orders: TrainingJob,
    simulated: bytes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert not train(federation, orders, stop_after=1)
    federation.restart()
    of_version(f"{mixmfl.__version__.rpartition('.')[0]}.77", monkeypatch)
    assert train(federation, orders)
    monkeypatch.undo()
    model = (orders.out / "model.safetensors").read_bytes()
    assert model == simulated


def test_bytes_that_are_no_message_are_answered_too(federation: Federation) -> None:
    reply = decode(answer(federation.hospitals["north"], b"\x80\x04K\x01."))
    assert (reply.kind, reply.record["error"]) == (messages.FAILED, "AggregationError")


@pytest.mark.parametrize("name", ["../../home", "a/b", "", "a b", 3])
def test_a_run_cannot_be_called_by_a_path(
    federation: Federation, orders: TrainingJob, name: str
) -> None:
    with pytest.raises(DataError, match="join"):
        train(federation, TrainingJob(**{**vars(orders), "name": name}))
    problems = federation.configs["north"].problem_log.read_text()
    assert "it must be letters and digits of 1 to 64 characters" in problems


def test_a_full_disk_costs_the_hospital_its_round(
    federation: Federation, orders: TrainingJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not train(federation, orders, stop_after=1)

    def full(path: Path, state: State) -> None:
        if "south" in path.parts:
            raise OSError(28, "No space left on device")
        save_tensors(path, state)

    monkeypatch.setattr("mixmfl.federated.client.run_folder.save_tensors", full)
    assert not train(federation, orders, stop_after=1)
    monkeypatch.undo()
    assert train(federation, orders)
    history = open_run(orders.out).history
    assert [reports["south"].absent for reports in history] == ["", "could not do it (OSError)", ""]


def test_the_log_tells_what_crossed_with_sizes_and_hashes(
    federation: Federation, orders: TrainingJob
) -> None:
    sent: list[bytes] = []
    listened = federation.hospitals["north"].answer

    def listen(stored: StoredMessage) -> StoredMessage:
        back = listened(stored)
        sent.append(back.read(0, back.size))
        return back

    federation.hospitals["north"].answer = listen  # type: ignore[method-assign]
    train(federation, orders, stop_after=1)
    lines = federation.configs["north"].exchange_log.read_text().splitlines()
    (left,) = [line for line in lines if "sent to coordinator: train" in line]
    assert ", round 1, block decoder, block fusion, block shared, block tailored.t1," in left
    trained = next(content for content in sent if decode(content).kind == "train")
    digest = hashlib.sha256(trained).hexdigest()
    assert left.endswith(f"{len(trained)} bytes, sha256 {digest}")
    assert "flair" not in left  # it has none


def test_a_reply_that_nobody_fetched_is_not_logged_as_sent(federation: Federation) -> None:
    north = federation.hospitals["north"]
    task = StoredMessage.pack(Message("train", {"round": 0}, {}), Path(tempfile.gettempdir()))
    north.note_reply(north.answer(task), taken=False)
    (_, line) = federation.configs["north"].exchange_log.read_text().splitlines()
    assert "not sent, the coordinator did not take it: failed, record error version" in line


def test_a_second_job_at_a_hospital_is_refused_by_one_clear_error(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(site_config, "_TASK_SECONDS", 0.1)
    config = federation.configs["north"]
    task = encode(Message("fingerprint", {"version": mixmfl.__version__, "minimum": [0, 0]}, {}))
    with config.working():  # as another job's process does
        reply = decode(answer(ClientService(config), task))
    assert (reply.kind, reply.record["error"]) == (messages.FAILED, "DataError")
    (line,) = config.problem_log.read_text().splitlines()
    assert f"{config.work}: another job has been at work here for 0.1 s" in line


def test_hospitals_that_take_turns_work_one_at_a_time(tmp_path: Path) -> None:
    one, other = (
        SiteConfig(name, tmp_path, tmp_path / name, turns=tmp_path / "turns") for name in ("a", "b")
    )
    order: list[str] = []

    def second() -> None:
        with other.working():
            order.append("other")

    waiting = threading.Thread(target=second)
    with one.working():
        waiting.start()
        waiting.join(timeout=0.3)
        order.append("one")
    waiting.join(timeout=30)
    assert order == ["one", "other"]


def test_a_registration_beyond_the_fingerprint_is_not_taken(
    tmp_path: Path, federation: Federation, orders: TrainingJob
) -> None:
    assert not train(federation, orders, stop_after=1)
    fingerprint = fingerprint_of(cases=1, t1=1)
    write_json(orders.work / "network" / "fingerprints" / "south.json", fingerprint)
    federation.restart()
    assert not train(federation, orders, stop_after=1)
    absent = open_run(orders.out).history[-1]["south"].absent
    assert absent.startswith("its registration is not taken: site 'south' registered 2 for cases")


def test_a_hostile_record_makes_one_short_line_in_the_log(tmp_path: Path) -> None:
    record = {"round": "x", "a\n2026 sent to north: forged": 1, "b" * 1000: 2}
    message = Message("evil\nkind", record, {})
    line = describe_exchange("came from north", StoredMessage.pack(message, tmp_path), message)
    assert "\n" not in line
    assert len(line) < 500


def test_optimizer_states_of_repeated_rounds_are_removed(
    federation: Federation, orders: TrainingJob
) -> None:
    assert train(federation, TrainingJob(**{**vars(orders), "settings": LONG}))
    folder = federation.configs["north"].work / "runs" / "abc123" / "optimizer"
    assert sorted(p.stem for p in folder.iterdir()) == ["00003", "00004", "00005"]
    north = federation.hospitals["north"]
    state = first_state(small_plans(), LONG)
    (opened,) = open_sites(federation.configs["north"].work, small_plans(), "2d", "0", 0)
    answer(north, encode(train_task(type(state)(4, state.weights, {}), register(opened))))
    assert sorted(p.stem for p in folder.iterdir()) == ["00003", "00004"]


def test_a_hospital_says_for_itself_what_is_done_with_images_on_other_grids(tmp_path: Path) -> None:
    data = tmp_path / "data"
    write_site(data, [("t1", "t2")] * 2)
    thick, grid = read_image(data / "p1" / "t2.nii.gz")
    thin = dataclasses.replace(
        grid,
        shape=(2 * grid.shape[0], *grid.shape[1:]),
        spacing=(1.0, *grid.spacing[1:]),
        origin=(*grid.origin[:2], grid.origin[2] - 0.5),  # the middle of half a slice
    )
    write_image(data / "p1" / "t2.nii.gz", thick.repeat(2, axis=0), thin)
    alignment = AlignmentOptions("t1", register=True)
    config = SiteConfig(
        "north", data, tmp_path / "work", alignment=alignment, minimum=Minimum(), limits=NO_FLOORS
    )
    assert config.cases().alignment == alignment
    federation = Federation(config)
    plan_remotely(PlanningJob(tmp_path, ("north",), "demo", ("2d",), (0, 0)), federation.ask)
    (problem,) = config.problem_log.read_text().splitlines()
    assert "2d: case p1: t2 was resampled onto the grid of t1" in problem
    assert "p1" not in config.exchange_log.read_text()


def test_settings_and_orders_are_read_as_they_were_written(
    tmp_path: Path, orders: TrainingJob
) -> None:
    config = SiteConfig(
        "a", tmp_path / "d", tmp_path, "cuda:1", 2, 3, ("x=y",), tmp_path / "l.json"
    )
    noisy = Privacy(8.0, 1e-5, 1.0, 0.5, tmp_path / "ledger.json")
    other = dataclasses.replace(
        config,
        labels=None,
        privacy=noisy,
        alignment=AlignmentOptions("t2", True),
        brains=BrainExtraction("own", "tool {image} {mask}"),
    )
    limited = dataclasses.replace(config, minimum=Minimum(3, 50), limits=Limits(True, 7, 6, 0.5, 5))
    odd = SiteConfig("Klinik\u00a0Ulm", tmp_path / "a\u00a0b", tmp_path / "病院\u3000x")
    for home in (config, other, limited, odd):
        home.check()
        home.save(tmp_path / "config.json")
        assert SiteConfig.load(tmp_path / "config.json") == home
    for each in (
        orders,
        dataclasses.replace(orders, out=odd.data, sites=(odd.name,), quorum=1),
        PlanningJob(tmp_path, ("a",), "demo", ("2d", "3d_fullres"), (5, 100), True),
    ):
        save_job(each, tmp_path / "orders.json")
        assert load_job(tmp_path / "orders.json") == each


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"workers": -1}, "workers: is -1; it must be a whole number from 0 to 1024"),
        ({"name": "a\x1b"}, r"name: is 'a\\x1b'; it must be printable text of 1 to 80 characters"),
        ({"minimum": {"cases": "5", "voxels": 1}}, "minimum: cases: is '5'; it must be a whole"),
        ({"limits": {}}, "limits: missing fields .*'masked_only'"),
        (
            {"brains": {"tool": "sh", "command": ""}},
            "brains: tool: is 'sh'; it must be none or",
        ),
        ({"turn": None}, r"unknown fields \['turn'\]"),
        ({"data": 3}, "data: is 3; it must be a path of 1 to 4096 characters"),
    ],
)
def test_damaged_settings_of_a_site_are_refused(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    file = tmp_path / "config.json"
    SiteConfig("north", tmp_path, tmp_path).save(file)
    write_json(file, {**read_json(file), **change})
    with pytest.raises(DataError, match=f"config.json: {message}.*; start mixmfl_site again"):
        SiteConfig.load(file)
