"""Compare the memory that a training step takes on a CPU with the planner's count of it.

Every preset is planned for the statistics of WORK, with a memory and a width of features that
this machine can train, and takes two steps on a batch of noise, in which every case has every
modality, in a process of its own. Printed is by how much the process grew at most, less gradients
and optimizer state, over twice the count: on a CPU feature maps are in single precision.
"""

import argparse
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch

from mixmfl.core.process_memory import give_back_memory, peak_memory_mb, reset_peak
from mixmfl.core.text import times
from mixmfl.networks.build import build_network
from mixmfl.networks.parameters import block_of
from mixmfl.planning.federation_plans import make_plans, read_fingerprints
from mixmfl.planning.plans import Plans, load_preset
from mixmfl.training.batches import Batch
from mixmfl.training.hardware import map_memory_gb
from mixmfl.training.trainer import LocalTraining, train_locally

STEPS = 2

_ROW = "{:<9} {:<13} {:>12} {:>5} {:>9} {:>8} {:>5}"


def main(argv: Sequence[str] | None = None) -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "-i", "--input", type=Path, required=True, metavar="WORK", help="of mixmfl_plan_preprocess"
    )
    parser.add_argument("--presets", nargs="+", default=["default", "wide", "resenc-m"])
    parser.add_argument("--memory-gb", type=float, default=0.5, help="default: 0.5")
    parser.add_argument("--base-features", type=int, default=16, help="default: 16")
    options = parser.parse_args(argv)
    width = options.base_features
    print(
        _ROW.format("preset", "configuration", "patch", "batch", "2 x count", "grew, MB", "ratio")
    )
    for name in options.presets:
        for configuration in ("2d", "3d_fullres"):
            plans = plan(options.input, name, options.memory_gb, width)
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
                grew = process.submit(growth_mb, plans, configuration).result()
            planned = plans.nnunet["configurations"][configuration]
            patch = times(planned["patch_size"])
            count = 2 * 1000 * map_memory_gb(plans, configuration)
            numbers = (planned["batch_size"], f"{count:.0f}", f"{grew:.0f}", f"{grew / count:.2f}")
            print(_ROW.format(name, configuration, patch, *numbers), flush=True)


def plan(work: Path, name: str, memory_gb: float, features: int) -> Plans:
    """Return the plans of a preset for the statistics of WORK, in a given memory and width."""
    preset = load_preset(name)
    planner = replace(
        preset.planner,
        memory_gb=memory_gb,
        base_features=features,
        max_features_2d=8 * features,
        max_features_3d=8 * features,
    )
    (statistics,) = read_fingerprints([work / "fingerprint.json"])
    labels = Plans.load(work / "plans.json").labels
    return make_plans(statistics, labels, replace(preset, planner=planner))


def growth_mb(plans: Plans, configuration: str) -> float:
    """Return by how much this process grows in steps at most, without what stays after them, MB."""
    torch.set_num_threads(1)
    network = build_network(plans, configuration, seed=0)
    planned = plans.nnunet["configurations"][configuration]
    rows, count, size = planned["batch_size"], len(plans.modalities), planned["patch_size"]
    classes = torch.randint(0, 2, (rows, 1, *size))
    batch = Batch(
        torch.randn(rows, count, *size),
        torch.ones(rows, count, dtype=torch.bool),
        torch.ones(rows, count, dtype=torch.bool),
        [classes],
        torch.arange(rows),
    )
    blocks = {block_of(name) for name, _ in network.named_parameters()}
    training = LocalTraining(plans, configuration, blocks, 1e-3, torch.device("cpu"))
    train_locally(network, {}, {}, [batch], training)  # libraries take their own memory
    for parameter in network.parameters():
        parameter.grad = None
    give_back_memory()
    reset_peak()
    before = peak_memory_mb()
    train_locally(network, {}, {}, [batch] * STEPS, training)
    stays = 3 * sum(4 * each.numel() for each in network.parameters()) / 1024**2
    return (peak_memory_mb() - before - stays) * 1024**2 / 1e6


if __name__ == "__main__":
    main()
