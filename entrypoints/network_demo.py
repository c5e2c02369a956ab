"""``mixmfl_network_demo``: a federation of processes on this machine, as on a network."""

import argparse
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from mixmfl import cli
from mixmfl.errors import MixmflError

DESCRIPTION = """\
Run a federation on this machine as it runs between hospitals: a phantom, a kit for each of three
hospitals and the coordinator, mutual TLS on the loopback, planning and two rounds over it. Then
train the same in one process and compare the models byte by byte. Every command is shown, with
what it prints; OUT/logs has what the hospitals print."""

SITES = ("north", "south", "west")
SPACING_MM = 6.0
CASES = 8  # statistics of fewer than five stay at a hospital
PRESET = "demo"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see ``--help``."""
    made = cli.parser("mixmfl_network_demo", DESCRIPTION)
    made.add_argument(
        "-o", "--out", type=Path, default=Path("network-demo"), help="default: network-demo"
    )
    made.add_argument("--rounds", type=int, default=2, help="default: 2")
    made.add_argument("--local-steps", type=int, default=3, help="default: 3")
    return cli.run(made, argv, _work)


def _work(options: argparse.Namespace) -> int:
    from mixmfl.files import read_json, write_json

    out: Path = options.out
    if out.exists() and any(out.iterdir()):
        raise MixmflError(f"{out}: is not empty; remove it, or name another folder by -o")
    began = time.monotonic()
    # its model must not become the one that a clinician's mixmfl_predict takes
    os.environ["MIXMFL_HOME"] = str(out.absolute() / "settings")
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # four processes share the cores
    federation, kits = out / "federation", out / "kits"
    cli.run_shown("mixmfl_demo_data", "-o", federation, "--spacing", SPACING_MM, "--cases", CASES)
    # the network has three of the phantom's hospitals; so has what it is compared with
    held_out = read_json(federation / "federation.json")["held_out"]
    others = {p.name for p in federation.iterdir() if p.is_dir()} - set(SITES)
    write_json(federation / "federation.json", {"held_out": sorted({*held_out, *others})})
    write_json(out / "network.json", {"server": f"localhost:{_free_port()}", "sites": SITES})
    print(f"\n$ cat {out / 'network.json'}\n{(out / 'network.json').read_text()}", end="")
    cli.run_shown("mixmfl_provision", "-i", out / "network.json", "-o", kits)

    how = ["-c", "2d", "--rounds", options.rounds, "--local-steps", options.local_steps]
    with _hospitals(out):
        kit = kits / "coordinator"
        cli.run_shown(
            "mixmfl_plan_preprocess", "--kit", kit, "-o", out / "work", "--preset", PRESET, "-c",
            "2d",
        )  # fmt: skip
        cli.run_shown(
            "mixmfl_train_federated", "--kit", kit, "-i", out / "work", "-o", out / "run", *how
        )
    print("\nThe same in one process:")
    alone = out / "one_process"
    cli.run_shown(
        "mixmfl_plan_preprocess", "-i", federation, "-o", alone / "work", "--preset", PRESET, "-c",
        "2d",
    )  # fmt: skip
    cli.run_shown(
        "mixmfl_train_federated", "-i", alone / "work", "-o", alone / "run", *how, "--device", "cpu"
    )
    pair = [folder / "run" / "model.safetensors" for folder in (out, alone)]
    if pair[0].read_bytes() != pair[1].read_bytes():
        raise MixmflError(f"{pair[0]} and {pair[1]} differ; they should be the same")
    print(f"\n{pair[0]} and {pair[1]} are the same, byte by byte")
    print(f"{time.monotonic() - began:.0f} s in all")
    return 0


@contextmanager
def _hospitals(out: Path) -> Iterator[None]:
    """Run the hospitals, each as a process that is ended by its id."""
    (out / "logs").mkdir()
    running = []
    try:
        for name in SITES:
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
