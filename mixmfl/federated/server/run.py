"""A run of a federation: its plans, settings and sites, and how every round went at each."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Annotated

from mixmfl.core.declarations import entries, text, within
from mixmfl.core.errors import ModelError
from mixmfl.core.nan import mean
from mixmfl.core.text import MOST_LINE
from mixmfl.data.labels import LONGEST_NAME, MOST_LABELS
from mixmfl.data.modalities import LONGEST_NAME as LONGEST_MODALITY
from mixmfl.data.modalities import MOST_MODALITIES
from mixmfl.evaluation.subset_dice import MOST_SUBSETS
from mixmfl.federated.server.changes import Change, rounds_flat, settings_of
from mixmfl.federated.server.initial_state import Start
from mixmfl.federated.state import Personal, Registration, RunSettings
from mixmfl.planning.plans import Plans

NEAR_HIGHEST = 0.05
"""Mean validation Dice that a later round may lack to the highest."""

_RECENT = 10
"""Rounds that tell how long the next ones will take."""

_Any = Annotated[float, within(-1e300, 1e300)]

_Share = Annotated[float, within(0, 1)]

_Label = Annotated[str, text(LONGEST_NAME)]

SubsetMedians = Annotated[
    Mapping[
        Annotated[str, text(MOST_MODALITIES * (LONGEST_MODALITY + 1))],
        Annotated[Mapping[_Label, _Share], entries(0, MOST_LABELS)],
    ],
    entries(0, MOST_SUBSETS),
]
"""Median Dice by subset, its modalities joined by ``+``, and label or region."""


@dataclass(frozen=True)
class SiteRound:
    """A round at one site.

    Attributes:
        loss: Mean training loss; None where it is not known, in a masked run that of all sites.
        dice: Validation Dice of the merged model by label or region; None where no validation
            case has it; empty where this round was not validated.
        sent_bytes: Bytes that the site sent.
        received_bytes: Bytes that the site received for training.
        seconds: Seconds of training and validation.
        absent: Why the site did not take part in the round; empty where it did.
        epsilon: Epsilon that the site had spent after the round; None: it has no privacy budget.
        delta: The delta that this epsilon holds for.
        update_norm: Norm of the change of all weights that the site sent; None: not known, as in a
            masked run.
        dice_loss: The Dice part of ``loss``, the rest is cross-entropy; None: not known.
        subset_dice: Median validation Dice of the merged model by subset of modalities and label;
            empty where this was not measured.
        memory_mb: Most memory that the site's GPU used; None: not known, as on a network, where
            sites do not tell, and on a CPU.
    """

    loss: _Any | None
    dice: Annotated[Mapping[_Label, _Share | None], entries(0, MOST_LABELS)]
    sent_bytes: Annotated[int, within(0, 2**63 - 1)]
    received_bytes: Annotated[int, within(0, 2**63 - 1)]
    seconds: Annotated[float, within(0, 2**63)]
    absent: Annotated[str, text(MOST_LINE, least=0)] = ""
    epsilon: _Any | None = None
    delta: _Any | None = None
    update_norm: _Any | None = None
    memory_mb: _Any | None = None
    dice_loss: _Any | None = None
    subset_dice: SubsetMedians = field(default_factory=dict)

    @property
    def cross_entropy(self) -> float | None:
        """Return the cross-entropy part of the loss; None where the parts are not known."""
        if self.loss is None or self.dice_loss is None:
            return None
        return self.loss - self.dice_loss


@dataclass
class Run:
    """A run and how far it is.

    Attributes:
        folder: Folder of the run.
        plans: Plans that the run was started with.
        settings: Settings of the rounds that follow; ``changes`` has what they were before.
        fold: Validation fold, or ``"all"``: every case trains.
        registrations: Registrations by site that takes part.
        history: For each round, how it went at every site.
        dice: Mean validation Dice by validated round.
        personal: How well each site's personalised model does; empty where none was asked for.
        stop_when_flat: Rounds without a higher validation Dice after which the run ends; 0: it has
            all its rounds.
        changes: What was changed between rounds, in order.
        start: What its first weights were taken from; None: they are random.
        former: Registrations of sites that took part in earlier rounds, and do not any more.
        seconds: By round how long it took.
        subset_dice: By round what ``SiteRound.subset_dice`` is of a site, over all sites' cases.
    """

    folder: Path
    plans: Plans
    settings: RunSettings
    fold: str
    registrations: Mapping[str, Registration]
    history: list[Mapping[str, SiteRound]] = field(default_factory=list)
    dice: dict[int, float] = field(default_factory=dict)
    personal: dict[str, Personal] = field(default_factory=dict)
    stop_when_flat: int = 0
    changes: list[Change] = field(default_factory=list)
    start: Start | None = None
    former: dict[str, Registration] = field(default_factory=dict)
    seconds: dict[int, float] = field(default_factory=dict)
    subset_dice: dict[int, SubsetMedians] = field(default_factory=dict)

    @property
    def seconds_left(self) -> float:
        """Return how long the rounds that are left will take, as ``seconds_left_after`` has it."""
        return self.seconds_left_after(len(self.history))

    def seconds_left_after(self, number: int) -> float:
        """Return how long the rounds after a round took or will take by those just before them.

        NaN where it is not known how long these took.

        Args:
            number: The round, counted from 1.
        """
        known = (self.seconds[n] for n in range(number, 0, -1) if n in self.seconds)
        rounds = settings_of(number, self.settings, self.changes).rounds
        return mean(islice(known, _RECENT)) * max(0, rounds - number)

    @property
    def known(self) -> dict[str, Registration]:
        """Return the registrations of all sites that take part or did so."""
        return {**self.former, **self.registrations}

    @property
    def trained_modalities(self) -> set[str]:
        """Return the modalities of the sites that took part in a round."""
        took_part = {site for each in self.history for site, at in each.items() if not at.absent}
        return {m for site in took_part for m, n in self.known[site].modality_cases.items() if n}

    @property
    def is_flat(self) -> bool:
        """Return whether validation Dice has not risen for ``stop_when_flat`` rounds."""
        flat = rounds_flat(self.dice, self.highest_round, self.changes)
        return 0 < self.stop_when_flat <= flat

    @property
    def best_round(self) -> int | None:
        """Return the round whose model is exported, by ``last_good_round``.

        Where sites joined or left, only rounds since then are candidates.
        """
        return last_good_round(self._comparable_dice())

    @property
    def highest_round(self) -> int | None:
        """Return the round with the highest mean validation Dice, the first of equals."""
        judged = self._comparable_dice()
        return min(judged, key=lambda number: (-judged[number], number)) if judged else None

    def _comparable_dice(self) -> dict[int, float]:
        """Return mean validation Dice by validated round.

        Where sites joined or left, rounds before are not compared: their Dice is of other cases.
        """
        since = max((change.after for change in self.changes if change.of_site), default=0)
        return {n: dice for n, dice in self.dice.items() if n > since and not math.isnan(dice)}

    @property
    def modality_cases(self) -> dict[str, int]:
        """Return how many training cases have each modality, also of sites that have left."""
        return {
            name: sum(r.modality_cases.get(name, 0) for r in self.known.values())
            for name in self.plans.modalities
        }

    @property
    def modality_sites(self) -> dict[str, int]:
        """Return how many sites have training cases with each modality of the plans."""
        return {
            name: sum(r.modality_cases.get(name, 0) > 0 for r in self.registrations.values())
            for name in self.plans.modalities
        }


def last_good_round(dice: Mapping[int, float]) -> int | None:
    """Return the last round whose Dice is at most ``NEAR_HIGHEST`` below the highest.

    Few validation cases cannot tell rounds apart, and the learning rate falls to 0 at the last one.
    nnU-Net predicts by its last weights, whatever validation says.

    Args:
        dice: Mean validation Dice by round; none: the result is None.
    """
    least = max(dice.values(), default=0) - NEAR_HIGHEST
    return max((number for number, each in dice.items() if each >= least), default=None)


def privacy_spent(run: Run, number: int) -> dict[str, dict[str, float]]:
    """Return epsilon and delta by site, of those that train with privacy, after a round."""
    return {
        site: {"epsilon": at_site.epsilon, "delta": at_site.delta}
        for sites in run.history[:number]
        for site, at_site in sorted(sites.items())
        if at_site.epsilon is not None and at_site.delta is not None
    }


def choose_round(run: Run, which: str) -> int:
    """Return the round that ``best``, ``last`` or a number means.

    Raises:
        ModelError: There is no such round.
    """
    if not run.history:
        raise ModelError(f"{run.folder}: no round is done yet")
    if which == "last":
        return len(run.history)
    if which == "best":
        # without validation cases nothing is known to be better than the last
        return run.best_round or len(run.history)
    if not which.isdecimal():
        raise ModelError(f"round {which!r}: give best, last or a number")
    return int(which)
