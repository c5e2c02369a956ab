"""The federation on FLARE: kits and their policies; and, over the loopback, training and faults."""

import contextlib
import dataclasses
import json
import os
import re
import shutil
import signal
import socket
import ssl
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from loopback import MODALITIES, Cable, Loopback, free_port, kill, start, until
from nvflare.apis.signal import Signal
from nvflare.fuel.flare_api.api_spec import NoConnection

import mixmfl
from mixmfl import flare
from mixmfl.embedded import open_sites, train_embedded
from mixmfl.errors import AggregationError, DataError, MixmflError
from mixmfl.files import clear_unfinished
from mixmfl.flare import Network, open_kit, provision
from mixmfl.hospital import House
from mixmfl.outgoing import NETWORK_MINIMUM
from mixmfl.rounds import RunSettings
from mixmfl.wire import Message, Parcel

STEPS = 30


@pytest.fixture
def kits(tmp_path: Path) -> Path:
    provision(Network("localhost", 18002, ("north", "south")), tmp_path / "kits")
    return tmp_path / "kits"


def test_everyone_gets_a_kit_whose_keys_nobody_else_can_read(kits: Path) -> None:
    assert {path.name for path in kits.iterdir()} == {"authority", "coordinator", "north", "south"}
    keys = [*kits.rglob("*.key"), *(kits / "authority").rglob("cert.json")]
    assert len(keys) == 5  # coordinator, its command, two sites, the authority
    for key in keys:
        assert stat.S_IMODE(key.stat().st_mode) == 0o600, key
    assert stat.S_IMODE((kits / "authority").stat().st_mode) == 0o700
    assert not list((kits / "north").rglob("rootCA.key"))
    kit = open_kit(kits / "north", coordinator=False)
    assert (kit.name, kit.server) == ("north", "localhost:18002")
    assert kit.expires > datetime.now(timezone.utc) + timedelta(days=300)


def test_a_hospital_lets_the_coordinator_run_one_class_and_see_nothing(kits: Path) -> None:
    local = kits / "north" / "local"
    resources = json.loads((local / "resources.json").read_text())
    assert resources["class_allow_list"] == ["mixmfl.flare.SiteExecutor"]
    assert resources["class_list_enforcement_mode"] == "enforce"
    assert resources["allow_log_streaming"] is False
    assert not [c for c in resources["components"] if "log" in c["path"]]
    told = json.loads((local / "authorization.json").read_text())["permissions"]
    allowed = {right for rights in told.values() for right, who in rights.items() if who != "none"}
    assert allowed == {"submit_job", "manage_job"}


def test_hospitals_are_added_later_and_the_others_keep_their_kits(kits: Path) -> None:
    before = {path: path.read_bytes() for path in kits.rglob("*.crt")}
    written = provision(Network("localhost", 18002, ("north", "south", "east-2")), kits)
    assert written == (kits / "east-2",)
    assert all(path.read_bytes() == content for path, content in before.items())
    assert flare.site_names(open_kit(kits / "coordinator", coordinator=True)) == (
        "north",
        "south",
        "east-2",
    )
    authority = {(kits / n / "startup" / "rootCA.pem").read_bytes() for n in ("east-2", "north")}
    assert len(authority) == 1


@pytest.mark.parametrize(
    "told",
    [
        {"server": "host", "sites": ["a"]},
        {"server": "host:8002", "sites": []},
        {"server": "host:8002", "sites": ["a", "a"]},
        {"server": "host:8002", "sites": ["../a"]},
        {"server": "host:8002", "sites": ["coordinator"]},
        {"server": "host:8002", "sites": ["a"], "rounds": 3},
        {"server": "host:8002", "sites": ["authority"]},
    ],
)
def test_a_network_that_cannot_be_is_refused(tmp_path: Path, told: dict[str, object]) -> None:
    (tmp_path / "network.json").write_text(json.dumps(told))
    with pytest.raises(DataError, match=r'network.json: {"server": "host:port"'):
        Network.load(tmp_path / "network.json")


def test_a_kit_is_used_where_it_belongs(kits: Path) -> None:
    for name, coordinator in (("north", True), ("coordinator", False)):
        with pytest.raises(DataError, match=r"is not .* start-up kit"):
            open_kit(kits / name, coordinator=coordinator)


