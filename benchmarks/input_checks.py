"""Measure what checks of images before prediction find, on patients and on spoilt copies of them.

As in ``python benchmarks/input_checks.py lgg``, a folder as ``mixmfl_benchmark_patients`` reads it.
What is usual is learned from the patients of the other test folds, and from those of the other
hospitals; every image of a patient is compared with it, as it is and spoilt in each way.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy import ndimage

from mixmfl.data.load_case import load_case
from mixmfl.planning.typical import Typical, describe_image, differences, merge_typical
from mixmfl.research.benchmark.patients import read_study

Spacing = tuple[float, float, float]
Spoilt = tuple[np.ndarray, Spacing]
AS_IT_IS = "as it is"


def main() -> int:
    """Print a table: a row per way to spoil an image."""
    made = argparse.ArgumentParser(description=__doc__)
    made.add_argument("data", type=Path, metavar="DATA")
    study = read_study(made.parse_args().data)
    fold = {
        (site, name): number
        for number, tests in enumerate(study.test_folds)
        for site, names in tests.items()
        for name in names
    }
    described: list[tuple[str, int, str, Mapping[str, Typical | None]]] = []
    for site, cases in study.cases.items():
        for case in cases:
            loaded = load_case(case)
            for modality, image in loaded.images.items():
                rng = np.random.default_rng(0)
                found = {
                    kind: describe_image(np.ascontiguousarray(each, np.float32), spacing)
                    for kind, (each, spacing) in spoilt(image, loaded.canonical.spacing, rng)
                }
                described.append((site, fold.get((site, case.name), -1), modality, found))
    print("| image | other patients: warned | refused | other hospitals: warned | refused |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for kind in described[0][3]:
        cells = []
        for place in (1, 0):
            cells += [f"{share:.0%}" for share in judged(described, kind, place)]
        print(f"| {kind} | {' | '.join(cells)} |")
    return 0


def judged(
    described: Sequence[tuple[str, int, str, Mapping[str, Typical | None]]],
    kind: str,
    place: int,
) -> tuple[float, float]:
    """Return the shares of images that are warned of and refused, by what is usual elsewhere.

    Args:
        described: Hospital, fold, modality and numbers of each image, by the way it is spoilt.
        kind: The way.
        place: What must differ: 0 the hospital, 1 the fold.
    """
    taken_for, _, modality = kind.partition(" named ")
    warned, refused = [], []
    for item in described:
        if modality and (item[2] != taken_for or modality == taken_for):
            continue
        usual = merge_typical(
            {item_[2]: image}
            for item_ in described
            if item_[place] != item[place]
            and item_[2] == (modality or item[2])
            and (image := item_[3][AS_IT_IS]) is not None
        )[modality or item[2]]
        image = item[3][kind]
        found = differences(image, usual) if image is not None else []
        warned.append(bool(found) or image is None)
        refused.append(any(each.is_far for each in found))
    return float(np.mean(warned)), float(np.mean(refused))


def spoilt(
    image: np.ndarray, spacing: Spacing, rng: np.random.Generator
) -> Iterator[tuple[str, Spoilt]]:
    """Yield an image as it is, and spoilt in many ways, with their names."""
    z, y, x = spacing
    head = image != 0
    spread = float(image[head].std())

    def kept(voxels: np.ndarray) -> np.ndarray:
        return np.where(head, voxels, 0)

    def without(axis: int, share: float) -> np.ndarray:
        held = np.flatnonzero(image.any(axis=tuple(a for a in range(3) if a != axis)))
        cut = image.copy()
        np.moveaxis(cut, axis, 0)[: held[0] + int(share * (held[-1] - held[0]))] = 0
        return cut

    def blurred(mm: float) -> np.ndarray:
        return kept(ndimage.gaussian_filter(image, [mm / 2.355 / side for side in spacing]))

    yield AS_IT_IS, (image, spacing)
    yield "upside down", (image[::-1], spacing)
    yield "back to front", (image[:, ::-1], spacing)
    yield "left to right", (image[:, :, ::-1], spacing)
    yield "axes Z and Y exchanged", (image.transpose(1, 0, 2), (y, z, x))
    yield "axes Y and X exchanged", (image.transpose(0, 2, 1), (z, x, y))
    yield "lower half missing", (without(0, 0.5), spacing)
    yield "lower third missing", (without(0, 1 / 3), spacing)
    yield "one side missing", (without(2, 0.5), spacing)
    yield "one end (Y) missing", (without(1, 0.5), spacing)
    yield "spacing ten times too small", (image, (z / 10, y / 10, x / 10))
    yield "spacing 1.5 times too large", (image, (1.5 * z, 1.5 * y, 1.5 * x))
    yield "slice distance twice too large", (image, (2 * z, y, x))
    yield "grey values inverted", (kept(image.max() - image + 1), spacing)
    yield "bright values cut off", (np.minimum(image, np.percentile(image[head], 60)), spacing)
    yield (
        "bias field, factor 5 across",
        (
            image * np.exp(0.8 * np.linspace(-1, 1, image.shape[2])),
            spacing,
        ),
    )
    yield "noise of half the spread", (kept(image + rng.normal(0, spread / 2, head.shape)), spacing)
    yield "blurred by 4 mm", (blurred(4), spacing)
    yield "blurred by 8 mm", (blurred(8), spacing)
    ghosts = image / 2 + np.roll(image, 6, 1) / 4 + np.roll(image, -6, 1) / 4
    yield "ghosts of half the signal", (kept(ghosts), spacing)
    lines, moved = (np.fft.fft(each, axis=1) for each in (image, np.roll(image, 2, 1)))
    late = rng.random(image.shape[1]) < 0.35
    lines[:, late] = moved[:, late]
    yield "moved by 2 voxels for a third", (kept(np.abs(np.fft.ifft(lines, axis=1))), spacing)
    yield "two of three slices replaced", (np.repeat(image[::3], 3, 0)[: len(image)], spacing)
    for name in ("t1", "t1c", "flair"):
        for other in ("t1", "t1c", "flair"):
            if name != other:
                yield f"{name} named {other}", (image, spacing)


if __name__ == "__main__":
    sys.exit(main())
