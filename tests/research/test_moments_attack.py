"""The attack on what a memory would send."""

import pytest
import torch
from drawn_features import Normal
from moments_attack import Gaussian, Hospital, area, attack

WAYS = ["means", "covariances", "summed"]


def hospitals(training: int) -> list[Hospital]:
    """Return three hospitals with so many training patients, and twenty others each.

    Patients differ as much as the voxels of one do.
    """
    generator = torch.Generator().manual_seed(0)

    def patients(count: int) -> list[dict[tuple[str, int, int], Normal]]:
        means = torch.randn(count, 1, 8, generator=generator)
        rows = means + torch.randn(count, 400, 8, generator=generator)
        return [{("flair", 0, 0): Normal.of(each)} for each in rows]

    return [Hospital(patients(training), patients(20)) for _ in range(3)]


def test_surprise_is_the_mean_log_likelihood_of_torch() -> None:
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(50, 3, generator=generator, dtype=torch.float64)
    mean = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
    covariance = torch.tensor(
        [[2.0, 0.3, 0.0], [0.3, 1.0, 0.2], [0.0, 0.2, 0.5]], dtype=torch.float64
    )
    normal = torch.distributions.MultivariateNormal(mean, covariance)
    constant = 1.5 * torch.tensor(2 * torch.pi).log()
    likely = normal.log_prob(rows).mean()  # type: ignore[no-untyped-call]
    expected = float(-likely - constant)
    assert Gaussian.of(mean, covariance).surprise(Normal.of(rows)) == pytest.approx(expected)


def test_patients_behind_sums_of_few_are_found() -> None:
    few, many = (
        {way: area(pairs) for way, pairs in attack(hospitals(patients)).items()}
        for patients in (4, 40)
    )
    assert list(few) == WAYS
    assert few["covariances"] > 0.9
    assert 0.7 < few["means"] < few["covariances"]
    assert few["summed"] < few["covariances"]
    assert max(many.values()) < few["means"]


def test_a_hospital_with_modalities_of_its_own_is_left_out() -> None:
    *others, last = hospitals(4)
    alone = Hospital(
        *(
            [{("t2", 0, 0): each["flair", 0, 0]} for each in patients]
            for patients in (last.training, last.unseen)
        )
    )
    assert {way: len(pairs) for way, pairs in attack([*others, alone]).items()} == dict.fromkeys(
        WAYS, 2
    )
