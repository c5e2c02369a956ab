"""What a site sends and gets in a round, beside federated averaging of the whole network.

    python benchmarks/bytes_on_the_wire.py

Sizes are those of the messages as they cross, with prototypes of all modalities known. A site has
the first 1, 2, … of the plans' modalities. Plain averaging sends all blocks in single precision,
each way, whatever a site has. A round that is validated costs what is received once more.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from mixmfl.data.labels import Labels
from mixmfl.federated.messages import Message, encode
from mixmfl.federated.server.merge import train_task
from mixmfl.federated.state import Registration, RunSettings, ServerState, first_state
from mixmfl.networks.build import prototype_sizes
from mixmfl.networks.prototypes import PrototypeMemory, memory_to_state
from mixmfl.planning.fingerprint import INTENSITY_EDGES, Fingerprint
from mixmfl.planning.plans import Plans, load_preset
from mixmfl.planning.preprocess import make_plans

NAMES = ("flair", "t1", "t1c", "t2")


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; see ``--help``."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "-i",
        "--plans",
        type=Path,
        help="plans.json; default: made by a preset for 1 mm, 160 voxels a side",
    )
    parser.add_argument("--preset", default="default", help="shipped preset or a .json")
    parser.add_argument("-c", "--configuration", choices=("2d", "3d_fullres"), default="3d_fullres")
    options = parser.parse_args(argv)
    plans = Plans.load(options.plans) if options.plans else planned_by(options.preset)
    settings = RunSettings(options.configuration, 0, rounds=1, local_steps=1, learning_rate=1e-3)
    first = first_state(plans, settings)
    state = ServerState(0, first.weights, memory_of(plans, settings, plans.modalities))
    plain = len(encode(Message("train", {"round": 0}, state.weights)))
    print(f"plain averaging of the whole network: {plain / 1e6:.1f} MB each way")
    heads = [
        *("modalities", "received MB", "over plain"),
        *("sent MB, half", "over plain", "both ways", "single", "over plain", "both ways"),
    ]
    print("  ".join(heads))
    worst = 0.0
    for count in range(1, len(plans.modalities) + 1):
        told = Registration(1, dict.fromkeys(plans.modalities[:count], 1))
        task = train_task(state, told)
        received = len(encode(task))
        cells = [f"{count}", f"{received / 1e6:.1f}", f"{received / plain:.2f}"]
        for kind in (torch.float16, torch.float32):
            sent = sent_bytes(task, told, plans, settings, kind)
            both = (sent + received) / (2 * plain)
            cells += [f"{sent / 1e6:.1f}", f"{sent / plain:.2f}", f"{both:.2f}"]
            if count <= 2 and kind == torch.float16:
                worst = max(worst, both)
        widths = map(len, heads)
        print("  ".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True)))
    print(f"ratio {worst:.2f} bytes of a site with 1 or 2 modalities over those of plain averaging")
    return 0


def sent_bytes(
    task: Message, told: Registration, plans: Plans, settings: RunSettings, kind: torch.dtype
) -> int:
    """Return the size of the reply to a task, with changes of this type."""
    changes = {n: t.to(kind) for n, t in task.tensors.items() if not n.startswith("memory.")}
    memory = memory_to_state(memory_of(plans, settings, list(told.modality_cases)))
    return len(encode(Message("train", {"round": 0, "loss": 0.5}, {**changes, **memory})))


def memory_of(plans: Plans, settings: RunSettings, modalities: Sequence[str]) -> PrototypeMemory:
    """Return prototypes of these modalities, as many as the plans lay out."""
    sizes = prototype_sizes(plans, settings.configuration)
    return {(name, level): size.unseen() for name in modalities for level, size in sizes.items()}


def planned_by(preset: str) -> Plans:
    """Return plans of a preset for four modalities and a tumour of three parts."""
    counts, axis = dict.fromkeys(NAMES, 10), {"1x160": 10}
    bins = dict.fromkeys(NAMES, (1,) * (len(INTENSITY_EDGES) - 1))
    told = Fingerprint(
        10,
        counts,
        {},
        {},
        (axis,) * 3,
        (axis,) * 3,
        {"none": 10},
        {"1.00": 10},
        bins,
        {"stripped": 10},
    )
    labels = Labels({"background": 0, "edema": 1, "core": 2, "enhancing": 3})
    return make_plans(told, labels, load_preset(preset))


if __name__ == "__main__":
    sys.exit(main())
