"""What a piece of work can do in a store: checked reads, compare-and-swap writes, and the
helpers that have to share a transaction with an effect (idempotency, intents, counters, records).
"""

from collections.abc import Iterable
from typing import Any, Final, TypeVar

import msgspec

from .backend import Rows
from .errors import Conflict
from .rows import (
    AUDIT_OUTBOX,
    COUNTERS,
    DEPLOYMENT,
    IDEMPOTENCY,
    INTENTS,
    STATE,
    CounterRow,
    IdempotencyRow,
    IntentRow,
    Key,
    OutboxRow,
    Row,
    Table,
    Value,
    table_named,
    table_of,
)
from .sealing import INTEGER_MAX, RowSeals, Stored

__all__ = ["IDEMPOTENCY_KEPT_MS", "PURGE_STEP", "Reader", "Transaction"]

IDEMPOTENCY_KEPT_MS: Final = 24 * 3600 * 1000
"""How long an idempotency token is remembered."""
PURGE_STEP: Final = 500
"""The most idempotency rows one purge deletes, so that it never holds others up for long."""

_FINISHED: Final = "the intent is finished already"

R = TypeVar("R", bound=Row)


class Reader:
    """Reads of one transaction; every row's seal is checked.

    Attributes:
        revision: The store's revision these reads see.
    """

    def __init__(self, rows: Rows, seals: RowSeals, revision: int) -> None:
        self._rows = rows
        self._seals = seals
        self.revision = revision

    def get(self, row: type[R], *key: Value) -> R | None:
        """The row of this type with this primary key, or None.

        Raises:
            SealBroken: It was changed outside of hsmux.
        """
        table = table_of(row)
        stored = self._rows.fetch(table, key)
        return None if stored is None else self._seals.load(table, stored)

    def select(self, row: type[R], *, limit: int | None = None, **equal: Value) -> list[R]:
        """The rows of this type whose clear columns equal these values, by primary key.

        Raises:
            SealBroken: One was changed outside of hsmux.
        """
        table = table_of(row)
        return [self._seals.load(table, s) for s in self._rows.find(table, equal, limit=limit)]

    def recall(
        self, access_point_id: bytes, operation: str, token: bytes, arguments_hash: bytes
    ) -> bytes | None:
        """What the operation with this idempotency token answered, or None if it was not done.

        Raises:
            Conflict: The token was used with other arguments.
        """
        found = self.get(IdempotencyRow, access_point_id, operation, token)
        if found is None:
            return None
        if found.arguments_hash != arguments_hash:
            raise Conflict("idempotency token", "was used with other arguments")
        return found.result

    def expired_intents(self, now_ms: int) -> list[IntentRow]:
        """The intents whose lease has ended, which anybody may reconcile."""
        found = self._rows.find(INTENTS, {}, below=("lease_until_ms", now_ms))
        return [self._seals.load(INTENTS, stored) for stored in found]

    def outbox_of(self, chain: bytes, *, limit: int) -> list[OutboxRow]:
        """Audit records of changes that belong into a chain."""
        return self.select(OutboxRow, limit=limit, chain=chain)

    def expired_outbox(self, now_ms: int, *, limit: int) -> list[OutboxRow]:
        """Audit records of changes whose lease has ended, which anybody may append."""
        below = ("lease_until_ms", now_ms)
        found = self._rows.find(AUDIT_OUTBOX, {}, below=below, limit=limit)
        return [self._seals.load(AUDIT_OUTBOX, stored) for stored in found]


