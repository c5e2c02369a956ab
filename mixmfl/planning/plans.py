"""The plans of a run: one JSON file, read once, then frozen; and the presets they start from."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

from mixmfl.core.declarations import entries, one_of, text, within
from mixmfl.core.errors import DataError, PlansError
from mixmfl.core.files import json_digest, read_json, write_json
from mixmfl.core.json_fields import MOST_NAME, Range, fields, is_text, listed, shown, whole
from mixmfl.core.records import read_record, read_value
from mixmfl.data.labels import LARGEST_VALUE, MOST_LABELS, Labels
from mixmfl.data.modalities import MOST_MODALITIES, ModalityName
from mixmfl.planning.architecture import check_network_size
from mixmfl.planning.heads import DEEPBET, OWN, PLANNED_WORDS
from mixmfl.planning.model_card import ModelCard
from mixmfl.planning.nnunet_plans import CONFIGURATIONS, check_planned
from mixmfl.planning.settings import NetworkSettings, PlannerSettings, TrainingSettings

FORMAT = 1


@dataclass(frozen=True)
class Preset:
    """The settings that plans are made with; a file holds what differs from the defaults."""

    planner: PlannerSettings = field(default_factory=PlannerSettings)
    network: NetworkSettings = field(default_factory=NetworkSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)


@dataclass(frozen=True)
class _Record:
    """Plans as their JSON has them.

    Attributes:
        format: ``FORMAT``, which was compared before.
        modalities: See ``Plans``.
        labels: As in nnU-Net's dataset.json; ``_labels`` checks them.
        network: See ``Plans``.
        training: See ``Plans``.
        nnunet: nnU-Net's plans, which ``nnunet_plans`` checks.
        heads: See ``Plans``.
        card: See ``Plans``; it leaves out what nobody said.
    """

    format: Any
    modalities: Annotated[tuple[ModalityName, ...], entries(1, MOST_MODALITIES, distinct=True)]
    labels: Any
    network: NetworkSettings
    training: TrainingSettings
    nnunet: Any
    heads: Annotated[str, one_of((*PLANNED_WORDS,))]
    card: Any


@dataclass(frozen=True)
class Plans:
    """Everything that sites must agree on to train together.

    Attributes:
        modalities: Modalities of the federation, in the order of the network's input.
        labels: What the labels mean.
        nnunet: nnU-Net's plans as its planner wrote them; their channels are ``modalities``.
        network: Our part of the architecture.
        training: How sites train.
        heads: What the cases are like that the plans were made from, a key of ``PLANNED_WORDS``;
            with ``"deepbet"`` or ``"own"`` brains are extracted wherever cases are read.
        card: Where the cases come from that the plans were made from.
    """

    modalities: tuple[str, ...]
    labels: Labels
    nnunet: Mapping[str, Any]
    network: NetworkSettings
    training: TrainingSettings
    heads: str
    card: ModelCard = field(default_factory=ModelCard)

    @property
    def configurations(self) -> tuple[str, ...]:
        """Return the planned configurations among ``2d`` and ``3d_fullres``."""
        return tuple(name for name in CONFIGURATIONS if name in self.nnunet["configurations"])

    def configuration(self, name: str) -> Mapping[str, Any]:
        """Return nnU-Net's settings of a configuration.

        Raises:
            PlansError: The configuration was not planned.
        """
        if name not in self.configurations:
            raise PlansError(
                f"configuration {shown(name)} is not in these plans, which have "
                f"{', '.join(self.configurations)}"
            )
        return self.nnunet["configurations"][name]

    def preprocessing(self, name: str) -> str:
        """Return a digest of all that decides how a case is preprocessed."""
        decides = [
            self.configuration(name),
            self.nnunet["transpose_forward"],
            self.labels.to_json(),
            self.modalities,
        ]
        if self.nnunet.get("slices_first"):
            decides.append("slices first")
        if self.heads in (DEEPBET, OWN):
            decides.append(["brains", self.heads])
        return json_digest(decides)

    def to_json(self) -> dict[str, Any]:
        """Return the plans as JSON content, as reading it gives it: lists, no tuples."""
        content = {
            "format": FORMAT,
            "modalities": self.modalities,
            "labels": self.labels.to_json(),
            "network": dataclasses.asdict(self.network),
            "training": dataclasses.asdict(self.training),
            "nnunet": self.nnunet,
            "heads": self.heads,
            "card": self.card.to_json(),
        }
        return json.loads(json.dumps(content))

    @classmethod
    def from_json(cls, content: Any, source: str) -> "Plans":
        """Read and check plans of a file or of a message, or plans that were just made.

        Every name in them is compared with a closed list, every number with bounds, before
        anything is looked up, built or allocated; see ``nnunet_plans`` and ``architecture``.

        Raises:
            PlansError: Another format; an unknown, missing or wrong field; more than is built.
        """
        if not isinstance(content, Mapping) or content.get("format") != FORMAT:
            found = content.get("format") if isinstance(content, Mapping) else content
            raise PlansError(
                f"{source}: plans of format {shown(found)} were found, this version of "
                f"mixmfl reads {FORMAT}"
            )
        record = read_record(_Record, content, source, whole=True)
        modalities, network = record.modalities, record.network
        labels = _labels(record.labels, f"{source}: labels")
        check_planned(record.nnunet, len(modalities), f"{source}: nnunet")
        card = read_record(ModelCard, record.card, f"{source}: card")
        plans = cls(modalities, labels, record.nnunet, network, record.training, record.heads, card)
        _check_streams(network, source)
        for name in plans.configurations:
            planned = plans.configuration(name)["architecture"]["arch_kwargs"]
            stages = planned["n_stages"]
            if bad := [n for n in network.compensation_levels if not -stages <= n < stages]:
                raise PlansError(
                    f"{source}: network: compensation_levels: {name} has {stages} levels, from 0 "
                    f"to {stages - 1} or from -{stages} to -1; {bad[0]} is none of them"
                )
            outputs = max(len(labels.values), len(labels.foreground))
            check_network_size(planned, len(modalities), outputs, network, f"{source}: {name}")
        return plans

    def save(self, path: Path) -> None:
        """Write the plans, whole or not at all."""
        write_json(path, self.to_json())

    @classmethod
    def load(cls, path: Path) -> "Plans":
        """Read plans.

        Raises:
            PlansError: The file is missing or is not plans of this version.
        """
        content = read_json(path, PlansError)
        try:
            return cls.from_json(content, str(path))
        except PlansError as error:
            raise PlansError(
                f"{error}; plan again (mixmfl_plan_preprocess --replan), or install the version of "
                "mixmfl that made these plans"
            ) from None


def replace_settings(
    plans: Plans, network: Mapping[str, Any], training: Mapping[str, Any]
) -> Plans:
    """Return plans with some settings replaced, checked as if read.

    Raises:
        PlansError: A name or a value is wrong.
    """
    content = plans.to_json()
    for part, changes in (("network", network), ("training", training)):
        fields({**content[part], **changes}, tuple(content[part]), part)
        content[part] = {**content[part], **changes}
    return Plans.from_json(content, "settings")


def settings_digest(made: Plans | Preset) -> str:
    """Return a digest of how sites train, which plans take from their preset as it is.

    What the planner makes of the cases, such as voxels, patch and channels, is not in it.
    """
    network, training = dataclasses.asdict(made.network), dataclasses.asdict(made.training)
    return json_digest({"network": network, "training": training})


def preset_names() -> tuple[str, ...]:
    """Return the shipped presets."""
    entries = files("mixmfl.plans").iterdir()
    return tuple(sorted(f.name.removesuffix(".json") for f in entries if f.name.endswith(".json")))


def load_preset(name: str) -> Preset:
    """Read a shipped preset by its name, or a user's by its path.

    What it does not name has the declared default.

    Raises:
        PlansError: There is none of that name, or a field is unknown or wrong.
    """
    if name in preset_names():
        content = json.loads(files("mixmfl.plans").joinpath(f"{name}.json").read_text("utf-8"))
    elif name.endswith(".json"):
        content = read_json(Path(name), PlansError)
    else:
        raise PlansError(
            f"preset {name!r}: there are {', '.join(preset_names())}, or give the path of a .json"
        )
    return read_record(Preset, content, name)


_Cases = Annotated[int, within(0, 10**6)]
_Preprocessed = Annotated[
    Mapping[
        Annotated[str, text(MOST_NAME)],
        Annotated[
            Mapping[Annotated[str, one_of(CONFIGURATIONS)], tuple[_Cases, _Cases]], entries(0, 2)
        ],
    ],
    entries(0, 10_000),
]


def read_preprocessed(file: Path) -> Mapping[str, Mapping[str, tuple[int, int]]]:
    """Read how many cases a network's sites preprocessed and refused, by configuration.

    Raises:
        PlansError: The file is missing or damaged.
    """
    return read_value(_Preprocessed, read_json(file, PlansError), str(file))


def usual_configuration(work: Path, plans: Plans) -> str:
    """Return the configuration that is trained where none is named.

    It is the only one that was preprocessed; of both, ``3d_fullres``.

    Args:
        work: Folder with the sites' folders, or with ``preprocessed.json`` of a network's sites.
        plans: Plans of these sites.
    """
    record = work / "preprocessed.json"
    reported = read_preprocessed(record).values() if record.is_file() else ()
    preprocessed = [
        name
        for name in plans.configurations
        if any(name in site for site in reported) or any(work.glob(f"sites/*/{name}"))
    ]
    return (preprocessed or list(plans.configurations))[-1]


def _check_streams(network: NetworkSettings, source: str) -> None:
    """Check that there is an encoder, and where there is a memory what it is made of."""
    if not network.tailored_width and not network.shared_width:
        raise PlansError(
            f"{source}: network: tailored_width and shared_width are both 0; one is needed"
        )
    alone = network.form == "anchored"  # whose memory needs no shared stream
    both = network.form != "stacked" and network.tailored_width and (alone or network.shared_width)
    if not both and network.compensation_levels:
        raise PlansError(
            f"{source}: a memory needs both streams; leave network: compensation_levels empty"
        )


def _labels(content: Any, source: str) -> Labels:
    fields(content, ("labels",), source, may=("regions_class_order",))
    names = content["labels"]
    entries = Range(0, MOST_LABELS)
    if isinstance(names, Mapping):
        listed(list(names), entries, source)  # before each is looked at
        for name, value in names.items():
            if not is_text(name):
                raise PlansError(
                    f"{source}: {shown(name)} cannot name a label; at most {MOST_NAME} characters "
                    "are taken, in one line"
                )
            at = f"{source}: {name}"
            several = isinstance(value, list | tuple)
            for number in listed(value, entries, at) if several else [value]:
                whole(number, Range(0, LARGEST_VALUE), at)
    if content.get("regions_class_order") is not None:
        listed(content["regions_class_order"], entries, f"{source}: regions_class_order")
    try:
        labels = Labels.from_dataset_json(content, source)
    except DataError as error:
        raise PlansError(str(error)) from None
    listed(labels.values, entries, f"{source}: values")
    return labels
