"""The one door to NVIDIA FLARE: start-up kits, its processes, its jobs, and what it runs for us.

FLARE brings mutual TLS, authorisation, the audit log and the transport. A job that it starts names
two classes of ours, ``Coordinator`` and ``SiteExecutor``, and carries no code; the kits' policies
refuse any other class and any code.
"""

import dataclasses
import gc
import io
import json
import math
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Literal

import psutil
from cryptography import x509
from nvflare.apis.client import Client
from nvflare.apis.controller_spec import ClientTask, SendOrder, Task
from nvflare.apis.event_type import EventType
from nvflare.apis.executor import Executor
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.impl.controller import Controller
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.apis.signal import Signal
from nvflare.fuel.f3.cellnet.cell import Cell
from nvflare.fuel.f3.cellnet.fqcn import FQCN
from nvflare.fuel.f3.streaming.download_service import (
    Consumer,
    Downloadable,
    DownloadService,
    ProduceRC,
    download_object,
)
from nvflare.fuel.flare_api.api_spec import InternalError, NoConnection, SessionClosed
from nvflare.fuel.flare_api.flare_api import Session, new_secure_session
from nvflare.lighter.entity import Project
from nvflare.lighter.impl.cert import CertBuilder
from nvflare.lighter.impl.signature import SignatureBuilder
from nvflare.lighter.impl.static_file import StaticFileBuilder
from nvflare.lighter.impl.workspace import WorkspaceBuilder
from nvflare.lighter.provisioner import Provisioner

from mixmfl import __version__
from mixmfl.coordinate import NOT_CONNECTED, Answer, Answers
from mixmfl.errors import AggregationError, DataError, MixmflError, QuorumError
from mixmfl.exchange import describe_exchange, note, plain
from mixmfl.files import clear_unfinished, locked, nameless, read_json, write_json
from mixmfl.hospital import FAILED, Hospital, House
from mixmfl.remote import (
    Orders,
    PlanOrders,
    load_orders,
    orders_file,
    plan_remotely,
    save_orders,
    train_remotely,
)
from mixmfl.runs import Run, holds_run, open_run
from mixmfl.usage import give_back_memory
from mixmfl.wire import MOST_BYTES, Message, Parcel, most_reply_bytes

COORDINATOR = "coordinator"
_ADMIN = "coordinator@mixmfl.org"
_ROLE = "project_admin"
_ORG = "mixmfl"  # FLARE wants one; rights here are by role
_SITES = "sites.json"
_TAKEN = {COORDINATOR, "server", "authority"}  # the second means the server to FLARE
_AUTHORITY_DAYS = 3650  # certificates hold 360 days: FLARE's choice
_HOUSE = "mixmfl.json"
_PROJECT = "mixmfl"
_NOTHING_BUT_JOBS = {
    "submit_job": "any",
    "manage_job": "any",
    "clone_job": "none",
    "download_job": "none",
    "view": "none",
    "operate": "none",
    "shell_commands": "none",
    "byoc": "none",
}
"""What the coordinator may do at a hospital: start and stop jobs. It sees no file and no log."""


# --- kits --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Network:
    """Who takes part, and where the coordinator is reached.

    Attributes:
        host: Name or address of the coordinator, as the hospitals reach it.
        port: One port; all else goes from the hospitals to it.
        sites: Names of the hospitals.
    """

    host: str
    port: int
    sites: tuple[str, ...]

    @classmethod
    def load(cls, path: Path) -> "Network":
        """Read a network's file.

        Raises:
            DataError: It is missing, or does not say what is needed.
        """
        told = read_json(path)
        host, _, port = str(told.get("server", "")).rpartition(":")
        sites = told.get("sites")
        if not (
            set(told) == {"server", "sites"}
            and host
            and port.isdecimal()
            and isinstance(sites, list)
            and sites
            and all(isinstance(name, str) and _fit(name) for name in sites)
            and len(set(sites)) == len(sites)
            and not _TAKEN & set(sites)
        ):
            raise DataError(
                f'{path}: {{"server": "host:port", "sites": ["north", …]}} is needed, with a name '
                f"of letters, digits and hyphens for each hospital, each once, and none of "
                f"{', '.join(sorted(_TAKEN))}"
            )
        return cls(host, int(port), tuple(sites))


@dataclass(frozen=True)
class Kit:
    """A start-up kit.

    Attributes:
        folder: Of the kit.
        name: Of the hospital, or ``COORDINATOR``.
        server: ``host:port`` of the coordinator.
        expires: When its certificate ends, in UTC.
    """

    folder: Path
    name: str
    server: str
    expires: datetime


