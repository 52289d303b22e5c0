"""The ciphertext envelope: what `encrypt` returns and `decrypt` takes.

An envelope names the key version that opens it, so a caller stores one byte string and nothing
else:

    magic 2 | format 1 | suite 1 | key id 16 | key version u32      24 bytes of header, big-endian
    suite 1 XAES-256-GCM:      nonce 24 | ciphertext | tag 16
    suite 2 AES-GCM:           nonce 12 | ciphertext | tag 16
    suite 3 RSA-OAEP-SHA-256:  one block of the modulus' size

The header is authenticated: the associated data of suites 1 and 2 is `header ‖ canonical
context`, the label of suite 3 is the same. So an envelope cannot be moved to another key, version
or suite, and a suite must be the one its key version has. Parsing needs no key and says nothing
about whether the envelope opens.

Sources: XAES-256-GCM is specified by C2SP (c2sp.org/XAES-256-GCM), AES-GCM by NIST SP 800-38D,
RSA-OAEP by RFC 8017 section 7.1.
"""

import struct
from typing import Final, NamedTuple

__all__ = [
    "FORMAT",
    "HEADER_SIZE",
    "MAGIC",
    "SUITES",
    "SUITE_AES_GCM",
    "SUITE_RSA_OAEP_SHA_256",
    "SUITE_XAES_256_GCM",
    "Header",
    "Suite",
    "make_header",
    "parse_header",
]

MAGIC: Final = b"hX"
FORMAT: Final = 1
HEADER_SIZE: Final = 24
_HEADER: Final = struct.Struct(">2sBB16sI")


class Suite(NamedTuple):
    """How the bytes behind the header are made.

    Attributes:
        number: In the header.
        name: For people.
        nonce_size: Bytes of the nonce.
        tag_size: Bytes of the tag.
    """

    number: int
    name: str
    nonce_size: int
    tag_size: int

    @property
    def overhead_size(self) -> int:
        """Bytes an envelope has beside its ciphertext."""
        return HEADER_SIZE + self.nonce_size + self.tag_size


class Header(NamedTuple):
    """A parsed envelope header."""

    suite: Suite
    key_id: bytes
    key_version: int


SUITE_XAES_256_GCM: Final = Suite(1, "XAES-256-GCM", 24, 16)
SUITE_AES_GCM: Final = Suite(2, "AES-GCM", 12, 16)
SUITE_RSA_OAEP_SHA_256: Final = Suite(3, "RSA-OAEP-SHA-256", 0, 0)
SUITES: Final[dict[int, Suite]] = {
    suite.number: suite for suite in (SUITE_XAES_256_GCM, SUITE_AES_GCM, SUITE_RSA_OAEP_SHA_256)
}


def make_header(suite: Suite, key_id: bytes, key_version: int) -> bytes:
    """The 24 header bytes for a key version.

    Args:
        suite: One of `SUITES`.
        key_id: 16 bytes.
        key_version: 1 to 2^32 - 1.
    """
    if len(key_id) != 16 or not 1 <= key_version < 2**32:
        raise ValueError("a key id has 16 bytes and a version is a u32 from 1")
    return _HEADER.pack(MAGIC, FORMAT, suite.number, key_id, key_version)


def parse_header(envelope: bytes | memoryview) -> Header:
    """Read the header of an envelope and check its form; whether it opens is not checked.

    Raises:
        ValueError: It is too short, or magic, format, suite or version are not ones this version
            writes.
    """
    if len(envelope) < HEADER_SIZE:
        raise ValueError(f"ciphertext: {len(envelope)} bytes is shorter than an envelope's header")
    magic, format_number, suite_number, key_id, key_version = _HEADER.unpack_from(envelope)
    if magic != MAGIC or format_number != FORMAT:
        raise ValueError("ciphertext: not an hsmux envelope of format 1")
    suite = SUITES.get(suite_number)
    if suite is None:
        raise ValueError(f"ciphertext: suite {suite_number} is unknown to this version")
    if key_version == 0:
        raise ValueError("ciphertext: key versions count from 1")
    if len(envelope) < suite.overhead_size:
        raise ValueError(f"ciphertext: shorter than any envelope of suite {suite.name}")
    return Header(suite, key_id, key_version)
