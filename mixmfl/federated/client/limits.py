"""Limits that a hospital sets on what a coordinator may have done there; no task can change them.

What was used lasts in a file, so that neither a restart nor another run begins it again.
"""

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Any

from mixmfl.core.declarations import entries, one_of, text, within
from mixmfl.core.errors import PrivacyError, RefusalError
from mixmfl.core.files import folder_bytes, json_digest, read_json, write_json
from mixmfl.core.records import read_record
from mixmfl.core.text import plural
from mixmfl.federated.sites import patients_of
from mixmfl.federated.state import NETWORK_MINIMUM, Cases, RunSettings
from mixmfl.planning.bounds import MOST_LEARNING_RATE, MOST_LOCAL_STEPS, MOST_ROUNDS
from mixmfl.planning.preprocessed_case import PreprocessedCase
from mixmfl.planning.settings import TrainingSettings

_MOST_USED = 10**9
_MOST_BYTES_USED = 10**18

_COUNTED = {
    "fingerprint": "jobs",
    "preprocess": "jobs",
    "join": "jobs",
    "train": "rounds",
    "keys": "rounds",  # of which each serves one masked training
    "validate": "queries",
    "measure": "queries",
    "compare": "queries",
    "personalize": "queries",
}
"""What a task uses up, by its kind."""

_Count = Annotated[int, within(0, _MOST_USED)]


@dataclass(frozen=True)
class _Used:
    """What was used, over all runs."""

    rounds: _Count
    queries: _Count
    bytes: Annotated[int, within(0, _MOST_BYTES_USED)]
    jobs: _Count


