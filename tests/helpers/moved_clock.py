"""Clocks of commands that are moved while these run, on Linux with a C compiler."""

import subprocess
from pathlib import Path

_SOURCE = Path(__file__).with_suffix(".c")

HOUR, DAY = 3600, 86_400


def build_clock(folder: Path) -> Path:
    """Compile what is loaded before libc, into a folder, and return it."""
    library = folder / "moved_clock.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, _SOURCE], check=True)
    return library


def move_clock(clock: Path, seconds: int) -> None:
    """Set a clock, a file, to so many seconds ahead of the machine's, while commands have it."""
    with clock.open("r+b" if clock.exists() else "wb") as file:  # never cut off: it is mapped
        file.write(seconds.to_bytes(8, "little", signed=True))


def with_clock(library: Path, clock: Path) -> dict[str, str]:
    """Return the variables by which a command and all that it starts have a clock."""
    if not clock.exists():
        move_clock(clock, 0)
    return {"LD_PRELOAD": str(library), "MOVED_CLOCK": str(clock)}
