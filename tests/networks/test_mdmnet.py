from collections.abc import Callable
from typing import Any

import pytest
import torch
from small import LABELS, MODALITIES, random_network, small_plans
from torch import Tensor

from mixmfl.core.errors import PlansError
from mixmfl.inference.predictor import case_predictor
from mixmfl.networks.base import SegmentationNet, stack_slots
from mixmfl.networks.build import build_network, parameter_shapes
from mixmfl.networks.mdmnet import Fusion, MDMNet
from mixmfl.networks.norms import channels_last
from mixmfl.networks.parameters import assign_parameters, load_state, network_state, shapes_of
from mixmfl.networks.prototypes import PrototypeMemory, Prototypes
from mixmfl.planning import nnunet_planner
from mixmfl.planning.architecture import resolve_architecture
from mixmfl.planning.plans import replace_settings

CONFIGURATIONS = [("2d", (16, 16)), ("3d_fullres", (8, 16, 16))]


def build(configuration: str, patch: tuple[int, ...], seed: int = 0) -> MDMNet:
    network = build_network(small_plans(patch=patch), configuration, seed)
    assert isinstance(network, MDMNet)
    return network


def some_memory(
    network: SegmentationNet, modalities: tuple[str, ...] = MODALITIES
) -> PrototypeMemory:
    generator = torch.Generator().manual_seed(3)
    (level,) = network.compensated
    return {
        (name, level): Prototypes(
            torch.randn(3, 4, generator=generator),
            torch.ones(3),
        )
        for name in modalities
    }


def trusting(network: MDMNet) -> MDMNet:
    """Let recalled contributions count; in a new network they do not yet."""
    with torch.no_grad():
        for level in network.compensated:
            network.fusion[level].get_parameter("trust").fill_(1.0)
    return network


def presence(*rows: str) -> Tensor:
    return torch.tensor([[name in row.split("+") for name in MODALITIES] for row in rows])


