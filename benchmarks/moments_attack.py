"""Attack what a memory would send: do a patient's features tell who is behind a site's sums?

Reads what ``mixmfl_benchmark_patients`` left of method ``mdm``. For the memory, every hospital
would send the means of its tailored features by modality, level and class (prototypes), or their
second moments too. An attacker who has these sums and a patient's images asks under which
hospital's sums the patient's features are likelier, as Homer et al. (2008) asked of sums over
genomes: the score is the mean log-likelihood per voxel under the hospital's normal distribution
less that under the sum of the others, mean over modalities, levels and classes. Candidates are the
hospital's training patients, and those of its validation and test, who are in no sum; a hospital
that shares no modality with others is left out. ``summed``
is what remains where sites are summed behind masks: the likelihood under the federation's sum.

The table has the area under the curve, mean over hospitals and trainings, with a 95 % interval by
bootstrap over patients: 0.5 is guessing.
"""

import argparse
import csv
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from drawn_features import Normal, encode
from sklearn.metrics import roc_auc_score
from torch import Tensor

from mixmfl.federated.sites import open_sites
from mixmfl.inference.model import Model
from mixmfl.inference.model_file import load_model
from mixmfl.planning.preprocessed_case import PreprocessedCase, open_cases
from mixmfl.research.benchmark.trainers import FOLD

Moments = Mapping[tuple[str, int, int], Normal]
"""Sums of features by modality, level and class."""

Candidates = tuple[list[float], list[float]]
"""Scores of a hospital's training patients, and of its others."""

DRAWS = 1000
"""Bootstrap samples."""


def moments_of(model: Model, case: PreprocessedCase, names: Sequence[str]) -> Moments:
    """Return the sums over a case's voxels, of the named modalities."""
    found = {}
    for level, (maps, classes) in enumerate(zip(*encode(model, case, names), strict=True)):
        for name, each in maps.items():
            rows = each.movedim(1, -1).flatten(0, -2)
            for label in range(len(model.plans.labels.values)):
                here = rows[classes.flatten() == label]
                if len(here):
                    found[name, level, label] = Normal.of(here)
    return found


def total(cases: Iterable[Moments]) -> dict[tuple[str, int, int], Normal]:
    """Return the sums over cases."""
    added: dict[tuple[str, int, int], Normal] = {}
    for case in cases:
        for key, each in case.items():
            added[key] = added[key] + each if key in added else each
    return added


@dataclass(frozen=True)
class Gaussian:
    """A normal distribution, ready to be compared with.

    Attributes:
        mean: ``(C,)``
        precision: ``(C, C)``, the inverse of the covariance.
        volume: Logarithm of the covariance's determinant.
    """

    mean: Tensor
    precision: Tensor
    volume: float

    @classmethod
    def of(cls, mean: Tensor, covariance: Tensor) -> "Gaussian":
        """Return the distribution with this mean and covariance."""
        return cls(mean, torch.linalg.inv(covariance), float(torch.logdet(covariance)))

    def surprise(self, voxels: Normal) -> float:
        """Return the mean of -log N over voxels, without its constant, of their sums."""
        away = voxels.mean - self.mean
        within = voxels.products / voxels.count - torch.outer(voxels.mean, voxels.mean)
        scatter = within + torch.outer(away, away)
        return 0.5 * (self.volume + float((self.precision * scatter).sum()))


Gaussians = Mapping[tuple[str, int, int], Gaussian]
"""Distributions by modality, level and class."""


def gaussians(sums: Moments, spread: Moments | None = None) -> dict[tuple[str, int, int], Gaussian]:
    """Return the distributions of sums; ``spread`` lends covariances if only means are sent."""
    return {
        key: Gaussian.of(each.mean, (spread or sums)[key].covariance) for key, each in sums.items()
    }


def likelier(case: Moments, own: Gaussians, others: Gaussians) -> float:
    """Return by how much a case is likelier under a hospital's sums than under the others'."""
    shared = [key for key in case if key in own and key in others]
    return fmean(others[key].surprise(case[key]) - own[key].surprise(case[key]) for key in shared)


@dataclass(frozen=True)
class Hospital:
    """A hospital's candidates in one training.

    Attributes:
        training: Sums over each patient behind the hospital's sums.
        unseen: Sums over each of its other patients.
    """

    training: Sequence[Moments]
    unseen: Sequence[Moments]


def open_hospitals(file: Path) -> list[Hospital]:
    """Return the hospitals of a training, by its model file."""
    model = load_model(file)
    work = file.parents[5] / "work"
    hospitals = []
    for site in open_sites(work, model.plans, model.configuration, FOLD, 0):
        held = {name for case in site.training for name in case.modalities}
        names = [name for name in model.modalities if name in held]
        folder = work / "tests" / site.name / model.configuration
        tests = open_cases(folder)

        def moments(
            cases: Iterable[PreprocessedCase], names: Sequence[str] = names
        ) -> list[Moments]:
            having = [(case, [n for n in names if n in case.modalities]) for case in cases]
            return [moments_of(model, case, held) for case, held in having if held]

        hospitals.append(Hospital(moments(site.training), moments([*site.validation, *tests])))
    return hospitals


def attack(hospitals: Sequence[Hospital]) -> dict[str, list[Candidates]]:
    """Return by attack and hospital the scores of training patients and of others."""
    sums = [total(each.training) for each in hospitals]
    everyone = total(sums)
    together = gaussians(everyone)
    flat = {  # as likely everywhere
        key: Gaussian(each.mean, torch.zeros_like(each.products), 0.0)
        for key, each in everyone.items()
    }
    scores: dict[str, list[Candidates]] = {}
    for number, hospital in enumerate(hospitals):
        own = sums[number]
        others = total(s for other, s in enumerate(sums) if other != number)
        if not own.keys() & others.keys():  # nobody else has its modalities
            continue
        ways = {
            "means": (gaussians(own, everyone), gaussians(others, everyone)),
            "covariances": (gaussians(own), gaussians(others)),
            "summed": (together, flat),
        }
        for name, (these, those) in ways.items():
            pair = (
                [likelier(case, these, those) for case in hospital.training],
                [likelier(case, these, those) for case in hospital.unseen],
            )
            scores.setdefault(name, []).append(pair)
    return scores


def area(pairs: Sequence[Candidates]) -> float:
    """Return the mean area under the curve over hospitals."""
    return fmean(
        float(roc_auc_score([1] * len(inside) + [0] * len(outside), [*inside, *outside]))
        for inside, outside in pairs
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table as CSV."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "folders", type=Path, nargs="+", metavar="OUT", help="of mixmfl_benchmark_patients -o"
    )
    folders: list[Path] = parser.parse_args(argv).folders
    files = sorted(f for out in folders for f in out.rglob("runs/mdm/*/all/model.safetensors"))
    scores: dict[str, list[Candidates]] = {}
    for file in files:
        for name, pairs in attack(open_hospitals(file)).items():
            scores.setdefault(name, []).extend(pairs)
    table = csv.writer(sys.stdout)
    table.writerow(["attack", "AUC", "low", "high", "hospitals", "trainings"])
    generator = np.random.default_rng(0)
    for name, pairs in scores.items():

        def again(scores: Sequence[float]) -> list[float]:
            return list(generator.choice(scores, len(scores)))

        drawn = [area([(again(a), again(b)) for a, b in pairs]) for _ in range(DRAWS)]
        low, high = np.quantile(drawn, [0.025, 0.975])
        numbers = [f"{each:.2f}" for each in (area(pairs), low, high)]
        table.writerow([name, *numbers, len(pairs) // len(files), len(files)])


if __name__ == "__main__":
    main()
