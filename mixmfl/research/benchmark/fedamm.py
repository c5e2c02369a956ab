"""FedAMM's distillation on tailored encoders: from all modalities to each, and to centres.

FedAMM: Federated Learning for Brain Tumor Segmentation with Arbitrary Missing Modalities, MICCAI
2025 (papers.miccai.org/miccai-2025/0329-Paper1764.html), whose local losses are after PASSION (Shi
et al. 2024, arXiv 2407.14796). docs/benchmark.md has the equations, and what differs here.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from mixmfl.federated.messages import Message
from mixmfl.federated.server.coordinator import Answers, Ask
from mixmfl.federated.server.run import Run
from mixmfl.federated.server.run_record import round_folder
from mixmfl.federated.state import Site
from mixmfl.federated.tensor_files import load_tensors, save_tensors
from mixmfl.networks.base import Encoding, SegmentationNet
from mixmfl.networks.prototypes import PrototypeMemory, Prototypes, merge_prototypes
from mixmfl.planning.plans import Plans
from mixmfl.research.benchmark.trainers import Job, Trained, result_of, simulate_job
from mixmfl.training.batches import Batch
from mixmfl.training.nnunet_training import Loss
from mixmfl.training.supervision import Supervision, known_classes
from mixmfl.training.trainer import BatchLoss

TEMPERATURE = 4.0
LOGITS_WEIGHT, MAPS_WEIGHT = 0.5, 0.1

Pattern = tuple[bool, ...]
"""Whether a case has each of the plans' modalities."""

Centres = Mapping[Pattern, Prototypes]
"""Mean features of the decoder by pattern; ``counts`` are of cases."""


def by_fedamm(job: Job) -> Trained:
    """Train by rounds with FedAMM's distillation, and return the global model of the best round."""
    distillation = Distillation(job.plans)
    varied = dataclasses.replace(
        job.variation, loss=distillation.loss_of, between=distillation.between
    )
    run = simulate_job(dataclasses.replace(job, variation=varied))
    return result_of(run, dict.fromkeys(run.registrations, run.folder / "model.safetensors"))


class Distillation:
    """What server and sites of a simulation have beside federated averaging.

    Attributes:
        centres: The server's centres, which sites read in a round.
        seen: The prototypes that sites found in a round, by site; they are sent after it.
    """

    def __init__(self, plans: Plans) -> None:
        """Take the plans of the run."""
        self._plans = plans
        self.centres: Centres = {}
        self.seen: dict[str, dict[Pattern, Prototypes]] = {}

    def between(self, run: Run, ask: Ask) -> Ask:
        """Return what brings tasks to sites, and centres with them."""

        def ask_with_centres(tasks: Mapping[str, Message]) -> Answers:
            if {task.kind for task in tasks.values()} != {"train"}:
                return ask(tasks)
            (number,) = {int(task.record["round"]) for task in tasks.values()}
            self.centres = load_centres(_file(run, number)) if number else {}
            self.seen = {site: {} for site in tasks}
            answers = ask(tasks)
            came = {
                site: dataclasses.replace(
                    answer,
                    sent_bytes=answer.sent_bytes + _bytes(self.seen[site]),
                    received_bytes=answer.received_bytes + _bytes(self.centres),
                )
                for site, answer in answers.came.items()
            }
            sent = [self.seen[site] for site in sorted(came)]
            # 0.999 in the 1,000 rounds of others: the same share of a training
            kept = 1 - 1 / run.settings.rounds
            save_centres(_file(run, number + 1), moved_centres(self.centres, sent, kept))
            return dataclasses.replace(answers, came=came)

        return ask_with_centres

    def loss_of(self, site: Site) -> BatchLoss:
        """Return the loss of a site's batches."""
        patterns = Counter(
            tuple(name in case.modalities for name in self._plans.modalities)
            for case in site.training
        )
        cases = len(site.training)
        shares = {pattern: count / cases for pattern, count in patterns.items()}
        held = [sum(n for p, n in patterns.items() if p[m]) for m in range(len(next(iter(shares))))]
        weights = [cases / count if count else 0.0 for count in held]

        def loss(
            network: SegmentationNet, batch: Batch, memory: PrototypeMemory, compare: Supervision
        ) -> tuple[Loss, Encoding]:
            distilled = distillation_loss(
                network, batch, memory, compare, weights, shares, self.centres
            )
            seen = self.seen[site.name]
            for pattern, new in distilled.prototypes.items():
                seen[pattern] = merge_prototypes([seen[pattern], new] if pattern in seen else [new])
            return distilled.loss, distilled.encoding

        return loss


