"""What it costs a server to check and merge the updates of S sites: seconds, GB/s, peak memory.

    python benchmarks/merge_updates.py --sites 4 32 256 --megabytes 100

Every site sends how a whole network changed, in half precision and once more in single. Its update
lies on disk, as in a run, and is read piece by piece.
Two stages are timed: ``merge``, the weighted mean of all updates; and ``round``, all that the
server does with the replies of a round, which is to check and to merge them. Beside them
stand, of the same number of bytes: ``memory``, copying them within memory that was touched before;
``file``, copying the files to other files; ``read``, reading the files in pieces. GB are those of
the updates, each byte counted once, in all columns. Each number of sites has a process of its own;
``peak MB`` is the most memory that it has at any time, with Python's libraries and the weights.

What is on disk is mostly in the system's page cache, as long as that is large enough: with
``--distinct`` fewer files than sites are made, which the sites send in turn.
"""

import argparse
import dataclasses
import math
import multiprocessing
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixmfl.federated.state import Registration, RunSettings

if TYPE_CHECKING:
    from mixmfl.planning.plans import Plans

SETTINGS = RunSettings("2d", seed=0, rounds=100, local_steps=10, learning_rate=0.006)
REGISTRATION = Registration(10, {"t1": 10, "t2": 10})


@dataclass(frozen=True)
class MergeSpeed:
    """What one number of sites took; rates in GB/s.

    Attributes:
        megabytes: Size of an update, MB.
        memory_mb: Peak memory of the process, MiB.
    """

    megabytes: float
    merge: float
    round: float
    memory: float
    file: float
    read: float
    memory_mb: float


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; see ``--help``."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sites", type=int, nargs="+", default=[4, 32, 256])
    parser.add_argument(
        "--megabytes", type=float, default=100.0, help="of the network's weights; about"
    )
    parser.add_argument(
        "--updates", choices=("half", "single"), nargs="+", default=["single", "half"]
    )
    parser.add_argument("--distinct", type=int, default=32, help="files at most; default: 32")
    parser.add_argument("--repeats", type=int, default=3, help="medians are of so many")
    parser.add_argument("--threads", type=int, default=1, help="of torch, for all stages")
    parser.add_argument(
        "--clock",
        choices=("wall", "processor"),
        default="wall",
        help="which seconds; those of the processor count what other work on the machine does not "
        "take away, and no waiting for a disk",
    )
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    options = parser.parse_args(argv)
    names = ("merge", "round", "memory", "file", "read")
    print(f"{'updates':7}  {'sites':>5}  {'MB':>5}  {'files':>5}  {'peak MB':>7}  ", end="")
    print("  ".join(f"{name:>6}" for name in names), " GB/s")
    for updates in options.updates:
        settings = dataclasses.replace(SETTINGS, half_updates=updates == "half")
        found: list[MergeSpeed] = []
        for sites in options.sites:
            files = min(sites, options.distinct)
            with tempfile.TemporaryDirectory(dir=options.folder) as place:
                alone(make_updates, options.megabytes, settings, files, Path(place))
                how = options.repeats, options.threads, options.clock
                one = alone(measure, options.megabytes, settings, sites, *how, Path(place))
            found.append(one)
            rates = "  ".join(f"{getattr(one, name):6.2f}" for name in names)
            print(f"{updates:7}  {sites:5}  {one.megabytes:5.0f}  {files:5}", end="")
            print(f"  {one.memory_mb:7.0f}  {rates}", flush=True)
        last = found[-1]
        print(
            f"{updates}: memory {found[0].memory_mb:.0f} MB at {options.sites[0]} sites, "
            f"{last.memory_mb:.0f} MB at {options.sites[-1]}; merge over a copy of the files "
            f"{last.merge / last.file:.2f}; checks and merge over a copy in memory "
            f"{last.round / last.memory:.2f}"
        )
        print(
            f"ratio {last.merge / last.memory:.2f} bytes merged per second over bytes copied per "
            f"second in memory, {options.sites[-1]} sites, {updates} precision"
        )
    return 0


