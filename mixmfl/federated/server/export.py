"""From a run to a model file: of any saved round, or of a personalised model; or to nnU-Net's."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mixmfl.core.errors import ModelError
from mixmfl.evaluation.mask_quality import Measured
from mixmfl.federated.server.checkpoint import load_personal, load_state_of
from mixmfl.federated.server.measured import load_measured
from mixmfl.federated.server.run import Run, choose_round, privacy_spent
from mixmfl.federated.server.run_record import open_run
from mixmfl.federated.state import ServerState
from mixmfl.inference.model import TrainedOn
from mixmfl.inference.model_file import save_model
from mixmfl.networks.nnunet_results import check_writable, departures, write_results


@dataclass(frozen=True)
class Pooled:
    """What the models of several folds measured together.

    Attributes:
        measured: The sums over all folds.
        folds: The folds.
    """

    measured: Measured
    folds: tuple[str, ...]


def export_model(
    run_folder: Path, which: str, out: Path, site: str = "", pooled: Pooled | None = None
) -> tuple[int, str]:
    """Write the model of a saved round, or a site's personalised model, to a file.

    Args:
        run_folder: Folder of the run.
        which: ``"best"``, ``"last"`` or a round's number.
        out: The file to write; replaced if it is there.
        site: Site whose personalised model is written; empty: the global model.
        pooled: What all folds measured, in place of what this one did; None: it is written.

    Returns:
        The round, and the file's SHA-256.

    Raises:
        ModelError: There is no such run, round or personalised model, or the site does not use it.
    """
    run = open_run(run_folder)
    number = choose_round(run, which)
    state, measured = _state_of(run, number, site), load_measured(run, number)
    if site:
        measured, pooled = None, None  # they were measured for the global model
    if pooled:
        measured = pooled.measured
    trained_on = TrainedOn(
        run.modality_cases,
        run.modality_sites,
        pooled.folds if pooled else (),
        privacy_spent(run, number),
    )
    digest = save_model(out, state, run.plans, run.settings.configuration, trained_on, measured)
    return number, digest


def export_to_nnunet(
    run_folders: Sequence[Path], which: str, out: Path, site: str = ""
) -> tuple[dict[str, int], list[str]]:
    """Write the models of saved rounds, one per fold, as nnU-Net's folder of a trained model.

    Args:
        run_folders: Folders of runs, each of another fold.
        which: ``"best"``, ``"last"`` or a round's number.
        out: The folder to write, which is not there yet.
        site: Site whose personalised models are written; empty: the global models.

    Returns:
        The round by fold; and what nnU-Net does otherwise when it predicts.

    Raises:
        ModelError: nnU-Net does not have their network or normalisation; there is no such round or
            personalised model; or ``out`` is there already.
    """
    runs = [open_run(folder) for folder in run_folders]
    first = runs[0]
    configuration = first.settings.configuration
    check_writable(first.plans, configuration, str(first.folder))
    rounds = {run.fold: choose_round(run, which) for run in runs}
    weights = {run.fold: _state_of(run, rounds[run.fold], site).weights for run in runs}
    cases = sum(each.cases for each in first.registrations.values())
    write_results(out, first.plans, configuration, weights, cases)
    trained = [name for name, count in first.modality_cases.items() if count]
    return rounds, departures(first.plans, configuration, trained)


def _state_of(run: Run, number: int, site: str) -> ServerState:
    """Return the state after a round, with the blocks of a site's personalised model if named.

    Raises:
        ModelError: It is not stored, or the site has no personalised model of that round.
    """
    if site and number != choose_round(run, "best"):
        raise ModelError(
            f"{run.folder}: personalised models are made from the best round, "
            f"{choose_round(run, 'best')}, and there is none of round {number}; leave out --round"
        )
    state = load_state_of(run, number)
    if not site:
        return state
    return dataclasses.replace(state, weights={**state.weights, **load_personal(run, site)})
