"""A federation from Python: planned, preprocessed and simulated in two calls, as in a notebook.

The commands do the same from files to files; see docs/notebooks.
"""

import logging
from collections.abc import Callable
from dataclasses import asdict, replace
from os import PathLike
from pathlib import Path

from mixmfl.core.devices import find_device
from mixmfl.core.errors import MixmflError
from mixmfl.core.records import read_record
from mixmfl.core.worker_pool import Workers
from mixmfl.data.dataset_card import find_card
from mixmfl.data.label_sets import agree_on_labels
from mixmfl.data.labels import read_folder_labels
from mixmfl.federated.aggregation import Rule
from mixmfl.federated.server.coordinator import Variation
from mixmfl.federated.server.run import Run
from mixmfl.federated.simulation import Callbacks, simulate
from mixmfl.federated.sites import open_sites
from mixmfl.federated.state import RunSettings
from mixmfl.planning.federation_plans import (
    gather_fingerprints,
    kept_plans,
    site_folder,
    write_plans,
)
from mixmfl.planning.plans import Plans, load_preset, usual_configuration
from mixmfl.planning.preprocess import preprocess_site
from mixmfl.planning.site_folders import find_sites

log = logging.getLogger(__name__)


def plan_federation(
    folder: str | PathLike[str],
    work: str | PathLike[str],
    preset: str = "default",
    configuration: str = "2d",
    processes: int = 1,
    *,
    replan: bool = False,
) -> Plans:
    """Make plans for the sites of a folder, and preprocess their cases.

    Cases that cannot be used are left out, each with a warning in the log.

    Args:
        folder: A folder per site, in any layout that training reads.
        work: Folder for plans and preprocessed cases; what is there and still fits is kept.
        preset: Name of a shipped preset, or the path of a ``.json`` of your own.
        configuration: ``"2d"`` or ``"3d_fullres"``.
        processes: Processes to preprocess with.
        replan: Whether plans are made again although ``work`` has some; else these are kept, with a
            warning in the log, and ``preset`` is not read.

    Returns:
        The plans, which are also ``work/plans.json``.

    Raises:
        MixmflError: A site has no usable case, or the sites do not fit together.
    """
    folder, work = Path(folder), Path(work)
    sites = find_sites(folder).sites
    refused = {site.name: {each.name: each for each in site.found.refused} for site in sites}
    plans = kept_plans(work, replan=replan)
    with Workers(processes) as workers:
        if plans is None:
            described = read_folder_labels(folder)
            labels = agree_on_labels({site.name: site.labels for site in sites}, described)
            fingerprints = []
            for each in gather_fingerprints(sites, work, workers):
                fingerprints.append(each.fingerprint)
                refused[each.site.name] |= {case.name: case for case in each.refused}
            card = find_card(folder)
            plans, _ = write_plans(fingerprints, labels, load_preset(preset), card, work)
        else:
            log.warning("%s: is kept; replan=True makes it again", work / "plans.json")
        plans.configuration(configuration)  # raises where it was not planned
        for site in sites:
            out = site_folder(work, site.name)
            result = preprocess_site(site, plans, configuration, out, workers)
            refused[site.name] |= {case.name: case for case in result.refused}
    for name, cases in refused.items():
        for case in cases.values():
            log.warning("%s, %s: left out: %s", name, case.name, case.reason)
    return plans


def simulate_federation(
    work: str | PathLike[str],
    out: str | PathLike[str],
    *,
    plans: Plans | None = None,
    rule: Rule | None = None,
    rounds: int | None = None,
    local_steps: int | None = None,
    learning_rate: float | None = None,
    seed: int = 0,
    fold: str = "0",
    device: str = "auto",
    report: Callable[[Run], None] = lambda run: None,
) -> Run:
    """Train the sites of a folder together, all of them in this process.

    Args:
        work: Folder that ``plan_federation`` or ``mixmfl_plan_preprocess`` made.
        out: A new folder for the run.
        plans: Plans with other settings of training or of the network; default: those of ``work``.
            See ``mixmfl.planning.plans.replace_settings``.
        rule: A function that merges the sites' changes of one block, in place of the rule that the
            plans name; see ``mixmfl.federated.aggregation.BlockChanges``.
        rounds: Number of rounds; default: as in the plans, and so on.
        local_steps: Gradient steps of a site in a round.
        learning_rate: Learning rate in the first round.
        seed: Seed of the first weights, of the split into folds and of every draw.
        fold: Fold of each site's cases that validate, ``"0"`` to ``"4"``, or ``"all"``: all train.
        device: Device to compute on, as ``--device`` names it.
        report: Called with the run after every round.

    Returns:
        The run. ``run.dice`` has the mean validation Dice by round, ``run.history`` what each site
        did in each, and ``run.folder / "model.safetensors"`` is the model of the best round.

    Raises:
        MixmflError: There are no such sites, or ``out`` holds files.
    """
    work = Path(work)
    plans = plans or Plans.load(work / "plans.json")
    configuration = usual_configuration(work, plans)
    planned = plans.training
    settings = RunSettings(
        configuration,
        seed,
        planned.rounds if rounds is None else rounds,
        planned.local_steps if local_steps is None else local_steps,
        planned.learning_rate if learning_rate is None else learning_rate,
    )
    read_record(RunSettings, asdict(settings), "settings", MixmflError)
    computing = find_device(device)
    opened = open_sites(work, plans, configuration, fold, seed)
    sites = [replace(site, device=computing) for site in opened]
    return simulate(
        plans,
        sites,
        settings,
        fold,
        Path(out),
        variation=Variation(rule=rule),
        callbacks=Callbacks(report),
    )
