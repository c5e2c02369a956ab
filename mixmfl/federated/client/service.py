"""A site's service on a network: it answers the server's tasks and logs what leaves the site.

It takes and returns stored messages and imports no transport. A message cannot name code, files or
folders of the site.
"""

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from mixmfl.core import devices
from mixmfl.core.declarations import LONGEST_PATH, entries, text, within
from mixmfl.core.errors import (
    AggregationError,
    DataError,
    MixmflError,
    ModelError,
    PlansError,
    PrivacyError,
)
from mixmfl.core.files import clear_unfinished, locked, read_json, replacing, write_json
from mixmfl.core.records import read_record
from mixmfl.core.text import one_line, quoted
from mixmfl.core.version import __version__
from mixmfl.core.worker_pool import Workers
from mixmfl.data.labels import Labels
from mixmfl.data.load_case import AlignmentOptions
from mixmfl.data.modalities import Modalities
from mixmfl.data.unknown_modalities import check_most_are_known
from mixmfl.federated.client.approval import Approval, Job
from mixmfl.federated.client.audit_log import AuditLog
from mixmfl.federated.client.client import Client
from mixmfl.federated.client.jobs import planning_job, preprocessing_job, training_job
from mixmfl.federated.client.limits import Limits, check_joined
from mixmfl.federated.client.outbound import (
    OutboundField,
    outbound_fields,
    outgoing,
    outgoing_fingerprint,
)
from mixmfl.federated.client.outbound_preview import preview_outbound
from mixmfl.federated.client.secure_aggregation import Signer, run_and_terms
from mixmfl.federated.client.summed_sites import SummedSites
from mixmfl.federated.client.task_checks import (
    Forms,
    check_memory,
    check_run_task,
    check_task,
    forms_of,
)
from mixmfl.federated.client.training import outgoing_registration
from mixmfl.federated.exchange_log import describe_exchange, note
from mixmfl.federated.messages import FAILED, Message, StoredMessage
from mixmfl.federated.secure_aggregation.identities import KeyFiles, load_identity
from mixmfl.federated.secure_aggregation.protocol import KINDS as MASKED_KINDS
from mixmfl.federated.secure_aggregation.protocol import TRAINING
from mixmfl.federated.secure_aggregation.signatures import SiteName
from mixmfl.federated.sites import open_sites, patients_of
from mixmfl.federated.state import (
    ALIVE,
    MEASURE,
    NETWORK_MINIMUM,
    Minimum,
    RunSettings,
    Site,
    register,
)
from mixmfl.federated.tensor_files import load_tensors, save_tensors
from mixmfl.inference.model_file import apply_personal_weights, load_model
from mixmfl.networks.prototypes import State
from mixmfl.planning.brains import BrainExtraction
from mixmfl.planning.federation_plans import site_folder
from mixmfl.planning.fingerprint import Fingerprint, PatientCounts
from mixmfl.planning.plans import Plans
from mixmfl.planning.preprocess import preprocess_site
from mixmfl.planning.site_fingerprint import fingerprint_site, read_patient_counts
from mixmfl.planning.site_folders import SiteFolder, find_site
from mixmfl.training.privacy_budget import Privacy

_TASK_SECONDS = 60.0
"""Seconds for which an ended job may still be at its last task when the next one begins."""


_MOST_PROCESSES, _MOST_ALIASES = 1024, 1000


