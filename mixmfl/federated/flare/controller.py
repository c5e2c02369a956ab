"""The server's side of a job: it carries out orders and sends tasks to the sites by FLARE."""

import dataclasses
import json
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nvflare.apis.client import Client
from nvflare.apis.controller_spec import ClientTask, SendOrder, Task
from nvflare.apis.fl_context import FLContext
from nvflare.apis.impl.controller import Controller
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal
from nvflare.fuel.f3.cellnet.cell import Cell

from mixmfl.core.errors import MixmflError, QuorumError
from mixmfl.core.files import clear_unfinished, write_json
from mixmfl.core.text import MOST_LINE, one_line, printable
from mixmfl.core.version import __version__, works_with
from mixmfl.federated.exchange_log import describe_exchange, note
from mixmfl.federated.flare.job import JobResult, begun_file, pause_file, result_file
from mixmfl.federated.flare.transfer import MESSAGE, Download, fetch, free_memory
from mixmfl.federated.messages import FAILED, Message, StoredMessage, most_reply_bytes
from mixmfl.federated.server.coordinator import Answer, Answers
from mixmfl.federated.server.orders import PlanningJob, load_job, plan_remotely, train_remotely
from mixmfl.federated.state import NOT_CONNECTED, REFUSES

_PATIENCE = 15.0
"""Seconds within which a site that did not fetch its last task must fetch the next one."""


class Coordinator(Controller):
    """The server's side of a job, as FLARE's controller."""

    def __init__(self, orders: str, deadline: float) -> None:
        """Args: orders: path of the orders' file; deadline: seconds that a site has for a task."""
        super().__init__(task_check_period=0.1)
        self._orders = Path(orders)
        self._deadline = deadline
        self._silent: set[str] = set()

    def start_controller(self, fl_ctx: FLContext) -> None:
        """Do nothing; FLARE requires it."""

    def stop_controller(self, fl_ctx: FLContext) -> None:
        """Do nothing; FLARE requires it."""

    def control_flow(self, abort_signal: Signal, fl_ctx: FLContext) -> None:
        """Carry out the orders and write how the job ended."""
        begun_file(self._orders).touch()
        orders = load_job(self._orders)
        clear_unfinished(self._orders.parent)
        sites = sorted(client.name for client in fl_ctx.get_engine().get_clients())
        self._log = self._orders.with_name("exchange.log")

        def ask(tasks: Mapping[str, Message]) -> Answers:
            return self._ask(tasks, sites, fl_ctx, abort_signal)

        try:
            if isinstance(orders, PlanningJob):
                plan_remotely(orders, ask)
                result = JobResult("done")
            else:
                done = train_remotely(orders, ask, pause_file(self._orders).exists)
                result = JobResult("done" if done else "paused")
        except QuorumError as error:
            result = JobResult("quorum", printable(str(error)))
        except Exception as error:  # the command that waits must learn of any failure
            self.log_exception(fl_ctx, "the job failed")
            prefix = "" if isinstance(error, MixmflError) else f"{type(error).__name__}: "
            result = JobResult("failed", printable(f"{prefix}{error}"))
        write_json(result_file(self._orders), dataclasses.asdict(result))

    def process_result_of_unknown_task(
        self,
        client: Client,
        task_name: str,
        client_task_id: str,
        result: Shareable,
        fl_ctx: FLContext,
    ) -> None:
        """Drop a reply that comes too late, if FLARE at the site has not dropped it."""
        note(self._log, f"late from {client.name}: {task_name}, dropped")

    def _ask(
        self,
        tasks: Mapping[str, Message],
        sites: Sequence[str],
        fl_ctx: FLContext,
        abort_signal: Signal,
    ) -> Answers:
        free_memory()  # of the last tasks' messages
        absent = {site: NOT_CONNECTED for site in tasks if site not in sites}
        cell, packed = fl_ctx.get_engine().get_cell(), _Packed(self._log.parent)
        asked = {
            site: _Asked(site, message, packed.of(message), cell, self._log)
            for site, message in tasks.items()
            if site in sites
        }
        for site, item in asked.items():
            self.send(item.task, fl_ctx, targets=[site], send_order=SendOrder.ANY)
        began = time.monotonic()
        while awaited := {site for site, item in asked.items() if item.open}:
            if abort_signal.triggered:  # by FLARE, when no site is connected any more
                raise QuorumError("all sites were lost")
            waited = time.monotonic() - began
            silent = {site for site in awaited & self._silent if not asked[site].fetched}
            if waited > self._deadline or (waited > _PATIENCE and awaited == silent):
                break
            time.sleep(0.05)
        for item in asked.values():
            if item.open:
                late = f"did not answer within {self._deadline:g} s; a later reply is dropped"
                item.refuse(late if item.fetched else f"{NOT_CONNECTED}: did not fetch its task")
                self.cancel_task(item.task, fl_ctx=fl_ctx)
            item.close()
        unfetched = {site for site, item in asked.items() if not item.fetched}
        self._silent = (self._silent - set(asked)) | unfetched
        answers = {site: item.answer for site, item in asked.items() if item.answer is not None}
        return Answers(answers, {**absent, **{s: i.absent for s, i in asked.items() if i.absent}})


