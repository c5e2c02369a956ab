"""A checkpoint of nnU-Net v2 (``checkpoint_final.pth``) as first weights; none of its code is run.

``torch_archive`` reads the file as data. numpy's numbers, which nnU-Net leaves in its log, are
passed over.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mixmfl.core.errors import MixmflError, ModelError, why
from mixmfl.core.files import is_file
from mixmfl.core.json_fields import real
from mixmfl.core.strict_json import MOST_BYTES_SETTINGS, parse_json
from mixmfl.core.text import one_line, shorten
from mixmfl.data.labels import Labels
from mixmfl.data.modalities import MOST_MODALITIES, Modalities
from mixmfl.networks.initial_weights import Source, head_names
from mixmfl.networks.torch_archive import StoredTensor, TorchArchive
from mixmfl.planning.bounds import SPACING


def read_checkpoint(path: Path, modalities: Modalities) -> Source:
    """Read the network of a checkpoint of nnU-Net v2.

    Args:
        path: ``checkpoint_final.pth``, ``checkpoint_best.pth`` or a copy of one.
        modalities: What the names of channels mean.

    Raises:
        ModelError: The file is missing, holds code or is no such checkpoint.
    """
    archive = _load(path)
    try:
        tensors = _parameters(archive)
        # as JSON, which nnU-Net wrote it from: a pickle may hold itself
        start = archive.content["init_args"]
        described, plans = (_as_json(start[name]) for name in ("dataset_json", "plans"))
        names = described.get("channel_names", described.get("modality"))
        if len(names) > MOST_MODALITIES:
            raise ValueError(f"{len(names)} channels; at most {MOST_MODALITIES} are read")
        channels = [str(names[str(number)]) for number in range(len(names))]
        labels = Labels.from_dataset_json(described, f"{path}: dataset_json")
        spacing = _spacing(plans["configurations"], start["configuration"])
        digest = archive.sha256()
    except (
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
        RecursionError,
        OSError,
        MixmflError,
    ) as error:
        raise ModelError(
            f"{path}: is no checkpoint of nnU-Net v2's trainer ({type(error).__name__}: "
            f"{one_line(error, 300)}); needed are its network_weights, and dataset_json and plans "
            "in its init_args"
        ) from None
    meant = [modalities.find(channel) or "" for channel in channels]
    once = tuple(name if meant.count(name) == 1 else "" for name in meant)
    if not any(once):
        shown = shorten([one_line(channel) for channel in channels], 20)
        raise ModelError(
            f"{path}: its channels are {shown}, of which none is a known modality "
            f"({', '.join(modalities.names)}); name them by --alias, as in --alias t1=channel0"
        )
    return Source(
        form="stacked",
        modalities=once,
        trained=tuple(name for name in once if name),
        heads=head_names(labels),
        weights=tensors,
        spacing=spacing,
        residual=any(name.startswith("encoder.stem.") for name in tensors),
        sha256=digest,
    )


def _load(path: Path) -> TorchArchive:
    if not is_file(path):
        raise ModelError(f"{path}: there is no such file")
    try:
        return TorchArchive(path)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{path}: cannot be read as weights alone, and code in it is not run "
            f"({one_line(why(error), 300)}); needed is a checkpoint as nnU-Net v2 writes it"
        ) from None


def _as_json(content: object) -> Any:
    """Return what is left of an object as JSON, within the limits of JSON that is read.

    Raises:
        TypeError: Something in it is no JSON; ``ValueError`` or ``RecursionError``: too much is.
    """
    pieces, length = [], 0
    for piece in json.JSONEncoder().iterencode(content):  # a list may be in it in many places
        length += len(piece)
        if length > MOST_BYTES_SETTINGS:
            raise ValueError(f"more than {MOST_BYTES_SETTINGS} bytes of plans are not read")
        pieces.append(piece)
    return parse_json("".join(pieces))


def _parameters(archive: TorchArchive) -> dict[str, Tensor]:
    """Return each parameter once, under the name that ours have.

    Raises:
        ValueError: Something else is among them.
    """
    parameters = {}
    weights: Mapping[str, Any] = archive.content["network_weights"]
    for name, tensor in weights.items():
        if not isinstance(name, str) or not isinstance(tensor, StoredTensor):
            raise ValueError(f"network_weights hold {type(tensor).__name__}")
        kind = tensor.record.kind
        if not (kind.is_floating_point or kind == torch.int64):  # counts of batches
            raise ValueError(f"{one_line(name)} is no tensor of numbers that the file holds")
        name = name.removeprefix("module.")  # as a network on several GPUs writes it
        # a block registers its layers twice, and the decoder its encoder
        if ".all_modules." not in name and not name.startswith("decoder.encoder."):
            parameters[name] = tensor
    if not any(name.startswith("encoder.stages.") for name in parameters):
        raise ValueError("network_weights are of no U-Net of nnU-Net's")
    return archive.tensors(parameters)


def _spacing(configurations: Mapping[str, Any], name: str) -> tuple[float, ...]:
    for _ in configurations:  # written once, where one configuration builds on another
        planned = configurations[name]
        if "spacing" in planned:
            return tuple(real(mm, SPACING, "spacing") for mm in planned["spacing"])
        name = planned["inherits_from"]
    raise ValueError(f"the configuration {one_line(name)} builds on itself")
