"""The picture of a run: loss and validation Dice of every site by round."""

import math
from pathlib import Path

from mixmfl.core.files import replacing
from mixmfl.core.nan import mean, or_nan
from mixmfl.core.text import in_plot
from mixmfl.federated.server.run import Run


def draw_progress(run: Run, path: Path) -> None:
    """Draw training loss and mean validation Dice per site as PNG, whole or not at all."""
    from matplotlib.figure import Figure  # slow to import, and needed once a run

    figure = Figure(figsize=(10, 4), layout="constrained")
    losses, dice = figure.subplots(1, 2)
    for site in run.known:
        name = in_plot(site)
        rounds = [n for n, sites in enumerate(run.history, start=1) if site in sites]
        losses.plot(rounds, [or_nan(run.history[n - 1][site].loss) for n in rounds], label=name)
        means = {n: mean(map(or_nan, run.history[n - 1][site].dice.values())) for n in rounds}
        judged = {n: dice for n, dice in means.items() if not math.isnan(dice)}
        dice.plot(list(judged), list(judged.values()), marker="o", label=name)
    best = run.best_round
    if best is not None:
        dice.axvline(best, color="grey", linestyle=":", label=f"best round ({best})")
    for after in sorted({change.after for change in run.changes if change.after}):
        for axes in (losses, dice):
            axes.axvline(after + 0.5, color="tab:red", linestyle="--", linewidth=0.8)
        losses.annotate(
            in_plot("\n".join(c.text for c in run.changes if c.after == after)),
            xy=(after + 0.5, 0.99),
            xycoords=("data", "axes fraction"),
            xytext=(3, 0),
            textcoords="offset points",
            va="top",
            fontsize=7,
            color="tab:red",
        )
    losses.set(title="Training loss (Dice + CE)", xlabel="round")
    dice.set(title="Validation Dice, own modalities", xlabel="round", ylim=(0, 1))
    for axes in (losses, dice):
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        if axes.lines:
            axes.legend(frameon=False)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120)
