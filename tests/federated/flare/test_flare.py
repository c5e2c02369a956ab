"""The parts of the federation on FLARE: kits and policies, messages, jobs, processes."""

import json
import math
import os
import re
import shutil
import socket
import ssl
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from datetime import datetime, timedelta, timezone
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from loopback import write_certificate
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import ReservedKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.fl_exception import FLCommunicationError, UnsafeComponentError
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal
from nvflare.apis.workspace import Workspace
from nvflare.app_common.widgets.component_path_authorizer import ComponentPathAuthorizer
from nvflare.fuel.f3.cellnet.cell_cipher import InvalidCertChain
from nvflare.fuel.flare_api.api_spec import InternalError, NoConnection
from nvflare.fuel.utils import class_utils
from nvflare.fuel.utils.class_loader import load_class
from nvflare.private.fed.client.client_json_config import ClientJsonConfigurator

import mixmfl
from mixmfl.core.errors import AggregationError, DataError, MixmflError, PrivacyError
from mixmfl.core.files import write_json
from mixmfl.federated.client.site_config import SiteConfig
from mixmfl.federated.flare import controller, job, processes, provisioning, runner, transfer
from mixmfl.federated.flare import executor as executor_module
from mixmfl.federated.flare.controller import Coordinator
from mixmfl.federated.flare.executor import SiteExecutor
from mixmfl.federated.flare.hospital_settings import check_files
from mixmfl.federated.flare.job import JobResult, begun_file, pause_file, result_file, write_job
from mixmfl.federated.flare.kits import Kit, ending_soon, open_kit, site_names
from mixmfl.federated.flare.provisioning import Network, provision, revoke
from mixmfl.federated.messages import Message, StoredMessage
from mixmfl.federated.server.coordinator import Answer, Answers
from mixmfl.federated.server.orders import (
    PlanningJob,
    TrainingJob,
    job_file,
    load_job,
    refusals_file,
    save_job,
)
from mixmfl.federated.state import NOT_CONNECTED, RunSettings

KIT = Kit(Path("kit"), "coordinator", "localhost:1", datetime.now(timezone.utc), "", ())


