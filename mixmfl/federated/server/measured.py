"""What was measured of a run's model on validation cases: ``RUN/expected.json`` and its table."""

from collections.abc import Mapping
from typing import Any

from mixmfl.core.errors import ModelError
from mixmfl.core.files import read_long_json, write_json, write_text
from mixmfl.core.json_fields import Range, named
from mixmfl.core.records import read_value
from mixmfl.core.text import one_line
from mixmfl.evaluation.mask_quality import Confidence, Measured
from mixmfl.evaluation.reliability import Reliabilities
from mixmfl.evaluation.small_components import Components
from mixmfl.evaluation.subset_dice import Expected
from mixmfl.federated.secure_aggregation.signatures import MOST_SITES
from mixmfl.federated.server.run import Run
from mixmfl.federated.server.run_record import record_digest
from mixmfl.federated.server.run_tables import subsets_table


def save_measured(
    run: Run, number: int, measured: Measured, by_site: Mapping[str, Measured]
) -> None:
    """Save what was measured of a round's model on validation cases, of all sites and of each."""
    sites = {site: each.to_json() for site, each in by_site.items()}
    content = {"round": number, **measured.to_json(), "sites": sites}
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
        # those of earlier versions have no sites, and nothing of reliability and components
        by_site = named(content.get("sites", {}), Range(0, MOST_SITES), "sites", ModelError)
        sites = {site: read_measured_json(each, one_line(site)) for site, each in by_site.items()}
        return read_measured_json(content, "all sites"), sites
    except (KeyError, ValueError, ModelError) as error:
        raise ModelError(
            f"{file}: is damaged, or another version of mixmfl wrote it ({error}); remove it, and "
            "mixmfl_train_federated --resume measures again"
        ) from None


def read_measured_json(content: Any, source: str) -> Measured:
    """Read what ``Measured.to_json`` wrote, maybe among other fields.

    Raises:
        ModelError: A field is missing or wrong.
    """
    content = named(content, Range(0, 10), source, ModelError)
    if missing := {"expected", "confidence"} - content.keys():
        raise ModelError(f"{source}: {sorted(missing)[0]} is missing")
    return Measured(
        read_value(Expected, content["expected"], f"{source}: expected", ModelError),
        read_value(Confidence, content["confidence"], f"{source}: confidence", ModelError),
        read_value(
            Reliabilities, content.get("reliability", {}), f"{source}: reliability", ModelError
        ),
        read_value(Components, content.get("components", {}), f"{source}: components", ModelError),
    )
