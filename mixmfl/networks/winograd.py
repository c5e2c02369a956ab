"""Convolutions of 3 x 3 and 3 x 3 x 3 in fewer products, where the compiled part is there.

``_winograd.c`` says what is computed. It is optional, as that of norms is: elsewhere torch's
convolution does the same in more time. It has no gradient.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mixmfl.core.devices import has_matrix_units
from mixmfl.networks.norms import LAST, in_threads, threads_for

try:
    import mixmfl.networks._winograd as _winograd
except ImportError:
    _winograd = None  # type: ignore[assignment]

_KINDS = {torch.float32: (1, 0), torch.bfloat16: (2,)}
"""Kinds of processors in ``_winograd.c`` by the type that they multiply, the best first."""

_LANES = (8, 16, 16)
"""Channels that these compute at a time."""

_TILE = 4
"""Results of a tile along each axis."""

_MOST = 128
"""Channels beyond which maps are small, and weights, four times a convolution's, are not."""

_A, _B = 0.625, 1.5
"""Points beside 0 and infinity."""

_TO_POINTS = torch.tensor(
    [
        [1 / (_A * _B) ** 2, 0, 0],
        *(
            [1 / scale, sign * own / scale, own**2 / scale]
            for own, other in ((_A, _B), (_B, _A))
            for scale in [2 * own**2 * (own**2 - other**2)]
            for sign in (1, -1)
        ),
        [0, 0, 1],
    ],
    dtype=torch.float64,
)
"""G, which transforms weights, ``(6, 3)``."""


def compiled() -> bool:
    """Return whether the compiled part is there and knows this processor."""
    return _kind_for(torch.float32) is not None


@contextmanager
def by_torch() -> Iterator[None]:
    """Convolve by torch in networks that are made within the block; for comparison."""
    global _winograd
    part, _winograd = _winograd, None  # type: ignore[assignment]
    try:
        yield
    finally:
        _winograd = part


def gains(conv: nn.Module, dtype: torch.dtype) -> bool:
    """Return whether ``WinogradConvolution`` can stand for a convolution and takes less time.

    Args:
        conv: The convolution.
        dtype: Type of its maps, float32 or bfloat16.
    """
    return (
        _kind_for(dtype) is not None
        # whose bfloat16 is many times as fast; whether it gains there was not measured
        and not (dtype == torch.bfloat16 and has_matrix_units())
        and isinstance(conv, nn.Conv2d | nn.Conv3d)
        and tuple(conv.kernel_size)[-2:] == (3, 3)
        and set(conv.kernel_size[:-2]) <= {1, 3}
        and tuple(conv.padding) == tuple(size // 2 for size in conv.kernel_size)
        and all(number == 1 for number in (*conv.stride, *conv.dilation, conv.groups))
        and all(
            channels % max(_LANES) == 0 and channels <= _MOST
            for channels in (conv.in_channels, conv.out_channels)
        )
    )


def computes(kind: int) -> bool:
    """Return whether a kind of the compiled part is there, and can run on this processor."""
    return _winograd is not None and _winograd.computes(kind)


def _kind_for(dtype: torch.dtype) -> int | None:
    """Return which kind computes in a type here; None: none does."""
    return next(filter(computes, _KINDS[dtype]), None)


class WinogradConvolution:
    """A convolution without bias that ``gains`` accepts."""

    def __init__(self, weight: Tensor, dtype: torch.dtype) -> None:
        """Transform the weights.

        Args:
            weight: ``(C_out, C_in, *kernel)`` float32.
            dtype: Type of the maps, and of the weights once they are transformed.
        """
        planes = weight[:, :, None] if weight.ndim == 4 else weight
        points = torch.einsum("iy,ocdyx,jx->ijodc", _TO_POINTS, planes.double(), _TO_POINTS)
        self._out, self._in, self._depth = len(planes), *planes.shape[1:3]
        kind = _kind_for(dtype)
        assert kind is not None  # see gains
        self._kind, lanes = kind, _LANES[kind]
        pair = 2 if dtype == torch.bfloat16 else 1
        groups, pairs = self._out // lanes, self._in // pair
        # (point, group, channel out, plane, pair, channel in)
        ordered = points.reshape(-1, groups, lanes, self._depth, pairs, pair)
        self._weight = ordered.permute(0, 1, 3, 4, 2, 5).contiguous().to(dtype)

    def __call__(self, maps: Tensor) -> Tensor:
        """Return the convolved maps ``(B, C_out, *P)``, with channels last."""
        maps = maps.contiguous(memory_format=LAST[maps.ndim])
        cases, _, *patch = maps.shape
        z, y, x = [1, *patch][-3:]
        size = (cases, self._out, *patch)
        convolved = torch.empty(size, dtype=maps.dtype, memory_format=LAST[maps.ndim])
        addresses = maps.data_ptr(), convolved.data_ptr(), self._weight.data_ptr()
        sizes = cases, z, y, x, self._in, self._out, self._depth

        def work(part: int, first: int, last: int) -> None:
            _winograd.convolve(self._kind, *addresses, sizes, first, last)

        rows = -(-y // _TILE)  # of tiles
        in_threads(work, rows, min(rows, threads_for(convolved.numel())))
        return convolved
