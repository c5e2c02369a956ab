"""Compare features that a memory makes up for a missing modality with the true ones of patients.

Reads what ``mixmfl_benchmark_patients`` left of method ``mdm``: its models, the cases that its
sites trained on, and the test patients, who have all modalities and had no part in it. Made-up
features of modality m, from one available modality a and the true class y, at single voxels:

    recalled    as ``compensation_levels`` reads them, without the class
    translated  v_m + d_m / d_a (t_a - v_a): mean and spread by class (once used for imputation)
    drawn       normal, with the full covariance of class y, given t_a where a site has both;
                their noise is the whitened feature of another case
    drawn alone the same, t_a or not
    diagonal    drawn alone, without the covariances of channels
    turned      drawn alone, of content that means nothing: the same spectrum in random directions
    posterior   drawn, of a class that is drawn from what the network makes of a alone, not the true

The normal distributions are sums over the sites, as they could send them: counts, sums and products
of features by class, and of pairs of modalities that they hold together. A linear probe tells the
lesion from the rest, by one kind of feature. What it reads in made-up features should be as
uncertain as in true ones, and a probe that learnt on made-up pairs should read true ones.
"""

import argparse
import csv
import itertools
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.nn import functional

from mixmfl.federated.sites import open_sites
from mixmfl.inference.model import Model
from mixmfl.inference.model_file import load_model
from mixmfl.networks.base import place_modalities
from mixmfl.networks.mdmnet import MDMNet
from mixmfl.networks.prototypes import Prototypes, classes_at, recall
from mixmfl.planning.preprocessed_case import PreprocessedCase, open_cases
from mixmfl.research.benchmark.trainers import FOLD
from mixmfl.research.recall_quality import case_batch

MOST = 500
"""Voxels of a class that are looked at in a case and level, drawn at random."""

SHRINKAGE, RIDGE = 0.1, 1e-3  # of covariances towards their diagonal; added to it
SLOPE = 0.01  # of the nonlinearity behind which features are taken

Maps = Mapping[str, Tensor]
"""Features by modality: ``(V, C)`` of V voxels."""


@dataclass(frozen=True)
class Voxels:
    """Voxels of one case at one level.

    Attributes:
        classes: The true classes, ``(V,)``.
        features: Features by modality, ``(V, C)``.
        guessed: By modality classes drawn from the network's posterior from it alone, ``(V,)``.
    """

    classes: Tensor
    features: Maps
    guessed: Maps = field(default_factory=dict)

    @property
    def labels(self) -> list[int]:
        """Return the classes that there are, in order."""
        return sorted(set(self.classes.tolist()))

    @property
    def lesion(self) -> Tensor:
        """Return which voxels are of a lesion of any kind, ``(V,)`` bool."""
        return self.classes > 0


@dataclass(frozen=True)
class Normal:
    """A normal distribution by sums that add up over cases and sites.

    Attributes:
        count: Number of voxels.
        total: ``(C,)`` sum of their features.
        products: ``(C, C)`` sum of the products of their features.
    """

    count: int
    total: Tensor
    products: Tensor

    @classmethod
    def of(cls, rows: Tensor) -> "Normal":
        """Return the sums of features ``(V, C)``."""
        rows = rows.double()
        return cls(len(rows), rows.sum(dim=0), rows.T @ rows)

    def __add__(self, other: "Normal") -> "Normal":
        return Normal(
            self.count + other.count, self.total + other.total, self.products + other.products
        )

    @property
    def mean(self) -> Tensor:
        """Return the mean, ``(C,)``."""
        return self.total / self.count

    @property
    def covariance(self) -> Tensor:
        """Return the covariance ``(C, C)``, shrunk towards its diagonal."""
        found = self.products / self.count - torch.outer(self.mean, self.mean)
        diagonal = found.diagonal()
        return (1 - SHRINKAGE) * found + torch.diag(SHRINKAGE * diagonal + RIDGE)

    def diagonal(self) -> "Normal":
        """Return the distribution with these means and variances and no covariances."""
        squares = torch.outer(self.mean, self.mean) * self.count
        variances = (self.products - squares).diagonal()
        return replace(self, products=squares + torch.diag(variances))

    def turned(self, turn: Tensor, about: Tensor) -> "Normal":
        """Return the distribution turned about a point ``(C,)`` by a rotation ``(C, C)``."""
        mean = about + turn @ (self.mean - about)
        apart = self.products / self.count - torch.outer(self.mean, self.mean)
        products = self.count * (turn @ apart @ turn.T + torch.outer(mean, mean))
        return Normal(self.count, self.count * mean, products)

    @property
    def factor(self) -> Tensor:
        """Return L with L times its transpose the covariance."""
        return torch.linalg.cholesky(self.covariance)

    def given(self, value: Tensor) -> "tuple[Tensor, Tensor]":
        """Return mean ``(V, C/2)`` and factor of the first half of the channels, given the second.

        Args:
            value: ``(V, C/2)``, the second half.
        """
        half = len(self.total) // 2
        first, second = slice(0, half), slice(half, None)
        covariance = self.covariance
        slopes = torch.linalg.solve(covariance[second, second], covariance[second, first])
        mean = self.mean[first] + (value - self.mean[second]) @ slopes
        left = covariance[first, first] - covariance[first, second] @ slopes
        return mean, torch.linalg.cholesky((left + left.T) / 2)


