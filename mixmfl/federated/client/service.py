"""A hospital's side of a federation on a network: it answers tasks, and logs what leaves the house.

Engine-free: parcels in, parcels out. Whatever carries them cannot name code, files or folders here.
"""

import dataclasses
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mixmfl.core import devices
from mixmfl.core.errors import AggregationError, DataError, MixmflError, PlansError
from mixmfl.core.files import locked, read_json, replacing, write_json
from mixmfl.core.json_fields import Told
from mixmfl.core.text import one_line, quoted
from mixmfl.core.version import __version__
from mixmfl.core.worker_pool import Workers
from mixmfl.data.labels import Labels
from mixmfl.data.load_case import AlignmentOptions
from mixmfl.data.modalities import Modalities
from mixmfl.federated.client.client import Client
from mixmfl.federated.client.outbound import (
    OutboundField,
    outbound_fields,
    outgoing,
    outgoing_fingerprint,
)
from mixmfl.federated.client.outbound_preview import preview_outbound
from mixmfl.federated.client.task_checks import (
    Forms,
    check_run_task,
    check_task,
    forms_of,
    read_run_name,
)
from mixmfl.federated.client.training import outgoing_registration
from mixmfl.federated.exchange_log import describe_exchange, note
from mixmfl.federated.messages import FAILED, Message, StoredMessage
from mixmfl.federated.secure_aggregation.protocol import KINDS as MASKED_KINDS
from mixmfl.federated.secure_aggregation.protocol import TRAINING
from mixmfl.federated.sites import open_sites
from mixmfl.federated.state import (
    MEASURE,
    NETWORK_MINIMUM,
    Minimum,
    RunSettings,
    Site,
    read_minimum,
    read_run_settings,
    register,
)
from mixmfl.federated.tensor_files import load_tensors, save_tensors
from mixmfl.inference.model import apply_personal_weights
from mixmfl.networks.prototypes import State
from mixmfl.planning.fingerprint import Fingerprint
from mixmfl.planning.plans import Plans
from mixmfl.planning.preprocess import SiteFolder, find_site, fingerprint_site, preprocess_site
from mixmfl.training.privacy_budget import Privacy

_TASK_SECONDS = 60.0
"""So long a job that was ended may still be at its last task when the next one begins."""


@dataclass(frozen=True)
class SiteConfig:
    """What was set at this hospital. Nothing of it leaves.

    Attributes:
        name: Of the site, as in its kit.
        data: Folder of its cases.
        work: Where preprocessed cases, moments, logs and the finished model come.
        device: Where to compute, as ``--device`` takes it.
        workers: Processes that prepare batches.
        processes: That preprocess.
        aliases: Words for modalities, as ``--alias`` takes them.
        labels: dataset.json that says what the labels mean; None: the one in or beside ``data``.
        placing: What to do with images of a case that are on different grids.
        minimum: That must be behind a statistic; the coordinator may ask for more.
        privacy: What is demanded for its cases; None: no noise is added.
        turns: A file that hospitals of one machine share: of these one works at a time, so that
            their memory need not hold the work of all; None: this one does not wait for others.
    """

    name: str
    data: Path
    work: Path
    device: str = "cpu"
    workers: int = 0
    processes: int = 1
    aliases: tuple[str, ...] = ()
    labels: Path | None = None
    placing: AlignmentOptions = field(default_factory=AlignmentOptions)
    minimum: Minimum = NETWORK_MINIMUM
    privacy: Privacy | None = None
    turns: Path | None = None

    @property
    def exchange_log(self) -> Path:
        """Return the log of what came and went; it names no case."""
        return self.work / "exchange.log"

    @property
    def problem_log(self) -> Path:
        """Return the log of what failed here and why, and of images that were resampled.

        It names cases and files.
        """
        return self.work / "problems.log"

    def save(self, path: Path) -> None:
        """Write the settings as JSON, for the process that answers tasks."""
        write_json(path, json.loads(json.dumps(dataclasses.asdict(self), default=str)))

    @classmethod
    def load(cls, path: Path) -> "SiteConfig":
        """Read what ``save`` wrote.

        Raises:
            DataError: It is damaged, or written by another version.
        """
        told = read_json(path)
        try:
            if (privacy := told["privacy"]) is not None:
                privacy = Privacy(**{**privacy, "ledger": Path(privacy["ledger"])})
            return cls(
                **{
                    **told,
                    "data": Path(told["data"]),
                    "work": Path(told["work"]),
                    "aliases": tuple(told["aliases"]),
                    "labels": Path(told["labels"]) if told["labels"] else None,
                    "turns": Path(told["turns"]) if told["turns"] else None,
                    "placing": AlignmentOptions(**told["placing"]),
                    "minimum": Minimum(**told["minimum"]),
                    "privacy": privacy,
                }
            )
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path}: is damaged ({error}); start mixmfl_site again") from None

    def cases(self) -> SiteFolder:
        """Find the hospital's cases.

        Raises:
            DataError: There is no usable case, or nothing says what its labels mean.
        """
        modalities = Modalities().with_aliases(self.aliases)
        found = find_site(self.data, modalities, self.labels, self.placing)
        return dataclasses.replace(found, name=self.name)

    def fingerprint(self) -> tuple[Fingerprint, Labels]:
        """Return the statistics of the cases, before anything is withheld, and their labels."""
        site = self.cases()
        with Workers(self.processes) as workers:
            found, _ = fingerprint_site(site, self.folder, workers)
        return found, site.labels

    def open(self, plans: Plans, configuration: str, fold: str, seed: int) -> Site:
        """Open the preprocessed cases.

        Raises:
            DataError: There is none, or they were preprocessed by other plans.
        """
        device = devices.find_device(self.device)
        (site,) = open_sites(
            self.work, plans, configuration, fold, seed, device, self.workers, [self.name]
        )
        return dataclasses.replace(site, minimum=self.minimum, privacy=self.privacy)

    @contextmanager
    def working(self) -> Iterator[None]:
        """Do a task alone: no other process writes to ``work``, and it is this hospital's turn.

        Raises:
            DataError: Another job has been at work here for a minute.
        """
        taken = DataError(
            f"{self.work}: another job has been at work here for {_TASK_SECONDS:g} s, and one is "
            "let in at a time; end it, or give each mixmfl_site a folder of its own by -o"
        )
        with ExitStack() as stack:
            stack.enter_context(locked(self.work / "lock", _TASK_SECONDS, taken))
            if self.turns is not None:
                stack.enter_context(locked(self.turns, -1, taken))
            yield

    @property
    def folder(self) -> Path:
        """Return where the preprocessed cases come."""
        return self.work / "sites" / self.name


