"""``mixmfl_export``: write the model file of any saved round of a run."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mixmfl.core.errors import MixmflError

from . import _runner

DESCRIPTION = """\
Write one file with weights, memory and plans, from a saved round of a run; or a site's own copy,
which it fine-tuned for itself (mixmfl_train_federated --personalize)."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see ``--help``."""
    made = _runner.parser("mixmfl_export", DESCRIPTION)
    made.add_argument("-i", "--input", type=Path, required=True, metavar="RUN")
    made.add_argument("-o", "--out", type=Path, required=True, metavar="FILE.safetensors")
    made.add_argument("--round", default="best", help="best (default), last or a number")
    made.add_argument("--site", default="", help="whose own copy; default: the model of all")
    made.add_argument("--overwrite", action="store_true", help="replace FILE if it is there")
    return _runner.run(made, argv, _work)


def _work(options: argparse.Namespace) -> int:
    from mixmfl.federated.server.export import export_model

    if options.out.suffix != ".safetensors":
        raise MixmflError(f"{options.out}: a model file ends in .safetensors")
    if options.out.exists() and not options.overwrite:
        raise MixmflError(f"{options.out}: is there already; --overwrite replaces it")
    if options.site and options.round != "best":
        raise MixmflError("--site: own copies are made from the best round; leave --round out")
    number, digest = export_model(options.input, options.round, options.out, options.site)
    whose = f"of site {options.site}, from the model" if options.site else "model"
    print(f"{whose} of round {number}: {options.out} (sha256 {digest})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
