"""Kill, starve and confuse commands at random moments, and see what is lost; `make faults`.

Each fault hits a command that works on a small phantom; then the same command is run again, as a
user would, and what it has made is compared with that of a run that nobody disturbed. A process is
killed by its id, with SIGKILL: the command itself or any that it started. OUT keeps what was
counted, so that the same command goes on where it was ended.
"""

import argparse
import dataclasses
import hashlib
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from moved_clock import DAY, HOUR, build_clock, move_clock, with_clock

from mixmfl.core.files import read_json, write_json

LONGEST = 600.0
"""Seconds after which a command that a fault has hit is taken for hung."""

_RUN = (
    "import sys\nfrom importlib.metadata import entry_points\n"
    "(found,) = entry_points(group='console_scripts', name=sys.argv[1])\n"
    "sys.exit(found.load()(sys.argv[2:]))"
)


@dataclass(frozen=True)
class Job:
    """A command whose result is compared.

    Attributes:
        name: What is done.
        command: The command and its options; ``{out}`` is the folder that it writes to.
        again: The options with which it is run again where it began something.
        results: Patterns of the files that must be the same bytes.
        begun: A file that is there once it has begun something; empty: it is always run the same.
    """

    name: str
    command: Sequence[str]
    results: Sequence[str]
    again: Sequence[str] = ()
    begun: str = ""


@dataclass
class Outcome:
    """What faults of one sort did to a job."""

    times: int = 0
    hung: int = 0
    tracebacks: int = 0
    failed: int = 0
    lost: int = 0
    left_bytes: int = 0
    other: int = 0
    reasons: list[str] = field(default_factory=list)

    def row(self, job: str, fault: str) -> str:
        """Return a row of the table."""
        numbers = (self.times, self.hung, self.tracebacks, self.failed, self.lost, self.left_bytes)
        return f"| {job} | {fault} | " + " | ".join(map(str, (*numbers, self.other))) + " |"


