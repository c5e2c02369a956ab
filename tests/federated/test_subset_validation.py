"""Expected Dice per subset of modalities: measured by the sites, carried by the model file."""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_federation import PLANS, SiteStore
from small_federation import SETTINGS as SHORT

from mixmfl.core.errors import AggregationError, ModelError
from mixmfl.core.records import json_of
from mixmfl.evaluation.mask_quality import ConfidenceSums, Measured, add_sums, sums_of_case
from mixmfl.evaluation.reliability import BINS as BINS_OF_VOXELS
from mixmfl.evaluation.reliability import Reliability
from mixmfl.evaluation.small_components import ComponentSums
from mixmfl.evaluation.subset_dice import (
    BINS,
    Counts,
    Expectation,
    Expectations,
    LabelDice,
    SubsetDice,
    add_counts,
    count_dice,
    expect,
    least,
)
from mixmfl.federated.client import subset_validation
from mixmfl.federated.client.subset_validation import measure_at_site
from mixmfl.federated.messages import Message
from mixmfl.federated.server.beginning import Beginning
from mixmfl.federated.server.export import export_model
from mixmfl.federated.server.measured import save_measured
from mixmfl.federated.server.run import choose_round
from mixmfl.federated.server.subset_validation import (
    measure_task,
    merge_measured,
    read_measured,
)
from mixmfl.federated.simulation import simulate
from mixmfl.federated.state import first_state, register
from mixmfl.inference import cpu_network
from mixmfl.inference.model_file import load_model
from mixmfl.training.validation import validate

SETTINGS = dataclasses.replace(SHORT, local_steps=3)


def test_the_model_file_says_what_dice_its_sites_measured(
    tmp_path: Path, store: SiteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_network, "best_dtype", lambda: torch.float32)  # as validation computes
    north = store.site("north", [("t1", "t2"), ("t1", "t2"), ("t1",)], validation=1)
    south = store.site("south", [("flair",), ("flair", "t1")], validation=1)
    run = simulate(PLANS, [north, south], SETTINGS, "0", tmp_path / "run")
    model = load_model(tmp_path / "run" / "model.safetensors")
    sets = [each.modalities for each in model.measured.expected]
    assert sets == [("flair",), ("t1",), ("flair", "t1")]

    single = [
        validate(model.network, model.memory, site.validation, ["t1"], PLANS, "2d", model.device)
        for site in (north, south)
    ]
    (t1,) = (each for each in model.measured.expected if each.modalities == ("t1",))
    for name in ("lesion", "core"):
        # one validation case at each site, so that a sum is a case's Dice
        assert t1.counts[name] == add_counts(count_dice(part[name].total) for part in single)
        assert sum(t1.counts[name]) == 2
    assert expect(model.measured.expected, ["t1", "flair"]).cases == 1
    more = [
        validate(model.network, model.memory, south.validation, used, PLANS, "2d", model.device)
        for used in (["flair"], ["t1", "flair"])
    ]
    for name in ("lesion", "core"):
        at_north, *at_south = (part[name].total for part in (*single, *more))
        sums = model.measured.components[name]
        assert sums.cases == 2
        assert sums.dice == pytest.approx(at_north + at_south[-1])
        assert sums.by_share[0] == pytest.approx(at_north + sum(at_south) / 3)
    lesion = model.measured.confidence["lesion"]
    assert (lesion.cases, lesion.masks) == (2, 4)  # one site has two modalities, the other one
    right = model.measured.reliability["lesion"]
    assert right.cases == 2
    assert sum(right.voxels) == 4 * 10 * 20 * 18  # a voxel from every subset
    assert sum(right.correct) == 4 * (8 * 9 * 8 - 6 * 3 * 3)  # the core is another label
    assert not expect(model.measured.expected, ["t2"]).dice

    record = tmp_path / "run" / "expected.json"
    before = record.stat().st_mtime_ns
    simulate(
        PLANS, [north, south], SETTINGS, "0", tmp_path / "run", beginning=Beginning(resume=True)
    )
    assert record.stat().st_mtime_ns == before  # what was measured is not measured again
    other = next(n for n in (1, 2) if n != choose_round(run, "best"))
    save_measured(run, other, Measured(model.measured.expected), {})
    export_model(tmp_path / "run", "best", tmp_path / "m.safetensors")
    assert load_model(tmp_path / "m.safetensors").measured.expected == ()
    content = json.loads(record.read_text())
    for damaged in ({**content, "round": 9}, {"round": 1, "expected": []}, {}):
        record.write_text(json.dumps(damaged))
        with pytest.raises(ModelError, match=r"expected.json: is damaged, .* remove it"):
            export_model(tmp_path / "run", "best", tmp_path / "m.safetensors")


