"""Limits that a hospital sets on what a coordinator may have done there; no task can change them.

What was used lasts in a file, so that neither a restart nor another run begins it anew.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from mixmfl.core.declarations import within
from mixmfl.core.errors import PrivacyError
from mixmfl.core.files import read_json, write_json
from mixmfl.core.records import read_record
from mixmfl.federated.state import Cases, RunSettings
from mixmfl.planning.bounds import MOST_LEARNING_RATE, MOST_LOCAL_STEPS

_MOST_USED = 10**9

_COUNTED = {
    "train": "rounds",
    "masked": "rounds",
    "validate": "queries",
    "measure": "queries",
    "personalize": "queries",
}
"""What a task uses up, by its kind."""

_Count = Annotated[int, within(0, _MOST_USED)]


@dataclass(frozen=True)
class _Used:
    """What was used, over all runs."""

    rounds: _Count
    queries: _Count


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
        validation_cases: Fewest cases behind a Dice that is sent.
    """

    masked_only: bool = False
    rounds: _Count = 10_000
    local_steps: Annotated[int, within(0, MOST_LOCAL_STEPS)] = MOST_LOCAL_STEPS
    learning_rate: Annotated[float, within(0, MOST_LEARNING_RATE)] = MOST_LEARNING_RATE
    queries: _Count = 10_000
    validation_cases: Cases = 1

    def check_run(self, settings: RunSettings) -> None:
        """Check the settings of a run that the site is to join.

        Raises:
            PrivacyError: They are beyond a limit.
        """
        if self.masked_only and not settings.masked:
            raise PrivacyError(
                "the coordinator starts a run without masks, and this site takes part in masked "
                "runs only (--require-masked)"
            )
        for name, option, asked, most in (
            ("rounds", "--max-rounds", settings.rounds, self.rounds),
            ("local steps", "--max-local-steps", settings.local_steps, self.local_steps),
            ("learning rate", "--max-learning-rate", settings.learning_rate, self.learning_rate),
        ):
            if asked > most:
                raise PrivacyError(
                    f"the coordinator asks for {name} {asked:g}; this site allows {most:g} "
                    f"({option})"
                )

    def use(self, kind: str, file: Path) -> None:
        """Count a task in a file before it is done.

        Args:
            kind: Kind of the task.
            file: The count of what was used before; it need not exist.

        Raises:
            PrivacyError: No more is allowed, or the file is damaged; nothing was counted.
        """
        if kind not in _COUNTED:
            return
        before = _Used(0, 0)
        if file.exists():
            before = read_record(_Used, read_json(file, PrivacyError), str(file), PrivacyError)
        name, used = _COUNTED[kind], dataclasses.asdict(before)
        most = {"rounds": self.rounds, "queries": self.queries}[name]
        if used[name] >= most:
            raise PrivacyError(
                f"this site has answered {used[name]} {name} ({file}), and --max-{name} allows "
                f"{most}; nothing more is sent unless the hospital raises it"
            )
        write_json(file, {**used, name: used[name] + 1})


_MAY_CHANGE = ("rounds", "local_steps", "learning_rate")
"""Settings with which a run may be joined again; ``Limits.check_run`` has judged them."""


def check_joined(task: Mapping[str, Any], file: Path) -> str:
    """Check that a run is joined again as it was joined first, and record how it was joined.

    Else a masked run could be joined again without masks, from the same weights. How long it
    trains may change.

    Args:
        task: The record of the task ``join``.
        file: The run's file in which it is recorded.

    Returns:
        What the coordinator changed since the site joined last, in words; empty: nothing.

    Raises:
        PrivacyError: The run was joined with other plans, settings or fold.
    """
    content = {name: task[name] for name in ("plans", "settings", "fold")}
    schedule: dict[str, Any] = {name: content["settings"][name] for name in _MAY_CHANGE}
    lasting = {n: value for n, value in content["settings"].items() if n not in _MAY_CHANGE}
    agreed: dict[str, Any] = {
        "sha256": _digest({**content, "settings": lasting}),
        "schedule": schedule,
    }
    before = read_json(file, PrivacyError) if file.exists() else agreed
    # the record of a version that let nothing change has one digest of everything
    if before != {"sha256": _digest(content)} and before.get("sha256") != agreed["sha256"]:
        raise PrivacyError(
            f"run {task['run']} was joined before with other plans, settings or fold ({file}); "
            "the coordinator must start a new run"
        )
    write_json(file, agreed)
    known = before.get("schedule", schedule)
    changed = [
        f"{n} {known.get(n)} -> {schedule[n]}" for n in schedule if known.get(n) != schedule[n]
    ]
    return ", ".join(changed)


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
