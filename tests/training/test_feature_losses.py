import math
from pathlib import Path
from typing import get_args

import pytest
import torch
from small import LABELS, MODALITIES, small_plans, stored_site
from torch import Tensor, tensor
from torch.nn import functional

from mixmfl.federated.client.training import train_at_site
from mixmfl.federated.server.merge import train_task
from mixmfl.federated.state import RunSettings, first_state, register
from mixmfl.networks.base import stack_slots
from mixmfl.networks.build import build_network
from mixmfl.networks.prototypes import Prototypes
from mixmfl.planning.plans import replace_settings
from mixmfl.planning.settings import Loss
from mixmfl.training.feature_losses import LOSSES, alignment, separation
from mixmfl.training.nnunet_training import supervision_loss, supervision_targets

AT_45_DEGREES = 1 - math.cos(math.pi / 4)
HALF_PRECISION = [torch.bfloat16, torch.float16]

# a channel's values at four places; these three have nothing in common
A, B, C = tensor([[1.0, -1.0, 1.0, -1.0], [1.0, 1.0, -1.0, -1.0], [1.0, -1.0, -1.0, 1.0]])


def everything(cases: int, modalities: int) -> Tensor:
    return torch.ones(cases, modalities, dtype=torch.bool)


def maps(*channels: Tensor) -> Tensor:
    """Return features ``(1, 2, C, 2)``: two images, the four places' first and last two."""
    return torch.stack(channels).reshape(-1, 2, 2).movedim(1, 0)[None]


# --- alignment: features are (B, M, C, *P)


def test_features_that_point_one_way_are_aligned_whatever_their_length() -> None:
    shared = tensor([[[1.0, 2.0], [10.0, 20.0], [0.1, 0.2]]])[..., None]
    assert alignment(shared, everything(1, 3)).item() == pytest.approx(0, abs=1e-6)


def test_two_orthogonal_features_are_45_degrees_from_their_mean_direction() -> None:
    shared = tensor([[[3.0, 0.0], [0.0, 500.0]]])[..., None]
    assert alignment(shared, everything(1, 2)).item() == pytest.approx(AT_45_DEGREES)


def test_one_feature_apart_from_two_that_agree() -> None:
    shared = tensor([[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]])[..., None]
    # the mean direction is (2, 1) / sqrt(5): cosines 2, 2 and 1 over sqrt(5)
    want = 1 - (2 + 2 + 1) / (3 * math.sqrt(5))
    assert alignment(shared, everything(1, 3)).item() == pytest.approx(want)


def test_alignment_is_the_mean_over_voxels() -> None:
    shared = tensor([[[[1.0, 1.0], [0.0, 1.0]], [[0.0, 2.0], [1.0, 2.0]]]])  # orthogonal, equal
    assert alignment(shared, everything(1, 2)).item() == pytest.approx(AT_45_DEGREES / 2)


def test_missing_modalities_and_cases_with_a_single_one_have_no_part_in_alignment() -> None:
    apart = [[3.0, 0.0], [0.0, 5.0], [-1e4, 1e4]]
    single = [[1.0, 0.0], [1e4, -1e4], [-1e4, 0.0]]
    present = tensor([[True, True, False], [True, False, False]])
    found = alignment(tensor([apart, single])[..., None], present)
    assert found.item() == pytest.approx(AT_45_DEGREES)


def test_without_a_case_of_two_modalities_there_is_nothing_to_align() -> None:
    assert alignment(torch.randn(3, 3, 4, 5), torch.eye(3, dtype=torch.bool)).item() == 0


# --- separation: features are (B, M, C, *P)


def test_tailored_features_that_are_the_shared_ones_are_not_separate_at_all() -> None:
    assert separation(maps(A), maps(A), everything(1, 2)).item() == pytest.approx(1)
    # of two channels each repeats one and has nothing of the other
    assert separation(maps(A, B), maps(A, B), everything(1, 2)).item() == pytest.approx(1 / 2)


def test_features_without_correlation_are_separate() -> None:
    assert separation(maps(A), maps(B, C), everything(1, 2)).item() == pytest.approx(0, abs=1e-12)


def test_separation_is_the_squared_correlation_worked_out_by_hand() -> None:
    # a + b goes half with a: their correlation is 1 / sqrt(2)
    assert separation(maps(A + B), maps(A), everything(1, 2)).item() == pytest.approx(1 / 2)
    # and of 3a + 4b with a, b and c: 3/5, 4/5 and 0
    found = separation(maps(3 * A + 4 * B), maps(A, B, C), everything(1, 2))
    assert found.item() == pytest.approx((9 / 25 + 16 / 25 + 0) / 3)


