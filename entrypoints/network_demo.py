"""``mixmfl_network_demo``: a federation of processes on this machine, as on a network."""

import argparse
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from mixmfl import cli
from mixmfl.errors import MixmflError

DESCRIPTION = """\
Run a federation on this machine as it runs between hospitals: a phantom, a kit for each of three
hospitals and the coordinator, mutual TLS on the loopback, planning and two rounds over it. Then
train the same in one process and compare the models byte by byte. Every command is shown, with
what it prints; OUT/logs has what the hospitals print. At the end it tells the memory that the
coordinator's and the hospitals' processes took, and the bytes that they exchanged."""

PHANTOM = ("north", "south", "west", "east")
SPACING_MM = 6.0
CASES = 8  # statistics of fewer than five stay at a hospital


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see ``--help``."""
    made = cli.parser("mixmfl_network_demo", DESCRIPTION)
    made.add_argument(
        "-o", "--out", type=Path, default=Path("network-demo"), help="default: network-demo"
    )
    made.add_argument("--sites", type=int, default=3, help="how many hospitals; default: 3")
    made.add_argument("--preset", default="demo", help="as of mixmfl_plan_preprocess")
    made.add_argument("--rounds", type=int, default=2, help="default: 2")
    made.add_argument("--local-steps", type=int, default=3, help="default: 3")
    return cli.run(made, argv, _work)


def _work(options: argparse.Namespace) -> int:
    from mixmfl.files import write_json
    from mixmfl.outgoing import NETWORK_MINIMUM

    out: Path = options.out
    if out.exists() and any(out.iterdir()):
        raise MixmflError(f"{out}: is not empty; remove it, or name another folder by -o")
    began = time.monotonic()
    # its model must not become the one that a clinician's mixmfl_predict takes
    os.environ["MIXMFL_HOME"] = str(out.absolute() / "settings")
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # four processes share the cores
    federation, kits = out / "federation", out / "kits"
    cli.run_shown("mixmfl_demo_data", "-o", federation, "--spacing", SPACING_MM, "--cases", CASES)
    sites = _have_sites(federation, options.sites)
    write_json(out / "network.json", {"server": f"localhost:{_free_port()}", "sites": sites})
    print(f"\n$ cat {out / 'network.json'}\n{(out / 'network.json').read_text()}", end="")
    cli.run_shown("mixmfl_provision", "-i", out / "network.json", "-o", kits)

    plan = ["--preset", options.preset, "-c", "2d"]
    how = ["-c", "2d", "--rounds", options.rounds, "--local-steps", options.local_steps]
    with _hospitals(out, sites):
        kit = kits / "coordinator"
        cli.run_shown("mixmfl_plan_preprocess", "--kit", kit, "-o", out / "work", *plan)
        with _watching(sites) as peaks:
            cli.run_shown(
                "mixmfl_train_federated", "--kit", kit, "-i", out / "work", "-o", out / "run", *how
            )
    print("\nThe same in one process:")
    alone = out / "one_process"
    cli.run_shown("mixmfl_plan_preprocess", "-i", federation, "-o", alone / "work", *plan)
    kept = ["--minimum-cases", NETWORK_MINIMUM.cases, "--minimum-voxels", NETWORK_MINIMUM.voxels]
    cli.run_shown(
        *("mixmfl_train_federated", "-i", alone / "work", "-o", alone / "run", *how, *kept),
        *("--device", "cpu"),
    )
    pair = [folder / "run" / "model.safetensors" for folder in (out, alone)]
    if pair[0].read_bytes() != pair[1].read_bytes():
        raise MixmflError(f"{pair[0]} and {pair[1]} differ; they should be the same")
    print(f"\n{pair[0]} and {pair[1]} are the same, byte by byte")
    _tell_costs(out, sites, peaks)
    print(f"{time.monotonic() - began:.0f} s in all")
    return 0


def _have_sites(federation: Path, number: int) -> list[str]:
    """Have as many hospitals as asked; beyond the phantom's they are copies of them."""
    from mixmfl.files import read_json, write_json

    if number < 1:
        raise MixmflError("--sites: at least 1 is needed")
    sites = []
    for count in range(number):
        again, which = divmod(count, len(PHANTOM))
        sites.append(PHANTOM[which] + (f"-{again + 1}" if again else ""))
        if again:
            shutil.copytree(federation / PHANTOM[which], federation / sites[-1])
    # the network has these; so has what it is compared with
    held_out = read_json(federation / "federation.json")["held_out"]
    others = {path.name for path in federation.iterdir() if path.is_dir()} - set(sites)
    write_json(federation / "federation.json", {"held_out": sorted({*held_out, *others})})
    return sites


