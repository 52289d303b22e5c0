"""Key memory: symmetric keys and, briefly, private keys, in locked pages outside of Python.

A slot is a number that names a key. Keys enter by `generate`, `load` or `open_slot` and are used by
naming their slot; freeing a slot zeroes it, and its number is refused from then on.

Every method that uses the memory raises `NativeError` in a process that was forked from the one
that made the arena: the child has no keys. `native/src/arena.c` describes the memory.
"""

import functools
import resource
from dataclasses import dataclass
from typing import Any, Final

from ._bridge import Buffer, as_bytes, check, new, slot_number, taken, text
from ._native import ffi, lib
from .errors import NativeError

__all__ = ["Arena", "ArenaStatistics"]

_KEY: Final[int] = lib.HS_KEY_SIZE
_KINDS: Final = ("memfd_secret", "mlock")
_SIZE_MAX: Final = 1 << 30
_MAC: Final = 32
_OVERHEAD: Final[int] = lib.HS_NONCE_SIZE + lib.HS_TAG_SIZE
_BYTES: Final = ffi.typeof("uint8_t[]")


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

    Threads may share an arena: one lock guards it, held for the length of one call.

    Args:
        size_bytes: Fixed for its life, at most 1 GiB; about 3 KiB a key.
        kind: `memfd_secret` or `mlock` demands one; None takes the first that can be had.

    Raises:
        NativeError: The memory cannot be had, usually because of RLIMIT_MEMLOCK.
        ValueError: The size is out of range, or there is no such kind.
    """

    def __init__(self, size_bytes: int = 4 << 20, *, kind: str | None = None) -> None:
        if kind not in (None, *_KINDS):
            raise ValueError(f"kind: one of {', '.join(_KINDS)}")
        if not 0 < size_bytes <= _SIZE_MAX:
            raise ValueError(f"an arena has at most {_SIZE_MAX} bytes")
        found = ffi.new("hs_arena **")
        status = lib.hs_arena_create(size_bytes, ffi.NULL if kind is None else kind.encode(), found)
        if status == lib.HS_NO_MEMORY:
            limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
            raise NativeError(
                f"cannot lock {size_bytes} bytes of memory (RLIMIT_MEMLOCK is {limit}); raise it "
                "(`ulimit -l`, LimitMEMLOCK= in systemd) or make native.arena_size_bytes smaller"
            )
        check(status)
        self._arena = ffi.gc(found[0], lib.hs_arena_destroy)

    def __repr__(self) -> str:
        found = self.statistics()
        return f"Arena({found.kind}, {found.slots_used} of {found.slots} slots)"

    def statistics(self) -> ArenaStatistics:
        """What the arena holds now."""
        arena = self._arena
        return ArenaStatistics(
            text(lib.hs_arena_kind(arena)),
            lib.hs_arena_slots(arena),
            lib.hs_arena_slots_used(arena),
            lib.hs_arena_blobs_used(arena),
        )

    def generate(self) -> int:
        """A slot with a new AES-256 key: 32 bytes of getrandom(2).

        Raises:
            ArenaFull: No slot is free.
            NativeError: The operating system gives no random bytes, or the same twice.
        """
        slot = ffi.new("uint64_t *")
        check(lib.hs_slot_generate(self._arena, slot))
        return int(slot[0])

    def load(self, material: Buffer) -> int:
        """A slot with a copy of 32 bytes that Python already has; no other copy is made.

        Raises:
            ArenaFull: No slot is free.
            ValueError: Not 32 bytes.
        """
        return self._load("material", ffi.from_buffer("uint8_t[]", material))

    def store(self, slot: int, destination: bytearray | memoryview) -> None:
        """Copy a slot's 32 bytes into writable memory shared with a worker process.

        Raises:
            InvalidSlot: The slot holds no key.
            ValueError: Less than 32 bytes of memory.
        """
        into = ffi.from_buffer("uint8_t[]", destination, require_writable=True)
        if len(into) < _KEY:
            raise ValueError(f"destination: at least {_KEY} bytes")
        check(lib.hs_slot_store(self._arena, slot_number(slot), into))

    def load_from(self, source: bytearray | memoryview) -> int:
        """A slot with the 32 bytes of memory shared with a worker process, read once.

        Raises:
            ArenaFull: No slot is free.
            ValueError: Not 32 bytes.
        """
        return self._load("source", ffi.from_buffer("uint8_t[]", source))

    def _load(self, name: str, data: Any) -> int:
        if len(data) != _KEY:
            raise ValueError(f"{name}: {_KEY} bytes, not {len(data)}")
        slot = ffi.new("uint64_t *")
        check(lib.hs_slot_load(self._arena, data, slot))
        return int(slot[0])

    def free(self, slot: int) -> None:
        """Zero a slot; its number means nothing from now on.

        Raises:
            InvalidSlot: It holds no key.
        """
        check(lib.hs_slot_free(self._arena, slot_number(slot)))

    def set_epoch(self, slot: int, messages: int, age_s: int) -> None:
        """Move a slot's nonce epoch forwards, for tests of its end; never back.

        Raises:
            InvalidSlot: It holds no key, has no epoch yet, or `messages` would go back.
            ValueError: `messages` or `age_s` (seconds) is not a u32.
        """
        if not (0 <= messages < 2**32 and 0 <= age_s < 2**32):
            raise ValueError("messages and age_s are u32")
        check(lib.hs_slot_set_epoch(self._arena, slot_number(slot), messages, age_s))

    def seal(self, slot: int, header: bytes, context: bytes, plaintext: Buffer) -> bytes:
        """One envelope: header ‖ nonce 24 ‖ ciphertext ‖ tag 16.

        XAES-256-GCM (C2SP, c2sp.org/XAES-256-GCM) with header ‖ context as associated data; the
        nonce is prefix 12 ‖ r 8 ‖ n 4 of the slot's nonce epoch (`native/src/seal.c`).

        Args:
            slot: Of the key.
            header: At most 64 bytes, authenticated.
            context: At most 8,128 bytes, authenticated, not part of the envelope.
            plaintext: At most `ITEM_SIZE_MAX` bytes.

        Raises:
            ValueError: A size is over its limit.
            InvalidSlot: The slot holds no key.
            NativeError: The operating system gives no random bytes, or the same twice.
        """
        # Single requests come here one by one, so no more is called than must be.
        data = plaintext if type(plaintext) is bytes else bytes(plaintext)
        size = len(header) + _OVERHEAD + len(data)
        output = new(_BYTES, size)
        status = lib.hs_seal(
            self._arena,
            slot_number(slot),
            header,
            len(header),
            context,
            len(context),
            data,
            len(data),
            output,
        )
        if status:
            check(status)
        sealed: bytes = ffi.buffer(output, size)[:]
        return sealed

    def open(self, slot: int, header_size: int, context: bytes, envelope: Buffer) -> bytes:
        """The plaintext of an envelope whose first `header_size` bytes are its header.

        Args:
            slot: Of the key.
            header_size: Bytes, at most 64.
            context: As it was sealed.
            envelope: Header ‖ nonce 24 ‖ ciphertext ‖ tag 16.

        Raises:
            InvalidTag: It does not open.
            InvalidSlot: The slot holds no key.
            ValueError: `header_size` or the context is over its limit.
        """
        data = as_bytes(envelope)
        if not 0 <= header_size <= lib.HS_HEADER_SIZE_MAX:
            raise ValueError(f"header_size: at most {lib.HS_HEADER_SIZE_MAX}")
        output = new("uint8_t[]", max(len(data), 1))
        check(
            lib.hs_open(
                self._arena,
                slot_number(slot),
                header_size,
                context,
                len(context),
                data,
                len(data),
                output,
            )
        )
        return taken(output, len(data) - header_size - _OVERHEAD)

    def seal_batch(
        self, slot: int, header: bytes, contexts: bytes, plaintexts: bytes
    ) -> tuple[bytes, bytes]:
        """A column of plaintexts into a column of envelopes, in one call.

        Args:
            slot: Of the key.
            header: Of every envelope, at most 64 bytes.
            contexts: A column of one context for all, or one for each item, of at most 8,128 bytes.
            plaintexts: A column of at most 16,384 items of at most `ITEM_SIZE_MAX` bytes.

        Returns:
            The column of envelopes, and a status byte for each item: 0 done, 2 too large. An item
            that is not done has an empty output.

        Raises:
            ValueError: A column is malformed, their numbers of items do not fit, or the header or a
                context is over its limit; nothing was done.
            InvalidSlot: The slot holds no key.
            NativeError: The operating system gives no random bytes, or the same twice.
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

        Args:
            slot: Of the key.
            header: That every envelope must have, at most 64 bytes.
            contexts: A column of one context for all, or one for each item, of at most 8,128 bytes.
            envelopes: A column of at most 16,384 items.

        Returns:
            The column of plaintexts, and a status byte for each item: 0 done, 1 does not open
            (another header included). An item that is not done has an empty output.

        Raises:
            ValueError: A column is malformed, their numbers of items do not fit, or the header or a
                context is over its limit; nothing was done.
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
        output = new("uint8_t[]", max(size, 8))
        output_size = ffi.new("size_t *", size)
        statuses = new("uint8_t[]", max(count, 1))
        check(
            operation(
                self._arena,
                slot_number(slot),
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
        return taken(output, output_size[0]), taken(statuses, count)

    def seal_bytes(self, kek: int, associated_data: bytes, plaintext: Buffer) -> bytes:
        """Seal the gateway's own bytes under a KEK: nonce 24 ‖ ciphertext ‖ tag 16.

        XAES-256-GCM (C2SP) with 24 random bytes as nonce: at most `ITEM_SIZE_MAX` bytes with at
        most 256 KiB of associated data.

        Raises:
            ValueError: A size is over its limit.
            InvalidSlot: The slot holds no key.
            NativeError: The operating system gives no random bytes, or the same twice.
        """
        data = as_bytes(plaintext)
        output = new("uint8_t[]", len(data) + _OVERHEAD)
        aad = associated_data
        check(
            lib.hs_seal_bytes(self._arena, slot_number(kek), aad, len(aad), data, len(data), output)
        )
        return taken(output, len(data) + _OVERHEAD)

    def open_bytes(self, kek: int, associated_data: bytes, sealed: Buffer) -> bytes:
        """Open what `seal_bytes` made: the plaintext.

        Raises:
            InvalidTag: It does not open.
            InvalidSlot: The slot holds no key.
        """
        data, aad = as_bytes(sealed), associated_data
        output = new("uint8_t[]", max(len(data), 1))
        check(
            lib.hs_open_bytes(self._arena, slot_number(kek), aad, len(aad), data, len(data), output)
        )
        return taken(output, len(data) - _OVERHEAD)

    def seal_slot(self, kek: int, associated_data: bytes, slot: int) -> bytes:
        """Seal a slot's key under a KEK, as `seal_bytes` would: 72 bytes.

        The key's bytes never are a Python object.

        Raises:
            ValueError: More than 256 KiB of associated data.
            InvalidSlot: A slot holds no key.
            NativeError: The operating system gives no random bytes, or the same twice.
        """
        output = new("uint8_t[]", _KEY + _OVERHEAD)
        aad = associated_data
        check(
            lib.hs_seal_slot(
                self._arena, slot_number(kek), aad, len(aad), slot_number(slot), output
            )
        )
        return taken(output, _KEY + _OVERHEAD)

    def open_slot(self, kek: int, associated_data: bytes, sealed: Buffer) -> int:
        """A slot with the key that `seal_slot` sealed.

        Raises:
            InvalidTag: It does not open.
            ArenaFull: No slot is free.
            InvalidSlot: The KEK's slot holds no key.
        """
        slot = ffi.new("uint64_t *")
        data, aad = as_bytes(sealed), associated_data
        check(lib.hs_open_slot(self._arena, slot_number(kek), aad, len(aad), data, len(data), slot))
        return int(slot[0])

    def open_blob(self, kek: int, associated_data: bytes, sealed: Buffer) -> int:
        """Open at most 4,096 bytes into the arena, such as a private key; free it soon.

        Raises:
            InvalidTag: It does not open.
            ArenaFull: 32 are open.
            InvalidSlot: The KEK's slot holds no key.
        """
        blob = ffi.new("uint64_t *")
        data, aad = as_bytes(sealed), associated_data
        check(lib.hs_open_blob(self._arena, slot_number(kek), aad, len(aad), data, len(data), blob))
        return int(blob[0])

    def blob(self, blob: int) -> memoryview:
        """A read-only view of an open blob; not to be used after `free_blob`.

        The view keeps the arena's memory; in a forked child that memory is not there.

        Raises:
            InvalidSlot: There is no such blob.
        """
        data, size = ffi.new("const uint8_t **"), ffi.new("size_t *")
        check(lib.hs_blob_view(self._arena, slot_number(blob), data, size))
        # The destructor does nothing but hold a reference for as long as the view lives.
        kept = ffi.gc(data[0], functools.partial(_outlive, self._arena))
        return memoryview(ffi.buffer(kept, size[0])).toreadonly()

    def free_blob(self, blob: int) -> None:
        """Zero a blob.

        Raises:
            InvalidSlot: There is no such blob.
        """
        check(lib.hs_blob_free(self._arena, slot_number(blob)))

    def hmac_sha256(self, slot: int, message: Buffer) -> bytes:
        """HMAC-SHA-256 (RFC 2104) of at most `ITEM_SIZE_MAX` bytes with a slot's key.

        Raises:
            ValueError: A longer message.
            InvalidSlot: The slot holds no key.
        """
        output = new("uint8_t[]", _MAC)
        data = as_bytes(message)
        check(lib.hs_slot_hmac_sha256(self._arena, slot_number(slot), data, len(data), output))
        return taken(output, _MAC)


def _outlive(arena: Any, view: Any) -> None:
    """Nothing: that it is called with the arena kept the arena until now."""
