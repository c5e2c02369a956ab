"""``mixmfl_site``: a hospital's side of a federation on a network."""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from mixmfl.core import devices
from mixmfl.core.text import printable

from . import _options, _runner

DESCRIPTION = """\
Join the federation that KIT is for, and answer the coordinator until Ctrl-C: statistics for a
plan, training, validation. Only what is printed leaves the house; WORK/exchange.log keeps it, with
sizes and hashes. Images, labels and names of cases never leave. The coordinator can start and stop
training here, and nothing else: it can send no code, and read no file and no log.
WORK also gets the preprocessed cases, the finished model (WORK/runs/<run>/model.safetensors), and
problems.log, which tells what failed here and which images were resampled."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see ``--help``."""
    made = _runner.parser("mixmfl_site", DESCRIPTION)
    made.add_argument("--kit", type=Path, required=True, metavar="KIT", help="of this hospital")
    made.add_argument(
        "-i", "--input", type=Path, required=True, metavar="CASES", help="folder of its cases"
    )
    made.add_argument("-o", "--out", type=Path, required=True, metavar="WORK", help="to write to")
    made.add_argument("--labels", type=Path, metavar="FILE", help="dataset.json of these cases")
    _options.add_processes(made)
    made.add_argument(
        "--dry-run", action="store_true", help="say what would leave, with sizes; nothing does"
    )
    _options.add_minimum(
        made,
        "hold back what rests on fewer {counted} (default: 5 cases, 100 voxels; the coordinator "
        "may ask for more)",
    )
    _options.add_privacy(made, "this hospital")
    made.add_argument(
        "--turns",
        type=Path,
        metavar="FILE",
        help="where hospitals of one machine name the same file, one works at a time",
    )
    _options.add_workers(made)
    _options.add_placing(made)
    _options.add_alias(made)
    _options.add_device(made)
    return _runner.run(made, argv, _work)


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
    house = SiteConfig(
        kit.name,
        options.input.resolve(),
        options.out.resolve(),
        str(device),
        _options.workers(options.workers, device),
        options.processes,
        tuple(options.alias),
        options.labels.resolve() if options.labels else None,
        _options.placing(options, Modalities().with_aliases(options.alias)),
        _options.minimum(options, NETWORK_MINIMUM),
        _options.privacy(options, options.out.resolve() / "privacy.json"),
        options.turns.resolve() if options.turns else None,
    )
    print(printable(f"site {kit.name}: {describe(house.cases().found)}"))
    print(f"certificate until {kit.expires:%Y-%m-%d}; coordinator at {kit.server}")
    if options.dry_run:
        found, missing = preview_of_site(house)
        print(outbound_table(found))
        print(missing, end="")
        return 0
    print("what leaves and what comes in is told here; Ctrl-C ends it", flush=True)
    house.exchange_log.parent.mkdir(parents=True, exist_ok=True)
    house.exchange_log.touch()
    with house.exchange_log.open(encoding="utf-8") as log:
        log.seek(0, 2)
        while True:
            with flare.running_client(kit, house) as process:
                while process.poll() is None:
                    sys.stdout.write(log.read())
                    sys.stdout.flush()
                    time.sleep(0.5)
            print(f"the connection ended; see {kit.folder}/log.txt; trying again", flush=True)
            time.sleep(5)


if __name__ == "__main__":
    sys.exit(main())
