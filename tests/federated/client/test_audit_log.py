"""The record of what left a site: what is changed in it later is noticed."""

import json
import socket
from pathlib import Path

import pytest
from killed import files_up_to

from mixmfl.core.errors import DataError, PrivacyError
from mixmfl.federated.client.audit_log import AuditLog, address_of, verify_log


@pytest.fixture
def log(tmp_path: Path) -> AuditLog:
    log = AuditLog(tmp_path / "work" / "audit.jsonl")
    for number in range(3):
        log.add("sent", to="host:1", kind="train", round=number, bytes=10, sha256="ab" * 32)
    log.add("approved", by="the policy")
    return log


def test_a_record_that_nobody_touched_is_whole_and_goes_on(log: AuditLog) -> None:
    found = verify_log(log.file)
    assert (found.lines, found.sent, found.sent_bytes) == (4, 3, 30)
    assert found.begin <= found.end
    log.add("sent", bytes=1)
    again = verify_log(log.file)
    assert (again.lines, again.sent_bytes) == (5, 31)
    assert again.head != found.head
    assert json.loads(log.file.read_text().splitlines()[4])["previous"] == found.head
    assert log.file.stat().st_mode & 0o77 == 0


def test_names_that_others_chose_cannot_make_a_line_that_is_not_read_back(log: AuditLog) -> None:
    log.add("approved", labels=["\N{BRAIN}" * 100] * 1000)  # as long as a job's names may be
    log.add("sent", bytes=1)
    assert verify_log(log.file).lines == 6
    with pytest.raises(PrivacyError, match=r"of approved has \d+ bytes; 2000000 at most"):
        log.add("approved", labels=["\N{BRAIN}" * 100] * 2000)
    log.add("sent", bytes=1)
    assert verify_log(log.file).lines == 7


@pytest.mark.parametrize("line", range(4))
def test_a_line_that_was_changed_removed_doubled_or_moved_is_noticed(
    log: AuditLog, line: int
) -> None:
    lines = log.file.read_text().splitlines(keepends=True)
    head = verify_log(log.file).head
    other = (line + 1) % 4
    moved = list(lines)
    moved[line], moved[other] = lines[other], lines[line]
    changed = lines[line].replace('"bytes": 10', '"bytes": 99').replace("policy", "person")
    assert changed != lines[line]
    for spoilt in (
        [*lines[:line], changed, *lines[line + 1 :]],
        [*lines[:line], *lines[line + 1 :]],
        [*lines[:line], lines[line], *lines[line:]],
        moved,
    ):
        log.file.write_text("".join(spoilt))
        try:
            found = verify_log(log.file).head
        except DataError:
            continue
        assert found != head  # of the last line nothing but its digest tells
        assert line == 3


def test_a_record_that_was_cut_off_stops_the_site(log: AuditLog, tmp_path: Path) -> None:
    whole = log.file.read_bytes()
    for damaged in (whole[:-1], whole[:-20], whole + b"{}\n", whole + b"[1]\n"):
        log.file.write_bytes(damaged)
        with pytest.raises(DataError, match=r"audit\.jsonl: line \d is damaged or is not the one"):
            verify_log(log.file)
        with pytest.raises(PrivacyError, match="its last line is cut off or damaged, so nothing"):
            log.add("sent", bytes=1)
        assert log.file.read_bytes() == damaged
    (tmp_path / "empty").touch()
    for file, why in ((tmp_path / "empty", "is empty"), (tmp_path, "cannot be read")):
        with pytest.raises(DataError, match=why):
            verify_log(file)


def test_a_syslog_gets_every_line_with_its_digest(tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(10)
        log = AuditLog(tmp_path / "audit.jsonl", f"127.0.0.1:{server.getsockname()[1]}")
        log.add("sent", to="host:1", bytes=7)
        printed = server.recv(65536).decode()
    (line,) = log.file.read_text().splitlines()
    assert f"{line} sha256 {verify_log(log.file).head}" in printed


def test_where_no_record_can_be_made_nothing_leaves(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.jsonl", str(tmp_path / "nowhere"))
    with pytest.raises(PrivacyError, match="nothing leaves without a record"):
        log.add("sent", bytes=7)
    assert not log.file.exists()
    (tmp_path / "folder").mkdir()
    for wrong in ("host", "host:x", "host:0", ":514"):
        with pytest.raises(DataError, match=f"--syslog {wrong}: host:port is needed"):
            address_of(wrong)


def test_a_line_for_which_the_disk_has_no_room_is_not_there_in_part(log: AuditLog) -> None:
    before = log.file.read_bytes()
    full = pytest.raises(PrivacyError, match=r"cannot be written .*, and nothing leaves")
    with files_up_to(len(before) + 20), full:
        log.add("sent", bytes=1)
    assert log.file.read_bytes() == before
    log.add("sent", bytes=1)  # there is room again
    assert verify_log(log.file).lines == 5
