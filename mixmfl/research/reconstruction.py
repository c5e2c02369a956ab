"""Reconstruction of a training patch from what a site sends, with and without protection.

The attack is gradient inversion (Geiping et al. 2020, Inverting Gradients: how easy is it to break
privacy in federated learning?): images are sought with which the network would take the step that
was sent. The attacker has more than a server ever has of a round: one step from the first weights
on one patch that is centred on foreground, of which everything but the images is known: its masks,
its modalities, and which of them the second view hides. AdamW's first step is nearly the sign of
the gradient, so that signs are compared.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from mixmfl.core.nan import mean
from mixmfl.federated.aggregation import average, changes_between, select_blocks
from mixmfl.federated.client.training import site_network
from mixmfl.federated.server.merge import train_task
from mixmfl.federated.state import RunSettings, Site, first_state, register
from mixmfl.networks.base import SegmentationNet
from mixmfl.networks.norms import by_torch
from mixmfl.networks.parameters import network_state
from mixmfl.networks.prototypes import State
from mixmfl.planning.plans import Plans
from mixmfl.planning.preprocessed_case import PreprocessedCase
from mixmfl.training.batches import Batch, Batches
from mixmfl.training.dp_sgd import train_privately
from mixmfl.training.trainer import LocalTraining, batch_loss, supervision_of, train_locally

_RATE = 0.1
"""Learning rate of the search; it falls linearly to zero."""

_SMOOTHNESS = 1e-3
"""Weight of the differences between neighbouring pixels."""


@dataclass(frozen=True)
class Likeness:
    """How like the reconstructed images are to others.

    Attributes:
        trained: Correlation with the images of the patches behind the steps, mean over sites and
            modalities; 1: they are the same up to brightness and contrast.
        others: Correlation with patches of cases that did not train, in the same modalities: what
            any head has in common with any other.
    """

    trained: float
    others: float


def reconstruct(
    plans: Plans,
    halves: Mapping[str, tuple[Site, Sequence[PreprocessedCase]]],
    settings: RunSettings,
    iterations: int,
) -> Likeness:
    """Reconstruct a patch of each site from what the server sees of its step, and compare.

    Args:
        plans: Plans of the run.
        halves: By site, the site with its training cases, and cases that do not train.
        settings: Settings of the run, of which rounds and steps are not used. If it is masked, the
            server sees the mean of the steps of all sites.
        iterations: Number of iterations of the search.
    """
    sites = {name: site for name, (site, _) in halves.items()}
    batches = {name: _batch(site.training, site, plans, settings) for name, site in sites.items()}
    patches = {name: _last_row(batch) for name, batch in batches.items()}
    steps = {name: _step(patches[name], site, plans, settings) for name, site in sites.items()}
    if settings.masked:
        weights = {name: register(site).weights for name, site in sites.items()}
        seen = average(steps, weights)
        steps = {name: {n: seen[n] for n in step} for name, step in steps.items()}
    trained: list[float] = []
    others: list[float] = []
    for name, (site, rest) in halves.items():
        patch, other = patches[name], _batch(rest, site, plans, settings)
        images = _search(steps[name], patch, site, plans, settings, iterations)
        trained += correlations(images, patch.images, patch.present)
        for row in range(len(other.images)):
            both = patch.present & other.present[row]
            others += correlations(images, other.images[row : row + 1], both)
    return Likeness(mean(trained), mean(others))


def correlations(these: Tensor, those: Tensor, present: Tensor) -> list[float]:
    """Return the correlation of each pair of images, ``(1, M, *P)``, where both are not constant.

    Args:
        these: Images.
        those: Others.
        present: ``(1, M)`` bool, which to compare.
    """
    values = []
    for row, channel in present.nonzero().tolist():
        pair = torch.stack([each[row, channel].flatten() for each in (these, those)])
        if (pair.std(dim=1) > 0).all():
            values.append(float(torch.corrcoef(pair)[0, 1]))
    return values


def _batch(
    cases: Sequence[PreprocessedCase], site: Site, plans: Plans, settings: RunSettings
) -> Batch:
    """Return the first batch of a run over some cases."""
    entropy = settings.seed, 0, site.name
    return Batches(cases, plans, settings.configuration, entropy, 1)[0].to(site.device)


def _last_row(batch: Batch) -> Batch:
    """Return the last patch of a batch, which is centred on foreground."""
    return Batch(
        batch.images[-1:],
        batch.present[-1:],
        batch.shown[-1:],
        [classes[-1:] for classes in batch.classes],
        batch.patients[-1:],
        None if batch.labelled is None else batch.labelled[-1:],
    )


def _step(patch: Batch, site: Site, plans: Plans, settings: RunSettings) -> State:
    """Return what a site sends of a round of one step: how its blocks change."""
    network, blocks = _first_network(site, plans, settings), register(site).weights
    before = network_state(network)
    training = LocalTraining(
        plans, settings.configuration, blocks, settings.learning_rate, site.device
    )
    if site.privacy is None:
        train_locally(network, {}, {}, [patch], training)
    else:
        noise = np.random.default_rng()
        train_privately(network, {}, {}, [[patch]], training, site.privacy, 1, noise)
    after = {**select_blocks(network_state(network), blocks)}
    return changes_between(before, after, settings.update_type)


def _first_network(site: Site, plans: Plans, settings: RunSettings) -> SegmentationNet:
    task = train_task(first_state(plans, settings), register(site))
    return site_network(task, site, plans, settings)


def _search(
    step: State,
    patch: Batch,
    site: Site,
    plans: Plans,
    settings: RunSettings,
    iterations: int,
) -> Tensor:
    """Return images ``(1, M, *P)`` with which the network would step like that of a patch.

    What is minimised is the share of the gradient's length (sum of magnitudes) whose sign is not
    that of the step.
    """
    network = _first_network(site, plans, settings).train()
    sent = {n: -change.float().to(site.device) for n, change in step.items() if change.any()}
    parameters = {n: each for n, each in network.named_parameters() if n in sent}
    signs = torch.cat([sent[name].sign().flatten() for name in parameters])
    supervision = supervision_of(plans, settings.configuration)
    shown = patch.present.reshape(*patch.present.shape, *[1] * (patch.images.ndim - 2))
    generator = torch.Generator().manual_seed(settings.seed)
    start = 0.3 * torch.randn(patch.images.shape, generator=generator)
    images = start.to(site.device).requires_grad_()
    optimizer = torch.optim.Adam([images], lr=_RATE)
    falling = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0, iterations)
    with by_torch():  # the compiled norm has no second derivative
        for _ in range(iterations):
            guess = dataclasses.replace(patch, images=images * shown)
            loss, _ = batch_loss(network, guess, {}, supervision)
            gradients = torch.autograd.grad(
                loss.total, list(parameters.values()), create_graph=True, materialize_grads=True
            )
            gradient = torch.cat([each.flatten() for each in gradients])
            wrong = functional.relu(-gradient * signs).sum() / gradient.abs().sum()
            total = wrong + _SMOOTHNESS * _roughness(guess.images)
            (images.grad,) = torch.autograd.grad(total, [images])
            optimizer.step()
            falling.step()
    return (images * shown).detach()


def _roughness(images: Tensor) -> Tensor:
    """Return the mean difference between neighbouring pixels or voxels."""
    return torch.stack(
        [images.diff(dim=axis).abs().mean() for axis in range(2, images.ndim)]
    ).mean()
