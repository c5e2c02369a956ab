"""Carry out orders for the coordinator's command: start its server and run job after job."""

import time
from collections.abc import Callable, Sequence
from datetime import date, datetime, timezone
from pathlib import Path

from mixmfl.core.errors import MixmflError
from mixmfl.federated.flare.job import pause_file, run_job
from mixmfl.federated.flare.processes import Server, ServerLostError, running_server
from mixmfl.federated.flare.provisioning import Kit, ending_soon
from mixmfl.federated.server.orders import Orders, job_file, save_job
from mixmfl.federated.server.run import Run
from mixmfl.federated.server.run_record import holds_run, open_run, record_time
from mixmfl.federated.state import ALIVE, NOT_CONNECTED

_LOST_AFTER = 40.0
"""Seconds without a heartbeat after which a site counts as not connected; it sends one every 10."""

_TRIES = 3
"""How often in a row a round may fail before the command ends."""

_PAUSE = 5.0
"""Seconds before the first repetition of a round; twice as many before each further one."""


def run_jobs(
    kit: Kit,
    orders: Orders,
    *,
    quorum: int,
    deadline: float,
    say: Callable[[str], None],
    report: Callable[[Run], None] = lambda run: None,
) -> None:
    """Carry out orders, with a server that runs as long as this function.

    A job's sites are those connected when it starts. When a lost site has reconnected, the job
    therefore ends after its round, and the next job includes that site. What was lost is started
    again after a pause, the server and a job alike, and goes on after the last round that is done.

    Args:
        kit: The coordinator's kit.
        orders: Orders for planning or for a run. A new run waits for all of its sites.
        quorum: Number of sites that must answer for a round to count.
        deadline: Seconds that a site has for a task.
        say: Called with a line about what this function waits for.
        report: Called with the run every second while one of its jobs runs.

    Raises:
        MixmflError: A job failed, or a round did, for lack of sites, of a process or of the server,
            three times in a row.
    """
    file, sites = job_file(orders.out), orders.sites
    save_job(orders, file)
    done = 0
    warned: date | None = None
    read: tuple[int, Run] | None = None
    failures, failed_after = 0, 0

    def read_progress() -> Run | None:
        """Read the run up to its last round, where it has changed, and report it."""
        nonlocal done, read
        if not holds_run(orders.out):
            return None
        written = record_time(orders.out)
        if read is None or read[0] != written:
            read = written, open_run(orders.out)
        run = read[1]
        done = len(run.history)
        report(run)
        return run

    def warn_daily() -> None:
        """Say once a day which certificates end soon."""
        nonlocal warned
        if (today := datetime.now(timezone.utc).date()) != warned:
            warned = today
            for line in ending_soon(kit, today):
                say(line)

    def fail(reason: str, then: str) -> None:
        """Wait before what failed is repeated; give up where it failed too often in a row."""
        nonlocal failures, failed_after
        read_progress()
        failures = failures + 1 if done == failed_after else 1
        failed_after = done
        if failures == _TRIES:
            raise MixmflError(
                f"{reason}; that was the third time, so this stops. Completed rounds are kept: "
                "check the sites, or set a longer --deadline, and --resume"
            )
        say(f"{reason}; {then}")
        time.sleep(_PAUSE * 2 ** (failures - 1))

    def serve(server: Server) -> None:
        """Run job after job until the orders are carried out."""
        _wait_for(server, sites, quorum if holds_run(orders.out) else len(sites), say, alive)
        while True:
            begun = done
            online = sorted(connected(server) & set(sites))

            def each_second(begun: int = begun, online: Sequence[str] = online) -> None:
                warn_daily()
                alive.touch()
                run = read_progress()
                if done == begun or run is None:
                    return
                now = connected(server)
                joining = set(sites) - set(run.registrations) - set(online)
                if joining & now or _has_reconnected(run, now):
                    pause_file(file).touch()

            result = run_job(server, file, online, deadline=deadline, each_second=each_second)
            read_progress()
            if result.status == "done":
                return
            if result.status == "failed":
                raise MixmflError(result.reason)
            if result.status == "paused":
                say("a site has come back")
            else:
                fail(result.reason, "the round is repeated")
            _wait_for(server, sites, quorum, say, alive)

    read_progress()
    warn_daily()
    alive = file.with_name(ALIVE)  # whose time of change says that the command and its server run
    while True:
        try:
            with running_server(kit) as server:
                say(f"serving at {kit.server}")
                return serve(server)
        except ServerLostError as error:
            fail(str(error), "it is started again")


def connected(server: Server) -> set[str]:
    """Return the names of the sites that are connected now."""
    now = time.time()
    return {
        client.name
        for client in server.ask(lambda session: session.get_system_info()).client_info
        if now - client.last_connect_time < _LOST_AFTER
    }


def _wait_for(
    server: Server, sites: Sequence[str], enough: int, say: Callable[[str], None], alive: Path
) -> None:
    """Wait until all sites are connected, or enough of them and 20 s have passed."""
    reported: set[str] | None = None
    patience = time.monotonic() + 20
    while True:
        alive.touch()
        online = connected(server) & set(sites)
        if online != reported:
            missing = sorted(set(sites) - online)
            say(f"connected: {', '.join(sorted(online)) or 'nobody yet'}")
            if missing:
                say(f"waiting for {', '.join(missing)} (mixmfl_site there)")
            reported = online
        if len(online) == len(sites) or (len(online) >= enough and time.monotonic() > patience):
            return
        time.sleep(1)


def _has_reconnected(run: Run, online: set[str]) -> bool:
    """Return whether a site is connected again that the last round could not reach."""
    last = run.history[-1]
    lost = {
        site
        for site in run.registrations
        if site not in last or last[site].absent.startswith(NOT_CONNECTED)
    }
    return bool(lost & online)
