"""Attack the product with mutations of everything that it reads, and count what came of it.

Each kind is attacked in a process of its own, whose memory is bounded; a process that does not
answer in time is ended. ``make fuzz`` runs it; see ``--help``.
"""

import argparse
import json
import multiprocessing
import random
import resource
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil
from kinds import KINDS
from targets import HARMLESS, REFUSED, SAME, WrongError

CRASH, HANG, MEMORY, WRONG, DIED = "crash", "hang", "memory", "wrong", "died"
FAULTS = (CRASH, HANG, MEMORY, WRONG, DIED)

MOST_SECONDS, MOST_WAIT = 20.0, 600.0
"""Seconds of computing that one attack may take, and of waiting, as the machine may be busy."""

MOST_MEMORY = 1 << 30
"""Bytes of address space that one attack may take beyond what the process had before."""


@dataclass
class Tally:
    """What came of the attacks on one kind."""

    counts: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0
    peak_mb: float = 0.0
    faults: list[tuple[int, str, str]] = field(default_factory=list)

    def add(self, number: int, outcome: str, detail: str, seconds: float) -> None:
        self.counts[outcome] += 1
        self.slowest = max(self.slowest, seconds)
        if outcome in FAULTS:
            self.faults.append((number, outcome, detail))


def attack_once(target: Any, kind: str, seed: int, number: int) -> tuple[str, str]:
    """Attack a target with the mutation of a number; return the outcome, and its detail."""
    try:
        return target.attack(random.Random(f"{kind} {seed} {number}")), ""
    except WrongError as error:
        return WRONG, str(error)
    except MemoryError:
        return MEMORY, _place()
    except RecursionError as error:
        return CRASH, f"RecursionError: {error} | {_place()}"
    except Exception as error:
        if "can't allocate memory" in str(error) or "std::bad_alloc" in str(error):
            return MEMORY, f"{error} | {_place()}"
        return CRASH, f"{type(error).__name__}: {str(error)[:300]} | {_place()}"


def _place() -> str:
    """Return where in our own code an exception came from."""
    frames = traceback.extract_tb(sys.exc_info()[2])
    ours = [f for f in frames if "/mixmfl/" in f.filename or "/entrypoints/" in f.filename]
    return " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in reversed(ours[-3:]))


def _child(kind: str, seed: int, pipe: Connection) -> None:
    """Attack with the numbers that come through a pipe, and say what came of each."""
    with tempfile.TemporaryDirectory(prefix="mixmfl-fuzz-") as folder:
        target = KINDS[kind](Path(folder))
        attack_once(target, kind, seed, -1)  # what is imported late counts for nobody
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + MOST_MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))
        pipe.send("ready")
        while (number := pipe.recv()) is not None:
            began = time.process_time()
            outcome, detail = attack_once(target, kind, seed, number)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            pipe.send((outcome, detail, time.process_time() - began, peak))


class _Attacker:
    """A process that attacks; it is started again where it died or was ended."""

    def __init__(self, kind: str, seed: int) -> None:
        self._kind, self._seed = kind, seed
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_child, args=(self._kind, self._seed, theirs))
        self._process.start()
        theirs.close()
        if self._pipe.recv() != "ready":
            raise RuntimeError(f"{self._kind}: cannot be attacked")

    def attack(self, number: int) -> tuple[str, str, float, float]:
        self._pipe.send(number)
        began, computed = time.monotonic(), self._computed()
        while not self._pipe.poll(1.0):
            taken, waited = self._computed() - computed, time.monotonic() - began
            if taken > MOST_SECONDS or waited > MOST_WAIT:
                break
        if not self._pipe.poll():
            outcome = HANG, f"no answer after {taken:.0f} s of computing, {waited:.0f} s of waiting"
        else:
            try:
                shown: tuple[str, str, float, float] = self._pipe.recv()
                return shown
            except EOFError:
                self._process.join()
                outcome = DIED, f"the process ended with {self._process.exitcode}"
        self._process.kill()
        self._process.join()
        self._start()
        return (*outcome, MOST_SECONDS, 0.0)

    def _computed(self) -> float:
        """Return the seconds of computing of the process until now."""
        try:
            return sum(psutil.Process(self._process.pid).cpu_times()[:2])
        except psutil.Error:
            return 0.0

    def end(self) -> None:
        self._pipe.send(None)
        self._process.join(20)
        if self._process.is_alive():
            self._process.kill()


def fuzz(kind: str, count: int, seed: int, first: int = 0) -> Tally:
    """Attack a kind with so many mutations, from a number on."""
    tally, attacker = Tally(), _Attacker(kind, seed)
    try:
        for number in range(first, first + count):
            outcome, detail, seconds, peak = attacker.attack(number)
            tally.add(number, outcome, detail, seconds)
            tally.peak_mb = max(tally.peak_mb, peak)
            if sys.stderr.isatty() and number % 50 == 0:
                print(f"\r{kind}: {number}/{count} ", end="", file=sys.stderr, flush=True)
    finally:
        attacker.end()
    return tally


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-n", "--count", type=int, default=2000, help="mutations of each kind")
    parser.add_argument("--seed", type=int, default=0, help="other mutations with each seed")
    parser.add_argument("--first", type=int, default=0, help="number of the first mutation")
    parser.add_argument("--faults", type=int, default=5, help="faults that are printed per kind")
    parser.add_argument("-o", "--out", type=Path, help="a file of JSON for the counts")
    parser.add_argument("kinds", nargs="*", help=f"default: all of {', '.join(KINDS)}")
    options = parser.parse_args()
    columns = (REFUSED, SAME, HARMLESS, *FAULTS)
    print("| kind | mutations | " + " | ".join(columns) + " | slowest, s | peak, MB |")
    print("| --- |" + " ---: |" * (len(columns) + 3))
    failed, shown = 0, {}
    for kind in options.kinds or KINDS:
        tally = fuzz(kind, options.count, options.seed, options.first)
        counts = [tally.counts[name] for name in columns]
        numbers = " | ".join(map(str, [sum(counts), *counts]))
        print(f"| {kind} | {numbers} | {tally.slowest:.1f} | {tally.peak_mb:.0f} |", flush=True)
        for number, outcome, detail in tally.faults[: options.faults]:
            print(f"  {kind} {number}: {outcome}: {detail}", file=sys.stderr, flush=True)
        failed += len(tally.faults)
        shown[kind] = dict(tally.counts)
    if options.out:
        options.out.write_text(json.dumps(shown, indent=1) + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
