"""First weights from another network: of ours with other plans, and of nnU-Net's checkpoints."""

import dataclasses
import os
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from small import LABELS, small_plans, with_residual_encoders
from torch import Tensor

from mixmfl.core.errors import ModelError
from mixmfl.core.files import sha256
from mixmfl.data.labels import Labels
from mixmfl.data.modalities import Modalities
from mixmfl.networks.base import SegmentationNet, place_modalities
from mixmfl.networks.build import build_network
from mixmfl.networks.initial_weights import Part, Source, head_names, origin_of, take_weights
from mixmfl.networks.nnunet_checkpoint import read_checkpoint
from mixmfl.networks.parameters import load_state, network_state
from mixmfl.planning.architecture import is_residual, resolve_architecture
from mixmfl.planning.plans import Plans

CHANNELS = {"0": "T1", "1": "FLAIR", "2": "T2"}


def plans_of(
    modalities: Sequence[str] = ("flair", "t1", "t2"), labels: Labels = LABELS, **network: Any
) -> Plans:
    plans = small_plans(modalities, labels)
    given = {"compensation_levels": (), **network}
    return dataclasses.replace(plans, network=dataclasses.replace(plans.network, **given))


def network_of(plans: Plans, seed: int) -> SegmentationNet:
    """Return a network whose biases and norms are random, too."""
    network = build_network(plans, "2d", seed).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim < 2:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)
    return network


def source_of(plans: Plans, network: SegmentationNet, trained: Sequence[str] = ()) -> Source:
    return Source(
        plans.network.form,
        plans.modalities,
        tuple(trained or plans.modalities),
        head_names(plans.labels),
        network_state(network),
        (1.0, 1.0),
        is_residual(plans.configuration("2d")["architecture"]["arch_kwargs"]),
    )


def started(plans: Plans, source: Source) -> tuple[SegmentationNet, dict[str, Part]]:
    """Return a network that starts from another one, and what was taken by part."""
    network = build_network(plans, "2d", seed=9).eval()
    fresh = network_state(network)
    state, parts = take_weights(fresh, plans.modalities, head_names(plans.labels), source)
    assert state.keys() == fresh.keys()
    load_state(network, state)
    return network, {part.name: part for part in parts}


def logits(network: SegmentationNet, images: Tensor, available: Sequence[str]) -> Tensor:
    with torch.no_grad():
        out = network(*place_modalities(images, available, network.modalities), {})
    assert isinstance(out, Tensor)
    return out


def image(channels: int) -> Tensor:
    return torch.randn(1, channels, 16, 16, generator=torch.Generator().manual_seed(5))


def test_a_network_with_more_modalities_starts_as_the_one_that_it_is_from() -> None:
    few, more = plans_of(), plans_of(("flair", "pd", "t1", "t1c", "t2"))
    before = network_of(few, 1)
    network, parts = started(more, source_of(few, before))
    assert all(part.taken == part.tensors for part in parts.values())
    for known in (["t1"], ["t2", "flair"], ["t1", "t2", "flair"]):
        shown = image(len(known))
        assert torch.equal(logits(network, shown, known), logits(before, shown, known))
    # a modality that joins is at first what the nearest one was
    assert torch.equal(logits(network, image(1), ["t1c"]), logits(before, image(1), ["t1"]))
    assert torch.equal(logits(network, image(1), ["pd"]), logits(before, image(1), ["t2"]))
    assert {name: part.origin for name, part in parts.items() if "tailored" in name} == {
        "tailored.flair": "flair",
        "tailored.pd": "t2",
        "tailored.t1": "t1",
        "tailored.t1c": "t1",
        "tailored.t2": "t2",
    }


def test_a_modality_without_a_similar_one_starts_from_the_shared_encoder() -> None:
    few, more = plans_of(("t1",)), plans_of(("pet", "t1"))
    before = network_of(few, 1)
    network, parts = started(more, source_of(few, before))
    assert parts["tailored.pet"].origin == "the shared encoder"
    state, old = network_state(network), network_state(before)
    name = "stages.1.0.convs.0.conv.weight"
    assert torch.equal(state[f"tailored.pet.{name}"], old[f"shared.{name}"])
    assert torch.equal(state[f"tailored.t1.{name}"], old[f"tailored.t1.{name}"])


def test_an_encoder_that_was_never_trained_is_not_taken() -> None:
    plans = plans_of()
    _, parts = started(plans, source_of(plans, network_of(plans, 1), ["flair", "t1"]))
    assert parts["tailored.t2"].origin == "flair"
    assert origin_of("t1c", ["t2"]) == "the shared encoder"