def test_separation_sees_neither_scale_nor_shift_nor_sign() -> None:
    one = separation(maps(3 * A + 4 * B), maps(A), everything(1, 2))
    other = separation(maps(700 - 0.01 * (3 * A + 4 * B)), maps(50 * A - 3), everything(1, 2))
    assert other.item() == pytest.approx(one.item(), rel=1e-2)  # 700 leaves 0.05 few digits
    assert one.item() == pytest.approx(9 / 25)


def test_a_channel_that_never_changes_repeats_nothing() -> None:
    assert separation(maps(0 * A + 3), maps(A), everything(1, 2)).item() == 0


def test_missing_modalities_have_no_part_in_separation() -> None:
    missing = torch.full((1, 1, 1, 2), 1e4)
    tailored, shared = (torch.cat([maps(x), missing], dim=1) for x in (A + B, A))
    found = separation(tailored, shared, tensor([[True, True, False]]))
    assert found.item() == pytest.approx(1 / 2)


# --- half precision


@pytest.mark.parametrize("dtype", HALF_PRECISION)
@pytest.mark.parametrize("size", [1e-3, 1.0, 3e4])  # norms of the last are beyond float16
def test_losses_on_features_are_right_and_have_gradients_in_half_precision(
    dtype: torch.dtype, size: float
) -> None:
    generator = torch.Generator().manual_seed(0)
    shared, tailored = (
        (size * drawn).clamp(-6e4, 6e4).to(dtype).requires_grad_()
        for drawn in torch.randn(2, 2, 3, 4, 5, 5, generator=generator)
    )
    present = tensor([[True, True, False], [True, True, True]])
    exact = shared.double(), tailored.double()
    together, apart = alignment(shared, present), separation(tailored, shared, present)
    assert together.item() == pytest.approx(alignment(exact[0], present).item(), rel=1e-3)
    assert apart.item() == pytest.approx(separation(*exact[::-1], present).item(), rel=1e-3)
    for loss, inputs in ((together, [shared]), (apart, [tailored, shared])):
        for gradient in torch.autograd.grad(loss, inputs):
            assert gradient.isfinite().all()
            assert gradient[present].abs().sum() > 0 or size > 1  # too small for float16
            assert (gradient[~present] == 0).all()


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
    prototypes = Prototypes(ones, ones, torch.ones(3))
    memory = {(name, 2): prototypes for name in MODALITIES}
    compare = supervision_loss(LABELS, 2, batch_dice=len(patch) == 2)
    with torch.autocast("cpu", dtype=dtype):
        encoding = network.encode(images, present)
        targets = supervision_targets([classes, halved], LABELS)
        losses = [
            compare(network.decode(seen, memory), targets)
            for seen in (encoding, encoding.restricted_to(shown))
        ]
        tailored, shared = stack_slots(encoding.tailored[-1]), stack_slots(encoding.shared[-1])
        losses.append(alignment(shared, present))
        losses.append(separation(tailored, shared, present))
    assert shared.dtype == dtype
    assert all(loss.isfinite() for loss in losses)
    torch.autograd.backward(losses)
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert sum(gradient.abs().sum() for gradient in gradients) > 0


# --- as training uses them


def test_plans_may_name_every_loss_and_no_other() -> None:
    assert get_args(Loss) == tuple(LOSSES)


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_on_features_adds_to_the_training_loss_by_its_weight(
    tmp_path: Path, name: str
) -> None:
    settings = RunSettings("2d", seed=0, rounds=1, local_steps=1, learning_rate=1e-2)
    site = stored_site(tmp_path, "north", [("t1", "t2"), MODALITIES], small_plans())
    registration, losses = register(site), []
    for weights in ({}, {name: 1.0}, {name: 3.0}):
        plans = replace_settings(small_plans(), {}, {"losses": weights})
        task = train_task(first_state(plans, settings), registration)
        losses.append(train_at_site(task, site, plans, settings, {})[0].record["loss"])
    added = losses[1] - losses[0]
    assert added > 1e-4
    assert losses[2] - losses[0] == pytest.approx(3 * added, rel=1e-2)


def test_features_of_a_blank_slice_do_not_blow_up_the_gradient() -> None:
    shared = torch.zeros(1, 2, 4, 3, 3, requires_grad=True)
    apart = alignment(shared, torch.ones(1, 2, dtype=torch.bool))
    (gradient,) = torch.autograd.grad(apart, shared)
    assert gradient.abs().max() < 1e3
