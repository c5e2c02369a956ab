"""A model that is ready to predict."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mixmfl.core.errors import DataError
from mixmfl.data.cases import Case
from mixmfl.data.grid import from_canonical
from mixmfl.data.image import InMemory, Source
from mixmfl.data.load_case import AlignmentOptions, load_case
from mixmfl.evaluation.mask_quality import DiceEstimate, Measured, estimate_dice
from mixmfl.evaluation.reliability import Calibration, calibrate
from mixmfl.evaluation.small_components import best_shares
from mixmfl.inference.case_preparation import Recipe
from mixmfl.inference.cpu_network import CPUNetwork
from mixmfl.inference.predictor import case_predictor
from mixmfl.inference.segmentation import Options, predict_case
from mixmfl.inference.sliding_window import Predictor
from mixmfl.inference.steps import STEP
from mixmfl.networks.base import SegmentationNet
from mixmfl.networks.build import build_outline
from mixmfl.networks.parameters import assign_parameters
from mixmfl.networks.prototypes import PrototypeMemory
from mixmfl.planning.brains import asked_extraction
from mixmfl.planning.plans import Plans

if TYPE_CHECKING:
    from nibabel.spatialimages import SpatialImage


@dataclass(frozen=True)
class TrainedOn:
    """What a model was trained on.

    Attributes:
        modality_cases: How many training cases of the federation had each modality.
        modality_sites: How many sites had training cases with each modality; empty: not known.
        folds: The folds whose validation cases were measured together; empty: those of this model.
        privacy: Epsilon and delta of the sites that trained with differential privacy.
    """

    modality_cases: Mapping[str, int]
    modality_sites: Mapping[str, int] = field(default_factory=dict)
    folds: tuple[str, ...] = ()
    privacy: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Model:
    """A model ready to predict. It holds its file, so each process loads its own.

    Attributes:
        plans: The plans that it was trained with; they name its modalities and labels.
        configuration: ``"2d"`` or ``"3d_fullres"``.
        weights: The network's weights by name, read from the model file when they are asked for:
            it may be replaced by another, but must not be written over. On Windows, where an open
            file cannot be replaced, they are in memory.
        runner: What predicts: the network in prediction mode, on ``device``, or on a CPU its quick
            form, if it has one.
        memory: The federation's prototypes, on ``device``.
        device: The device that computes.
        trained_on: What its weights were trained on.
        round: The round of its run that it is from.
        version: The version of mixmfl that wrote it.
        measured: What was measured on validation cases when training ended; maybe nothing.
        sha256: SHA-256 of the model file.
        name: Name of the model file.
    """

    plans: Plans
    configuration: str
    weights: Mapping[str, Tensor]
    runner: SegmentationNet | CPUNetwork
    memory: PrototypeMemory
    device: torch.device
    trained_on: TrainedOn
    round: int
    version: str
    measured: Measured
    sha256: str
    name: str

    def predict(
        self,
        images: "Mapping[str, str | PathLike[str] | tuple[Any, Any] | SpatialImage]",
        *,
        reference: str = "",
        register: bool = False,
        step: float = STEP,
        mirror: bool = False,
        brain_only: bool = False,
        brain_command: str = "",
        force: bool = False,
    ) -> npt.NDArray[Any]:
        """Segment one case.

        Args:
            images: By modality: the path of an image file; an image of nibabel; or an array
                ``(X, Y, Z)`` and its affine, 4x4, from an index to mm, RAS.
            reference: The modality whose grid the mask gets where the images are on several;
                default: that with the largest in-plane resolution.
            register: Whether images that do not lie on each other are registered (rigidly).
            step: Distance of neighbouring patches, as a share of the patch.
            mirror: Whether to average over mirrored patches as well.
            brain_only: Whether deepbet removes the skull of a case that shows it. Where the model
                was planned so, it does in any case.
            brain_command: A command of yours that finds the brain, ``"tool {image} {mask}"``.
            force: Whether to segment what the command would refuse: any case with a model of
                simulated images, and images that are far from those that the model was planned for.

        Returns:
            Label values ``(X, Y, Z)`` on the reference's grid, uint8 or uint16; their meaning is
            ``plans.labels``. What is doubtful about the images is a ``UserWarning``.

        Raises:
            DataError: An image cannot be used, or they do not fit together; or ``force`` is needed.
            TypeError: ``images`` is no mapping from modalities to images.
        """
        if not isinstance(images, Mapping):
            raise TypeError(
                f"images by modality are needed, such as {{'t1': 'p01_T1.nii.gz'}}, not {images}. "
                "mixmfl_predict segments folders"
            )
        sources: dict[str, Path | Source] = {}
        for name in sorted(images):
            if name not in self.modalities:
                raise DataError(f"{name!r}: the model knows {', '.join(self.modalities)}")
            sources[name] = _source(name, images[name])
        if not sources:
            raise DataError(f"no image; at least one is needed of {', '.join(self.modalities)}")
        if reference and reference not in sources:
            raise DataError(f"reference {reference!r}: there are {', '.join(sources)}")
        loaded = load_case(Case("case", sources), None, AlignmentOptions(reference, register))
        brains = asked_extraction(brain_only, brain_command)
        indices = predict_case([self], loaded, Options(step, mirror), brains, force)
        values = from_canonical(self.plans.labels.to_values(indices), loaded.grid)
        return np.ascontiguousarray(values.T, dtype=np.min_scalar_type(int(values.max())))

    def estimates(self, confidences: Mapping[str, float]) -> dict[str, DiceEstimate]:
        """Return the estimated Dice of a mask, by label or region; without those it cannot tell.

        Args:
            confidences: How sure the model is of the mask, as ``Segmented`` has it; the estimate is
                of the mask without what ``component_shares`` removes.
        """
        shares = self.component_shares
        estimated = {
            name: estimate_dice(self.measured.confidence[name], sure, shares.get(name, 0.0))
            for name, sure in confidences.items()
            if name in self.measured.confidence
        }
        return {name: estimate for name, estimate in estimated.items() if estimate is not None}

    @cached_property
    def calibrations(self) -> dict[str, Calibration]:
        """The curves of calibrated probabilities, by label or region; without unknown ones."""
        curves = {name: calibrate(each) for name, each in self.measured.reliability.items()}
        return {name: each for name, each in curves.items() if each is not None}

    @cached_property
    def network(self) -> SegmentationNet:
        """The network, in prediction mode, on ``device``."""
        if isinstance(self.runner, SegmentationNet):
            return self.runner
        network = build_outline(self.plans, self.configuration)
        assign_parameters(network, self.weights)
        return network.to(self.device)

    def predictor(self, available: Sequence[str]) -> Predictor:
        """Return a function from images ``(B, K, *P)`` of the available modalities to logits."""
        if isinstance(self.runner, CPUNetwork):
            return self.runner.predictor(self.memory, available)
        return case_predictor(self.runner, self.memory, available)

    @property
    def component_shares(self) -> Mapping[str, float]:
        """Return the share of a label's largest component below which others are removed, by label.

        Regions share voxels, so that what is removed of one changes others: they keep all.
        """
        return {} if self.plans.labels.has_regions else best_shares(self.measured.components)

    @property
    def recipe(self) -> Recipe:
        """Return what preprocessing for this model needs to know."""
        return Recipe(self.plans, self.configuration, self.modalities)

    @property
    def modalities(self) -> tuple[str, ...]:
        """Return the modalities that a training case had, in the order of the plans.

        The encoder of another one was never trained, and must not be used.
        """
        counts = self.trained_on.modality_cases
        return tuple(name for name in self.plans.modalities if counts.get(name, 0))


def _source(modality: str, image: Any) -> Path | Source:
    """Return where an image comes from that was given from Python.

    Raises:
        DataError: It is a folder.
        TypeError: It is no path, image or pair of an array and its affine.
    """
    if isinstance(image, tuple) and len(image) == 2:
        return InMemory(*image)
    if isinstance(image, str | PathLike):
        path = Path(image)
        if path.is_dir():
            raise DataError(
                f"{modality}: {path} is a folder, and one image file is needed; mixmfl.find_cases "
                "finds the cases of a folder, and mixmfl_predict segments it"
            )
        return path
    if hasattr(image, "dataobj") and hasattr(image, "affine"):  # as nibabel's images have
        return InMemory(np.asanyarray(image.dataobj), image.affine)
    raise TypeError(
        f"{modality}: a path, an image of nibabel or a pair (array, affine) is needed, not "
        f"{type(image).__name__}"
    )
