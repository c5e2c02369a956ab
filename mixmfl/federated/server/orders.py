"""The coordinator's side of a federation on a network: planning and a run, through any engine.

What is asked of the engine is an ``Ask``. Orders are a file on the coordinator's own disk, so that
what it sends the engine to start is a path and nothing else.
"""

import dataclasses
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, TypeVar

import torch

from mixmfl.core.declarations import LONGEST_PATH, entries, text, within
from mixmfl.core.errors import AggregationError, DataError, MixmflError, PlansError, QuorumError
from mixmfl.core.files import read_json, read_long_json, write_json
from mixmfl.core.json_fields import Range, fields, whole, word
from mixmfl.core.records import read_record, read_value
from mixmfl.core.text import MOST_LINE
from mixmfl.core.version import __version__
from mixmfl.data.dataset_card import read_card
from mixmfl.data.label_sets import agree_on_labels, describe_sets
from mixmfl.data.labels import Labels
from mixmfl.data.modalities import Modalities
from mixmfl.federated.messages import Message
from mixmfl.federated.secure_aggregation.signatures import MOST_SITES, SiteName
from mixmfl.federated.server.beginning import Beginning, begin
from mixmfl.federated.server.checkpoint import load_state_of, record_personal
from mixmfl.federated.server.coordinator import Answers, Ask, finish, train_rounds
from mixmfl.federated.server.initial_state import start_from
from mixmfl.federated.server.merge import personalization_task, read_personal
from mixmfl.federated.server.reply_records import (
    FingerprintReply,
    JoinReply,
    PreprocessReply,
    read_reply,
)
from mixmfl.federated.server.run import Run, choose_round
from mixmfl.federated.server.run_record import holds_run, open_run
from mixmfl.federated.server.update_checks import check_answer, check_registration
from mixmfl.federated.state import (
    NETWORK,
    NOT_CONNECTED,
    REFUSES,
    Cases,
    Registration,
    RunSettings,
    Voxels,
)
from mixmfl.inference.model_folder import Configuration, Fold
from mixmfl.planning.bounds import MOST_ROUNDS
from mixmfl.planning.federation_plans import kept_plans, write_plans
from mixmfl.planning.fingerprint import Fingerprint
from mixmfl.planning.plans import Plans, load_preset

log = logging.getLogger(__name__)

Read = TypeVar("Read")

_Refusals = Annotated[
    Mapping[
        Annotated[str, text(40)],
        Annotated[Mapping[SiteName, Annotated[str, text(2 * MOST_LINE)]], entries(1, MOST_SITES)],
    ],
    entries(0, 10),
]
_Sites = Annotated[tuple[SiteName, ...], entries(1, MOST_SITES, distinct=True)]


@dataclass(frozen=True)
class PlanningJob:
    """What a planning job is to do.

    Attributes:
        out: WORK at the coordinator; plans.json and fingerprint.json come here.
        sites: Names of all sites.
        preset: Name or path of the preset, as for ``--preset``.
        configurations: Configurations that the sites preprocess.
        minimum: Cases and voxels that must be behind a statistic; a site may ask for more.
        replan: Whether plans are made again where there are some.
        card: dataset.json that says where the data come from; None: nothing is said.
    """

    out: Path
    sites: _Sites
    preset: Annotated[str, text(LONGEST_PATH)]
    configurations: Annotated[tuple[Configuration, ...], entries(0, 2, distinct=True)]
    minimum: tuple[Cases, Voxels]
    replan: bool = False
    card: Path | None = None


@dataclass(frozen=True)
class TrainingJob:
    """What a training job is to do.

    Attributes:
        work: Folder that holds plans.json.
        out: The run's folder; a run in it is resumed.
        sites: Names of all sites.
        name: Name of the run at the sites: letters and digits.
        settings: Settings of the run.
        fold: Validation fold, or ``"all"``.
        quorum: Number of sites that a round needs.
        personalize: Whether sites fine-tune personalised models.
        stop_when_flat: Rounds without a higher validation Dice after which training ends; 0: it
            has all rounds.
        init: File whose weights a new run starts from; None: from random ones.
        aliases: Other words for modalities, as ``Modalities.with_aliases`` takes them.
        beside: Folder of a run of another configuration to compare with; see ``finish``.
        every_subset: Whether sites validate from every subset of modalities, too.
    """

    work: Path
    out: Path
    sites: _Sites
    name: Annotated[str, text(80)]
    settings: RunSettings
    fold: Fold
    quorum: Annotated[int, within(1, MOST_SITES)] = 1
    personalize: bool = False
    stop_when_flat: Annotated[int, within(0, MOST_ROUNDS)] = 0
    init: Path | None = None
    aliases: Annotated[tuple[Annotated[str, text(LONGEST_PATH)], ...], entries(0, 1000)] = ()
    beside: Path | None = None
    every_subset: bool = False


