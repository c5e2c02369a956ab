"""The federation on FLARE over the loopback: training, and what breaks on a network."""

import contextlib
import dataclasses
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from loopback import MODALITIES, Cable, Loopback, kill, until, write_certificate
from mixmfl.entrypoints._local_network import free_port
from small import write_preset

from mixmfl.federated.client.site_config import SiteConfig
from mixmfl.federated.flare import processes
from mixmfl.federated.flare.job import write_job
from mixmfl.federated.flare.kits import open_kit
from mixmfl.federated.flare.provisioning import Network, provision, revoke
from mixmfl.federated.flare.runner import connected
from mixmfl.federated.simulation import simulate
from mixmfl.federated.sites import open_sites
from mixmfl.federated.state import NETWORK_MINIMUM, RunSettings

STEPS = 30


def in_this_process(test: Callable[..., None]) -> Callable[..., None]:
    """Mark a slow test that commands FLARE itself, whose threads warn of their libraries."""
    return pytest.mark.slow(pytest.mark.filterwarnings("ignore::DeprecationWarning")(test))


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loopback]:
    folder = tmp_path_factory.mktemp("loopback")
    training = {"local_steps": STEPS, "learning_rate": 0.01, "validate_every": 1}
    made = Loopback(folder, write_preset(folder / "tiny.json", **training))
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
            sites += open_sites(work, federation.plans, "2d", "0", 0)
        settings = RunSettings(
            *("2d", 0, rounds, STEPS, 0.01),
            minimum_cases=NETWORK_MINIMUM.cases,
            minimum_voxels=NETWORK_MINIMUM.voxels,
        )
        simulate(federation.plans, sites, settings, "0", out)
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


def ended(process: subprocess.Popen[bytes], seconds: float = 900) -> int:
    """Return the exit code of a command, in bounded time."""
    try:
        until(lambda: process.poll() is not None, "the command ends", seconds)
        return process.wait()
    finally:
        kill(process)


