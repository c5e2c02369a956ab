"""A job: two classes of ours and no code, and the files by which it and the command talk."""

import math
import tempfile
import time
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from nvflare.fuel.flare_api.flare_api import Session

from mixmfl.core.errors import DataError
from mixmfl.core.files import read_json, write_json
from mixmfl.core.json_fields import Told
from mixmfl.federated.flare.processes import retry_while_busy
from mixmfl.federated.flare.provisioning import COORDINATOR_CLASS, SITE_CLASS

_ENDING = 15.0
"""Seconds that FLARE has to end a job whose work is done; twice that for one that is stopped."""


Status = Literal["done", "paused", "quorum", "failed"]


@dataclass(frozen=True)
class JobResult:
    """How a job ended.

    Attributes:
        status: ``"done"``; ``"paused"``, to go on with a site that has come back; ``"quorum"``: too
            few sites answered; ``"failed"``.
        reason: Where it failed.
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
    """Have the server and sites work through a job, and return how it ended.

    Args:
        session: Of the server.
        orders: Written by ``orders.save_job``; what comes of the job is noted beside it.
        sites: That take part.
        deadline: Seconds that a site has for a task.
        each_second: Called while it runs.
    """
    told = result_file(orders)
    told.unlink(missing_ok=True)
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
            if told.is_file() and until == math.inf:
                # the work is done; FLARE may still wait for a site that hangs
                until = time.monotonic() + _ENDING
    finally:  # also where a site hangs: it must not be in two jobs at once
        if not _has_ended(session, number):
            session.abort_job(number)
            until = time.monotonic() + 2 * _ENDING
            while not _has_ended(session, number) and time.monotonic() < until:
                time.sleep(1)
    if told.is_file():
        return _read_leg(told)
    status = session.get_job_meta(number).get("status")
    return JobResult(
        "failed", f"FLARE ended the job as {status} before it began; see the server's log"
    )


def _read_leg(file: Path) -> JobResult:
    told = Told(read_json(file), str(file), DataError).only(["status", "reason"])
    if not isinstance(reason := told.content["reason"], str):
        raise told.wrong("reason", "text")
    return JobResult(typing.cast(Status, told.choice("status", typing.get_args(Status))), reason)


def _has_ended(session: Session, number: str) -> bool:
    meta = retry_while_busy(partial(session.get_job_meta, number))
    return str(meta.get("status")).startswith("FINISHED")


def write_job(job: Path, orders: Path, sites: Sequence[str], deadline: float) -> None:
    """Write a job of two applications; each is one class of ours, and configuration only."""
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
    """Return where a job of these orders notes how it ended."""
    return orders.with_name("leg.json")


def pause_file(orders: Path) -> Path:
    """Return what the command makes to have a job of these orders end after its round."""
    return orders.with_name("pause")
