"""Gradient steps with differential privacy (Abadi et al. 2016)."""

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from mixmfl.networks.base import SegmentationNet
from mixmfl.networks.parameters import block_of
from mixmfl.networks.prototypes import (
    PrototypeMemory,
    State,
    memory_to,
)
from mixmfl.training.batches import Batch
from mixmfl.training.privacy_budget import Privacy
from mixmfl.training.trainer import (
    LocalTraining,
    add_proximal,
    batch_loss,
    optimizer_of,
    round_start,
    save_optimizer,
    supervision_of,
)


def clip_blocks(gradients: Mapping[str, Tensor], clip: float) -> State:
    """Return a case's gradient with each of its K blocks clipped to ``clip`` / sqrt(K).

    The whole gradient then has at most the norm ``clip``. A block that is not finite becomes zero.
    """
    blocks = sorted({block_of(name) for name in gradients})
    most = clip / math.sqrt(len(blocks))
    clipped: State = {}
    for block in blocks:
        part = {n: g for n, g in gradients.items() if block_of(n) == block}
        norm = torch.stack([g.double().norm() for g in part.values()]).norm()
        if torch.isfinite(norm):
            share = float(min(1.0, most / float(norm.clamp(min=1e-12))))
            clipped |= {name: gradient * share for name, gradient in part.items()}
        else:
            clipped |= {name: torch.zeros_like(gradient) for name, gradient in part.items()}
    return clipped


def train_privately(
    network: SegmentationNet,
    memory: PrototypeMemory,
    optimizer_state: Mapping[str, Tensor],
    batches: Iterable[Sequence[Batch]],
    training: LocalTraining,
    privacy: Privacy,
    expected: float,
    generator: np.random.Generator,
) -> State:
    """Train with differential privacy of the cases, changing ``network`` in place.

    The gradient of every case is clipped, block by block, and each step uses their noisy sum
    (see ``privacy_budget``). The weights and the optimizer state depend on the cases only through
    these sums. There is no loss and no prototype: they would depend on the cases without noise.

    Args:
        network: The network with the weights at the start of the round, on ``device``.
        memory: Prototypes of the federation; read for missing and dropped modalities, not changed.
        optimizer_state: Optimizer state after this site's last round, or empty.
        batches: Per step, a batch of one for each case that was drawn; may be empty.
        training: How the site trains; its device computes in single precision.
        privacy: Clipping norm and noise.
        expected: Expected number of cases in a step.
        generator: Generator of the noise, of whose seed nobody may know anything. Not torch's:
            that takes 32 bits of any seed, which a server can try one by one.

    Returns:
        The optimizer state.
    """
    plans, device = training.plans, training.device
    parameters, optimizer = optimizer_of(network, optimizer_state, training)
    supervision = supervision_of(plans, training.configuration)
    proximal = plans.training.proximal
    start = round_start(parameters, proximal)
    network.train()
    memory = memory_to(memory, device)
    for examples in batches:
        total = {name: torch.zeros_like(p) for name, p in parameters.items()}
        for example in examples:
            loss, _ = batch_loss(network, example.to(device), memory, supervision)
            # a case gives no gradient for the encoder of a modality that it lacks
            per_case = torch.autograd.grad(loss.total, list(parameters.values()), allow_unused=True)
            gradients = {
                name: torch.zeros_like(total[name]) if gradient is None else gradient
                for name, gradient in zip(parameters, per_case, strict=True)
            }
            for name, gradient in clip_blocks(gradients, privacy.clip).items():
                total[name] += gradient
        for name, parameter in parameters.items():
            drawn = generator.standard_normal(parameter.shape, dtype=np.float32)
            noise = torch.as_tensor(drawn, device=device)
            parameter.grad = (total[name] + privacy.noise * privacy.clip * noise) / expected
        add_proximal(parameters, start, proximal)  # it does not depend on cases, and needs no noise
        optimizer.step()
    return save_optimizer(optimizer, parameters)
