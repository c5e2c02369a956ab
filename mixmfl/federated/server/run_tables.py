"""The tables of a run's folder, as CSV: its rounds, and Dice from subsets of modalities."""

import math
from collections.abc import Mapping, Sequence

from mixmfl.core.nan import or_none
from mixmfl.core.spreadsheet import table
from mixmfl.evaluation.mask_quality import Measured
from mixmfl.evaluation.subset_dice import expect
from mixmfl.federated.server.changes import settings_of
from mixmfl.federated.server.run import Run
from mixmfl.federated.state import learning_rate_of


def progress_table(run: Run) -> str:
    """Return the history as CSV: a row per round and site."""
    names = list(run.plans.labels.foreground)
    subsets = {
        (subset, name): f"dice_{name}_from_{subset}"
        for medians in run.subset_dice.values()
        for subset, by_label in medians.items()
        for name in by_label
    }
    columns = [f"dice_{name}" for name in names]
    rows: list[Sequence[object]] = [
        [
            "round",
            "site",
            "learning_rate",
            "local_steps",
            "loss",
            "dice_loss",
            "cross_entropy",
            *columns,
            "federation_dice",
            "sent_bytes",
            "received_bytes",
            "seconds",
            "absent",
            "epsilon",
            "update_norm",
            "gpu_memory_mb",
            "round_seconds",
            "seconds_left",
            *subsets.values(),
            *(f"federation_{column}" for column in subsets.values()),
        ]
    ]
    for number, sites in enumerate(run.history, start=1):
        settings = settings_of(number - 1, run.settings, run.changes)
        federation = or_none(run.dice.get(number, math.nan))
        left = or_none(run.seconds_left_after(number))
        for site, at_site in sites.items():
            loss = at_site.loss, at_site.dice_loss, at_site.cross_entropy
            dice: Sequence[float | None] = [at_site.dice.get(name) for name in names]
            medians = at_site.subset_dice, run.subset_dice.get(number, {})
            from_subsets = (
                each.get(subset, {}).get(n) for each in medians for subset, n in subsets
            )
            rows.append(
                [
                    number,
                    site,
                    f"{learning_rate_of(number - 1, settings):.6g}",
                    settings.local_steps,
                    *("" if value is None else f"{value:.5f}" for value in loss),
                    *("" if value is None else f"{value:.4f}" for value in (*dice, federation)),
                    at_site.sent_bytes,
                    at_site.received_bytes,
                    f"{at_site.seconds:.2f}",
                    at_site.absent,
                    "" if at_site.epsilon is None else f"{at_site.epsilon:.3f}",
                    "" if at_site.update_norm is None else f"{at_site.update_norm:.5g}",
                    "" if at_site.memory_mb is None else f"{at_site.memory_mb:.0f}",
                    f"{run.seconds[number]:.2f}" if number in run.seconds else "",
                    "" if left is None else f"{left:.0f}",
                    *("" if value is None else f"{value:.3f}" for value in from_subsets),
                ]
            )
    return table(rows)


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
