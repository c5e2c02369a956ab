"""``mixmfl_demo_data``: write a phantom federation for trying all commands."""

import argparse
import sys
from collections.abc import Sequence

from . import _options, _paths, _runner

DESCRIPTION = """\
Write a phantom federation: four hospitals with different modalities for training, and a fifth,
unseen one with all four for testing. Simulated MRI of simulated brain tumours, no patients.
The same options give the same files; running the command again writes the missing ones."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code; see ``--help``."""
    parser = _runner.parser("mixmfl_demo_data", DESCRIPTION)
    parser.add_argument(
        "-o",
        "--out",
        type=_paths.new_folder(),
        required=True,
        metavar="FEDERATION",
        help="folder to write",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of all random numbers (default: 0)"
    )
    parser.add_argument(
        "--spacing", type=float, default=2.0, metavar="MM", help="voxel size in mm (default: 2)"
    )
    parser.add_argument(
        "--cases", type=int, metavar="N", help="cases at every hospital (default: 4 to 12 each)"
    )
    _options.add_setting(parser)
    parser.add_argument(
        "--tests",
        type=int,
        default=0,
        metavar="N",
        help="test cases of every training hospital, for mixmfl_benchmark (default: 0)",
    )
    return _runner.run(parser, argv, _write)


def _write(options: argparse.Namespace) -> int:
    from mixmfl.core.text import plural
    from mixmfl.data.phantom import federation
    from mixmfl.data.phantom.scanners import HELD_OUT, HOSPITALS

    settings = federation.Settings(
        options.seed, options.spacing, options.cases, options.setting, options.tests
    )
    cases = settings.list_cases()
    written = federation.write_federation(
        options.out, settings, lambda each: _runner.progress(each, len(each), "phantom cases")
    )
    if not written:
        print(f"phantom federation of {len(cases)} cases exists already: {options.out}")
        return 0
    print(f"phantom federation in {options.out}: {len(written)} of {len(cases)} cases written")
    for hospital in HOSPITALS:
        count = sum(case.hospital is hospital and not case.is_test for case in cases)
        names = ", ".join(settings.modalities_of(hospital))
        held_out = ", held out for testing" if hospital.name in HELD_OUT else ""
        print(f"  {hospital.name}: {plural(count, 'case')}, {names}{held_out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
