"""Scores of a method's models on the test cases of their sites."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from mixmfl.core.files import write_json
from mixmfl.evaluation.metrics import score
from mixmfl.evaluation.small_components import SHARES, dice_by_share
from mixmfl.evaluation.subset_dice import Subset, all_subsets
from mixmfl.inference.every_subset import SubsetMask, segment_subsets
from mixmfl.inference.model import Model
from mixmfl.inference.model_file import load_model
from mixmfl.planning.preprocessed_case import PreprocessedCase
from mixmfl.research.benchmark.benchmark_folder import Benchmark, test_cases
from mixmfl.research.benchmark.methods import describe
from mixmfl.research.benchmark.probabilities import (
    Probabilities,
    add_probabilities,
    compare_probabilities,
    write_probabilities,
)
from mixmfl.research.benchmark.records import Cost, write_cost
from mixmfl.research.benchmark.scores import Row, write_rows
from mixmfl.research.recall_quality import RecallQuality, recall_quality


def score_models(benchmark: Benchmark, cost: Cost, files: Mapping[str, Path]) -> None:
    """Score a method's models on their sites' test cases; ``scores.csv`` is written last."""
    tests = test_cases(benchmark)
    models = {file: load_model(file, benchmark.device) for file in set(files.values())}
    rows: list[Row] = []
    probabilities: list[Probabilities] = []
    for site, cases in tests.items():
        model = models[files[site]]
        for case in cases:
            masks = masks_of_case(model, case)
            rows += score_case(model, case, masks, site, cost.method, cost.seed)
            known = [(case, mask) for mask in masks.values() if mask is not None]
            probabilities.append(compare_probabilities(model, known))
    folder = benchmark.folder(cost.method, cost.seed)
    quality: list[RecallQuality] = []
    if len(models) == 1:  # one model for all sites is measured on all cases
        (model,) = models.values()
        quality = recall_quality(model, [case for cases in tests.values() for case in cases])
        write_probabilities(folder / "reliability.json", add_probabilities(probabilities))
    write_json(folder / "memory.json", {"recall": [dataclasses.asdict(q) for q in quality]})
    write_cost(folder / "cost.json", cost, describe(cost.method, cost.seed))
    write_rows(rows, folder / "scores.csv")


def masks_of_case(model: Model, case: PreprocessedCase) -> dict[Subset, SubsetMask | None]:
    """Return the mask of a case from every subset of its modalities.

    The mask of a subset is None where the model knows none of its modalities.
    """
    used = {
        subset: tuple(name for name in subset if name in model.modalities)
        for subset in all_subsets([m for m in model.plans.modalities if m in case.modalities])
    }
    masks = segment_subsets(
        model.runner,
        model.memory,
        case,
        [known for known in dict.fromkeys(used.values()) if known],
        model.plans,
        model.configuration,
        model.device,
    )
    return {subset: masks.get(known) for subset, known in used.items()}


def score_case(
    model: Model,
    case: PreprocessedCase,
    masks: Mapping[Subset, SubsetMask | None],
    site: str,
    method: str,
    seed: int,
) -> Iterator[Row]:
    """Yield a row per subset of the case's modalities and label or region.

    Masks are scored on the grid of preprocessing, as the network gives them. A mask that is None is
    empty: Dice is 0 where the truth has the region.
    """
    labels, shares = model.plans.labels.consecutive().only(case.labelled), model.component_shares
    truth = np.maximum(case.labels[:][0], 0)  # -1 is outside the head
    nothing = np.zeros_like(truth)
    for subset, mask in masks.items():
        estimates = model.estimates(mask.confidences) if mask else {}
        indices = mask.indices if mask else nothing
        by_share = dice_by_share(indices, truth, labels) if estimates else {}
        for each in score(indices, truth, labels, case.spacing):
            estimate, written = estimates.get(each.label), math.nan
            if estimate is not None:
                written = by_share[each.label][SHARES.index(shares.get(each.label, 0.0))]
            scores = each.dice, each.hd95_mm, estimate, written
            yield Row(method, seed, site, case.name, subset, each.label, *scores)
