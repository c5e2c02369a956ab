"""Weighted sums of rows in half or single precision, in one pass where the compiled part is there.

``_sums.c`` is optional, as ``networks/_norms.c``: torch gives equal bits in more time.
"""

import torch
from torch import Tensor

try:
    import mixmfl.federated._sums as _sums
except ImportError:
    _sums = None  # type: ignore[assignment]


def compiled() -> bool:
    """Return whether the compiled part is there, and written for this processor."""
    return _sums is not None


def add_weighted(total: Tensor, rows: Tensor, shares: Tensor) -> None:
    """Add rows to a total, each times its share: one after another, each product rounded first.

    Args:
        total: ``(N,)`` float32, changed in place.
        rows: ``(S, N)`` in half or single precision, the numbers of a row contiguous.
        shares: ``(S,)`` float32.
    """
    if not compiled() or rows.dtype not in (torch.float16, torch.float32):
        for row, share in zip(rows, shares, strict=True):
            total += row.float() * share
        return
    assert total.dtype == shares.dtype == torch.float32
    assert total.is_contiguous()
    assert shares.is_contiguous()
    assert rows.stride(1) == 1
    assert rows.shape == (len(shares), len(total))
    half, stride = rows.dtype == torch.float16, rows.stride(0) * rows.itemsize
    at = total.data_ptr(), rows.data_ptr(), stride, shares.data_ptr()
    _sums.add(*at, *rows.shape, half)
