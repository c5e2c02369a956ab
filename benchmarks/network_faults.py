"""Kill, cut and replay while hospitals train over a network, and see what is lost; `make faults`.

Three hospitals and a coordinator are processes of this machine; every hospital is connected by a
cable that can be cut. While they train, a fault hits at a random moment: one of their processes is
killed (SIGKILL, by its id), a hospital's link is cut for seconds, or carries bytes a second time. A
command that ends is started again, as a supervisor does, a coordinator with ``--resume``. All three
hospitals must answer for a round to count, so that in the end the model must be that of a run in
one process, byte for byte. OUT keeps what was counted: the same command goes on, run by run.
"""

import argparse
import contextlib
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil
import torch
from loopback import MODALITIES, Cable, Loopback
from small import write_preset

from mixmfl.core.files import read_json, write_json
from mixmfl.federated.simulation import simulate
from mixmfl.federated.sites import open_sites
from mixmfl.federated.state import NETWORK_MINIMUM, RunSettings

STEPS = 2
LONGEST = 900.0
"""Seconds without a round after which a run is taken for hung."""

KILLED: Mapping[str, tuple[str, str]] = {
    "coordinator's command": ("coordinator", ""),
    "coordinator's server": ("coordinator", "server_train"),
    "coordinator's job": ("coordinator", "runner_process"),
    "hospital's command": ("hospital", ""),
    "hospital's client": ("hospital", "client_train"),
    "hospital's job": ("hospital", "worker_process"),
}
"""What is killed: whose it is, and a word of its command line; none for the command itself."""

LINKS = ("link cut for 5 s", "bytes carried twice")


class Trial:
    """A run that is disturbed until it is done."""

    def __init__(
        self, federation: Loopback, cables: Mapping[str, Cable], name: str, rounds: int
    ) -> None:
        self.federation, self.cables, self.name, self.planned = federation, cables, name, rounds
        self.restarts = 0
        self.command = federation.train(name, *self._options(), rounds=rounds)

    @staticmethod
    def _options() -> list[object]:
        return ["--local-steps", STEPS, "--quorum", 3, "--deadline", 0.5]

    def rounds(self) -> int:
        """Return how many rounds are done; what is just written counts as not yet there."""
        with contextlib.suppress(Exception):
            return self.federation.rounds(self.name)
        return 0

    def supervise(self) -> bool:
        """Start again what has ended, and return whether the run goes on."""
        federation = self.federation
        for site, process in federation.sites.items():
            if process.poll() is not None:
                federation.start_site(site)
        if self.command.poll() is None:
            return True
        if self.command.returncode == 0:
            return False
        self.restarts += 1
        begun = federation.history(self.name) is not None
        if not begun:
            shutil.rmtree(federation.folder / self.name, ignore_errors=True)
        again = [*self._options(), *(["--resume"] if begun else [])]
        self.command = federation.train(self.name, *again, rounds=self.planned)
        return True

    def wait(self, true: Callable[[], bool]) -> bool:
        """Supervise until something is true; return False if that takes too long or it is over."""
        end = time.monotonic() + LONGEST
        while not true():
            if time.monotonic() > end:
                raise TimeoutError(f"{self.name}: no round within {LONGEST:g} s")
            if not self.supervise():
                return False
            time.sleep(0.2)
        return True

    def hit(self, fault: str, draw: random.Random) -> bool:
        """Do a fault; return whether there was something to hit."""
        site = draw.choice(sorted(self.federation.sites))
        if fault == "link cut for 5 s":
            self.cables[site].cut()
            time.sleep(5)
            self.cables[site].mend()
            return True
        if fault == "bytes carried twice":
            self.cables[site].repeat = True
            return True
        whose, word = KILLED[fault]
        command = self.command if whose == "coordinator" else self.federation.sites[site]
        if not word:
            command.kill()
            command.wait()
            return True
        with contextlib.suppress(psutil.Error):
            for process in psutil.Process(command.pid).children(recursive=True):
                if any(word in part for part in process.cmdline()):
                    process.kill()
                    return True
        return False


