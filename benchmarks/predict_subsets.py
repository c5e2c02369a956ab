"""Predict the same cases from one, two, … of their modalities, in turn, with the same model.

Beside whole commands stands the network's own share: a patch, again and again, in one process.
"""

import shutil
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from side_by_side import (
    SITE,
    Bench,
    Command,
    Cost,
    median,
    parser,
    script,
    set_up,
    table,
    write_model,
)

from mixmfl.inference.model import load_model


def main() -> None:
    """Print a table by the number of modalities, and the worst share of the allowed time."""
    options = parser(__doc__).parse_args()
    bench = set_up(options)
    model, masks = write_model(bench), bench.folder / "masks"
    names = bench.plans.modalities
    counts = range(1, len(names) + 1)
    costs: dict[int, list[Cost]] = {count: [] for count in counts}
    for _ in range(options.repeats):
        for count in counts:
            shutil.rmtree(masks, ignore_errors=True)
            command: Command = [
                script("mixmfl_predict"), "-i", bench.federation / SITE, "-o", masks, "-m", model,
                "--modalities", ",".join(names[:count]), "--no-report",
            ]  # fmt: skip
            costs[count].append(bench.run(command))
    medians = {count: median(each) for count, each in costs.items()}
    print(f"{bench.describe()}; median of {options.repeats}")
    print(table({f"{count} of {len(names)}": cost for count, cost in medians.items()}))
    whole = [medians[count].cpu_seconds / medians[len(names)].cpu_seconds for count in counts]
    print(f"CPU time as a share of all modalities': {shares(whole)}")
    torch.set_num_threads(bench.threads)
    alone = patch_seconds(bench, model, options.repeats)
    network = [seconds / alone[-1] for seconds in alone]
    print(f"the same of the network alone: {shares(network)}")
    allowed = [(count + 1) / (len(names) + 1) for count in counts]
    print(f"(k + 1) / (all + 1): {shares(allowed)}")
    worst = max(share / most for share, most in zip(whole, allowed, strict=True))
    print(f"ratio {worst:.2f} CPU time with k modalities over (k + 1) / (all + 1) of that with all")


def shares(values: Sequence[float]) -> str:
    """Return them as text."""
    return ", ".join(f"{value:.2f}" for value in values)


def patch_seconds(bench: Bench, file: Path, repeats: int) -> list[float]:
    """Return the CPU seconds that a patch of 1, 2, ... modalities takes; medians."""
    model = load_model(file)
    names = bench.plans.modalities
    patch = bench.plans.configuration(bench.configuration)["patch_size"]
    images = torch.randn(1, len(names), *patch, generator=torch.Generator().manual_seed(0))
    seconds: list[list[float]] = [[] for _ in names]
    with torch.inference_mode():
        for repeat in range(repeats + 1):
            for index in range(len(names)):
                predictor = model.predictor(names[: index + 1])
                began = time.process_time()
                predictor(images[:, : index + 1])
                if repeat:  # the first one warms up
                    seconds[index].append(time.process_time() - began)
    return [statistics.median(each) for each in seconds]


if __name__ == "__main__":
    main()
