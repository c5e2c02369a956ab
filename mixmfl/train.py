"""A site's gradient steps and its validation, on one device. Knows no server."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from mixmfl.aggregate import block_of
from mixmfl.dataset import StoredCase
from mixmfl.errors import MixmflError
from mixmfl.imagine import imagine_absent
from mixmfl.labels import Labels
from mixmfl.loss import LOSSES
from mixmfl.memory import (
    Memory,
    Prototypes,
    State,
    classes_at,
    fade,
    memory_to,
    merge_prototypes,
    observe,
)
from mixmfl.network import Encoding, SegmentationNet, place_modalities, prototype_sizes
from mixmfl.nnunet import label_manager
from mixmfl.plan import Plans
from mixmfl.privacy import Privacy, clip_blocks
from mixmfl.quick import best_dtype
from mixmfl.sampling import Batch
from mixmfl.sliding_window import Predictor, predict_volume
from mixmfl.supervision import Supervision, known_classes

_SCALE = "gradient_scale"


@dataclass(frozen=True)
class Trained:
    """What a round of local training gives beside the network's new weights.

    Attributes:
        loss: Mean over the steps.
        memory: Prototypes of the site's own modalities.
        optimizer: AdamW's moments, by ``<parameter>.<moment>``, and with half precision the
            gradients' scale.
    """

    loss: float
    memory: Memory
    optimizer: State


def train_locally(
    network: SegmentationNet,
    memory: Memory,
    optimizer_state: Mapping[str, Tensor],
    batches: Iterable[Batch],
    plans: Plans,
    configuration: str,
    blocks: Iterable[str],
    learning_rate: float,
    device: torch.device,
) -> Trained:
    """Take one gradient step per batch, changing ``network`` in place.

    A batch is encoded once and decoded in up to three looks: from all modalities at hand, from
    those that the batch shows in its second look, and with some absent ones imagined. The loss is
    the mean over the looks.

    Args:
        network: With the round's weights, on ``device``.
        memory: Of the federation; read for absent and hidden modalities, not changed.
        optimizer_state: Of this site's last round, or empty.
        batches: One per step.
        plans: Of the run.
        configuration: ``"2d"`` or ``"3d_fullres"``.
        blocks: Those that the site trains; the other parameters are left alone.
        learning_rate: Of this round.
        device: Where to compute.

    Raises:
        MixmflError: The loss became NaN or infinite.
    """
    settings = plans.training
    parameters, optimizer = _optimizer(network, optimizer_state, plans, blocks, learning_rate)
    supervision = _supervision(plans, configuration)
    levels = prototype_sizes(plans, configuration)
    dtype = autocast_dtype(device)
    # the scale is taken up again like the moments: finding it costs steps
    scale = float(optimizer_state.get(_SCALE, torch.tensor(2.0**16)))
    scaled = dtype == torch.float16  # bfloat16 has float32's range
    scaler = torch.amp.GradScaler(device.type, init_scale=scale, enabled=scaled)

    network.train()
    memory = memory_to(memory, device)
    seen: dict[tuple[str, int], Prototypes] = {}
    losses: list[Tensor] = []
    for prepared in batches:
        batch = prepared.to(device)
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
            loss, encoding = _loss(network, batch, memory, supervision, plans)
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(parameters.values(), settings.gradient_norm)
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.detach())
        classes = known_classes(batch.classes[0], plans.labels, batch.labelled)
        observed = _observe_batch(network, encoding, classes, levels, plans)
        for place, new in observed.items():
            old = [fade(seen[place], settings.memory_decay)] if place in seen else []
            seen[place] = merge_prototypes([*old, new])
    mean_loss = torch.stack(losses).float().mean().item()
    if not np.isfinite(mean_loss):
        raise MixmflError(
            f"the loss became {mean_loss} in {len(losses)} steps at learning rate "
            f"{learning_rate:g}; start anew with a smaller --learning-rate"
        )
    return Trained(
        mean_loss,
        memory_to(seen, torch.device("cpu")),
        {
            **_save_moments(optimizer, parameters),
            **({_SCALE: torch.tensor(scaler.get_scale())} if scaled else {}),
        },
    )


def autocast_dtype(device: torch.device) -> torch.dtype:
    """Return the type in which a device computes features fastest; weights stay in float32."""
    return torch.float16 if device.type == "cuda" else best_dtype()


def train_privately(
    network: SegmentationNet,
    memory: Memory,
    optimizer_state: Mapping[str, Tensor],
    batches: Iterable[Sequence[Batch]],
    plans: Plans,
    configuration: str,
    blocks: Iterable[str],
    learning_rate: float,
    device: torch.device,
    privacy: Privacy,
    expected: float,
    generator: torch.Generator,
) -> State:
    """Train as ``train_locally`` does, so that no single case shows; changes ``network``.

    The gradient of every case is clipped, block by block, and each step takes their noisy sum
    (see ``privacy``). All that comes of it, the moments too, is made from these sums alone. Loss
    and prototypes are functions of the cases that nothing was added to, so there are none.

    Args:
        network: As there; the next arguments too.
        memory: Of the federation.
        optimizer_state: Of this site's last round, or empty.
        batches: Per step, a batch of one for each case that was drawn; maybe none.
        plans: Of the run.
        configuration: Of the network.
        blocks: Those that the site trains.
        learning_rate: Of this round.
        device: Where to compute, in single precision.
        privacy: Clipping and noise.
        expected: Cases in a step on average.
        generator: Of the noise, on the CPU; its seed must not be known to anybody.

    Returns:
        AdamW's moments.
    """
    parameters, optimizer = _optimizer(network, optimizer_state, plans, blocks, learning_rate)
    supervision = _supervision(plans, configuration)
    network.train()
    memory = memory_to(memory, device)
    for examples in batches:
        total = {name: torch.zeros_like(p) for name, p in parameters.items()}
        for example in examples:
            loss, _ = _loss(network, example.to(device), memory, supervision, plans)
            # a case has no say in the encoder of a modality that it lacks
            found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
            gradients = {
                name: torch.zeros_like(total[name]) if gradient is None else gradient
                for name, gradient in zip(parameters, found, strict=True)
            }
            for name, gradient in clip_blocks(gradients, privacy.clip).items():
                total[name] += gradient
        for name, parameter in parameters.items():
            noise = torch.randn(parameter.shape, generator=generator).to(device)
            parameter.grad = (total[name] + privacy.noise * privacy.clip * noise) / expected
        optimizer.step()
    return _save_moments(optimizer, parameters)


def _optimizer(
    network: SegmentationNet,
    state: Mapping[str, Tensor],
    plans: Plans,
    blocks: Iterable[str],
    learning_rate: float,
) -> tuple[dict[str, nn.Parameter], torch.optim.AdamW]:
    """Return the parameters of ``blocks`` by name, and their optimiser as it was left."""
    wanted = set(blocks)
    parameters = {n: p for n, p in network.named_parameters() if block_of(n) in wanted}
    optimizer = torch.optim.AdamW(
        parameters.values(), lr=learning_rate, weight_decay=plans.training.weight_decay
    )
    _load_moments(optimizer, parameters, state)
    return parameters, optimizer


def _supervision(plans: Plans, configuration: str) -> Supervision:
    """Return how what a network of the plans gives in training is compared with masks."""
    planned = plans.configuration(configuration)
    outputs = len(planned["architecture"]["arch_kwargs"]["strides"]) - 1
    return Supervision(plans.labels, outputs, bool(planned["batch_dice"]))


def _loss(
    network: SegmentationNet,
    batch: Batch,
    memory: Memory,
    supervision: Supervision,
    plans: Plans,
) -> tuple[Tensor, Encoding]:
    """Return a batch's loss, and how it was encoded; all on one device."""
    settings, present = plans.training, batch.present
    encoding = network.encode(batch.images, present)
    compare = supervision.prepare(batch.classes, batch.labelled)
    looks = [encoding]
    if not torch.equal(batch.shown, present):
        looks.append(encoding.showing(batch.shown))
    if settings.imagining:
        generator = torch.Generator(batch.images.device).manual_seed(batch.seed)
        imagined = imagine_absent(
            *(encoding, network.modalities, memory, batch.classes[0]),
            *(settings.imagining, generator),
        )
        looks += [imagined] if imagined is not None else []
    losses = [compare(network.decode(look, memory)) for look in looks]
    loss = torch.stack(losses).mean()
    for name, weight in settings.losses.items():
        loss = loss + weight * LOSSES[name](encoding.tailored[-1], encoding.shared[-1], present)
    return loss, encoding


