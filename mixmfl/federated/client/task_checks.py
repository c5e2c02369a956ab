"""The site's checks of the coordinator's tasks; what passes them is trusted from here on.

Every field of every kind of task has a type and bounds, and every tensor is one that the plans
of the run have. Anything else is refused before anything is computed, written or allocated.
"""

import dataclasses
from collections.abc import Mapping
from typing import Annotated

import torch

from mixmfl.core.declarations import entries, one_of
from mixmfl.core.errors import AggregationError, PlansError
from mixmfl.core.json_fields import Range, named, whole
from mixmfl.core.records import read_record, read_value
from mixmfl.core.tensor_store import Form, Tensors, form_of
from mixmfl.core.text import quoted, shorten
from mixmfl.federated.client.task_records import TASKS
from mixmfl.federated.messages import MOST_BYTES, Message
from mixmfl.federated.secure_aggregation.protocol import LOSS, Participants
from mixmfl.federated.state import (
    BESIDE,
    COMPARE,
    RunSettings,
    Site,
    block_weights,
    first_state,
    register,
    tensors_of_both,
)
from mixmfl.networks.build import prototype_sizes
from mixmfl.networks.parameters import block_of
from mixmfl.planning.plans import Plans
from mixmfl.training.hardware import compute, map_memory_gb

Forms = Mapping[str, Form]
"""Shapes and types that the tensors of a run can have, by name."""

_WITH_TENSORS = ("train", "masked", "validate", "measure", COMPARE, "personalize", "model")

_ROUNDED = ("train", "masked", "validate")  # their weights may come in half precision


def check_task(task: Message) -> None:
    """Check the fields of a task, as far as that can be done without knowing a run.

    Raises:
        AggregationError: A field is unknown, missing or beyond its bounds, or tensors came with a
            task that has none.
    """
    source = f"the coordinator's task {task.kind!r}"
    if task.kind == "masked":
        Participants.from_json(task.record)
    else:
        read_record(TASKS[task.kind], task.record, source, AggregationError)
    if task.tensors and task.kind not in _WITH_TENSORS:
        raise AggregationError(f"{source}: came with {len(task.tensors)} tensors; none belong")
    if task.kind == "model":
        names = sorted(task.tensors)
        form = form_of(task.tensors, "file") if names == ["file"] else ((), torch.float32)
        if form[1] != torch.uint8 or len(form[0]) != 1 or not 0 < form[0][0] <= MOST_BYTES:
            raise AggregationError(f"{source}: needed is one tensor of bytes, 'file'")


def forms_of(plans: Plans, settings: RunSettings) -> dict[str, Form]:
    """Return what tensors a task of a run can carry: those of the network, and of its memory."""
    weights = first_state(plans, settings).weights
    forms: dict[str, Form] = {name: form_of(weights, name) for name in weights}
    for level, size in prototype_sizes(plans, settings.configuration).items():
        for modality in plans.modalities:
            for part, shape in size.shapes.items():
                forms[f"memory.{modality}.{level}.{part}"] = (shape, torch.float32)
    return forms


def check_memory(plans: Plans, configuration: str, device: torch.device) -> None:
    """Check that a device has the memory that feature maps of a training step take at the least.

    Else a coordinator's plans could use up all memory of a hospital's machine, where the system
    ends whatever it likes.

    Raises:
        PlansError: It has less altogether; how much of it is free is not looked at.
    """
    needed, here = map_memory_gb(plans, configuration), compute(device)
    if needed > here.total_gb:
        raise PlansError(
            f"training {configuration} by the coordinator's plans takes some {needed:.0f} GB for "
            f"feature maps alone, and {device} has {here.total_gb:.0f} GB; the coordinator must "
            "plan with less memory_gb"
        )