def test_a_kit_that_is_renewed_has_another_key_and_the_old_one_is_set_aside(kits: Path) -> None:
    before = {
        name: (kits / name / "startup" / "client.key").read_bytes() for name in ("north", "south")
    }
    network = Network("localhost", 18002, ("north", "south"))
    assert provision(network, kits, ["north"]) == (kits / "north",)
    assert (kits / "north" / "startup" / "client.key").read_bytes() != before["north"]
    assert (kits / "south" / "startup" / "client.key").read_bytes() == before["south"]
    aside = kits / "north.replaced-1" / "startup" / "client.key"
    assert aside.read_bytes() == before["north"]
    for key in (aside, kits / "north" / "startup" / "client.key"):
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
    with pytest.raises(DataError, match="holds no kit of east"):
        provision(network, kits, ["east"])


def test_kits_of_another_server_are_not_mixed_with_those_that_are_there(kits: Path) -> None:
    other = Network("other.example.org", 18002, ("north", "south", "west"))
    with pytest.raises(DataError, match="holds kits for the server localhost:18002"):
        provision(other, kits)
    assert not (kits / "west").exists()


def test_an_expired_kit_is_refused_before_anything_starts(kits: Path) -> None:
    _write_certificate(kits / "north" / "startup", "north", days=-1)
    with pytest.raises(DataError, match=r"client.crt: expired on \d{4}-\d\d-\d\d; have the kit "):
        open_kit(kits / "north", coordinator=False)


def test_a_kit_is_used_by_one_process_at_a_time(kits: Path) -> None:
    kit = open_kit(kits / "coordinator", coordinator=True)
    refused = pytest.raises(MixmflError, match="is in use by another process")
    with flare.alone(kit), refused, flare.alone(kit):
        pass


class _Cell:
    """What FLARE connects processes by, as far as an offer needs one."""

    def __init__(self, name: str) -> None:
        self._name = name

    def get_fqcn(self) -> str:
        return self._name

    def register_request_cb(self, **how: object) -> None:
        """Nobody asks."""


def test_a_parcel_is_given_piece_by_piece_to_whom_it_is_offered_and_nobody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flare, "_CHUNK", 100)
    parcel = Parcel.pack(Message("train", {"round": 0}, {"decoder.w": torch.ones(50)}), tmp_path)
    begun: list[bool] = []
    offered = flare._Offered(_Cell("north.job"), parcel, "server", lambda: begun.append(True))
    with pytest.raises(ValueError, match=r"south.job asks for what is not there for it"):
        offered.produce(None, "south.job")
    with pytest.raises(ValueError, match="is not there"):
        offered.produce({"place": -1}, "server.job")
    assert not offered.taken
    pieces, state = [], None
    while (told := offered.produce(state, "server.job"))[1] is not None:
        pieces.append(told[1])
        state = told[2]
    assert b"".join(pieces) == parcel.read(0, parcel.size)
    assert {len(piece) for piece in pieces[:-1]} == {100}
    assert begun == [True]
    assert offered.taken
    offered.withdraw()


def test_what_is_fetched_has_a_limit_and_comes_from_the_one_who_was_asked(tmp_path: Path) -> None:
    file = tmp_path / "file"
    with file.open("wb") as opened:
        pieces = flare._Pieces(opened, 10)
        assert pieces.consume("", {"place": 6}, b"123456") == {"place": 6}
        with pytest.raises(ValueError, match="more than 10 bytes came"):
            pieces.consume("", {"place": 12}, b"123456")
    assert file.read_bytes() == b"123456"
    for address in (None, {}, {"from": "south.job", "number": "1"}, {"from": "north.job"}):
        with pytest.raises(AggregationError, match="does not say where the message can be fetched"):
            flare._fetch(_Cell("server.job"), address, "north", 10, tmp_path, Signal())


def test_tasks_that_say_the_same_lie_on_disk_once(tmp_path: Path) -> None:
    packed, weights = flare._Packed(tmp_path), {"decoder.w": torch.ones(3)}
    first = packed.of(Message("train", {"round": 0}, weights))
    assert packed.of(Message("train", {"round": 0}, dict(weights))) is first
    assert packed.of(Message("train", {"round": 1}, weights)) is not first
    assert packed.of(Message("train", {"round": 0}, {"decoder.w": torch.ones(3)})) is not first


