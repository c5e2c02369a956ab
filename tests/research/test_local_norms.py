"""FedBN: each site has norms of its own, and all else is that of federated averaging."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import torch
from small_federation import SETTINGS, SiteStore

from mixmfl.federated.messages import Message
from mixmfl.federated.server.coordinator import AS_PLANNED, Answer, Answers
from mixmfl.federated.server.merge import train_task, validation_task
from mixmfl.federated.server.run import Run
from mixmfl.federated.state import ServerState, first_state
from mixmfl.inference.model_file import load_model
from mixmfl.networks.build import build_network
from mixmfl.research.benchmark.local_norms import LocalNorms, norm_names, with_local_norms
from mixmfl.research.benchmark.methods import METHODS
from mixmfl.research.benchmark.trainers import Job, in_rounds

CASES = {"north": [("flair", "t1")] * 3, "south": [("t1", "t2")] * 2}
NORM, KERNEL = "encoder.stages.0.0.convs.0.norm.weight", "encoder.stages.0.0.convs.0.conv.weight"


def test_a_site_reads_its_own_norms_and_sends_none_of_them(
    store: SiteStore, tmp_path: Path
) -> None:
    fed = store.federation(CASES, 1)
    plans = METHODS["fedbn"].apply(fed.plans)
    assert {NORM, KERNEL} & norm_names(build_network(plans, "2d", 0)) == {NORM}
    run = Run(tmp_path, plans, SETTINGS, "all", fed.registrations)
    added = {"north": 0.25, "south": 0.5}
    asked: dict[str, Message] = {}

    def ask(tasks: Mapping[str, Message]) -> Answers:
        asked.update(tasks)
        came = {}
        for site, task in tasks.items():
            changes = {n: torch.full_like(t, added[site]) for n, t in task.tensors.items()}
            came[site] = Answer(Message("train", task.record, changes), 0, 0, 0.0)
        return Answers(came)

    sites = LocalNorms(run, ask)
    start = first_state(plans, SETTINGS)
    for number in range(2):
        state = dataclasses.replace(start, round=number)
        answers = sites({s: train_task(state, r) for s, r in fed.registrations.items()})
        for site, answer in answers.came.items():
            assert (asked[site].tensors[NORM] == 1 + number * added[site]).all()
            assert torch.equal(asked[site].tensors[KERNEL], start.weights[KERNEL])
            assert (answer.message.tensors[NORM] == 0).all()
            assert (answer.message.tensors[KERNEL] == added[site]).all()
    after = ServerState(2, start.weights, {}, {})
    sites({site: validation_task(after, site, fed.registrations) for site in CASES})
    assert [float(asked[site].tensors[NORM][0]) for site in CASES] == [1.5, 2]


def test_after_a_round_all_but_the_norms_is_as_federated_averaging_has_it(
    store: SiteStore, tmp_path: Path
) -> None:
    fed = store.federation(CASES, 1)
    plans = METHODS["fedbn"].apply(fed.plans)
    settings = dataclasses.replace(SETTINGS, rounds=1, half_updates=False)
    own, average = (
        train(Job(plans, list(fed.sites.values()), settings, tmp_path / train.__name__, AS_PLANNED))
        for train in (with_local_norms, in_rounds)
    )
    assert own.run is None  # it has no global model to fine-tune
    north, south, both = (
        load_model(file).weights
        for file in (own.files["north"], own.files["south"], average.files["north"])
    )
    norms = norm_names(build_network(plans, "2d", 0))
    for name in both:
        if name in norms:
            assert not torch.equal(north[name], south[name])
            mean = (2 * north[name] + south[name]) / 3  # by training cases
            assert torch.allclose(mean, both[name], atol=1e-6)
        else:
            assert torch.equal(north[name], south[name])
            assert torch.equal(north[name], both[name])
