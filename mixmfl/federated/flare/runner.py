"""Carry out orders for the coordinator's command: start its server and run job after job."""

import time
from collections.abc import Callable
from datetime import date, datetime, timezone
from functools import partial

from mixmfl.core.errors import MixmflError
from mixmfl.federated.flare.job import pause_file, run_job
from mixmfl.federated.flare.kits import Kit, ending_soon
from mixmfl.federated.flare.processes import Server, ServerLostError, running_server
from mixmfl.federated.server.orders import Orders, job_file, read_refusals, save_job
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
    _Jobs(kit, orders, quorum, deadline, say, report).run()


class _Jobs:
    """One call of ``run_jobs``; its arguments are described there."""

    def __init__(
        self,
        kit: Kit,
        orders: Orders,
        quorum: int,
        deadline: float,
        say: Callable[[str], None],
        report: Callable[[Run], None],
    ) -> None:
        self._kit, self._orders = kit, orders
        self._quorum, self._deadline = quorum, deadline
        self._say, self._report = say, report
        self._file = job_file(orders.out)
        self._alive = self._file.with_name(ALIVE)  # changed while the command and its server run
        self._read: tuple[int, Run] | None = None
        self._rounds = 0  # that are done
        self._warned: date | None = None
        self._refusals: list[str] = []  # that were printed
        self._failures, self._failed_after = 0, 0

    def run(self) -> None:
        """Run the server, and again where it was lost, until the orders are carried out."""
        save_job(self._orders, self._file)
        self._read_progress()
        self._warn_daily()
        while True:
            try:
                with running_server(self._kit) as server:
                    self._say(f"serving at {self._kit.server}")
                    return self._serve(server)
            except ServerLostError as error:
                self._fail(str(error), "it is started again")

    def _serve(self, server: Server) -> None:
        """Run job after job until the orders are carried out."""
        begun = holds_run(self._orders.out)
        online = self._wait_for(server, self._quorum if begun else len(self._orders.sites))
        while True:
            result = run_job(
                server,
                self._file,
                sorted(online),
                deadline=self._deadline,
                each_second=partial(self._each_second, server, self._rounds, online),
            )
            self._say_refusals()
            self._read_progress()
            if result.status == "done":
                return
            if result.status == "failed":
                raise MixmflError(result.reason)
            if result.status == "paused":
                self._say("a site has come back")
            else:
                self._fail(result.reason, "the round is repeated")
            online = self._wait_for(server, self._quorum)

    def _each_second(self, server: Server, rounds_before: int, online: set[str]) -> None:
        """Report what a job has done; end it after its round if another site can take part."""
        self._warn_daily()
        self._say_refusals()
        self._alive.touch()
        run = self._read_progress()
        if self._rounds == rounds_before or run is None:
            return
        now = connected(server)
        joining = set(self._orders.sites) - set(run.registrations) - online
        if joining & now or _has_reconnected(run, now):
            pause_file(self._file).touch()

    def _read_progress(self) -> Run | None:
        """Read the run up to its last round, where it has changed, and report it."""
        out = self._orders.out
        if not holds_run(out):
            return None
        written = record_time(out)
        if self._read is None or self._read[0] != written:
            self._read = written, open_run(out)
        run = self._read[1]
        self._rounds = len(run.history)
        self._report(run)
        return run

    def _warn_daily(self) -> None:
        """Say once a day which certificates end soon."""
        if (today := datetime.now(timezone.utc).date()) != self._warned:
            self._warned = today
            for line in ending_soon(self._kit, today):
                self._say(line)

    def _say_refusals(self) -> None:
        """Say once which hospitals refuse a task, and why."""
        for line in read_refusals(self._file):
            if line not in self._refusals:
                self._refusals.append(line)
                self._say(line)

    def _fail(self, reason: str, then: str) -> None:
        """Wait before what failed is repeated; give up where it failed too often in a row."""
        self._read_progress()
        self._failures = self._failures + 1 if self._rounds == self._failed_after else 1
        self._failed_after = self._rounds
        if self._failures == _TRIES:
            raise MixmflError(
                f"{reason}; that was the third time, so this stops. Completed rounds are kept: "
                "check the sites, or set a longer --deadline, and --resume"
            )
        self._say(f"{reason}; {then}")
        time.sleep(_PAUSE * 2 ** (self._failures - 1))

    def _wait_for(self, server: Server, enough: int) -> set[str]:
        """Wait until all sites are connected, or enough of them and 20 s have passed.

        Returns the connected ones, who are to be asked: a heartbeat that is late a moment later
        does not leave a site out of a run that was to wait for it.
        """
        sites = set(self._orders.sites)
        reported: set[str] | None = None
        patience = time.monotonic() + 20
        while True:
            self._alive.touch()
            online = connected(server) & sites
            if online != reported:
                self._say(f"connected: {', '.join(sorted(online)) or 'nobody yet'}")
                if missing := sorted(sites - online):
                    self._say(f"waiting for {', '.join(missing)} (mixmfl_site there)")
                reported = online
            if online == sites or (len(online) >= enough and time.monotonic() > patience):
                return online
            time.sleep(1)


def connected(server: Server) -> set[str]:
    """Return the names of the sites that are connected now."""
    now = time.time()
    return {
        client.name
        for client in server.ask(lambda session: session.get_system_info()).client_info
        if now - client.last_connect_time < _LOST_AFTER
    }


def _has_reconnected(run: Run, online: set[str]) -> bool:
    """Return whether a site is connected again that the last round could not reach."""
    last = run.history[-1]
    lost = {
        site
        for site in run.registrations
        if site not in last or last[site].absent.startswith(NOT_CONNECTED)
    }
    return bool(lost & online)
