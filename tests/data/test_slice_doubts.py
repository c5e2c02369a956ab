from collections.abc import Callable

import numpy as np
import pytest
from scipy import ndimage
from small_head import LPS, ONE, SHAPE

from mixmfl.data.grid import Grid
from mixmfl.data.slice_doubts import doubts_about_slices

GRID = Grid(SHAPE, (3.0, 1.0, 1.0), (0.0, 0.0, 0.0), LPS)
HEAD = np.where(ONE != 0, ndimage.gaussian_filter(ONE, (3, 1, 1)), 0)
HEAD[:, :3] = 0.01  # noise of air


def exchange(head: np.ndarray) -> None:
    head[[20, 36]] = head[[36, 20]]


def mirror(head: np.ndarray) -> None:
    head[20] = head[20, :, ::-1]


def turn(head: np.ndarray) -> None:
    head[20] = head[20, ::-1]


def copy(head: np.ndarray) -> None:
    head[20] = head[19]


def empty(head: np.ndarray) -> None:
    head[20] = 0


def empty_several(head: np.ndarray) -> None:
    head[20:24] = 0


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (exchange, "2 slices of 56 (number 21, 37 along axis Z of its file) are like neither"),
        (mirror, "1 slice of 56 (number 21 along axis Z of its file) is more like both neighbours"),
        (turn, "1 slice of 56 (number 21 along axis Z of its file) is more like both neighbours"),
        (copy, "1 slice of 56 (number 21 along axis Z of its file) is the same as another"),
        (empty, "1 slice of 56 (number 21 along axis Z of its file) is empty between slices"),
        (
            empty_several,
            "4 slices of 56 (number 21, 22, 23, 24 along axis Z of its file) are empty",
        ),
    ],
)
def test_a_slice_that_does_not_belong_between_its_neighbours_is_doubted(
    damage: Callable[[np.ndarray], None], words: str
) -> None:
    head = HEAD.copy()
    assert doubts_about_slices(head, GRID) == []
    damage(head)
    (doubt,) = doubts_about_slices(head, GRID)
    assert doubt.startswith(words)
    thick_x = Grid(SHAPE[::-1], (1.0, 1.0, 3.0), (0.0, 0.0, 0.0), LPS)
    (doubt,) = doubts_about_slices(head.transpose(2, 1, 0), thick_x)
    assert "along axis X of its file" in doubt


def test_noise_and_few_slices_are_not_doubted_but_an_empty_one_is() -> None:
    noise = np.random.default_rng(0).normal(size=SHAPE)
    assert doubts_about_slices(noise, GRID) == []
    noise[9] = 0
    assert "number 10 along axis Z" in doubts_about_slices(noise, GRID)[0]
    few = HEAD[18:25].copy()
    few[3] = 0
    assert doubts_about_slices(few, Grid(few.shape, (3.0, 1.0, 1.0), (0.0, 0.0, 0.0), LPS)) == []
