"""Measure how often a skull is seen, in folders of cases with and without skulls.

As in ``python benchmarks/skulls.py --with lgg_heads/CS lgg_heads/DU --without lgg/CS ms_mni``.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
from scipy import ndimage

from mixmfl.data.cases import find_cases
from mixmfl.data.load_case import load_case
from mixmfl.planning.skull import shows_skull, tissue_level


def main() -> int:
    """Print how many cases of each folder show a skull."""
    made = argparse.ArgumentParser(description=__doc__)
    made.add_argument("--with", dest="whole", type=Path, nargs="*", default=[], metavar="CASES")
    made.add_argument("--without", type=Path, nargs="*", default=[], metavar="CASES")
    options = made.parse_args()
    for folder in options.whole:
        report(folder)
        report(folder, upper=True)
    for folder in options.without:
        report(folder)
    return 0


def report(folder: Path, upper: bool = False) -> None:
    """Print one folder's row; ``upper``: the upper half of the slices, with its air set to 0."""
    shown, cases, began = 0, find_cases(folder).cases, time.monotonic()
    for case in cases:
        loaded = load_case(case)
        images = list(loaded.images.values())
        if upper:
            images = [without_air(upper_half(image)) for image in images]
        shown += shows_skull(images, loaded.canonical.spacing)
    seconds = (time.monotonic() - began) / len(cases)
    how = ", upper half, air set to 0" if upper else ""
    print(f"{folder}{how}: {shown} of {len(cases)} show a skull; {seconds:.2f} s a case")


def upper_half(image: np.ndarray) -> np.ndarray:
    """Return the slices above the middle of those that are not empty."""
    filled = np.flatnonzero(image.any(axis=(1, 2)))
    return image[(filled[0] + filled[-1]) // 2 + 1 :]


def without_air(image: np.ndarray) -> np.ndarray:
    """Return an image that is 0 outside the head, as some scanners make it."""
    tissue = tissue_level(image)
    head = [ndimage.binary_fill_holes(ndimage.binary_opening(plane > tissue)) for plane in image]
    return np.where(head, image, 0)


if __name__ == "__main__":
    sys.exit(main())
