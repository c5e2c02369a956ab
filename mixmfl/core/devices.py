"""The processor or accelerator to compute on, and the number format that it is quick in."""

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
        MixmflError: There is no such device here.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(name)
        torch.zeros(1, device=found).item()  # "meta", say, is a device that holds no numbers
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise MixmflError(f"--device {name}: cannot be used here ({reason})") from None
    return found


def find_devices(names: str) -> "list[torch.device]":
    """Return the devices that ``--device`` means where it may name several.

    Raises:
        MixmflError: One of them is not here.
    """
    return [find_device(name.strip()) for name in names.split(",")]


def best_dtype() -> "torch.dtype":
    """Return bfloat16 where this CPU multiplies it natively, else float32."""
    import torch

    # elsewhere it is emulated, and slower than float32; older versions of torch cannot tell
    able: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    native = able.get("avx512_bf16") or able.get("amx_bf16")
    return torch.bfloat16 if native else torch.float32


def autocast_dtype(device: "torch.device") -> "torch.dtype":
    """Return the type in which a device computes features fastest; weights stay in float32."""
    import torch

    return torch.float16 if device.type == "cuda" else best_dtype()
