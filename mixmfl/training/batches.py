"""Training batches: cases, modalities and patches are drawn, all from a seed."""

import copy
import random
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from acvl_utils.cropping_and_padding.bounding_boxes import crop_and_pad_nd
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mixmfl.core.worker_pool import spawn_context
from mixmfl.data.label_sets import labels_each
from mixmfl.data.patients import patient_of
from mixmfl.planning.plans import Plans
from mixmfl.planning.preprocessed_case import PreprocessedCase
from mixmfl.training.nnunet_training import PatchChooser, training_transforms

B = TypeVar("B")


@dataclass(frozen=True)
class Batch:
    """The input of one gradient step.

    Attributes:
        images: ``(B, M, *P)``, z-scored; zero where a modality is missing.
        present: ``(B, M)`` bool, the available modalities; at least one True per row.
        shown: ``(B, M)`` bool, the modalities of the modality-dropout view; at least one True per
            row, and only where ``present`` is.
        classes: Class indices ``(B, 1, *P)`` per supervised resolution, finest first.
        patients: ``(B,)`` the number of each patch's patient among those of the training cases.
        labelled: ``(B, N)`` bool, on the CPU: whether a case labels each of the plans' labels or
            regions; None: all cases label all.
    """

    images: Tensor
    present: Tensor
    shown: Tensor
    classes: list[Tensor]
    patients: Tensor
    labelled: Tensor | None = None

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on another device."""
        return Batch(
            self.images.to(device),
            self.present.to(device),
            self.shown.to(device),
            [item.to(device) for item in self.classes],
            self.patients,
            self.labelled,
        )


class Sample(NamedTuple):
    """A patch of one case, with the fields of ``Batch`` without axis B."""

    images: Tensor
    present: Tensor
    shown: Tensor
    classes: list[Tensor]
    labelled: Tensor


def site_number(site: str) -> int:
    """Return the number of a site in seeds; it depends on the name, not on the order of sites."""
    return zlib.crc32(site.encode())


def seed_of(seed: int, round_number: int, site: str, step: int) -> list[int]:
    """Return the entropy of a step's random draws."""
    return [seed, round_number, site_number(site), step]


def choose_modalities(
    available: Sequence[str], dropping: float, generator: np.random.Generator
) -> tuple[str, ...]:
    """Return the modalities of the modality-dropout view.

    These are all available ones or, with probability ``dropping``, a non-empty proper subset.
    Every such subset is equally likely, so that every subset that a site can form is trained. A
    single modality is never dropped.
    """
    count = len(available)
    if count < 2 or generator.random() >= dropping:
        return tuple(available)
    chosen = int(generator.integers(1, 2**count - 1))  # bits of a proper, non-empty subset
    return tuple(name for index, name in enumerate(available) if chosen >> index & 1)


