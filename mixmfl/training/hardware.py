"""The libraries and devices of this machine, and the memory and disk that a run needs."""

import platform
import re
import shutil
import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import psutil
import torch
from packaging.requirements import Requirement

from mixmfl.core.devices import best_dtype
from mixmfl.core.errors import MixmflError
from mixmfl.inference.model import Model
from mixmfl.networks.build import build_network
from mixmfl.networks.parameters import network_state
from mixmfl.planning.nnunet_labels import label_manager
from mixmfl.planning.nnunet_planner import training_memory_gb
from mixmfl.planning.plans import Plans

GB = 1e9
LIBRARIES_GB = 1.0
"""Main memory that Python, torch and nnU-Net take before anything is computed."""


@dataclass(frozen=True)
class Package:
    """A library that mixmfl requires.

    Attributes:
        name: Name of the library.
        required: Required versions, as in pyproject.toml.
        extra: The extra that requires it; empty: mixmfl cannot run without it.
        found: Installed version; empty: it is not installed.
        fits: Whether the installed version is a required one.
    """

    name: str
    required: str
    extra: str
    found: str
    fits: bool


@dataclass(frozen=True)
class Compute:
    """A device in its current state.

    Attributes:
        device: The device.
        name: Name given by its maker.
        total_gb: Memory of the device.
        free_gb: Memory that is not in use.
        bf16: Whether the hardware computes in bfloat16.
    """

    device: torch.device
    name: str
    total_gb: float
    free_gb: float
    bf16: bool


@dataclass(frozen=True)
class Need:
    """The memory or disk that something needs, and what is available, in GB."""

    what: str
    needed_gb: float
    there_gb: float

    @property
    def fits(self) -> bool:
        """Whether enough is available."""
        return self.needed_gb <= self.there_gb


def packages() -> list[Package]:
    """Return the libraries that mixmfl and its extras require on this system, in order of name."""
    result = {}
    for line in requires("mixmfl") or ():
        requirement = Requirement(line)
        # the marker is `extra == "…"` if an extra requires the library
        match = re.search(r"extra == [\"']([\w-]+)", str(requirement.marker or ""))
        extra = match.group(1) if match else ""
        applies = requirement.marker is None or requirement.marker.evaluate({"extra": extra})
        if extra in ("dev", "docs") or not applies:
            continue
        try:
            installed = version(requirement.name)
        except PackageNotFoundError:
            installed = ""
        fits = bool(installed) and requirement.specifier.contains(installed, prereleases=True)
        result[extra, requirement.name.lower()] = Package(
            requirement.name, str(requirement.specifier), extra, installed, fits
        )
    return [result[key] for key in sorted(result)]


def compute(device: torch.device) -> Compute:
    """Return the state of a device; for a CPU, memory is the machine's main memory."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        bf16 = torch.cuda.get_device_capability(device) >= (8, 0)
        return Compute(device, torch.cuda.get_device_name(device), total / GB, free / GB, bf16)
    memory = psutil.virtual_memory()
    name = platform.processor() or platform.machine()
    return Compute(
        device, name, memory.total / GB, memory.available / GB, best_dtype() == torch.bfloat16
    )


def needs_of_training(
    plans: Plans, configuration: str, sites: int, here: Compute, folder: Path
) -> list[Need]:
    """Return the device memory and the disk that training one site after another needs.

    Feature maps take the memory that the planner counted, in half precision on CUDA and as in
    float32 elsewhere, even if a CPU has bfloat16; with two CPU plans of 1 GB the peak was 1.7 and
    2.0 times the count. Weights count four times: weights, gradients, and AdamW's two moments.

    Args:
        plans: Plans of the run.
        configuration: ``"2d"`` or ``"3d_fullres"``.
        sites: Number of sites that train on this machine.
        here: The device.
        folder: The folder of the run, or one of its parents.
    """
    features = map_memory_gb(plans, configuration)
    state = network_state(build_network(plans, configuration, seed=0))
    weights = sum(tensor.numel() * tensor.element_size() for tensor in state.values()) / GB
    if here.device.type == "cuda":
        memory = features + 4 * weights
    else:
        memory = 2 * features + 4 * weights + LIBRARIES_GB
    training = plans.training
    states = (
        training.rounds // training.keep_every + 3
    )  # the last two, the best, and every keep_every-th
    disk = weights * (
        states + 2 * 2 * sites
    )  # AdamW's two moments per site, after the last two rounds
    return [
        Need(f"memory to train {configuration} on {here.device}", memory, here.free_gb),
        Need(f"disk for a run of {training.rounds} rounds, {sites} sites", disk, free_gb(folder)),
    ]


def map_memory_gb(plans: Plans, configuration: str) -> float:
    """Return the memory of the feature maps of a training step, as the planner counts it."""
    heads = label_manager(plans.labels).num_segmentation_heads
    return training_memory_gb(plans.nnunet, configuration, heads, plans.network)


def free_gb(folder: Path) -> float:
    """Return the free disk space of a folder, or of its first parent that exists."""
    existing = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    return shutil.disk_usage(existing).free / GB


def time_patch(model: Model) -> float:
    """Return the seconds that the model takes for a patch with all modalities, after a warm-up.

    Raises:
        MixmflError: The device's memory ran out.
    """
    size = model.plans.configuration(model.configuration)["patch_size"]
    predict = model.predictor(model.modalities)
    patch = torch.zeros(1, len(model.modalities), *size, device=model.device)
    try:
        with torch.inference_mode():
            for _ in range(2):  # the first time libraries are loaded and algorithms chosen
                began = time.monotonic()
                predict(patch)[0, 0].sum().item()
    except torch.cuda.OutOfMemoryError:
        raise MixmflError(
            f"the memory of {model.device} does not hold one patch of {size} voxels; free the "
            "device, or predict on the CPU by --device cpu"
        ) from None
    return time.monotonic() - began
