"""What a round of an embedded federation takes beside the gradient steps of its sites.

The sites are those of WORK, over and over under other names until there are enough. Timed are
whole rounds, the part of them that is local training, and how much of that waits for batches.
What a round costs besides does not grow with its steps, so that its share in a round of as many
steps as planned follows from few.
"""

import argparse
import dataclasses
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from mixmfl.federated import state
from mixmfl.federated.client import training as rounds
from mixmfl.federated.simulation import simulate
from mixmfl.federated.sites import open_sites
from mixmfl.federated.state import RunSettings
from mixmfl.planning.plans import Plans


class Stopwatch:
    """Adds up seconds."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function, timed."""

        def run(*arguments: Any, **named: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                self.seconds += time.perf_counter() - began

        return run

    def waiting(self, loader: Callable[..., Any]) -> Callable[..., Iterator[Any]]:
        """Return what makes a loader, timed while it is waited for."""

        def batches(*arguments: Any) -> Iterator[Any]:
            found = iter(loader(*arguments))
            following = self.timed(lambda: next(found, None))
            while (batch := following()) is not None:
                yield batch

        return batches


def main() -> None:
    """Print a table by round, and the share of what is no local training."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-i", "--input", type=Path, required=True, metavar="WORK")
    parser.add_argument("-c", "--configuration", default="3d_fullres", help="2d or 3d_fullres")
    parser.add_argument("--sites", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1, help="of a site in a round (default: 1)")
    parser.add_argument("--workers", type=int, default=0, help="that load batches (default: 0)")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    plans, device = Plans.load(options.input / "plans.json"), torch.device(options.device)
    opened = open_sites(
        *(options.input, plans, options.configuration, "all", 0, device, options.workers)
    )
    sites = [
        dataclasses.replace(site, name=f"{site.name}{number}")
        for number, site in zip(range(options.sites), itertools.cycle(opened), strict=False)
    ]
    training, waiting = Stopwatch(), Stopwatch()
    names = vars(rounds)  # of what rounds imports
    names["train_locally"] = training.timed(names["train_locally"])
    names["loader"] = waiting.waiting(names["loader"])
    settings = RunSettings(options.configuration, 0, options.rounds, options.steps, 1e-3)
    told = [(time.perf_counter(), 0.0, 0.0)]
    with tempfile.TemporaryDirectory() as folder:
        simulate(
            *(plans, sites, settings, "all", Path(folder) / "run"),
            report=lambda run: told.append(
                (time.perf_counter(), training.seconds, waiting.seconds)
            ),
            measured=False,
        )
    spans = [
        [later - sooner for sooner, later in zip(one, other, strict=True)]
        for one, other in itertools.pairwise(told)
    ]
    weights = state.first_state(plans, settings).weights
    megabytes = sum(tensor.numel() * tensor.element_size() for tensor in weights.values()) / 1e6
    print(
        f"{options.sites} sites, a network of {megabytes:.0f} MB, {options.steps} steps each, "
        f"{options.workers} processes load; {device}, {torch.get_num_threads()} threads"
    )
    print("| round | s | of these local training | of these waiting for batches | the rest |")
    print("| ---: | ---: | ---: | ---: | ---: |")
    for number, (whole, local, waited) in enumerate(spans, start=1):
        print(f"| {number} | {whole:.1f} | {local:.1f} | {waited:.2f} | {whole - local:.1f} |")
    whole, local, waited = (statistics.median(column) for column in zip(*spans, strict=True))
    rest, planned = whole - local, plans.training.local_steps
    print(f"waiting for batches: {waited / local:.3f} of local training")
    share = rest / (rest + local / options.steps * planned)
    print(f"ratio {share:.4f} of a round of {planned} steps that is no local training")


if __name__ == "__main__":
    main()
