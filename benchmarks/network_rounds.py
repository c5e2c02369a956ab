"""What rounds over a network cost: seconds, memory of every place, bytes that a hospital exchanged.

    python benchmarks/network_rounds.py -o bench/network --sites 10 --megabytes 400 --turns

Hospitals and coordinator are processes of this machine, as in ``mixmfl_network_demo``. A row per
round: the memory that the coordinator's processes took at most, that of the hospital with most, and
that of all hospitals; what a hospital sent and received beside the bytes of the blocks that it
holds; what all of them sent and received, and what crossed the machine's loopback meanwhile.
"""

import argparse
import dataclasses
import math
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import psutil
from mixmfl.entrypoints import _runner
from mixmfl.entrypoints._local_network import lay_out, open_hospitals
from rich.console import Console
from rich.table import Table

from mixmfl.core.files import write_json
from mixmfl.federated.aggregation import select_blocks
from mixmfl.federated.server.checkpoint import load_state_of
from mixmfl.federated.server.run_record import open_run
from mixmfl.planning.plans import load_preset


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark; see ``--help``."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-o", "--out", type=Path, required=True, help="a new folder")
    parser.add_argument("--sites", type=int, default=3, help="how many hospitals; default: 3")
    parser.add_argument(
        "--megabytes", type=float, default=400.0, help="of the network, about; default: 400"
    )
    parser.add_argument("--rounds", type=int, default=3, help="default: 3")
    parser.add_argument("--local-steps", type=int, default=1, help="default: 1")
    parser.add_argument(
        "--turns", action="store_true", help="the hospitals work one at a time, for their memory"
    )
    options = parser.parse_args(argv)
    out: Path = options.out
    os.environ["MIXMFL_HOME"] = str(out.absolute() / "settings")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sites, kit = lay_out(out, options.sites), out / "kits" / "coordinator"
    preset = widened_preset(options.megabytes, out / "preset.json")
    turns = ["--turns", str(out / "turns")] if options.turns else []
    patience = ["--deadline", 600] if options.turns else []  # minutes, with those before it
    with open_hospitals(out, sites, *turns) as hospitals:
        _runner.run_shown(
            "mixmfl_plan_preprocess",
            *("--kit", kit, "-o", out / "work", "--preset", preset, "-c", "2d"),
        )
        with watching(hospitals) as samples:
            _runner.run_shown(
                "mixmfl_train_federated",
                *("--kit", kit, "-i", out / "work", "-o", out / "run", "-c", "2d"),
                *("--fold", "all", "--rounds", options.rounds),
                *("--local-steps", options.local_steps, *patience),
            )
    print_costs(out, samples)


def widened_preset(megabytes: float, file: Path) -> Path:
    """Write the demo's preset with a network of about so many megabytes and small batches."""
    preset = dataclasses.asdict(load_preset("demo"))
    # nearly all weights are products of two widths; 96 MB were measured at 128, four modalities
    features = max(8, 8 * round(16 * math.sqrt(megabytes / 96)))
    preset["planner"] |= {"base_features": features, "max_features_2d": 8 * features}
    preset["planner"]["memory_gb"] = features / 2640  # batches of two
    write_json(file, preset)
    return file.resolve()  # the coordinator reads it elsewhere


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
def watching(hospitals: Mapping[int, str]) -> Iterator[list[Sample]]:
    """Look at the processes of the coordinator, which are this one's, and of the hospitals.

    Args:
        hospitals: By process.
    """
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
            crossed = sum(wire.bytes_sent for name, wire in wires.items() if name.startswith("lo"))
            found.append(Sample(time.time(), memory, crossed))

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        done.set()
        thread.join()


def print_costs(out: Path, samples: Sequence[Sample]) -> None:
    """Print what every round took."""
    run = open_run(out / "run")
    spans = spans_of_rounds(out / "run" / "network" / "exchange.log", len(run.history))
    weights = load_state_of(run, len(run.history)).weights
    blocks = {
        site: sum(4 * t.numel() for t in select_blocks(weights, registration.weights).values())
        / 1e6
        for site, registration in run.registrations.items()
    }
    size = sum(4 * tensor.numel() for tensor in weights.values()) / 1e6
    table = Table(
        *("round", "seconds", "coordinator, MB", "a hospital, MB", "all hospitals, MB"),
        *("sent by one, MB", "received", "its blocks", "sent and received, MB", "loopback"),
        title=f"{len(run.registrations)} hospitals, a network of {size:.0f} MB",
    )

    def most(of: Sequence[float]) -> str:
        return f"{max(of, default=0) / 1e6:.0f}"

    for number, (begun, ended) in enumerate(spans, start=1):
        here = [sample for sample in samples if begun <= sample.at < ended]
        at_hospitals = [
            [size for who, size in sample.memory.items() if who != "coordinator"] for sample in here
        ]
        memory = (
            most([sample.memory["coordinator"] for sample in here]),
            most([size for sizes in at_hospitals for size in sizes]),
            most([sum(sizes) for sizes in at_hospitals]),
        )
        if number > len(run.history):
            table.add_row("after them", f"{ended - begun:.0f}", *memory)
            continue
        history = run.history[number - 1]
        sent = [f"{one.sent_bytes / 1e6:.1f}" for one in history.values()]
        received = [f"{one.received_bytes / 1e6:.1f}" for one in history.values()]
        expected = [f"{blocks[site]:.1f}" for site in history]
        columns = (" ".join(dict.fromkeys(each)) for each in (sent, received, expected))
        crossed = here[-1].loopback - here[0].loopback if here else 0
        exchanged = sum(one.sent_bytes + one.received_bytes for one in history.values())
        wire = f"{exchanged / 1e6:.1f}", f"{crossed / 1e6:.1f}"
        table.add_row(str(number), f"{ended - begun:.0f}", *memory, *columns, *wire)
    Console(width=140).print(table)


def spans_of_rounds(log: Path, rounds: int) -> list[tuple[float, float]]:
    """Return when each round began and ended, and last when what came after them did."""
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


if __name__ == "__main__":
    main()
