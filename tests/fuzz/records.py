"""Files of JSON and tables under attack: what is read is plain, finite and within bounds.

A file is refused as a whole, or what was read of it can be used as the product uses it.
"""

import csv
import dataclasses
import io
import json
import random
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path
from typing import Any
from unittest import mock

from hostile import fingerprint, use_fingerprint
from mutations import NAMES, NUMBERS, mutated_bytes, mutated_json
from small import LABELS_JSON, small_plans, write_case
from targets import WrongError, judged, plain

from mixmfl.core.files import read_json
from mixmfl.core.spreadsheet import from_cell
from mixmfl.data.cases import find_cases
from mixmfl.data.dataset_card import find_card
from mixmfl.data.dicom.cases import find_all, split_mapping
from mixmfl.data.labels import Labels, read_site_labels
from mixmfl.data.mapping import read_mapping
from mixmfl.data.modalities import Modalities
from mixmfl.data.partition import read_partition
from mixmfl.evaluation.subset_dice import LabelDice
from mixmfl.federated.client import approval
from mixmfl.federated.client.approval import Approval, Job, Policy, waiting
from mixmfl.federated.client.audit_log import AuditLog, verify_log
from mixmfl.federated.client.limits import Limits, check_joined, run_begun
from mixmfl.federated.client.own_folds import OwnFolds
from mixmfl.federated.client.site_config import SiteConfig
from mixmfl.federated.client.summed_sites import SummedSites
from mixmfl.federated.flare.kits import CERTIFICATES, Kit, ending_soon, open_kit
from mixmfl.federated.flare.provisioning import Network
from mixmfl.federated.secure_aggregation.identities import read_peers
from mixmfl.federated.server.kept_options import OPTIONS_FILE, keep_options, kept_options
from mixmfl.federated.server.orders import (
    PlanningJob,
    TrainingJob,
    load_job,
    read_refusals,
    save_job,
)
from mixmfl.federated.state import Minimum, RunSettings
from mixmfl.inference.default_model import registered_model
from mixmfl.inference.outcomes import Outcome, Records
from mixmfl.networks.build import build_outline
from mixmfl.planning.fingerprint import Fingerprint
from mixmfl.planning.plans import Plans, load_preset, usual_configuration
from mixmfl.planning.site_folders import find_sites
from mixmfl.research.benchmark.patients import read_study
from mixmfl.research.benchmark.scores import Row, read_rows, write_rows
from mixmfl.training.privacy_budget import read_ledger

SETTINGS = RunSettings("2d", 0, 3, 2, 0.01)


