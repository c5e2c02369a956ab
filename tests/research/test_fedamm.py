"""FedAMM's distillation, on numbers that can be checked by hand and in a round."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from small_federation import SETTINGS, SiteStore
from torch import tensor

from mixmfl.federated.server.coordinator import AS_PLANNED
from mixmfl.federated.server.run_record import open_run
from mixmfl.networks.build import build_network
from mixmfl.networks.prototypes import Prototypes
from mixmfl.research.benchmark import fedamm
from mixmfl.research.benchmark.methods import METHODS
from mixmfl.research.benchmark.trainers import Job
from mixmfl.training.batches import Batches
from mixmfl.training.trainer import batch_loss, supervision_of


def test_class_means_and_their_similarity_by_hand() -> None:
    features = tensor([[[1.0, 3.0, 0.0], [0.0, 0.0, 2.0]]])  # (1, 2, 3)
    means, has = fedamm.class_means(features, tensor([[0, 0, 1]]), 3)
    assert means.tolist() == [[[2, 0], [0, 2], [0, 0]]]
    assert has.tolist() == [[True, True, False]]
    maps = fedamm.similarity_maps(features, means)
    assert maps.tolist() == [[[1, 1, 0], [0, 0, 1], [0, 0, 0]]]
    left_out, has = fedamm.class_means(features, tensor([[-1, 0, 1]]), 2)
    assert left_out.tolist() == [[[3, 0], [0, 2]]]


@pytest.mark.parametrize("regions", [False, True])
def test_divergence_of_softened_probabilities_by_hand(regions: bool) -> None:
    heads = [4.0] if regions else [4.0, 0.0]  # a region's other class has the logit 0
    teacher = tensor(heads)[None, :, None]
    p = math.e / (1 + math.e)  # the temperature is 4
    divergence = p * math.log(p / 0.5) + (1 - p) * math.log((1 - p) / 0.5)
    found = fedamm.softened_divergence(teacher, torch.zeros_like(teacher), regions)
    assert found.item() == pytest.approx(16 * divergence / 2)  # mean over two outputs


def test_a_centre_moves_to_the_mean_of_all_cases_and_is_kept_where_none_is_seen() -> None:
    def row(value: float, count: float) -> Prototypes:
        return Prototypes(tensor([[value], [0.0]]), tensor([count, 0.0]))

    both: fedamm.Pattern = (True, True)
    one: fedamm.Pattern = (True, False)
    sent = [{both: row(1, 3), one: row(7, 1)}, {both: row(5, 1)}]
    first = fedamm.moved_centres({}, sent, kept=0.9)
    assert first[both].values.tolist() == [[2], [0]]  # (3 * 1 + 5) / 4
    moved = fedamm.moved_centres(first, [{both: row(12, 2)}], kept=0.9)
    assert moved[both].values[0].item() == pytest.approx(0.9 * 2 + 0.1 * 12)
    assert moved[one] == first[one]
    means, has = tensor([[4.0], [9.0]]), tensor([True, True])
    away = fedamm.distance_to_centre(means, has, first[both])
    assert away.item() == 4  # (4 - 2)^2; the second class has no centre yet


def test_a_case_of_one_modality_has_the_loss_on_masks_and_that_to_its_centre(
    store: SiteStore,
) -> None:
    fed = store.federation({"north": [("t1",)] * 2})
    plans = METHODS["fedamm"].apply(fed.plans)
    network = build_network(plans, "2d", 0).train()
    batch = Batches(fed.sites["north"].training, plans, "2d", (0, 0, "north"), 1)[0]
    compare = supervision_of(plans, "2d")
    plain, _ = batch_loss(network, batch, {}, compare)
    pattern: fedamm.Pattern = (False, True, False)
    shares = {pattern: 0.5}

    def with_centres(centres: fedamm.Centres) -> fedamm.Distilled:
        weights = [0.0, 2.0, 0.0]
        return fedamm.distillation_loss(network, batch, {}, compare, weights, shares, centres)

    first = with_centres({})
    torch.testing.assert_close(first.loss.total, plain.total)
    seen = first.prototypes[pattern]
    assert seen.counts[0] == len(batch.images)  # background is in every patch
    unseen = {pattern: Prototypes(seen.values, torch.zeros(3))}  # no class was seen
    same = with_centres(unseen)
    torch.testing.assert_close(same.loss.total, plain.total)
    zero = {pattern: Prototypes(torch.zeros_like(seen.values), seen.counts)}
    pulled = with_centres(zero).loss.total - plain.total
    classes = batch.classes[0][:, 0]
    with torch.no_grad():
        _, features = fedamm._decode(network, first.encoding, {})
        means, _ = fedamm.class_means(features, classes, 3)
    by_case = means.square().mean(dim=2).sum(dim=1)  # a class that a case lacks is zero
    torch.testing.assert_close(pulled, 0.5 * by_case.mean())


def test_each_modality_learns_from_all_and_one_that_lags_from_masks_too(store: SiteStore) -> None:
    fed = store.federation({"north": [("flair", "t1")] * 2})
    plans = METHODS["fedamm"].apply(fed.plans)
    network = build_network(plans, "2d", 0).train()
    batch = Batches(fed.sites["north"].training, plans, "2d", (0, 0, "north"), 1)[0]
    compare = supervision_of(plans, "2d")
    weights = [3.0, 2.0, 0.0]
    found = fedamm.distillation_loss(network, batch, {}, compare, weights, {}, {})

    masks = compare.prepare(batch.classes)
    classes = batch.classes[0][:, 0]
    with torch.no_grad():
        logits, features = fedamm._decode(network, found.encoding, {})
        means, has = fedamm.class_means(features, classes, 3)
        maps = fedamm.similarity_maps(features, means)
        expected, lags = masks(logits).total, []
        for modality in (0, 1):
            shown = torch.zeros_like(batch.present)
            shown[:, modality] = True
            view = found.encoding.restricted_to(shown)
            alone, its = fedamm._decode(network, view, {})
            divergence = fedamm.softened_divergence(logits[0], alone[0], regions=False)
            expected = expected + weights[modality] * 0.5 * divergence
            gap = fedamm.similarity_maps(its, fedamm.class_means(its, classes, 3)[0]) - maps
            more = masks(alone).total + 0.1 * gap[has].square().mean()
            lags.append((gap[has].abs().mean(), weights[modality] * more))
    torch.testing.assert_close(found.loss.total.detach(), expected + max(lags)[1])


def test_a_round_keeps_centres_by_pattern_and_the_next_one_reads_them(
    store: SiteStore, tmp_path: Path
) -> None:
    north: list[tuple[str, ...]] = [("flair", "t1"), ("t1",)]
    fed = store.federation({"north": north, "south": [("t1", "t2")] * 2}, {"south": 1})
    plans = METHODS["fedamm"].apply(fed.plans)
    settings = dataclasses.replace(SETTINGS, rounds=2)
    job = Job(plans, list(fed.sites.values()), settings, tmp_path / "run", AS_PLANNED)
    trained = fedamm.by_fedamm(job)
    assert {file.name for file in trained.files.values()} == {"model.safetensors"}
    assert trained.run is None
    run = open_run(tmp_path / "run")
    one, two = (fedamm.load_centres(fedamm._file(run, number)) for number in (1, 2))
    assert len(run.history) == 2
    assert one.keys() <= {(True, True, False), (False, True, False), (False, True, True)}
    assert len(two) >= 2
    centre: fedamm.Pattern = (False, True, True)
    assert not torch.equal(one[centre].values, two[centre].values)
    # a site sends 3 classes of 4 channels and their counts for each pattern
    assert fedamm._bytes({centre: one[centre]}) == (3 * 4 + 3) * 4
