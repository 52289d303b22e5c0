"""Public keys of token objects as SubjectPublicKeyInfo (RFC 5280 section 4.1.2.7)."""

from asn1crypto import keys

__all__ = ["spki_of_rsa"]


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
