"""Instance norm and leaky ReLU in one pass on a CPU, where the compiled part is there.

``_norms.c`` is optional: without a compiler the package is installed without it, and torch's group
norm, of one channel each, does the same in more time. The compiled part reads maps with channels
last, in which oneDNN convolves without copying; torch's is many times slower on these.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

try:
    import mixmfl.networks._norms as _norms
except ImportError:
    _norms = None  # type: ignore[assignment]

LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
"""Memory formats with channels last, by the axes of a map."""

_TYPES = (torch.float32, torch.bfloat16)

_ALONE = 1 << 18
"""Numbers of all maps up to which one thread is quicker than several."""


def compiled() -> bool:
    """Return whether the compiled part is there."""
    return _norms is not None


@contextmanager
def by_torch() -> Iterator[None]:
    """Compute norms by torch within the block, as without the compiled part; for comparison."""
    global _norms
    part, _norms = _norms, None  # type: ignore[assignment]
    try:
        yield
    finally:
        _norms = part


def norm_relu(
    maps: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, slope: float
) -> Tensor:
    """Return maps ``(B, C, *P)`` on a CPU after instance norm and leaky ReLU.

    Args:
        maps: ``(B, C, *P)``
        weight: ``(C,)`` float32, or None with ``bias``: ones and zeros.
        bias: ``(C,)`` float32.
        eps: Added to the variance.
        slope: Slope of the leaky ReLU below 0; 1: there is none.
    """
    if not compiled() or maps.dtype not in _TYPES:
        # contiguous: torch's group norm is many times slower on maps with channels last
        maps = functional.group_norm(maps.contiguous(), maps.shape[1], weight, bias, eps)
        return activated_(maps, slope)
    if weight is None or bias is None:
        weight, bias = torch.ones(maps.shape[1]), torch.zeros(maps.shape[1])
    return _NormReLU.apply(maps, weight, bias, eps, slope)  # type: ignore[no-untyped-call]


def activated_(maps: Tensor, slope: float) -> Tensor:
    """Return maps after a leaky ReLU in place; with a slope of 1 they are not touched."""
    return maps if slope == 1 else functional.leaky_relu_(maps, slope)


def channels_last(maps: Tensor) -> Tensor:
    """Return maps ``(B, C, *P)`` with channels last, and strides that say so for one channel."""
    if maps.movedim(1, -1).is_contiguous() and maps.stride(1) == 1:
        return maps
    return copied_channels_last(maps)


def copied_channels_last(maps: Tensor) -> Tensor:
    """Return a copy of maps ``(B, C, *P)`` as ``channels_last`` has them."""
    # clone() and not contiguous(), which leaves the strides of a single channel as they are
    return maps.movedim(1, -1).clone(memory_format=torch.contiguous_format).movedim(-1, 1)


def norm_relu_(maps: Tensor, weight: Tensor, bias: Tensor, eps: float, slope: float) -> Tensor:
    """Do what ``norm_relu`` does in place, to maps with channels last and without a gradient.

    The compiled part must be there.
    """
    _compute(maps, maps, weight, bias, eps, slope)
    return maps


def _compute(
    maps: Tensor, result: Tensor, weight: Tensor, bias: Tensor, eps: float, slope: float
) -> Tensor:
    """Write what norm and activation make of maps into ``result``; return tables for the gradient.

    Args:
        maps: ``(B, C, *P)`` with channels last, float32 or bfloat16.
        result: A tensor of the same form, or ``maps`` itself.
        weight: ``(C,)``
        bias: ``(C,)``
        eps: Added to the variance.
        slope: Slope of the leaky ReLU below 0.
    """
    sums = _empty_sums(maps)
    _in_parts(_norms.sums, maps, (), sums=sums)
    tables = _tables(maps, sums, weight, bias, eps)
    _in_parts(_norms.apply, maps, (result, tables), slope)
    return tables


def _tables(maps: Tensor, sums: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Return the tables of a norm, of which the gradient's are not filled in, from its sums."""
    weight, bias = weight.float().contiguous(), bias.float().contiguous()
    tables = maps.new_empty((6, *maps.shape[:2]), dtype=torch.float32)
    at, half = (maps.data_ptr(), sums.data_ptr()), maps.dtype == torch.bfloat16
    affine = weight.data_ptr(), bias.data_ptr()
    _norms.finish(*at, *affine, tables.data_ptr(), _whole(maps), eps, half)
    return tables


