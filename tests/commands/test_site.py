"""The command of a hospital, ``mixmfl_site``: what it refuses, what it tells, what it asks for."""

import getpass
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace

import pytest
from loopback import write_certificate
from small import write_site

from mixmfl.core.errors import PrivacyError
from mixmfl.federated import flare
from mixmfl.federated.client.approval import Approval, Job
from mixmfl.federated.client.audit_log import AuditLog, verify_log
from mixmfl.federated.client.limits import Limits
from mixmfl.federated.client.site_config import SiteConfig
from mixmfl.federated.flare.kits import Kit, open_kit
from mixmfl.federated.flare.processes import exclusive
from mixmfl.federated.flare.provisioning import Network, provision
from mixmfl.federated.secure_aggregation.identities import KeyFiles
from mixmfl.federated.state import Minimum

Command = Callable[..., int]
Said = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def kits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("network") / "kits"
    provision(Network("localhost", 18002, ("north",)), out)
    return out


@pytest.fixture
def cases(tmp_path: Path) -> Path:
    folder = tmp_path / "cases"
    write_site(folder, [("t1", "t2")] * 5, "secret")
    return folder


@pytest.fixture
def given(kits: Path, cases: Path, tmp_path: Path) -> dict[str, object]:
    """Return what the command needs, by option."""
    work = {"-o": tmp_path / "work", "--device": "cpu", "-n": 1}
    return {"--kit": kits / "north", "-i": cases, **work}


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"--kit": "kits/coordinator"}, "coordinator: is not a hospital's start-up kit"),
        ({"--kit": "kits/south"}, "south: there is no such folder; needed is a kit"),
        ({"-i": "kits/authority"}, "authority: holds no image"),
        ({"-i": "kits/nowhere"}, "nowhere: there is no such folder"),
        ({"--labels": "kits/labels.json"}, "labels.json: there is no such file"),
        ({"-n": "0"}, "-n 0: at least 1 process is needed"),
        ({"--minimum-cases": "-1"}, "--minimum-cases"),
        ({"--peers": "kits/authority/none.json"}, "none.json: there is no such file"),
        ({"--policy": "kits/none.json"}, "none.json: there is no such file"),
        ({"--syslog": "514"}, "--syslog 514: host:port is needed"),
        ({"--max-queries": "-1"}, "a limit must be 0 or more: queries"),
        ({"--max-learning-rate": "inf"}, "learning_rate: is inf; it must be a number from 0 to 10"),
        ({"--workers": "9999"}, "workers: is 9999; it must be a whole number from 0 to 1024"),
        ({"--max-learning-rate": "nan"}, "a limit must be 0 or more: learning_rate"),
    ],
)
def test_what_a_hospital_gives_by_mistake_is_refused_before_anything_starts(
    options: dict[str, str],
    reason: str,
    given: dict[str, object],
    kits: Path,
    command: Command,
    capsys: Said,
) -> None:
    slips = {name: value.replace("kits", str(kits)) for name, value in options.items()}
    assert command("mixmfl_site", *sum({**given, **slips}.items(), ())) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("mixmfl_site: ")
    assert reason in printed.err
    assert "Traceback" not in printed.err
    assert "Ctrl-C" not in printed.out
    assert not (kits / "north" / "console.log").exists()


def test_a_hospital_with_mostly_unknown_images_is_told_the_alias_that_takes_them(
    given: dict[str, object], cases: Path, command: Command, capsys: Said
) -> None:
    for number in range(5):
        for name in ("LGE", "cine2", "cine4"):
            (cases / f"secret{number}" / f"{name}.nii.gz").touch()
    assert command("mixmfl_site", *sum(given.items(), ())) == 2
    printed = capsys.readouterr()
    assert "15 images are of no modality that is known" in printed.err
    assert "--alias lge=lge" in printed.err
    assert "Ctrl-C" not in printed.out


def test_a_kit_that_is_in_use_is_not_used_twice(
    given: dict[str, object], kits: Path, command: Command, capsys: Said
) -> None:
    with exclusive(open_kit(kits / "north", coordinator=False)):
        assert command("mixmfl_site", *sum(given.items(), ())) == 2
    assert "north: this kit is in use by another process; end that first" in capsys.readouterr().err


