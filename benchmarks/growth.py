"""Predict volumes of growing size by ``mixmfl_predict``: seconds and peak memory.

The volumes are ellipsoids of noise, as large as fits; the network has random weights and is
planned for the smallest of them. Nothing is resampled.
"""

import math
import shutil

import numpy as np
from side_by_side import Bench, Command, Cost, median, parser, processor, script, table, write_model

from mixmfl.fingerprint import fingerprint_case
from mixmfl.image import Grid, write_image
from mixmfl.labels import Labels
from mixmfl.nnunet import nonzero_box
from mixmfl.plan import load_preset
from mixmfl.preprocess import make_plans

UPRIGHT = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
NAMES = ("flair", "t1", "t1c", "t2", "t2star", "pd", "dwi", "adc")


def main() -> None:
    """Print a table by size, and how much faster than voxels time and memory grow at worst."""
    made = parser(__doc__)
    made.add_argument(
        "--shapes", nargs="+", default=["64x64x64", "96x96x96", "128x128x128"], metavar="ZxYxX"
    )
    made.add_argument("--modalities", type=int, default=4, metavar="N", help="1 to 8; default: 4")
    made.add_argument("--classes", type=int, default=4, metavar="N", help="default: 4")
    made.add_argument("--step", default="0.5", help="default: 0.5")
    options = made.parse_args()
    shapes = []
    for shape in options.shapes:
        z, y, x = map(int, shape.split("x"))
        shapes.append((z, y, x))
    names = NAMES[: options.modalities]
    labels = Labels(
        {"background": 0, **{f"class {n}": n for n in range(1, options.classes)}}
    )  # fmt: skip
    options.out.mkdir(parents=True)
    images = {name: volume(shapes[0], seed) for seed, name in enumerate(names)}
    found = np.random.default_rng(0).integers(0, options.classes, shapes[0])
    box = nonzero_box(list(images.values()))
    fingerprint = fingerprint_case(images, found, (1.0, 1.0, 1.0), box)
    plans = make_plans(fingerprint, labels, load_preset(options.preset))
    bench = Bench(options.out, plans, options.configuration, (), tuple(shapes), options.threads)
    model = write_model(bench)

    rows: dict[str, Cost] = {}
    for name, shape in zip(options.shapes, shapes, strict=True):
        cases, masks = bench.folder / "cases", bench.folder / "masks"
        for seed, modality in enumerate(names):
            (cases / "case").mkdir(parents=True, exist_ok=True)
            grid = Grid(shape, (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), UPRIGHT)
            write_image(cases / "case" / f"{modality}.nii.gz", volume(shape, seed), grid)
        costs = []
        for _ in range(options.repeats):
            shutil.rmtree(masks, ignore_errors=True)
            command: Command = [
                script("mixmfl_predict"), "-i", cases, "-o", masks, "-m", model, "--no-report",
                "--step", options.step,
            ]  # fmt: skip
            costs.append(bench.run(command))
        rows[name] = median(costs)
        shutil.rmtree(cases)
    patch = " x ".join(map(str, plans.configuration(options.configuration)["patch_size"]))
    print(
        f"{len(names)} modalities, {options.classes} classes, preset {options.preset}, patch "
        f"{patch}, step {options.step}; median of {options.repeats}; {processor()}"
    )
    print(table(rows))
    voxels = [math.prod(shape) for shape in shapes]
    costs = list(rows.values())
    worst = max(
        max(cost.cpu_seconds / costs[0].cpu_seconds, cost.peak_mib / costs[0].peak_mib)
        / (size / voxels[0])
        for cost, size in zip(costs, voxels, strict=True)
    )
    print(f"ratio {worst:.2f} growth of CPU time or memory over growth of voxels, at worst")


def volume(shape: tuple[int, int, int], seed: int) -> np.ndarray:
    """Return noise in an ellipsoid that fits into ``(Z, Y, X)``, zero around it."""
    axes = np.ogrid[tuple(slice(-1, 1, complex(size)) for size in shape)]
    inside = sum(axis**2 for axis in axes) < 1
    noise = np.random.default_rng(seed).integers(50, 150, shape, dtype=np.int16)
    return np.where(inside, noise, 0).astype(np.int16)


if __name__ == "__main__":
    main()
