"""Key specs and signature algorithms in PKCS#11 terms: templates, mechanisms, parameters.

Every object that outlives its creating call is a private, sensitive, non-extractable token object
that may do exactly what its role needs; after making one, the worker reads these attributes back,
because modules have been seen to ignore them.
"""

from typing import Any, Final, NamedTuple

from pkcs11 import MGF, Attribute, KeyType, Mechanism, MechanismFlag

__all__ = [
    "ALGORITHMS",
    "CURVES",
    "PROOF_ALGORITHM",
    "REQUIRED",
    "ROLES",
    "SPECS",
    "Signing",
    "Spec",
]


class Spec(NamedTuple):
    """A key spec.

    Attributes:
        key_type: As PKCS#11 names it.
        size_bits: Of the key, the modulus or the curve.
        signature_size: Bytes of a signature; 0: it signs nothing.
    """

    key_type: KeyType
    size_bits: int
    signature_size: int


SPECS: Final[dict[str, Spec]] = {
    "AES_256": Spec(KeyType.AES, 256, 0),
    "RSA_2048": Spec(KeyType.RSA, 2048, 256),
    "RSA_3072": Spec(KeyType.RSA, 3072, 384),
    "RSA_4096": Spec(KeyType.RSA, 4096, 512),
    "EC_P256": Spec(KeyType.EC, 256, 64),
    "EC_P384": Spec(KeyType.EC, 384, 96),
}

CURVES: Final[dict[str, str]] = {"EC_P256": "secp256r1", "EC_P384": "secp384r1"}

ROLES: Final[dict[str, MechanismFlag]] = {
    "key": MechanismFlag.ENCRYPT | MechanismFlag.DECRYPT,
    "root": MechanismFlag.ENCRYPT | MechanismFlag.DECRYPT,
    "wrapping": MechanismFlag.WRAP | MechanismFlag.UNWRAP,
    "ca": MechanismFlag.SIGN | MechanismFlag.VERIFY,
}
"""What a symmetric key of a role may do; key pairs sign and verify whatever their role."""

REQUIRED: Final[dict[Attribute, bool]] = {
    Attribute.TOKEN: True,
    Attribute.PRIVATE: True,
    Attribute.SENSITIVE: True,
    Attribute.EXTRACTABLE: False,
}
"""What every secret and private key must say of itself after it was made."""


class Signing(NamedTuple):
    """How a digest is signed.

    Attributes:
        name: A name of `hsmux_protocol.keys.ALGORITHMS`, without `_RAW`.
        mechanism: Of C_SignInit.
        parameter: Its parameter, or None.
        prefix: Bytes before the digest: the DigestInfo of RFC 8017 section 9.2 note 1.
    """

    name: str
    mechanism: Mechanism
    parameter: Any
    prefix: bytes


_DIGEST_INFO: Final = {
    256: "3031300d060960864801650304020105000420",
    384: "3041300d060960864801650304020205000430",
    512: "3051300d060960864801650304020305000440",
}
_HASHES: Final = {
    256: (Mechanism.SHA256, MGF.SHA256, 32),
    384: (Mechanism.SHA384, MGF.SHA384, 48),
    512: (Mechanism.SHA512, MGF.SHA512, 64),
}

ALGORITHMS: Final[dict[str, Signing]] = {
    signing.name: signing
    for bits in (256, 384, 512)
    for signing in (
        Signing(f"ECDSA_SHA_{bits}", Mechanism.ECDSA, None, b""),
        Signing(
            f"RSA_PKCS1_SHA_{bits}", Mechanism.RSA_PKCS, None, bytes.fromhex(_DIGEST_INFO[bits])
        ),
        Signing(f"RSA_PSS_SHA_{bits}", Mechanism.RSA_PKCS_PSS, _HASHES[bits], b""),
    )
}

PROOF_ALGORITHM: Final[dict[KeyType, Signing]] = {
    KeyType.EC: ALGORITHMS["ECDSA_SHA_256"],
    KeyType.RSA: ALGORITHMS["RSA_PKCS1_SHA_256"],
}
"""What a private key signs with to prove itself."""
