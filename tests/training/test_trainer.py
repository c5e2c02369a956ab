import functools
import json
import struct
from pathlib import Path

import pytest
import torch
from small import small_plans

from mixmfl.core.errors import ModelError
from mixmfl.federated.tensor_files import load_tensors, save_tensors
from mixmfl.networks.build import build_network
from mixmfl.networks.parameters import block_of, network_state
from mixmfl.networks.prototypes import State
from mixmfl.training.batches import Batch
from mixmfl.training.trainer import (
    LocalTraining,
    check_optimizer,
    optimizer_of,
    save_optimizer,
    train_locally,
)


def two_rounds() -> tuple[State, State]:
    """Return weights and optimizer state after two rounds of two steps with given gradients."""
    plans = small_plans()
    network = build_network(plans, "2d", seed=0)
    blocks = {block_of(name) for name, _ in network.named_parameters()}
    training = LocalTraining(plans, "2d", blocks, 1e-2, torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    state: State = {}
    for _ in range(2):
        parameters, optimizer = optimizer_of(network, state, training)
        for _ in range(2):
            for parameter in parameters.values():
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            optimizer.step()
        state = save_optimizer(optimizer, parameters)
    return network_state(network), state


def test_weights_and_optimizer_state_are_those_of_torchs_plain_adamw(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = two_rounds()
    plain = functools.partial(torch.optim.AdamW, fused=False, foreach=False)
    monkeypatch.setattr(torch.optim, "AdamW", lambda *given, fused, **named: plain(*given, **named))
    expected = two_rounds()
    steps = [value for name, value in found[1].items() if name.endswith(".step")]
    assert steps
    assert all(value == 4 for value in steps)
    for mine, same in zip(found, expected, strict=True):
        assert mine.keys() == same.keys()
        assert all(torch.allclose(mine[name], same[name], atol=1e-6) for name in same)


def test_blocks_that_were_trained_before_learn_at_a_fifth_of_the_rate() -> None:
    plans = small_plans()
    blocks = {"shared", "fusion", "tailored.t1"}
    after = []
    for settled in ((), ("shared", "decoder")):  # what is not trained here does not matter
        network = build_network(plans, "2d", seed=0)
        before = network_state(network)
        training = LocalTraining(plans, "2d", blocks, 1e-2, torch.device("cpu"), settled=settled)
        parameters, optimizer = optimizer_of(network, {}, training)
        for parameter in parameters.values():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        after.append({n: t - before[n] for n, t in network_state(network).items()})
    for name, change in after[0].items():
        share = 0.2 if block_of(name) == "shared" else 1.0
        assert torch.allclose(after[1][name], share * change, atol=1e-6)
    assert after[0]["shared.stages.0.0.convs.0.conv.weight"].abs().max() > 9e-3


def gradients(monkeypatch: pytest.MonkeyPatch, proximal: float) -> tuple[list[State], list[State]]:
    """Return gradients and weights before each of two steps of local training."""
    plans = small_plans(proximal=proximal, learning_rate=1e-2)
    network = build_network(plans, "2d", seed=0)
    named = dict(network.named_parameters())
    seen: tuple[list[State], list[State]] = [], []

    def record(parameters: object, norm: float) -> None:
        seen[0].append({name: p.grad.clone() for name, p in named.items() if p.grad is not None})
        seen[1].append(network_state(network))

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", record)
    generator = torch.Generator().manual_seed(0)
    present = torch.tensor([[True, True, False]] * 2)
    images = torch.randn(2, 3, 16, 16, generator=generator)
    classes = [torch.randint(0, 3, (2, 1, size, size), generator=generator) for size in (16, 8)]
    batch = Batch(images, present, present, classes, patients=torch.arange(2))
    blocks = {block_of(name) for name in named}
    training = LocalTraining(plans, "2d", blocks, 1e-2, torch.device("cpu"))
    train_locally(network, {}, {}, [batch, batch], training)
    return seen


def test_proximal_term_adds_mu_times_the_way_from_the_rounds_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain, weights = gradients(monkeypatch, 0.0)
    near, same = gradients(monkeypatch, 5.0)
    start, moved = weights
    for first, second in zip(weights, same, strict=True):
        assert all(torch.equal(first[name], second[name]) for name in first)
    assert all(torch.equal(plain[0][name], near[0][name]) for name in plain[0])  # nothing moved yet
    for name, gradient in plain[1].items():
        way = moved[name] - start[name]
        assert torch.allclose(near[1][name], gradient + 5.0 * way, atol=1e-6)
    assert any((moved[name] - start[name]).abs().max() > 1e-3 for name in plain[1])


def test_an_optimizer_state_of_other_tensors_is_refused_before_it_is_read(tmp_path: Path) -> None:
    plans, good = small_plans(), two_rounds()[1]
    check = functools.partial(check_optimizer, plans, "2d")
    file = tmp_path / "north.safetensors"
    save_tensors(file, {**good, "gradient_scale": torch.tensor(2.0)})
    assert load_tensors(file, check).keys() == {*good, "gradient_scale"}
    name = next(name for name in good if name.endswith(".exp_avg"))
    for state in (
        {**good, "decoder.none.exp_avg": torch.zeros(1)},
        {**good, name: torch.zeros(7)},
        {**good, name: good[name].double()},
        {key: tensor for key, tensor in good.items() if key != name},
        {"seen": torch.tensor(1.0)},
    ):
        save_tensors(file, state)
        with pytest.raises(ModelError, match=r"missing, or is no state of AdamW's|is needed"):
            load_tensors(file, check)
    # one of a terabyte, which no disk holds and no memory is asked for
    form = {"dtype": "F32", "shape": [2**38], "data_offsets": [0, 2**40]}
    header = json.dumps({"__metadata__": {"mixmfl": '{"format": 4}'}, name: form}).encode()
    with file.open("wb") as opened:
        opened.write(struct.pack("<Q", len(header)) + header)
        opened.truncate(8 + len(header) + 2**40)
    with pytest.raises(ModelError, match="is missing, or is no state"):
        load_tensors(file, check)
