"""nnU-Net's planner: merged statistics to plans, for the memory of our network."""

import contextlib
import io
import logging
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import (
    ExperimentPlanner,
)
from nnunetv2.experiment_planning.experiment_planners.residual_unets.residual_encoder_unet_planners import (  # noqa: E501
    ResEncUNetPlanner,
)

from mixmfl.core.files import write_json
from mixmfl.data.labels import Labels
from mixmfl.planning.architecture import is_residual, resolve_architecture
from mixmfl.planning.fingerprint import (
    Fingerprint,
    grids,
    intensity_properties,
    is_stacks,
    median_kept_share,
)
from mixmfl.planning.heads import DEEPBET, OWN
from mixmfl.planning.nnunet_plans import NORMALIZATIONS, known_fields
from mixmfl.planning.settings import NetworkSettings, PlannerSettings

log = logging.getLogger(__name__)


def plan(
    fingerprint: Fingerprint,
    modalities: Sequence[str],
    labels: Labels,
    planner: PlannerSettings,
    network: NetworkSettings,
) -> dict[str, Any]:
    """Run nnU-Net's planner on merged statistics and return its plans, 2-D and 3-D full resolution.

    Patch and batch size are planned for the memory of our network (see ``_Planner``). Channel
    ``i`` of the plans is ``modalities[i]``; every modality is normalised
    alike. Where the cases are stacks of slices in different directions, the plans say
    ``"slices_first"``.
    """
    spacings, sizes = grids(fingerprint)
    dataset = {
        # not our names: nnU-Net would take "ct" for computed tomography and not z-score it
        "channel_names": {str(i): "MRI" for i in range(len(modalities))},
        "numTraining": fingerprint.cases,
        "file_ending": ".nii.gz",
        "dataset": {},  # the planner would list files otherwise; there are none to list
        **labels.consecutive().to_json(),
    }
    properties = {
        str(i): intensity_properties(fingerprint.intensities[name])
        for i, name in enumerate(modalities)
    }
    content = {
        "spacings": spacings.tolist(),
        "shapes_after_crop": sizes.tolist(),
        "median_relative_size_after_cropping": median_kept_share(fingerprint),
        "foreground_intensity_properties_per_channel": properties,
    }
    with tempfile.TemporaryDirectory(prefix="mixmfl-plan-") as folder, _nnunet_folders(folder):
        name = "Dataset001_federation"
        write_json(Path(folder) / "nnUNet_raw" / name / "dataset.json", dataset)
        preprocessed = Path(folder) / "nnUNet_preprocessed" / name
        write_json(preprocessed / "dataset_fingerprint.json", content)
        with _captured_output():
            chosen = _ResidualPlanner if planner.encoder == "residual" else _Planner
            plans = chosen(name, planner, network).plan_experiment()
    plans = known_fields(plans)
    extracted = fingerprint.heads.keys() & {DEEPBET, OWN}
    for configuration in plans["configurations"].values():
        scheme = NORMALIZATIONS[planner.normalization]
        configuration["normalization_schemes"] = [scheme] * len(modalities)
        if extracted:  # also of large brains, for which nnU-Net would take the background in
            configuration["use_mask_for_norm"] = [True] * len(modalities)
    if is_stacks(fingerprint):
        plans["slices_first"] = True
    return plans


class _Planner(ExperimentPlanner):
    """nnU-Net's planner, with the memory that the features of our network take.

    nnU-Net counts the features of one encoder over all channels. With ``M`` modalities ours keeps
    ``M`` tailored encodings and ``M`` runs of the shared encoder, each as wide as its share of
    the planned channels, the slots of all modalities gathered per level, and one fused map.
    """

    def __init__(self, name: str, planner: PlannerSettings, network: NetworkSettings) -> None:
        super().__init__(
            name,
            gpu_memory_target_in_gb=planner.memory_gb,
            plans_name="mixmfl",
            overwrite_target_spacing=planner.target_spacing,
        )
        self.UNet_base_num_features = planner.base_features
        self.UNet_max_features_2d = planner.max_features_2d
        self.UNet_max_features_3d = planner.max_features_3d
        self.network = network

    def determine_reader_writer(self) -> type:
        """Name any reader: files are read by ``image.py``."""
        from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

        return SimpleITKIO

    def static_estimate_VRAM_usage(  # noqa: N802
        self,
        patch_size: Sequence[int],
        input_channels: int,
        output_channels: int,
        arch_class_name: str,
        arch_kwargs: Mapping[str, Any],
        arch_kwargs_req_import: Sequence[str],
    ) -> float:
        """Return the feature map voxels of our network on one patch, all modalities present."""
        return feature_map_size(
            patch_size, input_channels, output_channels, arch_kwargs, self.network
        )


