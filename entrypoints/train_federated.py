"""``mixmfl_train_federated``: train MDM-MixMFL, simulated on one machine or over a network."""

import argparse
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mixmfl.core import devices
from mixmfl.core.errors import MixmflError

from . import _folds, _options, _paths, _progress, _runner, _training
from ._command import Command
from ._training import Asked, Training

if TYPE_CHECKING:
    from mixmfl.federated.server.initial_state import Start
    from mixmfl.federated.server.orders import TrainingJob
    from mixmfl.federated.server.run import Run
    from mixmfl.federated.state import ServerState, Site
    from mixmfl.planning.plans import Plans

DESCRIPTION = """\
Train over the sites that mixmfl_plan_preprocess prepared in WORK, all on this machine: one after
another, or with --device cuda:0,cuda:1 a process per device. Sites exchange with the server only
what they would exchange over a network. The same seed on one CPU gives the same weights. RUN gets
the state of every round (--resume continues), progress.csv and .png, and at the end
model.safetensors of the best round, which is also registered as the model that mixmfl_predict uses.
Of a run in folds, registered is the mean of their models, or the model of --fold all if it was
trained.

A run that is resumed keeps what no option names, in all of its folds; -i, --kit, --device and
--workers are named again. --rounds, --local-steps, --learning-rate and --sites may be others than
before: they hold from the next round on, and the learning rate then falls as in a run that had so
many rounds from the start.

With --kit the sites are hospitals on a network, where mixmfl_site runs: WORK needs plans.json only,
and every hospital keeps its data, optimizer state and personalised model. A round ends when all
sites have answered, or after --deadline if --quorum of them have; a site that is lost takes part
again as soon as it has reconnected."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code; see ``--help``."""
    parser = build_parser()

    def work(options: argparse.Namespace) -> int:
        return _work(Command(parser, sys.argv[1:] if argv is None else argv, options))

    return _runner.run(parser, argv, work, _advice)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = _runner.parser("mixmfl_train_federated", DESCRIPTION)
    _options.add_work(parser)
    parser.add_argument(
        "-o",
        "--out",
        type=_paths.new_folder(),
        required=True,
        metavar="RUN",
        help="folder to write the run to: new, or with --resume that of the run",
    )
    parser.add_argument(
        "-c",
        "--configuration",
        nargs="+",
        default=[],
        choices=_options.CONFIGURATIONS,
        help="which to train; default: the preprocessed one; if both are, 3d_fullres. With both, "
        "each is trained in RUN/2d and RUN/3d_fullres, and best is what has the highest "
        "cross-validated Dice of both and their ensemble",
    )
    parser.add_argument(
        "--rounds",
        type=int,
        metavar="N",
        help="exchanges with the server, in all; default: as in the plans",
    )
    parser.add_argument(
        "--local-steps",
        type=int,
        metavar="N",
        help="gradient steps of each site in a round; default: as in the plans",
    )
    parser.add_argument(
        "--learning-rate",
        type=float,
        metavar="RATE",
        help="in the first round; default: as in the plans",
    )
    parser.add_argument(
        "--init",
        type=_paths.either("a model file, the folder of a run, or a checkpoint of nnU-Net v2"),
        metavar="FILE",
        help="start a new run from these weights, as far as they fit the plans: a model file of "
        "mixmfl (.safetensors), or a checkpoint of nnU-Net v2 (.pth), of which no code is run; a "
        "table says what is taken",
    )
    _options.add_alias(parser)
    parser.add_argument(
        "--stop-when-flat",
        type=int,
        metavar="N",
        help="end after N rounds in which the validation Dice of the federation did not rise, as "
        "judged where rounds are validated; after --resume with other settings it is counted from "
        "0. 0, the default: train all rounds",
    )
    parser.add_argument(
        "--validate-subsets",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="where a round is validated, have sites measure Dice from every subset of modalities, "
        "too, and not only after the last round; over a network each time is one more query of "
        "those that a hospital allows",
    )
    parser.add_argument(
        "--seed",
        type=int,
        help="seed of the initial weights, the folds and every draw; default: 0",
    )
    parser.add_argument(
        "--sites",
        nargs="+",
        default=[],
        help="sites that take part; default: all in WORK, after --resume those of the run. Others "
        "than before join or leave from the next round on",
    )
    parser.add_argument(
        "--fold",
        nargs="+",
        default=[],
        choices=(*"01234", "all"),
        help="each site validates on this fifth of its cases (default: 0); all: it trains on every "
        "case. Several, as in --fold 0 1 2 3 4, are trained one after another in RUN/fold_0 and so "
        "on: mixmfl_predict -m RUN averages their models, and what they measured is added up",
    )
    _options.add_workers(parser)
    parser.add_argument(
        "--personalize",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="after the last round every site fine-tunes the model for itself, and keeps this "
        "personalised model if its validation Dice is higher (mixmfl_export --site)",
    )
    _options.add_minimum(
        parser,
        "sites withhold prototypes (mean features of a class) that rest on fewer {counted} "
        "(default: 0; with --kit 5 cases, 100 voxels, and a site may ask for more)",
    )
    _options.add_privacy(parser, "every site")
    parser.add_argument(
        "--kit", type=_paths.KIT, help="the coordinator's kit, from mixmfl_provision"
    )
    parser.add_argument(
        "--deadline",
        type=float,
        default=60,
        metavar="MINUTES",
        help="with --kit: time that a site has for each task; default: 60",
    )
    parser.add_argument(
        "--quorum",
        type=int,
        metavar="SITES",
        help="with --kit: number of sites that a round needs; default: more than half. A masked "
        "round needs all",
    )
    parser.add_argument(
        "--masked",
        action="store_true",
        help="the coordinator learns only sums over three or more sites (docs/privacy.md)",
    )
    parser.add_argument(
        "--updates",
        choices=("half", "single"),
        help="precision of weights that travel in rounds, and of the changes that sites send back; "
        "default: half. Masked changes are fixed-point numbers",
    )
    parser.add_argument(
        "--track",
        nargs="*",
        default=[],
        choices=("tensorboard", "mlflow", "wandb"),
        help="write the numbers of every round for these, too: MLflow (RUN/mlflow.db), Weights & "
        "Biases (RUN/wandb); nothing is sent anywhere. TensorBoard (RUN/tensorboard) is written "
        "wherever it is installed. Without a name: none of them any more",
    )
    parser.add_argument(
        "--resume", action="store_true", help="resume the run in RUN, or train it for longer"
    )
    _options.add_device(parser)
    return parser