@torch.no_grad()
def _observe_batch(
    network: SegmentationNet,
    encoding: Encoding,
    classes: Tensor,
    levels: Iterable[int],
    plans: Plans,
) -> dict[tuple[str, int], Prototypes]:
    """Return the prototypes that a batch shows at ``levels``, of the modalities at hand in it."""
    observed = {}
    for level in levels:
        tailored = encoding.tailored[level].detach()
        at_level = classes_at(classes, tailored)
        for index, modality in enumerate(network.modalities):
            rows = encoding.present[:, index]
            if rows.any():
                observed[modality, level] = observe(
                    tailored[rows, index].float(),
                    at_level[rows],
                    len(plans.labels.values),
                )
    return observed


@dataclass(frozen=True)
class DiceSum:
    """Dice of one label or region, summed over cases, so that sites' sums add up.

    Attributes:
        total: Sum over the cases in which it is defined.
        cases: How many these are; a case where neither mask nor reference has it is none.
    """

    total: float
    cases: int


@torch.inference_mode()
def validate(
    network: SegmentationNet,
    memory: Memory,
    cases: Iterable[StoredCase],
    modalities: Collection[str],
    plans: Plans,
    configuration: str,
    device: torch.device,
) -> dict[str, DiceSum]:
    """Return the Dice of every label or region over whole preprocessed cases that label it.

    Every case is predicted from all of ``modalities`` that it has, patches side by side and not
    mirrored: a quick and slightly pessimistic estimate of what ``predict`` does.
    """
    sums = no_dice(plans.labels)
    for case in cases:
        used = tuple(name for name in case.modalities if name in modalities)
        if not used:
            continue
        predicted = segment_stored(network, memory, case, used, plans, configuration, device)
        indices = plans.labels.consecutive().only(case.labelled)
        sums = add_dice(sums, predicted, case.labels[:][0], indices)
    return sums