@dataclasses.dataclass
class JsonFile:
    """A file of JSON, and how the product uses it."""

    file: Path
    good: Any
    use: Callable[[], Any]

    def __post_init__(self) -> None:
        """Use the good file once: it must be taken."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.file.write_text(json.dumps(self.good))
        plain(self.use())

    def attack(self, draw: random.Random) -> str:
        self.file.write_bytes(mutated_json(self.good, draw))
        return judged(self.use, plain)


def _plans(folder: Path) -> JsonFile:
    def use() -> Any:
        plans = Plans.load(folder / "plans.json")
        for name in plans.configurations:
            build_outline(plans, name)
            plans.preprocessing(name)
        if Plans.from_json(plans.to_json(), "again") != plans:
            raise WrongError("plans are others when they are written and read again")
        return plans.modalities, plans.training, plans.network, plans.labels.declared

    return JsonFile(folder / "plans.json", small_plans().to_json(), use)


def _preset(folder: Path) -> JsonFile:
    file = folder / "preset.json"
    return JsonFile(file, dataclasses.asdict(load_preset("demo")), lambda: load_preset(str(file)))


def _dataset(folder: Path) -> JsonFile:
    for name in ("imagesTr/p0_0000.nii.gz", "imagesTr/p0_0001.nii.gz", "labelsTr/p0.nii.gz"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    good = {
        "channel_names": {"0": "T1", "1": "FLAIR"},
        "labels": {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "ignore": 9},
        "regions_class_order": [1, 2],
        "label_map": {"core": "centre"},
        "name": "set", "description": "heads", "reference": "x", "licence": "CC0",
        "mixmfl": {"anatomy": "brain", "subjects": "patients"},
    }  # fmt: skip

    def use() -> Any:
        labels = Labels.load(folder / "dataset.json")
        card = find_card(folder / "imagesTr")
        found = find_cases(folder)
        read_site_labels(folder, folder)
        # names of labels may hold what a label may; those of files are checked elsewhere
        return labels.consecutive().declared, card, [case.name for case in found.cases]

    return JsonFile(folder / "dataset.json", good, use)


def _fingerprint(folder: Path) -> JsonFile:
    file = folder / "fingerprint.json"

    def use() -> Any:
        use_fingerprint(read_json(file))
        return Fingerprint.from_json(read_json(file), str(file)).to_json()

    return JsonFile(file, fingerprint(), use)


def _federation(folder: Path) -> JsonFile:
    for name in ("north", "south", "unseen"):
        write_case(folder / name / "p0", ("t1",), 0)
    (folder / "dataset.json").write_text(json.dumps(LABELS_JSON))
    good = {"held_out": ["unseen"], "tests": {"north": "south"}}

    def use() -> Any:
        return [site.name for site in find_sites(folder).sites]

    return JsonFile(folder / "federation.json", good, use)


def _site_settings(folder: Path) -> JsonFile:
    file = folder / "site.json"
    SiteConfig("north", folder / "cases", folder / "work").save(file)
    return JsonFile(file, read_json(file), lambda: SiteConfig.load(file))


def _peers(folder: Path) -> JsonFile:
    good = {"north": "ab" * 32, "south": "0" * 64}
    return JsonFile(folder / "peers.json", good, lambda: read_peers(folder / "peers.json"))


def _policy(folder: Path) -> JsonFile:
    good = {"until": "2099-06-30", "rounds": 200, "masked": True, "epsilon": 8, "plans": ["a" * 64]}
    good |= {"limits": {"queries": 50, "learning_rate": 0.1}, "minimum": {"cases": 5, "voxels": 9}}
    job = Job("b" * 64, {"job": "x"}, 5, True, "a" * 64, 1.0)

    def use() -> Any:
        policy = Policy.load(folder / "policy.json")
        approval = Approval(folder / "policy.json")
        bounds = approval.within(Limits(), Minimum())
        return policy, bounds, policy.against(job), approval.decide(job, folder)

    return JsonFile(folder / "policy.json", good, use)


def _jobs(folder: Path) -> JsonFile:
    job = Job("b" * 64, {"job": "x"}, 5, True, "a" * 64, 1.0)
    file = folder / "jobs" / f"{job.digest}.json"
    good = {
        "digest": job.digest, "facts": {"job": "x"}, "decision": "approved", "by": "doc",
        "time": "2026-01-01T00:00:00+00:00", "person": True,
    }  # fmt: skip

    def use() -> Any:
        shown = [facts for _, facts in waiting(folder / "jobs")]
        with mock.patch.object(approval, "_WAIT_SECONDS", 0.0):  # nobody is at the terminal
            return shown, Approval(None, ask=True).decide(job, folder / "jobs")

    return JsonFile(file, good, use)


def _orders(folder: Path) -> JsonFile:
    file = folder / "orders.json"
    save_job(TrainingJob(folder, folder / "run", ("north", "south"), "abc", SETTINGS, "0"), file)
    return JsonFile(file, read_json(file), lambda: load_job(file))


def _planning_orders(folder: Path) -> JsonFile:
    file = folder / "orders.json"
    save_job(PlanningJob(folder, ("north",), "demo", ("2d",), (5, 100)), file)
    return JsonFile(file, read_json(file), lambda: load_job(file))


def _kept_options(folder: Path) -> JsonFile:
    keep_options(folder, {"rounds": ("--rounds", "3"), "sites": ("--sites", "north", "south")})
    file = folder / OPTIONS_FILE
    return JsonFile(file, read_json(file), lambda: kept_options(folder))


def _used(folder: Path) -> JsonFile:
    file = folder / "used.json"

    def use() -> Any:
        shown = Limits().describe_used(file)
        Limits(rounds=10**9, queries=10**9).use("train", file)
        Limits(bytes=10**18).use_bytes(1, file)
        return shown

    return JsonFile(file, {"rounds": 3, "queries": 5, "bytes": 700, "jobs": 2}, use)


def _summed(folder: Path) -> JsonFile:
    file = folder / "summed.json"

    def use() -> Any:
        SummedSites(file).agree({"shared": ("a", "b", "c")})
        return read_json(file)

    return JsonFile(file, {"shared": ["a", "b", "c"], "loss": ["a", "b"]}, use)


def _folds(folder: Path) -> JsonFile:
    file, cases = folder / "folds.json", dict.fromkeys("abcde", ("t1",))
    own = OwnFolds(file, folder / "problems.log")
    good = {name: number for number, name in enumerate(cases)}
    return JsonFile(file, good, lambda: own.split(cases, "0", 0, "north", {}))


def _refusals(folder: Path) -> JsonFile:
    file = folder / "refusals.json"
    good = {"join": {"north": "refuses: rounds 9"}, "preprocess": {"south": "refuses: no"}}
    return JsonFile(file, good, lambda: read_refusals(folder / "orders.json"))


def _joined(folder: Path) -> JsonFile:
    file = folder / "joined.json"
    task = {
        "run": "abc", "plans": {"a": 1}, "settings": dataclasses.asdict(SETTINGS), "fold": "0",
    }  # fmt: skip
    check_joined(task, file, run_begun(file))
    return JsonFile(file, read_json(file), lambda: check_joined(task, file, run_begun(file)))


def _ledger(folder: Path) -> JsonFile:
    good = {"format": 1, "epsilon": 2.0, "delta": 1e-5, "spent": [[0.5, 1.0, 10], [0.1, 2.0, 3]]}
    file = folder / "privacy.json"
    return JsonFile(file, good, lambda: [dataclasses.astuple(s) for s in read_ledger(file)])


def _network(folder: Path) -> JsonFile:
    good = {"server": "mixmfl.example.org:8002", "sites": ["north", "south"]}
    return JsonFile(folder / "network.json", good, lambda: Network.load(folder / "network.json"))


def _kit(folder: Path) -> JsonFile:
    from loopback import write_certificate

    startup = folder / "kit" / "startup"
    startup.mkdir(parents=True)
    write_certificate(startup, "north", 300)
    good = {
        "servers": [{"service": {"target": "localhost:8002"}, "identity": "localhost"}],
        "client": {"fqsn": "north"},
    }

    def use() -> Any:
        kit = open_kit(folder / "kit", coordinator=False)
        return kit.name, kit.server, kit.coordinators

    return JsonFile(startup / "fed_client.json", good, use)


def _certificates(folder: Path) -> JsonFile:
    from datetime import datetime, timezone

    now = datetime.now(timezone.utc)
    kit = Kit(folder, "coordinator", "localhost:8002", now, "ab", ("localhost", "admin"))
    good = {"north": {"sha256": "ab" * 32, "until": "2026-01-01"}}
    return JsonFile(
        folder / "local" / CERTIFICATES, good, lambda: ending_soon(kit, date(2026, 1, 1))
    )


def _outcomes(folder: Path) -> JsonFile:
    records = Records(folder)
    records.add(
        Outcome(
            "p1", "done", used=("t1",), missing=("t2",), reference="t1",
            expected={"lesion": LabelDice(0.5, 0.3, 7)}, volumes_ml={"lesion": 1.5},
            models=("ab" * 32,), settings={"step": 0.5}, inputs={"t1": "ab"}, mask_sha256="cd",
            files=("report/p1.html",),
        )
    )  # fmt: skip

    def use() -> Any:
        read = Records(folder)
        read.write()  # as the next case does
        return [outcome.name for outcome in read.outcomes]

    return JsonFile(folder / "cases.json", read_json(folder / "cases.json"), use)


def _registered(folder: Path) -> JsonFile:
    model = folder / "m.safetensors"
    model.write_bytes(b"x")
    from mixmfl.inference.default_model import use_model

    use_model(model, folder)
    return JsonFile(
        folder / "model.json",
        read_json(folder / "model.json"),
        lambda: registered_model(folder).name,
    )


def _splits(folder: Path) -> JsonFile:
    for name in ("north", "south"):
        write_case(folder / name / "p0", ("t1", "t2"), 0)
    good = {
        "modality_sets": {"A": {"north": ["t1", "t2"], "south": ["t1"]}},
        "test_folds": [{"north": ["p0"], "south": []}],
    }

    def use() -> Any:
        study = read_study(folder)
        return list(study.patients) if hasattr(study, "patients") else []

    return JsonFile(folder / "splits.json", good, use)


def _preprocessed(folder: Path) -> JsonFile:
    return JsonFile(
        folder / "preprocessed.json",
        {"north": {"2d": [3, 0], "3d_fullres": [0, 1]}},
        lambda: usual_configuration(folder, small_plans()),
    )


JSON_FILES: Mapping[str, Callable[[Path], JsonFile]] = {
    "plans.json": _plans,
    "preset": _preset,
    "dataset.json": _dataset,
    "fingerprint.json": _fingerprint,
    "federation.json": _federation,
    "settings of a site": _site_settings,
    "peers": _peers,
    "policy": _policy,
    "jobs": _jobs,
    "orders of training": _orders,
    "orders of planning": _planning_orders,
    "options of a run": _kept_options,
    "used.json": _used,
    "summed_sites.json": _summed,
    "folds.json": _folds,
    "refusals.json": _refusals,
    "joined.json": _joined,
    "privacy.json": _ledger,
    "network.json": _network,
    "fed_client.json": _kit,
    "certificates.json": _certificates,
    "cases.json": _outcomes,
    "model.json": _registered,
    "splits.json": _splits,
    "preprocessed.json": _preprocessed,
}


class Table:
    """A table in CSV, and how the product uses it."""

    def __init__(self, file: Path, rows: list[list[str]], use: Callable[[], Any]) -> None:
        self.file, self.rows, self.use = file, rows, use
        self.file.write_text(self._text(rows, ",", "\n"))
        plain(self.use())

    @staticmethod
    def _text(rows: list[list[str]], delimiter: str, end: str) -> str:
        text = io.StringIO()
        csv.writer(text, delimiter=delimiter, lineterminator=end).writerows(rows)
        return text.getvalue()

    def attack(self, draw: random.Random) -> str:
        rows = [list(row) for row in self.rows]
        for _ in range(draw.choice((1, 1, 2, 4))):
            row = draw.choice(rows)
            at, choice = draw.randrange(len(row) or 1), draw.randrange(9)
            word = draw.choice((*NAMES, *map(str, NUMBERS), "9" * 5000, "1e400", "x" * 200_000))
            if choice == 0:
                rows.append(list(row))
            elif choice == 1 and row:
                del row[at]
            elif choice == 2:
                row.append(word)
            elif choice == 3 and len(rows) > 1:
                rows.remove(row)
            elif choice == 4:
                rows = (rows[:1] + rows[1:] * draw.choice((2, 500)))[:2000]
            elif row:
                row[at % len(row)] = word
            if not rows:
                rows = [[""]]
        text = self._text(
            rows, draw.choice((",", ",", ";", "\t")), draw.choice(("\n", "\r\n", "\r"))
        )
        content = text.encode("utf-8", "surrogatepass")
        if draw.random() < 0.3:
            content = mutated_bytes(content, draw)
        self.file.write_bytes(content)
        return judged(self.use, plain)


def _mapping(folder: Path) -> Table:
    cases = folder / "cases"
    write_case(cases / "p0", ("t1", "t2"), 0)
    file = folder / "mapping.csv"

    def use() -> Any:
        mapping = read_mapping(file, Modalities())
        split_mapping(mapping)
        found, _ = find_all(cases, Modalities(), mapping)
        return [case.name for case in found.cases], [given.case for given in mapping.values()]

    rows = [
        ["case", "modality", "why", "series_uid", "file"],
        ["", "t1", "its name", "", "p0/t1.nii.gz"],
        ["other", "flair", "", "", "p0/t2.nii.gz"],
    ]
    return Table(file, rows, use)


def _partition(folder: Path) -> Table:
    file = folder / "partition.csv"
    rows = [["Partition_ID", "Subject_ID"], ["1", "FeTS22_001"], ["2", "FeTS22_002"]]
    return Table(file, rows, lambda: read_partition(file))


def _scores(folder: Path) -> Table:
    file = folder / "scores.csv"
    write_rows([Row("a", 0, "s", "c", ("t1", "t2"), "lesion", 0.5, 1.0)], file)
    with file.open(newline="") as lines:
        rows = list(csv.reader(lines))

    def use() -> Any:
        read = read_rows(file)
        again = folder / "again.csv"
        write_rows(read, again)
        if str(read_rows(again)) != str(read):
            raise WrongError("rows are others when they are written and read again")
        # names of methods and cases may be any text here; no page shows them unescaped
        return [from_cell(row.site) for row in read if row.site.isprintable()]

    return Table(file, rows, use)


TABLES: Mapping[str, Callable[[Path], Table]] = {
    "mapping.csv": _mapping,
    "partition.csv": _partition,
    "scores.csv": _scores,
}


class AuditFile:
    """A hospital's record of what left: a changed line is shown, a cut end is not."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "audit.jsonl"
        log = AuditLog(self.file)
        for number in range(6):
            log.add("sent", to="c", run="r", kind="train", round=number, bytes=9, sha256="ab")
        self.good = self.file.read_bytes()

    def attack(self, draw: random.Random) -> str:
        content = mutated_bytes(self.good, draw)
        if draw.random() < 0.5:
            lines = self.good.splitlines(keepends=True)
            at = draw.randrange(len(lines))
            lines[at] = mutated_json(json.loads(lines[at]), draw).replace(b"\n", b" ") + b"\n"
            content = b"".join(lines)
        self.file.write_bytes(content)

        def right(verified: Any) -> str:
            if not self.good.startswith(content[: content.rindex(b"\n", 0, -1) + 1]):
                raise WrongError("a changed record passed")
            return plain(dataclasses.astuple(verified))

        return judged(lambda: verify_log(self.file), right)
