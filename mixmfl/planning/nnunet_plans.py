"""What nnU-Net's part of plans may hold: each field, its type and its bounds.

nnU-Net reads its plans as names of classes and functions that it searches for and calls. Here
every such name must be the one that we use, to the letter; nothing is searched for. Sizes are
bounded before anything is allocated for them. A field that is not listed here is refused.
"""

import math
from collections.abc import Mapping
from typing import Any

from mixmfl.core.errors import PlansError
from mixmfl.core.json_fields import Range, fields, flag, listed, name, real, shown, whole, word
from mixmfl.planning.architecture import check_architecture
from mixmfl.planning.bounds import SPACING

CONFIGURATIONS = {"2d": 2, "3d_fullres": 3}
"""Configurations that are used, and the number of axes of their patches."""

SIZE = Range(1, 8192)  # voxels along an axis
BATCH = Range(1, 2**16)

MOST_PATCH_VOXELS = {2: 2**23, 3: 2**25}
"""Most voxels of a patch, by number of axes; nnU-Net's planner begins with half of it."""

MOST_BATCH_VOXELS = 2**30
"""Most voxels of a batch, all modalities together: 4 GiB."""

MOST_MAP_NUMBERS = 2**31
"""Most numbers of one feature map of one patch: 8 GiB. nnU-Net's largest has a quarter of that."""

NORMALIZATIONS = {"z-score": "ZScoreNormalization", "head": "HeadNormalization"}
"""The word of the preset for each normalisation, and its name in plans; the second is ours."""

_RESAMPLING = "resample_data_or_seg_to_shape"
_ORDERS = {"data": (1, 3), "seg": (0, 1), "probabilities": (0, 1)}  # of splines
_APART = (0, 1)  # along an axis of long voxels

# what nnU-Net writes beside what is used; to be compared, as it is a name of code there
_WORDS = {
    "image_reader_writer": ("SimpleITKIO",),
    "experiment_planner_used": ("_Planner", "_ResidualPlanner", "ExperimentPlanner"),
    "label_manager": ("LabelManager",),
}
_LABELS = ("dataset_name", "plans_name")  # names of nothing that is here
_STATISTICS = ("max", "mean", "median", "min", "percentile_00_5", "percentile_99_5", "std")
_REMARKS = (
    *_WORDS,
    *_LABELS,
    "original_median_spacing_after_transp",
    "original_median_shape_after_transp",
    "foreground_intensity_properties_per_channel",
)
_USED = ("transpose_forward", "transpose_backward", "configurations")
OURS = ("slices_first",)
"""What we add: thick slices come first, whatever their direction."""

_CONFIGURED = (
    "batch_size",
    "patch_size",
    "spacing",
    "normalization_schemes",
    "use_mask_for_norm",
    "batch_dice",
    "architecture",
    *(f"resampling_fn_{what}{kwargs}" for what in _ORDERS for kwargs in ("", "_kwargs")),
)
_CONFIGURED_REMARKS = ("data_identifier", "preprocessor_name", "median_image_size_in_voxels")


def known_fields(plans: Mapping[str, Any]) -> dict[str, Any]:
    """Return what nnU-Net's planner wrote without what is not used here.

    That is other configurations, and fields that another version of it may write.
    """
    return {
        **{key: plans[key] for key in (*_USED, *_REMARKS) if key in plans},
        "configurations": {
            key: {
                part: configuration[part]
                for part in (*_CONFIGURED, *_CONFIGURED_REMARKS)
                if part in configuration
            }
            for key, configuration in plans["configurations"].items()
            if key in CONFIGURATIONS
        },
    }


