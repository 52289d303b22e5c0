"""The operations on batches: many items under one key, each with its own status.

What is done for each item in Python is done in slices, in turns with other access points, unless
the batch is short. What the C module or a token does with a column is one call, or the pool's
affair.
"""

from collections.abc import Iterable
from typing import Any, Final

from hsmux_protocol.columns import (
    column_count,
    pack_column,
    pack_u16_column,
    pack_u32_column,
    unpack_column,
)
from hsmux_protocol.envelope import HEADER_SIZE, SUITE_AES_GCM, Header, parse_header
from hsmux_protocol.errors import InvalidArgument
from hsmux_protocol.references import KeyReference

from ..call import Call
from ..catalog import Catalog
from ..fairness import Turns
from .batches import (
    DECRYPT_ITEM_SIZE,
    DECRYPT_STATUS,
    ENCRYPT_ITEM_SIZE,
    ENCRYPT_STATUS,
    check_context,
    check_fits,
    read_column,
    read_contexts,
    repeat_u32,
    status_column,
)
from .cipher import Cipher, KeyInUse, key_in_use

__all__ = ["BatchService", "first_named", "header_of", "is_long", "read_header"]

SHRINKAGE_SIZE: Final = SUITE_AES_GCM.overhead_size
"""Bytes an envelope loses at least when it is opened."""

INLINE_ITEMS_MAX: Final = 1024
"""Items of a batch that are looked through in one go: about two milliseconds."""


class BatchService:
    """Handlers of `encrypt_batch` and `decrypt_batch`.

    Args:
        catalog: Finds keys.
        ciphers: By protection.
        turns: Shares the event loop.
    """

    def __init__(self, catalog: Catalog, ciphers: dict[str, Cipher], turns: Turns) -> None:
        self._catalog = catalog
        self._ciphers = ciphers
        self._turns = turns

    async def encrypt_batch(
        self,
        call: Call,
        key: KeyReference,
        context: bytes,
        contexts: bytes | None,
        plaintexts: bytes,
    ) -> list[Any]:
        """A column of plaintexts into a column of envelopes, a status an item."""
        used = key_in_use(self._catalog, self._catalog.find_key(key), key.version)
        check_fits(plaintexts, used.suite.overhead_size, ENCRYPT_ITEM_SIZE)
        items = await self._contexts(call, context, contexts, column_count(plaintexts))
        try:
            column, statuses = await self._ciphers[used.row.protection].encrypt(
                used, items, plaintexts, call.deadline, tenant=call.principal.access_point_id
            )
        except ValueError as error:
            raise InvalidArgument(f"plaintexts: {error}") from None
        return [
            status_column(statuses, ENCRYPT_STATUS),
            column,
            used.row.key_id,
            used.version.version,
        ]

    async def decrypt_batch(
        self,
        call: Call,
        key: KeyReference | None,
        context: bytes,
        contexts: bytes | None,
        ciphertexts: bytes,
    ) -> list[Any]:
        """A column of envelopes of one key into a column of plaintexts, a status an item.

        Most batches are of one key version: then the column goes on as it is. Items of other
        versions of the same key are done version by version.
        """
        items = read_column(ciphertexts, "ciphertexts")
        # Before anything waits: this is the key that was decided on.
        key_id = (
            self._catalog.find_key(key).key_id
            if key
            else first_named(item[:HEADER_SIZE] for item in items)
        )
        chosen = await self._contexts(call, context, contexts, len(items))
        check_fits(ciphertexts, -SHRINKAGE_SIZE, DECRYPT_ITEM_SIZE)
        groups = await self._versions(call, items, key_id)
        # An item can name any of 2^32 versions: only those that exist are worth a look. A key that
        # does not exist has none, and nobody is told.
        there = groups.keys() & self._catalog.versions.get(key_id, {}).keys()
        if key is not None and key.version is not None:
            there &= {key.version}
        for version in there:
            if len(groups[version]) == len(items):
                return await self._open_alike(call, key_id, version, chosen, ciphertexts)
        outputs: list[bytes] = [b""] * len(items)
        statuses = [1] * len(items)
        versions = [0] * len(items)
        for version in there:
            used, indexes = self._used(key_id, version), groups[version]
            some = chosen if len(chosen) == 1 else [chosen[index] for index in indexes]
            column, found = await self._open(
                call, used, some, pack_column([items[index] for index in indexes])
            )
            for index, output, status in zip(indexes, unpack_column(column), found, strict=True):
                outputs[index], statuses[index], versions[index] = output, status, version
        return [
            pack_u16_column([DECRYPT_STATUS[status] for status in statuses]),
            pack_column(outputs),
            key_id,
            pack_u32_column(versions),
        ]

    async def _contexts(
        self, call: Call, context: bytes, contexts: bytes | None, count: int
    ) -> list[bytes]:
        """The contexts of a batch, checked; many of them in turns with other access points."""
        items = read_contexts(context, contexts, count)
        if contexts is not None:
            await self._turns.each(call.principal.access_point_id, set(items), check_context)
        return items

    async def _versions(
        self, call: Call, items: list[bytes], key_id: bytes
    ) -> dict[int, list[int]]:
        """Indexes of items by the version of the key they name; 0 for those of no version."""
        sorting = _Sorting(key_id)
        if is_long(call):
            tenant = call.principal.access_point_id
            await self._turns.each(tenant, enumerate(items), sorting.add)
        else:
            for indexed in enumerate(items):
                sorting.add(indexed)
        return sorting.groups

    async def _open_alike(
        self, call: Call, key_id: bytes, version: int, contexts: list[bytes], envelopes: bytes
    ) -> list[Any]:
        """A batch whose items are all of one version: the usual case, without touching items."""
        used = self._used(key_id, version)
        column, statuses = await self._open(call, used, contexts, envelopes)
        return [
            status_column(statuses, DECRYPT_STATUS),
            column,
            key_id,
            repeat_u32(version, len(statuses)),
        ]

    def _used(self, key_id: bytes, version: int) -> KeyInUse:
        return key_in_use(self._catalog, self._catalog.keys[key_id], version)

    async def _open(
        self, call: Call, used: KeyInUse, contexts: list[bytes], envelopes: bytes
    ) -> tuple[bytes, Any]:
        return await self._ciphers[used.row.protection].decrypt(
            used, contexts, envelopes, call.deadline, tenant=call.principal.access_point_id
        )


