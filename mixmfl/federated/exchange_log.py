"""The log of what a site and its coordinator exchanged: no images, no names of cases."""

from datetime import datetime, timezone
from pathlib import Path

from mixmfl.core.text import MOST_LINE, one_line
from mixmfl.federated.messages import Message, StoredMessage
from mixmfl.networks.parameters import block_of


def describe_exchange(what: str, stored: StoredMessage, message: Message) -> str:
    """Return a line about a message.

    Args:
        what: How the line begins, such as ``"sent to coordinator"``.
        stored: The message as it travels.
        message: What it contains.
    """
    memory = {name.split(".")[1] for name in message.tensors if name.startswith("memory.")}
    blocks = {block_of(name) for name in message.tensors if not name.startswith("memory.")}
    parts = [f"{what}: {one_line(message.kind)}"]
    number = message.record.get("round")
    if type(number) is int:  # a task to train comes before its round is done, the others after
        parts.append(f"round {number + (message.kind == 'train')}")
    parts += [f"block {one_line(name)}" for name in sorted(blocks)]
    parts += [f"memory of {one_line(name)}" for name in sorted(memory)]
    if fields := sorted(set(message.record) - {"round"}):
        parts.append(f"record {' '.join(map(one_line, fields[:20]))}")
    parts.append(f"{len(message.tensors)} tensors, {stored.size} bytes, sha256 {stored.sha256}")
    return ", ".join(parts)


def note(log: Path, line: str) -> None:
    """Append a line, with the time in UTC, to a log; the file is made if it does not exist.

    The text stays one line of the log, whatever others wrote into it.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    with log.open("a", encoding="utf-8") as file:
        file.write(f"{now} {one_line(line, MOST_LINE)}\n")
