"""Predict with more and more voxels, cases, modalities and classes: seconds and peak memory.

The volumes are ellipsoids of noise, as large as fits; networks have random weights and are planned
for the smallest volume. Nothing is resampled. One thing grows at a time; the others are the first
of their list, modalities and classes four. What grows with sites is in ``merge_updates.py``.
"""

import argparse
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from side_by_side import Bench, Command, Cost, median, processor, script, write_model

from mixmfl.data.image import Grid, write_image
from mixmfl.data.labels import Labels
from mixmfl.planning.fingerprint import fingerprint_case
from mixmfl.planning.nnunet_preprocessing import nonzero_box
from mixmfl.planning.plans import load_preset
from mixmfl.planning.preprocess import make_plans

UPRIGHT = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
NAMES = ("flair", "t1", "t1c", "t2", "t2star", "pd", "dwi", "adc")


@dataclass(frozen=True)
class Work:
    """What is predicted, with the names of the plot's axes."""

    side: int
    cases: int = 1
    modalities: int = 4
    classes: int = 4


def main() -> None:
    """Print a table by what grows, and how much faster than voxels time and memory grow."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--out", type=Path, required=True, help="to work in; made anew")
    parser.add_argument("--side", type=int, nargs="+", default=[64, 128, 256], help="voxels")
    parser.add_argument("--cases", type=int, nargs="*", default=[1, 2, 4, 8])
    parser.add_argument("--modalities", type=int, nargs="*", default=[1, 2, 4, 8])
    parser.add_argument("--classes", type=int, nargs="*", default=[2, 8, 64])
    parser.add_argument("--preset", default="demo", help="shipped preset or a .json")
    parser.add_argument("-c", "--configuration", default="3d_fullres")
    parser.add_argument("--step", default="0.5", help="default: 0.5")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    side = options.side[0]
    curves = {
        "side": [Work(each) for each in options.side],
        "cases": [Work(side, cases=each) for each in options.cases],
        "modalities": [Work(side, modalities=each) for each in options.modalities],
        "classes": [Work(side, classes=each) for each in options.classes],
    }
    options.out.mkdir(parents=True)
    found: dict[str, dict[int, Cost]] = {}
    print(f"{processor()}; preset {options.preset}, step {options.step}")
    print("| what grows | | s | CPU s | peak MiB |\n| --- | ---: | ---: | ---: | ---: |")
    for name, works in curves.items():
        found[name] = {}
        for work in works:
            cost = measure(work, side, options)
            found[name][getattr(work, name)] = cost
            print(
                f"| {name} | {getattr(work, name)} | {cost.seconds:.1f} | {cost.cpu_seconds:.1f} "
                f"| {cost.peak_mib:.0f} |",
                flush=True,
            )
    draw(found, options.out / "growth.png")
    print(f"plot: {options.out / 'growth.png'}")
    sizes = list(found["side"].items())
    # the first pays for starting the command: growth is that from the second on
    (small, before), *larger = sizes[1:] if len(sizes) > 2 else sizes
    if larger:
        worst = max(
            max(cost.cpu_seconds / before.cpu_seconds, cost.peak_mib / before.peak_mib)
            / (size / small) ** 3
            for size, cost in larger
        )
        print(f"ratio {worst:.2f} growth of CPU time or memory over growth of voxels, at worst")


def measure(work: Work, planned_side: int, options: argparse.Namespace) -> Cost:
    """Return what predicting the work costs, as a command of its own."""
    folder = options.out / "work"
    names = NAMES[: work.modalities]
    labels = Labels({"background": 0, **{f"class {n}": n for n in range(1, work.classes)}})
    shape = (planned_side,) * 3
    images = {name: volume(shape, seed) for seed, name in enumerate(names)}
    found = np.random.default_rng(0).integers(0, work.classes, shape)
    box = nonzero_box(list(images.values()))
    fingerprint = fingerprint_case(images, found, (1.0, 1.0, 1.0), box)
    plans = make_plans(fingerprint, labels, load_preset(options.preset))
    folder.mkdir()
    bench = Bench(folder, plans, options.configuration, (), (shape,), options.threads)
    model = write_model(bench)
    cases, masks = folder / "cases", folder / "masks"
    shape = (work.side,) * 3
    grid = Grid(shape, (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), UPRIGHT)
    for number in range(work.cases):
        (cases / f"case{number}").mkdir(parents=True)
        for seed, modality in enumerate(names):
            file = cases / f"case{number}" / f"{modality}.nii.gz"
            write_image(file, volume(shape, seed), grid)
    command: Command = [
        script("mixmfl_predict"), "-i", cases, "-o", masks, "-m", model, "--no-report",
        "--step", options.step, "--device", "cpu",
    ]  # fmt: skip
    costs = []
    for _ in range(options.repeats):
        shutil.rmtree(masks, ignore_errors=True)
        costs.append(bench.run(command))
        assert len(list(masks.glob("*.nii.gz"))) == work.cases
    shutil.rmtree(folder)
    return median(costs)


def volume(shape: Sequence[int], seed: int) -> np.ndarray:
    """Return a modality ``(Z, Y, X)``: noise in an ellipsoid that just fits, zero around it."""
    axes = np.ogrid[tuple(slice(-1, 1, complex(size)) for size in shape)]
    inside = sum(axis**2 for axis in axes) < 1
    # of one patient: what does not look like the others is refused
    noise = np.random.default_rng(0).integers(50, 150, shape, dtype=np.int16) + seed
    return np.where(inside, noise, 0).astype(np.int16)


def draw(found: dict[str, dict[int, Cost]], file: Path) -> None:
    """Draw CPU seconds and memory against what grows, both axes logarithmic."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(found), figsize=(3 * len(found), 3), sharey=True)
    for axis, (name, costs) in zip(axes, found.items(), strict=True):
        values = list(costs)
        if not values:
            continue
        axis.loglog(values, [c.cpu_seconds for c in costs.values()], "o-", label="CPU seconds")
        axis.loglog(values, [c.peak_mib / 100 for c in costs.values()], "s--", label="100 MiB")
        if name == "side":
            last = costs[values[-1]].cpu_seconds
            linear = [last * (value / values[-1]) ** 3 for value in values]
            axis.loglog(values, linear, ":", color="grey", label="voxels")
        axis.set_xlabel(name)
        axis.set_xticks(values, [str(value) for value in values], minor=False)
        axis.minorticks_off()
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(file, dpi=110)


if __name__ == "__main__":
    main()
