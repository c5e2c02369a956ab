"""The one door to nnU-Net: its planner, preprocessing, labels, augmentation, loss and geometry.

nnU-Net wants folders named by environment variables, folder names of its own form, and prints.
None of that is our users' concern; it ends in this module.
"""

import contextlib
import io
import logging
import math
import os
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from acvl_utils.cropping_and_padding.bounding_boxes import crop_and_pad_nd as crop_and_pad_nd
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import (
    ExperimentPlanner,
)
from nnunetv2.inference.sliding_window_prediction import compute_gaussian as compute_gaussian
from nnunetv2.inference.sliding_window_prediction import (
    compute_steps_for_sliding_window as compute_steps_for_sliding_window,
)
from nnunetv2.preprocessing.normalization.default_normalization_schemes import ZScoreNormalization
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.preprocessing.resampling.default_resampling import (
    compute_new_shape,
    determine_do_sep_z_and_axis,
    resample_data_or_seg_to_shape,
)
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params
from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss, DC_and_CE_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from scipy import ndimage
from torch import Tensor, nn

from mixmfl.architecture import resolve_architecture
from mixmfl.errors import DataError
from mixmfl.files import write_json
from mixmfl.fingerprint import (
    Fingerprint,
    grids,
    intensity_properties,
    is_stacks,
    median_kept_share,
)
from mixmfl.labels import Labels
from mixmfl.plan import NetworkSettings, PlannerSettings
from mixmfl.planned import check_resampling, known_fields
from mixmfl.resample import Resampling
from mixmfl.slices import Turn, slices_first
from mixmfl.usage import available_bytes

log = logging.getLogger(__name__)

# What a case may become when it is resampled; more comes of a wrong spacing, not of patients
MOST_AXIS = 1 << 13  # voxels along an axis
MOST_RESAMPLED = 1 << 29  # voxels: two metres of a body at 1 mm
MOST_TIMES = 2000  # as many voxels as before: a cube of 12 mm at 1 mm


# --- planning ----------------------------------------------------------------------------------


def plan(
    fingerprint: Fingerprint,
    modalities: Sequence[str],
    labels: Labels,
    planner: PlannerSettings,
    network: NetworkSettings,
) -> dict[str, Any]:
    """Run nnU-Net's planner on merged statistics and return its plans, 2-D and 3-D full resolution.

    Patch and batch size are planned for the memory of our network (see ``_Planner``). Channel
    ``i`` of the plans is ``modalities[i]``; every modality is z-scored. Where the cases are stacks
    of slices in different directions, the plans say ``"slices_first"``.
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
            plans = _Planner(name, planner, network).plan_experiment()
    plans = known_fields(plans)
    if is_stacks(fingerprint):
        plans["slices_first"] = True
    return plans


class _Planner(ExperimentPlanner):
    """nnU-Net's planner, told how much memory the features of our network take.

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
        unet = PlainConvUNet(1, num_classes=heads, **resolve_architecture(ours))
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
    in half precision there; weights, gradients and the optimiser's moments come on top.

    Args:
        plans: nnU-Net's plans.
        configuration: ``"2d"`` or ``"3d_fullres"``.
        heads: Outputs of the network: classes, or regions.
        network: Our part of the architecture.
    """
    planned = plans["configurations"][configuration]
    flat = len(planned["patch_size"]) == 2
    # of nnU-Net's planner: voxels for 8 GB, and the batch that they were found with
    voxels, batch, gigabytes = (85e6, 12, 8) if flat else (560e6, 2, 8)
    modalities = len(planned["normalization_schemes"])
    arch_kwargs = planned["architecture"]["arch_kwargs"]
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


# --- preprocessing and its inverse -------------------------------------------------------------


def head_mask(images: Sequence[np.ndarray]) -> np.ndarray:
    """Return where any image is not zero, ``(Z, Y, X)`` bool, holes filled."""
    found = images[0] != 0
    for image in images[1:]:
        found |= image != 0
    return ndimage.binary_fill_holes(found)


def nonzero_box(images: Sequence[np.ndarray]) -> tuple[slice, slice, slice]:
    """Return the box around the voxels that are non-zero in any image, holes filled."""
    return _box_of(head_mask(images))


def _box_of(mask: np.ndarray) -> tuple[slice, slice, slice]:
    ((z, y, x),) = ndimage.find_objects(mask.astype(np.uint8))
    return z, y, x


def preprocess(
    images: Sequence[np.ndarray],
    labels: np.ndarray | None,
    spacing: Sequence[float],
    plans: Mapping[str, Any],
    configuration: str,
    described: Labels,
    labelled: Collection[str] | None = None,
) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Transpose, crop to non-zero, z-score and resample a training case as nnU-Net does.

    Args:
        images: One ``(Z, Y, X)`` array per modality that the case has.
        labels: ``(Z, Y, X)`` class indices.
        spacing: mm, (Z, Y, X).
        plans: nnU-Net's plans.
        configuration: ``"2d"`` or ``"3d_fullres"``.
        described: What the labels mean.
        labelled: Labels and regions that the case labels, from which patches are drawn; None: all.

    Returns:
        The images ``(K, Z', Y', X')`` float32; the labels ``(1, Z', Y', X')``, -1 outside the
        head; and what ``restore`` needs to go back, with nnU-Net's ``class_locations``.
    """
    crop = _Crop(head_mask(images), spacing, plans, configuration)
    # nnU-Net resamples labels in double precision, a few times over
    crop.check_memory(4 * len(images) + 32)
    outside = crop.outside
    if labels is not None:
        cut = crop.cut(labels)[None].astype(np.int16)
        outside = np.where(cut == 0, outside, cut)  # what is labelled is inside
    data = np.stack([crop.normalised(image, outside) for image in images])
    options = check_resampling(crop.planned, "seg", "plans")
    seg = resample_data_or_seg_to_shape(outside, crop.shape, crop.before, crop.after, **options)
    properties = crop.properties()
    if labels is not None:
        manager = label_manager(described)
        wanted = manager.foreground_regions if manager.has_regions else manager.foreground_labels
        if labelled is not None:
            looked_for = [*described.consecutive().only(labelled).foreground.values()]
            wanted = [w for w in wanted if tuple(np.atleast_1d(w)) in looked_for]
        if manager.has_ignore_label:  # patches are drawn from what is annotated
            wanted = [*wanted, [-1, *manager.all_labels]]
        properties["class_locations"] = DefaultPreprocessor._sample_foreground_locations(
            seg, wanted
        )
    return data, seg.astype(np.int16 if seg.max() > 127 else np.int8), properties


