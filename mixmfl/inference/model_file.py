"""The model file: weights and memory, and in its header all that they mean."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from os import PathLike
from pathlib import Path
from typing import Annotated, Any, Protocol

import torch
from torch import Tensor

from mixmfl.core.declarations import entries, text, within
from mixmfl.core.errors import MixmflError, ModelError, why
from mixmfl.core.files import SelfClosingFile, replacing, sha256
from mixmfl.core.json_fields import MOST_NAME, fields, is_text, shown
from mixmfl.core.process_memory import give_back_memory
from mixmfl.core.records import json_of, read_record
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
from mixmfl.data.modalities import LONGEST_NAME, MOST_MODALITIES
from mixmfl.evaluation.mask_quality import Confidence, Measured
from mixmfl.evaluation.reliability import Reliabilities
from mixmfl.evaluation.small_components import Components
from mixmfl.evaluation.subset_dice import MOST_CASES, Expected
from mixmfl.inference.cpu_network import fastest_form
from mixmfl.inference.model import Model, TrainedOn
from mixmfl.inference.model_folder import model_file
from mixmfl.networks.base import SegmentationNet
from mixmfl.networks.build import build_outline, check_memory
from mixmfl.networks.parameters import assign_parameters, check_state, shapes_of
from mixmfl.networks.prototypes import (
    PrototypeMemory,
    State,
    memory_from_state,
    memory_to,
    memory_to_state,
)
from mixmfl.planning.plans import Plans

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
    modality_sites: Annotated[
        Mapping[Annotated[str, text(LONGEST_NAME)], Annotated[int, within(0, MOST_SITES)]],
        entries(0, MOST_MODALITIES),
    ]
    expected: Expected
    confidence: Confidence
    reliability: Reliabilities
    components: Components
    plans: Any
    tensors_sha256: Any
    header_sha256: Any
    folds: Annotated[Sequence[Annotated[str, text(1)]], entries(0, 5, distinct=True)] = ()
    privacy: Annotated[Mapping[Annotated[str, text(MOST_NAME)], _Spent], entries(0, MOST_SITES)] = (
        field(default_factory=dict)
    )


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
    trained_on: TrainedOn,
    measured: Measured | None = None,
) -> str:
    """Write a model file, whole or not at all.

    The same state gives the same bytes.

    Args:
        path: Ends in ``.safetensors``.
        state: Weights and memory.
        plans: Plans of the run.
        configuration: ``"2d"`` or ``"3d_fullres"``, that the run trained.
        trained_on: What the weights were trained on.
        measured: What was measured on validation cases when training ended, if it was.

    Returns:
        The file's SHA-256.
    """
    header = {
        "format": FORMAT,
        "mixmfl_version": __version__,
        "configuration": configuration,
        "round": state.round,
        "modality_cases": dict(trained_on.modality_cases),
        "modality_sites": dict(trained_on.modality_sites),
        **json_of(measured or Measured()),
        **({"folds": list(trained_on.folds)} if trained_on.folds else {}),
        "plans": plans.to_json(),
        **({"privacy": trained_on.privacy} if trained_on.privacy else {}),
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
    header = {**header, **json_of(Measured()), "folds": []}
    merged = {**tensors, **{f"network.{n}": tensor for n, tensor in own.items()}}
    with replacing(out) as temporary:
        write(temporary, merged, with_digests(merged, header))


def load_model(path: str | PathLike[str], device: torch.device | str = "cpu") -> Model:
    """Read a model file. Nothing in it is run: tensors and JSON only.

    Args:
        path: The model file, or the folder of a run with one model. A run in folds has several,
            whose mean is predicted by ``mixmfl_predict`` alone: name the file of one.
        device: Where the model computes, such as ``"cpu"`` or ``"cuda:0"``.

    Raises:
        ModelError: The file is missing, is no model, is damaged or is of another format; or the
            folder holds no model or several.
    """
    path, device = model_file(Path(path)), torch.device(device)
    tensors, header = _open_file(path)
    try:
        record, plans = _read_header(header)
    except MixmflError as error:
        raise _other_header(path, _writer(header), error) from None
    try:
        network, memory = _read_tensors(tensors, header, plans, record.configuration)
        network, memory = network.to(device), memory_to(memory, device)
        weights: Mapping[str, Tensor] = tensors.under("network.")
        if os.name == "nt":  # an open file could not be replaced
            weights = dict(weights)
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
        trained_on=TrainedOn(
            record.modality_cases,
            record.modality_sites,
            tuple(record.folds),
            {site: asdict(spent) for site, spent in record.privacy.items()},
        ),
        round=record.round,
        version=record.mixmfl_version,
        measured=Measured(
            tuple(record.expected), record.confidence, record.reliability, record.components
        ),
        sha256=tensors.sha256(),
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
            f"(mixmfl {_writer(header)})"
        )
    return tensors, header


def _other_header(path: Path, writer: str, error: MixmflError) -> ModelError:
    """Return what to say of a whole file of this format with a header that is not read here."""
    if writer == __version__:
        return ModelError(
            f"{path}: its header is not that of a model of mixmfl {__version__} ({error}); export "
            "the run again with the mixmfl that is installed here (mixmfl_export), or train again"
        )
    return ModelError(
        f"{path}: has a header of mixmfl {writer}; one of mixmfl {__version__} is needed "
        f"({error}). Install the version that wrote it, or train again"
    )


def _writer(header: Mapping[str, Any]) -> str:
    """Return the version of mixmfl that wrote a file, as its header says."""
    version = header.get("mixmfl_version")
    return str(version) if is_text(version) else "of an unknown version"


def _read_header(header: Mapping[str, Any]) -> tuple[_Header, Plans]:
    """Return what a header says, and the plans in it.

    Raises:
        MixmflError: A field is missing, unknown or out of bounds, or two contradict each other.
    """
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
    check_state(shapes_of(network), weights)
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
    measured: Sequence[tuple[str, Mapping[str, Any], str]] = (
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
