"""The embedded federation: all sites on one machine, in one process or in one per device."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch

from mixmfl.coordinate import Answer, Answers, begin, finish, train_rounds
from mixmfl.dataset import case_names, open_case
from mixmfl.door import check_registration
from mixmfl.errors import AggregationError, DataError, PrivacyError
from mixmfl.jobs import fresh_processes
from mixmfl.masked import TRAINING
from mixmfl.masked_site import Secrets, perform_at_site
from mixmfl.measure import MEASURE, measure_at_site
from mixmfl.memory import Memory
from mixmfl.personal import personalization_task, personalize_at_site
from mixmfl.plan import Plans
from mixmfl.rounds import (
    RunSettings,
    Site,
    register,
)
from mixmfl.runs import Run, choose_round, load_state_of, save_personal
from mixmfl.sampling import site_number
from mixmfl.tensors import pack, unpack
from mixmfl.wire import Message, Parcel, decode, encode, most_reply_bytes

FOLDS = 5


def split_fold(
    names: Sequence[str], fold: str, seed: int, site: str
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Split a site's cases into those that train and those that validate.

    Args:
        names: Of the cases, in any order.
        fold: ``"0"`` to ``"4"``, or ``"all"``: every case trains and none validates. A site with
            fewer than five cases has as many folds as cases, used in turn; a single case trains.
        seed: Of the run.
        site: Its name.
    """
    shuffled = sorted(names)
    generator = np.random.default_rng([seed, site_number(site)])
    generator.shuffle(shuffled)
    folds = min(FOLDS, len(shuffled))
    if fold == "all" or folds < 2:
        return tuple(sorted(shuffled)), ()
    held = set(shuffled[int(fold) % folds :: folds])
    return tuple(n for n in sorted(names) if n not in held), tuple(sorted(held))


def open_sites(
    work: Path,
    plans: Plans,
    configuration: str,
    fold: str,
    seed: int,
    device: torch.device,
    workers: int,
    wanted: Sequence[str] = (),
) -> list[Site]:
    """Open the preprocessed cases of the sites in ``WORK/sites``.

    Raises:
        DataError: A wanted site is not there, or a site has no case preprocessed by these plans.
    """
    there = sorted(p.name for p in (work / "sites").glob("*") if (p / configuration).is_dir())
    missing = sorted(set(wanted) - set(there))
    if missing or not there:
        others = sorted({p.parent.name for p in (work / "sites").glob("*/*/*.json")})
        raise DataError(
            f"{work / 'sites'}: configuration {configuration} is not preprocessed for "
            f"{', '.join(missing) or 'any site'}; it is for these sites: "
            f"{', '.join(there) or 'none'}; configurations that are: "
            f"{', '.join(others) or 'none'}. Choose one of these by -c, or run "
            f"mixmfl_plan_preprocess -c {configuration}"
        )
    sites, planned = [], plans.preprocessing(configuration)
    for name in sorted(set(wanted)) or there:
        folder = work / "sites" / name / configuration
        training, validation = split_fold(case_names(folder), fold, seed, name)
        if not training:
            raise DataError(f"{folder}: holds no preprocessed case; run mixmfl_plan_preprocess")
        cases = {case: open_case(folder, case) for case in (*training, *validation)}
        if any(case.planned != planned for case in cases.values()):
            raise DataError(
                f"{folder}: was preprocessed with other plans than {work / 'plans.json'}; run "
                f"mixmfl_plan_preprocess -c {configuration} again"
            )
        trained, held = (tuple(cases[n] for n in names) for names in (training, validation))
        sites.append(Site(name, trained, held, device, workers))
    return sites