@dataclasses.dataclass(frozen=True)
class Distilled:
    """What comes of a batch.

    Attributes:
        loss: Its loss; the Dice part is that of the masks from all modalities.
        encoding: Its encoding.
        prototypes: The mean over its cases of the classes' mean features, by pattern.
    """

    loss: Loss
    encoding: Encoding
    prototypes: Mapping[Pattern, Prototypes]


def distillation_loss(
    network: SegmentationNet,
    batch: Batch,
    memory: PrototypeMemory,
    supervision: Supervision,
    weights: Sequence[float],
    shares: Mapping[Pattern, float],
    centres: Centres,
) -> Distilled:
    """Return the loss of a batch; all tensors are on one device.

    Args:
        network: A network with tailored encoders alone.
        batch: The batch; its modality-dropout view is not read.
        memory: Memory of the federation, which is empty.
        supervision: Loss on masks.
        weights: By modality, the site's cases as a multiple of those that have it.
        shares: Share of the site's cases by pattern.
        centres: The server's centres.
    """
    labels = supervision.labels
    count = len(labels.values)
    encoding = network.encode(batch.images, batch.present)
    logits, features = _decode(network, encoding, memory)
    loss = supervision.prepare(batch.classes, batch.labelled)(logits)
    classes = known_classes(batch.classes[0], labels, batch.labelled)[:, 0]
    own, has = class_means(features, classes, count)
    terms: list[Tensor] = [loss.total]
    alone: list[tuple[float, Tensor, Tensor, Tensor]] = []
    several = batch.present.sum(dim=1) > 1
    teacher = similarity_maps(features, own).detach()
    for modality, weight in enumerate(weights):
        rows = (batch.present[:, modality] & several).nonzero()[:, 0]
        if not len(rows):
            continue
        view = _alone(encoding, modality, rows)
        unimodal, maps = _decode(network, view, memory)
        labelled = None if batch.labelled is None else batch.labelled[rows.to("cpu")]
        masks = supervision.prepare([each[rows] for each in batch.classes], labelled)(unimodal)
        terms.append(
            weight * LOGITS_WEIGHT
            * softened_divergence(logits[0][rows].detach(), unimodal[0], labels.has_regions)
        )  # fmt: skip
        means, _ = class_means(maps, classes[rows], count)
        gap = (similarity_maps(maps, means) - teacher[rows])[has[rows]]  # (classes of cases, V)
        alone.append((weight, masks.total, gap.square().mean(), gap.detach().abs().mean()))
    if alone:
        usual = torch.stack([distance for *_, distance in alone]).mean()
        terms += [
            weight * (masks + MAPS_WEIGHT * difference)
            for weight, masks, difference, distance in alone
            if distance > usual  # those that lag behind
        ]
    patterns = [tuple(map(bool, row)) for row in batch.present.tolist()]
    terms += [
        shares[pattern] * distance_to_centre(means, seen, centres[pattern]) / len(patterns)
        for pattern, means, seen in zip(patterns, own, has, strict=True)
        if pattern in centres
    ]
    return Distilled(
        Loss(torch.stack(terms).sum(), loss.dice),
        encoding,
        {pattern: _mean_of(pattern, patterns, own, has) for pattern in dict.fromkeys(patterns)},
    )


