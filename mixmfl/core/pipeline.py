"""Work beside this process: one process reads the next case, one thread writes the last.

Nothing here waits for ever. A reader that hangs, or that the system kills, is replaced; only the
one job that it had is lost.
"""

import contextlib
import logging
import multiprocessing
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotInTime  # another class up to Python 3.10
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any

from isal import isal_zlib

from mixmfl.core.errors import MixmflError, explain
from mixmfl.core.process_memory import give_back_memory

log = logging.getLogger(__name__)

_CHUNK = 1 << 26  # bytes at a time, so that a large array is never in memory twice on its way
_DONE, _FAILED, _WAITING = "done", "failed", "waiting"

WaitTurn = Callable[[], None]


def reason_of(error: BaseException) -> str:
    """Return the reason of a case's failure: our own message, or an exception's class and text."""
    if isinstance(error, MixmflError):
        return str(error)
    log.debug("a case failed", exc_info=error)
    if isinstance(error, OSError):
        return explain(error)
    if isinstance(error, MemoryError):
        return "not enough memory"
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


class PrefetchProcess:
    """One other process that works on the next job while this one is busy; a context manager.

    Attributes:
        function: ``function(wait_turn, constant, job)`` of a module, which runs in the process.
            A job that needs much memory calls ``wait_turn()`` first, which returns when this
            process has nothing else to do.
        constant: The argument that all jobs share; it is sent once.
        limit: The seconds that a job may take.
    """

    def __init__(
        self, function: Callable[[WaitTurn, Any, Any], Any], constant: Any, limit: float
    ) -> None:
        """Start nothing yet; see the attributes."""
        self.function = function
        self.constant = constant
        self.limit = limit
        self._process: Any = None
        self._connection: Connection | None = None
        self._deadline = 0.0

    def __enter__(self) -> "PrefetchProcess":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process; the next job starts another."""
        if self._process is not None:
            self._process.kill()
            self._process.join(10)
            self._process = None
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def submit(self, job: Any) -> None:
        """Send the process a job; take its result before sending the next job."""
        if self._process is None or not self._process.is_alive():
            self._start()
        assert self._connection is not None
        self._deadline = time.monotonic() + self.limit
        with contextlib.suppress(OSError):  # the process died just now; ``result`` will notice
            self._connection.send(job)

    def result(self) -> Any:
        """Wait for the result of the job, and return it.

        Raises:
            MixmflError: The function raised an exception or took longer than the limit, or its
                process was killed.
        """
        try:
            kind, content = self._receive()
            if kind == _WAITING:
                assert self._connection is not None
                self._connection.send(None)
                self._deadline = time.monotonic() + self.limit
                kind, content = self._receive()
        except TimeoutError:
            self.close()
            raise MixmflError(
                f"took longer than the limit of {self.limit / 60:g} minutes to read"
            ) from None
        except (EOFError, OSError):
            if self._process is not None:
                self._process.join(5)
            code = self._process.exitcode if self._process is not None else None
            self.close()
            raise MixmflError(
                "the process that read it was killed or crashed "
                f"({'' if code is None else f'exit code {code}; '}memory ran out, or a library "
                "failed on this file)"
            ) from None
        if kind == _FAILED:
            raise MixmflError(content)
        return content

    def _start(self) -> None:
        self.close()
        # no fork server: that has torch, which this process does without
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        process = context.Process(
            target=_serve, args=(theirs, self.function, self.constant), daemon=True
        )
        with _no_interrupts():  # Ctrl-C is the parent's, also while the process imports
            process.start()
        self._process = process
        theirs.close()

    def _receive(self) -> tuple[str, Any]:
        """Receive a message and its arrays.

        Raises:
            TimeoutError: Nothing came in time.
            EOFError: The process has ended.
        """
        head, sizes = self._wait().recv()
        buffers = [bytearray(size) for size in sizes]
        for buffer in buffers:
            place = memoryview(buffer)
            while place:
                deflated = self._wait().recv_bytes()
                piece = isal_zlib.decompress(deflated, bufsize=min(len(place), _CHUNK))
                place[: len(piece)] = piece
                place = place[len(piece) :]
        return pickle.loads(head, buffers=buffers)

    def _wait(self) -> Connection:
        assert self._connection is not None
        if not self._connection.poll(max(0.0, self._deadline - time.monotonic())):
            raise TimeoutError
        return self._connection


@contextlib.contextmanager
def _no_interrupts() -> Iterator[None]:
    """Keep Ctrl-C from processes that are started meanwhile, where the system can do that."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _packed(message: tuple[str, Any]) -> tuple[tuple[bytes, list[int]], list[bytes]]:
    """Return a message pickled without its arrays, their sizes, and the arrays deflated, in pieces.

    Images take a fifth of their bytes then, while the result of a job waits until it is wanted.
    """
    buffers: list[pickle.PickleBuffer] = []
    head = pickle.dumps(message, protocol=5, buffer_callback=buffers.append)
    raw = [buffer.raw() for buffer in buffers]
    pieces = [
        isal_zlib.compress(view[start : start + _CHUNK], isal_zlib.ISAL_BEST_SPEED)
        for view in raw
        for start in range(0, view.nbytes, _CHUNK)
    ]
    return (head, [view.nbytes for view in raw]), pieces