@dataclass(frozen=True)
class _Joined:
    """The run that the hospital takes part in."""

    run: str
    client: Client
    forms: Forms


class ClientService:
    """Answers the coordinator's tasks, one after another."""

    def __init__(self, house: SiteConfig) -> None:
        """Args: the hospital's settings."""
        self._house = house
        self._joined: _Joined | None = None
        self._does: dict[str, Callable[[Message], Message]] = {
            "fingerprint": self._fingerprint,
            "preprocess": self._preprocess,
            "join": self._join,
            **dict.fromkeys(("train", *MASKED_KINDS), self._train),
            **dict.fromkeys(("validate", MEASURE), self._answer),
            "personalize": self._personalize,
            "model": self._keep_model,
        }

    def answer(self, parcel: StoredMessage) -> StoredMessage:
        """Do a task and return the reply; what fails is told in the log, and only that it did.

        Args:
            parcel: The task.

        Returns:
            The reply: of the task's kind, or of kind ``FAILED``, which carries no reason, because
            a reason may name files or cases.
        """
        kind = "unreadable"
        try:
            task = parcel.open()
            kind = task.kind
            note(self._house.exchange_log, describe_exchange("came from coordinator", parcel))
            if kind not in self._does:
                raise AggregationError(
                    f"a task {quoted(kind)} came; this version of mixmfl knows "
                    f"{', '.join(self._does)}"
                )
            if "version" in task.record:
                _check_version(task.record["version"])
            check_task(task)
            with self._house.working():
                return StoredMessage.pack(self._does[kind](task), self._house.work)
        except Exception as error:  # whoever carries the reply must not see a reason, nor log it
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            note(self._house.problem_log, f"{one_line(kind)} failed: {reason}")
            told = {"error": type(error).__name__, "version": __version__}
            return StoredMessage.pack(outgoing(FAILED, told), self._house.work)

    def note_reply(self, reply: StoredMessage, *, taken: bool) -> None:
        """Tell in the log that a reply begins to leave the house, or that nobody took it."""
        what = "sent to coordinator" if taken else "not sent, the coordinator did not take it"
        note(self._house.exchange_log, describe_exchange(what, reply))

    def _fingerprint(self, task: Message) -> Message:
        asked = Minimum(*read_minimum(Told(task.record, "the coordinator", AggregationError)))
        return outgoing_fingerprint(*self._house.fingerprint(), self._house.minimum.agreed(asked))

    def _preprocess(self, task: Message) -> Message:
        plans, told = _read_plans(task), {}
        for name in task.record["configurations"]:
            plans.configuration(name)
        site = self._house.cases()
        plans.save(self._house.work / "plans.json")
        with Workers(self._house.processes) as workers:
            for name in task.record["configurations"]:
                came = preprocess_site(site, plans, name, self._house.folder, workers)
                told_of = {item.name: item.reason for item in came.refused}
                told_of |= {case: "; ".join(notes) for case, notes in came.notes.items()}
                for case, why in sorted(told_of.items()):
                    note(self._house.problem_log, f"{name}: case {case}: {why}")
                told[name] = [len(came.done) + len(came.kept), len(came.refused)]
        return outgoing(task.kind, {"cases": told})

    def _join(self, task: Message) -> Message:
        record = task.record
        plans = _read_plans(task)
        told = Told(record, "the coordinator's join", AggregationError)
        settings = read_run_settings(told.inside("settings", 20))
        plans.configuration(settings.configuration)
        forms = forms_of(plans, settings)
        site = self._house.open(plans, settings.configuration, record["fold"], settings.seed)
        client = Client(site, plans, settings)
        self._joined = _Joined(read_run_name(told, "run"), client, forms)
        return outgoing_registration(register(site))

    def _train(self, task: Message) -> Message:
        client, number = self._client_for(task), int(task.record["round"])
        before = self._moments_before(number) if task.kind in TRAINING else {}
        handled = client.handle(task, before)
        if not handled.optimizer:  # a step of a masked round in which nothing is trained
            return handled.reply
        save_tensors(self._moments_file(number), handled.optimizer)
        kept = self._moments_kept()
        lost = [other for other in kept if other > number]  # of rounds that are done again
        # those before serve where the coordinator goes back a round, or two
        for other in lost + [other for other in kept if other <= number][:-3]:
            self._moments_file(other).unlink()
        return handled.reply

    def _answer(self, task: Message) -> Message:
        return self._client_for(task).handle(task, {}).reply

    def _personalize(self, task: Message) -> Message:
        handled = self._client_for(task).handle(task, {})
        if handled.personal:
            save_tensors(self._own_file, handled.personal)
        return handled.reply

    def _keep_model(self, task: Message) -> Message:
        """Keep the finished model, and the site's own form of it, for the hospital to use."""
        model = self._run_folder / "model.safetensors"
        with replacing(model) as temporary:
            temporary.write_bytes(task.tensors["file"].numpy().data)
        if self._own_file.is_file():
            apply_personal_weights(
                model, load_tensors(self._own_file), self._run_folder / "own_model.safetensors"
            )
        return outgoing(task.kind, {})

    def _client_for(self, task: Message) -> Client:
        """Return the client of the run that a task belongs to, which it was checked against."""
        joined = self._run()
        client = joined.client
        check_run_task(task, client.plans, client.settings, client.site, joined.forms)
        return client

    def _run(self) -> _Joined:
        if self._joined is None:
            raise AggregationError("a task of a run came before the run was joined")
        return self._joined

    @property
    def _run_folder(self) -> Path:
        return self._house.work / "runs" / self._run().run

    @property
    def _own_file(self) -> Path:
        return self._run_folder / "own.safetensors"

    def _moments_file(self, number: int) -> Path:
        return self._run_folder / "moments" / f"{number:05d}.safetensors"

    def _moments_kept(self) -> list[int]:
        found = (self._run_folder / "moments").glob("*.safetensors")
        return sorted(int(file.stem) for file in found if file.stem.isdecimal())

    def _moments_before(self, number: int) -> State:
        """Return the optimiser's moments as a round must find them.

        These are of the last earlier round that was trained here: a round that is asked for again,
        because the coordinator lost it, starts from the same.
        """
        for earlier in reversed([n for n in self._moments_kept() if n < number]):
            try:
                return load_tensors(self._moments_file(earlier))
            except MixmflError as error:
                note(
                    self._house.problem_log, f"moments of round {earlier + 1} are left out: {error}"
                )
        if number:
            note(
                self._house.problem_log,
                f"round {number + 1} starts without moments of earlier ones",
            )
        return {}


