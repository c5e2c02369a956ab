"""Plans and model files that somebody wrote to do harm: they run nothing, and cost nothing."""

import builtins
import copy
import dataclasses
import importlib
import itertools
import json
import os
import pydoc
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small import LABELS, model_bytes, small_case, small_plans, with_residual_encoders
from torch import nn

from mixmfl.core.errors import DataError, MixmflError, ModelError, PlansError
from mixmfl.core.process_memory import peak_memory_mb, reset_peak
from mixmfl.core.tensor_store import Stored, header_digest, pack, read
from mixmfl.federated.client.service import ClientService
from mixmfl.federated.client.site_config import SiteConfig
from mixmfl.federated.messages import FAILED, Message, StoredMessage, decode, encode
from mixmfl.federated.server.checkpoint import start_run
from mixmfl.federated.server.run import Run
from mixmfl.federated.server.run_record import open_run, record_digest
from mixmfl.federated.state import Registration, RunSettings
from mixmfl.inference import segmentation
from mixmfl.inference.model_file import load_model
from mixmfl.networks.build import build_network, build_outline
from mixmfl.planning import architecture, nnunet_plans, nnunet_preprocessing
from mixmfl.planning.architecture import LAYERS, count_network, resolve_architecture
from mixmfl.planning.federation_plans import make_plans
from mixmfl.planning.fingerprint import fingerprint_case, merge_fingerprints
from mixmfl.planning.nonzero import nonzero_box
from mixmfl.planning.plans import Plans, load_preset, replace_settings

SETTINGS = RunSettings("2d", 0, 1, 1, 0.01)
RELU = "torch.nn.LeakyReLU"

VARIANTS = [
    f"torch.nn.{path}"
    for path in (
        "parallel.distributed.os.system",
        "modules.module.torch.os.system",
        "parallel.distributed.sys.modules",
        "modules.module.torch.importlib.import_module",
    )
]
"""In every one of the four fields that name a layer; the first two ran."""

WAYS_DOWN = ("", "modules.", "modules.module.", "modules.module.torch.", "parallel.distributed.",
             "parallel.data_parallel.torch.", "functional.torch.", "init.", "init.torch.",
             "utils.parametrize.", "modules.lazy.", "modules.conv.",
             "LeakyReLU.__init__.__globals__.")  # fmt: skip
ENDS = ("os.system", "os.popen", "os.execv", "subprocess.Popen", "subprocess.run", "sys.exit",
        "importlib.import_module", "builtins.eval", "builtins.exec", "__builtins__.eval",
        "torch.load", "torch.hub.load", "pickle.loads", "pydoc.locate", "shutil.rmtree",
        "ctypes.CDLL")  # fmt: skip
OTHER_ROOTS = ("os.system", "posix.system", "nt.system", "subprocess.Popen", "builtins.eval",
               "builtins.exec", "eval", "exec", "numpy.os.system", "mixmfl.core.files.os.system",
               "torch.os.system", "torch.utils.data.os.system", "nnunetv2.paths.os.system",
               "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet",
               "importlib.import_module", "runpy.run_path", "antigravity", "this")  # fmt: skip
LOOK_ALIKES = (
    "torch\uff0enn\uff0eLeakyReLU", "torch\u3002nn\u3002LeakyReLU",
    "torch\u2024nn\u2024LeakyReLU", "torch.nn.Lea\u212ayReLU", "torch.nn.\uff2ceakyReLU",
    "torch.nn.Leaky\uff32\uff45\uff2c\uff35", "torch.nn.LeakyReLU\u200b",
    "torch.nn.Leaky\u00adReLU", "\ufefftorch.nn.LeakyReLU", "torch.nn.Leak\u0443ReLU",
    "torch.nn.LeakyReLU\u0301",
    " torch.nn.LeakyReLU", "torch.nn.LeakyReLU ", "torch.nn.LeakyReLU\n", "torch.nn.LeakyReLU\0",
    "torch.nn. LeakyReLU", "\ttorch.nn.LeakyReLU", "TORCH.NN.LEAKYRELU", "torch.nn.leakyrelu",
    "Torch.nn.LeakyReLU", "torch..nn.LeakyReLU", ".torch.nn.LeakyReLU", "torch.nn.LeakyReLU.",
    "torch/nn/LeakyReLU", "torch:nn.LeakyReLU", "torch.nn:LeakyReLU", "LeakyReLU", "nn.LeakyReLU",
    "torch.nn.LeakyReLU()", "torch.nn.LeakyReLU.__class__", "torch.nn.LeakyReLU.__init__",
    "torch.nn.LeakyReLU.__call__", "torch.nn.LeakyReLU;os.system",
    "torch.nn.LeakyReLU,torch.nn.ReLU",
    "torch.nn.modules.activation.LeakyReLU", "torch.nn.LeakyRelu", "torch.nn.*", "torch.nn", "",
    "torch.nn.Dropou", "torch.nn.modules.dropout.Dropuot2d", "null", "None", "{0.__class__}",
    "%(os.system)s", "torch.nn.modules.batchnorm.BatchNorm2d", "torch.nn.Identity",
)  # fmt: skip
NAMES = [
    *VARIANTS,
    *(f"torch.nn.{way}{end}" for way, end in itertools.product(WAYS_DOWN, ENDS)),
    *OTHER_ROOTS,
    *LOOK_ALIKES,
]
NO_NAMES = [[RELU], {RELU: 1}, [], {}, 0, 1, True, False, 0.5, [["torch", "nn", "LeakyReLU"]],
            [RELU, "os.system"]]  # fmt: skip


