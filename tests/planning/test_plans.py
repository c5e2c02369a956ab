import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from small import small_plans

from mixmfl.core.errors import PlansError
from mixmfl.core.records import read_record
from mixmfl.planning.plans import (
    Plans,
    Preset,
    load_preset,
    preset_names,
    replace_settings,
    usual_configuration,
)
from mixmfl.planning.settings import NetworkSettings, PlannerSettings, TrainingSettings
from mixmfl.research.benchmark.methods import METHODS


def content() -> dict[str, Any]:
    return json.loads(json.dumps(small_plans().to_json()))


def test_plans_survive_their_file(tmp_path: Path) -> None:
    plans = small_plans()
    plans.save(tmp_path / "plans.json")
    assert Plans.load(tmp_path / "plans.json").to_json() == plans.to_json()


def test_every_shipped_preset_is_read() -> None:
    assert set(preset_names()) == {
        "brats",
        "default",
        "demo",
        "patients",
        "phantom",
        "resenc-l",
        "resenc-m",
        "wide",
    }
    for name in preset_names():
        assert load_preset(name).training.rounds > 0


def test_the_default_is_wide_but_for_what_its_ablation_changes() -> None:
    default, wide = load_preset("default"), load_preset("wide")
    network = dataclasses.replace(wide.network, **METHODS["light"].network)
    assert default == dataclasses.replace(wide, network=network)
    assert network != wide.network


def test_a_preset_of_the_users_is_read_from_its_path(tmp_path: Path) -> None:
    whole = dataclasses.asdict(load_preset("wide"))
    whole["planner"]["target_spacing"] = [2, 2, 2]
    (tmp_path / "mine.json").write_text(json.dumps(whole))
    read = load_preset(str(tmp_path / "mine.json"))
    assert read.planner.target_spacing == (2.0, 2.0, 2.0)
    assert (read.network, read.training) == (load_preset("wide").network, TrainingSettings())


def test_a_preset_holds_what_it_changes_of_the_defaults(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    file.write_text('{"network": {"tailored_width": 0.75}}')
    preset = load_preset(str(file))
    assert preset.network == dataclasses.replace(NetworkSettings(), tailored_width=0.75)
    assert (preset.planner, preset.training) == (PlannerSettings(), TrainingSettings())
    assert load_preset("default") == Preset()
    file.write_text('{"network": {"width": 0.75}}')
    with pytest.raises(PlansError, match=r"mine.json: network: unknown fields \['width'\]"):
        load_preset(str(file))
    file.write_text('{"heads": {}}')
    with pytest.raises(PlansError, match=r"mine.json: unknown fields \['heads'\]"):
        load_preset(str(file))


def test_plans_of_another_version_are_refused_with_what_to_do(tmp_path: Path) -> None:
    content = small_plans().to_json()
    content["training"]["imputation"] = 0.0
    (tmp_path / "plans.json").write_text(json.dumps(content))
    with pytest.raises(
        PlansError,
        match=r"unknown fields \['imputation'\].*; plan again .*--replan\), or install",
    ):
        Plans.load(tmp_path / "plans.json")


def test_no_shipped_preset_repeats_a_default() -> None:
    defaults, found = dataclasses.asdict(Preset()), 0
    for name in preset_names():
        shipped = json.loads((Path(__file__).parents[2] / "plans" / f"{name}.json").read_text())
        for part, changes in shipped.items():
            for field, value in changes.items():
                assert value != defaults[part][field], (name, field)
                found += 1
    assert found > 20


def test_the_defaults_are_within_their_own_bounds() -> None:
    for settings in (PlannerSettings(), NetworkSettings(), TrainingSettings()):
        content = json.loads(json.dumps(dataclasses.asdict(settings)))
        assert read_record(type(settings), content, "defaults", whole=True) == settings


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("format",), 0, "plans of format 0 were found, this version of mixmfl reads 1"),
        (("patch",), 3, r"unknown fields \['patch'\]"),
        (("training", "epochs"), 3, r"training: unknown fields \['epochs'\]"),
        (
            ("training", "rounds"),
            "many",
            "training: rounds: is 'many'; it must be a whole number from 1 to",
        ),
        (("training", "rounds"), 2.5, "training: rounds: is 2.5; it must be a whole number"),
        (
            ("network", "temperature"),
            True,
            "temperature: is True; it must be a number from 0.0001 to 1000",
        ),
        (("network", "compensation_levels"), 3, "compensation_levels: a list is needed"),
        (
            ("network", "temperature"),
            0,
            "network: temperature: is 0; it must be a number from 0.0001",
        ),
        (("network", "form"), "plain", "form: is 'plain'; it must be decoupled or stacked"),
        (("network", "shared_width"), 0, "a memory needs both streams; leave"),
        (
            ("training", "personal_share"),
            1.5,
            "personal_share: is 1.5; it must be a number from 0 to 1",
        ),
        (("network", "compensation_levels"), [3], "2d has 3 levels, .* 3 is none of them"),
        (
            ("training", "memory_decay"),
            1.5,
            "memory_decay: is 1.5; it must be a number from 0 to 1",
        ),
        (("network",), [], "network: an object with fields is needed"),
        (("modalities",), 3, "modalities: a list is needed, not 3"),
        (("labels",), None, "labels: an object with fields is needed, not None"),
        (("nnunet",), [], "nnunet: an object with fields is needed"),
        (("nnunet",), {}, r"nnunet: missing fields \['configurations', "),
        (
            ("nnunet", "configurations", "2d", "architecture"),
            {},
            r"missing fields \['arch_kwargs', ",
        ),
        (
            ("nnunet", "configurations", "2d", "patch_size"),
            "big",
            "a list is needed, not 'big'",
        ),
        (("nnunet", "configurations"), {}, "neither 2d nor 3d_fullres is planned"),
    ],
)
def test_plans_that_are_not_whole_are_refused(
    place: tuple[str, ...], value: object, message: str
) -> None:
    spoilt = content()
    inner = spoilt
    for name in place[:-1]:
        inner = inner[name]
    inner[place[-1]] = value
    with pytest.raises(PlansError, match=message):
        Plans.from_json(spoilt, "plans.json")


