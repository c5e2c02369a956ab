"""Shared by all commands: the parser, progress bars, and errors without traceback."""

import argparse
import importlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from mixmfl import __version__
from mixmfl.core.commands import commands
from mixmfl.core.errors import MixmflError, explain
from mixmfl.core.text import MOST_LINE, one_line, printable

from . import _paths

NOTHING_COULD_START = 2

SOME_FAILED = 1

A_DAY = 86400.0

INTERRUPTED = 130  # the shell's convention for Ctrl-C

T = TypeVar("T")


def parser(name: str, description: str) -> argparse.ArgumentParser:
    """Return a parser with ``--version`` and ``--verbose``, as every command has them."""
    parser = argparse.ArgumentParser(
        prog=name, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    parser.add_argument("-v", "--verbose", action="store_true", help="show the library's log")
    return parser


def network_engine() -> ModuleType:
    """Return ``mixmfl.federated.flare``, the engine of a federation on a network.

    Raises:
        MixmflError: NVIDIA FLARE is not installed.
    """
    try:
        return importlib.import_module("mixmfl.federated.flare")
    except ModuleNotFoundError as error:
        raise MixmflError(
            f"a federation on a network needs the extra 'network' ({error.name} is missing); "
            "install it by: pip install 'mixmfl[network]'"
        ) from None


def home() -> Path:
    """Return the folder of the user's settings: ``MIXMFL_HOME``, else the system's default."""
    if named := os.environ.get("MIXMFL_HOME"):
        return Path(named)
    system = os.environ.get("APPDATA") if os.name == "nt" else os.environ.get("XDG_CONFIG_HOME")
    return Path(system or Path.home() / ".config") / "mixmfl"


def add_output(parser: argparse.ArgumentParser) -> None:
    """Add ``--quiet`` and ``--log``, for commands that work through many cases."""
    parser.add_argument(
        "-q", "--quiet", action="store_true", help="print only failures, and show no progress bar"
    )
    parser.add_argument(
        "--log", type=_paths.new_file(), metavar="FILE", help="append all messages to a log file"
    )


@contextmanager
def output(options: argparse.Namespace) -> Iterator[Callable[[str], None]]:
    """Yield a function that prints a line unless ``--quiet``, and appends it to ``--log``."""
    logger = logging.getLogger("mixmfl")
    level, handler = logger.level, None
    if options.log is not None:
        options.log.parent.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(options.log, encoding="utf-8")
        handler.setFormatter(_OneLine("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        logger.addHandler(handler)
        logger.setLevel(min(level, logging.INFO))

    def say(line: str) -> None:
        logger.info(line)
        if not options.quiet:
            print(printable(line), flush=True)

    try:
        yield say
    finally:
        logger.setLevel(level)
        if handler is not None:
            logger.removeHandler(handler)
            handler.close()


def continued(options: argparse.Namespace) -> str:
    """Say how a command is continued that keeps what it has completed."""
    return "completed work is kept: run the same command again to continue"


def begun_again(options: argparse.Namespace) -> str:
    """Say how a command is begun again that writes into an empty folder only."""
    return f"it cannot be continued: run it again with another folder than {options.out}"


def run(
    parser: argparse.ArgumentParser,
    argv: Sequence[str] | None,
    work: Callable[[argparse.Namespace], int],
    advice: Callable[[argparse.Namespace], str] = continued,
) -> int:
    """Parse, do the work, and print errors that a user can fix as one line on stderr.

    Args:
        parser: The command's parser.
        argv: Its arguments; None: those of this process.
        work: Does the work and returns the exit code.
        advice: Says what to do after an interruption. It imports nothing heavy: it may have been
            an import that was interrupted, which cannot be repeated.

    Returns:
        The exit code: that of ``work``; 2 where nothing could start; 130 after Ctrl-C or SIGTERM.
    """
    if "_ARGCOMPLETE" in os.environ:  # a shell asks for completions; the process ends here
        import argcomplete

        argcomplete.autocomplete(parser)
    options = parser.parse_args(argv)
    # Python's helper processes take modules from the current folder first, which may be one of
    # images from elsewhere: a torch.py there would be run. Python 3.10 does not know this word
    os.environ.setdefault("PYTHONSAFEPATH", "1")
    _follow_no_matplotlibrc_here()
    shown = logging.StreamHandler()
    # by its own level, because --log lowers that of the loggers
    shown.setLevel(logging.DEBUG if options.verbose else logging.WARNING)
    shown.setFormatter(_OneLine("%(name)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[shown])
    # other libraries' debug logs are never what the user asked for
    logging.getLogger("mixmfl").setLevel(logging.DEBUG if options.verbose else logging.WARNING)
    try:
        with _ended_in_order():
            _paths.check_paths(parser, options)
            return work(options)
    except (MixmflError, OSError) as error:
        complain(parser.prog, explain(error))
        return NOTHING_COULD_START
    except KeyboardInterrupt:
        complain(parser.prog, f"interrupted; {advice(options)}")
        return INTERRUPTED


def _follow_no_matplotlibrc_here() -> None:
    """Import matplotlib elsewhere if it would take ``matplotlibrc`` of the current folder.

    That may be one of images from elsewhere: up to matplotlib 3.10 such a file can run code.
    """
    if os.path.exists("matplotlibrc"):
        here = Path.cwd()
        os.chdir(Path(__file__).parent)
        try:
            importlib.import_module("matplotlib")
        finally:
            os.chdir(here)


def complain(name: str, message: str) -> None:
    """Print a message on stderr, in one line after the command's name, red on a terminal."""
    from rich.console import Console

    console = Console(stderr=True)
    console.print(name, style="bold red", end="", highlight=False)
    # not by rich, which would wrap lines at the terminal's width
    print(f": {printable(message)}", file=sys.stderr)


class _OneLine(logging.Formatter):
    """A formatter that keeps a message on one line, whatever names of files or peers it holds."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  (logging's name)
        """Return the line; a traceback follows below it unchanged."""
        record.message = one_line(record.message, MOST_LINE)
        return super().formatMessage(record)


@contextmanager
def _ended_in_order() -> Iterator[None]:
    """Let SIGTERM, a closed terminal, and SIGINT ignored because of ``&``, end as Ctrl-C does.

    Handlers that the calling program has set stay in place.
    """
    before = {}
    if threading.current_thread() is threading.main_thread():  # others may not set handlers
        usual = {signal.SIGINT: signal.SIG_IGN, signal.SIGTERM: signal.SIG_DFL}
        if hasattr(signal, "SIGHUP"):
            usual[signal.SIGHUP] = signal.SIG_DFL
        for number, default in usual.items():
            if signal.getsignal(number) == default:
                before[number] = signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_shown(name: str, *arguments: object) -> None:
    """Print another command's line, and run it.

    Raises:
        MixmflError: The command failed.
        KeyboardInterrupt: It was interrupted.
    """
    argv = [str(argument) for argument in arguments]
    print(f"\n$ {name} {' '.join(argv)}", flush=True)
    code = commands()[name].load()(argv)
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    if code != 0:
        raise MixmflError(f"{name} failed; see above")


def progress(items: Iterable[T], total: int, label: str) -> Iterable[T]:
    """Iterate with a progress bar on stderr, if stderr is a terminal."""
    with bars() as report:
        report(label, 0, total)
        for done, item in enumerate(items, start=1):
            yield item
            report(label, done, total)


SILENCE = 60.0
"""Longest time in which a command that works says nothing, in seconds."""


@contextmanager
def bars(quiet: bool = False) -> Iterator[Callable[[str, int, int], None]]:
    """Yield a function (what, done, total) that draws a progress bar per ``what`` on stderr.

    The remaining time is estimated from the speed of the last ten minutes. Where stderr is no
    terminal a line says how far it is, at most once in ``SILENCE`` seconds.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TaskID,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    drawn = Progress(
        TextColumn("{task.description}", markup=False),  # it may be a site's name
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        speed_estimate_period=600,
        disable=quiet or not console.is_terminal,
        # results stay on stdout where that leads to a file; on a terminal they go above the bar
        redirect_stdout=sys.stdout.isatty(),
    )
    tasks: dict[str, TaskID] = {}
    spoken = time.monotonic()
    with drawn:

        def report(what: str, done: int, total: int) -> None:
            nonlocal spoken
            if not (quiet or console.is_terminal) and time.monotonic() - spoken >= SILENCE:
                spoken = time.monotonic()
                print(printable(f"{what}: {done} of {total}"), file=sys.stderr, flush=True)
            if what not in tasks:
                tasks[what] = drawn.add_task(what, total=total)
            drawn.update(tasks[what], completed=done, total=total)

        yield report