class Text(str):
    """A string of a kind of its own, equal to one of the table."""


@dataclasses.dataclass
class Watch:
    """What was looked up or run."""

    marker: Path
    calls: list[str]

    def nothing_happened(self) -> bool:
        return not self.marker.exists() and not self.calls


@pytest.fixture
def watch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watch]:
    """Record what would run or look up; a look-up is not done, a command writes a file."""
    made = Watch(tmp_path / "marker", [])

    def recorded(name: str) -> Callable[..., Any]:
        def record(*given: object, **_: object) -> int:
            made.calls.append(f"{name}{given}")
            return 0

        return record

    for owner, name in (
        (os, "system"),
        (os, "popen"),
        (subprocess, "Popen"),
        (pydoc, "locate"),
        (pydoc, "safeimport"),
    ):
        monkeypatch.setattr(owner, name, recorded(name))
    imported = importlib.import_module

    def import_module(name: str, package: str | None = None) -> Any:
        if name not in sys.modules and name != "mixmfl.plans":  # where shipped presets lie
            made.calls.append(f"import_module{(name, package)}")
        return imported(name, package)

    monkeypatch.setattr(importlib, "import_module", import_module)
    yield made
    monkeypatch.undo()
    assert made.nothing_happened(), made.calls


@pytest.fixture
def ways_in(model: Path, tmp_path: Path) -> Mapping[str, Callable[[Any], object]]:
    """Return how plans come in, by name: each is given their content."""
    tensors, header = read(model)
    file, plans_file = tmp_path / "m.safetensors", tmp_path / "plans.json"
    run = Run(tmp_path / "run", small_plans(), SETTINGS, "0", {})
    start_run(run)

    def from_model(content: Any) -> object:
        file.write_bytes(model_bytes(tensors, {**header, "plans": content}))
        return load_model(file)

    def from_file(content: Any) -> object:
        plans_file.write_text(json.dumps(content))
        return Plans.load(plans_file)

    def from_run(content: Any) -> object:
        (run.folder / "plans.json").write_text(json.dumps(content))
        return open_run(run.folder)

    def from_message(content: Any) -> object:
        came = decode(encode(Message("join", {"plans": content}, {})))
        return Plans.from_json(came.record["plans"], "the coordinator's plans")

    ways = {"model": from_model, "file": from_file, "run": from_run, "message": from_message}
    for way in ways.values():
        way(small_plans().to_json())  # as they are they come in
    tensors.clear()  # they are read after the plans, which are to be refused
    return ways


def spoilt(marker: Path, key: str, named: Any) -> dict[str, Any]:
    """Return plans that name a layer, with options for a command."""
    content = small_plans().to_json()
    inner = content["nnunet"]["configurations"]["2d"]["architecture"]["arch_kwargs"]
    inner[key], inner[f"{key}_kwargs"] = named, {"command": f"touch {marker}"}
    if key == "conv_op":
        del inner["conv_op_kwargs"]
    return content


def test_there_are_enough_names() -> None:
    assert len(set(NAMES)) >= 250
    assert not {*NAMES} & {name for layers in LAYERS.values() for name in layers}


def test_no_name_in_a_model_file_a_run_plans_or_a_message_runs_or_is_looked_up(
    watch: Watch, ways_in: Mapping[str, Callable[[Any], object]]
) -> None:
    modules = set(sys.modules)
    for number, named in enumerate([*NAMES, *NO_NAMES]):
        for key in LAYERS:
            content = spoilt(watch.marker, key, named)
            first = named in VARIANTS or list(LAYERS)[number % 4] == key
            for way in ways_in.values() if first else ():
                with pytest.raises(MixmflError, match=f"{key} is .*, which is not known here"):
                    way(content)
            with pytest.raises(PlansError, match=f"{key} is "):
                Plans.from_json(content, "plans")
            planned = content["nnunet"]["configurations"]["2d"]["architecture"]["arch_kwargs"]
            with pytest.raises(PlansError, match=f"{key} is .*, which is not known here; known"):
                resolve_architecture(planned)
            assert watch.nothing_happened(), (key, named)
    assert set(sys.modules) == modules


