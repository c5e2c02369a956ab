"""A site's side of a job: it fetches tasks, ``ClientService`` answers them, it offers replies."""

from functools import partial
from pathlib import Path

from nvflare.apis.event_type import EventType
from nvflare.apis.executor import Executor
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.apis.signal import Signal
from nvflare.fuel.f3.cellnet.fqcn import FQCN

from mixmfl.core.errors import AggregationError
from mixmfl.core.files import clear_unfinished
from mixmfl.federated.client.service import ClientService
from mixmfl.federated.client.site_config import SiteConfig
from mixmfl.federated.flare.hospital_settings import SITE_CONFIG
from mixmfl.federated.flare.transfer import MESSAGE, Download, fetch, free_memory
from mixmfl.federated.messages import MOST_BYTES


class SiteExecutor(Executor):
    """A site's side of a job, as FLARE's executor: it passes tasks to ``ClientService``."""

    def __init__(self) -> None:
        """Take no settings from the job; the site's own are read at the first task."""
        super().__init__()
        self._config: SiteConfig
        self._service: ClientService | None = None
        self._reply: Download | None = None

    def execute(
        self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal
    ) -> Shareable:
        """Fetch a task, have it done, and return where the reply can be fetched."""
        cell = fl_ctx.get_engine().get_cell()
        if self._service is None:
            local = fl_ctx.get_engine().get_workspace().get_site_config_dir()
            self._config = SiteConfig.load(Path(local) / SITE_CONFIG)
            self._service = ClientService(self._config)
            clear_unfinished(self._config.work)
        self._withdraw()
        folder, address = self._config.work, shareable.get(MESSAGE)
        try:
            task = fetch(cell, address, FQCN.ROOT_SERVER, MOST_BYTES, folder, abort_signal)
        except AggregationError as error:
            self._service.note_failure(f"a task could not be fetched: {error}")
            return make_reply(ReturnCode.EXECUTION_EXCEPTION)
        answer = self._service.answer(task)
        del task
        free_memory()  # the next task may come much later
        note_sent = partial(self._service.note_reply, answer, taken=True)
        self._reply = Download(cell, answer, FQCN.ROOT_SERVER, note_sent)
        reply = Shareable()
        reply[MESSAGE] = self._reply.address
        return reply

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Withdraw the last reply when the job ends; FLARE calls this."""
        if event_type == EventType.END_RUN:
            self._withdraw()

    def _withdraw(self) -> None:
        """Stop offering the last reply, and log it if the server did not fetch it."""
        if self._reply is not None:
            self._reply.withdraw()
            if not self._reply.taken and self._service is not None:
                self._service.note_reply(self._reply.stored, taken=False)
            self._reply = None