@pytest.mark.parametrize(("configuration", "patch"), CONFIGURATIONS)
def test_logits_come_at_every_resolution_in_training_and_at_one_in_prediction(
    configuration: str, patch: tuple[int, ...]
) -> None:
    network = build(configuration, patch)
    images, present = torch.randn(2, 3, *patch), presence("t1", "t1+t2+flair")
    shapes = [tuple(logits.shape) for logits in network.train()(images, present, {})]
    half = tuple(n // 2 for n in patch)
    assert shapes == [(2, 3, *patch), (2, 3, *half)]
    assert network.eval()(images, present, {}).shape == (2, 3, *patch)


@pytest.mark.parametrize(("configuration", "patch"), CONFIGURATIONS)
@pytest.mark.parametrize("hidden", [float("nan"), 7.0])
def test_what_an_missing_modality_holds_does_not_change_a_bit(
    configuration: str, patch: tuple[int, ...], hidden: float
) -> None:
    network = build(configuration, patch).eval()
    memory, present = some_memory(network), presence("t1", "t2+flair")
    images = torch.randn(2, 3, *patch)
    spoilt = images.clone()
    spoilt[~present] = hidden
    assert torch.equal(network(images, present, memory), network(spoilt, present, memory))


def test_encoders_of_missing_modalities_are_not_computed() -> None:
    network = build("2d", (16, 16))
    ran: list[str] = []
    for name, encoder in network.tailored.items():
        encoder.register_forward_hook(lambda *_, name=name: ran.append(name))
    network(torch.randn(2, 3, 16, 16), presence("t1", "t1+flair"), some_memory(network))
    assert sorted(ran) == ["flair", "t1"]


def test_a_case_does_not_see_the_others_of_its_batch() -> None:
    network = build("2d", (16, 16)).eval()
    memory, images = some_memory(network), torch.randn(3, 3, 16, 16)
    present = presence("t1", "t2+flair", "t1+t2+flair")
    together = network(images, present, memory)
    for row in range(3):
        alone = network(images[row : row + 1], present[row : row + 1], memory)
        assert torch.allclose(together[row], alone[0], atol=1e-5)


def test_memory_stands_in_for_missing_modalities_and_only_for_them() -> None:
    network = trusting(build("2d", (16, 16))).eval()
    images, everything = torch.randn(1, 3, 16, 16), presence("t1+t2+flair")
    memory = some_memory(network)
    assert torch.equal(network(images, everything, {}), network(images, everything, memory))
    without, lacking = network(images, presence("t1"), {}), presence("t1")
    assert not torch.allclose(without, network(images, lacking, memory))
    of_t1_alone = some_memory(network, ("t1",))
    assert torch.equal(without, network(images, lacking, of_t1_alone))


def test_the_order_in_which_the_images_of_a_case_are_given_changes_no_bit() -> None:
    network = build_network(small_plans(), "2d", 0).eval()
    images = torch.randn(2, 2, 16, 16)
    one = case_predictor(network, {}, ("flair", "t2"))(images)
    other = case_predictor(network, {}, ("t2", "flair"))(images.flip(1))
    assert torch.equal(one, other)


@pytest.mark.parametrize(("configuration", "patch"), CONFIGURATIONS)
def test_a_second_view_is_as_if_the_hidden_modalities_had_never_been_available(
    configuration: str, patch: tuple[int, ...]
) -> None:
    plans = small_plans(patch=patch)
    network = build_network(plans, configuration, 0).eval()
    images, shown = torch.randn(2, 3, *patch), presence("t1", "t1+flair")
    everything = network.encode(images, torch.ones_like(shown))
    memory = some_memory(network)
    second = network.decode(everything.restricted_to(shown), memory)
    assert isinstance(second, Tensor)
    assert torch.allclose(second, network(images, shown, memory), atol=1e-5)
    assert not torch.allclose(second, network(images, torch.ones_like(shown), memory), atol=1e-2)


@pytest.mark.parametrize("settings", [{}, {"form": "stacked", "compensation_levels": ()}])
def test_views_decoded_together_are_those_decoded_one_by_one(settings: dict[str, Any]) -> None:
    network = random_network(**settings).train()
    images, shown = torch.randn(2, 3, 16, 16), presence("t1", "t1+flair")
    everything = network.encode(images, torch.ones_like(shown))
    memory = some_memory(network) if network.compensated else {}
    views = [everything, everything.restricted_to(shown)]
    together = network.decode_views(views, memory)
    assert len(together) == 2
    for logits, view in zip(together, views, strict=True):
        alone = network.decode(view, memory)
        assert isinstance(logits, list)
        torch.testing.assert_close(logits, alone, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(together[0][0], together[1][0], atol=1e-2)


def fusion_of() -> Fusion:
    """Return a fusion of three slots of one channel and two shared channels, into four."""
    planned = resolve_architecture(small_plans().configuration("2d")["architecture"]["arch_kwargs"])
    fusion = Fusion(3, 1, 2, 4, planned, recalls=True)
    with torch.no_grad():
        fusion.get_parameter("trust").fill_(0.5)
    return fusion


def maps(*shape: int) -> Tensor:
    return torch.randn(*shape, 8, 8, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("trust", [0.0, 0.5])
@pytest.mark.parametrize("layout", [torch.clone, channels_last])
def test_slots_at_hand_are_concatenated_and_the_others_are_empty_or_recalled(
    trust: float, layout: Callable[[Tensor], Tensor]
) -> None:
    """The fusion computes it otherwise; here the concatenation is written out."""
    fusion = fusion_of()
    with torch.no_grad():
        fusion.get_parameter("trust").fill_(trust)
    slots, shared, recalled = maps(2, 3, 1), maps(2, 3, 2), maps(2, 3, 1)
    present = presence("flair+t1", "t1+t2")
    recalled[present] = 0
    empty = torch.zeros(1, 8, 8)
    first = [shared[0, :2].mean(dim=0), slots[0, 0], slots[0, 1], trust * recalled[0, 2]]
    mean = shared[1, 1:].mean(dim=0)
    second = [mean, trust * recalled[1, 0], slots[1, 1], slots[1, 2]]
    want = fusion.mix(torch.stack([torch.cat(first), torch.cat(second)]))
    given, common = ([layout(slot) for slot in each.unbind(1)] for each in (slots, shared))
    result = fusion(given, common, present, recalled)
    assert torch.allclose(result, want, atol=1e-5)
    without = [torch.cat([*first[:3], empty]), torch.cat([second[0], empty, *second[2:]])]
    result = fusion(given, common, present, None)
    assert torch.allclose(result, fusion.mix(torch.stack(without)), atol=1e-5)


def test_a_fusion_may_have_one_stream_alone() -> None:
    planned = resolve_architecture(small_plans().configuration("2d")["architecture"]["arch_kwargs"])
    slots, shared = maps(1, 3, 1), maps(1, 3, 2)
    available = presence("flair+t2")
    tailored = Fusion(3, 1, 0, 4, planned, recalls=False)
    want = tailored.mix(torch.cat([slots[:, 0], torch.zeros(1, 1, 8, 8), slots[:, 2]], dim=1))
    assert torch.allclose(tailored(slots.unbind(1), None, available, None), want, atol=1e-5)
    common = Fusion(3, 0, 2, 4, planned, recalls=False)
    want = common.mix((shared[:, 0] + shared[:, 2]) / 2)
    assert torch.allclose(common(None, shared.unbind(1), available, None), want, atol=1e-5)


def test_the_seed_decides_the_first_weights_and_nothing_else() -> None:
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    one, same, other = (network_state(build("2d", (16, 16), seed)) for seed in (4, 4, 5))
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_a_modality_cannot_have_a_name_that_torch_has_taken() -> None:
    with pytest.raises(PlansError, match="'values' cannot name a modality here"):
        build_network(small_plans(modalities=("t1", "values")), "2d", 0)


def test_every_parameter_travels_under_one_name() -> None:
    network = build("2d", (16, 16))
    state = network_state(network)
    assert sum(t.numel() for t in state.values()) == sum(p.numel() for p in network.parameters())
    assert len({t.data_ptr() for t in state.values()}) == len(state)


@pytest.mark.parametrize("deep_supervision", [False, True])
@pytest.mark.parametrize(("configuration", "patch"), CONFIGURATIONS)
def test_adding_a_skip_is_concatenating_it_under_the_same_weights(
    configuration: str, patch: tuple[int, ...], deep_supervision: bool
) -> None:
    plans = small_plans(patch=patch)
    network = build_network(plans, configuration, 0)
    adding = build_network(
        replace_settings(plans, {"decoder_skips": "added"}, {}), configuration, 1
    )
    weights = network_state(adding.decoder)
    for name, parameter in network.decoder.named_parameters():
        if parameter.shape != weights[name].shape:
            weights[name] = torch.cat([weights[name], weights[name]], dim=1)
    load_state(network.decoder, weights)
    assert sum(p.numel() for p in adding.parameters()) < sum(
        p.numel() for p in network.parameters()
    )
    skips = network_skips(network, patch)
    for decoder in (network.decoder, adding.decoder):
        decoder.deep_supervision = deep_supervision
    want, result = network.decoder(skips), adding.decoder(skips)
    if not deep_supervision:
        want, result = [want], [result]
    for one, other in zip(want, result, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def network_skips(network: SegmentationNet, patch: tuple[int, ...]) -> list[Tensor]:
    """Return random maps for a decoder of nnU-Net, finest first."""
    ups = list(network.decoder.transpconvs)[::-1]
    skips = [torch.randn(2, ups[0].out_channels, *patch)]
    for up in ups:
        size = [n // by for n, by in zip(skips[-1].shape[2:], up.stride, strict=True)]
        skips.append(torch.randn(2, up.in_channels, *size))
    return skips


@pytest.mark.parametrize("skips", ["concatenated", "added"])
@pytest.mark.parametrize("decoder_convs", [1, 2])
@pytest.mark.parametrize(("configuration", "patch"), CONFIGURATIONS)
def test_the_planned_memory_is_that_of_the_features_really_stored(
    configuration: str, patch: tuple[int, ...], decoder_convs: int, skips: str
) -> None:
    settings = {"decoder_convs": decoder_convs, "decoder_skips": skips}
    plans = replace_settings(small_plans(patch=patch), settings, {})
    network = build_network(plans, configuration, 0)
    assert [len(stage.convs) for stage in network.decoder.stages] == [decoder_convs] * 2
    stored = 0

    def count(_: object, __: object, output: Tensor) -> None:
        nonlocal stored
        stored += output.numel()

    for module in network.modules():
        # a fusion's convolution is computed without its module
        if isinstance(module, torch.nn.modules.conv._ConvNd | Fusion):
            module.register_forward_hook(count)
    encoding = network.encode(torch.randn(1, 3, *patch), presence("t1+t2+flair"))
    # where not every case has a modality, its slot is a copy
    slots = sum(stack_slots(level).numel() for level in encoding.tailored)
    network.decode(encoding, {})
    planned = plans.configuration(configuration)["architecture"]["arch_kwargs"]
    estimate = nnunet_planner.feature_map_size(patch, 3, len(LABELS.values), planned, plans.network)
    assert estimate == pytest.approx(stored + slots, rel=0.02)


def test_a_network_takes_over_parameters_that_are_complete_and_fit() -> None:
    one, other = build("2d", (16, 16)), build("2d", (16, 16), seed=1)
    state = network_state(other)
    assign_parameters(one, state)
    for name, parameter in one.named_parameters():
        assert parameter.data_ptr() == state[name].data_ptr()  # not a copy
        assert not parameter.requires_grad
    name = min(state)
    with pytest.raises(ValueError, match=f"1 tensors are missing, such as {name}"):
        assign_parameters(one, {n: tensor for n, tensor in state.items() if n != name})
    with pytest.raises(ValueError, match=f"{name} has the shape .*7.*, .* is needed"):
        assign_parameters(one, {**state, name: torch.zeros(7)})
    with pytest.raises(ValueError, match=f"{name} has the shape .* of torch.int32, .* of float32"):
        assign_parameters(one, {**state, name: state[name].view(torch.int32)})
    with pytest.raises(ValueError, match=r"1 tensors are not planned, such as 'decoder\.more'"):
        assign_parameters(one, {**state, "decoder.more": torch.zeros(3)})


def test_shapes_are_those_of_the_planned_network_whatever_was_planned_before() -> None:
    plans = small_plans()
    narrow = replace_settings(plans, {"tailored_width": 0.25}, {})
    asked = (plans, narrow, small_plans(("t1",)), plans)
    for each in asked:
        assert parameter_shapes(each, "2d") == shapes_of(build_network(each, "2d", 0))
    assert len({str(dict(parameter_shapes(each, "2d"))) for each in asked}) == 3