def check_planned(plans: Any, modalities: int, source: str) -> None:
    """Check nnU-Net's part of plans.

    Args:
        plans: nnU-Net's part of plans, unchecked.
        modalities: Number of modalities in the plans.
        source: What messages call the plans.

    Raises:
        PlansError: A field is missing, unknown or beyond its bounds.
    """
    fields(plans, _USED, source, may=(*OURS, *_REMARKS))
    flag(plans.get("slices_first", False), f"{source}: slices_first")
    for key in plans.keys() & _WORDS.keys():
        word(plans[key], _WORDS[key], f"{source}: {key}")
    for key in plans.keys() & {*_LABELS}:
        name(plans[key], f"{source}: {key}")
    _check_order(plans, source)
    _check_statistics(plans, modalities, source)
    configurations = fields(
        plans["configurations"], (), f"{source}: configurations", may=tuple(CONFIGURATIONS)
    )
    if not configurations:
        raise PlansError(f"{source}: neither 2d nor 3d_fullres is planned in it; plan again")
    for key, configuration in configurations.items():
        _check_configuration(configuration, CONFIGURATIONS[key], modalities, f"{source}: {key}")


def _check_order(plans: Mapping[str, Any], source: str) -> None:
    """Check how axes are ordered, and that they come back to where they were."""
    forward, backward = (
        [
            whole(axis, Range(0, 2), f"{source}: {key}")
            for axis in listed(plans[key], 3, f"{source}: {key}")
        ]
        for key in ("transpose_forward", "transpose_backward")
    )
    if sorted(forward) != [0, 1, 2] or [forward.index(axis) for axis in range(3)] != backward:
        raise PlansError(
            f"{source}: transpose_forward {forward} and transpose_backward {backward} are no order "
            "of three axes and the way back"
        )


def _check_statistics(plans: Mapping[str, Any], modalities: int, source: str) -> None:
    """Check the fields that are there to be read by people, and used by nothing."""
    for key, allowed in (
        ("original_median_spacing_after_transp", Range(0, 1000)),
        ("original_median_shape_after_transp", Range(0, 10**6)),
    ):
        for number in listed(plans.get(key, [0] * 3), 3, f"{source}: {key}"):
            real(number, allowed, f"{source}: {key}")
    at = f"{source}: foreground_intensity_properties_per_channel"
    channels = fields(
        plans.get("foreground_intensity_properties_per_channel", {}),
        (),
        at,
        may=[str(channel) for channel in range(modalities)],
    )
    for properties in channels.values():
        for statistic, number in fields(properties, (), at, may=_STATISTICS).items():
            real(number, Range(-1e6, 1e6), f"{at}: {statistic}")


def _check_configuration(configuration: Any, axes: int, modalities: int, source: str) -> None:
    fields(configuration, _CONFIGURED, source, may=_CONFIGURED_REMARKS)
    if "data_identifier" in configuration:
        name(configuration["data_identifier"], f"{source}: data_identifier")
    word(
        configuration.get("preprocessor_name", "DefaultPreprocessor"),
        ("DefaultPreprocessor",),
        f"{source}: preprocessor_name",
    )
    key = "median_image_size_in_voxels"
    for number in listed(configuration.get(key, [1] * axes), axes, f"{source}: {key}"):
        real(number, Range(0, 10**6), f"{source}: {key}")
    for mm in listed(configuration["spacing"], axes, f"{source}: spacing"):
        real(mm, SPACING, f"{source}: spacing")
    at = f"{source}: normalization_schemes"
    schemes = [
        word(scheme, tuple(NORMALIZATIONS.values()), at)
        for scheme in listed(configuration["normalization_schemes"], modalities, at)
    ]
    if len(set(schemes)) != 1:
        raise PlansError(f"{at}: is {schemes}; it must be the same for all modalities")
    masks = [
        flag(masked, f"{source}: use_mask_for_norm")
        for masked in listed(
            configuration["use_mask_for_norm"], modalities, f"{source}: use_mask_for_norm"
        )
    ]
    if len(set(masks)) != 1:
        raise PlansError(
            f"{source}: use_mask_for_norm: is {masks}; it must be the same for all modalities"
        )
    flag(configuration["batch_dice"], f"{source}: batch_dice")
    for what in _ORDERS:
        check_resampling(configuration, what, source)
    check_architecture(configuration["architecture"], axes, f"{source}: architecture")
    _check_patch(configuration, axes, modalities, source)


