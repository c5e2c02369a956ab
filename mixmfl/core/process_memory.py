"""How much memory this process has needed at most, and what becomes of what it has freed."""

import ctypes
import sys
from collections.abc import Callable
from pathlib import Path

import psutil

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def reset_peak() -> None:
    """Let the peak begin anew, where the system can do that (Linux)."""
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
    """Return freed memory to the system, where the C library keeps it and can let go (glibc).

    It keeps blocks of up to 32 MB for the next that asks: of a large network several times its
    size. That is no loss while a process works, and is one while it waits.
    """
    if trim := _from_glibc("malloc_trim"):
        trim(0)


def available_bytes() -> int:
    """Return how much memory can be had without taking it from others."""
    return int(psutil.virtual_memory().available)


_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # mallopt(3)


def keep_freed_memory() -> None:
    """Let this process keep memory that is freed, up to 256 MiB a piece, for what comes next.

    Until ``give_back_memory``; it need not be asked for again after that.

    Where a network runs, feature maps come and go all the time. glibc gives each back to the
    system, which clears its pages again when they are asked for: half of the time of all that is
    not a convolution. Elsewhere than with glibc nothing is done.
    """
    if mallopt := _from_glibc("mallopt"):
        mallopt(_MMAP_THRESHOLD, 1 << 28)
        mallopt(_TRIM_THRESHOLD, 1 << 30)


def _from_glibc(name: str) -> Callable[..., int] | None:
    """Return a function of the C library, where that has it; only glibc does."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