def _serve(connection: Connection, function: Any, constant: Any) -> None:
    """Do jobs until the other end is closed; this is the main function of the process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which ends this one

    def send(first: tuple[bytes, list[int]], pieces: list[bytes]) -> None:
        connection.send(first)
        for piece in pieces:
            connection.send_bytes(piece)

    def wait_turn() -> None:
        send(*_packed((_WAITING, None)))
        connection.recv()

    while True:
        try:
            job = connection.recv()
        except (EOFError, OSError):
            return
        try:
            packed = _packed((_DONE, function(wait_turn, constant, job)))
        except Exception as error:  # whatever it is, it costs this job alone
            packed = _packed((_FAILED, reason_of(error)))
        give_back_memory()
        try:
            send(*packed)
        except OSError:  # the other end is gone
            return
        del packed


class WriterThread:
    """One thread that finishes jobs while this one is busy; a context manager."""

    def __init__(self, limit: float) -> None:
        """Start nothing yet; ``limit`` is the seconds that a job may take."""
        self.limit = limit
        self._jobs: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "WriterThread":
        return self

    def __exit__(self, *error: object) -> None:
        if self._jobs is not None and self._thread is not None:
            self._jobs.put(None)
            self._thread.join(min(self.limit, 60))  # what it has begun shall be whole

    def submit(self, job: Callable[[], Any]) -> "Future[Any]":
        """Give the thread a job."""
        if self._jobs is None:
            self._jobs = SimpleQueue()
            # a daemon, because the program must be able to end although a disk does not answer
            self._thread = threading.Thread(target=_work, args=(self._jobs,), daemon=True)
            self._thread.start()
        future: Future[Any] = Future()
        self._jobs.put((future, job))
        return future

    def result(self, future: "Future[Any]") -> Any:
        """Wait for the result of a job, and return it or raise the job's exception.

        Raises:
            MixmflError: The job took longer than the limit.
        """
        try:
            return future.result(self.limit)
        except NotInTime:
            if future.done():  # the job itself ran into a time-out
                raise
            self._jobs = None  # what hangs there, hangs alone
            raise MixmflError(
                f"took longer than the limit of {self.limit / 60:g} minutes to write"
            ) from None


def _work(jobs: "SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None]") -> None:
    while (item := jobs.get()) is not None:
        future, job = item
        try:
            future.set_result(job())
        except BaseException as error:  # whatever it is, it belongs to who waits for it
            future.set_exception(error)
        del item, future, job
