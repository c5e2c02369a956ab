"""The simulation: all sites on one machine, in one process or in one per device."""

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path

import torch

from mixmfl.core.devices import peak_mb_of, reset_peak_of
from mixmfl.core.errors import AggregationError, ModelError, PrivacyError
from mixmfl.core.tensor_store import Tensors, pack, stored, unpack
from mixmfl.core.worker_pool import Report, no_report, spawn_context
from mixmfl.federated.client.client import Client
from mixmfl.federated.client.secure_aggregation import Signer
from mixmfl.federated.client.summed_sites import SummedSites
from mixmfl.federated.messages import Message, StoredMessage, decode, encode, most_reply_bytes
from mixmfl.federated.secure_aggregation.identities import simulated_identities
from mixmfl.federated.secure_aggregation.protocol import TRAINING
from mixmfl.federated.server.beginning import NEW, Beginning, begin
from mixmfl.federated.server.checkpoint import load_state_of, save_personal
from mixmfl.federated.server.coordinator import (
    AS_PLANNED,
    Answer,
    Answers,
    Ask,
    Variation,
    finish,
    train_rounds,
)
from mixmfl.federated.server.merge import personalization_task, read_personal
from mixmfl.federated.server.run import Run, choose_round
from mixmfl.federated.server.update_checks import check_registration
from mixmfl.federated.state import COMPARE, MEASURE, RunSettings, Site, register
from mixmfl.networks.prototypes import State
from mixmfl.planning.plans import Plans

AfterTask = Callable[[str, Message, Message], None]
"""Takes a site's name, a task and the reply."""


@dataclass(frozen=True)
class Callbacks:
    """What a simulation calls while it runs.

    Attributes:
        after_round: Called with the run after every round.
        after_task: Called with the site's name, the task and the reply after every task.
        progress: Called while the model is measured after the last round.
        begun: Called with the run before its first round, or the first after it was resumed.
    """

    after_round: Callable[[Run], None] = lambda run: None
    after_task: AfterTask = lambda site, task, reply: None
    progress: Report = no_report
    begun: Callable[[Run], None] = lambda run: None


SILENT = Callbacks()


def simulate(
    plans: Plans,
    sites: Sequence[Site],
    settings: RunSettings,
    fold: str,
    out: Path,
    *,
    beginning: Beginning = NEW,
    stop_when_flat: int = 0,
    every_subset: bool = False,
    beside: Path | None = None,
    variation: Variation = AS_PLANNED,
    callbacks: Callbacks = SILENT,
) -> Run:
    """Run the federation and export its model.

    All messages between server and sites are encoded as bytes, as they would be on a network.

    Args:
        plans: Plans of the run.
        sites: At least one site; sites on different devices train in parallel.
        settings: Settings of the run.
        fold: Fold that ``split_fold`` was called with.
        out: Folder of the run; new, unless the run is resumed.
        beginning: Whether the run in ``out`` is resumed, and what a new one starts from.
        stop_when_flat: Rounds without a higher validation Dice after which training ends; 0: it
            has all rounds.
        every_subset: Whether sites validate from every subset of modalities, too.
        beside: Folder of a run of another configuration to compare with; see ``finish``.
        variation: What research changes of the method.
        callbacks: What is called meanwhile.

    Returns:
        The run; its model is ``out/model.safetensors``.

    Raises:
        ModelError: ``out`` holds a run and is not to be resumed, or it holds another run; or a
            masked run was given a rule.
    """
    if variation.rule is not None and settings.masked:
        raise ModelError(
            "a masked run is a sum over all sites, and no rule sees what each of them sent; leave "
            "the rule out, or the masks"
        )
    registrations = {site.name: register(site) for site in sites}
    for name, registration in registrations.items():
        check_registration(name, registration, plans)
    asked = Run(out, plans, settings, fold, registrations, stop_when_flat=stop_when_flat)
    run, state, optimizers = begin(asked, beginning, optimizers=True)
    callbacks.begun(run)
    cases = sum(len(site.validation) for site in sites) * (1 if beside is None else 2)
    counted = _counted(callbacks.progress, "measuring Dice of every subset, cases", cases)
    ended = False

    def step() -> None:
        if ended:  # rounds that measure every subset, too, are printed, and draw no bar
            counted()

    with _device_executors(sites, run.plans, run.settings, step, variation) as executors:
        ask: Ask = _LocalSites(sites, executors, out, optimizers, callbacks.after_task, step)
        if variation.between is not None:
            ask = variation.between(run, ask)
        train_rounds(
            *(run, state, ask, optimizers),
            report=callbacks.after_round,
            every_subset=every_subset,
            variation=variation,
        )
        ended = True
        finish(run, ask, beside)
    return run


