"""From a run to a model file: of any saved round, or of a personalised model."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from mixmfl.core.errors import ModelError
from mixmfl.evaluation.mask_quality import Measured
from mixmfl.federated.server.checkpoint import load_personal, load_state_of
from mixmfl.federated.server.measured import load_measured
from mixmfl.federated.server.run import choose_round, privacy_spent
from mixmfl.federated.server.run_record import open_run
from mixmfl.inference.model import TrainedOn
from mixmfl.inference.model_file import save_model


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
    state, measured = load_state_of(run, number), load_measured(run, number)
    if site:
        if number != choose_round(run, "best"):
            raise ModelError(f"{run_folder}: personalised models are made from the best round only")
        own = load_personal(run, site)
        state = dataclasses.replace(state, weights={**state.weights, **own})
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