Orders = PlanningJob | TrainingJob


def job_file(out: Path) -> Path:
    """Return the file of the orders for a folder; the engine writes its files beside it."""
    return out / NETWORK / "orders.json"


def save_job(orders: Orders, path: Path) -> None:
    """Write orders as JSON."""
    values = dataclasses.asdict(orders)
    content = {name: str(v) if isinstance(v, Path) else v for name, v in values.items()}
    write_json(path, {"job": type(orders).__name__, **content})


def load_job(path: Path) -> Orders:
    """Read what ``save_job`` wrote.

    Raises:
        DataError: The file is damaged, or orders what no site would do.
    """
    content = dict(read_json(path))
    job = word(content.pop("job", None), ("PlanningJob", "TrainingJob"), f"{path}: job", DataError)
    if job == "PlanningJob":
        return read_record(PlanningJob, content, str(path), DataError, whole=True)
    orders = read_record(TrainingJob, content, str(path), DataError, whole=True)
    whole(orders.quorum, Range(1, len(orders.sites)), f"{path}: quorum", DataError)
    return orders


def plan_remotely(orders: PlanningJob, ask: Ask) -> None:
    """Ask all sites for their fingerprints, make one plan, and have each preprocess its cases.

    A site that refuses is left out.

    Raises:
        MixmflError: A site did not answer, all refuse, or the sites do not fit together.
    """
    plans = kept_plans(orders.out, replan=orders.replan)
    if plans is None:
        record = {"version": __version__, "minimum": list(orders.minimum)}
        answers = _ask_all(ask, orders, Message("fingerprint", record, {}), read_statistics)
        meant = {site: answer[1] for site, answer in answers.items()}
        labels = agree_on_labels(meant)
        for line in describe_sets(meant, labels):
            log.info("%s", line)
        fingerprints = {site: a[0] for site, a in answers.items() if a[0] is not None}
        if not fingerprints:
            raise DataError(
                f"no site sent a fingerprint: none has {orders.minimum[0]} cases. A plan needs "
                "one; lower --minimum-cases here and at the sites"
            )
        for site, fingerprint in fingerprints.items():
            write_json(_fingerprint_file(orders.out, site), fingerprint.to_json())
        dataset = None
        if orders.card is not None:
            dataset = read_card(read_json(orders.card), str(orders.card))
        preset = load_preset(orders.preset)
        plans, _ = write_plans(fingerprints.values(), labels, preset, dataset, orders.out)
    names = [name for name in orders.configurations if name in plans.configurations]
    task = Message("preprocess", {"plans": plans.to_json(), "configurations": names}, {})
    cases = _ask_all(ask, orders, task, partial(read_case_counts, configurations=names))
    write_json(orders.out / "preprocessed.json", cases)


