"""The model file: weights and memory, and in its header all that they mean."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mixmfl.core.declarations import entries, text, within
from mixmfl.core.errors import DataError, MixmflError, ModelError, PlansError, why
from mixmfl.core.files import SelfClosingFile, replacing, sha256
from mixmfl.core.json_fields import MOST_NAME, fields, is_text, shown
from mixmfl.core.process_memory import give_back_memory
from mixmfl.core.records import read_record
from mixmfl.core.tensor_store import (
    DamageError,
    ForeignError,
    Stored,
    check_header,
    check_tensors,
    open_stored,
    read,
    with_digests,
    write,
)
from mixmfl.core.version import __version__
from mixmfl.data.cases import Case
from mixmfl.data.image import InMemory, Source, from_canonical
from mixmfl.data.load_case import AlignmentOptions, load_case
from mixmfl.data.modalities import LONGEST_NAME, MOST_MODALITIES
from mixmfl.evaluation.mask_quality import (
    Confidence,
    ConfidenceSums,
    DiceEstimate,
    Measured,
    estimate_dice,
)
from mixmfl.evaluation.reliability import Calibration, Reliabilities, Reliability, calibrate
from mixmfl.evaluation.small_components import Components, ComponentSums, best_shares
from mixmfl.evaluation.subset_dice import MOST_CASES, Expected, SubsetDice
from mixmfl.inference.cpu_network import CPUNetwork, fastest_form
from mixmfl.inference.model_folder import model_file
from mixmfl.inference.predictor import case_predictor
from mixmfl.inference.segmentation import Options, Recipe, predict_case
from mixmfl.inference.sliding_window import Predictor
from mixmfl.networks.base import SegmentationNet
from mixmfl.networks.build import build_outline, check_memory
from mixmfl.networks.parameters import assign_parameters, check_state
from mixmfl.networks.prototypes import (
    PrototypeMemory,
    State,
    memory_from_state,
    memory_to,
    memory_to_state,
)
from mixmfl.planning.brains import asked_extraction
from mixmfl.planning.plans import Plans

if TYPE_CHECKING:
    from nibabel.spatialimages import SpatialImage

FORMAT = "mixmfl model 2"

MOST_SITES = 10**4
"""Of a federation, that a file may tell of."""


@dataclass(frozen=True)
class _Spent:
    """What a site has spent of its privacy budget."""

    epsilon: Annotated[float, within(0, 1e12)]
    delta: Annotated[float, within(0, 1)]


@dataclass(frozen=True)
class _Header:
    """The header of a model file; ``save_model`` says what is in it.

    What is ``Any`` is checked elsewhere: the digests, the format and the plans.
    """

    format: Any
    mixmfl_version: Annotated[str, text(MOST_NAME)]
    configuration: Any
    round: Annotated[int, within(0, 10**5)]
    modality_cases: Annotated[
        Mapping[Annotated[str, text(LONGEST_NAME)], Annotated[int, within(0, MOST_CASES)]],
        entries(0, MOST_MODALITIES),
    ]
    plans: Any
    tensors_sha256: Any
    header_sha256: Any
    # files of earlier versions do not have these
    modality_sites: Annotated[
        Mapping[Annotated[str, text(LONGEST_NAME)], Annotated[int, within(0, MOST_SITES)]],
        entries(0, MOST_MODALITIES),
    ] = field(default_factory=dict)
    expected: Expected = ()
    confidence: Confidence = field(default_factory=dict)
    reliability: Reliabilities = field(default_factory=dict)
    components: Components = field(default_factory=dict)
    largest: Any = None  # of earlier versions, for the largest component alone; not read
    folds: Annotated[Sequence[Annotated[str, text(1)]], entries(0, 5, distinct=True)] = ()
    privacy: Annotated[Mapping[Annotated[str, text(MOST_NAME)], _Spent], entries(0, MOST_SITES)] = (
        field(default_factory=dict)
    )


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
        record: What the header says of its origin: version, round, sites' modalities, privacy, and
            the folds whose validation cases were measured together.
        expected: Dice from subsets of modalities, as measured when training ended; maybe none.
        confidence: By label or region, how Dice goes with confidence on validation cases; maybe
            nothing is known.
        reliability: By label or region, how often the network is right at which probability, there.
        components: By label or region, the Dice of masks without small components, beside that of
            masks as they are; maybe nothing is known.
        sha256: SHA-256 of the model file.
        name: Name of the model file.
    """

    plans: Plans
    configuration: str
    weights: Mapping[str, Tensor]
    runner: SegmentationNet | CPUNetwork
    memory: PrototypeMemory
    device: torch.device
    record: Mapping[str, Any]
    expected: tuple[SubsetDice, ...] = ()
    confidence: Mapping[str, ConfidenceSums] = field(default_factory=dict)
    reliability: Mapping[str, Reliability] = field(default_factory=dict)
    components: Mapping[str, ComponentSums] = field(default_factory=dict)
    sha256: str = ""
    name: str = ""

    def predict(
        self,
        images: "Mapping[str, str | PathLike[str] | tuple[Any, Any] | SpatialImage]",
        *,
        reference: str = "",
        register: bool = False,
        step: float = 0.5,
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
            ``plans.labels``. What is doubtful about the images is told by ``warnings.warn``.

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
            confidences: How sure the model is of the mask, as ``Segmented`` has it.
        """
        found = {
            name: estimate_dice(self.confidence[name], confidence)
            for name, confidence in confidences.items()
            if name in self.confidence
        }
        return {name: estimate for name, estimate in found.items() if estimate is not None}

    @cached_property
    def calibrations(self) -> dict[str, Calibration]:
        """The curves of calibrated probabilities, by label or region; without unknown ones."""
        found = {name: calibrate(each) for name, each in self.reliability.items()}
        return {name: each for name, each in found.items() if each is not None}

    @cached_property
    def network(self) -> SegmentationNet:
        """The network, in prediction mode, on ``device``."""
        if isinstance(self.runner, SegmentationNet):
            return self.runner
        return _network(self.plans, self.configuration, self.weights).to(self.device)

    def predictor(self, available: Sequence[str]) -> Predictor:
        """Return a function from images ``(B, K, *P)`` of the available modalities to logits."""
        if isinstance(self.runner, CPUNetwork):
            return self.runner.predictor(self.memory, available)
        return case_predictor(self.runner, self.memory, available)

    @property
    def component_shares(self) -> Mapping[str, float]:
        """Return by label the share of its largest component below which others are removed.

        Regions share voxels, so that what is removed of one changes others: they keep all.
        """
        return {} if self.plans.labels.has_regions else best_shares(self.components)

    @property
    def recipe(self) -> Recipe:
        """Return what preprocessing for this model needs to know."""
        return Recipe(self.plans, self.configuration, self.modalities)

    @property
    def modalities(self) -> tuple[str, ...]:
        """Return the modalities that a training case had, in the order of the plans.

        The encoder of another one was never trained, and must not be used.
        """
        counts = self.record["modality_cases"]
        return tuple(name for name in self.plans.modalities if counts.get(name, 0))


class TrainedState(Protocol):
    """What a model file is written from; ``state.ServerState`` is one."""

    @property
    def round(self) -> int:
        """The round that it is from."""

    @property
    def weights(self) -> State:
        """Parameters of the whole network, by name."""

    @property
    def memory(self) -> PrototypeMemory:
        """The federation's prototypes."""


def save_model(
    path: Path,
    state: TrainedState,
    plans: Plans,
    configuration: str,
    modality_cases: Mapping[str, int],
    privacy: Mapping[str, Mapping[str, float]] | None = None,
    measured: Measured | None = None,
    modality_sites: Mapping[str, int] | None = None,
    folds: Sequence[str] = (),
) -> str:
    """Write a model file, whole or not at all.

    The same state gives the same bytes.

    Args:
        path: Ends in ``.safetensors``.
        state: Weights and memory.
        plans: Plans of the run.
        configuration: ``"2d"`` or ``"3d_fullres"``, that the run trained.
        modality_cases: How many training cases of the federation had each modality.
        privacy: Epsilon and delta of the sites that trained with differential privacy.
        measured: What was measured on validation cases when training ended, if it was.
        modality_sites: How many sites had training cases with each modality, where that is known.
        folds: The folds whose models ``measured`` adds up; empty: it is of this very model.

    Returns:
        The file's SHA-256.
    """
    header = {
        "format": FORMAT,
        "mixmfl_version": __version__,
        "configuration": configuration,
        "round": state.round,
        "modality_cases": dict(modality_cases),
        **({"modality_sites": dict(modality_sites)} if modality_sites else {}),
        **(measured or Measured()).to_json(),
        **({"folds": list(folds)} if folds else {}),
        "plans": plans.to_json(),
        **({"privacy": privacy} if privacy else {}),
    }
    tensors = {
        **{f"network.{name}": tensor for name, tensor in state.weights.items()},
        **memory_to_state(state.memory),
    }
    with replacing(path) as temporary:
        write(temporary, tensors, with_digests(tensors, header))
        return sha256(temporary)


def apply_personal_weights(path: Path, own: State, out: Path) -> None:
    """Write a model file with a site's own weights in place of those it has.

    What was measured on validation cases was measured of the global model, and is left out.

    Args:
        path: The global model.
        own: The site's blocks.
        out: The file to write.

    Raises:
        ModelError: The global model is damaged.
    """
    try:
        tensors, header = read(path)
        check_header(tensors, header)
        check_tensors(tensors, header)
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from None
    header = {**header, **Measured().to_json(), "folds": []}
    merged = {**tensors, **{f"network.{n}": tensor for n, tensor in own.items()}}
    with replacing(out) as temporary:
        write(temporary, merged, with_digests(merged, header))


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


def load_model(path: str | PathLike[str], device: torch.device | str = "cpu") -> Model:
    """Read a model file. Nothing in it is run: tensors and JSON only.

    Args:
        path: The model file, or the folder of a run with one model. Of a run in folds name one
            model; the mean of several is predicted by ``mixmfl_predict`` alone.
        device: Where the model computes, such as ``"cpu"`` or ``"cuda:0"``.

    Raises:
        ModelError: The file is missing, is no model, is damaged or is of another format; or the
            folder holds no model or several.
    """
    path, device = model_file(Path(path)), torch.device(device)
    tensors, header = _open_file(path)
    try:
        record, plans = _read_header(header)
        network, memory = _read_tensors(tensors, header, plans, record.configuration)
        network, memory = network.to(device), memory_to(memory, device)
        weights: Mapping[str, Tensor] = tensors.under("network.")
        if os.name == "nt":  # an open file could not be replaced
            weights = dict(weights)
    except PlansError as error:
        raise ModelError(
            f"{path}: was written by mixmfl {_writer(header)}, and mixmfl {__version__} cannot "
            f"read its plans ({error}); export the run again with mixmfl_export, or install the "
            "version that wrote it"
        ) from None
    except (OSError, DamageError) as error:
        raise _unreadable(path, error) from None
    except (LookupError, AttributeError, TypeError, ValueError, RuntimeError, MixmflError) as error:
        raise ModelError(f"{path}: header and tensors do not fit together ({error})") from None
    runner = fastest_form(network, device)
    del network
    give_back_memory()  # the weights as they came are another copy
    return Model(
        plans=plans,
        configuration=record.configuration,
        weights=weights,
        runner=runner,
        memory=memory,
        device=device,
        record={
            "mixmfl_version": record.mixmfl_version,
            "round": record.round,
            "modality_cases": record.modality_cases,
            "modality_sites": record.modality_sites,
            "folds": tuple(record.folds),
            "privacy": {site: asdict(spent) for site, spent in record.privacy.items()},
        },
        expected=tuple(record.expected),
        confidence=record.confidence,
        reliability=record.reliability,
        components=record.components,
        sha256=sha256(path),
        name=path.name,
    )


def _open_file(path: Path) -> tuple[Stored, dict[str, Any]]:
    """Return a model file's tensors, which are read on demand, and its header, undamaged.

    Raises:
        ModelError: The file cannot be read, is no model, is damaged or is of another format.
    """
    try:
        tensors, header = open_stored(SelfClosingFile(path))
        if header.get("format") == FORMAT:
            check_header(tensors, header)
    except ForeignError as error:
        raise ModelError(
            f"{path}: is no model file ({error}); needed is a model.safetensors of "
            "mixmfl_train_federated or mixmfl_export, or the folder of a run"
        ) from None
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from None
    if header.get("format") != FORMAT:
        raise ModelError(
            f"{path}: format {shown(header.get('format'))} was found, {FORMAT!r} is needed; export "
            "the run again with mixmfl_export, or install the version that wrote it "
            f"({_writer(header)})"
        )
    return tensors, header


def _writer(header: Mapping[str, Any]) -> str:
    """Return the version of mixmfl that wrote a file, as its header says."""
    version = header.get("mixmfl_version")
    return str(version) if is_text(version) else "of unknown version"


def _read_header(header: Mapping[str, Any]) -> tuple[_Header, Plans]:
    """Return what a header says, and the plans in it.

    Raises:
        MixmflError: A field is missing, unknown or out of bounds, or two contradict each other.
    """
    if any("dice" in each for each in header.get("expected", ())):
        header = {**header, "expected": []}  # means of earlier versions, maybe of one case
    record = read_record(_Header, header, "header", ModelError)
    plans = Plans.from_json(record.plans, "plans")
    plans.configuration(record.configuration)  # raises where it was not planned
    _check_origin(record, plans)
    return record, plans


def _read_tensors(
    tensors: Stored, header: Mapping[str, Any], plans: Plans, configuration: str
) -> tuple[SegmentationNet, PrototypeMemory]:
    """Return the planned network with a file's weights, and the file's prototypes.

    Raises:
        ValueError: A tensor is missing, is none of the planned ones, is damaged, or holds NaN.
    """
    # first what was planned and what the file declares, then its numbers
    network = build_outline(plans, configuration)
    weights = tensors.under("network.")
    check_state(network, weights)
    others = tensors.only([name for name in tensors if not name.startswith("network.")])
    check_memory(others, plans, configuration)
    numbers = dict(tensors)  # the file is read once
    check_tensors(numbers, header)
    if bad := [name for name, tensor in numbers.items() if not tensor.isfinite().all()]:
        raise ValueError(f"{len(bad)} tensors hold NaN or infinity, such as {min(bad)}")
    assign_parameters(network, {name: numbers[f"network.{name}"] for name in weights})
    return network, memory_from_state(numbers)


def _unreadable(path: Path, error: Exception) -> ModelError:
    return ModelError(
        f"{path}: cannot be read as a model ({why(error)}); copy it again, or export it again with "
        "mixmfl_export"
    )


def _network(plans: Plans, configuration: str, weights: Mapping[str, Tensor]) -> SegmentationNet:
    """Return the planned network in prediction mode, with these weights.

    Raises:
        ValueError: A weight is missing, is none of the network's, or has another shape than
            planned.
    """
    network = build_outline(plans, configuration)
    assign_parameters(network, weights)
    return network


def _check_origin(header: _Header, plans: Plans) -> None:
    """Check that what a header says of its model's origin is about what the plans name.

    Raises:
        ModelError: It is not.
    """
    known = plans.modalities
    cases = fields(header.modality_cases, (), "modality_cases", may=known, error=ModelError)
    fields(header.modality_sites, (), "modality_sites", may=known, error=ModelError)
    if not any(cases.values()):
        raise ModelError("modality_cases: no modality was trained with")
    measured: tuple[
        tuple[str, Mapping[str, ConfidenceSums | Reliability | ComponentSums], str], ...
    ]
    measured = (
        ("confidence", header.confidence, "no masks have these sums"),
        ("reliability", header.reliability, "no voxels have these counts"),
        ("components", header.components, "no masks have these sums"),
    )
    for field_name, by_label, impossible in measured:
        if not by_label.keys() <= plans.labels.foreground.keys():
            raise ModelError(
                f"{field_name}: {shown(list(by_label))} are not the labels of the plans"
            )
        if wrong := [name for name, sums in by_label.items() if not sums.is_possible]:
            raise ModelError(f"{field_name}: {shown(wrong[0])}: {impossible}")
    subsets = {each.modalities for each in header.expected}
    if len(subsets) < len(header.expected):  # each would be compared with all others, per case
        raise ModelError(f"expected: has {len(header.expected)} of {len(subsets)} subsets")
    for each in header.expected:
        if each.modalities != tuple(sorted(each.modalities)):
            raise ModelError(f"expected: {shown(each.modalities)} are not sorted")
        if not {*each.modalities} <= {*known}:
            raise ModelError(f"expected: {shown(each.modalities)} are not those of the plans")
        if not each.counts.keys() <= plans.labels.foreground.keys():
            raise ModelError(
                f"expected: {shown(list(each.counts))} are not the labels of the plans"
            )
