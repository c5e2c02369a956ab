"""The plans of a run: one JSON file, read once, then frozen; and the presets they start from."""

import dataclasses
import hashlib
import json
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

from mixmfl.errors import PlansError
from mixmfl.files import read_json, write_json
from mixmfl.labels import Labels

FORMAT = 1

# the least and the greatest value of settings that may be other than above 0
RANGES = {
    "tailored_width": (0, math.inf),
    "shared_width": (0, math.inf),
    "compensation_levels": (-math.inf, math.inf),
    "weight_decay": (0, math.inf),
    "foreground_share": (0, 1),
    "modality_dropping": (0, 1),
    "imagining": (0, 1),
    "memory_decay": (0, 1),
    "personal_share": (0, 1),
    "trimming": (0, 0.5),
}

# the words that a setting may be, or by which it has numbers
CHOICES = {
    "form": ("decoupled", "stacked"),
    "fusion": ("concatenated", "gated"),
    "decoder_skips": ("concatenated", "added"),
    "losses": ("alignment", "separation"),
    "aggregation": ("mean", "clipped", "median", "trimmed"),
}

T = TypeVar("T")


@dataclass(frozen=True)
class PlannerSettings:
    """What nnU-Net's planner is told.

    Attributes:
        memory_gb: GPU memory that patch and batch size aim at. nnU-Net's own default is 8.
        base_features: Channels of the first stage; doubled at every stage.
        max_features_2d: Channels at most, 2-D.
        max_features_3d: Channels at most, 3-D.
        target_spacing: mm, (Z, Y, X); None: nnU-Net's choice (the median of the cases).
    """

    memory_gb: float
    base_features: int
    max_features_2d: int
    max_features_3d: int
    target_spacing: tuple[float, ...] | None


@dataclass(frozen=True)
class NetworkSettings:
    """What is ours to choose in the network, beyond the stages that the planner lays out.

    Attributes:
        form: ``"decoupled"``: MDM's encoders per modality; ``"stacked"``: one plain U-Net with a
            channel per modality, zero where it is absent. The rest is of the decoupled form.
        tailored_width: Channels of a tailored encoder, as a share of the planned channels; 0:
            there is none.
        shared_width: Channels of the shared encoder, likewise.
        fusion: How slots become one: ``"concatenated"``, or a ``"gated"`` mean.
        compensation_levels: Encoder levels at which the memory stands in for absent modalities;
            0 is full resolution, -1 the deepest. At the others absent modalities are left out.
        temperature: Of the attention over prototypes; cosine similarities are divided by it.
        decoder_convs: Convolutions at each resolution of the decoder; nnU-Net plans two.
        decoder_skips: How a fused map joins what the decoder brings from below:
            ``"concatenated"``, as in nnU-Net, or ``"added"``.
    """

    form: str
    tailored_width: float
    shared_width: float
    fusion: str
    compensation_levels: tuple[int, ...]
    temperature: float
    decoder_convs: int
    decoder_skips: str


@dataclass(frozen=True)
class TrainingSettings:
    """How sites train.

    Attributes:
        rounds: Exchanges with the server.
        local_steps: Gradient steps of each site in a round.
        learning_rate: Of AdamW in the first round; falls polynomially (power 0.9) to the last.
        weight_decay: Of AdamW.
        gradient_norm: Gradients are clipped to this norm (nnU-Net: 12).
        foreground_share: Share of a batch whose patch is centred on foreground (nnU-Net: 1/3).
        modality_dropping: Probability that the second look at a case is with some of its
            modalities hidden, every non-empty proper subset being equally likely; 0: there is no
            second look.
        imagining: Probability that a modality which a case lacks, and the memory knows, is imagined
            in one more look at the case, see ``imagine``; 0: there is no such look, and no memory
            but at the compensation levels.
        losses: Weights, by name, of losses on the deepest features of both streams, see
            ``loss.LOSSES``; one that is not named is none.
        memory_decay: What a modality's earlier batches of a round still count for in the site's
            prototypes, per later batch that shows it: features drift while the encoders learn.
        validate_every: Rounds between two validations; the last round is always validated.
        keep_every: Rounds between two states that are kept for good, beside last and best.
        personal_rounds: Rounds, of the run's local steps, in which a site fine-tunes its own copy.
        personal_learning_rate: Of AdamW in the first of these; falls as that of a run does.
        personal_share: How far the copy goes from the model of all to the fine-tuned weights.
        aggregation: How the sites' versions of a block become one; see
            ``aggregate.merge_blocks``.
        trimming: Share of the holders that ``"trimmed"`` leaves out at each end.
    """

    rounds: int
    local_steps: int
    learning_rate: float
    weight_decay: float
    gradient_norm: float
    foreground_share: float
    modality_dropping: float
    imagining: float
    losses: Mapping[str, float]
    memory_decay: float
    validate_every: int
    keep_every: int
    personal_rounds: int
    personal_learning_rate: float
    personal_share: float
    aggregation: str
    trimming: float