def no_dice(labels: Labels) -> dict[str, DiceSum]:
    """Return the sums over no case."""
    return dict.fromkeys(labels.foreground, DiceSum(0.0, 0))


def add_dice(
    sums: Mapping[str, DiceSum],
    predicted: npt.NDArray[Any],
    reference: npt.NDArray[Any],
    indices: Labels,
) -> dict[str, DiceSum]:
    """Return the sums with one case more.

    Args:
        sums: Over the cases before, of every label or region.
        predicted: Class indices ``(Z, Y, X)``.
        reference: Class indices ``(Z, Y, X)``; negative outside the head.
        indices: Labels by class index (``Labels.consecutive``), of those that the case labels.
    """
    judged = np.ones(reference.shape, dtype=bool)
    if indices.ignore is not None:
        judged = reference != indices.ignore
    added = dict(sums)
    for name, values in indices.foreground.items():
        a, b = (np.isin(found, values) & judged for found in (predicted, reference))
        size = int(a.sum()) + int(b.sum())
        if size:
            dice = 2 * int((a & b).sum()) / size
            added[name] = DiceSum(sums[name].total + dice, sums[name].cases + 1)
    return added


@torch.inference_mode()
def segment_stored(
    network: SegmentationNet,
    memory: Memory,
    case: StoredCase,
    used: Sequence[str],
    plans: Plans,
    configuration: str,
    device: torch.device,
) -> npt.NDArray[Any]:
    """Return class indices ``(Z, Y, X)`` of a preprocessed case, predicted from ``used``.

    Args:
        network: On ``device``; is put into prediction mode.
        memory: On ``device``.
        case: That has all of ``used``.
        used: At least one modality.
        plans: Of the network.
        configuration: Of the network.
        device: Where to compute.
    """
    planned = plans.configuration(configuration)
    network.eval()
    channels = [case.modalities.index(name) for name in used]
    logits = predict_volume(
        case_predictor(network, memory, used),
        torch.from_numpy(case.images[:][channels]),
        planned["patch_size"],
        step=1.0,
        batch_size=patches_at_a_time(planned, device),
        device=device,
    )
    predicted = label_manager(plans.labels).convert_logits_to_segmentation(logits.cpu()).numpy()
    if planned["use_mask_for_norm"][0]:
        predicted[case.labels[:][0] < 0] = 0  # outside the head, as ``predict`` has it
    return predicted


def case_predictor(network: SegmentationNet, memory: Memory, available: Sequence[str]) -> Predictor:
    """Return a function from images ``(B, K, *P)`` of the modalities at hand to logits."""

    def predict(images: Tensor) -> Tensor:
        placed, present = place_modalities(images, available, network.modalities)
        with torch.autocast(images.device.type, enabled=images.device.type == "cuda"):
            return network(placed, present, memory)

    return predict


def patches_at_a_time(planned: Mapping[str, Any], device: torch.device) -> int:
    """Return how many patches are predicted at once.

    On a CPU one: the maps of two do not fit into its caches, and take twice the memory. Elsewhere
    the planned batch, which fits where training fits it with its gradients.
    """
    return 1 if device.type == "cpu" else int(planned["batch_size"])


def _save_moments(optimizer: torch.optim.Optimizer, parameters: Mapping[str, Tensor]) -> State:
    return {
        f"{name}.{moment}": value.detach().to("cpu", copy=True)
        for name, parameter in parameters.items()
        for moment, value in optimizer.state.get(parameter, {}).items()
    }


def _load_moments(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, Tensor],
    saved: Mapping[str, Tensor],
) -> None:
    for key, value in saved.items():
        if key == _SCALE:
            continue
        name, moment = key.rsplit(".", 1)
        parameter = parameters[name]
        # AdamW keeps its step counter on the CPU, its moments with the parameter
        place = torch.device("cpu") if moment == "step" else parameter.device
        optimizer.state[parameter][moment] = value.to(place, copy=True)
