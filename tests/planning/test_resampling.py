import numpy as np
import pytest
import torch
from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape

from mixmfl.planning.resampling import Resampling

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
