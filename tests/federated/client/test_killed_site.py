"""A hospital that is killed between any two changes of its files trains the round again alike."""

import dataclasses
import shutil
from itertools import count
from pathlib import Path

import pytest
import torch
from killed import killed_after
from small_federation import PLANS, write_work

from mixmfl.core.files import clear_unfinished
from mixmfl.core.version import __version__
from mixmfl.federated.client.audit_log import verify_log
from mixmfl.federated.client.client import Client, Handled
from mixmfl.federated.client.limits import Limits
from mixmfl.federated.client.service import ClientService
from mixmfl.federated.client.site_config import SiteConfig
from mixmfl.federated.messages import Message, StoredMessage, encode
from mixmfl.federated.server.merge import train_task
from mixmfl.federated.state import Minimum, Registration, RunSettings, first_state
from mixmfl.networks.prototypes import State

SETTINGS = RunSettings("2d", seed=0, rounds=5, local_steps=1, learning_rate=1e-2)
JOIN = {
    "version": __version__, "run": "abc", "plans": PLANS.to_json(),
    "settings": dataclasses.asdict(SETTINGS), "fold": "all",
}  # fmt: skip


REGISTRATION = Registration(2, {"t1": 2})
START = first_state(PLANS, SETTINGS)


def train(self: Client, task: Message, optimizer: State) -> Handled:
    """Count the rounds that the optimizer state has seen, in place of training."""
    seen = optimizer.get("gradient_scale", torch.tensor(0.0)) + 1
    return Handled(Message("train", {"loss": float(seen)}, {}), {"gradient_scale": seen})


class Hospital:
    """A hospital's service that was just started, in a folder of its own."""

    def __init__(self, work: Path) -> None:
        limits = Limits(validation_cases=1, training_cases=1)
        self.config = SiteConfig("north", work, work, minimum=Minimum(), limits=limits)
        self.service = ClientService(self.config)
        clear_unfinished(work)  # as its executor does before the first task
        assert self.do(Message("join", JOIN, {})).kind == "join"

    def do(self, task: Message) -> Message:
        reply = self.service.answer(StoredMessage.store(encode(task), self.config.work))
        self.service.note_reply(reply, taken=True)
        return reply.open()

    def round(self, number: int) -> float:
        """Train in a round, and return how many rounds the optimizer state has seen."""
        reply = self.do(train_task(dataclasses.replace(START, round=number), REGISTRATION))
        assert reply.kind == "train", self.config.problem_log.read_text()
        return float(reply.record["loss"])

    def files(self) -> set[Path]:
        return {f.relative_to(self.config.work) for f in self.config.work.rglob("*")}


def test_a_hospital_that_is_killed_in_a_round_trains_it_again_from_the_same_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Client, "handle", train)
    before = write_work(tmp_path / "before", {"north": [("t1",)] * 2})
    hospital = Hospital(before)
    assert [hospital.round(number) for number in range(4)] == [1, 2, 3, 4]  # some are removed then
    shutil.copytree(before, tmp_path / "whole")
    whole = Hospital(tmp_path / "whole")
    assert whole.round(4) == 5
    for most in count(1, 2):
        work = tmp_path / str(most)
        shutil.copytree(before, work)
        hospital = Hospital(work)
        with killed_after(most) as made:
            hospital.round(4)
        again = Hospital(work)
        assert again.round(4) == 5, f"killed after {most} changes"
        assert again.files() == whole.files(), f"killed after {most} changes"
        assert verify_log(again.config.audit_log.file).sent >= 7
        if not made.killed:
            break
    assert most > 8
