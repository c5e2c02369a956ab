import functools

import pytest
import torch
from small import small_plans

from mixmfl.networks.build import build_network
from mixmfl.networks.parameters import block_of, network_state
from mixmfl.networks.prototypes import State
from mixmfl.training.trainer import _optimizer, _save_optimizer


def two_rounds() -> tuple[State, State]:
    """Return weights and optimizer state after two rounds of two steps with given gradients."""
    plans = small_plans()
    network = build_network(plans, "2d", seed=0)
    blocks = {block_of(name) for name, _ in network.named_parameters()}
    generator = torch.Generator().manual_seed(0)
    state: State = {}
    for _ in range(2):
        parameters, optimizer = _optimizer(network, state, plans, blocks, 1e-2)
        for _ in range(2):
            for parameter in parameters.values():
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            optimizer.step()
        state = _save_optimizer(optimizer, parameters)
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