def preprocess_each(
    images: Sequence[Callable[[], np.ndarray]],
    head: np.ndarray,
    spacing: Sequence[float],
    plans: Mapping[str, Any],
    configuration: str,
) -> tuple[np.ndarray, dict[str, Any]]:
    """Do to the images what ``preprocess`` does, one modality at a time.

    nnU-Net holds all of them three times over, once in double precision; a large case does not
    fit into memory so.

    Args:
        images: Each gives an array ``(Z, Y, X)``, which is let go before the next is asked for.
        head: ``head_mask`` of all of them.
        spacing: mm, (Z, Y, X).
        plans: nnU-Net's plans.
        configuration: ``"2d"`` or ``"3d_fullres"``.

    Returns:
        The images ``(K, Z', Y', X')`` float32, and what ``restore`` needs to go back.

    Raises:
        DataError: The case is too thin, or memory does not hold it once it is resampled.
    """
    crop = _Crop(head, spacing, plans, configuration)
    crop.check_memory(4 * (len(images) + 1))
    made = np.empty((len(images), *crop.shape), dtype=np.float32)
    for channel, give in enumerate(images):
        made[channel] = crop.normalised(give(), crop.outside)
    return made, crop.properties()


def _times(values: Sequence[float]) -> str:
    return " x ".join(f"{value:g}" for value in values)


