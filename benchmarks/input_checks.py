"""Measure what checks of images before prediction find, on patients and on spoilt copies of them.

As in ``python benchmarks/input_checks.py lgg``, a folder as ``mixmfl_benchmark_patients`` reads it.
What is usual is learned from the patients of the other test folds, and from those of the other
hospitals; every image of a patient is compared with it, as it is and spoilt in each way.

With ``--model RUN/model.safetensors --fold 0`` it measures instead what each way to spoil does to
masks: those of the patients of a test fold that the model was not trained on.
"""

import argparse
import dataclasses
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage

from mixmfl.data.cases import Case
from mixmfl.data.load_case import LoadedCase, load_case
from mixmfl.inference.model import Model
from mixmfl.inference.model_file import load_model
from mixmfl.inference.segmentation import predict_case
from mixmfl.planning.typical import Typical, describe_image, merge_typical, unusual
from mixmfl.research.benchmark.patients import Study, read_study

Spacing = tuple[float, float, float]
Spoilt = tuple[np.ndarray, Spacing]
AS_IT_IS = "as it is"
PLACES = ("fold", "site")
LOST = 0.1  # Dice


@dataclass(frozen=True)
class Described:
    """Numbers of the images of a patient.

    Attributes:
        site: Hospital.
        fold: Test fold; -1: of none.
        numbers: By modality, then by the way that the image is spoilt.
    """

    site: str
    fold: int
    numbers: Mapping[str, Mapping[str, Typical | None]]


def main() -> int:
    """Print a table: a row per way to spoil an image."""
    made = argparse.ArgumentParser(description=__doc__)
    made.add_argument("data", type=Path, metavar="DATA")
    made.add_argument("--model", type=Path, help="measure its masks of spoilt images")
    made.add_argument("--fold", type=int, default=0, help="of the patients that it was tested on")
    made.add_argument(
        "--patients", type=int, default=1000, help="so many of each hospital, at most"
    )
    options = made.parse_args()
    study = read_study(options.data)
    if options.model:
        print_masks(study, load_model(options.model), options.fold, options.patients)
    else:
        print_checks(
            [describe(study, site, case) for site, cases in study.cases.items() for case in cases]
        )
    return 0


def describe(study: Study, site: str, case: Case) -> Described:
    """Return the numbers of a patient's images, spoilt in all ways."""
    folds = [case.name in tests.get(site, ()) for tests in study.test_folds]
    loaded = load_case(case)
    numbers = {
        modality: {
            kind: describe_image(np.ascontiguousarray(each, np.float32), spacing)
            for kind, (each, spacing) in spoilt(
                image, loaded.canonical.spacing, np.random.default_rng(0)
            )
        }
        for modality, image in loaded.images.items()
    }
    return Described(site, folds.index(True) if True in folds else -1, numbers)


def print_checks(patients: Sequence[Described]) -> None:
    """Print for each way to spoil an image how often the checks find it."""
    print("| image | other patients: warned | refused | other hospitals: warned | refused |")
    print("| --- | ---: | ---: | ---: | ---: |")
    usual = {
        (place, getattr(patient, place)): usual_elsewhere(patients, place, getattr(patient, place))
        for place in PLACES
        for patient in patients
    }
    modalities = sorted({modality for patient in patients for modality in patient.numbers})
    found: dict[str, dict[str, list[tuple[bool, bool]]]] = {}
    for place in PLACES:
        for patient in patients:
            known = usual[place, getattr(patient, place)]
            for kind, images in spoilt_cases(patient, modalities):
                found.setdefault(kind, {}).setdefault(place, []).append(judged(images, known))
    for kind, by_place in found.items():
        cells = [
            f"{np.mean([each[column] for each in by_place[place]]):.0%}"
            for place in PLACES
            for column in (0, 1)
        ]
        print(f"| {kind} | {' | '.join(cells)} |")


def usual_elsewhere(patients: Sequence[Described], place: str, here: object) -> dict[str, Typical]:
    """Return what is usual of the patients of other folds, or of other hospitals."""
    return merge_typical(
        {modality: image}
        for patient in patients
        if getattr(patient, place) != here
        for modality, each in patient.numbers.items()
        if (image := each[AS_IT_IS]) is not None
    )


