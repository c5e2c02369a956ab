"""A site's side of a job: it fetches tasks, has ``ClientService`` answer them, offers replies."""

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
from mixmfl.federated.client.service import ClientService, SiteConfig
from mixmfl.federated.exchange_log import note
from mixmfl.federated.flare.provisioning import SITE_CONFIG
from mixmfl.federated.flare.transfer import PARCEL, Download, fetch, free_memory
from mixmfl.federated.messages import MOST_BYTES


class SiteExecutor(Executor):
    """A hospital's side of a job: hands tasks to ``ClientService``."""

    def __init__(self) -> None:
        """Nothing is set by the job; what the hospital set is read at the first task."""
        super().__init__()
        self._house: SiteConfig
        self._hospital: ClientService | None = None
        self._reply: Download | None = None

    def execute(
        self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal
    ) -> Shareable:
        """Answer a task: fetch it, do it, and say where the reply can be fetched."""
        cell = fl_ctx.get_engine().get_cell()
        if self._hospital is None:
            local = fl_ctx.get_engine().get_workspace().get_site_config_dir()
            self._house = SiteConfig.load(Path(local) / SITE_CONFIG)
            self._hospital = ClientService(self._house)
            clear_unfinished(self._house.work)
        self._withdraw()
        folder, address = self._house.work, shareable.get(PARCEL)
        try:
            task = fetch(cell, address, FQCN.ROOT_SERVER, MOST_BYTES, folder, abort_signal)
        except AggregationError as error:
            note(self._house.problem_log, f"a task could not be fetched: {error}")
            return make_reply(ReturnCode.EXECUTION_EXCEPTION)
        made = self._hospital.answer(task)
        del task
        free_memory()  # the next task may be long in coming
        leaves = partial(self._hospital.note_reply, made, taken=True)
        self._reply = Download(cell, made, FQCN.ROOT_SERVER, leaves)
        reply = Shareable()
        reply[PARCEL] = self._reply.address
        return reply

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Let go of the last reply when the job ends; FLARE calls it."""
        if event_type == EventType.END_RUN:
            self._withdraw()

    def _withdraw(self) -> None:
        """Offer the last reply no more, and say so if nobody took it."""
        if self._reply is not None:
            self._reply.withdraw()
            if not self._reply.taken and self._hospital is not None:
                self._hospital.note_reply(self._reply.parcel, taken=False)
            self._reply = None
