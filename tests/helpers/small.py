"""A small plan, made by hand, and small cases for it."""

import copy
import dataclasses
import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mixmfl.core.tensor_store import pack, with_digests
from mixmfl.data.grid import Grid
from mixmfl.data.image import write_image, write_labels
from mixmfl.data.labels import Labels
from mixmfl.federated.state import RunSettings, Site, first_state
from mixmfl.inference.model import TrainedOn
from mixmfl.inference.model_file import save_model
from mixmfl.networks.base import SegmentationNet
from mixmfl.networks.build import build_network
from mixmfl.planning import nnunet_preprocessing
from mixmfl.planning.fingerprint import Fingerprint, PatientCounts
from mixmfl.planning.heads import MIXED
from mixmfl.planning.plans import Plans, load_preset
from mixmfl.planning.preprocessed_case import PreprocessedCase, open_case, save_case
from mixmfl.planning.settings import NetworkSettings, TrainingSettings

MODALITIES = ("flair", "t1", "t2")
LABELS = Labels({"background": 0, "lesion": 1, "core": 2})

# of cases as files
SHAPE = (12, 28, 24)
LPS = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
DEMO_PRESET = Path(__file__).parents[2] / "plans" / "demo.json"
LABELS_JSON = {"labels": {"background": 0, "lesion": 1, "core": 4}}  # not consecutive


def small_plans(
    modalities: Sequence[str] = MODALITIES,
    labels: Labels = LABELS,
    patch: Sequence[int] = (16, 16),
    features: Sequence[int] = (4, 8, 8),
    **training: Any,
) -> Plans:
    """Return plans for a tiny network of three stages, 2-D or 3-D by the patch."""
    dim = len(patch)
    planned = {
        "data_identifier": "small",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 4,
        "patch_size": list(patch),
        "median_image_size_in_voxels": [20.0] * dim,
        "spacing": [1.0] * dim,
        "normalization_schemes": ["ZScoreNormalization"] * len(modalities),
        "use_mask_for_norm": [True] * len(modalities),
        "batch_dice": dim == 2,
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": {
                "n_stages": 3,
                "features_per_stage": list(features),
                "conv_op": f"torch.nn.modules.conv.Conv{dim}d",
                "kernel_sizes": [[3] * dim] * 3,
                "strides": [[1] * dim, [2] * dim, [2] * dim],
                "n_conv_per_stage": [1, 1, 1],
                "n_conv_per_stage_decoder": [1, 1],
                "conv_bias": True,
                "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dim}d",
                "norm_op_kwargs": {"eps": 1e-5, "affine": True},
                "dropout_op": None,
                "dropout_op_kwargs": None,
                "nonlin": "torch.nn.LeakyReLU",
                "nonlin_kwargs": {"inplace": True},
            },
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
    }
    for part in ("data", "seg", "probabilities"):
        planned[f"resampling_fn_{part}"] = "resample_data_or_seg_to_shape"
        planned[f"resampling_fn_{part}_kwargs"] = {
            "is_seg": part == "seg",
            "order": 3 if part == "data" else 1,
            "order_z": 0,
            "force_separate_z": None,
        }
    defaults = TrainingSettings(
        rounds=2,
        local_steps=2,
        learning_rate=1e-2,
        weight_decay=1e-4,
        gradient_norm=12.0,
        foreground_share=0.33,
        modality_dropping=0.5,
        memory_decay=0.9,
        validate_every=1,
        keep_every=100,
        personal_rounds=2,
        personal_learning_rate=1e-3,
        personal_share=0.5,
        aggregation="mean",
        trimming=0.2,
    )
    return Plans(
        tuple(modalities),
        labels,
        {
            "plans_name": "small",
            "image_reader_writer": "SimpleITKIO",
            "transpose_forward": [0, 1, 2],
            "transpose_backward": [0, 1, 2],
            "label_manager": "LabelManager",
            "foreground_intensity_properties_per_channel": {
                str(i): {} for i in range(len(modalities))
            },
            "configurations": {"2d" if dim == 2 else "3d_fullres": planned},
        },
        NetworkSettings("decoupled", 0.5, 0.5, (-1,), 0.1, 1, "concatenated"),
        dataclasses.replace(defaults, **training),
        MIXED,
    )


def both_configurations() -> Plans:
    """Return the small plans with a 2-D and a 3-D configuration."""
    flat, full = small_plans(), small_plans(patch=(8, 16, 16))
    planned = {**flat.nnunet["configurations"], **full.nnunet["configurations"]}
    return dataclasses.replace(flat, nnunet={**flat.nnunet, "configurations": planned})


def with_residual_encoders(plans: Plans) -> Plans:
    """Return plans whose encoders are of residual blocks, as nnU-Net's ResEnc planners write."""
    nnunet = copy.deepcopy(dict(plans.nnunet))
    for planned in nnunet["configurations"].values():
        architecture = planned["architecture"]
        architecture["network_class_name"] = (
            "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet"
        )
        del architecture["arch_kwargs"]["n_conv_per_stage"]
        architecture["arch_kwargs"]["n_blocks_per_stage"] = [1, 2, 2]
        if len(planned["patch_size"]) == 3:
            # torch 2.13 has wrong gradients in half precision where maps have a depth of two
            architecture["arch_kwargs"]["strides"][-1][0] = 1
    return dataclasses.replace(plans, nnunet=nnunet)


def write_model(file: Path) -> Path:
    """Write a model of the small plans as it is before training, and return its file."""
    plans = small_plans()
    state = first_state(plans, RunSettings("2d", 0, 1, 1, 0.01))
    save_model(file, state, plans, "2d", TrainedOn(dict.fromkeys(MODALITIES, 1)))
    return file


