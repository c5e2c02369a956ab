"""From a loaded case to what the networks see of it: its brain, cropped, normalised and resampled.

What is unusual about the case is found on the way. No network is needed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from mixmfl.core.errors import DataError
from mixmfl.core.text import each_once, plural, times
from mixmfl.data.load_case import LoadedCase
from mixmfl.planning.brains import BrainExtraction, agreed_extraction, extract_brain
from mixmfl.planning.heads import DEEPBET, OWN, SKULL, STRIPPED, head_doubt
from mixmfl.planning.nnunet_preprocessing import preprocess_each
from mixmfl.planning.nonzero import head_mask
from mixmfl.planning.plans import Plans
from mixmfl.planning.slices import slice_axis, spacings, turn_of
from mixmfl.planning.typical import Difference, describe_image, unusual

Array = npt.NDArray[Any]

AS_THEY_ARE = BrainExtraction()
"""Nothing is done to heads."""

FAR_SPACING = 3.01  # times the planned one, along any axis; headers round
FEW_SLICES = 5
LEAST_OF_PATCH = 0.5  # of what a 3-D network sees at once: a slab that shows less is said
_BRAINS = (STRIPPED, DEEPBET, OWN)  # what plans say of heads without skulls
NO_BACKGROUND = 0.9  # of the voxels: a brain alone fills at most two thirds of its box


@dataclass(frozen=True)
class Recipe:
    """What preprocessing needs to know of a model.

    Attributes:
        plans: Plans of the model.
        configuration: ``"2d"`` or ``"3d_fullres"``.
        modalities: Modalities that the model was trained with.
    """

    plans: Plans
    configuration: str
    modalities: tuple[str, ...]


@dataclass(frozen=True)
class ModelInput:
    """A case, preprocessed for one model.

    Attributes:
        available: The case's modalities that the model knows.
        images: ``(K, Z', Y', X')`` float32 images of the available modalities.
        properties: What restores a prediction to the case's grid.
    """

    available: tuple[str, ...]
    images: Array
    properties: dict[str, Any]


@dataclass(frozen=True)
class Prepared:
    """A case that is ready to be run through the networks.

    Attributes:
        inputs: Input of each model; models with one recipe share theirs.
        head: ``(Z, Y, X)`` bool, outside which the mask is background; None: no restriction.
        doubts: How the case differs from those that the models were planned for.
        notes: What was done to the case, as ``LoadedCase.notes``.
    """

    inputs: tuple[ModelInput, ...]
    head: Array | None
    doubts: tuple[str, ...]
    notes: tuple[str, ...]


def extraction_for(recipes: Sequence[Recipe], here: BrainExtraction) -> BrainExtraction:
    """Return how brains are extracted before these models see a case, and check that it can be.

    Args:
        recipes: The models' recipes, in which the sites' extraction is recorded.
        here: What was asked for at this place.

    Raises:
        MixmflError: The models say something else than what was asked for, or contradict each
            other; or what extracts brains is not there.
    """
    extraction = agreed_extraction([recipe.plans.heads for recipe in recipes], here)
    extraction.check()
    return extraction


def prepare(
    case: LoadedCase,
    recipes: Sequence[Recipe],
    brains: BrainExtraction = AS_THEY_ARE,
    force: bool = False,
) -> Prepared:
    """Preprocess a case for every model; its images are freed one by one.

    Args:
        case: The case.
        recipes: What the models need.
        brains: How brains are extracted, as ``extraction_for`` returns it.
        force: Whether to segment images that are far from those that a model was planned for.

    Raises:
        DataError: A model knows none of the case's modalities, or the case is too thin, or its
            brain was not found, or an image is far from the usual.
    """
    extracted = extract_brain(case, brains)
    case, state = extracted.case, extracted.state
    masked = all(r.plans.configuration(r.configuration)["use_mask_for_norm"][0] for r in recipes)
    # models planned for images that are zero outside the head find nothing there
    head = head_mask(list(case.images.values()))
    doubts = [doubt for recipe in recipes for doubt in _doubts(case, head, recipe, state)]
    unlike, is_far = _unlike(case, recipes, state)
    doubts = list(dict.fromkeys((*doubts, *unlike)))
    if is_far and not force:
        raise DataError(
            f"case {case.name!r}: {'; '.join(doubts)}. That is far from the images that the model "
            "was planned for. Look at them and fix them, leave one out (- as its modality in the "
            "table of --write-mapping), or predict it all the same by --force"
        )
    inputs: list[ModelInput] = []
    for number, recipe in enumerate(recipes):
        if (same := recipes.index(recipe)) < number:
            inputs.append(inputs[same])
            continue
        available = tuple(name for name in recipe.modalities if name in case.images)
        if not available:
            raise DataError(
                f"case {case.name!r}: has {', '.join(case.images)}; a model needs at least one of "
                f"{', '.join(recipe.modalities)}"
            )
        last = all(other in recipes[: number + 1] for other in recipes[number:])
        take = case.images.pop if last else case.images.__getitem__
        images, properties = preprocess_each(
            [partial(take, name) for name in available],
            head,
            case.canonical.spacing,
            recipe.plans.nnunet,
            recipe.configuration,
        )
        inputs.append(ModelInput(available, images, properties))
    return Prepared(tuple(inputs), head if masked else None, tuple(doubts), case.notes)


def _doubts(case: LoadedCase, head: Array, recipe: Recipe, state: str) -> list[str]:
    """Return how a case clearly differs from those that a model was planned for, in sentences."""
    doubts = []
    if skull := head_doubt(state, recipe.plans.heads):
        advice = ", or remove it by --brain-only" if state == SKULL else ""
        doubts.append(f"{skull}: expect a worse mask than is estimated{advice}")
    own, planned = spacings(case.canonical.spacing, recipe.plans.nnunet, recipe.configuration)
    if max(max(a / b, b / a) for a, b in zip(own, planned, strict=True)) > FAR_SPACING:
        doubts.append(
            f"its voxels of {_millimetres(own)} mm are far from the {_millimetres(planned)} mm of "
            "the model"
        )
    elif _is_new_stack(case.canonical.spacing, planned, recipe.plans.card.spacing_mm):
        doubts.append(
            f"its slices are {max(own):g} mm thick, and the model was planned for "
            f"{_millimetres(planned)} mm"
        )
    thickest = int(np.argmax(case.canonical.spacing))
    others = tuple(axis for axis in range(3) if axis != thickest)
    slices = int(head.any(axis=others).sum())
    patch = recipe.plans.configuration(recipe.configuration)["patch_size"]
    at = turn_of(case.canonical.spacing, recipe.plans.nnunet).order.index(thickest)
    least = LEAST_OF_PATCH * patch[at] * planned[at] if len(patch) == 3 else 0
    if slices < FEW_SLICES or slices * case.canonical.spacing[thickest] < least:
        doubts.append(f"it shows {plural(slices, 'slice')} only")
    is_masked = recipe.plans.configuration(recipe.configuration)["use_mask_for_norm"][0]
    if is_masked and head.mean() > NO_BACKGROUND and not skull:
        doubts.append(
            f"{head.mean():.0%} of its voxels are other than 0: its background was not removed, "
            "and perhaps not the skull either, as in the images that the model was planned for"
        )
    return doubts


def _millimetres(spacing: Sequence[float]) -> str:
    return times(np.round(spacing, 3).tolist())


def _is_new_stack(
    spacing: Sequence[float], planned: Sequence[float], usual: Sequence[Sequence[float]]
) -> bool:
    """Say whether a stack of thick slices meets plans that have none, nor nearly any case.

    Args:
        spacing: mm, that of the case.
        planned: mm, that of the plans.
        usual: Per axis the spacing that 5, 50 and 95 of a hundred cases do not exceed, or nothing.
    """
    if not usual or slice_axis(spacing) is None or slice_axis(planned) is not None:
        return False
    return max(spacing) > max(most for *_, most in usual)


def _unlike(case: LoadedCase, recipes: Sequence[Recipe], state: str) -> tuple[list[str], bool]:
    """Return how images differ from the usual ones of their modality, and whether one is far.

    Heads are not compared with brains, nor brains with heads: of 96 images of heads 51 had another
    shape than brains, and 27 other grey values.

    Returns:
        Sentences, those of what is far first, and whether anything is. Images that differ in one
        way share theirs, with the numbers of the first.
    """
    all_differences: list[tuple[str, Difference]] = []
    known = [each.plans for each in recipes if not head_doubt(state, each.plans.heads)]
    described = {
        name: numbers
        for name, image in case.images.items()
        if any(name in plans.card.typical for plans in known)
        and (numbers := describe_image(image, case.canonical.spacing)) is not None
    }
    for plans in known:
        # of names among heads with skulls one warning in ten was wrong
        all_differences += unusual(described, plans.card.typical, names=plans.heads in _BRAINS)
    all_differences.sort(key=lambda each: not each[1].is_far)
    first = {each.kind: each.what for _, each in reversed(all_differences) if each.kind != "name"}
    sentences = each_once((name, first.get(each.kind, each.what)) for name, each in all_differences)
    return sentences, any(each.is_far for _, each in all_differences)