def test_without_validation_cases_nothing_is_expected(tmp_path: Path, store: SiteStore) -> None:
    site = store.site("north", [("t1", "t2")])
    simulate(PLANS, [site], SETTINGS, "all", tmp_path / "run")
    assert load_model(tmp_path / "run" / "model.safetensors").measured.expected == ()


def test_a_site_measures_few_cases_of_a_subset(
    tmp_path: Path, store: SiteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subset_validation, "CASES_PER_SUBSET", 2)
    cases = [("t1",), ("t1",), ("t1", "t2"), ("t1",)]
    site = store.site("north", cases, validation=3)
    settings = dataclasses.replace(SETTINGS, rounds=1, local_steps=1)
    simulate(PLANS, [site], settings, "0", tmp_path / "run")
    expected = load_model(tmp_path / "run" / "model.safetensors").measured.expected
    # the training case has no T2, so that its encoder is not used
    assert [(each.modalities, each.cases) for each in expected] == [(("t1",), 2)]


def counts(**dice: int) -> Counts:
    """Return counts of cases by their Dice in per cent, as ``d35=2``."""
    found = {int(name[1:]) // 5: number for name, number in dice.items()}
    return tuple(found.get(at, 0) for at in range(BINS))


def test_counts_of_sites_add_up() -> None:
    none = counts()
    sums = [sums_of_case([(0.9, [0.5] * 4), (0.8, [0.95] * 4)]), sums_of_case([(0.7, [0.5] * 4)])]
    north = Measured(
        [SubsetDice(("t1",), {"a": counts(d50=1, d95=1), "b": none})],
        {"a": sums[0], "b": ConfidenceSums()},
    )
    south = Measured(
        [
            SubsetDice(("t1",), {"a": counts(d50=1), "b": none}),
            SubsetDice(("t2",), {"a": counts(d0=1)}),
        ],
        {"a": sums[1], "b": ConfidenceSums()},
    )
    merged = merge_measured([north, south])
    assert merged.confidence == {"a": add_sums(sums)}
    assert merged.expected == [
        SubsetDice(("t1",), {"a": counts(d50=2, d95=1)}),
        SubsetDice(("t2",), {"a": counts(d0=1)}),
    ]
    assert merge_measured([south, north]) == merged
    assert count_dice(1.0) == count_dice(0.96) == counts(d95=1)


def test_median_and_lower_bound_are_those_of_the_cases() -> None:
    known = [SubsetDice(("t1",), {"a": counts(d10=1, d20=1, d60=10, d80=8)})]
    assert expect(known, ["t1"]).dice == {"a": LabelDice(0.625, 0.2, 20)}
    known = [SubsetDice(("t1",), {"a": counts(d10=1, d60=19)})]
    assert expect(known, ["t1"]).dice == {"a": LabelDice(0.625, 0.6, 20)}


def test_one_lucky_and_one_unlucky_case_do_not_decide() -> None:
    pair = SubsetDice(("t1", "t2"), {"a": counts(d30=4, d60=16)})
    for single in (counts(d0=1), counts(d95=1)):
        known = [SubsetDice(("t1",), {"a": counts(d90=1)}), pair]
        known.append(SubsetDice(("flair", "t1", "t2"), {"a": single}))
        found = expect(known, ["flair", "t1", "t2"])
        assert found.dice == {"a": LabelDice(0.625, 0.3, 1)}
        assert found.inside == (("t1", "t2"),)  # not t1, which one lucky case measured
        assert found.basis() == ("1 validation case, filled up with 19 from t1+t2, a part of it")
    enough = SubsetDice(("flair", "t1", "t2"), {"a": counts(d10=20)})
    assert expect([pair, enough], enough.modalities).dice["a"].median == pytest.approx(0.125)


def test_a_subset_that_nobody_measured_is_bounded_by_a_part_or_unknown() -> None:
    known = [SubsetDice(("t1",), {"a": counts(d70=5)})]
    bound = expect(known, ["t1", "t2"])
    assert bound.dice == {"a": LabelDice(0.725, 0.7, 0)}
    assert bound.is_known
    assert bound.basis() == "never measured; at least that of t1, a part of it (5 cases)"
    assert bound.limits() == [
        "how good masks from t1+t2 are was never measured; the expected Dice is that of t1, a part "
        "of it (5 cases)"
    ]
    unknown = expect(known, ["t2"])
    assert (unknown.dice, unknown.is_known, unknown.basis()) == ({}, False, "")
    assert not expect([SubsetDice(("t1",), {"a": counts(d90=2)})], ["t1"]).is_known


def test_many_bad_cases_of_a_part_do_not_hide_few_good_ones_of_another() -> None:
    few, many = SubsetDice(("flair",), {"a": counts(d60=4)}), ("t1c",)
    known = [few, SubsetDice(many, {"a": counts(d0=5)})]
    bound = expect(known, ["flair", "t1", "t1c"])
    assert bound.dice == {"a": LabelDice(0.625, 0.6, 0)}
    assert bound.basis() == "never measured; at least that of flair, a part of it (4 cases)"

    known.append(SubsetDice(("flair", "t1c"), {"a": counts(d70=2)}))
    pair, triple = (expect(known, given) for given in (["flair", "t1c"], ["flair", "t1", "t1c"]))
    assert pair.dice == {"a": LabelDice(0.625, 0.6, 2)}  # 2 and 4 cases
    assert pair.basis() == "2 validation cases, filled up with 4 from flair, a part of it"
    assert triple.dice["a"] == dataclasses.replace(pair.dice["a"], cases=0)
    assert triple.basis() == (
        "never measured; at least that of flair+t1c, a part of it, itself filled up from flair "
        "(6 cases)"
    )


def test_several_models_are_expected_to_be_as_good_as_the_worst() -> None:
    one = Expectation(("t1",), {"a": LabelDice(0.8, 0.6, 5), "b": LabelDice(0.5, 0.2, 3)})
    other = Expectation(("t1",), {"a": LabelDice(0.7, 0.65, 9)})
    assert least([one, other]).dice == {"a": LabelDice(0.7, 0.6, 5)}
    assert one.median == pytest.approx(0.65)
    assert one.low == pytest.approx(0.4)


def test_what_a_reader_must_know_of_a_subset_is_said() -> None:
    good, bad = LabelDice(0.925, 0.7, 3), LabelDice(0.475, 0.1, 3)
    assert Expectation(("t1",), {"a": good, "b": bad}).warnings() == [
        "low Dice is expected from t1: b 0.47 (one case in ten below 0.10)"
    ]
    missed = Expectation(("t1",), {"a": LabelDice(0.025, 0.0, 9)})
    assert missed.warnings() == ["low Dice is expected from t1: a 0.03 (one case in ten near 0)"]
    few = Expectation(("t1",), {"a": dataclasses.replace(good, cases=1)})
    assert few.limits() == ["the expected Dice from t1 rests on 1 validation case"]
    assert Expectation(("t1",), {"a": good}).warnings() == []
    assert Expectation(("t1",), {"a": good}).limits() == []


def test_a_label_of_few_cases_or_none_is_named_and_is_not_known_by_those_of_others() -> None:
    known = [SubsetDice(("t1",), {"a": counts(d90=25), "b": counts(d90=1)})]
    found = expect(known, ["t1"])
    assert not found.is_known
    assert found.limits(["a", "b", "c"]) == [
        "the expected Dice of b from t1 rests on fewer than 3 validation cases from these",
        "how well c is found from t1 was never measured",
    ]
    filled = expect([*known, SubsetDice(("t1", "t2"), {"a": counts(d90=9)})], ["t1", "t2"])
    assert filled.fewest == 1
    assert expect([SubsetDice(("t1",), {"a": counts(d90=3)})], ["t1"]).is_known


def test_counts_of_fewer_cases_than_a_site_allows_stay_there(store: SiteStore) -> None:
    site = store.site("north", [("t1",), ("t1", "t2"), ("t1", "t2")], validation=2)
    registrations = {"north": register(site)}
    task = measure_task(first_state(PLANS, SETTINGS), "north", registrations)
    for least_cases, number in ((2, 2), (3, 0)):
        asked = dataclasses.replace(site, validation_cases=least_cases)
        reply = measure_at_site(task, asked, PLANS, SETTINGS)
        measured = read_measured("north", reply, 0, PLANS)
        assert {sum(each.counts["lesion"]) for each in measured.expected} == (
            {number} if number else set()
        )
        assert measured.confidence["lesion"].cases == number
        assert measured.reliability.get("lesion", Reliability()).cases == number
        assert measured.components["lesion"].cases == number


def test_confidence_goes_with_the_dice_of_masks_without_small_components(store: SiteStore) -> None:
    site = store.site("north", [("t1",), ("t1",)], validation=1)
    task = measure_task(first_state(PLANS, SETTINGS), "north", {"north": register(site)})
    measured = read_measured("north", measure_at_site(task, site, PLANS, SETTINGS), 0, PLANS)
    one_mask = measured.confidence["lesion"]
    assert one_mask.y == measured.components["lesion"].by_share
    assert len(set(one_mask.y)) > 1  # an untrained network finds many parts
    assert one_mask.yy == pytest.approx([dice**2 for dice in one_mask.y])


def measured_reply(counts: Any, right: Any = None, **sums: Any) -> Message:
    """Return a site's reply about one subset."""
    confidence = {name: json_of(ConfidenceSums()) for name in PLANS.labels.foreground}
    reliability = {name: json_of(Reliability()) for name in PLANS.labels.foreground}
    record = {
        "round": 3,
        "subsets": [[["t1"], counts]],
        "confidence": {**confidence, **sums},
        "reliability": {**reliability, **(right or {})},
        "components": {name: json_of(ComponentSums()) for name in PLANS.labels.foreground},
    }
    return Message("measure", record, {})


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        ({"cases": 3}, "are none"),  # more cases than masks
        ({"masks": 500}, "are none"),  # more than a site was asked for
        ({"x": 2.5}, "are none"),  # beyond 1 for each mask
        ({"yy": [0.89, 0.89, 0.89, 0.1]}, "are none"),  # squares below the square of the sum
        ({"xy": [0.77, 0.77, 1.6, 0.77]}, "are none"),
        ({"y": [1.3, 1.3, 1.3]}, "core: y: has 3 entries"),
        ({"y": [1.3, -0.1, 1.3, 1.3]}, "core: y.*is -0.1"),
        ({"y": [math.nan] * 4}, "core: y.*is nan"),
        ({"masks": True}, "core: masks: is True"),
    ],
)
def test_sums_that_no_masks_have_are_refused(spoil: dict[str, Any], reason: str) -> None:
    none = dict.fromkeys(PLANS.labels.foreground, [0] * BINS)
    right = sums_of_case([(0.9, [0.8] * 4), (0.7, [0.5] * 4)])
    sums = json_of(right)
    good = read_measured("north", measured_reply(none, core=sums), 3, PLANS)
    assert good.confidence["core"] == right
    with pytest.raises(AggregationError, match=f"site 'north'.*{reason}"):
        read_measured("north", measured_reply(none, core={**sums, **spoil}), 3, PLANS)
    with pytest.raises(AggregationError, match="confidence in core, which it does not label"):
        read_measured("north", measured_reply(none, core=sums), 3, PLANS, ["lesion"])


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        ({"correct": [8] + [0] * (BINS_OF_VOXELS - 1)}, "that none are"),  # more than there are
        ({"confidence": [7.0] + [0] * (BINS_OF_VOXELS - 1)}, "that none are"),
        ({"cases": 200}, "that none are"),  # more than a site was asked for
        ({"voxels": [7]}, "voxels: has 1 entries"),
        ({"voxels": [-7] + [0] * (BINS_OF_VOXELS - 1)}, "voxels: is -7"),
    ],
)
def test_voxels_that_no_case_has_are_refused(spoil: dict[str, Any], reason: str) -> None:
    none = dict.fromkeys(PLANS.labels.foreground, [0] * BINS)
    rest = (0,) * (BINS_OF_VOXELS - 1)
    right = Reliability(2, (7, *rest), (0.001, *(0.0 for _ in rest)), (1, *rest))
    good = read_measured("north", measured_reply(none, {"core": json_of(right)}), 3, PLANS)
    assert good.reliability["core"] == right
    with pytest.raises(AggregationError, match=f"site 'north'.*{reason}"):
        read_measured(
            "north", measured_reply(none, {"core": {**json_of(right), **spoil}}), 3, PLANS
        )
    reply = measured_reply(none, {"core": json_of(right)})
    with pytest.raises(AggregationError, match="probabilities of core, which it does not label"):
        read_measured("north", reply, 3, PLANS, ["lesion"])


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda counts: counts[:-1], "core: has 19 entries"),
        (lambda counts: [-1, *counts[1:]], "core: is -1"),
        (lambda counts: [*counts[1:], 17], "no counts of its cases"),
        (lambda counts: [9, 9, *counts[2:]], "no counts of its cases"),
        (lambda counts: [1.0, *counts[1:]], "core: is 1.0"),
        (lambda _: {"0": 1}, "core: a list is needed"),
    ],
)
def test_counts_that_cannot_be_are_refused(spoil: Callable[[list[int]], Any], reason: str) -> None:
    good = dict.fromkeys(PLANS.labels.foreground, [0] * BINS)
    reply = measured_reply(good)
    (read,) = read_measured("north", reply, 3, PLANS).expected
    assert read.modalities == ("t1",)
    with pytest.raises(AggregationError, match="reply to round 3; a 'measure' reply to round 4"):
        read_measured("north", reply, 4, PLANS)
    bad = {**good, "core": spoil([0] * BINS)}
    reply = measured_reply(bad)
    with pytest.raises(AggregationError, match=f"site 'north'.*{reason}"):
        read_measured("north", reply, 3, PLANS)


