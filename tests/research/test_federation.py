"""A federation that is planned from Python."""

import logging
from pathlib import Path

import pytest
from small import write_site

from mixmfl.research.federation import plan_federation


def test_python_reports_what_is_left_out_and_keeps_plans_unless_asked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    federation, work = tmp_path / "federation", tmp_path / "work"
    write_site(federation / "north", [("t1", "t2"), ("t1",), ("t1",)])
    broken = federation / "north" / "p2" / "t1.nii.gz"
    plans = plan_federation(federation, work, preset="demo")
    assert not caplog.records
    broken.write_bytes(b"no image")  # after its fingerprint was taken

    file = work / "plans.json"
    before = file.stat().st_mtime_ns
    with caplog.at_level(logging.WARNING):
        assert plan_federation(federation, work, preset="demo") == plans
    assert file.stat().st_mtime_ns == before
    kept, left_out = (record.getMessage() for record in caplog.records)
    assert kept == f"{file}: is kept; replan=True makes it again"
    assert left_out.startswith("north, p2: left out: ")
    assert "t1.nii.gz" in left_out

    caplog.clear()
    plan_federation(federation, work, preset="demo", replan=True)
    assert file.stat().st_mtime_ns > before
    (once,) = (record.getMessage() for record in caplog.records)
    assert once == left_out
