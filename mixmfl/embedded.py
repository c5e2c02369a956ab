"""The embedded federation: all sites in this process, one after another, on one device."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from mixmfl.dataset import case_names, open_case
from mixmfl.errors import DataError, ModelError
from mixmfl.measure import measure_at_site, merge_measured
from mixmfl.memory import Memory, State
from mixmfl.plan import Plans
from mixmfl.progress import draw_progress
from mixmfl.rounds import (
    RunSettings,
    ServerState,
    Site,
    first_state,
    mean_dice,
    merge_round,
    personalization_task,
    personalize_at_site,
    read_dice,
    register,
    train_at_site,
    train_task,
    validate_at_site,
    validation_task,
)
from mixmfl.runs import (
    Run,
    SiteRound,
    choose_round,
    export_model,
    load_expected,
    load_optimizers,
    load_state_of,
    open_run,
    save_expected,
    save_personal,
    save_round,
    start_run,
)
from mixmfl.sampling import site_number
from mixmfl.wire import decode, encode

FOLDS = 5


def split_fold(
    names: Sequence[str], fold: str, seed: int, site: str
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Split a site's cases into those that train and those that validate.

    Args:
        names: Of the cases, in any order.
        fold: ``"0"`` to ``"4"``, or ``"all"``: every case trains and none validates. A site with
            fewer than five cases has as many folds as cases, used in turn; a single case trains.
        seed: Of the run.
        site: Its name.
    """
    shuffled = sorted(names)
    generator = np.random.default_rng([seed, site_number(site)])
    generator.shuffle(shuffled)
    folds = min(FOLDS, len(shuffled))
    if fold == "all" or folds < 2:
        return tuple(sorted(shuffled)), ()
    held = set(shuffled[int(fold) % folds :: folds])
    return tuple(n for n in sorted(names) if n not in held), tuple(sorted(held))


def open_sites(
    work: Path,
    plans: Plans,
    configuration: str,
    fold: str,
    seed: int,
    device: torch.device,
    workers: int,
    wanted: Sequence[str] = (),
) -> list[Site]:
    """Open the preprocessed cases of the sites in ``WORK/sites``.

    Raises:
        DataError: A wanted site is not there, or a site has no case preprocessed by these plans.
    """
    there = sorted(p.name for p in (work / "sites").glob("*") if (p / configuration).is_dir())
    missing = sorted(set(wanted) - set(there))
    if missing or not there:
        others = sorted({p.parent.name for p in (work / "sites").glob("*/*/*.json")})
        raise DataError(
            f"{work / 'sites'}: configuration {configuration} is not preprocessed for "
            f"{', '.join(missing) or 'any site'}; it is for these sites: "
            f"{', '.join(there) or 'none'}; configurations that are: "
            f"{', '.join(others) or 'none'}. Choose one of these by -c, or run "
            f"mixmfl_plan_preprocess -c {configuration}"
        )
    sites, planned = [], plans.preprocessing(configuration)
    for name in sorted(set(wanted)) or there:
        folder = work / "sites" / name / configuration
        training, validation = split_fold(case_names(folder), fold, seed, name)
        if not training:
            raise DataError(f"{folder}: holds no preprocessed case; run mixmfl_plan_preprocess")
        cases = {case: open_case(folder, case) for case in (*training, *validation)}
        if any(case.planned != planned for case in cases.values()):
            raise DataError(
                f"{folder}: was preprocessed with other plans than {work / 'plans.json'}; run "
                f"mixmfl_plan_preprocess -c {configuration} again"
            )
        trained, held = (tuple(cases[n] for n in names) for names in (training, validation))
        sites.append(Site(name, trained, held, device, workers))
    return sites


