"""``mixmfl_use_model``: choose the model that ``mixmfl_predict`` uses if none is named."""

import argparse
import sys
from collections.abc import Sequence

from . import _paths, _runner

DESCRIPTION = """\
Register a model as the one that mixmfl_predict uses without -m: a model file, or the folder of a
run; of a run in folds the mean of its models. Without MODEL, print the registered one. It is stored
per user, in MIXMFL_HOME or the system's settings folder."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code; see ``--help``."""
    parser = _runner.parser("mixmfl_use_model", DESCRIPTION)
    parser.add_argument(
        "model",
        type=_paths.MODEL,
        nargs="?",
        metavar="MODEL",
        help="model file, or folder of a run; default: print the registered one",
    )
    return _runner.run(parser, argv, _work)


def _work(options: argparse.Namespace) -> int:
    from mixmfl.inference.default_model import registered_model, use_model
    from mixmfl.inference.model_folder import describe_model, folder_notes, model_files

    if options.model is not None:
        from mixmfl.inference.model_file import load_model

        for file in model_files(options.model):
            load_model(file)  # what cannot predict is not registered
        use_model(options.model, _runner.home())
    model = registered_model(_runner.home())
    print(f"mixmfl_predict uses {describe_model(model)}")
    for note in folder_notes(model):
        print(note)
    return 0


if __name__ == "__main__":
    sys.exit(main())
