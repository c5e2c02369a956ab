"""A site's preprocessed cases, and the fold that is held back to validate."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from mixmfl.core.errors import DataError
from mixmfl.data.labels import Labels
from mixmfl.data.patients import patient_of
from mixmfl.federated.state import Site
from mixmfl.inference.model_folder import EVERY_CASE, FOLD_COUNT
from mixmfl.planning.federation_plans import site_folder, sites_folder
from mixmfl.planning.plans import Plans
from mixmfl.planning.preprocessed_case import (
    PreprocessedCase,
    case_names,
    labels_in,
    open_case,
)
from mixmfl.planning.site_folders import check_site_name
from mixmfl.training.batches import site_number


def patients_of(cases: Iterable[PreprocessedCase]) -> int:
    """Return of how many patients some cases are; one may have several examinations."""
    return len({patient_of(case.name, case.patient) for case in cases})


def rare_labels(cases: Collection[PreprocessedCase], labels: Labels, fewest: int) -> list[str]:
    """Return the labels or regions that some patients have, but fewer than ``fewest``."""
    has = [(case, labels_in(case, labels)) for case in cases]
    return [
        name
        for name in labels.foreground
        if 0 < patients_of(case for case, names in has if name in names) < fewest
    ]


def deal_folds(
    cases: Mapping[str, Collection[str]],
    seed: int,
    site: str,
    patients: Mapping[str, str] | None,
) -> dict[str, int]:
    """Return the fold in which each of a site's cases validates; nothing for a single patient.

    Every patient validates in exactly one of the five folds, with all examinations, and those with
    the same modalities are dealt out evenly. The split needs nothing but what the site knows and
    the seed, so that the server does not learn it.

    Args:
        cases: The modalities of each case, by its name.
        seed: Seed of the run.
        site: Name of the site.
        patients: What more than the names tells of patients, by case; see ``patient_of``. None:
            nothing.
    """
    examinations: dict[str, list[str]] = {}
    for name in sorted(cases):
        patient = patient_of(name, (patients or {}).get(name, ""))
        examinations.setdefault(patient, []).append(name)
    if len(examinations) < 2:
        return {}
    generator = np.random.default_rng([seed, site_number(site)])
    groups: dict[tuple[str, ...], list[str]] = {}
    for patient in sorted(examinations):
        has = {modality for name in examinations[patient] for modality in cases[name]}
        groups.setdefault(tuple(sorted(has)), []).append(patient)
    dealt: list[str] = []
    for modalities in sorted(groups):
        generator.shuffle(groups[modalities])
        dealt += groups[modalities]
    return {
        name: place % FOLD_COUNT
        for place, patient in enumerate(dealt)
        for name in examinations[patient]
    }


Split = tuple[tuple[str, ...], tuple[str, ...]]
"""The names of the cases that train, and of those that validate."""


def split_fold(
    cases: Mapping[str, Collection[str]],
    fold: str,
    seed: int,
    site: str,
    patients: Mapping[str, str] | None = None,
) -> Split:
    """Split a site's cases into those that train and those that validate, by ``deal_folds``.

    Args:
        cases: The modalities of each case, by its name.
        fold: ``"0"`` to ``"4"``, or ``"all"``: every case trains and none validates. At a site with
            fewer than five patients none validates in the last folds; a single one trains always.
        seed: Seed of the run.
        site: Name of the site.
        patients: What more than the names tells of patients, by case; see ``patient_of``.
    """
    names = sorted(cases)
    if fold == EVERY_CASE:
        return tuple(names), ()
    dealt = deal_folds(cases, seed, site, patients)
    held = tuple(name for name in names if dealt.get(name) == int(fold))
    return tuple(name for name in names if name not in held), held


def open_sites(
    work: Path,
    plans: Plans,
    configuration: str,
    fold: str,
    seed: int,
    chosen: Sequence[str] = (),
    split: Callable[..., Split] = split_fold,
) -> list[Site]:
    """Open the preprocessed cases of the sites in ``WORK/sites``, to be computed on the CPU.

    Args:
        work: Folder that ``mixmfl_plan_preprocess`` made.
        plans: Plans of the run.
        configuration: Configuration of the plans.
        fold: Fold that validates, and with ``seed`` splits the cases; see ``split_fold``.
        seed: Seed of the run.
        chosen: Names of sites; empty: all that are preprocessed.
        split: Splits the cases, as ``split_fold`` does.

    Raises:
        DataError: A chosen site is missing, or a site has no case preprocessed with these plans, or
            a name that no site has.
    """
    known = sorted(p.name for p in sites_folder(work).glob("*") if p.is_dir())
    if unknown := sorted(set(chosen) - set(known)):
        raise DataError(
            f"{sites_folder(work)}: there is no site {', '.join(unknown)}; the sites are "
            f"{', '.join(known) or 'none'}. Name some of these by --sites"
        )
    available = [name for name in known if (site_folder(work, name) / configuration).is_dir()]
    if not available or (missing := sorted(set(chosen) - set(available))):
        others = sorted({p.parent.name for p in sites_folder(work).glob("*/*/*.json")})
        where = (
            f"for {', '.join(missing)}, but is for {', '.join(available)}"
            if available
            else "for any site"
        )
        choice = f"choose one that is by -c ({', '.join(others)}), or " if others else ""
        raise DataError(
            f"{sites_folder(work)}: configuration {configuration} is not preprocessed {where}; "
            f"{choice}run mixmfl_plan_preprocess -c {configuration}"
        )
    sites = []
    for name in sorted(set(chosen)) or available:
        check_site_name(site_folder(work, name))
        cases = _open_cases(work, name, plans, configuration)
        held_by = {case: opened.modalities for case, opened in cases.items()}
        patients = {case: opened.patient for case, opened in cases.items()}
        training, validation = split(held_by, fold, seed, name, patients)
        trained, held = (tuple(cases[n] for n in names) for names in (training, validation))
        sites.append(Site(name, trained, held))
    return sites


def _open_cases(
    work: Path, site: str, plans: Plans, configuration: str
) -> dict[str, PreprocessedCase]:
    """Open the preprocessed cases of a site, by name.

    Raises:
        DataError: There are none, or they were preprocessed with other plans.
    """
    folder = site_folder(work, site) / configuration
    cases = {case: open_case(folder, case) for case in case_names(folder)}
    if not cases:
        raise DataError(f"{folder}: holds no preprocessed case; run mixmfl_plan_preprocess")
    planned = plans.preprocessing(configuration)
    if any(case.planned != planned for case in cases.values()):
        raise DataError(
            f"{folder}: was preprocessed with other plans than {work / 'plans.json'}; run "
            f"mixmfl_plan_preprocess -c {configuration} again"
        )
    return cases
