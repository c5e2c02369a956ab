"""A site's preprocessed cases, and the fold that is held back to validate."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from mixmfl.core.errors import DataError
from mixmfl.federated.state import Site
from mixmfl.planning.plans import Plans
from mixmfl.planning.preprocessed_case import case_names, open_case
from mixmfl.training.batches import site_number

FOLDS = 5


def split_fold(
    names: Sequence[str], fold: str, seed: int, site: str
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Split a site's cases into those that train and those that validate.

    Args:
        names: Names of the cases, in any order.
        fold: ``"0"`` to ``"4"``, or ``"all"``: every case trains and none validates. A site with
            fewer than five cases has as many folds as cases, used in turn; a single case trains.
        seed: Seed of the run.
        site: Name of the site.
    """
    shuffled = sorted(names)
    generator = np.random.default_rng([seed, site_number(site)])
    generator.shuffle(shuffled)
    folds = min(FOLDS, len(shuffled))
    if fold == "all" or folds < 2:
        return tuple(sorted(shuffled)), ()
    held = set(shuffled[int(fold) % folds :: folds])
    return tuple(n for n in sorted(names) if n not in held), tuple(sorted(held))


def open_sites(
    work: Path,
    plans: Plans,
    configuration: str,
    fold: str,
    seed: int,
    device: torch.device,
    workers: int,
    chosen: Sequence[str] = (),
) -> list[Site]:
    """Open the preprocessed cases of the sites in ``WORK/sites``.

    Raises:
        DataError: A chosen site is missing, or a site has no case preprocessed with these plans.
    """
    available = sorted(p.name for p in (work / "sites").glob("*") if (p / configuration).is_dir())
    missing = sorted(set(chosen) - set(available))
    if missing or not available:
        others = sorted({p.parent.name for p in (work / "sites").glob("*/*/*.json")})
        raise DataError(
            f"{work / 'sites'}: configuration {configuration} is not preprocessed for "
            f"{', '.join(missing) or 'any site'}; it is for these sites: "
            f"{', '.join(available) or 'none'}; configurations that are: "
            f"{', '.join(others) or 'none'}. Choose one of these by -c, or run "
            f"mixmfl_plan_preprocess -c {configuration}"
        )
    sites, planned = [], plans.preprocessing(configuration)
    for name in sorted(set(chosen)) or available:
        folder = work / "sites" / name / configuration
        training, validation = split_fold(case_names(folder), fold, seed, name)
        if not training:
            raise DataError(f"{folder}: holds no preprocessed case; run mixmfl_plan_preprocess")
        cases = {case: open_case(folder, case) for case in (*training, *validation)}
        if any(case.planned != planned for case in cases.values()):
            raise DataError(
                f"{folder}: was preprocessed with other plans than {work / 'plans.json'}; run "
                f"mixmfl_plan_preprocess -c {configuration} again"
            )
        trained, held = (tuple(cases[n] for n in names) for names in (training, validation))
        sites.append(Site(name, trained, held, device, workers))
    return sites