def model_bytes(tensors: Mapping[str, torch.Tensor], header: Mapping[str, Any]) -> bytes:
    """Return the content of a model file, with digests that fit it."""
    return pack(tensors, with_digests(tensors, header))


def random_network(
    patch: tuple[int, ...] = (16, 16),
    residual: bool = False,
    features: tuple[int, ...] = (4, 8, 8),
    **settings: Any,
) -> SegmentationNet:
    """Return a network whose biases, norms and trust are random, and what is 0 at first."""
    plans = small_plans(patch=patch, features=features)
    plans = with_residual_encoders(plans) if residual else plans
    plans = dataclasses.replace(plans, network=dataclasses.replace(plans.network, **settings))
    built = build_network(plans, plans.configurations[0], seed=0).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in built.parameters():
            if parameter.ndim < 2 or not parameter.any():
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)
    return built


def small_case(
    modalities: Sequence[str], seed: int, shape: Sequence[int] = (6, 20, 18)
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return images and labels ``(Z, Y, X)``: a bright lesion with a core in noise."""
    generator = np.random.default_rng(seed)
    labels = np.zeros(shape, dtype=np.int16)
    labels[1:-1, 5:14, 4:12] = 1
    labels[2:-2, 8:11, 6:9] = 2
    images = {
        name: (generator.normal(10, 1, shape) + 4 * labels).astype(np.float32)
        for name in modalities
    }
    return images, labels


def write_case(folder: Path, modalities: Sequence[str], seed: int) -> None:
    """Write a case as a folder of images and ``seg.nii.gz``."""
    images, labels = small_case(modalities, seed, SHAPE)
    grid = Grid(SHAPE, (2.0, 1.0, 1.0), (-10.0, 5.0, 3.0), LPS)
    folder.mkdir(parents=True)
    for name, image in images.items():
        image[:, :2] = 0  # outside the head
        write_image(folder / f"{name}.nii.gz", image, grid)
    write_labels(folder / "seg.nii.gz", np.where(labels == 2, 4, labels), grid)


def write_site(
    folder: Path,
    cases: Sequence[Sequence[str]],
    prefix: str = "p",
    described: Mapping[str, Any] = LABELS_JSON,
) -> None:
    """Write a site's cases, given by their modalities, and what their labels mean."""
    for number, modalities in enumerate(cases):
        write_case(folder / f"{prefix}{number}", modalities, number)
    (folder / "dataset.json").write_text(json.dumps(described))


def write_preset(file: Path, **training: Any) -> Path:
    """Write the preset of the demo with a tiny network, and other settings of training."""
    content = dataclasses.asdict(load_preset("demo"))
    content["planner"] |= {"memory_gb": 0.02, "base_features": 4}
    content["planner"] |= {"max_features_2d": 8, "max_features_3d": 8}
    content["training"] |= training
    file.write_text(json.dumps(content))
    return file


def stored_site(
    folder: Path,
    name: str,
    cases: Sequence[Sequence[str]],
    plans: Plans,
    configuration: str = "2d",
    validation: int = 0,
    labelled: Sequence[str] | None = None,
) -> Site:
    """Store a site's cases, given by their modalities, and open it; the last ones validate.

    Of the small cases' two classes those beyond ``labelled`` are made background.
    """
    place = folder / "sites" / name / configuration
    place.mkdir(parents=True, exist_ok=True)
    stored = []
    for number, modalities in enumerate(cases):
        ordered = tuple(m for m in plans.modalities if m in modalities)
        seed = zlib.crc32(f"{name} {number}".encode())
        _store(place, f"p{number}", ordered, seed, plans, configuration, labelled)
        stored.append(open_case(place, f"p{number}"))
    cut = len(stored) - validation
    return Site(name, tuple(stored[:cut]), tuple(stored[cut:]), torch.device("cpu"))


_STORED: dict[tuple[object, ...], dict[str, bytes]] = {}
"""The files of small cases that were preprocessed before, by what they were made from."""


def _store(
    place: Path,
    name: str,
    modalities: tuple[str, ...],
    seed: int,
    plans: Plans,
    configuration: str,
    labelled: Sequence[str] | None,
) -> None:
    """Write a small case as preprocessing stores it; preprocess each once."""
    shown = None if labelled is None else tuple(labelled)
    planned = json.dumps(plans.to_json(), sort_keys=True)
    key = small_case, name, seed, modalities, configuration, shown, planned
    if key not in _STORED:
        images, labels = small_case(modalities, seed, (10, 20, 18))
        if labelled is not None:
            values = plans.labels.consecutive().only(labelled).values
            labels[~np.isin(labels, values)] = 0
        data, seg, properties = nnunet_preprocessing.preprocess(
            list(images.values()),
            labels,
            (1, 1, 1),
            plans.nnunet,
            configuration,
            plans.labels,
            labelled,
        )
        case = PreprocessedCase(
            place,
            name,
            modalities,
            plans.preprocessing(configuration),
            (1, 1, 1),
            data,
            seg,
            properties["class_locations"],
            shown,
        )
        save_case(case, "small", "small", plans.configuration(configuration)["patch_size"])
        _STORED[key] = {file.name: file.read_bytes() for file in place.glob(f"{name}.*")}
    for file, content in _STORED[key].items():
        (place / file).write_bytes(content)


def of_different_patients(fingerprint: Fingerprint) -> PatientCounts:
    """Return the number of patients behind a fingerprint of which each case is of another one."""
    return PatientCounts(
        fingerprint.cases,
        fingerprint.modality_cases,
        {name: usual.images for name, usual in fingerprint.typical.items()},
        fingerprint.heads,
    )
