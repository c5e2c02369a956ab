"""The tables of a run's folder, as CSV: its rounds, and Dice from subsets of modalities."""

import math
from collections.abc import Mapping, Sequence

from mixmfl.core.spreadsheet import table
from mixmfl.evaluation.mask_quality import Measured
from mixmfl.evaluation.subset_dice import expect
from mixmfl.federated.server.changes import settings_of
from mixmfl.federated.server.run import Run
from mixmfl.federated.state import RunSettings, learning_rate_of


def progress_table(run: Run) -> str:
    """Return the history of a run with at least one round as CSV: a row per round and site."""
    subsets = dict.fromkeys(
        (subset, name)
        for medians in run.subset_dice.values()
        for subset, by_label in medians.items()
        for name in by_label
    )
    rows = []
    for number, sites in enumerate(run.history, start=1):
        settings = settings_of(number - 1, run.settings, run.changes)
        left = run.seconds_left_after(number)
        rows += [_row(run, number, site, settings, left, list(subsets)) for site in sites]
    return table([rows[0], *(row.values() for row in rows)])


def _row(
    run: Run,
    number: int,
    site: str,
    settings: RunSettings,
    left: float,
    subsets: Sequence[tuple[str, str]],
) -> dict[str, object]:
    """Return the columns of a round at a site, with their values.

    Args:
        run: The run.
        number: The round, counted from 1.
        site: The site.
        settings: Settings that the round had.
        left: Seconds that the rounds after it took or will take.
        subsets: The subsets and labels from which Dice was measured in any round.
    """
    at_site = run.history[number - 1][site]
    row: dict[str, object] = {
        "round": number,
        "site": site,
        "learning_rate": f"{learning_rate_of(number - 1, settings):.6g}",
        "local_steps": settings.local_steps,
        "loss": _text(at_site.loss, ".5f"),
        "dice_loss": _text(at_site.dice_loss, ".5f"),
        "cross_entropy": _text(at_site.cross_entropy, ".5f"),
        **{
            f"dice_{name}": _text(at_site.dice.get(name), ".4f")
            for name in run.plans.labels.foreground
        },
        "federation_dice": _text(run.dice.get(number), ".4f"),
        "sent_bytes": at_site.sent_bytes,
        "received_bytes": at_site.received_bytes,
        "seconds": f"{at_site.seconds:.2f}",
        "absent": at_site.absent,
        "epsilon": _text(at_site.epsilon, ".3f"),
        "update_norm": _text(at_site.update_norm, ".5g"),
        "gpu_memory_mb": _text(at_site.memory_mb, ".0f"),
        "round_seconds": _text(run.seconds.get(number), ".2f"),
        "seconds_left": _text(left, ".0f"),
    }
    medians = {"": at_site.subset_dice, "federation_": run.subset_dice.get(number, {})}
    for of_whom, dice in medians.items():
        for subset, name in subsets:
            column = f"{of_whom}dice_{name}_from_{subset}"
            row[column] = _text(dice.get(subset, {}).get(name), ".3f")
    return row


def _text(number: float | None, form: str) -> str:
    """Return a number as a table shows it; nothing where it is not known."""
    return "" if number is None or math.isnan(number) else f"{number:{form}}"


EACH_CASE = "all of each case"
"""What stands for the modalities in a table where every case is from all that it has."""


def subsets_table(measured: Measured, by_site: Mapping[str, Measured]) -> str:
    """Return what was measured from subsets of modalities as CSV: a row per site, subset and label.

    Args:
        measured: What was measured at all sites, which have no name in the table.
        by_site: What was measured at each site.
    """
    rows: list[Sequence[object]] = [
        ["site", "modalities", "label", "mean_dice", "median_dice", "low_dice", "cases"]
    ]
    for site, at_site in {"": measured, **by_site}.items():
        for label, sums in at_site.components.items():
            if sums.cases:
                mean = f"{sums.dice / sums.cases:.4f}"
                rows.append([site, EACH_CASE, label, mean, "", "", sums.cases])
        for each in at_site.expected:
            subset = "+".join(each.modalities)
            for label, dice in expect([each], each.modalities).dice.items():  # itself alone
                range_ = f"{dice.median:.3f}", f"{dice.low:.3f}"
                rows.append([site, subset, label, "", *range_, dice.cases])
    return table(rows)
