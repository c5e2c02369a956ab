"""From a run to a model file: of any saved round, or of a personalised model."""

import dataclasses
from pathlib import Path

from mixmfl.core.errors import ModelError
from mixmfl.federated.server.checkpoint import (
    choose_round,
    load_expected,
    load_personal,
    load_state_of,
    open_run,
    privacy_spent,
)
from mixmfl.inference.model import save_model


def export_model(run_folder: Path, which: str, out: Path, site: str = "") -> tuple[int, str]:
    """Write the model of a saved round, or a site's personalised model, to a file.

    Args:
        run_folder: Folder of the run.
        which: ``"best"``, ``"last"`` or a round's number.
        out: The file to write; replaced if it is there.
        site: Site whose personalised model is written; empty: the global model.

    Returns:
        The round, and the file's SHA-256.

    Raises:
        ModelError: There is no such run, round or personalised model, or the site does not use it.
    """
    run = open_run(run_folder)
    number = choose_round(run, which)
    state, expected = load_state_of(run, number), load_expected(run, number) or ()
    if site:
        if number != choose_round(run, "best"):
            raise ModelError(f"{run_folder}: personalised models are made from the best round only")
        own = load_personal(run, site)
        state = dataclasses.replace(state, weights={**state.weights, **own})
        expected = ()  # it was measured for the global model
    digest = save_model(
        out,
        state,
        run.plans,
        run.settings.configuration,
        run.modality_cases,
        privacy_spent(run, number),
        expected,
        run.modality_sites,
    )
    return number, digest
