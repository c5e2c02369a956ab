"""Carrying out orders: the coordinator's command has its server run job after job."""

import time
from collections.abc import Callable, Sequence

from nvflare.fuel.flare_api.flare_api import Session

from mixmfl.core.errors import MixmflError
from mixmfl.federated.flare.job import pause_file, run_job
from mixmfl.federated.flare.processes import retry_while_busy, running_server
from mixmfl.federated.flare.provisioning import Kit
from mixmfl.federated.server.checkpoint import Run, holds_run, open_run
from mixmfl.federated.server.orders import Orders, job_file, save_job
from mixmfl.federated.state import NOT_CONNECTED

_LOST_AFTER = 40.0
"""Seconds without a sign of life after which a hospital is not connected; it gives one every 10."""


def drive(
    kit: Kit,
    orders: Orders,
    *,
    quorum: int,
    deadline: float,
    say: Callable[[str], None],
    report: Callable[[Run], None] = lambda run: None,
) -> None:
    """Carry out orders, with a server that runs as long as this function.

    A job's sites are those connected when it starts. So when a site that was lost has come back,
    the job ends after its round and the next goes on with that site.

    Args:
        kit: The coordinator's.
        orders: Of planning or of a run. A new one waits for all of its sites.
        quorum: How many must answer for a round to count.
        deadline: Seconds that a site has for a task.
        say: Told what is waited for.
        report: Called with the run every second while a job of it runs.

    Raises:
        MixmflError: It failed, or too few sites answered three times.
    """
    file, sites = job_file(orders.out), orders.sites
    going_on = holds_run(orders.out)
    save_job(orders, file)
    done = 0

    def look() -> Run | None:
        """Read the run as far as it is, and report it."""
        nonlocal done
        if not holds_run(orders.out):
            return None
        run = open_run(orders.out)
        done = len(run.history)
        report(run)
        return run

    look()
    with running_server(kit) as session:
        say(f"serving at {kit.server}")
        _await(session, sites, quorum if going_on else len(sites), say)
        too_few = 0
        while True:
            begun = done

            def each_second(begun: int = begun) -> None:
                run = look()
                if done > begun and run is not None and _has_come_back(run, connected(session)):
                    pause_file(file).touch()

            here = sorted(connected(session) & set(sites))
            leg = run_job(session, file, here, deadline=deadline, each_second=each_second)
            look()
            too_few = 0 if done > begun else too_few
            if leg.status == "done":
                return
            if leg.status == "failed":
                raise MixmflError(leg.reason)
            if leg.status == "quorum":
                too_few += 1
                if too_few == 3:
                    raise MixmflError(
                        f"{leg.reason}; that was the third time, so this stops. What is done is "
                        "kept: see to the sites, or give a longer --deadline, and --resume"
                    )
                say(f"{leg.reason}; the round is repeated")
            else:
                say("a site has come back")
            _await(session, sites, quorum, say)


def connected(session: Session) -> set[str]:
    """Return the hospitals that are connected now."""
    now = time.time()
    return {
        client.name
        for client in retry_while_busy(session.get_system_info).client_info
        if now - client.last_connect_time < _LOST_AFTER
    }


def _await(session: Session, sites: Sequence[str], enough: int, say: Callable[[str], None]) -> None:
    """Wait until enough sites are connected, and a little for all."""
    told: set[str] | None = None
    patience = time.monotonic() + 20
    while True:
        here = connected(session) & set(sites)
        if here != told:
            missing = sorted(set(sites) - here)
            say(f"connected: {', '.join(sorted(here)) or 'nobody yet'}")
            if missing:
                say(f"waiting for {', '.join(missing)} (mixmfl_site there)")
            told = here
        if len(here) == len(sites) or (len(here) >= enough and time.monotonic() > patience):
            return
        time.sleep(1)


def _has_come_back(run: Run, here: set[str]) -> bool:
    """Say whether a site is here that the last round could not reach."""
    last = run.history[-1]
    lost = {
        site
        for site in run.registrations
        if site not in last or last[site].absent.startswith(NOT_CONNECTED)
    }
    return bool(lost & here)
