"""Small components of a label, and below which share of the largest they are removed."""

import dataclasses

import numpy as np
import pytest

from mixmfl.data.labels import Labels
from mixmfl.evaluation.small_components import (
    SHARES,
    ComponentSums,
    add_components,
    dice_by_share,
    remove_small,
)
from mixmfl.training.validation import dice_of_case

LABELS = Labels({"background": 0, "a": 1, "b": 2})
ROW = np.array([[[1] * 20 + [0] + [1] * 3 + [0] + [1] + [0, 2, 0, 2, 2]]], dtype=np.int16)
"""Components of 20, 3 and 1 voxels of the first label, of 1 and 2 of the second."""


@pytest.mark.parametrize(("share", "left"), [(0.05, 24), (0.051, 23), (0.15, 23), (0.2, 20)])
def test_components_below_a_share_of_the_largest_go_and_other_labels_stay(
    share: float, left: int
) -> None:
    kept, removed = remove_small(ROW, LABELS, {"a": share})
    assert (int((kept == 1).sum()), int((kept == 2).sum())) == (left, 3)
    assert (removed, kept.dtype) == ({"a": 24 - left} if left < 24 else {}, ROW.dtype)
    assert int((ROW == 1).sum()) == 24  # the mask that came is left as it was


def test_voxels_that_touch_by_a_corner_are_one_component() -> None:
    mask = np.zeros((2, 2, 2), dtype=np.uint8)
    mask[0, 0, 0] = mask[1, 1, 1] = 1
    for each in (mask, np.zeros_like(mask)):
        assert remove_small(each, LABELS, {"a": 1.0, "b": 1.0})[1] == {}


def test_dice_of_every_share_is_that_of_the_mask_without_small_components() -> None:
    labels = Labels({"background": 0, "a": 1, "b": 2, "ignore": 3})
    reference = np.zeros_like(ROW)
    reference[..., 15:24] = 1
    reference[..., :2] = 3
    found = dice_by_share(ROW, reference, labels)
    for number, share in enumerate(SHARES):
        mask = remove_small(ROW, LABELS, {"a": share, "b": share})[0]
        expected = dice_of_case(mask, reference, labels)
        assert {name: dice[number] for name, dice in found.items()} == expected
    # 5 and 3 of 18, 3 and 1 voxels that count are right, of 9; then the 1 and the 3 are gone
    assert found["a"] == (16 / 31, 16 / 31, 16 / 30, 10 / 27)


def test_a_label_that_is_gone_where_nobody_sees_it_is_right() -> None:
    labels = Labels({"background": 0, "a": 1, "ignore": 3})
    reference = np.where(np.arange(ROW.size) < 20, 3, 0).reshape(ROW.shape)
    assert dice_by_share(np.where(ROW == 1, 1, 0), reference, labels)["a"] == (0, 0, 0, 1)


def test_regions_keep_all_components() -> None:
    labels = Labels({"background": 0, "whole": (1, 2), "core": 2}, (1, 2)).consecutive()
    reference = np.where(np.arange(ROW.size) < 20, ROW, 0).astype(ROW.dtype)
    assert dice_by_share(ROW, reference, labels)["whole"] == (40 / 47,) * len(SHARES)


@pytest.mark.parametrize(
    ("sums", "share"),
    [
        (ComponentSums(5, 3.0, (3.0, 3.1, 3.2, 3.1)), 0.1),
        (ComponentSums(5, 3.0, (3.0, 3.2, 3.2, 3.2 + 1e-12)), 0.05),  # the least of the best
        (ComponentSums(5, 3.0, (3.0, 3.0, 2.9, 2.0)), 0.0),
        (ComponentSums(4, 1.0, (1.0, 1.0, 1.0, 4.0)), 0.0),  # too few cases
        (ComponentSums(), 0.0),
    ],
)
def test_the_share_with_the_highest_dice_over_enough_cases_is_chosen(
    sums: ComponentSums, share: float
) -> None:
    assert sums.best_share == share
    assert sums.is_possible


def test_sums_add_up_and_none_is_above_its_cases() -> None:
    first, second = ComponentSums(2, 1.0, (1.0, 1.5, 0.5, 1.0)), ComponentSums(3, 2.0, (2.0,) * 4)
    total = add_components([first, second])
    assert total == ComponentSums(5, 3.0, (3.0, 3.5, 2.5, 3.0))
    assert not dataclasses.replace(total, by_share=(5.5, 0.0, 0.0, 0.0)).is_possible
    assert not dataclasses.replace(total, dice=5.5).is_possible
