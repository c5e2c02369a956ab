from dataclasses import replace

import pytest
import torch
from small import MODALITIES, small_plans
from torch import tensor

from mixmfl.networks.base import Encoding, stack_slots
from mixmfl.networks.build import build_network, prototype_sizes
from mixmfl.networks.imputation import FURTHEST, deviations, impute, impute_missing
from mixmfl.networks.mdmnet import MDMNet
from mixmfl.networks.prototypes import PrototypeMemory, Prototypes, observe
from mixmfl.planning.plans import replace_settings
from mixmfl.training.batches import Batch
from mixmfl.training.trainer import LocalTraining, train_locally

LEVELS = (0, 1, 2)
CHANNELS = (2, 4, 4)  # of tailored features in the small plans


def drawn(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def prototypes(values: list[list[float]], spreads: list[list[float]]) -> Prototypes:
    return Prototypes(tensor(values), tensor(spreads), torch.ones(len(values)))


def some_memory(modalities: tuple[str, ...] = MODALITIES, value: float = 5.0) -> PrototypeMemory:
    return {
        (name, level): Prototypes(
            torch.full((3, CHANNELS[level]), value + index),
            torch.zeros(3, CHANNELS[level]),
            torch.ones(3),
        )
        for index, name in enumerate(modalities)
        for level in LEVELS
    }


def encoded(present: torch.Tensor, size: int = 16) -> tuple[MDMNet, Encoding, torch.Tensor]:
    network = build_network(small_plans(), "2d", seed=0)
    assert isinstance(network, MDMNet)
    images = torch.randn(*present.shape, size, size, generator=drawn(1))
    classes = torch.randint(0, 3, (len(present), 1, size, size), generator=drawn(2))
    return network, network.encode(images, present), classes


def test_deviations_are_in_standard_deviations_of_the_class() -> None:
    memory = prototypes([[4.0, 0.0], [2.0, 1.0]], [[0.5, 0.0], [2.0, 1.0]])
    features = tensor([[[5.0, 5.0, 9.0, 9.0], [1.0, 0.0, 9.0, 9.0]]])  # (B=1, C=2, P=4)
    result = deviations(features, memory, tensor([[0, 1, -1, 2]]))
    assert result[0, 0].tolist() == [2.0, 1.5, 0.0, 0.0]  # (5 - 4) / 0.5, (5 - 2) / 2
    assert result[0, 1].tolist() == [0.0, -1.0, 0.0, 0.0]  # the first class has no spread there
    far = deviations(tensor([[[1e6, -1e6]]]), prototypes([[0.0]], [[1.0]]), tensor([[0, 0]]))
    assert far.tolist() == [[[FURTHEST, -FURTHEST]]]


def test_what_is_imputed_is_the_value_of_the_class_and_so_many_spreads() -> None:
    memory = prototypes([[4.0, 1.0], [2.0, -3.0]], [[0.5, 2.0], [1.0, 1.0]])
    classes = tensor([[0, 1], [1, -1]])  # (B=2, P=2)
    result = impute(memory, tensor([[[2.0, 0.0], [-1.0, 1.0]]] * 2), classes)
    # LeakyReLU's slope is 0.01: of 1 - 2, -3 + 1 and -3 - 1
    assert result[0].tolist() == [[5.0, 2.0], [pytest.approx(-0.01), pytest.approx(-0.02)]]
    assert result[1].tolist() == [[4.0, 0.0], [pytest.approx(-0.04), 0.0]]  # -1: outside the head


def test_a_label_beyond_the_classes_is_ignored() -> None:
    memory, classes = prototypes([[4.0], [2.0]], [[1.0], [1.0]]), tensor([[2, 7]])
    assert impute(memory, torch.ones(1, 1, 2), classes).tolist() == [[[0.0, 0.0]]]


def test_a_modality_imputed_from_itself_is_itself() -> None:
    """Where all stays within reach, and is above zero as after a nonlinearity."""
    features = 5 + torch.rand(2, 3, 6, 7, generator=drawn(4))
    classes = torch.randint(0, 2, (2, 6, 7), generator=drawn(5))
    memory = observe(features, classes, num_classes=2)
    result = impute(memory, deviations(features, memory, classes), classes)
    assert torch.allclose(result, features, atol=1e-5)


def test_the_deviations_of_a_modality_at_hand_are_taken_over_at_every_level() -> None:
    present = tensor([[True, False, False]])
    network, encoding, classes = encoded(present)
    memory = {
        place: replace(prototypes, spreads=torch.full_like(prototypes.spreads, 0.5))
        for place, prototypes in some_memory().items()
    }
    result = impute_missing(encoding, network.modalities, memory, classes, 1.0, drawn())
    assert result is not None
    for level in LEVELS:
        # values are 5, 6 and 7 in every class; what is imputed stays above 0
        apart = ((stack_slots(encoding.tailored[level])[0, 0] - 5) / 0.5).clamp(-FURTHEST, FURTHEST)
        assert torch.allclose(stack_slots(result.tailored[level])[0, 1], 6 + 0.5 * apart, atol=1e-5)
        assert torch.allclose(stack_slots(result.tailored[level])[0, 2], 7 + 0.5 * apart, atol=1e-5)


def test_every_modality_at_hand_gives_its_deviations_at_times() -> None:
    present = tensor([[True, True, False]] * 400)
    network, encoding, classes = encoded(present, size=8)
    # the two deviate to different sides, as far as they may
    usual = {"flair": -1e6, "t1": 1e6, "t2": 7.0}
    memory = {
        (name, level): replace(
            prototypes, values=prototypes.values * 0 + usual[name], spreads=prototypes.spreads + 1
        )
        for (name, level), prototypes in some_memory().items()
    }
    result = impute_missing(encoding, network.modalities, memory, classes, 1.0, drawn())
    assert result is not None
    sides = stack_slots(result.tailored[0])[:, 2].mean(dim=(1, 2, 3)) > 7  # the value of T2
    assert 0.4 < sides.double().mean().item() < 0.6  # of cases


def test_only_missing_modalities_that_the_memory_knows_are_imputed() -> None:
    present = tensor([[True, False, False], [True, True, True]])
    network, encoding, classes = encoded(present)
    known = some_memory(("flair", "t1"))  # without spread
    result = impute_missing(encoding, network.modalities, known, classes, 1.0, drawn())
    assert result is not None
    assert result.imputed is not None
    assert result.imputed.tolist() == [[False, True, False], [False, False, False]]
    assert result.present is encoding.present
    for level in LEVELS:
        assert (stack_slots(result.tailored[level])[0, 1] == 6.0).all()  # t1's value
        same = torch.ones(2, 3, dtype=torch.bool)
        same[0, 1] = False
        filled, before = stack_slots(result.tailored[level]), stack_slots(encoding.tailored[level])
        assert torch.equal(filled[same], before[same])


@pytest.mark.parametrize(
    ("present", "memory"),
    [
        ([[True, True, True]], some_memory()),
        ([[True, False, False]], {}),
        ([[False, True, True]], {at: p for at, p in some_memory().items() if at[1] != 1}),
        (
            [[False, True, True]],
            some_memory(("flair",)),
        ),  # no available modality can give deviations
    ],
)
def test_nothing_is_imputed_where_nothing_is_missing_or_known(
    present: list[list[bool]], memory: PrototypeMemory
) -> None:
    network, encoding, classes = encoded(tensor(present))
    args = (network.modalities, memory, classes)
    assert impute_missing(encoding, *args, 1.0, drawn()) is None
    assert impute_missing(encoding, network.modalities, some_memory(), classes, 0, drawn()) is None


def test_each_missing_modality_is_imputed_by_its_own_draw() -> None:
    present = tensor([[True, False, False]] * 400)
    network, encoding, classes = encoded(present, size=8)
    result = impute_missing(encoding, network.modalities, some_memory(), classes, 0.25, drawn())
    assert result is not None
    assert result.imputed is not None
    shares = result.imputed.double().mean(dim=0).tolist()
    assert shares == [0, pytest.approx(0.25, abs=0.06), pytest.approx(0.25, abs=0.06)]
    both = (result.imputed.sum(dim=1) == 2).double().mean().item()
    assert both == pytest.approx(1 / 16, abs=0.04)


def test_what_is_imputed_is_decoded_as_if_available_but_leaves_the_shared_mean() -> None:
    """The same logits as of a case that has the modality, with a shared feature of nothing new."""
    network, encoding, classes = encoded(tensor([[True, False, False]]))
    result = impute_missing(
        encoding, network.modalities, some_memory(("flair", "t1")), classes, 1.0, drawn()
    )
    assert result is not None
    # with the same features for both, their mean is that of the available one
    shared = [[slots[0], slots[0], None] for slots in encoding.shared]
    as_if = Encoding(result.tailored, shared, tensor([[True, True, False]]))
    network.eval()
    from_imputed, real = (network.decode(each, {}) for each in (result, as_if))
    assert isinstance(from_imputed, torch.Tensor)
    assert isinstance(real, torch.Tensor)
    assert torch.allclose(from_imputed, real, atol=1e-5)
    # the encoder of the available modality learns from this view, too
    flair, t1, _ = encoding.tailored[0]
    assert flair is not None
    assert t1 is None
    (gradient,) = torch.autograd.grad(from_imputed.sum(), [flair])
    assert gradient.abs().sum() > 0


def test_training_imputes_what_a_site_lacks_and_only_then() -> None:
    """Weights of the slots of T2 move at a site without T2, once the memory knows T2."""
    plans = replace_settings(small_plans(), {"compensation_levels": []}, {})

    def moved(imputation: float, memory: PrototypeMemory, seed: int = 5) -> torch.Tensor:
        chosen = replace_settings(plans, {}, {"imputation": imputation})
        network = build_network(chosen, "2d", seed=0)
        images = torch.randn(2, 3, 16, 16, generator=drawn(1))
        images[:, 2] = 0
        present = tensor([[True, True, False]] * 2)
        classes = torch.randint(0, 3, (2, 1, 16, 16), generator=drawn(2))
        batch = Batch(
            images,
            present,
            present,
            [classes, classes[..., ::2, ::2]],
            seed,
            torch.arange(len(images)),
        )
        blocks = ["shared", "fusion", "decoder", "tailored.flair", "tailored.t1"]
        training = LocalTraining(chosen, "2d", blocks, 1e-2, torch.device("cpu"))
        train_locally(network, memory, {}, [batch], training)
        mixing = network.get_parameter("fusion.0.mix.convs.0.conv.weight")
        return mixing.detach()[:, -CHANNELS[0] :]  # what it reads of T2, the last slot

    without = moved(0, some_memory())
    assert torch.equal(without, moved(1.0, {}))
    assert torch.equal(without, moved(1.0, some_memory(("flair", "t1"))))
    with_memory = moved(1.0, some_memory())
    assert not torch.equal(without, with_memory)
    assert torch.equal(with_memory, moved(1.0, some_memory()))


def test_the_memory_has_every_level_where_modalities_are_imputed() -> None:
    plans = replace_settings(small_plans(), {"compensation_levels": [-1]}, {"imputation": 0})
    assert list(prototype_sizes(plans, "2d")) == [2]
    plans = replace_settings(plans, {"compensation_levels": []}, {})
    assert prototype_sizes(plans, "2d") == {}
    assert list(prototype_sizes(replace_settings(plans, {}, {"imputation": 0.5}), "2d")) == [
        0,
        1,
        2,
    ]
