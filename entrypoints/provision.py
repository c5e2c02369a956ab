"""``mixmfl_provision``: start-up kits for the coordinator and every hospital."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mixmfl.core.errors import MixmflError

from . import _runner

DESCRIPTION = """\
Write a start-up kit per hospital and one for the coordinator, from one short file:

  {"server": "mixmfl.example.org:8002", "sites": ["north", "south", "west"]}

"server" is how the hospitals reach the coordinator; one port, and all connections go to it. KITS
gets a folder per kit, with its own key and certificate, and the certificate authority, which
the command creates. Give each hospital its own folder only; keep KITS/authority to yourself. When
run again with more sites, the command adds their kits and does not change the others."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code; see ``--help``."""
    parser = _runner.parser("mixmfl_provision", DESCRIPTION)
    parser.add_argument("-i", "--input", type=Path, required=True, metavar="NETWORK.json")
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="KITS")
    parser.add_argument(
        "--renew",
        nargs="+",
        default=[],
        metavar="SITE",
        help="make these kits again, with another key and certificate, for example when one "
        "expired or was lost; coordinator renews the coordinator's. The old kits are set aside, "
        "and all other kits keep working",
    )
    parser.add_argument(
        "--revoke",
        metavar="SITE",
        help="end this hospital's kit, for example when it was lost, and write none: the "
        "coordinator's server lets it in no more, even one that is running. The next call makes a "
        "new kit, if the site is still in NETWORK.json",
    )
    return _runner.run(parser, argv, _work)


def _work(options: argparse.Namespace) -> int:
    flare = _runner.network_engine()
    network = flare.Network.load(options.input)
    if options.revoke is not None:
        if options.renew:
            raise MixmflError("--revoke: not together with --renew, which ends the old kit, too")
        flare.revoke(options.out, options.revoke)
        print(f"the kit of {options.revoke} is revoked")
        return 0
    written = flare.provision(network, options.out, options.renew)
    for kit in written:
        opened = flare.open_kit(kit, coordinator=kit.name == flare.COORDINATOR)
        print(f"kit of {opened.name}: {kit}, certificate until {opened.expires:%Y-%m-%d}")
    if not written:
        print(f"{options.out}: already holds a kit for everyone; nothing was written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
