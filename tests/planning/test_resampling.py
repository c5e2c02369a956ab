import numpy as np
import pytest
import torch
from nnunetv2.preprocessing.resampling.default_resampling import (
    compute_new_shape,
    determine_do_sep_z_and_axis,
    resample_data_or_seg_to_shape,
)
from small import small_plans

from mixmfl.planning.nnunet_preprocessing import onto_grid
from mixmfl.planning.resampling import Resampling, axis_apart, resampled_shape

BEFORE = (11, 14, 13)


@pytest.mark.parametrize("after", [(17, 14, 9), (11, 30, 20), (5, 7, 6)])
@pytest.mark.parametrize("apart", [None, 0, 1, 2])
@pytest.mark.parametrize("order", [1, 3])
def test_resampling_is_nnunets(order: int, apart: int | None, after: tuple[int, ...]) -> None:
    # steps and noise: the spline shoots over, and is cut where nnU-Net cuts it
    random = np.random.default_rng(0)
    volume = (random.normal(size=BEFORE) + 4 * random.integers(0, 2, BEFORE)).astype(np.float32)
    spacing = [5.0 if axis == apart else 1.0 for axis in range(3)]
    (want,) = resample_data_or_seg_to_shape(
        volume[None], after, spacing, spacing, order=order, order_z=0, force_separate_z=None
    )
    given = torch.from_numpy(volume)
    resampling = Resampling(BEFORE, after, order, apart)
    found = resampling(given)
    assert found.shape == after
    assert np.abs(found.numpy() - want).max() < 1e-5
    if order == 1:
        both = torch.stack([given, -given]).half().float()
        planes = torch.cat(
            [resampling.planes(both.half(), a, a + 4) for a in range(0, after[0], 4)], 1
        )
        assert torch.allclose(planes[0], resampling(both[0]), atol=1e-5)
        assert torch.allclose(planes[1], -planes[0])


def test_nothing_is_done_where_the_grid_stays() -> None:
    volume = torch.randn(BEFORE)
    assert Resampling(BEFORE, BEFORE, 3)(volume) is volume


@pytest.mark.parametrize("thick", [1.0, 5.0])
def test_logits_come_onto_another_configurations_grid_as_nnunet_resamples(thick: float) -> None:
    """A 2-D configuration leaves thick slices as they are, the 3-D one makes voxels of 1 mm."""
    plans = small_plans().nnunet
    logits = torch.randn((3, 6, 9, 8), generator=torch.Generator().manual_seed(0))
    spacing, shape, after = (thick, 2.0, 2.0), (round(6 * thick), 18, 16), (1.0, 1.0, 1.0)
    got = onto_grid(logits, spacing, shape, after, plans, "2d")
    assert got.shape == (3, *shape)
    options = plans["configurations"]["2d"]["resampling_fn_probabilities_kwargs"]
    want = resample_data_or_seg_to_shape(logits.numpy(), shape, spacing, after, **options)
    np.testing.assert_allclose(got.numpy(), want, atol=1e-5)
    assert onto_grid(logits, after, (6, 9, 8), after, plans, "2d").equal(logits)


@pytest.mark.parametrize("forced", [None, True, False])
def test_shapes_and_the_axis_apart_are_nnunets(forced: bool | None) -> None:
    random, sides = np.random.default_rng(0), [0.5, 1.0, 1.25, 3.0, 5.0]
    found = set()
    for _ in range(200):
        spacing, after = random.choice(sides, (2, 3)).tolist()
        shape = random.integers(1, 40, 3).tolist()
        want = compute_new_shape(shape, spacing, after)
        assert resampled_shape(shape, spacing, after) == tuple(want.tolist())
        apart, axis = determine_do_sep_z_and_axis(forced, spacing, after)
        assert axis_apart(forced, spacing, after) == (int(axis) if apart else None)
        found.add(axis_apart(forced, spacing, after))
    assert found == ({None} if forced is False else {None, 0, 1, 2})
