"""The log of what crossed between a hospital and its coordinator: no images, no names of cases."""

import hashlib
from datetime import datetime, timezone
from pathlib import Path

from mixmfl.aggregate import block_of
from mixmfl.wire import Message


def describe_exchange(what: str, message: Message, content: bytes) -> str:
    """Return a line about a message.

    Args:
        what: Such as ``"sent to coordinator"``.
        message: What it says.
        content: Its bytes.
    """
    memory = {name.split(".")[1] for name in message.tensors if name.startswith("memory.")}
    blocks = {block_of(name) for name in message.tensors if not name.startswith("memory.")}
    told = [f"{what}: {message.kind}"]
    if "round" in message.record:
        # a task to train comes before its round is done, the others after
        told.append(f"round {int(message.record['round']) + (message.kind == 'train')}")
    told += [f"block {name}" for name in sorted(blocks)]
    told += [f"memory of {name}" for name in sorted(memory)]
    if fields := sorted(set(message.record) - {"round"}):
        told.append(f"record {' '.join(fields)}")
    digest = hashlib.sha256(content).hexdigest()
    told.append(f"{len(message.tensors)} tensors, {len(content)} bytes, sha256 {digest}")
    return ", ".join(told)


def note(log: Path, line: str) -> None:
    """Append a line, with the time in UTC, to a log; made if it is not there."""
    log.parent.mkdir(parents=True, exist_ok=True)
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    with log.open("a", encoding="utf-8") as file:
        file.write(f"{now} {line}\n")