@pytest.fixture(scope="module")
def provisioned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make kits once, as making keys takes long."""
    folder = tmp_path_factory.mktemp("provisioned") / "kits"
    provision(Network("localhost", 18002, ("north", "south")), folder)
    return folder


@pytest.fixture
def kits(provisioned: Path, tmp_path: Path) -> Path:
    """Return kits that a test may change."""
    return shutil.copytree(provisioned, tmp_path / "kits", symlinks=True)


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
    assert resources["class_allow_list"] == ["mixmfl.federated.flare.SiteExecutor"]
    assert resources["class_list_enforcement_mode"] == "enforce"
    assert resources["allow_log_streaming"] is False
    assert not [c for c in resources["components"] if "log" in c["path"]]
    permissions = json.loads((local / "authorization.json").read_text())["permissions"]
    allowed = {
        right for rights in permissions.values() for right, who in rights.items() if who != "none"
    }
    assert allowed == {"submit_job", "manage_job"}


@pytest.mark.parametrize(
    ("name", "link", "refusal"),
    [
        ("hashlib.py", "", r"holds 'hashlib\.py', which mixmfl_provision does not write"),
        ("torch/__init__.py", "", r"holds 'torch', which"),
        ("local/custom/evil.py", "", r"holds 'custom', which"),
        ("local/evil__resources.json", "", r"holds 'evil__resources\.json', which"),
        ("startup/relay__p_resources.json", "", r"holds 'relay__p_resources\.json', which"),
        ("local/job_resources.json", "", r"holds 'job_resources\.json', which"),
        ("local/privacy.json", "", r"holds 'privacy\.json', which"),
        ("console.log", "/nowhere", r"console\.log: is a link"),
        ("local/resources.json", "/nowhere", r"local/resources\.json: is a link"),
        ("startup/rootCA.pem", "a pipe", r"rootCA\.pem: is no file, as everything in a kit"),
    ],
)
def test_a_kit_that_brings_what_might_be_run_is_refused(
    tmp_path: Path, name: str, link: str, refusal: str
) -> None:
    for folder in ("startup", "local", "transfer", "35815f89-c643-4770-9c20-546d08cd19de"):
        (tmp_path / folder).mkdir()
    (tmp_path / "startup" / "client.key").symlink_to("/where/keys/are")
    check_files(tmp_path)
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    if link == "a pipe":
        os.mkfifo(file)
    elif link:
        file.symlink_to(link)
    else:
        file.write_text("{}")
    with pytest.raises(DataError, match=refusal):
        check_files(tmp_path)


def test_a_hospitals_settings_are_its_own_whatever_the_kit_says(
    kits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kit = kits / "north"
    good = {path.name: path.read_text() for path in (kit / "local").glob("*.json")}
    evil = {"path": "subprocess.Popen", "args": {"args": ["touch", str(tmp_path / "ran")]}}
    settings = {"components": [{"id": "x", **evil}], "class_list_enforcement_mode": "off"}
    write_json(kit / "local" / "resources.json", settings)
    write_json(kit / "local" / "authorization.json", {"permissions": {"project_admin": "any"}})
    write_json(kit / "local" / "log_config.json", {"formatters": {"f": {"()": "os.system"}}})
    address = json.loads((kit / "startup" / "fed_client.json").read_text())
    address["client"]["connection_security"] = "clear"
    write_json(kit / "startup" / "fed_client.json", {**address, **settings})
    monkeypatch.setattr(
        processes, "_RUN_AS_CHILD", "import os; print(os.environ['PYTHONSAFEPATH'])"
    )
    config, opened = SiteConfig("north", tmp_path, tmp_path), open_kit(kit, coordinator=False)
    with processes.running_client(opened, config) as process:
        process.wait(60)
    assert (kit / "console.log").read_text() == "1\n"
    for name, content in good.items():
        assert (kit / "local" / name).read_text() == content
    assert "os.system" not in (kit / "local" / "log_config.json").read_text()
    read = json.loads((kit / "startup" / "fed_client.json").read_text())
    assert read.keys() == {"format_version", "servers", "client"}
    assert read["client"]["connection_security"] == "mtls"
    assert (open_kit(kit, coordinator=False).name, read["servers"][0]["identity"]) == (
        "north",
        "localhost",
    )
    (kit / "hashlib.py").write_text("")
    with pytest.raises(DataError, match="does not write, and which might be run; ask whoever"):
        open_kit(kit, coordinator=False)
    with pytest.raises(DataError, match="which might be run"):
        processes.running_client(opened, config).__enter__()


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
    ("description", "reason"),
    [
        ({"server": "host", "sites": ["a"]}, r"server: is .*host:port"),
        (
            {"server": "host:8002", "sites": []},
            r"sites: has 0 entries; it must have from 1 to 1000",
        ),
        ({"server": "host:8002", "sites": ["a", "a"]}, r"each name is needed once"),
        (
            {"server": "host:8002", "sites": ["../a"]},
            r"sites: is .* letters, digits and hyphens of 1 to 64",
        ),
        ({"server": "host:8002", "sites": ["coordinator"]}, r"each name is needed once"),
        ({"server": "host:8002", "sites": ["a"], "rounds": 3}, r"unknown fields .*rounds"),
        ({"server": "host:8002", "sites": ["authority"]}, r"each name is needed once"),
        ({"server": "host:8002", "sites": ["Server"]}, r"each name is needed once"),
        ({"server": "host:8002", "sites": ["north", "North"]}, r"each name is needed once"),
        ({"server": "host:8002", "sites": ["host"]}, r"each name is needed once"),
        (
            {"server": "host:8002", "sites": ["-n"]},
            r"sites: is .* letters, digits and hyphens of 1 to 64",
        ),
        (
            {"server": "host:8002", "sites": ["n" * 65]},
            r"sites: is .* letters, digits and hyphens of 1 to 64",
        ),
        ({"server": "host:8002", "sites": [7]}, r"sites: is 7"),
        ({"server": "host:8002", "sites": "north"}, r"sites: a list is needed"),
        ({"server": "host:0", "sites": ["a"]}, r"has server .* a port up to 65535"),
        ({"server": "host:65536", "sites": ["a"]}, r"has server .* a port up to 65535"),
        ({"server": "http://host:8002", "sites": ["a"]}, r"has server .* a port up to 65535"),
        ({"server": "[::1]:8002", "sites": ["a"]}, r"has server .* a port up to 65535"),
        ({"server": f"{'h' * 65}:8002", "sites": ["a"]}, r"has server|server: is"),
    ],
)
def test_a_network_that_cannot_be_is_refused(
    tmp_path: Path, description: dict[str, object], reason: str
) -> None:
    (tmp_path / "network.json").write_text(json.dumps(description))
    with pytest.raises(DataError, match=rf"network\.json: .*{reason}"):
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
    monkeypatch.setattr(provisioning, "_AUTHORITY_DAYS", 10**7)  # a date that cannot be
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
        provision(Network("localhost", 18002, ("north", "south", "east")), kits, ["east"])


def _accepted(kits: Path) -> dict[str, str]:
    listed = json.loads((kits / "coordinator" / "local" / "certificates.json").read_text())
    return {name: content["sha256"] for name, content in listed.items()}


def _digest(kit: Path) -> str:
    certificate = x509.load_pem_x509_certificate((kit / "startup" / "client.crt").read_bytes())
    return certificate.fingerprint(hashes.SHA256()).hex()


def test_the_server_accepts_the_newest_certificate_of_each_and_none_that_was_revoked(
    kits: Path, command: Callable[..., int], tmp_path: Path
) -> None:
    network = Network("localhost", 18002, ("north", "south"))
    before = _accepted(kits)
    assert set(before) == {"north", "south", "localhost", "coordinator@mixmfl.org"}
    assert before["north"] == _digest(kits / "north")
    provision(network, kits, ["north"])
    assert _accepted(kits) == {**before, "north": _digest(kits / "north")} != before
    file = tmp_path / "network.json"
    file.write_text('{"server": "localhost:18002", "sites": ["north", "south"]}')
    assert command("mixmfl_provision", "-i", file, "-o", kits, "--revoke", "south") == 0
    assert set(_accepted(kits)) == {"north", "localhost", "coordinator@mixmfl.org"}
    assert not (kits / "south").exists()
    assert command("mixmfl_provision", "-i", file, "-o", kits, "--revoke", "south") == 2
    assert provision(network, kits) == (kits / "south",)
    assert _accepted(kits)["south"] == _digest(kits / "south") != before["south"]
    for name in ("localhost", "coordinator@mixmfl.org", "../x", "root_cert"):
        with pytest.raises(DataError, match="has no valid certificate of such a site"):
            revoke(kits, name)


def test_the_process_of_a_job_compares_the_coordinators_name_too(tmp_path: Path) -> None:
    (tmp_path / "probe.py").write_text("""
import shlex, ssl, sys
from nvflare.apis.job_launcher_spec import JobProcessArgs
from nvflare.app_common.job_launcher import client_process_launcher as launcher
from nvflare.utils.job_launcher_utils import get_client_job_args
arguments = dict.fromkeys(get_client_job_args(), ("-x", "y"))
arguments[JobProcessArgs.EXE_MODULE] = "-m", "nvflare.private.fed.app.client.worker_process"
class Context:
    def get_prop(self, name):
        return arguments
