"""The closed table of layers that plans may name, and how large a network they may ask for.

Plans come from other people, in files and messages. nnU-Net writes the classes of a network's
layers into them as dotted names and looks these up when it reads them; here a name is compared
with the table, to the letter, and is nothing but a key of it. So plans can choose among what
stands here, and can name nothing else. What they ask for has bounds, which are checked before
anything is built.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import nn

from mixmfl.core.errors import PlansError
from mixmfl.core.json_fields import Range, fields, flag, listed, real, shown, whole, word
from mixmfl.planning.bounds import CHANNELS, CONVOLUTIONS, STAGES

if TYPE_CHECKING:  # settings are needed for their type only
    from mixmfl.planning.settings import NetworkSettings

_BLOCKS = "n_blocks_per_stage"

NETWORKS: Mapping[str, str] = {
    "dynamic_network_architectures.architectures.unet.PlainConvUNet": "n_conv_per_stage",
    "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet": _BLOCKS,
}
"""The networks that nnU-Net plans, as its plans name them, and the field that says how deep a stage
of the encoder is. They are compared, never looked up."""

KERNEL = Range(1, 7)
STRIDE = Range(1, 4)

MOST_LAYERS = 2000
"""Convolutions of a network. With nine modalities nnU-Net's largest has about 200."""

MOST_PARAMETERS = 2**30
"""Most parameters of a network: 4 GiB, four times nnU-Net's widest with nine modalities."""


@dataclass(frozen=True)
class Layer:
    """A layer that plans may name.

    Attributes:
        layer_class: Class of the layer.
        axes: Number of axes of the patches that it is for; None: any.
        options: What its keyword arguments may be: numbers of a range, or True and False.
    """

    layer_class: type[nn.Module]
    axes: int | None = None
    options: Mapping[str, Range | type[bool]] = field(default_factory=dict)


_NORM: Mapping[str, Range | type[bool]] = {"eps": Range(1e-8, 0.1), "affine": bool}
_DROPOUT: Mapping[str, Range | type[bool]] = {"p": Range(0, 0.95), "inplace": bool}
_NONLIN: Mapping[str, Range | type[bool]] = {"negative_slope": Range(0, 1), "inplace": bool}

LAYERS: Mapping[str, Mapping[str, Layer]] = {
    "conv_op": {
        "torch.nn.modules.conv.Conv2d": Layer(nn.Conv2d, 2),
        "torch.nn.modules.conv.Conv3d": Layer(nn.Conv3d, 3),
    },
    "norm_op": {
        "torch.nn.modules.instancenorm.InstanceNorm2d": Layer(nn.InstanceNorm2d, 2, _NORM),
        "torch.nn.modules.instancenorm.InstanceNorm3d": Layer(nn.InstanceNorm3d, 3, _NORM),
    },
    "dropout_op": {
        "torch.nn.modules.dropout.Dropout2d": Layer(nn.Dropout2d, 2, _DROPOUT),
        "torch.nn.modules.dropout.Dropout3d": Layer(nn.Dropout3d, 3, _DROPOUT),
    },
    "nonlin": {"torch.nn.LeakyReLU": Layer(nn.LeakyReLU, None, _NONLIN)},
}
"""Layers by field of ``arch_kwargs`` and by name: what nnU-Net's planner writes, and dropout."""

MAY_BE_NONE = ("dropout_op",)

_SIZES = (
    "n_stages",
    "features_per_stage",
    "kernel_sizes",
    "strides",
    "n_conv_per_stage_decoder",
)
_OPTIONS = ("norm_op_kwargs", "dropout_op_kwargs", "nonlin_kwargs")


def is_residual(arch_kwargs: Mapping[str, Any]) -> bool:
    """Return whether planned ``arch_kwargs`` are of encoders of residual blocks."""
    return _BLOCKS in arch_kwargs