@dataclass(frozen=True)
class Preset:
    """The settings that plans are made with."""

    planner: PlannerSettings
    network: NetworkSettings
    training: TrainingSettings


@dataclass(frozen=True)
class Plans:
    """Everything that sites must agree on to train together.

    Attributes:
        modalities: Those of the federation; the order of the network's input.
        labels: What the labels mean.
        nnunet: nnU-Net's plans as its planner wrote them; their channels are ``modalities``.
        network: Our part of the architecture.
        training: How sites train.
    """

    modalities: tuple[str, ...]
    labels: Labels
    nnunet: Mapping[str, Any]
    network: NetworkSettings
    training: TrainingSettings

    @property
    def configurations(self) -> tuple[str, ...]:
        """Return the planned configurations among ``2d`` and ``3d_fullres``."""
        return tuple(name for name in ("2d", "3d_fullres") if name in self.nnunet["configurations"])

    def configuration(self, name: str) -> Mapping[str, Any]:
        """Return nnU-Net's settings of a configuration.

        Raises:
            PlansError: It was not planned.
        """
        if name not in self.configurations:
            raise PlansError(
                f"configuration {name!r} is not in these plans, which have "
                f"{', '.join(self.configurations)}"
            )
        return self.nnunet["configurations"][name]

    def preprocessing(self, name: str) -> str:
        """Return a digest of all that decides what a preprocessed case looks like."""
        decides = [
            self.configuration(name),
            self.nnunet["transpose_forward"],
            self.labels.to_json(),
            self.modalities,
        ]
        if self.nnunet.get("slices_first"):
            decides.append("slices first")
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """Return the plans as JSON content, as reading it gives it: lists, no tuples."""
        content = {
            "format": FORMAT,
            "modalities": self.modalities,
            "labels": self.labels.to_json(),
            "network": dataclasses.asdict(self.network),
            "training": dataclasses.asdict(self.training),
            "nnunet": self.nnunet,
        }
        return json.loads(json.dumps(content))

    @classmethod
    def from_json(cls, content: Mapping[str, Any], source: str) -> "Plans":
        """Check and take plans.

        Raises:
            PlansError: Another format; an unknown, missing or wrong field.
        """
        if content.get("format") != FORMAT:
            raise PlansError(
                f"{source}: plans of format {content.get('format')!r} were found, this version of "
                f"mixmfl reads {FORMAT}; plan again, or install the version that made them"
            )
        wanted = {"format", "modalities", "labels", "network", "training", "nnunet"}
        _check_names(set(content), wanted, source)
        _check_planned(content, source)
        made = cls(
            modalities=tuple(content["modalities"]),
            labels=Labels.from_dataset_json(content["labels"], source),
            nnunet=content["nnunet"],
            network=_settings(NetworkSettings, content["network"], f"{source}: network"),
            training=_settings(TrainingSettings, content["training"], f"{source}: training"),
        )
        if not made.configurations:
            raise PlansError(f"{source}: neither 2d nor 3d_fullres is planned in it; plan again")
        _check_streams(made.network, made.training, source)
        for name in made.configurations:
            stages = made.configuration(name)["architecture"]["arch_kwargs"]["n_stages"]
            if bad := [n for n in made.network.compensation_levels if not -stages <= n < stages]:
                raise PlansError(
                    f"{source}: network: compensation_levels: {name} has {stages} levels, from 0 "
                    f"to {stages - 1} or from -{stages} to -1; {bad[0]} is none of them"
                )
        return made

    def save(self, path: Path) -> None:
        """Write the plans, whole or not at all."""
        write_json(path, self.to_json())

    @classmethod
    def load(cls, path: Path) -> "Plans":
        """Read plans.

        Raises:
            PlansError: The file is missing or is not plans of this version.
        """
        return cls.from_json(read_json(path, PlansError), str(path))


def replace_settings(
    plans: Plans, network: Mapping[str, Any], training: Mapping[str, Any]
) -> Plans:
    """Return plans with some settings replaced, checked as if read.

    Raises:
        PlansError: A name or a value is wrong.
    """
    content = plans.to_json()
    for part, changes in (("network", network), ("training", training)):
        _check_names(set(content[part]) | set(changes), set(content[part]), part)
        content[part] = {**content[part], **changes}
    return Plans.from_json(content, "settings")


def preset_names() -> tuple[str, ...]:
    """Return the shipped presets."""
    found = files("mixmfl.plans").iterdir()
    return tuple(sorted(f.name.removesuffix(".json") for f in found if f.name.endswith(".json")))


