"""A FLARE job: two of our classes and no code, and the files it shares with the command."""

import math
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from nvflare.fuel.flare_api.flare_api import Session

from mixmfl.core.errors import DataError
from mixmfl.core.files import read_json, write_json
from mixmfl.core.records import read_record
from mixmfl.federated.flare.hospital_settings import SITE_CLASS
from mixmfl.federated.flare.processes import retry_while_busy
from mixmfl.federated.flare.provisioning import COORDINATOR_CLASS

_ENDING = 15.0
"""Seconds that FLARE has to end a job that has finished; twice that for one that is aborted."""


Status = Literal["done", "paused", "quorum", "failed"]


@dataclass(frozen=True)
class JobResult:
    """How a job ended.

    Attributes:
        status: ``"done"``; ``"paused"``: ended so that the next job includes a site that has
            reconnected; ``"quorum"``: too few sites answered; ``"failed"``.
        reason: What went wrong, after ``"quorum"`` and ``"failed"``.
    """

    status: Status
    reason: str = ""


def run_job(
    session: Session,
    orders: Path,
    sites: Sequence[str],
    *,
    deadline: float,
    each_second: Callable[[], None],
) -> JobResult:
    """Run a job on the server and the sites, and return how it ended.

    Args:
        session: Administrator's session at the server.
        orders: File written by ``orders.save_job``; the job writes its result beside it.
        sites: Names of the sites that take part.
        deadline: Seconds that a site has for a task.
        each_second: Called every second while the job runs.
    """
    result = result_file(orders)
    result.unlink(missing_ok=True)
    pause_file(orders).unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        job = Path(folder) / "mixmfl"
        write_job(job, orders, sites, deadline)
        number = session.submit_job(str(job))
    until = math.inf
    try:
        while not _has_ended(session, number) and time.monotonic() < until:
            each_second()
            time.sleep(1)
            if result.is_file() and until == math.inf:
                # the work is done; FLARE may still wait for a site that hangs
                until = time.monotonic() + _ENDING
    finally:  # even if a site hangs: it must not be in two jobs at once
        if not _has_ended(session, number):
            session.abort_job(number)
            until = time.monotonic() + 2 * _ENDING
            while not _has_ended(session, number) and time.monotonic() < until:
                time.sleep(1)
    if result.is_file():
        return _read_result(result)
    status = session.get_job_meta(number).get("status")
    return JobResult(
        "failed", f"FLARE ended the job as {status} before it began; see the server's log"
    )


def _read_result(file: Path) -> JobResult:
    return read_record(JobResult, read_json(file), str(file), DataError, whole=True)


def _has_ended(session: Session, number: str) -> bool:
    meta = retry_while_busy(partial(session.get_job_meta, number))
    return str(meta.get("status")).startswith("FINISHED")


def write_job(job: Path, orders: Path, sites: Sequence[str], deadline: float) -> None:
    """Write a job of two applications, each only the configuration of one of our classes."""
    coordinator = {
        "path": COORDINATOR_CLASS,
        "args": {"orders": str(orders), "deadline": deadline},
    }
    executor = {"path": SITE_CLASS, "args": {}}
    write_json(
        job / "meta.json",
        {
            "name": "mixmfl",
            "min_clients": 1,
            "deploy_map": {"server_app": ["server"], "site_app": list(sites)},
        },
    )
    write_json(
        job / "server_app" / "config" / "config_fed_server.json",
        {
            "format_version": 2,
            "workflows": [{"id": "mixmfl", **coordinator}],
            "components": [],
        },
    )
    write_json(
        job / "site_app" / "config" / "config_fed_client.json",
        {
            "format_version": 2,
            "executors": [{"tasks": ["*"], "executor": executor}],
            "components": [],
        },
    )


def result_file(orders: Path) -> Path:
    """Return the file into which a job of these orders writes how it ended."""
    return orders.with_name("result.json")


def pause_file(orders: Path) -> Path:
    """Return the file that the command creates to end a job of these orders after its round."""
    return orders.with_name("pause")
