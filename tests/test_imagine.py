import numpy as np
import pytest
import torch
from small import MODALITIES, small_plans
from torch import tensor

from mixmfl.imagine import COARSENESS, imagine, imagine_absent
from mixmfl.memory import Memory, Prototypes
from mixmfl.network import Encoding, MDMNet, build_network, prototype_sizes
from mixmfl.plan import replace_settings
from mixmfl.sampling import Batch
from mixmfl.train import train_locally

LEVELS = (0, 1, 2)
CHANNELS = (2, 4, 4)  # of tailored features in the small plans


def drawn(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def prototypes(values: list[list[float]], spreads: list[list[float]]) -> Prototypes:
    keys = torch.zeros(len(values), 1)
    return Prototypes(keys, tensor(values), tensor(spreads), torch.ones(len(values)))


def some_memory(modalities: tuple[str, ...] = MODALITIES, value: float = 5.0) -> Memory:
    return {
        (name, level): Prototypes(
            torch.zeros(3, CHANNELS[level]),
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


def test_without_spread_each_voxel_gets_the_value_of_its_class() -> None:
    memory = prototypes([[4.0, 1.0], [2.0, -3.0]], [[0.0, 0.0]] * 2)
    found = imagine(memory, tensor([[0, 1], [1, -1]]), drawn())  # (B=2, P=2)
    # LeakyReLU's slope is 0.01; class -1 is outside the head
    assert found[0].tolist() == [[4.0, 2.0], [1.0, pytest.approx(-0.03)]]
    assert found[1].tolist() == [[2.0, 0.0], [pytest.approx(-0.03), 0.0]]


def test_a_label_beyond_the_classes_is_ignored() -> None:
    found = imagine(prototypes([[4.0], [2.0]], [[1.0], [1.0]]), tensor([[2, 7]]), drawn())
    assert found.tolist() == [[[0.0, 0.0]]]


@pytest.mark.parametrize("shape", [(64, 64), (24, 32, 32)])
def test_features_spread_about_their_class_as_the_memory_says(shape: tuple[int, ...]) -> None:
    memory = prototypes([[100.0], [300.0]], [[2.0], [8.0]])
    classes = (torch.rand(8, *shape, generator=drawn(3)) < 0.5).long()
    found = imagine(memory, classes, drawn())[:, 0]
    for index, (value, spread) in enumerate(((100.0, 2.0), (300.0, 8.0))):
        inside = found[classes == index]
        assert inside.mean().item() == pytest.approx(value, abs=0.1 * spread)
        # white noise has variance 0.49; interpolation takes some of the smooth noise's
        assert 0.7 < inside.std().item() / spread < 1.0


def test_neighbours_are_alike_and_distant_voxels_are_not() -> None:
    classes = torch.zeros(64, 64, 64, dtype=torch.long)
    found = imagine(prototypes([[100.0]], [[1.0]]), classes, drawn())[:, 0] - 100

    def correlation(apart: int) -> float:
        a, b = found[..., apart:].flatten(), found[..., :-apart].flatten()
        return float(np.corrcoef(a, b)[0, 1])

    assert correlation(1) > 0.25
    assert abs(correlation(4 * COARSENESS)) < 0.03


def test_only_absent_modalities_that_the_memory_knows_are_imagined() -> None:
    present = tensor([[True, False, False], [True, True, True]])
    network, encoding, classes = encoded(present)
    known = some_memory(("flair", "t1"))
    found = imagine_absent(encoding, network.modalities, known, classes, 1.0, drawn())
    assert found is not None
    assert found.imagined is not None
    assert found.imagined.tolist() == [[False, True, False], [False, False, False]]
    assert found.present is encoding.present
    for level in LEVELS:
        assert (found.tailored[level][0, 1] == 6.0).all()  # t1's value
        same = torch.ones(2, 3, dtype=torch.bool)
        same[0, 1] = False
        assert torch.equal(found.tailored[level][same], encoding.tailored[level][same])


@pytest.mark.parametrize(
    ("present", "memory"),
    [
        ([[True, True, True]], some_memory()),
        ([[True, False, False]], {}),
        ([[False, True, True]], {at: p for at, p in some_memory().items() if at[1] != 1}),
    ],
)
def test_nothing_is_imagined_where_nothing_is_absent_or_known(
    present: list[list[bool]], memory: Memory
) -> None:
    network, encoding, classes = encoded(tensor(present))
    args = (network.modalities, memory, classes)
    assert imagine_absent(encoding, *args, 1.0, drawn()) is None
    assert imagine_absent(encoding, network.modalities, some_memory(), classes, 0, drawn()) is None


def test_each_absent_modality_is_imagined_by_its_own_draw() -> None:
    present = tensor([[True, False, False]] * 400)
    network, encoding, classes = encoded(present, size=8)
    found = imagine_absent(encoding, network.modalities, some_memory(), classes, 0.25, drawn())
    assert found is not None
    assert found.imagined is not None
    shares = found.imagined.double().mean(dim=0).tolist()
    assert shares == [0, pytest.approx(0.25, abs=0.06), pytest.approx(0.25, abs=0.06)]
    both = (found.imagined.sum(dim=1) == 2).double().mean().item()
    assert both == pytest.approx(1 / 16, abs=0.04)


def test_what_is_imagined_is_decoded_as_if_at_hand_but_leaves_the_shared_mean() -> None:
    """The same logits as of a case that has the modality, with a shared feature of nothing new."""
    network, encoding, classes = encoded(tensor([[True, False, False]]))
    found = imagine_absent(
        encoding, network.modalities, some_memory(("t1",)), classes, 1.0, drawn()
    )
    assert found is not None
    shared = [features.clone() for features in encoding.shared]
    for features in shared:
        features[:, 1] = features[:, 0]  # then the mean over both is that of the one at hand
    as_if = Encoding(found.tailored, shared, tensor([[True, True, False]]))
    network.eval()
    imagined, real = (network.decode(each, {}) for each in (found, as_if))
    assert isinstance(imagined, torch.Tensor)
    assert isinstance(real, torch.Tensor)
    assert torch.equal(imagined, real)
    # the encoder of the modality at hand learns from this look, too
    (gradient,) = torch.autograd.grad(imagined.sum(), [encoding.tailored[0]])
    assert gradient[0, 0].abs().sum() > 0
    assert gradient[0, 1].abs().sum() == 0


def test_training_imagines_what_a_site_lacks_and_only_then() -> None:
    """Weights of the slots of T2 move at a site without T2, once the memory knows T2."""
    plans = replace_settings(small_plans(), {"compensation_levels": []}, {})

    def moved(imagining: float, memory: Memory, seed: int = 5) -> torch.Tensor:
        chosen = replace_settings(plans, {}, {"imagining": imagining})
        network = build_network(chosen, "2d", seed=0)
        images = torch.randn(2, 3, 16, 16, generator=drawn(1))
        images[:, 2] = 0
        present = tensor([[True, True, False]] * 2)
        classes = torch.randint(0, 3, (2, 1, 16, 16), generator=drawn(2))
        batch = Batch(images, present, present, [classes, classes[..., ::2, ::2]], seed)
        blocks = ["shared", "fusion", "decoder", "tailored.flair", "tailored.t1"]
        train_locally(network, memory, {}, [batch], chosen, "2d", blocks, 1e-2, torch.device("cpu"))
        mixing = network.get_parameter("fusion.0.mix.convs.0.conv.weight")
        return mixing.detach()[:, -CHANNELS[0] :]  # what it reads of T2, the last slot

    without = moved(0, some_memory())
    assert torch.equal(without, moved(1.0, {}))
    assert torch.equal(without, moved(1.0, some_memory(("flair", "t1"))))
    with_memory = moved(1.0, some_memory())
    assert not torch.equal(without, with_memory)
    assert torch.equal(with_memory, moved(1.0, some_memory()))


def test_the_memory_has_every_level_where_modalities_are_imagined() -> None:
    plans = replace_settings(small_plans(), {"compensation_levels": [-1]}, {"imagining": 0})
    assert list(prototype_sizes(plans, "2d")) == [2]
    plans = replace_settings(plans, {"compensation_levels": []}, {})
    assert prototype_sizes(plans, "2d") == {}
    assert list(prototype_sizes(replace_settings(plans, {}, {"imagining": 0.5}), "2d")) == [0, 1, 2]