@dataclass(frozen=True)
class Limits:
    """What a hospital allows.

    Attributes:
        masked_only: Whether only masked runs are joined.
        rounds: Rounds that are trained here, over all runs, repeated ones too.
        local_steps: Gradient steps in a round.
        learning_rate: Learning rate in the first round.
        queries: Tasks that are answered by Dice of validation cases, over all runs: each is an
            answer about weights that the coordinator chooses.
        validation_cases: Fewest cases, of as many patients, behind a Dice that is sent.
        set_cases: Fewest patients with the label and with exactly the same modalities, whose
            validation cases are judged: weights can be made that answer for one set alone.
        bytes: Bytes that are sent, over all runs.
        disk: Bytes that the folder WORK may hold.
        training_cases: Fewest patients with training cases, of every modality, behind weights
            that are sent neither masked nor with noise; a label that fewer have is not trained.
        jobs: Times that statistics, preprocessing or joining a run is asked for, over all runs.
        no_loss: Whether the mean loss of a round is withheld: at a learning rate of nearly nothing,
            those of many rounds are sums over few cases that a coordinator chooses.
    """

    masked_only: bool = False
    rounds: _Count = 10_000
    local_steps: Annotated[int, within(0, MOST_LOCAL_STEPS)] = MOST_LOCAL_STEPS
    learning_rate: Annotated[float, within(0, MOST_LEARNING_RATE)] = MOST_LEARNING_RATE
    queries: _Count = 10_000
    validation_cases: Cases = NETWORK_MINIMUM.cases
    bytes: Annotated[int, within(0, _MOST_BYTES_USED)] = 10**15
    training_cases: Cases = 2
    jobs: _Count = 10_000
    no_loss: bool = False
    set_cases: Cases = 2
    disk: Annotated[int, within(0, _MOST_BYTES_USED)] = 10**12

    def agreed(self, other: "Limits") -> "Limits":
        """Return what holds where two places set limits: the stricter of each."""
        here, there = dataclasses.asdict(self), dataclasses.asdict(other)
        return Limits(**{n: (max if n in _FLOORS else min)(here[n], there[n]) for n in here})

    def describe_floors(self) -> str:
        """Return in words what is withheld of few cases."""
        return (
            f"Dice leaves over {plural(self.validation_cases, 'validation case')} or more "
            "(--min-validation-cases), and of sets of modalities that "
            f"{plural(self.set_cases, 'case')} or more have (--min-set-cases), weights over "
            f"{plural(self.training_cases, 'training case')} or more, also of a label, or masked "
            "or with noise (--min-training-cases)"
        )

    def check_run(self, settings: RunSettings) -> None:
        """Check the settings of a run that the site is to join.

        Raises:
            RefusalError: They are beyond a limit.
        """
        if self.masked_only and not settings.masked:
            raise RefusalError(
                "the coordinator starts a run without masks, and this site takes part in masked "
                "runs only (--require-masked)"
            )
        _check_most(
            ("rounds", "--max-rounds", settings.rounds, self.rounds),
            ("local steps", "--max-local-steps", settings.local_steps, self.local_steps),
            ("learning rate", "--max-learning-rate", settings.learning_rate, self.learning_rate),
        )

    def check_personal(self, training: TrainingSettings) -> None:
        """Check how a coordinator plans that personalised models are made.

        Raises:
            RefusalError: By more rounds, or at another learning rate, than a run may have.
        """
        _check_most(
            ("personal rounds", "--max-rounds", training.personal_rounds, self.rounds),
            (
                *("personal learning rate", "--max-learning-rate"),
                *(training.personal_learning_rate, self.learning_rate),
            ),
        )

    def check_cases(self, training: Collection[PreprocessedCase]) -> None:
        """Check that enough training cases are behind every block that the site would send.

        Raises:
            PrivacyError: There are fewer.
        """
        held = {name for case in training for name in case.modalities}
        counts = {"all modalities": patients_of(training)} | {
            name: patients_of(case for case in training if name in case.modalities)
            for name in sorted(held)
        }
        for name, cases in counts.items():
            if cases < self.training_cases:
                raise PrivacyError(
                    f"training cases of {plural(cases, 'patient')} have {name}, and weights that "
                    f"are sent must rest on {self.training_cases} or more (--min-training-cases). "
                    "Leave this modality out of the folder, or train with masks or noise "
                    "(--dp-epsilon)"
                )

    def use(self, kind: str, file: Path) -> None:
        """Count a task in a file before it is done.

        Args:
            kind: Kind of the task.
            file: The count of what was used before; it need not exist.

        Raises:
            RefusalError: No more is allowed; nothing was counted.
            PrivacyError: The file is damaged.
        """
        if kind not in _COUNTED:
            return
        name, used = _COUNTED[kind], _used(file)
        most = {"rounds": self.rounds, "queries": self.queries, "jobs": self.jobs}[name]
        if used[name] >= most:
            raise RefusalError(
                f"this site was asked for {used[name]} {name}, and --max-{name} allows {most}; "
                "nothing more is sent unless the hospital raises it",
                f"The count is in {file}",
            )
        write_json(file, {**used, name: used[name] + 1})

    def use_bytes(self, size: int, file: Path) -> None:
        """Count the bytes of a reply before it is offered; see ``use``.

        Raises:
            RefusalError: No more may be sent; nothing was counted.
            PrivacyError: The file is damaged.
        """
        used = _used(file)
        if used["bytes"] + size > self.bytes:
            raise RefusalError(
                f"this site has sent {used['bytes']} bytes, and with {size} more it would be "
                f"beyond the {self.bytes} of --max-bytes; nothing more is sent unless the hospital "
                "raises it",
                f"The count is in {file}",
            )
        write_json(file, {**used, "bytes": used["bytes"] + size})

    def check_room(self, work: Path, more: int = 0) -> None:
        """Check that the folder WORK holds few enough bytes, with some more to come.

        Raises:
            RefusalError: It would hold more.
        """
        held = folder_bytes(work)
        if held + more > self.disk:
            raise RefusalError(
                f"this site would have stored more than the {self.disk} bytes of --max-disk; "
                "nothing more is stored unless the hospital raises it or makes room",
                f"{work} has {held} bytes, and {more} would come; keep a run's joined.json if you "
                f"remove what else is in its folder of {work / 'runs'}",
            )

    def describe_used(self, file: Path) -> str:
        """Return in words what was used of the limits.

        Raises:
            PrivacyError: The file is damaged.
        """
        used = _used(file)
        return (
            f"{used['rounds']} of {self.rounds} rounds, {used['queries']} of {self.queries} "
            f"queries, {used['jobs']} of {self.jobs} jobs, {used['bytes']} of {self.bytes} bytes"
        )


