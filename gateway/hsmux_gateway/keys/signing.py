"""Signatures: made by a software key or a token, always verified here.

The gateway hashes; a token sees a digest only. Verification needs the public key alone and is
done with `cryptography` for keys of both protections. ECDSA signatures are DER on the wire (RFC
3279 section 2.2.3) unless the algorithm's name ends in `_RAW`: then they are r ‖ s, each as long
as the curve's order (IEEE P1363).

Sources: RFC 8017 sections 8.1 and 8.2 (RSASSA-PSS, RSASSA-PKCS1-v1_5), FIPS 186-5 section 6
(ECDSA).
"""

import hashlib
from functools import lru_cache
from typing import Final

from cryptography.exceptions import InvalidSignature as BadSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import (
    Prehashed,
    decode_dss_signature,
    encode_dss_signature,
)

from hsmux_protocol.errors import InvalidArgument, InvalidSignature, WrongState
from hsmux_protocol.keys import ALGORITHMS, KEY_SPECS, Algorithm, algorithms_of

from .material import PrivateKey

__all__ = [
    "check_algorithm",
    "der_from_raw",
    "digest_of",
    "raw_from_der",
    "sign_with",
    "verify_with",
]

PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey

_HASHES: Final[dict[str, hashes.HashAlgorithm]] = {
    "sha256": hashes.SHA256(),
    "sha384": hashes.SHA384(),
    "sha512": hashes.SHA512(),
}


def check_algorithm(name: str, spec_name: str) -> Algorithm:
    """The algorithm of a name, if a key of that spec can use it.

    Raises:
        InvalidArgument: It cannot; the text names those it can.
        WrongState: The key is not for signing.
    """
    possible = algorithms_of(KEY_SPECS[spec_name])
    if not possible:
        raise WrongState(f"a key of spec {spec_name} does not sign")
    if name not in possible:
        raise InvalidArgument(f"a key of spec {spec_name} signs with {', '.join(possible)}")
    return ALGORITHMS[name]


def digest_of(algorithm: Algorithm, message: bytes, is_digest: bool) -> bytes:
    """The digest to sign: of the message, or the message itself when the caller hashed it.

    Raises:
        InvalidArgument: A digest has another size than the algorithm's hash.
    """
    if not is_digest:
        return hashlib.new(algorithm.hash_name, message).digest()
    if len(message) != algorithm.digest_size:
        raise InvalidArgument(
            f"message: a digest for {algorithm.name} has {algorithm.digest_size} bytes, "
            f"not {len(message)}"
        )
    return message


def _rsa_padding(algorithm: Algorithm) -> padding.AsymmetricPadding:
    if algorithm.scheme == "PKCS1":
        return padding.PKCS1v15()
    return padding.PSS(padding.MGF1(_HASHES[algorithm.hash_name]), algorithm.digest_size)


def sign_with(key: PrivateKey, algorithm: Algorithm, digest: bytes) -> bytes:
    """Sign a digest with a software key; blocks for up to milliseconds for RSA."""
    prehashed = Prehashed(_HASHES[algorithm.hash_name])
    if isinstance(key, rsa.RSAPrivateKey):
        return key.sign(digest, _rsa_padding(algorithm), prehashed)
    signature = key.sign(digest, ec.ECDSA(prehashed))
    return raw_from_der(signature, key.curve.key_size) if algorithm.raw else signature


def raw_from_der(signature: bytes, size_bits: int) -> bytes:
    """r ‖ s of a DER signature; each as long as the curve's order, `size_bits` bits."""
    size = (size_bits + 7) // 8
    r, s = decode_dss_signature(signature)
    return r.to_bytes(size, "big") + s.to_bytes(size, "big")


def der_from_raw(signature: bytes) -> bytes:
    """A DER signature of r ‖ s.

    Raises:
        ValueError: The size is odd or 0.
    """
    size, odd = divmod(len(signature), 2)
    if odd or not size:
        raise ValueError("r and s have the same size")
    r, s = signature[:size], signature[size:]
    return encode_dss_signature(int.from_bytes(r, "big"), int.from_bytes(s, "big"))


@lru_cache(maxsize=1024)
def _load_public_key(der: bytes) -> PublicKey:
    key = serialization.load_der_public_key(der)
    assert isinstance(key, PublicKey)
    return key


def verify_with(public_key: bytes, algorithm: Algorithm, digest: bytes, signature: bytes) -> None:
    """Verify a signature over a digest.

    Args:
        public_key: SubjectPublicKeyInfo DER.
        algorithm: What it was signed with.
        digest: Of the algorithm's hash.
        signature: As `sign_with` makes it.

    Raises:
        InvalidSignature: It is not of this digest and key.
    """
    key = _load_public_key(public_key)
    prehashed = Prehashed(_HASHES[algorithm.hash_name])
    try:
        if isinstance(key, rsa.RSAPublicKey):
            key.verify(signature, digest, _rsa_padding(algorithm), prehashed)
            return
        if algorithm.raw:
            if len(signature) != 2 * ((key.curve.key_size + 7) // 8):
                raise ValueError("another size")
            signature = der_from_raw(signature)
        key.verify(signature, digest, ec.ECDSA(prehashed))
    except (BadSignature, ValueError):
        raise InvalidSignature("the signature is not of this message and key") from None
