"""The parts of the federation on FLARE: kits and their policies, parcels, jobs, processes."""

import json
import os
import stat
import time
from datetime import datetime, timedelta, timezone
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from loopback import write_certificate
from nvflare.apis.signal import Signal
from nvflare.fuel.flare_api.api_spec import NoConnection

import mixmfl
from mixmfl.errors import AggregationError, DataError, MixmflError
from mixmfl.files import clear_unfinished
from mixmfl.flare import coordinator, parcels, processes
from mixmfl.flare import kits as kits_module
from mixmfl.flare.kits import Network, open_kit, provision, site_names
from mixmfl.wire import Message, Parcel


@pytest.fixture
def kits(tmp_path: Path) -> Path:
    provision(Network("localhost", 18002, ("north", "south")), tmp_path / "kits")
    return tmp_path / "kits"


def test_everyone_gets_a_kit_whose_keys_nobody_else_can_read(kits: Path) -> None:
    assert {path.name for path in kits.iterdir()} == {"authority", "coordinator", "north", "south"}
    keys = [*kits.rglob("*.key"), *(kits / "authority").rglob("cert.json")]
    assert len(keys) == 5  # coordinator, its command, two sites, the authority
    for key in keys:
        assert stat.S_IMODE(key.stat().st_mode) == 0o600, key
    assert stat.S_IMODE((kits / "authority").stat().st_mode) == 0o700
    assert not list((kits / "north").rglob("rootCA.key"))
    kit = open_kit(kits / "north", coordinator=False)
    assert (kit.name, kit.server) == ("north", "localhost:18002")
    assert kit.expires > datetime.now(timezone.utc) + timedelta(days=300)


def test_a_hospital_lets_the_coordinator_run_one_class_and_see_nothing(kits: Path) -> None:
    local = kits / "north" / "local"
    resources = json.loads((local / "resources.json").read_text())
    assert resources["class_allow_list"] == ["mixmfl.flare.SiteExecutor"]
    assert resources["class_list_enforcement_mode"] == "enforce"
    assert resources["allow_log_streaming"] is False
    assert not [c for c in resources["components"] if "log" in c["path"]]
    told = json.loads((local / "authorization.json").read_text())["permissions"]
    allowed = {right for rights in told.values() for right, who in rights.items() if who != "none"}
    assert allowed == {"submit_job", "manage_job"}


def test_hospitals_are_added_later_and_the_others_keep_their_kits(kits: Path) -> None:
    before = {path: path.read_bytes() for path in kits.rglob("*.crt")}
    written = provision(Network("localhost", 18002, ("north", "south", "east-2")), kits)
    assert written == (kits / "east-2",)
    assert all(path.read_bytes() == content for path, content in before.items())
    assert site_names(open_kit(kits / "coordinator", coordinator=True)) == (
        "north",
        "south",
        "east-2",
    )
    authority = {(kits / n / "startup" / "rootCA.pem").read_bytes() for n in ("east-2", "north")}
    assert len(authority) == 1


@pytest.mark.parametrize(
    "told",
    [
        {"server": "host", "sites": ["a"]},
        {"server": "host:8002", "sites": []},
        {"server": "host:8002", "sites": ["a", "a"]},
        {"server": "host:8002", "sites": ["../a"]},
        {"server": "host:8002", "sites": ["coordinator"]},
        {"server": "host:8002", "sites": ["a"], "rounds": 3},
        {"server": "host:8002", "sites": ["authority"]},
        {"server": "host:8002", "sites": ["Server"]},
        {"server": "host:8002", "sites": ["north", "North"]},
        {"server": "host:8002", "sites": ["host"]},
        {"server": "host:8002", "sites": ["-n"]},
        {"server": "host:8002", "sites": ["n" * 65]},
        {"server": "host:8002", "sites": [7]},
        {"server": "host:8002", "sites": "north"},
        {"server": "host:0", "sites": ["a"]},
        {"server": "host:65536", "sites": ["a"]},
        {"server": "http://host:8002", "sites": ["a"]},
        {"server": "[::1]:8002", "sites": ["a"]},
        {"server": f"{'h' * 65}:8002", "sites": ["a"]},
    ],
)
def test_a_network_that_cannot_be_is_refused(tmp_path: Path, told: dict[str, object]) -> None:
    (tmp_path / "network.json").write_text(json.dumps(told))
    with pytest.raises(DataError, match=r'network.json: {"server": "host:port"'):
        Network.load(tmp_path / "network.json")