@pytest.mark.skipif(os.name != "posix", reason="permissions are those of POSIX")
@pytest.mark.parametrize("option", ["--policy", "--peers"])
def test_a_file_that_everybody_may_write_to_decides_nothing(
    given: dict[str, object], tmp_path: Path, command: Command, capsys: Said, option: str
) -> None:
    file = tmp_path / "decides.json"
    file.write_text('{"until": "2999-01-01", "rounds": 3}')
    file.chmod(0o666)
    assert command("mixmfl_site", *sum(given.items(), ()), option, file, "--dry-run") == 2
    printed = capsys.readouterr().err
    assert f"{file}: everybody on this machine may write to it" in printed
    assert f"chmod o-w {file}" in printed


def test_a_dry_run_tells_what_would_leave_and_starts_nothing(
    given: dict[str, object], kits: Path, tmp_path: Path, command: Command, capsys: Said
) -> None:
    few = "--minimum-cases", 6, "--dry-run"
    assert command("mixmfl_site", *sum(given.items(), ()), *few) == 0
    printed = capsys.readouterr().out
    assert "statistics of fewer than 6 cases are withheld (--minimum-cases): no plan is" in printed
    expires = open_kit(kits / "north", coordinator=False).expires
    assert printed.startswith(f"site north: {given['-i']}: 5 cases (layout: ")
    _, kit, leaves = printed.partition(
        f"\ncertificate until {expires:%Y-%m-%d}; coordinator at localhost:18002\n"
    )
    assert kit
    assert "fingerprint" in leaves
    assert "What leaves in a round depends on the plans, which have not arrived yet" in leaves
    assert "secret" not in leaves
    assert os.name != "posix" or (tmp_path / "work").stat().st_mode & 0o777 == 0o700
    assert not (tmp_path / "work" / "exchange.log").exists()
    assert not (kits / "north" / "console.log").exists()


def test_a_site_tells_what_is_logged_from_now_on_and_connects_again_until_it_is_ended(
    given: dict[str, object],
    cases: Path,
    tmp_path: Path,
    command: Command,
    capsys: Said,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    houses: list[SiteConfig] = []

    @contextmanager
    def running_client(kit: Kit, house: SiteConfig) -> Iterator[SimpleNamespace]:
        assert kit.name == "north"
        houses.append(house)
        looked: list[int] = []

        def poll() -> int | None:
            looked.append(1)
            if len(looked) == 1:
                return None
            if len(houses) == 2:
                raise KeyboardInterrupt
            return 1

        with house.exchange_log.open("a") as log:
            log.write(f"came from coordinator: task {len(houses)}\n")
        yield SimpleNamespace(poll=poll)

    monkeypatch.setattr(flare, "running_client", running_client)
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "exchange.log").write_text("came from coordinator: last year\n")
    minimum = ("--minimum-cases", 3, "--minimum-voxels", 50)
    turns = ("--turns", tmp_path / "turns", "--alias", "asl=cbf", "--workers", 2)
    limits = ("--require-masked", "--max-rounds", 7, "--max-local-steps", 6, "--max-queries", 5)
    more = ("--max-learning-rate", 0.5, "--min-validation-cases", 4)
    peers = tmp_path / "peers.json"
    peers.write_text(json.dumps({"north": "a" * 64, "south": "b" * 64}))
    policy = tmp_path / "policy.json"
    policy.write_text('{"until": "2999-01-01", "rounds": 7}')
    approval = ("--policy", policy, "--max-bytes", 10**9)
    counts = ("--min-training-cases", 3, "--max-jobs", 8)
    options = (*minimum, *turns, *limits, *more, "--peers", peers, *approval, *counts)
    assert command("mixmfl_site", *sum(given.items(), ()), *options) == 130
    printed = capsys.readouterr()
    sources = [line for line in printed.out.splitlines() if line.startswith("came from")]
    assert sources == ["came from coordinator: task 1", "came from coordinator: task 2"]
    assert printed.out.count("north/log.txt; connecting again") == 1
    assert 5 in slept  # a coordinator that is away is not asked without pause
    assert "interrupted; completed work is kept" in printed.err
    assert houses[0] == houses[1]
    assert houses[0] == SiteConfig(
        *("north", cases, tmp_path / "work", "cpu", 2, 1, ("asl=cbf",)),
        minimum=Minimum(3, 50),
        turns=tmp_path / "turns",
        limits=Limits(True, 7, 6, 0.5, 5, 4, 10**9, 3, 8),
        approval=Approval(policy),
        server="localhost:18002",
        keys=KeyFiles(
            open_kit(Path(str(given["--kit"])), coordinator=False).folder / "startup",
            ("localhost", "coordinator@mixmfl.org"),
            peers,
        ),
    )
    assert "masked rounds with north, south alone (" in printed.out
    warned = f"write to it and approve of jobs: chmod 700 {tmp_path / 'work'}" in printed.out
    assert warned == (os.name == "posix")
    assert f"jobs are approved by {policy} until 2999-01-01" in printed.out
    assert verify_log(tmp_path / "work" / "audit.jsonl").lines == 1  # that it started
    houses[0].save(tmp_path / "config.json")
    assert SiteConfig.load(tmp_path / "config.json") == houses[0]


