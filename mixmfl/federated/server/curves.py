"""The history of a run for those who look at curves; see ``tracking``."""

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from mixmfl.core.text import one_line
from mixmfl.evaluation.subset_dice import medians
from mixmfl.federated.server.changes import settings_of
from mixmfl.federated.server.measured import load_measured, load_measured_sites
from mixmfl.federated.server.run import Run, SubsetMedians, choose_round
from mixmfl.federated.server.tracking import LEARNING_RATE, TRACKERS, Tracker
from mixmfl.federated.state import learning_rate_of

log = logging.getLogger(__name__)


class Curves:
    """Writes rounds to trackers, each round once.

    A tracker that fails does not end the run: a warning says so, and it gets no more rounds.
    """

    def __init__(self, names: Sequence[str], place: Path) -> None:
        """Args: names: names of the trackers; place: folder given by ``-o``, see ``Tracker``."""
        self._names, self._place = names, place
        self._written = 0
        self._trackers: dict[str, Tracker] = {}

    def __enter__(self) -> "Curves":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for name, tracker in list(self._trackers.items()):
            with self._watched(name):
                tracker.close()

    def write(self, run: Run) -> None:
        """Write the rounds that a tracker does not have, also those of commands before."""
        last = len(run.history)
        if last <= self._written:
            return
        for name in self._names:
            with self._watched(name):
                if name not in self._trackers:  # not before there is a run, whose folder is new
                    self._trackers[name] = TRACKERS[name](run, self._place)
                tracker = self._trackers[name]
                for number in range(tracker.written + 1, last + 1):
                    tracker.write(number, scalars(run, number))
                    tracker.written = number
        self._written = last

    def write_subsets(self, run: Run) -> None:
        """Write the Dice from subsets of modalities, which is measured after the last round."""
        values = subset_scalars(run)
        for name, tracker in list(self._trackers.items()):
            with self._watched(name):
                tracker.write(len(run.history), values)

    @contextmanager
    def _watched(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever happens in a package of others
            log.warning(
                "%s: writes no more curves (%s: %s); training goes on, and progress.csv has them",
                name,
                type(error).__name__,
                one_line(error, 300),
            )
            self._names = [other for other in self._names if other != name]
            self._trackers.pop(name, None)


def scalars(run: Run, number: int) -> dict[str, float]:
    """Return what a round showed, by name; what was not measured is left out.

    Args:
        run: The run.
        number: The round, counted from 1.
    """
    settings = settings_of(number - 1, run.settings, run.changes)
    values: dict[str, float | None] = {
        LEARNING_RATE: learning_rate_of(number - 1, settings),
        "local_steps": settings.local_steps,
        "dice/federation": run.dice.get(number),
        "seconds_of_round": run.seconds.get(number),
        "seconds_left": run.seconds_left_after(number),
        **_by_subset(run.subset_dice.get(number, {}), "all sites"),
    }
    for site, at_site in run.history[number - 1].items():
        if at_site.absent:
            continue
        values |= {
            f"loss/{site}": at_site.loss,
            f"loss_dice/{site}": at_site.dice_loss,
            f"loss_cross_entropy/{site}": at_site.cross_entropy,
            f"bytes_sent/{site}": at_site.sent_bytes,
            f"bytes_received/{site}": at_site.received_bytes,
            f"seconds/{site}": at_site.seconds,
            f"epsilon/{site}": at_site.epsilon,
            f"update_norm/{site}": at_site.update_norm,
            f"gpu_memory_mb/{site}": at_site.memory_mb,
            **{f"dice_of_{name}/{site}": dice for name, dice in at_site.dice.items()},
            **_by_subset(at_site.subset_dice, site),
        }
    return {n: value for n, value in values.items() if value is not None and not math.isnan(value)}


def subset_scalars(run: Run) -> dict[str, float]:
    """Return the median Dice from every subset of modalities, of all sites and of each, by name.

    Of the model that is exported; nothing where rounds have it.
    """
    number = choose_round(run, "best")
    measured = load_measured(run, number)
    if measured is None or run.subset_dice:
        return {}
    values = _by_subset(medians(measured.expected), "all sites")
    for site, each in (load_measured_sites(run, number) or {}).items():
        values |= _by_subset(medians(each.expected), site)
    return values


def _by_subset(dice: SubsetMedians, site: str) -> dict[str, float]:
    """Return the median Dice from every subset, by the name of its curve."""
    return {
        f"dice_of_{label}_from_{subset}/{site}": median
        for subset, by_label in dice.items()
        for label, median in by_label.items()
    }
