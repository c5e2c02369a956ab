"""Hospitals and a coordinator as processes of this machine, joined by FLARE on the loopback."""

import base64
import contextlib
import json
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import psutil
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from mixmfl.entrypoints._local_network import free_port, start
from moved_clock import with_clock
from small import write_site

from mixmfl.core.worker_pool import Workers
from mixmfl.federated.flare.provisioning import Network, provision
from mixmfl.federated.server.run import Run
from mixmfl.federated.server.run_record import holds_run, open_run
from mixmfl.planning.federation_plans import make_plans
from mixmfl.planning.fingerprint import merge_fingerprints
from mixmfl.planning.plans import load_preset
from mixmfl.planning.preprocess import preprocess_site
from mixmfl.planning.site_fingerprint import fingerprint_site
from mixmfl.planning.site_folders import find_site

MODALITIES = {"north": ("t1", "t2"), "south": ("flair", "t1"), "west": ("t2",)}


def until(true: Callable[[], object], what: str, seconds: float = 180) -> None:
    """Wait, looking ten times a second, for so many seconds of a machine that has a core for us.

    Looks are counted and not seconds: where others take the cores, both what is waited for and
    the looks are slower.
    """
    for _ in range(round(10 * seconds)):
        if true():
            return
        time.sleep(0.1)
    raise AssertionError(f"not within {seconds} s: {what}")


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a command and all that it started at once, as a power cut does."""
    try:
        family = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return
    for member in [psutil.Process(process.pid), *family]:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    process.wait()


def write_certificate(startup: Path, name: str, days: int, authority: Path | None = None) -> None:
    """Write a certificate that ends in some days, signed by an authority's, or by itself."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    subject = issuer = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    signing: Any = key
    if authority is not None:
        state = json.loads((authority / "mixmfl" / "state" / "cert.json").read_text())
        issuer = x509.load_pem_x509_certificate(state["root_cert"].encode()).subject
        signing = serialization.load_pem_private_key(state["root_pri_key"].encode(), None)
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
    (startup / "client.key").chmod(0o600)


