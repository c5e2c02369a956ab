"""Signing requests: a hospital makes its own private key, and has only its certificate issued."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from nvflare.lighter.constants import ParticipantType
from nvflare.lighter.entity import Participant
from nvflare.lighter.impl.cert import CertBuilder
from nvflare.lighter.utils import Identity, generate_cert, generate_keys

from mixmfl.core.errors import DataError, why
from mixmfl.core.files import read_small, replacing
from mixmfl.core.text import quoted
from mixmfl.federated.secure_aggregation.signatures import fingerprint_of

_KEY_BITS = 3072
_LEAST_KEY_BITS = 2048
_EXPONENT = 65537


def make_request(site: str, out: Path) -> str:
    """Make a private key for a hospital and a request for its certificate.

    Args:
        site: Name of the hospital, as it is in the network's file.
        out: Folder for ``SITE.key``, which stays at the hospital, and ``SITE.csr``.

    Returns:
        The fingerprint of the key.

    Raises:
        DataError: There is such a key already.
    """
    key_file, request_file = out / f"{site}.key", out / f"{site}.csr"
    out.mkdir(parents=True, exist_ok=True)
    key = rsa.generate_private_key(public_exponent=_EXPONENT, key_size=_KEY_BITS)
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, site)])
    request = x509.CertificateSigningRequestBuilder(subject).sign(key, SHA256())
    try:
        number = os.open(key_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise DataError(
            f"{key_file}: is there already, and a key is never written over; name another folder"
        ) from None
    try:
        with os.fdopen(number, "wb") as file:
            form = PrivateFormat.TraditionalOpenSSL  # what FLARE reads
            file.write(key.private_bytes(Encoding.PEM, form, NoEncryption()))
        with replacing(request_file) as temporary:
            temporary.write_bytes(request.public_bytes(Encoding.PEM))
    except BaseException:  # as on a full disk: half a key would be in the way of the next
        key_file.unlink()
        raise
    return fingerprint_of(request)


def read_requests(folder: Path, sites: Sequence[str]) -> dict[str, x509.CertificateSigningRequest]:
    """Read the requests of hospitals, ``SITE.csr`` in a folder.

    Raises:
        DataError: The folder is missing, or a file is no request, or of another site.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder of signing requests")
    requests = {}
    for file in sorted(folder.glob("*.csr")):
        try:
            request = x509.load_pem_x509_csr(read_small(file))
            names = [
                a.value for a in request.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
            ]
            key = request.public_key()
            valid = request.is_signature_valid
        except (OSError, ValueError, UnsupportedAlgorithm) as error:
            raise DataError(f"{file}: is no signing request ({why(error)})") from None
        if not (
            isinstance(key, rsa.RSAPublicKey)
            and key.key_size >= _LEAST_KEY_BITS
            and key.public_numbers().e == _EXPONENT
            and valid
        ):
            raise DataError(
                f"{file}: needed is a request with an RSA key of at least {_LEAST_KEY_BITS} bits "
                f"and exponent {_EXPONENT}, signed by it, as mixmfl_provision --request makes"
            )
        if names != [file.stem] or file.stem not in sites:
            raise DataError(
                f"{file}: is a request of {quoted(names)}; needed is one of "
                f"{', '.join(sites)}, and the file's name must be the site's"
            )
        requests[file.stem] = request
    return requests


class RequestedCertificates(CertBuilder):
    """FLARE's builder, which issues what hospitals requested and makes the other keys itself."""

    def __init__(
        self, root_valid_days: int, requests: Mapping[str, x509.CertificateSigningRequest]
    ) -> None:
        """Args: root_valid_days: of the authority; requests: by site."""
        super().__init__(root_valid_days=root_valid_days)
        self._requests = requests

    def get_pri_key_cert(self, participant: Participant) -> tuple[Any, x509.Certificate]:
        """Return the key and certificate of a participant; FLARE calls this.

        A hospital that made its key has it alone. FLARE wants one to keep and gets one that no
        certificate is issued for; ``provision`` removes it from the kit.
        """
        request = self._requests.get(participant.name)
        if request is None or participant.type != ParticipantType.CLIENT:
            return super().get_pri_key_cert(participant)
        subject = Identity(participant.subject, participant.org)
        certificate = generate_cert(
            subject, Identity(self.issuer), self.pri_key, request.public_key()
        )
        return generate_keys()[0], certificate
