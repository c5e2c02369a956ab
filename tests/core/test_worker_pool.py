"""Jobs of cases: one that fails does not stop the others, and what stops them all says why."""

import errno
import os
from unittest.mock import Mock

import pytest

from mixmfl.core.errors import DataError, MixmflError, Refused
from mixmfl.core.worker_pool import Workers, spawn_context


def fail(error: Exception) -> None:
    raise error


def test_cases_that_fail_are_reported_with_the_reason_and_the_others_are_done() -> None:
    reports: list[tuple[str, int, int]] = []
    jobs = {
        "p9": (divmod, 7, 2),
        "p3": (fail, DataError("case 'p3': t2 is missing")),
        "p2": (fail, FileNotFoundError(errno.ENOENT, "No such file", "t1.nii")),
        "p1": (fail, RuntimeError("ITK ERROR: not an image")),
        "p0": (divmod, 9, 2),
    }
    with Workers(report=lambda *now: reports.append(now)) as workers:
        done, refused = workers.run(jobs, "reading")
    assert list(done.items()) == [("p9", (3, 1)), ("p0", (4, 1))]  # in the order of the jobs
    assert refused == [
        Refused("p1", "RuntimeError: ITK ERROR: not an image"),
        Refused(
            "p2",
            "t1.nii: there is no such file or folder, or none can be made there; check the path",
        ),
        Refused("p3", "case 'p3': t2 is missing"),
    ]
    assert reports == [("reading", count, 5) for count in range(1, 6)]


def test_a_full_disk_stops_them_all() -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    with Workers() as workers, pytest.raises(OSError, match="No space left"):
        workers.run({"p0": (fail, full), "p1": (pytest.fail, "the next was tried")}, "writing")


def test_a_fault_of_ours_is_no_fault_of_the_case() -> None:
    with Workers() as workers, pytest.raises(KeyError):
        workers.run({"p0": (fail, KeyError("spacing"))}, "reading")


def test_processes_give_what_one_gives_and_one_that_is_killed_is_reported_with_what_to_do() -> None:
    jobs = {
        "p0": (divmod, 7, 2),
        "p1": (fail, ValueError("empty")),
        "p2": (divmod, 9, 2),
    }
    with Workers(2) as workers, Workers() as alone:
        assert workers.run(jobs, "reading") == alone.run(jobs, "reading")
        with pytest.raises(MixmflError, match=r"^reading: a process was killed, .* \(-n 1\)$"):
            workers.run({"p0": (os._exit, 1), "p1": (divmod, 7, 2)}, "reading")
        # and where it was killed while there was nothing to do
        with pytest.raises(MixmflError, match=r"^writing: a process was killed"):
            workers.run({"p0": (divmod, 7, 2), "p1": (divmod, 9, 2)}, "writing")


def test_where_processes_share_no_memory_it_is_said_what_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "multiprocessing.synchronize.SemLock.__init__",
        Mock(side_effect=PermissionError(13, "denied")),
    )
    with pytest.raises(MixmflError, match=r"\(denied\); on Linux that is /dev/shm, which must be"):
        spawn_context()
