"""Key specs, usages, protections and signature algorithms, as tables.

One key has one usage for ever. What a protection offers is a column here; what a particular token
offers on top of that is known only to the gateway, which answers `Unsupported` and names what the
token can do.
"""

from typing import Final, Literal, NamedTuple

from .envelope import SUITE_AES_GCM, SUITE_XAES_256_GCM, Suite

__all__ = [
    "ALGORITHMS",
    "KEY_SPECS",
    "KEY_STATES",
    "PROTECTIONS",
    "STORAGES",
    "USAGES",
    "Algorithm",
    "KeySpec",
    "algorithms_of",
]

Family = Literal["AES", "RSA", "EC"]

USAGES: Final = ("ENCRYPT_DECRYPT", "SIGN_VERIFY")
PROTECTIONS: Final = ("software", "hardware")
STORAGES: Final = ("hsm",)
KEY_STATES: Final = (
    "Creating",
    "PendingImport",
    "Enabled",
    "Disabled",
    "PendingDeletion",
    "Destroyed",
)


class KeySpec(NamedTuple):
    """What a key is.

    Attributes:
        name: The name on the wire.
        family: Which kind of mathematics it is.
        size_bits: Key size, modulus size or curve size in bits.
        usage: The one usage it can be created for.
        software_suite: The envelope suite of a software-protected key, None for signing keys.
        hardware_suite: The same for a hardware-protected key.
    """

    name: str
    family: Family
    size_bits: int
    usage: str
    software_suite: Suite | None = None
    hardware_suite: Suite | None = None


KEY_SPECS: Final[dict[str, KeySpec]] = {
    spec.name: spec
    for spec in (
        KeySpec("AES_256", "AES", 256, "ENCRYPT_DECRYPT", SUITE_XAES_256_GCM, SUITE_AES_GCM),
        KeySpec("RSA_2048", "RSA", 2048, "SIGN_VERIFY"),
        KeySpec("RSA_3072", "RSA", 3072, "SIGN_VERIFY"),
        KeySpec("RSA_4096", "RSA", 4096, "SIGN_VERIFY"),
        KeySpec("EC_P256", "EC", 256, "SIGN_VERIFY"),
        KeySpec("EC_P384", "EC", 384, "SIGN_VERIFY"),
    )
}


class Algorithm(NamedTuple):
    """A signature algorithm.

    Attributes:
        name: The name on the wire.
        family: The family of keys it works with.
        scheme: "PSS" (RFC 8017 section 8.1, salt as long as the hash), "PKCS1" (RFC 8017 section
            8.2) or "ECDSA" (FIPS 186-5 section 6.4).
        hash_name: The hash as `hashlib` calls it.
        raw: ECDSA only: the signature is r ‖ s, each as long as the curve's order, instead of DER.
    """

    name: str
    family: Family
    scheme: Literal["PSS", "PKCS1", "ECDSA"]
    hash_name: str
    raw: bool = False

    @property
    def digest_size(self) -> int:
        """Bytes of a digest of the algorithm's hash."""
        return int(self.hash_name.removeprefix("sha")) // 8


def _algorithms() -> dict[str, Algorithm]:
    table = {}
    for bits in (256, 384, 512):
        for algorithm in (
            Algorithm(f"RSA_PSS_SHA_{bits}", "RSA", "PSS", f"sha{bits}"),
            Algorithm(f"RSA_PKCS1_SHA_{bits}", "RSA", "PKCS1", f"sha{bits}"),
            Algorithm(f"ECDSA_SHA_{bits}", "EC", "ECDSA", f"sha{bits}"),
            Algorithm(f"ECDSA_SHA_{bits}_RAW", "EC", "ECDSA", f"sha{bits}", raw=True),
        ):
            table[algorithm.name] = algorithm
    return table


ALGORITHMS: Final[dict[str, Algorithm]] = _algorithms()


def algorithms_of(spec: KeySpec) -> tuple[str, ...]:
    """Names of the signature algorithms a key of this spec can use."""
    if spec.usage != "SIGN_VERIFY":
        return ()
    return tuple(a.name for a in ALGORITHMS.values() if a.family == spec.family)