def test_dice_of_a_label_that_a_site_does_not_label_are_refused() -> None:
    found = {name: [1] + [0] * (BINS - 1) for name in PLANS.labels.foreground}
    reply = measured_reply(found)
    with pytest.raises(AggregationError, match="sent Dice of core, which it does not label"):
        read_measured("north", reply, 3, PLANS, ["lesion"])


def test_a_label_with_few_cases_is_filled_up_beside_one_with_enough() -> None:
    pair = SubsetDice(("t1", "t2"), {"a": counts(d80=30), "b": counts(d90=2)})
    part = SubsetDice(("t1",), {"a": counts(d40=30), "b": counts(d30=30)})
    found = expect([pair, part], pair.modalities)
    assert found.dice["a"] == expect([pair], pair.modalities).dice["a"]
    # 18 cases of the part beside the two lucky ones
    assert found.dice["b"].median == expect([part], part.modalities).dice["b"].median
    assert (found.dice["b"].cases, found.filled) == (2, 18)
    assert "filled up with 18 from t1" in found.basis()


def test_a_set_of_images_is_worth_the_least_median_of_the_models_and_nothing_if_unknown() -> None:
    good, fair = (
        SubsetDice(("t1",), {"a": counts(d90=20)}),
        SubsetDice(("t1",), {"a": counts(d60=20)}),
    )
    # as many modalities as a model may have; to list their subsets would take hours
    wide = frozenset(("t1", *(f"m{n}" for n in range(31))))
    both = Expectations(((wide, (good,)), (wide, (fair,))))
    assert both.worth(["t1"]) == expect([fair], ["t1"]).median
    assert both.of(["t1", "flair"]).modalities == ("t1",)  # flair is of no model
    assert both.worth(["m1"]) == 0.0