def simulate_personalization(run: Run, sites: Sequence[Site], progress: Report = no_report) -> None:
    """Personalise the best round's model at every site that has not done so yet.

    A site without validation cases is left out: its two models could not be compared.

    Args:
        run: A finished run.
        sites: Sites of the run.
        progress: Called after every round of a site.
    """
    state = load_state_of(run, choose_round(run, "best"))
    left = [site for site in sites if site.name not in run.personal and site.validation]
    rounds = len(left) * run.plans.training.personal_rounds
    step = _counted(progress, "personalised models, rounds", rounds)
    plain = dataclasses.replace(run.settings, masked=False)  # no sum is made of them
    for site in left:
        task = encode(personalization_task(state, site.name, run.known))
        here = dataclasses.replace(site, privacy=None)  # nothing of it leaves this machine
        handled = Client(here, run.plans, plain, step=step).handle(decode(task), {})
        result = read_personal(site.name, handled.reply)
        assert result is not None  # the site has validation cases
        save_personal(run, site.name, result, handled.personal)


def _counted(progress: Report, what: str, total: int) -> Callable[[], None]:
    """Return a function that reports one more of ``total`` at each call."""
    numbers = count(1)
    return lambda: progress(what, next(numbers), total)


@dataclass(frozen=True)
class _Done:
    """A task that a site has done.

    Attributes:
        reply: The reply, encoded.
        optimizer: The optimizer state, maybe empty.
        seconds: How long it took.
        memory_mb: Most memory that the site's GPU used; None on other devices.
    """

    reply: bytes
    optimizer: State
    seconds: float
    memory_mb: float | None


Wait = Callable[[], _Done]
"""Wait for a task."""


@dataclass(frozen=True)
class _LocalSites:
    """Brings tasks to the sites of this machine, and their answers back: a coordinator's ``Ask``.

    Attributes:
        sites: The sites, in the order in which they are asked.
        executors: By device, what starts a task there.
        folder: Folder of the run; what waits for the end of a round waits on its disk.
        optimizers: Optimizer states by site; a task of training replaces that of its site.
        after_task: Called with the site's name, the task and the reply, for every task.
        step: Called for every case that a site in another process has measured.
    """

    sites: Sequence[Site]
    executors: Mapping[str, Callable[..., Wait]]
    folder: Path
    optimizers: dict[str, Tensors]
    after_task: AfterTask
    step: Callable[[], None]

    def __call__(self, tasks: Mapping[str, Message]) -> Answers:
        """Have the sites do their tasks, those of different devices at the same time."""
        asked = [site for site in self.sites if site.name in tasks]
        started: Iterable[tuple[bytes, Wait]]
        started = (self._start(site, tasks[site.name]) for site in asked)
        if len(self.executors) > 1:  # in parallel; else each task is encoded when it is its turn
            started = list(started)
        answers, absent = {}, {}
        for site, (task, wait) in zip(asked, started, strict=True):
            try:
                answer = self._receive(site, len(task), wait())
            except (AggregationError, PrivacyError) as error:
                absent[site.name] = str(error)
                continue
            self.after_task(site.name, tasks[site.name], answer.message)
            answers[site.name] = answer
        return Answers(answers, absent)

    def _start(self, site: Site, task: Message) -> tuple[bytes, Wait]:
        received = encode(task)
        before: Tensors = self.optimizers.get(site.name, {}) if task.kind in TRAINING else {}
        return received, self.executors[str(site.device)](site.name, received, before)

    def _receive(self, site: Site, received_bytes: int, done: _Done) -> Answer:
        """Return a site's answer, and keep its optimizer state.

        Raises:
            AggregationError: The reply is not a valid message, or is larger than the task allows.
        """
        # on disk until the round is merged, so that memory does not grow with the sites
        stored_reply = StoredMessage.store(done.reply, self.folder)
        reply = stored_reply.open(most_reply_bytes(received_bytes))
        if reply.kind in (MEASURE, COMPARE) and len(self.executors) > 1:  # in other processes
            for _ in site.validation:
                self.step()
        if done.optimizer:
            # on disk, too: it is 8 bytes for each weight of every site
            self.optimizers[site.name] = stored(done.optimizer, self.folder)
        return Answer(reply, len(done.reply), received_bytes, done.seconds, done.memory_mb)


