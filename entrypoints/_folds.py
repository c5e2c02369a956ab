"""A run in folds: each is trained, and what they measured is added up."""

import argparse
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mixmfl.core.errors import MixmflError

from . import _training
from ._command import Command

if TYPE_CHECKING:
    from mixmfl.federated.server.cross_validation import CrossValidation
    from mixmfl.federated.server.kept_options import Words
    from mixmfl.federated.server.run import Run
    from mixmfl.planning.plans import Plans


Train = Callable[[_training.Asked], None]
"""Trains one fold as it is asked for."""


def cross_validate(command: Command, plans: "Plans", train: Train) -> Path | None:
    """Train every fold of every configuration, and add up what they measured.

    Args:
        command: The command.
        plans: Plans of WORK.
        train: Trains a fold.

    Returns:
        The model that prediction is to use, or the folder whose models it is to average; None: not
        all folds are trained.
    """
    from mixmfl.federated.server.cross_validation import begin_folds, begun_fold
    from mixmfl.inference.model_folder import FOLD_NAMES, holds_folds, read_folds

    options, out = command.options, command.options.out
    folders = _begin(options, plans)
    begun = [read_folds(folder).folds for folder in folders.values() if holds_folds(folder)]
    known = [fold for fold in FOLD_NAMES if any(fold in each for each in begun)]
    folds = options.fold or known or ["0"]
    for name, folder in folders.items():
        begin_folds(folder, name, folds, resume=options.resume)
    keep = _training.Keep(_options_of_folds(command, folders.values(), folds))
    if not options.resume:  # nothing can be resumed otherwise than it was asked for
        keep()
    found: list[CrossValidation | None] = []
    before: Path | None = None
    for name, folder in folders.items():
        like = next(filter(None, map(begun_fold, folders.values())), None)
        asked = _Folds(command, folder, name, folds, like, before, keep)
        found.append(_train_folds(asked, train))
        before = folder
    done = [each for each in found if each is not None]
    if len(done) < len(found):
        print(f"{out}: is registered for mixmfl_predict when all of its folds are trained")
        return None
    if len(done) > 1 and not _choose(out, done):
        return None
    return _model_of(out)


def _begin(options: argparse.Namespace, plans: "Plans") -> dict[str, Path]:
    """Return the folder of each configuration that is trained; begin what compares several.

    Raises:
        MixmflError: What is asked does not fit what the run has, or nothing could be compared.
    """
    from mixmfl.federated.server.cross_validation import (
        begin_configurations,
        configurations_of,
        in_order,
    )
    from mixmfl.inference.model_folder import EVERY_CASE, holds_folds, read_folds
    from mixmfl.planning.plans import usual_configuration

    out = options.out
    names = configurations_of(out) or in_order(options.configuration)
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
        return {name: out / name for name in names}
    if holds_folds(out):
        return {names[0] if names else read_folds(out).configuration: out}
    if options.resume:
        raise MixmflError(f"--resume: {out} holds no run in folds; leave it out to start one")
    return {names[0] if names else usual_configuration(options.input, plans): out}


def _choose(out: Path, done: "Sequence[CrossValidation]") -> bool:
    """Choose the best of several configurations; return whether all sites have compared them."""
    from mixmfl.federated.server.cross_validation import (
        choice_lines,
        choose_configuration,
        compare_folds,
        write_choice,
    )

    compared, left = compare_folds(done)
    if left:
        print(
            f"{out}: none is chosen yet, for no site has compared the models that both "
            f"configurations have now in fold {', '.join(left)}; --resume --fold "
            f"{' '.join(left)} has this done"
        )
        return False
    record = choose_configuration(done, compared, out)
    write_choice(out, record, done, compared)
    print("\n".join(choice_lines(record)))
    return True


