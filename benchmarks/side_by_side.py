"""What the benchmarks share: cases and plans for ours and for nnU-Net, and commands run in turn.

Commands are whole: each run is a process of its own, with all that it starts. Beside wall time
stands the CPU time of all its processes, which depends less on what else the machine does. Memory
is that of the process and all it starts, added up at a time and sampled four times a second: the
proportional set size on Linux, where what processes share counts once, elsewhere the resident one.
"""

import argparse
import dataclasses
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet

from mixmfl.core.files import write_json
from mixmfl.core.text import plural, times
from mixmfl.core.worker_pool import Workers
from mixmfl.data.image import write_image, write_labels
from mixmfl.data.labels import Labels
from mixmfl.data.load_case import load_case
from mixmfl.data.phantom.federation import Case, Settings, write_federation
from mixmfl.data.phantom.scanners import HELD_OUT
from mixmfl.federated.state import RunSettings, first_state
from mixmfl.inference.model import TrainedOn
from mixmfl.inference.model_file import save_model
from mixmfl.networks.nnunet_results import CHECKPOINT, TRAINER
from mixmfl.planning.architecture import resolve_architecture
from mixmfl.planning.federation_plans import make_plans
from mixmfl.planning.nnunet_labels import label_manager
from mixmfl.planning.plans import Plans, load_preset
from mixmfl.planning.site_fingerprint import fingerprint_site
from mixmfl.planning.site_folders import find_site

Command = list[str | Path]

DATASET = "Dataset001_benchmark"
SITE = "site"
MEMORY = "PSS" if sys.platform == "linux" else "RSS"


