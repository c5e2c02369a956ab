"""Preprocess cases by ``mixmfl_plan_preprocess`` and by ``nnUNetv2_preprocess``, in turn.

Both read the same files with the same plans, in one process, and end with arrays on disk that
training can read. The arrays are compared: images voxel by voxel, labels by their share of equal
voxels. ``--spacing`` plans other voxels than the cases have, so that they are resampled.
"""

import shutil
from pathlib import Path

import blosc2
import numpy as np
from side_by_side import DATASET, SITE, Bench, Command, Cost, median, parser, script, set_up, table

PEER = "experiment_planning.plan_and_preprocess_entrypoints"


def main() -> None:
    """Print a table of both, how far arrays differ, and how many times faster ours is."""
    options = parser(__doc__).parse_args()
    bench = set_up(options)
    work = bench.folder / "work"
    commands: dict[str, Command] = {
        "mixmfl_plan_preprocess": [
            script("mixmfl_plan_preprocess"), "-i", bench.federation, "-o", work, "-n", "1",
            "--plans", bench.folder / "plans.json", "-c", bench.configuration,
        ],
        "nnUNetv2_preprocess": [
            *bench.nnunet(PEER, "preprocess_entry"),
            "-d", "1", "-plans_name", "plans", "-c", bench.configuration, "-np", "1",
        ],
    }  # fmt: skip
    costs: dict[str, list[Cost]] = {name: [] for name in commands}
    for _ in range(options.repeats):
        shutil.rmtree(work, ignore_errors=True)
        shutil.rmtree(peer_arrays(bench), ignore_errors=True)
        for name, command in commands.items():
            costs[name].append(bench.run(command))
    medians = {name: median(each) for name, each in costs.items()}
    print(f"{bench.describe()}; median of {options.repeats}")
    print(table(medians))
    print(compare(bench))
    ours, peer = medians.values()
    print(f"wall time: {peer.seconds / ours.seconds:.2f} times less")
    ratio = peer.cpu_seconds / ours.cpu_seconds
    print(f"ratio {ratio:.2f} nnUNetv2_preprocess's CPU time over mixmfl_plan_preprocess's")


def peer_arrays(bench: Bench) -> Path:
    """Return the folder of nnU-Net's arrays."""
    name = bench.plans.configuration(bench.configuration)["data_identifier"]
    return bench.folder / "nnUNet_preprocessed" / DATASET / str(name)


def compare(bench: Bench) -> str:
    """Return how far the arrays of both differ."""
    ours = bench.folder / "work" / "sites" / SITE / bench.configuration
    theirs = peer_arrays(bench)
    images, labels = 0.0, 1.0
    for name in bench.cases:
        mine, peer = (
            blosc2.open(str(file), mode="r")[:]
            for file in (ours / f"{name}.images.b2nd", theirs / f"{name}.b2nd")
        )
        images = max(images, float(np.abs(mine - peer).max()))
        mine, peer = (
            blosc2.open(str(file), mode="r")[:]
            for file in (ours / f"{name}.labels.b2nd", theirs / f"{name}_seg.b2nd")
        )
        labels = min(labels, float((mine == peer).mean()))
    return f"images differ by at most {images:.1e} (z-score), {labels:.6f} of labels are equal"


if __name__ == "__main__":
    main()
