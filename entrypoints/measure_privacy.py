"""``mixmfl_measure_privacy``: what attacks find in what sites send, and what protection costs."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mixmfl.core import devices
from mixmfl.core.errors import MixmflError

from . import _options, _runner

DESCRIPTION = """\
Train on half of every site's cases in WORK, see what the server sees, and say of every case whether
it trained (membership inference); without protection, with masked rounds, and with differential
privacy of several strengths. OUT gets table.md and attack.json: how well the attacks do (0.5 is
guessing), what the model is worth on the other half, and bytes and seconds of a round at a site."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see ``--help``."""
    made = _runner.parser("mixmfl_measure_privacy", DESCRIPTION)
    made.add_argument("-i", "--input", type=Path, required=True, metavar="WORK")
    made.add_argument("-o", "--out", type=Path, required=True)
    made.add_argument("-c", "--configuration", choices=("2d", "3d_fullres"), default="2d")
    made.add_argument("--rounds", type=int, default=8, help="default: 8")
    made.add_argument("--local-steps", type=int, default=15, help="in a round; default: 15")
    made.add_argument("--seed", type=int, default=0, help="also of who trains; default: 0")
    _options.add_device(made)
    return _runner.run(made, argv, _work)


def _work(options: argparse.Namespace) -> int:
    from mixmfl.federated.sites import open_sites
    from mixmfl.federated.state import RunSettings
    from mixmfl.planning.plans import Plans
    from mixmfl.research.membership_inference import measure

    for name in ("rounds", "local_steps"):
        if getattr(options, name) < 1:
            raise MixmflError(f"--{name.replace('_', '-')}: must be above 0")
    plans = Plans.load(options.input / "plans.json")
    settings = RunSettings(
        configuration=options.configuration,
        seed=options.seed,
        rounds=options.rounds,
        local_steps=options.local_steps,
        learning_rate=plans.training.learning_rate,
    )
    sites = open_sites(
        options.input,
        plans,
        options.configuration,
        "all",
        options.seed,
        devices.find_device(options.device),
        0,
    )
    with _runner.bars() as report:
        print(measure(plans, sites, settings, options.out, report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
