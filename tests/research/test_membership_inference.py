"""Membership inference: its parts by hand, and that it finds members where it should."""

import dataclasses
from pathlib import Path

import numpy as np
from small_federation import PLANS
from small_federation import SETTINGS as SHORT

from mixmfl.federated.state import Site
from mixmfl.research.membership_inference import WATCHED, interval, observe_run, split_candidates

SETTINGS = dataclasses.replace(SHORT, rounds=WATCHED)


def test_the_interval_holds_the_area_under_the_curve() -> None:
    members, others = np.array([3.0, 1.0]), np.array([0.0, 1.0, 2.0])
    # 3 beats all three; 1 beats 0 and ties with 1: (3 + 1.5) / 6 is 0.75
    truth = np.array([True, True, False, False, False])
    low, high = interval(np.concatenate([members, others]), truth, seed=0)
    assert 0 <= low < 0.75 < high <= 1
    apart = np.array([3.0, 4.0, 1.0, 2.0])
    assert interval(apart, apart > 2, seed=0) == (1, 1)
    assert interval(np.array([1.0, 1.0]), np.array([True, False]), seed=0) == (0.5, 0.5)


def test_half_of_the_cases_train_and_as_many_do_not(sites: list[Site]) -> None:
    member, others = split_candidates(sites[0], 0)
    names = [case.name for case in (*member.training, *others)]
    assert len(member.training) == len(others) == 2
    assert sorted(names) == ["p0", "p1", "p2", "p3"]
    assert not member.validation
    assert split_candidates(sites[0], 0) == (member, others)
    seeds = {tuple(c.name for c in split_candidates(sites[0], n)[1]) for n in range(8)}
    assert len(seeds) > 1


def test_the_attacker_sees_each_site_and_under_masks_only_what_all_came_to(
    sites: list[Site], tmp_path: Path
) -> None:
    _, _, plain = observe_run(PLANS, sites, SETTINGS, tmp_path / "plain")
    assert {len(seen) for seen in plain.values()} == {WATCHED}
    name = "decoder.seg_layers.1.weight"
    last = [seen[-1].after[name] for seen in plain.values()]
    assert not (last[0] == last[1]).all()
    for seen in plain.values():  # where training ended, not how far it went: two steps at 0.01
        assert 0 < float((seen[-1].after[name] - seen[-1].before[name]).abs().max()) < 0.1
        assert float(seen[-1].after[name].abs().max()) > 0.1
    hidden = dataclasses.replace(SETTINGS, masked=True)
    _, state, masked = observe_run(PLANS, sites, hidden, tmp_path / "masked")
    for seen in masked.values():
        assert (seen[-1].after[name] == state.weights[name]).all()
        assert (seen[-1].before[name] == seen[-2].after[name]).all()