def _advice(options: argparse.Namespace) -> str:
    """Say how a run is continued, of which RUN may have nothing yet."""
    names = options.out.iterdir() if options.out.is_dir() else ()
    if all(path.name.startswith(".") for path in names):
        return "nothing was begun: run the same command again"
    again = "again" if options.resume else "again with --resume"
    return f"completed rounds are kept: run the same command {again} to continue"


def _work(command: Command) -> int:
    from mixmfl.federated.server.cross_validation import configurations_of
    from mixmfl.federated.server.kept_options import kept_options
    from mixmfl.inference.model_folder import MODEL, holds_folds
    from mixmfl.planning.plans import Plans

    options = command.options
    if not (options.input / "plans.json").is_file():
        raise MixmflError(
            f"{options.input}: holds no plans.json; make it by mixmfl_plan_preprocess "
            f"-i FEDERATION -o {options.input}"
        )
    plans = Plans.load(options.input / "plans.json")
    several = len(options.fold) > 1 or len(options.configuration) > 1
    model: Path | None
    if several or holds_folds(options.out) or configurations_of(options.out):
        model = _folds.cross_validate(command, plans, partial(_train, plans))
    else:
        fold, configuration = "".join(options.fold), "".join(options.configuration)
        kept = kept_options(options.out) if options.resume else {}
        keep = _training.Keep({options.out: {**kept, **command.named}})
        _train(plans, _training.asked_of(command, keep, options.out, fold, configuration))
        model = options.out / MODEL
    if model is not None:
        _register(model)
    return 0