class Transaction(Reader):
    """Reads and writes of one piece of work: all of them happen at its `revision`, or none.

    Attributes:
        difference: What its writes add to the sum over all rows.
    """

    def __init__(self, rows: Rows, seals: RowSeals, revision: int) -> None:
        super().__init__(rows, seals, revision)
        self.difference = 0

    def insert(self, row: R) -> R:
        """Add a row; returns it with its `row_revision`.

        Raises:
            Conflict: A unique column is taken, or a reference leads nowhere.
            ValueError: A column holds what the store cannot keep.
        """
        table = self._writable(row)
        stored = self._seals.store(table, row, self.revision)
        key = table.key_of(row)
        if self._rows.fetch(table, key) is not None:
            raise Conflict(f"{table.name}.{', '.join(table.key)}", "is taken")
        self._check_others(table, stored, key)
        self._rows.insert(table, stored)
        self.difference += self._seals.term(stored)
        return msgspec.structs.replace(row, row_revision=self.revision)

    def update(self, row: R) -> R:
        """Write a changed copy of a row that was read; returns it with its new `row_revision`.

        Raises:
            Conflict: Somebody else changed it since, a unique column is taken, or a reference
                leads nowhere.
            ValueError: A column holds what the store cannot keep.
        """
        table = self._writable(row)
        stored = self._seals.store(table, row, self.revision)
        key = table.key_of(row)
        self._check_others(table, stored, key)
        before = self._rows.fetch(table, key)
        if before is None or not self._rows.replace(table, stored, row.row_revision):
            raise Conflict(table.name, "the row was changed meanwhile")
        # Opened, so that no broken row is counted out of the sum as if it had been in it.
        self._seals.load(table, before)
        self.difference += self._seals.term(stored) - self._seals.term(before)
        return msgspec.structs.replace(row, row_revision=self.revision)

    def delete(self, row: Row) -> None:
        """Take out a row that was read, of a table that no process keeps in memory.

        Raises:
            Conflict: Somebody else changed it since, or took it out.
            ValueError: Others follow the table, and would not learn of it.
        """
        table = self._writable(row)
        if table.followed:
            raise ValueError(f"{table.name} is followed: its rows stay")
        key = table.key_of(row)
        stored = self._rows.fetch(table, key)
        if stored is None or self._seals.load(table, stored).row_revision != row.row_revision:
            raise Conflict(table.name, "the row was changed meanwhile")
        self._remove(table, stored)

    def _writable(self, row: R) -> Table[R]:
        table = table_of(type(row))
        if table is STATE or table is DEPLOYMENT:
            raise ValueError(f"{table.name} is written by the store alone")
        return table

    def _check_others(self, table: Table[R], stored: Stored, key: Key) -> None:
        # Writing transactions happen one after the other, so asking first is free of races. It
        # tells which rule is hit without reading a driver's error text, and the same in each
        # database; their constraints stay as the second line.
        for unique in table.unique:
            wanted = {name: stored[table.clear.index(name)] for name in unique}
            for other in self._rows.find(table, wanted, limit=2):
                if other[: len(table.key)] != key:
                    raise Conflict(f"{table.name}.{', '.join(unique)}", "is taken")
        for name, referred in table.references:
            value = stored[table.clear.index(name)]
            if value is not None and not self._rows.fetch(table_named(referred), (value,)):
                raise Conflict(f"{table.name}.{name}", f"refers to no row of {referred}")

    def remember(
        self,
        access_point_id: bytes,
        operation: str,
        token: bytes,
        arguments_hash: bytes,
        result: bytes,
        *,
        now_ms: int,
    ) -> None:
        """Keep an operation's answer with its effect, for `recall`.

        Raises:
            Conflict: The token is remembered already.
        """
        self.insert(
            IdempotencyRow(access_point_id, operation, token, arguments_hash, result, now_ms)
        )

    def purge_idempotency(self, now_ms: int) -> int:
        """Forget tokens older than `IDEMPOTENCY_KEPT_MS`, at most `PURGE_STEP` of them; how many
        were forgotten.
        """
        before = ("created_at_ms", now_ms - IDEMPOTENCY_KEPT_MS)
        found = self._rows.find(IDEMPOTENCY, {}, below=before, limit=PURGE_STEP)
        for stored in found:
            self._remove(IDEMPOTENCY, stored)
        return len(found)

    def _remove(self, table: Table[Any], stored: Stored) -> None:
        # Loaded first, so that a row that was changed is never taken for the one to remove.
        row = self._seals.load(table, stored)
        self._rows.remove(table, table.key_of(row))
        self.difference -= self._seals.term(stored)

    def add_intent(self, intent: IntentRow) -> IntentRow:
        """Write down what is about to be done in a token.

        Raises:
            Conflict: The intent exists.
        """
        return self.insert(intent)

    def extend_intent(self, intent_id: bytes, owner: str, lease_until_ms: int) -> IntentRow:
        """Prolong, or take over, the lease of an intent.

        Raises:
            Conflict: It is finished.
        """
        intent = self._intent(intent_id)
        return self.update(
            msgspec.structs.replace(intent, owner=owner, lease_until_ms=lease_until_ms)
        )

    def finish_intent(self, intent_id: bytes) -> None:
        """Forget an intent, in the transaction of its effect.

        Raises:
            Conflict: It is finished already: somebody else reconciled it.
        """
        stored = self._rows.fetch(INTENTS, (intent_id,))
        if stored is None:
            raise Conflict(INTENTS.name, _FINISHED)
        self._remove(INTENTS, stored)

    def _intent(self, intent_id: bytes) -> IntentRow:
        intent = self.get(IntentRow, intent_id)
        if intent is None:
            raise Conflict(INTENTS.name, _FINISHED)
        return intent

    def settle_outbox(self, outbox_ids: Iterable[bytes]) -> None:
        """Forget audit records that are durable in a chain; those that are gone are forgotten."""
        for outbox_id in outbox_ids:
            stored = self._rows.fetch(AUDIT_OUTBOX, (outbox_id,))
            if stored is not None:
                self._remove(AUDIT_OUTBOX, stored)

    def lease_counter(self, key_id: bytes, version: int, amount: int) -> int:
        """Lease the next `amount` uses of a key version; returns how many were leased before.

        The uses start, start + 1, ... start + amount - 1 belong to the caller once the
        transaction is committed, and to nobody ever again.

        Raises:
            Conflict: The counter would not fit the store.
        """
        counter = self.get(CounterRow, key_id, version)
        if counter is None:
            counter = self.insert(CounterRow(key_id, version, 0))
        if amount < 1 or counter.leased > INTEGER_MAX - amount:
            raise Conflict(COUNTERS.name, "the counter cannot go on by this amount")
        self.update(msgspec.structs.replace(counter, leased=counter.leased + amount))
        return counter.leased
