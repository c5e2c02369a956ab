"""``mixmfl_site``: a hospital's client in a federation on a network."""

import argparse
import sys
import time
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from mixmfl.core import devices
from mixmfl.core.errors import MixmflError
from mixmfl.core.text import printable

from . import _options, _runner

if TYPE_CHECKING:
    from mixmfl.federated.client.limits import Limits

DESCRIPTION = """\
Join the federation of KIT, and answer the coordinator until Ctrl-C: statistics for a plan,
training, validation. The command prints all that leaves the site, and WORK/exchange.log lists it
with sizes and hashes. Images, labels and names of cases never leave. The coordinator can only start
and stop training here: it cannot send code, nor read a file or a log.
WORK also gets the preprocessed cases, the finished model (WORK/runs/<run>/model.safetensors), and
problems.log, with failures and the images that were resampled."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code; see ``--help``."""
    parser = _runner.parser("mixmfl_site", DESCRIPTION)
    parser.add_argument(
        "--kit", type=Path, required=True, metavar="KIT", help="this hospital's kit"
    )
    parser.add_argument(
        "-i",
        "--input",
        type=Path,
        required=True,
        metavar="CASES",
        help="folder of this hospital's cases",
    )
    parser.add_argument(
        "-o", "--out", type=Path, required=True, metavar="WORK", help="folder to write to"
    )
    parser.add_argument("--labels", type=Path, metavar="FILE", help="dataset.json of these cases")
    _options.add_processes(parser)
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="list what would leave the site, with sizes; send nothing",
    )
    _options.add_minimum(
        parser,
        "withhold what rests on fewer {counted} (default: 5 cases, 100 voxels; the coordinator "
        "may ask for more)",
    )
    _options.add_privacy(parser, "this hospital")
    _add_limits(parser)
    parser.add_argument(
        "--turns",
        type=Path,
        metavar="FILE",
        help="hospitals on one machine that name the same file work one at a time",
    )
    _options.add_workers(parser)
    _options.add_alignment(parser)
    _options.add_brains(parser)
    _options.add_alias(parser)
    _options.add_device(parser)
    return _runner.run(parser, argv, _work)


def _add_limits(parser: argparse.ArgumentParser) -> None:
    """Add what the hospital allows; a default is that of ``Limits``, which waits for torch."""
    parser.add_argument(
        "--require-masked",
        action="store_true",
        default=None,
        help="join masked runs only (docs/privacy.md)",
    )
    for option, kind, what in (
        ("--max-rounds", int, "rounds trained here, over all runs; default: 10000"),
        ("--max-local-steps", int, "gradient steps in a round; default: 100000"),
        ("--max-learning-rate", float, "learning rate; default: 10"),
        ("--max-queries", int, "validations answered, over all runs; default: 10000"),
        ("--min-validation-cases", int, "fewest cases behind a Dice that is sent; default: 1"),
    ):
        parser.add_argument(option, type=kind, metavar="N", help=what)


def _limits(options: argparse.Namespace) -> "Limits":
    from mixmfl.federated.client.limits import Limits

    given = {
        "masked_only": options.require_masked,
        "rounds": options.max_rounds,
        "local_steps": options.max_local_steps,
        "learning_rate": options.max_learning_rate,
        "queries": options.max_queries,
        "validation_cases": options.min_validation_cases,
    }
    if wrong := [name for name, value in given.items() if value is not None and not value >= 0]:
        raise MixmflError(f"a limit must be 0 or more: {', '.join(wrong)}")
    return Limits(**{name: value for name, value in given.items() if value is not None})


def _work(options: argparse.Namespace) -> int:
    _options.check_processes(options.processes)
    from mixmfl.data.cases import describe
    from mixmfl.data.modalities import Modalities
    from mixmfl.federated.client.outbound import outbound_table
    from mixmfl.federated.client.service import SiteConfig, preview_of_site
    from mixmfl.federated.state import NETWORK_MINIMUM

    flare = _runner.network_engine()
    kit = flare.open_kit(options.kit, coordinator=False)
    device = devices.find_device(options.device)
    config = SiteConfig(
        kit.name,
        options.input.resolve(),
        options.out.resolve(),
        str(device),
        _options.workers(options.workers, device),
        options.processes,
        tuple(options.alias),
        options.labels.resolve() if options.labels else None,
        _options.alignment(options, Modalities().with_aliases(options.alias)),
        _options.minimum(options, NETWORK_MINIMUM),
        _options.privacy(options, options.out.resolve() / "privacy.json"),
        options.turns.resolve() if options.turns else None,
        _limits(options),
        _options.brains(options),
    )
    config.check()
    print(printable(f"site {kit.name}: {describe(config.cases().found)}"))
    print(f"certificate until {kit.expires:%Y-%m-%d}; coordinator at {kit.server}")
    if kit.expires - datetime.now(timezone.utc) < timedelta(days=flare.WARNING_DAYS):
        print("warning: the certificate ends soon; ask the coordinator for a renewed kit")
    if options.dry_run:
        fields, remark = preview_of_site(config)
        print(outbound_table(fields))
        print(remark, end="")
        return 0
    print("all messages sent and received are listed here; stop with Ctrl-C", flush=True)
    config.exchange_log.parent.mkdir(parents=True, exist_ok=True)
    config.exchange_log.touch()
    with config.exchange_log.open(encoding="utf-8") as log:
        log.seek(0, 2)
        while True:
            with flare.running_client(kit, config) as process:
                while process.poll() is None:
                    sys.stdout.write(log.read())
                    sys.stdout.flush()
                    time.sleep(0.5)
            print(f"the connection ended; see {kit.folder}/log.txt; connecting again", flush=True)
            time.sleep(5)


if __name__ == "__main__":
    sys.exit(main())
