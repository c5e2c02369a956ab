"""What is said where more threads compute than there are cores."""

import sys
import threading
from pathlib import Path

import pytest
from mixmfl.entrypoints import _progress

from mixmfl.core.core_time import CoreTime, core_time, crowded


def test_the_time_of_all_threads_is_added_up(tmp_path: Path) -> None:
    for thread, content in {"7": "2000000000 500000000 3\n", "8": "1000000000 0 1\n"}.items():
        (tmp_path / thread).mkdir()
        (tmp_path / thread / "schedstat").write_text(content)
    assert core_time(tmp_path) == CoreTime(3.0, 0.5)
    (tmp_path / "8" / "schedstat").write_text("of another kind")
    assert core_time(tmp_path) is None
    assert core_time(tmp_path / "none") is None


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts how long threads wait")
def test_linux_counts_the_time_of_this_process() -> None:
    first, later = core_time(), core_time()
    assert first
    assert later
    assert 0 < first.ran <= later.ran


def test_threads_that_wait_more_than_they_run_are_warned_of() -> None:
    start = CoreTime(1.0, 1.0)
    text = crowded(start, CoreTime(2.0, 10.0), threads=2)
    assert text.startswith("the threads of this command waited 90 % of their time for one of the")
    assert text.endswith("Run fewer at once; set OMP_NUM_THREADS=1, torch computes with 2 threads")
    assert crowded(start, CoreTime(2.0, 10.0), threads=1).endswith("Run fewer at once")
    assert crowded(start, CoreTime(2.0, 2.0), threads=2) == ""
    assert crowded(None, CoreTime(2.0, 10.0), 2) == crowded(start, None, 2) == ""


def test_a_training_warns_once_after_some_seconds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    times = iter([CoreTime(1.0, 1.0), CoreTime(2.0, 10.0)])
    monkeypatch.setattr("mixmfl.core.core_time.core_time", lambda: next(times))
    with _progress.crowd_watch(0.5):
        (timer,) = [each for each in threading.enumerate() if isinstance(each, threading.Timer)]
        timer.join(20)
    assert capsys.readouterr().err.count("waited 90 % of their time") == 1


def test_a_training_that_ends_sooner_does_not_warn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mixmfl.core.core_time.core_time", lambda: CoreTime(1.0, 1.0))
    with _progress.crowd_watch(3600):
        (timer,) = [each for each in threading.enumerate() if isinstance(each, threading.Timer)]
    timer.join(20)
    assert not timer.is_alive()
