"""The page of a benchmark: its numbers as Markdown tables for GitHub, and what they mean."""

import math
from collections.abc import Iterable, Sequence

from mixmfl.core.errors import DataError
from mixmfl.core.nan import or_nan
from mixmfl.core.text import plural
from mixmfl.research.benchmark.records import Cost
from mixmfl.research.benchmark.statistics import (
    COVERAGE,
    KINDS,
    RESAMPLES,
    Distance,
    Estimate,
    Interval,
    Scores,
)

UNDEFINED = "-"


def markdown(
    scores: Scores, costs: Iterable[Cost], reference: str, title: str, introduction: str
) -> str:
    """Return a page of tables for GitHub.

    Args:
        scores: The scores to compare.
        costs: Costs of the trainings, as far as they are known.
        reference: The method that the others are compared with.
        title: Title of the page.
        introduction: Introduction of the page, in Markdown.

    Raises:
        DataError: ``reference`` has no scores.
    """
    if reference not in scores.methods:
        raise DataError(
            f"there are no scores of {reference!r} to compare with, only of "
            f"{', '.join(scores.methods)}; name one of these"
        )
    parts = [
        f"# {title}\n\n{introduction}",
        f"## Summary\n\n{_summary(scores, list(costs))}",
        f"## Difference to {reference}\n\n{_differences(scores, reference)}",
        f"## By region\n\n{_by_region(scores)}",
        f"## By subset of modalities\n\n{_by_subset(scores)}",
    ]
    return "\n\n".join(parts) + "\n"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; all columns but the first are numbers, to the right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    escaped = [[cell.replace("|", r"\|") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in escaped)


def _summary(scores: Scores, costs: Sequence[Cost]) -> str:
    every, full = f"{len(scores.subsets)} subsets", scores.subsets[-1]
    header = ["method", "own modalities", *scores.sites, every, f"from {join(full)}"]
    header += ["HD95, mm", "MB sent", "seconds"]
    rows = []
    for method in scores.methods:
        of_method = [cost for cost in costs if cost.method == method]
        megabytes = Estimate.over([or_nan(cost.sent_bytes) / 1e6 for cost in of_method])
        seconds = Estimate.over([cost.seconds for cost in of_method])
        points = [
            scores.points(method, "own"),
            *(scores.site_points(method, site) for site in scores.sites),
            scores.points(method, "subsets"),
            scores.subset_points(method, full),
        ]
        rows.append(
            [
                method,
                *map(spread, points),
                _distance(scores.hd95(method, "own")),
                number(megabytes.mean),
                number(seconds.mean, 0),
            ]
        )
    of_sites = [site for site, _ in scores.cases]
    sites = "; ".join(
        f"{site} has {join(scores.own[site]) or 'none'}, {plural(of_sites.count(site), 'case')}"
        for site in scores.sites
    )
    words = [
        "Dice in points: 100 is perfect, and a case has the mean of its regions.",
        "A region that neither reference nor prediction has is left out; one that is found where "
        "there is none has 0.",
        f"*Own modalities*: {plural(len(scores.cases), 'case')}, each from those of its site's "
        f"modalities that it has ({sites}); the mean over the cases of a site, which stands under "
        "the site's name, then over sites.",
        f"*{every.capitalize()}*: all cases from every subset of {join(scores.modalities)}; the "
        "mean over the cases of a site, then over sites, then over subsets; beside it from all of "
        "these modalities together.",
        "*HD95*: on own modalities, averaged alike. It is undefined where only one of prediction "
        "and reference has a region; how often that is stands in brackets, and the mean leaves it "
        "out.",
        "*MB sent*: by a site in the whole training, mean over sites and seeds, 1 MB being "
        "1,000,000 bytes; *seconds*: of a training, mean over seeds.",
        *_about_seeds(scores),
    ]
    return table(header, rows) + "\n\n" + " ".join(words)


def _about_seeds(scores: Scores) -> list[str]:
    """Say what ± means, which seeds there are, and which predictions methods lack."""
    most = max(scores.seeds.values(), key=len)
    words = [
        f"± is the standard deviation over {_seeds(most)}, left out where there is one seed; "
        f"{UNDEFINED} is what is not known."
    ]
    for method in scores.methods:
        if scores.seeds[method] != most:
            words.append(f"**{method} has only {_seeds(scores.seeds[method])}.**")
        if lacks := scores.missing[method]:
            words.append(
                f"**{method} lacks {plural(lacks, 'prediction')} that others have; its means leave "
                "them out.**"
            )
    return words


def _differences(scores: Scores, reference: str) -> str:
    rows = []
    for method in scores.methods:
        if method == reference:
            continue
        own, subsets = (interval(scores.difference(method, reference, kind)) for kind in KINDS)
        _, seeds, cases, _ = scores.paired(method, reference, "subsets")[0].shape
        rows.append([method, own, subsets, str(cases), str(seeds)])
    if not rows:
        return f"There is no other method than {reference}."
    header = ["method", "own modalities", f"{len(scores.subsets)} subsets", "cases", "seeds"]
    words = [
        f"Points of the method minus those of {reference}: above 0 the method is better.",
        "Compared are the predictions that both have, averaged as in the summary; where both have "
        "all of them, the difference is that of the numbers there.",
        f"[ ] is the {COVERAGE} % percentile interval of a paired bootstrap: {RESAMPLES:,} times, "
        "cases are drawn with replacement within each site (Efron & Tibshirani 1993).",
        "It tells how much the choice of test cases matters, not the choice of seeds; where it "
        "holds 0, there may be no difference.",
    ]
    return table(header, rows) + "\n\n" + " ".join(words)


def _by_region(scores: Scores) -> str:
    header, every = ["method"], f"{len(scores.subsets)} subsets"
    for region in scores.regions:
        header += [f"{region}, own", f"{region}, {every}"]
    dice, distances = [], []
    for method in scores.methods:
        points = [scores.points(method, kind, name) for name in scores.regions for kind in KINDS]
        distances_mm = [
            scores.hd95(method, kind, n) for n in (None, *scores.regions) for kind in KINDS
        ]
        dice.append([method, *map(spread, points)])
        distances.append([method, *map(_distance, distances_mm)])
    return "\n\n".join(
        [
            table(header, dice),
            "Dice in points (here 100 times Dice) of each region by itself, from own modalities "
            "and from every subset, averaged as in the summary; ± as there.",
            table(["method", "all, own", f"all, {every}", *header[1:]], distances),
            "HD95 in mm, averaged alike, of all regions and of each; in brackets how often it is "
            "undefined.",
        ]
    )


def _by_subset(scores: Scores) -> str:
    rows = [
        [join(subset), *(spread(scores.subset_points(name, subset)) for name in scores.methods)]
        for subset in scores.subsets
    ]
    rows.append(["mean", *(spread(scores.points(name, "subsets")) for name in scores.methods)])
    return "\n\n".join(
        [
            table(["modalities", *scores.methods], rows),
            "Dice in points of the cases that have the modalities, mean over the cases of a site, "
            "then over sites; ± as in the summary.",
            "The largest drop when one modality is added, averaged alike over the cases that have "
            "it, and over seeds:",
            "\n".join(f"- {name}: {_worst_addition(scores, name)}" for name in scores.methods),
        ]
    )


def _worst_addition(scores: Scores, method: str) -> str:
    loss = scores.largest_loss(method)
    if loss is None:
        return "no two subsets differ by one modality"
    where = f"{loss.added} added to {join(loss.subset)}"
    if loss.points <= 0:
        return f"nothing; the smallest gain is {number(-loss.points)} points ({where})"
    return f"{number(loss.points)} points ({where})"


def number(value: float, digits: int = 1, sign: str = "") -> str:
    """Return a number as text, and what is not known as ``UNDEFINED``."""
    # rounded first, as -0.04 would be "-0.0"
    return UNDEFINED if math.isnan(value) else f"{round(value, digits) + 0.0:{sign},.{digits}f}"


def spread(estimate: Estimate) -> str:
    """Return a mean and, where it is defined, the standard deviation."""
    deviation = "" if math.isnan(estimate.std) else f" ± {number(estimate.std)}"
    return number(estimate.mean) + deviation


def _distance(distance: Distance) -> str:
    share = f" ({100 * distance.undefined:.1f} %)" if distance.undefined > 0 else ""
    return spread(distance.mm) + share


def interval(difference: Interval) -> str:
    """Return a difference with its sign, and the ends of its interval."""
    low, high = (number(end, sign="+") for end in (difference.low, difference.high))
    return f"{number(difference.mean, sign='+')} [{low}, {high}]"


def join(modalities: Iterable[str]) -> str:
    """Return a subset of modalities in one word."""
    return "+".join(modalities)


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed{'s' * (len(seeds) != 1)} {', '.join(map(str, seeds))}"
