"""Compare the compiled norms with torch's: a training step, and a patch of optimised prediction.

Both run in one process, in turn, on a batch that stays in memory, in seconds of the processor.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from training_step import STEPS, draw, mdm_step

from mixmfl.core.devices import best_dtype
from mixmfl.core.process_memory import keep_freed_memory
from mixmfl.inference.cpu_network import CPUNetwork
from mixmfl.networks import norms
from mixmfl.networks.build import build_network
from mixmfl.planning.plans import Plans


def main(argv: Sequence[str] | None = None) -> None:
    """Print a line per kind of work."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "-i", "--input", type=Path, required=True, metavar="WORK", help="of mixmfl_plan_preprocess"
    )
    parser.add_argument("-c", "--configuration", default="2d", help="2d (default) or 3d_fullres")
    parser.add_argument("--repeats", type=int, default=7, help="default: 7")
    options = parser.parse_args(argv)
    if not norms.compiled():
        parser.error("the compiled part is not installed; install again with a C compiler")
    keep_freed_memory()
    plans = Plans.load(options.input / "plans.json")
    batch = draw(options.input, plans, options.configuration)
    count = int(batch.present.sum(dim=1).max())
    step = mdm_step(plans, options.configuration, batch, "cpu", count)
    network = build_network(plans, options.configuration, seed=0).eval()
    predict = CPUNetwork(network, best_dtype()).predictor({}, plans.modalities)

    def patch() -> object:
        with torch.inference_mode():
            return [predict(batch.images[:1]) for _ in range(STEPS)]

    size = " x ".join(map(str, batch.images.shape[2:]))
    print(f"patch {size}, {torch.get_num_threads()} threads; median of {options.repeats} rounds")
    for name, work in [
        (f"training step, {count} modalities", step),
        ("prediction of a patch", patch),
    ]:
        slow, fast = in_turn(work, options.repeats)
        print(f"{name}: {slow:.4f} CPU s by torch, {fast:.4f} compiled; ratio {slow / fast:.2f}")


def in_turn(work: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Return the median CPU seconds of a step by torch's norms, and by the compiled part."""
    seconds: dict[str, list[float]] = {"torch": [], "compiled": []}
    for repeat in range(repeats + 1):
        for part, found in seconds.items():
            with norms.by_torch() if part == "torch" else nullcontext():
                began = time.process_time()
                work()
            if repeat:  # the first warms up
                found.append((time.process_time() - began) / STEPS)
    return statistics.median(seconds["torch"]), statistics.median(seconds["compiled"])


if __name__ == "__main__":
    main()
