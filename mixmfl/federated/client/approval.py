"""A hospital's approval of jobs: by a policy that it wrote, or by a person who is asked.

A job is what sends numbers of patients: statistics for a plan, preprocessing, or a run. The
process that answers tasks has no terminal, so it leaves a file per job in a folder, and waits for
the answer there.
"""

import dataclasses
import getpass
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta, timezone
from pathlib import Path
from typing import Annotated, Literal

from mixmfl.core.declarations import entries, text, within
from mixmfl.core.errors import PrivacyError, RefusalError
from mixmfl.core.files import read_json, write_json
from mixmfl.core.records import read_record
from mixmfl.federated.client.limits import NO_LIMITS, Limits
from mixmfl.federated.state import Minimum
from mixmfl.planning.bounds import MOST_ROUNDS

APPROVED, REFUSED, WAITS = "approved", "refused", "waits"

_WAIT_SECONDS = 3600.0
"""How long a task waits for a person; the coordinator's own deadline is as long by default."""

_Digest = Annotated[str, text(64, "[0-9a-f]{64}", "64 hexadecimal digits")]
_Text = Annotated[str, text(10_000)]


@dataclass(frozen=True)
class Job:
    """What a coordinator asks a hospital for.

    Attributes:
        digest: Digest of all that the coordinator asks for.
        facts: What a person must know of it, by name.
        rounds: Rounds of the run; 0: statistics for a plan, or preprocessing with one.
        masked: Whether the coordinator learns sums over sites alone.
        plans: Digest of the plans; empty: there are none yet.
        epsilon: Privacy budget with which the site trains; None: without noise.
        preset: Digest of the settings that the plans have of their preset; empty: no plans yet.
        begun: When the site first joined the run, in UTC; None: no run.
    """

    digest: str
    facts: Mapping[str, str]
    rounds: int = 0
    masked: bool = False
    plans: str = ""
    epsilon: float | None = None
    preset: str = ""
    begun: datetime | None = None


@dataclass(frozen=True)
class _Decision:
    """The record of a job, in a file of its own.

    Attributes:
        digest: Digest of the job.
        facts: What a person must know of it, by name.
        decision: ``APPROVED``, ``REFUSED`` or ``WAITS``.
        by: Who or what decided.
        time: When.
        person: Whether a person did.
    """

    digest: _Digest
    facts: Annotated[Mapping[_Text, _Text], entries(0, 100)]
    decision: Literal["approved", "refused", "waits"]
    by: _Text
    time: Annotated[str, text(40)]
    person: bool = False


@dataclass(frozen=True)
class Policy:
    """What a hospital approves of without being asked again.

    Attributes:
        until: Last day of it, as 2027-06-30; training stops then, too.
        rounds: Most rounds of a run; 0: no run, statistics for a plan alone.
        planning: Whether statistics for a plan may leave, and cases be preprocessed for any plan;
            else they are preprocessed for plans of runs that are approved of.
        masked: Whether a run must be masked.
        epsilon: Largest privacy budget with which this site must train; None: noise is not needed.
        plans: Digests of the plans that a run may have; empty: any.
        presets: Digests of the settings that plans of a run may have, see
            ``plans.settings_digest``; empty: any.
        days: Days for which a run may go on after this site joined it; None: as many as it takes.
        limits: What a coordinator may have done; of these and the options the stricter holds.
        minimum: Cases and voxels that a statistic must rest on; the stricter holds, too.
    """

    until: Annotated[str, text(10, r"\d{4}-\d\d-\d\d", "a day as 2027-06-30")]
    rounds: Annotated[int, within(0, MOST_ROUNDS)]
    planning: bool = True
    masked: bool = False
    epsilon: Annotated[float, within(0, 1e6, above=True)] | None = None
    plans: Annotated[tuple[_Digest, ...], entries(0, 100, distinct=True)] = ()
    presets: Annotated[tuple[_Digest, ...], entries(0, 100, distinct=True)] = ()
    days: Annotated[int, within(0, 100_000)] | None = None
    limits: Limits = NO_LIMITS
    minimum: Minimum = field(default_factory=Minimum)

    @classmethod
    def load(cls, file: Path) -> "Policy":
        """Read a policy.

        Raises:
            PrivacyError: The file is missing or damaged.
        """
        content = read_json(file, PrivacyError)
        if isinstance(named := content.get("limits"), dict):  # what it does not name has no limit
            content["limits"] = {**dataclasses.asdict(NO_LIMITS), **named}
        policy = read_record(cls, content, str(file), PrivacyError)
        try:
            date.fromisoformat(policy.until)
        except ValueError:
            raise PrivacyError(f"{file}: until: there is no day {policy.until}") from None
        return policy

    def against(self, job: Job) -> list[str]:
        """Return why a job is not covered; nothing: it is."""
        now, reasons = datetime.now(timezone.utc), []
        if now.date() > date.fromisoformat(self.until):
            reasons.append(f"it ended on {self.until}")
        if not job.rounds and self.planning:
            return reasons
        if not job.plans:
            return [*reasons, "it approves of no statistics"]
        if not job.rounds and not self.rounds:
            reasons.append("it approves of no run, and so of no preprocessing")
        if job.rounds > self.rounds:
            reasons.append(f"rounds {job.rounds}, and it approves of {self.rounds}")
        if self.masked and job.rounds and not job.masked:
            reasons.append("the run is not masked")
        least = self.epsilon if job.rounds else None
        if least is not None and (job.epsilon is None or job.epsilon > least):
            budget = "no privacy budget" if job.epsilon is None else f"budget {job.epsilon:g}"
            reasons.append(f"this site trains with {budget}, and it needs {least:g} at most")
        if self.plans and job.plans not in self.plans:
            reasons.append(f"the plans {job.plans} are not those that it names")
        if self.presets and job.preset not in self.presets:
            reasons.append(f"the plans' settings {job.preset} are not those that it names")
        if self.days is not None and job.begun and now > job.begun + timedelta(self.days):
            day = f"{job.begun:%Y-%m-%d}"
            reasons.append(f"the run was joined on {day}, and it approves of {self.days} days")
        return reasons