@contextmanager
def _watching(sites: Sequence[str]) -> Iterator[dict[str, list[tuple[float, int]]]]:
    """Sample the memory of the processes in which the coordinator and the hospitals work.

    Gives, by who, the time in seconds and the resident bytes of each sample.
    """
    import psutil

    found: dict[str, list[tuple[float, int]]] = {}
    began, done = time.monotonic(), threading.Event()

    def sample() -> None:
        while not done.wait(0.5):
            for process in psutil.Process().children(recursive=True):
                with suppress(psutil.Error):
                    command = process.cmdline()
                    if any(word.endswith("runner_process") for word in command):
                        who = "coordinator"
                    elif any(word.endswith("worker_process") for word in command):
                        (who,) = {Path(word).name for word in command} & set(sites)
                    else:
                        continue
                    told = time.monotonic() - began, process.memory_info().rss
                    found.setdefault(who, []).append(told)

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        done.set()
        thread.join()


def _tell_costs(
    out: Path, sites: Sequence[str], samples: dict[str, list[tuple[float, int]]]
) -> None:
    from rich.console import Console
    from rich.table import Table

    from mixmfl.runs import open_run

    run = open_run(out / "run")
    size = (out / "run" / "model.safetensors").stat().st_size / 1e6
    table = Table(
        "who", "memory, MB, first half", "second half", "sent a round, MB", "received", "seconds",
        title=f"{len(sites)} hospitals, a model of {size:.0f} MB, {len(run.history)} rounds",
    )  # fmt: skip
    for who, told in sorted(samples.items()):
        middle = (told[0][0] + told[-1][0]) / 2
        halves = ([b for at, b in told if (at > middle) == late] for late in (False, True))
        memory = [f"{max(half, default=0) / 1e6:.0f}" for half in halves]
        rounds = [sites[who] for sites in run.history if who in sites]
        costs = [
            f"{sum(getattr(told, name) for told in rounds) / len(rounds) / unit:.2f}"
            for name, unit in (("sent_bytes", 1e6), ("received_bytes", 1e6), ("seconds", 1))
            if rounds
        ]
        table.add_row(who, *memory, *costs)
    Console().print(table)


@contextmanager
def _hospitals(out: Path, sites: Sequence[str]) -> Iterator[None]:
    """Run the hospitals, each as a process that is ended by its id."""
    (out / "logs").mkdir()
    running = []
    try:
        for name in sites:
            argv = [
                *("--kit", str(out / "kits" / name), "-i", str(out / "federation" / name)),
                *("-o", str(out / "hospitals" / name), "--device", "cpu", "-n", "1"),
            ]
            log = out / "logs" / f"{name}.txt"
            print(f"\n$ mixmfl_site {' '.join(argv)} > {log} &", flush=True)
            with log.open("wb") as told:
                command = [sys.executable, "-c", _RUN_SITE, *argv]
                running.append(subprocess.Popen(command, stdout=told, stderr=told))
        yield
    finally:
        for process in running:
            process.send_signal(signal.SIGINT)
        for process in running:
            process.wait(timeout=60)


_RUN_SITE = (
    "import sys; from importlib.metadata import entry_points; "
    "(found,) = entry_points(group='console_scripts', name='mixmfl_site'); "
    "sys.exit(found.load()(sys.argv[1:]))"
)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main())
