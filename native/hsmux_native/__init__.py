"""The C module: key memory and AES-256-GCM for the gateway's hot path.

Keys live in an `Arena`: locked memory outside of Python, addressed by slot numbers. Sealing and
opening take a slot and bytes; a key's own bytes become a Python object only where a docstring says
so. Envelopes are XAES-256-GCM (C2SP); see `hsmux_protocol.envelope` for their format and
`native/src/seal.c` for why no nonce repeats.

At import the module chooses libipsec-mb or OpenSSL, whichever passes its known-answer tests first;
`HSMUX_NATIVE_BACKEND` (`ipsec-mb` or `openssl`) demands one.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from . import _native
from ._native import ffi, lib

__all__ = [
    "ITEM_SIZE_MAX",
    "Arena",
    "ArenaFull",
    "ArenaStatistics",
    "Buffer",
    "InvalidSlot",
    "InvalidTag",
    "NativeError",
    "SelfTestFailed",
    "adapter_path",
    "backend",
    "gcm_open",
    "gcm_seal",
    "hmac_sha256",
    "self_test",
    "xaes_open",
    "xaes_seal",
]

Buffer = bytes | bytearray | memoryview

ITEM_SIZE_MAX: Final[int] = lib.HS_ITEM_SIZE_MAX
"""Bytes of one plaintext."""

_NONCE: Final[int] = lib.HS_NONCE_SIZE
_TAG: Final[int] = lib.HS_TAG_SIZE
_KEY: Final[int] = lib.HS_KEY_SIZE
_IV: Final[int] = lib.HS_IV_SIZE
_OVERHEAD: Final = _NONCE + _TAG
_new: Final = ffi.new_allocator(should_clear_after_alloc=False)


class NativeError(Exception):
    """The base of everything the C module raises; the text says what to do."""


class InvalidTag(NativeError):
    """A ciphertext does not open. Never says why."""


class InvalidSlot(NativeError):
    """There is no key under this slot number: it was freed, or never made."""


class ArenaFull(NativeError):
    """No slot is free; free one and try again."""


class SelfTestFailed(NativeError):
    """A known-answer test failed, or the backend that was demanded is not there."""


_ERRORS: Final[dict[int, tuple[type[Exception], str]]] = {
    lib.HS_INVALID: (InvalidTag, "does not open"),
    lib.HS_TOO_LARGE: (ValueError, f"more than {ITEM_SIZE_MAX} bytes"),
    lib.HS_BAD_ARGUMENT: (ValueError, "a column or length that is malformed or over a limit"),
    lib.HS_BAD_SLOT: (InvalidSlot, "no key under this slot number"),
    lib.HS_FULL: (ArenaFull, "the arena is full"),
    lib.HS_NO_RANDOM: (NativeError, "the operating system gives no good random bytes"),
    lib.HS_NO_MEMORY: (NativeError, "memory cannot be mapped or locked"),
    lib.HS_FORKED: (NativeError, "the arena belongs to another process"),
    lib.HS_SELF_TEST: (SelfTestFailed, "a known-answer test failed"),
}


def _check(status: int) -> None:
    if status != lib.HS_OK:
        error, text = _ERRORS[status]
        raise error(text)


def _bytes(data: Buffer) -> bytes:
    return data if type(data) is bytes else bytes(data)


def _taken(output: Any, size: int) -> bytes:
    data: bytes = ffi.buffer(output, size)[:]
    return data


def backend() -> str:
    """The implementation of AES-GCM in use, such as `ipsec-mb 1.3.0 avx512`."""
    name: bytes = ffi.string(lib.hs_backend())
    return name.decode()


def self_test(*, corrupt: str | None = None) -> list[str]:
    """Run every known-answer test on the backend in use.

    Args:
        corrupt: Name of a test whose expectation is changed first, to show that it can fail.

    Returns:
        The names of the tests that passed.

    Raises:
        SelfTestFailed: A test failed; the text names it.
    """
    passed = []
    for index in range(lib.hs_self_test_count()):
        name = ffi.string(lib.hs_self_test_name(index)).decode()
        if lib.hs_self_test(index, name == corrupt) != lib.HS_OK:
            raise SelfTestFailed(f"known-answer test {name} failed on {backend()}")
        passed.append(name)
    return passed


def _sized(data: Buffer, size: int, name: str) -> bytes:
    if len(data) != size:
        raise ValueError(f"{name}: {size} bytes, not {len(data)}")
    return _bytes(data)


def gcm_seal(key: Buffer, iv: Buffer, associated_data: Buffer, plaintext: Buffer) -> bytes:
    """AES-256-GCM with a given IV: ciphertext ‖ tag. For vectors; it does not choose IVs.

    Args:
        key: 32 bytes.
        iv: 12 bytes.
        associated_data: At most 8,192 bytes.
        plaintext: At most `ITEM_SIZE_MAX` bytes.

    Raises:
        ValueError: A size is not allowed.
    """
    output = _new("uint8_t[]", len(plaintext) + _TAG)
    key, iv = _sized(key, _KEY, "key"), _sized(iv, _IV, "iv")
    aad, data = _bytes(associated_data), _bytes(plaintext)
    _check(lib.hs_gcm_seal(key, iv, aad, len(aad), data, len(data), output))
    return _taken(output, len(data) + _TAG)


def gcm_open(key: Buffer, iv: Buffer, associated_data: Buffer, sealed: Buffer) -> bytes:
    """Open what `gcm_seal` made.

    Raises:
        InvalidTag: It does not open.
        ValueError: Key or IV have another size.
    """
    key, iv = _sized(key, _KEY, "key"), _sized(iv, _IV, "iv")
    aad, data = _bytes(associated_data), _bytes(sealed)
    output = _new("uint8_t[]", max(len(data), _TAG))
    _check(lib.hs_gcm_open(key, iv, aad, len(aad), data, len(data), output))
    return _taken(output, len(data) - _TAG)


def xaes_seal(key: Buffer, nonce: Buffer, associated_data: Buffer, plaintext: Buffer) -> bytes:
    """XAES-256-GCM (C2SP) with a given 24-byte nonce: ciphertext ‖ tag. For vectors.

    Raises:
        ValueError: A size is not allowed.
    """
    key, nonce = _sized(key, _KEY, "key"), _sized(nonce, _NONCE, "nonce")
    aad, data = _bytes(associated_data), _bytes(plaintext)
    output = _new("uint8_t[]", len(data) + _TAG)
    _check(lib.hs_xaes_seal(key, nonce, aad, len(aad), data, len(data), output))
    return _taken(output, len(data) + _TAG)


def xaes_open(key: Buffer, nonce: Buffer, associated_data: Buffer, sealed: Buffer) -> bytes:
    """Open what `xaes_seal` made.

    Raises:
        InvalidTag: It does not open.
        ValueError: Key or nonce have another size.
    """
    key, nonce = _sized(key, _KEY, "key"), _sized(nonce, _NONCE, "nonce")
    aad, data = _bytes(associated_data), _bytes(sealed)
    output = _new("uint8_t[]", max(len(data), _TAG))
    _check(lib.hs_xaes_open(key, nonce, aad, len(aad), data, len(data), output))
    return _taken(output, len(data) - _TAG)


def hmac_sha256(key: Buffer, message: Buffer) -> bytes:
    """HMAC-SHA-256 (RFC 2104) with a key of at most 8,192 bytes over at most `ITEM_SIZE_MAX`."""
    output = _new("uint8_t[]", 32)
    key, data = _bytes(key), _bytes(message)
    _check(lib.hs_hmac_sha256(key, len(key), data, len(data), output))
    return _taken(output, 32)


@dataclass(frozen=True, slots=True)
class ArenaStatistics:
    """What an arena holds.

    Attributes:
        kind: "memfd_secret" or "mlock".
        slots: Keys it can hold.
        slots_used: Keys it holds.
        blobs_used: Private keys being loaded.
    """

    kind: str
    slots: int
    slots_used: int
    blobs_used: int


class Arena:
    """Locked memory for open keys; of the process that made it only.

    Args:
        size_bytes: Fixed for its life; about 3 KiB a key.

    Raises:
        NativeError: The memory cannot be had, usually because of RLIMIT_MEMLOCK.
        ValueError: The size is out of range.
    """

    def __init__(self, size_bytes: int = 4 << 20) -> None:
        found = ffi.new("hs_arena **")
        status = lib.hs_arena_create(size_bytes, found)
        if status == lib.HS_NO_MEMORY:
            raise NativeError(
                f"cannot lock {size_bytes} bytes of memory; raise RLIMIT_MEMLOCK (`ulimit -l`, "
                "LimitMEMLOCK= in systemd) or make native.arena_size_bytes smaller"
            )
        _check(status)
        self._arena = ffi.gc(found[0], lib.hs_arena_destroy)

    def __repr__(self) -> str:
        found = self.statistics()
        return f"Arena({found.kind}, {found.slots_used} of {found.slots} slots)"

    def statistics(self) -> ArenaStatistics:
        """What the arena holds now."""
        arena = self._arena
        return ArenaStatistics(
            ffi.string(lib.hs_arena_kind(arena)).decode(),
            lib.hs_arena_slots(arena),
            lib.hs_arena_slots_used(arena),
            lib.hs_arena_blobs_used(arena),
        )

    def generate(self) -> int:
        """A slot with a new AES-256 key.

        Raises:
            ArenaFull: No slot is free.
        """
        slot = ffi.new("uint64_t *")
        _check(lib.hs_slot_generate(self._arena, slot))
        return int(slot[0])

    def load(self, material: Buffer) -> int:
        """A slot with a copy of 32 bytes that Python already has.

        Raises:
            ArenaFull: No slot is free.
            ValueError: Not 32 bytes.
        """
        slot = ffi.new("uint64_t *")
        _check(lib.hs_slot_load(self._arena, _sized(material, _KEY, "material"), slot))
        return int(slot[0])

    def store(self, slot: int, destination: bytearray | memoryview) -> None:
        """Copy a slot's 32 bytes into writable memory shared with a worker process."""
        into = ffi.from_buffer("uint8_t[]", destination, require_writable=True)
        if len(into) < _KEY:
            raise ValueError(f"destination: at least {_KEY} bytes")
        _check(lib.hs_slot_store(self._arena, slot, into))

    def load_from(self, source: bytearray | memoryview) -> int:
        """A slot with the 32 bytes of memory shared with a worker process."""
        data = ffi.from_buffer("uint8_t[]", source)
        if len(data) != _KEY:
            raise ValueError(f"source: {_KEY} bytes")
        slot = ffi.new("uint64_t *")
        _check(lib.hs_slot_load(self._arena, data, slot))
        return int(slot[0])

    def free(self, slot: int) -> None:
        """Zero a slot; its number means nothing from now on.

        Raises:
            InvalidSlot: It holds no key.
        """
        _check(lib.hs_slot_free(self._arena, slot))

    def set_epoch(self, slot: int, messages: int, age_s: int) -> None:
        """Move a slot's nonce epoch forwards, for tests of its end; never back.

        Raises:
            InvalidSlot: It holds no key, has no epoch yet, or `messages` would go back.
        """
        _check(lib.hs_slot_set_epoch(self._arena, slot, messages, age_s))

    def seal(self, slot: int, header: bytes, context: bytes, plaintext: Buffer) -> bytes:
        """One envelope: header ‖ nonce 24 ‖ ciphertext ‖ tag 16.

        Args:
            slot: Of the key.
            header: At most 64 bytes, authenticated.
            context: At most 8,128 bytes, authenticated, not part of the envelope.
            plaintext: At most `ITEM_SIZE_MAX` bytes.

        Raises:
            ValueError: A size is over its limit.
            InvalidSlot: The slot holds no key.
        """
        data = _bytes(plaintext)
        size = len(header) + _OVERHEAD + len(data)
        output = _new("uint8_t[]", size)
        _check(
            lib.hs_seal(
                self._arena,
                slot,
                header,
                len(header),
                context,
                len(context),
                data,
                len(data),
                output,
            )
        )
        return _taken(output, size)

    def open(self, slot: int, header_size: int, context: bytes, envelope: Buffer) -> bytes:
        """The plaintext of an envelope whose first `header_size` bytes are its header.

        Raises:
            InvalidTag: It does not open.
            InvalidSlot: The slot holds no key.
        """
        data = _bytes(envelope)
        output = _new("uint8_t[]", max(len(data), 1))
        _check(
            lib.hs_open(
                self._arena, slot, header_size, context, len(context), data, len(data), output
            )
        )
        return _taken(output, len(data) - header_size - _OVERHEAD)

    def seal_batch(
        self, slot: int, header: bytes, contexts: bytes, plaintexts: bytes
    ) -> tuple[bytes, bytes]:
        """A column of plaintexts into a column of envelopes, in one call.

        Args:
            slot: Of the key.
            header: Of every envelope.
            contexts: A column of one context for all, or one for each item.
            plaintexts: A column of at most 16,384 items.

        Returns:
            The column of envelopes, and a status byte for each item: 0 done, 2 too large. An item
            that is not done has an empty output.

        Raises:
            ValueError: A column is malformed, or their numbers of items do not fit.
            InvalidSlot: The slot holds no key.
        """
        count = int.from_bytes(plaintexts[:4], "big")
        if count > lib.HS_BATCH_ITEMS_MAX:
            raise ValueError(f"at most {lib.HS_BATCH_ITEMS_MAX} items")
        size = len(plaintexts) + count * (len(header) + _OVERHEAD)
        return self._batch(lib.hs_seal_batch, slot, header, contexts, plaintexts, count, size)

    def open_batch(
        self, slot: int, header: bytes, contexts: bytes, envelopes: bytes
    ) -> tuple[bytes, bytes]:
        """A column of envelopes into a column of plaintexts, in one call.

        Returns:
            The column of plaintexts, and a status byte for each item: 0 done, 1 does not open
            (another header included). An item that is not done has an empty output.

        Raises:
            ValueError: A column is malformed, or their numbers of items do not fit.
            InvalidSlot: The slot holds no key.
        """
        count = int.from_bytes(envelopes[:4], "big")
        if count > lib.HS_BATCH_ITEMS_MAX:
            raise ValueError(f"at most {lib.HS_BATCH_ITEMS_MAX} items")
        size = len(envelopes)
        return self._batch(lib.hs_open_batch, slot, header, contexts, envelopes, count, size)

    def _batch(
        self,
        operation: Any,
        slot: int,
        header: bytes,
        contexts: bytes,
        items: bytes,
        count: int,
        size: int,
    ) -> tuple[bytes, bytes]:
        output = _new("uint8_t[]", max(size, 8))
        output_size = ffi.new("size_t *", size)
        statuses = _new("uint8_t[]", max(count, 1))
        _check(
            operation(
                self._arena,
                slot,
                header,
                len(header),
                contexts,
                len(contexts),
                items,
                len(items),
                output,
                output_size,
                statuses,
            )
        )
        return _taken(output, output_size[0]), _taken(statuses, count)

    def seal_bytes(self, kek: int, associated_data: bytes, plaintext: Buffer) -> bytes:
        """Seal the gateway's own bytes under a KEK: nonce 24 ‖ ciphertext ‖ tag 16.

        At most `ITEM_SIZE_MAX` bytes with at most 256 KiB of associated data.

        Raises:
            ValueError: A size is over its limit.
            InvalidSlot: The slot holds no key.
        """
        data = _bytes(plaintext)
        output = _new("uint8_t[]", len(data) + _OVERHEAD)
        aad = associated_data
        _check(lib.hs_seal_bytes(self._arena, kek, aad, len(aad), data, len(data), output))
        return _taken(output, len(data) + _OVERHEAD)

    def open_bytes(self, kek: int, associated_data: bytes, sealed: Buffer) -> bytes:
        """Open what `seal_bytes` made.

        Raises:
            InvalidTag: It does not open.
            InvalidSlot: The slot holds no key.
        """
        data, aad = _bytes(sealed), associated_data
        output = _new("uint8_t[]", max(len(data), 1))
        _check(lib.hs_open_bytes(self._arena, kek, aad, len(aad), data, len(data), output))
        return _taken(output, len(data) - _OVERHEAD)

    def seal_slot(self, kek: int, associated_data: bytes, slot: int) -> bytes:
        """Seal a slot's key under a KEK; its bytes never are a Python object.

        Raises:
            InvalidSlot: A slot holds no key.
        """
        output = _new("uint8_t[]", _KEY + _OVERHEAD)
        aad = associated_data
        _check(lib.hs_seal_slot(self._arena, kek, aad, len(aad), slot, output))
        return _taken(output, _KEY + _OVERHEAD)

    def open_slot(self, kek: int, associated_data: bytes, sealed: Buffer) -> int:
        """A slot with the key that `seal_slot` sealed.

        Raises:
            InvalidTag: It does not open.
            ArenaFull: No slot is free.
            InvalidSlot: The KEK's slot holds no key.
        """
        slot = ffi.new("uint64_t *")
        data, aad = _bytes(sealed), associated_data
        _check(lib.hs_open_slot(self._arena, kek, aad, len(aad), data, len(data), slot))
        return int(slot[0])

    def open_blob(self, kek: int, associated_data: bytes, sealed: Buffer) -> int:
        """Open at most 4,096 bytes into the arena, such as a private key; free it soon.

        Raises:
            InvalidTag: It does not open.
            ArenaFull: Too many are open.
            InvalidSlot: The KEK's slot holds no key.
        """
        blob = ffi.new("uint64_t *")
        data, aad = _bytes(sealed), associated_data
        _check(lib.hs_open_blob(self._arena, kek, aad, len(aad), data, len(data), blob))
        return int(blob[0])

    def blob(self, blob: int) -> memoryview:
        """A read-only view of an open blob; not to be used after `free_blob`.

        Raises:
            InvalidSlot: There is no such blob.
        """
        data, size = ffi.new("const uint8_t **"), ffi.new("size_t *")
        _check(lib.hs_blob_view(self._arena, blob, data, size))
        return memoryview(ffi.buffer(data[0], size[0])).toreadonly()

    def free_blob(self, blob: int) -> None:
        """Zero a blob.

        Raises:
            InvalidSlot: There is no such blob.
        """
        _check(lib.hs_blob_free(self._arena, blob))

    def hmac_sha256(self, slot: int, message: Buffer) -> bytes:
        """HMAC-SHA-256 (RFC 2104) of at most `ITEM_SIZE_MAX` bytes with a slot's key.

        Raises:
            InvalidSlot: The slot holds no key.
        """
        output = _new("uint8_t[]", 32)
        data = _bytes(message)
        _check(lib.hs_slot_hmac_sha256(self._arena, slot, data, len(data), output))
        return _taken(output, 32)


def adapter_path(*, faults: bool = False) -> str:
    """The PKCS#11 adapter module, for `HSMUX_ADAPTER_MODULE` to name the vendor's.

    Args:
        faults: The build that injects faults; see docs/fault-injection.md.

    Raises:
        FileNotFoundError: It was not built.
    """
    name = "libhsmux_adapter_faults.so" if faults else "libhsmux_adapter.so"
    path = Path(_native.__file__).parent / name
    if not path.exists():
        raise FileNotFoundError(f"{path}: install hsmux-gateway again")
    return str(path)


def _select_backend() -> None:
    wanted = os.environ.get("HSMUX_NATIVE_BACKEND", "")
    status = lib.hs_select_backend(wanted.encode())
    if status == lib.HS_BAD_ARGUMENT:
        raise SelfTestFailed(
            f"HSMUX_NATIVE_BACKEND={wanted}: not built in, or unknown; use openssl or ipsec-mb"
        )
    if status != lib.HS_OK:
        raise SelfTestFailed("no implementation of AES-GCM passes its known-answer tests")


_select_backend()