def test_kits_are_made_for_every_network_that_may_be(tmp_path: Path) -> None:
    file, long = tmp_path / "network.json", "n" * 64
    for host in ("192.168.1.5", "mixmfl.example.org", "h" * 64):
        file.write_text(json.dumps({"server": f"{host}:65535", "sites": ["A-1", long]}))
        written = provision(Network.load(file), tmp_path / host)
        assert [open_kit(kit, coordinator=False).name for kit in written[1:]] == ["A-1", long]
        assert open_kit(written[0], coordinator=True).server == f"{host}:65535"


def test_kits_that_cannot_be_made_leave_none_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(kits_module, "_AUTHORITY_DAYS", 10**7)  # a date that cannot be
    before = os.umask(0o022)
    try:
        with pytest.raises(DataError, match="could not be made; FLARE's reason is above"):
            provision(Network("localhost", 18002, ("north",)), tmp_path / "kits")
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(before)
    assert "date" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "kits").iterdir()] == ["authority"]
    monkeypatch.undo()
    written = provision(Network("localhost", 18002, ("north",)), tmp_path / "kits")
    assert [kit.name for kit in written] == ["coordinator", "north"]


def test_a_kit_is_used_where_it_belongs(kits: Path) -> None:
    for name, asked in (("north", True), ("coordinator", False)):
        with pytest.raises(DataError, match=r"is not .* start-up kit"):
            open_kit(kits / name, coordinator=asked)


def test_a_kit_that_is_renewed_has_another_key_and_the_old_one_is_set_aside(kits: Path) -> None:
    before = {
        name: (kits / name / "startup" / "client.key").read_bytes() for name in ("north", "south")
    }
    network = Network("localhost", 18002, ("north", "south"))
    assert provision(network, kits, ["north"]) == (kits / "north",)
    assert (kits / "north" / "startup" / "client.key").read_bytes() != before["north"]
    assert (kits / "south" / "startup" / "client.key").read_bytes() == before["south"]
    aside = kits / "north.replaced-1" / "startup" / "client.key"
    assert aside.read_bytes() == before["north"]
    for key in (aside, kits / "north" / "startup" / "client.key"):
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
    with pytest.raises(DataError, match="holds no kit of east"):
        provision(network, kits, ["east"])


def test_kits_of_another_server_are_not_mixed_with_those_that_are_there(kits: Path) -> None:
    other = Network("other.example.org", 18002, ("north", "south", "west"))
    with pytest.raises(DataError, match="holds kits for the server localhost:18002"):
        provision(other, kits)
    assert not (kits / "west").exists()


def test_an_expired_kit_is_refused_before_anything_starts(kits: Path) -> None:
    write_certificate(kits / "north" / "startup", "north", days=-1)
    with pytest.raises(DataError, match=r"client.crt: expired on \d{4}-\d\d-\d\d; have the kit "):
        open_kit(kits / "north", coordinator=False)


def test_a_kit_is_used_by_one_process_at_a_time(kits: Path) -> None:
    kit = open_kit(kits / "coordinator", coordinator=True)
    refused = pytest.raises(MixmflError, match="is in use by another process")
    with processes.alone(kit), refused, processes.alone(kit):
        pass


class _Cell:
    """What FLARE connects processes by, as far as an offer needs one."""

    def __init__(self, name: str) -> None:
        self._name = name

    def get_fqcn(self) -> str:
        return self._name

    def register_request_cb(self, **how: object) -> None:
        """Nobody asks."""