@dataclass(frozen=True)
class SiteConfig:
    """The settings of one site. They do not leave it.

    Attributes:
        name: Name of the site, as in its kit.
        data: Folder of the cases.
        work: Folder for preprocessed cases, optimizer states, logs and the finished model.
        device: Device to compute on, in the form of ``--device``.
        workers: Number of processes that prepare batches.
        processes: Number of processes that preprocess.
        aliases: Additional words for modalities, in the form of ``--alias``.
        labels: dataset.json that defines the labels; None: the one in or beside ``data``.
        alignment: What to do with images of a case that are on different grids.
        minimum: Cases and voxels that a statistic must rest on; the policy and the server may ask
            for more.
        privacy: Differential privacy of the cases; None: no noise is added.
        limits: What a coordinator may have done here; the policy may allow less.
        turns: File shared by the sites of one machine, of which one works at a time, so that
            memory suffices for one; None: this site does not wait for others.
        brains: How brains are extracted here, if they are.
        keys: What masked runs are signed with; None: this site takes part in none.
        approval: Who approves of jobs.
        server: Address of the coordinator, for the record of what left.
        syslog: Where that record is sent, too; see ``AuditLog``.
    """

    name: SiteName
    data: Path
    work: Path
    device: Annotated[str, text(40)] = "cpu"
    workers: Annotated[int, within(0, _MOST_PROCESSES)] = 0
    processes: Annotated[int, within(1, _MOST_PROCESSES)] = 1
    aliases: Annotated[
        tuple[Annotated[str, text(LONGEST_PATH)], ...], entries(0, _MOST_ALIASES)
    ] = ()
    labels: Path | None = None
    alignment: AlignmentOptions = field(default_factory=AlignmentOptions)
    minimum: Minimum = NETWORK_MINIMUM
    privacy: Privacy | None = None
    turns: Path | None = None
    limits: Limits = field(default_factory=Limits)
    brains: BrainExtraction = field(default_factory=BrainExtraction)
    keys: KeyFiles | None = None
    approval: Approval = field(default_factory=Approval)
    server: Annotated[str, text(300)] = "the coordinator"
    syslog: Annotated[str, text(300)] | None = None

    @property
    def exchange_log(self) -> Path:
        """The log of received and sent messages; it names no case."""
        return self.work / "exchange.log"

    @property
    def problem_log(self) -> Path:
        """The log of failures with their reasons, and of images that were resampled.

        It names cases and files.
        """
        return self.work / "problems.log"

    @property
    def audit_log(self) -> AuditLog:
        """The record of all that left; it names no case."""
        return AuditLog(self.work / "audit.jsonl", self.syslog)

    @property
    def jobs(self) -> Path:
        """The folder of the jobs that the coordinator asked for, and who approved of them."""
        return self.work / "jobs"

    @property
    def health_file(self) -> Path:
        """The empty file that is touched while the command and its client run."""
        return self.work / ALIVE

    @property
    def used_file(self) -> Path:
        """The count of rounds, queries and bytes, over all runs; see ``Limits``."""
        return self.work / "used.json"

    @property
    def summed_file(self) -> Path:
        """The record of the sites that masked numbers of this one were summed with."""
        return self.work / "summed_sites.json"

    def check(self) -> None:
        """Check settings that were just made as they are checked when they are read.

        Raises:
            DataError: One is beyond its bounds.
        """
        read_record(SiteConfig, self._content(), "the settings of this site", DataError, whole=True)

    def save(self, path: Path) -> None:
        """Write the settings as JSON, for the process that answers tasks."""
        write_json(path, self._content())

    def _content(self) -> dict[str, Any]:
        return json.loads(json.dumps(dataclasses.asdict(self), default=str))

    @classmethod
    def load(cls, path: Path) -> "SiteConfig":
        """Read what ``save`` wrote.

        Raises:
            DataError: The file is damaged, or another version wrote it.
        """
        content = read_json(path)
        try:
            return read_record(cls, content, str(path), DataError, whole=True)
        except DataError as error:
            raise DataError(f"{error}; start mixmfl_site again") from None

    def within_policy(self) -> "SiteConfig":
        """Return these settings with the limits and the minimum that hold under the policy now.

        Raises:
            PrivacyError: The policy cannot be read.
        """
        limits, minimum = self.approval.within(self.limits, self.minimum)
        return dataclasses.replace(self, limits=limits, minimum=minimum)

    def cases(self) -> SiteFolder:
        """Find the site's cases.

        Raises:
            DataError: There is no usable case, no dataset.json defines the labels, or most images
                are of no known modality.
        """
        modalities = Modalities().with_aliases(self.aliases)
        site = find_site(self.data, modalities, self.labels, self.alignment)
        check_most_are_known([site.found], modalities)
        return dataclasses.replace(site, name=self.name, brains=self.brains)

    def fingerprint(self) -> tuple[Fingerprint, Labels, PatientCounts]:
        """Return the statistics of the cases, before anything is withheld.

        Returns:
            The fingerprint, the labels, and of how many patients the cases are.
        """
        site = self.cases()
        with Workers(self.processes) as workers:
            fingerprint, _ = fingerprint_site(site, self.folder, workers)
        return fingerprint, site.labels, read_patient_counts(self.folder)

    def open(self, plans: Plans, configuration: str, fold: str, seed: int) -> Site:
        """Open the preprocessed cases.

        Raises:
            DataError: There are none, or they were preprocessed with other plans.
        """
        (site,) = open_sites(self.work, plans, configuration, fold, seed, [self.name])
        device = devices.find_device(self.device)
        return self.with_floors(dataclasses.replace(site, device=device, workers=self.workers))

    def with_floors(self, site: Site) -> Site:
        """Return a site with the privacy and the floors of these settings."""
        return dataclasses.replace(
            site,
            minimum=self.minimum,
            privacy=self.privacy,
            validation_cases=self.limits.validation_cases,
            training_cases=self.limits.training_cases,
        )

    @contextmanager
    def working(self) -> Iterator[None]:
        """Hold the locks of a task: no other process writes to ``work``; it is this site's turn.

        Raises:
            DataError: Another job has held the lock for ``_TASK_SECONDS``.
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
        """The folder of the preprocessed cases."""
        return site_folder(self.work, self.name)


@dataclass(frozen=True)
class _Joined:
    """The run that the site takes part in."""

    run: str
    client: Client
    forms: Forms
    job: Job


class ClientService:
    """Answers the server's tasks, one after another."""

    def __init__(self, config: SiteConfig) -> None:
        """Args: config: the site's settings, as they are without a policy."""
        self._settings = self._config = config  # the latter as they are for the task at hand
        self._joined: _Joined | None = None
        # the first task of a job: the hospital approves, and what is then to be done is returned
        self._jobs: dict[str, Callable[[Message], Callable[[], Message]]] = {
            "fingerprint": self._approve_planning,
            "preprocess": self._approve_preprocessing,
            "join": self._approve_run,
        }
        self._handlers: dict[str, Callable[[Message], Message]] = {
            **dict.fromkeys(("train", *MASKED_KINDS), self._train),
            **dict.fromkeys(("validate", MEASURE), self._answer),
            "personalize": self._personalize,
            "model": self._keep_model,
        }

    def answer(self, parcel: StoredMessage) -> StoredMessage:
        """Do a task and return the reply.

        The reason of a failure is written to the log only, because it may name files or cases.

        Args:
            parcel: The task.

        Returns:
            The reply: of the task's kind, or of kind ``FAILED``, which carries no reason.
        """
        kind = "unreadable"
        try:
            self._config = self._settings.within_policy()
            task = parcel.open()
            kind = task.kind
            note(self._config.exchange_log, describe_exchange("came from coordinator", parcel))
            if kind not in (known := [*self._jobs, *self._handlers]):
                raise AggregationError(
                    f"the coordinator sent a task {quoted(kind)}; this version of mixmfl knows "
                    f"{', '.join(known)}"
                )
            if "version" in task.record:
                _check_version(task.record["version"])
            check_task(task)
            # approved of before the site's turn, as a person may take long
            work = (
                self._jobs[kind](task)
                if kind in self._jobs
                else partial(self._handlers[kind], task)
            )
            with self._config.working():
                reply = StoredMessage.pack(work(), self._config.work)
                self._config.limits.use_bytes(reply.size, self._config.used_file)
                return reply
        except Exception as error:  # the transport must neither see nor log a reason
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            note(self._config.problem_log, f"{one_line(kind)} failed: {reason}")
            record = {"error": type(error).__name__, "version": __version__}
            return StoredMessage.pack(outgoing(FAILED, record), self._config.work)

    def note_reply(self, reply: StoredMessage, *, taken: bool) -> None:
        """Log that a reply begins to leave the site, or that the server did not fetch it.

        Raises:
            PrivacyError: It cannot be recorded that it leaves, and so it must not.
        """
        if taken:
            message = reply.open(reply.size)
            try:
                self._config.audit_log.add(
                    "sent",
                    to=self._config.server,
                    run=self._joined.run if self._joined else "",
                    kind=message.kind,
                    round=message.record.get("round"),
                    bytes=reply.size,
                    sha256=reply.sha256,
                )
            except PrivacyError as error:
                note(self._config.problem_log, f"{message.kind} is not sent: {error}")
                raise
        what = "sent to coordinator" if taken else "not sent, the coordinator did not take it"
        note(self._config.exchange_log, describe_exchange(what, reply))

    def _approve(self, kind: str, job: Job) -> None:
        """Count a job of a kind of task, have the hospital approve of it, and record that it did.

        Raises:
            PrivacyError: It is beyond the site's limits, or not approved.
        """
        config = self._config
        with config.working():  # refused jobs count, too: each leaves a record
            config.limits.use(kind, config.used_file)
        by = config.approval.decide(job, config.jobs)
        config.audit_log.add("approved", by=by, job=job.digest, facts=job.facts)
        facts = "; ".join(f"{name}: {fact}" for name, fact in job.facts.items())
        note(config.exchange_log, f"approved by {by}: {facts}")

    def _approve_planning(self, task: Message) -> Callable[[], Message]:
        minimum = self._config.minimum.agreed(Minimum(*task.record["minimum"]))
        self._approve(task.kind, planning_job(task.record, minimum))
        return partial(self._fingerprint, minimum)

    def _fingerprint(self, minimum: Minimum) -> Message:
        fingerprint, labels, patients = self._config.fingerprint()
        return outgoing_fingerprint(fingerprint, labels, minimum, patients)

    def _approve_preprocessing(self, task: Message) -> Callable[[], Message]:
        plans = _read_plans(task)
        self._approve(task.kind, preprocessing_job(task.record, plans))
        return partial(self._preprocess, task, plans)

    def _approve_run(self, task: Message) -> Callable[[], Message]:
        config, asked = self._config, task.record["settings"]
        settings = read_record(RunSettings, asked, "the coordinator's join", AggregationError)
        plans = _read_plans(task)
        config.limits.check_run(settings)
        plans.configuration(settings.configuration)
        check_memory(plans, settings.configuration, devices.find_device(config.device))
        used = config.limits.describe_used(config.used_file)
        job = training_job(task.record, plans, settings, config.minimum, config.privacy, used)
        self._approve(task.kind, job)
        return partial(self._join, task.record, plans, settings, job)

    def _preprocess(self, task: Message, plans: Plans) -> Message:
        counts = {}
        for name in task.record["configurations"]:
            plans.configuration(name)
        site = self._config.cases()
        plans.save(self._config.work / "plans.json")
        with Workers(self._config.processes) as workers:
            for name in task.record["configurations"]:
                result = preprocess_site(site, plans, name, self._config.folder, workers)
                remarks = {item.name: item.reason for item in result.refused}
                remarks |= {case: "; ".join(notes) for case, notes in result.notes.items()}
                for case, remark in sorted(remarks.items()):
                    note(self._config.problem_log, f"{name}: case {case}: {remark}")
                counts[name] = [len(result.done) + len(result.kept), len(result.refused)]
        return outgoing(task.kind, {"cases": counts})

    def _join(
        self, record: Mapping[str, Any], plans: Plans, settings: RunSettings, job: Job
    ) -> Message:
        forms = forms_of(plans, settings)
        site = self._config.open(plans, settings.configuration, record["fold"], settings.seed)
        self._check_limits(site, settings)
        signer = self._signer(run_and_terms(record)) if settings.masked else None
        client = Client(site, plans, settings, signer)
        file = self._config.work / "runs" / record["run"] / "joined.json"
        if changed := check_joined(record, file):
            line = f"the coordinator changed run {record['run']}: {changed}"
            note(self._config.exchange_log, line)
        if patients_of(site.validation) < site.validation_cases:
            line = f"few validation cases: {self._config.limits.describe_floors()}"
            note(self._config.exchange_log, line)
        self._joined = _Joined(record["run"], client, forms, job)
        clear_unfinished(self._run_folder, below=True)
        return outgoing_registration(register(site))

    def _signer(self, run: str) -> Signer | None:
        if self._config.keys is None:
            return None
        identity = load_identity(self._config.name, self._config.keys)
        return Signer(identity, run, SummedSites(self._config.summed_file))

    def _train(self, task: Message) -> Message:
        client, number = self._client_for(task), int(task.record["round"])
        before = self._optimizer_before(number) if task.kind in TRAINING else {}
        handled = client.handle(task, before)
        if not handled.optimizer:  # in a masked round the key is sent first
            return handled.reply
        save_tensors(self._optimizer_file(number), handled.optimizer)
        self._personal_file.unlink(missing_ok=True)  # it was made from fewer rounds
        stored = self._stored_rounds()
        repeated = [other for other in stored if other > number]  # these rounds are done again
        # earlier ones are needed where the server goes back a round, or two
        for other in repeated + [other for other in stored if other <= number][:-3]:
            self._optimizer_file(other).unlink()
        return handled.reply

    def _answer(self, task: Message) -> Message:
        return self._client_for(task).handle(task, {}).reply

    def _personalize(self, task: Message) -> Message:
        handled = self._client_for(task).handle(task, {})
        if handled.personal:
            save_tensors(self._personal_file, handled.personal)
        return handled.reply

    def _keep_model(self, task: Message) -> Message:
        """Store the finished global model, and the personalised one if the site has it."""
        model, client = self._run_folder / "model.safetensors", self._run().client
        with replacing(model) as temporary:
            temporary.write_bytes(task.tensors["file"].numpy().data)
            sent = load_model(temporary)
            if (sent.plans, sent.configuration) != (client.plans, client.settings.configuration):
                raise ModelError(
                    "the coordinator sent a model of other plans than those of the run"
                )
        own = self._run_folder / "own_model.safetensors"
        own.unlink(missing_ok=True)  # of a run that was shorter
        if self._personal_file.is_file():
            apply_personal_weights(model, load_tensors(self._personal_file), own)
        return outgoing(task.kind, {})

    def _client_for(self, task: Message) -> Client:
        """Check a task against the joined run, and return the client of that run."""
        joined = self._run()
        client = joined.client
        check_run_task(task, client.plans, client.settings, client.site, joined.forms)
        client.site = self._config.with_floors(client.site)  # the policy may have changed
        self._check_limits(client.site, client.settings)
        self._config.approval.check_still(joined.job, self._config.jobs)
        self._config.limits.use(task.kind, self._config.used_file)
        return client

    def _check_limits(self, site: Site, settings: RunSettings) -> None:
        self._config.limits.check_run(settings)
        if not settings.masked and site.privacy is None:
            self._config.limits.check_cases(site.training)

    def _run(self) -> _Joined:
        if self._joined is None:
            raise AggregationError(
                "the coordinator sent a task of a run before this site had joined it"
            )
        return self._joined

    @property
    def _run_folder(self) -> Path:
        return self._config.work / "runs" / self._run().run

    @property
    def _personal_file(self) -> Path:
        return self._run_folder / "own.safetensors"

    def _optimizer_file(self, number: int) -> Path:
        return self._run_folder / "optimizer" / f"{number:05d}.safetensors"

    def _stored_rounds(self) -> list[int]:
        """Return the rounds after which an optimizer state is stored, in order."""
        files = (self._run_folder / "optimizer").glob("*.safetensors")
        return sorted(int(file.stem) for file in files if file.stem.isdecimal())

    def _optimizer_before(self, number: int) -> State:
        """Return the optimizer state at the start of a round, or an empty one.

        It is the state after the last earlier round that was trained here. A round that the server
        asks for again, because it lost the reply, therefore starts from the same state.

        Raises:
            PrivacyError: The run is masked and the state is damaged: masks only cancel between
                sites that know the same rounds.
        """
        for earlier in reversed([n for n in self._stored_rounds() if n < number]):
            try:
                return load_tensors(self._optimizer_file(earlier))
            except MixmflError as error:
                if self._run().client.settings.masked:
                    raise PrivacyError(
                        f"{error}, and without it this site's masks do not cancel. Restore the "
                        "file from a copy, or have the coordinator start a new run"
                    ) from None
                note(
                    self._config.problem_log,
                    f"the optimizer state of round {earlier + 1} is left out: {error}",
                )
        if number:
            note(
                self._config.problem_log,
                f"round {number + 1} starts without the optimizer state of an earlier one",
            )
        return {}


