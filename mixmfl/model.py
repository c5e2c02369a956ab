"""The model file: weights and memory, and in its header all that they mean."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mixmfl import __version__
from mixmfl.errors import MixmflError, ModelError
from mixmfl.files import replacing
from mixmfl.memory import Memory, State, memory_from_state, memory_to, memory_to_state
from mixmfl.network import SegmentationNet, build_network, load_state
from mixmfl.plan import Plans
from mixmfl.rounds import ServerState
from mixmfl.tensors import pack, read

FORMAT = "mixmfl model 1"


@dataclass(frozen=True)
class Model:
    """A model ready to predict.

    Attributes:
        plans: That it was trained with; they name its modalities and labels.
        configuration: ``"2d"`` or ``"3d_fullres"``.
        network: In prediction mode, on ``device``.
        memory: On ``device``.
        device: Where it computes.
        record: What the header says of its origin: version, round, sites' modalities, privacy.
    """

    plans: Plans
    configuration: str
    network: SegmentationNet
    memory: Memory
    device: torch.device
    record: Mapping[str, Any]

    @property
    def modalities(self) -> tuple[str, ...]:
        """Return the modalities that a training case had, in the order of the plans.

        The encoder of another one was never trained, and must not be used.
        """
        counts = self.record["modality_cases"]
        return tuple(name for name in self.plans.modalities if counts.get(name, 0))


def save_model(
    path: Path,
    state: ServerState,
    plans: Plans,
    configuration: str,
    modality_cases: Mapping[str, int],
    privacy: Mapping[str, Mapping[str, float]] | None = None,
) -> str:
    """Write a model file, whole or not at all.

    The same state gives the same bytes.

    Args:
        path: Ends in ``.safetensors``.
        state: Weights and memory.
        plans: Of the run.
        configuration: Of the run.
        modality_cases: How many training cases of the federation had each modality.
        privacy: Epsilon and delta of the sites that trained with differential privacy.

    Returns:
        The file's SHA-256.
    """
    header = {
        "format": FORMAT,
        "mixmfl_version": __version__,
        "configuration": configuration,
        "round": state.round,
        "modality_cases": dict(modality_cases),
        "plans": plans.to_json(),
        **({"privacy": privacy} if privacy else {}),
    }
    tensors = {
        **{f"network.{name}": tensor for name, tensor in state.weights.items()},
        **memory_to_state(state.memory),
    }
    content = pack(tensors, header)
    with replacing(path) as temporary:
        temporary.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def specialise(path: Path, own: State, out: Path) -> None:
    """Write a model file with a site's own weights in place of those it has.

    Args:
        path: The model of all.
        own: The site's blocks.
        out: To write.
    """
    tensors, header = read(path)
    content = pack({**tensors, **{f"network.{n}": tensor for n, tensor in own.items()}}, header)
    with replacing(out) as temporary:
        temporary.write_bytes(content)


def load_model(path: Path, device: torch.device | str = "cpu") -> Model:
    """Read a model file. Nothing in it is run: tensors and JSON only.

    Raises:
        ModelError: The file is missing, is no model, is damaged or is of another format.
    """
    device = torch.device(device)
    try:
        tensors, header = read(path)
    except FileNotFoundError:
        raise ModelError(f"{path}: there is no such model file") from None
    except ValueError as error:
        raise ModelError(
            f"{path}: cannot be read as a model ({error}); copy it again, or export it again with "
            "mixmfl_export"
        ) from None
    if header.get("format") != FORMAT:
        raise ModelError(
            f"{path}: format {header.get('format')!r} was found, {FORMAT!r} is needed; export the "
            "run again with mixmfl_export, or install the version of mixmfl that wrote it "
            f"({header.get('mixmfl_version', 'not told')})"
        )
    try:
        plans = Plans.from_json(header["plans"], str(path))
        network = build_network(plans, header["configuration"], seed=0)
        weights = {
            name.removeprefix("network."): tensor
            for name, tensor in tensors.items()
            if name.startswith("network.")
        }
        missing = {name for name, _ in network.named_parameters()} - set(weights)
        if missing:
            raise ValueError(f"{len(missing)} tensors are missing, such as {min(missing)}")
        if bad := [name for name, tensor in tensors.items() if not tensor.isfinite().all()]:
            raise ValueError(f"{len(bad)} tensors hold NaN or infinity, such as {min(bad)}")
        load_state(network, weights)
        record = {key: header[key] for key in ("mixmfl_version", "round", "modality_cases")}
        record["privacy"] = header.get("privacy", {})
        memory = memory_to(memory_from_state(tensors), device)
    except (LookupError, AttributeError, TypeError, ValueError, RuntimeError, MixmflError) as error:
        raise ModelError(f"{path}: header and tensors do not fit together ({error})") from None
    network = network.to(device).eval()
    return Model(plans, header["configuration"], network, memory, device, record)
