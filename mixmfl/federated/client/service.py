"""A site's service on a network: it answers the server's tasks and logs what leaves the site.

It takes and returns stored messages and imports no transport. A message cannot name code, files or
folders of the site.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

from mixmfl.core import devices
from mixmfl.core.errors import (
    AggregationError,
    ModelError,
    PlansError,
    PrivacyError,
    RefusalError,
)
from mixmfl.core.files import clear_unfinished, replacing
from mixmfl.core.records import read_record
from mixmfl.core.text import one_line, quoted
from mixmfl.core.version import __version__, works_with
from mixmfl.core.worker_pool import Workers
from mixmfl.federated.client.approval import Job
from mixmfl.federated.client.client import KINDS, Client
from mixmfl.federated.client.jobs import planning_job, preprocessing_job, training_job
from mixmfl.federated.client.limits import check_joined, run_begun
from mixmfl.federated.client.outbound import outgoing, outgoing_fingerprint
from mixmfl.federated.client.run_folder import RunFolder
from mixmfl.federated.client.secure_aggregation import Signer, run_and_terms
from mixmfl.federated.client.site_config import SiteConfig
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
from mixmfl.federated.secure_aggregation.identities import load_identity
from mixmfl.federated.secure_aggregation.protocol import TRAINING, check_stored_optimizer
from mixmfl.federated.sites import patients_of, rare_labels
from mixmfl.federated.state import Minimum, RunSettings, Site, register
from mixmfl.federated.tensor_files import load_tensors, save_tensors
from mixmfl.inference.model_file import apply_personal_weights, load_model
from mixmfl.planning.plans import Plans
from mixmfl.planning.preprocess import preprocess_site

_FAILED_IN_A_ROW, _PAUSE_SECONDS = 100, 10.0
"""After so many tasks in a row that could not be done, each answer waits: every one is in three
logs, and a coordinator that goes on asking would fill the disk."""


@dataclass(frozen=True)
class _Joined:
    """The run that the site takes part in."""

    folder: RunFolder
    client: Client
    forms: Forms
    job: Job


class ClientService:
    """Answers the server's tasks, one after another."""

    def __init__(self, config: SiteConfig) -> None:
        """Args: config: the site's settings, as they are without a policy."""
        self._settings = self._config = config  # the latter as they are for the task at hand
        self._joined: _Joined | None = None
        self._failed = 0  # in a row
        # the first task of a job: the hospital approves, and what is then to be done is returned
        self._jobs: dict[str, Callable[[Message], Callable[[], Message]]] = {
            "fingerprint": self._approve_planning,
            "preprocess": self._approve_preprocessing,
            "join": self._approve_run,
        }
        self._handlers: dict[str, Callable[[Message], Message]] = {
            **dict.fromkeys(KINDS, self._take_part),
            "model": self._keep_model,
        }

    def answer(self, stored: StoredMessage) -> StoredMessage:
        """Do a task and return the reply.

        The reason of a failure is written to the log only, because it may name files or cases. That
        of a refusal leaves, too, for it names none.

        Args:
            stored: The task.

        Returns:
            The reply: of the task's kind, or of kind ``FAILED``.
        """
        kind = "unreadable"
        try:
            self._config = self._settings.within_policy()
            task = stored.open()
            kind = task.kind
            line = describe_exchange("came from coordinator", stored, task)
            note(self._config.exchange_log, line)
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
            # which may have become stricter while a person was asked
            self._config = self._settings.within_policy()
            with self._config.working():
                # a model twice, or two states of an optimizer in twice the precision
                self._config.limits.check_room(self._config.work, 4 * stored.size)
                reply = StoredMessage.pack(work(), self._config.work)
                self._config.limits.use_bytes(reply.size, self._config.used_file)
                self._failed = 0
                return reply
        except Exception as error:  # the transport must neither see nor log a reason
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            self.note_failure(f"{one_line(kind)} failed: {reason}")
            record = {"error": type(error).__name__, "version": __version__}
            if isinstance(error, RefusalError):
                record["refused"] = error.reason
            return StoredMessage.pack(outgoing(FAILED, record), self._config.work)

    def note_failure(self, reason: str) -> None:
        """Log why a task could not be done, and wait where that happened too often in a row."""
        note(self._config.problem_log, reason)
        self._failed += 1
        if self._failed > _FAILED_IN_A_ROW:
            time.sleep(_PAUSE_SECONDS)

    def note_reply(self, reply: StoredMessage, *, taken: bool) -> None:
        """Log that a reply begins to leave the site, or that the server did not fetch it.

        Raises:
            PrivacyError: It cannot be recorded that it leaves, and so it must not.
        """
        message = reply.open(reply.size)
        if taken:
            try:
                self._config.audit_log.add(
                    "sent",
                    to=self._config.server,
                    run=self._joined.folder.path.name if self._joined else "",
                    kind=message.kind,
                    round=message.record.get("round"),
                    bytes=reply.size,
                    sha256=reply.sha256,
                )
            except PrivacyError as error:
                note(self._config.problem_log, f"{message.kind} is not sent: {error}")
                raise
        what = "sent to coordinator" if taken else "not sent, the coordinator did not take it"
        note(self._config.exchange_log, describe_exchange(what, reply, message))

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
        return partial(self._fingerprint, task)

    def _fingerprint(self, task: Message) -> Message:
        minimum = self._config.minimum.agreed(Minimum(*task.record["minimum"]))
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
        begun = run_begun(self._folder(task.record["run"]).joined)
        job = training_job(
            task.record, plans, settings, config.minimum, config.privacy, used, begun
        )
        self._approve(task.kind, job)
        return partial(self._join, task.record, plans, settings, job, begun)

    def _preprocess(self, task: Message, plans: Plans) -> Message:
        counts = {}
        for name in task.record["configurations"]:
            plans.configuration(name)
        site = self._config.cases()
        plans.save(self._config.work / "plans.json")
        with Workers(self._config.processes, self._check_room) as workers:
            for name in task.record["configurations"]:
                result = preprocess_site(site, plans, name, self._config.folder, workers)
                remarks = {item.name: item.reason for item in result.refused}
                remarks |= {case: "; ".join(notes) for case, notes in result.notes.items()}
                for case, remark in sorted(remarks.items()):
                    note(self._config.problem_log, f"{name}: case {case}: {remark}")
                counts[name] = [len(result.done) + len(result.kept), len(result.refused)]
        return outgoing(task.kind, {"cases": counts})

    def _check_room(self, _: str, done: int, total: int) -> None:
        """Check after every hundredth of the cases that preprocessing may store more.

        Raises:
            RefusalError: It may not.
        """
        if done % (1 + total // 100) == 0:
            self._config.limits.check_room(self._config.work)

    def _join(
        self,
        record: Mapping[str, Any],
        plans: Plans,
        settings: RunSettings,
        job: Job,
        begun: datetime,
    ) -> Message:
        forms = forms_of(plans, settings)
        site = self._config.open(plans, settings.configuration, record["fold"], settings.seed)
        self._check_limits(site, settings)
        signer = self._signer(run_and_terms(record)) if settings.masked else None
        client = Client(site, plans, settings, signer)
        folder = self._folder(record["run"])
        if changed := check_joined(record, folder.joined, begun):
            line = f"the coordinator changed run {record['run']}: {changed}"
            note(self._config.exchange_log, line)
        if patients_of(site.validation) < site.validation_cases:
            line = f"few validation cases: {self._config.limits.describe_floors()}"
            note(self._config.exchange_log, line)
        plain = not settings.masked and site.privacy is None
        if plain and (rare := rare_labels(site.training, plans.labels, site.training_cases)):
            named = ", ".join(map(quoted, rare))
            line = f"few training cases with {named}: {self._config.limits.describe_floors()}"
            note(self._config.exchange_log, line)
        self._joined = _Joined(folder, client, forms, job)
        clear_unfinished(folder.path, below=True)
        return outgoing_registration(register(site))

    def _folder(self, run: str) -> RunFolder:
        return RunFolder(self._config.work / "runs" / run, self._config.problem_log)

    def _signer(self, run: str) -> Signer | None:
        if self._config.keys is None:
            return None
        identity = load_identity(self._config.name, self._config.keys)
        return Signer(identity, run, SummedSites(self._config.summed_file))

    def _take_part(self, task: Message) -> Message:
        """Do a task of the run, and keep what stays at the site."""
        client, number = self._client_for(task), int(task.record["round"])
        folder, before = self._run().folder, {}
        if task.kind in TRAINING:
            settings = client.settings
            check = partial(check_stored_optimizer, client.plans, settings.configuration)
            before = folder.optimizer_before(number, check, masked=settings.masked)
        handled = client.handle(task, before)
        if handled.optimizer:  # in a masked round the key is sent first
            folder.keep_optimizer(number, handled.optimizer)
        if handled.personal:
            save_tensors(folder.personal, handled.personal)
        return handled.reply

    def _keep_model(self, task: Message) -> Message:
        """Store the finished global model, and the personalised one if the site has it."""
        folder, client = self._run().folder, self._run().client
        with replacing(folder.model) as temporary:
            temporary.write_bytes(task.tensors["file"].numpy().data)
            sent = load_model(temporary)
            if (sent.plans, sent.configuration) != (client.plans, client.settings.configuration):
                raise ModelError(
                    "the coordinator sent a model of other plans than those of the run"
                )
        folder.own_model.unlink(missing_ok=True)  # of a run that was shorter
        if folder.personal.is_file():
            apply_personal_weights(folder.model, load_tensors(folder.personal), folder.own_model)
        return outgoing(task.kind, {})

    def _client_for(self, task: Message) -> Client:
        """Check a task against the joined run, and return the client of that run."""
        joined = self._run()
        client = joined.client
        check_run_task(task, client.plans, client.settings, client.site, joined.forms)
        client.site = self._config.with_floors(client.site)  # the policy may have changed
        self._check_limits(client.site, client.settings)
        if task.kind == "personalize":
            self._config.limits.check_personal(client.plans.training)
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


def _read_plans(task: Message) -> Plans:
    return Plans.from_json(task.record.get("plans"), "the coordinator's plans")


def _check_version(version: Any) -> None:
    if not works_with(version):
        raise PlansError(
            f"the coordinator runs mixmfl {one_line(version)}, this site {__version__}; "
            "install versions that differ in the last number at most"
        )
