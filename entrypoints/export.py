"""``mixmfl_export``: write the model file of any saved round of a run."""

import argparse
import sys
from collections.abc import Sequence

from mixmfl.core.errors import MixmflError

from . import _paths, _runner

DESCRIPTION = """\
Write one file with weights, memory and plans, from a saved round of a run; or the personalised
model of a site, which it fine-tuned for itself (mixmfl_train_federated --personalize)."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code; see ``--help``."""
    parser = _runner.parser("mixmfl_export", DESCRIPTION)
    parser.add_argument("-i", "--input", type=_paths.RUN, required=True, metavar="RUN")
    parser.add_argument(
        "-o", "--out", type=_paths.new_file(), required=True, metavar="FILE.safetensors"
    )
    parser.add_argument("--round", default="best", help="best (default), last or a number")
    parser.add_argument(
        "--site",
        default="",
        help="export this site's personalised model; default: the global model",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace FILE if it exists")
    return _runner.run(parser, argv, _work)


def _work(options: argparse.Namespace) -> int:
    from mixmfl.federated.server.cross_validation import holds_folds, pooled_of
    from mixmfl.federated.server.export import export_model
    from mixmfl.federated.server.run import choose_round
    from mixmfl.federated.server.run_record import open_run
    from mixmfl.inference.model_folder import read_folds

    if holds_folds(options.input):
        folds = ", ".join(f"fold_{fold}" for fold in read_folds(options.input).folds)
        raise MixmflError(
            f"{options.input}: is a run in folds, and a file holds one model; name one of {folds} "
            "in it. mixmfl_predict -m takes the folder, and averages them all"
        )
    if options.out.suffix != ".safetensors":
        raise MixmflError(f"{options.out}: the name of a model file must end in .safetensors")
    if options.out.exists() and not options.overwrite:
        raise MixmflError(f"{options.out}: exists already; --overwrite replaces it")
    if options.site and options.round != "best":
        raise MixmflError(
            "--site: personalised models are made from the best round; leave out --round"
        )
    number = choose_round(open_run(options.input), options.round)
    pooled = pooled_of(options.input, number)
    number, digest = export_model(options.input, options.round, options.out, options.site, pooled)
    kind = "model"
    if options.site:
        kind = f"personalised model of site {options.site}, based on the global model"
    print(f"{kind} of round {number}: {options.out} (sha256 {digest})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
