"""Recall means something: it comes nearer to what a hidden modality shows than its rivals."""

import dataclasses
from pathlib import Path
from statistics import fmean

import pytest
import torch
from small import small_plans, stored_site

from mixmfl.federated.simulation import simulate
from mixmfl.federated.state import RunSettings, Site
from mixmfl.inference.model import Model
from mixmfl.inference.model_file import load_model
from mixmfl.planning.plans import replace_settings
from mixmfl.research.recall_quality import recall_quality


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Site]:
    """A model of two sites, of which one never has T2, and cases of neither with all modalities."""
    folder = tmp_path_factory.mktemp("recall")
    plans = replace_settings(small_plans(), {"compensation_levels": [-1, -2]}, {})
    north = stored_site(folder, "north", [("flair", "t1")] * 3, plans)
    south = stored_site(folder, "south", [("flair", "t1", "t2")] * 3, plans)
    settings = RunSettings("2d", 0, rounds=3, local_steps=12, learning_rate=0.01)
    run = simulate(plans, [north, south], settings, "all", folder / "run")
    held_out = stored_site(folder, "held", [("flair", "t1", "t2")] * 2, plans)
    return load_model(run.folder / "model.safetensors"), held_out


def test_recall_is_nearer_to_a_hidden_modality_than_zeros_and_than_a_class_blind_mean(
    trained: tuple[Model, Site],
) -> None:
    model, held_out = trained
    qualities = recall_quality(model, held_out.training)
    assert {(q.modality, q.level) for q in qualities} == {
        (name, level) for name in ("flair", "t1", "t2") for level in (1, 2)
    }
    # of a short training one modality may be an exception, another on each kind of processor
    best, error, blind = (
        fmean(getattr(quality, name) for quality in qualities)
        for name in ("best_error", "error", "blind_error")
    )
    assert best < error < min(blind, 1)
    assert all(q.accuracy > 1 / 3 for q in qualities)  # guessing among three classes


def test_recall_by_the_values_of_other_classes_is_worse(
    trained: tuple[Model, Site],
) -> None:
    model, held_out = trained

    def mean_error(wrong: Model) -> float:
        qualities = recall_quality(wrong, held_out.training)
        return sum(q.error for q in qualities) / len(qualities)

    # of one modality: were all turned alike, votes would be, too, and recall would be the same
    turned = {
        place: dataclasses.replace(prototypes, values=prototypes.values.flip(0))
        for place, prototypes in model.memory.items()
        if place[0] == "t1"
    }
    turned = {**model.memory, **turned}
    assert mean_error(dataclasses.replace(model, memory=turned)) > mean_error(model)


def test_without_a_memory_or_a_second_modality_there_is_no_quality(
    trained: tuple[Model, Site], tmp_path: Path
) -> None:
    model, held_out = trained
    assert recall_quality(dataclasses.replace(model, memory={}), held_out.training) == []
    alone = stored_site(tmp_path, "alone", [("t1",)], model.plans)
    assert recall_quality(model, alone.training) == []


def test_numbers_are_those_of_a_network_whose_features_are_known(
    trained: tuple[Model, Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tailored features name the class: recall finds all of it."""
    from mixmfl.networks.base import Encoding
    from mixmfl.networks.mdmnet import MDMNet
    from mixmfl.networks.prototypes import Prototypes

    model, held_out = trained
    network = model.network
    assert isinstance(network, MDMNet)
    model = dataclasses.replace(model, runner=network)
    lesion = torch.zeros(1, 3, 1, 16, 16)
    lesion[..., 4:8, 4:8] = 1

    def encode(images: torch.Tensor, present: torch.Tensor) -> Encoding:
        one_hot = torch.cat([1 - lesion, lesion], dim=2).expand(len(images), 3, 2, 16, 16)
        return Encoding([(10 * one_hot).unbind(1)] * 3, [one_hot.unbind(1)] * 3, present)

    monkeypatch.setattr(network, "encode", encode)
    monkeypatch.setattr(
        "mixmfl.research.recall_quality.case_batch",
        lambda case, known, model: (torch.zeros(1, 3, 16, 16), lesion[:, 0]),
    )
    perfect = Prototypes(10 * torch.eye(2), torch.tensor([240.0, 16.0]))
    memory = {(name, 2): perfect for name in network.modalities}
    qualities = recall_quality(dataclasses.replace(model, memory=memory), held_out.training[:1])
    assert [(q.modality, q.level) for q in qualities] == [("flair", 2), ("t1", 2), ("t2", 2)]
    # the class-blind value is 10 * (240, 16) / 256; its squared distance over that of zeros
    blind = (2 * (10 * 16 / 256) ** 2 / 100 + 2 * (10 * 240 / 256) ** 2 / 100) / 2
    for quality in qualities:
        assert quality.accuracy == 1.0
        assert quality.error == pytest.approx(0, abs=1e-6)
        assert quality.blind_error == pytest.approx(blind)
        assert quality.best_error == pytest.approx(0, abs=1e-6)
