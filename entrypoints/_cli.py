"""What all commands share: the parser's manners, the progress bar, and errors without traceback."""

import argparse
import logging
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from mixmfl import __version__
from mixmfl.errors import MixmflError

NOTHING_COULD_START = 2
SOME_FAILED = 1
INTERRUPTED = 130  # the shell's convention for Ctrl-C

T = TypeVar("T")


def parser(name: str, description: str) -> argparse.ArgumentParser:
    """Return a parser with ``--version`` and ``--verbose``, as every command has them."""
    made = argparse.ArgumentParser(
        prog=name, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    made.add_argument("-v", "--verbose", action="store_true", help="show the library's log")
    return made


def run(
    made: argparse.ArgumentParser,
    argv: Sequence[str] | None,
    work: Callable[[argparse.Namespace], int],
) -> int:
    """Parse, do the work, and turn errors that a user can mend into one line on stderr.

    Returns:
        The exit code: what ``work`` returns; 2 where nothing could start; 130 after Ctrl-C.
    """
    options = made.parse_args(argv)
    logging.basicConfig(
        level=logging.WARNING, format="%(name)s: %(message)s"
    )
    # other libraries' debug logs are never what the user asked for
    logging.getLogger("mixmfl").setLevel(logging.DEBUG if options.verbose else logging.WARNING)
    try:
        return work(options)
    except (MixmflError, OSError) as error:
        print(f"{made.prog}: {error}", file=sys.stderr)
        return NOTHING_COULD_START
    except KeyboardInterrupt:
        print(f"{made.prog}: interrupted; run the same command again to go on", file=sys.stderr)
        return INTERRUPTED


def progress(items: Iterable[T], total: int, label: str) -> Iterable[T]:
    """Iterate with a progress bar on stderr; silent where stderr is no terminal."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    return track(
        items, description=label, total=total, console=console, disable=not console.is_terminal
    )