def test_labels_are_matched_by_name_and_new_ones_start_at_random() -> None:
    plans = plans_of(labels=Labels({"background": 0, "core": 1, "oedema": 2}))
    old = plans_of()
    network, parts = started(plans, source_of(old, network_of(old, 1)))
    head = "decoder.seg_layers.1.weight"
    mine, theirs = network_state(network)[head], network_state(network_of(old, 1))[head]
    fresh = network_state(build_network(plans, "2d", seed=9))[head]
    assert torch.equal(mine, torch.stack([theirs[0], theirs[2], fresh[2]]))
    assert (parts["heads"].origin, parts["heads"].left) == ("by label", "new: oedema")
    regions = plans_of(labels=Labels({"background": 0, "whole": (1, 2), "core": (2,)}, (1, 2)))
    assert head_names(regions.labels) == ("whole", "core")


def test_a_deeper_network_takes_each_resolution_from_the_same_one() -> None:
    old, plans = plans_of(), plans_of()
    planned = plans.configuration("2d")["architecture"]["arch_kwargs"]
    planned |= {"n_stages": 4, "features_per_stage": [4, 8, 8, 8], "kernel_sizes": [[3, 3]] * 4}
    planned |= {"strides": [[1, 1], *[[2, 2]] * 3], "n_conv_per_stage": [1] * 4}
    planned |= {"n_conv_per_stage_decoder": [1] * 3}
    before = network_of(old, 1)
    network, parts = started(plans, source_of(old, before))
    state, theirs = network_state(network), network_state(before)
    for mine, other in ((1, 0), (2, 1)):
        name = "decoder.stages.{}.convs.0.conv.weight"
        assert torch.equal(state[name.format(mine)], theirs[name.format(other)])
    assert parts["decoder"].taken == parts["decoder"].tensors * 2 // 3
    assert "is not in it" in parts["decoder"].left


def test_smaller_kernels_are_inflated_and_compute_the_same() -> None:
    flat, plans = plans_of(), plans_of()
    flat.configuration("2d")["architecture"]["arch_kwargs"]["kernel_sizes"] = [
        [1, 3],
        [3, 3],
        [3, 3],
    ]
    before = network_of(flat, 1)
    network, parts = started(plans, source_of(flat, before))
    assert all(part.taken == part.tensors for part in parts.values())
    assert parts["tailored.t1"].origin == "t1 (inflated), t1"
    assert parts["decoder"].origin == "decoder, decoder (inflated)"
    ours, theirs = (logits(each, image(2), ["t1", "t2"]) for each in (network, before))
    torch.testing.assert_close(ours, theirs)
    _, parts = started(flat, source_of(plans, network_of(plans, 1)))  # nothing is cut off a kernel
    assert "is 2 x 1 x 3 x 3 there, 2 x 1 x 1 x 3 here" in parts["tailored.t1"].left


def test_what_has_another_size_is_named() -> None:
    narrow, wide = plans_of(), plans_of(tailored_width=1.0, decoder_skips="added")
    _, parts = started(wide, source_of(narrow, network_of(narrow, 1)))
    assert parts["shared"].taken == parts["shared"].tensors
    assert parts["tailored.t1"].taken == 0
    assert parts["tailored.flair"].tensors == 12  # of each three a kernel, a bias and a norm
    sizes = "its stages have 2, 4, 4 channels, ours 4, 8, 8"
    assert parts["tailored.t1"].left == f"{sizes}: plan with another tailored_width to take it"
    assert "streams have 2 and 2 channels there, 4 and 2 here" in parts["fusion"].left
    stacked = plans_of(form="stacked")
    _, parts = started(stacked, source_of(narrow, network_of(narrow, 1)))
    assert parts["encoder"].taken == 0
    assert parts["encoder"].left == "one encoder of all modalities cannot be made of several"


