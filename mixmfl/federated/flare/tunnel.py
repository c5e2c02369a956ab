"""A way to the coordinator through an HTTP proxy, for FLARE itself knows none.

FLARE connects to a port of this machine, and from there each connection is carried through a tunnel
that the proxy makes when it is asked by ``CONNECT``. TLS stays between FLARE's two ends.
"""

import os
import re
import shlex
import socket
import threading
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mixmfl.core.errors import DataError, why
from mixmfl.core.files import read_small
from mixmfl.core.text import one_line, quoted
from mixmfl.federated.flare.kits import is_host, is_port

_SECONDS = 30.0
"""Within which the proxy must answer."""

_MOST_HEADER = 2**16
_PIECE = 2**16


def check_proxy(address: str) -> str:
    """Return the address of a proxy, ``host:port``.

    Raises:
        DataError: It is none.
    """
    host, _, port = address.removeprefix("http://").rstrip("/").rpartition(":")
    if not (is_host(host) and is_port(port)):
        raise DataError(
            f"--proxy {quoted(address)}: is no address of an HTTP proxy; name it as host:port. A "
            "name and a password come by --proxy-login"
        )
    return f"{host}:{port}"


def check_login(file: Path) -> bytes:
    """Return the name and password for a proxy that a file holds, ``name:password`` in a line.

    Raises:
        DataError: The file cannot be read, others may read it, or it holds something else.
    """
    try:
        login = read_small(file).rstrip(b"\r\n")
        mode = file.stat().st_mode
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: cannot be read ({why(error)})") from None
    if os.name == "posix" and mode & 0o077:
        raise DataError(
            f"{file}: others on this machine may read this password, or write another: "
            f"chmod 600 {shlex.quote(str(file))}"
        )
    if not re.fullmatch(rb"[^:\x00-\x1f\x7f]+:[^\x00-\x1f\x7f]*", login):
        raise DataError(f"{file}: needed is one line, name:password, for the proxy")
    return login


@contextmanager
def tunnel(
    proxy: str, server: str, say: Callable[[str], None], login: Path | None = None
) -> Iterator[str]:
    """Listen on a port of this machine for the length of the block, and yield its address.

    Args:
        proxy: ``host:port`` of the proxy.
        server: ``host:port`` that it is asked to connect to.
        say: Called with why a connection could not be made, where that is not as before.
        login: File that ``check_login`` reads for every connection; None: the proxy asks nothing.
    """
    listener = socket.create_server(("127.0.0.1", 0))
    way = _Way(proxy, server, say, login)
    threading.Thread(target=way.accept, args=(listener,), daemon=True).start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}"
    finally:
        with suppress(OSError):  # else accept() goes on
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()


class _Way:
    """What every connection through a proxy needs to know."""

    def __init__(
        self, proxy: str, server: str, say: Callable[[str], None], login: Path | None
    ) -> None:
        self._proxy, self._server, self._say, self._login = proxy, server, say, login
        self._reason = ""  # why the last connection could not be made

    def accept(self, listener: socket.socket) -> None:
        while True:
            try:
                here, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self._carry_all, args=(here,), daemon=True).start()

    def _carry_all(self, here: socket.socket) -> None:
        with here:
            try:
                there = self._connect()
            except (OSError, ValueError, DataError) as error:
                reason = f"the proxy {self._proxy} does not connect to {self._server}: {error}"
                if reason != self._reason:  # FLARE tries again every few seconds
                    self._say(reason)
                self._reason = reason
                return
            self._reason = ""
            with there:
                back = threading.Thread(target=_carry, args=(there, here), daemon=True)
                back.start()
                _carry(here, there)
                back.join()

    def _connect(self) -> socket.socket:
        """Return a connection to the server through the proxy.

        Raises:
            OSError: The proxy cannot be reached, or does not answer.
            ValueError: It refuses.
            DataError: The file with its password cannot be used any more.
        """
        login = b""
        if self._login is not None:
            login = b"Proxy-Authorization: Basic %s\r\n" % b64encode(check_login(self._login))
        host, _, port = self._proxy.rpartition(":")
        there = socket.create_connection((host, int(port)), timeout=_SECONDS)
        try:
            asked = f"CONNECT {self._server} HTTP/1.1\r\nHost: {self._server}\r\n"
            there.sendall(asked.encode("ascii") + login + b"\r\n")
            header = b""
            while b"\r\n\r\n" not in header:
                # byte by byte: what follows is the server's
                if not (piece := there.recv(1)) or len(header) > _MOST_HEADER:
                    raise ValueError("it ended the connection without an answer")
                header += piece
            status = header.split(b"\r\n", 1)[0].decode("latin-1")
            if not re.fullmatch(r"HTTP/1\.[01] 2\d\d( .*)?", status):
                raise ValueError(f"it answered {one_line(status, 200)}")
            there.settimeout(None)
        except BaseException:
            there.close()
            raise
        return there


def _carry(source: socket.socket, target: socket.socket) -> None:
    """Carry bytes one way until that way ends, and then end the other."""
    with suppress(OSError):
        while piece := source.recv(_PIECE):
            target.sendall(piece)
    for end in (source, target):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