class Memory:
    """Normal distributions of tailored features at one level, as sites add them up.

    A key is a class and one modality, or two that some cases have together.
    """

    def __init__(self, cases: Iterable[Voxels]) -> None:
        """Add up the cases."""
        self.cases = list(cases)
        self.known: dict[tuple[int, tuple[str, ...]], Normal] = {}
        for case in self.cases:
            held = [(name,) for name in case.features]
            for names in [*held, *itertools.permutations(case.features, 2)]:
                rows = torch.cat([case.features[name] for name in names], dim=1)
                for label in case.labels:
                    new = Normal.of(rows[case.classes == label])
                    old = self.known.get((label, names))
                    self.known[label, names] = new if old is None else old + new

    def blind(self, *names: str) -> Normal:
        """Return the distribution of all classes together."""
        first, *others = (each for (_, held), each in self.known.items() if held == names)
        return sum(others, start=first)

    def prototypes(self, name: str) -> Prototypes:
        """Return a modality's class means."""
        rows = [each for (_, held), each in sorted(self.known.items()) if held == (name,)]
        counts = torch.tensor([float(each.count) for each in rows])
        return Prototypes(torch.stack([each.mean.float() for each in rows]), counts)

    def recalled(self, name: str, giver: str, case: Voxels, temperature: float) -> Tensor:
        """Return ``(V, C)`` as the network reads its memory."""
        seen = case.features[giver].float().T[None]
        features = {giver: (seen, torch.tensor([True]))}
        prototypes = {each: self.prototypes(each) for each in (name, giver)}
        return recall(features, prototypes, name, temperature)[0].T.double()

    def translated(self, name: str, giver: str, case: Voxels) -> Tensor:
        """Return ``(V, C)`` by class means and spreads alone."""
        made = torch.empty_like(case.features[giver])
        for label in case.labels:
            here = case.classes == label
            of, by = self.known[label, (name,)], self.known[label, (giver,)]
            spread = of.covariance.diagonal().sqrt() / by.covariance.diagonal().sqrt()
            made[here] = of.mean + spread * (case.features[giver][here] - by.mean)
        return made

    def altered(self, alter: Callable[[Normal, Normal], Normal]) -> "Memory":
        """Return a memory without pairs, and with what ``alter`` makes of each distribution.

        Args:
            alter: Takes the distribution of a class, and that of all classes of the modality.
        """
        memory = Memory(())
        memory.cases = self.cases
        memory.known = {
            (label, names): alter(each, self.blind(*names))
            for (label, names), each in self.known.items()
            if len(names) == 1
        }
        return memory

    def drawn(
        self, name: str, giver: str, case: Voxels, noise: Tensor, *, alone: bool = False
    ) -> Tensor:
        """Return ``(V, C)`` draws.

        Args:
            name: The missing modality.
            giver: The available one.
            case: Voxels of a case that has the giver.
            noise: ``(V, C)`` of mean 0 and unit covariance.
            alone: Whether the giver is left out of account.
        """
        made = torch.empty_like(noise)
        for label in case.labels:
            here = case.classes == label
            pair = self.known.get((label, (name, giver)))
            if alone or pair is None:  # no site has both
                each = self.known[label, (name,)]
                mean, factor = each.mean, each.factor
            else:
                mean, factor = pair.given(case.features[giver][here])
            made[here] = functional.leaky_relu(mean + noise[here] @ factor.T, SLOPE)
        return made

    def whitened(self, case: Voxels, name: str) -> Tensor:
        """Return a case's features with mean 0 and unit covariance in each class, ``(V, C)``."""
        noise = torch.empty_like(case.features[name])
        for label in case.labels:
            here = case.classes == label
            each = self.known[label, (name,)]
            away = (case.features[name][here] - each.mean).T
            noise[here] = torch.linalg.solve_triangular(each.factor, away, upper=False).T
        return noise

    def noise(self, count: int, generator: torch.Generator) -> Tensor:
        """Return noise ``(count, C)`` of one modality of one training case, in another order."""
        case = self.cases[_choose(len(self.cases), generator)]
        name = list(case.features)[_choose(len(case.features), generator)]
        rows = self.whitened(case, name)
        return rows[torch.randint(len(rows), (count,), generator=generator)]


