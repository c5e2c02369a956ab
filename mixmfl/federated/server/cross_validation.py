"""A run in folds: each trains as a run of its own, and what they measured is added up.

Every case of a site validates in one fold, so that the counts over all folds are those of all
cases, each segmented by a model that did not train on it.
"""

import dataclasses
import math
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mixmfl.core.errors import ModelError
from mixmfl.core.files import replacing, write_json, write_text
from mixmfl.core.nan import mean, or_none
from mixmfl.core.text import plural
from mixmfl.evaluation.mask_quality import Measured
from mixmfl.evaluation.small_components import Components, best_shares, shares_text
from mixmfl.federated.server.comparison import add_compared, load_comparison
from mixmfl.federated.server.export import Pooled, export_model
from mixmfl.federated.server.measured import load_measured, load_measured_sites
from mixmfl.federated.server.reply_records import Compared
from mixmfl.federated.server.run import Run, choose_round
from mixmfl.federated.server.run_page import write_configurations_page, write_folds_page
from mixmfl.federated.server.run_record import holds_run, open_run
from mixmfl.federated.server.run_tables import subsets_table
from mixmfl.federated.server.subset_validation import merge_measured
from mixmfl.inference.model_file import load_model
from mixmfl.inference.model_folder import (
    CONFIGURATIONS_FILE,
    CROSS_VALIDATION_FILE,
    ENSEMBLE,
    EVERY_CASE,
    FOLD_NAMES,
    MODEL,
    ConfigurationsRecord,
    FoldsRecord,
    best_configurations,
    fold_folder,
    holds_folds,
    models_of_folds,
    read_configurations,
    read_folds,
    unequal_lengths,
)
from mixmfl.planning.nnunet_plans import CONFIGURATIONS


@dataclass(frozen=True)
class CrossValidation:
    """What the folds of a run measured together.

    Attributes:
        folder: Folder of the run.
        configuration: Configuration of all folds.
        folds: Folds whose validation cases were measured.
        measured: What was measured at all sites.
        sites: What was measured at each site.
        lengths: The rounds that each fold was trained for.
    """

    folder: Path
    configuration: str
    folds: tuple[str, ...]
    measured: Measured
    sites: Mapping[str, Measured]
    lengths: Mapping[str, int] = field(default_factory=dict)

    @property
    def dice(self) -> dict[str, float]:
        """Return mean Dice by label or region, each case from all modalities that it has."""
        return _dice_of(self.measured.components)

    def lines(self) -> list[str]:
        """Return what was measured, as text."""
        lines = [
            f"cross-validated Dice of {self.configuration}, {plural(len(self.folds), 'fold')}:"
        ]
        for site, at_site in {"all sites": self.measured, **self.sites}.items():
            cases = max((sums.cases for sums in at_site.components.values()), default=0)
            dice = ", ".join(f"{n} {d:.3f}" for n, d in _dice_of(at_site.components).items())
            lines.append(f"  {site}: {dice or 'not measured'} ({plural(cases, 'case')})")
        if small := shares_text(best_shares(self.measured.components)):
            lines.append(f"  prediction removes small parts of: {small}")
        return lines + unequal_lengths(self.lengths)


def _dice_of(components: Components) -> dict[str, float]:
    return {name: sums.dice / sums.cases for name, sums in components.items() if sums.cases}


def begin_folds(
    folder: Path, configuration: str, folds: Sequence[str], *, resume: bool
) -> FoldsRecord:
    """Start a run in folds, or resume the one in its folder, to which folds may be added.

    Args:
        folder: Folder of the run.
        configuration: Configuration of all folds.
        folds: Folds to train; empty: those that the run has.
        resume: Whether the folder holds the run already.

    Raises:
        ModelError: The folder holds something else.
    """
    before: tuple[str, ...] = ()
    if holds_folds(folder):
        record = read_folds(folder)
        if not resume:
            raise ModelError(
                f"{folder}: holds a run in folds; nothing was written. Resume it by --resume, or "
                "name another folder"
            )
        if record.configuration != configuration:
            raise ModelError(
                f"{folder}: its folds are of configuration {record.configuration}, not "
                f"{configuration}; start a new run in another folder"
            )
        before = record.folds
    elif folder.is_dir() and (names := sorted(p.name for p in folder.iterdir())):
        raise ModelError(
            f"{folder}: holds files that are no run in folds ({', '.join(names[:3])}); nothing was "
            "written. Name another folder"
        )
    wanted = tuple(name for name in FOLD_NAMES if name in (*before, *folds))
    record = FoldsRecord(configuration, wanted)
    _write(folder, record)
    return record


def begun_fold(folder: Path) -> Run | None:
    """Return the first fold that has begun: those that have not are trained as it is."""
    for fold in read_folds(folder).folds:
        if holds_run(fold_folder(folder, fold)):
            return open_run(fold_folder(folder, fold))
    return None