def test_a_string_of_another_kind_is_no_key_of_the_table() -> None:
    planned = small_plans().to_json()["nnunet"]["configurations"]["2d"]["architecture"]
    kwargs = planned["arch_kwargs"]
    assert resolve_architecture(kwargs)["nonlin"] is nn.LeakyReLU
    with pytest.raises(PlansError, match=r"nonlin is .*, which is not known here"):
        resolve_architecture({**kwargs, "nonlin": Text(RELU)})


@pytest.mark.parametrize(
    ("key", "options"),
    [
        ("nonlin", {"command": "touch marker"}),
        ("nonlin", {"inplace": {"command": "touch marker"}}),
        ("nonlin", {"inplace": [True]}),
        ("nonlin", {"inplace": "True"}),
        ("nonlin", {"inplace": 1}),
        ("nonlin", {"inplace": None}),
        ("nonlin", {"negative_slope": True}),
        ("nonlin", {"negative_slope": 1e9}),
        ("nonlin", {"negative_slope": -0.1}),
        ("nonlin", {"negative_slope": float("nan")}),
        ("nonlin", {"negative_slope": "0.01"}),
        ("nonlin", {"\uff49nplace": True}),
        ("nonlin", {"__class__": "os.system"}),
        ("nonlin", {"self": 1}),
        ("nonlin", [["inplace", True]]),
        ("nonlin", "inplace=True"),
        ("nonlin", 1),
        ("norm_op", {"num_features": 3}),
        ("norm_op", {"device": "meta"}),
        ("norm_op", {"dtype": "torch.float64"}),
        ("norm_op", {"track_running_stats": True}),
        ("norm_op", {"eps": 0}),
        ("norm_op", {"eps": 10**400}),
        ("norm_op", {"affine": 1}),
        ("dropout_op", {"p": 0.5}),
        ("dropout_op", 0),
        ("dropout_op", []),
    ],
)
def test_options_of_a_layer_are_those_of_its_entry_within_bounds(key: str, options: Any) -> None:
    content = small_plans().to_json()
    inner = content["nnunet"]["configurations"]["2d"]["architecture"]["arch_kwargs"]
    inner[f"{key}_kwargs"] = options
    with pytest.raises(PlansError, match=f"plans: nnunet: 2d: .*{key}_kwargs: "):
        Plans.from_json(content, "plans")
    with pytest.raises(PlansError, match=f"{key}_kwargs: "):
        resolve_architecture(inner)


def test_dropout_may_be_planned_with_its_options() -> None:
    content = small_plans().to_json()
    inner = content["nnunet"]["configurations"]["2d"]["architecture"]["arch_kwargs"]
    inner |= {"dropout_op": "torch.nn.modules.dropout.Dropout2d", "dropout_op_kwargs": {"p": 0.1}}
    network = build_network(Plans.from_json(content, "plans"), "2d", 0)
    assert any(isinstance(module, nn.Dropout2d) and module.p == 0.1 for module in network.modules())
    inner["dropout_op"] = "torch.nn.modules.dropout.Dropout3d"
    with pytest.raises(PlansError, match="dropout_op is for patches of 3 axes; those"):
        Plans.from_json(content, "plans")


NAMED = [
    ("nnunet", "image_reader_writer"),
    ("nnunet", "label_manager"),
    ("nnunet", "plans_name"),
    ("nnunet", "configurations", "2d", "data_identifier"),
    ("nnunet", "configurations", "2d", "preprocessor_name"),
    ("nnunet", "configurations", "2d", "normalization_schemes", 0),
    ("nnunet", "configurations", "2d", "resampling_fn_data"),
    ("nnunet", "configurations", "2d", "resampling_fn_seg"),
    ("nnunet", "configurations", "2d", "resampling_fn_probabilities"),
    ("nnunet", "configurations", "2d", "architecture", "network_class_name"),
    ("nnunet", "configurations", "2d", "architecture", "_kw_requires_import", 0),
    ("network", "form"),
    ("network", "recall"),
    ("training", "aggregation"),
    ("modalities", 0),
]
"""What else nnU-Net would search for, or a setting that is a word."""


def put(content: Any, place: tuple[Any, ...], value: Any) -> Any:
    """Return a copy of JSON content with a value in a place."""
    if not place:
        return value
    made = inner = copy.deepcopy(content)
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return made


