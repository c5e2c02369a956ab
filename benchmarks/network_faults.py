"""Kill, cut and replay while hospitals train over a network, and see what is lost; `make faults`.

Three hospitals and a coordinator are processes of this machine; every hospital is connected by a
cable that can be cut. While they train, a fault hits in a phase of a round: one of their processes
is killed (SIGKILL, by its id), may not write for seconds, as on a full disk, or has a clock that
jumps, or a hospital's link is cut, carries nothing, or carries bytes a second time. A command that
ends is started again, as a supervisor does, a coordinator with ``--resume``. All three hospitals
must answer for a round to count, so that in the end the model must be that of a run in one process,
byte for byte.

OUT keeps what was counted: the same command goes on, run by run. ``events-….jsonl`` there has a
line per event, written as it happens. Of a run that stops or ends otherwise, the whole folder is
kept.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path

import psutil
from faults import family_of
from loopback import MODALITIES, Cable, Loopback
from moved_clock import DAY, HOUR, build_clock, move_clock
from small import write_preset

from mixmfl.core.files import UNFINISHED, read_json, write_json
from mixmfl.federated.simulation import simulate
from mixmfl.federated.sites import open_sites
from mixmfl.federated.state import NETWORK_MINIMUM, RunSettings

STEPS = 2

MINUTES = 2
"""What a hospital has for a task. On a busy machine half a minute was too little to train in: round
after round was lost, whatever fault had hit, and a run was taken for hung."""

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

FULL: Mapping[str, tuple[str, str]] = {
    "no room at the coordinator for 5 s": ("coordinator", "runner_process"),
    "no room at a hospital for 5 s": ("hospital", "worker_process"),
}
"""Which process may for seconds write no byte to a file, as ``KILLED`` names them."""

LINKS = ("link cut for 5 s", "link carries nothing for 20 s", "bytes carried twice")

CLOCKS: Mapping[str, tuple[str, int]] = {
    f"{whose}'s clock {words} for 20 s": (whose, seconds)
    for whose in ("coordinator", "hospital")
    for words, seconds in (
        ("an hour ahead", HOUR), ("an hour behind", -HOUR), ("400 days ahead", 400 * DAY),
    )
}  # fmt: skip
"""Whose clock jumps, and by what; 400 days are longer than a certificate is valid."""

PHASES = ("receiving", "training", "sending", "aggregating", "writing")
"""Phases of a round in which a fault hits."""


class Phase:
    """A phase of a round that is waited for, by what the logs say from now on."""

    def __init__(self, name: str, federation: Loopback, run: str, site: str, done: int) -> None:
        """Args: name: one of ``PHASES``; site: whose log; done: rounds that are done by now."""
        self._name, self._site = name, site
        self._at_server = federation.folder / run / "network" / "exchange.log"
        self._at_site = federation.folder / site / "exchange.log"
        self._written = federation.folder / run / "rounds" / f"{done + 1:05d}"
        self._from = {log: self._size(log) for log in (self._at_server, self._at_site)}

    @staticmethod
    def _size(log: Path) -> int:
        return log.stat().st_size if log.is_file() else 0

    def _logged(self, log: Path, words: str) -> bool:
        if self._size(log) <= self._from[log]:
            return False
        with log.open("rb") as file:
            file.seek(self._from[log])
            return words.encode() in file.read()

    def has_come(self) -> bool:
        """Return whether it has begun since this was made."""
        if self._name == "receiving":
            return self._logged(self._at_server, f"sent to {self._site}: train")
        if self._name == "training":
            return self._logged(self._at_site, "came from coordinator: train")
        if self._name == "sending":
            return self._logged(self._at_site, "sent to coordinator: train")
        if self._name == "aggregating":
            return all(self._logged(self._at_server, f"came from {s}: train") for s in MODALITIES)
        return self._written.exists()


class Trial:
    """A run that is disturbed until it is done.

    Attributes:
        events: File that gets a line of JSON for each event.
    """

    def __init__(
        self,
        federation: Loopback,
        cables: Mapping[str, Cable],
        name: str,
        rounds: int,
        events: Path,
    ) -> None:
        self.federation, self.cables, self.name, self.planned = federation, cables, name, rounds
        self.events = events
        self.restarts = 0
        self.command = federation.train(name, *self._options(), rounds=rounds)

    @staticmethod
    def _options() -> list[object]:
        return ["--local-steps", STEPS, "--quorum", 3, "--deadline", MINUTES]

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
                self.note("site ended", site=site, code=process.returncode)
                federation.start_site(site)
        if self.command.poll() is None:
            return True
        if self.command.returncode == 0:
            return False
        self.restarts += 1
        self.note("coordinator ended", code=self.command.returncode)
        begun = federation.history(self.name) is not None
        if not begun:
            shutil.rmtree(federation.folder / self.name, ignore_errors=True)
        again = [*self._options(), *(["--resume"] if begun else [])]
        self.command = federation.train(self.name, *again, rounds=self.planned)
        return True

    def note(self, event: str, **more: object) -> None:
        """Write down what happens, with the time and the rounds that are done."""
        now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        line = {"time": now, "run": self.name, "rounds": self.rounds(), "event": event, **more}
        with self.events.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def wait(self, true: Callable[[], bool], what: str, pause: float = 0.2) -> bool:
        """Supervise until something is true; return False if the run is over before.

        Raises:
            TimeoutError: It takes too long.
        """
        end = time.monotonic() + LONGEST
        while not true():
            if time.monotonic() > end:
                raise TimeoutError(f"{self.name}: no {what} within {LONGEST:g} s")
            if not self.supervise():
                return False
            time.sleep(pause)
        return True

    def hit(self, fault: str, phase: str, site: str) -> bool:
        """Do a fault; return whether there was something to hit."""
        if fault in LINKS:
            self.note("hit", fault=fault, phase=phase, target=site)
            cable = self.cables[site]
            if fault == "link cut for 5 s":
                cable.cut()
                time.sleep(5)
                cable.mend()
            elif fault == "link carries nothing for 20 s":
                cable.stall()
                time.sleep(20)
                cable.mend()
            else:
                cable.repeat = True
            return True
        if fault in CLOCKS:
            whose, seconds = CLOCKS[fault]
            name = whose if whose == "coordinator" else site
            self.note("hit", fault=fault, phase=phase, target=name)
            clock = self.federation.clock(name)
            move_clock(clock, seconds)
            self._pass(20)
            move_clock(clock, 0)
            return True
        whose, word = {**KILLED, **FULL}[fault]
        command = self.command if whose == "coordinator" else self.federation.sites[site]
        for process in family_of(command.pid):
            with contextlib.suppress(psutil.Error):
                if word and not any(word in part for part in process.cmdline()):
                    continue
                target = [whose if whose == "coordinator" else site, word, process.pid]
                self.note("hit", fault=fault, phase=phase, target=target)
                if fault in KILLED:
                    process.kill()
                else:
                    self._leave_no_room(process)
                return True
        self.note("nothing to hit", fault=fault, phase=phase, target=site)
        return False

    def _pass(self, seconds: float) -> None:
        """Supervise for some seconds."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.supervise():
            time.sleep(1)

    @staticmethod
    def _leave_no_room(process: psutil.Process) -> None:
        """Let a process write nothing to files for 5 s; it gets an error, as from a full disk."""
        before = process.rlimit(psutil.RLIMIT_FSIZE)
        process.rlimit(psutil.RLIMIT_FSIZE, (0, before[1]))
        time.sleep(5)
        process.rlimit(psutil.RLIMIT_FSIZE, before)

    def processes(self) -> list[dict[str, object]]:
        """Return what runs now, and what of it waits where."""
        found = []
        for command in (self.command, *self.federation.sites.values()):
            for process in family_of(command.pid):
                with contextlib.suppress(psutil.Error):
                    about = process.as_dict(["pid", "ppid", "status", "cpu_times", "cmdline"])
                    about["cmdline"] = [word[:80] for word in about["cmdline"] or ()]
                    found.append(about)
        return found


