"""What this machine has, and what a run of some plans needs of it."""

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
from mixmfl.planning.nnunet_planner import training_memory_gb
from mixmfl.planning.nnunet_preprocessing import label_manager
from mixmfl.planning.plans import Plans

GB = 1e9
LIBRARIES_GB = 1.0
"""Of main memory that Python, torch and nnU-Net take before anything is computed."""


@dataclass(frozen=True)
class Package:
    """A library that mixmfl asks for.

    Attributes:
        name: Of the library.
        wanted: Which versions, as pyproject.toml has it.
        extra: That asks for it; empty: mixmfl cannot run without it.
        found: Its version here; empty: it is not installed.
        fits: Whether that is a version that was asked for.
    """

    name: str
    wanted: str
    extra: str
    found: str
    fits: bool


@dataclass(frozen=True)
class Compute:
    """A device as it is now.

    Attributes:
        device: Which.
        name: Of its maker.
        total_gb: Memory.
        free_gb: Of that what nobody uses.
        bf16: Whether it computes in bfloat16 by itself.
    """

    device: torch.device
    name: str
    total_gb: float
    free_gb: float
    bf16: bool


@dataclass(frozen=True)
class Need:
    """What something needs of this machine, in GB, and what is there."""

    what: str
    needed_gb: float
    there_gb: float

    @property
    def fits(self) -> bool:
        """Whether there is enough."""
        return self.needed_gb <= self.there_gb


def packages() -> list[Package]:
    """Return the libraries that mixmfl and its extras ask for on this system, by their names."""
    found = {}
    for line in requires("mixmfl") or ():
        wanted = Requirement(line)
        # the marker is `extra == "…"` for what an extra asks for
        match = re.search(r"extra == [\"']([\w-]+)", str(wanted.marker or ""))
        extra = match.group(1) if match else ""
        applies = wanted.marker is None or wanted.marker.evaluate({"extra": extra})
        if extra in ("dev", "docs") or not applies:
            continue
        try:
            here = version(wanted.name)
        except PackageNotFoundError:
            here = ""
        fits = bool(here) and wanted.specifier.contains(here, prereleases=True)
        found[extra, wanted.name.lower()] = Package(
            wanted.name, str(wanted.specifier), extra, here, fits
        )
    return [found[key] for key in sorted(found)]


def compute(device: torch.device) -> Compute:
    """Return what a device has; of a CPU its memory is the machine's."""
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
    """Return what training one site after another needs: of the device, and of the disk.

    Feature maps are what the planner counted, in half precision on CUDA and as in float32
    elsewhere, also where a CPU has bfloat16; on two CPU plans of 1 GB the peak was 1.7 and 2.0
    times the count. Weights are there four times: themselves, gradients, and AdamW's two moments.

    Args:
        plans: Of the run.
        configuration: ``"2d"`` or ``"3d_fullres"``.
        sites: That train on this machine.
        here: The device.
        folder: Where the run will lie, or one of its parents.
    """
    heads = label_manager(plans.labels).num_segmentation_heads
    features = training_memory_gb(plans.nnunet, configuration, heads, plans.network)
    state = network_state(build_network(plans, configuration, seed=0))
    weights = sum(tensor.numel() * tensor.element_size() for tensor in state.values()) / GB
    if here.device.type == "cuda":
        memory = features + 4 * weights
    else:
        memory = 2 * features + 4 * weights + LIBRARIES_GB
    training = plans.training
    states = training.rounds // training.keep_every + 3  # the last two, the best, and those kept
    disk = weights * (states + 2 * 2 * sites)  # two moments per site, of the last two rounds
    return [
        Need(f"memory to train {configuration} on {here.device}", memory, here.free_gb),
        Need(f"disk for a run of {training.rounds} rounds, {sites} sites", disk, free_gb(folder)),
    ]


def free_gb(folder: Path) -> float:
    """Return how much the disk of a folder, or of the folder that it will be in, has free."""
    there = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    return shutil.disk_usage(there).free / GB


def time_patch(model: Model) -> float:
    """Return how many seconds the model takes for one patch with all modalities, once warm.

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