SHIPPED = """
import sys
from mixmfl.entrypoints import network_demo
sys.exit(network_demo.main(sys.argv[2:]))
"""
# the same with two hospitals, fewer and smaller cases, and a tiny network
SMALL = """
import functools, sys
from mixmfl.entrypoints import _local_network, network_demo
_local_network.CASES, _local_network.SPACING_MM = 6, 8.0
_local_network.lay_out = functools.partial(_local_network.lay_out, number=2)
network_demo.PLAN = ("--preset", sys.argv[1], "-c", "2d", "-n", "1")
sys.exit(network_demo.main(sys.argv[2:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "program", [pytest.param(SMALL, id="small"), pytest.param(SHIPPED, id="shipped")]
)
def test_the_demo_of_a_network_gives_the_model_of_one_process(tmp_path: Path, program: str) -> None:
    preset = write_preset(tmp_path / "tiny.json")
    with (tmp_path / "printed.txt").open("wb") as log:
        demo = subprocess.Popen(
            [sys.executable, "-c", program, preset, "-o", tmp_path / "demo"], stdout=log, stderr=log
        )
    code = ended(demo)
    printed = (tmp_path / "printed.txt").read_text()
    assert code == 0, printed
    assert "are the same, byte by byte" in printed
    assert printed.count("round 2/2") == 2
    site = (tmp_path / "demo" / "logs" / "north.txt").read_text()
    assert "sent to coordinator: train, round 2, block decoder" in site
    logs = [*(tmp_path / "demo" / "kits").rglob("*log*"), *tmp_path.rglob("exchange.log")]
    logs = [file for file in logs if file.is_file()]
    assert len(logs) > 8  # FLARE's and ours
    for file in logs:
        assert "_phantom" not in file.read_text(errors="replace"), file  # the cases' names


@pytest.mark.slow
def test_a_killed_site_is_left_out_and_takes_part_again_when_it_is_back(running: Loopback) -> None:
    process = running.train("killed", "--deadline", 0.5, rounds=8)
    until(lambda: "sent to south: train, round 2" in running.exchanged("killed"), "round 2")
    kill(running.sites["south"])
    until(lambda: running.rounds("killed") >= 2, "the round closes without it")
    running.start_site("south")
    assert ended(process) == 0, running.printed("killed")
    run = running.history("killed")
    assert run is not None
    absent = [bool(sites["south"].absent) for sites in run.history]
    assert not absent[0]
    assert absent[1]
    assert not absent[-1], "it is back before the end"
    assert "a site has come back" in running.printed("killed")
    assert all(not sites["north"].absent for sites in run.history)


@pytest.mark.slow
def test_a_straggler_is_not_waited_for_and_its_late_reply_is_dropped(running: Loopback) -> None:
    def asked() -> int:
        return running.printed("west").count("came from coordinator: train, round 2,")

    before = asked()
    process = running.train("straggler", "--deadline", 0.25, rounds=4)
    until(lambda: asked() > before, "round 2")
    stopped = running.jobs("west")
    for job in stopped:
        job.suspend()
    until(lambda: running.rounds("straggler") >= 2, "the round closes without it")
    for job in stopped:
        job.resume()
    assert ended(process) == 0, running.printed("straggler")
    run = running.history("straggler")
    assert run is not None
    assert run.history[1]["west"].absent == ("did not answer within 15 s; a later reply is dropped")
    assert not run.history[0]["west"].absent
    assert not run.history[-1]["west"].absent, "the next rounds are unharmed"
    replies = re.findall(r"came from west: train, round (\d)", running.exchanged("straggler"))
    assert "2" not in replies
    assert replies == sorted(set(replies))  # none twice
    site = running.printed("west")
    assert "not sent, the coordinator did not take it: train, round 2," in site


@pytest.mark.slow
def test_a_killed_coordinator_resumes_to_the_same_model(running: Loopback) -> None:
    process = running.train("resumed")
    until(lambda: "sent to north: train, round 2" in running.exchanged("resumed"), "round 2")
    kill(process)
    assert running.rounds("resumed") == 1
    again = running.train("resumed", "--resume")
    assert ended(again) == 0, running.printed("resumed")
    assert (running.folder / "resumed" / "model.safetensors").read_bytes() == expected(running)


@pytest.mark.slow
def test_a_site_joins_and_another_leaves_between_rounds(running: Loopback) -> None:
    first, *others = MODALITIES
    begun = running.train("grown", "--sites", *others, "--quorum", 1, rounds=1)
    assert ended(begun) == 0, running.printed("grown")
    again = running.train("grown", "--resume", "--sites", first, others[0], rounds=2)
    assert ended(again) == 0, running.printed("grown")
    run = running.history("grown")
    assert run
    assert [sorted(sites) for sites in run.history] == [sorted(others), sorted([first, others[0]])]
    assert f"site {first} joins with 2 training cases" in running.printed("grown")
    assert f"site {others[1]} leaves; the model keeps what it learnt" in running.printed("grown")


@pytest.mark.slow
def test_a_cut_network_costs_a_site_rounds_and_no_more(running: Loopback) -> None:
    with cable_to(running, "north") as cable:
        process = running.train("cut", "--deadline", 0.5, rounds=7)
        until(lambda: "sent to north: train, round 2" in running.exchanged("cut"), "round 2")
        cable.cut()
        until(lambda: running.rounds("cut") >= 2, "a round without it")
        time.sleep(60)
        cable.mend()
        assert ended(process) == 0, running.printed("cut")
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
        assert ended(running.train("wire", rounds=3)) == 0, running.printed("wire")
        log = running.exchanged("wire")
        for way, carried in (("sent to", cable.to_site), ("came from", cable.to_server)):
            sizes = re.findall(rf"{way} north: .* tensors, (\d+) bytes", log)
            logged = sum(map(int, sizes))
            # TLS, FLARE's headers, signs of life and what starts a job come on top
            assert logged < carried < 1.2 * logged + 2**20, (way, logged, carried)


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
    assert ended(training) == 0, running.printed("held")
    assert 0 < most["site"] <= 4  # the task, the reply, and those that are on their way out
    # of three sites a task and a reply each, to train and to validate, and as many before them
    assert 0 < most["coordinator"] <= 24


@pytest.mark.slow
def test_the_coordinator_of_a_masked_run_is_sent_no_update(running: Loopback) -> None:
    assert ended(running.train("masked", "--masked", rounds=2)) == 0, running.printed("masked")
    run = running.history("masked")
    assert run is not None
    assert [any(each.absent for each in sites.values()) for sites in run.history] == [False] * 2
    kinds = set(re.findall(r"came from \w+: (\w+)", running.exchanged("masked")))
    assert kinds == {"join", "keys", "masked", "validate", "measure", "model"}


@pytest.mark.slow
def test_masked_replies_of_a_network_of_real_size_cross_the_network(tmp_path: Path) -> None:
    """What grows with a network is its bytes, their pieces and the time that these take."""
    preset = write_preset(tmp_path / "wide.json", local_steps=1)
    content = json.loads(preset.read_text())
    content["planner"] |= {"memory_gb": 2, "base_features": 512, "max_features_2d": 512}
    preset.write_text(json.dumps(content))
    federation = Loopback(tmp_path, preset)
    try:
        for name in MODALITIES:
            federation.start_site(name)
        training = federation.train("wide", "--masked", rounds=1)
        assert ended(training) == 0, federation.printed("wide")
    finally:
        federation.close()
    run = federation.history("wide")
    assert run is not None
    (row,) = run.history
    assert [site.absent for site in row.values()] == [""] * 3
    came = re.findall(r"came from \w+: masked.*, (\d+) bytes", federation.exchanged("wide"))
    assert len(came) == 3
    assert min(map(int, came)) > 2**27  # more than what any reply may have beyond its task


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
def test_a_second_run_of_the_same_kit_is_refused_and_the_first_continues(running: Loopback) -> None:
    process = running.train("first")
    until(lambda: running.rounds("first") >= 1, "round 1")
    assert ended(running.train("second")) == 2
    assert "this kit is in use by another process" in running.printed("second")
    assert ended(process) == 0, running.printed("first")
    assert ended(running.train("first")) == 2
    assert "holds a run; resume it with --resume" in running.printed("first")


@in_this_process
def test_code_that_the_coordinator_sends_is_refused(running: Loopback) -> None:
    kit = open_kit(running.folder / "kits" / "coordinator", coordinator=True)
    orders, evil = running.folder / "code" / "network" / "orders.json", running.folder / "evil"
    with processes.running_server(kit) as server:
        until(lambda: connected(server) == set(MODALITIES), "all sites")
        for name in ("code", "class"):
            job = running.folder / f"job_{name}"
            write_job(job, orders, sorted(MODALITIES), 60)
            config = job / "site_app" / "config" / "config_fed_client.json"
            if name == "code":
                custom = job / "site_app" / "custom"
                custom.mkdir()
                (custom / "evil.py").write_text(f"open({str(evil)!r}, 'w')")
            else:
                content = json.loads(config.read_text())
                content["executors"][0]["executor"] = {
                    "path": "nvflare.app_common.executors.statistics.statistics_executor"
                    ".StatisticsExecutor",
                    "args": {"generator_id": "x"},
                }
                config.write_text(json.dumps(content))
            number = server.session.submit_job(str(job))
            until(
                lambda number=number: str(server.session.get_job_meta(number)["status"]).startswith(  # type: ignore[misc]
                    "FINISHED"
                ),
                f"the job with {name} ends",
            )
            status = str(server.session.get_job_meta(number)["status"])
            assert status != "FINISHED:COMPLETED", name
    kits = running.folder / "kits"
    assert "north: NVFLARE_ERROR: BYOC not permitted" in (kits / "coordinator/log.txt").read_text()
    log = (kits / "north" / "console.log").read_text()
    assert "StatisticsExecutor' at config path 'executors.#1.executor' is not in allow_list" in log
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
    with processes.running_server(coordinator) as server:
        until(lambda: "south" in connected(server), "an honest site")
        with processes.running_client(kit, SiteConfig(kit.name, tmp_path, tmp_path / "work")):
            until(lambda: refusal in log.read_bytes()[before:].decode(), "the refusal is told")
        assert connected(server) == {"south"}


@pytest.mark.slow
def test_a_hospital_talks_to_no_other_hospital_in_place_of_the_coordinator(tmp_path: Path) -> None:
    """Whose certificate is of the same authority: it could sit in between and read all."""
    listener = socket.create_server(("localhost", 0))
    port = int(listener.getsockname()[1])
    provision(Network("localhost", port, ("north", "south")), tmp_path / "kits")
    north = open_kit(tmp_path / "kits" / "north", coordinator=False)
    south = tmp_path / "kits" / "south" / "startup"
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=south / "rootCA.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(south / "client.crt", south / "client.key")
    console = north.folder / "console.log"
    with listener, processes.running_client(north, SiteConfig("north", tmp_path, tmp_path / "w")):
        listener.settimeout(120)
        plain, _ = listener.accept()
        plain.settimeout(60)
        with contextlib.suppress(OSError), context.wrap_socket(plain, server_side=True) as secure:
            assert secure.recv(1) == b""  # it sends nothing
        refusal = "the other end has the certificate of south, not of localhost"
        until(lambda: refusal in console.read_text(), "the refusal is told")


@in_this_process
def test_who_has_an_account_on_the_machine_but_no_kit_reaches_no_process(tmp_path: Path) -> None:
    """FLARE's processes listen for those that they start, and take commands of whoever connects."""
    provision(Network("localhost", free_port(), ("north",)), tmp_path / "kits")
    coordinator = open_kit(tmp_path / "kits" / "coordinator", coordinator=True)
    north = open_kit(tmp_path / "kits" / "north", coordinator=False)

    def is_let_in(port: int, certificate: tuple[Path, Path] | None) -> bool:
        context = ssl.create_default_context(cafile=north.folder / "startup" / "rootCA.pem")
        context.check_hostname = False
        if certificate is not None:
            context.load_cert_chain(*certificate)
        # who is let in speaks first, and else is waited for
        plain = socket.create_connection(("localhost", port), timeout=5 if certificate else 60)
        try:
            with context.wrap_socket(plain) as secure:
                return bool(secure.recv(1))
        except TimeoutError:
            return True
        except OSError:
            return False

    def listens(process: subprocess.Popen[bytes]) -> list[int]:
        family = psutil.Process(process.pid)
        members = [family, *family.children(recursive=True)]
        ends = [end for one in members for end in one.net_connections() if end.status == "LISTEN"]
        return [end.laddr.port for end in ends if end.laddr.ip == "127.0.0.1"]

    with processes.running_server(coordinator) as server:
        config = SiteConfig("north", tmp_path, tmp_path / "work")
        with processes.running_client(north, config) as client:
            until(lambda: connected(server) == {"north"}, "the hospital")
            for kit, process, whose in (
                (north, client, "client"),
                (coordinator, server.process, "server"),
            ):
                startup = kit.folder / "startup"
                own = startup / f"{whose}.crt", startup / f"{whose}.key"
                own_port = int(coordinator.server.rpartition(":")[2])
                ports = [port for port in listens(process) if port != own_port]
                assert ports, whose
                for port in ports:
                    assert not is_let_in(port, None), whose
                    assert is_let_in(port, own), whose