def test_what_a_killed_process_left_half_written_is_removed_at_the_next_start(
    tmp_path: Path,
) -> None:
    (tmp_path / ".writing-a").write_text("half")
    (tmp_path / ".writing-b").mkdir()
    (tmp_path / ".writing-b" / "file").write_text("half")
    (tmp_path / "kept").write_text("whole")
    clear_unfinished(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_a_site_that_failed_is_told_by_its_version_first() -> None:
    told = {"task": "join", "error": "PlansError"}
    other = flare._failure(Message("failed", {**told, "version": "9.9\n"}, {}))
    assert other == f"runs mixmfl 9.9\\n, the coordinator {mixmfl.__version__}; install the same"
    same = flare._failure(Message("failed", {**told, "version": mixmfl.__version__}, {}))
    assert same == "could not do it (PlansError)"


def test_a_server_that_is_too_busy_to_answer_is_asked_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Busy:
        asked = 0

        def get_job_meta(self, number: str) -> dict[str, str]:
            self.asked += 1
            if self.asked < 3:
                raise NoConnection("Server did not respond")
            return {"status": "FINISHED:COMPLETED"}

    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    session: Any = Busy()
    assert flare._has_ended(session, "1")
    monkeypatch.setattr(flare, "_BUSY", -1.0)
    session.asked = 0
    with pytest.raises(NoConnection):
        flare._has_ended(session, "1")


def _write_certificate(startup: Path, name: str, days: int, authority: Path | None = None) -> None:
    """Write a certificate that ends in some days, signed by an authority's, or by itself."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    subject = issuer = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    signing: Any = key
    if authority is not None:
        told = json.loads((authority / "mixmfl" / "state" / "cert.json").read_text())
        issuer = x509.load_pem_x509_certificate(told["root_cert"].encode()).subject
        signing = serialization.load_pem_private_key(told["root_pri_key"].encode(), None)
    end = datetime.now(timezone.utc) + timedelta(days=days)
    made = (
        x509.CertificateBuilder(issuer, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(end - timedelta(days=30))
        .not_valid_after(end)
        .sign(signing, hashes.SHA256())
    )
    (startup / "client.crt").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (startup / "client.key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.TraditionalOpenSSL,
            serialization.NoEncryption(),
        )
    )


def in_this_process(test: Callable[..., None]) -> Callable[..., None]:
    """Mark a slow test that commands FLARE itself, whose threads warn of their libraries."""
    return pytest.mark.slow(pytest.mark.filterwarnings("ignore::DeprecationWarning")(test))


# --- over the loopback -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loopback]:
    folder = tmp_path_factory.mktemp("loopback")
    content = json.loads((Path(__file__).parents[1] / "plans" / "demo.json").read_text())
    content["planner"] |= {"memory_gb": 0.02, "base_features": 4, "max_features_2d": 8}
    content["training"] |= {"local_steps": STEPS, "learning_rate": 0.01, "validate_every": 1}
    (folder / "tiny.json").write_text(json.dumps(content))
    made = Loopback(folder, folder / "tiny.json")
    yield made
    made.close()


@pytest.fixture
def running(federation: Loopback) -> Loopback:
    """Have all sites run."""
    for name in MODALITIES:
        if name not in federation.sites or federation.sites[name].poll() is not None:
            federation.start_site(name)
    return federation


def expected(federation: Loopback, rounds: int = 3) -> bytes:
    """Return the model of the run in one process."""
    out = federation.folder / f"embedded{rounds}"
    if not (out / "model.safetensors").is_file():
        sites = []
        for name in MODALITIES:
            work = federation.folder / name
            sites += open_sites(work, federation.plans, "2d", "0", 0, torch.device("cpu"), 0)
        settings = RunSettings(
            *("2d", 0, rounds, STEPS, 0.01),
            minimum_cases=NETWORK_MINIMUM.cases,
            minimum_voxels=NETWORK_MINIMUM.voxels,
        )
        train_embedded(federation.plans, sites, settings, "0", out)
    return (out / "model.safetensors").read_bytes()


@contextmanager
def cable_to(federation: Loopback, name: str) -> Iterator[Cable]:
    """Have a site connected by a cable of its own, and as it was afterwards."""
    stop(federation.sites[name])
    config = federation.folder / "kits" / name / "startup" / "fed_client.json"
    before = config.read_text()
    cable = federation.lay_cable(name)
    federation.start_site(name)
    try:
        yield cable
    finally:
        stop(federation.sites[name])
        config.write_text(before)
        cable.close()


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a site as Ctrl-C does."""
    process.send_signal(signal.SIGINT)
    ended(process)


def ended(process: subprocess.Popen[bytes], seconds: float = 420) -> int:
    """Return the exit code of a command, in bounded time."""
    try:
        return process.wait(timeout=seconds)
    finally:
        kill(process)


def test_the_demo_of_a_network_gives_the_model_of_one_process(
    tmp_path: Path, command: object, capsys: pytest.CaptureFixture[str]
) -> None:
    done = start(
        tmp_path / "said.txt",
        "mixmfl_network_demo",
        *("-o", tmp_path / "demo"),
    )
    code = ended(done)
    said = (tmp_path / "said.txt").read_text()
    assert code == 0, said
    assert "are the same, byte by byte" in said
    assert said.count("round 2/2") == 2
    site = (tmp_path / "demo" / "logs" / "north.txt").read_text()
    assert "sent to coordinator: train, round 2, block decoder" in site
    logs = [*(tmp_path / "demo" / "kits").rglob("*log*"), *tmp_path.rglob("exchange.log")]
    logs = [file for file in logs if file.is_file()]
    assert len(logs) > 8  # FLARE's and ours
    for file in logs:
        assert "_phantom" not in file.read_text(errors="replace"), file  # the cases' names


@pytest.mark.slow
def test_a_killed_site_is_absent_and_takes_part_again_when_it_is_back(running: Loopback) -> None:
    process = running.train("killed", "--deadline", 0.5, rounds=8)
    until(lambda: "sent to south: train, round 2" in running.exchanged("killed"), "round 2")
    kill(running.sites["south"])
    until(lambda: running.rounds("killed") >= 2, "the round closes without it")
    running.start_site("south")
    assert ended(process) == 0, running.said("killed")
    run = running.history("killed")
    assert run is not None
    absent = [bool(sites["south"].absent) for sites in run.history]
    assert not absent[0]
    assert absent[1]
    assert not absent[-1], "it is back before the end"
    assert "a site has come back" in running.said("killed")
    assert all(not sites["north"].absent for sites in run.history)


@pytest.mark.slow
def test_a_straggler_is_not_waited_for_and_its_late_reply_is_dropped(running: Loopback) -> None:
    def asked() -> int:
        return running.said("west").count("came from coordinator: train, round 2,")

    before = asked()
    process = running.train("straggler", "--deadline", 0.25, rounds=4)
    until(lambda: asked() > before, "round 2")
    stopped = running.jobs("west")
    for job in stopped:
        job.suspend()
    until(lambda: running.rounds("straggler") >= 2, "the round closes without it")
    for job in stopped:
        job.resume()
    assert ended(process) == 0, running.said("straggler")
    run = running.history("straggler")
    assert run is not None
    assert run.history[1]["west"].absent == ("did not answer within 15 s; a later reply is dropped")
    assert not run.history[0]["west"].absent
    assert not run.history[-1]["west"].absent, "the next rounds are unharmed"
    replies = re.findall(r"came from west: train, round (\d)", running.exchanged("straggler"))
    assert "2" not in replies
    assert replies == sorted(set(replies))  # none twice
    site = running.said("west")
    assert "not sent, the coordinator did not take it: train, round 2," in site


@pytest.mark.slow
def test_a_killed_coordinator_resumes_to_the_same_model(running: Loopback) -> None:
    process = running.train("resumed")
    until(lambda: "sent to north: train, round 2" in running.exchanged("resumed"), "round 2")
    kill(process)
    assert running.rounds("resumed") == 1
    again = running.train("resumed", "--resume")
    assert ended(again) == 0, running.said("resumed")
    assert (running.folder / "resumed" / "model.safetensors").read_bytes() == expected(running)


@pytest.mark.slow
def test_a_cut_network_costs_a_site_rounds_and_no_more(running: Loopback) -> None:
    with cable_to(running, "north") as cable:
        process = running.train("cut", "--deadline", 0.5, rounds=7)
        until(lambda: "sent to north: train, round 2" in running.exchanged("cut"), "round 2")
        cable.cut()
        until(lambda: running.rounds("cut") >= 2, "a round without it")
        time.sleep(60)
        cable.mend()
        assert ended(process) == 0, running.said("cut")
    run = running.history("cut")
    assert run is not None
    assert len(run.history) == 7
    absent = [bool(sites["north"].absent) for sites in run.history]
    assert any(absent)
    assert not absent[-1], "it is back before the end"
    assert all(not sites["south"].absent for sites in run.history)


@pytest.mark.slow
def test_bytes_on_the_wire_are_those_of_the_messages(running: Loopback) -> None:
    with cable_to(running, "north") as cable:
        assert ended(running.train("wire", rounds=3)) == 0, running.said("wire")
        log = running.exchanged("wire")
        for way, carried in (("sent to", cable.to_site), ("came from", cable.to_server)):
            sizes = re.findall(rf"{way} north: .* tensors, (\d+) bytes", log)
            told = sum(map(int, sizes))
            # TLS, FLARE's headers, signs of life and what starts a job come on top
            assert told < carried < 1.2 * told + 2**20, (way, told, carried)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="Linux tells what is open, here")
