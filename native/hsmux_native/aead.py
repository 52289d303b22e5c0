"""AES-256-GCM, XAES-256-GCM and HMAC-SHA-256 with keys that Python has, and the choice of backend.

These are for vectors, for self-tests and for the in-memory twin of a token. The data path uses an
`Arena`, which keeps keys out of Python and chooses nonces itself.

A backend is chosen once, at import, and only if it gives every known answer. Two variables of the
environment have a say: `HSMUX_NATIVE_BACKEND` demands `ipsec-mb` or `openssl`, and
`HSMUX_NATIVE_CORRUPT_SELF_TEST` names a known-answer test whose expectation is changed first, which
shows that a start with a wrong answer ends. Threads may call everything here at once.
"""

import os
from typing import Final

from ._bridge import Buffer, as_bytes, check, new, sized, taken, text
from ._native import ffi, lib
from .errors import SelfTestFailed

__all__ = [
    "ITEM_SIZE_MAX",
    "backend",
    "gcm_open",
    "gcm_seal",
    "hmac_sha256",
    "self_test",
    "xaes_open",
    "xaes_seal",
]

ITEM_SIZE_MAX: Final[int] = lib.HS_ITEM_SIZE_MAX
"""Bytes of one plaintext."""

_NONCE: Final[int] = lib.HS_NONCE_SIZE
_TAG: Final[int] = lib.HS_TAG_SIZE
_KEY: Final[int] = lib.HS_KEY_SIZE
_IV: Final[int] = lib.HS_IV_SIZE
_MAC: Final = 32


def backend() -> str:
    """The implementation of AES-GCM in use, such as `ipsec-mb 1.3.0 avx512`."""
    return text(lib.hs_backend())


def self_test(*, corrupt: str | None = None) -> list[str]:
    """Run every known-answer test of `native/src/selftest.c` on the backend in use.

    Args:
        corrupt: Name of a test whose expectation is changed first, to show that it can fail.

    Returns:
        The names of the tests that passed.

    Raises:
        SelfTestFailed: A test failed; the text names it.
        ValueError: There is no test of the name `corrupt`.
    """
    names = _self_test_names()
    if corrupt is not None and corrupt not in names:
        raise ValueError(f"{corrupt}: one of {', '.join(names)}")
    passed = []
    for index, name in enumerate(names):
        if lib.hs_self_test(index, name == corrupt) != lib.HS_OK:
            raise SelfTestFailed(f"known-answer test {name} failed on {backend()}")
        passed.append(name)
    return passed


def gcm_seal(key: Buffer, iv: Buffer, associated_data: Buffer, plaintext: Buffer) -> bytes:
    """AES-256-GCM with a given IV: ciphertext ‖ tag. For vectors; it does not choose IVs.

    NIST SP 800-38D with 96-bit IVs and 128-bit tags; there are no other sizes.

    Args:
        key: 32 bytes.
        iv: 12 bytes; never twice with one key.
        associated_data: At most 8,192 bytes.
        plaintext: At most `ITEM_SIZE_MAX` bytes.

    Raises:
        ValueError: A size is not allowed.
    """
    key, iv = sized(key, _KEY, "key"), sized(iv, _IV, "iv")
    aad, data = as_bytes(associated_data), as_bytes(plaintext)
    output = new("uint8_t[]", len(data) + _TAG)
    check(lib.hs_gcm_seal(key, iv, aad, len(aad), data, len(data), output))
    return taken(output, len(data) + _TAG)


def gcm_open(key: Buffer, iv: Buffer, associated_data: Buffer, sealed: Buffer) -> bytes:
    """Open what `gcm_seal` made: the plaintext.

    Args:
        key: 32 bytes.
        iv: 12 bytes.
        associated_data: As it was sealed.
        sealed: Ciphertext ‖ tag 16.

    Raises:
        InvalidTag: It does not open, whatever the reason; a size over a limit is one too.
        ValueError: Key or IV have another size.
    """
    key, iv = sized(key, _KEY, "key"), sized(iv, _IV, "iv")
    aad, data = as_bytes(associated_data), as_bytes(sealed)
    output = new("uint8_t[]", max(len(data), _TAG))
    check(lib.hs_gcm_open(key, iv, aad, len(aad), data, len(data), output))
    return taken(output, len(data) - _TAG)


