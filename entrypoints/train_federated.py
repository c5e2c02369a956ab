"""``mixmfl_train_federated``: train MDM-MixMFL, simulated on one machine or over a network."""

import argparse
import math
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mixmfl.core import devices
from mixmfl.core.errors import MixmflError

from . import _options, _paths, _runner

if TYPE_CHECKING:
    from mixmfl.federated.server.cross_validation import CrossValidation
    from mixmfl.federated.server.curves import Curves
    from mixmfl.federated.server.initial_state import Start
    from mixmfl.federated.server.orders import TrainingJob
    from mixmfl.federated.server.run import Run, SiteRound
    from mixmfl.federated.state import RunSettings, ServerState, Site
    from mixmfl.planning.plans import Plans

DESCRIPTION = """\
Train over the sites that mixmfl_plan_preprocess prepared in WORK, all on this machine: one after
another, or with --device cuda:0,cuda:1 a process per device. Sites exchange with the server only
what they would exchange over a network. The same seed on one CPU gives the same weights. RUN gets
the state of every round (--resume continues), progress.csv and .png, and at the end
model.safetensors of the best round, which is also registered as the model that mixmfl_predict uses;
of a run in folds their mean is, or the model of --fold all where there is one.

A run that is resumed keeps what no option names. --rounds, --local-steps, --learning-rate and
--sites may be others than before: they hold from the next round on, and the learning rate then
falls as in a run that had so many rounds from the start.

With --kit the sites are hospitals on a network, where mixmfl_site runs: WORK needs plans.json only,
and every hospital keeps its data, optimizer state and personalised model. A round ends when all
sites have answered, or after --deadline if --quorum of them have; a site that is lost takes part
again as soon as it has reconnected."""


@dataclass(frozen=True)
class _Asked:
    """What the command asks of one run, which is all that it trains, or one of its folds.

    Attributes:
        out: Folder of the run.
        fold: Fold that validates; empty: as the run that is resumed, or the first.
        configuration: Configuration; empty: as that run or ``like``, or the preprocessed one.
        sites: Sites that take part; empty: as that run or ``like``, or all.
        init: File whose weights a new run starts from.
        stop_when_flat: See ``--stop-when-flat``; None: as that run or ``like``.
        resume: Whether the run has begun.
        like: The run of another fold, as which one that has not begun is trained.
    """

    out: Path
    fold: str
    configuration: str
    sites: Sequence[str]
    init: Path | None
    stop_when_flat: int | None
    resume: bool
    like: "Run | None" = None