@pytest.mark.parametrize("place", NAMED, ids=str)
def test_no_other_word_of_plans_is_looked_up(watch: Watch, place: tuple[Any, ...]) -> None:
    content = small_plans().to_json()
    if place[-1] == "label_manager":
        content["nnunet"]["experiment_planner_used"] = "ExperimentPlanner"
        Plans.from_json(content, "plans")
    modules = set(sys.modules)
    dotted = [name for name in NAMES if "." in name]
    for named in (*dotted[::2], "nn/../x", "<script>", *NO_NAMES):
        with pytest.raises(PlansError, match=str(place[-2] if place[-1] == 0 else place[-1])):
            Plans.from_json(put(content, place, named), "plans")
    assert set(sys.modules) == modules


@pytest.mark.parametrize("place", [("planner", "memory_gb"), ("network", "form")], ids=str)
def test_no_word_of_a_preset_is_looked_up(
    watch: Watch, tmp_path: Path, place: tuple[str, ...]
) -> None:
    shipped = Path(__file__).parents[2] / "plans" / "demo.json"
    content, file = json.loads(shipped.read_text()), tmp_path / "mine.json"
    for named in [*NAMES[::3], *NO_NAMES]:
        if named in (1, 0.5):  # gigabytes
            continue
        file.write_text(json.dumps(put(content, place, named)))
        with pytest.raises(PlansError, match=place[-1]):
            load_preset(str(file))


def test_unknown_fields_are_refused_wherever_they_stand() -> None:
    content = small_plans().to_json()
    found = [place for place, value in places(content) if isinstance(value, dict)]
    assert len(found) > 15
    for place in found:
        inner = content
        for key in place:
            inner = inner[key]
        with pytest.raises(PlansError):
            Plans.from_json(put(content, place, {**inner, "inherits_from": "2d"}), "plans")


def test_a_hospital_runs_nothing_that_a_coordinator_names(watch: Watch, tmp_path: Path) -> None:
    small_plans().save(tmp_path / "plans.json")
    service = ClientService(SiteConfig("north", tmp_path / "nothing", tmp_path))
    join = {"run": "abc", "fold": "0", "settings": dataclasses.asdict(SETTINGS)}
    for number, named in enumerate([*VARIANTS, "os.system", *LOOK_ALIKES[:4]]):
        plans = spoilt(watch.marker, list(LAYERS)[number % 4], named)
        for kind, record in (("join", join), ("preprocess", {"configurations": ["2d"]})):
            task = encode(Message(kind, {**record, "plans": plans}, {}))
            reply = service.answer(StoredMessage.store(task, tmp_path))
            assert decode(reply.read(0, reply.size)).kind == FAILED
    problems = "".join(file.read_text() for file in tmp_path.rglob("*") if file.is_file())
    assert problems.count("which is not known here") == 18


USUAL = {"inspect"}
"""What is imported whatever the plans say."""


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.one_of(
        st.text(),
        st.lists(st.sampled_from([*"abc", "torch", "nn", "os", "system", "modules", "__class__",
                                  "conv", "Conv2d", "LeakyReLU", "", " "])).map(".".join),
        st.sampled_from([n for ls in LAYERS.values() for n in ls]).flatmap(
            lambda n: st.tuples(st.integers(0, len(n)), st.text(max_size=2)).map(
                lambda cut: n[: cut[0]] + cut[1] + n[cut[0] :])),
        st.sampled_from(sorted(sys.modules)),
    ),
    st.sampled_from(sorted(LAYERS)),
    st.sampled_from(["2d", "file"]),
)  # fmt: skip
def test_no_string_outside_the_table_reaches_an_import(named: str, key: str, way: str) -> None:
    content = spoilt(Path("marker"), key, named)
    inner = content["nnunet"]["configurations"]["2d"]["architecture"]["arch_kwargs"]
    inner.pop(f"{key}_kwargs", None) if key == "conv_op" else inner.update({f"{key}_kwargs": None})
    asked: list[object] = []
    imported = builtins.__import__

    def record(*given: Any, **options: Any) -> Any:
        asked.append(given[0])
        return imported(*given, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builtins, "__import__", record)
        patch.setattr(importlib, "import_module", record)
        patch.setattr(pydoc, "locate", record)
        try:
            plans = Plans.from_json(content, "plans")
            resolve_architecture(inner)
        except PlansError:
            plans = None
    assert set(asked) <= USUAL
    assert (plans is not None) == (
        named in LAYERS[key] and LAYERS[key][named].axes in (None, 2) and key != "dropout_op"
    )


# --- sizes


