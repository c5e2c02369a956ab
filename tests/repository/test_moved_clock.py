"""The clock of a command can be moved while it runs; without that, its faults are of nothing."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from moved_clock import DAY, build_clock, move_clock, with_clock

TELLS = """
import time
for _ in range(2):
    before = time.monotonic()
    time.sleep(0.01)
    print(time.time(), time.monotonic() - before, flush=True)
    input()
"""


@pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("cc") is None, reason="needs Linux and a C compiler"
)
def test_a_clock_jumps_while_a_command_runs_and_time_to_wait_does_not(tmp_path: Path) -> None:
    library, clock = build_clock(tmp_path), tmp_path / "clock"
    process = subprocess.Popen(
        [sys.executable, "-c", TELLS],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **with_clock(library, clock)},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    first = process.stdout.readline().split()
    move_clock(clock, 400 * DAY)
    process.stdin.write("\n")
    process.stdin.flush()
    second = process.stdout.readline().split()
    process.communicate("\n", timeout=60)
    assert 0 <= float(second[0]) - float(first[0]) - 400 * DAY < DAY
    assert 0 < float(second[1]) < DAY
