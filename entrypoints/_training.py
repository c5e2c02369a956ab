"""What a run is trained with: as the options ask, else as it was before, else as planned."""

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mixmfl.core.errors import MixmflError

from . import _options
from ._command import Command

if TYPE_CHECKING:
    from mixmfl.federated.server.kept_options import Words
    from mixmfl.federated.server.orders import TrainingJob
    from mixmfl.federated.server.run import Run
    from mixmfl.federated.state import RunSettings
    from mixmfl.planning.plans import Plans


@dataclass(frozen=True)
class Asked:
    """What the command asks of one run, which is all that it trains, or one of its folds.

    Attributes:
        options: The options of the command, and those that the run keeps.
        out: Folder of the run.
        fold: Fold that validates; empty: as the run that is resumed, or the first.
        configuration: Configuration; empty: as that run or ``like``, or the preprocessed one.
        init: File whose weights a new run starts from.
        stop_when_flat: See ``--stop-when-flat``; None: as that run or ``like``.
        resume: Whether the run has begun.
        keep: Called when the run is known to begin or go on as asked: keeps what was asked.
        like: The run of another fold, as which one that has not begun is trained.
        beside: Folder of the same fold of another configuration, with which it is compared.
    """

    options: argparse.Namespace
    out: Path
    fold: str
    configuration: str
    init: Path | None
    stop_when_flat: int | None
    resume: bool
    keep: "Keep"
    like: "Run | None" = None
    beside: Path | None = None


@dataclass(frozen=True)
class Training:
    """What a run is trained with; see ``Asked``, of which nothing is left open here.

    Attributes:
        out: Folder of the run.
        plans: Plans of WORK.
        settings: Settings of the run.
        fold: Fold that validates.
        sites: Sites that take part; empty: all.
        init: File whose weights a new run starts from.
        stop_when_flat: See ``--stop-when-flat``.
        resume: Whether the run has begun.
        beside: Folder of the same fold of another configuration, with which it is compared.
    """

    out: Path
    plans: "Plans"
    settings: "RunSettings"
    fold: str
    sites: Sequence[str]
    init: Path | None
    stop_when_flat: int
    resume: bool
    beside: Path | None


@dataclass
class Keep:
    """Keeps the options of runs, once.

    Attributes:
        options: The options, by the folder of the run.
        done: Whether they are kept.
    """

    options: "Mapping[Path, Words]"
    done: bool = False

    def __call__(self) -> None:
        """Keep them, unless that is done."""
        from mixmfl.federated.server.kept_options import keep_options

        if not self.done:
            for folder, words in self.options.items():
                keep_options(folder, words)
        self.done = True


def asked_of(command: Command, keep: Keep, out: Path, fold: str, configuration: str) -> Asked:
    """Return what a command asks of the run in a folder.

    Args:
        command: The command.
        keep: The options of this run, and of others that the command trains.
        out: Folder of the run.
        fold: As ``Asked`` has it.
        configuration: As ``Asked`` has it.

    Raises:
        MixmflError: What is kept cannot be read.
    """
    from mixmfl.federated.server.kept_options import holds_options
    from mixmfl.federated.server.orders import job_file
    from mixmfl.federated.server.run_record import holds_run

    options = command.options_for(keep.options[out], out)
    if taken := command.taken_from(keep.options[out]):
        print(f"as asked before: {' '.join(taken)}")
    # one that was killed before it began begins now
    begun = holds_run(out) or job_file(out).is_file() or not holds_options(out)
    return Asked(
        *(options, out, fold, configuration),
        options.init,
        options.stop_when_flat,
        command.options.resume and begun,
        keep,
    )


def settle(plans: "Plans", asked: Asked) -> Training:
    """Return what a run is trained with: as asked, else as before, else as planned.

    Raises:
        MixmflError: What is asked does not fit the run that has begun, or is out of bounds.
    """
    from mixmfl.core.records import read_record
    from mixmfl.federated.state import RunSettings
    from mixmfl.planning.plans import usual_configuration

    options = asked.options
    before = _before(asked.out) if asked.resume else None
    if asked.resume and before is None:
        raise MixmflError(f"--resume: {asked.out} holds no run; leave it out to start one")
    like = before or asked.like
    sites, stop_when_flat = options.sites, asked.stop_when_flat
    if like is not None:
        sites = sites or _sites_of(like, asked.out)
        _check_privacy_lasts(like, options)
        if stop_when_flat is None:
            stop_when_flat = like.stop_when_flat
    if before is None and asked.like is not None:
        _check_starts_alike(options.seed, asked, asked.like)
    if (stop_when_flat or 0) < 0:
        raise MixmflError("--stop-when-flat: must be 0 or more rounds")
    if asked.init is not None and before is not None:
        raise MixmflError(
            f"--init: {asked.out} has begun, and weights are only where a run starts. Leave it "
            "out to resume, or start a new run in another folder"
        )
    configuration = asked.configuration or (like.settings.configuration if like else "")
    settings = _settings(
        options,
        plans,
        configuration or usual_configuration(options.input, plans),
        like.settings if like else None,
    )
    values = asdict(settings)
    for name in ("rounds", "local_steps", "learning_rate"):
        if not 0 < values[name] < math.inf:
            raise MixmflError(f"--{name.replace('_', '-')}: must be above 0")
    if not 0 < options.deadline < math.inf:
        raise MixmflError("--deadline: must be above 0")
    if not 0 <= settings.seed < 2**63:
        raise MixmflError("--seed: must be from 0 to 2^63 - 1")
    read_record(RunSettings, values, "the settings of the run", MixmflError)
    return Training(
        asked.out,
        plans,
        settings,
        asked.fold or (before.fold if before else "0"),
        sites,
        asked.init,
        stop_when_flat or 0,
        asked.resume,
        asked.beside,
    )


