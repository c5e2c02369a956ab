"""What was measured of a run's model on validation cases: ``RUN/expected.json`` and its table."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Annotated

from mixmfl.core.declarations import entries, text
from mixmfl.core.errors import ModelError
from mixmfl.core.files import read_long_json, write_json, write_text
from mixmfl.core.json_fields import MOST_NAME
from mixmfl.core.records import json_of, read_record, read_value
from mixmfl.evaluation.mask_quality import Measured
from mixmfl.federated.secure_aggregation.signatures import MOST_SITES
from mixmfl.federated.server.run import Run
from mixmfl.federated.server.run_record import record_digest
from mixmfl.federated.server.run_tables import subsets_table

_Sites = Annotated[Mapping[Annotated[str, text(MOST_NAME)], Measured], entries(0, MOST_SITES)]


def save_measured(
    run: Run, number: int, measured: Measured, by_site: Mapping[str, Measured]
) -> None:
    """Save what was measured of a round's model on validation cases, of all sites and of each."""
    sites = {site: json_of(each) for site, each in by_site.items()}
    content = {"round": number, **json_of(measured), "sites": sites}
    write_json(run.folder / "expected.json", {**content, "sha256": record_digest(content)})
    write_text(run.folder / "subsets.csv", subsets_table(measured, by_site))


def load_measured(run: Run, number: int) -> Measured | None:
    """Return what ``save_measured`` saved of a round; None where that is not the round measured.

    Raises:
        ModelError: The file is damaged.
    """
    stored = _load_measured(run, number)
    return None if stored is None else stored[0]


def load_measured_sites(run: Run, number: int) -> dict[str, Measured] | None:
    """Return what each site measured of a round; None where that is not the round measured.

    Raises:
        ModelError: The file is damaged.
    """
    stored = _load_measured(run, number)
    return None if stored is None else stored[1]


def _load_measured(run: Run, number: int) -> tuple[Measured, dict[str, Measured]] | None:
    """Return what was measured at all sites and at each.

    Raises:
        ModelError: The file is damaged.
    """
    file = run.folder / "expected.json"
    if not file.is_file():
        return None
    content = read_long_json(file, ModelError)
    try:
        if content["sha256"] != record_digest(content):
            raise ValueError("it is not what was written")
        if content["round"] != number:
            return None
        of_all = {each.name: content[each.name] for each in fields(Measured)}
        return (
            read_record(Measured, of_all, "all sites", ModelError),
            read_value(_Sites, content["sites"], "sites", ModelError),
        )
    except (KeyError, ValueError, ModelError) as error:
        raise ModelError(
            f"{file}: is damaged, or another version of mixmfl wrote it ({error}); remove it, and "
            "mixmfl_train_federated --resume measures again"
        ) from None
