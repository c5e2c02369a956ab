"""A plain U-Net of ours as nnU-Net v2 keeps a trained model, which it predicts with.

::

    FOLDER/dataset.json                    channels and labels
    FOLDER/plans.json                      nnU-Net's part of the plans
    FOLDER/fold_0/checkpoint_final.pth     of each fold: weights and plain values, no code
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mixmfl.core.errors import ModelError
from mixmfl.core.files import replacing, write_json
from mixmfl.networks.build import build_outline
from mixmfl.networks.parameters import assign_parameters
from mixmfl.planning import heads
from mixmfl.planning.nnunet_plans import NORMALIZATIONS, OURS
from mixmfl.planning.plans import Plans

CHECKPOINT = "checkpoint_final.pth"
TRAINER = "nnUNetTrainer"


def check_writable(plans: Plans, configuration: str, source: str) -> None:
    """Check that nnU-Net has the network and the normalisation of plans.

    Args:
        plans: Plans of the model.
        configuration: Its configuration, ``"2d"`` or ``"3d_fullres"``.
        source: What messages call the model.

    Raises:
        ModelError: It has not.
    """
    if (form := plans.network.form) != "stacked":
        raise ModelError(
            f"{source}: its network is {form}, with an encoder per modality, and nnU-Net has none "
            "that computes the same (docs/runs.md says why); needed is a plain U-Net, the form "
            "'stacked', as fedavg and union of mixmfl_benchmark train it"
        )
    (scheme,) = {*plans.configuration(configuration)["normalization_schemes"]}
    if scheme != NORMALIZATIONS["z-score"]:
        raise ModelError(
            f"{source}: images were normalised by {scheme}, which nnU-Net does not have; needed "
            f"is {NORMALIZATIONS['z-score']}: plan with normalization z-score, and train again"
        )


def departures(plans: Plans, configuration: str, trained: Collection[str]) -> list[str]:
    """Return what nnU-Net does otherwise with a model than mixmfl, for those who predict with it.

    Args:
        plans: Plans of the model.
        configuration: Its configuration, ``"2d"`` or ``"3d_fullres"``.
        trained: Modalities that a training case had.
    """
    channels = ", ".join(f"{number:04d} {name}" for number, name in enumerate(plans.modalities))
    notes = [
        f"nnU-Net needs every channel ({channels}), on one grid: an image of zeros for a modality "
        "that a case lacks is what the network was trained with",
        "nnU-Net takes voxels as a file has them, and the network was trained with axes to the "
        "left, to the back and to the head: store images so (axis codes LPS)",
    ]
    if unknown := [name for name in plans.modalities if name not in trained]:
        notes.append(f"no case trained {', '.join(unknown)}: give zeros there for every case")
    if plans.heads in (heads.DEEPBET, heads.OWN):
        notes.append(f"nnU-Net extracts no brains; give it {heads.PLANNED_WORDS[plans.heads]}")
    if plans.nnunet.get("slices_first"):
        notes.append(
            "cases with thick sagittal or coronal slices were turned so that these come first, and "
            "nnU-Net turns no case: give it those with axial slices"
        )
    if plans.configuration(configuration)["use_mask_for_norm"][0]:
        notes.append("mixmfl_predict makes all outside the head background, nnU-Net does not")
    if renamed := {v: i for v, i in plans.labels.index_of_value.items() if v != i}:
        values = ", ".join(f"{index} for {value}" for value, index in renamed.items())
        notes.append(f"nnU-Net's masks have consecutive values: {values}")
    return notes


def write_results(
    folder: Path,
    plans: Plans,
    configuration: str,
    folds: Mapping[str, Mapping[str, Tensor]],
    cases: int,
) -> None:
    """Write models as nnU-Net's folder of a trained model, whole or not at all.

    Args:
        folder: The folder, which is not there yet.
        plans: Plans of the models, which ``check_writable`` lets pass.
        configuration: Their configuration, ``"2d"`` or ``"3d_fullres"``.
        folds: Parameters by name, of the model of each fold: ``"0"`` to ``"4"``, or ``"all"``.
        cases: Training cases of the federation.

    Raises:
        ModelError: The folder is there already.
    """
    if folder.exists():
        raise ModelError(f"{folder}: exists already; name a new folder")
    named = {"dataset_name": "Dataset001_federation", "plans_name": "mixmfl", **plans.nnunet}
    planned = {key: value for key, value in named.items() if key not in OURS}
    described = {
        "channel_names": {str(number): name for number, name in enumerate(plans.modalities)},
        **plans.labels.consecutive().to_json(),
        "numTraining": cases,
        "file_ending": ".nii.gz",
    }
    axes = len(plans.configuration(configuration)["patch_size"])
    with replacing(folder.resolve()) as temporary:
        temporary.mkdir()
        write_json(temporary / "dataset.json", described)
        write_json(temporary / "plans.json", planned)
        for fold, parameters in folds.items():
            place = temporary / f"fold_{fold}"
            place.mkdir()
            checkpoint: dict[str, Any] = {
                "network_weights": _nnunet_weights(plans, configuration, parameters),
                "init_args": {
                    "plans": planned,
                    "configuration": configuration,
                    "fold": fold if fold == "all" else int(fold),
                    "dataset_json": described,
                },
                "trainer_name": TRAINER,
                "inference_allowed_mirroring_axes": tuple(range(axes)),
            }
            torch.save(checkpoint, place / CHECKPOINT)


def _nnunet_weights(
    plans: Plans, configuration: str, parameters: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return parameters under all names that nnU-Net's U-Net has for them."""
    network = build_outline(plans, configuration)
    assign_parameters(network, parameters)
    weights = dict(network.state_dict())  # a block registers its layers twice
    # and the decoder its encoder
    again = {f"decoder.{name}": t for name, t in weights.items() if name.startswith("encoder.")}
    return {**weights, **again}