def provision(network: Network, out: Path, renew: Sequence[str] = ()) -> tuple[Path, ...]:
    """Write a kit for the coordinator and for every hospital; those that are there stay.

    The certificate authority is made at the first call and kept in ``out/authority``, so that a
    later call can add hospitals.

    Args:
        network: Who takes part.
        out: Folder of kits.
        renew: Hospitals whose kits are made anew, with another key; the old ones are set aside.

    Returns:
        The folders written.

    Raises:
        DataError: FLARE could not make them, or kits of another server are there.
    """
    if strange := sorted(name for name in renew if not (out / name).is_dir()):
        raise DataError(f"{out}: holds no kit of {strange[0]}, so there is none to renew")
    if (out / COORDINATOR).is_dir():
        there = open_kit(out / COORDINATOR, coordinator=True).server
        if there != f"{network.host}:{network.port}":
            raise DataError(
                f"{out}: holds kits for the server {there}, asked for is "
                f"{network.host}:{network.port}; make those in another folder, for everyone"
            )
    authority = out / "authority"
    authority.mkdir(parents=True, exist_ok=True)
    authority.chmod(0o700)
    project = Project(_PROJECT, "mixmfl")
    ports = {"fed_learn_port": network.port, "admin_port": network.port}
    project.set_server(network.host, _ORG, ports)
    for name in network.sites:
        project.add_client(name, _ORG, {})
    project.add_admin(_ADMIN, _ORG, {"role": _ROLE})
    builders = [
        WorkspaceBuilder(),
        StaticFileBuilder(config_folder="config"),
        CertBuilder(root_valid_days=_AUTHORITY_DAYS),
        SignatureBuilder(),
    ]
    for name in renew:
        _forget(authority, name)
        (out / name).rename(_aside(out / name))
    old_mask = os.umask(0o077)  # keys, and the authority's own, are for their owner alone
    try:
        context = Provisioner(str(authority), builders).provision(project, logger=_Quiet())
        made = context.get("current_prod_dir")
        if context.get("build_error") or not made:
            raise DataError(f"{out}: the kits could not be made; FLARE's reason is above")
        shutil.move(Path(made) / _ADMIN, Path(made) / network.host / "admin")
        written = []
        for name in (COORDINATOR, *network.sites):
            source = Path(made) / (network.host if name == COORDINATOR else name)
            if not (out / name).exists():
                _write_policies(source, name)  # before it is where somebody may take it
                shutil.move(source, out / name)
                written.append(out / name)
        write_json(out / COORDINATOR / "local" / _SITES, {"sites": list(network.sites)})
        shutil.rmtree(made)
    finally:
        os.umask(old_mask)
    return tuple(written)


def _forget(authority: Path, name: str) -> None:
    """Have the authority make a site's key and certificate anew."""
    file = authority / _PROJECT / "state" / "cert.json"
    state = read_json(file)
    del state[name]
    write_json(file, state)
    file.chmod(0o600)


def _aside(kit: Path) -> Path:
    """Return a free name for a kit that is replaced."""
    number = 1
    while (aside := kit.with_name(f"{kit.name}.replaced-{number}")).exists():
        number += 1
    return aside


def open_kit(folder: Path, *, coordinator: bool) -> Kit:
    """Read a kit.

    Args:
        folder: Of the kit.
        coordinator: Whether it must be the coordinator's; else it must be a hospital's.

    Raises:
        DataError: It is no kit of this kind, or its certificate has expired.
    """
    startup = folder / "startup"
    whose = "the coordinator's" if coordinator else "a hospital's"
    config = startup / ("fed_server.json" if coordinator else "fed_client.json")
    certificate = startup / ("server.crt" if coordinator else "client.crt")
    if not config.is_file() or not certificate.is_file():
        raise DataError(
            f"{folder}: is not {whose} start-up kit; mixmfl_provision makes kits, and each is used "
            "where it belongs"
        )
    told = read_json(config)
    found = x509.load_pem_x509_certificate(certificate.read_bytes())
    expires = found.not_valid_after_utc
    if expires < datetime.now(timezone.utc):
        raise DataError(
            f"{certificate}: expired on {expires:%Y-%m-%d}; have the kit made anew by "
            "mixmfl_provision --renew"
        )
    name = COORDINATOR if coordinator else str(told["client"]["fqsn"])
    return Kit(folder.resolve(), name, told["servers"][0]["service"]["target"], expires)


