"""Messages under attack: each task at a hospital, each reply at the coordinator."""

import dataclasses
import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hostile import fingerprint
from masked_federation import SETTINGS as MASKED
from masked_federation import SIZES, MaskedFederation, asked
from models import changed
from mutations import NAMES, mutated_json, mutated_safetensors
from small import LABELS_JSON, write_case, write_model
from small_federation import PLANS, SETTINGS, SiteStore
from targets import HARMLESS, REFUSED, WrongError, judged, plain

from mixmfl.core import errors
from mixmfl.core.records import json_of
from mixmfl.core.version import __version__
from mixmfl.evaluation.small_components import ComponentSums
from mixmfl.federated.client.service import ClientService
from mixmfl.federated.client.site_config import SiteConfig
from mixmfl.federated.messages import FAILED, Message, StoredMessage, decode, encode
from mixmfl.federated.server.comparison import read_compared
from mixmfl.federated.server.coordinator import Answer, Answers
from mixmfl.federated.server.merge import (
    personalization_task,
    read_personal,
    train_task,
    validation_task,
)
from mixmfl.federated.server.orders import (
    PlanningJob,
    plan_remotely,
    read_case_counts,
    read_registrations,
)
from mixmfl.federated.server.secure_aggregation import (
    check_masked,
    gather_participants,
    merge_sums,
    sum_blocks,
)
from mixmfl.federated.server.subset_validation import measure_task, read_measured
from mixmfl.federated.server.update_checks import check_validation
from mixmfl.federated.state import Minimum, first_state, register
from mixmfl.inference.model_folder import CANDIDATES

OURS = {name for name, kind in vars(errors).items() if isinstance(kind, type)}


def spoilt_message(message: Message, draw: random.Random) -> bytes:
    """Return the bytes of a message whose record, tensors or bytes are not what they were."""
    choice = draw.random()
    if choice < 0.3 or not message.record:
        return mutated_safetensors(encode(message), draw)
    if choice < 0.75:
        try:
            record = json.loads(mutated_json(message.record, draw))
            return encode(dataclasses.replace(message, record=record))
        except (ValueError, RecursionError, TypeError):
            return mutated_safetensors(encode(message), draw)
    tensors = dict(message.tensors)
    if not tensors:
        tensors[draw.choice(("x", "shared.a", "file"))] = changed(_one(), draw)
    for _ in range(draw.choice((1, 1, 3))):
        name = draw.choice(list(tensors))
        what = draw.randrange(4)
        if what == 0:
            tensors[draw.choice([n for n in NAMES if n.isprintable() and n])] = tensors.pop(name)
        elif what == 1 and len(tensors) > 1:
            del tensors[name]
        else:
            tensors[name] = changed(tensors[name], draw)
    kind = draw.choice((message.kind,) * 9 + (draw.choice(NAMES[:20]),))
    try:
        return encode(dataclasses.replace(message, tensors=tensors, kind=kind))
    except Exception:  # safetensors does not write such a name
        return mutated_safetensors(encode(message), draw)


def _one() -> Any:
    import torch

    return torch.ones(3)


class Tasks:
    """Each task of a coordinator, at a hospital: done, or refused with an error of ours."""

    def __init__(self, folder: Path) -> None:
        cases = folder / "cases"
        for number in range(3):
            write_case(cases / f"p{number}", ("t1", "t2"), number)
        (cases / "dataset.json").write_text(json.dumps(LABELS_JSON))
        self.config = SiteConfig("north", cases, folder / "work", minimum=Minimum())
        self.folder = folder
        plans = dataclasses.replace(PLANS, labels=_labels())
        settings = dataclasses.replace(SETTINGS, rounds=3)
        join = {
            "version": __version__, "run": "abc", "plans": plans.to_json(),
            "settings": dataclasses.asdict(settings), "fold": "0",
        }  # fmt: skip
        ask = {"version": __version__, "minimum": [0, 0]}
        plan = {"plans": plans.to_json(), "configurations": ["2d"]}
        self.join = Message("join", join, {})
        self.service = ClientService(self.config)
        for first in (Message("fingerprint", ask, {}), Message("preprocess", plan, {}), self.join):
            if self._do(encode(first)).kind == FAILED:
                raise RuntimeError(self.config.problem_log.read_text())
        site = self.config.open(plans, "2d", "0", 0)
        shown, state = register(site), first_state(plans, settings)
        after = dataclasses.replace(state, round=1)
        by_site = {"north": shown}
        write_model(folder / "m.safetensors")
        import numpy as np
        import torch

        content = np.fromfile(folder / "m.safetensors", np.uint8)
        model = Message("model", {}, {"file": torch.from_numpy(content)})
        often = [
            train_task(state, shown), validation_task(after, "north", by_site),
            measure_task(after, "north", by_site), personalization_task(after, "north", by_site),
            self.join, model, Message("keys", {"round": 0}, {}),
        ]  # fmt: skip
        rarely = [Message("fingerprint", ask, {}), Message("preprocess", plan, {})]
        self.tasks = often * 3 + rarely

    def _do(self, content: bytes) -> Message:
        task = StoredMessage.store(content, self.folder)
        reply = self.service.answer(task)
        self.service.note_reply(reply, taken=True)
        return decode(reply.read(0, reply.size))

    def attack(self, draw: random.Random) -> str:
        task = draw.choice(self.tasks)
        log = self.config.problem_log
        log.unlink(missing_ok=True)
        reply = self._do(spoilt_message(task, draw))
        reason = log.read_text(encoding="utf-8") if log.exists() else ""
        self.config.used_file.unlink(missing_ok=True)
        if task.kind == "join":  # the run of before, for the next task
            (self.config.work / "runs" / "abc" / "joined.json").unlink(missing_ok=True)
            self._do(encode(self.join))
        if reply.kind != FAILED:
            return HARMLESS
        if reply.record["error"] not in OURS:
            raise WrongError(f"{task.kind}: {reason[:400]}")
        return REFUSED