@dataclass(frozen=True)
class _Training:
    """What a run is trained with; see ``_Asked``, of which nothing is left open here.

    Attributes:
        out: Folder of the run.
        plans: Plans of WORK.
        settings: Settings of the run.
        fold: Fold that validates.
        sites: Sites that take part; empty: all.
        init: File whose weights a new run starts from.
        stop_when_flat: See ``--stop-when-flat``.
        resume: Whether the run has begun.
    """

    out: Path
    plans: "Plans"
    settings: "RunSettings"
    fold: str
    sites: Sequence[str]
    init: Path | None
    stop_when_flat: int
    resume: bool


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code; see ``--help``."""
    parser = _runner.parser("mixmfl_train_federated", DESCRIPTION)
    parser.add_argument("-i", "--input", type=_paths.WORK, required=True, metavar="WORK")
    parser.add_argument("-o", "--out", type=_paths.new_folder(), required=True, metavar="RUN")
    parser.add_argument(
        "-c",
        "--configuration",
        nargs="+",
        default=[],
        choices=("2d", "3d_fullres"),
        help="default: the preprocessed one; if both are, 3d_fullres. With both, each is trained "
        "in RUN/2d and RUN/3d_fullres, and the one with the higher cross-validated Dice is best",
    )
    parser.add_argument("--rounds", type=int, help="default: as in the plans")
    parser.add_argument(
        "--local-steps", type=int, help="steps of each site in a round; default: as in the plans"
    )
    parser.add_argument(
        "--learning-rate", type=float, help="in the first round; default: as in the plans"
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
        "judged where rounds are validated; after --resume with other settings it is counted anew. "
        "0, the default: train all rounds",
    )
    parser.add_argument("--seed", type=int, help="default: 0")
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
        action="store_true",
        help="after the last round every site fine-tunes the model for itself, and keeps this "
        "personalised model if its validation Dice is higher (mixmfl_export --site)",
    )
    _options.add_minimum(
        parser,
        "sites withhold prototypes that rest on fewer {counted} (default: 0; with --kit 5 cases, "
        "100 voxels, and a site may ask for more)",
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
        nargs="+",
        default=[],
        choices=("tensorboard", "mlflow", "wandb"),
        help="write the numbers of every round for these, too: MLflow (RUN/mlflow.db), Weights & "
        "Biases (RUN/wandb); nothing is sent anywhere. TensorBoard (RUN/tensorboard) is written "
        "wherever it is installed",
    )
    parser.add_argument(
        "--resume", action="store_true", help="resume the run in RUN, or train it for longer"
    )
    _options.add_device(parser)
    return _runner.run(parser, argv, _work)


def _work(options: argparse.Namespace) -> int:
    from mixmfl.federated.server.cross_validation import configurations_of
    from mixmfl.federated.server.tracking import check_tracker
    from mixmfl.inference.model_folder import MODEL, holds_folds
    from mixmfl.planning.plans import Plans

    if not (options.input / "plans.json").is_file():
        raise MixmflError(
            f"{options.input}: holds no plans.json; make it by mixmfl_plan_preprocess "
            f"-i FEDERATION -o {options.input}"
        )
    for name in options.track:
        check_tracker(name)
    plans = Plans.load(options.input / "plans.json")
    several = len(options.fold) > 1 or len(options.configuration) > 1
    if several or holds_folds(options.out) or configurations_of(options.out):
        return _cross_validate(options, plans)
    fold, configuration = "".join(options.fold), "".join(options.configuration)
    code = _train(options, plans, _asked(options, options.out, fold, configuration))
    _register(options.out / MODEL)
    return code


def _asked(options: argparse.Namespace, out: Path, fold: str, configuration: str) -> _Asked:
    """Return what the options ask of a run in a folder."""
    return _Asked(
        out,
        fold,
        configuration,
        options.sites,
        options.init,
        options.stop_when_flat,
        options.resume,
    )


def _cross_validate(options: argparse.Namespace, plans: "Plans") -> int:
    """Train every fold of every configuration, and add up what they measured."""
    from mixmfl.core.text import plural
    from mixmfl.federated.server.cross_validation import (
        begin_configurations,
        begin_folds,
        begun_fold,
        choose_configuration,
        configurations_of,
    )
    from mixmfl.inference.model_folder import (
        EVERY_CASE,
        MODEL,
        fold_folder,
        holds_folds,
        read_folds,
    )
    from mixmfl.planning.plans import usual_configuration

    out = options.out
    names = configurations_of(out) or list(dict.fromkeys(options.configuration))
    if strange := sorted(set(options.configuration) - set(names)):
        raise MixmflError(
            f"-c {strange[0]}: {out} compares {', '.join(names)}; start a new run in another folder"
        )
    if len(names) > 1 and set(options.fold) == {EVERY_CASE} and not options.resume:
        raise MixmflError(
            f"--fold {EVERY_CASE}: holds back no case, and by these the better one of "
            f"{', '.join(names)} is chosen; name other folds, too, such as --fold 0 {EVERY_CASE}"
        )
    if len(names) > 1:
        begin_configurations(out, names, resume=options.resume)
        folders = {name: out / name for name in names}
    elif holds_folds(out):
        folders = {names[0] if names else read_folds(out).configuration: out}
    elif options.resume:
        raise MixmflError(f"--resume: {out} holds no run in folds; leave it out to start one")
    else:
        folders = {names[0] if names else usual_configuration(options.input, plans): out}
    known = [read_folds(folder).folds for folder in folders.values() if holds_folds(folder)]
    folds = options.fold or (list(known[0]) if known else ["0"])
    found = []
    for name, folder in folders.items():
        begin_folds(folder, name, folds, resume=options.resume)
        begun = filter(None, map(begun_fold, filter(holds_folds, folders.values())))
        asked = replace(_asked(options, folder, "", name), like=next(begun, None))
        found.append(_train_folds(options, plans, folds, asked))
    done = [each for each in found if each is not None]
    if len(done) < len(found):
        print(f"{out}: is registered for mixmfl_predict when all of its folds are trained")
        return 0
    chosen = done[0]
    if len(done) > 1:
        best = choose_configuration(done, out)
        chosen = next(each for each in done if each.configuration == best)
        print(f"best configuration by cross-validated Dice: {best}")
    print(f"mixmfl_predict -m {out} takes the mean of {plural(len(chosen.folds), 'model')}")
    # one model, of all cases, is what it was trained for
    of_all = fold_folder(chosen.folder, EVERY_CASE) / MODEL
    _register(of_all if of_all.is_file() else out)
    return 0


def _train_folds(
    options: argparse.Namespace, plans: "Plans", folds: Sequence[str], asked: _Asked
) -> "CrossValidation | None":
    """Train the folds of one configuration; return what they measured, if all are done.

    Args:
        options: The parsed options.
        plans: Plans of WORK.
        folds: The folds to train.
        asked: What is asked of them all; ``out`` is the folder that has theirs in it.
    """
    from mixmfl.federated.server.cross_validation import (
        begun_fold,
        pool_folds,
        unfinished_folds,
    )
    from mixmfl.federated.server.orders import job_file
    from mixmfl.federated.server.run_record import holds_run
    from mixmfl.inference.model_folder import EVERY_CASE, MODEL, fold_folder

    folder = asked.out
    for fold in folds:
        out = fold_folder(folder, fold)
        one = replace(asked, out=out, fold=fold, resume=holds_run(out) or job_file(out).is_file())
        if one.resume:
            one = replace(one, init=None)  # it is for folds that have not begun
        else:
            one = replace(one, like=begun_fold(folder) or asked.like)
        if fold == EVERY_CASE:
            one = replace(one, stop_when_flat=0)  # nothing tells when it is
        print(f"{asked.configuration}, fold {fold}: {out}")
        _train(options, plans, one)
    if left := unfinished_folds(folder):
        print(f"{folder}: folds {', '.join(left)} are left; --resume --fold trains them")
        return None
    pooled = pool_folds(folder)
    print("\n".join(pooled.lines()))
    if len(pooled.folds) > 1:
        print(
            f"{folder}/fold_*/{MODEL}: each was written again with what all folds measured; "
            "weights are as they were, expected Dice and the small parts that are removed are "
            "those of all folds"
        )
    return pooled


def _train(options: argparse.Namespace, plans: "Plans", asked: _Asked) -> int:
    training = _settle(options, plans, asked)
    return (_over_network if options.kit else _simulated)(options, training)


def _settle(options: argparse.Namespace, plans: "Plans", asked: _Asked) -> _Training:
    """Return what a run is trained with: as asked, else as before, else as planned.

    Raises:
        MixmflError: What is asked does not fit the run that has begun, or is out of bounds.
    """
    from mixmfl.core.records import read_record
    from mixmfl.federated.state import RunSettings
    from mixmfl.planning.plans import usual_configuration

    before = _before(asked.out) if asked.resume else None
    like = before or asked.like
    sites, stop_when_flat = asked.sites, asked.stop_when_flat
    if like is not None:
        sites = sites or _sites_of(like, asked.out)
        _check_privacy_lasts(like, options)
        if stop_when_flat is None:
            stop_when_flat = like.stop_when_flat
    if before is None and asked.like is not None:
        _check_starts_alike(options.seed, asked, asked.like)
    if (stop_when_flat or 0) < 0:
        raise MixmflError("--stop-when-flat: must be 0 or more rounds")
    if asked.init is not None and before is not None:
        raise MixmflError(
            f"--init: {asked.out} has begun, and weights are only where a run starts. Leave it "
            "out to resume, or start a new run in another folder"
        )
    configuration = asked.configuration or (like.settings.configuration if like else "")
    settings = _settings(
        options,
        plans,
        configuration or usual_configuration(options.input, plans),
        like.settings if like else None,
    )
    for name in ("rounds", "local_steps", "learning_rate"):
        if not 0 < getattr(settings, name) < math.inf:
            raise MixmflError(f"--{name.replace('_', '-')}: must be above 0")
    if not 0 < options.deadline < math.inf:
        raise MixmflError("--deadline: must be above 0")
    if not 0 <= settings.seed < 2**63:
        raise MixmflError("--seed: must be from 0 to 2^63 - 1")
    read_record(RunSettings, asdict(settings), "the settings of the run", MixmflError)
    return _Training(
        asked.out,
        plans,
        settings,
        asked.fold or (before.fold if before else "0"),
        sites,
        asked.init,
        stop_when_flat or 0,
        asked.resume,
    )


def _before(out: Path) -> "Run | TrainingJob | None":
    """Return the run that is resumed, or the orders for it where no round was begun."""
    from mixmfl.federated.server.orders import TrainingJob, job_file, load_job
    from mixmfl.federated.server.run_record import holds_run, open_run

    if holds_run(out):
        return open_run(out)
    file = job_file(out)
    orders = load_job(file) if file.is_file() else None
    return orders if isinstance(orders, TrainingJob) else None


def _sites_of(before: "Run | TrainingJob", out: Path) -> list[str]:
    """Return the sites of a run, or those that its orders name: one may not have joined yet."""
    from mixmfl.federated.server.orders import TrainingJob, job_file, load_job

    file = job_file(out)
    orders = load_job(file) if file.is_file() else before
    if isinstance(orders, TrainingJob):
        return list(orders.sites)
    return [] if isinstance(before, TrainingJob) else sorted(before.registrations)


def _check_starts_alike(seed: int | None, asked: _Asked, like: "Run") -> None:
    """Check that a fold starts as one that has begun: with its seed and weights.

    Raises:
        MixmflError: It does not.
    """
    if seed not in (None, like.settings.seed):
        raise MixmflError(
            f"--seed {seed}: {like.folder} has begun with {like.settings.seed}, and by the "
            "seed sites split their cases; leave it out"
        )
    if (like.start is None) != (asked.init is None):
        started = f"the weights of {like.start.file}" if like.start else "random weights"
        raise MixmflError(
            f"--init: {like.folder} started from {started}, and fold {asked.fold} has not begun; "
            f"{'name that file again' if like.start else 'leave it out'}"
        )


def _check_privacy_lasts(before: "Run | TrainingJob", options: argparse.Namespace) -> None:
    """Check that a simulated run with differential privacy is resumed with it.

    Raises:
        MixmflError: It is not.
    """
    from mixmfl.federated.server.run import Run, privacy_spent

    if options.kit or options.dp_epsilon is not None or not isinstance(before, Run):
        return
    if spent := privacy_spent(before, len(before.history)):
        raise MixmflError(
            f"{before.folder}: {', '.join(spent)} trained with differential privacy, which holds "
            "only if every round has it; name --dp-epsilon and the other --dp options again"
        )


def _settings(
    options: argparse.Namespace,
    plans: "Plans",
    configuration: str,
    before: "RunSettings | None",
) -> "RunSettings":
    """Return the settings that the options name; others are as before, or as planned."""
    from mixmfl.federated.state import NETWORK_MINIMUM, Minimum, RunSettings

    planned = plans.training
    usual = before or RunSettings(
        configuration=configuration,
        seed=0,
        rounds=planned.rounds,
        local_steps=planned.local_steps,
        learning_rate=planned.learning_rate,
    )
    if before is not None:
        least = Minimum(before.minimum_cases, before.minimum_voxels)
    else:
        least = NETWORK_MINIMUM if options.kit else Minimum()
    minimum = _options.minimum(options, least)
    masked = options.masked or usual.masked
    if masked and options.updates:
        raise MixmflError(
            "--updates: with --masked sites send fixed-point numbers, and receive half precision; "
            "leave this option out"
        )
    named = {
        "seed": options.seed,
        "rounds": options.rounds,
        "local_steps": options.local_steps,
        "learning_rate": options.learning_rate,
    }
    return replace(
        usual,
        configuration=configuration,
        masked=masked,
        half_updates=options.updates != "single" if options.updates else usual.half_updates,
        minimum_cases=minimum.cases,
        minimum_voxels=minimum.voxels,
        **{name: value for name, value in named.items() if value is not None},
    )


def _simulated(options: argparse.Namespace, training: _Training) -> int:
    from mixmfl.core.files import locked
    from mixmfl.federated.simulation import Callbacks, simulate, simulate_personalization

    sites = _open_sites(options, training)
    initial = _start(options.alias, training)
    lap = _stopwatch()
    with (
        locked(training.out / ".lock", 0, _in_use(training.out)),
        _crowd_watch(),
        _bar_when_needed() as progress,
        _curves(options.track, training.out) as curves,
    ):

        def report(run: "Run") -> None:
            _print_round(run, len(run.history), lap())
            curves.write(run)

        run = simulate(
            training.plans,
            sites,
            training.settings,
            training.fold,
            training.out,
            resume=training.resume,
            change=True,
            stop_when_flat=training.stop_when_flat,
            initial=initial,
            callbacks=Callbacks(report, progress=progress),
        )
        if options.personalize:
            simulate_personalization(run, sites, progress)
    _announce_end(run)
    if options.personalize:
        _print_personal(run)
        if without := [site.name for site in sites if site.name not in run.personal]:
            print(f"no personalised model, for lack of validation cases: {', '.join(without)}")
        print(f"mixmfl_export -i {training.out} --site SITE -o FILE.safetensors exports a kept one")
    return 0


def _open_sites(options: argparse.Namespace, training: _Training) -> "list[Site]":
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


def _start(aliases: Sequence[str], training: _Training) -> "tuple[ServerState, Start] | None":
    """Read the weights that ``--init`` names, and print what of them fits."""
    if training.init is None:
        return None
    from mixmfl.data.modalities import Modalities
    from mixmfl.federated.server.initial_state import start_from

    modalities = Modalities().with_aliases(aliases)
    state, start = start_from(training.init, training.plans, training.settings, modalities)
    print("\n".join(start.lines()))
    return state, start


def _over_network(options: argparse.Namespace, training: _Training) -> int:
    from mixmfl.federated.server.run_record import holds_run, open_run

    if options.dp_epsilon is not None:
        raise MixmflError("--dp-epsilon: over a network each site decides on its own privacy")
    flare = _runner.network_engine()
    kit = flare.open_kit(options.kit, coordinator=True)
    job = _training_job(options, training, flare.site_names(kit))
    _start(options.alias, training)
    printed, lap = len(open_run(job.out).history) if holds_run(job.out) else 0, _stopwatch()
    with _curves(options.track, training.out) as curves:

        def report(run: "Run") -> None:
            nonlocal printed
            while printed < len(run.history):
                printed += 1
                _print_round(run, printed, lap())
                if printed == run.settings.rounds or (printed == len(run.history) and run.is_flat):
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
    _announce_end(run)
    _print_personal(run)
    return 0


def _training_job(
    options: argparse.Namespace, training: _Training, existing: Sequence[str]
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
    )
    if isinstance(before, TrainingJob) and not holds_run(out):
        return replace(job, init=before.init, aliases=before.aliases)
    return job


def _announce_end(run: "Run") -> None:
    from mixmfl.core.text import plural

    if len(run.history) < run.settings.rounds:
        print(
            f"ended after round {len(run.history)} of {run.settings.rounds}: validation Dice was "
            f"not above that of round {run.best_round} ({run.dice[run.best_round or 0]:.3f}) for "
            f"{plural(run.stop_when_flat, 'round')} (--stop-when-flat). --resume "
            "--stop-when-flat 0 trains the others"
        )
    from mixmfl.federated.server.run import choose_round
    from mixmfl.federated.server.run_page import RUN_PAGE
    from mixmfl.inference.model_folder import EVERY_CASE, MODEL

    if run.best_round is None and run.fold != EVERY_CASE:
        print(
            "no validation Dice is known, so the last round is taken for the best: no site has "
            "validation cases, or they are fewer than the --min-validation-cases of each "
            "mixmfl_site (5 unless it is set there)"
        )
    print(f"model of round {choose_round(run, 'best')}: {run.folder / MODEL}")
    print(f"its curves and scores: {run.folder / RUN_PAGE}")


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


def _print_personal(run: "Run") -> None:
    for site, result in run.personal.items():
        kept = "kept" if result.kept else "not kept"
        print(
            f"site {site}: personalised model, validation Dice {result.dice:.3f}, global model "
            f"{result.dice_before:.3f}; {kept}"
        )


@contextmanager
def _bar_when_needed() -> Iterator[Callable[[str, int, int], None]]:
    """Yield a function (what, done, total) that draws progress bars, from its first call on.

    While rounds are printed, nothing is drawn.
    """
    with ExitStack() as stack:
        drawn: list[Callable[[str, int, int], None]] = []

        def report(what: str, done: int, total: int) -> None:
            if not drawn:
                drawn.append(stack.enter_context(_runner.bars()))
            drawn[0](what, done, total)

        yield report


def _curves(asked: Sequence[str], out: Path) -> "Curves":
    """Return what writes a run's rounds for the trackers that are asked for, and the usual ones."""
    from mixmfl.federated.server.curves import Curves
    from mixmfl.federated.server.run_record import holds_run, open_run
    from mixmfl.federated.server.tracking import usual_trackers

    done = len(open_run(out).history) if holds_run(out) else 0
    return Curves(done, list(dict.fromkeys((*usual_trackers(), *asked))))