_, *command = shlex.split(launcher.generate_client_command(Context()))
assert ssl.SSLContext.sslobject_class.__name__ == "CheckedSSLObject"
assert command[:2] == ["-u", "-c"] and command[2] == sys.orig_argv[-4]
print(command[3:6])
""")
    ran = subprocess.run(
        [sys.executable, "-c", processes._RUN_AS_CHILD, "", "localhost,north", "probe"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    worker = "nvflare.private.fed.app.client.worker_process"
    assert ran.stdout == f"{['', 'localhost,north', worker]}\n", ran.stderr


def test_the_coordinator_is_warned_30_days_before_a_certificate_ends(kits: Path) -> None:
    kit = open_kit(kits / "coordinator", coordinator=True)
    assert ending_soon(kit, (kit.expires - timedelta(days=31)).date()) == []
    lines = ending_soon(kit, (kit.expires - timedelta(days=29)).date())
    assert len(lines) == 4
    assert f"the certificate of north ends on {kit.expires:%Y-%m-%d}; renew it" in lines[2]
    (kit.folder / "local" / "certificates.json").write_text('{"north": 3}')
    with pytest.raises(DataError, match=r"certificates.json: is damaged"):
        ending_soon(kit, kit.expires.date())
    (kit.folder / "local" / "certificates.json").unlink()
    with pytest.raises(DataError, match="there is no list of valid certificates; run mixmfl_pr"):
        ending_soon(kit, kit.expires.date())


def _shake_hands(server: Path, client: Path) -> str:
    """Connect two kits by mutual TLS in memory, and return the TLS version."""
    contexts = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for context, startup, name in zip(
        contexts, (server / "startup", client / "startup"), ("server", "client"), strict=True
    ):
        context.load_cert_chain(startup / f"{name}.crt", startup / f"{name}.key")
        context.load_verify_locations(startup / "rootCA.pem")
        context.verify_mode = ssl.CERT_REQUIRED
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        contexts[1].wrap_bio(to_client, to_server, server_hostname="localhost"),
        contexts[0].wrap_bio(to_server, to_client, server_side=True),
    ]
    for _ in range(5):
        for end in ends:
            with suppress(ssl.SSLWantReadError):
                end.do_handshake()
    return str(ends[0].version())


@pytest.mark.skipif(os.name != "posix", reason="permissions are those of POSIX")
def test_a_kit_whose_keys_others_may_read_or_that_they_may_change_is_not_used(kits: Path) -> None:
    north, coordinator = kits / "north", kits / "coordinator"
    for path, mode, reason in (
        (north / "startup" / "client.key", 0o640, "others on this machine may read it.*chmod 600"),
        (north / "startup", 0o757, "everybody on this machine may write to it.*chmod o-w"),
        (north / "local", 0o777, "everybody on this machine may write to it"),
        (coordinator / "startup" / "server.key", 0o604, "others on this machine may read it"),
        (coordinator / "admin" / "startup" / "client.key", 0o660, "others on this machine may"),
    ):
        before = stat.S_IMODE(path.stat().st_mode)
        path.chmod(mode)
        with pytest.raises(DataError, match=f"{path.name}: {reason}"):
            open_kit(
                coordinator if coordinator in path.parents else north,
                coordinator=coordinator in path.parents,
            )
        path.chmod(before)
    assert open_kit(north, coordinator=False).name == "north"
    assert open_kit(coordinator, coordinator=True).name == "coordinator"


@pytest.mark.skipif(os.name != "posix", reason="permissions are those of POSIX")
def test_of_a_kit_that_a_group_may_write_to_it_is_told(
    kits: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import grp
    import pwd

    startup, real = kits / "north" / "startup", grp.getgrgid(os.getgid())
    owner = pwd.getpwuid(os.getuid()).pw_name
    startup.chmod(0o770)

    def warned(name: str, *members: str) -> bool:
        group = grp.struct_group((name, "x", real.gr_gid, [*members]))
        monkeypatch.setattr(grp, "getgrgid", lambda number: group)
        caplog.clear()
        assert open_kit(kits / "north", coordinator=False).name == "north"
        return f"startup: the group '{name}' may write to it, and so decide" in caplog.text

    assert warned("staff")
    assert warned(owner, "somebody")
    assert not warned(owner)  # a group of the owner alone
    assert not warned(owner, owner)
    startup.chmod(0o700)
    # who may write to the folder of a kit can exchange the kit
    for mode, refused in ((0o777, True), (0o1777, False), (0o755, False)):
        kits.chmod(mode)
        with pytest.raises(DataError, match="everybody") if refused else nullcontext():
            open_kit(kits / "north", coordinator=False)
    beside = kits.with_name("beside")
    beside.mkdir()
    (beside / "kit").symlink_to(kits / "north")
    beside.chmod(0o777)
    with pytest.raises(DataError, match="beside: everybody on this machine may write"):
        open_kit(beside / "kit", coordinator=False)


def test_the_coordinators_renewed_kit_works_with_the_hospitals_old_ones(kits: Path) -> None:
    network = Network("localhost", 18002, ("north", "south"))
    startup, admin = kits / "coordinator" / "startup", kits / "coordinator" / "admin" / "startup"
    keys = startup / "server.key", admin / "client.key"
    before = [key.read_bytes() for key in keys]
    hospital = {path: path.read_bytes() for path in (kits / "north").rglob("*") if path.is_file()}
    write_certificate(startup, "localhost", days=-1)  # renewal is most needed once it expired
    (startup / "client.crt").replace(startup / "server.crt")
    with pytest.raises(DataError, match=r"server.crt: expired on .* --renew"):
        open_kit(kits / "coordinator", coordinator=True)
    assert provision(network, kits, ["coordinator"]) == (kits / "coordinator",)
    assert all(key.read_bytes() != old for key, old in zip(keys, before, strict=True))
    assert (kits / "coordinator.replaced-1" / "startup" / "server.key").read_bytes() == before[0]
    assert {path: path.read_bytes() for path in hospital} == hospital
    kit = open_kit(kits / "coordinator", coordinator=True)
    assert kit.expires > datetime.now(timezone.utc) + timedelta(days=300)
    assert site_names(kit) == ("north", "south")
    assert _shake_hands(kits / "coordinator", kits / "north").startswith("TLSv1.")


@pytest.mark.parametrize("name", ["authority", "east", "north.replaced-1", "../kits/north"])
def test_only_kits_of_the_network_are_renewed(kits: Path, name: str) -> None:
    network = Network("localhost", 18002, ("north", "south"))
    (kits / "north.replaced-1").mkdir()
    before = {path.name for path in kits.iterdir()}
    with pytest.raises(DataError, match="is not in this network; its kits are coordinator, north"):
        provision(network, kits, [name])
    assert {path.name for path in kits.iterdir()} == before


def test_kits_of_another_server_are_not_mixed_with_those_that_are_there(kits: Path) -> None:
    other = Network("other.example.org", 18002, ("north", "south", "west"))
    with pytest.raises(DataError, match="holds kits for the server localhost:18002"):
        provision(other, kits)
    assert not (kits / "west").exists()


def test_an_expired_kit_is_refused_before_anything_starts(kits: Path) -> None:
    write_certificate(kits / "north" / "startup", "north", days=-1)
    with pytest.raises(DataError, match=r"client.crt: expired on \d{4}-\d\d-\d\d; have the kit "):
        open_kit(kits / "north", coordinator=False)


# --- messages


class _Cell:
    """A fake of FLARE's cell, with what ``Download`` needs."""

    def __init__(self, name: str) -> None:
        self._name = name

    def get_fqcn(self) -> str:
        return self._name

    def register_request_cb(self, **how: object) -> None:
        """Do nothing."""


