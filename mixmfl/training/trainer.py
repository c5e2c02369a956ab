"""A site's gradient steps, on one device and independent of any server."""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from mixmfl.core.devices import autocast_dtype
from mixmfl.core.errors import MixmflError
from mixmfl.core.text import quoted
from mixmfl.networks.base import Encoding, SegmentationNet
from mixmfl.networks.build import parameter_shapes, prototype_sizes
from mixmfl.networks.parameters import block_of, check_forms
from mixmfl.networks.prototypes import PrototypeMemory, State, memory_to
from mixmfl.planning.plans import Plans
from mixmfl.training.batches import Batch
from mixmfl.training.nnunet_training import Loss
from mixmfl.training.prototype_observer import PrototypeObserver
from mixmfl.training.supervision import Supervision

_SCALE = "gradient_scale"

SETTLED_RATE = 0.2
"""Learning rate of blocks that were trained before, as a share of that of new ones.

Rates that differ within a network are Howard and Ruder's discriminative fine-tuning (2018).
"""


@dataclass(frozen=True)
class Trained:
    """The results of a round of local training, besides the network's new weights.

    Attributes:
        loss: Mean loss over the steps.
        dice_loss: The Dice part of it, from -1 to 0; the rest is cross-entropy.
        memory: Prototypes of the site's own modalities.
        patients: For each of the prototypes ``(K,)`` how many patients are behind each row.
        optimizer: AdamW's state, by ``<parameter>.<moment>``, and with half precision the
            scale of the gradients.
    """

    loss: float
    dice_loss: float
    memory: PrototypeMemory
    patients: Mapping[tuple[str, int], Tensor]
    optimizer: State


@dataclass(frozen=True)
class LocalTraining:
    """How a site trains in a round.

    Attributes:
        plans: Plans of the run.
        configuration: ``"2d"`` or ``"3d_fullres"``.
        blocks: Blocks that the site trains; the other parameters are not changed.
        learning_rate: Learning rate of this round.
        device: Device to compute on.
        loss: Returns a batch's loss and its encoding; None: ``batch_loss``.
        settled: Blocks that were trained before the run, beside new ones: they learn at
            ``SETTLED_RATE`` of the learning rate.
    """

    plans: Plans
    configuration: str
    blocks: Collection[str]
    learning_rate: float
    device: torch.device
    loss: "BatchLoss | None" = None
    settled: Collection[str] = ()


def train_locally(
    network: SegmentationNet,
    memory: PrototypeMemory,
    optimizer_state: Mapping[str, Tensor],
    batches: Iterable[Batch],
    training: LocalTraining,
) -> Trained:
    """Take one gradient step per batch, changing ``network`` in place.

    A batch is encoded once and decoded in two views: from all available modalities, and from those
    that its modality-dropout view keeps. The loss is the mean over the views.

    Args:
        network: The network with the weights at the start of the round, on ``device``.
        memory: Prototypes of the federation; read for missing and dropped modalities, not changed.
        optimizer_state: Optimizer state after this site's last round, or empty.
        batches: One batch per step.
        training: How the site trains.

    Returns:
        The mean loss, the site's prototypes and the optimizer state.

    Raises:
        MixmflError: The loss became NaN or infinite.
    """
    plans, device, settings = training.plans, training.device, training.plans.training
    parameters, optimizer = optimizer_of(network, optimizer_state, training)
    start = round_start(parameters, settings.proximal)
    supervision = supervision_of(plans, training.configuration)
    levels = prototype_sizes(plans, training.configuration)
    observer = PrototypeObserver(network.modalities, levels, plans)
    dtype = autocast_dtype(device)
    loss_of = training.loss or batch_loss
    # the scale is part of the optimizer state: finding it again would cost steps
    scale = float(optimizer_state.get(_SCALE, torch.tensor(2.0**16)))
    scaled = dtype == torch.float16  # bfloat16 has float32's range
    scaler = torch.amp.GradScaler(device.type, init_scale=scale, enabled=scaled)

    network.train()
    memory = memory_to(memory, device)
    losses: list[Tensor] = []
    dice_losses: list[Tensor] = []
    for prepared in batches:
        batch = prepared.to(device)
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
            loss, encoding = loss_of(network, batch, memory, supervision)
        scaler.scale(loss.total).backward()  # type: ignore[no-untyped-call]
        scaler.unscale_(optimizer)
        add_proximal(parameters, start, settings.proximal)
        nn.utils.clip_grad_norm_(parameters.values(), settings.gradient_norm)
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.total.detach())
        dice_losses.append(loss.dice)
        observer.add(batch, encoding)
    mean_loss = torch.stack(losses).float().mean().item()
    if not np.isfinite(mean_loss):
        raise MixmflError(
            f"the loss became {mean_loss} in {len(losses)} steps at learning rate "
            f"{training.learning_rate:g}; start again with a smaller --learning-rate"
        )
    return Trained(
        mean_loss,
        torch.stack(dice_losses).float().mean().item(),
        observer.memory(),
        observer.patients(),
        {
            **save_optimizer(optimizer, parameters),
            **({_SCALE: torch.tensor(scaler.get_scale())} if scaled else {}),
        },
    )


