"""What a run that is resumed may change, from which round it holds, and when a run is flat."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from mixmfl.core.declarations import LONGEST_PATH, text, within
from mixmfl.core.errors import ModelError
from mixmfl.core.text import plural
from mixmfl.federated.state import Registration, RunSettings, learning_rate_of

CHANGEABLE = ("rounds", "local_steps", "learning_rate")
"""Settings of a run that may change between two rounds."""


@dataclass(frozen=True)
class Change:
    """What was changed between two rounds.

    Attributes:
        after: Rounds that were done; the change holds from the next on.
        what: ``"rounds"``, ``"local_steps"``, ``"learning_rate"``, ``"stop_when_flat"``, a site as
            ``"site north"``, or a modality that joins as ``"modality t1c"``.
        before: What it was; training cases of a site or modality, 0: it took no part.
        now: What it is since.
        origin: What the encoder of a modality that joins starts from; None for all else.
        again: Whether a site or modality took part before.
    """

    after: Annotated[int, within(0, 10**6)]
    what: Annotated[str, text(LONGEST_PATH)]
    before: Annotated[float, within(0, 1e12)]
    now: Annotated[float, within(0, 1e12)]
    origin: Annotated[str, text(LONGEST_PATH)] | None = None
    again: bool = False

    @property
    def of_site(self) -> bool:
        """Return whether a site joined or left."""
        return self.what.startswith("site ")

    @property
    def text(self) -> str:
        """Return what was changed, in words."""
        kind, _, name = self.what.partition(" ")
        if not name:
            return f"{self.what} {self.before:g} -> {self.now:g}"
        if not self.now and kind == "site":
            cases = plural(int(self.before), "training case")
            return f"{self.what} leaves; the model keeps what it learnt from its {cases}"
        if not self.now:
            return f"{self.what} has no site any more; its encoder stays in the model as it is"
        starts = f", its encoder starts from {self.origin}" if self.origin else ""
        comes = "comes back" if self.again else "joins"
        return f"{kind} {name} {comes} with {plural(int(self.now), 'training case')}{starts}"

    def __str__(self) -> str:
        return f"from round {self.after + 1} on: {self.text}"


def in_words(changes: Sequence[Change]) -> dict[int, str]:
    """Return by the rounds that were done what was changed then."""
    by_round: dict[int, list[str]] = {}
    for change in changes:
        by_round.setdefault(change.after, []).append(change.text)
    return {
        after: f"from round {after + 1} on: {', '.join(each)}" for after, each in by_round.items()
    }


def settings_of(round_number: int, settings: RunSettings, changes: Sequence[Change]) -> RunSettings:
    """Return the settings that a round had, counted from 0.

    Args:
        round_number: The round.
        settings: Settings after all changes.
        changes: Changes of the run, in order.
    """
    for change in reversed(changes):
        if change.after > round_number and change.what in CHANGEABLE:
            number = change.before if change.what == "learning_rate" else int(change.before)
            before: dict[str, Any] = {change.what: number}
            settings = dataclasses.replace(settings, **before)
    return settings


def changes_of_settings(before: RunSettings, now: RunSettings, done: int) -> list[Change]:
    """Return how the changeable settings differ.

    Args:
        before: Settings of the run so far.
        now: Settings from here on.
        done: Rounds that are done.

    Raises:
        ModelError: More rounds are done than the run is to have.
    """
    if now.rounds < done:
        raise ModelError(
            f"--rounds {now.rounds}: the run has done {done} rounds already; name {done} to end it "
            "here, or more to go on"
        )
    old, new = dataclasses.asdict(before), dataclasses.asdict(now)
    return [
        Change(done, name, old[name], new[name]) for name in CHANGEABLE if old[name] != new[name]
    ]


def changes_of_sites(
    before: Mapping[str, Registration],
    now: Mapping[str, Registration],
    former: Mapping[str, Registration],
    done: int,
) -> list[Change]:
    """Return which sites join and which leave.

    Args:
        before: Registrations of the sites of the run so far.
        now: Registrations of the sites from here on.
        former: Registrations of sites that left earlier.
        done: Rounds that are done.

    Raises:
        ModelError: A site that left comes back with other cases than it had.
    """
    for site in sorted(former.keys() & now.keys()):
        if former[site] != now[site]:
            raise ModelError(
                f"site {site} took part before with other cases ({former[site]}, now {now[site]}). "
                "Cases that it held back to validate would now train; let it join under another "
                "name"
            )
    return [
        Change(
            done,
            f"site {site}",
            before[site].cases if site in before else 0,
            now[site].cases if site in now else 0,
            again=site in former,
        )
        for site in sorted(before.keys() ^ now.keys())
    ]


def raise_norms(
    norms: Mapping[str, tuple[float, ...]],
    done: int,
    settings: RunSettings,
    changes: Sequence[Change],
) -> Mapping[str, tuple[float, ...]]:
    """Return the usual norms for the round that follows a change.

    Updates are about as long as learning rate times steps, so that norms of the rounds before would
    have every update refused after a rise of ten times. They rise as that product does; where it
    falls they stay, and the rounds that follow bring them down.

    Args:
        norms: Norms of the last rounds by block, as ``ServerState`` has them.
        done: Rounds that are done.
        settings: Settings after all changes.
        changes: Changes of the run, in order.
    """
    if not done or not any(change.after == done for change in changes):
        return norms
    now, before = (
        each.local_steps * learning_rate_of(number, each)
        for number, each in (
            (done, settings),
            (done - 1, settings_of(done - 1, settings, changes)),
        )
    )
    rise = max(1.0, now / before)
    return {block: tuple(norm * rise for norm in medians) for block, medians in norms.items()}


def rounds_flat(dice: Mapping[int, float], highest: int | None, changes: Sequence[Change]) -> int:
    """Return for how many rounds validation Dice has not risen, up to the last validation.

    After a change it is counted from 0, so that a run that was flat can be resumed with others.

    Args:
        dice: Mean validation Dice by validated round.
        highest: The round with the highest Dice; None: no round has one.
        changes: Changes of the run, in order.
    """
    last = max((number for number, value in dice.items() if not math.isnan(value)), default=0)
    return max(0, last - max([highest or 0, *(change.after for change in changes)]))