class _Crop:
    """Where a case's head is, and how it comes onto the planned voxels.

    Attributes:
        planned: nnU-Net's configuration.
        before: Spacing of the case, mm, axes in the planned order.
        after: Planned spacing.
        outside: ``(1, Z', Y', X')`` int8 of the cropped case: 0 in the head, -1 outside.
        shape: Voxels after resampling.
    """

    def __init__(
        self,
        head: np.ndarray,
        spacing: Sequence[float],
        plans: Mapping[str, Any],
        configuration: str,
    ) -> None:
        _check_thickness(head, spacing, plans, configuration)
        self.planned = plans["configurations"][configuration]
        self.spacing, self.turn = spacing, _turn(spacing, plans)
        self.before, self.after = spacings(spacing, plans, configuration)
        turned = self.turn(head)
        self.full = turned.shape
        self.box = _box_of(turned)
        self.outside = np.where(turned[self.box], np.int8(0), np.int8(-1))[None]
        shape = compute_new_shape(self.outside.shape[1:], self.before, self.after)
        self.shape = tuple(map(int, shape))
        most = min(MOST_RESAMPLED, MOST_TIMES * self.outside.size)
        if max(self.shape) > MOST_AXIS or math.prod(self.shape) > most:
            raise DataError(
                f"{self._becomes()}; of such an image at most {most} are made, {MOST_AXIS} along "
                "an axis. Check the spacing in its files"
            )

    def check_memory(self, bytes_per_voxel: int) -> None:
        """Refuse a case that memory does not hold once it is resampled."""
        needed, there = bytes_per_voxel * math.prod(self.shape), available_bytes()
        if needed > there:  # Linux would give it, and end this process when it is used
            raise DataError(
                f"{self._becomes()}, which take {needed / 1e9:.1f} GB; {there / 1e9:.1f} GB of "
                "memory are free. Check the spacing in its files, or use a machine with more memory"
            )

    def _becomes(self) -> str:
        return (
            f"its voxels of {_times(self.before)} mm become {_times(self.shape)} voxels of "
            f"{_times(self.after)} mm"
        )

    def cut(self, volume: np.ndarray) -> np.ndarray:
        """Return a volume of the case, axes as planned, cropped to the head."""
        return self.turn(volume)[self.box]

    def normalised(self, image: np.ndarray, outside: np.ndarray) -> np.ndarray:
        """Return an image z-scored by what is not ``outside`` (-1), and resampled."""
        one = np.array(self.cut(image)[None], dtype=np.float32)
        # what is planned for every modality, and the same for all of them
        scheme = ZScoreNormalization(self.planned["use_mask_for_norm"][0], {})
        scored = scheme.run(one[0], outside[0])
        resampling = _resampling(
            self.planned, "data", scored.shape, self.shape, self.before, self.after
        )
        return resampling(torch.from_numpy(scored)).numpy()

    def properties(self) -> dict[str, Any]:
        """Return what ``restore`` needs to go back."""
        return {
            "spacing": [float(mm) for mm in self.spacing],
            "shape_before_cropping": self.full,
            "bbox_used_for_cropping": [[part.start, part.stop] for part in self.box],
            "shape_after_cropping_and_before_resampling": self.outside.shape[1:],
        }


def _turn(spacing: Sequence[float], plans: Mapping[str, Any]) -> Turn:
    """Return how a canonical case is turned so that its axes are those of the plans."""
    turn = slices_first(spacing) if plans.get("slices_first") else Turn()
    return turn.then(plans["transpose_forward"])


def spacings(
    spacing: Sequence[float], plans: Mapping[str, Any], configuration: str
) -> tuple[list[float], list[float]]:
    """Return a case's and the planned spacing in mm, axes in the planned order.

    A 2-D configuration leaves the first axis as it is.
    """
    before = _turn(spacing, plans).of(spacing)
    planned = plans["configurations"][configuration]["spacing"]
    return before, [float(mm) for mm in (*before[: 3 - len(planned)], *planned)]


def _resampling(
    planned: Mapping[str, Any],
    what: str,
    shape: Sequence[int],
    new_shape: Sequence[int],
    spacing: Sequence[float],
    new_spacing: Sequence[float],
) -> Resampling:
    """Return the planned resampling of ``"data"`` or ``"probabilities"``.

    Raises:
        PlansError: The plans name another function than nnU-Net's default.
    """
    asked = check_resampling(planned, what, "plans")
    apart, axis = determine_do_sep_z_and_axis(asked["force_separate_z"], spacing, new_spacing)
    return Resampling(
        tuple(map(int, shape)),
        tuple(map(int, new_shape)),
        asked["order"],
        int(axis) if apart else None,
        asked["order_z"],
    )


def preprocessed_spacing(
    spacing: Sequence[float], plans: Mapping[str, Any], configuration: str
) -> tuple[float, ...]:
    """Return the voxel size in mm, in the order of the axes that ``preprocess`` gives."""
    return tuple(spacings(spacing, plans, configuration)[1])


