"""Masks that hide a number in a sum: keys, key streams, fixed point.

``cryptography`` does what is cryptography here. The arithmetic is modulo 2^64, in which a mask
that is uniform hides any number perfectly and cancels exactly.
"""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from mixmfl.core.errors import PrivacyError

Words = npt.NDArray[np.uint64]
"""Numbers modulo 2^64."""

KEY_BYTES = 32


def key_pair() -> tuple[bytes, bytes]:
    """Return a new X25519 private key and its public key, 32 bytes each."""
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    made = X25519PrivateKey.generate()
    return made.private_bytes_raw(), made.public_key().public_bytes_raw()


def agree(private: bytes, public: bytes, purpose: str) -> bytes:
    """Return the secret of two key pairs for one purpose, 32 bytes; the same from either side.

    Raises:
        PrivacyError: The public key is none.
    """
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    try:
        mine, theirs = (
            X25519PrivateKey.from_private_bytes(private),
            X25519PublicKey.from_public_bytes(public),
        )
        common = mine.exchange(theirs)  # raises for keys of small order
    except ValueError as error:
        raise PrivacyError(f"a key that came for masking is none ({error})") from None
    derive = HKDF(hashes.SHA256(), KEY_BYTES, salt=None, info=f"mixmfl {purpose}".encode())
    return derive.derive(common)


def key_stream(seed: bytes, count: int, start: int = 0) -> Words:
    """Return numbers that only who knows the seed can tell from random: AES-256 in counter mode.

    A seed must serve one stream only.

    Args:
        seed: 32 bytes.
        count: How many numbers.
        start: The first, counted from 0: a stream can be had a piece at a time.
    """
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    block, skip = divmod(start, 2)  # a block of AES is two numbers
    stream = Cipher(algorithms.AES(seed), modes.CTR(block.to_bytes(16, "big"))).encryptor()
    made = np.frombuffer(stream.update(bytes(8 * (skip + count))), dtype="<u8")
    return made[skip:].astype(np.uint64, copy=False)


def to_words(values: npt.NDArray[np.float64], bits: int, parties: int) -> Words:
    """Return numbers in fixed point modulo 2^64, so that sums of ``parties`` of them fit.

    Args:
        values: Numbers that will be summed.
        bits: Binary digits after the point.
        parties: How many at most.

    Raises:
        PrivacyError: One is too large, NaN or infinite.
    """
    scaled = np.rint(values * 2.0**bits)
    if not (np.abs(scaled) < 2.0**62 / parties).all():
        raise PrivacyError(
            f"a number is NaN, infinite or beyond {2.0 ** (62 - bits) / parties:.3g}, and cannot "
            "be masked"
        )
    return scaled.astype(np.int64).view(np.uint64)


def from_words(words: Words, bits: int) -> npt.NDArray[np.float64]:
    """Return what a sum of ``to_words`` stands for."""
    return words.view(np.int64).astype(np.float64) / 2.0**bits


def sum_words(parts: Iterable[Words]) -> Words:
    """Return the sum modulo 2^64, of at least one part; one is there at a time."""
    left = iter(parts)
    total = next(left).copy()
    for part in left:
        total += part
    return total