def alone(work: Callable[..., Any], *arguments: object) -> Any:
    """Do something in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work, arguments)


def make_updates(megabytes: float, settings: RunSettings, number: int, folder: Path) -> None:
    """Write what sites send, each after other steps from the same weights."""
    import torch

    from mixmfl.federated.messages import Message, encode
    from mixmfl.federated.server.merge import train_task
    from mixmfl.federated.state import first_state

    state = first_state(plans_of(megabytes), settings)
    generator = torch.Generator().manual_seed(0)
    for count in range(number):
        changes = {
            name: (1e-3 * torch.randn(tensor.shape, generator=generator)).to(settings.update_type)
            for name, tensor in train_task(state, REGISTRATION).tensors.items()
        }
        reply = Message("train", {"round": 0, "loss": 0.5, "dice_loss": -0.5}, changes)
        (folder / f"{count}.update").write_bytes(encode(reply))


def measure(
    megabytes: float,
    settings: RunSettings,
    sites: int,
    repeats: int,
    threads: int,
    clock: str,
    folder: Path,
) -> MergeSpeed:
    """Measure one number of sites."""
    import torch

    from mixmfl.core.files import UnlinkedFile
    from mixmfl.core.process_memory import peak_memory_mb, reset_peak
    from mixmfl.federated.aggregation import merge_blocks
    from mixmfl.federated.messages import StoredMessage
    from mixmfl.federated.server.merge import merge_round
    from mixmfl.federated.state import first_state

    torch.set_num_threads(threads)
    plans = plans_of(megabytes)
    state = first_state(plans, settings)
    files = sorted(folder.glob("*.update"))
    registrations = {f"site{number:04d}": REGISTRATION for number in range(sites)}
    replies = {
        site: StoredMessage(UnlinkedFile(files[number % len(files)])).open()
        for number, site in enumerate(registrations)
    }
    size = files[0].stat().st_size / 1e9
    changes = {site: reply.tensors for site, reply in replies.items()}
    weights = dict.fromkeys(registrations, REGISTRATION.weights)
    norms = dict.fromkeys(
        registrations, dict.fromkeys(REGISTRATION.weights, 1.0)
    )  # a mean reads none

    def merge() -> None:
        merge_blocks(state.weights, changes, weights, "mean", 0.2, norms, {})

    def whole_round() -> None:
        merge_round(state, replies, registrations, plans, settings)

    reset_peak()
    merging = seconds(merge, repeats, clock) / (sites * size)
    passing = seconds(whole_round, repeats, clock) / (sites * size)
    memory_mb = peak_memory_mb()

    here = torch.randint(0, 255, (files[0].stat().st_size,), dtype=torch.uint8)
    there = here.clone()

    def copy() -> None:
        for _ in range(sites):
            there.copy_(here)

    def read() -> None:
        room = bytearray(2**18)
        for number in range(sites):
            with files[number % len(files)].open("rb", buffering=0) as file:
                while file.readinto(room):
                    pass

    def copy_files() -> None:
        for number in range(sites):
            shutil.copyfile(files[number % len(files)], folder / "copy")

    copying, filing, reading = (
        sites * size / seconds(each, repeats, clock) for each in (copy, copy_files, read)
    )
    return MergeSpeed(1e3 * size, 1 / merging, 1 / passing, copying, filing, reading, memory_mb)


def plans_of(megabytes: float) -> "Plans":
    """Return plans of a network for two modalities with about so many megabytes of weights."""
    from mixmfl.data.labels import Labels
    from mixmfl.federated.state import first_state
    from mixmfl.planning.federation_plans import make_plans
    from mixmfl.planning.fingerprint import INTENSITY_EDGES, Fingerprint
    from mixmfl.planning.plans import load_preset

    counts, axis = {"t1": 10, "t2": 10}, {"1x64": 10}
    bins = dict.fromkeys(counts, (1,) * (len(INTENSITY_EDGES) - 1))
    fingerprint = Fingerprint(
        10,
        counts,
        (axis,) * 3,
        (axis,) * 3,
        {"none": 10},
        {"1.00": 10},
        bins,
        {"stripped": 10},
        {"unknown": 10},
        {"unknown": 10},
        {},
    )
    labels = Labels({"background": 0, "lesion": 1})
    preset = load_preset("demo")

    def planned(features: int) -> "Plans":
        planner = dataclasses.replace(
            preset.planner,
            memory_gb=64.0,
            base_features=features,
            max_features_2d=8 * features,
        )
        return make_plans(fingerprint, labels, dataclasses.replace(preset, planner=planner))

    weights = first_state(planned(32), SETTINGS).weights
    size = sum(4 * tensor.numel() for tensor in weights.values()) / 1e6
    return planned(4 * round(8 * math.sqrt(megabytes / size)))  # nearly all weights are products


def seconds(work: Callable[[], None], repeats: int, clock: str) -> float:
    """Return the median time that work takes."""
    now = time.perf_counter if clock == "wall" else time.process_time
    took = []
    for _ in range(repeats):
        began = now()
        work()
        took.append(now() - began)
    return statistics.median(took)


if __name__ == "__main__":
    sys.exit(main())
