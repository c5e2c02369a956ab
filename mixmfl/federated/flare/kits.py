"""Start-up kits as those who hold them read them: whose they are, and when they end."""

import logging
import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime, timezone
from pathlib import Path
from typing import Annotated, Any

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

from mixmfl.core.declarations import entries, text
from mixmfl.core.errors import DataError
from mixmfl.core.files import read_json, read_small, who_may_write
from mixmfl.core.json_fields import is_word
from mixmfl.core.records import read_value
from mixmfl.core.text import quoted
from mixmfl.federated.flare.hospital_settings import BEYOND, check_files
from mixmfl.federated.secure_aggregation.signatures import MOST_SITES, fingerprint_of

log = logging.getLogger(__name__)

COORDINATOR = "coordinator"
ADMIN = "coordinator@mixmfl.org"  # the coordinator's command, as its server knows it
CERTIFICATES = "certificates.json"  # in local/ of the coordinator's kit: those that are accepted
WARNING_DAYS = 30
"""How long before its end a certificate is warned of."""

SITES_FILE = "sites.json"  # in local/ of the coordinator's kit: the names of all hospitals
LONGEST_NAME = 64
"""Letters of a name in a certificate."""

_LABEL = "[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?"  # of a domain name
HospitalName = Annotated[str, text(LONGEST_NAME, _LABEL, "letters, digits and hyphens")]
HospitalNames = Annotated[tuple[HospitalName, ...], entries(1, MOST_SITES)]


@dataclass(frozen=True)
class Listed:
    """A certificate that the coordinator's server accepts.

    Attributes:
        sha256: Its fingerprint.
        until: Its last day.
    """

    sha256: Annotated[str, text(64, "[0-9a-f]{64}", "64 hexadecimal digits")]
    until: Annotated[str, text(10, r"\d{4}-\d\d-\d\d", "a day as 2027-06-30")]


_List = Annotated[Mapping[Annotated[str, text(300)], Listed], entries(0, 10_000)]


@dataclass(frozen=True)
class Kit:
    """A start-up kit.

    Attributes:
        folder: Folder of the kit.
        name: Name of the hospital, or ``COORDINATOR``.
        server: ``host:port`` of the coordinator.
        expires: When the kit's certificate expires, in UTC.
        fingerprint: Fingerprint of the key of this certificate.
        coordinators: Names in the coordinator's certificates.
    """

    folder: Path
    name: str
    server: str
    expires: datetime
    fingerprint: str
    coordinators: tuple[str, ...]


def ending_soon(kit: Kit, today: date) -> list[str]:
    """Return a line for each certificate that ends within 30 days, at the coordinator.

    Raises:
        DataError: The list of certificates is missing or damaged.
    """
    file, lines = kit.folder / "local" / CERTIFICATES, []
    if not file.is_file():
        raise DataError(
            f"{file}: there is no list of valid certificates; run mixmfl_provision again with the "
            "same network, which writes it and changes no kit"
        )
    try:
        listed: Mapping[str, Listed] = read_value(_List, read_json(file), "list", DataError)
    except DataError as error:
        raise damaged(file, error) from None
    for subject, certificate in listed.items():
        try:
            left = (date.fromisoformat(certificate.until) - today).days
        except ValueError as error:
            raise damaged(file, error) from None
        if left < WARNING_DAYS:
            lines.append(
                f"warning: the certificate of {subject} ends on {certificate.until}; renew it by "
                "mixmfl_provision --renew"
            )
    return lines


def ends_soon(kit: Kit, today: date) -> str:
    """Return a line where a hospital's certificate ends within 30 days, else nothing."""
    left = (kit.expires.date() - today).days
    if left >= WARNING_DAYS:
        return ""
    return (
        f"warning: the certificate ends on {kit.expires:%Y-%m-%d}, in {left} days; ask the "
        "coordinator for a renewed kit"
    )


def open_kit(folder: Path, *, coordinator: bool) -> Kit:
    """Read a kit.

    Args:
        folder: Folder of the kit.
        coordinator: Whether the kit must be the coordinator's; otherwise it must be a hospital's.

    Raises:
        DataError: The folder is no kit of this kind, others may read its keys or write to it, its
            certificate has expired, or it is a hospital's and holds what
            ``hospital_settings.check_files`` refuses.
    """
    kit = read_kit(folder, coordinator=coordinator)
    _check_private(folder)
    if not coordinator:
        check_files(folder)
    if kit.expires < datetime.now(timezone.utc):
        certificate = folder / "startup" / ("server.crt" if coordinator else "client.crt")
        raise DataError(
            f"{certificate}: expired on {kit.expires:%Y-%m-%d}; have the kit made again by "
            "mixmfl_provision --renew"
        )
    return kit


