"""The comparison of made-up with true features, where the true ones are normal and known."""

import pytest
import torch
from drawn_features import Memory, Normal, Voxels, auc, compare, random_rotation

SHIFT = torch.tensor([0.6, -0.6, 0.0], dtype=torch.float64)


def cases(
    count: int, seed: int, names: tuple[str, ...] = ("flair", "t1"), *, sure: bool = True
) -> list[Voxels]:
    """Return cases of classes 0 and 1, which T1 shows a little, and FLAIR less.

    Channels of FLAIR are nearly the same, those of T1 are not, and half of each is FLAIR's. What
    the network makes of a modality is right everywhere, or not ``sure`` and by chance.
    """
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(count):
        classes = torch.arange(400) % 2
        noise = torch.randn(2, 400, 3, generator=generator, dtype=torch.float64)
        flair = 9 + noise[0, :, :1] + 0.3 * noise[0] + 0.1 * classes[:, None]
        maps = {"flair": flair, "t1": 5 + flair / 2 + noise[1] + classes[:, None] * SHIFT}
        guess = classes if sure else torch.randint(2, (400,), generator=generator)
        guessed = dict.fromkeys(names, guess)
        found.append(Voxels(classes, {name: maps[name] for name in names}, guessed))
    return found


def test_draws_of_normal_features_tell_the_class_as_little_as_these_do() -> None:
    gate = compare(cases(20, 0), cases(10, 1), "t1", "flair", level=0, temperature=0.1)
    for kind in ("drawn", "drawn alone"):
        assert gate.read[kind] == pytest.approx(gate.read["true"], abs=0.04)  # shrunk covariances
        assert gate.transfer[kind] > gate.transfer["true"] - 0.02
    assert gate.read["translated"] > gate.read["true"] + 0.1
    # a draw has twice the error of its mean, and the mean given FLAIR is the best of all
    assert gate.left["drawn alone"] == pytest.approx(2 * gate.left["class mean"], rel=0.15)
    assert min(gate.left, key=lambda kind: gate.left[kind]) == "linear"


def test_draws_of_the_class_that_a_network_sees_are_as_good_as_the_network() -> None:
    gate = compare(cases(5, 0), cases(5, 1), "t1", "flair", level=0, temperature=0.1)
    assert gate.read["posterior"] == gate.read["drawn"]
    training, tests = (cases(10, seed, sure=False) for seed in (0, 1))
    gate = compare(training, tests, "t1", "flair", level=0, temperature=0.1)
    assert gate.read["drawn"] > 0.65
    assert gate.read["posterior"] < 0.6  # of FLAIR, which is left, there is little


def test_controls_of_draws_keep_variances_or_the_spectrum() -> None:
    (one,) = cases(1, 0)
    known = Normal.of(one.features["t1"])
    diagonal = known.diagonal()
    assert torch.allclose(diagonal.mean, known.mean)
    assert torch.allclose(diagonal.covariance, torch.diag(known.covariance.diagonal()))
    turn = random_rotation(3, torch.Generator().manual_seed(0))
    about = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    turned = known.turned(turn, about)
    of_turned = Normal.of((one.features["t1"] - about) @ turn.T + about)
    assert torch.allclose(turned.total, of_turned.total)
    assert torch.allclose(turned.products, of_turned.products)
    assert not torch.allclose(turned.covariance, known.covariance, atol=0.01)


def test_modalities_that_no_site_has_together_are_drawn_alone() -> None:
    apart = [*cases(10, 0, ("flair",)), *cases(10, 1, ("t1",))]
    gate = compare(apart, cases(5, 2), "t1", "flair", level=0, temperature=0.1)
    assert "true" not in gate.transfer
    assert "linear" not in gate.left
    assert gate.left["drawn"] == pytest.approx(gate.left["drawn alone"], rel=0.1)


def test_sums_of_sites_add_up_and_half_of_a_pair_is_known_given_the_other() -> None:
    (one,), (other,) = cases(1, 0), cases(1, 1)
    both = torch.cat([one.features["t1"], other.features["t1"]])
    parts = Normal.of(both[:400]) + Normal.of(both[400:])
    assert torch.allclose(parts.mean, both.mean(dim=0))
    assert torch.allclose(parts.covariance, Normal.of(both).covariance)
    same = Normal.of(torch.cat([both, both + 1], dim=1))
    mean, _ = same.given(both[:5] + 1)
    assert torch.allclose(mean, both[:5], atol=0.5)  # as far as the covariance is shrunk
    whitened = Memory([one]).whitened(one, "t1")[one.classes == 1]
    assert whitened.mean(dim=0).abs().max() < 1e-9
    assert torch.allclose(torch.cov(whitened.T), torch.eye(3, dtype=torch.float64), atol=0.3)


def test_auc_is_the_share_of_pairs_in_the_right_order() -> None:
    scores, lesion = torch.tensor([0.1, 0.4, 0.4, 0.8]), torch.tensor([False, True, False, True])
    assert auc(scores, lesion) == 3.5 / 4
