"""The state that a run starts from, where it starts from the weights of another network."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from mixmfl.core.declarations import LONGEST_PATH, entries, text
from mixmfl.core.errors import ModelError
from mixmfl.core.text import times
from mixmfl.data.modalities import MOST_MODALITIES, Modalities
from mixmfl.federated.state import RunSettings, ServerState, first_state
from mixmfl.inference.model import Model
from mixmfl.inference.model_file import load_model
from mixmfl.inference.model_folder import model_file
from mixmfl.networks.build import memory_shapes, prototype_sizes
from mixmfl.networks.initial_weights import Part, head_names, source_of, take_weights
from mixmfl.networks.nnunet_checkpoint import read_checkpoint
from mixmfl.networks.prototypes import PrototypeMemory, memory_from_state, memory_to_state
from mixmfl.planning.plans import Plans
from mixmfl.training.trainer import SETTLED_RATE


@dataclass(frozen=True)
class Start:
    """What a run started from, as its record says it.

    Attributes:
        file: Name of the file.
        sha256: Its digest.
        parts: What was taken of it.
    """

    file: Annotated[str, text(LONGEST_PATH)]
    sha256: Annotated[str, text(64)]
    parts: Annotated[Sequence[Part], entries(0, MOST_MODALITIES + 10)]

    @property
    def settled(self) -> tuple[str, ...]:
        """Return the blocks that are as the other network had them, where a modality is new.

        They learn more slowly than the new encoder and the fusion, which has its slot. Where no
        encoder is new beside such ones, all learn alike, and nothing is returned.
        """
        whole = {p.name for p in self.parts if p.taken == p.tensors and not p.left}
        tailored = {p.name for p in self.parts if p.name.startswith("tailored.")}
        known = {p.name for p in self.parts if p.name == f"tailored.{p.origin}"} & whole
        if not known or known == tailored:
            return ()
        common = {"shared", *({"decoder"} if "heads" in whole else ())} & whole
        return tuple(sorted(known | common))

    def lines(self) -> list[str]:
        """Return a table of what was taken and what was not."""
        rows = [("part", "from", "tensors", "not taken")]
        rows += [(p.name, p.origin, f"{p.taken} of {p.tensors}", p.left or "-") for p in self.parts]
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        slow = f"at {SETTLED_RATE:g} of the learning rate unless masked"
        return [
            f"started from {self.file}:",
            *(
                "  " + "  ".join((*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[3]))
                for row in rows
            ),
            *([f"{slow}: {', '.join(self.settled)}"] if self.settled else []),
        ]


def start_from(
    path: Path, plans: Plans, settings: RunSettings, modalities: Modalities
) -> tuple[ServerState, Start]:
    """Return a run's state before its first round, with the weights of a file where they fit.

    Args:
        path: A model file, the folder of a run with one, or a checkpoint of nnU-Net v2.
        plans: Plans of the run.
        settings: Settings of the run.
        modalities: What the names of a checkpoint's channels mean.

    Raises:
        ModelError: The file cannot be read, or nothing of its encoders fits.
    """
    path = model_file(path) if path.is_dir() else path
    model = load_model(path) if path.suffix == ".safetensors" else None
    source = (
        read_checkpoint(path, modalities)
        if model is None
        else source_of(model.plans, model.configuration, model.modalities, model.weights)
    )
    fresh = first_state(plans, settings)
    weights, parts = take_weights(fresh.weights, plans.modalities, head_names(plans.labels), source)
    encoders = [p for p in parts if p.name in ("shared", "encoder") or "tailored." in p.name]
    if not any(part.taken for part in encoders):
        reasons = "; ".join(dict.fromkeys(part.left for part in encoders))
        raise ModelError(
            f"{path}: nothing of its encoders fits these plans ({reasons}). A decoder alone is no "
            "start: plan with its number of channels and of axes, or train without --init"
        )
    memory, row = _memory(model, plans, settings.configuration, parts)
    spacing = plans.configuration(settings.configuration)["spacing"]
    here, there = map(times, (spacing, source.spacing))
    file = path.name if here == there else f"{path.name} ({there} mm; here {here} mm)"
    digest = source.sha256 if model is None else model.sha256
    return ServerState(0, weights, memory), Start(file, digest, [*parts, *row])


def _memory(
    model: Model | None, plans: Plans, configuration: str, parts: Sequence[Part]
) -> tuple[PrototypeMemory, list[Part]]:
    """Return the prototypes that still mean the same, and their row of the table.

    These are of encoders that were taken whole, for the same labels.
    """
    if not (sizes := prototype_sizes(plans, configuration)):
        return {}, []
    shapes = memory_shapes(plans.modalities, sizes)
    if model is None:
        return {}, [Part("memory", "-", 0, len(shapes), "nnU-Net has none")]
    if model.plans.labels.to_json() != plans.labels.to_json():
        return {}, [Part("memory", "-", 0, len(shapes), "its labels are others")]
    whole = {p.name for p in parts if p.taken == p.tensors and f"tailored.{p.origin}" == p.name}
    stored = memory_to_state(model.memory)
    kept: Mapping[str, Any] = {
        name: tensor
        for name, tensor in stored.items()
        if f"tailored.{name.split('.')[1]}" in whole and shapes.get(name) == tuple(tensor.shape)
    }
    left = "" if len(kept) == len(shapes) else "not known there, or of an encoder that is not taken"
    row = Part("memory", "memory" if kept else "-", len(kept), len(shapes), left)
    return memory_from_state(kept), [row]
