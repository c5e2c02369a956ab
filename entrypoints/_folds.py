"""A run in folds: each is trained, and what they measured is added up."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mixmfl.core.errors import MixmflError

from . import _training

if TYPE_CHECKING:
    from mixmfl.federated.server.cross_validation import CrossValidation
    from mixmfl.planning.plans import Plans


Train = Callable[[_training.Asked], None]
"""Trains one fold as it is asked for."""


def cross_validate(options: argparse.Namespace, plans: "Plans", train: Train) -> Path | None:
    """Train every fold of every configuration, and add up what they measured.

    Args:
        options: The parsed options.
        plans: Plans of WORK.
        train: Trains a fold.

    Returns:
        The model that prediction is to use, or the folder whose models it is to average; None: not
        all folds are trained.
    """
    from mixmfl.federated.server.cross_validation import (
        begin_configurations,
        begin_folds,
        begun_fold,
        choice_lines,
        choose_configuration,
        compare_folds,
        configurations_of,
        in_order,
        write_choice,
    )
    from mixmfl.federated.server.run_page import FOLDS_PAGE
    from mixmfl.inference.model_folder import (
        EVERY_CASE,
        MODEL,
        best_configurations,
        fold_folder,
        holds_folds,
        model_files,
        models_of_folds,
        read_folds,
    )
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
        folders = {name: out / name for name in names}
    elif holds_folds(out):
        folders = {names[0] if names else read_folds(out).configuration: out}
    elif options.resume:
        raise MixmflError(f"--resume: {out} holds no run in folds; leave it out to start one")
    else:
        folders = {names[0] if names else usual_configuration(options.input, plans): out}
    known = [read_folds(folder).folds for folder in folders.values() if holds_folds(folder)]
    folds = options.fold or (list(known[0]) if known else ["0"])
    found: list[CrossValidation | None] = []
    before: Path | None = None
    for name, folder in folders.items():
        begin_folds(folder, name, folds, resume=options.resume)
        begun = filter(None, map(begun_fold, filter(holds_folds, folders.values())))
        asked = _training.asked_of(options, folder, "", name)
        found.append(_train_folds(folds, replace(asked, like=next(begun, None)), before, train))
        before = folder
    done = [each for each in found if each is not None]
    if len(done) < len(found):
        print(f"{out}: is registered for mixmfl_predict when all of its folds are trained")
        return None
    if len(done) > 1:
        compared = compare_folds(done)
        record = choose_configuration(done, compared, out)
        write_choice(out, record, done, compared)
        print("\n".join(choice_lines(record)))
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


def _train_folds(
    folds: Sequence[str], asked: _training.Asked, before: Path | None, train: Train
) -> "CrossValidation | None":
    """Train the folds of one configuration; return what they measured, if all are done.

    Args:
        folds: The folds to train.
        asked: What is asked of them all; ``out`` is the folder that has theirs in it.
        before: The folder of the configuration that was trained before, with whose folds those of
            this one are compared as they end.
        train: Trains a fold.
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
        elif before is not None and fold not in unfinished_folds(before):
            one = replace(one, beside=fold_folder(before, fold))
        print(f"{asked.configuration}, fold {fold}: {out}")
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
