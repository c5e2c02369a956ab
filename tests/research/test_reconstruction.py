"""Reconstruction of patches: its parts by hand, and what protection does to it."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from small_federation import PLANS, SETTINGS, SiteStore

from mixmfl.federated.state import Site
from mixmfl.planning.preprocessed_case import PreprocessedCase
from mixmfl.research.membership_inference import split_candidates
from mixmfl.research.reconstruction import correlations, reconstruct
from mixmfl.training.privacy_budget import Privacy

Halves = Mapping[str, tuple[Site, Sequence[PreprocessedCase]]]


@pytest.fixture(scope="module")
def halves(store: SiteStore) -> Halves:
    sites = [store.site(name, [("t1", "t2")] * 4) for name in ("east", "north", "west")]
    return {site.name: split_candidates(site, 0) for site in sites}


def test_images_are_compared_by_correlation_where_both_are_there_and_not_constant() -> None:
    these = torch.tensor([[[1.0, 2, 3], [1, 1, 1], [0, 1, 5]]])
    those = torch.tensor([[[5.0, 3, 1], [1, 2, 3], [7, 8, 9]]])
    present = torch.tensor([[True, True, False]])
    assert correlations(these, those, present) == [pytest.approx(-1)]


@pytest.mark.slow
def test_a_step_shows_its_patch_and_noise_hides_it(halves: Halves, tmp_path: Path) -> None:
    plain = reconstruct(PLANS, halves, SETTINGS, 300)
    assert plain.trained > plain.others + 0.05
    privacy = Privacy(float("inf"), 1e-3, 10.0, 1.0, tmp_path / "ledger.json")
    noisy = {
        name: (dataclasses.replace(site, privacy=privacy), others)
        for name, (site, others) in halves.items()
    }
    hidden = reconstruct(PLANS, noisy, SETTINGS, 300)
    assert hidden.trained < plain.trained - 0.1