def _stopwatch() -> Callable[[], float]:
    """Return a function that returns the seconds since its last call, or since its creation."""
    last = time.monotonic()

    def lap() -> float:
        nonlocal last
        before, last = last, time.monotonic()
        return last - before

    return lap


@contextmanager
def _crowd_watch(seconds: float = 60) -> Iterator[None]:
    """Warn once, so many seconds from now, if threads have mostly waited for cores since then."""
    import torch

    from mixmfl.core.core_time import core_time, crowded

    begun = core_time()

    def warn() -> None:
        if text := crowded(begun, core_time(), torch.get_num_threads()):
            print(text, file=sys.stderr)

    timer = threading.Timer(seconds, warn)  # a round may take hours
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _print_round(run: "Run", number: int, seconds: float) -> None:
    for change in run.changes:
        if change.after == number - 1:
            print(change)
    sites = run.history[number - 1]
    loss = "  ".join(f"{site} {_describe_site(entry)}" for site, entry in sites.items())
    dice = f"  Dice {run.dice[number]:.3f}" if run.dice.get(number, math.nan) >= 0 else ""
    from mixmfl.federated.server.run_page import duration

    left = run.seconds_left if number == len(run.history) else math.nan
    eta = f", {duration(left)} left" if left > 0 else ""
    took = f"{seconds:.0f} s{eta}"
    print(f"round {number}/{run.settings.rounds}  loss {loss}{dice}  {took}", flush=True)


def _describe_site(entry: "SiteRound") -> str:
    if entry.absent:
        return "left out"
    if entry.loss is not None:
        return f"{entry.loss:.3f}"
    return "trained" if entry.epsilon is None else f"epsilon {entry.epsilon:.2f}"


if __name__ == "__main__":
    sys.exit(main())
