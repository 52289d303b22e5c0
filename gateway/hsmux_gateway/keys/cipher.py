"""Encryption and decryption with keys of both protections.

A request ends here in one of two ways. A software key's material is in the arena and the C module
does the whole column in one call; nothing waits. A hardware key's column goes to its token's pool.
Both work on columns, and a single request is a column of one, so there is one path a protection.

Decryption tells nobody why it failed: a wrong tag, another key version's ciphertext, a state that
forbids use of the version and a context that differs are one InvalidCiphertext.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final, Protocol

from hsmux_native import InvalidTag
from hsmux_protocol.columns import pack_column, unpack_column
from hsmux_protocol.envelope import HEADER_SIZE, make_header
from hsmux_protocol.errors import (
    Busy,
    DeadlineExceeded,
    InvalidCiphertext,
    TooLarge,
    Unavailable,
    WrongState,
)
from hsmux_protocol.keys import KEY_SPECS
from hsmux_protocol.limits import ITEM_SIZE_MAX
from hsmux_protocol.references import format_key_id

from ..catalog import Catalog
from ..fairness import FairBudget
from ..hsm.token import Token
from ..store.rows import KeyRow, KeyVersionRow
from .batches import context_column, read_column
from .counters import UseCounters
from .hsm_keys import HsmKeys
from .material import Materials

__all__ = [
    "Cipher",
    "HardwareCipher",
    "KeyInUse",
    "SoftwareCipher",
    "invalid_ciphertext",
    "key_in_use",
    "only_output",
]

STATUS_TOO_LARGE: Final = 2
"""Of an item that is larger than `ITEM_SIZE_MAX`."""

RETRY_AFTER_MS: Final = 200
"""What a caller is told to wait when a token is full of work, or failed in the middle."""


class KeyInUse:
    """A key version about to be used.

    Attributes:
        row: The key.
        version: The version.
        suite: How it encrypts.
        header: The envelope header of everything it encrypts.
    """

    __slots__ = ("header", "row", "suite", "version")

    def __init__(self, row: KeyRow, version: KeyVersionRow) -> None:
        spec = KEY_SPECS[row.spec]
        suite = spec.software_suite if row.protection == "software" else spec.hardware_suite
        if suite is None:
            raise WrongState(f"a key of spec {row.spec} does not encrypt")
        self.row = row
        self.version = version
        self.suite = suite
        self.header = make_header(suite, row.key_id, version.version)


def key_in_use(catalog: Catalog, row: KeyRow, number: int | None) -> KeyInUse:
    """A version of a key for encryption or decryption; None means the newest.

    What was found stays with the catalogue until the key changes. It holds for the row it was made
    of alone: a caller that has waited may bring an older one.

    Raises:
        WrongState: The key is not for that, or its or the version's state does not allow it.
        NotFound: There is no such version.
    """
    kept = catalog.derived_of(row.key_id)
    used: KeyInUse | None = kept.get(number)
    if used is None or used.row is not row:
        if row.usage != "ENCRYPT_DECRYPT":
            raise WrongState(f"{format_key_id(row.key_id)} is for {row.usage}")
        used = kept[number] = KeyInUse(row, catalog.usable_version(row, number))
    return used


class Cipher(Protocol):
    """Encrypts and decrypts columns under one key version.

    Statuses are those of the C module: 0 done, 1 invalid, 2 too large, 3 late, 4 unavailable. An
    item that is not done has an empty output.
    """

    async def encrypt(
        self,
        key: KeyInUse,
        contexts: Sequence[bytes],
        plaintexts: bytes,
        deadline: float,
        *,
        tenant: bytes,
    ) -> tuple[bytes, Sequence[int]]:
        """Envelopes as a column, and statuses."""

    async def decrypt(
        self,
        key: KeyInUse,
        contexts: Sequence[bytes],
        envelopes: bytes,
        deadline: float,
        *,
        tenant: bytes,
    ) -> tuple[bytes, Sequence[int]]:
        """Plaintexts as a column, and statuses; an envelope with another header is invalid."""


class SoftwareCipher:
    """XAES-256-GCM in the C module."""

    def __init__(self, materials: Materials) -> None:
        self._materials = materials

    def encrypt_one(self, key: KeyInUse, context: bytes, plaintext: bytes) -> bytes:
        """One envelope, without waiting."""
        slot = self._materials.slot_of(key.version)
        return self._materials.arena.seal(slot, key.header, context, plaintext)

    def decrypt_one(self, key: KeyInUse, context: bytes, envelope: bytes) -> bytes:
        """One plaintext, without waiting.

        Raises:
            InvalidCiphertext: It does not open.
        """
        slot = self._materials.slot_of(key.version)
        try:
            return self._materials.arena.open(slot, HEADER_SIZE, context, envelope)
        except InvalidTag:
            raise invalid_ciphertext() from None

    async def encrypt(
        self,
        key: KeyInUse,
        contexts: Sequence[bytes],
        plaintexts: bytes,
        deadline: float,
        *,
        tenant: bytes,
    ) -> tuple[bytes, Sequence[int]]:
        """Envelopes and statuses; does not wait."""
        slot = self._materials.slot_of(key.version)
        arena = self._materials.arena
        return arena.seal_batch(slot, key.header, pack_column(contexts), plaintexts)

    async def decrypt(
        self,
        key: KeyInUse,
        contexts: Sequence[bytes],
        envelopes: bytes,
        deadline: float,
        *,
        tenant: bytes,
    ) -> tuple[bytes, Sequence[int]]:
        """Plaintexts and statuses; does not wait."""
        slot = self._materials.slot_of(key.version)
        arena = self._materials.arena
        return arena.open_batch(slot, key.header, pack_column(contexts), envelopes)

    def encrypt_column(
        self, key: KeyInUse, context: bytes, plaintexts: Sequence[bytes]
    ) -> tuple[bytes, Sequence[int]]:
        """Envelopes of one context as a column, and statuses."""
        slot = self._materials.slot_of(key.version)
        return self._materials.arena.seal_batch(
            slot, key.header, pack_column([context]), pack_column(plaintexts)
        )

    def decrypt_column(
        self, key: KeyInUse, context: bytes, envelopes: Sequence[bytes]
    ) -> tuple[bytes, Sequence[int]]:
        """Plaintexts of one context as a column, and statuses."""
        slot = self._materials.slot_of(key.version)
        return self._materials.arena.open_batch(
            slot, key.header, pack_column([context]), pack_column(envelopes)
        )


class HardwareCipher:
    """AES-GCM in the key's token.

    Args:
        hsm_keys: Finds the token and the token's view of a version.
        counters: Counts uses of each version.
        queues: Items that may be with each token, by its name; access points share them.
    """

    def __init__(
        self, hsm_keys: HsmKeys, counters: UseCounters, queues: Mapping[str, FairBudget]
    ) -> None:
        self._hsm_keys = hsm_keys
        self._counters = counters
        self._queues = queues

    @contextmanager
    def _place(self, token: Token, tenant: bytes, count: int) -> Iterator[None]:
        """Places for items in a token's queue: one access point must not fill it."""
        queue = self._queues[token.name]
        if not queue.try_take(tenant, count):
            raise Busy("the token has too much work", retry_after_ms=RETRY_AFTER_MS)
        try:
            yield
        finally:
            queue.give_back(tenant, count)

    async def encrypt(
        self,
        key: KeyInUse,
        contexts: Sequence[bytes],
        plaintexts: bytes,
        deadline: float,
        *,
        tenant: bytes,
    ) -> tuple[bytes, Sequence[int]]:
        """Envelopes and statuses; a malformed column never gets as far as a worker."""
        token, hsm_key = self._hsm_keys.find(key.row.spec, key.version)
        items = read_column(plaintexts, "plaintexts")
        fitting: Sequence[int] = range(len(items))
        if max(map(len, items), default=0) > ITEM_SIZE_MAX:
            fitting = [index for index, item in enumerate(items) if len(item) <= ITEM_SIZE_MAX]
            plaintexts = pack_column([items[index] for index in fitting])
            contexts = contexts if len(contexts) == 1 else [contexts[index] for index in fitting]
        data = context_column(key.header, contexts)
        with self._place(token, tenant, len(fitting)):
            name = key.row.key_id, key.version.version
            await self._counters.take(*name, len(fitting), tenant=tenant)
            result = await self._hsm_keys.ask(
                lambda: token.encrypt(hsm_key, plaintexts, data, deadline=deadline, tenant=tenant)
            )
        outputs, header = unpack_column(result.outputs), key.header
        if len(outputs) == len(items) and not any(result.statuses):
            return pack_column([header + output for output in outputs]), result.statuses
        envelopes, statuses = [b""] * len(items), [STATUS_TOO_LARGE] * len(items)
        for index, output, status in zip(fitting, outputs, result.statuses, strict=True):
            envelopes[index] = header + output if output else b""
            statuses[index] = status
        return pack_column(envelopes), statuses

    async def decrypt(
        self,
        key: KeyInUse,
        contexts: Sequence[bytes],
        envelopes: bytes,
        deadline: float,
        *,
        tenant: bytes,
    ) -> tuple[bytes, Sequence[int]]:
        """Plaintexts and statuses."""
        token, hsm_key = self._hsm_keys.find(key.row.spec, key.version)
        header = key.header
        items = unpack_column(envelopes)
        # An item with another header would open under other associated data only, which it does
        # not have: cut to nothing, it is refused by the token like every wrong tag.
        sealed = [item[HEADER_SIZE:] if item.startswith(header) else b"" for item in items]
        data, column = context_column(header, contexts), pack_column(sealed)
        with self._place(token, tenant, len(items)):
            result = await self._hsm_keys.ask(
                lambda: token.decrypt(hsm_key, column, data, deadline=deadline, tenant=tenant)
            )
        return result.outputs, result.statuses


def only_output(column: bytes, statuses: Sequence[int], *, decrypting: bool) -> bytes:
    """The output of a column of one, or why there is none."""
    status = statuses[0]
    if status == 0:
        return unpack_column(column)[0]
    if status == 3:
        raise DeadlineExceeded("the time for this request ran out")
    if status == 4:
        raise Unavailable("the token could not do it now", retry_after_ms=RETRY_AFTER_MS)
    if decrypting:
        raise invalid_ciphertext()
    raise TooLarge("the plaintext is larger than this key takes")


def invalid_ciphertext() -> InvalidCiphertext:
    """The one error of everything that does not open."""
    return InvalidCiphertext("the ciphertext does not open with this key and context")