def expected(federation: Loopback, rounds: int) -> bytes:
    """Return the model of the same run in one process."""
    sites = [
        site
        for name in MODALITIES
        for site in open_sites(
            federation.folder / name, federation.plans, "2d", "0", 0, torch.device("cpu"), 0
        )
    ]
    rate = federation.plans.training.learning_rate
    least = NETWORK_MINIMUM
    settings = RunSettings(
        "2d", 0, rounds, STEPS, rate, minimum_cases=least.cases, minimum_voxels=least.voxels
    )
    simulate(federation.plans, sites, settings, "0", federation.folder / "one_process")
    return (federation.folder / "one_process" / "model.safetensors").read_bytes()


def disturb(folder: Path, number: int, most: int, seed: int) -> dict[str, object]:
    """Disturb one run of a new federation, and return what was counted.

    Args:
        folder: An empty folder.
        number: Number of the run, from 0; each goes on with the next kinds of faults.
        most: Faults in the run. Each is followed by a round, and some may come before it.
        seed: Seed of moments and places.
    """
    rounds = 2 * most
    draw = random.Random(f"{seed} {number}")
    federation = Loopback(folder, write_preset(folder / "tiny.json", validate_every=rounds))
    faults, seconds = Counter[str](), dict[str, list[float]]()
    cables = {name: federation.lay_cable(name) for name in MODALITIES}
    try:
        for name in MODALITIES:
            federation.start_site(name)
        trial = Trial(federation, cables, "run", rounds)
        trial.wait(lambda: trial.rounds() >= 1)
        kinds = [*KILLED, *LINKS]
        for turn in range(most):
            done = trial.rounds()
            time.sleep(draw.uniform(0, 4))  # about a round
            fault = kinds[(number * most + turn) % len(kinds)]
            began = time.monotonic()
            if not trial.hit(fault, draw):
                continue
            faults[fault] += 1
            done = max(done, trial.rounds())
            if not trial.wait(lambda done=done: trial.rounds() > done):  # type: ignore[misc]
                break
            seconds.setdefault(fault, []).append(round(time.monotonic() - began, 1))
        running = True
        while running:
            done = trial.rounds()
            running = trial.wait(lambda done=done: trial.rounds() > done)  # type: ignore[misc]
        run = federation.history("run")
        history, made = run.history if run else [], folder / "run" / "model.safetensors"
        return {
            "faults": faults,
            "seconds": seconds,
            "rounds": len(history),
            "absent": sum(bool(at.absent) for sites in history for at in sites.values()),
            "repeated": federation.printed("run").count("the round is repeated"),
            "restarts": trial.restarts,
            "equal": made.read_bytes() == expected(federation, rounds),
            "tracebacks": sum(
                federation.printed(name).count("Traceback") for name in ("run", *MODALITIES)
            ),
            "unfinished": len([f for f in folder.rglob(".writing-*") if f.is_file()]),
        }
    finally:
        if "trial" in locals() and trial.command.poll() is None:
            trial.command.kill()
        federation.close()
        for cable in cables.values():
            cable.close()


def main() -> int:
    """Disturb runs, print a table, and return 1 if a model is another or a command failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-o", "--out", type=Path, default=Path("faults/network"))
    parser.add_argument("--runs", type=int, default=5, help="default: 5")
    parser.add_argument("--faults", type=int, default=10, help="in each run; default: 10")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    found = []
    for number in range(options.runs):
        record = options.out / f"run-{options.seed}-{options.faults}-{number}.json"
        if not record.is_file():
            with tempfile.TemporaryDirectory(prefix="mixmfl-faults-") as name:
                write_json(record, disturb(Path(name), number, options.faults, options.seed))
        found.append(read_json(record))
        print(f"run {number + 1}: {found[-1]}", file=sys.stderr, flush=True)
    print("| fault | times | seconds until the next round, median | most |")
    print("| --- | ---: | ---: | ---: |")
    for fault in [*KILLED, *LINKS]:
        times = sum(run["faults"].get(fault, 0) for run in found)
        seconds = sorted(s for run in found for s in run["seconds"].get(fault, ()))
        middle = f"{seconds[len(seconds) // 2]:.0f} | {seconds[-1]:.0f}" if seconds else " | "
        print(f"| {fault} | {times} | {middle} |")
    total = {name: sum(run[name] for run in found) for name in found[0] if name[0] not in "fs"}
    print(f"in {len(found)} runs: {total}")
    return 0 if all(run["equal"] and not run["tracebacks"] for run in found) else 1


if __name__ == "__main__":
    sys.exit(main())