@contextmanager
def _device_executors(
    sites: Sequence[Site],
    plans: Plans,
    settings: RunSettings,
    step: Callable[[], None],
    variation: Variation,
) -> Iterator[Mapping[str, Callable[..., Wait]]]:
    """Yield for each device a function that starts a task; a device does its tasks in order.

    With one device, the task is done in this process when its result is asked for; with several,
    each device has a process, which does not call ``step``.
    """
    known = simulated_identities([site.name for site in sites]) if settings.masked else {}
    signers = {name: Signer(each, "simulation", SummedSites()) for name, each in known.items()}
    by_device: dict[str, list[tuple[Site, Signer | None]]] = {}
    for site in sites:
        by_device.setdefault(str(site.device), []).append((site, signers.get(site.name)))
    if len(by_device) == 1:
        ((device, here),) = by_device.items()
        clients = {
            site.name: Client(
                *(site, plans, settings, signer, step),
                loss=variation.loss(site) if variation.loss else None,
            )
            for site, signer in here
        }
        yield {device: lambda *task: partial(_do_task, clients, *task)}
        return
    assert variation.loss is None  # it would not come back from another process
    context, threads = spawn_context(), torch.get_num_threads()
    with ExitStack() as stack:
        pools = {
            device: stack.enter_context(
                ProcessPoolExecutor(
                    1, context, _start_worker, (by_device[device], plans, settings, threads)
                )
            )
            for device in sorted(by_device)
        }
        yield {device: partial(_start_elsewhere, pool) for device, pool in pools.items()}


_CLIENTS: dict[str, Client] = {}
"""Clients by site, in a process that does the tasks of one device."""


def _start_worker(
    sites: Sequence[tuple[Site, Signer | None]], plans: Plans, settings: RunSettings, threads: int
) -> None:
    torch.set_num_threads(threads)
    _CLIENTS.update({site.name: Client(site, plans, settings, signer) for site, signer in sites})


def _start_elsewhere(
    pool: ProcessPoolExecutor, site: str, received: bytes, optimizer: Tensors
) -> Wait:
    """Start a task in another process; tensors travel as bytes."""
    started = pool.submit(_do_task_here, site, received, pack(optimizer, {}))

    def wait() -> _Done:
        done, packed = started.result()
        return dataclasses.replace(done, optimizer=unpack(packed)[0])

    return wait


def _do_task_here(site: str, received: bytes, optimizer: bytes) -> tuple[_Done, bytes]:
    """Do a task in a process of ``_CLIENTS``; the optimizer state is returned beside the rest."""
    done = _do_task(_CLIENTS, site, received, unpack(optimizer)[0])
    return dataclasses.replace(done, optimizer={}), pack(done.optimizer, {})


def _do_task(
    clients: Mapping[str, Client], site: str, received: bytes, optimizer: Tensors
) -> _Done:
    """Do a task at a site; task and reply are bytes.

    Raises:
        AggregationError: The task is not a valid message.
        PrivacyError: The site's privacy budget is spent, or the task would reveal its numbers.
    """
    began, device = time.monotonic(), clients[site].site.device
    reset_peak_of(device)
    handled = clients[site].handle(decode(received), optimizer)
    seconds = time.monotonic() - began
    return _Done(encode(handled.reply), handled.optimizer, seconds, peak_mb_of(device))
