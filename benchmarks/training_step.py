"""Compare a training step of MDM with nnU-Net's, on the same plans, patches and labels.

Batches are made once, by the sites' own sampling and augmentation, and stay in memory. Each is
cut to the first 1, 2, … of its modalities. Both take a whole step on it: forward, loss at every
resolution, backward, clipping, optimizer. Each has a process of its own, and steps are timed in
turn, so that what else the machine does falls on both; on a CPU in seconds of the processor.
"""

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from mixmfl.core.process_memory import keep_freed_memory
from mixmfl.core.text import times
from mixmfl.networks.build import build_network, prototype_sizes
from mixmfl.networks.parameters import block_of
from mixmfl.networks.prototypes import PrototypeMemory
from mixmfl.planning.plans import Plans
from mixmfl.planning.preprocessed_case import open_cases
from mixmfl.training.batches import Batch, Batches
from mixmfl.training.nnunet_training import supervision_targets
from mixmfl.training.trainer import LocalTraining, train_locally

STEPS = 3
"""Steps of a round; what a round costs besides falls on so many."""

Timed = Callable[[], float]


def main(argv: Sequence[str] | None = None) -> None:
    """Print a table of seconds per step."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "-i", "--input", type=Path, required=True, metavar="WORK", help="of mixmfl_plan_preprocess"
    )
    parser.add_argument("-c", "--configuration", default="2d", help="2d (default) or 3d_fullres")
    parser.add_argument(
        "--repeats", type=int, default=7, help=f"of {STEPS} steps each (default: 7)"
    )
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    options = parser.parse_args(argv)
    plans = Plans.load(options.input / "plans.json")
    whole = draw(options.input, plans, options.configuration)
    given = plans, options.configuration, whole, options.device
    rows = []
    for count in range(1, len(plans.modalities) + 1):
        with process(mdm_step, *given, count) as ours, process(nnunet_step, *given) as theirs:
            mine, peer = in_turn(ours, theirs, options.repeats)
        rows.append((count, mine, peer))
    patch = times(whole.images.shape[2:])
    print(
        f"{options.configuration}, patch {patch}, batch {len(whole.images)}, {options.device}, "
        f"{torch.get_num_threads()} threads; median of {options.repeats} times {STEPS} steps"
    )
    print(f"{'modalities':>10} {'mdm, s':>8} {'nnU-Net with all, s':>20} {'ratio':>6}")
    for count, mine, peer in rows:
        print(f"{count:>10} {mine:8.3f} {peer:20.3f} {mine / peer:6.2f}")
    count, mine, peer = rows[-1]
    print(f"ratio {mine / peer:.2f} a step of MDM with {count} modalities over one of nnU-Net")


def draw(work: Path, plans: Plans, configuration: str) -> Batch:
    """Return a batch of cases that have all modalities; where there is none, of the fullest."""
    folders = sorted((work / "sites").glob(f"*/{configuration}"))
    cases = [case for folder in folders for case in open_cases(folder)]
    most = max(len(case.modalities) for case in cases)
    full = [case for case in cases if len(case.modalities) == most]
    return Batches(full, plans, configuration, (0, 0, "benchmark"), 1)[0]


def showing(batch: Batch, count: int) -> Batch:
    """Return the batch as of cases that have the first modalities alone."""
    present = torch.zeros_like(batch.present)
    present[:, :count] = True
    shown = present.clone()
    shown[:, 1:] = False  # the modality-dropout view has one of them
    images = batch.images * present.reshape(*present.shape, *[1] * (batch.images.ndim - 2))
    return replace(batch, images=images, present=present, shown=shown)


def mdm_step(
    plans: Plans, configuration: str, whole: Batch, device: str, count: int
) -> Callable[[], object]:
    """Return what takes steps as a site does, with a memory of all modalities."""
    if device == "cpu":
        keep_freed_memory()
    place, batch = torch.device(device), showing(whole, count)
    network = build_network(plans, configuration, seed=0).to(place)
    memory: PrototypeMemory = {
        (modality, level): replace(size.unseen(), counts=torch.ones(size.rows))
        for modality in plans.modalities
        for level, size in prototype_sizes(plans, configuration).items()
    }
    blocks = {block_of(name) for name, _ in network.named_parameters()}
    batches = [batch] * STEPS
    training = LocalTraining(plans, configuration, blocks, 1e-3, place)
    return lambda: train_locally(network, memory, {}, batches, training)


def nnunet_step(
    plans: Plans, configuration: str, batch: Batch, device: str
) -> Callable[[], object]:
    """Return what takes as many steps by nnU-Net's own trainer."""
    described = {
        **plans.labels.to_json(),
        "channel_names": dict(enumerate(plans.modalities)),
        "file_ending": ".nii.gz",
    }
    with tempfile.TemporaryDirectory() as folder:
        os.environ["nnUNet_results"] = folder  # noqa: SIM112 - so it is spelt
        named = {**plans.nnunet, "dataset_name": "benchmark", "continue_training": False}
        trainer = nnUNetTrainer(named, configuration, 0, described, torch.device(device))
        trainer._set_batch_size_and_oversample()
        planned = trainer.configuration_manager
        trainer.network = trainer.build_network_architecture(
            trainer.plans_manager, planned, len(plans.modalities),
            trainer.label_manager.num_segmentation_heads, True,
        ).to(device)  # fmt: skip
        trainer.optimizer, trainer.lr_scheduler = trainer.configure_optimizers()
        trainer.loss = trainer._build_loss()
    targets = supervision_targets(batch.classes, plans.labels)
    given = {"data": batch.images, "target": [item.float() for item in targets]}
    return lambda: [trainer.train_step(given) for _ in range(STEPS)]


@contextmanager
def process(make: Callable[..., Callable[[], object]], *given: object) -> Iterator[Timed]:
    """Give what takes steps in a process of its own, and returns the seconds of one."""
    context = multiprocessing.get_context("spawn")
    start = (torch.get_num_threads(), make, given)
    with ProcessPoolExecutor(1, context, _begin, start) as pool:
        yield lambda: pool.submit(_seconds).result()


_STEPS: list[Callable[[], object]] = []  # of this process


def _begin(threads: int, make: Callable[..., Callable[[], object]], given: Sequence[Any]) -> None:
    torch.set_num_threads(threads)
    _STEPS.append(make(*given))


def _seconds() -> float:
    on_gpu = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    now = time.perf_counter if on_gpu else time.process_time
    start = now()
    _STEPS[0]()
    if on_gpu:
        torch.cuda.synchronize()
    return (now() - start) / STEPS


def in_turn(one: Timed, other: Timed, repeats: int) -> tuple[float, float]:
    """Return the median seconds of a step of each, timed in turn after steps that are not."""
    timed = [(one(), other()) for _ in range(repeats + 1)][1:]
    return statistics.median(a for a, _ in timed), statistics.median(b for _, b in timed)


if __name__ == "__main__":
    main()
