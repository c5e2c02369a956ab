import numpy as np
import pytest
from small_head import ONE, OTHER, SHAPE

from mixmfl.data.label_doubts import doubts_about

LESION = np.zeros(SHAPE, dtype=np.int16)
LESION[18:24, 18:28, 16:26] = 1
BRIGHT = np.where(LESION, ONE + 4, ONE)
IMAGES = {"flair": BRIGHT, "t1": OTHER}


@pytest.mark.parametrize(
    ("axes", "words"),
    [
        ((2,), "mirrored left to right"),
        ((1,), "mirrored front to back"),
        ((0,), "upside down"),
        ((1, 2), "turned by half a turn"),
    ],
)
def test_a_label_that_was_turned_without_its_header_is_doubted(
    axes: tuple[int, ...], words: str
) -> None:
    assert doubts_about(LESION, IMAGES) == []
    (doubt,) = doubts_about(np.flip(LESION, axes).copy(), IMAGES)
    assert doubt.startswith(f"its label stands out more {words} than as it is (contrast ")


def test_a_label_with_its_axes_exchanged_is_doubted() -> None:
    square = {name: image[:, :60] for name, image in IMAGES.items()}
    label = np.roll(LESION[:, :60], 8, axis=1)
    square["flair"] = np.where(label, square["flair"] + 9, square["flair"])
    assert doubts_about(label, square) == []
    for turned in (label.swapaxes(1, 2), label.swapaxes(1, 2)[:, ::-1]):
        (doubt,) = doubts_about(turned, square)
        assert "it may have been turned without its header" in doubt


def test_a_label_without_contrast_or_of_few_voxels_is_not_doubted() -> None:
    assert doubts_about(LESION, {"t1": OTHER}) == []
    few = np.zeros_like(LESION)
    few[20, 20, 20] = 1
    assert doubts_about(few, IMAGES) == []
    assert doubts_about(np.zeros_like(LESION), IMAGES) == []


def test_a_label_on_background_is_doubted() -> None:
    away = np.zeros_like(LESION)
    away[:6, :6, :6] = 1
    (doubt,) = doubts_about(away, IMAGES)
    assert doubt.startswith("100% of its label (216 voxels) lies where all images are background")


def test_a_label_that_marks_the_head_or_nearly_everything_is_doubted() -> None:
    (doubt,) = doubts_about((ONE != 0).astype(np.int16), IMAGES)
    assert doubt == "its label marks all that flair shows; is it a mask of the head?"
    doubts = doubts_about(1 - LESION, IMAGES)
    assert doubts[0] == "its label marks 100% of all voxels; are label and background exchanged?"
    assert doubts_about(np.where(ONE != 0, 1 + (OTHER > 8), 0).astype(np.int16), IMAGES) == []