def test_messages_of_past_rounds_are_gone_from_the_disk(running: Loopback) -> None:
    def held(command: subprocess.Popen[bytes], job: str) -> int:
        """Return how many messages the processes of a command have on disk."""
        found = 0
        with contextlib.suppress(psutil.Error, OSError):  # one may just have ended
            for process in psutil.Process(command.pid).children(recursive=True):
                if any(job in word for word in process.cmdline()):
                    opened = Path(f"/proc/{process.pid}/fd").iterdir()
                    found += sum("/.writing-" in os.readlink(file) for file in opened)
        return found

    training = running.train("held", rounds=8)
    most = {"site": 0, "coordinator": 0}
    while training.poll() is None:
        here = held(running.sites["west"], "worker_process"), held(training, "runner_process")
        most = {name: max(most[name], now) for name, now in zip(most, here, strict=True)}
        time.sleep(0.1)
    assert ended(training) == 0, running.said("held")
    assert 0 < most["site"] <= 4  # the task, the reply, and those that are on their way out
    # of three sites a task and a reply each, to train and to validate, and as many before them
    assert 0 < most["coordinator"] <= 24


@pytest.mark.slow
def test_the_coordinator_of_a_masked_run_is_sent_no_update(running: Loopback) -> None:
    assert ended(running.train("masked", "--masked", rounds=2)) == 0, running.said("masked")
    run = running.history("masked")
    assert run is not None
    assert [any(told.absent for told in sites.values()) for sites in run.history] == [False] * 2
    kinds = set(re.findall(r"came from \w+: (\w+)", running.exchanged("masked")))
    assert kinds == {"join", "keys", "shares", "masked", "unmask", "validate", "measure", "model"}


