"""Public keys of token objects: SubjectPublicKeyInfo (RFC 5280 section 4.1.2.7), and verification.

`cryptography` is loaded at the first verification only: most workers never sign.
"""

from typing import Any

from asn1crypto import keys

__all__ = ["spki_of_rsa", "verifies"]


def spki_of_rsa(modulus: bytes, exponent: bytes) -> bytes:
    """SubjectPublicKeyInfo DER of an RSA public key (RFC 8017 appendix A.1.1)."""
    key = keys.RSAPublicKey(
        {
            "modulus": int.from_bytes(modulus, "big"),
            "public_exponent": int.from_bytes(exponent, "big"),
        }
    )
    der: bytes = keys.PublicKeyInfo.wrap(key, "rsa").dump()
    return der


def verifies(public_key: bytes, algorithm: str, digest: bytes, signature: bytes) -> bool:
    """Whether a signature over a digest is valid; ECDSA signatures are r ‖ s.

    RFC 8017 sections 8.1.2 and 8.2.2, FIPS 186-5 section 6.4.2.

    Args:
        public_key: SubjectPublicKeyInfo DER; anything else verifies nothing.
        algorithm: A name of `specs.ALGORITHMS`.
        digest: Of the algorithm's hash.
        signature: As the token gave it.
    """
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization

    try:
        key = serialization.load_der_public_key(public_key)
        _verify(key, algorithm, digest, signature)
    except (InvalidSignature, UnsupportedAlgorithm, ValueError):
        return False
    return True


def _verify(key: Any, algorithm: str, digest: bytes, signature: bytes) -> None:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
    from cryptography.hazmat.primitives.asymmetric.utils import Prehashed, encode_dss_signature

    bits = algorithm[-3:]
    chosen = {"256": hashes.SHA256(), "384": hashes.SHA384(), "512": hashes.SHA512()}[bits]
    if isinstance(key, rsa.RSAPublicKey) and algorithm.startswith("RSA"):
        is_pss = "PSS" in algorithm
        pss = padding.PSS(padding.MGF1(chosen), chosen.digest_size)
        key.verify(signature, digest, pss if is_pss else padding.PKCS1v15(), Prehashed(chosen))
    elif isinstance(key, ec.EllipticCurvePublicKey) and algorithm.startswith("ECDSA"):
        half = len(signature) // 2
        r, s = (int.from_bytes(part, "big") for part in (signature[:half], signature[half:]))
        key.verify(encode_dss_signature(r, s), digest, ec.ECDSA(Prehashed(chosen)))
    else:
        raise ValueError("another kind of key")
