"""Compare steps and patches by faster arithmetic with those by slower, on this CPU.

A training step, and a patch of optimised prediction, by torch's norms and by the compiled ones; the
patch then also by torch's convolutions and by those in fewer products, and single convolutions by
both. All run in one process, in turn, on a batch that stays in memory, in seconds of the processor.
"""

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional
from training_step import STEPS, Timed, draw, in_turn, mdm_step

from mixmfl.core.devices import best_dtype
from mixmfl.core.process_memory import keep_freed_memory
from mixmfl.core.text import times
from mixmfl.inference.cpu_network import CPUNetwork
from mixmfl.networks import norms, winograd
from mixmfl.networks.build import build_network
from mixmfl.planning.plans import Plans

Work = Callable[[], object]

CONVOLUTIONS = [
    (16, (96, 112, 80)),
    (32, (96, 112, 80)),
    (32, (48, 56, 40)),
    (64, (24, 28, 20)),
    (128, (12, 14, 10)),
]
"""Channels, before and after, and voxels of single convolutions of 3 x 3 x 3."""


def main(argv: Sequence[str] | None = None) -> None:
    """Print a line per kind of work."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "-i", "--input", type=Path, required=True, metavar="WORK", help="of mixmfl_plan_preprocess"
    )
    parser.add_argument("-c", "--configuration", default="2d", help="2d (default) or 3d_fullres")
    parser.add_argument(
        "--patches", action="store_true", help="no training steps, which take minutes in 3-D"
    )
    parser.add_argument("--repeats", type=int, default=7, help="default: 7")
    options = parser.parse_args(argv)
    if not norms.compiled():
        parser.error("the compiled part is not installed; install again with a C compiler")
    keep_freed_memory()
    plans = Plans.load(options.input / "plans.json")
    batch = draw(options.input, plans, options.configuration)
    count = int(batch.present.sum(dim=1).max())

    def patches(dtype: torch.dtype) -> Work:
        network = build_network(plans, options.configuration, seed=0).eval()
        form = CPUNetwork(network, dtype)
        predict = form.predictor({}, plans.modalities)

        def work() -> object:
            with torch.inference_mode():
                return [predict(batch.images[:1]) for _ in range(STEPS)]

        return work

    def by_torch(work: Work) -> Work:
        def slower() -> object:
            with norms.by_torch():
                return work()

        return slower

    size = times(batch.images.shape[2:])
    print(f"patch {size}, {torch.get_num_threads()} threads; median of {options.repeats} rounds")
    pairs = []
    if not options.patches:
        step = mdm_step(plans, options.configuration, batch, "cpu", count)
        name = f"training step, {count} modalities, norms by torch and compiled"
        pairs.append((name, by_torch(step), step))
    patch = patches(best_dtype())
    pairs.append(("prediction of a patch, norms by torch and compiled", by_torch(patch), patch))
    types = dict.fromkeys((best_dtype(), torch.float32))
    for dtype in types:
        with winograd.by_torch():
            usual = patches(dtype)
        name = f"prediction of a patch, {str(dtype).removeprefix('torch.')}, convolutions"
        pairs.append((f"{name} by torch and in fewer products", usual, patches(dtype)))
    pairs += [pair for dtype in types for pair in convolutions(dtype)]
    for name, slow, fast in pairs:
        before, after = in_turn(timed(slow), timed(fast), options.repeats)
        print(f"{name}: {before:.4f} and {after:.4f} CPU s; ratio {before / after:.2f}")


def convolutions(dtype: torch.dtype) -> Iterator[tuple[str, Work, Work]]:
    """Yield the name of a convolution, and it by torch and in fewer products."""

    def repeated(convolve: Callable[[torch.Tensor], object], maps: torch.Tensor) -> Work:
        return lambda: [convolve(maps) for _ in range(STEPS)]

    for channels, patch in CONVOLUTIONS:
        layer = nn.Conv3d(channels, channels, 3, padding=1, bias=False).requires_grad_(False)
        if not winograd.gains(layer, dtype):
            continue
        maps = torch.randn(1, channels, *patch).to(dtype, memory_format=norms.LAST[5])
        ours = winograd.WinogradConvolution(layer.weight, dtype)
        weight = layer.weight.to(dtype, memory_format=norms.LAST[5])
        usual = partial(functional.conv3d, weight=weight, padding=1)
        name = f"{channels} channels, {times(patch)}, {str(dtype).removeprefix('torch.')}"
        both = f"convolution, {name}, by torch and in fewer products"
        yield both, repeated(usual, maps), repeated(ours, maps)


def timed(work: Work) -> Timed:
    """Return what does the work and returns the CPU seconds of a step."""

    def seconds() -> float:
        began = time.process_time()
        work()
        return (time.process_time() - began) / STEPS

    return seconds


if __name__ == "__main__":
    main()
