"""Instance norm and leaky ReLU in one pass on a CPU, where the compiled part is there.

``_norms.c`` is optional: without a compiler the package is installed without it, and torch's group
norm, of one channel each, does the same in more time. The compiled part reads maps with channels
last, in which oneDNN convolves without copying; torch's is many times slower on these.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
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

_LEAST_STEP = 1e-30
"""Least difference of neighbouring bytes; its inverse is a float32, too."""

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


@dataclass(frozen=True)
class Bytes:
    """Maps as bytes: a number is ``step * (byte - zero)``.

    The range is that of the maps themselves, so that nothing is cut off and nothing is to be
    calibrated.

    Attributes:
        numbers: ``(B, C, *P)`` uint8, with channels last.
        step: Difference of neighbouring bytes.
        zero: The byte that stands for 0.
    """

    numbers: Tensor
    step: float
    zero: int


def to_bytes(maps: Tensor) -> Bytes:
    """Return maps ``(B, C, *P)`` as bytes."""
    maps = maps.contiguous(memory_format=LAST[maps.ndim])
    if compiled() and maps.dtype in _TYPES:
        sums, ranges = _sums_and_ranges(maps)
        step, zero = _scale_of(_result_range(maps, sums, ranges))
        unchanged = torch.zeros((2, *maps.shape[:2]))
        unchanged[0] = 1
        return Bytes(_apply_bytes(maps, None, unchanged, 1.0, step, zero), step, zero)
    least, most = torch.aminmax(maps)
    step, zero = _scale_of((float(least), float(most)))
    numbers = (maps.float() * (1 / step)).add_(zero + 0.5).clamp_(0, 255).to(torch.uint8)
    return Bytes(numbers, step, zero)


def norm_relu_bytes(
    maps: Tensor, weight: Tensor, bias: Tensor, eps: float, slope: float, *, exact: bool
) -> tuple[Bytes, Tensor]:
    """Return what ``norm_relu`` does as bytes and, if ``exact``, as it is; with channels last.

    Args:
        maps: ``(B, C, *P)``, without a gradient; they may be overwritten.
        weight: ``(C,)``
        bias: ``(C,)``
        eps: Added to the variance.
        slope: Slope of the leaky ReLU below 0.
        exact: Whether the second result is needed; else its content is undefined.
    """
    maps = maps.contiguous(memory_format=LAST[maps.ndim])
    if not compiled() or maps.dtype not in _TYPES:
        done = norm_relu(maps, weight, bias, eps, slope).contiguous(memory_format=LAST[maps.ndim])
        return to_bytes(done), done
    sums, ranges = _sums_and_ranges(maps)
    tables = _tables(maps, sums, weight, bias, eps)
    step, zero = _scale_of(_result_range(maps, sums, ranges, tables, slope))
    numbers = _apply_bytes(maps, maps if exact else None, tables, slope, step, zero)
    return Bytes(numbers, step, zero), maps


def _scale_of(ends: tuple[float, float]) -> tuple[float, int]:
    """Return step and zero of bytes that hold 0 and all numbers between these two."""
    low, high = min(ends[0], 0.0), max(ends[1], 0.0)
    step = max((high - low) / 255, _LEAST_STEP)
    return step, round(-low / step) if math.isfinite(step) else 0


def _sums_and_ranges(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sums of a norm, and the least and greatest number of each channel, ``(B, 2, C)``.

    Args:
        maps: ``(B, C, *P)`` with channels last, float32 or bfloat16.
    """
    sums = _empty_sums(maps)
    ranges = torch.empty(sums.shape)
    _in_parts(_norms.sums_and_ranges, maps, (), sums=sums, ranges=ranges)
    return sums, ranges


def _result_range(
    maps: Tensor,
    sums: Tensor,
    ranges: Tensor,
    tables: Tensor | None = None,
    slope: float = 1.0,
) -> tuple[float, float]:
    """Return the least and greatest number of what tables and activation make of maps.

    Without tables it is that of the maps. If one of these is not finite, both are NaN.
    """
    at = sums.data_ptr(), ranges.data_ptr(), _address(tables)
    return _norms.result_range(*at, _whole(maps), slope)


def _apply_bytes(
    maps: Tensor, result: Tensor | None, tables: Tensor, slope: float, step: float, zero: int
) -> Tensor:
    """Return the bytes of what tables and activation make of maps, which goes to ``result``."""
    numbers = torch.empty_like(maps, dtype=torch.uint8)
    _in_parts(_norms.apply_bytes, maps, (result, numbers, tables), slope, 1 / step, zero)
    return numbers


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


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


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
    others: Sequence[Tensor | None],
    *rest: float,
    sums: Tensor | None = None,
    ranges: Tensor | None = None,
) -> None:
    """Call a function of the compiled part for all voxels, in as many threads as torch has.

    Args:
        function: Takes the addresses of the maps, of the others, of its sums and ranges; the part,
            the rest, and whether the maps are in half precision.
        maps: The maps.
        others: Other tensors that it reads and writes; None: an address of 0.
        rest: Further arguments.
        sums: What it writes its sums into, added up over the parts; None: it has none.
        ranges: ``(B, 2, C)``; what it writes least and greatest numbers into. None: it has none.
    """
    addresses = [*map(_address, (maps, *others))]
    written = [each for each in (sums, ranges) if each is not None]
    whole, half = _whole(maps), maps.dtype == torch.bfloat16
    cases, voxels, channels, _, _ = whole
    threads = torch.get_num_threads()
    if threads == 1 or cases * voxels * channels <= _ALONE:
        function(*addresses, *map(_address, written), whole, *rest, half)
        return
    if threads not in _POOLS:
        _POOLS[threads] = ThreadPoolExecutor(threads, "mixmfl-norm")
    edges = [voxels * part // threads for part in range(threads + 1)]
    partial = [each.new_empty((threads, *each.shape)) for each in written]

    def work(part: int) -> None:
        into = [each[part].data_ptr() for each in partial]
        piece = cases, voxels, channels, edges[part], edges[part + 1]
        function(*addresses, *into, piece, *rest, half)

    list(_POOLS[threads].map(work, range(threads)))
    if sums is not None:
        torch.sum(partial[0], dim=0, out=sums)
    if ranges is not None:
        ranges[:, 0] = partial[-1][:, :, 0].amin(dim=0)
        ranges[:, 1] = partial[-1][:, :, 1].amax(dim=0)