def test_a_message_is_given_in_pieces_to_its_receiver_and_nobody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "_CHUNK", 100)
    stored = StoredMessage.pack(
        Message("train", {"round": 0}, {"decoder.w": torch.ones(50)}), tmp_path
    )
    begun: list[bool] = []
    offered = transfer.Download(_Cell("north.job"), stored, "server", lambda: begun.append(True))
    with pytest.raises(ValueError, match=r"south.job asks for what is not there for it"):
        offered.produce(None, "south.job")
    with pytest.raises(ValueError, match="is not there"):
        offered.produce({"place": -1}, "server.job")
    assert not offered.taken
    pieces, state = [], None
    while (chunk := offered.produce(state, "server.job"))[1] is not None:
        pieces.append(chunk[1])
        state = chunk[2]
    assert b"".join(pieces) == stored.read(0, stored.size)
    assert {len(piece) for piece in pieces[:-1]} == {100}
    with (tmp_path / "fetched").open("wb") as file:
        fetched = transfer._Pieces(file, stored.size)
        for piece in pieces:
            fetched.consume("", {}, piece)
    assert (tmp_path / "fetched").read_bytes() == b"".join(pieces)
    assert begun == [True]
    assert offered.taken
    offered.withdraw()


def test_of_a_message_that_cannot_be_recorded_no_piece_is_given(tmp_path: Path) -> None:
    stored, asked = StoredMessage.pack(Message("train", {"round": 0}, {}), tmp_path), []

    def unrecorded() -> None:
        asked.append(True)
        if len(asked) < 3:
            raise PrivacyError("the disk is full")

    offered = transfer.Download(_Cell("north.job"), stored, "server", unrecorded)
    for _ in range(2):
        with pytest.raises(PrivacyError, match="the disk is full"):
            offered.produce(None, "server.job")
        assert not offered.taken
    assert offered.produce(None, "server.job")[1] == stored.read(0, stored.size)
    offered.withdraw()


def test_what_is_fetched_has_a_limit_and_comes_from_the_one_who_was_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "_CHUNK", 6)
    file = tmp_path / "file"
    with file.open("wb") as opened:
        pieces = transfer._Pieces(opened, 10)
        assert pieces.consume("", {"place": 6}, b"123456") == {"place": 6}
        with pytest.raises(ValueError, match="more than 10 bytes came"):
            pieces.consume("", {"place": 12}, b"123456")
        endless = transfer._Pieces(opened, 10)
        endless.consume("", {"place": 0}, b"")
        with pytest.raises(ValueError, match="a piece came after one that was not full"):
            endless.consume("", {"place": 0}, b"")
    assert file.read_bytes() == b"123456"
    for address in (None, {}, {"from": "south.job", "number": "1"}, {"from": "north.job"}):
        with pytest.raises(AggregationError, match="does not say where the message can be fetched"):
            transfer.fetch(_Cell("server.job"), address, "north", 10, tmp_path, Signal())


# --- processes


_SLEEPS = "import time; time.sleep(60)"


def test_a_kit_is_used_by_one_process_at_a_time(kits: Path) -> None:
    kit = open_kit(kits / "coordinator", coordinator=True)
    refused = pytest.raises(MixmflError, match="is in use by another process")
    with processes.exclusive(kit), refused, processes.exclusive(kit):
        pass


def test_a_port_in_use_is_named_before_anything_starts(tmp_path: Path) -> None:
    with socket.create_server(("localhost", 0)) as taken:
        port = int(taken.getsockname()[1])
        provision(Network("localhost", port, ("north",)), tmp_path)
        kit = open_kit(tmp_path / "coordinator", coordinator=True)
        with pytest.raises(MixmflError, match=rf"port {port}, .* end the process that uses it"):
            processes.running_server(kit).__enter__()
    assert not (kit.folder / "console.log").exists()
    with processes.exclusive(kit):  # the lock was given back
        pass


