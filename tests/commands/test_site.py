"""The command of a hospital, ``mixmfl_site``: what it refuses, what it tells, what it asks for."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from small import write_site

from mixmfl.federated import flare
from mixmfl.federated.client.limits import Limits
from mixmfl.federated.client.service import SiteConfig
from mixmfl.federated.flare.processes import exclusive
from mixmfl.federated.flare.provisioning import Kit, Network, open_kit, provision
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
        ({"--kit": "kits/south"}, "south: is not a hospital's start-up kit"),
        ({"-i": "kits/authority"}, "authority: holds no image"),
        ({"-i": "kits/nowhere"}, "nowhere: there is no such folder"),
        ({"--labels": "kits/labels.json"}, "labels.json: there is no such file"),
        ({"-n": "0"}, "-n 0: at least 1 process is needed"),
        ({"--minimum-cases": "-1"}, "--minimum-cases"),
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
    said = capsys.readouterr()
    assert said.err.startswith("mixmfl_site: ")
    assert reason in said.err
    assert "Traceback" not in said.err
    assert "Ctrl-C" not in said.out
    assert not (kits / "north" / "console.log").exists()


def test_a_hospital_with_mostly_unknown_images_is_told_the_alias_that_takes_them(
    given: dict[str, object], cases: Path, command: Command, capsys: Said
) -> None:
    for number in range(5):
        for name in ("LGE", "cine2", "cine4"):
            (cases / f"secret{number}" / f"{name}.nii.gz").touch()
    assert command("mixmfl_site", *sum(given.items(), ())) == 2
    said = capsys.readouterr()
    assert "15 images are of no modality that is known" in said.err
    assert "--alias lge=lge" in said.err
    assert "Ctrl-C" not in said.out


def test_a_kit_that_is_in_use_is_not_used_twice(
    given: dict[str, object], kits: Path, command: Command, capsys: Said
) -> None:
    with exclusive(open_kit(kits / "north", coordinator=False)):
        assert command("mixmfl_site", *sum(given.items(), ())) == 2
    assert "north: this kit is in use by another process; end that first" in capsys.readouterr().err


def test_a_dry_run_tells_what_would_leave_and_starts_nothing(
    given: dict[str, object], kits: Path, tmp_path: Path, command: Command, capsys: Said
) -> None:
    assert command("mixmfl_site", *sum(given.items(), ()), "--dry-run") == 0
    said = capsys.readouterr().out
    expires = open_kit(kits / "north", coordinator=False).expires
    assert said.startswith(f"site north: {given['-i']}: 5 cases (layout: ")
    _, kit, leaves = said.partition(
        f"\ncertificate until {expires:%Y-%m-%d}; coordinator at localhost:18002\n"
    )
    assert kit
    assert "fingerprint" in leaves
    assert "What leaves in a round depends on the plans, which have not arrived yet" in leaves
    assert "secret" not in leaves
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
    options = (*minimum, *turns, *limits, *more)
    assert command("mixmfl_site", *sum(given.items(), ()), *options) == 130
    said = capsys.readouterr()
    told = [line for line in said.out.splitlines() if line.startswith("came from")]
    assert told == ["came from coordinator: task 1", "came from coordinator: task 2"]
    assert said.out.count("north/log.txt; connecting again") == 1
    assert 5 in slept  # a coordinator that is away is not asked without pause
    assert "interrupted; completed work is kept" in said.err
    assert houses[0] == houses[1]
    assert houses[0] == SiteConfig(
        *("north", cases, tmp_path / "work", "cpu", 2, 1, ("asl=cbf",)),
        minimum=Minimum(3, 50),
        turns=tmp_path / "turns",
        limits=Limits(True, 7, 6, 0.5, 5, 4),
    )
    houses[0].save(tmp_path / "config.json")
    assert SiteConfig.load(tmp_path / "config.json") == houses[0]
