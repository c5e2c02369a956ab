"""What ``mixmfl_train_federated`` shows of a run while it trains, and at its end."""

import math
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from . import _runner

if TYPE_CHECKING:
    from mixmfl.federated.server.changes import Change
    from mixmfl.federated.server.curves import Curves
    from mixmfl.federated.server.run import Run, SiteRound


class RoundPrinter:
    """Prints the rounds of a run as they come, and what is changed as soon as that is known."""

    def __init__(self, out: Path) -> None:
        """Begin after the rounds that the run in a folder has."""
        from mixmfl.federated.server.run_record import holds_run, open_run

        self._rounds = len(open_run(out).history) if holds_run(out) else 0
        self._changes = set["Change"]()  # that were printed
        self._lap = _stopwatch()

    def show(self, run: "Run") -> bool:
        """Print what is new; return whether there is a new round."""
        self._rounds = before = min(self._rounds, len(run.history))  # a damaged one is repeated
        self._show_changes(run)
        while self._rounds < len(run.history):
            self._rounds += 1
            _print_round(run, self._rounds, self._lap())
            self._show_changes(run)
        return self._rounds > before

    def _show_changes(self, run: "Run") -> None:
        """Print what holds from the next round on."""
        for change in run.changes:
            if change.after == self._rounds and change not in self._changes:
                print(change, flush=True)
                self._changes.add(change)


def _print_round(run: "Run", number: int, seconds: float) -> None:
    from mixmfl.federated.server.run_page import duration

    sites = run.history[number - 1]
    loss = "  ".join(f"{site} {_describe_site(entry)}" for site, entry in sites.items())
    dice = f"  Dice {run.dice[number]:.3f}" if run.dice.get(number, math.nan) >= 0 else ""
    left = run.seconds_left if number == len(run.history) else math.nan
    eta = f", {duration(left)} left" if left > 0 else ""
    took = f"{seconds:.0f} s{eta}"
    print(f"round {number}/{run.settings.rounds}  loss {loss}{dice}  {took}", flush=True)


def _describe_site(entry: "SiteRound") -> str:
    if entry.absent:
        return "left out"
    if entry.loss is not None:
        return f"{entry.loss:.3f}"
    return "trained" if entry.epsilon is None else f"epsilon {entry.epsilon:.2f}"


def announce_end(run: "Run") -> None:
    """Print where the model is, and why training ended before its last round, if it did."""
    from mixmfl.core.text import plural

    if len(run.history) < run.settings.rounds:
        print(
            f"ended after round {len(run.history)} of {run.settings.rounds}: validation Dice was "
            f"not above that of round {run.highest_round} "
            f"({run.dice[run.highest_round or 0]:.3f}) for "
            f"{plural(run.stop_when_flat, 'round')} (--stop-when-flat). --resume "
            "--stop-when-flat 0 trains the others"
        )
    from mixmfl.federated.server.run import choose_round
    from mixmfl.federated.server.run_page import RUN_PAGE
    from mixmfl.inference.model_folder import EVERY_CASE, MODEL

    if run.best_round is None and run.fold != EVERY_CASE:
        print(
            "no validation Dice is known, so the last round is taken for the best: no site has "
            "validation cases, or they are fewer than the --min-validation-cases of each "
            "mixmfl_site (5 unless it is set there)"
        )
    print(f"model of round {choose_round(run, 'best')}: {run.folder / MODEL}")
    print(f"its curves and scores: {run.folder / RUN_PAGE}")


def print_personal(run: "Run") -> None:
    """Print how well each personalised model does, and whether its site keeps it."""
    for site, result in run.personal.items():
        kept = "kept" if result.kept else "not kept"
        print(
            f"site {site}: personalised model, validation Dice {result.dice:.3f}, global model "
            f"{result.dice_before:.3f}; {kept}"
        )


def curves(asked: Sequence[str], place: Path) -> "Curves":
    """Return what writes a run's rounds for the trackers that are asked for, and the usual ones."""
    from mixmfl.federated.server.curves import Curves
    from mixmfl.federated.server.tracking import usual_trackers

    return Curves(list(dict.fromkeys((*usual_trackers(), *asked))), place)


@contextmanager
def bar_when_needed() -> Iterator[Callable[[str, int, int], None]]:
    """Yield a function (what, done, total) that draws progress bars, from its first call on.

    While rounds are printed, nothing is drawn.
    """
    with ExitStack() as stack:
        drawn: list[Callable[[str, int, int], None]] = []

        def report(what: str, done: int, total: int) -> None:
            if not drawn:
                drawn.append(stack.enter_context(_runner.bars()))
            drawn[0](what, done, total)

        yield report


def _stopwatch() -> Callable[[], float]:
    """Return a function that returns the seconds since its last call, or since its creation."""
    last = time.monotonic()

    def lap() -> float:
        nonlocal last
        before, last = last, time.monotonic()
        return last - before

    return lap


@contextmanager
def crowd_watch(seconds: float = 60) -> Iterator[None]:
    """Warn once, so many seconds from now, if threads have mostly waited for cores since then."""
    import torch

    from mixmfl.core.core_time import core_time, crowded

    begun = core_time()

    def warn() -> None:
        if text := crowded(begun, core_time(), torch.get_num_threads()):
            print(text, file=sys.stderr)

    timer = threading.Timer(seconds, warn)  # a round may take hours
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
