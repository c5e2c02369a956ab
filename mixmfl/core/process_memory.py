"""The peak of this process's memory, and whether freed memory goes back to the system."""

import ctypes
import sys
from collections.abc import Callable
from pathlib import Path

import psutil

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def reset_peak() -> None:
    """Begin to measure the peak again from now, where the system can do that (Linux)."""
    try:
        _CLEAR.write_text("5", encoding="ascii")  # see proc_pid_clear_refs(5)
    except OSError:
        return


def peak_memory_mb() -> float:
    """Return the largest resident size since ``reset_peak``, or since the start; MiB."""
    try:
        for line in _STATUS.read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024 * 1024 if sys.platform == "darwin" else 1024)


def give_back_memory() -> None:
    """Return freed memory to the system, where the C library keeps it (glibc).

    glibc keeps freed blocks of up to 32 MB for later use: with a large network, several times the
    network's size. That helps while a process works, and wastes memory while it waits.
    """
    if trim := _from_glibc("malloc_trim"):
        trim(0)


def available_bytes() -> int:
    """Return how many bytes of memory are available without taking them from other processes."""
    return int(psutil.virtual_memory().available)


_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # mallopt(3)


def keep_freed_memory() -> None:
    """Let this process keep freed memory, in blocks of up to 256 MiB, for later use.

    ``give_back_memory`` returns what is kept; this setting stays in force after it.

    Where a network runs, feature maps come and go all the time. glibc gives each back to the
    system, which clears its pages again for the next: half of the time of all that is not a
    convolution. Without glibc nothing is done.
    """
    if mallopt := _from_glibc("mallopt"):
        mallopt(_MMAP_THRESHOLD, 1 << 28)
        mallopt(_TRIM_THRESHOLD, 1 << 30)


def _from_glibc(name: str) -> Callable[..., int] | None:
    """Return a function of the C library; None where the library lacks it."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
