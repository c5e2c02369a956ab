"""``mixmfl_use_model``: choose the model that ``mixmfl_predict`` uses if none is named."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from . import _runner

DESCRIPTION = """\
Register a model file as the one that mixmfl_predict uses without -m; without a file, print the
registered one. It is stored per user, in MIXMFL_HOME or the system's settings folder."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code; see ``--help``."""
    parser = _runner.parser("mixmfl_use_model", DESCRIPTION)
    parser.add_argument("model", type=Path, nargs="?", metavar="MODEL.safetensors")
    return _runner.run(parser, argv, _work)


def _work(options: argparse.Namespace) -> int:
    from mixmfl.inference.default_model import registered_model, use_model

    if options.model is not None:
        from mixmfl.inference.model import load_model

        load_model(options.model)  # what cannot predict is not registered
        use_model(options.model, _runner.home())
    print(f"mixmfl_predict uses {registered_model(_runner.home())}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
