"""How good the memory's recall is: of modalities that are there, hidden, and recalled."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from mixmfl.dataset import StoredCase
from mixmfl.memory import Prototypes, can_recall, recall
from mixmfl.model import Model
from mixmfl.network import Fusion, MDMNet, place_modalities


@dataclass(frozen=True)
class RecallQuality:
    """What recall of one modality at one level comes to, over cases.

    Attributes:
        modality: That was hidden.
        level: Of the encoders, from 0.
        accuracy: Share of a class's voxels whose nearest key is of that class, mean over classes;
            guessing gives one over the number of classes.
        error: Squared distance of the recalled from the true tailored features over that of zeros.
        blind_error: The same of the mean of all values, which knows no class.
        trust: What the network multiplies recalled features by.
    """

    modality: str
    level: int
    accuracy: float
    error: float
    blind_error: float
    trust: float


@torch.inference_mode()
def recall_quality(model: Model, cases: Sequence[StoredCase]) -> list[RecallQuality]:
    """Hide each modality in turn, recall it from the others, and compare with what it was.

    Args:
        model: With a memory; without one there is nothing to tell.
        cases: Those with fewer than two of the model's modalities are left out.
    """
    network = model.network
    if not isinstance(network, MDMNet) or not model.memory:
        return []
    found: dict[tuple[str, int], list[Tensor]] = {}
    for case in cases:
        known = [name for name in model.modalities if name in case.modalities]
        if len(known) < 2:
            continue
        seen, classes = _slices(case, known, model)
        images, present = place_modalities(seen, known, network.modalities)
        encoding = network.encode(images, present)
        for modality in known:
            index = network.modalities.index(modality)
            others = present.clone()
            others[:, index] = False
            for level in sorted(network.compensated):
                if can_recall(model.memory, modality, level):
                    shared = encoding.shared[level]
                    query = shared[others].reshape(len(images), -1, *shared.shape[2:]).mean(dim=1)
                    at_level = functional.interpolate(classes, query.shape[2:], mode="nearest")
                    sums = _compare(
                        query,
                        encoding.tailored[level][:, index],
                        at_level,
                        model.memory[modality, level],
                        network.temperature,
                        model.plans.network.prototypes,
                    )
                    found.setdefault((modality, level), []).append(sums)
    told = []
    for (modality, level), parts in sorted(found.items()):
        total = torch.stack(parts).sum(dim=0)
        right, count = total[3:].reshape(2, -1)
        fusion = network.fusion[level]
        assert isinstance(fusion, Fusion)
        told.append(
            RecallQuality(
                modality,
                level,
                float((right / count)[count > 0].mean()),
                float(total[1] / total[0]),
                float(total[2] / total[0]),
                float(fusion.trust),
            )
        )
    return told


def _slices(case: StoredCase, known: Sequence[str], model: Model) -> tuple[Tensor, Tensor]:
    """Return the case as one batch: images ``(B, K, *P)`` and classes ``(B, 1, *P)``, padded.

    A 2-D network gets its slices, a 3-D one the whole case.
    """
    planned = model.plans.configuration(model.configuration)
    channels = [case.modalities.index(name) for name in known]
    images = torch.from_numpy(case.images[:][channels]).to(model.device)
    classes = torch.from_numpy(case.labels[:]).to(images)
    if len(planned["patch_size"]) == 2:
        images, classes = images.movedim(1, 0), classes.movedim(1, 0)
    else:
        images, classes = images[None], classes[None]
    strides = torch.tensor(planned["architecture"]["arch_kwargs"]["strides"]).prod(dim=0).tolist()
    sizes = zip(images.shape[2:], strides, strict=True)
    pad = [n for size, stride in reversed(list(sizes)) for n in (0, -size % stride)]
    return functional.pad(images, pad), functional.pad(classes, pad, value=-1)


def _compare(
    query: Tensor,
    true: Tensor,
    classes: Tensor,
    prototypes: Prototypes,
    temperature: float,
    per_class: int,
) -> Tensor:
    """Return sums over voxels: squared true, error, blind error; then right and all by class."""
    number = len(prototypes.counts) // per_class
    inside = (classes[:, 0] >= 0) & (classes[:, 0] < number)  # in the head, and not ignored
    recalled = recall(query, prototypes, temperature)
    weight = (prototypes.counts / prototypes.counts.sum())[:, None]
    blind = (prototypes.values * weight).sum(dim=0)
    wanted = true.movedim(1, -1)[inside]
    squares = [
        difference.square().sum()
        for difference in (wanted, wanted - recalled.movedim(1, -1)[inside], wanted - blind)
    ]
    # values that name their row, and a temperature that picks one, make recall a classifier
    rows = torch.eye(len(prototypes.counts), device=query.device)
    named = Prototypes(prototypes.keys, rows, prototypes.counts)
    picked = recall(query, named, 1e-4).argmax(dim=1)[inside] // per_class
    of = classes[:, 0][inside].long()
    right = torch.bincount(of[picked == of], minlength=number)
    return torch.cat([torch.stack(squares), right, torch.bincount(of, minlength=number)])
