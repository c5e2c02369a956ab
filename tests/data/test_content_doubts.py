import numpy as np
import pytest
from scipy import ndimage
from small_head import LPS, ONE, SHAPE

from mixmfl.data.content_doubts import doubts_about_content, doubts_about_pairs
from mixmfl.data.grid import Grid

GRID = Grid(SHAPE, (3.0, 1.0, 1.0), (0.0, 0.0, 0.0), LPS)
HEAD = np.where(ONE != 0, ndimage.gaussian_filter(np.abs(ONE), (3, 1, 1)), 0)


@pytest.mark.parametrize(("axis", "name"), [(1, "front to back"), (2, "left to right")])
@pytest.mark.parametrize("side", [slice(None, None), slice(None, None, -1)])
def test_half_a_head_is_doubted(axis: int, name: str, side: slice) -> None:
    half = HEAD.copy()
    np.moveaxis(half, axis, 0)[side][: SHAPE[axis] // 2] = 0
    (doubt,) = doubts_about_content(half, GRID)
    assert doubt.startswith(
        f"it ends as if cut off along its axis from {name}, and is empty behind"
    )


def test_a_head_is_not_doubted_nor_one_that_the_field_of_view_cuts() -> None:
    assert doubts_about_content(HEAD, GRID) == []
    assert doubts_about_content(HEAD[:, :, SHAPE[2] // 2 :], GRID) == []
    assert doubts_about_content(HEAD[:, :9, :9], GRID) == []  # nothing can be seen of so little


def test_inverted_values_are_doubted() -> None:
    (doubt,) = doubts_about_content(HEAD.max() - HEAD, GRID)
    assert doubt == "it is brighter at its border than inside; its values may be inverted"
    z_scored = -HEAD
    assert doubts_about_content(z_scored, GRID) == [doubt]
    z_scored.flat[HEAD.argmax()] = 1
    assert doubts_about_content(z_scored, GRID) == []  # its air is 0 and may lie anywhere


def test_an_image_and_its_negative_are_doubted_where_they_should_be_alike() -> None:
    negative = np.where(HEAD != 0, HEAD.max() + 1 - HEAD, 0)
    (doubt,) = doubts_about_pairs({"t1": HEAD, "t1c": negative})
    assert doubt.startswith("t1 and t1c are like an image and its negative")
    assert doubts_about_pairs({"t1": HEAD, "t1c": HEAD**2}) == []
    assert doubts_about_pairs({"t1": HEAD, "t2": negative}) == []
    assert doubts_about_pairs({"t1": HEAD[:2, :9, :9], "t1c": negative[:2, :9, :9]}) == []


def test_values_that_began_again_at_0_in_8_bits_are_doubted() -> None:
    full = (HEAD / HEAD.max() * 255).round()
    assert doubts_about_content(full, GRID) == []
    wrapped = (full * 2) % 256
    (doubt,) = doubts_about_content(wrapped, GRID)
    assert doubt.startswith("its brightest voxels lie beside nearly black ones: numbers above 255")
    assert doubts_about_content(wrapped / 2, GRID) == []  # no 8 bits
    assert doubts_about_content(wrapped * 4, GRID) == []
