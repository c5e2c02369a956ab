"""A way to the coordinator through an HTTP proxy that knows CONNECT."""

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from loopback import ConnectProxy, Loopback, until
from small import write_preset

from mixmfl.core.errors import DataError
from mixmfl.federated.flare.hospital_settings import write_address
from mixmfl.federated.flare.kits import open_kit
from mixmfl.federated.flare.provisioning import Network, provision
from mixmfl.federated.flare.tunnel import check_login, check_proxy, tunnel


@contextlib.contextmanager
def proxy(refuses: bool = False) -> Iterator[ConnectProxy]:
    made = ConnectProxy(refuses)
    try:
        yield made
    finally:
        made.close()


def test_bytes_go_both_ways_and_the_end_of_one_ends_the_other() -> None:
    with socket.create_server(("localhost", 0)) as listener, proxy() as made:
        server = f"localhost:{listener.getsockname()[1]}"
        with tunnel(f"localhost:{made.port}", server, print) as address:
            host, port = address.split(":")
            site = socket.create_connection((host, int(port)), timeout=30)
            there, _ = listener.accept()
            site.sendall(b"up" * 100_000)
            received = b""
            while len(received) < 200_000:
                received += there.recv(1 << 16)
            assert received == b"up" * 100_000
            there.sendall(b"down")
            assert site.recv(4) == b"down"
            there.close()
            assert site.recv(1) == b""
            site.close()
        assert made.asked == [server]
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((host, int(port)), timeout=30)


def test_a_proxy_is_given_the_name_and_password_of_a_file(tmp_path: Path) -> None:
    file, reasons = tmp_path / "login", list[str]()
    file.write_text("north:pass: wörd\n", encoding="utf-8")
    file.chmod(0o600)
    with socket.create_server(("localhost", 0)) as listener, proxy() as made:
        server = f"localhost:{listener.getsockname()[1]}"
        made.login = "north:pass: wörd"
        for login, connects in ((file, True), (None, False)):
            with tunnel(f"localhost:{made.port}", server, reasons.append, login) as address:
                site = socket.create_connection(("localhost", int(address.split(":")[1])), 30)
                with site:
                    if connects:
                        site.sendall(b"up")
                        there, _ = listener.accept()
                        assert there.recv(2) == b"up"
                        there.close()
                    assert site.recv(1) == b""
    assert "407 Proxy Authentication Required" in reasons[0]
    assert "wörd" not in reasons[0]


@pytest.mark.parametrize("content", ["north", ":word", "north:a\nb:c", "", "x" * 5_000_000])
def test_what_is_no_name_and_password_is_refused_and_not_shown(
    tmp_path: Path, content: str
) -> None:
    file = tmp_path / "login"
    file.write_text(content)
    file.chmod(0o600)
    with pytest.raises(DataError) as refused:
        check_login(file)
    assert "needed is one line, name:password" in str(refused.value) or len(content) > 100
    file.write_text("north:secret")
    assert check_login(file) == b"north:secret"
    file.chmod(0o640)
    if os.name == "posix":
        with pytest.raises(DataError, match="others on this machine may read this password") as no:
            check_login(file)
        assert "secret" not in str(no.value)


def test_it_is_said_why_a_proxy_does_not_connect() -> None:
    reasons: list[str] = []
    with proxy(refuses=True) as made:
        for port in (made.port, 1):
            with tunnel(f"localhost:{port}", "mixmfl.example.org:8002", reasons.append) as address:
                host, _, here = address.partition(":")
                for _ in range(2):  # the second time it is not said again
                    with socket.create_connection((host, int(here)), timeout=30) as site:
                        assert site.recv(1) == b""
    assert len(reasons) == 2
    begin = "does not connect to mixmfl.example.org:8002: "
    assert f"{begin}it answered HTTP/1.1 407 Proxy Authentication Required" in reasons[0]
    assert f"{begin}[Errno " in reasons[1]


@pytest.mark.parametrize("address", ["proxy", "user:word@proxy:1", "https://p:1", "p:0", "a b:1"])
def test_what_is_no_address_of_a_proxy_is_refused(address: str) -> None:
    with pytest.raises(DataError, match="is no address of an HTTP proxy; name it as host:port"):
        check_proxy(address)
    assert check_proxy("http://proxy.example.org:3128/") == "proxy.example.org:3128"


def test_the_address_of_a_kit_is_the_coordinators_and_not_that_of_a_tunnel(tmp_path: Path) -> None:
    kits = tmp_path / "kits"
    provision(Network("mixmfl.example.org", 8002, ("north",)), kits)
    for _ in range(2):
        kit = open_kit(kits / "north", coordinator=False)
        assert kit.server == "mixmfl.example.org:8002"
        startup = kits / "north" / "startup"
        write_address(startup, kit.name, kit.server, kit.coordinators[0], "127.0.0.1:4711")
    assert '"target": "127.0.0.1:4711"' in (startup / "fed_client.json").read_text()


@pytest.mark.slow
def test_a_hospital_behind_a_proxy_trains_and_connects_to_nothing_else(tmp_path: Path) -> None:
    training = {"local_steps": 2, "learning_rate": 0.01}
    federation = Loopback(tmp_path, write_preset(tmp_path / "tiny.json", **training))
    ports = set[int]()
    with proxy() as made, contextlib.closing(federation):
        for name in ("south", "west"):
            federation.start_site(name)
        federation.start_site("north", None, "--proxy", f"localhost:{made.port}")
        process = federation.train("run", rounds=3)

        def has_ended() -> bool:
            with contextlib.suppress(psutil.Error):  # a process may end while it is looked at
                for member in psutil.Process(federation.sites["north"].pid).children(True):
                    ports.update(c.raddr.port for c in member.net_connections() if c.raddr)
            return process.poll() is not None

        until(has_ended, "the run ends", 600)
        assert process.returncode == 0, federation.printed("run")
    history = federation.history("run")
    assert history is not None
    assert all(not sites["north"].absent for sites in history.history)
    assert len(made.asked) > 1
    assert set(made.asked) == {f"localhost:{federation.port}"}
    assert ports  # those of the tunnel, and of FLARE's processes among each other
    assert federation.port not in ports
    assert f"through the proxy localhost:{made.port}" in federation.printed("north")