def random_rotation(channels: int, generator: torch.Generator) -> Tensor:
    """Return a random orthogonal matrix ``(channels, channels)``, double precision."""
    normal = torch.randn(channels, channels, generator=generator, dtype=torch.float64)
    return torch.linalg.qr(normal)[0]


def _choose(count: int, generator: torch.Generator) -> int:
    return int(torch.randint(count, (), generator=generator))


def probe(rows: Tensor, lesion: Tensor) -> Tensor:
    """Return the direction ``(C,)`` that best tells lesions from the rest (Fisher 1936)."""
    inside, outside = Normal.of(rows[lesion]), Normal.of(rows[~lesion])
    both = (inside.covariance + outside.covariance) / 2
    return torch.linalg.solve(both, inside.mean - outside.mean)


def auc(scores: Tensor, lesion: Tensor) -> float:
    """Return the probability that a voxel of a lesion has a higher score than another."""
    return float(roc_auc_score(lesion.numpy(), scores.numpy()))


@dataclass(frozen=True)
class Gate:
    """What was found of one modality, made up from another, at one level.

    Attributes:
        modality: The missing modality.
        giver: The available one.
        level: Level of the encoders, from 0.
        left: Squared error on test cases by kind, as a share of that of the mean of all classes:
            mean over classes, so that background does not decide.
        read: AUC of a probe by kind of feature that it learnt on, in training cases, and reads, in
            test cases; ``true where learnt``: of true ones of the cases that it learnt on.
        transfer: AUC of a probe of pairs, of the giver and made-up features of the kind that it
            learnt on, reading true pairs; ``true`` only where a site has both; ``alone``: of the
            giver by itself.
    """

    modality: str
    giver: str
    level: int
    left: Mapping[str, float]
    read: Mapping[str, float]
    transfer: Mapping[str, float]