def is_long(call: Call) -> bool:
    """Whether a batch is so long that it must not be looked through in one go."""
    if not call.operation.name.endswith("_batch"):
        return False
    contexts, items = call.arguments[2:]
    if contexts is None and call.operation.name == "encrypt_batch":
        # The C module goes through the items, in less than a millisecond.
        return False
    return contexts is not None or column_count(items) > INLINE_ITEMS_MAX


def first_named(starts: Iterable[bytes]) -> bytes:
    """The key that the first envelope of a batch names.

    Args:
        starts: The first `HEADER_SIZE` bytes of each item.

    Raises:
        InvalidArgument: No item is an envelope.
    """
    for start in starts:
        header = header_of(start)
        if header is not None:
            return header.key_id
    raise InvalidArgument("ciphertexts: no item is an hsmux envelope")


def read_header(envelope: bytes) -> Header:
    """The header of one envelope.

    Raises:
        InvalidArgument: It is none.
    """
    try:
        return parse_header(envelope)
    except ValueError as error:
        raise InvalidArgument(str(error)) from None


def header_of(start: bytes) -> Header | None:
    """The header of an envelope of any length, or None; a short one is refused when opened."""
    try:
        return parse_header(start + bytes(2 * HEADER_SIZE) if len(start) == HEADER_SIZE else b"")
    except ValueError:
        return None


class _Sorting:
    """Sorts items of a batch by the version of one key that they name; 0: by none."""

    def __init__(self, key_id: bytes) -> None:
        self._key_id = key_id
        self._known: dict[bytes, int] = {}
        self.groups: dict[int, list[int]] = {}

    def add(self, indexed: tuple[int, bytes]) -> None:
        """Sort one item, with its index."""
        index, item = indexed
        start = item[:HEADER_SIZE]
        version = self._known.get(start)
        if version is None:
            header = header_of(start)
            version = header.key_version if header and header.key_id == self._key_id else 0
            self._known[start] = version
        self.groups.setdefault(version, []).append(index)
