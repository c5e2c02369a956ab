"""The largest component of a label, and when it alone is kept."""

import dataclasses

import numpy as np
import pytest

from mixmfl.evaluation.largest_component import LargestSums, add_largest, keep_largest


def test_the_largest_component_of_a_label_stays_and_other_labels_do() -> None:
    mask = np.array([[[1, 1, 0, 1, 0, 2, 0, 2, 2]]], dtype=np.int16)
    kept, removed = keep_largest(mask, [(1,)])
    assert kept.tolist() == [[[1, 1, 0, 0, 0, 2, 0, 2, 2]]]
    assert (removed, kept.dtype) == (1, mask.dtype)
    both, removed = keep_largest(mask, [(1,), (2,)])
    assert both.tolist() == [[[1, 1, 0, 0, 0, 0, 0, 2, 2]]]
    assert removed == 2
    assert mask[0, 0, 3] == 1  # the mask that came is left as it was


def test_voxels_that_touch_by_a_corner_are_one_component() -> None:
    mask = np.zeros((2, 2, 2), dtype=np.uint8)
    mask[0, 0, 0] = mask[1, 1, 1] = 1
    assert keep_largest(mask, [(1,)])[1] == 0
    assert keep_largest(np.zeros_like(mask), [(1,)])[1] == 0


@pytest.mark.parametrize(
    ("sums", "gains"),
    [
        (LargestSums(5, 3.0, 3.1), True),
        (LargestSums(5, 3.0, 3.0), False),
        (LargestSums(5, 3.1, 3.0), False),
        (LargestSums(4, 1.0, 4.0), False),  # too few cases
        (LargestSums(), False),
    ],
)
def test_only_where_the_sum_over_enough_cases_rises_is_it_kept_alone(
    sums: LargestSums, gains: bool
) -> None:
    assert sums.gains == gains
    assert sums.is_possible


def test_sums_add_up_and_none_is_above_its_cases() -> None:
    total = add_largest([LargestSums(2, 1.0, 1.5), LargestSums(3, 2.0, 1.75)])
    assert total == LargestSums(5, 3.0, 3.25)
    assert not dataclasses.replace(total, largest=5.5).is_possible
