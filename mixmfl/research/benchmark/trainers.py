"""How the sites of a method are trained: in rounds, or by a trainer of the method's own."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mixmfl.data.modalities import Modalities
from mixmfl.federated.server.beginning import Beginning
from mixmfl.federated.server.coordinator import Variation
from mixmfl.federated.server.initial_state import start_from
from mixmfl.federated.server.run import Run, last_good_round
from mixmfl.federated.server.run_record import holds_run
from mixmfl.federated.simulation import simulate
from mixmfl.federated.state import RunSettings, Site
from mixmfl.planning.plans import Plans

FOLD = "0"


@dataclass(frozen=True)
class Job:
    """A training of some sites together.

    Attributes:
        plans: Plans with the method's settings.
        sites: The sites; of pooled cases a single one.
        settings: Settings of the run.
        folder: Folder to write to; a job that was interrupted is resumed from what is there.
        variation: What the method changes of rounds.
        init: File of weights to start from, if not random ones.
    """

    plans: Plans
    sites: Sequence[Site]
    settings: RunSettings
    folder: Path
    variation: Variation
    init: Path | None = None


@dataclass(frozen=True)
class Trained:
    """The results of a job.

    Attributes:
        files: File of the model by site.
        dice: Mean validation Dice by round, where it is known.
        learning_rate: Learning rate of the first round.
        sent_bytes: Bytes that a site sent, mean over sites.
        seconds: Seconds that all sites trained and validated.
        run: The run whose global model can be fine-tuned; None: there is none.
    """

    files: Mapping[str, Path]
    dice: Mapping[int, float]
    learning_rate: float
    sent_bytes: float
    seconds: float
    run: Run | None = None

    @property
    def best_dice(self) -> float:
        """Return the validation Dice of the scored round; -1 where nothing was validated."""
        number = last_good_round(self.dice)
        return -1.0 if number is None else self.dice[number]


Trainer = Callable[[Job], Trained]
"""Trains the sites of a job."""


def in_rounds(job: Job) -> Trained:
    """Train by rounds between server and sites, and return the global model of the best round."""
    run = simulate_job(job)
    return result_of(run, dict.fromkeys(run.registrations, run.folder / "model.safetensors"), run)


def simulate_job(job: Job) -> Run:
    """Simulate the rounds of a job, or what is left of them."""
    begun = holds_run(job.folder)
    initial = None
    if job.init and not begun:
        initial = start_from(job.init, job.plans, job.settings, Modalities())
    return simulate(
        job.plans,
        job.sites,
        job.settings,
        FOLD,
        job.folder,
        beginning=Beginning(begun, initial=initial),
        variation=job.variation,
    )


def result_of(run: Run, files: Mapping[str, Path], tunable: Run | None = None) -> Trained:
    """Return the results of a job that was done in rounds.

    Args:
        run: The run.
        files: File of the model by site.
        tunable: The run, where its global model can be fine-tuned.
    """
    rounds = [each for sites in run.history for each in sites.values()]
    return Trained(
        files,
        {number: dice for number, dice in run.dice.items() if not math.isnan(dice)},
        run.settings.learning_rate,
        sum(each.sent_bytes for each in rounds) / len(run.registrations),
        sum(each.seconds for each in rounds),
        tunable,
    )