def site_names(kit: Kit) -> tuple[str, ...]:
    """Return the hospitals that kits were made for together with the coordinator's."""
    return tuple(read_json(kit.folder / "local" / _SITES)["sites"])


def _write_policies(kit: Path, name: str) -> None:
    """Say in a kit what its owner's FLARE lets others do."""
    local = kit / "local"
    resources = json.loads((local / "resources.json.default").read_text(encoding="utf-8"))
    runs = "Coordinator" if name == COORDINATOR else "SiteExecutor"
    resources["class_allow_list"] = [f"{__name__}.{runs}"]
    resources["class_list_enforcement_mode"] = "enforce"
    # FLARE would stream a hospital's error log to the server; ours stays in the house
    resources["allow_log_streaming"] = False
    resources["components"] = [c for c in resources["components"] if "log" not in c["id"]]
    write_json(local / "resources.json", resources)
    if name != COORDINATOR:
        permissions = {_ROLE: _NOTHING_BUT_JOBS}
        write_json(
            local / "authorization.json", {"format_version": "1.0", "permissions": permissions}
        )


def _fit(name: str) -> bool:
    """Say whether a name can be a hospital's: it names folders, and goes into certificates."""
    return bool(name) and all(c.isascii() and (c.isalnum() or c == "-") for c in name)


class _Quiet:
    """Lets through what FLARE's provisioner calls errors."""

    def debug(self, *args: Any) -> None:
        """Say nothing."""

    info = warning = debug

    def error(self, message: str, *args: Any) -> None:
        """Say it on stderr."""
        sys.stderr.write(f"{message}\n")


# --- processes ---------------------------------------------------------------------------------


@contextmanager
def serving(kit: Kit) -> Iterator[Session]:
    """Run the coordinator's server, and give a session to command it by.

    Raises:
        MixmflError: It runs already, or cannot be started.
    """
    with alone(kit):
        _end_orphans(kit)  # one may have the port
        _settle_server(kit)
        with _process(kit, "server", [f"org={_ORG}"]) as process:
            session = _session(kit, process)
            try:
                yield session
            except (NoConnection, SessionClosed, InternalError) as error:
                raise MixmflError(
                    f"{kit.folder}: the server ended or does not answer ({error}); see log.txt "
                    "there. What is done is kept: --resume goes on"
                ) from None
            finally:
                with suppress(NoConnection, SessionClosed, InternalError):
                    session.close()


@contextmanager
def attending(kit: Kit, house: House) -> Iterator[subprocess.Popen[bytes]]:
    """Run a hospital's side: it joins, takes part and answers until the block ends.

    Raises:
        MixmflError: It runs already.
    """
    with alone(kit):
        _end_orphans(kit)
        house.save(kit.folder / "local" / _HOUSE)
        with _process(kit, "client", [f"uid={kit.name}", f"org={_ORG}"]) as process:
            yield process


@contextmanager
def alone(kit: Kit) -> Iterator[None]:
    """Hold the kit's lock: one process uses a kit at a time."""
    refusal = MixmflError(f"{kit.folder}: this kit is in use by another process; end that first")
    with locked(kit.folder / "lock", 0, refusal):
        yield