class Batches(Dataset[Batch]):
    """The batches of one round at one site.

    Item ``step`` depends on the step only, so that any number of loader processes, or none, gives
    the same training.
    """

    def __init__(
        self,
        cases: Sequence[PreprocessedCase],
        plans: Plans,
        configuration: str,
        entropy: tuple[int, int, str],
        steps: int,
    ) -> None:
        """Create the batches of a round.

        Args:
            cases: Training cases.
            plans: Plans of the run.
            configuration: ``"2d"`` or ``"3d_fullres"``.
            entropy: Seed, number of the round, and name of the site.
            steps: Number of steps of the round.
        """
        planned = plans.configuration(configuration)
        self.cases = list(cases)
        names = [patient_of(case.name, case.patient) for case in self.cases]
        self.patients = np.unique(names, return_inverse=True)[1]
        self.modalities = plans.modalities
        self.labels = plans.labels
        self.settings = plans.training
        self.entropy = entropy
        self.steps = steps
        self.batch_size = int(planned["batch_size"])
        self.patch_size = tuple(planned["patch_size"])
        self.strides = tuple(
            tuple(row) for row in planned["architecture"]["arch_kwargs"]["strides"]
        )
        self.masked = bool(planned["use_mask_for_norm"][0])
        self.chooser = PatchChooser(self.patch_size, plans.labels)

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> Batch:
        if not 0 <= step < self.steps:
            raise IndexError(step)
        generator, drawn = self._draw(step)
        # nnU-Net: the last third of a batch is centred on foreground
        plain = round(self.batch_size * (1 - self.settings.foreground_share))
        with seeded(generator):
            items = [
                self.sample(self.cases[case], index >= plain, generator)
                for index, case in enumerate(drawn)
            ]
        return _batch(items, self.patients[drawn])

    def cases_drawn(self) -> list[PreprocessedCase]:
        """Return the cases of which any batch of the round has a patch."""
        drawn = {int(case) for step in range(self.steps) for case in self._draw(step)[1]}
        return [self.cases[case] for case in sorted(drawn)]

    def with_cases(self, cases: Sequence[PreprocessedCase]) -> "Batches":
        """Return the same draws from cases that are read otherwise: of equal names, in order."""
        batches = copy.copy(self)
        batches.cases = list(cases)
        return batches

    def _draw(self, step: int) -> tuple[np.random.Generator, npt.NDArray[np.int64]]:
        """Return the numbers of a batch's cases, and the generator of its further draws."""
        generator = np.random.default_rng(seed_of(*self.entropy, step))
        return generator, generator.integers(0, len(self.cases), self.batch_size)

    def sample(
        self, case: PreprocessedCase, foreground: bool, generator: np.random.Generator
    ) -> Sample:
        """Return an augmented patch of a case."""
        shown = choose_modalities(case.modalities, self.settings.modality_dropping, generator)
        box = self.chooser.box(case.images.shape[1:], foreground, case.class_locations)
        images = crop_and_pad_nd(case.images, box, 0)
        classes = crop_and_pad_nd(case.labels, box, -1)
        if len(self.patch_size) == 2:  # the box is one slice thick
            images, classes = images[:, 0], classes[:, 0]
        augment = training_transforms(
            self.patch_size, self.strides, len(case.modalities), self.masked
        )
        augmented = augment(
            image=torch.from_numpy(images).float(), segmentation=torch.from_numpy(classes).short()
        )
        channels = torch.zeros((len(self.modalities), *augmented["image"].shape[1:]))
        for channel, modality in enumerate(case.modalities):
            channels[self.modalities.index(modality)] = augmented["image"][channel]
        present, shown_row = (
            torch.tensor([name in names for name in self.modalities])
            for names in (case.modalities, shown)
        )
        labelled = torch.tensor(labels_each(self.labels, case.labelled))
        return Sample(channels, present, shown_row, augmented["segmentation"], labelled)


class PoissonBatches(Dataset[list[Batch]]):
    """Batches with Poisson sampling of the cases, which accounting for privacy assumes.

    Item ``step`` is a list of batches of one, a patch of each case that was drawn; may be empty.
    """

    def __init__(self, batches: Batches, rate: float) -> None:
        """Create the batches of a private round.

        Args:
            batches: The cases to draw from, with an entropy that nobody knows.
            rate: Probability that a case is drawn in a step.
        """
        self._batches = batches
        self._rate = rate

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, step: int) -> list[Batch]:
        batches = self._batches
        if not 0 <= step < len(batches):
            raise IndexError(step)
        generator = np.random.default_rng(seed_of(*batches.entropy, step))
        chosen = (generator.random(len(batches.cases)) < self._rate).nonzero()[0]
        share = batches.settings.foreground_share
        with seeded(generator):
            return [
                _batch(
                    [batches.sample(batches.cases[case], generator.random() < share, generator)],
                    batches.patients[[case]],
                )
                for case in chosen
            ]


def _batch(items: Sequence[Sample], patients: npt.NDArray[np.intp]) -> Batch:
    images, present, shown, classes, labelled = zip(*items, strict=True)
    return Batch(
        torch.stack(images),
        torch.stack(present),
        torch.stack(shown),
        [torch.stack(resolution) for resolution in zip(*classes, strict=True)],
        torch.as_tensor(patients),
        torch.stack(labelled),
    )


@contextmanager
def seeded(generator: np.random.Generator) -> Iterator[None]:
    """Seed the global generators, which nnU-Net's augmentation uses; restore them at the end."""
    seed = int(generator.integers(0, 2**31))
    before = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            random.seed(seed)
            np.random.seed(seed)
            torch.default_generator.manual_seed(seed)  # that of CPUs, the only one restored
            yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])


def loader(batches: Dataset[B], workers: int) -> Iterable[B]:
    """Return the batches, prepared by ``workers`` processes or, with 0, by this one."""
    if not workers:
        return DataLoader(batches, batch_size=None)
    return DataLoader(
        batches, batch_size=None, num_workers=workers, multiprocessing_context=spawn_context()
    )