def _check_most(*asked_for: tuple[str, str, float, float]) -> None:
    """Check numbers: what each is called, the option, what is asked for, and the most.

    Raises:
        RefusalError: One is more.
    """
    for name, option, asked, most in asked_for:
        if asked > most:
            raise RefusalError(
                f"the coordinator asks for {name} {asked:g}; this site allows {most:g} ({option})"
            )


_FLOORS = {"masked_only", "validation_cases", "set_cases", "training_cases", "no_loss"}
"""The limits of which more is stricter."""

NO_LIMITS = Limits(
    rounds=_MOST_USED,
    queries=_MOST_USED,
    validation_cases=0,
    bytes=_MOST_BYTES_USED,
    training_cases=0,
    jobs=_MOST_USED,
    set_cases=0,
    disk=_MOST_BYTES_USED,
)
"""What is looser than all other limits."""


def _used(file: Path) -> dict[str, int]:
    """Return what was used by name; the file need not exist."""
    before = _Used(0, 0, 0, 0)
    if file.exists():
        before = read_record(_Used, read_json(file, PrivacyError), str(file), PrivacyError)
    return dataclasses.asdict(before)


_MAY_CHANGE = ("rounds", "local_steps", "learning_rate")
"""Settings with which a run may be joined again; ``Limits.check_run`` has judged them."""


@dataclass(frozen=True)
class _Joined:
    """How a run was joined.

    Attributes:
        sha256: Digest of its plans, fold and those settings that must stay.
        schedule: The other settings.
        begun: When it was joined first, in seconds since 1970.
    """

    sha256: Annotated[str, text(64, "[0-9a-f]{64}", "64 hexadecimal digits")]
    schedule: Annotated[
        Mapping[Annotated[str, one_of(_MAY_CHANGE)], Annotated[float, within(0, MOST_ROUNDS)]],
        entries(len(_MAY_CHANGE), len(_MAY_CHANGE)),
    ]
    begun: Annotated[int, within(0, 10**11)]


def run_begun(file: Path) -> datetime:
    """Return when a run was joined first, as ``check_joined`` recorded it; else: now.

    Raises:
        PrivacyError: The record is damaged.
    """
    if file.exists():
        return datetime.fromtimestamp(_joined(file).begun, timezone.utc)
    return datetime.now(timezone.utc)


def _joined(file: Path) -> _Joined:
    try:
        return read_record(_Joined, read_json(file, PrivacyError), str(file), PrivacyError)
    except PrivacyError as error:
        raise PrivacyError(
            f"{error}, so how the run was joined is not known; the coordinator must start a new run"
        ) from None


def check_joined(task: Mapping[str, Any], file: Path, begun: datetime) -> str:
    """Check that a run is joined again as it was joined first, and record how it was joined.

    Else a masked run could be joined again without masks, from the same weights. How long it
    trains may change.

    Args:
        task: The record of the task ``join``.
        file: The run's file in which it is recorded.
        begun: What ``run_begun`` returned before.

    Returns:
        What the coordinator changed since the site joined last, in words; empty: nothing.

    Raises:
        PrivacyError: The run was joined with other plans, settings or fold.
    """
    content = {name: task[name] for name in ("plans", "settings", "fold")}
    schedule = {name: content["settings"][name] for name in _MAY_CHANGE}
    lasting = {n: value for n, value in content["settings"].items() if n not in _MAY_CHANGE}
    digest = json_digest({**content, "settings": lasting})
    agreed = _Joined(digest, schedule, int(begun.timestamp()))
    before = _joined(file) if file.exists() else agreed
    if before.sha256 != agreed.sha256:
        raise PrivacyError(
            f"run {task['run']} was joined before with other plans, settings or fold ({file}); "
            "the coordinator must start a new run"
        )
    write_json(file, dataclasses.asdict(agreed))
    known = before.schedule
    return ", ".join(
        f"{n} {known[n]:g} -> {now:g}" for n, now in schedule.items() if known[n] != now
    )
