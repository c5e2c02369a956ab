"""``mixmfl_export``: write the model file of any saved round of a run, or those of its folds."""

import argparse
import sys
from collections.abc import Sequence

from mixmfl.core.errors import MixmflError

from . import _paths, _runner

DESCRIPTION = """\
Write one file with weights, memory and plans, from a saved round of a run; or the personalised
model of a site, which it fine-tuned for itself (mixmfl_train_federated --personalize). Of a run
in folds, write a folder with the models that mixmfl_predict averages, and nothing else of it.
--nnunet writes a plain U-Net as nnU-Net v2's folder of a trained model instead."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code; see ``--help``."""
    parser = _runner.parser("mixmfl_export", DESCRIPTION)
    parser.add_argument(
        "-i",
        "--input",
        type=_paths.RUN,
        required=True,
        metavar="RUN",
        help="folder that mixmfl_train_federated wrote",
    )
    written = parser.add_mutually_exclusive_group(required=True)
    written.add_argument(
        "-o",
        "--out",
        type=_paths.new_either("a model file to write, or of a run in folds a folder"),
        metavar="FILE.safetensors",
        help="the file to write; of a run in folds the folder, for mixmfl_predict -m",
    )
    written.add_argument(
        "--nnunet",
        type=_paths.new_folder(),
        metavar="FOLDER",
        help="a new folder to write for nnUNetv2_predict_from_modelfolder -m: dataset.json, "
        "plans.json and a checkpoint per fold. For networks of the form stacked, as fedavg and "
        "union of mixmfl_benchmark train them",
    )
    parser.add_argument(
        "--round",
        default="best",
        help="which round: best (the last whose validation Dice is near the highest; default), "
        "last, or the number of a kept one",
    )
    parser.add_argument(
        "--site",
        default="",
        help="export this site's personalised model; default: the global model",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the file if it exists")
    return _runner.run(parser, argv, _work)


def _work(options: argparse.Namespace) -> int:
    return _write_nnunet(options) if options.nnunet else _write_model(options)


def _write_nnunet(options: argparse.Namespace) -> int:
    from mixmfl.core.text import plural
    from mixmfl.federated.server.export import export_to_nnunet
    from mixmfl.inference.model_folder import (
        best_configurations,
        fold_folder,
        holds_folds,
        models_of_folds,
        read_folds,
    )

    folder, *others = best_configurations(options.input)
    if others:
        raise MixmflError(
            f"{options.input}: the ensemble of its configurations is best, and nnU-Net has a "
            f"folder for each; name one of {', '.join(map(str, (folder, *others)))}"
        )
    runs = [folder]
    if holds_folds(folder):
        models_of_folds(folder)  # an error where a fold is not trained
        runs = [fold_folder(folder, fold) for fold in read_folds(folder).folds]
    rounds, notes = export_to_nnunet(runs, options.round, options.nnunet, options.site)
    each = ", ".join(f"fold {fold} of round {number}" for fold, number in rounds.items())
    print(f"{plural(len(rounds), 'model')} for nnU-Net ({each}): {options.nnunet}")
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    return 0


def _write_model(options: argparse.Namespace) -> int:
    from mixmfl.core.text import plural
    from mixmfl.federated.server.cross_validation import export_folds, pooled_of
    from mixmfl.federated.server.export import export_model
    from mixmfl.federated.server.run import choose_round
    from mixmfl.federated.server.run_record import open_run
    from mixmfl.inference.model_folder import (
        best_configurations,
        fold_folder,
        holds_folds,
        model_files,
        read_folds,
    )

    runs = best_configurations(options.input)
    if all(map(holds_folds, runs)):
        files = model_files(options.input)
        if options.out.suffix == ".safetensors" or options.site or options.round != "best":
            folds = ", ".join(
                str(fold_folder(run, fold)) for run in runs for fold in read_folds(run).folds
            )
            raise MixmflError(
                f"{options.input}: is a run in folds, and a file holds one model, of a round or a "
                f"site; name one of {folds}. -o FOLDER, without --round and --site, writes those "
                "that mixmfl_predict averages"
            )
        export_folds(options.input, options.out)
        mean = ", of which prediction takes the mean" if len(files) > 1 else ""
        print(f"{plural(len(files), 'model')}{mean}: {options.out}")
        return 0
    if options.out.suffix != ".safetensors":
        raise MixmflError(f"{options.out}: the name of a model file must end in .safetensors")
    if options.out.is_dir():
        raise MixmflError(f"{options.out}: is a folder, and the name of a file is needed")
    if options.out.exists() and not options.overwrite:
        raise MixmflError(f"{options.out}: exists already; --overwrite replaces it")
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
