"""Compare the masks of a model's optimised CPU form with those of its plain form.

The plain form is in single precision and is the one that was validated. The model should be a
trained one: what random weights find is noise, and rounding turns noise round.
"""

import argparse
import dataclasses
import statistics
from pathlib import Path

import numpy as np
import torch

from mixmfl.core.devices import best_dtype
from mixmfl.data.cases import find_cases
from mixmfl.data.load_case import load_case
from mixmfl.inference.model import load_model
from mixmfl.inference.segmentation import Options, predict_case


def main() -> None:
    """Print the Dice of every case and label, the lowest and the mean."""
    made = argparse.ArgumentParser(description=__doc__)
    made.add_argument("-i", "--input", type=Path, required=True, metavar="CASES")
    made.add_argument("-m", "--model", type=Path, required=True)
    made.add_argument("--mirror", action="store_true")
    options = made.parse_args()
    torch.set_num_threads(1)
    quick = load_model(options.model)
    plain = dataclasses.replace(quick, runner=quick.network)
    assert plain.runner is not quick.runner, "this model has no optimised CPU form"
    names = list(quick.plans.labels.consecutive().foreground)
    print(f"{quick.configuration}, {best_dtype()}")
    print("| case | " + " | ".join(f"{name}: voxels | Dice" for name in names) + " |")
    print("| --- |" + " --- | --- |" * len(names))
    found_dice = []
    for case in find_cases(options.input).cases:
        images = {n: f for n, f in case.images.items() if n in quick.modalities}
        loaded = load_case(dataclasses.replace(case, images=images), None)
        found, want = (
            predict_case([model], loaded, Options(mirror=options.mirror))
            for model in (quick, plain)
        )
        row = []
        for values in quick.plans.labels.consecutive().foreground.values():
            mine, theirs = np.isin(found, values), np.isin(want, values)
            size = int(theirs.sum())
            dice = 2 * int((mine & theirs).sum()) / max(1, int(mine.sum()) + size)
            row.append(f"{size} | {dice:.5f}" if size else f"{size} | ")
            found_dice += [dice] if size else []
        print(f"| {case.name} | " + " | ".join(row) + " |", flush=True)
    print(f"lowest: {min(found_dice):.5f}")
    mean = statistics.mean(found_dice)
    print(f"ratio {mean:.5f} mean Dice of the optimised CPU form's masks against the plain form's")


if __name__ == "__main__":
    main()