def train_embedded(
    plans: Plans,
    sites: Sequence[Site],
    settings: RunSettings,
    fold: str,
    out: Path,
    *,
    resume: bool = False,
    report: Callable[[Run], None] = lambda run: None,
    uniform: bool = False,
    edit_memory: Callable[[Memory], Memory] | None = None,
    measured: bool = True,
) -> Run:
    """Run the federation and export its model.

    Everything that crosses between server and sites crosses as bytes, as it would on a network.

    Args:
        plans: Of the run.
        sites: At least one.
        settings: Of the run.
        fold: As ``split_fold`` took it.
        out: The run's folder; new, unless ``resume``.
        resume: Go on with the run in ``out``, which must have the same settings and sites.
        report: Called after every round.
        uniform: Whether every site's word counts the same; see ``register``.
        edit_memory: What an ablation makes of the merged memory, after every round.
        measured: Whether the model file shall say what Dice to expect from which modalities.

    Returns:
        The run; its model is ``out/model.safetensors``.

    Raises:
        ModelError: ``out`` holds a run and ``resume`` was not asked; or it holds another run.
    """
    registrations = {site.name: register(site, uniform=uniform) for site in sites}
    asked = Run(out, plans, settings, fold, registrations)
    if resume:
        run = open_run(out)
        _check_same_run(run, asked)
        done = len(run.history)
        state = load_state_of(run, done) if done else first_state(plans, settings)
        optimizers: dict[str, State] = load_optimizers(run, done) if done else {}
    else:
        run, state, optimizers = asked, first_state(plans, settings), {}
        start_run(run)
    while state.round < settings.rounds:
        state = _one_round(run, state, sites, optimizers, edit_memory)
        report(run)
    draw_progress(run, out / "progress.png")
    if measured:
        measure_embedded(run, sites)
    export_model(out, "best", out / "model.safetensors")
    return run


def measure_embedded(run: Run, sites: Sequence[Site]) -> None:
    """Measure what Dice to expect of the best round from every subset that a site can form.

    A site without validation cases tells nothing; what was measured is not measured again.
    """
    number = choose_round(run, "best")
    if load_expected(run, number) is not None:
        return
    state = load_state_of(run, number)
    told = []
    for site in sites:
        if site.validation:
            task = encode(validation_task(state, site.name, run.registrations))
            told.append(measure_at_site(decode(task), site, run.plans, run.settings))
    save_expected(run, number, merge_measured(told))


def personalize_embedded(run: Run, sites: Sequence[Site]) -> None:
    """Let every site fine-tune its own copy of the best round's model, as far as not done yet.

    A site without validation cases is left out: nothing could tell whether its copy is better.

    Args:
        run: That is finished.
        sites: Of the run.
    """
    state = load_state_of(run, choose_round(run, "best"))
    for site in sites:
        if site.name in run.personal or not site.validation:
            continue
        task = encode(personalization_task(state, site.name, run.registrations))
        personal, own = personalize_at_site(decode(task), site, run.plans, run.settings)
        save_personal(run, site.name, personal, own)


def _one_round(
    run: Run,
    state: ServerState,
    sites: Sequence[Site],
    optimizers: dict[str, State],
    edit_memory: Callable[[Memory], Memory] | None,
) -> ServerState:
    """Train at every site, merge, validate where it is time to, save."""
    replies, sizes, seconds = {}, {}, {}
    for site in sites:
        began = time.monotonic()
        task = encode(train_task(state, run.registrations[site.name]))
        reply, optimizers[site.name] = train_at_site(
            decode(task), site, run.plans, run.settings, optimizers.get(site.name, {})
        )
        sent = encode(reply)
        replies[site.name] = decode(sent)
        sizes[site.name] = len(sent), len(task)
        seconds[site.name] = time.monotonic() - began
    state, diagnostics = merge_round(state, replies, run.registrations)
    if edit_memory is not None:
        state = dataclasses.replace(state, memory=edit_memory(state.memory))
    every = run.plans.training.validate_every
    due = state.round % every == 0 or state.round == run.settings.rounds
    dice = {}
    for site in sites if due else ():
        began = time.monotonic()
        task = encode(validation_task(state, site.name, run.registrations))
        judged = validate_at_site(decode(task), site, run.plans, run.settings)
        dice[site.name] = read_dice(decode(encode(judged)))
        seconds[site.name] += time.monotonic() - began
    save_round(
        run,
        state,
        optimizers,
        {
            site.name: SiteRound(
                diagnostics.loss[site.name],
                {
                    name: found.total / found.cases if found.cases else None
                    for name, found in dice.get(site.name, {}).items()
                },
                *sizes[site.name],
                seconds[site.name],
            )
            for site in sites
        },
        mean_dice(dice.values()) if due else None,
    )
    return state


def _check_same_run(there: Run, asked: Run) -> None:
    before, now = (
        {
            **dataclasses.asdict(run.settings),
            "fold": run.fold,
            **{f"site {name}": str(told) for name, told in sorted(run.registrations.items())},
            "plans": run.plans.to_json(),
        }
        for run in (there, asked)
    )
    changed = [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]
    if changed:
        told = (
            name if name == "plans" else f"{name} ({before.get(name)}, now {now.get(name)})"
            for name in changed
        )
        raise ModelError(
            f"{there.folder}: the run was started with other {', '.join(told)}. Resume it with "
            "the same, or start a new run in another folder"
        )