def places(content: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Yield every place in JSON content, and what stands there."""
    yield place, content
    inner: Any = ()
    if isinstance(content, dict):
        inner = content.items()
    elif isinstance(content, list):
        inner = enumerate(content[:1])  # the others are alike
    for key, value in inner:
        yield from places(value, (*place, key))


@pytest.fixture(scope="module")
def real() -> dict[str, Any]:
    """Return plans that nnU-Net's planner made, of both configurations."""
    fingerprints = []
    for seed in range(3):
        images, labels = small_case(("t1", "t2"), seed, (32, 60 + 4 * seed, 56))
        box = nonzero_box(list(images.values()))
        fingerprints.append(fingerprint_case(images, labels, (1.0, 1.0, 1.0), box))
    plans = make_plans(merge_fingerprints(fingerprints), LABELS, load_preset("demo"))
    assert plans.configurations == ("2d", "3d_fullres")
    return plans.to_json()


HARM = [10**6, 10**9, 10**400, -1, 0, float("nan"), float("inf"), 1e300, "x" * 1000, "os.system",
        [], {}, None, True, [10**6] * 3, [[2] * 9] * 9, [2] * 100_000, 2.5, "\x1b[2J"]  # fmt: skip


def test_no_value_of_any_field_costs_memory_time_or_a_traceback(real: dict[str, Any]) -> None:
    """Fields are taken from real plans, so that a new one is tried as well."""
    tried = [place for place, _ in places(real)]
    assert len(tried) > 120
    Plans.from_json(real, "plans")
    accepted, messages = 0, set[str]()
    reset_peak()
    before, began = peak_memory_mb(), time.process_time()
    for place, value in itertools.product(tried, HARM):
        try:
            plans = Plans.from_json(put_shallow(real, place, value), "plans")
        except PlansError as error:
            messages.add(str(error))
        else:
            accepted += 1
            for name in plans.configurations:
                layers, parameters = count_network(
                    plans.configuration(name)["architecture"]["arch_kwargs"], 2, 3, plans.network
                )
                assert layers <= architecture.MOST_LAYERS
                assert parameters <= architecture.MOST_PARAMETERS
    seconds = time.process_time() - began
    assert 0 < accepted < 0.15 * len(tried) * len(HARM)
    assert all(len(message) < 600 and message.isprintable() for message in messages)
    assert peak_memory_mb() - before < 100
    assert seconds < 60


def put_shallow(content: Any, place: tuple[Any, ...], value: Any) -> Any:
    """Return content with a value in a place; what is not on the way there is not copied."""
    if not place:
        return value
    made = copy.copy(content)
    made[place[0]] = put_shallow(content[place[0]], place[1:], value)
    return made


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("features_per_stage", [10**6] * 3, "features_per_stage: is 1000000; it must be from 1"),
        ("n_conv_per_stage", [10**6] * 3, "n_conv_per_stage: is 1000000; it must be from 1 to 8"),
        ("n_conv_per_stage", 10**6, "n_conv_per_stage: a list is needed, not 1000000"),
        ("n_stages", 10**6, "n_stages: is 1000000; it must be from 2 to 14"),
        ("n_stages", 4, "features_per_stage: has 3 entries; it must have 4"),
        ("kernel_sizes", [[999] * 2] * 3, "kernel_sizes: is 999; it must be from 1 to 7"),
        ("kernel_sizes", [[2] * 2] * 3, "kernel_sizes: is 2; it must be odd"),
        ("strides", [[2] * 2] * 3, r"strides: the first are \[2, 2\]; they must be 1"),
        ("strides", [[1, 1], [3, 3], [2, 2]], r"\[16, 16\] cannot be divided by \[6, 6\]"),
        ("strides", [[1, 1], [4, 4], [4, 4]], "becomes one voxel at the deepest stage"),
    ],
)
def test_a_network_that_is_too_large_or_cannot_run_is_refused(
    key: str, value: Any, message: str
) -> None:
    place = ("nnunet", "configurations", "2d", "architecture", "arch_kwargs", key)
    with pytest.raises(PlansError, match=message):
        Plans.from_json(put(small_plans().to_json(), place, value), "plans")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("patch_size", [8192, 8192], "are 67108864 voxels; at most 8388608 are taken"),
        ("patch_size", [10**6, 16], "patch_size: is 1000000; it must be from 1 to 8192"),
        ("batch_size", 10**9, "batch_size: is 1000000000; it must be from 1"),
        ("spacing", [350.0, 350.0], "spacing: is 350.0; it must be from 0.05 to 100"),
        ("spacing", [1e-9, 1], "spacing: is 1e-09; it must be from 0.05"),
        ("use_mask_for_norm", [True, False, True], "it must be the same for all modalities"),
        ("normalization_schemes", ["ZScoreNormalization"], "has 1 entries; it must have 3"),
    ],
)
def test_a_configuration_beyond_its_bounds_is_refused(key: str, value: Any, message: str) -> None:
    place = ("nnunet", "configurations", "2d", key)
    with pytest.raises(PlansError, match=message):
        Plans.from_json(put(small_plans().to_json(), place, value), "plans")