def trained_by_nnunet(
    file: Path,
    plans: Plans,
    network: type = PlainConvUNet,
    channels: Mapping[str, str] = CHANNELS,
) -> tuple[torch.nn.Module, Path]:
    """Write a checkpoint as nnU-Net's trainer does, and return its network, too."""
    arch = resolve_architecture(plans.configuration("2d")["architecture"]["arch_kwargs"])
    if network is ResidualEncoderUNet and not is_residual(arch):
        arch["n_blocks_per_stage"] = arch.pop("n_conv_per_stage")
    heads = len(LABELS.values)
    torch.manual_seed(3)
    built = network(len(CHANNELS), num_classes=heads, deep_supervision=False, **arch).eval()
    with torch.no_grad():
        for parameter in built.parameters():
            if parameter.ndim < 2:
                parameter.add_(0.3 * torch.randn(parameter.shape))
    optimizer = torch.optim.SGD(built.parameters(), 0.01, momentum=0.99, nesterov=True)
    sum(p.sum() for p in built.parameters()).backward()
    optimizer.step()
    described = {"channel_names": dict(channels), "labels": LABELS.to_json()["labels"]}
    nnunet = {"configurations": {"2d": {"spacing": [2.0, 1.5]}}}
    content = {
        "network_weights": built.state_dict(),
        "optimizer_state": optimizer.state_dict(),
        "grad_scaler_state": torch.amp.GradScaler("cpu").state_dict(),
        "logging": {"mean_fg_dice": [np.float64(0.5), np.float32(0.25)], "lrs": [0.01]},
        "_best_ema": np.float64(0.7),
        "current_epoch": 3,
        "init_args": {
            "plans": nnunet,
            "configuration": "2d",
            "fold": 0,
            "dataset_json": described,
            "device": torch.device("cpu"),
        },
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": (0, 1),
    }
    torch.save(content, file)
    return built, file


def test_a_stacked_network_starts_as_the_network_of_nnunet(tmp_path: Path) -> None:
    plans = plans_of(form="stacked")
    theirs, file = trained_by_nnunet(tmp_path / "checkpoint_final.pth", plans)
    source = read_checkpoint(file, Modalities())
    assert (source.modalities, source.spacing) == (("t1", "flair", "t2"), (2.0, 1.5))
    network, parts = started(plans, source)
    assert all(part.taken == part.tensors for part in parts.values())
    shown = image(3)
    with torch.no_grad():
        expected = theirs(shown)
    assert torch.allclose(logits(network, shown, ("t1", "flair", "t2")), expected, atol=1e-5)


@pytest.mark.parametrize("residual", [False, True])
def test_a_stem_of_nnunet_is_split_by_channel_into_tailored_encoders(
    tmp_path: Path, residual: bool
) -> None:
    plans = plans_of(tailored_width=1.0, shared_width=1.0)
    plans = with_residual_encoders(plans) if residual else plans
    network_class = ResidualEncoderUNet if residual else PlainConvUNet
    theirs, file = trained_by_nnunet(tmp_path / "checkpoint_final.pth", plans, network_class)
    network, parts = started(plans, read_checkpoint(file, Modalities()))
    for name in ("tailored.flair", "tailored.t1", "tailored.t2", "shared", "decoder", "heads"):
        assert parts[name].taken == parts[name].tensors > 0, name
    assert parts["shared"].origin == "the mean of the channels, encoder"
    assert (parts["fusion"].taken, parts["fusion"].left) == (0, "a plain U-Net has none")
    for number, modality in enumerate(("t1", "flair", "t2")):
        shown = torch.zeros(1, 3, 16, 16)
        shown[:, number] = image(1)[:, 0]
        with torch.no_grad():
            expected = theirs.get_submodule("encoder")(shown)
            encoding = network.encode(*place_modalities(image(1), [modality], plans.modalities))
        slot = plans.modalities.index(modality)
        for level, maps in enumerate(expected):
            found = encoding.tailored[level][slot]
            assert found is not None
            assert torch.allclose(found, maps, atol=1e-5)


def test_encoders_of_other_blocks_are_named_and_not_taken(tmp_path: Path) -> None:
    plans = plans_of(tailored_width=1.0)
    residual = with_residual_encoders(plans)
    for here, there, network, why in (
        (plans, residual, ResidualEncoderUNet, "preset resenc-m plans such ones"),
        (residual, plans, PlainConvUNet, "preset wide plans plain ones"),
    ):
        _, file = trained_by_nnunet(tmp_path / "checkpoint_best.pth", there, network)
        _, parts = started(here, read_checkpoint(file, Modalities()))
        assert parts["tailored.t1"].taken == 0
        assert parts["tailored.t1"].left.endswith(why)
        assert parts["decoder"].taken == parts["decoder"].tensors


