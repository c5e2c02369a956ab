"""``mixmfl_network_demo``: a federation of processes on this machine, as on a network."""

import argparse
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from mixmfl import cli
from mixmfl.errors import MixmflError

DESCRIPTION = """\
Run a federation on this machine as it runs between hospitals: a phantom, a kit for each of three
hospitals and the coordinator, mutual TLS on the loopback, planning and two rounds over it. Then
train the same in one process and compare the models byte by byte. Every command is shown, with
what it prints; OUT/logs has what the hospitals print. At the end it tells, round by round, the
memory that the coordinator's and the hospitals' processes took, the seconds, and the bytes that a
hospital exchanged beside those of the blocks that it holds.

To see what a large network costs: --megabytes 400 --sites 10 --turns --fold all --alone."""

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
    made.add_argument(
        "--megabytes",
        type=float,
        metavar="MB",
        help="widen the preset's network to about so many, and keep its batches small",
    )
    made.add_argument(
        "--turns", action="store_true", help="the hospitals work one at a time, for their memory"
    )
    made.add_argument("--fold", default="0", help="as of mixmfl_train_federated; default: 0")
    made.add_argument("--alone", action="store_true", help="leave out the run in one process")
    made.add_argument("--rounds", type=int, default=2, help="default: 2")
    made.add_argument("--local-steps", type=int, default=3, help="default: 3")
    return cli.run(made, argv, _work)


def _work(options: argparse.Namespace) -> int:
    from mixmfl.files import write_json

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

    preset = options.preset
    if options.megabytes is not None:
        preset = _widened(preset, options.megabytes, out / "preset.json")
    plan = ["--preset", preset, "-c", "2d"]
    how = ["-c", "2d", "--fold", options.fold, "--rounds", options.rounds]
    how += ["--local-steps", options.local_steps]
    patience = ["--deadline", 600] if options.turns else []  # minutes, with those before it
    with _hospitals(out, sites, options.turns) as hospitals:
        kit = kits / "coordinator"
        cli.run_shown("mixmfl_plan_preprocess", "--kit", kit, "-o", out / "work", *plan)
        with _watching(hospitals) as samples:
            cli.run_shown(
                "mixmfl_train_federated",
                *("--kit", kit, "-i", out / "work", "-o", out / "run", *how, *patience),
            )
    if not options.alone:
        _compare(out, federation, plan, how)
    _tell_costs(out, samples)
    print(f"{time.monotonic() - began:.0f} s in all")
    return 0


def _compare(out: Path, federation: Path, plan: Sequence[object], how: Sequence[object]) -> None:
    """Train the same in one process, and see that it is the same."""
    from mixmfl.outgoing import NETWORK_MINIMUM

    print("\nThe same in one process:")
    alone = out / "one_process"
    cli.run_shown("mixmfl_plan_preprocess", "-i", federation, "-o", alone / "work", *plan)
    kept = ["--minimum-cases", NETWORK_MINIMUM.cases, "--minimum-voxels", NETWORK_MINIMUM.voxels]
    cli.run_shown(
        "mixmfl_train_federated",
        *("-i", alone / "work", "-o", alone / "run", *how, *kept, "--device", "cpu"),
    )
    pair = [folder / "run" / "model.safetensors" for folder in (out, alone)]
    if pair[0].read_bytes() != pair[1].read_bytes():
        raise MixmflError(f"{pair[0]} and {pair[1]} differ; they should be the same")
    print(f"\n{pair[0]} and {pair[1]} are the same, byte by byte")


def _widened(preset: str, megabytes: float, file: Path) -> str:
    """Write a preset whose 2-D network has about so many megabytes of weights."""
    import dataclasses

    from mixmfl.files import write_json
    from mixmfl.plan import load_preset

    told = dataclasses.asdict(load_preset(preset))
    # nearly all weights are products of two widths; 96 MB were measured at 128, four modalities
    features = max(8, 8 * round(16 * math.sqrt(megabytes / 96)))
    told["planner"] |= {"base_features": features, "max_features_2d": 8 * features}
    told["planner"]["memory_gb"] = features / 2640  # batches of two
    write_json(file, told)
    return str(file.resolve())  # the coordinator reads it elsewhere


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


@dataclass(frozen=True)
class Sample:
    """What is seen at one time.

    Attributes:
        at: Seconds since the epoch.
        memory: Resident bytes of all processes of the coordinator and of every hospital, by name.
            Libraries that several processes share are counted in each.
        loopback: Bytes that crossed the machine's loopback by then, those of others too.
    """

    at: float
    memory: dict[str, int]
    loopback: int