def preview_of_site(house: SiteConfig) -> tuple[list[OutboundField], str]:
    """Return all that would leave a hospital, before anything does.

    Returns:
        What is known by now; and a line on what is not yet.
    """
    fingerprint, labels = house.fingerprint()
    planning = outbound_fields(outgoing_fingerprint(fingerprint, labels, house.minimum))
    file = house.work / "plans.json"
    if not file.is_file():
        return planning, (
            "What leaves in a round depends on the plan, which is not here yet. Run this again "
            "after mixmfl_plan_preprocess --kit has been run at the coordinator.\n"
        )
    plans = Plans.load(file)
    done = [name for name in plans.configurations if (house.folder / name).is_dir()]
    if not done:
        return planning, "What leaves in a round is known when the cases are preprocessed.\n"
    (configuration, *_) = done
    site = house.open(plans, configuration, "0", 0)
    settings = RunSettings(configuration, 0, 1, 1, 1.0)
    return preview_outbound(site, fingerprint, plans, settings), (
        "The bytes of train are those of changes in half precision. The coordinator may ask for "
        "single precision, which is twice as many, or for masked numbers, four times as many.\n"
    )


def _read_plans(task: Message) -> Plans:
    told = Told(task.record, f"the coordinator's task {task.kind!r}", PlansError)
    return Plans.from_json(told.inside("plans", 20).content, "the coordinator's plans")


def _check_version(theirs: Any) -> None:
    if theirs != __version__:
        raise PlansError(
            f"the coordinator runs mixmfl {one_line(theirs)}, this site {__version__}; install "
            "the same"
        )
