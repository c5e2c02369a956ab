"""A FLARE job: two of our classes and no code, and the files it shares with the command."""

import math
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from nvflare.fuel.flare_api.api_spec import InternalError
from nvflare.fuel.flare_api.flare_api import Session

from mixmfl.core.declarations import text
from mixmfl.core.errors import DataError
from mixmfl.core.files import read_json, write_json
from mixmfl.core.records import read_record
from mixmfl.federated.flare.hospital_settings import SITE_CLASS
from mixmfl.federated.flare.processes import Server, ServerLostError
from mixmfl.federated.flare.provisioning import COORDINATOR_CLASS
from mixmfl.federated.server.orders import refusals_file

_BEGINNING = 600.0
"""Seconds within which a job must begin. FLARE tries ever more rarely to start one that it could
not start: the tenth time comes an hour after the first."""

_ENDING = 15.0
"""Seconds that FLARE has to end a job that has finished; twice that for one that is aborted."""


Status = Literal["done", "paused", "quorum", "lost", "failed"]


@dataclass(frozen=True)
class JobResult:
    """How a job ended.

    Attributes:
        status: ``"done"``; ``"paused"``: ended so that the next job includes a site that has
            reconnected; ``"quorum"``: too few sites answered; ``"lost"``: FLARE did not start it,
            or its process was killed; ``"failed"``.
        reason: What went wrong, after ``"quorum"``, ``"lost"`` and ``"failed"``.
    """

    status: Status
    reason: Annotated[str, text(1_000_000, least=0, lines=True)] = ""


def run_job(
    server: Server,
    orders: Path,
    sites: Sequence[str],
    *,
    deadline: float,
    each_second: Callable[[], None],
) -> JobResult:
    """Run a job on the server and the sites, and return how it ended.

    Args:
        server: The coordinator's server.
        orders: File written by ``orders.save_job``; the job writes its result beside it.
        sites: Names of the sites that take part.
        deadline: Seconds that a site has for a task.
        each_second: Called every second while the job runs.

    Raises:
        ServerLostError: The server ended, and with it the job.
    """
    result, begun = result_file(orders), begun_file(orders)
    for of_last_job in (result, begun, pause_file(orders), refusals_file(orders)):
        of_last_job.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        job = Path(folder) / "mixmfl"
        write_job(job, orders, sites, deadline)
        number = server.ask(lambda session: session.submit_job(str(job)))
    until, finished = time.monotonic() + _BEGINNING, False
    try:
        while not _has_ended(server, number) and time.monotonic() < until:
            each_second()
            time.sleep(1)
            if not finished and result.is_file():
                # the work is done; FLARE may still wait for a site that hangs
                until, finished = time.monotonic() + _ENDING, True
            elif not finished and begun.is_file():
                until = math.inf
    except ServerLostError:
        raise
    except BaseException:
        _end(server, number)
        raise
    _end(server, number)
    if result.is_file():
        return read_record(JobResult, read_json(result), str(result), DataError, whole=True)
    what = "was lost" if begun.is_file() else f"did not begin within {_BEGINNING:g} s"
    return JobResult("lost", f"the job {what} (FLARE: {_status(server, number)}; see its log.txt)")


def _end(server: Server, number: str) -> None:
    """End a job that goes on, even if a site hangs: it must not be in two jobs at once."""

    def abort(session: Session) -> None:
        with suppress(InternalError):  # FLARE has not started it, or it just ended
            session.abort_job(number)

    if _has_ended(server, number):
        return
    server.ask(abort)
    until = time.monotonic() + 2 * _ENDING
    while not _has_ended(server, number) and time.monotonic() < until:
        time.sleep(1)


def _status(server: Server, number: str) -> str:
    return str(server.ask(lambda session: session.get_job_meta(number)).get("status"))


def _has_ended(server: Server, number: str) -> bool:
    return _status(server, number).startswith("FINISHED")


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


def begun_file(orders: Path) -> Path:
    """Return the file that a job of these orders creates when it begins its work."""
    return orders.with_name("begun")


def pause_file(orders: Path) -> Path:
    """Return the file that the command creates to end a job of these orders after its round."""
    return orders.with_name("pause")