def compare(
    training: Sequence[Voxels],
    tests: Sequence[Voxels],
    name: str,
    giver: str,
    level: int,
    temperature: float,
) -> Gate:
    """Compare made-up with true features of a modality at a level.

    Args:
        training: Training cases of all sites, with the modalities that the sites have.
        tests: Test cases with both modalities.
        name: The modality that is made up.
        giver: The one that it is made up from.
        level: The level that all voxels are of.
        temperature: The network's, for recall.
    """
    memory = Memory(training)
    generator = torch.Generator().manual_seed(level)
    channels = memory.blind(name).total.numel()
    turn = random_rotation(channels, torch.Generator().manual_seed(level))
    diagonal = memory.altered(lambda each, blind: each.diagonal())
    turned = memory.altered(lambda each, blind: each.turned(turn, blind.mean))

    def made(cases: Sequence[Voxels]) -> dict[str, Tensor]:
        noises = [memory.noise(len(case.classes), generator) for case in cases]
        lent = list(zip(cases, noises, strict=True))
        return {
            "drawn": torch.cat([memory.drawn(name, giver, *each) for each in lent]),
            "drawn alone": torch.cat(
                [memory.drawn(name, giver, *each, alone=True) for each in lent]
            ),
            "diagonal": torch.cat([diagonal.drawn(name, giver, *each) for each in lent]),
            "turned": torch.cat([turned.drawn(name, giver, *each) for each in lent]),
            "posterior": torch.cat(
                [
                    memory.drawn(name, giver, replace(case, classes=case.guessed[giver]), noise)
                    for case, noise in lent
                ]
            ),
            "translated": torch.cat([memory.translated(name, giver, case) for case in cases]),
        }

    def rows(cases: Sequence[Voxels], *names: str) -> Tensor:
        return torch.cat([torch.cat([c.features[n] for n in names], dim=1) for c in cases])

    def lesion(cases: Sequence[Voxels]) -> Tensor:
        return torch.cat([case.lesion for case in cases])

    holders = [case for case in training if giver in case.features]
    owners = [case for case in training if name in case.features]
    pairs = [case for case in holders if name in case.features]
    learnt, seen = made(holders), made(tests)
    true, given, target = rows(tests, name), rows(holders, giver), lesion(tests)
    direction = probe(rows(owners, name), lesion(owners))
    read = {
        "true": auc(true @ direction, target),
        "true where learnt": auc(rows(owners, name) @ direction, lesion(owners)),
    } | {kind: auc(seen[kind] @ probe(learnt[kind], lesion(holders)), target) for kind in learnt}
    shown = rows(tests, giver, name)
    transfer = {
        kind: auc(shown @ probe(torch.cat([given, learnt[kind]], dim=1), lesion(holders)), target)
        for kind in learnt
    }
    alone = rows(tests, giver) @ probe(given, lesion(holders))
    transfer["alone"] = auc(alone, target)
    if pairs:
        transfer["true"] = auc(shown @ probe(rows(pairs, giver, name), lesion(pairs)), target)

    guesses = {
        "recalled": torch.cat([memory.recalled(name, giver, c, temperature) for c in tests]),
        "class mean": memory.prototypes(name).values.double()[
            torch.cat([case.classes for case in tests])
        ],
        **seen,
    }
    if pairs:
        guesses["linear"] = memory.blind(name, giver).given(rows(tests, giver))[0]
    blind = (true - memory.blind(name).mean).square().sum(dim=1)
    left = {
        kind: fmean(
            float((true - guess).square().sum(dim=1)[of].sum() / blind[of].sum())
            for of in (target, ~target)
        )
        for kind, guess in guesses.items()
    }
    return Gate(name, giver, level, left, read, transfer)


@torch.inference_mode()
def guess(model: Model, case: PreprocessedCase, name: str, generator: torch.Generator) -> Tensor:
    """Return classes ``(B, 1, *P)`` drawn from the network's posterior from one modality."""
    images, _ = case_batch(case, [name], model)
    placed, present = place_modalities(images, [name], model.network.modalities)
    chances = model.network.eval()(placed, present, model.memory).softmax(dim=1)  # (B, C, *P)
    rows = chances.movedim(1, -1)
    drawn = torch.multinomial(rows.flatten(0, -2), 1, generator=generator)
    return drawn.reshape(rows.shape[:-1])[:, None].float()


@torch.inference_mode()
def encode(
    model: Model, case: PreprocessedCase, names: Sequence[str]
) -> tuple[list[dict[str, Tensor]], list[Tensor]]:
    """Return by level the tailored features ``(Z, C, Y, X)`` of modalities, and classes."""
    images, classes = case_batch(case, names, model)
    encoding = model.network.encode(*place_modalities(images, names, model.network.modalities))
    levels = []
    for slots in encoding.tailored:
        found = zip(model.network.modalities, slots, strict=True)
        levels.append({name: maps for name, maps in found if maps is not None})
    return levels, [classes_at(classes, next(iter(level.values()))) for level in levels]


