"""FLARE's processes: each runs for the length of a ``with`` block; one at a time uses a kit."""

import io
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from typing import TypeVar

import psutil
from nvflare.apis.fl_exception import FLCommunicationError
from nvflare.fuel.f3.cellnet.cell_cipher import InvalidCertChain
from nvflare.fuel.flare_api.api_spec import (
    AuthenticationError,
    InternalError,
    JobNotFound,
    NoConnection,
    NoReply,
    SessionClosed,
    SessionExpired,
)
from nvflare.fuel.flare_api.flare_api import Session, new_secure_session

from mixmfl.core.errors import MixmflError
from mixmfl.core.files import locked, read_json, write_json
from mixmfl.federated.client.site_config import SiteConfig
from mixmfl.federated.exchange_log import note
from mixmfl.federated.flare.hospital_settings import (
    SITE_CONFIG,
    check_files,
    write_address,
    write_connections,
    write_policies,
)
from mixmfl.federated.flare.kits import ADMIN, CERTIFICATES, Kit
from mixmfl.federated.flare.provisioning import ORG
from mixmfl.federated.flare.tunnel import tunnel

_BUSY = 120.0
"""Seconds for which the server may be too busy to answer."""

_LOST = (InternalError, AuthenticationError, JobNotFound, NoReply, SessionClosed, SessionExpired)
"""What FLARE raises where a server that answered before is not as it was."""

T = TypeVar("T")


class ServerLostError(MixmflError):
    """The coordinator's server ended, or does not answer any more."""


@dataclass(frozen=True)
class Server:
    """The coordinator's server while it runs.

    Attributes:
        kit: The coordinator's kit.
        process: The server's process.
        session: An administrator's session at it.
    """

    kit: Kit
    process: "subprocess.Popen[bytes]"
    session: Session

    def ask(self, question: Callable[[Session], T]) -> T:
        """Ask the server, and again while it is too busy to answer.

        Raises:
            ServerLostError: Its process ended, or it does not answer.
        """
        until = time.monotonic() + _BUSY
        while True:
            if self.process.poll() is not None:
                raise self._lost(f"exit code {self.process.returncode}")
            try:
                return question(self.session)
            except NoConnection as error:
                if time.monotonic() > until:
                    raise self._lost(str(error)) from None
            except _LOST as error:
                raise self._lost(str(error)) from None
            time.sleep(1)

    def _lost(self, reason: str) -> ServerLostError:
        return ServerLostError(
            f"{self.kit.folder}: the server ended or does not answer ({reason}); see log.txt there"
        )


@contextmanager
def running_server(kit: Kit) -> Iterator[Server]:
    """Run the coordinator's server for the length of the block.

    Raises:
        MixmflError: The server runs already, or cannot be started.
    """
    with exclusive(kit):
        _end_orphans(kit)  # one may have the port
        _settle_server(kit)
        with _process(kit, "server", [f"org={ORG}"]) as process:
            session = _session(kit, process)
            try:
                yield Server(kit, process, session)
            finally:
                if process.poll() is None:
                    with suppress(NoConnection, *_LOST):
                        session.close()
                else:  # to log out from a server that is gone takes minutes
                    session.api.close()


@contextmanager
def running_client(kit: Kit, config: SiteConfig) -> Iterator[subprocess.Popen[bytes]]:
    """Run a hospital's client: it joins and answers tasks until the block ends.

    Raises:
        MixmflError: The client runs already, or the kit holds what FLARE might run.
    """
    with exclusive(kit):
        _end_orphans(kit)
        check_files(kit.folder)
        write_policies(kit.folder / "local")
        config.save(kit.folder / "local" / SITE_CONFIG)
        with ExitStack() as stack:
            through = None
            if config.proxy is not None:
                say = partial(note, config.problem_log)
                way = tunnel(config.proxy, kit.server, say, config.proxy_login)
                through = stack.enter_context(way)
            startup = kit.folder / "startup"
            write_address(startup, kit.name, kit.server, kit.coordinators[0], through)
            options = [f"uid={kit.name}", f"org={ORG}"]
            yield stack.enter_context(_process(kit, "client", options))


@contextmanager
def exclusive(kit: Kit) -> Iterator[None]:
    """Hold the kit's lock, so that one process uses a kit at a time.

    Raises:
        MixmflError: Another process uses the kit.
    """
    refusal = MixmflError(f"{kit.folder}: this kit is in use by another process; end that first")
    with locked(kit.folder / "lock", 0, refusal):
        yield


