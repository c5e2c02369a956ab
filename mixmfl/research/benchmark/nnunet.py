"""nnU-Net's own trainer on the benchmark's cases, and its network as a model file of ours.

Network, optimizer, learning rates by epoch, augmentation, loss and sampling are those of
``nnUNetTrainer`` in the installed package; an epoch is a round. The plans are the benchmark's,
which nnU-Net's planner made, and so are cases and grid: a channel per modality, zeros for missing
ones.
"""

import contextlib
import io
import os
import random
import shutil
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params

from mixmfl.core.errors import MixmflError
from mixmfl.core.files import read_json, write_json
from mixmfl.core.nan import or_none
from mixmfl.core.worker_pool import spawn_context
from mixmfl.data.modalities import Modalities
from mixmfl.federated.client.subset_validation import measure_at_site
from mixmfl.federated.client.training import validate_at_site
from mixmfl.federated.server.merge import validation_task
from mixmfl.federated.server.subset_validation import measure_task, merge_measured, read_measured
from mixmfl.federated.state import RunSettings, ServerState, mean_dice, read_dice, register
from mixmfl.inference.model import TrainedOn
from mixmfl.inference.model_file import save_model
from mixmfl.networks.nnunet_checkpoint import read_checkpoint
from mixmfl.networks.nnunet_results import CHECKPOINT
from mixmfl.planning.plans import Plans
from mixmfl.planning.preprocessed_case import PreprocessedCase
from mixmfl.research.benchmark.trainers import Job, Trained

_DATASET = "Dataset001_cases"
_FOLD = 0


@dataclass(frozen=True)
class NnunetTask:
    """A training by nnU-Net, which travels to a process of its own.

    Attributes:
        plans: Plans of the benchmark.
        settings: A round is an epoch.
        training: Training cases by their name here.
        validation: Validation cases, of which nnU-Net logs a pseudo Dice; maybe none.
        device: Device to compute on.
        folder: Folder for nnU-Net's files; ``checkpoint_final.pth`` is written to it.
        threads: Threads to compute with.
    """

    plans: Plans
    settings: RunSettings
    training: dict[str, PreprocessedCase]
    validation: dict[str, PreprocessedCase]
    device: torch.device
    folder: Path
    threads: int


def by_nnunet(job: Job) -> Trained:
    """Train the one site of a job by nnU-Net's trainer; what was interrupted begins again.

    Raises:
        MixmflError: It failed.
    """
    (site,) = job.sites
    record, model = job.folder / "trained.json", job.folder / "model.safetensors"
    if not record.is_file():
        began = time.monotonic()
        shutil.rmtree(job.folder, ignore_errors=True)
        task = NnunetTask(
            job.plans,
            job.settings,
            _numbered(site.training),
            _numbered(site.validation),
            site.device,
            job.folder,
            torch.get_num_threads(),
        )
        try:
            with ProcessPoolExecutor(1, spawn_context()) as alone:
                alone.submit(train, task).result()
        except Exception as error:  # whatever happens in nnU-Net, or to its process
            raise MixmflError(
                f"{job.folder}: nnU-Net's trainer failed ({type(error).__name__}: {error}); its "
                "training_log is in nnUNet_results there"
            ) from None
        seconds = time.monotonic() - began
        source = read_checkpoint(job.folder / CHECKPOINT, Modalities())
        state = ServerState(job.settings.rounds, dict(source.weights), {}, {})
        known = {site.name: register(site)}
        asked = site, job.plans, job.settings
        judged = validate_at_site(validation_task(state, site.name, known), *asked)
        measured = read_measured(
            site.name,
            measure_at_site(measure_task(state, site.name, known), *asked),
            state.round,
            job.plans,
            known[site.name].labelled,
        )
        save_model(
            model,
            state,
            job.plans,
            job.settings.configuration,
            TrainedOn(known[site.name].modality_cases),
            merge_measured([measured]),
        )
        known_dice = or_none(mean_dice([read_dice(judged)]))
        write_json(record, {"seconds": seconds, "dice": known_dice})
    stored = read_json(record)
    dice = {} if stored["dice"] is None else {job.settings.rounds: float(stored["dice"])}
    rate = job.settings.learning_rate
    return Trained({site.name: model}, dice, rate, 0.0, float(stored["seconds"]))


def _numbered(cases: Sequence[PreprocessedCase]) -> dict[str, PreprocessedCase]:
    """Return cases of several sites, whose names may be the same, by names of their own."""
    return {f"{case.folder.parent.name}_{case.name}": case for case in cases}


def train(task: NnunetTask) -> None:
    """Train as nnU-Net does, in the current process, whose environment and random state it sets."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        os.environ[name] = str(task.folder / name)
    os.environ.update(nnUNet_n_proc_DA="0", nnUNet_compile="false", nnUNet_wandb_enabled="0")
    torch.set_num_threads(task.threads)
    seed = task.settings.seed % 2**32
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    with contextlib.redirect_stdout(io.StringIO()):  # it has a log file
        trainer = _trainer(task)
        _write_cases(task, Path(trainer.preprocessed_dataset_folder_base), trainer)
        trainer.run_training()
    shutil.copy(Path(trainer.output_folder) / CHECKPOINT, task.folder)
    shutil.rmtree(task.folder / "nnUNet_preprocessed")


def _trainer(task: NnunetTask) -> Any:
    """Return nnU-Net's trainer with the budget of a task."""
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    plans = {**task.plans.nnunet, "dataset_name": _DATASET, "continue_training": False}
    described = {
        **task.plans.labels.consecutive().to_json(),
        "channel_names": {str(n): name for n, name in enumerate(task.plans.modalities)},
        "numTraining": len(task.training) + len(task.validation),
        "file_ending": ".nii.gz",
    }
    trainer = nnUNetTrainer(plans, task.settings.configuration, _FOLD, described, task.device)
    trainer.num_epochs = task.settings.rounds
    trainer.num_iterations_per_epoch = task.settings.local_steps
    trainer.num_val_iterations_per_epoch = 1  # of a pseudo Dice that chooses nothing
    trainer.initial_lr = task.settings.learning_rate
    trainer.logger.plot_progress_png = lambda folder: None  # takes seconds in every epoch
    return trainer


def _write_cases(task: NnunetTask, folder: Path, trainer: Any) -> None:
    """Write the cases as nnU-Net stores preprocessed ones, zeros for missing modalities."""
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

    place = Path(trainer.preprocessed_dataset_folder)
    place.mkdir(parents=True)
    patch = task.plans.configuration(task.settings.configuration)["patch_size"]
    for name, case in {**task.training, **task.validation}.items():
        images = np.zeros((len(task.plans.modalities), *case.labels.shape[1:]), dtype=np.float32)
        images[[task.plans.modalities.index(each) for each in case.modalities]] = case.images[:]
        labels = case.labels[:]
        blocks, chunks = comp_blosc2_params(images.shape, patch, images.itemsize)
        blocks_seg, chunks_seg = comp_blosc2_params(labels.shape, patch, labels.itemsize)
        nnUNetDatasetBlosc2.save_case(
            images,
            labels,
            {"class_locations": dict(case.class_locations)},
            str(place / name),
            chunks,
            blocks,
            chunks_seg,
            blocks_seg,
        )
    training = sorted(task.training)
    split = {"train": training, "val": sorted(task.validation) or training}
    write_json(folder / "splits_final.json", [split])
    write_json(folder / "dataset_fingerprint.json", {})  # it is copied, and nothing reads it
