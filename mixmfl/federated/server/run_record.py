"""The record of a run, ``RUN/run.json``: whose run it is, its settings, and what its rounds did.

It has a digest of itself, and a copy with the states of every round: where it is damaged, the
newest copy that is not is read.
"""

import dataclasses
import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from mixmfl.core.declarations import entries, text, within
from mixmfl.core.errors import MixmflError, ModelError
from mixmfl.core.files import read_long_json, write_json
from mixmfl.core.json_fields import MOST_NAME, Range, fields, shown, whole
from mixmfl.core.nan import or_nan, or_none
from mixmfl.core.records import read_record
from mixmfl.federated.secure_aggregation.signatures import MOST_SITES
from mixmfl.federated.server.changes import Change
from mixmfl.federated.server.initial_state import Start
from mixmfl.federated.server.run import Run, SiteRound, SubsetMedians
from mixmfl.federated.server.update_checks import check_registration
from mixmfl.federated.state import SPLIT, Personal, Registration, RunSettings
from mixmfl.federated.tensor_files import FORMAT, other_format
from mixmfl.inference.model_folder import Fold
from mixmfl.planning.bounds import MOST_ROUNDS
from mixmfl.planning.plans import Plans

log = logging.getLogger(__name__)

_Site = Annotated[str, text(MOST_NAME)]
_Sites = Annotated[Mapping[_Site, Registration], entries(0, MOST_SITES)]
_Number = Annotated[str, text(9, "[0-9]+", "a round's number")]
_Share = Annotated[float, within(0, 1)]


@dataclass(frozen=True)
class _Record:
    """``run.json``; ``Run`` says what is in it. The digests are compared before."""

    format: Annotated[int, within(FORMAT, FORMAT)]
    split: Annotated[int, within(SPLIT, SPLIT)]
    settings: RunSettings
    fold: Fold
    sites: _Sites
    dice: Annotated[Mapping[_Number, _Share | None], entries(0, MOST_ROUNDS)]
    personal: Annotated[Mapping[_Site, tuple[_Share | None, _Share | None]], entries(0, MOST_SITES)]
    history: Annotated[
        tuple[Annotated[Mapping[_Site, SiteRound], entries(0, MOST_SITES)], ...],
        entries(0, MOST_ROUNDS),
    ]
    former: _Sites
    seconds: Annotated[
        Mapping[_Number, Annotated[float, within(0, 2**63)]], entries(0, MOST_ROUNDS)
    ]
    subset_dice: Annotated[Mapping[_Number, SubsetMedians], entries(0, MOST_ROUNDS)]
    stop_when_flat: Annotated[int, within(0, MOST_ROUNDS)]
    changes: Annotated[tuple[Change, ...], entries(0, 10**6)]
    start: Start | None
    plans_sha256: Any
    sha256: Any


def holds_run(folder: Path) -> bool:
    """Say whether a run was started in a folder."""
    return (folder / "run.json").is_file()


def record_time(folder: Path) -> int:
    """Return when the record of a run was last written, in ns; it is only ever replaced whole."""
    return (folder / "run.json").stat().st_mtime_ns


def open_run(folder: Path) -> Run:
    """Read a run.

    Raises:
        ModelError: The folder holds none, or one of another format.
    """
    if not holds_run(folder):
        raise ModelError(f"{folder}: holds no run (there is no run.json in it)")
    record = _read_record(folder)
    if record.get("format") != FORMAT:
        raise ModelError(other_format(folder / "run.json", record))
    plans = Plans.load(folder / "plans.json")
    if record.get("plans_sha256") != record_digest(plans.to_json()):
        raise ModelError(
            f"{folder / 'plans.json'}: is damaged or was changed; the run was started with other "
            "plans. Put those back, from a copy or from plans.json of the folder given by -i"
        )
    try:
        return _read_run(folder, record, plans)
    except MixmflError as error:
        raise ModelError(
            f"{folder / 'run.json'}: is damaged, or another version of mixmfl wrote it ({error}); "
            "resume with the version that began the run, or start a new one from its model file by "
            "--init"
        ) from None