class _NormReLU(torch.autograd.Function):
    """The compiled part, with its gradient."""

    @staticmethod
    def forward(
        context: Any, maps: Tensor, weight: Tensor, bias: Tensor, eps: float, slope: float
    ) -> Tensor:
        """Return the maps after norm and activation."""
        maps = maps.contiguous(memory_format=LAST[maps.ndim])
        result = torch.empty_like(maps)
        tables = _compute(maps, result, weight, bias, eps, slope)
        context.save_for_backward(maps, tables)
        context.slope = slope
        return result

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of maps, weight and bias."""
        maps, tables = context.saved_tensors
        gradient = gradient.to(maps.dtype).contiguous(memory_format=LAST[maps.ndim])
        sums, result = _empty_sums(maps), torch.empty_like(maps)
        of_affine = maps.new_empty((2, maps.shape[1]), dtype=torch.float32)
        half = maps.dtype == torch.bfloat16
        _in_parts(_norms.gradient_sums, maps, (gradient, tables), context.slope, sums=sums)
        at = maps.data_ptr(), sums.data_ptr(), tables.data_ptr(), of_affine.data_ptr()
        _norms.finish_gradient(*at, _whole(maps), half)
        _in_parts(_norms.gradient, maps, (gradient, result, tables), context.slope)
        return result, of_affine[0], of_affine[1], None, None


def _empty_sums(maps: Tensor) -> Tensor:
    """Return room for a sum and a sum of squares or products of each channel, ``(B, 2, C)``."""
    return maps.new_empty((len(maps), 2, maps.shape[1]), dtype=torch.float64)


def _whole(maps: Tensor) -> tuple[int, int, int, int, int]:
    """Return cases, voxels, channels, and the first and last voxel, as the compiled part wants."""
    assert maps.is_contiguous(memory_format=LAST[maps.ndim])
    voxels = maps[0, 0].numel()
    return len(maps), voxels, maps.shape[1], 0, voxels


_POOLS: dict[int, ThreadPoolExecutor] = {}
"""Threads that work on one map, by their number; made where first needed."""


def _in_parts(
    function: Callable[..., None],
    maps: Tensor,
    others: Sequence[Tensor],
    *rest: float,
    sums: Tensor | None = None,
) -> None:
    """Call a function of the compiled part for all voxels, in as many threads as torch has.

    Args:
        function: Takes the addresses of the maps, of the others and of its sums; the part, the
            rest, and whether the maps are in half precision.
        maps: The maps.
        others: Other tensors that it reads and writes.
        rest: Further arguments.
        sums: What it writes its sums into, added up over the parts; None: it has none.
    """
    addresses = [each.data_ptr() for each in (maps, *others)]
    (cases, voxels, channels, _, _), half = _whole(maps), maps.dtype == torch.bfloat16
    threads = threads_for(cases * voxels * channels)
    partial = None
    if sums is not None:
        partial = sums[None] if threads == 1 else sums.new_empty((threads, *sums.shape))

    def work(part: int, first: int, last: int) -> None:
        into = [] if partial is None else [partial[part].data_ptr()]
        function(*addresses, *into, (cases, voxels, channels, first, last), *rest, half)

    in_threads(work, voxels, threads)
    if sums is not None and partial is not None and threads > 1:
        torch.sum(partial, dim=0, out=sums)


def threads_for(numbers: int) -> int:
    """Return how many threads a compiled part has for maps of so many numbers: torch's, or one."""
    return 1 if numbers <= _ALONE else torch.get_num_threads()


def in_threads(work: Callable[[int, int, int], None], count: int, threads: int) -> None:
    """Do the work of ``count`` units in threads of the compiled parts, which let the lock go.

    Args:
        work: Takes the number of a part, and its first unit and the one behind its last.
        count: How many units there are.
        threads: How many parts are made.
    """
    if threads == 1:
        work(0, 0, count)
        return
    if threads not in _POOLS:
        _POOLS[threads] = ThreadPoolExecutor(threads, "mixmfl-maps")
    edges = [count * part // threads for part in range(threads + 1)]
    list(_POOLS[threads].map(work, range(threads), edges, edges[1:]))