def xaes_seal(key: Buffer, nonce: Buffer, associated_data: Buffer, plaintext: Buffer) -> bytes:
    """XAES-256-GCM (C2SP, c2sp.org/XAES-256-GCM) with a given nonce: ciphertext ‖ tag. For vectors.

    Args:
        key: 32 bytes.
        nonce: 24 bytes.
        associated_data: At most 8,192 bytes.
        plaintext: At most `ITEM_SIZE_MAX` bytes.

    Raises:
        ValueError: A size is not allowed.
    """
    key, nonce = sized(key, _KEY, "key"), sized(nonce, _NONCE, "nonce")
    aad, data = as_bytes(associated_data), as_bytes(plaintext)
    output = new("uint8_t[]", len(data) + _TAG)
    check(lib.hs_xaes_seal(key, nonce, aad, len(aad), data, len(data), output))
    return taken(output, len(data) + _TAG)


def xaes_open(key: Buffer, nonce: Buffer, associated_data: Buffer, sealed: Buffer) -> bytes:
    """Open what `xaes_seal` made: the plaintext.

    Args:
        key: 32 bytes.
        nonce: 24 bytes.
        associated_data: As it was sealed.
        sealed: Ciphertext ‖ tag 16.

    Raises:
        InvalidTag: It does not open, whatever the reason; a size over a limit is one too.
        ValueError: Key or nonce have another size.
    """
    key, nonce = sized(key, _KEY, "key"), sized(nonce, _NONCE, "nonce")
    aad, data = as_bytes(associated_data), as_bytes(sealed)
    output = new("uint8_t[]", max(len(data), _TAG))
    check(lib.hs_xaes_open(key, nonce, aad, len(aad), data, len(data), output))
    return taken(output, len(data) - _TAG)


def hmac_sha256(key: Buffer, message: Buffer) -> bytes:
    """HMAC-SHA-256 (RFC 2104, FIPS 180-4): 32 bytes.

    Args:
        key: At most 8,192 bytes.
        message: At most `ITEM_SIZE_MAX` bytes.

    Raises:
        ValueError: A size is over its limit.
    """
    output = new("uint8_t[]", _MAC)
    key, data = as_bytes(key), as_bytes(message)
    check(lib.hs_hmac_sha256(key, len(key), data, len(data), output))
    return taken(output, _MAC)


def _self_test_names() -> list[str]:
    return [text(lib.hs_self_test_name(index)) for index in range(lib.hs_self_test_count())]


def _select_backend(wanted: str, corrupt: str | None) -> None:
    """Choose a backend that gives every known answer.

    Raises:
        SelfTestFailed: There is none; the text names what failed.
    """
    if corrupt is not None and corrupt not in _self_test_names():
        names = ", ".join(_self_test_names())
        raise SelfTestFailed(f"HSMUX_NATIVE_CORRUPT_SELF_TEST={corrupt}: one of {names}")
    changed = ffi.NULL if corrupt is None else corrupt.encode()
    status = lib.hs_select_backend(os.fsencode(wanted), changed)
    if status == lib.HS_BAD_ARGUMENT:
        raise SelfTestFailed(
            f"HSMUX_NATIVE_BACKEND={wanted}: unknown, or not for this machine; "
            "use openssl or ipsec-mb"
        )
    if status != lib.HS_OK:
        failed = text(lib.hs_self_test_failed()) or "none could be run"
        raise SelfTestFailed(
            f"no implementation of AES-GCM passes its known-answer tests here ({failed}); "
            "install hsmux-gateway again, or look for broken memory or libraries"
        )


_select_backend(
    os.environ.get("HSMUX_NATIVE_BACKEND", ""),
    os.environ.get("HSMUX_NATIVE_CORRUPT_SELF_TEST") or None,
)