def sample(model: Model, case: PreprocessedCase, generator: torch.Generator) -> list[Voxels]:
    """Return some voxels of each class of a case, by level."""
    names = [name for name in model.modalities if name in case.modalities]
    other = torch.Generator().manual_seed(0)  # so that voxels do not depend on the guesses
    guesses = {name: guess(model, case, name, other) for name in names}
    found = []
    for maps, classes in zip(*encode(model, case, names), strict=True):
        flat, chosen = classes.flatten(), []
        for label in range(len(model.plans.labels.values)):
            places = (flat == label).nonzero()[:, 0]
            order = torch.randperm(len(places), generator=generator)[:MOST]
            chosen.append(places[order])
        rows = torch.cat(chosen)
        features = {
            name: each.movedim(1, -1).flatten(0, -2)[rows].double() for name, each in maps.items()
        }
        some = next(iter(maps.values()))
        guessed = {n: classes_at(each, some).flatten()[rows] for n, each in guesses.items()}
        found.append(Voxels(flat[rows], features, guessed))
    return found


def measure(file: Path) -> tuple[Model, list[Memory], list[PreprocessedCase], list[Gate]]:
    """Return the model of a training, its memory by level, its test cases, and what was found."""
    model = load_model(file)
    assert isinstance(model.network, MDMNet)  # of method mdm
    work = file.parents[5] / "work"
    generator = torch.Generator().manual_seed(0)
    sites = open_sites(work, model.plans, model.configuration, FOLD, 0)
    training = [sample(model, case, generator) for site in sites for case in site.training]
    folders = sorted((work / "tests").glob(f"*/{model.configuration}"))
    cases = [case for folder in folders for case in open_cases(folder)]
    tests = [sample(model, case, generator) for case in cases]
    gates, memories = [], []
    for level, at_level in enumerate(zip(*training, strict=True)):
        memories.append(Memory(at_level))
        for name, giver in itertools.permutations(model.modalities, 2):
            whole = [each[level] for each in tests if {name, giver} <= set(each[level].features)]
            temperature = model.plans.network.temperature
            gates.append(compare(at_level, whole, name, giver, level, temperature))
    return model, memories, cases, gates


