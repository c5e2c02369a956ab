import pytest
import torch

from mixmfl.federated import weighted_sums
from mixmfl.federated.weighted_sums import add_weighted, compiled


@pytest.mark.skipif(not compiled(), reason="no compiler was found, or no AVX2")
@pytest.mark.parametrize("kind", [torch.float16, torch.float32])
@pytest.mark.parametrize("numbers", [1, 7, 8, 4099])
def test_the_compiled_sum_has_the_bits_of_torchs(
    kind: torch.dtype, numbers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(numbers)
    # some are below the least normal number of half precision; a gap lies between the rows
    rows = (1e-4 * torch.randn(5, numbers + 3, generator=generator)).to(kind)[:, :numbers]
    rows[:3, 0] = torch.tensor([6e-8, torch.inf, 65504.0], dtype=kind)
    shares = torch.rand(5, generator=generator)
    before = torch.randn(numbers, generator=generator)
    quick, plain = before.clone(), before.clone()
    add_weighted(quick, rows, shares)
    monkeypatch.setattr(weighted_sums, "_sums", None)
    add_weighted(plain, rows, shares)
    assert torch.equal(quick, plain)
    assert not torch.equal(quick, before)