def _check_thickness(
    head: np.ndarray,
    spacing: Sequence[float],
    plans: Mapping[str, Any],
    configuration: str,
) -> None:
    """Refuse a case that would be resampled to nothing."""
    box = _box_of(head)
    order = _turn(spacing, plans).order
    target = plans["configurations"][configuration]["spacing"]
    for axis, wanted in zip(order[-len(target) :], target, strict=True):
        count = box[axis].stop - box[axis].start
        if round(count * spacing[axis] / wanted) < 1:
            raise DataError(
                f"the head is {count} voxels of {spacing[axis]:g} mm thick along {'ZYX'[axis]}, "
                f"less than half a voxel of the {wanted:g} mm that were planned; it is too thin "
                f"for configuration {configuration}"
            )


_PLANES = 8  # of the first axis that are taken back to full size at a time


def restore(
    logits: Tensor,
    properties: Mapping[str, Any],
    plans: Mapping[str, Any],
    configuration: str,
    described: Labels,
) -> np.ndarray:
    """Undo ``preprocess`` on logits ``(heads, Z', Y', X')``.

    A few planes at a time, so that no class is there in full size.

    Returns:
        Class indices ``(Z, Y, X)`` on the grid that ``preprocess`` was given.
    """
    back = _back(logits, properties, plans, configuration)
    painted = described.consecutive().regions_class_order if described.has_regions else None
    kind = np.uint8 if len(described.values) < 256 else np.uint16
    found = np.zeros(back.after, dtype=kind)
    for start in range(0, len(found), _PLANES):
        planes = back.planes(logits, start, start + _PLANES)
        if painted is None:
            found[start : start + _PLANES] = planes.argmax(dim=0).numpy()
            continue
        for value, one in zip(painted, planes.numpy(), strict=True):
            found[start : start + _PLANES][one > 0] = value  # a probability above one half
    return _uncrop(found, properties, plans)


def restore_probabilities(
    logits: Tensor,
    properties: Mapping[str, Any],
    plans: Mapping[str, Any],
    configuration: str,
    described: Labels,
) -> np.ndarray:
    """Undo ``preprocess``, and return probabilities, ``(heads, Z, Y, X)`` float16."""
    back = _back(logits, properties, plans, configuration)
    probabilities = label_manager(described).apply_inference_nonlin
    made = np.empty((len(logits), *back.after), dtype=np.float16)
    for start in range(0, back.after[0], _PLANES):
        planes = back.planes(logits, start, start + _PLANES)
        made[:, start : start + _PLANES] = probabilities(planes).half().numpy()
    return np.stack([_uncrop(head, properties, plans) for head in made])


def _back(
    logits: Tensor, properties: Mapping[str, Any], plans: Mapping[str, Any], configuration: str
) -> Resampling:
    planned = plans["configurations"][configuration]
    target = properties["shape_after_cropping_and_before_resampling"]
    before, after = spacings(properties["spacing"], plans, configuration)
    return _resampling(planned, "probabilities", logits.shape[1:], target, after, before)


def _uncrop(
    found: np.ndarray, properties: Mapping[str, Any], plans: Mapping[str, Any]
) -> np.ndarray:
    """Put a cropped array back into the whole grid, 0 around it, axes as they were."""
    whole = np.zeros(properties["shape_before_cropping"], dtype=found.dtype)
    whole[tuple(slice(a, b) for a, b in properties["bbox_used_for_cropping"])] = found
    return _turn(properties["spacing"], plans).back(whole)


def label_manager(described: Labels) -> LabelManager:
    """Return nnU-Net's label manager for consecutive class indices."""
    content = described.consecutive().to_json()
    return LabelManager(content["labels"], content.get("regions_class_order"))


