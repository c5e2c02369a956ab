"""The plots of a benchmark: points by subset and by site."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from mixmfl.core.files import replacing
from mixmfl.core.text import in_plot
from mixmfl.evaluation.reliability import curve
from mixmfl.research.benchmark.statistics import Array, Scores

if TYPE_CHECKING:  # it imports torch
    from mixmfl.research.benchmark.probabilities import Probabilities

# Okabe and Ito's colour-blind-safe hues, neighbours of unequal lightness; a second lap is hatched
PALETTE = (
    "#999999", "#f0e442", "#e69f00", "#cc79a7", "#56b4e9", "#0072b2", "#444444", "#009e73",
    "#d55e00",
)  # fmt: skip
HATCHES = ("", "////", "....")
INK, FAINT = "#222222", "#d5d5d5"
DPI = 140


def draw_subsets(scores: Scores, path: Path) -> None:
    """Draw points by subset (rows) and method (columns) as PNG, whole or not at all.

    Dots show which modalities a row uses; the last row is the mean of the others.
    """
    modalities, methods, subsets = scores.modalities, scores.methods, scores.subsets
    rows = [[scores.subset_points(name, subset).mean for name in methods] for subset in subsets]
    rows.append([scores.points(name, "subsets").mean for name in methods])
    values = np.array(rows)
    low, high = _limits(values)
    # columns of cells are 0, 1, ...; those of dots are left of them, half as wide
    dots = [(n - len(modalities)) / 2 - 0.3 for n in range(len(modalities))]
    is_long = max(map(len, methods)) > 11
    size = (0.8 * (len(methods) + len(modalities) / 2) + 0.6, 0.29 * len(values) + 0.9 + is_long)
    figure = _figure(*size)
    axes = figure.subplots()
    axes.imshow(values, cmap="Blues", vmin=low, vmax=high, aspect="auto", origin="upper")
    for (row, column), value in np.ndenumerate(values):
        ink = "white" if value > low + 0.65 * (high - low) else INK
        text = "-" if math.isnan(value) else f"{value:.1f}"
        axes.text(column, row, text, color=ink, ha="center", va="center", fontsize=9)
    for row, subset in enumerate(subsets):
        colours = [INK if name in subset else FAINT for name in modalities]
        axes.scatter(dots, [row] * len(dots), s=40, color=colours)
        if row and len(subset) > len(subsets[row - 1]):
            axes.axhline(row - 0.5, color="white", linewidth=4)
    axes.axhline(len(subsets) - 0.5, color="white", linewidth=8)
    for column in range(len(methods)):
        axes.axvline(column - 0.5, color="white", linewidth=2)
    axes.text(dots[-1], len(subsets), "mean", ha="right", va="center", fontsize=9)
    axes.set_xticks([*dots, *range(len(methods))], [*modalities, *methods], fontsize=9)
    axes.tick_params(length=0, top=False, labeltop=True, labelbottom=False)
    if is_long:
        for label in axes.get_xticklabels():
            label.set(rotation=40, ha="left", rotation_mode="anchor")
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    axes.set_xlim(dots[0] - 0.3, len(methods) - 0.5)
    figure.suptitle("Dice in points, by the modalities used", fontsize=11)
    _save(figure, path)


def draw_sites(scores: Scores, path: Path) -> None:
    """Draw points on own modalities by site and method as PNG, whole or not at all.

    The last group is the mean over sites; error bars are the standard deviation over seeds.
    """
    methods, sites = scores.methods, scores.sites
    groups = [*range(len(sites)), len(sites) + 0.25]
    width = 0.84 / len(methods)
    figure = _figure(2 + max(1.25, 0.2 * len(methods)) * len(groups), 4.2)
    axes = figure.subplots()
    for n, method in enumerate(methods):
        estimates = [
            *(scores.site_points(method, site) for site in sites),
            scores.points(method, "own"),
        ]
        axes.bar(
            [group + (n - (len(methods) - 1) / 2) * width for group in groups],
            [each.mean for each in estimates],
            width * 0.92,
            label=in_plot(method),
            color=PALETTE[n % len(PALETTE)],
            hatch=HATCHES[n // len(PALETTE) % len(HATCHES)],
            yerr=[each.std for each in estimates],
            error_kw={"elinewidth": 1, "ecolor": INK, "capsize": 2},
        )
    names = [f"{in_plot(site)}\n{'+'.join(scores.own[site])}" for site in sites]
    axes.set_xticks(groups, [*names, "mean\nover sites"], fontsize=9)
    axes.tick_params(axis="x", length=0)
    axes.axvline(len(sites) - 0.375, color=FAINT, linewidth=1)
    axes.set_xlim(-0.5, groups[-1] + 0.5)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("Dice in points")
    axes.set_axisbelow(True)
    axes.grid(axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle("Every site on its own modalities", fontsize=11)
    figure.legend(loc="outside right center", frameon=False)
    _save(figure, path)


def draw_reliability(trainings: "Sequence[Probabilities]", path: Path) -> None:
    """Draw the share of right voxels over probability, as it is and calibrated, as PNG.

    A thin line is a label of a training; bins of fewer than 100 voxels are left out.
    """
    figure = _figure(8, 4.2)
    for axes, title in zip(
        figure.subplots(1, 2, sharey=True), ("as it is", "calibrated"), strict=True
    ):
        axes.plot([0, 1], [0, 1], color=INK, linewidth=1, linestyle="--")
        for each in trainings:
            for name, tested in each.tested.items():
                calibration = each.curves.get(name)
                if calibration is None:
                    continue
                voxels, right, probability = curve(
                    tested, calibration if title == "calibrated" else None
                )
                enough = voxels >= 100
                axes.plot(probability[enough], right[enough], color=PALETTE[5], marker=".", lw=1)
        axes.set_title(f"probability, {title}", fontsize=10)
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
        axes.set_aspect("equal")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("share of voxels that are of the label")
    _save(figure, path)


def _limits(values: Array) -> tuple[float, float]:
    """Return the values for the lightest and the darkest shade, never equal."""
    known = values[~np.isnan(values)]
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 0.0)
    return low, max(high, low + 1)  # so that differences below a point do not look large


def _figure(width: float, height: float) -> Figure:
    """Return an empty figure with a margin; all in inches."""
    return Figure((width, height), layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1))


def _save(figure: Figure, path: Path) -> None:
    with replacing(path) as temporary:
        # without the version of matplotlib, so that equal plots are equal bytes
        figure.savefig(temporary, dpi=DPI, metadata={"Software": None})