def parser(description: str) -> argparse.ArgumentParser:
    """Return a parser of the options that all benchmarks have."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument(
        "-i", "--input", type=Path, metavar="CASES",
        help="folder of labelled cases, as a hospital's; default: phantoms, four modalities, 1 mm",
    )  # fmt: skip
    made.add_argument(
        "-o", "--out", type=Path, required=True, metavar="FOLDER", help="to work in; made again"
    )
    made.add_argument("-c", "--configuration", default="3d_fullres", help="2d or 3d_fullres")
    made.add_argument("--preset", default="default", help="shipped preset or a .json")
    made.add_argument("--labels", type=Path, metavar="FILE", help="dataset.json of the cases")
    made.add_argument(
        "--spacing", type=float, nargs=3, metavar="MM",
        help="planned voxels, (Z, Y, X); default: nnU-Net's choice, for most cases their own",
    )  # fmt: skip
    made.add_argument("--cases", type=int, default=2, metavar="N", help="at most; default: 2")
    made.add_argument("--repeats", type=int, default=3, metavar="N", help="default: 3")
    made.add_argument("--threads", type=int, default=1, metavar="N", help="of torch; default: 1")
    return made


@dataclass(frozen=True)
class Bench:
    """Cases and plans, as ours and nnU-Net want them, in one folder.

    Attributes:
        folder: The folder that holds all this.
        plans: Made from these cases.
        configuration: The configuration that is measured.
        cases: Their names; each has all modalities of the plans.
        shapes: Voxels of each case, (Z, Y, X).
        threads: Number of threads that torch is given in every process.
    """

    folder: Path
    plans: Plans
    configuration: str
    cases: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    threads: int

    @property
    def federation(self) -> Path:
        """Return the folder of the one site."""
        return self.folder / "federation"

    @property
    def peer(self) -> Path:
        """Return nnU-Net's dataset of the same files."""
        return self.folder / "nnUNet_raw" / DATASET

    def run(self, command: Command) -> "Cost":
        """Run a command as a process of its own; see the module."""
        threads = {name: str(self.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        folders = {
            name: str(self.folder / name)
            for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
        }
        return run(command, {**os.environ, **threads, **folders})

    def nnunet(self, module: str, function: str) -> Command:
        """Return the start of a command of nnU-Net's.

        Its own script, but for the number of cores it sees: on a CPU it takes all of them,
        whatever the option says, and ours gets ``threads``.
        """
        code = (
            f"import multiprocessing, sys; multiprocessing.cpu_count = lambda: {self.threads}\n"
            f"from nnunetv2.{module} import {function}; sys.exit({function}())"
        )
        return [sys.executable, "-W", "ignore", "-c", code]

    def describe(self) -> str:
        """Return what was measured, for the head of a table."""
        patch = times(self.plans.configuration(self.configuration)["patch_size"])
        shapes = ", ".join(sorted({times(shape) for shape in self.shapes}))
        cases = f"{plural(len(self.cases), 'case')} of {', '.join(self.plans.modalities)}"
        return (
            f"{cases}, {shapes} voxels; {self.configuration}, patch {patch}; "
            f"threads: {self.threads}; {processor()}"
        )


@dataclass(frozen=True)
class Cost:
    """What a command took.

    Attributes:
        seconds: Wall time.
        cpu_seconds: CPU time of all its processes.
        peak_mib: Peak memory of all its processes together.
    """

    seconds: float
    cpu_seconds: float
    peak_mib: float


def median(costs: Sequence[Cost]) -> Cost:
    """Return the median of each."""
    return Cost(
        statistics.median(cost.seconds for cost in costs),
        statistics.median(cost.cpu_seconds for cost in costs),
        statistics.median(cost.peak_mib for cost in costs),
    )


def table(rows: Mapping[str, Cost]) -> str:
    """Return a table of costs."""
    lines = [f"| command | s | CPU s | peak MiB ({MEMORY}) |", "| --- | --- | --- | --- |"]
    for name, cost in rows.items():
        lines.append(
            f"| {name} | {cost.seconds:.1f} | {cost.cpu_seconds:.1f} | {cost.peak_mib:.0f} |"
        )
    return "\n".join(lines)


def processor() -> str:
    """Return what the CPU is called, and what it can."""
    model = ""
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next((line.split(":")[1].strip() for line in lines if "model name" in line), "")
    bf16 = "native bf16" if torch.cpu.get_capabilities().get("avx512_bf16") else "no native bf16"
    return f"{os.cpu_count()} x {model or 'CPU'} ({bf16})"


def set_up(options: argparse.Namespace) -> Bench:
    """Lay out cases and plans in a new folder.

    The images are written in canonical orientation, so that both sides read the same files and
    their arrays have the same axes.
    """
    out: Path = options.out
    out.mkdir(parents=True)
    source = options.input
    if source is None:
        settings = Settings(spacing_mm=1.0, cases=options.cases)
        write_federation(out / "phantoms", settings, _with_all_modalities)
        source = out / "phantoms" / HELD_OUT[0]
    found = find_site(source, labels_file=options.labels)
    known = {name for case in found.found.cases for name in case.images}
    cases = [case for case in found.found.cases if case.images.keys() == known][: options.cases]
    described = found.labels.consecutive()
    modalities = sorted(known)

    site, raw = out / "federation" / SITE, out / "nnUNet_raw" / DATASET
    for folder in (site, raw / "imagesTr", raw / "labelsTr"):
        folder.mkdir(parents=True)
    write_json(site / "dataset.json", described.to_json())
    shapes = []
    for case in cases:
        loaded = load_case(case, found.labels, found.alignment)
        assert loaded.labels is not None  # only labelled cases are found
        (site / case.name).mkdir()
        shapes.append(loaded.canonical.shape)
        for channel, name in enumerate(modalities):
            file = site / case.name / f"{name}.nii.gz"
            write_image(file, loaded.images[name], loaded.canonical)
            (raw / "imagesTr" / f"{case.name}_{channel:04d}.nii.gz").hardlink_to(file)
        file = site / case.name / "seg.nii.gz"
        write_labels(file, loaded.labels, loaded.canonical)
        (raw / "labelsTr" / f"{case.name}.nii.gz").hardlink_to(file)

    preset = load_preset(options.preset)
    if options.spacing:
        planner = dataclasses.replace(preset.planner, target_spacing=tuple(options.spacing))
        preset = dataclasses.replace(preset, planner=planner)
    with Workers() as workers:
        fingerprint, _ = fingerprint_site(find_site(site), out / "fingerprint", workers)
    plans = make_plans(fingerprint, described, preset)
    plans.save(out / "plans.json")
    names = tuple(case.name for case in cases)
    bench = Bench(out, plans, options.configuration, names, tuple(shapes), options.threads)
    _set_up_peer(bench, described)
    return bench


def _with_all_modalities(cases: Sequence[Case]) -> list[Case]:
    return [case for case in cases if case.hospital.name in HELD_OUT]


def _set_up_peer(bench: Bench, described: Labels) -> None:
    content = {
        "channel_names": dict(enumerate(bench.plans.modalities)),
        "numTraining": len(bench.cases),
        "file_ending": ".nii.gz",
        **described.to_json(),
    }
    folder = bench.folder / "nnUNet_preprocessed" / DATASET
    folder.mkdir(parents=True)
    plans: dict[str, Any] = {**bench.plans.nnunet, "dataset_name": DATASET, "plans_name": "plans"}
    for where in (bench.peer, folder):
        write_json(where / "dataset.json", content)
    write_json(folder / "plans.json", plans)


def write_model(bench: Bench) -> Path:
    """Write a model of ours with random weights, and return where."""
    settings = RunSettings(bench.configuration, 0, 1, 1, 0.01)
    file = bench.folder / "model.safetensors"
    trained_on = TrainedOn(dict.fromkeys(bench.plans.modalities, 1))
    state = first_state(bench.plans, settings)
    save_model(file, state, bench.plans, bench.configuration, trained_on)
    return file


def write_peer_model(bench: Bench) -> None:
    """Write nnU-Net's plain U-Net of the same plans, with random weights, where it expects it."""
    planned = bench.plans.configuration(bench.configuration)
    unet = PlainConvUNet(
        len(bench.plans.modalities),
        num_classes=label_manager(bench.plans.labels).num_segmentation_heads,
        **resolve_architecture(planned["architecture"]["arch_kwargs"]),
    )
    preprocessed = bench.folder / "nnUNet_preprocessed" / DATASET
    trained = f"nnUNetTrainer__plans__{bench.configuration}"
    folder = bench.folder / "nnUNet_results" / DATASET / trained
    (folder / "fold_0").mkdir(parents=True)
    for name in ("dataset.json", "plans.json"):
        (folder / name).write_bytes((preprocessed / name).read_bytes())
    checkpoint = {
        "network_weights": unet.state_dict(),
        "trainer_name": TRAINER,
        "init_args": {"configuration": bench.configuration},
        "inference_allowed_mirroring_axes": tuple(range(len(planned["patch_size"]))),
    }
    torch.save(checkpoint, folder / "fold_0" / CHECKPOINT)


def script(name: str) -> Path:
    """Return where a command of this environment is."""
    return Path(sys.executable).parent / name


def run(command: Command, environment: Mapping[str, str]) -> Cost:
    """Run a command; see the module.

    Raises:
        RuntimeError: It failed.
    """
    began, peak = time.perf_counter(), 0
    cpu: dict[int, float] = {}  # by process; those that ended stay
    with subprocess.Popen(
        list(map(str, command)), env=environment,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    ) as process:  # fmt: skip
        root = psutil.Process(process.pid)
        while process.poll() is None:
            memory = 0
            with suppress(psutil.Error):
                for each in (root, *root.children(recursive=True)):
                    with suppress(psutil.Error):
                        used = each.memory_full_info()
                        memory += used.pss if MEMORY == "PSS" else used.rss
                        times = each.cpu_times()
                        cpu[each.pid] = times.user + times.system
            peak = max(peak, memory)
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.25)
        seconds = time.perf_counter() - began
        printed = process.stdout.read() if process.stdout else ""
    if process.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}:\n{printed}")
    return Cost(seconds, sum(cpu.values()), peak / 2**20)
