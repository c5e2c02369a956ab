from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage
from skull_head import SHAPE, SPACING, brain_alone, whole_head

from mixmfl.data.cases import find_cases
from mixmfl.data.load_case import load_case
from mixmfl.planning.skull import shows_skull, skull_share, tissue_level


def test_a_whole_head_shows_its_skull_with_and_without_air() -> None:
    assert skull_share(whole_head(), SPACING) == 1.0
    assert skull_share(whole_head(air=0.0), SPACING) == 1.0  # by the bone alone


def test_a_brain_alone_shows_none() -> None:
    assert skull_share(brain_alone(), SPACING) == 0.0


def test_slices_of_any_direction_and_finer_pixels_are_looked_at() -> None:
    stacked = whole_head(air=0.0).transpose(1, 0, 2)
    assert skull_share(stacked, (2.0, 5.0, 2.0)) == 1.0
    fine = ndimage.zoom(whole_head(air=0.0), (1, 4, 4), order=0)
    assert skull_share(fine, (5.0, 0.5, 0.5)) == 1.0


def test_what_most_images_show_counts() -> None:
    head, brain = whole_head(), brain_alone()
    assert shows_skull([head, head, brain], SPACING)
    assert not shows_skull([head, brain], SPACING)


@pytest.mark.parametrize("value", [0.0, -3.0, 7.0])
def test_what_shows_no_head_shows_no_skull(value: float) -> None:
    assert skull_share(np.full(SHAPE, value, np.float32), SPACING) == 0.0
    small = np.zeros(SHAPE, np.float32)
    small[4, 40:44, 40:44] = value
    assert skull_share(small, SPACING) == 0.0


def test_the_tissue_level_is_above_air_and_below_brain() -> None:
    assert 6 < tissue_level(whole_head()) < 50
    assert 6 < tissue_level(whole_head(air=0.0)) < 50
    assert tissue_level(np.zeros(SHAPE)) == 0.0


def _cases(folder: Path, sites: Sequence[str]) -> list[bool]:
    shown = []
    for site in sites:
        for case in find_cases(folder / site).cases:
            loaded = load_case(case)
            shown.append(shows_skull(loaded.images.values(), loaded.canonical.spacing))
    assert shown
    return shown


@pytest.mark.slow
def test_skulls_of_patients_are_seen_and_stripped_brains_are_not_taken_for_them(
    real_mri: Path,
) -> None:
    sites = ("CS", "FG")
    if not (real_mri / "lgg_heads").is_dir():
        pytest.skip(f"{real_mri} has no folder lgg_heads/")
    assert all(_cases(real_mri / "lgg_heads", sites))
    assert not any(_cases(real_mri / "lgg", sites))
    assert not any(_cases(real_mri, ("ms_mni", "brats2015")))
