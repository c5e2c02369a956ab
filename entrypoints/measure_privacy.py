"""``mixmfl_measure_privacy``: attack what sites send, and measure the cost of protection."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace

from mixmfl.core import devices
from mixmfl.core.errors import MixmflError

from . import _options, _paths, _runner

DESCRIPTION = """\
Train on half of every site's cases in WORK, and infer from what the server sees which cases were
trained on (membership inference), and what a patch looks like (reconstruction): without protection,
with masked rounds, and with differential privacy of several strengths. OUT gets table.md and
attack.json: how well the attacks do (an area of 0.5 is guessing; a likeness to the patch behind a
step that is not above that to others shows nothing of it), the model's Dice on the other half, and
bytes and seconds of a round at a site."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code; see ``--help``."""
    parser = _runner.parser("mixmfl_measure_privacy", DESCRIPTION)
    _options.add_work(parser)
    parser.add_argument(
        "-o",
        "--out",
        type=_paths.new_folder(),
        required=True,
        help="new or empty folder for runs and results",
    )
    _options.add_configuration(parser)
    parser.add_argument("--rounds", type=int, default=8, help="default: 8")
    parser.add_argument(
        "--local-steps", type=int, default=15, help="steps of a site in a round; default: 15"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="seed, also of the choice of training cases; default: 0"
    )
    parser.add_argument(
        "--iterations",
        type=int,
        default=300,
        help="iterations in which a patch of each site is reconstructed; 0: none is; default: 300",
    )
    _options.add_device(parser)
    return _runner.run(parser, argv, _work, _runner.begun_again)


def _work(options: argparse.Namespace) -> int:
    from mixmfl.federated.sites import open_sites
    from mixmfl.federated.state import RunSettings
    from mixmfl.planning.plans import Plans
    from mixmfl.research.privacy_attacks import measure

    for name in ("rounds", "local_steps"):
        if getattr(options, name) < 1:
            raise MixmflError(f"--{name.replace('_', '-')}: must be above 0")
    if options.iterations < 0:
        raise MixmflError("--iterations: must be 0 or more")
    plans = Plans.load(options.input / "plans.json")
    settings = RunSettings(
        configuration=options.configuration,
        seed=options.seed,
        rounds=options.rounds,
        local_steps=options.local_steps,
        learning_rate=plans.training.learning_rate,
    )
    device = devices.find_device(options.device)
    opened = open_sites(options.input, plans, options.configuration, "all", options.seed)
    sites = [replace(site, device=device) for site in opened]
    with _runner.bars() as report:
        print(measure(plans, sites, settings, options.out, report, iterations=options.iterations))
    return 0


if __name__ == "__main__":
    sys.exit(main())
