"""The embedded federation: all sites on one machine, in one process or in one per device."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from mixmfl.core.errors import AggregationError, PrivacyError
from mixmfl.core.tensor_store import pack, unpack
from mixmfl.core.worker_pool import spawn_context
from mixmfl.federated.client.client import Client
from mixmfl.federated.messages import Message, StoredMessage, decode, encode, most_reply_bytes
from mixmfl.federated.secure_aggregation.protocol import TRAINING
from mixmfl.federated.server.checkpoint import Run, choose_round, load_state_of, save_personal
from mixmfl.federated.server.coordinator import Answer, Answers, begin, finish, train_rounds
from mixmfl.federated.server.merge import personalization_task, read_personal
from mixmfl.federated.server.update_checks import check_registration
from mixmfl.federated.state import RunSettings, Site, register
from mixmfl.networks.prototypes import PrototypeMemory
from mixmfl.planning.plans import Plans


def simulate(
    plans: Plans,
    sites: Sequence[Site],
    settings: RunSettings,
    fold: str,
    out: Path,
    *,
    resume: bool = False,
    report: Callable[[Run], None] = lambda run: None,
    edit_memory: Callable[[PrototypeMemory], PrototypeMemory] | None = None,
    on_message: Callable[[str, Message, Message], None] = lambda site, task, reply: None,
    measured: bool = True,
) -> Run:
    """Run the federation and export its model.

    Everything that crosses between server and sites crosses as bytes, as it would on a network.

    Args:
        plans: Of the run.
        sites: At least one; those on different devices train side by side.
        settings: Of the run.
        fold: As ``split_fold`` took it.
        out: The run's folder; new, unless ``resume``.
        resume: Go on with the run in ``out``, which must have the same settings and sites.
        report: Called after every round.
        edit_memory: What an ablation makes of the merged memory, after every round.
        on_message: Called with a site's name, each task that it was sent and what it replied.
        measured: Whether the model file shall say what Dice to expect from which modalities.

    Returns:
        The run; its model is ``out/model.safetensors``.

    Raises:
        ModelError: ``out`` holds a run and ``resume`` was not asked; or it holds another run.
    """
    registrations = {site.name: register(site) for site in sites}
    for name, told in registrations.items():
        check_registration(name, told, plans)
    asked = Run(out, plans, settings, fold, registrations)
    run, state, optimizers = begin(asked, resume=resume, optimizers=True)
    devices = sorted({str(site.device) for site in sites})
    with _device_executors(sites, run.plans, run.settings) as desks:

        def start(site: Site, task: Message) -> tuple[bytes, Done]:
            received = encode(task)
            before = optimizers.get(site.name, {}) if task.kind in TRAINING else {}
            return received, desks[str(site.device)](site.name, received, pack(before, {}))

        def ask(tasks: Mapping[str, Message]) -> Answers:
            asked = [site for site in sites if site.name in tasks]
            started: Iterable[tuple[bytes, Done]]
            started = (start(site, tasks[site.name]) for site in asked)
            if len(devices) > 1:  # side by side; else each is made ready when it is its turn
                started = list(started)
            came, absent = {}, {}
            for site, (received, done) in zip(asked, started, strict=True):
                try:
                    sent, moments, seconds = done()
                    # on disk until the round is merged: so memory does not grow with the sites
                    reply = StoredMessage.store(sent, out).open(most_reply_bytes(len(received)))
                except (AggregationError, PrivacyError) as error:
                    absent[site.name] = str(error)
                    continue
                on_message(site.name, tasks[site.name], reply)
                came[site.name] = Answer(reply, len(sent), len(received), seconds)
                if after := unpack(moments)[0]:
                    optimizers[site.name] = after
            return Answers(came, absent)

        train_rounds(run, state, ask, optimizers, report=report, edit_memory=edit_memory)
        finish(run, ask if measured else None)
    return run


def simulate_personalization(run: Run, sites: Sequence[Site]) -> None:
    """Let every site fine-tune its own copy of the best round's model, as far as not done yet.

    A site without validation cases is left out: nothing could tell whether its copy is better.

    Args:
        run: That is finished.
        sites: Of the run.
    """
    state = load_state_of(run, choose_round(run, "best"))
    for site in sites:
        if site.name in run.personal or not site.validation:
            continue
        task = encode(personalization_task(state, site.name, run.registrations))
        handled = Client(site, run.plans, run.settings).handle(decode(task), {})
        result = read_personal(site.name, handled.reply)
        assert result is not None  # the site has validation cases
        save_personal(run, site.name, result, handled.personal)


Done = Callable[[], tuple[bytes, bytes, float]]
"""Waits for a task: the reply, the moments after it, which may be empty, and seconds."""


@contextmanager
def _device_executors(
    sites: Sequence[Site], plans: Plans, settings: RunSettings
) -> Iterator[Mapping[str, Callable[..., Done]]]:
    """Give for each device where tasks for its sites are done, in the order in which they come.

    With one device that is this process, at once; with several it is a process for each.
    """
    by_device: dict[str, dict[str, Client]] = {}
    for site in sites:
        clients = by_device.setdefault(str(site.device), {})
        clients[site.name] = Client(site, plans, settings)
    if len(by_device) == 1:
        ((device, clients),) = by_device.items()
        yield {device: lambda *task: partial(_do_task, clients, *task)}
        return
    context, threads = spawn_context(), torch.get_num_threads()
    with ExitStack() as stack:
        pools = {
            device: stack.enter_context(
                ProcessPoolExecutor(1, context, _open_desk, (by_device[device], threads))
            )
            for device in sorted(by_device)
        }
        yield {
            device: lambda *task, pool=pool: pool.submit(_do_task_here, *task).result
            for device, pool in pools.items()
        }


_CLIENTS: dict[str, Client] = {}
"""By site, in a process that does the tasks of one device."""


def _open_desk(clients: Mapping[str, Client], threads: int) -> None:
    torch.set_num_threads(threads)
    _CLIENTS.update(clients)


def _do_task_here(*task: Any) -> tuple[bytes, bytes, float]:
    return _do_task(_CLIENTS, *task)


def _do_task(
    clients: Mapping[str, Client], site: str, received: bytes, optimizer: bytes
) -> tuple[bytes, bytes, float]:
    """Have a site do a task; what crosses, crosses as bytes.

    Raises:
        AggregationError: What came to the site is no message.
        PrivacyError: The site's privacy budget is spent, or it refuses for its privacy.
    """
    began = time.monotonic()
    handled = clients[site].handle(decode(received), unpack(optimizer)[0])
    return encode(handled.reply), pack(handled.optimizer, {}), time.monotonic() - began
