import json
from itertools import permutations

import numpy as np
import pytest
from small import of_different_patients

from mixmfl.core.errors import PlansError
from mixmfl.planning.fingerprint import (
    INTENSITY_EDGES,
    Fingerprint,
    fingerprint_case,
    grids,
    intensity_properties,
    is_stacks,
    median_kept_share,
    merge_fingerprints,
    withhold_small_counts,
)


def case(
    modalities: tuple[str, ...] = ("t1",),
    spacing: tuple[float, float, float] = (2.0, 1.0, 1.0),
    size: tuple[int, int, int] = (8, 20, 30),
    seed: int = 0,
) -> Fingerprint:
    generator = np.random.default_rng(seed)
    shape = (10, 40, 40)
    labels = np.zeros(shape, dtype=int)
    labels[2:4, 5:10, 5:9] = 4
    cropped = tuple(slice(1, 1 + n) for n in size)
    images = {name: generator.normal(100, 5, shape).astype(np.float32) for name in modalities}
    return fingerprint_case(images, labels, spacing, cropped)  # type: ignore[arg-type]


def test_a_case_is_reported_by_counts_alone() -> None:
    fingerprint = case(("t1", "flair"))
    assert fingerprint.cases == 1
    assert fingerprint.modality_cases == {"t1": 1, "flair": 1}
    assert fingerprint.axes == (
        {"2x8": 1},
        {"1x20": 1},
        {"1x32": 1},
    )  # 30 is reported as 32, 8 as it is
    assert fingerprint.kept_share == {"0.30": 1}  # 8*20*30 of 16000
    assert sum(fingerprint.intensities["t1"]) == 40  # foreground voxels


def test_merging_adds_up_and_neither_order_nor_grouping_matters() -> None:
    parts = [case(("t1",), seed=1), case(("t1", "t2"), size=(6, 24, 30), seed=2), case(("t2",))]
    merged = merge_fingerprints(parts)
    assert merged.cases == 3
    assert merged.modality_cases == {"t1": 2, "t2": 2}
    assert merged.axes[0] == {"2x8": 2, "2x6": 1}
    assert sum(merged.intensities["t1"]) == 80
    for order in permutations(parts):
        assert merge_fingerprints(order) == merged
    assert merge_fingerprints([merge_fingerprints(parts[:2]), parts[2]]) == merged


def test_a_fingerprint_survives_json_to_the_last_count() -> None:
    merged = merge_fingerprints([case(("t1", "t2")), case(("flair",))])
    assert Fingerprint.from_json(json.loads(json.dumps(merged.to_json())), "x") == merged


def test_no_row_of_a_case_is_reported() -> None:
    merged = merge_fingerprints(
        [case(spacing=(5, 1, 1), size=(6, 32, 20)), case(spacing=(1, 2, 2), size=(9, 20, 32))]
    )
    spacings, sizes = grids(merged)
    # each axis is sorted for itself: 1 mm along Z stands beside 1 mm along Y, of the other case
    assert spacings.tolist() == [[1, 1, 1], [5, 2, 2]]
    assert sizes.tolist() == [[9, 32, 20], [6, 20, 32]]


def stack(along: int, thick: float = 12.0) -> Fingerprint:
    spacing, size = [0.75, 0.75, 0.75], [40, 40, 40]
    spacing[along], size[along] = thick, 8
    return case(spacing=tuple(spacing), size=tuple(size))  # type: ignore[arg-type]


def test_stacks_of_all_directions_are_planned_slices_first() -> None:
    merged = merge_fingerprints([stack(axis, mm) for axis in range(3) for mm in (10, 12, 20)])
    assert merged.slices == {"X": 3, "Y": 3, "Z": 3}
    assert is_stacks(merged)
    spacings, sizes = grids(merged)
    assert np.median(spacings, axis=0).tolist() == [12, 0.75, 0.75]
    assert np.median(sizes, axis=0).tolist() == [8, 40, 40]
    assert Fingerprint.from_json(merged.to_json(), "x") == merged


@pytest.mark.parametrize(
    "parts",
    [
        [stack(0)] * 9,
        [stack(2)] * 9,
        [stack(0)] * 10 + [stack(1)],  # one in eleven
        [stack(0), stack(1), stack(2), *[case(spacing=(1, 1, 1))] * 3],  # no more than one half
        [case(spacing=(1, 1, 1)), case(spacing=(1.9, 1, 1)), case(spacing=(1, 1.9, 1))],
    ],
)
def test_other_cases_are_planned_by_the_axes_of_the_body(parts: list[Fingerprint]) -> None:
    merged = merge_fingerprints(parts)
    assert not is_stacks(merged)
    for axis, histogram in enumerate(merged.axes):
        assert sum(histogram.values()) == len(parts)
        middle = np.median([float(k.split("x")[0]) for p in parts for k in p.axes[axis]])
        assert np.median(grids(merged)[0], axis=0)[axis] == middle