@contextmanager
def _process(kit: Kit, kind: str, options: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run one of FLARE's processes, and end it and all that it started with the block."""
    command = [
        *(sys.executable, "-u", "-c", _RUN_AS_CHILD),
        str(kit.folder / "local" / CERTIFICATES) if kind == "server" else "",
        "" if kind == "server" else f"{kit.coordinators[0]},{kit.name}",
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
            # no file of the kit is a module; Python 3.10 does not know this word
            env={**os.environ, "PYTHONSAFEPATH": "1"},
            start_new_session=True,  # only we receive Ctrl-C, and then end it in order
        )
    try:
        yield process
    finally:
        with suppress(psutil.NoSuchProcess):  # it may have ended by itself
            _end([psutil.Process(process.pid)])
        process.wait()
        _end_orphans(kit)


# Runs a module, and ends when the process that started it is gone, however that ended; whatever
# FLARE starts ends with it. FLARE drops a connection with an invalid certificate silently, so the
# reason is logged here. FLARE knows no revoked certificates: a server compares a client's with a
# list, which is read again every second, when the client connects and whenever it sends. FLARE's
# client takes any certificate of the authority for the server's: so another hospital could sit in
# between. A client compares the name, and so does the process that it starts for a job.
_RUN_AS_CHILD = """
import hashlib, json, logging, os, runpy, shlex, ssl, sys, threading, time

listed = sys.argv[1]  # the file, or nothing for a client
peers = [*filter(None, sys.argv[2].split(","))]  # with whom a client talks, itself included
valid = set() if listed else None

def read_valid():
    global valid
    try:
        with open(listed, encoding="utf-8") as file:
            valid = {content["sha256"] for content in json.load(file).values()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        logging.getLogger("mixmfl.connections").warning("%s: %s", listed, error)

def watch(parent=os.getppid()):
    while os.getppid() == parent:
        time.sleep(1)
        if listed:
            read_valid()
    os._exit(1)

def log_refusal(error):
    logging.getLogger("mixmfl.connections").warning("a connection was refused: %s", error)

class CheckedSSLObject(ssl.SSLObject):
    def do_handshake(self):
        try:
            super().do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except ssl.SSLError as error:
            log_refusal(error)
            raise
        self.check()

    def check(self):
        if not hasattr(self, "digest"):
            self.digest = hashlib.sha256(self.getpeercert(True) or b"").hexdigest()
            names = [pair for part in self.getpeercert().get("subject", ()) for pair in part]
            self.whose = dict(names).get("commonName", "nobody")
        if self.server_side and valid is not None and self.digest not in valid:
            self.refuse(f"the certificate of {self.whose} was replaced or revoked")
        if not self.server_side and peers and self.whose not in peers:
            self.refuse(f"the other end has the certificate of {self.whose}, not of {peers[0]}")

    def refuse(self, why):
        error = ssl.SSLError(1, why)
        log_refusal(error)
        raise error

    def read(self, *arguments):
        self.check()
        return super().read(*arguments)

ssl.SSLContext.sslobject_class = CheckedSSLObject
if listed:
    read_valid()
if peers:
    from nvflare.app_common.job_launcher import client_process_launcher as launcher

    of_flare = launcher.generate_client_command
    worker = "nvflare.private.fed.app.client.worker_process"
    start = shlex.join(["-u", "-c", sys.orig_argv[sys.orig_argv.index("-c") + 1], *sys.argv[1:3]])

    def checked(context):
        command = of_flare(context)
        if f" -m {worker} " not in command:
            raise RuntimeError(f"FLARE starts a job by another module than {worker}")
        return command.replace(f" -m {worker} ", f" {start} {worker} ", 1)

    launcher.generate_client_command = checked
threading.Thread(target=watch, daemon=True).start()
del sys.argv[:3]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


def _end_orphans(kit: Kit) -> None:
    """End processes that a killed command left behind; call it only with the kit's lock held."""
    _end(
        [
            process
            for process in psutil.process_iter(["cmdline"])
            if str(kit.folder) in (command := process.info["cmdline"] or [])
            and any("nvflare" in word for word in command)
        ]
    )


def _end(leaders: Sequence[psutil.Process]) -> None:
    """End processes and all that they started: first by SIGTERM, then by SIGKILL."""
    processes = [*leaders]
    for leader in leaders:
        with suppress(psutil.NoSuchProcess):
            processes += leader.children(recursive=True)
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    for process in psutil.wait_procs(processes, timeout=5)[1]:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=5)


def _settle_server(kit: Kit) -> None:
    """Set absolute paths in the kit for what the server stores, and check that its port is free."""
    write_connections(kit.folder / "local")
    file = kit.folder / "local" / "resources.json"
    resources = read_json(file)
    try:
        for component in resources["components"]:
            if component["id"] == "job_manager":
                component["args"]["uri_root"] = str(kit.folder / "jobs")
        resources["servers"][0]["heart_beat_timeout"] = 120  # s until a silent site is given up
        storage = resources["snapshot_persistor"]["args"]["storage"]
        storage["args"]["root_dir"] = str(kit.folder / "snapshots")
    except (KeyError, IndexError, TypeError) as error:
        raise MixmflError(
            f"{file}: is damaged ({type(error).__name__}: {error}); have the kit made again by "
            "mixmfl_provision"
        ) from None
    write_json(file, resources)
    port = int(kit.server.rpartition(":")[2])
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            raise MixmflError(
                f"port {port}, which the kits name, cannot be used here ({error.strerror}); end "
                "the process that uses it, or provision another port"
            ) from None


def _session(kit: Kit, process: subprocess.Popen[bytes]) -> Session:
    until = time.monotonic() + 120
    while True:
        try:
            # FLARE prints a line at each attempt, and tracebacks of what it raises
            with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                return new_secure_session(ADMIN, str(kit.folder / "admin"))
        except InvalidCertChain:
            raise MixmflError(
                f"{kit.folder}: its certificates are not valid at the time of this machine's "
                f"clock, {datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC; set the clock, or renew "
                "them by mixmfl_provision --renew coordinator"
            ) from None
        except (NoConnection, FLCommunicationError, *_LOST):  # it may be slow to start
            if process.poll() is not None or time.monotonic() > until:
                raise MixmflError(
                    f"{kit.folder}: the server did not start; the reason is in console.log there"
                ) from None
            time.sleep(0.5)
