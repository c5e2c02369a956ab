"""Hospitals make their own private keys, and whoever makes kits signs their requests only."""

import base64
import json
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from killed import files_up_to

from mixmfl.core.errors import DataError, PrivacyError
from mixmfl.federated.flare.kits import open_kit
from mixmfl.federated.flare.provisioning import Network, provision, request_kit
from mixmfl.federated.secure_aggregation.crypto import key_pair
from mixmfl.federated.secure_aggregation.identities import KeyFiles, load_identity
from mixmfl.federated.secure_aggregation.signatures import Identity

NETWORK = Network("localhost", 18002, ("north", "south"))
Command = Callable[..., int]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with north's request, kits made of it, and north's kit as north keeps it."""
    folder = tmp_path_factory.mktemp("requests")
    request_kit("north", folder / "asked")
    request_kit("south", folder / "asked")
    (folder / "asked" / "south.csr").unlink()
    provision(NETWORK, folder / "kits", requests=folder / "asked")
    return folder


def identity(folder: Path, key: str = "north", peers: Path | None = None) -> Identity:
    """Return what north signs with, once its key is in its kit."""
    startup = folder / "kits" / "north" / "startup"
    shutil.copy(folder / "asked" / f"{key}.key", startup / "client.key")  # with its mode
    try:
        kit = open_kit(folder / "kits" / "north", coordinator=False)
        return load_identity("north", KeyFiles(startup, kit.coordinators, peers))
    finally:
        (startup / "client.key").unlink()


def test_no_kit_and_no_record_has_the_key_that_a_hospital_made(folder: Path) -> None:
    key = folder / "asked" / "north.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert {path.name for path in (folder / "kits").iterdir()} == {
        "authority", "coordinator", "north",
    }  # fmt: skip
    assert not (folder / "kits" / "north" / "startup" / "client.key").exists()
    numbers = key.read_text().splitlines()[1:-1]
    files = [path for path in (folder / "kits").rglob("*") if path.is_file()]
    assert len(files) > 10
    for path in files:
        content = path.read_text(errors="replace")
        assert not any(line in content for line in numbers), path
    assert (
        identity(folder).fingerprint
        == open_kit(folder / "kits" / "north", coordinator=False).fingerprint
    )


def test_a_hospital_is_told_to_put_its_key_into_its_kit(folder: Path) -> None:
    startup = folder / "kits" / "north" / "startup"
    with pytest.raises(PrivacyError, match=r"client\.key: there is no such file; put the hospital"):
        load_identity("north", KeyFiles(startup))
    with pytest.raises(PrivacyError, match=r"client\.key: is not the key of .*client\.crt"):
        identity(folder, "south")


def test_a_key_is_never_written_over(folder: Path) -> None:
    before = (folder / "asked" / "north.key").read_bytes()
    with pytest.raises(DataError, match="is there already, and a key is never written over"):
        request_kit("north", folder / "asked")
    assert (folder / "asked" / "north.key").read_bytes() == before
    with pytest.raises(DataError, match="a hospital's name has letters, digits and hyphens"):
        request_kit("../north", folder / "asked")


def test_renewal_needs_another_key_and_ends_the_old_one(folder: Path, tmp_path: Path) -> None:
    """Two kits of one hospital: whoever has the old one is another to the server and to peers."""
    asked, kits = folder / "asked", folder / "kits"
    with pytest.raises(DataError, match="--renew north: its request has the key of the kit that"):
        provision(NETWORK, kits, ["north"], asked)
    with pytest.raises(DataError, match="--renew north: made its own key; have it make another"):
        provision(NETWORK, kits, ["north"])
    old = identity(folder)
    request_kit("north", tmp_path)
    with pytest.raises(DataError, match="is a kit for another key than that of the request; add"):
        provision(NETWORK, kits, requests=tmp_path)
    assert provision(NETWORK, kits, ["north"], tmp_path) == (kits / "north",)
    (asked / "north.key").unlink()
    for file in tmp_path.iterdir():
        file.rename(asked / file.name)
    new = identity(folder)
    listed = json.loads((kits / "coordinator" / "local" / "certificates.json").read_text())
    certificate = x509.load_der_x509_certificate(new.certificate)
    assert open_kit(kits / "north", coordinator=False).fingerprint == new.fingerprint
    assert listed["north"]["sha256"] == certificate.fingerprint(SHA256()).hex()
    # a peer cannot know by certificates that the old kit was ended; by the telephone it does
    public = key_pair()[1]
    stolen, honest = ({"north": who.sign("run", 3, public)} for who in (old, new))
    provision(NETWORK, kits)  # makes south's key, as for a trial
    peers = tmp_path / "peers.json"
    peers.write_text(json.dumps({"north": new.fingerprint}))
    startup = kits / "south" / "startup"
    south = load_identity("south", KeyFiles(startup, ("localhost",), peers))
    south.check("run", 3, honest)
    with pytest.raises(PrivacyError, match=f"fingerprint {old.fingerprint}, and this site knows"):
        south.check("run", 3, stolen)
    load_identity("south", KeyFiles(startup, ("localhost",))).check("run", 3, stolen)


RSA, UNKNOWN = bytes.fromhex("2a864886f70d010101"), bytes.fromhex("2a864886f70d010163")


def with_another_key(pem: bytes) -> bytes:
    """Return a request or certificate whose key is of a kind that nobody knows."""
    begin, *lines, end = pem.strip().split(b"\n")
    content = base64.b64decode(b"".join(lines))
    assert RSA in content
    return b"\n".join([begin, base64.b64encode(content.replace(RSA, UNKNOWN)), end, b""])


def with_exponent(exponent: int, site: str) -> bytes:
    """Return a request of a site with a key of another exponent."""
    key = rsa.generate_private_key(public_exponent=exponent, key_size=2048)
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, site)])
    request = x509.CertificateSigningRequestBuilder(subject).sign(key, SHA256())
    return request.public_bytes(Encoding.PEM)


def test_a_kit_with_a_key_of_an_unknown_kind_is_damaged(folder: Path, tmp_path: Path) -> None:
    kit = shutil.copytree(folder / "kits" / "north", tmp_path / "kit")
    certificate = kit / "startup" / "client.crt"
    certificate.write_bytes(with_another_key(certificate.read_bytes()))
    with pytest.raises(DataError, match=r"client\.crt: is damaged \(Unknown key type"):
        open_kit(kit, coordinator=False)


def test_what_is_no_request_of_the_network_is_refused(folder: Path, tmp_path: Path) -> None:
    good = (folder / "asked" / "north.csr").read_bytes()
    for name, content, why in (
        ("north", b"no", "north.csr: is no signing request"),
        ("north", with_exponent(3, "north"), "of at least 2048 bits and exponent 65537"),
        ("north", with_another_key(good), r"is no signing request \(Unknown key type"),
        ("south", good, r"south.csr: is a request of \['north'\]"),
        ("east", good, r"east.csr: is a request of \['north'\]; needed is one of north, south"),
    ):
        asked = tmp_path / f"{name}-{len(content)}"
        asked.mkdir()
        (asked / f"{name}.csr").write_bytes(content)
        with pytest.raises(DataError, match=why):
            provision(NETWORK, tmp_path / "kits", requests=asked)
    with pytest.raises(DataError, match="there is no such folder of signing requests"):
        provision(NETWORK, tmp_path / "kits", requests=tmp_path / "nowhere")
    assert not (tmp_path / "kits").exists()


def test_a_request_and_a_kit_of_it_by_the_command(
    tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    asked, file = tmp_path / "asked", tmp_path / "network.json"
    assert command("mixmfl_provision", "--request", "north", "-o", asked) == 0
    fingerprint = capsys.readouterr().out.split()[-1]
    file.write_text('{"server": "localhost:18002", "sites": ["north", "south"]}')
    made = ("mixmfl_provision", "-i", file, "-o", tmp_path / "kits", "--requests", asked)
    assert command(*made) == 0
    printed = capsys.readouterr().out
    assert f"fingerprint of its key: {fingerprint}" in printed
    assert "no kit yet, as there is no request: south" in printed
    assert command("mixmfl_provision", "-o", tmp_path / "kits") == 2
    assert "-i NETWORK.json is needed" in capsys.readouterr().err
    assert command("mixmfl_provision", "--request", "north", "-i", file, "-o", asked) == 2
    assert "--request: takes -o alone beside it" in capsys.readouterr().err


def test_half_a_key_is_not_left_in_the_way_of_the_next(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="File too large"), files_up_to(1000):
        request_kit("north", tmp_path)
    request_kit("north", tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"north.key", "north.csr"}