@contextmanager
def _process(kit: Kit, kind: str, options: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run one of FLARE's processes with all that it starts, and end them all with the block."""
    command = [
        *(sys.executable, "-u", "-c", _AS_LONG_AS_US),
        f"nvflare.private.fed.app.{kind}.{kind}_train",
        *("-m", str(kit.folder), "-s", f"fed_{kind}.json", "--set", "secure_train=true"),
        *(*options, "config_folder=config"),
    ]
    with (kit.folder / "console.log").open("ab") as console:
        process = subprocess.Popen(
            command,
            cwd=kit.folder,
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=console,
            start_new_session=True,  # Ctrl-C is for us, who then end it in order
        )
    try:
        yield process
    finally:
        with suppress(psutil.NoSuchProcess):  # it may have ended by itself
            _end([psutil.Process(process.pid)])
        process.wait()
        _end_orphans(kit)


# runs a module, and ends when the process that started it is gone, however that was ended; what
# FLARE starts ends with it. FLARE drops a connection whose certificate is no good without a word,
# so that the word is said here
_AS_LONG_AS_US = """
import logging, os, runpy, ssl, sys, threading, time

def watch(parent=os.getppid()):
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)

class Told(ssl.SSLObject):
    def do_handshake(self):
        try:
            super().do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except ssl.SSLError as error:
            logging.getLogger("mixmfl.connections").warning("a connection was refused: %s", error)
            raise

ssl.SSLContext.sslobject_class = Told
threading.Thread(target=watch, daemon=True).start()
del sys.argv[0]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


def _end_orphans(kit: Kit) -> None:
    """End processes that a killed command left behind; the kit's lock says that it is gone."""
    _end(
        [
            process
            for process in psutil.process_iter(["cmdline"])
            if str(kit.folder) in (command := process.info["cmdline"] or [])
            and any("nvflare" in word for word in command)
        ]
    )


def _end(leaders: Sequence[psutil.Process]) -> None:
    """End processes and what they started, gently first."""
    found = [*leaders]
    for leader in leaders:
        with suppress(psutil.NoSuchProcess):
            found += leader.children(recursive=True)
    for process in found:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    for process in psutil.wait_procs(found, timeout=5)[1]:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(found, timeout=5)


def _settle_server(kit: Kit) -> None:
    """Name absolute places in the kit for what the server stores, and see that its port is free."""
    file = kit.folder / "local" / "resources.json"
    resources = read_json(file)
    for component in resources["components"]:
        if component["id"] == "job_manager":
            component["args"]["uri_root"] = str(kit.folder / "jobs")
    resources["servers"][0]["heart_beat_timeout"] = 120  # seconds until a silent site is given up
    storage = resources["snapshot_persistor"]["args"]["storage"]
    storage["args"]["root_dir"] = str(kit.folder / "snapshots")
    write_json(file, resources)
    port = int(kit.server.rpartition(":")[2])
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            raise MixmflError(
                f"port {port}, which the kits name, cannot be used here ({error.strerror}); end "
                "the process that has it, or provision another port"
            ) from None


def _session(kit: Kit, process: subprocess.Popen[bytes]) -> Session:
    until = time.monotonic() + 120
    while True:
        try:
            with redirect_stdout(io.StringIO()):  # it says that it connects, each time it tries
                return new_secure_session(_ADMIN, str(kit.folder / "admin"))
        except NoConnection:
            if process.poll() is not None or time.monotonic() > until:
                raise MixmflError(
                    f"{kit.folder}: the server did not start; the reason is in console.log there"
                ) from None
            time.sleep(0.5)


# --- jobs, as the coordinator's command sees them ----------------------------------------------


@dataclass(frozen=True)
class Leg:
    """How a job ended.

    Attributes:
        status: ``"done"``; ``"paused"``, to go on with a site that has come back; ``"quorum"``: too
            few sites answered; ``"failed"``.
        reason: Where it failed.
    """

    status: Literal["done", "paused", "quorum", "failed"]
    reason: str = ""


_LOST_AFTER = 40.0
"""Seconds without a sign of life after which a hospital is not connected; it gives one every 10."""

_BUSY = 120.0
"""Seconds for which the server may be too busy to tell how it is."""

_PATIENCE = 15.0
"""Seconds in which a site that has not fetched its last task must fetch the next."""


def connected(session: Session) -> set[str]:
    """Return the hospitals that are connected now."""
    now = time.time()
    return {
        client.name
        for client in _patiently(session.get_system_info).client_info
        if now - client.last_connect_time < _LOST_AFTER
    }


def drive(
    kit: Kit,
    orders: Orders,
    *,
    quorum: int,
    deadline: float,
    say: Callable[[str], None],
    report: Callable[[Run], None] = lambda run: None,
) -> None:
    """Carry out orders, with a server that runs as long as this function.

    A job's sites are those connected when it starts. So when a site that was lost has come back,
    the job ends after its round and the next goes on with that site.

    Args:
        kit: The coordinator's.
        orders: Of planning or of a run. A new one waits for all of its sites.
        quorum: How many must answer for a round to count.
        deadline: Seconds that a site has for a task.
        say: Told what is waited for.
        report: Called with the run every second while a job of it runs.

    Raises:
        MixmflError: It failed, or too few sites answered three times.
    """
    file, sites = orders_file(orders.out), orders.sites
    going_on = holds_run(orders.out)
    save_orders(orders, file)
    done = 0

    def look() -> Run | None:
        """Read the run as far as it is, and report it."""
        nonlocal done
        if not holds_run(orders.out):
            return None
        run = open_run(orders.out)
        done = len(run.history)
        report(run)
        return run

    look()
    with serving(kit) as session:
        say(f"serving at {kit.server}")
        _await(session, sites, quorum if going_on else len(sites), say)
        too_few = 0
        while True:
            begun = done

            def each_second(begun: int = begun) -> None:
                run = look()
                if done > begun and run is not None and _has_come_back(run, connected(session)):
                    _pause_file(file).touch()

            here = sorted(connected(session) & set(sites))
            leg = run_job(session, file, here, deadline=deadline, each_second=each_second)
            look()
            too_few = 0 if done > begun else too_few
            if leg.status == "done":
                return
            if leg.status == "failed":
                raise MixmflError(leg.reason)
            if leg.status == "quorum":
                too_few += 1
                if too_few == 3:
                    raise MixmflError(
                        f"{leg.reason}; that was the third time, so this stops. What is done is "
                        "kept: see to the sites, or give a longer --deadline, and --resume"
                    )
                say(f"{leg.reason}; the round is repeated")
            else:
                say("a site has come back")
            _await(session, sites, quorum, say)


def _await(session: Session, sites: Sequence[str], enough: int, say: Callable[[str], None]) -> None:
    """Wait until enough sites are connected, and a little for all."""
    told: set[str] | None = None
    patience = time.monotonic() + 20
    while True:
        here = connected(session) & set(sites)
        if here != told:
            missing = sorted(set(sites) - here)
            say(f"connected: {', '.join(sorted(here)) or 'nobody yet'}")
            if missing:
                say(f"waiting for {', '.join(missing)} (mixmfl_site there)")
            told = here
        if len(here) == len(sites) or (len(here) >= enough and time.monotonic() > patience):
            return
        time.sleep(1)


def _has_come_back(run: Run, here: set[str]) -> bool:
    """Say whether a site is here that the last round could not reach."""
    last = run.history[-1]
    lost = {
        site
        for site in run.registrations
        if site not in last or last[site].absent.startswith(NOT_CONNECTED)
    }
    return bool(lost & here)


def run_job(
    session: Session,
    orders: Path,
    sites: Sequence[str],
    *,
    deadline: float,
    each_second: Callable[[], None],
) -> Leg:
    """Have the server and sites work through a job, and return how it ended.

    Args:
        session: Of the server.
        orders: Written by ``remote.save_orders``; what comes of the job is noted beside it.
        sites: That take part.
        deadline: Seconds that a site has for a task.
        each_second: Called while it runs.
    """
    told = _leg_file(orders)
    told.unlink(missing_ok=True)
    _pause_file(orders).unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        job = Path(folder) / "mixmfl"
        write_job(job, orders, sites, deadline)
        number = session.submit_job(str(job))
    until = math.inf
    try:
        while not _has_ended(session, number) and time.monotonic() < until:
            each_second()
            time.sleep(1)
            if told.is_file() and until == math.inf:
                # the work is done; FLARE may still wait for a site that hangs
                until = time.monotonic() + _PATIENCE
    finally:  # also where a site hangs: it must not be in two jobs at once
        if not _has_ended(session, number):
            session.abort_job(number)
            until = time.monotonic() + 2 * _PATIENCE
            while not _has_ended(session, number) and time.monotonic() < until:
                time.sleep(1)
    if told.is_file():
        return Leg(**read_json(told))
    status = session.get_job_meta(number).get("status")
    return Leg("failed", f"FLARE ended the job as {status} before it began; see the server's log")


def _has_ended(session: Session, number: str) -> bool:
    meta = _patiently(partial(session.get_job_meta, number))
    return str(meta.get("status")).startswith("FINISHED")


def _patiently(ask: Callable[[], Any]) -> Any:
    """Ask the server, and again where it is too busy to answer."""
    until = time.monotonic() + _BUSY
    while True:
        try:
            return ask()
        except NoConnection:
            if time.monotonic() > until:
                raise
            time.sleep(1)


def _leg_file(orders: Path) -> Path:
    return orders.with_name("leg.json")


def _pause_file(orders: Path) -> Path:
    return orders.with_name("pause")


def write_job(job: Path, orders: Path, sites: Sequence[str], deadline: float) -> None:
    """Write a job of two applications; each is one class of ours, and configuration only."""
    coordinator = {
        "path": f"{__name__}.{Coordinator.__name__}",
        "args": {"orders": str(orders), "deadline": deadline},
    }
    executor = {"path": f"{__name__}.{SiteExecutor.__name__}", "args": {}}
    write_json(
        job / "meta.json",
        {
            "name": "mixmfl",
            "min_clients": 1,
            "deploy_map": {"server_app": ["server"], "site_app": list(sites)},
        },
    )
    write_json(
        job / "server_app" / "config" / "config_fed_server.json",
        {
            "format_version": 2,
            "workflows": [{"id": "mixmfl", **coordinator}],
            "components": [],
        },
    )
    write_json(
        job / "site_app" / "config" / "config_fed_client.json",
        {
            "format_version": 2,
            "executors": [{"tasks": ["*"], "executor": executor}],
            "components": [],
        },
    )


# --- parcels, as FLARE carries them ------------------------------------------------------------

_PARCEL = "parcel"  # in a task and in a result: where the message itself can be fetched
_CHUNK = 4 * 2**20  # bytes that are fetched at once
_ANSWER_SECONDS = 30.0  # for a chunk; FLARE asks three times more
_DAYS = 7 * 86400.0  # a parcel is withdrawn by us; this is when FLARE would


class _Offered(Downloadable):
    """A parcel that one end of the network may fetch, piece by piece, until it is withdrawn."""

    def __init__(
        self, cell: Cell, parcel: Parcel, receiver: str, begun: Callable[[], None] = lambda: None
    ) -> None:
        """Args: to whom alone it is given; called before the first piece is."""
        super().__init__(parcel)
        self.parcel = parcel
        self._receiver, self._begun = receiver, begun
        self.taken = False
        self._transaction = DownloadService.new_transaction(cell, _DAYS)
        number = DownloadService.add_object(self._transaction, self)
        self.address = {"from": cell.get_fqcn(), "number": number}

    def produce(self, state: Any, requester: str) -> tuple[str, bytes | None, dict[str, int]]:
        """Return a piece; FLARE calls it."""
        place = state["place"] if state else 0
        if FQCN.split(requester)[0] != self._receiver or type(place) is not int or place < 0:
            raise ValueError(f"{requester} asks for what is not there for it")
        if not self.taken:
            self.taken = True
            self._begun()
        piece = self.parcel.read(place, _CHUNK)
        if not piece:
            return ProduceRC.EOF, None, {}
        return ProduceRC.OK, piece, {"place": place + len(piece)}

    def withdraw(self) -> None:
        """Give it to nobody any more."""
        DownloadService.delete_transaction(self._transaction)


class _Pieces(Consumer):
    """Writes what is fetched to a file, up to a limit."""

    supports_pipelining = True  # the next piece is on its way while this one is written

    def __init__(self, file: BinaryIO, most_bytes: int) -> None:
        super().__init__()
        self.problem = ""
        self._file, self._most, self._size = file, most_bytes, 0

    def consume(self, ref_id: str, state: dict[str, int], data: Any) -> dict[str, int]:
        """Take a piece; FLARE calls it."""
        self._size += len(data)
        if self._size > self._most:
            raise ValueError(f"more than {self._most} bytes came")
        self._file.write(data)
        return dict(state)

    def download_completed(self, ref_id: str) -> None:
        """Do nothing; FLARE wants it."""

    def download_failed(self, ref_id: str, reason: str) -> None:
        """Remember why."""
        self.problem = reason or "it cannot be fetched"


def _fetch(
    cell: Cell, address: Any, sender: str, most_bytes: int, folder: Path, stop: Signal
) -> Parcel:
    """Fetch a parcel that the other end offers.

    Args:
        cell: Ours.
        address: As the other end tells it.
        sender: From whom alone it is fetched.
        most_bytes: That it may have.
        folder: On whose disk it comes.
        stop: Ends it early.

    Raises:
        AggregationError: It could not be fetched.
    """

    def write(path: Path) -> None:
        with path.open("wb") as file:
            pieces = _Pieces(file, most_bytes)
            download_object(
                *(source, str(address["number"]), _ANSWER_SECONDS, cell, pieces),
                abort_signal=stop,
            )
        if pieces.problem:
            raise AggregationError(pieces.problem)

    source = str(address.get("from")) if isinstance(address, dict) else ""
    if FQCN.split(source)[0] != sender or "number" not in address:
        raise AggregationError("it does not say where the message can be fetched")
    return Parcel(nameless(folder, write))


def _let_go() -> None:
    """Free what is held by circles of references alone, now, and the files of messages with it.

    FLARE's tasks are such circles, and so is what training leaves. Python looks for them rarely
    where little is made anew: messages of several rounds would lie on disk.
    """
    gc.collect()
    give_back_memory()


# --- what FLARE runs in a job ------------------------------------------------------------------


class Coordinator(Controller):
    """The server's side of a job: works through orders, asking sites by FLARE's tasks."""

    def __init__(self, orders: str, deadline: float) -> None:
        """Args: the orders' file; seconds that a site has for a task."""
        super().__init__(task_check_period=0.1)
        self._orders = Path(orders)
        self._deadline = deadline
        self._silent: set[str] = set()

    def start_controller(self, fl_ctx: FLContext) -> None:
        """Do nothing; FLARE wants it."""

    def stop_controller(self, fl_ctx: FLContext) -> None:
        """Do nothing; FLARE wants it."""

    def control_flow(self, abort_signal: Signal, fl_ctx: FLContext) -> None:
        """Work through the orders and note how it ended."""
        orders = load_orders(self._orders)
        clear_unfinished(self._orders.parent)
        sites = sorted(client.name for client in fl_ctx.get_engine().get_clients())
        self._log = self._orders.with_name("exchange.log")

        def ask(tasks: Mapping[str, Message]) -> Answers:
            return self._ask(tasks, sites, fl_ctx, abort_signal)

        try:
            if isinstance(orders, PlanOrders):
                plan_remotely(orders, ask)
                leg = Leg("done")
            else:
                done = train_remotely(orders, ask, _pause_file(self._orders).exists)
                leg = Leg("done" if done else "paused")
        except QuorumError as error:
            leg = Leg("quorum", str(error))
        except (MixmflError, OSError, RuntimeError, ValueError, LookupError, TypeError) as error:
            self.log_exception(fl_ctx, "the job failed")
            named = "" if isinstance(error, MixmflError) else f"{type(error).__name__}: "
            leg = Leg("failed", f"{named}{error}")
        write_json(_leg_file(self._orders), dataclasses.asdict(leg))

    def process_result_of_unknown_task(
        self,
        client: Client,
        task_name: str,
        client_task_id: str,
        result: Shareable,
        fl_ctx: FLContext,
    ) -> None:
        """Drop what comes too late, if FLARE at the site has not."""
        note(self._log, f"late from {client.name}: {task_name}, dropped")

    def _ask(
        self,
        tasks: Mapping[str, Message],
        sites: Sequence[str],
        fl_ctx: FLContext,
        abort_signal: Signal,
    ) -> Answers:
        _let_go()  # of what the last tasks brought
        absent = {site: NOT_CONNECTED for site in tasks if site not in sites}
        cell, packed = fl_ctx.get_engine().get_cell(), _Packed(self._log.parent)
        asked = {
            site: _Asked(site, message, packed.of(message), cell, self._log)
            for site, message in tasks.items()
            if site in sites
        }
        for site, item in asked.items():
            self.send(item.task, fl_ctx, targets=[site], send_order=SendOrder.ANY)
        began = time.monotonic()
        while awaited := {site for site, item in asked.items() if item.open}:
            if abort_signal.triggered:  # FLARE does so when it hears of no site any more
                raise QuorumError("all sites were lost")
            waited = time.monotonic() - began
            silent = {site for site in awaited & self._silent if not asked[site].fetched}
            if waited > self._deadline or (waited > _PATIENCE and awaited == silent):
                break
            time.sleep(0.05)
        for item in asked.values():
            if item.open:
                late = f"did not answer within {self._deadline:g} s; a later reply is dropped"
                item.refuse(late if item.fetched else f"{NOT_CONNECTED}: did not fetch its task")
                self.cancel_task(item.task, fl_ctx=fl_ctx)
            item.close()
        unfetched = {site for site, item in asked.items() if not item.fetched}
        self._silent = (self._silent - set(asked)) | unfetched
        came = {site: item.answer for site, item in asked.items() if item.answer is not None}
        return Answers(came, {**absent, **{s: i.absent for s, i in asked.items() if i.absent}})


class _Packed:
    """Tasks as parcels; those that say the same are one, so that it lies on disk once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: dict[str, Parcel] = {}

    def of(self, message: Message) -> Parcel:
        """Return a message's parcel."""
        same = {name: id(tensor) for name, tensor in message.tensors.items()}
        key = json.dumps([message.kind, message.record, same])
        if key not in self._known:
            self._known[key] = Parcel.pack(message, self._folder)
        return self._known[key]


class _Asked:
    """A task on its way to a site, and what comes back."""

    _at_once = threading.Semaphore(16)
    """Replies that are fetched at once, each with a few pieces in memory."""

    def __init__(self, site: str, message: Message, parcel: Parcel, cell: Cell, log: Path) -> None:
        self.answer: Answer | None = None
        self.absent = ""
        self.fetched = False
        self._site, self._kind, self._parcel, self._cell = site, message.kind, parcel, cell
        self._log, self._began = log, time.monotonic()
        # now, for it reads the parcel, and FLARE waits for us when it sends
        self._line = describe_exchange(f"sent to {site}", parcel)
        self._offered = _Offered(cell, parcel, site)
        self._coming = False
        self._stop = Signal()
        self._lock = threading.Lock()
        told = Shareable()
        told[_PARCEL] = self._offered.address
        self.task = Task(
            name=message.kind,
            data=told,
            before_task_sent_cb=self._sent,
            result_received_cb=self._take,
            task_done_cb=self._done,
        )

    @property
    def open(self) -> bool:
        return self.answer is None and not self.absent

    def refuse(self, reason: str) -> None:
        """Give up on the site for this task."""
        with self._lock:
            if self.open:
                self.absent = reason
                note(self._log, f"nothing from {self._site}: {self._kind}: {reason}")

    def close(self) -> None:
        """Let go of the task, and of a reply that is still coming."""
        self._offered.withdraw()
        if self.answer is None:
            self._stop.trigger("too late")

    def _sent(self, client_task: ClientTask, fl_ctx: FLContext) -> None:
        self.fetched = True
        self._began = time.monotonic()
        note(self._log, self._line)

    def _take(self, client_task: ClientTask, fl_ctx: FLContext) -> None:
        result, client_task.result = client_task.result, None
        if _PARCEL not in result:
            self.refuse(f"its reply holds no message ({result.get_return_code()})")
            return
        self._coming = True
        # FLARE waits for us before it hears anybody else
        threading.Thread(target=self._fetch, args=(result[_PARCEL],), daemon=True).start()

    def _fetch(self, address: Any) -> None:
        most = most_reply_bytes(self._parcel.size)
        try:
            with self._at_once:
                folder = self._log.parent
                parcel = _fetch(self._cell, address, self._site, most, folder, self._stop)
            reply = parcel.open(most)
            note(self._log, describe_exchange(f"came from {self._site}", parcel))
        except Exception as error:  # whatever a stranger can send must end here
            self.refuse(f"its reply cannot be read ({plain(error)})")
            return
        if reply.kind == FAILED:
            self.refuse(_failure(reply))
            return
        seconds = time.monotonic() - self._began
        with self._lock:
            if self.open:
                self.answer = Answer(reply, parcel.size, self._parcel.size, seconds)

    def _done(self, task: Task, fl_ctx: FLContext) -> None:
        if not self._coming:
            self.refuse(f"{NOT_CONNECTED} any more ({task.completion_status})")


def _failure(reply: Message) -> str:
    theirs = reply.record.get("version")
    if theirs != __version__:
        return f"runs mixmfl {plain(theirs)}, the coordinator {__version__}; install the same"
    return f"could not do it ({plain(reply.record.get('error'))})"


class SiteExecutor(Executor):
    """A hospital's side of a job: hands tasks to ``Hospital``."""

    def __init__(self) -> None:
        """Nothing is set by the job; what the hospital set is read at the first task."""
        super().__init__()
        self._house: House
        self._hospital: Hospital | None = None
        self._reply: _Offered | None = None

    def execute(
        self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal
    ) -> Shareable:
        """Answer a task: fetch it, do it, and say where the reply can be fetched."""
        cell = fl_ctx.get_engine().get_cell()
        if self._hospital is None:
            local = fl_ctx.get_engine().get_workspace().get_site_config_dir()
            self._house = House.load(Path(local) / _HOUSE)
            self._hospital = Hospital(self._house)
            clear_unfinished(self._house.work)
        self._withdraw()
        folder, address = self._house.work, shareable.get(_PARCEL)
        try:
            task = _fetch(cell, address, FQCN.ROOT_SERVER, MOST_BYTES, folder, abort_signal)
        except AggregationError as error:
            note(self._house.problem_log, f"a task could not be fetched: {error}")
            return make_reply(ReturnCode.EXECUTION_EXCEPTION)
        made = self._hospital.answer(task)
        del task
        _let_go()  # the next task may be long in coming
        leaves = partial(self._hospital.note_reply, made, taken=True)
        self._reply = _Offered(cell, made, FQCN.ROOT_SERVER, leaves)
        reply = Shareable()
        reply[_PARCEL] = self._reply.address
        return reply

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Let go of the last reply when the job ends; FLARE calls it."""
        if event_type == EventType.END_RUN:
            self._withdraw()

    def _withdraw(self) -> None:
        """Offer the last reply no more, and say so if nobody took it."""
        if self._reply is not None:
            self._reply.withdraw()
            if not self._reply.taken and self._hospital is not None:
                self._hospital.note_reply(self._reply.parcel, taken=False)
            self._reply = None