def _train(plans: "Plans", asked: Asked) -> None:
    from mixmfl.federated.server.tracking import check_tracker

    for name in asked.options.track:
        check_tracker(name)
    training = _training.settle(plans, asked)
    (_over_network if asked.options.kit else _simulated)(asked, training)


def _simulated(asked: Asked, training: Training) -> None:
    from mixmfl.core.files import locked
    from mixmfl.federated.server.beginning import Beginning
    from mixmfl.federated.server.measured import load_measured
    from mixmfl.federated.server.run import choose_round
    from mixmfl.federated.simulation import Callbacks, simulate, simulate_personalization

    options = asked.options
    sites = _open_sites(options, training)
    initial = _start(options.alias, training)
    rounds = _progress.RoundPrinter(training.out)
    with (
        locked(training.out / ".lock", 0, _in_use(training.out)),
        _progress.crowd_watch(),
        _progress.bar_when_needed() as progress,
        _progress.curves(options.track, options.out) as curves,
    ):

        def begun(run: "Run") -> None:
            rounds.show(run)
            if run.history and load_measured(run, choose_round(run, "best")) is None:
                curves.write(run)  # a kill may have left the last rounds out

        def report(run: "Run") -> None:
            rounds.show(run)
            curves.write(run)

        run = simulate(
            training.plans,
            sites,
            training.settings,
            training.fold,
            training.out,
            beginning=Beginning(training.resume, change=True, initial=initial, accepted=asked.keep),
            stop_when_flat=training.stop_when_flat,
            every_subset=options.validate_subsets,
            beside=training.beside,
            callbacks=Callbacks(report, progress=progress, begun=begun),
        )
        curves.write_subsets(run)
        if options.personalize:
            simulate_personalization(run, sites, progress)
    _progress.announce_end(run)
    if options.personalize:
        _progress.print_personal(run)
        if without := [site.name for site in sites if site.name not in run.personal]:
            print(f"no personalised model, for lack of validation cases: {', '.join(without)}")
        if any(personal.kept for personal in run.personal.values()):
            export = f"mixmfl_export -i {training.out} --site SITE -o FILE.safetensors"
            print(f"{export} exports a kept one")


def _open_sites(options: argparse.Namespace, training: Training) -> "list[Site]":
    """Open the sites of WORK, each with its device and privacy, and print which cases they have."""
    from mixmfl.core.text import plural
    from mixmfl.federated.sites import open_sites
    from mixmfl.federated.state import register

    chosen = devices.find_devices(options.device)
    workers = _options.workers(options.workers, chosen[0])
    opened = open_sites(
        options.input,
        training.plans,
        training.settings.configuration,
        training.fold,
        training.settings.seed,
        training.sites,
    )
    sites = [
        replace(
            site,
            device=chosen[number % len(chosen)],
            workers=workers,
            privacy=_options.privacy(options, options.out / "privacy" / f"{site.name}.json"),
        )
        for number, site in enumerate(opened)
    ]
    for site in sites:
        registration = register(site)
        held = ", ".join(f"{name} {count}" for name, count in registration.modality_cases.items())
        print(
            f"site {site.name}: {plural(registration.cases, 'training case')} ({held}), "
            f"{plural(len(site.validation), 'validation case')}"
        )
    return sites


def _in_use(out: Path) -> MixmflError:
    return MixmflError(
        f"{out}: another command trains this run; nothing was changed. Wait for it, or end it and "
        "use --resume"
    )