@in_this_process
def test_the_server_talks_to_nobody_whose_certificate_is_not_good(tmp_path: Path) -> None:
    port = free_port()
    provision(Network("localhost", port, ("west",)), tmp_path / "kits")
    kits, old = tmp_path / "kits", tmp_path / "old"
    shutil.copytree(kits / "west", old)

    @contextlib.contextmanager
    def connected(kit: Path) -> Iterator[Callable[[], bool]]:
        startup = kit / "startup"
        context = ssl.create_default_context(cafile=str(startup / "rootCA.pem"))
        context.load_cert_chain(startup / "client.crt", startup / "client.key")
        plain = socket.create_connection(("localhost", port), timeout=20)
        with context.wrap_socket(plain, server_hostname="localhost") as secure:

            def answered() -> bool:
                with contextlib.suppress(OSError):
                    secure.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
                    return secure.recv(100).startswith(b"HTTP/1.1 ")
                return False

            yield answered

    def answers(kit: Path) -> bool:
        with contextlib.suppress(OSError), connected(kit) as answered:
            return answered()
        return False

    with processes.running_server(open_kit(kits / "coordinator", coordinator=True)):
        assert answers(old)
        with connected(old) as answered:
            provision(Network("localhost", port, ("west",)), kits, ["west"])  # the old one was lost
            time.sleep(3)
            assert not answered()  # though it was connected before
            console = (kits / "coordinator" / "console.log").read_text()
            assert "the certificate of west was replaced or revoked" in console
        assert not answers(old)
        assert answers(kits / "west")
        revoke(kits, "west")
        time.sleep(3)
        assert not answers(kits / "west.replaced-2")
        write_certificate(old / "startup", "west", days=30, authority=kits / "authority")
        assert not answers(old)  # of the authority, but not in the list
        write_certificate(old / "startup", "west", days=-1, authority=kits / "authority")
        assert not answers(old)  # expired
        write_certificate(old / "startup", "west", days=30)
        assert not answers(old)  # unknown
    log = (tmp_path / "kits" / "coordinator" / "console.log").read_text()
    refusals = [line for line in log.splitlines() if "a connection was refused" in line]
    assert any("certificate of west was replaced or revoked" in line for line in refusals)
    assert any("certificate has expired" in line for line in refusals)
    assert any(re.search("self.signed certificate", line) for line in refusals)