def test_a_parcel_is_given_piece_by_piece_to_whom_it_is_offered_and_nobody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parcels, "_CHUNK", 100)
    parcel = Parcel.pack(Message("train", {"round": 0}, {"decoder.w": torch.ones(50)}), tmp_path)
    begun: list[bool] = []
    offered = parcels.Offered(_Cell("north.job"), parcel, "server", lambda: begun.append(True))
    with pytest.raises(ValueError, match=r"south.job asks for what is not there for it"):
        offered.produce(None, "south.job")
    with pytest.raises(ValueError, match="is not there"):
        offered.produce({"place": -1}, "server.job")
    assert not offered.taken
    pieces, state = [], None
    while (told := offered.produce(state, "server.job"))[1] is not None:
        pieces.append(told[1])
        state = told[2]
    assert b"".join(pieces) == parcel.read(0, parcel.size)
    assert {len(piece) for piece in pieces[:-1]} == {100}
    assert begun == [True]
    assert offered.taken
    offered.withdraw()


def test_what_is_fetched_has_a_limit_and_comes_from_the_one_who_was_asked(tmp_path: Path) -> None:
    file = tmp_path / "file"
    with file.open("wb") as opened:
        pieces = parcels._Pieces(opened, 10)
        assert pieces.consume("", {"place": 6}, b"123456") == {"place": 6}
        with pytest.raises(ValueError, match="more than 10 bytes came"):
            pieces.consume("", {"place": 12}, b"123456")
    assert file.read_bytes() == b"123456"
    for address in (None, {}, {"from": "south.job", "number": "1"}, {"from": "north.job"}):
        with pytest.raises(AggregationError, match="does not say where the message can be fetched"):
            parcels.fetch(_Cell("server.job"), address, "north", 10, tmp_path, Signal())


def test_tasks_that_say_the_same_lie_on_disk_once(tmp_path: Path) -> None:
    packed, weights = coordinator._Packed(tmp_path), {"decoder.w": torch.ones(3)}
    first = packed.of(Message("train", {"round": 0}, weights))
    assert packed.of(Message("train", {"round": 0}, dict(weights))) is first
    assert packed.of(Message("train", {"round": 1}, weights)) is not first
    assert packed.of(Message("train", {"round": 0}, {"decoder.w": torch.ones(3)})) is not first


def test_what_a_killed_process_left_half_written_is_removed_at_the_next_start(
    tmp_path: Path,
) -> None:
    (tmp_path / ".writing-a").write_text("half")
    (tmp_path / ".writing-b").mkdir()
    (tmp_path / ".writing-b" / "file").write_text("half")
    (tmp_path / "kept").write_text("whole")
    clear_unfinished(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_a_site_that_failed_is_told_by_its_version_first() -> None:
    told = {"task": "join", "error": "PlansError"}
    other = coordinator._failure(Message("failed", {**told, "version": "9.9\n"}, {}))
    assert other == f"runs mixmfl 9.9\\n, the coordinator {mixmfl.__version__}; install the same"
    same = coordinator._failure(Message("failed", {**told, "version": mixmfl.__version__}, {}))
    assert same == "could not do it (PlansError)"


def test_a_server_that_is_too_busy_to_answer_is_asked_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Busy:
        asked = 0

        def get_job_meta(self, number: str) -> dict[str, str]:
            self.asked += 1
            if self.asked < 3:
                raise NoConnection("Server did not respond")
            return {"status": "FINISHED:COMPLETED"}

    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    session: Any = Busy()
    ask = partial(session.get_job_meta, "1")
    assert processes.patiently(ask)["status"] == "FINISHED:COMPLETED"
    monkeypatch.setattr(processes, "_BUSY", -1.0)
    session.asked = 0
    with pytest.raises(NoConnection):
        processes.patiently(ask)