def test_sizes_that_are_too_much_together_are_refused() -> None:
    content = small_plans().to_json()
    place = ("nnunet", "configurations", "2d")
    large = put(content, (*place, "patch_size"), [2048, 2048])
    with pytest.raises(PlansError, match="are more than 1073741824 voxels; plan with less memory"):
        Plans.from_json(put(large, (*place, "batch_size"), 1000), "plans")
    wide = (*place, "architecture", "arch_kwargs", "features_per_stage")
    with pytest.raises(PlansError, match="has a feature map of 8589934592 numbers; at most"):
        Plans.from_json(put(large, wide, [2048, 8, 8]), "plans")
    huge = put(put(content, wide, [2048] * 3), ("network", "tailored_width"), 4)
    with pytest.raises(PlansError, match=r"parameters is planned for 3 modalities; at most"):
        Plans.from_json(huge, "plans")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "modalities: has 0 entries; it must have from 1 to 32"),
        ([f"m{i}" for i in range(33)], "modalities: has 33 entries"),
        ("t1", "modalities: a list is needed, not 't1'"),
        (["t1", "t1"], r"modalities: is \['t1', 't1'\]; each may be named once"),
        (["../../x"], r"is '../../x'; it must be a modality's name \(a letter, then a-z, 0-9"),
        (["<script>"], "is '<script>'; it must be a modality's name"),
        (["a" * 33], "it must be a modality's name .* of 1 to 32 characters"),
        (["T1"], "is 'T1'; it must be a modality's name"),
    ],
)
def test_modalities_have_names_that_lead_nowhere(value: Any, message: str) -> None:
    with pytest.raises(PlansError, match=message):
        Plans.from_json({**small_plans().to_json(), "modalities": value}, "plans")


def test_labels_are_bounded() -> None:
    content = small_plans().to_json()
    many = {"background": 0, **{f"l{i}": i for i in range(1, 1001)}}
    for labels, message in (
        ({"labels": many}, "has 1001 entries"),
        ({"labels": {"background": 0, "x\x1b[2J": 1}}, "cannot name a label"),
        ({"labels": {"background": 0, "x" * 101: 1}}, "cannot name a label"),
        ({"labels": {"background": 0, "x": list(range(1, 1100))}}, "has 1099 entries"),
        ({"labels": {"background": 1}}, "must be declared as 0"),
        ({"labels": {"background": 0, "a": 1}, "more": 1}, r"unknown fields \['more'\]"),
    ):
        with pytest.raises(PlansError, match=message):
            Plans.from_json({**content, "labels": labels}, "plans")


@pytest.mark.parametrize(
    ("form", "patch"),
    [
        ("decoupled", (16, 16)),
        ("decoupled", (8, 16, 16)),
        ("stacked", (8, 16, 16)),
        ("anchored", (16, 16)),
    ],
)
def test_what_is_counted_is_what_is_built(form: str, patch: tuple[int, ...]) -> None:
    levels = [[]] if form == "stacked" else [[], [-1, -2]]
    kinds = (("added", False), ("concatenated", False), ("concatenated", True))
    for (skips, residual), recalling in product(kinds, levels):
        changes = {"form": form, "compensation_levels": recalling}
        small = small_plans(patch=patch)
        plans = replace_settings(
            with_residual_encoders(small) if residual else small,
            {**changes, "decoder_skips": skips},
            {},
        )
        (name,) = plans.configurations
        network = build_network(plans, name, 0)
        convolutions = {m for m in network.modules() if isinstance(m, nn.modules.conv._ConvNd)}
        planned = plans.configuration(name)["architecture"]["arch_kwargs"]
        counted = count_network(planned, 3, len(LABELS.values), plans.network)
        assert counted == (len(convolutions), sum(p.numel() for p in network.parameters()))


def test_an_outline_has_the_shapes_and_no_memory() -> None:
    plans = small_plans()
    outline, network = build_outline(plans, "2d"), build_network(plans, "2d", 0)
    assert all(parameter.is_meta for parameter in outline.parameters())
    shapes = {name: p.shape for name, p in outline.named_parameters()}
    assert shapes == {name: p.shape for name, p in network.named_parameters()}
    assert not outline.training


