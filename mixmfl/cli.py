"""What all commands share: the parser's manners, progress bars, and errors without traceback."""

import argparse
import importlib
import logging
import math
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, TypeVar

from mixmfl import __version__
from mixmfl.errors import MixmflError

if TYPE_CHECKING:
    import torch

    from mixmfl.loading import Placing
    from mixmfl.modalities import Modalities
    from mixmfl.outgoing import Minimum
    from mixmfl.privacy import Privacy

NOTHING_COULD_START = 2
SOME_FAILED = 1
A_DAY = 86400.0
INTERRUPTED = 130  # the shell's convention for Ctrl-C

T = TypeVar("T")


def commands() -> dict[str, EntryPoint]:
    """Return the commands of the installed mixmfl, by name."""
    found = entry_points(group="console_scripts")
    ours = {each.name: each for each in found if each.value.startswith("mixmfl.")}
    return dict(sorted(ours.items()))


def parser(name: str, description: str) -> argparse.ArgumentParser:
    """Return a parser with ``--version`` and ``--verbose``, as every command has them."""
    made = argparse.ArgumentParser(
        prog=name, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    made.add_argument("-v", "--verbose", action="store_true", help="show the library's log")
    return made


def add_alias(made: argparse.ArgumentParser) -> None:
    """Add ``--alias``, for commands that find cases in a folder."""
    made.add_argument(
        "--alias",
        action="append",
        default=[],
        metavar="NAME=ALIAS[,ALIAS]",
        help="another word for a modality in file names, or a new modality (repeatable)",
    )


def add_placing(made: argparse.ArgumentParser) -> None:
    """Add ``--reference`` and ``--register``, for commands that read cases."""
    made.add_argument(
        "--reference",
        default="",
        metavar="MODALITY",
        help="onto whose grid a case's other images are resampled; default: the label's, else that "
        "with the largest in-plane resolution",
    )
    made.add_argument(
        "--register",
        action="store_true",
        help="register images of a case that do not lie on each other (rigidly); default: refuse",
    )


def placing(options: argparse.Namespace, modalities: "Modalities") -> "Placing":
    """Return what ``--reference`` and ``--register`` mean.

    Raises:
        MixmflError: ``--reference`` is no modality that is known.
    """
    from mixmfl.loading import Placing

    reference = modalities.find(options.reference) if options.reference else ""
    if reference is None:
        raise MixmflError(
            f"--reference {options.reference}: known are {', '.join(modalities.names)}"
        )
    return Placing(reference, options.register)


def add_setting(made: argparse.ArgumentParser) -> None:
    """Add ``--setting``, for commands that make a federation."""
    made.add_argument(
        "--setting",
        choices=("mix-modal", "multi-modal", "cross-modal"),
        default="mix-modal",
        help="sites hold different modalities (default), all hold all, or each holds one",
    )


def add_device(made: argparse.ArgumentParser) -> None:
    """Add ``--device``, for commands that run the network."""
    made.add_argument(
        "--device", default="auto", help="cpu, cuda, cuda:1, mps; default: a GPU if there is one"
    )


def device(named: str) -> "torch.device":
    """Return the device that ``--device`` means.

    Raises:
        MixmflError: There is no such device here.
    """
    import torch

    if named == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(named)
        torch.zeros(1, device=found).item()  # "meta", say, is a device that holds no numbers
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise MixmflError(f"--device {named}: cannot be used here ({reason})") from None
    return found


def devices(named: str) -> "list[torch.device]":
    """Return the devices that ``--device`` means where it may name several.

    Raises:
        MixmflError: One of them is not here.
    """
    return [device(name.strip()) for name in named.split(",")]


def add_processes(made: argparse.ArgumentParser) -> None:
    """Add ``--processes``, for commands that preprocess."""
    made.add_argument(
        "-n",
        "--processes",
        type=int,
        default=min(8, cores()),
        help="to preprocess with (default: one per core, at most 8)",
    )


def check_processes(number: int) -> int:
    """Return a number of processes.

    Raises:
        MixmflError: It is below 1.
    """
    if number < 1:
        raise MixmflError(f"-n {number}: at least 1 process is needed")
    return number


def add_workers(made: argparse.ArgumentParser) -> None:
    """Add ``--workers``, for commands that train."""
    made.add_argument(
        "--workers", type=int, help="processes that prepare batches; default: 0, with a GPU 4"
    )


def workers(asked: int | None, device: "torch.device") -> int:
    """Return how many processes ``--workers`` means.

    Raises:
        MixmflError: It is below 0.
    """
    if asked is None:
        return 4 if device.type == "cuda" else 0
    if asked < 0:
        raise MixmflError("--workers: must be 0 or more")
    return asked


def add_minimum(made: argparse.ArgumentParser, what: str) -> None:
    """Add ``--minimum-cases`` and ``--minimum-voxels``, for commands that ask for them."""
    for counted in ("cases", "voxels"):
        made.add_argument(
            f"--minimum-{counted}", type=int, metavar="N", help=what.format(counted=counted)
        )


def minimum(options: argparse.Namespace, usual: "Minimum") -> "Minimum":
    """Return what ``add_minimum``'s options mean.

    Args:
        options: Parsed.
        usual: Where one is not given.

    Raises:
        MixmflError: One is below 0.
    """
    from mixmfl.outgoing import Minimum

    pairs = (options.minimum_cases, usual.cases), (options.minimum_voxels, usual.voxels)
    cases, voxels = (default if asked is None else asked for asked, default in pairs)
    if cases < 0 or voxels < 0:
        raise MixmflError("--minimum-cases and --minimum-voxels: must be 0 or more")
    return Minimum(cases, voxels)


def add_privacy(made: argparse.ArgumentParser, who: str) -> None:
    """Add the options of differential privacy, for commands at a site."""
    made.add_argument(
        "--dp-epsilon",
        type=float,
        metavar="E",
        help=f"{who} trains with differential privacy of its cases, and stops sending before it "
        "has spent more than this (docs/privacy.md); default: without",
    )
    made.add_argument("--dp-delta", type=float, default=1e-5, metavar="D", help="default: 1e-5")
    made.add_argument(
        "--dp-noise", type=float, default=1.0, metavar="Z", help="in units of the clip; default: 1"
    )
    made.add_argument(
        "--dp-clip",
        type=float,
        default=1.0,
        metavar="C",
        help="norm of a case's gradient; default: 1",
    )


def privacy(options: argparse.Namespace, ledger: Path) -> "Privacy | None":
    """Return what ``add_privacy``'s options mean; None: no privacy was asked for.

    Raises:
        MixmflError: One is out of its range.
    """
    if options.dp_epsilon is None:
        return None
    from mixmfl.privacy import Privacy

    for name in ("epsilon", "delta", "noise", "clip"):
        most = 1 if name == "delta" else math.inf
        if not 0 < getattr(options, f"dp_{name}") < most:
            raise MixmflError(f"--dp-{name}: must be above 0" + (" and below 1" * (most == 1)))
    return Privacy(options.dp_epsilon, options.dp_delta, options.dp_noise, options.dp_clip, ledger)


def network_engine() -> ModuleType:
    """Return ``mixmfl.flare``, the engine of a federation on a network.

    Raises:
        MixmflError: NVIDIA FLARE is not installed.
    """
    try:
        return importlib.import_module("mixmfl.flare")
    except ModuleNotFoundError as error:
        raise MixmflError(
            f"a federation on a network needs the extra 'network' ({error.name} is missing); "
            "install it by: pip install 'mixmfl[network]'"
        ) from None


def sites(asked: Sequence[str], there: Sequence[str]) -> list[str]:
    """Return the sites that ``--sites`` means.

    Raises:
        MixmflError: One is not there.
    """
    if strange := sorted(set(asked) - set(there)):
        raise MixmflError(f"--sites {strange[0]}: there are kits for {', '.join(there)}")
    return sorted(set(asked or there))


def cores() -> int:
    """Return how many CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def home() -> Path:
    """Return the user's settings folder: ``MIXMFL_HOME``, else ``mixmfl`` in the system's place."""
    if named := os.environ.get("MIXMFL_HOME"):
        return Path(named)
    system = os.environ.get("APPDATA") if os.name == "nt" else os.environ.get("XDG_CONFIG_HOME")
    return Path(system or Path.home() / ".config") / "mixmfl"


def add_output(made: argparse.ArgumentParser) -> None:
    """Add ``--quiet`` and ``--log``, for commands that work through many cases."""
    made.add_argument(
        "-q", "--quiet", action="store_true", help="print nothing but trouble, draw no bar"
    )
    made.add_argument("--log", type=Path, metavar="FILE", help="add what happens to a log file")


@contextmanager
def output(options: argparse.Namespace) -> Iterator[Callable[[str], None]]:
    """Give a function that prints a line unless ``--quiet`` and adds it to the file of ``--log``.

    Raises:
        MixmflError: The file cannot be written.
    """
    logger = logging.getLogger("mixmfl")
    level, handler = logger.level, None
    if options.log is not None:
        try:
            handler = logging.FileHandler(options.log, encoding="utf-8")
        except OSError as error:
            raise MixmflError(f"--log {options.log}: cannot be written ({error})") from None
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        logger.addHandler(handler)
        logger.setLevel(min(level, logging.INFO))

    def say(line: str) -> None:
        logger.info(line)
        if not options.quiet:
            print(line, flush=True)

    try:
        yield say
    finally:
        logger.setLevel(level)
        if handler is not None:
            logger.removeHandler(handler)
            handler.close()


def run(
    made: argparse.ArgumentParser,
    argv: Sequence[str] | None,
    work: Callable[[argparse.Namespace], int],
) -> int:
    """Parse, do the work, and turn errors that a user can mend into one line on stderr.

    Returns:
        The exit code: what ``work`` returns; 2 where nothing could start; 130 after Ctrl-C or
        SIGTERM.
    """
    if "_ARGCOMPLETE" in os.environ:  # a shell asks what could come next; answered, it ends here
        import argcomplete

        argcomplete.autocomplete(made)
    options = made.parse_args(argv)
    shown = logging.StreamHandler()
    # by its own level, because --log lowers that of the loggers
    shown.setLevel(logging.DEBUG if options.verbose else logging.WARNING)
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s", handlers=[shown])
    # other libraries' debug logs are never what the user asked for
    logging.getLogger("mixmfl").setLevel(logging.DEBUG if options.verbose else logging.WARNING)
    try:
        with _ended_in_order():
            return work(options)
    except (MixmflError, OSError) as error:
        complain(made.prog, str(error))
        return NOTHING_COULD_START
    except KeyboardInterrupt:
        again = "again with --resume" if hasattr(options, "resume") else "again"
        complain(
            made.prog,
            f"interrupted; what is done is kept and whole: run the same command {again} to go on",
        )
        return INTERRUPTED


def complain(name: str, message: str) -> None:
    """Tell trouble on stderr, in one line after the command's name, which a terminal shows red."""
    from rich.console import Console

    console = Console(stderr=True)
    console.print(name, style="bold red", end="", highlight=False)
    # not by rich, which would break lines where the terminal ends
    print(f": {message}", file=sys.stderr)


@contextmanager
def _ended_in_order() -> Iterator[None]:
    """Let SIGTERM, a closed terminal, and SIGINT where ``&`` has it ignored, end as Ctrl-C does.

    Handlers that a program that calls a command has of its own stay.
    """
    before = {}
    if threading.current_thread() is threading.main_thread():  # others may not set handlers
        usual = {signal.SIGINT: signal.SIG_IGN, signal.SIGTERM: signal.SIG_DFL}
        if hasattr(signal, "SIGHUP"):
            usual[signal.SIGHUP] = signal.SIG_DFL
        for number, what in usual.items():
            if signal.getsignal(number) == what:
                before[number] = signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_shown(name: str, *arguments: object) -> None:
    """Run another command as a user would, showing it.

    Raises:
        MixmflError: It failed.
    """
    argv = [str(argument) for argument in arguments]
    print(f"\n$ {name} {' '.join(argv)}", flush=True)
    if commands()[name].load()(argv) != 0:
        raise MixmflError(f"{name} failed; see above")


def progress(items: Iterable[T], total: int, label: str) -> Iterable[T]:
    """Iterate with a progress bar on stderr; silent where stderr is no terminal."""
    with bars() as report:
        report(label, 0, total)
        for done, item in enumerate(items, start=1):
            yield item
            report(label, done, total)


@contextmanager
def bars(quiet: bool = False) -> Iterator[Callable[[str, int, int], None]]:
    """Give a function (what, done, total) that draws a progress bar per ``what`` on stderr.

    The time left is that of the last ten minutes' speed.
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
        TextColumn("{task.description}"),
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
    with drawn:

        def report(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = drawn.add_task(what, total=total)
            drawn.update(tasks[what], completed=done, total=total)

        yield report
