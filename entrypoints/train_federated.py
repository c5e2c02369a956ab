"""``mixmfl_train_federated``: train MDM-MixMFL, embedded on one machine or over a network."""

import argparse
import dataclasses
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mixmfl.core import devices
from mixmfl.core.errors import MixmflError

from . import _options, _runner

if TYPE_CHECKING:
    from mixmfl.federated.server.checkpoint import Run, SiteRound
    from mixmfl.federated.state import Personal, RunSettings
    from mixmfl.planning.plans import Plans

DESCRIPTION = """\
Train over the sites that mixmfl_plan_preprocess prepared in WORK, all on this machine: one after
another, or with --device cuda:0,cuda:1 a process per device. Sites exchange with the server what
they would exchange over a network, and nothing else. The same seed on one CPU gives the same
weights. RUN gets the state of every round (--resume goes on), progress.csv and .png, and at the
end model.safetensors of the best round, which is also registered as the model that mixmfl_predict
takes.

With --kit the sites are hospitals on a network, where mixmfl_site runs: WORK needs plans.json only,
and every hospital keeps its data, moments and its own copy. A round closes when all sites have
answered, or after --deadline when --quorum of them have; a site that is lost is asked again as soon
as it has come back."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see ``--help``."""
    made = _runner.parser("mixmfl_train_federated", DESCRIPTION)
    made.add_argument("-i", "--input", type=Path, required=True, metavar="WORK")
    made.add_argument("-o", "--out", type=Path, required=True, metavar="RUN")
    made.add_argument(
        "-c",
        "--configuration",
        choices=("2d", "3d_fullres"),
        help="default: the one that was preprocessed, of both 3d_fullres",
    )
    made.add_argument("--rounds", type=int, help="default: the plans'")
    made.add_argument(
        "--local-steps", type=int, help="of each site in a round; default: the plans'"
    )
    made.add_argument("--learning-rate", type=float, help="in the first round; default: the plans'")
    made.add_argument("--seed", type=int, default=0, help="default: 0")
    made.add_argument("--sites", nargs="+", default=[], help="default: all in WORK")
    made.add_argument(
        "--fold",
        choices=(*"01234", "all"),
        default="0",
        help="each site validates on this fifth of its cases; all: trains on every case",
    )
    _options.add_workers(made)
    made.add_argument(
        "--personalize",
        action="store_true",
        help="after the last round every site fine-tunes its own copy of the model, and keeps it "
        "where its validation cases say that it is better (mixmfl_export --site)",
    )
    _options.add_minimum(
        made,
        "sites hold back prototypes that rest on fewer {counted} (default: 0; with --kit 5 cases, "
        "100 voxels, and a site may ask for more)",
    )
    _options.add_privacy(made, "every site")
    made.add_argument("--kit", type=Path, help="the coordinator's kit, from mixmfl_provision")
    made.add_argument(
        "--deadline",
        type=float,
        default=60,
        metavar="MINUTES",
        help="with --kit: that a site has for each task; default: 60",
    )
    made.add_argument(
        "--quorum",
        type=int,
        metavar="SITES",
        help="with --kit: that a round needs; default: more than half of them",
    )
    made.add_argument(
        "--masked",
        action="store_true",
        help="the coordinator learns sums over three or more sites only (docs/privacy.md)",
    )
    made.add_argument(
        "--updates",
        choices=("half", "single"),
        help="precision of the changes of weights that sites send; default: half. Masked ones are "
        "fixed-point numbers",
    )
    made.add_argument("--resume", action="store_true", help="go on with the run in RUN")
    _options.add_device(made)
    return _runner.run(made, argv, _work)


def _work(options: argparse.Namespace) -> int:
    from mixmfl.federated.state import NETWORK_MINIMUM, Minimum, RunSettings
    from mixmfl.planning.plans import Plans, usual_configuration

    if not (options.input / "plans.json").is_file():
        raise MixmflError(
            f"{options.input}: holds no plans.json; make it by mixmfl_plan_preprocess "
            f"-i FEDERATION -o {options.input}"
        )
    plans = Plans.load(options.input / "plans.json")
    options.configuration = options.configuration or usual_configuration(options.input, plans)
    planned = plans.training
    if options.masked and options.updates:
        raise MixmflError("--updates: with --masked sites send fixed-point numbers; leave it away")
    minimum = _options.minimum(options, NETWORK_MINIMUM if options.kit else Minimum())
    settings = RunSettings(
        configuration=options.configuration,
        seed=options.seed,
        rounds=planned.rounds if options.rounds is None else options.rounds,
        local_steps=planned.local_steps if options.local_steps is None else options.local_steps,
        learning_rate=(
            planned.learning_rate if options.learning_rate is None else options.learning_rate
        ),
        masked=options.masked,
        half_updates=options.updates != "single",
        minimum_cases=minimum.cases,
        minimum_voxels=minimum.voxels,
    )
    for name in ("rounds", "local_steps", "learning_rate"):
        if not 0 < getattr(settings, name) < math.inf:
            raise MixmflError(f"--{name.replace('_', '-')}: must be above 0")
    if not 0 <= settings.seed < 2**63:
        raise MixmflError("--seed: must be from 0 to 2^63 - 1")
    return (_over_network if options.kit else _embedded)(options, plans, settings)