def _before(out: Path) -> "Run | TrainingJob | None":
    """Return the run that is resumed, or the orders for it where no round was begun."""
    from mixmfl.federated.server.orders import TrainingJob, job_file, load_job
    from mixmfl.federated.server.run_record import holds_run, open_run

    if holds_run(out):
        return open_run(out)
    file = job_file(out)
    orders = load_job(file) if file.is_file() else None
    return orders if isinstance(orders, TrainingJob) else None


def _sites_of(before: "Run | TrainingJob", out: Path) -> list[str]:
    """Return the sites of a run, or those that its orders name: one may not have joined yet."""
    from mixmfl.federated.server.orders import TrainingJob, job_file, load_job

    file = job_file(out)
    orders = load_job(file) if file.is_file() else before
    if isinstance(orders, TrainingJob):
        return list(orders.sites)
    return [] if isinstance(before, TrainingJob) else sorted(before.registrations)


def _check_starts_alike(seed: int | None, asked: Asked, like: "Run") -> None:
    """Check that a fold starts as one that has begun: with its seed and weights.

    Raises:
        MixmflError: It does not.
    """
    if seed not in (None, like.settings.seed):
        raise MixmflError(
            f"--seed {seed}: {like.folder} has begun with {like.settings.seed}, and by the "
            "seed sites split their cases; leave it out"
        )
    if (like.start is None) != (asked.init is None):
        started = f"the weights of {like.start.file}" if like.start else "random weights"
        raise MixmflError(
            f"--init: {like.folder} started from {started}, and fold {asked.fold} has not begun; "
            f"{'name that file again' if like.start else 'leave it out'}"
        )


def _check_privacy_lasts(before: "Run | TrainingJob", options: argparse.Namespace) -> None:
    """Check that a simulated run with differential privacy is resumed with it.

    Raises:
        MixmflError: It is not.
    """
    from mixmfl.federated.server.run import Run, privacy_spent

    if options.kit or options.dp_epsilon is not None or not isinstance(before, Run):
        return
    if spent := privacy_spent(before, len(before.history)):
        raise MixmflError(
            f"{before.folder}: {', '.join(spent)} trained with differential privacy, which holds "
            "only if every round has it; name --dp-epsilon and the other --dp options again"
        )


def _settings(
    options: argparse.Namespace,
    plans: "Plans",
    configuration: str,
    before: "RunSettings | None",
) -> "RunSettings":
    """Return the settings that the options name; others are as before, or as planned."""
    from mixmfl.federated.state import NETWORK_MINIMUM, Minimum, RunSettings

    planned = plans.training
    usual = before or RunSettings(
        configuration=configuration,
        seed=0,
        rounds=planned.rounds,
        local_steps=planned.local_steps,
        learning_rate=planned.learning_rate,
    )
    if before is not None:
        least = Minimum(before.minimum_cases, before.minimum_voxels)
    else:
        least = NETWORK_MINIMUM if options.kit else Minimum()
    minimum = _options.minimum(options, least)
    masked = options.masked or usual.masked
    if masked and options.updates:
        raise MixmflError(
            "--updates: with --masked sites send fixed-point numbers, and receive half precision; "
            "leave this option out"
        )
    named = {
        "seed": options.seed,
        "rounds": options.rounds,
        "local_steps": options.local_steps,
        "learning_rate": options.learning_rate,
    }
    return replace(
        usual,
        configuration=configuration,
        masked=masked,
        half_updates=options.updates != "single" if options.updates else usual.half_updates,
        minimum_cases=minimum.cases,
        minimum_voxels=minimum.voxels,
        **{name: value for name, value in named.items() if value is not None},
    )