def test_a_server_that_does_not_start_leaves_its_reason_in_the_kit(
    kits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nobody(*_: object) -> None:
        raise NoConnection("nobody listens")

    monkeypatch.setattr(processes, "_RUN_AS_CHILD", "raise SystemExit('no such key')")
    monkeypatch.setattr(processes, "new_secure_session", nobody)
    kit = open_kit(kits / "coordinator", coordinator=True)
    with pytest.raises(MixmflError, match=r"did not start; the reason is in console\.log there"):
        processes.running_server(kit).__enter__()
    assert (kit.folder / "console.log").read_text() == "no such key\n"


def test_a_server_that_is_slow_to_start_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    session: Any = object()
    answers = [session, FLCommunicationError("timeout"), InternalError(""), NoConnection("nobody")]

    def slow(*_: object) -> object:
        if isinstance(answer := answers.pop(), Exception):
            raise answer
        return answer

    monkeypatch.setattr(processes, "time", _Clock())
    monkeypatch.setattr(processes, "new_secure_session", slow)
    process: Any = SimpleNamespace(poll=lambda: None)
    assert processes._session(KIT, process) is session


def test_a_certificate_that_the_clock_has_passed_is_one_clear_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The kit was good when the command began; the clock jumped, and FLARE's server was lost."""

    def late(*_: object) -> None:
        sys.stderr.write("Traceback of FLARE's")
        raise InvalidCertChain("cert is not valid at validation time")

    monkeypatch.setattr(processes, "new_secure_session", late)
    process: Any = SimpleNamespace(poll=lambda: None)
    with pytest.raises(MixmflError, match=r"not valid at the time of this machine's clock, 2"):
        processes._session(KIT, process)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("killed", [False, True])
def test_a_server_that_is_lost_is_found_out_and_left(
    kits: Path, monkeypatch: pytest.MonkeyPatch, killed: bool
) -> None:
    left: list[str] = []
    session: Any = SimpleNamespace(
        close=lambda: left.append("logged out"),
        api=SimpleNamespace(close=lambda: left.append("closed")),
    )
    monkeypatch.setattr(processes, "_RUN_AS_CHILD", _SLEEPS)
    monkeypatch.setattr(processes, "new_secure_session", lambda *_: session)
    kit = open_kit(kits / "coordinator", coordinator=True)

    def question(asked: object) -> None:
        assert asked is session
        raise InternalError("strange")

    def serve() -> None:
        with processes.running_server(kit) as server:
            if killed:
                server.process.kill()
                server.process.wait()
            server.ask(question)

    lost = r"the server ended or does not answer \((strange|exit code -9)\); see log\.txt"
    with pytest.raises(processes.ServerLostError, match=lost):
        serve()
    assert left == ["closed" if killed else "logged out"]


def test_a_site_ends_what_a_killed_one_left_behind_and_its_own_and_nobody_elses(
    kits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kit, config = (
        open_kit(kits / "north", coordinator=False),
        SiteConfig("north", tmp_path, tmp_path),
    )
    idle = [sys.executable, "-c", _SLEEPS]
    left = subprocess.Popen([*idle, "nvflare", str(kit.folder)])
    others = [
        subprocess.Popen([*idle, "nvflare", str(kits / "south")]),
        subprocess.Popen([*idle, str(kit.folder)]),  # as an editor that shows its log
    ]
    monkeypatch.setattr(processes, "_RUN_AS_CHILD", _SLEEPS)
    try:
        with processes.running_client(kit, config) as process:
            assert not psutil.pid_exists(left.pid)
            assert process.poll() is None
            assert SiteConfig.load(kit.folder / "local" / "mixmfl.json") == config
        assert process.poll() is not None
        assert [other.poll() for other in others] == [None, None]
    finally:
        for started in (left, *others):
            started.kill()
            started.wait()


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

    monkeypatch.setattr(processes, "time", _Clock())
    session: Any = Busy()
    process: Any = SimpleNamespace(poll=lambda: None)
    server = processes.Server(KIT, process, session)
    assert server.ask(lambda at: at.get_job_meta("1"))["status"] == "FINISHED:COMPLETED"
    session.asked = -1000
    with pytest.raises(processes.ServerLostError, match="Server did not respond"):
        server.ask(lambda at: at.get_job_meta("1"))
    assert session.asked < -800  # it took two minutes


# --- jobs


def test_a_job_names_two_classes_that_are_there_and_that_kits_allow(
    kits: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "job"
    write_job(folder, tmp_path / "orders.json", ["north"], 60)
    server = json.loads((folder / "server_app/config/config_fed_server.json").read_text())
    site = json.loads((folder / "site_app/config/config_fed_client.json").read_text())
    named = {
        "coordinator": server["workflows"][0]["path"],
        "north": site["executors"][0]["executor"]["path"],
    }
    for kit, path in named.items():
        resources = json.loads((kits / kit / "local" / "resources.json").read_text())
        assert resources["class_allow_list"] == [path]
    assert load_class(named["coordinator"]) is Coordinator
    assert load_class(named["north"]) is SiteExecutor
    assert sorted(path.name for path in folder.rglob("*") if path.is_file()) == [
        "config_fed_client.json",
        "config_fed_server.json",
        "meta.json",
    ]


SITE = "mixmfl.federated.flare.SiteExecutor"
NOT_OURS = (
    "os.system",
    "builtins.eval",
    "subprocess.Popen",
    "mixmfl.federated.flare",
    "mixmfl.federated.flare.Coordinator",
    "mixmfl.federated.flare.SiteExecutorX",
    "mixmfl.federated.flare.executor.SiteExecutor",
    "mixmfl.entrypoints._runner.run",
    "mixmfl.federated.flare.siteexecutor",
    "mixmfl.federated.flare.SiteExecutor .x",
    "mixmfl.federated..flare.SiteExecutor",
    "torch.nn.modules.module.torch.os.system",
    "nvflare.apis.executor.Executor",
    "",
    "eval",
    "nvflare.app_common.executors.client_api_launcher_executor.ClientAPILauncherExecutor",
)


def test_a_hospital_builds_no_class_but_ours_whatever_a_job_names(
    kits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With FLARE's own reader of jobs and its own check, by the policy of a kit."""
    workspace = Workspace(str(kits / "north"), "north", "config")
    loaded: list[str] = []
    monkeypatch.setattr(class_utils, "load_class", loaded.append)

    def authorize(config_dict: object, config_ctx: object, node: object) -> str:
        try:
            ComponentPathAuthorizer().authorize_component_config(
                config_dict, node, workspace=workspace
            )
        except UnsafeComponentError as error:
            return str(error)
        return ""

    def build(config: Path) -> None:
        started = SimpleNamespace(
            sp_scheme="grpc",
            sp_target="localhost:1",
            client_name="north",
            job_id="1",
            workspace=str(kits / "north"),
        )
        reader = ClientJsonConfigurator(workspace, str(config), started, str(config.parent), [])
        reader.set_component_build_authorizer(authorize)
        reader.configure()

    folder = kits.parent / "job"
    write_job(folder, kits / "orders.json", ["north"], 60)
    config = folder / "site_app" / "config" / "config_fed_client.json"
    settings = json.loads(config.read_text())
    with pytest.raises(Exception, match="NoneType"):  # the class is not really loaded here
        build(config)
    assert loaded == ["mixmfl.federated.flare.SiteExecutor"]
    tried = 0
    for path in NOT_OURS:
        for key in ("path", "class_path", "name"):
            evil = {key: path, "args": {}}
            for spoil in (
                {"executors": [{"tasks": ["*"], "executor": evil}]},
                {"components": [{"id": "x", **evil}]},
                {"task_data_filters": [{"tasks": ["*"], "filters": [evil]}]},
                {"executors": [{"tasks": ["*"], "executor": {"path": SITE, "args": {"x": evil}}}]},
            ):
                config.write_text(json.dumps({**settings, **spoil}))
                loaded.clear()
                with pytest.raises(Exception):  # noqa: B017, PT011  (FLARE's, of several classes)
                    build(config)
                assert set(loaded) <= {SITE}, spoil
                tried += 1
    assert tried == 12 * len(NOT_OURS)
    with pytest.raises(TypeError, match="Can't load class"):  # which the check lets pass
        load_class(f"{SITE}.execute")


class _Clock:
    """Time that passes when somebody sleeps; meanwhile threads do what they were started for."""

    Lock = threading.Lock

    def __init__(self) -> None:
        self.now = 1000.0
        self._threads: list[Callable[[], None]] = []

    def Thread(self, **how: Any) -> SimpleNamespace:  # noqa: N802
        work = partial(how["target"], *how["args"])
        return SimpleNamespace(start=lambda: self._threads.append(work))

    def time(self) -> float:
        return self.now

    monotonic = time

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        while self._threads:
            self._threads.pop(0)()


class _Server:
    """A fake of FLARE's server: a job ends some seconds after it was submitted."""

    def __init__(
        self, clock: _Clock, orders: Path, result: JobResult | None, lasts: float, begins: bool
    ) -> None:
        self._clock, self._orders, self._result, self._lasts = clock, orders, result, lasts
        self._begins = begins
        self.aborted: list[float] = []

    def ask(self, question: Callable[["_Server"], Any]) -> Any:
        return question(self)

    def submit_job(self, folder: str) -> str:
        assert json.loads((Path(folder) / "meta.json").read_text())["min_clients"] == 1
        for file in (result_file, pause_file, begun_file):
            assert not file(self._orders).exists(), "of the job before"
        if self._result is not None:
            write_json(result_file(self._orders), vars(self._result))
        if self._begins:
            begun_file(self._orders).touch()
        self._end = self._clock.now + self._lasts
        return "7"

    def get_job_meta(self, number: str) -> dict[str, str]:
        assert number == "7"
        over = self.aborted or self._clock.now >= self._end
        return {"status": "FINISHED:ABORTED" if over else "RUNNING"}

    def abort_job(self, number: str) -> None:
        assert number == "7"
        self.aborted.append(self._clock.now)
        raise InternalError("job is not running")  # which it may say


@pytest.mark.parametrize(
    ("noted", "begins", "lasts", "aborted", "ended"),
    [
        (JobResult("quorum", "one of 2"), True, 3, [], JobResult("quorum", "one of 2")),
        # a site hangs that the round did not wait for; the note was found after a second
        (JobResult("done"), True, math.inf, [1016.0], JobResult("done")),
        (None, True, 900, [], JobResult("lost", "the job was lost (FLARE: FINISHED:ABORTED; ")),
        # FLARE never starts it
        (None, False, math.inf, [1600.0], JobResult("lost", "the job did not begin within 600 s")),
    ],
)
def test_a_job_has_ended_as_it_noted_whatever_flare_still_waits_for(
    noted: JobResult | None,
    begins: bool,
    lasts: float,
    aborted: list[float],
    ended: JobResult,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    orders, clock = tmp_path / "orders.json", _Clock()
    monkeypatch.setattr(job, "time", clock)
    write_json(result_file(orders), {"status": "paused"})
    pause_file(orders).touch()
    begun_file(orders).touch()
    server: Any = _Server(clock, orders, noted, lasts, begins)
    looked: list[float] = []
    result = job.run_job(
        server, orders, ["north"], deadline=60, each_second=lambda: looked.append(clock.now)
    )
    assert (result.status, result.reason[: len(ended.reason)]) == (ended.status, ended.reason)
    assert server.aborted == aborted
    assert looked == [1000.0 + second for second in range(len(looked))]


def test_a_job_of_a_server_that_is_lost_is_not_asked_about_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = _Clock()
    monkeypatch.setattr(job, "time", clock)
    server: Any = _Server(clock, tmp_path / "orders.json", None, math.inf, True)

    def get_job_meta(number: str) -> dict[str, str]:
        clock.now += 120
        raise processes.ServerLostError("gone")

    server.get_job_meta = get_job_meta
    with pytest.raises(processes.ServerLostError):
        job.run_job(server, tmp_path / "orders.json", [], deadline=60, each_second=lambda: None)
    assert clock.now == 1120


class _Jobs:
    """A fake of FLARE: the connected sites, and how each job ends."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        legs: Sequence[JobResult | processes.ServerLostError],
        work: Path,
    ) -> None:
        self.clock, self.legs, self.printed = _Clock(), [*legs], list[str]()
        settings = RunSettings("2d", 0, 3, 1, 0.01)
        self.orders = TrainingJob(work, work / "run", ("north", "south"), "abc", settings, "0")
        self.last_seen = {"north": math.inf, "south": math.inf}  # later than any now: always here
        self.took_part: list[Sequence[str]] = []
        self.asked = 0  # how often it was asked who is connected
        self.in_job: Callable[[], None] = lambda: None
        monkeypatch.setattr(runner, "time", self.clock)
        monkeypatch.setattr(runner, "ending_soon", lambda kit, today: ["warning: ends"])
        monkeypatch.setattr(runner, "running_server", lambda kit: nullcontext(self))
        monkeypatch.setattr(runner, "run_job", self._run_job)

    def ask(self, question: Callable[["_Jobs"], Any]) -> Any:
        return question(self)

    def get_system_info(self) -> SimpleNamespace:
        self.asked += 1
        seen = self.last_seen.items()
        clients = [SimpleNamespace(name=name, last_connect_time=at) for name, at in seen]
        return SimpleNamespace(client_info=clients)

    def run(self) -> None:
        runner.run_jobs(KIT, self.orders, quorum=1, deadline=60, say=self.printed.append)

    def _run_job(self, _: object, file: Path, sites: Sequence[str], **how: Any) -> JobResult:
        assert load_job(file) == self.orders
        self.took_part.append(sites)
        self.in_job()
        how["each_second"]()
        ended = self.legs.pop(0)
        if isinstance(ended, Exception):
            raise ended
        return ended


def test_a_new_run_waits_for_all_of_its_sites_and_says_for_whom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = _Jobs(monkeypatch, [JobResult("done")], tmp_path)
    jobs.last_seen["south"] = jobs.clock.now - 41  # that is too long ago
    slept = jobs.clock.sleep

    def south_comes_after_a_minute(seconds: float) -> None:
        slept(seconds)
        if jobs.clock.now >= 1060:
            jobs.last_seen["south"] = jobs.clock.now

    monkeypatch.setattr(jobs.clock, "sleep", south_comes_after_a_minute)
    jobs.run()
    assert jobs.printed == [
        "warning: ends",  # a certificate
        "serving at localhost:1",
        "connected: north",
        "waiting for south (mixmfl_site there)",
        "connected: north, south",
    ]
    assert jobs.clock.now == 1060
    assert jobs.took_part == [["north", "south"]]


def test_a_hospital_that_refuses_is_named_once_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = _Jobs(monkeypatch, [JobResult("paused"), JobResult("done")], tmp_path)
    refused = {"join": {"south": "refuses: rounds 9"}}
    jobs.in_job = lambda: write_json(refusals_file(job_file(jobs.orders.out)), refused)
    jobs.run()
    assert jobs.printed.count("south: join: refuses: rounds 9") == 1
    assert jobs.printed.index("south: join: refuses: rounds 9") < len(jobs.printed) - 1


def test_a_site_whose_heartbeat_is_late_once_all_were_connected_is_in_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = _Jobs(monkeypatch, [JobResult("done")], tmp_path)
    seen = jobs.get_system_info

    def late_when_asked_again() -> SimpleNamespace:
        if jobs.asked:
            jobs.last_seen["south"] = jobs.clock.now - 41
        return seen()

    monkeypatch.setattr(jobs, "get_system_info", late_when_asked_again)
    jobs.run()
    assert jobs.took_part == [["north", "south"]]


def test_a_coordinator_that_runs_for_days_warns_of_certificates_on_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = _Jobs(monkeypatch, [JobResult("done")], tmp_path)
    jobs.last_seen["south"] = jobs.clock.now
    first = datetime(2027, 3, 1, 23, 59, tzinfo=timezone.utc)
    seconds = iter((0, 1, 90, 91))  # it starts, and looks three times while the job runs

    class Clock(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
            return first + timedelta(seconds=next(seconds))

    def looks_thrice(*task: Any, **how: Any) -> JobResult:
        how["each_second"]()
        how["each_second"]()
        return jobs._run_job(*task, **how)

    monkeypatch.setattr(runner, "run_job", looks_thrice)
    monkeypatch.setattr(runner, "datetime", Clock)
    jobs.run()
    assert jobs.printed.count("warning: ends") == 2  # a minute lies between, and a midnight


def test_a_round_that_too_few_answer_is_repeated_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = JobResult("quorum", "round 1: 0 of 2 sites answered")
    jobs = _Jobs(monkeypatch, [few, few, few], tmp_path)
    with pytest.raises(MixmflError, match=r"0 of 2 .*; that was the third time, .* and --resume"):
        jobs.run()
    assert jobs.printed.count("round 1: 0 of 2 sites answered; the round is repeated") == 2
    with pytest.raises(MixmflError, match=r"^PlansError: no$"):
        _Jobs(monkeypatch, [JobResult("failed", "PlansError: no")], tmp_path).run()


def test_a_server_or_a_job_that_is_lost_is_started_again_after_a_pause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost, server = JobResult("lost", "the job was lost"), processes.ServerLostError("server gone")
    jobs = _Jobs(monkeypatch, [server, lost, JobResult("done")], tmp_path)
    jobs.run()
    assert jobs.clock.now == 1000 + 5 + 10
    assert jobs.printed.count("serving at localhost:1") == 2  # the server alone was lost
    assert "server gone; it is started again" in jobs.printed
    assert "the job was lost; the round is repeated" in jobs.printed
    with pytest.raises(MixmflError, match=r"^server gone; that was the third time"):
        _Jobs(monkeypatch, [lost, server, server], tmp_path).run()


def test_a_site_that_has_reconnected_is_in_the_next_job_and_a_round_in_between_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, lost = SimpleNamespace(absent=""), SimpleNamespace(absent=f"{NOT_CONNECTED} any more")
    run = SimpleNamespace(history=[], registrations={"north": 1, "south": 1})
    few = JobResult("quorum", "few")
    jobs = _Jobs(
        monkeypatch, [few, few, JobResult("paused"), few, few, JobResult("done")], tmp_path
    )
    monkeypatch.setattr(runner, "holds_run", lambda folder: bool(run.history))
    monkeypatch.setattr(runner, "record_time", lambda folder: len(run.history))
    monkeypatch.setattr(runner, "open_run", lambda folder: run)
    pause = tmp_path / "run" / "network" / "pause"
    paused: list[bool] = []

    def in_third_job_a_round_is_done_without_south() -> None:
        paused.append(pause.exists())
        if len(jobs.took_part) == 3:
            run.history.append({"north": here, "south": lost})

    jobs.in_job = in_third_job_a_round_is_done_without_south
    jobs.run()
    assert paused == [False, False, False, True, True, True]  # the fake job does not remove it
    assert "a site has come back" in jobs.printed
    assert jobs.printed.count("few; the round is repeated") == 4  # not three in a row


@pytest.mark.parametrize("connected_before", [False, True])
def test_a_site_that_is_to_join_a_run_is_in_the_job_after_it_has_connected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, connected_before: bool
) -> None:
    here = SimpleNamespace(absent="")
    run = SimpleNamespace(history=[{"north": here}], registrations={"north": 1})
    jobs = _Jobs(monkeypatch, [JobResult("done")], tmp_path)
    monkeypatch.setattr(runner, "holds_run", lambda folder: True)
    monkeypatch.setattr(runner, "record_time", lambda folder: len(run.history))
    monkeypatch.setattr(runner, "open_run", lambda folder: run)
    if not connected_before:
        jobs.last_seen["south"] = jobs.clock.now - 41

    def south_connects_and_a_round_is_done() -> None:
        jobs.last_seen["south"] = math.inf
        run.history.append({"north": here})

    jobs.in_job = south_connects_and_a_round_is_done
    jobs.run()
    # one that was there and could not join would only be refused again
    assert (tmp_path / "run" / "network" / "pause").exists() == (not connected_before)


# --- what runs in a job


def _context(sites: Sequence[str], local: Path) -> FLContext:
    """Return a fake of the context that FLARE gives a job."""
    engine = SimpleNamespace(
        get_clients=lambda: [SimpleNamespace(name=name) for name in sites],
        get_cell=lambda: _Cell("server"),
        get_workspace=lambda: SimpleNamespace(get_site_config_dir=lambda: str(local)),
    )
    context = FLContext()
    context.set_prop(ReservedKey.ENGINE, engine, private=True, sticky=False)
    return context


def test_the_coordinator_tells_of_every_site_why_nothing_usable_came(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sites = ("away", "broken", "empty", "fine", "gone", "lost", "old", "silent", "slow")
    orders = tmp_path / "network" / "orders.json"
    save_job(PlanningJob(tmp_path, sites, "demo", ("2d",), (5, 100)), orders)
    failed = {"error": "PlansError", "version": "9.9"}
    labels = {"labels": {"background": 0, "lesion": 1}}
    replies = {
        "fine": Message("fingerprint", {"fingerprint": None, "labels": labels}, {}),
        "old": Message("failed", failed, {}),
    }
    offered = Shareable()
    offered["message"] = {"from": "told by the site", "number": "1"}

    def send(self: Any, task: Any, context: FLContext, targets: list[str], **_: object) -> None:
        (name,) = targets
        reply = SimpleNamespace(result=Shareable() if name == "empty" else offered)
        if name == "silent":
            return
        if name != "lost":
            task.before_task_sent_cb(reply, context)
        if name not in {"gone", "lost", "slow"}:
            task.result_received_cb(reply, context)
        if name != "slow":
            task.completion_status = "CLIENT_DEAD"
            task.task_done_cb(task, context)

    def fetch(cell: object, address: object, sender: str, *_: object) -> StoredMessage:
        assert address == offered["message"]
        if sender == "broken":
            raise AggregationError("more than 10 bytes came")
        return StoredMessage.pack(replies[sender], tmp_path)

    ended: list[str] = []
    monkeypatch.setattr(controller, "fetch", fetch)
    monkeypatch.setattr(Coordinator, "send", send)
    monkeypatch.setattr(Coordinator, "cancel_task", lambda self, task, **_: ended.append(task.name))
    clock = _Clock()
    monkeypatch.setattr(controller, "time", clock)
    monkeypatch.setattr(controller, "threading", clock)
    Coordinator(str(orders), 60).control_flow(Signal(), _context(sites[1:], tmp_path))
    assert 60 < clock.now - 1000 < 61
    result = json.loads(result_file(orders).read_text())
    assert result["status"] == "failed"
    reason = dict(re.findall(r"^  (\w+): (.*)$", result["reason"], re.MULTILINE))
    assert reason == {
        "away": "is not connected",
        "broken": "its reply cannot be read (more than 10 bytes came)",
        "empty": "its reply holds no message (OK)",
        "gone": "is not connected any more (CLIENT_DEAD)",
        "lost": "is not connected any more (CLIENT_DEAD)",
        "old": f"runs mixmfl 9.9, the coordinator {mixmfl.__version__}; install versions that "
        "differ in the last number at most",
        "silent": "is not connected: did not fetch its task",
        "slow": "did not answer within 60 s; a later reply is dropped",
    }
    assert ended == ["fingerprint", "fingerprint"]  # of those that may still come: silent, slow
    log = (tmp_path / "network" / "exchange.log").read_text()
    assert "came from fine: fingerprint, record fingerprint labels, 0 tensors" in log
    assert {name for name in sites if f" sent to {name}: fingerprint" in log} == {
        *("broken", "empty", "fine", "gone", "old", "slow")
    }
    del reason["away"]  # it is not even asked
    for name, why in reason.items():
        assert f" nothing from {name}: fingerprint: {why}" in log


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        ({"labels": []}, "what it sent is not taken: site north: is []; an object"),
        ({"fingerprint": {"format": 5}}, "what it sent is not taken: site north: missing fields"),
        ({"fingerprint": 3}, "what it sent is not taken: site north: an object with fields"),
        ({"also": "a\n  south: forged"}, "site 'north' sent what was not asked for: 'also'"),
    ],
)
def test_a_hostile_site_ends_a_plan_with_its_name_and_the_field(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: dict[str, object], why: str
) -> None:
    orders = tmp_path / "network" / "orders.json"
    save_job(PlanningJob(tmp_path, ("north",), "demo", ("2d",), (5, 100)), orders)
    record = {"labels": {"labels": {"background": 0, "a": 1}}, "fingerprint": None, **spoil}
    reply = Answer(Message("fingerprint", record, {}), 1, 1, 0.0)
    monkeypatch.setattr(Coordinator, "_ask", lambda *_: Answers({"north": reply}))
    Coordinator(str(orders), 60).control_flow(Signal(), _context(["north"], tmp_path))
    result = json.loads(result_file(orders).read_text())
    assert result["status"] == "failed"
    assert f"  north: {why}" in result["reason"] or f"not taken: {why}" in result["reason"]


def test_any_failure_of_a_job_is_reported_to_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders = tmp_path / "network" / "orders.json"
    save_job(PlanningJob(tmp_path, ("north",), "demo", ("2d",), (5, 100)), orders)
    for error in (AttributeError("x"), OverflowError("x"), MemoryError("x"), RecursionError("x")):

        def fail(*_: object, error: Exception = error) -> Answers:
            raise error

        monkeypatch.setattr(Coordinator, "_ask", fail)
        Coordinator(str(orders), 60).control_flow(Signal(), _context(["north"], tmp_path))
        result = json.loads(result_file(orders).read_text())
        assert result == {"status": "failed", "reason": f"{type(error).__name__}: x"}


def test_tasks_that_say_the_same_lie_on_disk_once(tmp_path: Path) -> None:
    packed, weights = controller._Packed(tmp_path), {"decoder.w": torch.ones(3)}
    first = packed.of(Message("train", {"round": 0}, weights))
    assert packed.of(Message("train", {"round": 0}, dict(weights))) is first
    assert packed.of(Message("train", {"round": 1}, weights)) is not first
    assert packed.of(Message("train", {"round": 0}, {"decoder.w": torch.ones(3)})) is not first


def test_another_version_is_reported_before_the_error() -> None:
    reason = {"error": "PlansError"}
    other = controller.failure_in(Message("failed", {**reason, "version": "9.9\n"}, {}))
    ours = mixmfl.__version__
    assert other.startswith(f"runs mixmfl 9.9\\n, the coordinator {ours}; install versions that ")
    same = controller.failure_in(Message("failed", {**reason, "version": mixmfl.__version__}, {}))
    assert same == "could not do it (PlansError)"
    refusal = {"version": mixmfl.__version__, "refused": "rounds\n\x1b[2J" + "9" * 20_000}
    refused = controller.failure_in(Message("failed", refusal, {}))
    assert refused.startswith("refuses: rounds\\n\\x1b[2J99")
    assert len(refused) < 10_100


def test_a_hospital_says_what_it_could_not_fetch_and_what_nobody_took(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, executor = SiteConfig("north", tmp_path, tmp_path / "work"), SiteExecutor()
    config.save(tmp_path / "local" / "mixmfl.json")
    context = _context([], tmp_path / "local")
    back = executor.execute("fingerprint", Shareable(), context, Signal())
    assert back.get_return_code() == ReturnCode.EXECUTION_EXCEPTION
    assert "a task could not be fetched: it does not say where" in config.problem_log.read_text()
    assert not config.exchange_log.exists()

    def fetch(cell: object, address: object, sender: str, *_: object) -> StoredMessage:
        assert sender == "server"
        return StoredMessage.pack(Message("shutdown", {}, {}), tmp_path)

    monkeypatch.setattr(executor_module, "fetch", fetch)
    back = executor.execute("shutdown", Shareable(), context, Signal())
    assert back["message"]["from"] == "server"
    executor.handle_event(EventType.END_RUN, context)
    assert "sent a task 'shutdown'; this version of mixmfl knows" in config.problem_log.read_text()
    came, left = config.exchange_log.read_text().splitlines()
    assert " came from coordinator: shutdown, 0 tensors" in came
    assert " not sent, the coordinator did not take it: failed, record error version" in left
    executor.handle_event(EventType.END_RUN, context)  # and not again
    executor.execute("shutdown", Shareable(), context, Signal())
    assert executor._reply is not None
    executor._reply.produce(None, "server.job")
    executor.handle_event(EventType.END_RUN, context)
    *_, came, left = config.exchange_log.read_text().splitlines()
    assert " came from coordinator: shutdown" in came
    assert " sent to coordinator: failed" in left
    assert len(config.exchange_log.read_text().splitlines()) == 4