def unfinished_folds(folder: Path) -> list[str]:
    """Return the folds that are not trained and measured to their end."""
    return [fold for fold in read_folds(folder).folds if not _is_finished(folder, fold)]


def _is_finished(folder: Path, fold: str) -> bool:
    place = fold_folder(folder, fold)
    if not holds_run(place) or not (place / MODEL).is_file():
        return False
    run = open_run(place)
    if len(run.history) < run.settings.rounds and not run.is_flat:
        return False
    return load_measured(run, choose_round(run, "best")) is not None


def pool_folds(folder: Path) -> CrossValidation:
    """Add up what the folds of a run measured, and export their models with it.

    The counts are written into ``cross_validation.json`` and ``.csv``, and into the model file of
    every fold: a model of the fold ``all``, which has no validation cases, has them, too.

    Raises:
        ModelError: A fold is not finished, or the folds do not split the cases alike.
    """
    if left := unfinished_folds(folder):
        raise ModelError(f"{folder}: these folds are not trained to their end: {', '.join(left)}")
    record = read_folds(folder)
    runs = {fold: open_run(fold_folder(folder, fold)) for fold in record.folds}
    if len({run.settings.seed for run in runs.values()}) > 1:
        raise ModelError(
            f"{folder}: its folds have different seeds, so that cases validate twice; train them "
            "with one seed in a new folder"
        )
    rounds = {fold: choose_round(run, "best") for fold, run in runs.items()}
    parts: dict[str, list[Measured]] = {}
    folds = tuple(fold for fold in record.folds if fold != EVERY_CASE)
    for fold in folds:
        for site, at_site in (load_measured_sites(runs[fold], rounds[fold]) or {}).items():
            parts.setdefault(site, []).append(at_site)
    sites = {site: merge_measured(parts[site]) for site in sorted(parts)}
    lengths = {fold: run.settings.rounds for fold, run in runs.items()}
    result = CrossValidation(
        folder, record.configuration, folds, merge_measured(list(sites.values())), sites, lengths
    )
    pooled = Pooled(result.measured, folds)
    for fold in record.folds:
        place = fold_folder(folder, fold)
        export_model(place, "best", place / MODEL, pooled=pooled)
    write_text(folder / "cross_validation.csv", subsets_table(result.measured, sites))
    write_folds_page(folder, runs, result.measured, sites)
    done = dataclasses.replace(record, rounds=rounds, measured=result.measured, lengths=lengths)
    _write(folder, done)  # last: it says that all is there
    return result


def export_folds(folder: Path, out: Path) -> None:
    """Copy the models that prediction averages into a folder of their own, whole or not at all.

    The folder can be named wherever that of the run can to predict, and holds nothing else of it.

    Args:
        folder: Folder of a run in folds, maybe of several configurations, of which the best one is
            copied, or all where their ensemble is best.
        out: The folder to write.

    Raises:
        ModelError: The folds are not all trained, one's model is none, or ``out`` is there already.
    """
    folders = best_configurations(folder)
    if out.exists():
        raise ModelError(f"{out}: exists already; name a new folder")
    with replacing(out.resolve()) as temporary:
        for each in folders:
            _copy_folds(each, temporary / each.name if len(folders) > 1 else temporary)
        if len(folders) > 1:
            shutil.copyfile(folder / CONFIGURATIONS_FILE, temporary / CONFIGURATIONS_FILE)


def _copy_folds(folder: Path, out: Path) -> None:
    """Copy the models of a run in folds, of one configuration, and their record without others."""
    record, files = read_folds(folder), models_of_folds(folder)
    for fold, file in files.items():
        load_model(file)  # it may be a link to any file of the user's
        fold_folder(out, fold).mkdir(parents=True)
        shutil.copyfile(file, fold_folder(out, fold) / MODEL)
    copied = dataclasses.replace(
        record,
        folds=tuple(files),
        rounds={fold: record.rounds[fold] for fold in files},
        lengths={fold: n for fold, n in record.lengths.items() if fold in files},
    )
    _write(out, copied)


def pooled_of(run_folder: Path, number: int) -> Pooled | None:
    """Return what all folds measured, where a folder is one of them and a round was measured.

    Args:
        run_folder: Folder of a run, maybe of a fold.
        number: The round that is exported.
    """
    folder = run_folder.resolve().parent
    if not holds_folds(folder):
        return None
    record = read_folds(folder)
    for fold, measured in record.rounds.items():
        if fold_folder(folder, fold) == run_folder.resolve() and measured == number:
            folds = tuple(fold for fold in record.folds if fold != EVERY_CASE)
            return Pooled(record.measured or Measured(), folds)
    return None


