"""Options that several commands share, and their values."""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mixmfl.core.devices import cores
from mixmfl.core.errors import MixmflError

from . import _paths

if TYPE_CHECKING:
    import torch

    from mixmfl.data.load_case import AlignmentOptions
    from mixmfl.data.modalities import Modalities
    from mixmfl.federated.state import Minimum
    from mixmfl.planning.brains import BrainExtraction
    from mixmfl.training.privacy_budget import Privacy

CONFIGURATIONS = ("2d", "3d_fullres")
"""What is planned; ``nnunet_plans`` has them, too, and waits for torch."""


def add_alias(parser: argparse.ArgumentParser) -> None:
    """Add ``--alias``, for commands that find cases in a folder."""
    parser.add_argument(
        "--alias",
        action="append",
        default=[],
        metavar="NAME=ALIAS[,ALIAS]",
        help="another word for a modality in file names, or a new modality (repeatable)",
    )


def add_alignment(
    parser: argparse.ArgumentParser,
    grid: str = "the grid of the label, else the one",
    without: str = "refuse the case",
) -> None:
    """Add ``--reference`` and ``--register``, for commands that read cases.

    Args:
        parser: The command's.
        grid: What help says of the grid that is taken by default.
        without: What help says that comes of images that are not aligned.
    """
    parser.add_argument(
        "--reference",
        default="",
        metavar="MODALITY",
        help="modality onto whose grid the other images of a case are resampled; default: "
        f"{grid} with the finest in-plane resolution",
    )
    parser.add_argument(
        "--register",
        action="store_true",
        help=f"rigidly register images of a case that are not aligned; default: {without}",
    )


def alignment(options: argparse.Namespace, modalities: "Modalities") -> "AlignmentOptions":
    """Return the value of ``--reference`` and ``--register``.

    Raises:
        MixmflError: ``--reference`` is not a known modality.
    """
    from mixmfl.data.load_case import AlignmentOptions

    reference = modalities.find(options.reference) if options.reference else ""
    if reference is None:
        raise MixmflError(
            f"--reference {options.reference}: the known modalities are "
            f"{', '.join(modalities.names)}"
        )
    return AlignmentOptions(reference, options.register)


def add_brains(parser: argparse.ArgumentParser) -> None:
    """Add ``--brain-only`` and ``--brain-command``, for commands that read cases."""
    parser.add_argument(
        "--brain-only",
        action="store_true",
        help="remove the skull of cases that show it, by deepbet (pip install 'mixmfl[brain]'); "
        "plans and model file record it, so that all sites and predictions do the same",
    )
    parser.add_argument(
        "--brain-command",
        default="",
        metavar="'TOOL {image} {mask}'",
        help="remove it by this command instead, which reads one image and writes its brain mask; "
        "it stays here, plans and model file only record that there was one",
    )


def brains(options: argparse.Namespace) -> "BrainExtraction":
    """Return the value of the options of ``add_brains``.

    Raises:
        MixmflError: Both are given, or the command cannot be run.
    """
    from mixmfl.planning.brains import asked_extraction

    return asked_extraction(options.brain_only, options.brain_command)


def add_setting(parser: argparse.ArgumentParser) -> None:
    """Add ``--setting``, for commands that make a federation."""
    parser.add_argument(
        "--setting",
        choices=("mix-modal", "multi-modal", "cross-modal"),
        default="mix-modal",
        help="sites hold different modalities (default), all hold all, or each holds one",
    )


def add_learning_rates(parser: argparse.ArgumentParser) -> None:
    """Add ``--learning-rates``, for commands that compare methods."""
    parser.add_argument(
        "--learning-rates",
        default="",
        metavar="RATES",
        help="comma-separated; every method trains with each, and the one with the highest Dice on "
        "its validation cases is scored; default: the planned one",
    )


def learning_rates(options: argparse.Namespace) -> tuple[float, ...]:
    """Return the value of ``--learning-rates``; empty: the planned one.

    Raises:
        MixmflError: It is no list of numbers above 0 and at most 10.
    """
    from mixmfl.planning.bounds import MOST_LEARNING_RATE

    try:
        rates = tuple(float(word) for word in options.learning_rates.split(",") if word)
    except ValueError:
        rates = (math.nan,)
    if not all(0 < rate <= MOST_LEARNING_RATE for rate in rates):
        raise MixmflError(
            f"--learning-rates {options.learning_rates}: numbers above 0 and at most "
            f"{MOST_LEARNING_RATE:g} are needed, as in 0.002,0.006,0.02"
        )
    return rates


