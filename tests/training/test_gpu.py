"""What must also hold on a CUDA device; run with ``-m gpu`` where there is one."""

import dataclasses
from pathlib import Path

import pytest
import torch
from small import small_plans, stored_site

from mixmfl.federated.client.training import train_at_site
from mixmfl.federated.server.merge import merge_round, train_task
from mixmfl.federated.state import RunSettings, first_state, register
from mixmfl.inference.predictor import case_predictor
from mixmfl.inference.sliding_window import predict_volume

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]


@pytest.mark.parametrize(
    ("configuration", "patch"), [("2d", (16, 16)), ("3d_fullres", (8, 16, 16))]
)
def test_a_round_on_the_gpu_learns_as_on_the_cpu(
    tmp_path: Path, configuration: str, patch: tuple[int, ...]
) -> None:
    plans = small_plans(patch=patch)
    settings = RunSettings(configuration, 0, rounds=1, local_steps=20, learning_rate=1e-2)
    here = stored_site(tmp_path, "north", [("t1",), ("t1", "t2")], plans, configuration)
    losses = {}
    for name in ("cpu", "cuda"):
        site = dataclasses.replace(here, device=torch.device(name))
        state, registration = first_state(plans, settings), register(site)
        reply, _ = train_at_site(train_task(state, registration), site, plans, settings, {})
        assert all(tensor.device.type == "cpu" for tensor in reply.tensors.values())
        merge_round(state, {"north": reply}, {"north": registration}, plans, settings)
        losses[name] = reply.record["loss"]
    # half precision and another order of sums
    assert losses["cuda"] == pytest.approx(losses["cpu"], abs=0.05)


def test_a_volume_is_predicted_on_the_gpu_as_on_the_cpu() -> None:
    from mixmfl.networks.build import build_network

    plans = small_plans()
    network = build_network(plans, "2d", 0).eval()
    images = torch.randn(2, 5, 40, 30)
    logits = []
    for name in ("cpu", "cuda"):
        device = torch.device(name)
        predictor = case_predictor(network.to(device), {}, ("t1", "t2"))
        found = predict_volume(predictor, images, (16, 16), step=0.5, batch_size=3, device=device)
        logits.append(found.cpu())
    assert torch.allclose(logits[0], logits[1], atol=0.05)
