"""Segment preprocessed cases from every subset of their modalities: one by one, and together.

One by one is the plain network in single precision, run anew for each subset; together is what
scoring does: the fastest form on this machine, with each modality encoded once per patch.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from mixmfl.evaluation.subset_dice import all_subsets
from mixmfl.inference.cpu_network import fastest_form
from mixmfl.inference.every_subset import segment_subsets
from mixmfl.inference.predictor import segment_stored
from mixmfl.networks.build import build_network
from mixmfl.planning.plans import Plans
from mixmfl.planning.preprocessed_case import PreprocessedCase, case_names, open_case

CPU = torch.device("cpu")


def main() -> None:
    """Print CPU seconds per case, and how many times less the second way takes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "-i", "--input", type=Path, required=True, metavar="WORK", help="of mixmfl_plan_preprocess"
    )
    parser.add_argument("-c", "--configuration", default="2d", help="2d (default) or 3d_fullres")
    parser.add_argument("--cases", type=int, default=4, help="at most (default: 4)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    plans, configuration = Plans.load(options.input / "plans.json"), options.configuration
    folders = sorted(options.input.glob(f"*/*/{configuration}"))
    cases = [open_case(folder, name) for folder in folders for name in case_names(folder)]
    most = max(len(case.modalities) for case in cases)
    full = [case for case in cases if len(case.modalities) == most][: options.cases]
    subsets = all_subsets(full[0].modalities)
    plain = build_network(plans, configuration, 0)
    quick = fastest_form(build_network(plans, configuration, 0), CPU)
    given = plans, configuration, CPU

    def one_by_one(case: PreprocessedCase) -> None:
        for subset in subsets:
            segment_stored(plain, {}, case, subset, *given)

    def together(case: PreprocessedCase) -> None:
        segment_subsets(quick, {}, case, subsets, *given)

    ratios = []
    for case in [full[0], *full]:  # the first once more, to warm up
        apart, at_once = seconds(one_by_one, case), seconds(together, case)
        ratios.append(apart / at_once)
        print(f"{case.name}: {apart:.2f} s one by one, {at_once:.2f} s together")
    print(f"ratio {statistics.median(ratios[1:]):.2f} for {len(subsets)} subsets (median of cases)")


def seconds(work: Callable[[PreprocessedCase], None], case: PreprocessedCase) -> float:
    """Return the processor's seconds that work on a case takes."""
    began = time.process_time()
    work(case)
    return time.process_time() - began


if __name__ == "__main__":
    main()
