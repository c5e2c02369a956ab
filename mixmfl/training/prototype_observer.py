"""The prototypes of a site's own modalities, observed while it trains."""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from mixmfl.networks.base import Encoding, stack_slots
from mixmfl.networks.prototypes import (
    PrototypeMemory,
    Prototypes,
    classes_at,
    classes_of_each,
    fade,
    memory_to,
    merge_prototypes,
    observe,
)
from mixmfl.planning.plans import Plans
from mixmfl.training.batches import Batch
from mixmfl.training.supervision import known_classes

_LEAST_LEFT = 0.1
"""The least share left of a patch for its patient to stand behind a prototype."""


class PrototypeObserver:
    """Collects prototypes from the batches of a round, and which patients are behind them."""

    def __init__(self, modalities: Sequence[str], levels: Collection[int], plans: Plans) -> None:
        """Begin with none.

        Args:
            modalities: Modalities of the network, in the order of its slots.
            levels: Levels that have prototypes; empty: nothing is observed.
            plans: Plans of the run.
        """
        self._modalities = modalities
        self._levels = levels
        self._labels = plans.labels
        self._decay = plans.training.memory_decay
        self._prototypes: dict[tuple[str, int], Prototypes] = {}
        self._patches: dict[tuple[str, int], list[tuple[Tensor, Tensor]]] = {}

    @torch.no_grad()
    def add(self, batch: Batch, encoding: Encoding) -> None:
        """Add what a batch shows of the modalities available in it; earlier batches fade."""
        if not self._levels:
            return
        classes = known_classes(batch.classes[0], self._labels, batch.labelled)
        count = len(self._labels.values)
        for level in self._levels:
            tailored = stack_slots(encoding.tailored[level]).detach()
            at_level = classes_at(classes, tailored)
            has = classes_of_each(at_level, count)
            for index, modality in enumerate(self._modalities):
                rows = encoding.present[:, index]
                if rows.any():
                    new = observe(tailored[rows, index].float(), at_level[rows], count)
                    self._add((modality, level), new, batch.patients, has & rows[:, None])

    def _add(self, place: tuple[str, int], new: Prototypes, patients: Tensor, has: Tensor) -> None:
        """Add a batch's prototypes of a modality and level.

        Args:
            place: The modality and the level.
            new: The prototypes.
            patients: ``(B,)``, the patient of each patch.
            has: ``(B, K)`` bool, which patches are behind which rows.
        """
        before = self._prototypes.get(place)
        old = [] if before is None else [fade(before, self._decay)]
        self._prototypes[place] = merge_prototypes([*old, new])
        self._patches.setdefault(place, []).append((patients, has))

    def memory(self) -> PrototypeMemory:
        """Return the prototypes, on the CPU."""
        return memory_to(self._prototypes, torch.device("cpu"))

    def patients(self) -> dict[tuple[str, int], Tensor]:
        """Return for each of the prototypes ``(K,)`` how many patients are behind each row.

        Patches that faded below ``_LEAST_LEFT`` count for none: the row is that of the others.
        """
        counts = {}
        for place, patches in self._patches.items():
            last = len(patches) - 1
            shares = [self._decay ** (last - n) for n in range(len(patches))]
            left = [p for p, share in zip(patches, shares, strict=True) if share >= _LEAST_LEFT]
            counts[place] = _count_patients(left)
        return counts


def _count_patients(patches: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Return ``(K,)`` of how many different patients the patches of each row are.

    Args:
        patches: By step: the patient of each patch, ``(B,)``, and its rows, ``(B, K)`` bool.
    """
    patients = torch.cat([numbers for numbers, _ in patches]).cpu()
    has = torch.cat([rows for _, rows in patches]).cpu()
    return torch.tensor([len(set(patients[column].tolist())) for column in has.T])