def round_start(parameters: Mapping[str, nn.Parameter], proximal: float) -> State:
    """Return the weights that a round begins with, for ``add_proximal``; empty where unused."""
    return {name: each.detach().clone() for name, each in parameters.items()} if proximal else {}


def add_proximal(
    parameters: Mapping[str, nn.Parameter], start: Mapping[str, Tensor], proximal: float
) -> None:
    """Add the gradient of FedProx's term, mu times the way from the round's start (Li et al. 2020).

    Args:
        parameters: The trained parameters, with gradients where they were used.
        start: What ``round_start`` returned.
        proximal: FedProx's mu.
    """
    for name, before in start.items():
        parameter = parameters[name]
        if parameter.grad is not None:
            parameter.grad.add_(parameter.detach() - before, alpha=proximal)


def optimizer_of(
    network: SegmentationNet,
    state: Mapping[str, Tensor],
    training: LocalTraining,
) -> tuple[dict[str, nn.Parameter], torch.optim.AdamW]:
    """Return the parameters that are trained, by name, and their optimizer in the given state."""
    trained = set(training.blocks)
    parameters = {n: p for n, p in network.named_parameters() if block_of(n) in trained}
    rate, groups = training.learning_rate, dict[float, list[nn.Parameter]]()
    for name, parameter in parameters.items():
        settled = block_of(name) in training.settled
        groups.setdefault(rate * SETTLED_RATE if settled else rate, []).append(parameter)
    optimizer = torch.optim.AdamW(
        [{"params": group, "lr": of_group} for of_group, group in groups.items()],
        weight_decay=training.plans.training.weight_decay,
        fused=True,
    )
    _load_optimizer(optimizer, parameters, state)
    return parameters, optimizer


def supervision_of(plans: Plans, configuration: str) -> Supervision:
    """Return the loss on masks for a network of the plans."""
    planned = plans.configuration(configuration)
    outputs = len(planned["architecture"]["arch_kwargs"]["strides"]) - 1
    return Supervision(plans.labels, outputs, bool(planned["batch_dice"]))


def batch_loss(
    network: SegmentationNet,
    batch: Batch,
    memory: PrototypeMemory,
    supervision: Supervision,
) -> tuple[Loss, Encoding]:
    """Return a batch's loss and its encoding; all arguments are on one device."""
    present = batch.present
    encoding = network.encode(batch.images, present)
    compare = supervision.prepare(batch.classes, batch.labelled)
    views = [encoding]
    if not torch.equal(batch.shown, present):
        views.append(encoding.restricted_to(batch.shown))
    losses = [compare(logits) for logits in network.decode_views(views, memory)]
    total = torch.stack([loss.total for loss in losses]).mean()
    return Loss(total, torch.stack([loss.dice for loss in losses]).mean()), encoding


BatchLoss = Callable[[SegmentationNet, Batch, PrototypeMemory, Supervision], tuple[Loss, Encoding]]
"""A function like ``batch_loss``."""


def save_optimizer(optimizer: torch.optim.Optimizer, parameters: Mapping[str, Tensor]) -> State:
    """Return an optimizer's moments and steps on the CPU, named by parameter."""
    return {
        f"{name}.{moment}": value.detach().to("cpu", copy=True)
        for name, parameter in parameters.items()
        for moment, value in optimizer.state.get(parameter, {}).items()
    }


def check_optimizer(plans: Plans, configuration: str, state: Mapping[str, Tensor]) -> None:
    """Check that a state is AdamW's of parameters of the planned network; none of it is read.

    Raises:
        ValueError: A tensor is none of it, is missing, or has another shape or type.
    """
    parameters = parameter_shapes(plans, configuration)
    shapes: dict[str, tuple[int, ...]] = {_SCALE: ()} if _SCALE in state else {}
    for name in {key.rpartition(".")[0] for key in state} & parameters.keys():
        shape = parameters[name]
        shapes |= {f"{name}.step": (), f"{name}.exp_avg": shape, f"{name}.exp_avg_sq": shape}
    if unmatched := sorted(state.keys() ^ shapes.keys()):
        raise ValueError(f"{quoted(unmatched[0])} is missing, or is no state of AdamW's")
    check_forms(state, shapes)


def _load_optimizer(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, Tensor],
    saved: Mapping[str, Tensor],
) -> None:
    for key, value in saved.items():
        if key == _SCALE:
            continue
        name, moment = key.rsplit(".", 1)
        parameter = parameters[name]
        optimizer.state[parameter][moment] = value.to(parameter.device, copy=True)
