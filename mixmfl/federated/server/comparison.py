"""Two configurations and their mean on the same validation cases: ``RUN/comparison.json``.

nnU-Net compares its configurations with the ensemble of each two of them by cross-validation. Here
the sites measure all three when the second of two runs of a fold ends.
"""

import dataclasses
import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Annotated

from mixmfl.core.declarations import entries, text
from mixmfl.core.errors import AggregationError, ModelError
from mixmfl.core.files import read_long_json, write_json
from mixmfl.core.json_fields import MOST_NAME
from mixmfl.core.records import read_record
from mixmfl.evaluation.small_components import add_components
from mixmfl.federated.messages import Message
from mixmfl.federated.secure_aggregation.signatures import MOST_SITES
from mixmfl.federated.server.merge import validation_task
from mixmfl.federated.server.reply_records import (
    Compared,
    ComparisonReply,
    Round,
    check_round,
    read_reply,
)
from mixmfl.federated.server.run import Run, choose_round
from mixmfl.federated.server.subset_validation import check_components
from mixmfl.federated.server.update_checks import check_answer
from mixmfl.federated.state import BESIDE, COMPARE, ServerState
from mixmfl.inference.model_folder import CANDIDATES, Configuration
from mixmfl.planning.nnunet_plans import CONFIGURATIONS
from mixmfl.planning.plans import Plans

log = logging.getLogger(__name__)

COMPARISON_FILE = "comparison.json"


@dataclasses.dataclass(frozen=True)
class _Comparison:
    """What ``comparison.json`` says.

    Attributes:
        rounds: The round of each configuration whose model was measured.
        components: What was measured at all sites.
        sites: What was measured at each.
    """

    rounds: Annotated[Mapping[Configuration, Round], entries(2, len(CONFIGURATIONS))]
    components: Compared
    sites: Annotated[Mapping[Annotated[str, text(MOST_NAME)], Compared], entries(0, MOST_SITES)]


def load_comparison(run: Run, beside: Run) -> Compared | None:
    """Return what was measured of two runs; None where that is not of the models that they have.

    Args:
        run: The run that was trained second; the file is in its folder.
        beside: The other run.

    Raises:
        ModelError: The file is damaged.
    """
    stored = _load(run, beside)
    return None if stored is None else stored.components


def load_compared_sites(run: Run, beside: Run) -> Mapping[str, Compared] | None:
    """Return what each site measured of two runs; None as in ``load_comparison``.

    Raises:
        ModelError: The file is damaged.
    """
    stored = _load(run, beside)
    return None if stored is None else stored.sites


def _load(run: Run, beside: Run) -> _Comparison | None:
    file = run.folder / COMPARISON_FILE
    if not file.is_file():
        return None
    stored = read_record(_Comparison, read_long_json(file, ModelError), str(file), ModelError)
    return stored if stored.rounds == _rounds(run, beside) else None


def save_comparison(run: Run, beside: Run, by_site: Mapping[str, Compared]) -> None:
    """Write what the sites measured of two runs, and the sums over all of them."""
    in_order = {site: by_site[site] for site in sorted(by_site)}
    content = _Comparison(_rounds(run, beside), add_compared([*in_order.values()]), in_order)
    write_json(run.folder / COMPARISON_FILE, dataclasses.asdict(content))


def _rounds(run: Run, beside: Run) -> dict[str, int]:
    return {each.settings.configuration: choose_round(each, "best") for each in (run, beside)}


def comparison_tasks(
    run: Run, beside: Run, sites: Collection[str], state: ServerState, other: ServerState
) -> dict[str, Message]:
    """Return by site the task to measure the models of two runs and their mean.

    They are measured with the modalities that both networks were trained for.

    Args:
        run: The run in which the sites take part now.
        beside: The other run, of another configuration.
        sites: The sites that are asked, which took part in both.
        state: The state whose model ``run`` exports.
        other: The state whose model ``beside`` exports.
    """
    tasks = {}
    for site in sorted(sites):
        mine, theirs = (
            validation_task(state, site, run.known),
            validation_task(other, site, {**beside.known, site: run.known[site]}),
        )
        known = theirs.record["modalities"]
        record = {
            "round": state.round,
            "modalities": [name for name in mine.record["modalities"] if name in known],
            "beside": beside.settings.configuration,
        }
        tensors = {f"{BESIDE}{name}": tensor for name, tensor in theirs.tensors.items()}
        tasks[site] = Message(COMPARE, record, {**mine.tensors, **tensors})
    return tasks


def read_compared_sites(run: Run, replies: Mapping[str, Message]) -> dict[str, Compared]:
    """Return what each site measured, without replies that cannot be true."""
    number, by_site = choose_round(run, "best"), {}
    for site in sorted(replies):
        try:
            labelled = run.registrations[site].labelled
            by_site[site] = read_compared(site, replies[site], number, run.plans, labelled)
        except AggregationError as error:
            log.warning("%s: its comparison of configurations is left out: %s", site, error)
    return by_site


def read_compared(
    site: str,
    reply: Message,
    round_number: int,
    plans: Plans,
    labelled: Collection[str] | None = None,
) -> Compared:
    """Check a site's reply to one of ``comparison_tasks``, and return what it measured.

    Raises:
        AggregationError: The reply is something else, or cannot be true.
    """
    check_answer(site, COMPARE, reply)
    check_round(site, COMPARE, reply, round_number)
    compared = read_reply(ComparisonReply, site, reply).components
    if missing := sorted({*CANDIDATES} - {*compared}):
        raise AggregationError(f"site {site!r}: components: {', '.join(missing)} is missing")
    for components in compared.values():
        check_components(site, components, plans, labelled)
    return compared


def add_compared(parts: Sequence[Compared]) -> Compared:
    """Return the sums over all parts, of the labels of which any case was measured."""
    sums = {}
    for candidate in CANDIDATES:
        each = [part[candidate] for part in parts if candidate in part]
        names = dict.fromkeys(name for one in each for name in one)
        total = {name: add_components([one[name] for one in each if name in one]) for name in names}
        sums[candidate] = {name: of_label for name, of_label in total.items() if of_label.cases}
    return sums
