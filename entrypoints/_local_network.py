"""A coordinator and hospitals as processes of this machine, connected by its loopback.

Every command is printed as a user would type it, and then run.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

from mixmfl.core.errors import MixmflError
from mixmfl.core.files import read_json, write_json

from . import _runner

HOSPITALS = ("north", "south", "west", "east")  # the phantom's
SPACING_MM = 6.0
CASES = 8  # a hospital withholds statistics of fewer than five

_RUN = (
    "import sys; from importlib.metadata import entry_points; "
    "(command,) = entry_points(group='console_scripts', name=sys.argv[1]); "
    "sys.exit(command.load()(sys.argv[2:]))"
)


def lay_out(out: Path, number: int = 3) -> list[str]:
    """Write a phantom federation, and a start-up kit for every hospital and the coordinator.

    ::

        OUT/federation/<name>   cases; hospitals beyond the phantom's four are copies of these
        OUT/kits/<name>         a kit per hospital, and ``coordinator``

    Args:
        out: A folder that is empty or does not exist.
        number: Number of hospitals.

    Returns:
        The names of the hospitals.

    Raises:
        MixmflError: ``out`` is not empty, or a command failed.
    """
    if out.exists() and any(out.iterdir()):
        raise MixmflError(f"{out}: is not empty; remove it, or name another folder by -o")
    federation, network = out / "federation", out / "network.json"
    _runner.run_shown(
        "mixmfl_demo_data", "-o", federation, "--spacing", SPACING_MM, "--cases", CASES
    )
    sites = _have_sites(federation, number)
    write_json(network, {"server": f"localhost:{free_port()}", "sites": sites})
    print(f"\n$ cat {network}\n{network.read_text()}", end="")
    _runner.run_shown("mixmfl_provision", "-i", network, "-o", out / "kits")
    return sites


def _have_sites(federation: Path, number: int) -> list[str]:
    """Extend a phantom federation to ``number`` hospitals, and hold out all others."""
    sites = []
    for count in range(number):
        again, which = divmod(count, len(HOSPITALS))
        sites.append(HOSPITALS[which] + (f"-{again + 1}" if again else ""))
        if again:
            shutil.copytree(federation / HOSPITALS[which], federation / sites[-1])
    # the network has these; so has a run in one process that it is compared with
    held_out = read_json(federation / "federation.json")["held_out"]
    others = {path.name for path in federation.iterdir() if path.is_dir()} - set(sites)
    write_json(federation / "federation.json", {"held_out": sorted({*held_out, *others})})
    return sites


@contextmanager
def open_hospitals(out: Path, sites: Sequence[str], *options: str) -> Iterator[dict[int, str]]:
    """Run ``mixmfl_site`` for each hospital as a process, which is ended by its id.

    Args:
        out: Folder written by ``lay_out``; ``OUT/logs`` gets what the hospitals print, and
            ``OUT/hospitals`` their working folders.
        sites: Names of the hospitals.
        options: Further options of the command.

    Yields:
        The hospitals' names by process id.
    """
    (out / "logs").mkdir()
    running = []
    try:
        for name in sites:
            arguments = [
                *("--kit", str(out / "kits" / name), "-i", str(out / "federation" / name)),
                *("-o", str(out / "hospitals" / name), "--device", "cpu", "-n", "1"),
                # they are simulated: nobody's Dice is revealed
                *("--min-validation-cases", "1", "--min-training-cases", "1", *options),
            ]
            log = out / "logs" / f"{name}.txt"
            print(f"\n$ mixmfl_site {' '.join(arguments)} > {log} &", flush=True)
            running.append(start(log, "mixmfl_site", *arguments))
        yield {process.pid: name for process, name in zip(running, sites, strict=True)}
    finally:
        for process in running:
            process.send_signal(signal.SIGINT)
        for process in running:
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()  # the processes that it started notice, and end


def start(
    log: Path, name: str, *arguments: object, env: Mapping[str, str] = MappingProxyType({})
) -> subprocess.Popen[bytes]:
    """Start a command as a process, with one thread unless ``OMP_NUM_THREADS`` is set.

    Args:
        log: File to which its output is appended.
        name: Name of the command.
        arguments: Arguments of the command.
        env: Variables of its environment, beside those of this process.
    """
    command = [sys.executable, "-c", _RUN, name, *map(str, arguments)]
    with log.open("ab") as file:
        return subprocess.Popen(
            command, stdout=file, stderr=file, env={"OMP_NUM_THREADS": "1", **os.environ, **env}
        )


def free_port() -> int:
    """Return an unused port of this machine."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return int(probe.getsockname()[1])
