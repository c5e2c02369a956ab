"""The processor or accelerator to compute on, and the number format that is fastest on it."""

import os
from typing import TYPE_CHECKING

from mixmfl.core.errors import MixmflError

if TYPE_CHECKING:
    import torch


def cores() -> int:
    """Return how many CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def find_device(name: str) -> "torch.device":
    """Return the device that ``--device`` means.

    Raises:
        MixmflError: This machine has no such device.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # "meta", say, is a device that holds no numbers
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise MixmflError(f"--device {name}: cannot be used here ({reason})") from None
    return device


def find_devices(names: str) -> "list[torch.device]":
    """Return the devices of a ``--device`` option that may name several, with commas between.

    Raises:
        MixmflError: This machine lacks one of them.
    """
    return [find_device(name.strip()) for name in names.split(",")]


def best_dtype() -> "torch.dtype":
    """Return bfloat16 where this CPU multiplies it natively, else float32."""
    import torch

    # elsewhere it is emulated, and slower than float32
    return torch.bfloat16 if _has_any("avx512_bf16", "amx_bf16") else torch.float32


def has_matrix_units() -> bool:
    """Return whether this CPU has units of their own for products of bfloat16 matrices (AMX)."""
    return _has_any("amx_bf16")


def _has_any(*instructions: str) -> bool:
    """Return whether this CPU has any of these instructions; no old version of torch can tell."""
    import torch

    able: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(able.get(name) for name in instructions)


def autocast_dtype(device: "torch.device") -> "torch.dtype":
    """Return the type in which a device computes features fastest; weights stay in float32."""
    import torch

    return torch.float16 if device.type == "cuda" else best_dtype()


def reset_peak_of(device: "torch.device") -> None:
    """Begin again to measure how much memory a GPU's computations take."""
    import torch

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_mb_of(device: "torch.device") -> float | None:
    """Return the most memory since ``reset_peak_of`` in MB; None: the device is no GPU."""
    import torch

    return torch.cuda.max_memory_allocated(device) / 1e6 if device.type == "cuda" else None
