"""Where the numbers of a run's rounds are written: TensorBoard, MLflow or Weights & Biases.

Each is a small adapter and writes into the folder of the run; none sends anything anywhere, nor
records commands or cases. MLflow's database has the paths of the run and of the current folder.
"""

import importlib.util
import logging
import os
import re
import time
from collections.abc import Mapping
from dataclasses import asdict
from hashlib import sha256
from typing import Any, Protocol

from mixmfl.core.errors import MixmflError
from mixmfl.core.text import one_line
from mixmfl.federated.server.run import Run

log = logging.getLogger(__name__)


class Tracker(Protocol):
    """A place that the numbers of rounds are written to."""

    def __init__(self, run: Run, first: int) -> None:
        """Open it for a run; ``first`` is the round that is written first, counted from 1."""

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

    def __init__(self, run: Run, first: int) -> None:
        """Open the folder; rounds from ``first`` on that were written before are dropped."""
        self._events, self._summary, records = self.imported()
        folder = run.folder / "tensorboard"
        folder.mkdir(exist_ok=True)
        # TensorBoard reads the files of a folder in the order of their names
        self._file = records((folder / f"events.out.tfevents.{time.time_ns()}.mixmfl").open("xb"))
        self._add(file_version="brain.Event:2")
        begins = self._events.SessionLog
        self._add(step=first, session_log=begins(status=begins.START))

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

    def _add(self, **fields: Any) -> None:
        event = self._events.Event(wall_time=time.time(), **fields)
        self._file.write(event.SerializeToString())


class MLflow:
    """Writes into the database ``RUN/mlflow.db``, whatever server the environment names."""

    def __init__(self, run: Run, first: int) -> None:
        """Open the database; a run that is in it is continued."""
        client, self._metric = self.imported()
        folder = run.folder.resolve()
        self._client = client(f"sqlite:///{folder / 'mlflow.db'}")
        known = self._client.get_experiment_by_name(_PROJECT)
        if known is None:
            place = (folder / "mlflow").as_uri()
            experiment = self._client.create_experiment(_PROJECT, artifact_location=place)
            self._id = self._client.create_run(experiment, run_name=folder.name).info.run_id
            for name, value in _settings(run).items():
                self._client.log_param(self._id, name, value)
        else:
            (earlier,) = self._client.search_runs([known.experiment_id])
            self._id = earlier.info.run_id

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
    """Writes into ``RUN/wandb``, offline; ``wandb sync`` is for the user to call."""

    def __init__(self, run: Run, first: int) -> None:
        """Open the folder; a run that is in it is continued."""
        init, settings = self.imported()
        folder = run.folder.resolve()
        self._run = init(
            project=_PROJECT,
            name=folder.name,
            id=sha256(str(folder).encode()).hexdigest()[:16],
            resume="allow",
            mode="offline",
            dir=str(folder),
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


def _settings(run: Run) -> dict[str, str | int | float]:
    """Return the settings of a run, of which none says anything of a case."""
    return {**asdict(run.settings), "fold": run.fold, "sites": ", ".join(run.registrations)}