def test_medians_for_the_planner_are_those_of_the_cases() -> None:
    cases = [case(size=(n, 20, 30), spacing=(n / 2, 1, 1)) for n in (2, 7, 9)]
    spacings, sizes = grids(merge_fingerprints(cases))
    assert np.median(spacings, axis=0).tolist() == [3.5, 1.0, 1.0]
    assert np.median(sizes, axis=0).tolist() == [7, 20, 32]
    assert median_kept_share(merge_fingerprints(cases)) == pytest.approx(0.25)


def test_intensities_are_in_standard_deviations_whatever_the_scanner() -> None:
    generator = np.random.default_rng(0)
    image = generator.normal(0, 1, (10, 40, 40)).astype(np.float32)
    labels = np.zeros(image.shape, dtype=int)
    labels[:5] = 1
    box = (slice(0, 10), slice(0, 40), slice(0, 40))
    one = fingerprint_case({"t1": 50 + 3 * image}, labels, (1, 1, 1), box)
    other = fingerprint_case({"t1": 900 + 80 * image}, labels, (1, 1, 1), box)
    difference = np.subtract(one.intensities["t1"], other.intensities["t1"])
    assert np.abs(difference).sum() <= 4  # float32 rounding at the edges of bins


def test_the_description_of_intensities_is_that_of_the_histogram() -> None:
    histogram = [0] * (len(INTENSITY_EDGES) - 1)
    zero = int(np.searchsorted(INTENSITY_EDGES, 0.0))
    histogram[zero], histogram[zero + 4] = 3, 1  # middles 0.125 and 1.125
    properties = intensity_properties(tuple(histogram))
    assert properties["mean"] == pytest.approx(0.375)
    assert properties["std"] == pytest.approx(np.sqrt(3 / 16))
    assert properties["median"] == pytest.approx(0.125)
    assert properties["min"] == pytest.approx(0.125)
    assert properties["max"] == pytest.approx(1.125)
    assert intensity_properties((0,) * len(histogram))["std"] == 0.0


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ({"format": 7}, "fingerprint format 7 was found, 5 is needed"),
        ({"subjects": {"robot": 1}}, "subjects: name: is 'robot'; it must be patients or"),
        ({"anatomy": {"brain": 2}}, "anatomy: the counts do not add up"),
        ({"patients": 3}, r"unknown fields \['patients'\]"),
        ({"cases": -1}, "cases: is -1; it must be a whole number from 1 to"),
        ({"cases": 5}, "do not add up to its 5 cases"),
        ({"axes": [{"1xa": 1}] * 3}, "axes Z: '1xa' is no spacing"),
        ({"axes": [{"-1x4": 1}] * 3}, "axes Z: '-1x4' is no spacing"),
        (
            {"heads": {"horse": 1}},
            "heads: name: is 'horse'; it must be skull or stripped or",
        ),
        ({"heads": {"skull": 2}}, "heads: the counts do not add up"),
        ({"heads": {}}, "heads: has 0 fields; it must have from 1 to 4"),
        ({"slices": {"Q": 1}}, "slices: name: is 'Q'; it must be Z or Y or X or none"),
        ({"slices": {"Z": 2}}, "slices: the counts do not add up"),
        ({"stacked": [{"1x4": 1}]}, "stacked: has 1 entries; it must have 3"),
        ({"intensities": {"t1": [1, 2]}}, "intensities: t1: has 2 entries; it must have 60"),
        ({"intensities": {}}, "intensities and modality_cases: t1 is in one of them only"),
        ({"modality_cases": {"T 1": 1}}, "modality_cases: name: is 'T 1'; it must be a modality's"),
        ({"modality_cases": {"t1": 2}}, "modality_cases: 2 of its 1 cases"),
        ({"label_voxels": {"1": 40}}, r"unknown fields \['label_voxels'\]"),
        ({"modality_cases": 4}, "modality_cases: an object with fields is needed, not 4"),
    ],
)
def test_what_is_no_fingerprint_is_refused(spoil: dict[str, object], message: str) -> None:
    with pytest.raises(PlansError, match=message):
        Fingerprint.from_json({**case().to_json(), **spoil}, "north.json")


def test_heads_are_counted_and_few_of_a_kind_are_not_told() -> None:
    many = merge_fingerprints([case(seed=seed) for seed in range(5)])
    assert many.heads == {"stripped": 5}
    one = Fingerprint.from_json({**case().to_json(), "heads": {"skull": 1}}, "one")
    merged = merge_fingerprints([many, one])
    assert merged.heads == {"skull": 1, "stripped": 5}
    shown = withhold_small_counts(merged, 2, 0, of_different_patients(merged))
    assert shown is not None
    assert shown.heads == {"stripped": 6}


def test_there_must_be_something_to_merge() -> None:
    with pytest.raises(PlansError, match="no fingerprint to merge"):
        merge_fingerprints([])