def main(argv: Sequence[str] | None = None) -> None:
    """Print tables as CSV, each number a mean over the trainings and the available modalities."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "folders", type=Path, nargs="+", metavar="OUT", help="of mixmfl_benchmark_patients -o"
    )
    parser.add_argument(
        "--picture", type=Path, help="PNG of true and made-up maps of a patient of the first"
    )
    options = parser.parse_args(argv)
    folders: list[Path] = options.folders
    files = sorted(f for out in folders for f in out.rglob("runs/mdm/*/all/model.safetensors"))
    found: list[Gate] = []
    for number, file in enumerate(files):
        model, memories, cases, gates = measure(file)
        found += gates
        if options.picture and number == 0:
            draw(model, memories, cases, options.picture)
    table = csv.writer(sys.stdout)
    made = ("translated", "drawn", "drawn alone", "diagonal", "turned", "posterior")
    kinds = {
        "left": ("class mean", "recalled", *made, "linear"),
        "read": ("true", "true where learnt", *made),
        "transfer": ("true", *made, "alone"),
    }
    for part, names in kinds.items():
        table.writerow([part, "level", *names])
        for name, level in itertools.product(
            sorted({each.modality for each in found}), sorted({each.level for each in found})
        ):
            rows = [
                getattr(each, part)
                for each in found
                if (each.modality, each.level) == (name, level)
            ]
            means = [fmean(row[kind] for row in rows if kind in row) for kind in names]
            table.writerow([name, level, *(f"{mean:.3f}" for mean in means)])
    near = [each for each in found if "true" in each.transfer]
    for kind in made:
        apart = [abs(each.read["true"] - each.read[kind]) for each in found]
        behind = [each.transfer["true"] - each.transfer[kind] for each in near]
        worse = [each.transfer[kind] < each.transfer["alone"] for each in found]
        print(
            f"{kind}: AUC within 0.03 of true features in {sum(a < 0.03 for a in apart)} of "
            f"{len(found)} places; transfer within 0.02 of true pairs in "
            f"{sum(b < 0.02 for b in behind)} of {len(near)}; true pairs read worse than one "
            f"modality in {sum(worse)} of {len(found)} ({len(files)} trainings)"
        )


def draw(
    model: Model, memories: Sequence[Memory], cases: Sequence[PreprocessedCase], file: Path
) -> None:
    """Draw true and made-up maps of the patient with the largest lesion, at full resolution.

    A row is a missing modality, made up from T1 or the first other one; a map is the channel
    that differs most by class.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    names = list(model.modalities)
    whole = [case for case in cases if set(names) <= set(case.modalities)]
    by_size = sorted(whole, key=lambda case: int((case.labels[:] > 0).sum()))
    case, donor = by_size[-1], by_size[-2]
    levels, classes = encode(model, case, names)
    others, donor_classes = encode(model, donor, names)
    plane = int((classes[0] > 0).flatten(1).sum(dim=1).argmax())
    planned = np.asarray(case.images[:])
    memory, at = memories[0], classes[0][plane]
    inside, voxels = at >= 0, _plane(levels[0], at, plane)
    other = int((donor_classes[0] > 0).flatten(1).sum(dim=1).argmax())
    lent = donor_classes[0][other].clamp(min=0)
    here = _plane(others[0], lent, other, keep=torch.ones_like(lent, dtype=torch.bool))
    figure, axes = pyplot.subplots(len(names), 6, figsize=(9.6, 1.75 * len(names)))
    for row, name in zip(axes, names, strict=True):
        giver = next(each for each in ("t1", *names) if each in names and each != name)
        noise = memory.whitened(here, giver).reshape(*lent.shape, -1)
        for axis, length in enumerate(at.shape):  # as large as the case, beginning again
            noise = noise.index_select(axis, torch.arange(length) % noise.shape[axis])
        maps = {
            f"{name}, true": voxels.features[name],
            "recalled": memory.recalled(name, giver, voxels, model.plans.network.temperature),
            "translated": memory.translated(name, giver, voxels),
            "drawn": memory.drawn(name, giver, voxels, noise[inside]),
        }
        apart = memory.known[1, (name,)].mean - memory.known[0, (name,)].mean
        channel = int((apart / memory.blind(name).covariance.diagonal().sqrt()).abs().argmax())
        true = voxels.features[name][:, channel]
        low, high = true.quantile(0.01), true.quantile(0.99)
        for panel, each in zip(row, (giver, name), strict=False):
            image = planned[case.modalities.index(each), plane]
            panel.imshow(image, cmap="gray")
            panel.set_title(f"{each} {'seen' if each == giver else 'hidden'}", fontsize=8)
        for panel, (title, rows) in zip(row[2:], maps.items(), strict=True):
            shown = torch.full(at.shape, float(low), dtype=torch.float64)
            shown[inside] = rows[:, channel]
            window = tuple(slice(0, length) for length in planned.shape[2:])  # without padding
            panel.imshow(shown[window], cmap="gray", vmin=float(low), vmax=float(high))
            outline = (at > 0).numpy()[window]
            panel.contour(outline, levels=[0.5], colors="#e69f00", linewidths=0.6)
            panel.set_title(title, fontsize=8)
    for panel in axes.flat:
        panel.axis("off")
    figure.tight_layout(pad=0.3)
    figure.canvas.draw()
    picture = Image.fromarray(np.asarray(figure.canvas.buffer_rgba())[..., :3])
    picture.quantize(48).save(file, optimize=True)


def _plane(maps: Maps, at: Tensor, plane: int, keep: Tensor | None = None) -> Voxels:
    """Return the voxels of a plane, by default those of a known class; ``at``, ``(Y, X)``."""
    inside = at >= 0 if keep is None else keep
    features = {n: each[plane].movedim(0, -1)[inside].double() for n, each in maps.items()}
    return Voxels(at[inside], features)


if __name__ == "__main__":
    main()
