"""The tables, pictures and leaderboard of all that a benchmark has done."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from mixmfl.core.files import write_json, write_text
from mixmfl.core.version import __version__
from mixmfl.research.benchmark.benchmark_folder import Benchmark, known_own, read_results
from mixmfl.research.benchmark.leaderboard import leaderboard_page, make_entries, read_entries
from mixmfl.research.benchmark.methods import SITE, what_is
from mixmfl.research.benchmark.plots import draw_sites, draw_subsets
from mixmfl.research.benchmark.results import results_json
from mixmfl.research.benchmark.rounds import rounds_section
from mixmfl.research.benchmark.scores import write_rows
from mixmfl.research.benchmark.statistics import Scores
from mixmfl.research.benchmark.tables import markdown
from mixmfl.research.recall_quality import read_memory

LEADERBOARD = "leaderboard.html"


def summarise(benchmark: Benchmark, reference: str, others: Sequence[Path] = ()) -> list[Path]:
    """Write tables and plots of all that is done, and return the files.

    Args:
        benchmark: The benchmark.
        reference: Method that the others are compared with, if it is done.
        others: Other people's ``results.json`` of the same benchmark, for the leaderboard.

    Raises:
        DataError: No method is done, or one of ``others`` is of another benchmark.
    """
    rows, costs = read_results(benchmark.out)
    scores = Scores(rows, known_own(benchmark.out))
    made = {"": make_entries(scores, costs)}
    results = results_json(benchmark.out, rows, costs, made[""])
    compared = results["benchmark"]
    made |= {str(file): read_entries(file, compared) for file in others}
    if reference not in scores.methods:
        reference = scores.methods[0]
    names = "cases.csv", "table.md", "subsets.png", "sites.png", "results.json", LEADERBOARD
    files = [benchmark.out / name for name in names]
    write_rows(rows, files[0])
    page = markdown(scores, costs, reference, "Benchmark", _introduction(benchmark, scores))
    speed = rounds_section({"": costs}, reference)
    write_text(files[1], page + speed + _memory_section(benchmark, scores))
    draw_subsets(scores, files[2])
    draw_sites(scores, files[3])
    write_json(files[4], results)
    write_text(files[5], leaderboard_page(made, compared))
    return files


def _introduction(benchmark: Benchmark, scores: Scores) -> str:
    """Return the introduction of the page: the budget, and what each method is."""
    lines = [
        f"Every method took {benchmark.rounds} rounds of {benchmark.local_steps} gradient steps "
        f"at each site ({benchmark.configuration}), or as many in all on pooled data, with the "
        f"same plans, cases, augmentation and validation. mixmfl {__version__}, torch "
        f"{torch.__version__}.",
        "",
    ]
    if any(name.endswith(SITE) for name in scores.methods):
        more = benchmark.plans.training.personal_rounds
        lines[1:1] = [f"Personalised models took {more} rounds more at their site."]
    lines += [f"- `{name}`: {what_is(name)}" for name in scores.methods]
    return "\n".join(lines)


def _memory_section(benchmark: Benchmark, scores: Scores) -> str:
    """Return the section on recall in the methods with a memory, mean over their seeds."""
    lines = []
    for method in scores.methods:
        by_place: dict[tuple[str, int], list[list[float]]] = {}
        for seed in scores.seeds[method]:
            for recall in read_memory(benchmark.folder(method, seed) / "memory.json"):
                errors = [recall.error, recall.blind_error, recall.best_error]
                place = (recall.modality, recall.level)
                by_place.setdefault(place, []).append([recall.accuracy, *errors, recall.trust])
        for (modality, level), seeds in sorted(by_place.items()):
            means = " | ".join(f"{mean:.2f}" for mean in np.mean(seeds, axis=0))
            lines.append(f"| {method} | {modality} | {level} | {means} |")
    if not lines:
        return ""
    head = [
        "",
        "## Memory",
        "",
        "| method | modality | level | right class | error | of class-blind mean | of true class "
        "| trust |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    caption = (
        "Each modality of the test cases hidden in turn and recalled from the others. Right class: "
        "share of a class's voxels whose most similar prototype is of that class, mean over "
        "classes. Error: squared distance to the true tailored features as a share of that of "
        "zeros, mean over classes; beside it the error of the mean of all values, and of the true "
        "class's value, which is the best that recall could reach. Trust: the factor by "
        "which the network multiplies recalled features. Level 0 is full resolution."
    )
    return "\n".join([*head, *lines, "", caption, ""])
