"""From a folder of cases, each with the modalities it happens to have, to a mask per case."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from mixmfl.cases import Case, LoadedCase, Refused, load_case
from mixmfl.errors import DataError, MixmflError, ModelError
from mixmfl.image import from_canonical, write_labels
from mixmfl.model import Model
from mixmfl.nnunet import head_mask, label_manager, preprocess, restore
from mixmfl.sliding_window import predict_volume
from mixmfl.train import case_predictor, patches_at_a_time


@dataclass(frozen=True)
class Outcome:
    """What became of one case.

    Attributes:
        name: Of the case.
        status: ``"done"``, ``"kept"`` (a mask was there) or ``"failed"``.
        reason: Why it failed or was kept; empty if done.
        used: Modalities that the mask rests on.
        absent: Modalities that the model knows and the case lacks.
        seconds: It took.
    """

    name: str
    status: Literal["done", "kept", "failed"]
    reason: str
    used: tuple[str, ...]
    absent: tuple[str, ...]
    seconds: float


def predict_folder(
    models: Sequence[Model],
    cases: Sequence[Case],
    refused: Sequence[Refused],
    out: Path,
    *,
    only: Sequence[str] = (),
    step: float = 0.5,
    mirror: bool = False,
    overwrite: bool = False,
) -> Iterator[Outcome]:
    """Predict every case; one that fails is told and the others go on.

    Args:
        models: One, or several whose probabilities are averaged.
        cases: As ``find_cases`` found them.
        refused: Likewise; told as failed.
        out: Masks come here as ``<case>.nii.gz``, each on its case's own grid, whole or not at all.
        only: Modalities to use where a case has them; empty: all.
        step: Distance of neighbouring patches, as a share of the patch.
        mirror: Whether to average over mirrored patches as well: slower, a little better.
        overwrite: Whether a mask that is there is predicted again.

    Yields:
        What became of each case, as it is known.

    Raises:
        ModelError: The models do not mean the same by their labels.
        DataError: ``only`` names what is no modality of the models.
    """
    check_models_agree(models)
    known = sorted({name for model in models for name in model.modalities})
    if unknown := [name for name in only if name not in known]:
        raise DataError(f"--modalities {','.join(unknown)}: the model knows {', '.join(known)}")
    out.mkdir(parents=True, exist_ok=True)
    for item in refused:
        yield Outcome(item.name, "failed", item.reason, (), (), 0.0)
    for case in cases:
        wanted = {n: f for n, f in case.images.items() if n in known and (not only or n in only)}
        absent = tuple(name for name in known if name not in wanted)
        mask = out / f"{case.name}.nii.gz"
        if mask.exists() and not overwrite:
            reason = "a mask is there already; --overwrite predicts it again"
            yield Outcome(case.name, "kept", reason, (), (), 0.0)
            continue
        began = time.monotonic()
        try:
            if not wanted:
                raise DataError(
                    f"has {', '.join(case.images)}; the model needs at least one of "
                    f"{', '.join(only or known)}"
                )
            loaded = load_case(Case(case.name, wanted), None)
            indices = predict_case(models, loaded, step=step, mirror=mirror)
            values = models[0].plans.labels.to_values(indices)
            write_labels(mask, from_canonical(values, loaded.grid), loaded.grid)
        except (MixmflError, OSError, RuntimeError, ValueError, MemoryError) as error:
            # what is not ours is what torch, ITK and nnU-Net raise, out of memory included
            reason = str(error) or type(error).__name__
            yield Outcome(case.name, "failed", reason, (), absent, time.monotonic() - began)
            continue
        yield Outcome(case.name, "done", "", tuple(wanted), absent, time.monotonic() - began)


def predict_case(
    models: Sequence[Model], case: LoadedCase, *, step: float = 0.5, mirror: bool = False
) -> npt.NDArray[Any]:
    """Return class indices ``(Z, Y, X)`` on the case's canonical grid.

    Args:
        models: One, or several whose probabilities are averaged.
        case: With at least one modality of each model.
        step: Distance of neighbouring patches, as a share of the patch.
        mirror: Whether to average over mirrored patches as well.

    Raises:
        DataError: A model knows none of the case's modalities.
    """
    if len(models) == 1:
        found = _predict_one(models[0], case, step, mirror, probabilities=False)
    else:
        found = _predict_mean(models, case, step, mirror)
    if all(m.plans.configuration(m.configuration)["use_mask_for_norm"][0] for m in models):
        # planned for images that are zero outside the head: there is nothing to find there
        found[~head_mask(list(case.images.values()))] = 0
    return found


def _predict_mean(
    models: Sequence[Model], case: LoadedCase, step: float, mirror: bool
) -> npt.NDArray[Any]:
    total: npt.NDArray[Any] | None = None
    for model in models:
        found = _predict_one(model, case, step, mirror, probabilities=True)
        total = found if total is None else np.add(total, found, out=total)
    assert total is not None
    manager = label_manager(models[0].plans.labels)
    return manager.convert_probabilities_to_segmentation(total / len(models))


def check_models_agree(models: Sequence[Model]) -> None:
    """Check that models can be averaged.

    Raises:
        ModelError: There is none, or their labels differ.
    """
    if not models:
        raise ModelError("at least one model is needed")
    for model in models[1:]:
        if (words := models[0].plans.labels.difference(model.plans.labels)) is not None:
            raise ModelError(f"the models cannot be averaged, their labels differ: {words}")


def _predict_one(
    model: Model, case: LoadedCase, step: float, mirror: bool, *, probabilities: bool
) -> npt.NDArray[Any]:
    available = tuple(name for name in model.modalities if name in case.images)
    if not available:
        raise DataError(
            f"case {case.name!r}: has {', '.join(case.images)}; a model needs at least one of "
            f"{', '.join(model.modalities)}"
        )
    plans, planned = model.plans, model.plans.configuration(model.configuration)
    images, _, properties = preprocess(
        [case.images[name] for name in available],
        None,
        case.canonical.spacing,
        plans.nnunet,
        model.configuration,
        plans.labels,
    )
    logits = predict_volume(
        case_predictor(model.network, model.memory, available),
        torch.from_numpy(images),
        planned["patch_size"],
        step=step,
        mirror_axes=range(len(planned["patch_size"])) if mirror else (),
        batch_size=patches_at_a_time(planned),
        device=model.device,
    )
    return restore(
        logits.cpu(),
        properties,
        plans.nnunet,
        model.configuration,
        plans.labels,
        probabilities=probabilities,
    )