def _model_of(out: Path) -> Path:
    """Return what prediction is to use of a run whose folds are done, and print what it takes."""
    from mixmfl.federated.server.run_page import FOLDS_PAGE
    from mixmfl.inference.model_folder import (
        EVERY_CASE,
        MODEL,
        best_configurations,
        fold_folder,
        model_files,
        models_of_folds,
    )

    print(f"its scores: {out / FOLDS_PAGE}")
    chosen = best_configurations(out)
    files = model_files(out)
    takes = f"the mean of {len(files)} models"
    if len(files) == 1:
        takes = f"the model of fold {next(iter(models_of_folds(chosen[0])))}"
    print(f"mixmfl_predict -m {out} takes {takes}")
    # one model, of all cases, is what it was trained for
    of_all = [fold_folder(folder, EVERY_CASE) / MODEL for folder in chosen]
    if not all(file.is_file() for file in of_all):
        return out
    if len(of_all) > 1:  # no one file computes their ensemble
        models = " ".join(map(str, of_all))
        print(f"mixmfl_predict -m {models} takes the mean of those that trained on every case")
        return out
    return of_all[0]


@dataclass(frozen=True)
class _Folds:
    """The folds of one configuration, and what is asked of them.

    Attributes:
        command: The command.
        folder: The folder that has theirs in it.
        configuration: Their configuration.
        folds: The folds to train.
        like: A run as which they are trained where none of them has begun.
        before: The folder of the configuration that was trained before, with whose folds those of
            this one are compared as they end.
        keep: Keeps the options of all folds.
    """

    command: Command
    folder: Path
    configuration: str
    folds: Sequence[str]
    like: "Run | None"
    before: Path | None
    keep: _training.Keep


def _options_of_folds(
    command: Command, configurations: Collection[Path], folds: Sequence[str]
) -> "Mapping[Path, Words]":
    """Return by folder the options of every fold that is to be trained.

    These are named here or kept by the fold; of one that keeps none and has not begun, by another.

    Args:
        command: The command.
        configurations: The folder of each configuration.
        folds: The folds to train.
    """
    from mixmfl.federated.server.kept_options import holds_options, kept_options
    from mixmfl.federated.server.run_record import holds_run
    from mixmfl.inference.model_folder import fold_folder, read_folds

    wanted = [fold_folder(folder, fold) for folder in configurations for fold in folds]
    if not command.options.resume:
        return dict.fromkeys(wanted, command.named)
    every = [fold_folder(each, fold) for each in configurations for fold in read_folds(each).folds]
    others = [folder for folder in every if holds_options(folder)]
    if not others and not any(map(holds_run, every)):
        print(
            f"{command.options.out}: no fold has begun, and what was asked of them first is not "
            "known; what is not named now is as planned"
        )
    options = dict[Path, "Words"]()
    for folder in wanted:
        kept = kept_options(folder)
        if others and not (holds_options(folder) or holds_run(folder)):
            kept = kept_options(others[0], other=True)
        options[folder] = {**kept, **command.named}
    return options


def _train_folds(asked: _Folds, train: Train) -> "CrossValidation | None":
    """Train the folds of one configuration; return what they measured, if all are done."""
    from mixmfl.federated.server.cross_validation import begun_fold, pool_folds, unfinished_folds
    from mixmfl.federated.server.orders import job_file
    from mixmfl.federated.server.run_record import holds_run
    from mixmfl.inference.model_folder import EVERY_CASE, MODEL, fold_folder

    folder, before = asked.folder, asked.before
    for fold in asked.folds:
        out = fold_folder(folder, fold)
        print(f"{asked.configuration}, fold {fold}: {out}")
        one = _training.asked_of(asked.command, asked.keep, out, fold, asked.configuration)
        one = replace(one, resume=holds_run(out) or job_file(out).is_file())
        if one.resume:
            one = replace(one, init=None)  # it is for folds that have not begun
        else:
            one = replace(one, like=begun_fold(folder) or asked.like)
        if fold == EVERY_CASE:
            one = replace(one, stop_when_flat=0)  # nothing tells when it is
        elif before is not None and fold not in unfinished_folds(before):
            one = replace(one, beside=fold_folder(before, fold))
        train(one)
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
