"""Where the numbers of a run's rounds are written: TensorBoard, MLflow or Weights & Biases.

Each is a small adapter and writes into the folder of the run, or of the run whose fold it is; none
sends anything anywhere, nor records commands or cases. MLflow's database has the paths of the run
and of the current folder.
"""

import importlib.util
import logging
import os
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

from mixmfl.core.errors import MixmflError
from mixmfl.core.files import replacing
from mixmfl.core.text import one_line
from mixmfl.federated.server.run import Run

log = logging.getLogger(__name__)


class Tracker(Protocol):
    """A place that the numbers of rounds are written to.

    Attributes:
        written: How many rounds of the run it has; those that follow are to be written.
    """

    written: int

    def __init__(self, run: Run, place: Path) -> None:
        """Open it for a run, in the folder given by ``-o``: that of the run or above it."""

    @staticmethod
    def imported() -> Any:
        """Import the package, and return what is called of it."""

    def write(self, number: int, values: Mapping[str, float]) -> None:
        """Take the numbers of a round, counted from 1, by name."""

    def close(self) -> None:
        """Write what is left."""


class TensorBoard:
    """Writes into ``RUN/tensorboard``.

    It writes TensorBoard's records itself, because TensorBoard's own writers give their files the
    machine's name.
    """

    def __init__(self, run: Run, place: Path) -> None:
        """Open a new file in the folder of the run, after those of commands before."""
        self._events, self._summary, records = self.imported()
        folder = run.folder / "tensorboard"
        folder.mkdir(exist_ok=True)
        steps = [step for file in folder.glob(_EVENTS + "*") for step in self._steps(file)]
        self.written = max(steps, default=0)
        # TensorBoard reads the files of a folder in the order of their names
        self._file = records((folder / f"{_EVENTS}{time.time_ns()}.mixmfl").open("xb"))
        self._add(file_version="brain.Event:2")

    @staticmethod
    def imported() -> Any:
        """Import the package, and return what is called of it."""
        from tensorboard.compat.proto import event_pb2
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        return event_pb2, Summary, RecordWriter

    def write(self, number: int, values: Mapping[str, float]) -> None:
        """Take the numbers of a round."""
        shown = [self._summary.Value(tag=name, simple_value=v) for name, v in values.items()]
        self._add(step=number, summary=self._summary(value=shown))
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _steps(self, file: Path) -> Iterator[int]:
        """Yield the rounds in a file, of which a kill may have cut off the end."""
        data, at = file.read_bytes(), 0
        # a record: 8 bytes of length, 4 of their checksum, the event, 4 of its checksum
        while len(data) >= (end := at + 12 + int.from_bytes(data[at : at + 8], "little")) + 4:
            event = self._events.Event.FromString(data[at + 12 : end])
            if event.HasField("summary"):
                yield event.step
            at = end + 4

    def _add(self, **fields: Any) -> None:
        event = self._events.Event(wall_time=time.time(), **fields)
        self._file.write(event.SerializeToString())


class MLflow:
    """Writes into the database ``mlflow.db``, whatever server the environment names."""

    def __init__(self, run: Run, place: Path) -> None:
        """Open the database; a run that is in it is continued."""
        client, self._metric = self.imported()
        place, name = place.resolve(), _name(run, place)
        file = place / "mlflow.db"
        if not file.is_file():  # it takes seconds to make; a kill meanwhile would leave it damaged
            with replacing(file) as new:
                client(f"sqlite:///{new}")
        self._client = client(f"sqlite:///{file}")
        known = self._client.get_experiment_by_name(_PROJECT)
        experiment = known and known.experiment_id
        if known is None:
            files = (place / "mlflow").as_uri()
            experiment = self._client.create_experiment(_PROJECT, artifact_location=files)
        earlier = [
            each.info.run_id
            for each in self._client.search_runs([experiment])
            if each.info.run_name == name
        ]
        if earlier:
            (self._id,) = earlier
            self._client.update_run(self._id, status="RUNNING")
        else:
            self._id = self._client.create_run(experiment, run_name=name).info.run_id
            for setting, value in _settings(run).items():
                self._client.log_param(self._id, setting, value)
        rounds = self._client.get_metric_history(self._id, LEARNING_RATE) if earlier else []
        self.written = max((each.step for each in rounds), default=0)

    @staticmethod
    def imported() -> Any:
        """Import the package, and return what is called of it."""
        os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"  # else it reports its use when imported
        from mlflow import MlflowClient, entities

        logging.getLogger("mlflow").setLevel(logging.WARNING)  # when imported it makes it INFO
        return MlflowClient, entities.Metric

    def write(self, number: int, values: Mapping[str, float]) -> None:
        """Take the numbers of a round."""
        now = round(1000 * time.time())
        metrics = [
            self._metric(re.sub(r"[^\w./ -]", "_", name), value, now, number)
            for name, value in values.items()
        ]
        # together: each call waits for the disk
        for start in range(0, len(metrics), _MOST_METRICS):
            self._client.log_batch(self._id, metrics[start : start + _MOST_METRICS])

    def close(self) -> None:
        """Say that the run has ended."""
        self._client.set_terminated(self._id)