def begin_configurations(folder: Path, names: Sequence[str], *, resume: bool) -> None:
    """Record which configurations are compared; which is best is not known before all are done.

    Raises:
        ModelError: The folder holds something else.
    """
    ours = (folder / CONFIGURATIONS_FILE).is_file()
    if (ours and not resume) or (not ours and folder.is_dir() and any(folder.iterdir())):
        raise ModelError(
            f"{folder}: holds {'a run' if ours else 'other files'}; nothing was written. "
            "Resume a run of several configurations by --resume, or name another folder"
        )
    write_json(folder / CONFIGURATIONS_FILE, dataclasses.asdict(ConfigurationsRecord(tuple(names))))


def in_order(configurations: Collection[str]) -> list[str]:
    """Return configurations in the order in which they are trained, each once."""
    return [name for name in CONFIGURATIONS if name in configurations]


def configurations_of(folder: Path) -> list[str]:
    """Return the configurations that a run compares; empty: it is none of several."""
    if not (folder / CONFIGURATIONS_FILE).is_file():
        return []
    return in_order(read_configurations(folder).configurations)


def compare_folds(trained: Sequence[CrossValidation]) -> tuple[Compared, list[str]]:
    """Return what the sites measured of two configurations and their mean, over all folds.

    Returned, too, are the folds in which no site has compared the models that both have now.

    Args:
        trained: The folds of each configuration, in the order in which they were trained.
    """
    first, second = trained
    parts, left = list[Compared](), list[str]()
    for fold in second.folds:
        runs = [open_run(fold_folder(each.folder, fold)) for each in (second, first)]
        compared = load_comparison(*runs)
        if compared is None:
            left.append(fold)
        else:
            parts.append(compared)
    return add_compared(parts), left


def choose_configuration(
    trained: Sequence[CrossValidation], compared: Compared, folder: Path
) -> ConfigurationsRecord:
    """Choose the configuration with the highest cross-validated Dice, or the ensemble of all.

    Dice is the mean over labels, each case from all modalities that it has, as in nnU-Net. Of
    equals the first is chosen, and the ensemble is last.

    Args:
        trained: The folds of each configuration.
        compared: What ``compare_folds`` returns. Where that is nothing, each configuration counts
            by what its own folds measured, and the ensemble is no candidate.
        folder: Where the choice is recorded.

    Raises:
        ModelError: No fold has validation cases.
    """
    means = {name: mean(_dice_of(components).values()) for name, components in compared.items()}
    if not means or any(map(math.isnan, means.values())):
        means = {each.configuration: mean(each.dice.values()) for each in trained}
    known = {name: dice for name, dice in means.items() if not math.isnan(dice)}
    if not known:
        raise ModelError(f"{folder}: no fold has validation cases, so that none can be chosen")
    record = ConfigurationsRecord(
        tuple(each.configuration for each in trained),
        max(known, key=lambda name: known[name]),
        {name: or_none(dice) for name, dice in means.items()},
        compared[ENSEMBLE] if ENSEMBLE in known else {},
    )
    write_json(folder / CONFIGURATIONS_FILE, dataclasses.asdict(record))
    return record


def write_choice(
    folder: Path,
    record: ConfigurationsRecord,
    trained: Sequence[CrossValidation],
    compared: Compared,
) -> Path:
    """Write the page of a run of several configurations, and return it.

    Args:
        folder: Folder of the run.
        record: What ``choose_configuration`` returned.
        trained: The folds of each configuration.
        compared: What ``compare_folds`` returned.
    """
    candidates = compared
    if ENSEMBLE not in record.dice:  # each counts by its own folds
        candidates = {each.configuration: each.measured.components for each in trained}
    of_each = {
        each.configuration: (
            open_run(fold_folder(each.folder, each.folds[0])),
            each.measured,
            each.sites,
        )
        for each in trained
    }
    return write_configurations_page(folder, record, candidates, of_each)


def choice_lines(record: ConfigurationsRecord) -> list[str]:
    """Return which configuration was chosen, and why, as text."""
    dice = ", ".join(f"{n} {d:.3f}" for n, d in record.dice.items() if d is not None)
    if ENSEMBLE not in record.dice:
        lines = [f"cross-validated Dice: {dice}; no site measured their ensemble"]
    else:
        lines = [f"cross-validated Dice, all on the same cases and voxels: {dice}"]
    both = f"the ensemble of {' and '.join(record.configurations)}"
    best = both if record.best == ENSEMBLE else record.best
    lines.append(f"best configuration by cross-validated Dice: {best}")
    small = shares_text(best_shares(record.components))
    if record.best == ENSEMBLE and small:
        lines.append(f"  prediction removes small parts of: {small}")
    return lines


def _write(folder: Path, record: FoldsRecord) -> None:
    write_json(folder / CROSS_VALIDATION_FILE, dataclasses.asdict(record))
