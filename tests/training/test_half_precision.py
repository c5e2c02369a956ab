"""The loss of a training step in half precision."""

import pytest
import torch
from small import LABELS, MODALITIES, small_plans
from torch import tensor
from torch.nn import functional

from mixmfl.networks.build import build_network
from mixmfl.networks.prototypes import Prototypes
from mixmfl.training.nnunet_training import supervision_loss, supervision_targets

HALF_PRECISION = [torch.bfloat16, torch.float16]


def half_precision_or_skip(dtype: torch.dtype, dim: int) -> None:
    """Skip where this torch cannot convolve so on the CPU."""
    layer = (torch.nn.Conv2d, torch.nn.Conv3d)[dim - 2](1, 1, 3)
    try:
        with torch.autocast("cpu", dtype=dtype):
            layer(torch.zeros(1, 1, *[3] * dim)).sum().backward()
    except (RuntimeError, UserWarning) as error:
        pytest.skip(f"no {dtype} convolution on this CPU: {error}")


@pytest.mark.parametrize("patch", [(16, 16), (8, 16, 16)])
@pytest.mark.parametrize("dtype", HALF_PRECISION)
@pytest.mark.parametrize("lesion", [0, 1, 5])  # voxels along each axis
def test_the_loss_of_a_training_step_is_finite_in_half_precision_whatever_the_lesion(
    patch: tuple[int, ...], dtype: torch.dtype, lesion: int
) -> None:
    half_precision_or_skip(dtype, len(patch))
    plans = small_plans(patch=patch)
    configuration = "2d" if len(patch) == 2 else "3d_fullres"
    network = build_network(plans, configuration, 0).train()
    images = torch.randn(2, 3, *patch, generator=torch.Generator().manual_seed(1))
    present = tensor([[True, False, True], [True, True, True]])
    shown = tensor([[True, False, False], [False, True, True]])
    classes = torch.zeros(2, 1, *patch, dtype=torch.long)
    inside = (slice(2, 2 + lesion),) * len(patch)
    classes[0, 0][inside] = 1  # in the first case, and bright
    images[0].movedim(0, -1)[inside] = 50.0
    halved = functional.interpolate(classes.float(), scale_factor=0.5, mode="nearest")
    ones = torch.ones(3, 4)
    prototypes = Prototypes(ones, torch.ones(3))
    memory = {(name, 2): prototypes for name in MODALITIES}
    compare = supervision_loss(LABELS, 2, batch_dice=len(patch) == 2)
    with torch.autocast("cpu", dtype=dtype):
        encoding = network.encode(images, present)
        targets = supervision_targets([classes, halved], LABELS)
        losses = [
            compare(network.decode(seen, memory), targets).total
            for seen in (encoding, encoding.restricted_to(shown))
        ]
    shared = next(maps for maps in encoding.shared[-1] if maps is not None)
    assert shared.dtype == dtype
    assert all(loss.isfinite() for loss in losses)
    torch.autograd.backward(losses)
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert sum(gradient.abs().sum() for gradient in gradients) > 0
