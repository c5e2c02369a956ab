"""What leaves a site: every message to the server is built here, and nowhere else.

``outgoing`` withholds what rests on too few cases or voxels, and refuses to build a message that
``SENT`` does not list; ``outbound_fields`` describes what a message carries.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mixmfl.data.labels import Labels
from mixmfl.federated.messages import SENT, Message
from mixmfl.federated.state import Minimum
from mixmfl.networks.parameters import block_of
from mixmfl.networks.prototypes import memory_from_state, memory_to_state, withhold_rare
from mixmfl.planning.fingerprint import Fingerprint, PatientCounts, withhold_small_counts


@dataclass(frozen=True)
class OutboundField:
    """One field or tensor of a message from a site.

    Attributes:
        kind: Kind of the message.
        name: Name of the field or tensor.
        shape: Shape of the tensor; None for a field.
        size: Size in bytes.
        what: Description in plain words.
    """

    kind: str
    name: str
    shape: tuple[int, ...] | None
    size: int
    what: str


def outgoing(
    kind: str,
    record: Mapping[str, Any],
    tensors: Mapping[str, Tensor] | None = None,
    *,
    minimum: Minimum | None = None,
    behind: Mapping[tuple[str, int], Tensor] | None = None,
    patients: PatientCounts | None = None,
) -> Message:
    """Build a message that leaves a site.

    Args:
        kind: One of ``SENT``.
        record: The message's fields; a fingerprint in the form of ``Fingerprint.to_json``.
        tensors: Tensors by name; only the kinds ``train`` and ``masked`` have any.
        minimum: The agreed minimum of cases and voxels; fingerprints and prototypes need it.
        behind: How many patients are behind the rows of prototypes, as for
            ``prototypes.withhold_rare``; prototypes need it.
        patients: The number of patients behind a fingerprint's cases; a fingerprint needs it.

    Raises:
        ValueError: The message has a field that its kind does not list, or what it is withheld by
            was left out, which is a bug.
    """
    fields, carried = dict(record), dict(tensors or {})
    unlisted = set(fields) - set(SENT[kind])
    if unlisted or (carried and kind not in ("train", "masked")):
        raise ValueError(f"a {kind!r} message with {sorted(unlisted) or 'tensors'}: not listed")
    if kind == "fingerprint":
        if minimum is None or patients is None:
            raise ValueError("a fingerprint leaves with a minimum and the number of patients only")
        fingerprint = Fingerprint.from_json(fields["fingerprint"], "the site's fingerprint")
        reported = withhold_small_counts(fingerprint, minimum.cases, minimum.voxels, patients)
        fields["fingerprint"] = None if reported is None else reported.to_json()
    if memory := memory_from_state(carried):
        if minimum is None or behind is None:
            raise ValueError("prototypes leave with a minimum and the numbers of patients only")
        if minimum != Minimum():
            released = withhold_rare(memory, minimum.cases, minimum.voxels, behind)
            carried |= memory_to_state(released)
    return Message(kind, fields, carried)


def outgoing_fingerprint(
    fingerprint: Fingerprint,
    labels: Labels,
    minimum: Minimum,
    patients: PatientCounts,
) -> Message:
    """Build a site's message for planning: its fingerprint, and the definition of its labels.

    See ``outgoing`` for ``minimum`` and ``patients``.
    """
    record = {"fingerprint": fingerprint.to_json(), "labels": labels.to_json()}
    return outgoing("fingerprint", record, minimum=minimum, patients=patients)


def outbound_fields(message: Message) -> list[OutboundField]:
    """Return the fields and tensors that a message from a site carries."""
    fields = [
        OutboundField(message.kind, name, None, len(json.dumps(value)), SENT[message.kind][name])
        for name, value in message.record.items()
    ]
    return fields + [
        OutboundField(
            message.kind,
            name,
            tuple(tensor.shape),
            tensor.numel() * tensor.element_size(),
            _describe_tensor(name),
        )
        for name, tensor in message.tensors.items()
    ]


def outbound_table(fields: Sequence[OutboundField]) -> str:
    """Return a table as text: a line per field, and a line per block of tensors."""
    rows: dict[tuple[str, str, str], list[OutboundField]] = {}
    for item in fields:
        alone = item.shape is None or item.name.startswith(("memory.", "masked."))
        group = item.name if alone else block_of(item.name)
        rows.setdefault((item.kind, group, item.what), []).append(item)
    lines = [("message", "what", "numbers", "bytes", "that is")]
    for (kind, group, what), items in rows.items():
        numbers = sum(math.prod(item.shape) for item in items if item.shape is not None)
        size = sum(item.size for item in items)
        lines.append((kind, group, f"{numbers:,}" if numbers else "", f"{size:,}", what))
    widths = [max(len(line[column]) for line in lines) for column in range(4)]
    return "\n".join(
        f"{kind:{widths[0]}}  {group:{widths[1]}}  {numbers:>{widths[2]}}  {size:>{widths[3]}}  "
        f"{what}"
        for kind, group, numbers, size, what in lines
    )


def _describe_tensor(name: str) -> str:
    if name.startswith("memory."):
        _, modality, level, part = name.split(".")
        what = {
            "values": "mean tailored features",
            "counts": "voxels behind the mean features",
        }
        return f"{what[part]} of {modality} by class, level {level}"
    if name.startswith("masked."):
        return f"{name.removeprefix('masked.')}, hidden by masks; only the sum can be read"
    block = block_of(name)
    if block.startswith("tailored."):
        return f"change of the weights of the encoder of {block.removeprefix('tailored.')}"
    words = {"shared": "shared encoder", "fusion": "fusion", "decoder": "decoder"}
    return f"change of the weights of the {words.get(block, block)}"
