"""The page of a run: its curves, what its sites did, and the Dice of its model; one HTML file.

::

    RUN/run.html                 of a run, written when it ends
    RUN/cross_validation.html    of a run in folds, with all their curves; or of a run of several
                                 configurations, with the choice among them
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from mixmfl.core.files import write_text
from mixmfl.core.nan import mean, or_nan
from mixmfl.core.text import plural
from mixmfl.evaluation.charts import Chart, Point
from mixmfl.evaluation.html import HeatTable, Section, Table, page
from mixmfl.evaluation.mask_quality import Measured
from mixmfl.evaluation.small_components import Components, best_shares, shares_text
from mixmfl.evaluation.subset_dice import medians
from mixmfl.federated.server.changes import in_words, settings_of
from mixmfl.federated.server.measured import load_measured
from mixmfl.federated.server.run import Run, choose_round, privacy_spent
from mixmfl.federated.state import learning_rate_of
from mixmfl.inference.model_folder import ENSEMBLE, ConfigurationsRecord
from mixmfl.inference.report import RESEARCH_ONLY

RUN_PAGE, FOLDS_PAGE = "run.html", "cross_validation.html"

_NOT_KNOWN = "not known"

_INTRODUCTION = """\
What the coordinator of a run knows of it. No case is named here, and none is known to the
coordinator. Dice is of validation cases, which did not train the model."""

_EVERY_FOLD = """\
Mean Dice, each case from all modalities that it has, by a model that did not train on it. A case
validates in one fold; the numbers of all folds are added up."""

_COMPARED = """\
Mean Dice of both configurations and of the mean of their probabilities, all on the same validation
cases and voxels, each case from all modalities that it has, by models that did not train on it.
What has the highest mean over labels is what prediction takes."""

_NOT_COMPARED = """\
Mean Dice of each configuration on its own voxels, each case from all modalities that it has, by
models that did not train on it. No site measured the mean of both, so that it is no candidate. What
has the highest mean over labels is what prediction takes."""

_SUBSETS = """\
Median Dice of the validation cases of all sites from every subset of modalities; a dot is a
modality that was given, a ring one that was withheld."""


def write_run_page(run: Run) -> Path:
    """Write the page of a run with at least one round, and return it."""
    number = choose_round(run, "best")
    measured = load_measured(run, number)
    sections = [
        Section("Run", facts=_facts(run)),
        Section("Curves", charts=_charts(run)),
        Section("Sites", tables=[_sites(run)]),
        *([_subsets(run, measured)] if measured and measured.expected else []),
    ]
    if run.start is not None:
        sections.append(Section("Where its weights are from", text="\n\n".join(run.start.lines())))
    return _write(run.folder / RUN_PAGE, f"Run {run.folder.name}", run, sections)


def write_folds_page(
    folder: Path,
    runs: Mapping[str, Run],
    measured: Measured,
    sites: Mapping[str, Measured],
) -> Path:
    """Write the page of a run in folds, and return it.

    Args:
        folder: Folder of the run.
        runs: Its folds.
        measured: What they measured together.
        sites: What was measured at each site.
    """
    first = next(iter(runs.values()))
    curves = {
        f"fold {fold}": [(float(number), dice) for number, dice in sorted(run.dice.items())]
        for fold, run in runs.items()
        if run.dice
    }
    chart = Chart("Validation Dice of the federation", curves, low=0, high=1)
    sections = [
        Section("All folds", _EVERY_FOLD, tables=[_pooled(first, measured, sites)]),
        *([_subsets(first, measured)] if measured.expected else []),
        Section("Folds", tables=[_folds(runs)], charts=[] if chart.is_empty else [chart]),
        Section("The first of them", facts=_facts(first)),
    ]
    return _write(folder / FOLDS_PAGE, f"Folds of {folder.name}", first, sections)


def write_configurations_page(
    folder: Path,
    record: ConfigurationsRecord,
    candidates: Mapping[str, Components],
    configurations: Mapping[str, tuple[Run, Measured, Mapping[str, Measured]]],
) -> Path:
    """Write the page of a run of several configurations, and return it.

    Args:
        folder: Folder of the run.
        record: What was chosen among them.
        candidates: By configuration, and of their ensemble where it was measured, what the choice
            was made by.
        configurations: By name one of its folds, and what all of them measured together and at each
            site.
    """
    first = next(iter(configurations.values()))[0]
    names = list(first.plans.labels.foreground)
    rows = []
    for candidate, components in candidates.items():
        rows.append(
            [
                candidate,
                *_dice_and_cases(components, names),
                _dice(or_nan(record.dice.get(candidate))),
                "yes" if candidate == record.best else "",
            ]
        )
    table = Table(["candidate", *names, "cases", "mean", "chosen"], rows)
    text = _COMPARED if ENSEMBLE in candidates else _NOT_COMPARED
    if small := shares_text(best_shares(record.components)):
        text += f"\n\nPrediction removes small parts of: {small}."
    sections = [
        Section("Configurations", text, tables=[table]),
        *(
            Section(name, f"{_EVERY_FOLD} {name}/{FOLDS_PAGE} has more.", tables=[_pooled(*each)])
            for name, each in configurations.items()
        ),
    ]
    return _write(folder / FOLDS_PAGE, f"Configurations of {folder.name}", first, sections)


def _folds(runs: Mapping[str, Run]) -> Table:
    rows = []
    for fold, run in runs.items():
        best = choose_round(run, "best")
        cases = sum(each.cases for each in run.registrations.values())
        dice = _dice(run.dice.get(best, math.nan))
        rows.append([fold, str(cases), str(len(run.history)), str(best), dice])
    return Table(["fold", "training cases", "rounds", "model of round", "Dice of that round"], rows)


def _write(file: Path, title: str, run: Run, sections: Sequence[Section]) -> Path:
    alarm = run.plans.card.alarm
    text = page(
        title, _INTRODUCTION, sections, notice=RESEARCH_ONLY, alarms=(alarm,) if alarm else ()
    )
    write_text(file, text)
    return file


def _facts(run: Run) -> dict[str, str]:
    settings, done = run.settings, len(run.history)
    best = choose_round(run, "best")
    facts = {
        "configuration": settings.configuration,
        "rounds": f"{done} of {settings.rounds}; the model is of round {best}",
        "validation Dice of the model": _dice(run.dice.get(best, math.nan)),
        "fold": run.fold,
        "seed": str(settings.seed),
        "local steps": f"{settings.local_steps} in a round",
        "learning rate": f"{settings.learning_rate:g}, falling to 0",
        "aggregation": run.plans.training.aggregation,
        "masked": "yes: the server saw sums over sites only" if settings.masked else "no",
        "took": duration(sum(run.seconds.values())) if run.seconds else _NOT_KNOWN,
    }
    if run.start is not None:
        facts["first weights"] = f"from {run.start.file}"
    if run.stop_when_flat:
        facts["ends early"] = f"after {plural(run.stop_when_flat, 'round')} without a higher Dice"
    spent = privacy_spent(run, done)
    if spent:
        facts["privacy spent"] = ", ".join(
            f"{site}: epsilon {each['epsilon']:.2f}, delta {each['delta']:g}"
            for site, each in spent.items()
        )
    if run.changes:
        facts["changes"] = "; ".join(in_words(run.changes).values())
    return facts


def _charts(run: Run) -> list[Chart]:
    """Return the curves of a run; those of which nothing is known are left out."""
    rounds = range(1, len(run.history) + 1)
    marks = {f"best round {choose_round(run, 'best')}": float(choose_round(run, "best"))}
    marks |= {words: after + 0.5 for after, words in in_words(run.changes).items() if after}

    losses: dict[str, list[Point]] = {}
    norms: dict[str, list[Point]] = {}
    dice: dict[str, list[Point]] = {}
    for site in run.known:
        here = [(number, run.history[number - 1].get(site)) for number in rounds]
        losses[site] = [(number, or_nan(each.loss if each else None)) for number, each in here]
        norms[site] = [
            (number, or_nan(each.update_norm if each else None)) for number, each in here
        ]
        judged = [
            (float(number), mean(map(or_nan, each.dice.values())))
            for number, each in here
            if each is not None and each.dice
        ]
        dice[site] = [point for point in judged if not math.isnan(point[1])]
    # behind the sites, so that these have the colours that they have in the other charts
    dice["all sites"] = [(float(number), value) for number, value in sorted(run.dice.items())]
    rates = [
        (float(n), learning_rate_of(n - 1, settings_of(n - 1, run.settings, run.changes)))
        for n in rounds
    ]
    subsets = {
        subset: [
            (float(number), mean(each.get(subset, {}).values()))
            for number, each in sorted(run.subset_dice.items())
        ]
        for subset in dict.fromkeys(name for each in run.subset_dice.values() for name in each)
    }
    charts = [
        Chart("Training loss", losses, marks),
        Chart("Validation Dice, each case from all that it has", dice, marks, 0, 1),
        Chart("Median validation Dice from each subset, all sites", subsets, marks, 0, 1),
        Chart("Norm of each site's update", norms, marks, 0),
        Chart("Learning rate", {"learning rate": rates}, marks, 0),
    ]
    return [chart for chart in charts if not chart.is_empty]


def _sites(run: Run) -> Table:
    best = run.history[choose_round(run, "best") - 1]
    rows = []
    for site, registration in run.known.items():
        entries = [sites[site] for sites in run.history if site in sites]
        held = ", ".join(f"{name} {n}" for name, n in registration.modality_cases.items() if n)
        judged = mean(map(or_nan, best[site].dice.values())) if site in best else math.nan
        rows.append(
            [
                site,
                str(registration.cases),
                held,
                _dice(judged),
                str(sum(not each.absent for each in entries)),
                f"{sum(each.sent_bytes for each in entries) / 1e6:.1f}",
                f"{sum(each.received_bytes for each in entries) / 1e6:.1f}",
                duration(sum(each.seconds for each in entries)),
            ]
        )
    columns = ["site", "training cases", "modalities", "Dice", "rounds", "MB sent", "MB received"]
    return Table([*columns, "time"], rows)


def _pooled(run: Run, measured: Measured, sites: Mapping[str, Measured]) -> Table:
    """Return mean Dice by site and label, each case from all modalities that it has."""
    names = list(run.plans.labels.foreground)
    rows = []
    for site, of_site in {"all sites": measured, **sites}.items():
        rows.append([site, *_dice_and_cases(of_site.components, names)])
    return Table(["site", *names, "cases"], rows)


def _dice_and_cases(components: Components, names: Sequence[str]) -> list[str]:
    """Return the mean Dice of each label, and the number of cases, as text."""
    sums = [components.get(name) for name in names]
    shown = [_dice(each.dice / each.cases if each else math.nan) for each in sums]
    return [*shown, str(max((each.cases for each in sums if each), default=0))]


def _dice(dice: float) -> str:
    return _NOT_KNOWN if math.isnan(dice) else f"{dice:.3f}"


def _subsets(run: Run, measured: Measured) -> Section:
    names = list(run.plans.labels.foreground)
    by_subset = medians(measured.expected).values()
    values = [[dice.get(name, math.nan) for name in names] for dice in by_subset]
    subsets = [each.modalities for each in measured.expected]
    table = HeatTable(subsets, run.plans.modalities, names, values)
    text = _SUBSETS
    if small := shares_text(best_shares(measured.components)):
        text += f"\n\nPrediction removes small parts of: {small}."
    return Section("Dice from every subset", text, table)


def duration(seconds: float) -> str:
    """Return how long something takes, such as ``3 h 20 min``, in words for people."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
