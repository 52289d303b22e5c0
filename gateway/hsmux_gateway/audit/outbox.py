"""Records of changes, stored with the change until they are in the chain.

Theory of operation
-------------------
A change and its record are in two places: the store, and a file. A process can die between them. So
the record is written twice: first as a row of `audit_outbox`, in the transaction of the change,
and then into the chain like any other. When it is durable there, the row is removed (`recovery`).
A row that is found without its process is a change whose record may be missing, and is looked for
in the chain, and appended if it is not there.

A row holds the chain it belongs into and a record of that chain that was written before it. So
whoever looks has to read only what comes behind, and knows a record by its reference. In its own
chain a record is found once, whenever a process dies; where another gateway that cannot read that
chain takes over, after the lease, it is there twice at most, and the second one is a `recovered`
record that says which chain it was meant for.

A change whose outcome its caller could not wait for has the record that says so, and its row says
what became of it: if there is one, however late, the change was made and is recovered.

What was decided when the change was made is noted here too: a request that was allowed when it was
taken, and denied when it went to the store, is recorded with the statement that denied it.

Threads: `post` is called in the writer's, `also_decided` there and in the one of the event loop,
everything else in that.
"""

import secrets
from dataclasses import dataclass
from typing import Final

from ..call import Call
from ..clock import now_ms
from ..store.rows import OutboxRow
from ..store.transaction import Transaction
from .calls import CallRecords
from .journal import Journal
from .lookup import QUORUM
from .records import DONE, Request, write_record

__all__ = ["LEASE_MS", "UNWAITED", "Outbox"]

LEASE_MS: Final = 60_000
"""Milliseconds after which a gateway that shares the store appends what is left of another."""


UNWAITED: Final = "allowed, and its caller did not wait for the end"
"""Stands for the statement of a change that is made when its call is over."""


@dataclass(slots=True)
class _Note:
    """What is known of one call's change.

    Attributes:
        statement: What decided it last.
        outbox_id: Of its row; empty: none was written.
        record: In that row.
        is_stored: Whether the transaction was committed.
    """

    statement: str = ""
    outbox_id: bytes = b""
    record: Request | None = None
    is_stored: bool = False


class Outbox:
    """The rows of this process, and the records they wait for.

    Args:
        journal: Where records go.
        records: Makes them.
    """

    def __init__(self, journal: Journal, records: CallRecords) -> None:
        self._journal = journal
        self._records = records
        self._notes: dict[str, _Note] = {}
        # By row: the number of its record in the journal, or None while there is none.
        self._rows: dict[bytes, int | None] = {}

    def __repr__(self) -> str:
        return f"Outbox({len(self._rows)} rows)"

    # While a change is made

    def decided(self, call: Call, statement: str) -> None:
        """Note what decided on a call when its change was made."""
        self._notes.setdefault(call.reference, _Note()).statement = statement

    def also_decided(self, call: Call, statement: str) -> None:
        """Note what decided beside that: approvals."""
        note = self._notes.get(call.reference)
        if note is not None:
            note.statement = f"{note.statement}{QUORUM}{statement}"

    def post(self, transaction: Transaction, call: Call, values: list[object]) -> None:
        """Store the record of a change with it.

        Args:
            transaction: Of the change.
            call: Who asked for it.
            values: What it is answered.
        """
        note = self._notes.get(call.reference)
        statement = UNWAITED if note is None else note.statement
        # What it took is not known yet.
        record = self._records.request(
            call, statement=statement, outcome=DONE, values=values, elapsed_us=0
        )
        chain = self._journal.chain
        row = OutboxRow(
            secrets.token_bytes(16),
            chain.chain,
            chain.end.sequence,
            now_ms() + LEASE_MS,
            write_record(record),
        )
        if note is not None:
            self._rows[row.outbox_id] = None
            note.outbox_id, note.record = row.outbox_id, record
        transaction.insert(row)

    def stored(self, call: Call) -> None:
        """Note that the change of a call is durable."""
        note = self._notes.get(call.reference)
        if note is not None:
            note.is_stored = True

    def undone(self, call: Call) -> None:
        """Note that the change of a call was not made."""
        note = self._notes.get(call.reference)
        if note is not None:
            self._rows.pop(note.outbox_id, None)
            note.outbox_id, note.record = b"", None

    # When the call is over

    def statement_of(self, call: Call) -> str:
        """What decided on a call when its change was made; empty: it did not come so far."""
        note = self._notes.get(call.reference)
        return "" if note is None else note.statement

    def append(self, call: Call, record: Request) -> None:
        """Append the record of a call to the journal, and that of its change if it says less."""
        note = self._notes.pop(call.reference, None)
        number = self._journal.append(record)
        if note is None or note.record is None:
            return
        if not note.is_stored:
            # If the row comes to be after all, it is nobody's.
            self._rows.pop(note.outbox_id, None)
            return
        if record.outcome != DONE:
            number = self._journal.append(note.record)
        self._rows[note.outbox_id] = number

    # Rows

    def has_taken(self, outbox_id: bytes) -> bool:
        """Whether this process has appended the record of a row, or still will do so."""
        return outbox_id in self._rows

    def take_over(self, outbox_id: bytes, number: int) -> None:
        """Note that the record of a row was appended to the journal under a number."""
        self._rows[outbox_id] = number

    def durable_rows(self) -> list[bytes]:
        """The rows whose records are durable in the chain."""
        synced = self._journal.synced
        return [row for row, number in self._rows.items() if number and number <= synced]

    def forget(self, outbox_ids: list[bytes]) -> None:
        """Note that rows are removed."""
        for outbox_id in outbox_ids:
            self._rows.pop(outbox_id, None)
