import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from mixmfl.core.errors import DataError, MixmflError
from mixmfl.core.pipeline import PrefetchProcess, WaitTurn, WriterThread, reason_of

ASK = """
import sys, time
sys.path.insert(0, sys.argv[1])
from mixmfl.core.pipeline import PrefetchProcess
from test_pipeline import work
reader = PrefetchProcess(work, 3, 60)
for job in ("large", "refuse", "name"):
    reader.submit(job)
    try:
        print(reader.result()["job"], flush=True)
    except Exception as error:
        print(error, flush=True)
time.sleep(60)
"""


def work(wait_turn: WaitTurn, constant: int, job: str) -> Any:
    """Do what the job says, in the other process."""
    if job == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if job == "hang":
        time.sleep(60)
    if job == "refuse":
        raise DataError("p1: is bad")
    if job == "fault":
        raise ZeroDivisionError("by zero")
    if job == "large":
        wait_turn()
    if job == "name":
        job = str(os.getpid())
    array = (
        np.ones(constant, np.float32) if job == "ones" else np.arange(constant, dtype=np.float32)
    )
    return {"job": job, "array": array}


def test_what_another_process_made_arrives_whole() -> None:
    with PrefetchProcess(work, 40_000_000, 60) as reader:  # 160 MB: more than goes at a time
        reader.submit("any")
        found = reader.result()
    assert found["job"] == "any"
    assert np.array_equal(found["array"], np.arange(40_000_000, dtype=np.float32))


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere freed memory may stay")
def test_what_waits_in_the_other_process_takes_little_memory() -> None:
    with PrefetchProcess(work, 40_000_000, 60) as reader:
        reader.submit("ones")
        assert reader._connection is not None
        assert reader._connection.poll(60)
        assert psutil.Process(reader._process.pid).memory_info().rss < 150_000_000
        assert reader.result()["array"].sum() == 40_000_000


@pytest.mark.parametrize(
    ("job", "message"),
    [
        ("refuse", r"^p1: is bad$"),
        ("fault", r"^ZeroDivisionError: by zero$"),
        ("die", r"was killed or crashed \(exit code -9; memory ran out"),
        ("hang", r"took longer than the limit of 0.05 minutes to read"),
    ],
)
def test_a_job_that_fails_hangs_or_is_killed_costs_itself_alone(job: str, message: str) -> None:
    with PrefetchProcess(work, 3, 60) as reader:
        reader.submit("first")  # so that starting a process is in no limit
        reader.result()
        reader.limit = 3.0 if job == "hang" else 60
        reader.submit(job)
        with pytest.raises(MixmflError, match=message):
            reader.result()
        reader.limit = 60
        reader.submit("next")
        assert reader.result()["job"] == "next"


def test_a_large_job_waits_until_nothing_else_is_done() -> None:
    with PrefetchProcess(work, 3, 60) as reader:
        reader.submit("large")
        assert reader.result()["job"] == "large"


def test_a_reader_whose_parent_was_killed_ends_by_itself() -> None:
    asking = [sys.executable, "-c", ASK, str(Path(__file__).parent)]
    with subprocess.Popen(asking, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        try:
            lines = [parent.stdout.readline().strip() for _ in range(3)]
            assert lines[:2] == ["large", "p1: is bad"]
            reader = psutil.Process(int(lines[2]))
        finally:
            parent.kill()
    reader.wait(timeout=30)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (DataError("p1: is bad"), "p1: is bad"),
        (OSError(28, "No space left on device"), "the disk is full; free space, and run"),
        (MemoryError("17 GiB"), "not enough memory"),
        (ValueError("two\n  lines"), "ValueError: two lines"),
        (KeyError(), "KeyError"),
    ],
)
def test_a_failure_is_told_in_one_line_by_what_it_is(error: Exception, text: str) -> None:
    assert reason_of(error).startswith(text)
    assert "\n" not in reason_of(error)


def test_writing_that_hangs_or_fails_costs_itself_alone() -> None:
    def fail() -> None:
        raise OSError(28, "No space left on device")

    with WriterThread(0.2) as writer:
        hanging, waiting = writer.submit(lambda: time.sleep(3)), writer.submit(lambda: 1)
        with pytest.raises(MixmflError, match=r"longer than the limit of 0.00333333 minutes"):
            writer.result(hanging)
        assert writer.result(writer.submit(lambda: 2)) == 2
        with pytest.raises(OSError, match="No space left"):
            writer.result(writer.submit(fail))
        with pytest.raises(MixmflError, match="limit"):  # it stood behind what hangs
            writer.result(waiting)
        assert writer.result(writer.submit(lambda: 4)) == 4
