"""Quality of the memory's recall: available modalities are hidden, recalled and compared."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from torch import Tensor
from torch.nn import functional

from mixmfl.core.declarations import entries, within
from mixmfl.core.errors import DataError
from mixmfl.core.files import read_json
from mixmfl.core.records import read_record
from mixmfl.data.label_sets import labels_each
from mixmfl.data.modalities import ModalityName
from mixmfl.inference.model import Model
from mixmfl.networks.base import place_modalities, stack_slots
from mixmfl.networks.mdmnet import Fusion, MDMNet
from mixmfl.networks.prototypes import PrototypeMemory, can_recall
from mixmfl.planning.bounds import MOST_STAGES
from mixmfl.planning.preprocessed_case import PreprocessedCase
from mixmfl.training.supervision import known_classes

_MOST = 1e30
_Error = Annotated[float, within(0, _MOST)]


@dataclass(frozen=True)
class RecallQuality:
    """Quality of the recall of one modality at one level, over cases.

    Attributes:
        modality: Modality that was hidden.
        level: Level of the encoders, from 0.
        accuracy: Share of a class's voxels whose most similar prototype is of that class, mean over
            classes; guessing gives one over the number of classes.
        error: Squared distance of the recalled from the true tailored features over that of zeros,
            mean over classes, so that the background does not decide.
        blind_error: Error of the mean of all values, which ignores the class.
        best_error: Error of the value of the true class, the best that recall could reach.
        trust: Factor by which the network multiplies recalled features.
    """

    modality: ModalityName
    level: Annotated[int, within(0, MOST_STAGES)]
    accuracy: Annotated[float, within(0, 1)]
    error: _Error
    blind_error: _Error
    best_error: _Error
    trust: Annotated[float, within(-_MOST, _MOST)]


@dataclass(frozen=True)
class _Memory:
    """The file ``memory.json`` of a benchmark."""

    recall: Annotated[tuple[RecallQuality, ...], entries(0, 10_000)]


def read_memory(file: Path) -> tuple[RecallQuality, ...]:
    """Read ``memory.json``.

    Raises:
        DataError: A field is unknown, missing or wrong.
    """
    return read_record(_Memory, read_json(file), str(file), DataError).recall


@torch.inference_mode()
def recall_quality(model: Model, cases: Sequence[PreprocessedCase]) -> list[RecallQuality]:
    """Hide each modality in turn, recall it from the others, and compare with its true features.

    Args:
        model: The model; without a memory the result is empty.
        cases: The cases; those with fewer than two of the model's modalities are left out.
    """
    network = model.network
    if not isinstance(network, MDMNet) or not model.memory:
        return []
    by_place: dict[tuple[str, int], list[Tensor]] = {}
    for case in cases:
        known = [name for name in model.modalities if name in case.modalities]
        if len(known) < 2:
            continue
        seen, classes = case_batch(case, known, model)
        images, present = place_modalities(seen, known, network.modalities)
        encoding = network.encode(images, present)
        for modality in known:
            index = network.modalities.index(modality)
            others = present.clone()
            others[:, index] = False
            for level in sorted(network.compensated):
                if can_recall(model.memory, modality, level):
                    slots = stack_slots(encoding.tailored[level])
                    at_level = functional.interpolate(classes, slots.shape[3:], mode="nearest")
                    sums = _compare(network, model, slots, modality, level, others, at_level)
                    by_place.setdefault((modality, level), []).append(sums)
    qualities = []
    for (modality, level), parts in sorted(by_place.items()):
        true, error, blind, best, right, count = torch.stack(parts).sum(dim=0)
        seen = count > 0
        fusion = network.fusion[level]
        assert isinstance(fusion, Fusion)
        assert fusion.trust is not None  # this level recalls
        qualities.append(
            RecallQuality(
                modality,
                level,
                float((right / count)[seen].mean()),
                float((error / true)[seen].mean()),
                float((blind / true)[seen].mean()),
                float((best / true)[seen].mean()),
                float(fusion.trust),
            )
        )
    return qualities


def case_batch(case: PreprocessedCase, known: Sequence[str], model: Model) -> tuple[Tensor, Tensor]:
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
    labelled = torch.tensor([labels_each(model.plans.labels, case.labelled)] * len(classes))
    classes = known_classes(classes, model.plans.labels, labelled)
    strides = torch.tensor(planned["architecture"]["arch_kwargs"]["strides"]).prod(dim=0).tolist()
    sizes = zip(images.shape[2:], strides, strict=True)
    pad = [n for size, stride in reversed(list(sizes)) for n in (0, -size % stride)]
    return functional.pad(images, pad), functional.pad(classes, pad, value=-1)


def _compare(
    network: MDMNet,
    model: Model,
    slots: Tensor,
    modality: str,
    level: int,
    others: Tensor,
    classes: Tensor,
) -> Tensor:
    """Return sums over voxels by class, ``(6, K)``: squared features and errors; hits; voxels."""
    prototypes = model.memory[modality, level]

    def recall(memory: PrototypeMemory) -> Tensor:
        recalled = network.recall(modality, level, slots, others, memory)
        return recalled.movedim(1, -1)[inside]

    number = len(prototypes.counts)
    inside = (classes[:, 0] >= 0) & (classes[:, 0] < number)  # in the head, and not ignored
    of = classes[:, 0][inside].long()
    weight = (prototypes.counts / prototypes.counts.sum())[:, None]
    blind = (prototypes.values * weight).sum(dim=0)
    true = slots[:, network.modalities.index(modality)].movedim(1, -1)[inside]
    squares = [
        difference.square().sum(dim=-1)
        for difference in (
            true,
            true - recall(model.memory),
            true - blind,
            true - prototypes.values[of],
        )
    ]
    # with one-hot rows as values, recall returns its attention
    rows = torch.eye(number, device=slots.device)
    named = dataclasses.replace(prototypes, values=rows)
    attention = recall({**model.memory, (modality, level): named})
    picked = attention.argmax(dim=-1)
    return torch.stack(
        [
            *(torch.bincount(of, each.double(), minlength=number) for each in squares),
            torch.bincount(of[picked == of], minlength=number).double(),
            torch.bincount(of, minlength=number).double(),
        ]
    )
