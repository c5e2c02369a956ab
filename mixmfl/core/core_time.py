"""How long this process's threads computed, and how long they waited for a core to do so."""

import os
from dataclasses import dataclass
from pathlib import Path

TASKS = Path("/proc/self/task")

MOST_WAITING = 0.5
"""Share of waiting from which threads are too many: on an idle machine it is near 0."""


@dataclass(frozen=True)
class CoreTime:
    """Seconds, summed over all threads of the process.

    Attributes:
        ran: Seconds on a core.
        waited: Seconds in which a thread could have run, but had no core.
    """

    ran: float
    waited: float


def core_time(tasks: Path = TASKS) -> CoreTime | None:
    """Return the seconds so far, as Linux counts them; None on other systems."""
    ran = waited = 0
    try:
        for file in tasks.glob("*/schedstat"):
            on_core, off_core, _ = map(int, file.read_text().split())
            ran, waited = ran + on_core, waited + off_core
    except (OSError, ValueError):  # a thread that has just ended, or another format
        return None
    return CoreTime(ran / 1e9, waited / 1e9) if ran else None


def crowded(before: CoreTime | None, after: CoreTime | None, threads: int) -> str:
    """Return a warning where threads mostly waited for a core; empty where they did not.

    Threads that compute together wait for the slowest of them, so that a training of two threads
    on a shared core can take twenty times as long as one of a single thread.

    Args:
        before: ``core_time`` before the work.
        after: ``core_time`` after the work.
        threads: Threads that torch computes with.
    """
    if before is None or after is None:
        return ""
    ran, waited = after.ran - before.ran, after.waited - before.waited
    if waited <= MOST_WAITING * (ran + waited):
        return ""
    share = f"{100 * waited / (ran + waited):.0f} %"
    fewer = f"; set OMP_NUM_THREADS=1, torch computes with {threads} threads" if threads > 1 else ""
    return (
        f"the threads of this command waited {share} of their time for one of the machine's "
        f"{os.cpu_count()} cores: other programs compute here, too, and every round takes longer. "
        f"Run fewer at once{fewer}"
    )