def resolve_architecture(arch_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Replace the names of layers in planned ``arch_kwargs`` by the classes of the table.

    Raises:
        PlansError: A name is not in the table, or a layer has other options than it may have.
    """
    layers = {key: _layer(arch_kwargs, key, "plans") for key in LAYERS}
    return {**arch_kwargs, **{key: layer and layer.layer_class for key, layer in layers.items()}}


def check_architecture(architecture: Any, axes: int, source: str) -> None:
    """Check the architecture of nnU-Net's plans: names, options and sizes, before it is built.

    Args:
        architecture: Field ``architecture`` of a configuration.
        axes: Number of axes of the patch: 2 or 3.
        source: What messages call the value.

    Raises:
        PlansError: A field is missing, unknown or beyond its bounds.
    """
    needed = ("network_class_name", "arch_kwargs")
    fields(architecture, needed, source, may=("_kw_requires_import",))
    network = word(
        architecture["network_class_name"], tuple(NETWORKS), f"{source}: network_class_name"
    )
    for named in listed(
        architecture.get("_kw_requires_import", []),
        Range(0, len(LAYERS)),
        f"{source}: _kw_requires_import",
    ):
        word(named, tuple(LAYERS), f"{source}: _kw_requires_import")
    planned, at = architecture["arch_kwargs"], f"{source}: arch_kwargs"
    fields(planned, (*_SIZES, NETWORKS[network], "conv_bias", *LAYERS, *_OPTIONS), at)
    for key in LAYERS:
        layer = _layer(planned, key, at)
        if layer is not None and layer.axes not in (None, axes):
            raise PlansError(
                f"{at}: {key} is for patches of {layer.axes} axes; those planned have {axes}"
            )
    flag(planned["conv_bias"], f"{at}: conv_bias")
    _check_sizes(planned, NETWORKS[network], axes, at)


def _layer(arch_kwargs: Mapping[str, Any], key: str, source: str) -> Layer | None:
    """Return the layer that a field names, its options checked; None where there is to be none."""
    named, options = arch_kwargs.get(key), arch_kwargs.get(f"{key}_kwargs")
    at = f"{source}: {key}_kwargs"
    if named is None and key in MAY_BE_NONE:
        if options not in (None, {}):  # neither are 0, False, "" and []
            raise PlansError(f"{at}: is {shown(options)}, but {key} is null, which has no options")
        return None
    known = LAYERS[key]
    # a key of another type may be equal to one of ours
    if type(named) is not str or named not in known:
        raise PlansError(
            f"{source}: {key} is {shown(named)}, which is not known here; known are "
            f"{', '.join(known)}{' and null' if key in MAY_BE_NONE else ''}"
        )
    layer = known[named]
    for name, value in fields(
        {} if options is None and not key.startswith("dropout") else options,
        (),
        at,
        may=tuple(layer.options),
    ).items():
        allowed = layer.options[name]
        if isinstance(allowed, Range):
            real(value, allowed, f"{at}: {name}")
        else:
            flag(value, f"{at}: {name}")
    return layer


def _check_sizes(planned: Mapping[str, Any], depth: str, axes: int, source: str) -> None:
    stages = whole(planned["n_stages"], STAGES, f"{source}: n_stages")
    for key, count, allowed in (
        ("features_per_stage", stages, CHANNELS),
        (depth, stages, CONVOLUTIONS),
        ("n_conv_per_stage_decoder", stages - 1, CONVOLUTIONS),
    ):
        for number in listed(planned[key], count, f"{source}: {key}"):
            whole(number, allowed, f"{source}: {key}")
    for key, allowed in (("kernel_sizes", KERNEL), ("strides", STRIDE)):
        for row in listed(planned[key], stages, f"{source}: {key}"):
            for number in listed(row, axes, f"{source}: {key}"):
                whole(number, allowed, f"{source}: {key}")
                if key == "kernel_sizes" and number % 2 == 0:  # the size would change
                    raise PlansError(f"{source}: {key}: is {number}; it must be odd")
    if any(number != 1 for number in planned["strides"][0]):
        raise PlansError(
            f"{source}: strides: the first are {planned['strides'][0]}; they must be 1, or the "
            "network's output is smaller than the patch"
        )


def stream_channels(width: float, channels: int) -> int:
    """Return a stream's share of the planned channels: at least one, or none where it is off."""
    return max(1, round(width * channels)) if width else 0


def check_network_size(
    arch_kwargs: Mapping[str, Any],
    modalities: int,
    heads: int,
    network: "NetworkSettings",
    source: str,
) -> None:
    """Check how many convolutions and parameters a network has, by counting alone.

    Args:
        arch_kwargs: Planned ``arch_kwargs``, checked.
        modalities: Number of modalities.
        heads: Number of outputs.
        network: Our part of the architecture, checked.
        source: What messages call the value.

    Raises:
        PlansError: The network would be too large.
    """
    layers, parameters = count_network(arch_kwargs, modalities, heads, network)
    if layers > MOST_LAYERS or parameters > MOST_PARAMETERS:
        raise PlansError(
            f"{source}: a network of {layers} convolutions and {parameters} parameters is planned "
            f"for {modalities} modalities; at most {MOST_LAYERS} and {MOST_PARAMETERS} are built. "
            "Plan with fewer channels"
        )


def count_network(
    arch_kwargs: Mapping[str, Any], modalities: int, heads: int, network: "NetworkSettings"
) -> tuple[int, int]:
    """Return how many convolutions and how many parameters a planned network has.

    Dropout and options of the layers change neither by much: counted is with a bias at every
    convolution and an affine norm behind it.
    """
    features: Sequence[int] = arch_kwargs["features_per_stage"]
    kernels = [math.prod(row) for row in arch_kwargs["kernel_sizes"]]
    stacked = network.form == "stacked"
    if stacked:
        parts = [_count_encoder(arch_kwargs, modalities, 1.0)]
        decoder_convs: Sequence[int] = arch_kwargs["n_conv_per_stage_decoder"]
    else:
        decoder_convs = [network.decoder_convs] * (len(features) - 1)
        widths = [network.shared_width, *[network.tailored_width] * modalities]
        parts = [_count_encoder(arch_kwargs, 1, width) for width in widths if width]
        remembered = {level % len(features) for level in network.compensation_levels}
        for level, channels in enumerate(features):
            tailored = stream_channels(network.tailored_width, channels)
            read = modalities * tailored + stream_channels(network.shared_width, channels)
            attends = level in remembered and network.form == "anchored"
            # how it reads the memory: three matrices, or one number
            reads = (channels + 2 * tailored) * channels if attends else int(level in remembered)
            parts.append((1, (read + 3) * channels + reads))
    joined = 1 if network.decoder_skips == "added" and not stacked else 2
    for number, repeated in enumerate(decoder_convs, start=1):
        below, here = features[-number], features[-number - 1]
        up = math.prod(arch_kwargs["strides"][-number])
        kernel = kernels[-number - 1]
        count = (below * up + 1) * here  # enlarges what comes from below
        count += (joined + repeated - 1) * here * here * kernel + 3 * here * repeated
        count += (here + 1) * heads
        parts.append((repeated + 2, count))
    return sum(layers for layers, _ in parts), sum(count for _, count in parts)


def _count_encoder(
    arch_kwargs: Mapping[str, Any], channels_in: int, width: float
) -> tuple[int, int]:
    """Return the convolutions and parameters of an encoder, as ``count_network`` has them."""
    features: Sequence[int] = arch_kwargs["features_per_stage"]
    kernels = [math.prod(row) for row in arch_kwargs["kernel_sizes"]]
    residual = is_residual(arch_kwargs)
    layers, count, before = 0, 0, channels_in
    if residual:  # the stem
        before = stream_channels(width, features[0])
        layers, count = 1, (channels_in * kernels[0] + 3) * before
    depths: Sequence[int] = arch_kwargs[_BLOCKS if residual else "n_conv_per_stage"]
    for channels, kernel, depth in zip(features, kernels, depths, strict=True):
        out = stream_channels(width, channels)
        convs = 2 * depth if residual else depth
        count += (before + (convs - 1) * out) * out * kernel + 3 * out * convs
        layers += convs
        if residual and before != out:  # what is added is made as wide, without a bias
            layers, count = layers + 1, count + (before + 2) * out
        before = out
    return layers, count