def _start(aliases: Sequence[str], training: Training) -> "tuple[ServerState, Start] | None":
    """Read the weights that ``--init`` names, and print what of them fits."""
    if training.init is None:
        return None
    from mixmfl.data.modalities import Modalities
    from mixmfl.federated.server.initial_state import start_from

    modalities = Modalities().with_aliases(aliases)
    state, start = start_from(training.init, training.plans, training.settings, modalities)
    print("\n".join(start.lines()))
    return state, start


def _over_network(asked: Asked, training: Training) -> None:
    from mixmfl.federated.server.run_record import open_run

    options = asked.options
    if options.dp_epsilon is not None:
        raise MixmflError("--dp-epsilon: over a network each site decides on its own privacy")
    flare = _runner.network_engine()
    kit = flare.open_kit(options.kit, coordinator=True)
    job = _training_job(options, training, flare.site_names(kit))
    _start(options.alias, training)
    asked.keep()
    rounds = _progress.RoundPrinter(job.out)
    with _progress.curves(options.track, options.out) as curves:

        def report(run: "Run") -> None:
            if rounds.show(run) and (len(run.history) == run.settings.rounds or run.is_flat):
                print("the sites measure the model; its file follows", flush=True)
            curves.write(run)

        flare.run_jobs(
            *(kit, job),
            quorum=job.quorum,
            deadline=60 * options.deadline,
            say=print,
            report=report,
        )
        run = open_run(job.out)
        curves.write_subsets(run)
    _progress.announce_end(run)
    _progress.print_personal(run)


def _training_job(
    options: argparse.Namespace, training: Training, existing: Sequence[str]
) -> "TrainingJob":
    """Return the orders for a run over a network.

    Args:
        options: The parsed options.
        training: What the run is trained with.
        existing: The sites that the network has kits for.

    Raises:
        MixmflError: An option does not fit the sites or the run, or the folder holds a run that is
            not resumed.
    """
    import uuid

    from mixmfl.federated.server.orders import TrainingJob, job_file, load_job
    from mixmfl.federated.server.run_record import holds_run

    sites = _options.sites(training.sites, existing)
    least = len(sites) if training.settings.masked else len(sites) // 2 + 1
    quorum = least if options.quorum is None else options.quorum
    if training.settings.masked and quorum != least:
        raise MixmflError("--quorum: a masked round needs all sites; leave this option out")
    if not 0 < quorum <= len(sites):
        raise MixmflError(f"--quorum: must be from 1 to {len(sites)}, the number of sites")
    out = training.out.resolve()
    file = job_file(out)
    if holds_run(out) and not training.resume:
        raise MixmflError(f"{out}: holds a run; resume it with --resume, or name another folder")
    before = load_job(file) if training.resume and file.is_file() else None
    job = TrainingJob(
        options.input.resolve(),
        out,
        tuple(sites),
        before.name if isinstance(before, TrainingJob) else uuid.uuid4().hex[:12],
        training.settings,
        training.fold,
        quorum,
        options.personalize,
        training.stop_when_flat,
        training.init.resolve() if training.init else None,
        tuple(options.alias),
        training.beside.resolve() if training.beside else None,
        options.validate_subsets,
    )
    if isinstance(before, TrainingJob) and not holds_run(out):
        return replace(job, init=before.init, aliases=before.aliases)
    return job


def _register(model: Path) -> None:
    """Register a model file, or a run's folder, as what prediction uses."""
    from mixmfl.core.errors import ModelError
    from mixmfl.inference.default_model import registered_model, use_model
    from mixmfl.inference.model_folder import describe_model

    home, former = _runner.home(), None
    with suppress(ModelError):  # none, or one that is gone or trained on
        former = registered_model(home)
    use_model(model, home)
    named = describe_model(model)
    print(f"mixmfl_predict uses {named}, if no other is named (mixmfl_use_model changes that)")
    if former is not None and former != registered_model(home):
        print(f"until now it used {former}")


if __name__ == "__main__":
    sys.exit(main())