def _embedded(options: argparse.Namespace, plans: "Plans", settings: "RunSettings") -> int:
    from mixmfl.federated.simulation import simulate, simulate_personalization
    from mixmfl.federated.sites import open_sites
    from mixmfl.federated.state import register

    chosen = devices.find_devices(options.device)
    workers = _options.workers(options.workers, chosen[0])
    sites = open_sites(
        options.input,
        plans,
        options.configuration,
        options.fold,
        options.seed,
        chosen[0],
        workers,
        options.sites,
    )
    ledgers = options.out / "privacy"
    sites = [
        dataclasses.replace(
            site,
            device=chosen[number % len(chosen)],
            privacy=_options.privacy(options, ledgers / f"{site.name}.json"),
        )
        for number, site in enumerate(sites)
    ]
    for site in sites:
        told = register(site)
        held = ", ".join(f"{name} {count}" for name, count in told.modality_cases.items())
        print(f"site {site.name}: {told.cases} training cases ({held}), ", end="")
        print(f"{len(site.validation)} validation cases")
    lap = _stopwatch()
    run = simulate(
        plans,
        sites,
        settings,
        options.fold,
        options.out,
        resume=options.resume,
        report=lambda run: _print_round(run, len(run.history), lap()),
    )
    _tell_model(run)
    if options.personalize:
        simulate_personalization(run, sites)
        for name, own in run.personal.items():
            print(_tell_own(name, own))
        if without := [site.name for site in sites if site.name not in run.personal]:
            print(f"no own copy without validation cases: {', '.join(without)}")
        print(f"mixmfl_export -i {options.out} --site SITE -o FILE.safetensors exports a kept copy")
    return 0


def _over_network(options: argparse.Namespace, plans: "Plans", settings: "RunSettings") -> int:
    import uuid

    from mixmfl.core.json_fields import Told
    from mixmfl.federated.server.checkpoint import holds_run, open_run
    from mixmfl.federated.server.orders import TrainingJob, job_file, load_job
    from mixmfl.federated.state import read_run_settings

    if options.dp_epsilon is not None:
        raise MixmflError("--dp-epsilon: over a network each site decides on its own privacy")
    read_run_settings(Told(dataclasses.asdict(settings), "the settings of the run", MixmflError))
    flare = _runner.network_engine()
    kit = flare.open_kit(options.kit, coordinator=True)
    sites = _options.sites(options.sites, flare.site_names(kit))
    quorum = len(sites) // 2 + 1 if options.quorum is None else options.quorum
    if not 0 < quorum <= len(sites):
        raise MixmflError(f"--quorum: must be from 1 to {len(sites)}, the number of sites")
    if options.deadline <= 0:
        raise MixmflError("--deadline: must be above 0")
    out = options.out.resolve()
    file = job_file(out)
    if holds_run(out) and not options.resume:
        raise MixmflError(f"{out}: holds a run; go on with it by --resume, or name another folder")
    before = load_job(file) if options.resume and file.is_file() else None
    orders = TrainingJob(
        options.input.resolve(),
        out,
        tuple(sites),
        before.name if isinstance(before, TrainingJob) else uuid.uuid4().hex[:12],
        settings,
        options.fold,
        quorum,
        options.personalize,
    )
    told, lap = len(open_run(out).history) if holds_run(out) else 0, _stopwatch()

    def report(run: "Run") -> None:
        nonlocal told
        while told < len(run.history):
            told += 1
            _print_round(run, told, lap())

    flare.run_jobs(
        kit, orders, quorum=quorum, deadline=60 * options.deadline, say=print, report=report
    )
    run = open_run(out)
    _tell_model(run)
    for site, own in run.personal.items():
        print(_tell_own(site, own))
    return 0


def _tell_model(run: "Run") -> None:
    from mixmfl.federated.server.checkpoint import choose_round
    from mixmfl.inference.default_model import use_model

    model = run.folder / "model.safetensors"
    print(f"model of round {choose_round(run, 'best')}: {model}")
    use_model(model, _runner.home())
    print("mixmfl_predict takes it where no other is named (mixmfl_use_model changes that)")


def _tell_own(site: str, own: "Personal") -> str:
    kept = "kept" if own.kept else "not kept"
    return (
        f"site {site}: own copy, validation Dice {own.dice:.3f}, model of all "
        f"{own.dice_before:.3f}; {kept}"
    )


def _stopwatch() -> Callable[[], float]:
    """Return what tells the seconds since it was last called, at first since it was made."""
    last = time.monotonic()

    def lap() -> float:
        nonlocal last
        before, last = last, time.monotonic()
        return last - before

    return lap


def _print_round(run: "Run", number: int, seconds: float) -> None:
    sites = run.history[number - 1]
    loss = "  ".join(f"{site} {_told(told)}" for site, told in sites.items())
    dice = f"  Dice {run.dice[number]:.3f}" if run.dice.get(number, math.nan) >= 0 else ""
    print(f"round {number}/{run.settings.rounds}  loss {loss}{dice}  {seconds:.0f} s", flush=True)


def _told(told: "SiteRound") -> str:
    if told.absent:
        return "absent"
    if told.loss is not None:
        return f"{told.loss:.3f}"
    return "trained" if told.epsilon is None else f"epsilon {told.epsilon:.2f}"


if __name__ == "__main__":
    sys.exit(main())
