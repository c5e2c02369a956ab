"""``mixmfl_provision``: start-up kits for the coordinator and every hospital."""

import argparse
import sys
from collections.abc import Sequence

from mixmfl.core.errors import MixmflError

from . import _paths, _runner

DESCRIPTION = """\
Write a start-up kit per hospital and one for the coordinator, from one short file:

  {"server": "mixmfl.example.org:8002", "sites": ["north", "south", "west"]}

"server" is how the hospitals reach the coordinator; one port, and all connections go to it. KITS
gets a folder per kit, with its own key and certificate, and the certificate authority, which
the command creates. Give each hospital its own folder only; keep KITS/authority where nobody at the
coordinator's machine can read it. When run again with more sites, the command adds their kits and
does not change the others.

A hospital makes its own private key instead by

  mixmfl_provision --request north -o KEY

and sends KEY/north.csr alone. --requests FOLDER makes kits of such files, without a private key."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code; see ``--help``."""
    parser = _runner.parser("mixmfl_provision", DESCRIPTION)
    parser.add_argument(
        "-i",
        "--input",
        type=_paths.file("NETWORK.json, with the server and the sites"),
        metavar="NETWORK.json",
        help="the coordinator's address and the names of the hospitals, as above",
    )
    parser.add_argument(
        "-o",
        "--out",
        type=_paths.new_folder(),
        required=True,
        metavar="KITS",
        help="folder to write; with --request for the key",
    )
    parser.add_argument(
        "--request",
        metavar="SITE",
        help="at a hospital: make its private key, -o/SITE.key, and the request for its kit, "
        "-o/SITE.csr; needs no NETWORK.json",
    )
    parser.add_argument(
        "--requests",
        type=_paths.folder("a folder of requests, SITE.csr"),
        metavar="FOLDER",
        help="make kits for the hospitals whose request FOLDER/SITE.csr is there, and none for "
        "others; the hospital puts its key into its kit as startup/client.key",
    )
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
    if options.request is not None:
        if options.input or options.requests or options.renew or options.revoke:
            raise MixmflError("--request: takes -o alone beside it; it is for a hospital")
        fingerprint = flare.request_kit(options.request, options.out)
        request = options.out / f"{options.request}.csr"
        print(f"{request}: send this to whoever makes the kits")
        print(f"{request.with_suffix('.key')}: the private key; it never leaves this hospital")
        print(f"fingerprint of the key, to compare by telephone: {fingerprint}")
        return 0
    if options.input is None:
        raise MixmflError("-i NETWORK.json is needed, except with --request")
    network = flare.Network.load(options.input)
    if options.revoke is not None:
        if options.renew:
            raise MixmflError("--revoke: not together with --renew, which ends the old kit, too")
        flare.revoke(options.out, options.revoke)
        print(f"the kit of {options.revoke} is revoked")
        return 0
    written = flare.provision(network, options.out, options.renew, options.requests)
    for kit in written:
        opened = flare.open_kit(kit, coordinator=kit.name == flare.COORDINATOR)
        print(f"kit of {opened.name}: {kit}, certificate until {opened.expires:%Y-%m-%d}")
        if opened.name != flare.COORDINATOR:
            print(f"  fingerprint of its key: {opened.fingerprint}")
    if waiting := [name for name in network.sites if not (options.out / name).is_dir()]:
        print(f"no kit yet, as there is no request: {', '.join(waiting)}")
    elif not written:
        print(f"{options.out}: already holds a kit for everyone; nothing was written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
