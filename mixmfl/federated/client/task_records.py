"""The fields of the coordinator's tasks, as a site takes them: types and bounds, and no others.

What a run allows, beyond that, is in ``task_checks``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from mixmfl.core.declarations import entries, one_of, text, within
from mixmfl.data.modalities import MOST_MODALITIES, ModalityName
from mixmfl.federated.secure_aggregation.protocol import MOST_BLOCKS, BlockName
from mixmfl.federated.state import Cases, RunSettings, Voxels
from mixmfl.inference.model_folder import Configuration, Fold
from mixmfl.planning.bounds import MOST_ROUNDS
from mixmfl.planning.nnunet_plans import CONFIGURATIONS

_Round = Annotated[int, within(0, MOST_ROUNDS)]


@dataclass(frozen=True)
class FingerprintTask:
    """Send statistics for planning.

    Attributes:
        minimum: Cases and voxels that must be behind a statistic.
        version: The coordinator's version of mixmfl, which was compared before.
    """

    minimum: tuple[Cases, Voxels]
    version: Any = None


@dataclass(frozen=True)
class PreprocessTask:
    """Preprocess the cases.

    Attributes:
        plans: Plans, which ``Plans.from_json`` checks.
        configurations: Configurations to preprocess.
    """

    plans: Any
    configurations: Annotated[
        Sequence[Annotated[str, one_of(CONFIGURATIONS)]], entries(0, 2, distinct=True)
    ]


@dataclass(frozen=True)
class JoinTask:
    """Join a run.

    Attributes:
        run: Name of the run, which names a folder: so it leads nowhere else.
        plans: Plans, which ``Plans.from_json`` checks.
        settings: Settings of the run.
        fold: Validation fold.
        version: The coordinator's version of mixmfl, which was compared before.
    """

    run: Annotated[str, text(64, "[A-Za-z0-9]+", "letters and digits")]
    plans: Any
    settings: RunSettings
    fold: Fold
    version: Any = None


@dataclass(frozen=True)
class RoundTask:
    """Send public keys for a round."""

    round: _Round


@dataclass(frozen=True)
class TrainTask(RoundTask):
    """Train in a round.

    Attributes:
        settled: Blocks that learn more slowly; see ``LocalTraining``.
    """

    settled: Annotated[Sequence[BlockName], entries(0, MOST_BLOCKS, distinct=True)] = ()


@dataclass(frozen=True)
class ValidationTask:
    """Validate a model, with the modalities that it can use."""

    round: _Round
    modalities: Annotated[Sequence[ModalityName], entries(0, MOST_MODALITIES, distinct=True)]


@dataclass(frozen=True)
class ComparisonTask(ValidationTask):
    """Measure a model, that of another configuration, and the mean of both.

    Attributes:
        beside: The other configuration, whose tensors' names begin with ``BESIDE``.
    """

    beside: Configuration


@dataclass(frozen=True)
class ModelTask:
    """Keep the finished model, which is the task's tensor."""


TASKS: Mapping[str, type] = {
    "fingerprint": FingerprintTask,
    "preprocess": PreprocessTask,
    "join": JoinTask,
    "train": TrainTask,
    "keys": RoundTask,
    "validate": ValidationTask,
    "measure": ValidationTask,
    "compare": ComparisonTask,
    "personalize": ValidationTask,
    "model": ModelTask,
}
"""Records of tasks by kind; that of ``masked`` is ``Participants``."""