def add_work(
    parser: argparse.ArgumentParser, what: str = "folder that mixmfl_plan_preprocess wrote"
) -> None:
    """Add ``-i``, for commands that read preprocessed cases; ``what`` is its help."""
    parser.add_argument("-i", "--input", type=_paths.WORK, required=True, metavar="WORK", help=what)


def add_configuration(parser: argparse.ArgumentParser) -> None:
    """Add ``-c``, for research that trains one configuration."""
    parser.add_argument(
        "-c",
        "--configuration",
        choices=CONFIGURATIONS,
        default="2d",
        help="which to train; default: 2d",
    )


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add ``--device``, for commands that run the network."""
    parser.add_argument(
        "--device", default="auto", help="cpu, cuda, cuda:1, mps; default: a GPU if there is one"
    )


def add_processes(parser: argparse.ArgumentParser) -> None:
    """Add ``--processes``, for commands that preprocess."""
    parser.add_argument(
        "-n",
        "--processes",
        type=int,
        default=min(8, cores()),
        help="to preprocess with (default: one per core, at most 8)",
    )


def check_processes(number: int) -> int:
    """Return a number of processes.

    Raises:
        MixmflError: It is below 1.
    """
    if number < 1:
        raise MixmflError(f"-n {number}: at least 1 process is needed")
    return number


def add_workers(parser: argparse.ArgumentParser) -> None:
    """Add ``--workers``, for commands that train."""
    parser.add_argument(
        "--workers", type=int, help="processes that prepare batches; default: 0, with a GPU 4"
    )


def workers(asked: int | None, device: "torch.device") -> int:
    """Return the number of processes that ``--workers`` asks for, or its default.

    Raises:
        MixmflError: It is below 0.
    """
    if asked is None:
        return 4 if device.type == "cuda" else 0
    if asked < 0:
        raise MixmflError("--workers: must be 0 or more")
    return asked


def add_minimum(parser: argparse.ArgumentParser, what: str) -> None:
    """Add ``--minimum-cases`` and ``--minimum-voxels``, with the help text ``what``."""
    for counted in ("cases", "voxels"):
        parser.add_argument(
            f"--minimum-{counted}", type=int, metavar="N", help=what.format(counted=counted)
        )


def minimum(options: argparse.Namespace, usual: "Minimum") -> "Minimum":
    """Return the value of the options of ``add_minimum``.

    Args:
        options: The parsed options.
        usual: Values of the options that are not given.

    Raises:
        MixmflError: An option is below 0.
    """
    from mixmfl.federated.state import Minimum

    pairs = (options.minimum_cases, usual.cases), (options.minimum_voxels, usual.voxels)
    cases, voxels = (default if asked is None else asked for asked, default in pairs)
    if cases < 0 or voxels < 0:
        raise MixmflError("--minimum-cases and --minimum-voxels: must be 0 or more")
    return Minimum(cases, voxels)


def add_privacy(parser: argparse.ArgumentParser, who: str) -> None:
    """Add the options of differential privacy, for commands at a site."""
    parser.add_argument(
        "--dp-epsilon",
        type=float,
        metavar="E",
        help=f"{who} trains with differential privacy of its cases, and stops sending before this "
        "epsilon is exceeded (docs/privacy.md); default: no differential privacy",
    )
    parser.add_argument(
        "--dp-delta", type=float, default=1e-5, metavar="D", help="delta; default: 1e-5"
    )
    parser.add_argument(
        "--dp-noise",
        type=float,
        default=1.0,
        metavar="Z",
        help="noise in units of the clip; default: 1",
    )
    parser.add_argument(
        "--dp-clip",
        type=float,
        default=1.0,
        metavar="C",
        help="largest norm of a case's gradient; default: 1",
    )


def privacy(options: argparse.Namespace, ledger: Path) -> "Privacy | None":
    """Return the value of the options of ``add_privacy``; None without ``--dp-epsilon``.

    Raises:
        MixmflError: An option is out of its range.
    """
    if options.dp_epsilon is None:
        return None
    from mixmfl.training.privacy_budget import Privacy

    for name in ("epsilon", "delta", "noise", "clip"):
        most = 1 if name == "delta" else math.inf
        if not 0 < getattr(options, f"dp_{name}") < most:
            raise MixmflError(f"--dp-{name}: must be above 0" + (" and below 1" * (most == 1)))
    return Privacy(options.dp_epsilon, options.dp_delta, options.dp_noise, options.dp_clip, ledger)


def sites(asked: Sequence[str], existing: Sequence[str]) -> list[str]:
    """Return the sites that ``--sites`` names, or all existing ones.

    Raises:
        MixmflError: A named site does not exist.
    """
    if unknown := sorted(set(asked) - set(existing)):
        raise MixmflError(f"--sites {unknown[0]}: the network has kits for {', '.join(existing)}")
    return sorted(set(asked or existing))