def _check_private(folder: Path) -> None:
    """Check that nobody else on this machine may read the keys of a kit, or write to the kit.

    Raises:
        DataError: Others may; a group that may write is only warned of.
    """
    if os.name != "posix":
        return
    for key in sorted(folder.glob("**/*.key")):
        if key.exists() and key.stat().st_mode & 0o077:
            raise DataError(
                f"{key}: others on this machine may read it, and who has it can act in this "
                f"federation; let its owner alone read it: chmod 600 {shlex.quote(str(key))}"
            )
    for place in (folder, folder / "startup", folder / "local"):
        if place.is_dir():
            check_writers(place, "what this kit trusts and runs")


def check_writers(path: Path, decides: str) -> None:
    """Check that not everybody on this machine may write to a file or folder; warn of a group.

    Args:
        path: The file or folder.
        decides: What is decided by it, in words.

    Raises:
        DataError: Everybody may.
    """
    if (writers := who_may_write(path)) is None:
        return
    who, place = writers
    everybody = who == "everybody"
    whose = "everybody on this machine" if everybody else f"the group {quoted(who)}"
    line = (
        f"{place}: {whose} may write to it, and so decide {decides}: "
        f"chmod {'o' if everybody else 'g'}-w {shlex.quote(str(place))}"
    )
    if everybody:
        raise DataError(line)
    log.warning("%s", line)


def read_kit(folder: Path, *, coordinator: bool) -> Kit:
    """Read a kit whose certificate may have expired.

    Raises:
        DataError: The folder is no kit of this kind, or is damaged.
    """
    startup = folder / "startup"
    whose = "the coordinator's" if coordinator else "a hospital's"
    config = startup / ("fed_server.json" if coordinator else "fed_client.json")
    certificate = startup / ("server.crt" if coordinator else "client.crt")
    if not config.is_file() or not certificate.is_file():
        raise DataError(
            f"{folder}: is not {whose} start-up kit; mixmfl_provision makes kits, and each is used "
            "where it belongs"
        )
    content = read_json(config)
    try:
        x509_certificate = x509.load_pem_x509_certificate(read_small(certificate))
        fingerprint = fingerprint_of(x509_certificate)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise damaged(certificate, error) from None
    try:
        name = COORDINATOR if coordinator else content["client"]["fqsn"]
        service = content["servers"][0]["service"]
        server = service.get(BEYOND) or service["target"]
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise damaged(config, error) from None
    host, _, port = server.rpartition(":") if isinstance(server, str) else ("", "", "")
    # what the server's certificate must say; a hospital may reach it by another name
    identity = content["servers"][0].get("identity", host)
    if not (is_host(host) and is_port(port) and is_site_name(name) and is_word(identity, 255)):
        raise damaged(config, f"server {quoted(server)}, name {quoted(name)}")
    return Kit(
        folder.resolve(),
        name,
        server,
        x509_certificate.not_valid_after_utc,
        fingerprint,
        (identity, ADMIN),
    )


def site_names(kit: Kit) -> tuple[str, ...]:
    """Return the names of the hospitals that have kits of the same network.

    Raises:
        DataError: The kit is damaged.
    """
    file = kit.folder / "local" / SITES_FILE
    written = read_json(file).get("sites")
    try:
        names: tuple[str, ...] = read_value(HospitalNames, written, "sites", DataError)
    except DataError as error:
        raise damaged(file, error) from None
    return names


def is_host(name: str) -> bool:
    """Return whether a name can be that of a host, or an IPv4 address."""
    return len(name) <= LONGEST_NAME and bool(re.fullmatch(rf"{_LABEL}(\.{_LABEL})*", name))


def is_site_name(name: Any) -> bool:
    """Return whether a hospital can have this name; see ``HospitalName``."""
    try:
        read_value(HospitalName, name, "name", DataError)
    except DataError:
        return False
    return True


def is_port(digits: str) -> bool:
    """Return whether digits are those of a port."""
    return re.fullmatch("[0-9]{1,5}", digits) is not None and 0 < int(digits) < 2**16


def damaged(file: Path, why: object) -> DataError:
    """Return the error of a kit with a damaged file."""
    return DataError(f"{file}: is damaged ({why}); have the kit made again by mixmfl_provision")
