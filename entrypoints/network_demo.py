"""``mixmfl_network_demo``: a federation over a network, as processes on this machine."""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from mixmfl.core.errors import MixmflError

from . import _paths, _runner

DESCRIPTION = """\
Run a federation on this machine as it runs between hospitals: a phantom, a kit for each of three
hospitals and the coordinator, mutual TLS on the loopback, planning and two rounds of training. Then
train the same in one process and compare the models byte by byte. The demo prints every command
and its output; OUT/logs holds the output of the hospitals."""

PLAN = ("--preset", "demo", "-c", "2d")
TRAIN = ("-c", "2d", "--fold", 0, "--rounds", 2, "--local-steps", 3)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code; see ``--help``."""
    parser = _runner.parser("mixmfl_network_demo", DESCRIPTION)
    parser.add_argument(
        "-o",
        "--out",
        type=_paths.new_folder(),
        default=Path("network-demo"),
        help="default: network-demo",
    )
    return _runner.run(parser, argv, _work, _runner.begun_again)


def _work(options: argparse.Namespace) -> int:
    from ._local_network import lay_out, open_hospitals

    out: Path = options.out
    began = time.monotonic()
    # its model must not become the one that a clinician's mixmfl_predict uses
    os.environ["MIXMFL_HOME"] = str(out.absolute() / "settings")
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # four processes share the cores
    sites, kit = lay_out(out), out / "kits" / "coordinator"
    work, run = out / "work", out / "run"
    with open_hospitals(out, sites):
        # the card of the data that the comparison's plans have
        card = ("--card", out / "federation" / "dataset.json")
        _runner.run_shown("mixmfl_plan_preprocess", "--kit", kit, "-o", work, *PLAN, *card)
        _runner.run_shown("mixmfl_train_federated", "--kit", kit, "-i", work, "-o", run, *TRAIN)
    _compare(out)
    print(f"{time.monotonic() - began:.0f} s in all")
    return 0


def _compare(out: Path) -> None:
    """Train the same in one process, and compare the models.

    Raises:
        MixmflError: The models differ.
    """
    from mixmfl.federated.state import NETWORK_MINIMUM

    print("\nThe same in one process:")
    simulation = out / "one_process"
    work, run = simulation / "work", simulation / "run"
    _runner.run_shown("mixmfl_plan_preprocess", "-i", out / "federation", "-o", work, *PLAN)
    minimum = ["--minimum-cases", NETWORK_MINIMUM.cases, "--minimum-voxels", NETWORK_MINIMUM.voxels]
    _runner.run_shown(
        "mixmfl_train_federated", "-i", work, "-o", run, *TRAIN, *minimum, "--device", "cpu"
    )
    pair = [folder / "run" / "model.safetensors" for folder in (out, simulation)]
    if pair[0].read_bytes() != pair[1].read_bytes():
        raise MixmflError(f"{pair[0]} and {pair[1]} differ; they should be the same")
    print(f"\n{pair[0]} and {pair[1]} are the same, byte by byte")


if __name__ == "__main__":
    sys.exit(main())