# --- model files and runs


def change_header(**changes: Any) -> Callable[[dict[str, Any], dict[str, Any]], object]:
    return lambda tensors, header: header.update(changes)


def change_tensor(name: str, made: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., object]:
    def change(tensors: dict[str, Any], header: dict[str, Any]) -> None:
        first = min(tensors)
        tensors[name or first] = made(tensors[first]).clone()

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (change_header(configuration="3d_fullres"), "is not in these plans, which have 2d"),
        (change_header(configuration=["2d"]), "is not in these plans"),
        (change_header(configuration="2d" * 3000), r"configuration '[2d.]{,90}' is not in these"),
        (change_header(round="many"), "round: is 'many'; it must be a whole number"),
        (change_header(round=10**9), "round: is 1000000000; it must be a whole"),
        (change_header(modality_cases={"t1": 10**12}), "t1: is 1000000000000; it must be"),
        (change_header(modality_cases={"ct": 1}), r"modality_cases: unknown fields \['ct'\]"),
        (change_header(modality_cases={"t1": 0}), "no modality was trained with"),
        (change_header(modality_cases=[]), "modality_cases: an object with fields is needed"),
        (
            change_header(privacy={"north": {"epsilon": "1", "delta": 0}}),
            r"north: epsilon: is '1'; it must be",
        ),
        (
            change_header(privacy={"\x1b": {"epsilon": 1, "delta": 0}}),
            "privacy: name: is .* printable text",
        ),
        (change_header(privacy=3), "privacy: an object with fields is needed"),
        (change_header(expected={}), "expected: a list is needed"),
        (change_header(expected=[{"modalities": ["ct"], "counts": {}}]), "not those of the plans"),
        (change_header(expected=[{"modalities": ["t1"], "counts": {}}] * 2), "has 2 of 1 subsets"),
        (change_header(expected=[{"modalities": ["t2", "t1"], "counts": {}}]), "are not sorted"),
        (
            change_header(expected=[{"modalities": ["t1"], "counts": {"x": [0] * 20}}]),
            "not the lab",
        ),
        (
            change_header(expected=[{"modalities": ["t1"], "counts": {"lesion": ["1"] * 20}}]),
            "lesion: is '1'; it must be a whole number from 0",
        ),
        (
            change_header(expected=[{"modalities": ["t1"], "counts": {"lesion": [True] * 20}}]),
            "lesion: is True; it must be a whole number from 0",
        ),
        (change_header(mixmfl_version=["0.1"]), r"mixmfl_version: is \['0.1'\]"),
        (change_header(mixmfl_version="\x1b[2J"), "mixmfl_version: is .* printable text"),
        (change_tensor("", lambda t: t.to(torch.int32)), "of torch.int32, .* of float32 is needed"),
        (change_tensor("", lambda t: t.half()), "of torch.float16, .* of float32 is needed"),
        (change_tensor("", lambda t: t[None]), "has the shape"),
        (change_tensor("network.__class__", lambda t: t), "1 tensors are not planned"),
        (change_tensor("other", lambda t: t), "'other' is missing, or is not planned"),
        (change_tensor("memory.ct.2.keys", lambda t: t), "is missing, or is not planned"),
        (change_tensor("memory.t1.x.keys", lambda t: t), "is missing, or is not planned"),
    ],
)
def test_a_model_file_that_says_what_cannot_be_is_refused(
    model: Path, tmp_path: Path, change: Callable[[dict[str, Any], dict[str, Any]], object],
    message: str,
) -> None:  # fmt: skip
    tensors, header = read(model)
    change(tensors, header)
    (tmp_path / "m.safetensors").write_bytes(model_bytes(tensors, header))
    with pytest.raises(ModelError, match=message):
        load_model(tmp_path / "m.safetensors")


def test_a_tensor_that_was_not_planned_is_not_read(model: Path, tmp_path: Path) -> None:
    """It would be 32 GiB; the file is as long as it says, and empty there."""
    tensors, header = read(model)
    content = pack(tensors, header)
    length = int.from_bytes(content[:8], "little")
    declared, begin = json.loads(content[8 : 8 + length]), len(content) - 8 - length
    end = begin + 2**35
    giant = ((2**33,), torch.float32)
    header = json.loads(declared["__metadata__"]["mixmfl"])
    forms = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
    with open(os.devnull, "rb", buffering=0) as nothing:
        stored = Stored(nothing, {n: (f, 0) for n, f in {**forms, "network.giant": giant}.items()})
    header["header_sha256"] = header_digest(stored, header)
    declared["__metadata__"]["mixmfl"] = json.dumps(header)
    declared["network.giant"] = {"dtype": "F32", "shape": [2**33], "data_offsets": [begin, end]}
    text = json.dumps(declared).encode()
    file = tmp_path / "m.safetensors"
    file.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    try:
        os.truncate(file, 8 + len(text) + end)
    except OSError:
        pytest.skip("this file system has no sparse files of 32 GiB")
    with pytest.raises(ModelError, match=r"1 tensors are not planned, such as 'giant'"):
        load_model(file)
    file.unlink()