def test_what_to_do_with_plans_of_another_version_is_told(tmp_path: Path) -> None:
    of_another = {**content(), "network": {**content()["network"], "joint_width": 0.5}}
    (tmp_path / "plans.json").write_text(json.dumps(of_another))
    message = (
        r"plans.json: network: unknown fields \['joint_width'\].*; plan again .*--replan\), or i"
    )
    with pytest.raises(PlansError, match=message):
        Plans.load(tmp_path / "plans.json")


def test_a_network_without_any_stream_is_refused() -> None:
    nothing = {"tailored_width": 0, "shared_width": 0, "compensation_levels": []}
    with pytest.raises(PlansError, match="tailored_width and shared_width are both 0"):
        replace_settings(small_plans(), nothing, {})


def test_replaced_settings_are_checked_as_if_read() -> None:
    plans = replace_settings(small_plans(), {"tailored_width": 0.25}, {"rounds": 7})
    assert (plans.network.tailored_width, plans.training.rounds) == (0.25, 7)
    with pytest.raises(PlansError, match=r"unknown fields \['epochs'\]"):
        replace_settings(small_plans(), {}, {"epochs": 7})
    with pytest.raises(PlansError, match="rounds: is 0; it must be a whole number from 1 to"):
        replace_settings(small_plans(), {}, {"rounds": 0})


def test_a_missing_field_is_named() -> None:
    spoilt = content()
    del spoilt["training"]["learning_rate"]
    with pytest.raises(PlansError, match=r"missing fields \['learning_rate'\]"):
        Plans.from_json(spoilt, "plans.json")


def test_what_was_not_planned_cannot_be_asked_for() -> None:
    with pytest.raises(PlansError, match="'3d_fullres' is not in these plans, which have 2d"):
        small_plans().configuration("3d_fullres")


def test_an_unknown_preset_is_answered_with_those_there_are() -> None:
    with pytest.raises(
        PlansError, match="there are brats, default, demo, patients, phantom, resenc"
    ):
        load_preset("huge")
    with pytest.raises(PlansError, match="there is no such file"):
        load_preset("/nowhere/mine.json")


def test_the_only_configuration_that_was_preprocessed_is_trained(tmp_path: Path) -> None:
    plans = small_plans()
    both = dataclasses.replace(
        plans, nnunet={**plans.nnunet, "configurations": {"2d": {}, "3d_fullres": {}}}
    )
    assert usual_configuration(tmp_path, both) == "3d_fullres"
    (tmp_path / "sites" / "north" / "2d").mkdir(parents=True)
    assert usual_configuration(tmp_path, both) == "2d"
    (tmp_path / "sites" / "south" / "3d_fullres").mkdir(parents=True)
    assert usual_configuration(tmp_path, both) == "3d_fullres"
    (tmp_path / "network").mkdir()
    (tmp_path / "network" / "preprocessed.json").write_text('{"north": {"2d": [8, 0]}}')
    assert usual_configuration(tmp_path / "network", both) == "2d"