@pytest.mark.parametrize("residual", [False, True])
def test_a_shared_encoder_of_half_the_width_says_in_one_line_that_nothing_fits(
    tmp_path: Path, residual: bool
) -> None:
    """It is so by the presets ``wide`` and ``resenc-m``, whose shared encoder is half as wide."""
    plans = plans_of(tailored_width=1.0)
    plans = with_residual_encoders(plans) if residual else plans
    network = ResidualEncoderUNet if residual else PlainConvUNet
    _, file = trained_by_nnunet(tmp_path / "checkpoint_final.pth", plans, network)
    _, parts = started(plans, read_checkpoint(file, Modalities()))
    assert parts["tailored.t1"].taken == parts["tailored.t1"].tensors
    assert (parts["shared"].taken, parts["shared"].left) == (
        0,
        "its stages have 4, 8, 8 channels, ours 2, 4, 4: plan with another shared_width to take it",
    )


def test_channels_that_nobody_knows_are_left_out_or_named(tmp_path: Path) -> None:
    plans = plans_of(form="stacked")
    channels = {"0": "mri one", "1": "FLAIR", "2": "flair"}
    _, file = trained_by_nnunet(tmp_path / "checkpoint_final.pth", plans, channels=channels)
    with pytest.raises(ModelError, match=r"channels are mri one, FLAIR, flair, of which none"):
        read_checkpoint(file, Modalities())
    found = read_checkpoint(file, Modalities().with_aliases(["t1=mri one"]))
    assert (found.modalities, found.trained) == (("t1", "", ""), ("t1",))


def test_numbers_of_numpy_1_are_read(tmp_path: Path) -> None:
    plans = plans_of(form="stacked")
    _, file = trained_by_nnunet(tmp_path / "new.pth", plans)
    old = tmp_path / "old.pth"
    with zipfile.ZipFile(file) as read, zipfile.ZipFile(old, "w") as write:
        for name in read.namelist():
            content = read.read(name)
            if name.endswith("data.pkl"):
                assert (b"numpy._core" in content) == (np.__version__ >= "2")
                content = content.replace(b"numpy._core", b"numpy.core")
            write.writestr(name, content)
    assert read_checkpoint(old, Modalities()).trained == ("t1", "flair", "t2")


class _Evil:
    def __init__(self, call: Callable[..., object], *given: object) -> None:
        self._call, self._given = call, given

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self._call, self._given


class _Allowed:
    """A class that other code of the process lets torch build."""


def test_no_code_of_a_checkpoint_is_run(tmp_path: Path) -> None:
    trace, file = tmp_path / "trace", tmp_path / "evil.pth"
    for evil in (_Evil(os.mkdir, str(trace)), _Evil(eval, f"__import__('os').mkdir('{trace}')")):
        torch.save({"network_weights": {}, "init_args": evil}, file)
        with pytest.raises(ModelError, match=r"evil.pth: cannot be read as weights alone, and co"):
            read_checkpoint(file, Modalities())
        assert not trace.exists()
    # nor what other code of this process lets torch build
    torch.serialization.add_safe_globals([_Allowed])
    before = set(torch.serialization.get_safe_globals())
    torch.save({"network_weights": {}, "init_args": _Allowed()}, file)
    with pytest.raises(ModelError, match="cannot be read as weights alone"):
        read_checkpoint(file, Modalities())
    torch.save({"n": np.float64(1.0)}, file)
    with pytest.raises(ModelError, match=r"is no checkpoint of nnU-Net v2's trainer \(KeyError"):
        read_checkpoint(file, Modalities())
    assert set(torch.serialization.get_safe_globals()) == before  # others may read as they did
    file.write_bytes(b"no zip")
    with pytest.raises(ModelError, match="cannot be read as weights alone"):
        read_checkpoint(file, Modalities())
    with pytest.raises(ModelError, match="there is no such file"):
        read_checkpoint(tmp_path / ("none" * 99 + ".pth"), Modalities())


def test_a_checkpoint_that_holds_itself_is_refused(tmp_path: Path) -> None:
    _, file = trained_by_nnunet(tmp_path / "checkpoint_final.pth", plans_of(form="stacked"))
    good = torch.load(file, weights_only=False)
    endless: dict[str, Any] = {"labels": {"background": 0}}
    endless["labels"] = endless
    weight = good["network_weights"]["encoder.stages.0.0.convs.0.conv.weight"]
    huge = torch.zeros(1).expand(10**6, 10**6)  # which the file does not hold
    for part, name, value, why in (
        ("init_args", "dataset_json", endless, "no checkpoint .*ircular"),
        ("init_args", "plans", {"configurations": {"2d": {"inherits_from": "2d"}}}, "on itself"),
        ("init_args", "plans", {"configurations": {"2d": {"spacing": [1e9]}}}, "spacing: is 10000"),
        ("network_weights", "encoder.stages.0.0.convs.0.conv.weight", huge, "is no tensor of"),
        ("network_weights", "encoder.stages.0.0.convs.0.conv.weight", weight.to_sparse(), "is no"),
        ("network_weights", "encoder.stages.0.0.convs.0.conv.weight", weight[:0], "is no tensor"),
    ):
        torch.save({**good, part: {**good[part], name: value}}, file)
        with pytest.raises(ModelError, match=why):
            read_checkpoint(file, Modalities())


