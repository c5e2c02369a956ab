"""The history of a run for TensorBoard, where that is installed; nothing is sent anywhere."""

import importlib.util
import math
from types import TracebackType
from typing import TYPE_CHECKING

from mixmfl.federated.server.changes import settings_of
from mixmfl.federated.server.checkpoint import Run
from mixmfl.federated.state import learning_rate_of

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class Curves:
    """Writes rounds into ``RUN/tensorboard``, each once; does nothing without TensorBoard."""

    def __init__(self, done: int) -> None:
        """Args: done: how many rounds of the run were written before."""
        self._written = done
        self._writer: SummaryWriter | None = None

    def __enter__(self) -> "Curves":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._writer is not None:
            self._writer.close()

    def write(self, run: Run) -> None:
        """Write the rounds that are new."""
        first, last = self._written + 1, len(run.history)
        if first > last or importlib.util.find_spec("tensorboard") is None:
            return
        if self._writer is None:  # not before there is a run, whose folder must be new
            from torch.utils.tensorboard import SummaryWriter

            # rounds that are done again replace what they were
            self._writer = SummaryWriter(str(run.folder / "tensorboard"), purge_step=first)
        for number in range(first, last + 1):
            for name, value in scalars(run, number).items():
                self._writer.add_scalar(name, value, number)
        self._written = last
        self._writer.flush()


def scalars(run: Run, number: int) -> dict[str, float]:
    """Return what a round showed, by name; what was not measured is left out.

    Args:
        run: The run.
        number: The round, counted from 1.
    """
    settings = settings_of(number - 1, run.settings, run.changes)
    found: dict[str, float | None] = {
        "learning_rate": learning_rate_of(number - 1, settings),
        "local_steps": settings.local_steps,
        "dice/federation": run.dice.get(number),
    }
    for site, at_site in run.history[number - 1].items():
        if at_site.absent:
            continue
        found |= {
            f"loss/{site}": at_site.loss,
            f"bytes_sent/{site}": at_site.sent_bytes,
            f"bytes_received/{site}": at_site.received_bytes,
            f"seconds/{site}": at_site.seconds,
            f"epsilon/{site}": at_site.epsilon,
            **{f"dice_of_{name}/{site}": dice for name, dice in at_site.dice.items()},
        }
    return {n: value for n, value in found.items() if value is not None and not math.isnan(value)}