def load_preset(name: str) -> Preset:
    """Read a shipped preset by its name, or a user's by its path.

    Raises:
        PlansError: There is none of that name, or a field is unknown, missing or wrong.
    """
    if name in preset_names():
        content = json.loads(files("mixmfl.plans").joinpath(f"{name}.json").read_text("utf-8"))
    elif name.endswith(".json"):
        content = read_json(Path(name), PlansError)
    else:
        raise PlansError(
            f"preset {name!r}: there are {', '.join(preset_names())}, or give the path of a .json"
        )
    preset = _settings(Preset, content, name)
    spacing = preset.planner.target_spacing
    if spacing is not None and len(spacing) != 3:
        raise PlansError(f"{name}: planner: target_spacing: (Z, Y, X) in mm is needed")
    return preset


def _check_streams(network: NetworkSettings, training: TrainingSettings, source: str) -> None:
    """Check that there is an encoder, and where there is a memory what it is made of."""
    if not network.tailored_width and not network.shared_width:
        raise PlansError(
            f"{source}: network: tailored_width and shared_width are both 0; one is needed"
        )
    if network.form == "stacked" or not network.tailored_width or not network.shared_width:
        if network.compensation_levels or training.imagining:
            raise PlansError(
                f"{source}: a memory needs both streams; leave network: compensation_levels "
                "empty, and make training: imagining 0"
            )
        if training.losses:
            raise PlansError(
                f"{source}: training: losses are of both streams, of which the network has one; "
                "leave them empty"
            )


def _check_planned(content: Mapping[str, Any], source: str) -> None:
    """Check the parts of plans that are not settings, as far as we read them ourselves."""
    modalities = content["modalities"]
    if (
        not isinstance(modalities, list)
        or not modalities
        or not all(isinstance(name, str) for name in modalities)
    ):
        raise PlansError(f"{source}: modalities: a list of names is needed, not {modalities!r}")
    for name in ("labels", "nnunet"):
        if not isinstance(content[name], Mapping):
            raise PlansError(f"{source}: {name}: an object is needed, not {content[name]!r}")
    try:
        for name, planned in content["nnunet"]["configurations"].items():
            if name in ("2d", "3d_fullres"):
                sizes = [*planned["patch_size"], planned["batch_size"]]
                stages = planned["architecture"]["arch_kwargs"]["n_stages"]
                if not all(isinstance(size, int) and size > 0 for size in [*sizes, stages]):
                    raise TypeError("sizes are whole numbers above 0")
    except (KeyError, TypeError, AttributeError) as error:
        raise PlansError(f"{source}: nnunet: is damaged ({error}); plan again") from None


def _settings(kind: type[T], content: Any, source: str) -> T:
    """Build a settings dataclass from JSON, refusing what it does not have."""
    if not isinstance(content, Mapping):
        raise PlansError(f"{source}: an object with fields is needed, not {content!r}")
    types_by_name = typing.get_type_hints(kind)
    _check_names(set(content), set(types_by_name), source)
    return kind(
        **{
            name: _value(expected, content[name], f"{source}: {name}")
            for name, expected in types_by_name.items()
        }
    )


def _value(expected: Any, given: Any, source: str) -> Any:
    """Check a JSON value against a field's type: number, word, numbers in a row or by name."""
    if dataclasses.is_dataclass(expected):
        return _settings(typing.cast(type, expected), given, source)
    if isinstance(expected, types.UnionType):  # only ever `something | None`
        return None if given is None else _value(typing.get_args(expected)[0], given, source)
    if typing.get_origin(expected) is tuple:
        if not isinstance(given, list | tuple):
            raise PlansError(f"{source}: a list is needed, not {given!r}")
        return tuple(_value(typing.get_args(expected)[0], item, source) for item in given)
    if typing.get_origin(expected) is Mapping:
        words = CHOICES[source.rpartition(": ")[2]]
        if not isinstance(given, Mapping) or not given.keys() <= set(words):
            raise PlansError(
                f"{source}: numbers by name are needed, of {', '.join(words)}, not {given!r}"
            )
        kind = typing.get_args(expected)[1]
        return {name: _value(kind, given[name], f"{source}: {name}") for name in sorted(given)}
    if expected is str:
        words = CHOICES[source.rpartition(": ")[2]]
        if given not in words:
            raise PlansError(f"{source}: is {given!r}; it must be {' or '.join(words)}")
        return given
    number = int if expected is int else (int, float)
    if isinstance(given, bool) or not isinstance(given, number):
        raise PlansError(f"{source}: {expected.__name__} is needed, not {given!r}")
    least, greatest = RANGES.get(source.rpartition(": ")[2], (None, math.inf))
    if not math.isfinite(given) or not (given > 0 if least is None else least <= given <= greatest):
        wanted = "above 0" if least is None else f"from {least:g} to {greatest:g}"
        raise PlansError(f"{source}: is {given:g}; it must be {wanted}")
    return expected(given)


def _check_names(given: set[str], wanted: set[str], source: str) -> None:
    if given != wanted:
        raise PlansError(
            f"{source}: unknown fields {sorted(given - wanted)}, missing fields "
            f"{sorted(wanted - given)}"
        )
