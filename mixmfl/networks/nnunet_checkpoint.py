"""A checkpoint of nnU-Net v2 (``checkpoint_final.pth``) as first weights; none of its code is run.

The file is a pickle. torch's reader of weights alone takes it apart, and looks up no name in it
but those of tensors and of what is listed here. numpy's numbers, which nnU-Net leaves in its log,
become empty objects: nothing of numpy is called either.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mixmfl.core.errors import MixmflError, ModelError
from mixmfl.core.json_fields import real
from mixmfl.core.strict_json import parse_json
from mixmfl.core.text import one_line, shorten
from mixmfl.data.labels import Labels
from mixmfl.data.modalities import Modalities
from mixmfl.networks.initial_weights import Source, head_names
from mixmfl.planning.bounds import SPACING


class _Ignored:
    """Stands for a number of numpy; takes whatever it is made from, and keeps nothing."""

    def __init__(self, *_: object) -> None:
        """Keep nothing."""

    def __setstate__(self, state: object) -> None:
        """Keep nothing."""


_NUMBERS = (
    "numpy.dtype",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.dtypes.Float64DType",
    "numpy.dtypes.Float32DType",
    "numpy.dtypes.Int64DType",
)
"""Names by which pickles of numpy 1 and 2 make a number."""


def read_checkpoint(path: Path, modalities: Modalities) -> Source:
    """Read the network of a checkpoint of nnU-Net v2.

    Args:
        path: ``checkpoint_final.pth``, ``checkpoint_best.pth`` or a copy of one.
        modalities: What the names of channels mean.

    Raises:
        ModelError: The file is missing, holds code or is no such checkpoint.
    """
    content = _load(path)
    try:
        tensors = _parameters(content["network_weights"])
        # as JSON, which nnU-Net wrote it from: a pickle may hold itself
        start = content["init_args"]
        described, plans = (_as_json(start[name]) for name in ("dataset_json", "plans"))
        names = described.get("channel_names", described.get("modality"))
        channels = [str(names[str(number)]) for number in range(len(names))]
        labels = Labels.from_dataset_json(described, f"{path}: dataset_json")
        spacing = _spacing(plans["configurations"], start["configuration"])
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError, MixmflError) as error:
        raise ModelError(
            f"{path}: is no checkpoint of nnU-Net v2's trainer ({type(error).__name__}: "
            f"{one_line(error, 300)}); needed are its network_weights, and dataset_json and plans "
            "in its init_args"
        ) from None
    found = [modalities.find(channel) or "" for channel in channels]
    once = tuple(name if found.count(name) == 1 else "" for name in found)
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
    )


def _load(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise ModelError(f"{path}: there is no such file")
    if not hasattr(torch.serialization, "safe_globals"):  # as those that know other names do
        raise ModelError(
            f"{path}: torch {torch.__version__} cannot read numpy's numbers by name; reading a "
            "checkpoint of nnU-Net needs torch 2.5 or later"
        )
    try:
        with _numbers_alone():
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a file that is no checkpoint makes torch raise
        raise ModelError(
            f"{path}: cannot be read as weights alone, and code in it is not run "
            f"({one_line(str(error))[:300]}); needed is a checkpoint as nnU-Net v2 writes it"
        ) from None
    if not isinstance(content, Mapping):
        raise ModelError(f"{path}: holds {type(content).__name__}, and no checkpoint of nnU-Net")
    return content


@contextmanager
def _numbers_alone() -> Iterator[None]:
    """Have torch's reader know ``_NUMBERS``, and nothing that this process has let it know."""
    before = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    allowed: list[Any] = [(_Ignored, name) for name in _NUMBERS]
    torch.serialization.add_safe_globals(allowed)
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def _as_json(content: object) -> Any:
    """Return what is left of an object as JSON, within the limits of JSON that is read.

    Raises:
        TypeError: Something in it is no JSON; ``ValueError`` or ``RecursionError``: too much is.
    """
    return parse_json(json.dumps(content))


def _parameters(weights: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return each parameter once, under the name that ours have.

    Raises:
        ValueError: Something else is among them.
    """
    parameters = {}
    for name, tensor in weights.items():
        if not isinstance(name, str) or type(tensor) is not Tensor:
            raise ValueError(f"network_weights hold {type(tensor).__name__}")
        if (
            tensor.layout != torch.strided
            or tensor.device.type != "cpu"
            or not (tensor.is_floating_point() or tensor.dtype == torch.int64)  # counts of batches
            or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes()
        ):
            raise ValueError(f"{one_line(name)} is no tensor of numbers that the file holds")
        name = name.removeprefix("module.")  # as a network on several GPUs writes it
        # a block registers its layers twice, and the decoder its encoder
        if ".all_modules." not in name and not name.startswith("decoder.encoder."):
            parameters[name] = tensor
    if not any(name.startswith("encoder.stages.") for name in parameters):
        raise ValueError("network_weights are of no U-Net of nnU-Net's")
    return parameters


def _spacing(configurations: Mapping[str, Any], name: str) -> tuple[float, ...]:
    for _ in configurations:  # written once, where one configuration builds on another
        planned = configurations[name]
        if "spacing" in planned:
            return tuple(real(mm, SPACING, "spacing") for mm in planned["spacing"])
        name = planned["inherits_from"]
    raise ValueError(f"the configuration {one_line(name)} builds on itself")