def check_resampling(configuration: Mapping[str, Any], what: str, source: str) -> Mapping[str, Any]:
    """Check a planned resampling, of ``"data"``, ``"seg"`` or ``"probabilities"``.

    Args:
        configuration: nnU-Net's plans of a configuration.
        what: What is resampled.
        source: What messages call the plans.

    Returns:
        The options of nnU-Net's default function.

    Raises:
        PlansError: Another function is planned, or other options.
    """
    key = f"resampling_fn_{what}"
    if configuration[key] != _RESAMPLING:
        raise PlansError(
            f"{source}: {key} is {shown(configuration[key])}; only nnU-Net's default, "
            f"{_RESAMPLING!r}, is known here; plan again"
        )
    at = f"{source}: {key}_kwargs"
    asked = fields(
        configuration[f"{key}_kwargs"], ("is_seg", "order", "order_z", "force_separate_z"), at
    )
    if flag(asked["is_seg"], f"{at}: is_seg") != (what == "seg"):
        raise PlansError(f"{at}: is_seg: is {asked['is_seg']} for {what}; plan again")
    for option, known in (("order", _ORDERS[what]), ("order_z", _APART)):
        if whole(asked[option], Range(0, 3), f"{at}: {option}") not in known:
            needed = " or ".join(map(str, known))
            raise PlansError(f"{at}: {option}: is {asked[option]}; it must be {needed}")
    if asked["force_separate_z"] is not None:
        flag(asked["force_separate_z"], f"{at}: force_separate_z")
    return asked


def _check_patch(configuration: Mapping[str, Any], axes: int, modalities: int, source: str) -> None:
    """Check the patch: that it goes through the network, and that memory holds what comes of it."""
    at = f"{source}: patch_size"
    patch = [whole(size, SIZE, at) for size in listed(configuration["patch_size"], axes, at)]
    batch = whole(configuration["batch_size"], BATCH, f"{source}: batch_size")
    voxels = math.prod(patch)
    if voxels > MOST_PATCH_VOXELS[axes]:
        raise PlansError(
            f"{at}: {patch} are {voxels} voxels; at most {MOST_PATCH_VOXELS[axes]} are taken"
        )
    if batch * voxels * modalities > MOST_BATCH_VOXELS:
        raise PlansError(
            f"{source}: batch_size: {batch} patches of {voxels} voxels with {modalities} "
            f"modalities are more than {MOST_BATCH_VOXELS} voxels; plan with less memory_gb"
        )
    planned = configuration["architecture"]["arch_kwargs"]
    factors = [math.prod(along) for along in zip(*planned["strides"], strict=True)]
    if any(size % factor for size, factor in zip(patch, factors, strict=True)):
        raise PlansError(
            f"{at}: {patch} cannot be divided by {factors}, the product of the strides; the "
            "network could not join its maps"
        )
    if voxels // math.prod(factors) < 2:
        raise PlansError(
            f"{at}: {patch} becomes one voxel at the deepest stage, which has no mean to be "
            "scored by; a larger patch is needed"
        )
    if (largest := largest_map(configuration)) > MOST_MAP_NUMBERS:
        raise PlansError(
            f"{at}: {patch} has a feature map of {largest} numbers; at most {MOST_MAP_NUMBERS} are "
            "taken. Plan with less memory_gb"
        )


def largest_map(configuration: Mapping[str, Any]) -> int:
    """Return how many numbers the largest feature map of one patch has.

    Args:
        configuration: nnU-Net's plans of a configuration, checked.
    """
    planned = configuration["architecture"]["arch_kwargs"]
    voxels, largest = math.prod(configuration["patch_size"]), 0
    for strides, channels in zip(planned["strides"], planned["features_per_stage"], strict=True):
        voxels //= math.prod(strides)
        largest = max(largest, voxels * channels)
    return largest