class _Packed:
    """Tasks as stored messages; equal tasks share one, so that it lies on disk once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: dict[str, StoredMessage] = {}

    def of(self, message: Message) -> StoredMessage:
        """Return the stored form of a message."""
        same = {name: id(tensor) for name, tensor in message.tensors.items()}
        key = json.dumps([message.kind, message.record, same])
        if key not in self._known:
            self._known[key] = StoredMessage.pack(message, self._folder)
        return self._known[key]


class _Asked:
    """A task that was sent to a site, and the site's reply."""

    _at_once = threading.Semaphore(16)
    """Limit on replies fetched at the same time, each with a few pieces in memory."""

    def __init__(
        self, site: str, message: Message, stored: StoredMessage, cell: Cell, log: Path
    ) -> None:
        self.answer: Answer | None = None
        self.absent = ""
        self.fetched = False
        self._site, self._kind, self._stored, self._cell = site, message.kind, stored, cell
        self._log, self._began = log, time.monotonic()
        # described now: this computes a digest, and FLARE waits for us when it sends
        self._line = describe_exchange(f"sent to {site}", stored, message)
        self._download = Download(cell, stored, site)
        self._replied = False
        self._stop = Signal()
        self._lock = threading.Lock()
        data = Shareable()
        data[MESSAGE] = self._download.address
        self.task = Task(
            name=message.kind,
            data=data,
            before_task_sent_cb=self._sent,
            result_received_cb=self._take,
            task_done_cb=self._done,
        )

    @property
    def open(self) -> bool:
        return self.answer is None and not self.absent

    def refuse(self, reason: str) -> None:
        """Give up on the site for this task."""
        with self._lock:
            if self.open:
                self.absent = reason
                note(self._log, f"nothing from {self._site}: {self._kind}: {reason}")

    def close(self) -> None:
        """Withdraw the task, and stop fetching a reply that is not complete."""
        self._download.withdraw()
        if self.answer is None:
            self._stop.trigger("too late")

    def _sent(self, client_task: ClientTask, fl_ctx: FLContext) -> None:
        self.fetched = True
        self._began = time.monotonic()
        note(self._log, self._line)

    def _take(self, client_task: ClientTask, fl_ctx: FLContext) -> None:
        result, client_task.result = client_task.result, None
        if MESSAGE not in result:
            self.refuse(f"its reply holds no message ({one_line(result.get_return_code())})")
            return
        self._replied = True
        # in a thread: FLARE handles no other reply until this callback returns
        threading.Thread(target=self._fetch, args=(result[MESSAGE],), daemon=True).start()

    def _fetch(self, address: Any) -> None:
        most = most_reply_bytes(self._stored.size)
        try:
            with self._at_once:
                folder = self._log.parent
                stored = fetch(self._cell, address, self._site, most, folder, self._stop)
            reply = stored.open(most)
            note(self._log, describe_exchange(f"came from {self._site}", stored, reply))
        except Exception as error:  # no reply, however malformed, may stop the job
            self.refuse(f"its reply cannot be read ({one_line(error)})")
            return
        if reply.kind == FAILED:
            self.refuse(failure_in(reply))
            return
        seconds = time.monotonic() - self._began
        with self._lock:
            if self.open:
                self.answer = Answer(reply, stored.size, self._stored.size, seconds)

    def _done(self, task: Task, fl_ctx: FLContext) -> None:
        if not self._replied:
            self.refuse(f"{NOT_CONNECTED} any more ({task.completion_status})")


def failure_in(reply: Message) -> str:
    """Return why a site did not do its task; that it runs another version comes first."""
    site_version = reply.record.get("version")
    if not works_with(site_version):
        return (
            f"runs mixmfl {one_line(site_version)}, the coordinator {__version__}; install "
            "versions that differ in the last number at most"
        )
    if (reason := reply.record.get("refused")) is not None:
        return f"{REFUSES}: {one_line(reason, MOST_LINE)}"
    return f"could not do it ({one_line(reply.record.get('error'))})"
