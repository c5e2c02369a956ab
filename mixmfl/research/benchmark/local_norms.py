"""FedBN: the norms of a site stay at the site, all else is averaged (Li et al. 2021).

Li, Jiang, Zhang, Kamp, Dou: FedBN: Federated Learning on Non-IID Features via Local Batch
Normalization, ICLR 2021. Their norms have running statistics, too; instance norms have none, so
that what is local are the weight and bias of each.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from mixmfl.federated.aggregation import add_changes
from mixmfl.federated.messages import Message
from mixmfl.federated.server.checkpoint import load_state_of
from mixmfl.federated.server.coordinator import Answers, Ask
from mixmfl.federated.server.run import Run, choose_round
from mixmfl.federated.server.run_record import round_folder
from mixmfl.federated.tensor_files import load_tensors, save_tensors
from mixmfl.inference.model import TrainedOn
from mixmfl.inference.model_file import save_model
from mixmfl.networks.build import build_outline
from mixmfl.networks.prototypes import State
from mixmfl.research.benchmark.trainers import Job, Trained, result_of, simulate_job


def norm_names(network: nn.Module) -> frozenset[str]:
    """Return the names of the parameters of a network's norms."""
    return frozenset(
        f"{place}.{name}"
        for place, module in network.named_modules()
        if isinstance(module, nn.modules.batchnorm._NormBase)
        for name, _ in module.named_parameters(recurse=False)
    )


class LocalNorms:
    """What brings tasks to sites: each site reads its own norms, and sends none.

    The norms of a site after a round are stored beside the server's state of that round.
    """

    def __init__(self, run: Run, ask: Ask) -> None:
        """Take the run, and what brings tasks to its sites."""
        self._run, self._ask = run, ask
        self._names = norm_names(build_outline(run.plans, run.settings.configuration))

    def __call__(self, tasks: Mapping[str, Message]) -> Answers:
        """Have the sites do their tasks with norms of their own."""
        norms = {site: self._norms(site, task) for site, task in tasks.items()}
        asked = self._ask(
            {
                site: dataclasses.replace(task, tensors={**task.tensors, **norms[site]})
                for site, task in tasks.items()
            }
        )
        came = dict(asked.came)
        for site, task in tasks.items():
            if task.kind != "train":
                continue
            after = norms[site]
            if site in came:
                reply = came[site].message
                changes = {name: reply.tensors[name] for name in after}
                after = add_changes(after, changes)
                kept = {name: torch.zeros_like(change) for name, change in changes.items()}
                sent = dataclasses.replace(reply, tensors={**reply.tensors, **kept})
                came[site] = dataclasses.replace(came[site], message=sent)
            save_tensors(_norms_file(self._run, int(task.record["round"]) + 1, site), after)
        return dataclasses.replace(asked, came=came)

    def _norms(self, site: str, task: Message) -> State:
        """Return the norms of a site after the rounds that a task follows."""
        if number := int(task.record["round"]):
            return load_tensors(_norms_file(self._run, number, site))
        return {name: task.tensors[name].float() for name in self._names}


def with_local_norms(job: Job) -> Trained:
    """Train by rounds with local norms, and write a model for each site, of the best round."""
    varied = dataclasses.replace(job.variation, between=LocalNorms)
    run = simulate_job(dataclasses.replace(job, variation=varied))
    files = {}
    for site in run.registrations:
        files[site] = run.folder / "sites" / f"{site}.safetensors"
        _save_site_model(run, site, files[site])
    return result_of(run, files)


def _save_site_model(run: Run, site: str, file: Path) -> None:
    number = choose_round(run, "best")
    state = load_state_of(run, number)
    own = load_tensors(_norms_file(run, number, site))
    save_model(
        file,
        dataclasses.replace(state, weights={**state.weights, **own}),
        run.plans,
        run.settings.configuration,
        TrainedOn(run.modality_cases, run.modality_sites),
    )


def _norms_file(run: Run, number: int, site: str) -> Path:
    return round_folder(run, number) / "norms" / f"{site}.safetensors"