def class_means(features: Tensor, classes: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return each case's mean feature of each class, ``(B, K, C)``, and whether it has it.

    Args:
        features: ``(B, C, *P)``
        classes: ``(B, *P)`` integers; one outside ``0 ... K - 1`` is left out.
        count: Number of classes, K.
    """
    each = torch.arange(count, device=classes.device)
    members = (classes.flatten(1)[:, None] == each[:, None]).float()  # (B, K, V)
    voxels = members.sum(dim=2)
    sums = torch.einsum("bkv,bcv->bkc", members, features.float().flatten(2))
    return sums / voxels.clamp(min=1)[..., None], voxels > 0


def similarity_maps(features: Tensor, means: Tensor) -> Tensor:
    """Return ``(B, K, V)``, the cosine of each voxel's feature with each class's mean."""
    one = functional.normalize(features.float().flatten(2), dim=1, eps=1e-5)
    other = functional.normalize(means, dim=2, eps=1e-5)
    return torch.einsum("bkc,bcv->bkv", other, one)


def softened_divergence(teacher: Tensor, student: Tensor, regions: bool) -> Tensor:
    """Return the squared temperature times KL(teacher || student) of softened probabilities.

    It is the mean over cases, voxels and outputs.

    Args:
        teacher: Logits ``(B, heads, *P)``.
        student: Logits of the same shape.
        regions: Whether each head is a region of its own, and not one of several classes.
    """
    pair = [each.float() / TEMPERATURE for each in (teacher, student)]
    if regions:
        pair = [torch.stack([each, torch.zeros_like(each)], dim=1) for each in pair]
    one, other = (functional.log_softmax(each, dim=1) for each in pair)
    return TEMPERATURE**2 * (one.exp() * (one - other)).mean()


def distance_to_centre(means: Tensor, has: Tensor, centre: Prototypes) -> Tensor:
    """Return the squared distance of a case's class means, a mean over channels, sum over classes.

    Args:
        means: ``(K, C)``
        has: ``(K,)`` bool, the classes that the case has.
        centre: Centre of the case's pattern.
    """
    known = has & (centre.counts > 0).to(has.device)
    away = (means - centre.values.to(means)).square().mean(dim=1)
    return away[known].sum()


def moved_centres(
    before: Centres, sent: Sequence[Mapping[Pattern, Prototypes]], kept: float
) -> dict[Pattern, Prototypes]:
    """Return the server's centres after a round: ``kept`` times the old and the rest the new.

    A new centre is the mean over all sites' cases. One of which nothing was seen stays.

    Args:
        before: Centres before the round.
        sent: What each site sent.
        kept: Share of the old centre.
    """
    moved = dict(before)
    for pattern in sorted({pattern for each in sent for pattern in each}):
        new = merge_prototypes([each[pattern] for each in sent if pattern in each])
        if pattern in before:
            old = before[pattern]
            both, newer = ((old.counts > 0) & (new.counts > 0))[:, None], (new.counts > 0)[:, None]
            mixed = kept * old.values + (1 - kept) * new.values
            values = torch.where(both, mixed, torch.where(newer, new.values, old.values))
            new = Prototypes(values, old.counts.maximum(new.counts))
        moved[pattern] = new
    return moved


def save_centres(file: Path, centres: Centres) -> None:
    """Write centres."""
    tensors: dict[str, Tensor] = {}
    for pattern, centre in centres.items():
        name = "".join(str(int(has)) for has in pattern)
        tensors |= {f"{name}.values": centre.values, f"{name}.counts": centre.counts}
    save_tensors(file, tensors)


def load_centres(file: Path) -> dict[Pattern, Prototypes]:
    """Read what ``save_centres`` wrote."""
    tensors = load_tensors(file)
    names = sorted({name.partition(".")[0] for name in tensors})
    return {
        tuple(digit == "1" for digit in name): Prototypes(
            tensors[f"{name}.values"], tensors[f"{name}.counts"]
        )
        for name in names
    }


def _file(run: Run, number: int) -> Path:
    return round_folder(run, number) / "centres.safetensors"


def _bytes(centres: Centres) -> int:
    return sum(each.values.nbytes + each.counts.nbytes for each in centres.values())


def _mean_of(
    pattern: Pattern, patterns: Sequence[Pattern], means: Tensor, has: Tensor
) -> Prototypes:
    """Return the mean of the class means of the cases with a pattern."""
    rows = [number for number, each in enumerate(patterns) if each == pattern]
    counts = has[rows].sum(dim=0).float()
    sums = (means[rows].detach() * has[rows][..., None]).sum(dim=0)
    return Prototypes(sums / counts.clamp(min=1)[:, None], counts).to(torch.device("cpu"))


def _alone(encoding: Encoding, modality: int, rows: Tensor) -> Encoding:
    """Return the encoding of some cases as if they had one modality alone."""
    slots: list[list[Tensor | None]] = []
    for level in encoding.tailored:
        maps = level[modality]
        assert maps is not None  # some case has it
        slots.append([maps[rows] if m == modality else None for m in range(len(level))])
    present = torch.zeros_like(encoding.present[rows])
    present[:, modality] = True
    return Encoding(slots, [], present)


def _decode(
    network: SegmentationNet, encoding: Encoding, memory: PrototypeMemory
) -> tuple[list[Tensor], Tensor]:
    """Return logits, finest first, and the features ``(B, C, *P)`` that the finest are made of."""
    with _outputs_of(network.decoder.stages[-1]) as outputs:
        logits = network.decode(encoding, memory)
    assert isinstance(logits, list)  # in training
    (features,) = outputs
    return logits, features


@contextmanager
def _outputs_of(module: torch.nn.Module) -> Iterator[list[Tensor]]:
    """Yield a list to which each output of a module is added."""
    outputs: list[Tensor] = []
    hook = module.register_forward_hook(lambda module, read, output: outputs.append(output))
    try:
        yield outputs
    finally:
        hook.remove()
