"""One job per case, in one or several processes; a failed case does not stop the others."""

import errno
import multiprocessing
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import Any

from mixmfl.core.errors import MixmflError, Refused, explain

Report = Callable[[str, int, int], None]
"""A function that shows progress: what is being done, how many are done, and of how many."""


def no_report(what: str, done: int, total: int) -> None:
    """Report nothing."""


def spawn_context() -> Any:
    """Return a multiprocessing context whose processes share no threads or locks with this one.

    Not by fork, the default on Linux: a forked process can hang in threads that torch left behind.
    Where there is a fork server, it imports the large libraries once, which takes seconds. It does
    not import our own modules: it looks in the current folder first, and a checkout has a
    ``mixmfl`` of its own, which is not the one installed.

    Raises:
        MixmflError: The system gives processes no memory that they share, as where /dev/shm is
            missing; Python's own error says of what file nothing.
    """
    try:
        multiprocessing.get_context("spawn").Lock()
    except OSError as error:
        raise MixmflError(
            f"processes can share no memory here ({error.strerror}); on Linux that is /dev/shm, "
            "which must be there and writable. Mount it, or work in one process (-n 1, --workers 0)"
        ) from None
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context: Any = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "SimpleITK", "nnunetv2.utilities.plans_handling"])
    return context


class Workers:
    """Processes that are kept between lists of jobs, as starting takes seconds; a context manager.

    With one process, jobs run in this one and none is started.
    """

    def __init__(self, processes: int = 1, report: Report = no_report) -> None:
        """Take the number of processes and the function that shows progress."""
        self._processes = processes
        self._report = report
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *error: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def run(
        self, jobs: Mapping[str, tuple[Any, ...]], what: str
    ) -> tuple[dict[str, Any], list[Refused]]:
        """Run ``(function, *arguments)`` for every case.

        Args:
            jobs: The function and its arguments by the case's name; all of them can be pickled.
            what: The text of the progress bar.

        Returns:
            The results by name, in the order of ``jobs``; and the cases that failed, by name.

        Raises:
            OSError: The disk is full, so all other cases would fail, too.
            MixmflError: A process was killed.
        """
        done: dict[str, Any] = {}
        refused: list[Refused] = []
        try:
            for count, (name, outcome) in enumerate(self._outcomes(jobs), start=1):
                try:
                    done[name] = outcome()
                except MixmflError as error:
                    refused.append(Refused(name, str(error)))
                except OSError as error:
                    if error.errno == errno.ENOSPC:
                        raise
                    refused.append(Refused(name, explain(error)))
                except BrokenProcessPool:  # a RuntimeError, but not of one case
                    raise
                except (ValueError, RuntimeError, MemoryError) as error:  # of nnU-Net, torch or ITK
                    refused.append(Refused(name, f"{type(error).__name__}: {error}"))
                self._report(what, count, len(jobs))
        except BrokenProcessPool:  # also where it was killed between two lists of jobs
            raise MixmflError(
                f"{what}: a process was killed, most likely because memory ran out; run the "
                "same command again with fewer processes (-n 1)"
            ) from None
        ordered = {name: done[name] for name in jobs if name in done}
        return ordered, sorted(refused, key=lambda item: item.name)

    def _outcomes(
        self, jobs: Mapping[str, tuple[Any, ...]]
    ) -> Iterator[tuple[str, Callable[[], Any]]]:
        if self._processes < 2 or len(jobs) < 2:
            for name, (function, *arguments) in jobs.items():
                yield name, partial(function, *arguments)
            return
        if self._pool is None:
            self._pool = ProcessPoolExecutor(self._processes, spawn_context(), _one_thread_each)
        futures = {
            self._pool.submit(function, *arguments): name
            for name, (function, *arguments) in jobs.items()
        }
        for future in as_completed(futures):
            yield futures[future], future.result


def _one_thread_each() -> None:
    import torch

    torch.set_num_threads(1)