def train_embedded(
    plans: Plans,
    sites: Sequence[Site],
    settings: RunSettings,
    fold: str,
    out: Path,
    *,
    resume: bool = False,
    report: Callable[[Run], None] = lambda run: None,
    uniform: bool = False,
    edit_memory: Callable[[Memory], Memory] | None = None,
    overhear: Callable[[str, Message, Message], None] = lambda site, task, reply: None,
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
        uniform: Whether every site's word counts the same; see ``register``.
        edit_memory: What an ablation makes of the merged memory, after every round.
        overhear: Called with a site's name, each task that it was sent and what it replied.
        measured: Whether the model file shall say what Dice to expect from which modalities.

    Returns:
        The run; its model is ``out/model.safetensors``.

    Raises:
        ModelError: ``out`` holds a run and ``resume`` was not asked; or it holds another run.
    """
    registrations = {site.name: register(site, uniform=uniform) for site in sites}
    for name, told in registrations.items():
        check_registration(name, told, plans)
    asked = Run(out, plans, settings, fold, registrations)
    run, state, optimizers = begin(asked, resume=resume, optimizers=True)
    devices = sorted({str(site.device) for site in sites})
    with _desks(devices) as desks:

        def start(site: Site, task: Message) -> tuple[bytes, Done]:
            received = encode(task)
            moments = optimizers.get(site.name, {}) if task.kind in TRAINING else {}
            done = desks[str(site.device)](
                site,
                received,
                run.plans,
                run.settings,
                pack(moments, {}),
                run.registrations[site.name].uniform,
            )
            return received, done

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
                    reply = Parcel.store(sent, out).open(most_reply_bytes(len(received)))
                except (AggregationError, PrivacyError) as error:
                    absent[site.name] = str(error)
                    continue
                overhear(site.name, tasks[site.name], reply)
                came[site.name] = Answer(reply, len(sent), len(received), seconds)
                if after := unpack(moments)[0]:
                    optimizers[site.name] = after
            return Answers(came, absent)

        train_rounds(run, state, ask, optimizers, report=report, edit_memory=edit_memory)
        finish(run, ask if measured else None)
    return run


def personalize_embedded(run: Run, sites: Sequence[Site]) -> None:
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
        personal, own = personalize_at_site(decode(task), site, run.plans, run.settings)
        save_personal(run, site.name, personal, own)


Done = Callable[[], tuple[bytes, bytes, float]]
"""Waits for a task: the reply, the moments after it, which may be empty, and seconds."""


@contextmanager
def _desks(devices: Sequence[str]) -> Iterator[Mapping[str, Callable[..., Done]]]:
    """Give for each device where tasks for its sites are done, in the order in which they come.

    With one device that is this process, at once; with several it is a process for each.
    """
    if len(devices) == 1:
        yield {devices[0]: lambda *task: partial(_do_task, *task)}
        return
    context = fresh_processes()
    with ExitStack() as stack:
        pools = {
            device: stack.enter_context(
                ProcessPoolExecutor(1, context, torch.set_num_threads, (torch.get_num_threads(),))
            )
            for device in devices
        }
        yield {
            device: lambda *task, pool=pool: pool.submit(_do_task, *task).result
            for device, pool in pools.items()
        }


_SECRETS: dict[str, Secrets | None] = {}
"""Of the sites whose tasks this process does, between the steps of a masked round."""


def _do_task(
    site: Site,
    received: bytes,
    plans: Plans,
    settings: RunSettings,
    moments: bytes,
    uniform: bool,
) -> tuple[bytes, bytes, float]:
    """Have a site do a task; what crosses, crosses as bytes.

    Raises:
        AggregationError: What came to the site is no message.
        PrivacyError: The site's privacy budget is spent, or it refuses for its privacy.
    """
    began, task = time.monotonic(), decode(received)
    if task.kind == MEASURE:
        reply = measure_at_site(task, site, plans, settings)
        return encode(reply), pack({}, {}), time.monotonic() - began
    reply, after, _SECRETS[site.name] = perform_at_site(
        task,
        site,
        plans,
        settings,
        unpack(moments)[0],
        _SECRETS.get(site.name),
        uniform=uniform,
    )
    return encode(reply), pack(after, {}), time.monotonic() - began