def preview_of_site(config: SiteConfig) -> tuple[list[OutboundField], str]:
    """Return all that would leave a site, before anything does.

    Returns:
        The fields that are known now, and a line on what is not known yet.
    """
    config = config.within_policy()
    fingerprint, labels, patients = config.fingerprint()
    planning = outbound_fields(outgoing_fingerprint(fingerprint, labels, config.minimum, patients))
    file = config.work / "plans.json"
    if not file.is_file():
        return planning, (
            "What leaves in a round depends on the plans, which have not arrived yet. Run this "
            "again after mixmfl_plan_preprocess --kit has been run at the coordinator.\n"
        )
    plans = Plans.load(file)
    done = [name for name in plans.configurations if (config.folder / name).is_dir()]
    if not done:
        return planning, "What leaves in a round is known once the cases are preprocessed.\n"
    (configuration, *_) = done
    site = config.open(plans, configuration, "0", 0)
    settings = RunSettings(configuration, 0, 1, 1, 1.0)
    return preview_outbound(site, fingerprint, plans, settings, patients), (
        "The bytes of train are those of changes in half precision. The coordinator may ask for "
        "single precision, which is twice as many, or for masked numbers, four times as many.\n"
    )


def _read_plans(task: Message) -> Plans:
    return Plans.from_json(task.record.get("plans"), "the coordinator's plans")


def _check_version(version: Any) -> None:
    if version != __version__:
        raise PlansError(
            f"the coordinator runs mixmfl {one_line(version)}, this site {__version__}; "
            "install the same"
        )
