"""``mixmfl_predict``: segment a folder of cases, each with whatever modalities it has."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mixmfl import cli
from mixmfl.errors import MixmflError

DESCRIPTION = """\
Segment every case of a folder. A case needs at least one modality that the model knows; those it
lacks are made up for by the model's memory. Masks come out as MASKS/<case>.nii.gz on the case's
own grid and orientation. One bad case does not stop the others.
Exit code 0: all cases done; 1: some failed; 2: nothing could start."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see ``--help``."""
    made = cli.parser("mixmfl_predict", DESCRIPTION)
    made.add_argument("-i", "--input", type=Path, required=True, metavar="CASES")
    made.add_argument("-o", "--out", type=Path, required=True, metavar="MASKS")
    made.add_argument(
        "-m",
        "--model",
        type=Path,
        nargs="+",
        default=[],
        help="model file; several are averaged; default: the one registered last",
    )
    made.add_argument(
        "--modalities", metavar="A,B", help="use only these, where a case has them; default: all"
    )
    made.add_argument(
        "--step",
        type=float,
        default=0.5,
        help="distance of patches as a share of their size; default: 0.5",
    )
    made.add_argument("--mirror", action="store_true", help="average over mirrored patches: slower")
    made.add_argument("--overwrite", action="store_true", help="predict again where a mask is")
    cli.add_alias(made)
    cli.add_device(made)
    return cli.run(made, argv, _work)


def _work(options: argparse.Namespace) -> int:
    if not 0 < options.step <= 1:
        raise MixmflError(f"--step {options.step:g}: must be above 0 and at most 1")
    from mixmfl.cases import describe, find_cases
    from mixmfl.modalities import Modalities
    from mixmfl.registry import registered_model

    modalities = Modalities().with_aliases(options.alias)
    found = find_cases(options.input, modalities)
    if options.out.resolve() == options.input.resolve():
        raise MixmflError(f"{options.out}: holds the cases; masks need a folder of their own")
    print(describe(found))
    files = options.model or [registered_model(cli.home())]
    from mixmfl.model import load_model
    from mixmfl.predict import predict_folder

    device = cli.device(options.device)
    models = [load_model(file, device) for file in files]
    for file, model in zip(files, models, strict=True):
        print(f"model {file}: {model.configuration}, {', '.join(model.modalities)}")

    words = [word.strip() for word in (options.modalities or "").split(",")]
    only = tuple(modalities.find(word) or word for word in words if word)
    outcomes = predict_folder(
        models,
        found.cases,
        found.refused,
        options.out,
        only=only,
        step=options.step,
        mirror=options.mirror,
        overwrite=options.overwrite,
    )
    counts = {"done": 0, "kept": 0, "failed": 0}
    total = len(found.cases) + len(found.refused)
    for outcome in cli.progress(outcomes, total, "cases"):
        counts[outcome.status] += 1
        if outcome.status == "failed":
            print(f"{outcome.name}: FAILED: {outcome.reason}", file=sys.stderr)
        elif outcome.status == "kept":
            print(f"{outcome.name}: {outcome.reason}")
        else:
            absent = f", without {', '.join(outcome.absent)}" if outcome.absent else ""
            print(
                f"{outcome.name}: done from {', '.join(outcome.used)}{absent} "
                f"({outcome.seconds:.1f} s)",
                flush=True,
            )
    print(f"{counts['done']} masks in {options.out}", end="")
    print(f", {counts['kept']} were there already" if counts["kept"] else "", end="")
    print(f", {counts['failed']} of {total} cases failed" if counts["failed"] else "")
    return cli.SOME_FAILED if counts["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