@dataclass(frozen=True)
class Approval:
    """Who approves of jobs at a site.

    Attributes:
        policy: File of the hospital's policy; it is read for every job and task.
        ask: Whether a person is asked, about jobs that no policy covers.
    """

    policy: Path | None = None
    ask: bool = False

    def within(self, limits: Limits, minimum: Minimum) -> tuple[Limits, Minimum]:
        """Return the limits and the minimum that hold now: of these and the policy the stricter.

        Raises:
            PrivacyError: The policy cannot be read.
        """
        if self.policy is None:
            return limits, minimum
        policy = Policy.load(self.policy)
        return limits.agreed(policy.limits), minimum.agreed(policy.minimum)

    def decide(self, job: Job, folder: Path) -> str:
        """Return by what a job is approved, and leave a record of it; wait for a person if asked.

        Args:
            job: What the coordinator asks for.
            folder: Folder with a file per job.

        Raises:
            RefusalError: It is not approved.
            PrivacyError: The policy or the record cannot be read.
        """
        file = _file(job, folder)
        reasons = []
        if self.policy is not None:
            if not (reasons := Policy.load(self.policy).against(job)):
                return _decided(job, file, APPROVED, f"the policy {self.policy}")
        elif not self.ask:
            return _decided(job, file, APPROVED, "the site's limits, without a policy")
        if not self.ask:
            _decided(job, file, REFUSED, f"the policy {self.policy}")
            raise RefusalError(
                f"the hospital's policy does not cover this job: {'; '.join(reasons)}",
                f"The job is in {file}; change {self.policy}, or start mixmfl_site with --ask",
            )
        if _answer(job, folder) is None:
            _write(job, file, WAITS, "nobody yet")
        until = time.monotonic() + _WAIT_SECONDS
        while (answer := _record(file)).decision == WAITS and time.monotonic() < until:
            time.sleep(0.2)
        if answer.decision == APPROVED:
            return answer.by
        if answer.decision == REFUSED:
            raise RefusalError(
                "a person at the hospital refused this job",
                f"It was {answer.by}; remove {file} to be asked again",
            )
        raise RefusalError(
            "nobody at the hospital answered whether this job may be done", f"It waits in {file}"
        )

    def check_still(self, job: Job, folder: Path) -> None:
        """Check that a job that was approved still is: the policy may have ended or been changed.

        Args:
            job: The job.
            folder: Folder with a file per job, in which a person may have approved of it.

        Raises:
            RefusalError: The policy does not cover it any more, and no person approved of it.
            PrivacyError: The policy or the record cannot be read.
        """
        if self.policy is None or not (reasons := Policy.load(self.policy).against(job)):
            return
        if not self.ask or _answer(job, folder) != APPROVED:
            raise RefusalError(
                f"the hospital's policy does not cover this job any more: {'; '.join(reasons)}",
                f"The policy is {self.policy}",
            )


def waiting(folder: Path) -> Iterator[tuple[Path, Mapping[str, str]]]:
    """Yield the jobs that wait for a person, and what is known of them."""
    for file in sorted(folder.glob("*.json")):
        record = _record(file)
        if record.decision == WAITS:
            yield file, record.facts


def answer_job(file: Path, approved: bool) -> None:
    """Record what a person decided, who that was and when."""
    decision = _by(APPROVED if approved else REFUSED, getpass.getuser())
    write_json(file, {**dataclasses.asdict(_record(file)), **decision, "person": True})


def _file(job: Job, folder: Path) -> Path:
    # by the whole digest: of half of it, somebody can make two jobs, and have one approved of
    return folder / f"{job.digest}.json"


def _answer(job: Job, folder: Path) -> str | None:
    """Return what a person decided about a job; None: nobody did."""
    file = _file(job, folder)
    record = _record(file) if file.exists() else None
    return record.decision if record and record.person and record.digest == job.digest else None


def _decided(job: Job, file: Path, decision: str, by: str) -> str:
    _write(job, file, decision, by)
    return by


def _write(job: Job, file: Path, decision: str, by: str) -> None:
    write_json(file, {"digest": job.digest, "facts": dict(job.facts), **_by(decision, by)})


def _by(decision: str, by: str) -> dict[str, str]:
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return {"decision": decision, "by": by, "time": now}


def _record(file: Path) -> _Decision:
    return read_record(_Decision, read_json(file, PrivacyError), str(file), PrivacyError)
