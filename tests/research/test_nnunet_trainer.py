"""nnU-Net's trainer on our cases: what it reads, how it trains, and its network as a model."""

import dataclasses
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from small_federation import SETTINGS, SiteStore

from mixmfl.core.errors import MixmflError
from mixmfl.federated.server.coordinator import AS_PLANNED
from mixmfl.inference.model_file import load_model
from mixmfl.networks.base import place_modalities
from mixmfl.research.benchmark import nnunet
from mixmfl.research.benchmark.methods import METHODS
from mixmfl.research.benchmark.trainers import Job


class ThisProcess:
    """Does the work of a pool of processes in this one."""

    def __init__(self, *_: object) -> None: ...

    def __enter__(self) -> "ThisProcess":
        return self

    def __exit__(self, *_: object) -> None: ...

    def submit(
        self, work: Callable[[nnunet.NnunetTask], None], task: nnunet.NnunetTask
    ) -> SimpleNamespace:
        return SimpleNamespace(result=lambda: work(task))


def test_nnunet_trains_by_its_own_rule_and_becomes_a_model_of_ours(
    store: SiteStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nnunet, "ProcessPoolExecutor", ThisProcess)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    steps = Counter[str]()
    train_step = nnUNetTrainer.train_step

    def counted(trainer: nnUNetTrainer, batch: dict[str, Any]) -> dict[str, Any]:
        steps["train"] += 1
        done: dict[str, Any] = train_step(trainer, batch)
        return done

    monkeypatch.setattr(nnUNetTrainer, "train_step", counted)
    cases = [("flair", "t1"), ("t1", "flair"), ("flair",)]
    fed = store.federation({"north": cases}, 1)
    plans = METHODS["nnunet"].apply(fed.plans)
    assert plans.training.learning_rate == 0.01
    settings = dataclasses.replace(SETTINGS, rounds=2, local_steps=3, learning_rate=0.01)
    job = Job(plans, list(fed.sites.values()), settings, tmp_path / "north", AS_PLANNED)
    with monkeypatch.context() as broken:
        broken.setattr(nnunet, "_write_cases", lambda *_: 1 / 0)
        with pytest.raises(MixmflError, match=r"nnU-Net's trainer failed \(ZeroDivisionError: "):
            nnunet.by_nnunet(job)
    trained = nnunet.by_nnunet(job)
    assert 0 <= trained.best_dice <= 1
    assert trained.dice.keys() == {2}  # nnU-Net's last network
    assert steps["train"] == 2 * 3

    checkpoint = torch.load(job.folder / "checkpoint_final.pth", weights_only=False)
    (group,) = checkpoint["optimizer_state"]["param_groups"]
    assert (group["momentum"], group["nesterov"], group["weight_decay"]) == (0.99, True, 3e-5)
    assert checkpoint["logging"]["lrs"] == pytest.approx([0.01, 0.01 * 0.5**0.9])

    architecture = plans.configuration("2d")["architecture"]
    theirs = get_network_from_plans(
        architecture["network_class_name"],
        architecture["arch_kwargs"],
        architecture["_kw_requires_import"],
        3,
        3,
        deep_supervision=False,
    )
    theirs.load_state_dict(checkpoint["network_weights"])
    model = load_model(trained.files["north"])
    assert model.modalities == ("flair", "t1")  # it never saw T2
    images = torch.randn(1, 2, 16, 16, generator=torch.Generator().manual_seed(0))
    placed, _ = place_modalities(images, ["flair", "t1"], plans.modalities)
    with torch.inference_mode():
        ours = model.predictor(["flair", "t1"])(images)
        torch.testing.assert_close(ours.float(), theirs.eval()(placed), atol=0.02, rtol=0.02)

    written = (job.folder / "model.safetensors").stat().st_mtime_ns
    assert nnunet.by_nnunet(job) == trained  # and is not trained again
    assert (job.folder / "model.safetensors").stat().st_mtime_ns == written


def test_cases_are_written_as_nnunet_reads_them_with_zeros_for_missing_modalities(
    store: SiteStore, tmp_path: Path
) -> None:
    fed = store.federation({"north": [("t2", "flair")] * 2})
    one, other = fed.sites["north"].training
    task = nnunet.NnunetTask(
        fed.plans, SETTINGS, {"a": one}, {"b": other}, torch.device("cpu"), tmp_path, 1
    )
    trainer = SimpleNamespace(preprocessed_dataset_folder=str(tmp_path / "cases"))
    nnunet._write_cases(task, tmp_path, trainer)
    images, labels, _, properties = nnUNetDatasetBlosc2(str(tmp_path / "cases"), ["a"])["a"]
    assert np.array_equal(images[:][[0, 2]], one.images[:])
    assert not images[:][1].any()  # T1
    assert np.array_equal(labels[:], one.labels[:])
    assert properties["class_locations"].keys() == one.class_locations.keys()
    assert (tmp_path / "splits_final.json").read_text().split() == [
        "[", "{", '"train":', "[", '"a"', "],", '"val":', "[", '"b"', "]", "}", "]",
    ]  # fmt: skip