def expected(federation: Loopback, rounds: int) -> bytes:
    """Return the model of the same run in one process."""
    sites = [
        site
        for name in MODALITIES
        for site in open_sites(federation.folder / name, federation.plans, "2d", "0", 0)
    ]
    rate = federation.plans.training.learning_rate
    least = NETWORK_MINIMUM
    settings = RunSettings(
        "2d", 0, rounds, STEPS, rate, minimum_cases=least.cases, minimum_voxels=least.voxels
    )
    simulate(federation.plans, sites, settings, "0", federation.folder / "one_process")
    return (federation.folder / "one_process" / "model.safetensors").read_bytes()


def disturb(
    folder: Path,
    number: int,
    most: int,
    seed: int,
    kinds: Sequence[str],
    events: Path,
) -> dict[str, object]:
    """Disturb one run of a new federation, and return what was counted.

    Args:
        folder: An empty folder.
        number: Number of the run, from 0; each takes the next kinds of faults.
        most: Faults in the run. Each is followed by a round, and some may come before it.
        seed: Seed of places.
        kinds: Kinds of faults, in turn; each comes in every phase of a round, in turn.
        events: File that gets a line per event.
    """
    rounds = 3 * most
    draw = random.Random(f"{seed} {number}")
    preset, library = write_preset(folder / "tiny.json", validate_every=rounds), build_clock(folder)
    federation = Loopback(folder, preset, clocks=library)
    faults, seconds = Counter[str](), dict[str, list[float]]()
    cables = {name: federation.lay_cable(name) for name in MODALITIES}
    try:
        for name in MODALITIES:
            federation.start_site(name)
        trial = Trial(federation, cables, "run", rounds, events)
        trial.wait(lambda: trial.rounds() >= 1, "first round")
        for turn in range(number * most, (number + 1) * most):
            fault = kinds[turn % len(kinds)]
            phase = PHASES[(turn + turn // len(kinds)) % len(PHASES)]
            site, done = draw.choice(sorted(MODALITIES)), trial.rounds()
            there = Phase(phase, federation, "run", site, done)
            if not trial.wait(there.has_come, f"phase {phase}", 0.002):
                break
            began = time.monotonic()
            if not trial.hit(fault, phase, site):
                continue
            faults[fault] += 1
            done = max(done, trial.rounds())
            if not trial.wait(lambda done=done: trial.rounds() > done, "round"):  # type: ignore[misc]
                break
            seconds.setdefault(fault, []).append(round(time.monotonic() - began, 1))
            trial.note("round", seconds=seconds[fault][-1])
        running = True
        while running:
            done = trial.rounds()
            running = trial.wait(lambda done=done: trial.rounds() > done, "round")  # type: ignore[misc]
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
            "unfinished": len([f for f in folder.rglob(f"{UNFINISHED}*") if f.is_file()]),
        }
    except TimeoutError as error:
        trial.note("hung", error=str(error), processes=trial.processes())
        raise
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
    every = [*KILLED, *FULL, *LINKS, *CLOCKS]
    parser.add_argument("--kinds", nargs="+", choices=every, default=every, metavar="KIND")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    # else each run would be what mixmfl_predict uses by default
    os.environ["MIXMFL_HOME"] = str(options.out.absolute() / "home")
    found = []
    for number in range(options.runs):
        name = f"{options.seed}-{options.faults}-{number}"
        record, events = options.out / f"run-{name}.json", options.out / f"events-{name}.jsonl"
        if not record.is_file():
            folder = Path(tempfile.mkdtemp(prefix="mixmfl-faults-"))
            kept = f"the folder with all logs is kept: {folder}; the events are in {events}"
            try:
                counted = disturb(
                    folder, number, options.faults, options.seed, options.kinds, events
                )
            except BaseException as error:
                print(f"run {number + 1}: {error!r}; {kept}", file=sys.stderr, flush=True)
                raise
            if not counted["equal"] or counted["tracebacks"]:
                print(f"run {number + 1}: {kept}", file=sys.stderr, flush=True)
            else:
                shutil.rmtree(folder)
            write_json(record, counted)
        found.append(read_json(record))
        print(f"run {number + 1}: {found[-1]}", file=sys.stderr, flush=True)
    print("| fault | times | seconds until the next round, median | most |")
    print("| --- | ---: | ---: | ---: |")
    for fault in every:
        times = sum(run["faults"].get(fault, 0) for run in found)
        seconds = sorted(s for run in found for s in run["seconds"].get(fault, ()))
        middle = f"{seconds[len(seconds) // 2]:.0f} | {seconds[-1]:.0f}" if seconds else " | "
        print(f"| {fault} | {times} | {middle} |")
    total = {name: sum(run[name] for run in found) for name in found[0] if name[0] not in "fs"}
    print(f"in {len(found)} runs: {total}")
    return 0 if all(run["equal"] and not run["tracebacks"] for run in found) else 1


if __name__ == "__main__":
    sys.exit(main())