def train_remotely(orders: TrainingJob, ask: Ask, pause: Callable[[], bool]) -> bool:
    """Train with the sites that are connected; a run that was begun is resumed.

    Other rounds, local steps, learning rate or sites than a run had hold from its next round on. A
    site that is to join one and is not connected joins in a later job.

    Args:
        orders: What to train. A new run needs all of its sites but those that refuse, and a masked
            one these, too; a resumed one needs fewer, and those that it had and that are not named
            leave it.
        ask: Sends tasks to the sites and returns their answers.
        pause: Asked before every round whether to stop, as when a site has come back.

    Returns:
        Whether the run is finished.

    Raises:
        MixmflError: A site could not join a new run, or too few are left.
    """
    plans = Plans.load(orders.work / "plans.json")
    resumed = holds_run(orders.out)
    joined = _join(orders, ask, plans, open_run(orders.out).known if resumed else None)
    initial = None
    if orders.init is not None and not resumed:
        modalities = Modalities().with_aliases(orders.aliases)
        initial = start_from(orders.init, plans, orders.settings, modalities)
    asked = Run(
        *(orders.out, plans, orders.settings, orders.fold, joined.known),
        stop_when_flat=orders.stop_when_flat,
    )
    run, state, _ = begin(asked, Beginning(resumed, change=True, initial=initial))

    def ask_those_here(tasks: Mapping[str, Message]) -> Answers:
        answers = ask({site: each for site, each in tasks.items() if site in joined.here})
        away = {s: joined.away.get(s, NOT_CONNECTED) for s in tasks if s not in joined.here}
        return Answers(answers.came, {**answers.absent, **away})

    done = train_rounds(
        *(run, state, ask_those_here, {}),
        pause=pause,
        quorum=orders.quorum,
        every_subset=orders.every_subset,
    )
    if not done:
        return False
    model = finish(run, ask_those_here, orders.beside)
    if orders.personalize:
        _personalize(run, ask_those_here)
    size = model.stat().st_size
    content = torch.from_file(str(model), shared=False, size=size, dtype=torch.uint8)
    ask_those_here(dict.fromkeys(joined.known, Message("model", {}, {"file": content})))
    return True


@dataclass(frozen=True)
class _Joined:
    """Who takes part in a run.

    Attributes:
        known: Registrations of the run's sites, of those that are away, too.
        here: The sites that are asked.
        away: Why the others are not, as far as they said.
    """

    known: dict[str, Registration]
    here: Collection[str]
    away: Mapping[str, str]


def _join(
    orders: TrainingJob, ask: Ask, plans: Plans, before: Mapping[str, Registration] | None
) -> _Joined:
    """Ask all sites to join.

    Args:
        orders: What to train.
        ask: Sends tasks to the sites and returns their answers.
        plans: Plans of the run.
        before: Registrations of all sites that the run has had; None: it is new.

    Raises:
        MixmflError: A site could not join a new run, or too few are left.
    """
    record = {
        "version": __version__,
        "run": orders.name,
        "plans": plans.to_json(),
        "settings": dataclasses.asdict(orders.settings),
        "fold": orders.fold,
    }
    # the engine knows who of them all is away
    answers = ask(dict.fromkeys(orders.sites, Message("join", record, {})))
    registered, failed = read_registrations(answers, plans, orders.work)
    absent = {**answers.absent, **failed}
    if before is None:
        # sites of a sum are the same for ever: none is left out of it because it refuses today
        fewest = len(orders.sites) if orders.settings.masked else orders.quorum
        _need("join", orders, absent, fewest)
        before = {}
    else:
        _note_refusals("join", orders, absent)
    # whoever comes back with other cases than it registered is another site to this run
    here = {site for site in registered if before.get(site, registered[site]) == registered[site]}
    if not here:
        raise QuorumError(
            f"run {orders.out}: none of {', '.join(orders.sites)} joined with the cases that it "
            "registered; see the sites' logs"
        )
    known = {
        site: before.get(site) or registered[site]
        for site in sorted(orders.sites)
        if site in before or site in here
    }
    changed = dict.fromkeys(
        set(registered) - here, "did not join with the cases that it registered"
    )
    return _Joined(known, here, {**absent, **changed})


def _fingerprint_file(work: Path, site: str) -> Path:
    return work / NETWORK / "fingerprints" / f"{site}.json"


def read_statistics(site: str, reply: Message) -> tuple[Fingerprint | None, Labels]:
    """Return a site's statistics for planning; no fingerprint where it has too few cases."""
    record, source = read_reply(FingerprintReply, site, reply, PlansError), f"site {site}"
    labels = Labels.from_dataset_json(record.labels, source)
    if record.fingerprint is None:
        return None, labels
    return Fingerprint.from_json(record.fingerprint, source), labels