class Cable:
    """A connection to a port of this machine that can be cut, and counts the bytes it carries."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._whole = True
        self._carries = threading.Event()
        self._carries.set()
        self._open: list[socket.socket] = []
        self._lock = threading.Lock()
        self.to_server = self.to_site = 0
        self.repeat = False  # whether the next bytes go to the server twice
        self._listener = socket.create_server(("localhost", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Break all connections, and refuse new ones."""
        with self._lock:
            self._whole = False
            for end in self._open:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
                end.close()
            self._open.clear()

    def stall(self) -> None:
        """Carry nothing more; connections stay open, and new ones are accepted."""
        self._carries.clear()

    def mend(self) -> None:
        """Carry again."""
        self._whole = True
        self._carries.set()

    def close(self) -> None:
        """Cut it for good."""
        self.cut()
        self._listener.close()

    def _accept(self) -> None:
        for site in _connections(self._listener):
            with self._lock:
                if not self._whole:
                    site.close()
                    continue
                try:
                    server = socket.create_connection(("localhost", self._port))
                except OSError:
                    site.close()
                    continue
                self._open += [site, server]
            for source, target in ((site, server), (server, site)):
                threading.Thread(target=self._carry, args=(source, target), daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        upward = target.getpeername()[1] == self._port
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                self._carries.wait()
                if upward:
                    self.to_server += len(data)
                else:
                    self.to_site += len(data)
                target.sendall(data)
                if upward and self.repeat:
                    self.repeat = False
                    target.sendall(data)
        for end in (source, target):
            end.close()


def _connections(listener: socket.socket) -> Iterator[socket.socket]:
    """Yield what connects, until the listener is closed."""
    while True:
        try:
            connected, _ = listener.accept()
        except OSError:
            return
        yield connected


class ConnectProxy:
    """An HTTP proxy on this machine that knows ``CONNECT`` alone, and notes what it was asked."""

    def __init__(self, refuses: bool = False) -> None:
        self.asked: list[str] = []
        self.login = ""  # name:password that it asks for
        self._refuses = refuses
        self._listener = socket.create_server(("localhost", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        for site in _connections(self._listener):
            threading.Thread(target=self._serve, args=(site,), daemon=True).start()

    def _serve(self, site: socket.socket) -> None:
        header = b""
        while not header.endswith(b"\r\n\r\n"):
            header += site.recv(1)
        first, *fields = header.decode().strip().split("\r\n")
        method, target, _ = first.split(" ")
        assert method == "CONNECT"
        self.asked.append(target)
        host, port = target.split(":")
        given = base64.b64encode(self.login.encode()).decode()
        known = not self.login or f"Proxy-Authorization: Basic {given}" in fields
        try:
            if self._refuses or not known:
                raise OSError("407 Proxy Authentication Required")
            server = socket.create_connection((host, int(port)))
        except OSError as error:
            answer = "502 Bad Gateway" if error.errno else error
            site.sendall(f"HTTP/1.1 {answer}\r\n\r\n".encode())
            site.close()
            return
        site.sendall(b"HTTP/1.1 200 Connection established\r\nVia: proxy\r\n\r\n")
        with site, server:
            back = threading.Thread(target=self._carry, args=(server, site), daemon=True)
            back.start()
            self._carry(site, server)
            back.join()

    @staticmethod
    def _carry(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


class Loopback:
    """A federation that is planned and preprocessed, with a kit for everyone."""

    def __init__(
        self,
        folder: Path,
        preset: Path,
        server_port: int | None = None,
        clocks: Path | None = None,
    ) -> None:
        """With what ``build_clock`` made, each command has a clock that ``move_clock`` moves."""
        self.folder, self._clocks = folder, clocks
        self.port = server_port or free_port()
        network = Network("localhost", self.port, tuple(MODALITIES))
        provision(network, folder / "kits")
        self.work = folder / "work"
        sites = []
        for name, modalities in MODALITIES.items():
            data = folder / "data" / name
            write_site(data, [modalities] * 3, f"{name}_patient")
            sites.append(find_site(data))
        with Workers() as workers:
            places = {site.name: folder / site.name / "sites" / site.name for site in sites}
            fingerprints = [fingerprint_site(site, places[site.name], workers)[0] for site in sites]
            plans = make_plans(
                merge_fingerprints(fingerprints), sites[0].labels, load_preset(str(preset))
            )
            plans.save(self.work / "plans.json")
            for site in sites:
                preprocess_site(site, plans, "2d", places[site.name], workers)
        self.plans = plans
        self.sites: dict[str, subprocess.Popen[bytes]] = {}

    def start_site(self, name: str, kit: Path | None = None, *options: object) -> None:
        self.sites[name] = start(
            self.folder / f"{name}.txt",
            "mixmfl_site",
            *("--kit", kit or self.folder / "kits" / name, "-i", self.folder / "data" / name),
            *("-o", self.folder / name, "--device", "cpu", "-n", 1),
            *("--min-validation-cases", 1, "--min-training-cases", 1),  # they have few
            *options,
            env=self._clock_of(name),
        )

    def clock(self, name: str) -> Path:
        """Return the clock of a site, or of ``coordinator``."""
        return self.folder / f"clock-{name}"

    def _clock_of(self, name: str) -> Mapping[str, str]:
        return {} if self._clocks is None else with_clock(self._clocks, self.clock(name))

    def lay_cable(self, name: str) -> Cable:
        """Connect a site, which must not run, by a cable of its own."""
        cable = Cable(self.port)
        config = self.folder / "kits" / name / "startup" / "fed_client.json"
        content = json.loads(config.read_text())
        content["servers"][0]["service"]["target"] = f"localhost:{cable.port}"
        config.write_text(json.dumps(content))
        return cable

    def train(self, run: str, *options: object, rounds: int = 3) -> subprocess.Popen[bytes]:
        return start(
            self.folder / f"{run}.txt",
            "mixmfl_train_federated",
            *("--kit", self.folder / "kits" / "coordinator", "-i", self.work),
            *("-o", self.folder / run, "-c", "2d", "--rounds", rounds, *options),
            env=self._clock_of("coordinator"),
        )

    def printed(self, name: str) -> str:
        """Return what a command printed, by the name of its run or site."""
        return (self.folder / f"{name}.txt").read_text()

    def exchanged(self, run: str) -> str:
        """Return the coordinator's log of a run."""
        log = self.folder / run / "network" / "exchange.log"
        return log.read_text() if log.is_file() else ""

    def history(self, run: str) -> Run | None:
        """Return a run as far as it is."""
        return open_run(self.folder / run) if holds_run(self.folder / run) else None

    def rounds(self, run: str) -> int:
        found = self.history(run)
        return len(found.history) if found else 0

    def jobs(self, name: str) -> Sequence[psutil.Process]:
        """Return the processes in which a site trains."""
        family = psutil.Process(self.sites[name].pid).children(recursive=True)
        return [p for p in family if any("worker_process" in word for word in p.cmdline())]

    def close(self) -> None:
        """End the sites, each by its id."""
        for process in self.sites.values():
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
        for process in self.sites.values():
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                kill(process)