def start(command: Sequence[str], log: Path, **options: object) -> subprocess.Popen[bytes]:
    """Start a command of ours in a session of its own, with one thread."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MIXMFL_HOME": str(log.parent / "home")}
    environment |= dict(options.pop("env", {}))  # type: ignore[call-overload]
    with log.open("ab") as file:
        return subprocess.Popen(
            [sys.executable, "-c", _RUN, *command],
            stdout=file, stderr=file, env=environment, **options,  # type: ignore[call-overload]
        )  # fmt: skip


def wait(process: "subprocess.Popen[bytes]", outcome: Outcome) -> int:
    """Wait for a command to end by itself; one that does not is killed, and counted."""
    try:
        return process.wait(LONGEST)
    except subprocess.TimeoutExpired:
        outcome.hung += 1
        for member in family_of(process.pid):
            with suppress(psutil.NoSuchProcess):
                member.kill()
        return process.wait()


def family_of(pid: int) -> list[psutil.Process]:
    """Return a process and all that it started, as far as they live."""
    with suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    return []


def _until_begun(process: "subprocess.Popen[bytes]", out: Path) -> None:
    """Wait until a command writes to its folder, or has ended."""
    while not out.exists() and process.poll() is None:
        time.sleep(0.05)


def files_of(folder: Path) -> dict[str, Path]:
    """Return the files below a folder by their relative names."""
    return {str(f.relative_to(folder)): f for f in sorted(folder.rglob("*")) if f.is_file()}


def digests(folder: Path, patterns: Sequence[str]) -> dict[str, str]:
    """Return the digests of the results in a folder."""
    found = {f for pattern in patterns for f in folder.glob(pattern)}
    return {
        str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest()
        for f in sorted(found)
    }


class Measured:
    """A job that was done once without a fault, and is disturbed from then on."""

    def __init__(self, job: Job, folder: Path) -> None:
        self.job, self.folder = job, folder
        whole, record = folder / "whole", folder / "whole.json"
        if not record.is_file():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            process = start(self._command(whole, self.job.command), folder / "whole.txt")
            _until_begun(process, whole)
            began = time.monotonic()
            if process.wait() != 0:
                raise RuntimeError(f"{job.name}: {(folder / 'whole.txt').read_text()[-2000:]}")
            write_json(record, {"seconds": time.monotonic() - began})
        self.seconds = float(read_json(record)["seconds"])
        self.good = digests(whole, job.results)
        self.names = set(files_of(whole))
        if not self.good:
            raise RuntimeError(f"{job.name}: made none of {job.results}")

    @staticmethod
    def _command(out: Path, words: Sequence[str]) -> list[str]:
        return [word.replace("{out}", str(out)) for word in words]

    def disturb(self, outcome: Outcome, hit: Callable[[Path, Path], int]) -> None:
        """Run the job with a fault in a new folder, then again until it is done, and compare.

        Args:
            outcome: Where it is counted.
            hit: Starts the command, does the fault, and returns the exit code.
        """
        out, log = self.folder / f"fault-{outcome.times}", self.folder / "log.txt"
        shutil.rmtree(out, ignore_errors=True)  # of a measurement that was ended
        log.unlink(missing_ok=True)
        outcome.times += 1
        hit(out, log)
        for _ in range(3):
            begun = self.job.begun and (out / self.job.begun).exists()
            again = [*self.job.command, *(self.job.again if begun else ())]
            code = wait(start(self._command(out, again), log), outcome)
            if code == 0:
                break
        else:
            outcome.failed += 1
            outcome.reasons.append(log.read_text(errors="replace")[-400:])
        made = digests(out, self.job.results)
        outcome.lost += len(self.good.keys() - made.keys())
        changed = [name for name in self.good.keys() & made.keys() if made[name] != self.good[name]]
        outcome.other += len(changed)
        if changed:
            outcome.reasons.append(f"other bytes: {changed[:3]}")
        left = {n: f for n, f in files_of(out).items() if n not in self.names}
        outcome.left_bytes += sum(file.stat().st_size for file in left.values())
        if left:
            outcome.reasons.append(f"left over: {sorted(left)[:3]}")
        _, traceback, rest = log.read_text(errors="replace").partition("Traceback")
        if traceback:
            outcome.tracebacks += 1
            outcome.reasons.append(rest[:2000])
        shutil.rmtree(out, ignore_errors=True)

    def killed(self, draw: random.Random, outcome: Outcome) -> None:
        """Kill one process of the command at a random moment."""

        def hit(out: Path, log: Path) -> int:
            process = start(self._command(out, self.job.command), log)
            _until_begun(process, out)  # nothing is at risk before
            time.sleep(draw.uniform(0.0, 1.0) * self.seconds)
            if family := family_of(process.pid):
                with suppress(psutil.NoSuchProcess):
                    draw.choice(family).send_signal(signal.SIGKILL)
            return wait(process, outcome)

        self.disturb(outcome, hit)

    def without_room(self, draw: random.Random, outcome: Outcome) -> None:
        """Let no file grow beyond a random size, as a full disk does; then there is room again."""
        sizes = sorted(f.stat().st_size for f in files_of(self.folder / "whole").values())
        most = draw.randrange(64, max(65, sizes[-1]))

        def full() -> None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that writing fails, with EFBIG
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))

        def hit(out: Path, log: Path) -> int:
            # what it prints goes to a pipe, which has no size
            process = subprocess.Popen(
                [sys.executable, "-c", _RUN, *self._command(out, self.job.command)],
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, preexec_fn=full,
                env={**os.environ, "OMP_NUM_THREADS": "1", "MIXMFL_HOME": str(self.folder / "h")},
            )  # fmt: skip
            try:
                printed, _ = process.communicate(timeout=LONGEST)
            except subprocess.TimeoutExpired:
                outcome.hung += 1
                process.kill()
                printed, _ = process.communicate()
            log.write_bytes(printed)
            return process.returncode

        self.disturb(outcome, hit)

    def clock_jumps(self, draw: random.Random, outcome: Outcome) -> None:
        """Move the clock by years, forward and back, while the command runs."""

        def hit(out: Path, log: Path) -> int:
            clock = self.folder / "clock"
            move_clock(clock, 0)
            environment = with_clock(build_clock(self.folder), clock)
            process = start(self._command(out, self.job.command), log, env=environment)
            _until_begun(process, out)
            for _ in range(3):
                time.sleep(draw.uniform(0.1, 0.4) * self.seconds)
                move_clock(clock, draw.choice((3000 * DAY, -3000 * DAY, HOUR, -HOUR)))
            return wait(process, outcome)

        self.disturb(outcome, hit)


def jobs(folder: Path) -> list[Job]:
    """Make a small phantom with plans and a model, and return the jobs that are disturbed."""
    log, made = folder / "prepare.txt", folder / "prepared"
    federation, work, run = made / "federation", made / "work", made / "run"
    preprocess = ["mixmfl_plan_preprocess", "-i", str(federation), "--preset", "demo", "-c", "2d"]
    train = ["mixmfl_train_federated", "-i", str(work), "-c", "2d", "--rounds", "3"]
    train += ["--local-steps", "2", "--device", "cpu"]
    steps = (
        ["mixmfl_demo_data", "-o", str(federation), "--spacing", "6", "--cases", "2"],
        [*preprocess, "-o", str(work)],
        [*train, "-o", str(run)],
    )
    if not (run / "model.safetensors").is_file():
        shutil.rmtree(made, ignore_errors=True)
        for command in steps:
            if start(command, log).wait() != 0:
                raise RuntimeError(f"{command[0]}: {log.read_text()[-2000:]}")
    predict = ["mixmfl_predict", "-i", str(federation / "unseen"), "-o", "{out}"]
    predict += ["-m", str(run / "model.safetensors"), "--device", "cpu"]
    return [
        Job("preprocessing", [*preprocess, "-o", "{out}"], ("**/*.b2nd", "plans.json")),
        Job(
            "training, simulated", [*train, "-o", "{out}"],
            ("model.safetensors",), ("--resume",), "run.json",
        ),
        Job(
            "export", ["mixmfl_export", "-i", str(run), "-o", "{out}/model.safetensors"],
            ("model.safetensors",), ("--overwrite",), "model.safetensors",
        ),
        Job("prediction", predict, ("**/*.nii.gz",)),
    ]  # fmt: skip


def main() -> int:
    """Disturb every job, print a table, and return 1 if something was lost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--out", type=Path, default=Path("faults"), help="default: faults")
    parser.add_argument("--kills", type=int, default=50, help="processes killed, per job")
    parser.add_argument("--full", type=int, default=5, help="times without room, per job")
    parser.add_argument("--jumps", type=int, default=3, help="runs in which the clock jumps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", nargs="+", metavar="JOB", help="names of some; default: all")
    options = parser.parse_args()
    folder: Path = options.out.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    print("| job | fault | times | hung | tracebacks | not done when run again | results lost | "
          "bytes left over | other bytes |")  # fmt: skip
    print("| --- | --- |" + " ---: |" * 7)
    faults = 0
    for number, job in enumerate(jobs(folder)):
        if options.jobs and job.name not in options.jobs:
            continue
        measured = Measured(job, folder / str(number))
        sorts: list[tuple[str, int, Callable[[random.Random, Outcome], None]]] = [
            ("kill -9", options.kills, measured.killed),
            ("no room", options.full, measured.without_room),
            ("clock jumps", options.jumps, measured.clock_jumps),
        ]
        for fault, times, hit in sorts:
            counted = measured.folder / f"{fault.split()[0]}-{options.seed}.json"
            outcome = Outcome(**read_json(counted)) if counted.is_file() else Outcome()
            while outcome.times < times:
                hit(random.Random(f"{options.seed} {job.name} {fault} {outcome.times}"), outcome)
                write_json(counted, dataclasses.asdict(outcome))
            print(outcome.row(job.name, fault), flush=True)
            for reason in outcome.reasons[:4]:
                print(f"  {job.name}, {fault}: {reason}", file=sys.stderr, flush=True)
            faults += outcome.hung + outcome.tracebacks + outcome.failed
            faults += outcome.lost + outcome.other
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