@pytest.mark.slow
def test_a_site_whose_client_dies_connects_again_and_ends_with_its_command(
    running: Loopback,
) -> None:
    def clients() -> list[psutil.Process]:
        found = []
        for process in psutil.Process(running.sites["west"].pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):  # it may just have ended
                if any("client_train" in word for word in process.cmdline()):
                    found.append(process)
        return found

    until(clients, "its client runs")
    (first,) = clients()
    first.kill()
    until(lambda: [p for p in clients() if p.pid != first.pid], "another one")
    assert running.sites["west"].poll() is None
    (second,) = clients()
    running.sites["west"].kill()  # the command alone, as nothing but kill -9 does
    running.sites["west"].wait()
    until(lambda: not second.is_running(), "the client ends with it", 20)
    running.start_site("west")


@pytest.mark.slow
def test_a_second_run_of_the_same_kit_is_refused_and_the_first_goes_on(running: Loopback) -> None:
    process = running.train("first")
    until(lambda: running.rounds("first") >= 1, "round 1")
    assert ended(running.train("second")) == 2
    assert "this kit is in use by another process" in running.said("second")
    assert ended(process) == 0, running.said("first")
    assert ended(running.train("first")) == 2
    assert "holds a run; go on with it by --resume" in running.said("first")


@in_this_process
def test_code_that_the_coordinator_sends_is_refused(running: Loopback) -> None:
    kit = open_kit(running.folder / "kits" / "coordinator", coordinator=True)
    orders, evil = running.folder / "code" / "network" / "orders.json", running.folder / "evil"
    with flare.serving(kit) as session:
        until(lambda: flare.connected(session) == set(MODALITIES), "all sites")
        for name in ("code", "class"):
            job = running.folder / f"job_{name}"
            flare.write_job(job, orders, sorted(MODALITIES), 60)
            config = job / "site_app" / "config" / "config_fed_client.json"
            if name == "code":
                custom = job / "site_app" / "custom"
                custom.mkdir()
                (custom / "evil.py").write_text(f"open({str(evil)!r}, 'w')")
            else:
                told = json.loads(config.read_text())
                told["executors"][0]["executor"] = {
                    "path": "nvflare.app_common.executors.statistics.statistics_executor"
                    ".StatisticsExecutor",
                    "args": {"generator_id": "x"},
                }
                config.write_text(json.dumps(told))
            number = session.submit_job(str(job))
            until(
                lambda number=number: str(session.get_job_meta(number)["status"]).startswith(  # type: ignore[misc]
                    "FINISHED"
                ),
                f"the job with {name} ends",
            )
            status = str(session.get_job_meta(number)["status"])
            assert status != "FINISHED:COMPLETED", name
    kits = running.folder / "kits"
    assert "north: NVFLARE_ERROR: BYOC not permitted" in (kits / "coordinator/log.txt").read_text()
    told = (kits / "north" / "console.log").read_text()
    assert "StatisticsExecutor' at config path 'executors.#1.executor' is not in allow_list" in told
    assert not evil.exists()


