"""The page of a benchmark on patients: differences over trainings, and tables behind them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from mixmfl.core.errors import DataError
from mixmfl.core.files import write_json, write_text
from mixmfl.core.text import plural
from mixmfl.evaluation.mask_quality import LOOK_CLOSELY
from mixmfl.evaluation.reliability import LEVEL
from mixmfl.evaluation.subset_dice import LOW_DICE
from mixmfl.research.benchmark.benchmark_folder import known_own, read_results, read_tested
from mixmfl.research.benchmark.leaderboard import make_entries
from mixmfl.research.benchmark.mask_quality import REVIEWED, estimate_quality
from mixmfl.research.benchmark.methods import what_is
from mixmfl.research.benchmark.plots import draw_reliability
from mixmfl.research.benchmark.probabilities import Probabilities, calibration_quality
from mixmfl.research.benchmark.records import Cost
from mixmfl.research.benchmark.results import results_json
from mixmfl.research.benchmark.rounds import rounds_section
from mixmfl.research.benchmark.scores import Row
from mixmfl.research.benchmark.statistics import COVERAGE, RESAMPLES, Estimate, Scores
from mixmfl.research.benchmark.tables import interval, join, number, spread, table
from mixmfl.research.benchmark.trainings import PARTS, Trainings

TITLES = {
    "own": "own modalities",
    "subsets": "all subsets",
    "lacking": "some lacking",
    "single": "one modality",
    "full": "all of a case",
}


def write_page(out: Path, size: str, reference: str) -> Path:
    """Write ``OUT/SIZE.md`` and ``.json`` about all benchmarks of a size; return the first.

    Args:
        out: Output folder of ``mixmfl_benchmark_patients``, with a benchmark in
            ``<federation>/<size>``.
        size: Size of the trainings.
        reference: The method that others are compared with, if it has been scored.

    Raises:
        DataError: No method has been scored at this size.
    """
    scores, costs, trained, results = {}, {}, [], {}
    tested: dict[str, list[Probabilities]] = {}
    for record in sorted(out.glob(f"*/{size}/benchmark.json")):
        rows, measured = read_results(record.parent)
        if rows:
            name = record.parent.parent.name
            scores[name] = Scores(rows, known_own(record.parent))
            costs[name] = measured
            trained.append(rows)
            for method, probabilities in read_tested(record.parent).items():
                tested.setdefault(method, []).extend(probabilities)
            results[name] = results_json(
                record.parent, rows, measured, make_entries(scores[name], measured)
            )
    if not scores:
        raise DataError(f"{out}: no method has been scored at size {size}")
    trainings = Trainings(scores)
    if reference not in trainings.methods:
        reference = trainings.methods[0]
    write_json(out / f"{size}.json", results)
    file = out / f"{size}.md"
    if any(each.curves for each in tested.get(reference, ())):
        draw_reliability(tested[reference], out / f"{size}-reliability.png")
    write_text(file, _page(trainings, costs, trained, tested, size, reference))
    return file


def _page(
    trainings: Trainings,
    costs: Mapping[str, list[Cost]],
    trained: Sequence[Sequence[Row]],
    tested: Mapping[str, Sequence[Probabilities]],
    size: str,
    reference: str,
) -> str:
    methods = "\n".join(f"- `{name}`: {what_is(name)}" for name in trainings.methods)
    parts = [
        f"# Patients, size {size}",
        "Dice in points: 100 is perfect. A training is a test fold, a modality set and a seed.",
        methods,
        f"## Difference to {reference}\n\n{_differences(trainings, reference)}",
        f"## Points\n\n{_points(trainings, costs)}",
        f"## By subset of modalities\n\n{_subsets(trainings)}",
        f"## Which masks are good\n\n{_quality(trainings, trained)}",
        f"## Calibrated probabilities\n\n{_calibration(tested)}",
        f"## By training\n\n{_each(trainings)}",
    ]
    return "\n\n".join(parts) + "\n" + rounds_section(costs, reference)


def _differences(trainings: Trainings, reference: str) -> str:
    rows = []
    for method in trainings.methods:
        if method == reference:
            continue
        for part in PARTS:
            difference = trainings.difference(method, reference, part)
            if difference.trainings:
                intervals = (
                    interval(difference.bootstrap),
                    interval(difference.student),
                    interval(difference.widest),
                )
                better = f"{difference.better} of {difference.trainings}"
                rows.append([f"{method}, {TITLES[part]}", *intervals, better])
    if not rows:
        return f"No other method than {reference} was trained on the same terms."
    words = (
        f"Points of the method minus those of {reference}, over the trainings that both did: mean "
        "over the subsets of a case, the cases of a site, sites, trainings. *Bootstrap*: "
        f"{COVERAGE} % percentile interval of {RESAMPLES:,} draws of trainings, and within them of "
        "cases within each site; with one training it is over its cases alone. *Student*: over the "
        "trainings' means. *Claim*: the worse of both "
        "ends; where it holds 0, there may be no difference. *Some lacking*: from every subset but "
        "the one of all that a case has. Last: in how many trainings the method is above."
    )
    header = ["method", "bootstrap", "Student", "claim", "above"]
    return table(header, rows) + "\n\n" + words


def _points(trainings: Trainings, costs: Mapping[str, list[Cost]]) -> str:
    rows = []
    for method in trainings.methods:
        method_costs = [c for each in costs.values() for c in each if c.method == method]
        worst = trainings.worst_addition(method)
        rows.append(
            [
                method,
                *(spread(trainings.points(method, part)) for part in PARTS),
                *(spread(trainings.site_points(method, site)) for site in trainings.sites),
                "-"
                if worst is None
                else f"{worst.added} to {join(worst.subset)}: {interval(worst.points)}",
                number(trainings.distance(method).mean, 1),
                _rates(method_costs),
                number(Estimate.over([cost.seconds for cost in method_costs]).mean, 0),
                str(len(trainings.of(method))),
            ]
        )
    header = ["method", *(TITLES[part] for part in PARTS), *trainings.sites]
    header += ["worst addition", "HD95, mm", "learning rate", "seconds", "trainings"]
    words = (
        "± is the standard deviation over trainings. Under a site's name: its cases from its own "
        "modalities. *Worst addition*: the points that one more modality costs, on average over "
        "cases that have both subsets, where it costs most; below 0 every addition gains. "
        "*HD95*: on own modalities, where prediction and reference both have the region. "
        "*Learning rate*: of the first round, with the number of runs that chose it on their "
        "validation cases. "
        "Methods with other trainings do not compare here; the table above compares."
    )
    return table(header, rows) + "\n\n" + words


def _rates(costs: list[Cost]) -> str:
    chosen = Counter(rate for cost in costs for rate in cost.learning_rates.values())
    return ", ".join(f"{rate:g} ({runs})" for rate, runs in sorted(chosen.items())) or "-"


def _subsets(trainings: Trainings) -> str:
    rows = [
        [join(subset), *(spread(trainings.subset_points(m, subset)) for m in trainings.methods)]
        for subset in trainings.subsets
    ]
    return table(["modalities", *trainings.methods], rows)


def _quality(trainings: Trainings, trained: Sequence[Sequence[Row]]) -> str:
    rows = []
    for method in trainings.methods:
        by_training: dict[tuple[int, int], list[Row]] = {}  # by federation and seed
        for place, federation in enumerate(trained):
            for row in federation:
                if row.method == method:
                    by_training.setdefault((place, row.seed), []).append(row)
        if (quality := estimate_quality(by_training.values())) is None:
            continue
        rows.append(
            [
                method,
                f"{quality.masks} ({quality.share:.0%})",
                f"{quality.rank_correlation:.2f}",
                number(100 * quality.error, 1),
                number(100 * quality.blind_error, 1),
                f"{quality.covered:.0%}",
                f"{quality.found} of {quality.bad}",
                f"{quality.warned / quality.masks:.0%}: {quality.bad_warned} of {quality.bad}",
            ]
        )
    if not rows:
        return "No model here estimates the Dice of a mask: too few validation cases were measured."
    words = (
        "Each test mask has an estimated Dice, from the network's confidence by a line that was "
        "fitted on the sites' validation cases. *Masks*: those with an estimate, of one label, "
        "subset, case and training. *Rank*: Spearman's correlation with the true Dice. *Error*: "
        "mean absolute, in points; beside it that of the mean true Dice of the subset, which knows "
        "the test cases and ignores the mask. *Covered*: masks whose true Dice lies in the 90 % "
        f"interval. *Found*: of the masks below Dice {LOW_DICE:g} those among the "
        f"{REVIEWED:.0%} of lowest estimate. *Warned of*: masks with an estimate below "
        f"{LOOK_CLOSELY:g}, and how many of the bad ones these are."
    )
    header = ["method", "masks", "rank", "error", "blind error", "covered", "bad ones found"]
    header.append("warned of: bad ones")
    return table(header, rows) + "\n\n" + words


def _calibration(tested: Mapping[str, Sequence[Probabilities]]) -> str:
    rows = []
    for method, trainings in tested.items():
        if (quality := calibration_quality(trainings)) is None:
            continue
        rows.append(
            [
                method,
                str(quality.trainings),
                "{} to {}".format(*quality.cases),
                number(100 * quality.error, 1),
                number(100 * quality.calibrated_error, 1),
                f"{quality.excess:.2f}",
                f"{quality.covered:.0%}",
                f"{quality.width:.1f}",
            ]
        )
    if not rows:
        return "No model here has calibrated probabilities: too few validation cases were measured."
    words = (
        "Over all voxels of the test cases, from every subset of their modalities. *Error*: mean "
        "distance in points of a probability, and of the share of voxels with it that are of the "
        "label, over bins of 5 % or more; beside it after calibration. *Volume*: sum of the "
        "calibrated probabilities over the voxels of the label. *Covered*: true volumes within the "
        f"range of {LEVEL:.0%}; beside it the median width of the range, as a share of the true "
        "volume."
    )
    header = ["method", "trainings", "validation cases", "error", "calibrated", "volume"]
    return table([*header, "covered", "width"], rows) + "\n\n" + words


def _each(trainings: Trainings) -> str:
    rows = []
    for name, scores in trainings.scores.items():
        for seed in sorted({seed for seeds in scores.seeds.values() for seed in seeds}):
            done = [m for m in trainings.methods if seed in scores.seeds.get(m, ())]
            cells = [
                number(trainings.mean_of((name, seed), m, "subsets")) if m in done else "-"
                for m in trainings.methods
            ]
            rows.append([f"{name}, seed {seed}", *cells, plural(len(scores.cases), "case")])
    words = "All subsets, averaged as above."
    return table(["training", *trainings.methods, "tested"], rows) + "\n\n" + words
