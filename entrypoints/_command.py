"""The command that trains: what it names, and what a run keeps of commands before it."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixmfl.core.errors import MixmflError

if TYPE_CHECKING:
    from mixmfl.federated.server.kept_options import Words


@dataclass(frozen=True)
class Command:
    """A command line.

    Attributes:
        parser: The command's parser.
        argv: Its arguments.
        options: What the parser makes of them.
    """

    parser: argparse.ArgumentParser
    argv: Sequence[str]
    options: argparse.Namespace

    @cached_property
    def named(self) -> "Words":
        """Return the options named here that a run keeps."""
        from mixmfl.federated.server.kept_options import KEPT

        # what is in the namespace is not replaced by a default
        without_defaults = argparse.Namespace(**dict.fromkeys(KEPT))
        named = vars(self.parser.parse_args(self.argv, without_defaults))
        return {name: _words(name, named[name]) for name in KEPT if named[name] is not None}

    def options_for(self, kept: "Words", folder: Path) -> argparse.Namespace:
        """Return the options named here, and of others those that a run keeps.

        Args:
            kept: What is kept.
            folder: Folder of the run.

        Raises:
            MixmflError: What is kept is no option of this command.
        """
        damage = MixmflError(
            f"{folder}: its options.json is damaged; remove it, and name the options of the run "
            "again"
        )
        try:
            options = self.parser.parse_args([*self.taken_from(kept), *self.argv])
        except SystemExit:
            raise damage from None
        without, with_kept = vars(self.options), vars(options)
        # the words of one option may name another, such as --kit
        if any(with_kept[name] != without[name] for name in without.keys() - kept.keys()):
            raise damage
        return options

    def taken_from(self, kept: "Words") -> list[str]:
        """Return those of the kept options that this command takes, as they would be named."""
        return [word for name in kept if name not in self.named for word in kept[name]]


def _words(name: str, value: Any) -> tuple[str, ...]:
    """Return what is written on the command line for the value of an option."""
    option = f"--{name.replace('_', '-')}"
    if isinstance(value, bool):
        return (option if value else option.replace("--", "--no-", 1),)
    if name == "alias":
        return tuple(f"{option}={each}" for each in value)
    values = value if isinstance(value, list) else [value]
    return (option, *(str(each.resolve() if isinstance(each, Path) else each) for each in values))