def spoilt_cases(
    patient: Described, modalities: Sequence[str]
) -> Iterator[tuple[str, dict[str, Typical | None]]]:
    """Yield images that prediction could be given, with what is wrong with them.

    One image at a time is spoilt, and given alone; images that are called by a wrong name are given
    alone, and where two have exchanged their names with all others.
    """
    whole = {modality: each[AS_IT_IS] for modality, each in patient.numbers.items()}
    yield "all images of a patient, as they are", whole
    for modality, each in patient.numbers.items():
        for kind, image in each.items():
            yield kind, {modality: image}
    for name in modalities:
        for other in modalities:
            if name != other and name in whole:
                yield f"{name} alone, named {other}", {other: whole[name]}
            if name < other and name in whole and other in whole:
                yield (
                    f"{name} and {other} exchanged",
                    {**whole, name: whole[other], other: whole[name]},
                )


def judged(images: Mapping[str, Typical | None], usual: Mapping[str, Typical]) -> tuple[bool, bool]:
    """Return whether images are warned of, and whether they are refused."""
    known = {name: image for name, image in images.items() if image is not None}
    found = unusual(known, usual, names=True)  # brains, of which prediction judges names
    return bool(found) or len(known) < len(images), any(each.is_far for _, each in found)


def print_masks(study: Study, model: Model, fold: int, most: int) -> None:
    """Print what each way to spoil images does to the masks of a test fold's patients."""
    others = [
        described_case(load_case(case))
        for site, cases in study.cases.items()
        for case in cases
        if case.name not in study.test_folds[fold].get(site, ())
    ]
    usual = merge_typical(
        {name: image for name, image in each.items() if image is not None} for each in others
    )
    scores: dict[str, list[tuple[float, float, bool]]] = {}
    for site, tests in study.test_folds[fold].items():
        tested = [case for case in study.cases[site] if case.name in tests]
        for case in tested[:most]:
            loaded = load_case(case, study.labels)
            dice: dict[tuple[str, ...], float] = {}
            for kind, before, after, truth in spoilt_masks(loaded, model.modalities):
                given_ = tuple(before.images)
                if given_ not in dice:
                    dice[given_] = mask_dice(model, before, loaded.labels)
                warned = judged(described_case(after), usual)[0]
                row = dice[given_], mask_dice(model, after, truth), warned
                scores.setdefault(kind, []).append(row)
                print(case.name, kind, *row, sep="\t", file=sys.stderr)
    print("| images | cases | Dice before | after | cases that lose 10 points | not warned of |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for kind, rows in scores.items():
        before, after, warned = np.array(rows, dtype=float).T
        lost = before - after > LOST
        means = " | ".join(f"{100 * mean:.1f}" for mean in (before.mean(), after.mean()))
        print(f"| {kind} | {len(rows)} | {means} | {lost.sum()} | {(lost & (warned == 0)).sum()} |")


def described_case(case: LoadedCase) -> dict[str, Typical | None]:
    """Return the numbers of a case's images."""
    return {
        name: describe_image(image, case.canonical.spacing) for name, image in case.images.items()
    }


def spoilt_masks(
    case: LoadedCase, modalities: Sequence[str]
) -> Iterator[tuple[str, LoadedCase, LoadedCase, np.ndarray]]:
    """Yield a case before and after it is spoilt, and the true mask of the latter.

    All images of the case are spoilt alike. Where two exchange their names the others stay, and one
    under a wrong name is alone.
    """
    assert case.labels is not None
    spacing = case.canonical.spacing
    of_case = {
        name: dict(spoilt(image, spacing, np.random.default_rng(0)))
        for name, image in case.images.items()
    }
    head = np.logical_or.reduce([image != 0 for image in case.images.values()])
    masks = dict(rearranged(case.labels, head, spacing))
    for kind in of_case[min(case.images)]:
        mask, _ = masks.get(kind, (case.labels, spacing))
        after = given(case, {name: each[kind] for name, each in of_case.items()})
        yield kind, case, after, np.ascontiguousarray(mask)
    whole = {name: (image, spacing) for name, image in case.images.items()}
    for name in modalities:
        for other in modalities:
            if name != other and name in whole:
                before, after = (given(case, {each: whole[name]}) for each in (name, other))
                yield f"{name} alone, named {other}", before, after, case.labels
            if name < other and name in whole and other in whole:
                exchanged = given(case, {**whole, name: whole[other], other: whole[name]})
                yield f"{name} and {other} exchanged", case, exchanged, case.labels


def given(case: LoadedCase, images: Mapping[str, Spoilt]) -> LoadedCase:
    """Return a case with other images, which are on one grid."""
    shape, spacing = next((image.shape, spacing) for image, spacing in images.values())
    return dataclasses.replace(
        case,
        images={n: np.ascontiguousarray(i, np.float32) for n, (i, _) in images.items()},
        labels=None,
        canonical=dataclasses.replace(case.canonical, shape=shape, spacing=spacing),
    )


def mask_dice(model: Model, case: LoadedCase, truth: np.ndarray | None) -> float:
    """Return the Dice of all labels together; 1 where there is nothing and nothing is found."""
    assert truth is not None  # patients of a study have masks
    found, true = predict_case([model], case) > 0, truth > 0
    both = found.sum() + true.sum()
    return float(2 * (found & true).sum() / both) if both else 1.0


def spoilt(
    image: np.ndarray, spacing: Spacing, rng: np.random.Generator
) -> Iterator[tuple[str, Spoilt]]:
    """Yield an image as it is, and spoilt in many ways, with their names."""
    head = image != 0
    spread = float(image[head].std())

    def kept(voxels: np.ndarray) -> np.ndarray:
        return np.where(head, voxels, 0)

    def blurred(mm: float) -> np.ndarray:
        return kept(ndimage.gaussian_filter(image, [mm / 2.355 / side for side in spacing]))

    def biased(axis: int) -> np.ndarray:
        shape = [-1 if each == axis else 1 for each in range(3)]
        return image * np.exp(0.8 * np.linspace(-1, 1, image.shape[axis])).reshape(shape)

    yield from rearranged(image, head, spacing)
    yield "grey values inverted", (kept(image.max() - image + 1), spacing)
    yield "bright values cut off", (np.minimum(image, np.percentile(image[head], 60)), spacing)
    yield "bias field, factor 5 along X", (biased(2), spacing)
    yield "bias field, factor 5 along Y", (biased(1), spacing)
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


def rearranged(
    voxels: np.ndarray, head: np.ndarray, spacing: Spacing
) -> Iterator[tuple[str, Spoilt]]:
    """Yield voxels in other places, missing, or of another size: those of an image or of its mask.

    Args:
        voxels: ``(Z, Y, X)``.
        head: The same, bool: where the image shows the head.
        spacing: mm, (Z, Y, X).
    """
    z, y, x = spacing

    def without(axis: int, share: float) -> np.ndarray:
        held = np.flatnonzero(head.any(axis=tuple(a for a in range(3) if a != axis)))
        cut = voxels.copy()
        np.moveaxis(cut, axis, 0)[: held[0] + int(share * (held[-1] - held[0]))] = 0
        return cut

    yield AS_IT_IS, (voxels, spacing)
    yield "upside down", (voxels[::-1], spacing)
    yield "back to front", (voxels[:, ::-1], spacing)
    yield "left to right", (voxels[:, :, ::-1], spacing)
    yield "axes Z and Y exchanged", (voxels.transpose(1, 0, 2), (y, z, x))
    yield "axes Y and X exchanged", (voxels.transpose(0, 2, 1), (z, x, y))
    yield "lower half missing", (without(0, 0.5), spacing)
    yield "lower third missing", (without(0, 1 / 3), spacing)
    yield "one side missing", (without(2, 0.5), spacing)
    yield "one end (Y) missing", (without(1, 0.5), spacing)
    yield "spacing ten times too small", (voxels, (z / 10, y / 10, x / 10))
    yield "spacing 1.5 times too large", (voxels, (1.5 * z, 1.5 * y, 1.5 * x))
    yield "slice distance twice too large", (voxels, (2 * z, y, x))


if __name__ == "__main__":
    sys.exit(main())