def _labels() -> Any:
    from mixmfl.data.labels import Labels

    return Labels.from_dataset_json(LABELS_JSON, "here")


def _compared() -> Message:
    sums = json_of(ComponentSums(3, 1.5, (1.5, 1.6, 1.6, 1.4)))
    components = dict.fromkeys(CANDIDATES, dict.fromkeys(PLANS.labels.foreground, sums))
    return Message("compare", {"round": 1, "components": components}, {})


class Replies:
    """Each reply of a hospital, at the coordinator: left out, or merged into finite numbers."""

    def __init__(self, folder: Path) -> None:
        store = SiteStore(folder / "sites")
        cases = [("t1", "t2"), ("t1",), ("t2", "t1"), ("t1", "t2")]
        federation = store.federation({"north": cases, "south": cases}, 2)
        self.folder, self.federation = folder, federation
        client = _client(federation.sites["north"])
        after = dataclasses.replace(federation.start, round=1)
        known = federation.registrations
        judged_by = {
            "validate": validation_task(after, "north", known),
            "measure": measure_task(after, "north", known),
            "personalize": personalization_task(after, "north", known),
        }
        answers = {kind: client.handle(task, {}).reply for kind, task in judged_by.items()}
        registration = Message("join", {"registration": dataclasses.asdict(known["north"])}, {})
        statistics = {"fingerprint": fingerprint(), "labels": LABELS_JSON}
        self.checks: list[tuple[Message, Callable[[Message], Any]]] = [
            (federation.replies["north"], self._merge),
            (federation.replies["north"], self._merge),
            (answers["validate"], lambda m: check_validation("north", m, 1, None, PLANS)),
            (answers["measure"], lambda m: read_measured("north", m, 1, PLANS)),
            (_compared(), lambda m: read_compared("north", m, 1, PLANS)),
            (answers["personalize"], lambda m: read_personal("north", m)),
            (registration, self._register),
            (Message("preprocess", {"cases": {"2d": [3, 0]}}, {}), self._count),
            (Message("fingerprint", statistics, {}), self._plan),
        ]
        self.masked = MaskedFederation(
            {n: store.site(n, cases) for n in ("east", "north", "south")}
        )
        shown = {name: register(site) for name, site in self.masked.sites.items()}
        self.start = first_state(PLANS, MASKED)
        self.participants, tasks = asked(self.masked, shown, self.start)
        self.shown, self.masks = shown, self.masked.ask(tasks)
        self.keys = self.masked.seen["keys"]
        self.checks += [(self.keys["north"], self._keys), (self.masks["north"], self._masked)]

    def attack(self, draw: random.Random) -> str:
        reply, check = draw.choice(self.checks)
        content = spoilt_message(reply, draw)
        return judged(lambda: check(decode(content)), plain)

    def _merge(self, reply: Message) -> Any:
        replies = {**self.federation.replies, "north": reply}
        state, diagnostics = self.federation.merge(replies)
        before = self.federation.start.weights
        if state.weights.keys() != before.keys():
            raise WrongError("the merged weights have other names")
        for name, tensor in state.weights.items():
            if tensor.shape != before[name].shape or not tensor.isfinite().all():
                raise WrongError(f"{name} is merged to {tuple(tensor.shape)}, or not finite")
        if "north" in diagnostics.rejected:
            raise errors.AggregationError(diagnostics.rejected["north"])
        return diagnostics.loss

    def _register(self, reply: Message) -> Any:
        answers = Answers({"north": Answer(reply, 1, 1, 0.0)})
        registered, failed = read_registrations(answers, PLANS, self.folder)
        if failed:
            raise errors.AggregationError(failed["north"])
        return registered

    def _count(self, reply: Message) -> Any:
        return read_case_counts("north", reply, ["2d"])

    def _plan(self, reply: Message) -> Any:
        good = Message("fingerprint", {"fingerprint": fingerprint(), "labels": LABELS_JSON}, {})
        done = Message("preprocess", {"cases": {"2d": [3, 0]}}, {})

        def ask(tasks: Mapping[str, Message]) -> Answers:
            kind = next(iter(tasks.values())).kind
            shown = {"north": reply, "south": good} if kind == "fingerprint" else {}
            return Answers({s: Answer(shown.get(s, done), 1, 1, 0.0) for s in tasks})

        orders = PlanningJob(
            self.folder / "work", ("north", "south"), "demo", ("2d",), (0, 0), True
        )
        plan_remotely(orders, ask)
        return ()

    def _keys(self, reply: Message) -> Any:
        keys = {**self.keys, "north": reply}
        participants = gather_participants(self.start, keys, self.shown, SIZES)
        return sorted(participants.keys)

    def _masked(self, reply: Message) -> Any:
        replies = {**self.masks, "north": reply}
        for site, each in replies.items():
            check_masked(site, each, self.participants, self.start, SIZES)
        sums = sum_blocks(self.participants, replies)
        state, diagnostics = merge_sums(
            self.start, self.participants, replies, sums, self.shown, PLANS, MASKED
        )
        for name, tensor in state.weights.items():
            if not tensor.isfinite().all():
                raise WrongError(f"{name} is not finite after a masked round")
        return diagnostics.loss


def _client(site: Any) -> Any:
    from mixmfl.federated.client.client import Client

    return Client(site, PLANS, SETTINGS)