@in_this_process
def test_who_takes_anothers_name_does_not_get_in_and_is_told_of(
    running: Loopback, tmp_path: Path
) -> None:
    false = tmp_path / "kit"
    shutil.copytree(running.folder / "kits" / "west", false)
    config = json.loads((false / "startup" / "fed_client.json").read_text())
    config["client"]["fqsn"] = "north"
    (false / "startup" / "fed_client.json").write_text(json.dumps(config))
    kit = dataclasses.replace(open_kit(false, coordinator=False), name="north")
    coordinator = open_kit(running.folder / "kits" / "coordinator", coordinator=True)
    for name in ("west", "north"):
        stop(running.sites[name])
    log = coordinator.folder / "console.log"
    before = log.stat().st_size if log.exists() else 0
    refusal = "authenticated as 'west' but claimed endpoint 'north'"
    with flare.serving(coordinator) as session:
        until(lambda: "south" in flare.connected(session), "an honest site")
        with flare.attending(kit, House(kit.name, tmp_path, tmp_path / "work")):
            until(lambda: refusal in log.read_bytes()[before:].decode(), "the refusal is told")
        assert flare.connected(session) == {"south"}


@in_this_process
def test_the_server_talks_to_nobody_whose_certificate_is_not_good(tmp_path: Path) -> None:
    port = free_port()
    provision(Network("localhost", port, ("west",)), tmp_path / "kits")
    startup = tmp_path / "kits" / "west" / "startup"

    def answered() -> bool:
        context = ssl.create_default_context(cafile=str(startup / "rootCA.pem"))
        context.load_cert_chain(startup / "client.crt", startup / "client.key")
        with contextlib.suppress(OSError):
            plain = socket.create_connection(("localhost", port), timeout=20)
            with context.wrap_socket(plain, server_hostname="localhost") as secure:
                secure.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
                return secure.recv(100).startswith(b"HTTP/1.1 ")
        return False

    with flare.serving(open_kit(tmp_path / "kits" / "coordinator", coordinator=True)):
        assert answered()
        authority = tmp_path / "kits" / "authority"
        _write_certificate(startup, "west", days=30, authority=authority)
        assert answered()
        _write_certificate(startup, "west", days=-1, authority=authority)
        assert not answered()  # expired
        _write_certificate(startup, "west", days=30)
        assert not answered()  # unknown
    told = (tmp_path / "kits" / "coordinator" / "console.log").read_text()
    refusals = [line for line in told.splitlines() if "a connection was refused" in line]
    assert any("certificate has expired" in line for line in refusals)
    assert any(re.search("self.signed certificate", line) for line in refusals)