def _rezipped(good: Path, file: Path, how: int, change: Callable[[str, bytes], bytes]) -> None:
    with zipfile.ZipFile(good) as read, zipfile.ZipFile(file, "w", how) as write:
        for name in read.namelist():
            write.writestr(name, change(name, read.read(name)))


def test_what_a_checkpoint_unfolds_to_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mixmfl.networks.torch_archive.MOST_STEPS", 20_000)
    _, good = trained_by_nnunet(tmp_path / "checkpoint_final.pth", plans_of(form="stacked"))
    file, content = tmp_path / "forged.pth", torch.load(good, weights_only=False)
    folded: list[Any] = ["x" * 50]
    for _ in range(60):
        folded = [folded, folded]
    torch.save({**content, "logging": folded}, file)  # nothing reads that
    assert read_checkpoint(file, Modalities()).trained
    plans = {**content["init_args"]["plans"], "folded": folded}
    torch.save({**content, "init_args": {**content["init_args"], "plans": plans}}, file)
    with pytest.raises(ModelError, match="more than 4194304 bytes of plans are not read"):
        read_checkpoint(file, Modalities())
    described = {"channel_names": {str(n): "T1" for n in range(33)}, "labels": {"background": 0}}
    torch.save({**content, "init_args": {**content["init_args"], "dataset_json": described}}, file)
    with pytest.raises(ModelError, match="33 channels; at most 32 are read"):
        read_checkpoint(file, Modalities())
    stored, packed = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED
    # a tuple of a tuple twice and so on: to hash it as a name would take for ever
    endless = b"\x80\x02}" + b"K\x01" + b"q\x00h\x00\x86" * 60 + b"K\x01s."
    step = b"\x80\x02]q\x00."
    # multiples of one number, which have one hash
    alike = b"\x80\x02}" + b"".join(
        b"\x8a\x0a" + (n * (2**61 - 1)).to_bytes(10, "little") + b"Ns" for n in range(1, 9)
    )
    for how, change, why in (
        (packed, lambda _, old: old, "a record of the archive is compressed"),
        (stored, lambda n, old: old[:4] if "/data/" in n else old, "its record has 4 bytes"),
        (stored, lambda n, old: endless if "data.pkl" in n else old, "or by no name"),
        (stored, lambda n, old: alike if "data.pkl" in n else old, "or by no name"),
        (stored, lambda n, old: b"}" * 20_002 if "data.pkl" in n else old, "20000 steps"),
        (stored, lambda n, old: b" " * 2**25 if "data.pkl" in n else old, "more than 16777216 b"),
        (stored, lambda n, old: b"big" if "byteorder" in n else old, "another order of bytes"),
        (stored, lambda n, old: step[:-1] if "data.pkl" in n else old, "pickle"),
        (stored, lambda n, old: b"I1\n." if "data.pkl" in n else old, "INT, which torch.save d"),
        (stored, lambda n, old: step if "data.pkl" in n else old, "is no checkpoint"),
    ):
        _rezipped(good, file, how, change)
        with pytest.raises(ModelError, match=why):
            read_checkpoint(file, Modalities())


def test_heads_that_are_no_numbers_or_not_as_many_as_labels_are_left(tmp_path: Path) -> None:
    plans = plans_of(form="stacked")
    _, file = trained_by_nnunet(tmp_path / "checkpoint_final.pth", plans)
    good = read_checkpoint(file, Modalities())
    assert good.sha256 == sha256(file)
    name = "decoder.seg_layers.1.weight"
    for tensor, why in (
        (torch.full_like(good.weights[name], float("nan")), "holds NaN or infinity"),
        (good.weights[name].double() + 1e300, "holds NaN or infinity"),  # in ours, of 32 bits
        (good.weights[name][:0], "has 0 heads, and its labels 3"),
    ):
        weights = {**good.weights, name: tensor}
        _, parts = started(plans, dataclasses.replace(good, weights=weights))
        assert why in parts["heads"].left