@contextmanager
def _watching(hospitals: Mapping[int, str]) -> Iterator[list[Sample]]:
    """Look at the processes of the coordinator, which are this one's, and of the hospitals.

    Args:
        hospitals: By process.
    """
    import psutil

    found: list[Sample] = []
    done = threading.Event()

    def size_of(process: psutil.Process) -> int:
        with suppress(psutil.Error):  # it has just ended
            return int(process.memory_info().rss)
        return 0

    def look() -> None:
        this = psutil.Process()
        while not done.wait(1):
            memory = {"coordinator": size_of(this)}
            for child in this.children():
                who = hospitals.get(child.pid, "coordinator")
                with suppress(psutil.Error):
                    for process in (child, *child.children(recursive=True)):
                        memory[who] = memory.get(who, 0) + size_of(process)
            wires = psutil.net_io_counters(pernic=True)
            crossed = sum(told.bytes_sent for name, told in wires.items() if name.startswith("lo"))
            found.append(Sample(time.time(), memory, crossed))

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        done.set()
        thread.join()


def _tell_costs(out: Path, samples: Sequence[Sample]) -> None:
    """Show what every round took."""
    from rich.console import Console
    from rich.table import Table

    from mixmfl.aggregate import select_blocks
    from mixmfl.runs import load_state_of, open_run

    run = open_run(out / "run")
    begun = _beginnings(out / "run" / "network" / "exchange.log", len(run.history))
    weights = load_state_of(run, len(run.history)).weights
    blocks = {
        site: sum(4 * t.numel() for t in select_blocks(weights, told.weights).values()) / 1e6
        for site, told in run.registrations.items()
    }
    size = sum(4 * tensor.numel() for tensor in weights.values()) / 1e6
    table = Table(
        *("round", "seconds", "coordinator, MB", "a hospital, MB", "all hospitals, MB"),
        *("sent by one, MB", "received", "its blocks", "all told, MB", "loopback"),
        title=f"{len(run.registrations)} hospitals, a network of {size:.0f} MB",
    )

    def most(of: Sequence[float]) -> str:
        return f"{max(of, default=0) / 1e6:.0f}"

    for number, (start, end) in enumerate(begun, start=1):
        here = [sample for sample in samples if start <= sample.at < end]
        at_hospitals = [
            [size for who, size in sample.memory.items() if who != "coordinator"] for sample in here
        ]
        memory = (
            most([sample.memory["coordinator"] for sample in here]),
            most([size for sizes in at_hospitals for size in sizes]),
            most([sum(sizes) for sizes in at_hospitals]),
        )
        if number > len(run.history):
            table.add_row("after them", f"{end - start:.0f}", *memory)
            continue
        told = run.history[number - 1]
        sent = [f"{one.sent_bytes / 1e6:.1f}" for one in told.values()]
        received = [f"{one.received_bytes / 1e6:.1f}" for one in told.values()]
        foretold = [f"{blocks[site]:.1f}" for site in told]
        columns = (" ".join(dict.fromkeys(each)) for each in (sent, received, foretold))
        crossed = here[-1].loopback - here[0].loopback if here else 0
        all_told = sum(one.sent_bytes + one.received_bytes for one in told.values())
        wire = f"{all_told / 1e6:.1f}", f"{crossed / 1e6:.1f}"
        table.add_row(str(number), f"{end - start:.0f}", *memory, *columns, *wire)
    Console(width=140).print(table)


def _beginnings(log: Path, rounds: int) -> list[tuple[float, float]]:
    """Return when each round began and ended, and last when what came after them did."""
    from datetime import datetime

    lines = log.read_text(encoding="utf-8").splitlines()
    times = [datetime.fromisoformat(line.split()[0]).timestamp() for line in lines]
    starts = [
        next(at for at, line in zip(times, lines, strict=True) if f": train, round {n}," in line)
        for n in range(1, rounds + 1)
    ]
    trained = max(
        at for at, line in zip(times, lines, strict=True) if f": validate, round {rounds}," in line
    )
    ends = [*starts[1:], trained, times[-1] + 1]
    return list(zip([*starts, trained], ends, strict=True))


@contextmanager
def _hospitals(out: Path, sites: Sequence[str], turns: bool) -> Iterator[dict[int, str]]:
    """Run the hospitals, each as a process that is ended by its id; give their names by it."""
    (out / "logs").mkdir()
    running = []
    try:
        for name in sites:
            argv = [
                *("--kit", str(out / "kits" / name), "-i", str(out / "federation" / name)),
                *("-o", str(out / "hospitals" / name), "--device", "cpu", "-n", "1"),
                *(("--turns", str(out / "turns")) if turns else ()),
            ]
            log = out / "logs" / f"{name}.txt"
            print(f"\n$ mixmfl_site {' '.join(argv)} > {log} &", flush=True)
            with log.open("wb") as told:
                command = [sys.executable, "-c", _RUN_SITE, *argv]
                running.append(subprocess.Popen(command, stdout=told, stderr=told))
        yield {process.pid: name for process, name in zip(running, sites, strict=True)}
    finally:
        for process in running:
            process.send_signal(signal.SIGINT)
        for process in running:
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()  # what it started sees that, and ends


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