def storage_blocks(
    shape: Sequence[int], patch_size: Sequence[int], itemsize: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return nnU-Net's Blosc2 block and chunk shapes for an array ``(C, Z, Y, X)``."""
    return comp_blosc2_params(shape, patch_size, itemsize)


# --- training ----------------------------------------------------------------------------------


class PatchChooser:
    """Where nnU-Net's data loader would take a patch from, in random or in foreground places."""

    def __init__(self, patch_size: Sequence[int], described: Labels) -> None:
        """Args: patch_size: of the network, in voxels; described: what the labels mean."""
        geometry = _augmentation_geometry(tuple(patch_size))
        cases = SimpleNamespace(identifiers=["any"])
        self._loader = nnUNetDataLoader(
            cases, 1, geometry.initial_patch_size, patch_size, label_manager(described)
        )

    def box(
        self, shape: Sequence[int], foreground: bool, locations: Mapping[Any, np.ndarray]
    ) -> list[list[int]]:
        """Return ``[[start, end], …]`` per axis, beyond the image where it is smaller.

        Draws from numpy's global generator, as nnU-Net does: call it inside ``sampling.seeded``.
        """
        starts, ends = self._loader.get_bbox(np.array(shape), foreground, locations)
        return [[int(a), int(b)] for a, b in zip(starts, ends, strict=True)]


@cache
def training_transforms(
    patch_size: tuple[int, ...],
    strides: tuple[tuple[int, ...], ...],
    modalities: int,
    masked: bool,
) -> Any:
    """Return nnU-Net's augmentation for an image with ``modalities`` channels.

    Labels come out as class indices at every resolution of deep supervision.
    """
    geometry = _augmentation_geometry(patch_size)
    composed = _trainer().get_training_transforms(
        patch_size,
        geometry.rotation,
        supervision_scales(strides),
        geometry.mirror_axes,
        geometry.flat,
        use_mask_for_norm=[masked] * modalities,
    )
    for transform in composed.transforms:
        inner = getattr(transform, "transform", transform)
        if isinstance(inner, GaussianBlurTransform):
            # it would time direct against Fourier convolution and keep the faster: results
            # would depend on what else the machine was doing
            inner.benchmark = False
    return composed


@cache
def _augmentation_geometry(patch_size: tuple[int, ...]) -> SimpleNamespace:
    trainer = SimpleNamespace(
        configuration_manager=SimpleNamespace(patch_size=list(patch_size)),
        print_to_log_file=lambda *_: None,
    )
    rotation, flat, initial, mirror = (
        _trainer().configure_rotation_dummyDA_mirroring_and_inital_patch_size(trainer)
    )
    return SimpleNamespace(
        rotation=rotation, flat=flat, initial_patch_size=initial, mirror_axes=mirror
    )


def _trainer() -> Any:
    # a third of all memory and most of the seconds that importing takes; only training needs it
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    return nnUNetTrainer


def supervision_scales(strides: Sequence[Sequence[int]]) -> list[list[float]]:
    """Return the resolution of every supervised output as a share of the patch's, finest first."""
    return [[float(s) for s in row] for row in 1 / np.cumprod(np.vstack(strides), axis=0)][:-1]


def supervision_targets(classes: Sequence[Tensor], labels: Labels) -> list[Tensor]:
    """Turn class indices into what ``supervision_loss`` takes, at every resolution.

    Args:
        classes: ``(B, 1, *P)`` integers.
        labels: What they mean.

    Returns:
        Without regions ``(B, 1, *P)`` int64, as given. With regions ``(B, R, *P)`` bool, one
        channel per region in the order declared, and last the ignored voxels where the labels
        have an ignore value.
    """
    if not labels.has_regions:
        return [item.long() for item in classes]
    indices = labels.consecutive()
    regions = [*indices.foreground.values()]
    if indices.ignore is not None:
        regions.append((indices.ignore,))
    members = [torch.tensor(region) for region in regions]
    return [
        torch.cat([torch.isin(item, region.to(item)) for region in members], dim=1)
        for item in classes
    ]


def supervision_loss(
    described: Labels, outputs: int, batch_dice: bool, own: Labels | None = None
) -> nn.Module:
    """Return nnU-Net's loss: Dice + CE (with regions: Dice + BCE), halved per coarser output.

    It takes the lists of logits and of ``supervision_targets``, finest first; or of cases that
    label less than ``described``, what ``supervision`` makes of them in the terms of their ``own``.
    """
    dice = {"batch_dice": batch_dice, "smooth": 1e-5, "ddp": False}
    ignored = (own or described).consecutive().ignore
    if described.has_regions:
        loss = DC_and_BCE_loss(
            {},
            {**dice, "do_bg": True},
            use_ignore_label=ignored is not None,
            dice_class=MemoryEfficientSoftDiceLoss,
        )
    else:
        loss = DC_and_CE_loss(
            {**dice, "do_bg": False},
            {},
            ignore_label=ignored,
            dice_class=MemoryEfficientSoftDiceLoss,
        )
    weights = np.array([0.5**i for i in range(outputs)])
    if outputs > 1:
        weights[-1] = 0  # as nnU-Net: the coarsest output is too coarse to learn from
    return DeepSupervisionWrapper(loss, weights / weights.sum())