def read_case_counts(
    site: str, reply: Message, configurations: Sequence[str]
) -> dict[str, tuple[int, int]]:
    """Return by configuration how many cases a site preprocessed, and how many it refused."""
    cases = read_reply(PreprocessReply, site, reply).cases
    fields(cases, configurations, f"site {site!r}: cases", error=AggregationError)
    return dict(cases)


def read_registration(site: str, reply: Message) -> Registration:
    """Return what a site registers with; ``check_registration`` judges it."""
    return read_reply(JoinReply, site, reply).registration


def read_registrations(
    answers: Answers, plans: Plans, work: Path
) -> tuple[dict[str, Registration], dict[str, str]]:
    """Return the sites' registrations, and why others are not taken."""
    registered, failed = {}, {}
    for site, answer in answers.came.items():
        file = _fingerprint_file(work, site)
        try:
            check_answer(site, "join", answer.message)
            registration = read_registration(site, answer.message)
            known = Fingerprint.from_json(read_json(file), str(file)) if file.is_file() else None
            check_registration(site, registration, plans, known)
        except AggregationError as error:
            failed[site] = f"its registration is not taken: {error}"
        else:
            registered[site] = registration
    return registered, failed


def _personalize(run: Run, ask: Ask) -> None:
    state = load_state_of(run, choose_round(run, "best"))
    tasks = {
        site: personalization_task(state, site, run.known)
        for site in run.registrations
        if site not in run.personal
    }
    for site, answer in ask(tasks).came.items():
        try:
            result = read_personal(site, answer.message)
        except AggregationError as error:
            log.warning("%s: the Dice of its personalised model is left out: %s", site, error)
            continue
        if result is not None:
            record_personal(run, site, result)


def _ask_all(
    ask: Ask, orders: PlanningJob, task: Message, read: Callable[[str, Message], Read]
) -> dict[str, Read]:
    """Ask sites that must all answer or refuse, and return what is read from their answers.

    Raises:
        DataError: Some did neither, or what they sent cannot be true; it says which and why.
    """
    answers = ask(dict.fromkeys(orders.sites, task))
    done, absent = {}, dict(answers.absent)
    for site, answer in answers.came.items():
        try:
            check_answer(site, task.kind, answer.message)
            done[site] = read(site, answer.message)
        except MixmflError as error:
            absent[site] = f"what it sent is not taken: {error}"
    _need(task.kind, orders, absent)
    return done


def _need(kind: str, orders: Orders, absent: Mapping[str, str], fewest: int = 1) -> None:
    """Check that sites did a task, but for those that refuse where enough others are left.

    Raises:
        DataError: A site could not do it, or too few did; it says which and why.
    """
    if not absent:
        return
    refused = _note_refusals(kind, orders, absent)
    if absent.keys() == refused.keys() and len(orders.sites) - len(refused) >= fewest:
        return
    reasons = "\n".join(f"  {site}: {why}" for site, why in sorted(absent.items()))
    raise DataError(
        f"{kind}: no usable answer came from these sites:\n{reasons}\nThe details are in "
        "problems.log at the site. Fix it, or continue without the site (--sites)"
    )


def refusals_file(orders: Path) -> Path:
    """Return the file in which a job of these orders says which sites refuse, and why."""
    return orders.with_name("refusals.json")


def read_refusals(orders: Path) -> list[str]:
    """Return a line for each site that refuses a task of a job of these orders.

    Raises:
        DataError: The file is damaged.
    """
    refusals = _refusals(refusals_file(orders))
    return [
        f"{site}: {kind}: {why}" for kind, sites in refusals.items() for site, why in sites.items()
    ]


def _refusals(file: Path) -> Mapping[str, Mapping[str, str]]:
    """Return why sites refuse, by kind of task and site; the file need not exist."""
    if not file.is_file():
        return {}
    refusals: Mapping[str, Mapping[str, str]] = read_value(
        _Refusals, read_long_json(file), str(file), DataError
    )
    return refusals


def _note_refusals(kind: str, orders: Orders, absent: Mapping[str, str]) -> dict[str, str]:
    """Return the sites that refuse, with their reasons, and write them for the command."""
    refused = {site: why for site, why in sorted(absent.items()) if why.startswith(REFUSES)}
    if refused:
        file = refusals_file(job_file(orders.out))
        write_json(file, {**_refusals(file), kind: refused})
    return refused
