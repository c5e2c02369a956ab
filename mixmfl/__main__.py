"""``python -m mixmfl``: what commands there are, and each of them by its short name."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import EntryPoint

from mixmfl.core.commands import commands
from mixmfl.core.version import __version__

SHELLS = ("bash", "zsh", "fish")


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``python -m mixmfl COMMAND …`` as ``mixmfl_COMMAND …``; alone, list the commands."""
    found = commands()
    words = [name.removeprefix("mixmfl_") for name in found]
    made = argparse.ArgumentParser(
        prog="python -I -m mixmfl",
        description="Run mixmfl_COMMAND. Commands:\n\n" + _list(found),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--version", action="version", version=f"mixmfl {__version__}")
    made.add_argument(
        "--completion",
        choices=SHELLS,
        help="print what lets a shell complete the commands' options (docs/commands.md)",
    )
    made.add_argument("command", nargs="?", choices=words, metavar="COMMAND")
    made.add_argument("arguments", nargs=argparse.REMAINDER, metavar="…", help="COMMAND's own")
    options = made.parse_args(argv)
    if options.command:
        return found[f"mixmfl_{options.command}"].load()(options.arguments)
    if options.completion:
        from argcomplete.shell_integration import shellcode

        print(shellcode(list(found), shell=options.completion))
    else:
        made.print_help()
    return 0


def _list(found: Mapping[str, EntryPoint]) -> str:
    """Return a line per command: its short name, and what its module says that it does."""
    words = {name.removeprefix("mixmfl_"): command for name, command in found.items()}
    widest = max(map(len, words), default=0)
    lines = []
    for word, command in words.items():
        main = command.load()
        text = sys.modules[main.__module__].__doc__ or ""
        what = text.partition(": ")[2].strip().replace("`", "")
        lines.append(f"  {word:{widest}}  {what}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