ONE_CASE = Registration(1, {"t1": 1})


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("settings", "rounds"), 10**12, "rounds: is 1000000000000; it must be a whole"),
        (("settings", "local_steps"), "many", "local_steps: is 'many'; it must be a whole"),
        (("settings", "configuration"), "os.system", "configuration: is 'os.system'; it must be"),
        (("settings", "masked"), 1, "masked: is 1; it must be true or false"),
        (("fold",), "9", "fold: is '9'; it must be 0 or 1"),
        (("sites",), {"../x": dataclasses.asdict(ONE_CASE)}, "cannot name a site"),
        (("sites",), {"x": {**dataclasses.asdict(ONE_CASE), "cases": 10**9}}, "cases: is 10+; it"),
        (("history",), [{"x": {}}], r"history: x: missing fields \['absent'"),
        (("personal",), {"x": [0.5, 0.5]}, r"sites: unknown fields \['x'\]"),
        (("dice",), {"1": 7}, "dice: 1: is 7; it must be a number from 0 to 1"),
    ],
)
def test_a_run_that_says_what_cannot_be_is_refused(
    tmp_path: Path, place: tuple[str, ...], value: Any, message: str
) -> None:
    start_run(Run(tmp_path / "run", small_plans(), SETTINGS, "0", {}))
    file = tmp_path / "run" / "run.json"
    content = put(json.loads(file.read_text()), place, value)
    content["sha256"] = record_digest(content)
    file.write_text(json.dumps(content))
    with pytest.raises(ModelError, match=message):
        open_run(tmp_path / "run")


def test_a_run_of_a_version_without_a_setting_is_not_only_called_damaged(tmp_path: Path) -> None:
    """Its digest fits, so that it is what was written."""
    start_run(Run(tmp_path / "run", small_plans(), SETTINGS, "0", {}))
    file = tmp_path / "run" / "run.json"
    content = json.loads(file.read_text())
    del content["settings"]["half_updates"]
    content["sha256"] = record_digest(content)
    file.write_text(json.dumps(content))
    with pytest.raises(ModelError, match=r"another version of mixmfl wrote it \(.*half_updates.*"):
        open_run(tmp_path / "run")


@pytest.mark.parametrize("spacing", [(350.0, 350.0, 350.0), (1.0, 350.0, 1.0), (1.0, 1.0, 1e6)])
def test_a_case_of_absurd_spacing_is_refused_before_it_is_resampled(
    spacing: tuple[float, ...],
) -> None:
    """A header that says 350 mm resampled for hours."""
    images, labels = small_case(("t1",), 0, (30, 40, 40))
    plans = small_plans(patch=(8, 16, 16))
    message = r"of such an image at most \d+ are made, 8192 along an axis"
    with pytest.raises(DataError, match=message):
        nnunet_preprocessing.preprocess(
            [images["t1"]], labels, spacing, plans.nnunet, "3d_fullres", plans.labels
        )


def test_fields_that_another_version_of_nnunet_writes_are_left_out() -> None:
    content = small_plans().to_json()["nnunet"]
    more = put({**content, "new": 1}, ("configurations", "2d", "new"), 1)
    more["configurations"]["3d_lowres"] = {}
    assert nnunet_plans.known_fields(more) == content


@pytest.mark.filterwarnings("ignore:.* ends as if cut off")
@pytest.mark.parametrize(("maps", "free"), [(10**9, 10**9), (1, 70_000)])
def test_a_case_that_memory_does_not_hold_is_refused_before_the_network_runs(
    model: Path, monkeypatch: pytest.MonkeyPatch, maps: int, free: int
) -> None:
    """Its maps, or the outputs for its voxels: a model may have a thousand labels."""
    loaded = load_model(model)
    image = np.random.default_rng(0).normal(size=(20, 20, 6)).astype(np.float32)
    image[:8] = 0
    monkeypatch.setattr(segmentation, "largest_map", lambda _: maps)
    monkeypatch.setattr(segmentation, "available_bytes", lambda: free)
    message = r"6 x .* voxels, in patches of 16 x 16, take .* GB in this model of 3 labels"
    with pytest.raises(DataError, match=message):
        loaded.predict({"t1": (image, np.eye(4))})
