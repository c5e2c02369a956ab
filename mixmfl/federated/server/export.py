"""From a run to a model file: of any saved round, or of a site's own copy."""

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


def export_model(run_folder: Path, wanted: str, out: Path, site: str = "") -> tuple[int, str]:
    """Write the model of a saved round, or a site's own copy of one, to a file.

    Args:
        run_folder: Of the run.
        wanted: ``"best"``, ``"last"`` or a round's number.
        out: The file to write; replaced if it is there.
        site: Whose own copy, which is one of the best round; empty: the model of all.

    Returns:
        The round, and the file's SHA-256.

    Raises:
        ModelError: There is no such run, round or copy, or the site does not use its copy.
    """
    run = open_run(run_folder)
    number = choose_round(run, wanted)
    state, expected = load_state_of(run, number), load_expected(run, number) or ()
    if site:
        if number != choose_round(run, "best"):
            raise ModelError(f"{run_folder}: sites' own copies are made from the best round only")
        own = load_personal(run, site)
        state = dataclasses.replace(state, weights={**state.weights, **own})
        expected = ()  # it was measured for the model of all
    digest = save_model(
        out,
        state,
        run.plans,
        run.settings.configuration,
        run.modality_cases,
        privacy_spent(run, number),
        expected,
    )
    return number, digest