class WeightsAndBiases:
    """Writes into the folder ``wandb``, offline; ``wandb sync`` is for the user to call."""

    def __init__(self, run: Run, place: Path) -> None:
        """Open a new folder, for all rounds: when it is synced, it replaces those of before."""
        init, settings = self.imported()
        self.written = 0
        self._run = init(
            project=_PROJECT,
            name=_name(run, place),
            id=sha256(str(run.folder.resolve()).encode()).hexdigest()[:16],
            mode="offline",
            dir=str(place.resolve()),
            config=_settings(run),
            settings=settings(
                console="off",
                silent=True,
                disable_git=True,
                save_code=False,
                host="-",
                # program, arguments and folders, packages, load and make of the machine
                x_disable_meta=True,
                x_save_requirements=False,
                x_disable_stats=True,
                x_disable_machine_info=True,
            ),
        )

    @staticmethod
    def imported() -> Any:
        """Import the package, and return what is called of it."""
        os.environ["WANDB_ERROR_REPORTING"] = "false"  # else its errors go to its makers
        from wandb import Settings, init

        return init, Settings

    def write(self, number: int, values: Mapping[str, float]) -> None:
        """Take the numbers of a round."""
        self._run.log(dict(values), step=number)

    def close(self) -> None:
        """Write what is left."""
        self._run.finish()


_PROJECT = "mixmfl"

_EVENTS = "events.out.tfevents."
"""What TensorBoard's files begin with."""

LEARNING_RATE = "learning_rate"
"""The number that every round has."""

_MOST_METRICS = 1000
"""What MLflow takes in one call."""

TRACKERS: Mapping[str, type[Tracker]] = {
    "tensorboard": TensorBoard,
    "mlflow": MLflow,
    "wandb": WeightsAndBiases,
}
"""The trackers by their names, which are also those of the packages that they need."""


def usual_trackers() -> tuple[str, ...]:
    """Return the trackers that write without being asked: TensorBoard, where it can be imported."""
    if importlib.util.find_spec("tensorboard") is None:
        return ()
    try:
        check_tracker("tensorboard")
    except MixmflError as error:
        log.warning("%s; training goes on without it", error)
        return ()
    return ("tensorboard",)


def check_tracker(name: str) -> None:
    """Check that the package of a tracker is installed and can be imported.

    Raises:
        MixmflError: It is not, or cannot.
    """
    if importlib.util.find_spec(name) is None:
        extra = "curves" if name == "tensorboard" else name
        raise MixmflError(f"--track {name}: is not installed; pip install 'mixmfl[{extra}]'")
    try:
        TRACKERS[name].imported()
    except Exception as error:  # whatever is broken in a package or in what it imports
        raise MixmflError(
            f"{name} is installed, but cannot be imported ({type(error).__name__}: "
            f"{one_line(error, 300)})"
        ) from None


def _name(run: Run, place: Path) -> str:
    """Return what a run is called: of a fold, after the run that it is of."""
    place = place.resolve()
    return str(Path(place.name, run.folder.resolve().relative_to(place)))


def _settings(run: Run) -> dict[str, str | int | float]:
    """Return the settings of a run, of which none says anything of a case."""
    return {**asdict(run.settings), "fold": run.fold, "sites": ", ".join(run.registrations)}