def test_a_person_at_the_terminal_sees_each_job_and_decides(
    given: dict[str, object],
    command: Command,
    capsys: Said,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The process that answers tasks waits, here a thread; anything but yes is a no."""
    ask = ("mixmfl_site", *sum(given.items(), ()), "--ask")
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: False))
    assert command(*ask) == 2
    assert "--ask: needs a terminal; name a --policy" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: True))
    answers, decided = ["yes", "y"], list[str]()

    def decide(config: SiteConfig) -> None:
        for digest in ("a" * 64, "b" * 64):
            try:
                job = Job(digest, {"job": "training", "rounds": "20"}, 20)
                decided.append(config.approval.decide(job, config.jobs))
            except PrivacyError as error:
                decided.append(str(error))

    @contextmanager
    def running_client(kit: Kit, config: SiteConfig) -> Iterator[SimpleNamespace]:
        worker = threading.Thread(target=decide, args=(config,))
        worker.start()

        def poll() -> int | None:
            if not worker.is_alive():
                raise KeyboardInterrupt
            return None

        yield SimpleNamespace(poll=poll)

    monkeypatch.setattr(flare, "running_client", running_client)
    monkeypatch.setattr("builtins.input", lambda prompt: answers.pop(0))
    monkeypatch.setattr(getpass, "getuser", lambda: "officer")
    assert command(*ask) == 130
    printed = capsys.readouterr().out
    assert printed.count("the coordinator asks for a job (") == 2
    assert "  job: training\n  rounds: 20\napproved\n" in printed
    assert decided[0] == "officer"
    assert "refused this job. It was officer" in decided[1]
    assert not answers


def test_a_record_is_verified_by_one_command_without_a_kit(
    tmp_path: Path, command: Command, capsys: Said
) -> None:
    log = AuditLog(tmp_path / "audit.jsonl")
    log.add("sent", bytes=10)
    log.add("sent", bytes=5)
    assert command("mixmfl_site", "--verify-log", log.file) == 0
    printed = capsys.readouterr().out
    assert "2 lines from " in printed
    assert "whether any is missing after it, only its digest tells" in printed
    assert "2 messages left, 15 bytes" in printed
    assert verify_log(log.file).head in printed
    log.file.write_text(log.file.read_text().replace(": 10", ": 11"))
    assert command("mixmfl_site", "--verify-log", log.file) == 2
    assert "line 2 was not written after line 1 as it is now" in capsys.readouterr().err
    assert command("mixmfl_site", "-o", tmp_path) == 2
    assert "--kit, -i and -o are needed, except with --verify-log" in capsys.readouterr().err


def test_a_site_that_runs_for_months_is_warned_daily_and_ends_with_its_certificate(
    given: dict[str, object],
    kits: Path,
    tmp_path: Path,
    command: Command,
    capsys: Said,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kit = tmp_path / "kit"
    shutil.copytree(kits / "north", kit)
    write_certificate(kit / "startup", "north", 32, kits / "authority")
    days = iter(range(100))

    class Clock(datetime):
        """A clock that is a day further whenever the command looks."""

        @classmethod
        def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
            return datetime.now(timezone.utc) + timedelta(days=next(days))

    @contextmanager
    def running_client(kit: Kit, config: SiteConfig) -> Iterator[SimpleNamespace]:
        yield SimpleNamespace(poll=lambda: None)

    monkeypatch.setattr(flare, "running_client", running_client)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    monkeypatch.setattr("mixmfl.entrypoints.site.datetime", Clock)
    monkeypatch.setattr("mixmfl.federated.flare.kits.datetime", Clock)
    options = {**given, "--kit": kit}
    assert command("mixmfl_site", *sum(options.items(), ())) == 2
    printed = capsys.readouterr()
    warnings = [line for line in printed.out.splitlines() if line.startswith("warning: ")]
    assert len(warnings) > 5
    assert len(set(warnings)) == len(warnings)
    assert "in 2" in warnings[0]
    assert "client.crt: expired on" in printed.err