def _read_run(folder: Path, content: Mapping[str, Any], plans: Plans) -> Run:
    """Return the run that a record describes.

    Raises:
        MixmflError: A field is wrong.
    """
    record = read_record(_Record, content, "run", ModelError, whole=True)
    for site, registration in (*record.sites.items(), *record.former.items()):
        if site.startswith(".") or set(site) & set("/\\"):  # names a file
            raise ModelError(f"{shown(site)} cannot name a site")
        check_registration(site, registration, plans)
    for by_site in (*record.history, record.personal):
        fields(by_site, (), "sites", may=(*record.sites, *record.former))
    settings = record.settings
    plans.configuration(settings.configuration)
    whole(len(record.history), Range(0, settings.rounds), "rounds in the history", ModelError)
    return Run(
        folder=folder,
        plans=plans,
        settings=settings,
        fold=record.fold,
        registrations=record.sites,
        history=list(record.history),
        dice={int(number): or_nan(dice) for number, dice in record.dice.items()},
        personal={
            site: Personal(or_nan(dice), or_nan(before))
            for site, (dice, before) in record.personal.items()
        },
        stop_when_flat=record.stop_when_flat,
        changes=list(record.changes),
        start=record.start,
        former=dict(record.former),
        seconds={int(number): seconds for number, seconds in record.seconds.items()},
        subset_dice={int(number): medians for number, medians in record.subset_dice.items()},
    )


def write_record(run: Run) -> None:
    """Write a run's record, after its copy in the folder of the last round."""
    content: dict[str, Any] = {
        "format": FORMAT,
        "settings": dataclasses.asdict(run.settings),
        "fold": run.fold,
        "split": SPLIT,
        "plans_sha256": record_digest(run.plans.to_json()),
        "sites": {site: dataclasses.asdict(r) for site, r in run.registrations.items()},
        "former": {site: dataclasses.asdict(r) for site, r in run.former.items()},
        "dice": {str(n): or_none(dice) for n, dice in run.dice.items()},
        "seconds": {str(n): seconds for n, seconds in run.seconds.items()},
        "subset_dice": {str(n): medians for n, medians in run.subset_dice.items()},
        "personal": {
            site: [or_none(personal.dice), or_none(personal.dice_before)]
            for site, personal in run.personal.items()
        },
        "stop_when_flat": run.stop_when_flat,
        "changes": [dataclasses.asdict(change) for change in run.changes],
        "start": None if run.start is None else dataclasses.asdict(run.start),
        "history": [
            {site: dataclasses.asdict(at_site) for site, at_site in sites.items()}
            for sites in run.history
        ],
    }
    content["sha256"] = record_digest(content)
    if run.history:
        write_json(round_folder(run, len(run.history)) / "run.json", content)
    write_json(run.folder / "run.json", content)


def record_digest(content: Mapping[str, Any]) -> str:
    """Return the SHA-256 of JSON content, but for the field ``sha256``, which holds it."""
    text = json.dumps({name: value for name, value in content.items() if name != "sha256"})
    return hashlib.sha256(text.encode()).hexdigest()


def _read_record(folder: Path) -> dict[str, Any]:
    """Read a run's record; where it is damaged, the newest that a round was saved with."""
    rounds = sorted((folder / "rounds").glob("*/run.json"), reverse=True)
    for file in (folder / "run.json", *rounds):
        try:
            record = read_long_json(file, ModelError)
            if record.get("format") == FORMAT and record.get("sha256") != record_digest(record):
                raise ModelError(f"{file}: is damaged; it is not what was written")
        except ModelError as error:
            log.warning("%s", error)
            continue
        return record
    raise ModelError(f"{folder / 'run.json'}: is damaged, and no round has a record that is not")


def round_folder(run: Run, number: int) -> Path:
    """Return the folder of the states of a round."""
    return run.folder / "rounds" / f"{number:05d}"
