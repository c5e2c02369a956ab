"""How much memory this process has needed at most, and giving back what it needs no more."""

import ctypes
import sys
from pathlib import Path

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
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):
        return