class _ResidualPlanner(_Planner, ResEncUNetPlanner):
    """Plans encoders of residual blocks, as nnU-Net's planners ResEncM and ResEncL do.

    ``memory_gb`` says which of both it is: nnU-Net's are 8 and 24.
    """

    def __init__(self, name: str, planner: PlannerSettings, network: NetworkSettings) -> None:
        super().__init__(name, planner, network)
        self.max_dataset_covered = 1  # as theirs: small data sets have the planned batch, too


def feature_map_size(
    patch_size: Sequence[int],
    modalities: int,
    heads: int,
    arch_kwargs: Mapping[str, Any],
    network: NetworkSettings,
) -> float:
    """Return how many feature map voxels the network keeps for one patch with all modalities.

    Counted as nnU-Net counts its own (outputs of convolutions), so that its reference values
    for 8 GB hold.
    """
    width = network.tailored_width + network.shared_width
    decoder_convs = [network.decoder_convs] * (len(arch_kwargs["strides"]) - 1)
    ours = {**arch_kwargs, "n_conv_per_stage_decoder": decoder_convs}
    with torch.device("meta"):  # it is counted, not run: no memory is taken for it
        unet_class = ResidualEncoderUNet if is_residual(ours) else PlainConvUNet
        unet = unet_class(1, num_classes=heads, **resolve_architecture(ours))
    encoder = float(unet.encoder.compute_conv_feature_map_size(patch_size))
    decoder = float(unet.decoder.compute_conv_feature_map_size(patch_size))
    skips, size = 0.0, np.array(patch_size)
    for stride, channels in zip(
        arch_kwargs["strides"], arch_kwargs["features_per_stage"], strict=True
    ):
        size = size // np.array(stride)
        skips += float(np.prod(size)) * channels
    return (
        modalities * width * encoder + modalities * network.tailored_width * skips + skips + decoder
    )


def training_memory_gb(
    plans: Mapping[str, Any], configuration: str, heads: int, network: NetworkSettings
) -> float:
    """Return what nnU-Net counts for the feature maps of a training step, GB on a GPU.

    The planner's own count turned round: what ``memory_gb`` of the preset bounds. Features are
    in half precision there; weights, gradients and the optimizer state come on top.

    Args:
        plans: nnU-Net's plans.
        configuration: ``"2d"`` or ``"3d_fullres"``.
        heads: Outputs of the network: classes, or regions.
        network: Our part of the architecture.
    """
    planned = plans["configurations"][configuration]
    flat = len(planned["patch_size"]) == 2
    modalities = len(planned["normalization_schemes"])
    arch_kwargs = planned["architecture"]["arch_kwargs"]
    # of nnU-Net's planners: voxels for 8 GB, and the batch that they were found with
    if is_residual(arch_kwargs):
        voxels, batch, gigabytes = (135e6, 12, 8) if flat else (680e6, 2, 8)
    else:
        voxels, batch, gigabytes = (85e6, 12, 8) if flat else (560e6, 2, 8)
    size = feature_map_size(planned["patch_size"], modalities, heads, arch_kwargs, network)
    return float(size * planned["batch_size"] / batch / voxels * gigabytes)


@contextlib.contextmanager
def _nnunet_folders(folder: str) -> Iterator[None]:
    names = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update({name: str(Path(folder) / name) for name in names})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _captured_output() -> Iterator[None]:
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        yield
    log.debug("nnU-Net: %s", text.getvalue())
