"""A head of noise in two contrasts, large enough to be compared and registered."""

import numpy as np
from scipy import ndimage

from mixmfl.data.grid import Grid

LPS = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
SHAPE = (56, 64, 60)
GRID = Grid(SHAPE, (2.0, 2.0, 2.0), (-60.0, -64.0, -56.0), LPS)


def make_head() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    field = ndimage.gaussian_filter(generator.normal(size=SHAPE), 2)
    field /= field.std()
    z, y, x = np.ogrid[-1 : 1 : SHAPE[0] * 1j, -1 : 1 : SHAPE[1] * 1j, -1 : 1 : SHAPE[2] * 1j]
    head = z**2 + y**2 + x**2 < 0.7
    one = np.where(head, 5 + field, 0).astype(np.float32)
    other = np.where(head, 9 - np.abs(field) + 0.3 * field, 0).astype(np.float32)
    return one, other


ONE, OTHER = make_head()