def check_run_task(
    task: Message, plans: Plans, settings: RunSettings, site: Site, forms: Forms
) -> None:
    """Check a task of a run against the run.

    Args:
        task: A task that passed ``check_task``.
        plans: Plans of the run.
        settings: Settings of the run.
        site: The site that received the task.
        forms: Shapes and types of the run's tensors; see ``forms_of``.

    Raises:
        AggregationError: The task has a round, modality, block or tensor that is not of the run,
            or lacks blocks that the site needs for it.
    """
    source = f"the coordinator's task {task.kind!r}"
    validates = task.kind in ("validate", "measure", COMPARE, "personalize")
    if "round" in task.record:  # a model is judged after a round, the last one too
        last = settings.rounds if validates else settings.rounds - 1
        whole(task.record["round"], Range(0, last), f"{source}: round", AggregationError)
    blocks = {block_of(name) for name in forms if not name.startswith("memory.")}
    places = {name.rpartition(".")[0] for name in forms if name.startswith("memory.")}
    needed: set[str] = set()
    if validates:
        some = Annotated[
            tuple[Annotated[str, one_of(plans.modalities)], ...],
            entries(0, len(plans.modalities), distinct=True),
        ]
        at = f"{source}: modalities"
        usable = read_value(some, task.record.get("modalities"), at, AggregationError)
        needed = set(block_weights(1, dict.fromkeys(usable, 1)))
    if task.kind in ("train", "masked", "personalize"):
        needed |= set(register(site).weights)
    if task.kind == "masked":
        most, at = Range(0, len(blocks) + len(places) + 1), f"{source}: holders"
        holders = named(task.record.get("holders"), most, at, AggregationError)
        if strange := sorted(holders.keys() - blocks - places - {LOSS}):
            raise AggregationError(f"{at}: the run has no block {quoted(strange[0])}")
    if task.kind == COMPARE:
        own, other = tensors_of_both(task)
        _check_tensors(source, task.kind, own, forms, needed)
        beside = _forms_beside(task, plans, settings, site.device)
        _check_tensors(f"{source}, {BESIDE}", task.kind, other, beside, needed)
    elif task.kind != "model":
        _check_tensors(source, task.kind, task.tensors, forms, needed)


def _forms_beside(
    task: Message, plans: Plans, settings: RunSettings, device: torch.device
) -> dict[str, Form]:
    """Return the tensors that the second network of a comparison can have, as ``forms_of``.

    Raises:
        AggregationError: It is of the run's own configuration.
        PlansError: The plans do not have its configuration, or it takes too much memory.
    """
    name = task.record["beside"]
    if name == settings.configuration:
        raise AggregationError(
            f"the coordinator's task {task.kind!r}: beside: {quoted(name)} is the run's own "
            "configuration, and another is needed"
        )
    plans.configuration(name)
    check_memory(plans, name, device)
    return forms_of(plans, dataclasses.replace(settings, configuration=name))


def _check_tensors(
    source: str, kind: str, tensors: Tensors, forms: Forms, needed: set[str]
) -> None:
    if strange := sorted(tensors.keys() - forms.keys()):
        names = shorten([quoted(name) for name in strange[:3]])
        raise AggregationError(f"{source}: the run's plans have no tensor {names}")
    for name in tensors:
        form, (shape, _) = form_of(tensors, name), forms[name]
        rounds = kind in _ROUNDED and not name.startswith("memory.")
        if form != forms[name] and not (rounds and form == (shape, torch.float16)):
            raise AggregationError(
                f"{source}: {name} came as {form[0]} {form[1]}; the run's plans have "
                f"{forms[name][0]} {forms[name][1]}"
            )
    begun = {name.rpartition(".")[0] for name in tensors if name.startswith("memory.")}
    expected = {
        name
        for name in forms
        if (
            name.rpartition(".")[0] in begun
            if name.startswith("memory.")
            else block_of(name) in needed
        )
    }
    if missing := sorted(expected - tensors.keys()):
        raise AggregationError(f"{source}: {shorten(missing)} is missing")
