"""A site's cases, preprocessed by the plans of its federation."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mixmfl.core.errors import DataError, PlansError, Refused
from mixmfl.core.worker_pool import Workers
from mixmfl.data.cases import Case
from mixmfl.data.label_sets import LabelMap, map_labels
from mixmfl.data.load_case import AlignmentOptions, load_case
from mixmfl.data.patients import patient_key
from mixmfl.planning import nnunet_preprocessing, preprocessed_case
from mixmfl.planning.brains import BrainExtraction, agreed_extraction
from mixmfl.planning.heads import head_doubt
from mixmfl.planning.plans import Plans
from mixmfl.planning.site_folders import SiteFolder, content, origin
from mixmfl.planning.slices import spacings
from mixmfl.planning.stored_brains import StoredBrain, extract_once, stored_brain


@dataclass(frozen=True)
class Preprocessed:
    """The result of preprocessing a site.

    Attributes:
        done: Cases preprocessed now.
        kept: Cases that were stored already, whole and made from the same files and plans.
        refused: Cases that could not be used, and why.
        notes: How images were brought onto one grid, by case of ``done`` that needed it.
    """

    done: tuple[str, ...]
    kept: tuple[str, ...]
    refused: tuple[Refused, ...]
    notes: Mapping[str, tuple[str, ...]]


def check_site(site: SiteFolder, plans: Plans, what: str = "site") -> LabelMap:
    """Check that plans fit a site's cases; ``what`` is the site's kind in messages.

    Returns:
        What its label values are in the plans.

    Raises:
        PlansError: The plans do not know the site's labels or modalities.
    """
    try:
        mapped = map_labels(site.labels, plans.labels)
    except DataError as error:
        raise PlansError(f"{what} {site.name}: its labels do not fit the plans: {error}") from None
    held = {modality for case in site.found.cases for modality in case.images}
    if strange := sorted(held - set(plans.modalities)):
        raise PlansError(
            f"{what} {site.name}: has {', '.join(strange)}, but the plans know only "
            f"{', '.join(plans.modalities)}; plan again with a site that trains these, or remove "
            "these images"
        )
    return mapped


def preprocess_site(
    site: SiteFolder,
    plans: Plans,
    configuration: str,
    out: Path,
    workers: Workers,
) -> Preprocessed:
    """Preprocess a site's cases for one configuration, leaving those alone that are done.

    Args:
        site: The site's cases.
        plans: Plans of the federation.
        configuration: ``"2d"`` or ``"3d_fullres"``.
        out: The site's folder in WORK; cases come into its folder ``configuration``.
        workers: Processes that preprocess cases.

    Raises:
        PlansError: The plans do not fit the site's modalities or labels; see ``check_site``.
        MixmflError: The plans say that brains are extracted, and the tool is not there.
    """
    mapped = check_site(site, plans)
    folder = out / configuration
    folder.mkdir(parents=True, exist_ok=True)
    brains = agreed_extraction([plans.heads], site.brains)
    brains.check()
    site = dataclasses.replace(site, brains=brains)
    planned = plans.preprocessing(configuration)
    origins = {case.name: origin(case, site, planned) for case in site.found.cases}
    kept = [
        name
        for name, made_from in origins.items()
        if preprocessed_case.is_stored(folder, name, made_from)
    ]
    recipe = _Recipe(plans, configuration, mapped, site.alignment, brains)
    jobs = {
        case.name: (
            _preprocess_job,
            case,
            recipe,
            stored_brain(case, site, out),
            folder,
            origins[case.name],
        )
        for case in site.found.cases
        if case.name not in kept
    }
    done, refused = workers.run(jobs, f"{site.name}: {configuration}")
    for stale in set(preprocessed_case.case_names(folder)) - set(kept) - set(done):
        # its files are gone or changed beyond use: it must not be trained on
        (folder / f"{stale}.json").unlink()
    notes = {name: note for name, note in done.items() if note}
    return Preprocessed(tuple(sorted(done)), tuple(kept), tuple(refused), notes)


@dataclass(frozen=True)
class _Recipe:
    """How each case of a site is preprocessed.

    Attributes:
        plans: Plans of the federation.
        configuration: ``"2d"`` or ``"3d_fullres"``.
        mapped: What the site's label values are in the plans.
        alignment: What to do with images of a case that are on different grids.
        brains: How brains are extracted, if they are.
    """

    plans: Plans
    configuration: str
    mapped: LabelMap
    alignment: AlignmentOptions
    brains: BrainExtraction


def _preprocess_job(
    case: Case, recipe: _Recipe, files: StoredBrain, folder: Path, made_from: str
) -> tuple[str, ...]:
    """Preprocess a case into ``folder``, and return what is to be noted about it."""
    plans, configuration, mapped = recipe.plans, recipe.configuration, recipe.mapped
    extracted = extract_once(load_case(case, mapped, recipe.alignment), recipe.brains, files)
    loaded, doubt = extracted.case, head_doubt(extracted.state, plans.heads)
    names = [name for name in plans.modalities if name in loaded.images]
    images, labels, properties = nnunet_preprocessing.preprocess(
        [loaded.images[name] for name in names],
        loaded.labels,
        loaded.canonical.spacing,
        plans.nnunet,
        configuration,
        plans.labels,
        mapped.labelled,
    )
    _, spacing = spacings(loaded.canonical.spacing, plans.nnunet, configuration)
    preprocessed = preprocessed_case.PreprocessedCase(
        folder,
        case.name,
        tuple(names),
        plans.preprocessing(configuration),
        tuple(spacing),
        images,
        labels,
        properties["class_locations"],
        mapped.labelled,
        patient_key(case.person),
    )
    patch = plans.configuration(configuration)["patch_size"]
    preprocessed_case.save_case(preprocessed, made_from, content(case), patch)
    return (*loaded.notes, *loaded.warnings, *([doubt] if doubt else []))
