"""The other end of the outbox: rows are removed when their records are durable in the chain, and
records that died with their process are appended.

At the start everything that belongs into a chain of this log is looked for in it: this process has
the log alone, so whoever wrote the rows is gone. While it runs, rows of other gateways on the same
store are taken over when their lease is over. A row is first made this process's own, then its
record is appended as a `recovered` one, and when that is durable the row is removed like any other:
whatever dies in between, the next one finds either the row alone or the row and its record.
"""

from functools import partial
from pathlib import Path
from typing import Final

import msgspec
import trio

from ..clock import now_ms
from ..effects import Effects
from ..logs import structlog
from ..store.rows import OutboxRow
from ..store.transaction import Reader, Transaction
from .journal import Journal
from .layout import chain_directories, chain_of
from .outbox import LEASE_MS, Outbox
from .reading import UnreadableLog, done_after
from .records import Recovered, Request, read_record
from .segments import RecordError

__all__ = ["ROWS_MAX", "SETTLE_INTERVAL_S", "Recovery"]

log = structlog.get_logger("hsmux.audit")

SETTLE_INTERVAL_S: Final = 1.0
"""Seconds between removals of rows whose records are durable: one commit for all of them."""

ROWS_MAX: Final = 500
"""Rows that are looked at or removed at once."""


class Recovery:
    """Removes what is done, appends what is not.

    Args:
        outbox: The rows of this process.
        effects: Reads and writes the store.
        journal: Takes records.
        directory: Of the log.
    """

    def __init__(self, outbox: Outbox, effects: Effects, journal: Journal, directory: Path) -> None:
        self._outbox = outbox
        self._effects = effects
        self._journal = journal
        self._directory = directory

    def __repr__(self) -> str:
        return f"Recovery({self._outbox!r})"

    async def settle(self) -> None:
        """Remove the rows whose records are durable.

        Raises:
            HsmuxError: The store is away.
        """
        while rows := self._outbox.durable_rows()[:ROWS_MAX]:
            await self._effects.write(lambda transaction, ids=rows: transaction.settle_outbox(ids))  # type: ignore[misc]
            self._outbox.forget(rows)

    async def recover(self) -> None:
        """Append the records of changes whose processes are gone.

        Raises:
            HsmuxError: The store is away.
        """
        while await self._recover_some():
            pass

    async def _recover_some(self) -> int:
        """Handle some rows; how many."""
        at_ms = now_ms()
        chains = [chain_of(directory) for directory in chain_directories(self._directory)]
        found = await self._effects.read(partial(_left, chains=chains, at_ms=at_ms))
        rows = [row for row in found if not self._outbox.has_taken(row.outbox_id)]
        if not rows:
            return 0
        there = await trio.to_thread.run_sync(self._recorded, rows)
        ids = [row.outbox_id for row in there]
        lost = [row for row in rows if row.outbox_id not in ids]
        if ids:
            await self._effects.write(lambda transaction: transaction.settle_outbox(ids))
        return len(ids) + (await self._append(lost) if lost else 0)

    async def _append(self, lost: list[OutboxRow]) -> int:
        """Append the records of rows, as far as they can be made this process's own; how many."""
        ours = await self._effects.write(partial(self._take_over, rows=lost))
        for row in ours:
            self._outbox.take_over(row.outbox_id, self._journal.append(_recovered(row, lost)))
        if ours:
            log.warning("recovered audit records of changes", count=len(ours))
            try:
                self._journal.flush()
            except RecordError as error:
                log.error("recovered audit records wait for room", error=str(error))
        return len(ours)

    def _recorded(self, rows: list[OutboxRow]) -> list[OutboxRow]:
        """The rows whose records are in a chain of this log."""
        found: list[OutboxRow] = []
        for directory in chain_directories(self._directory):
            here = [row for row in rows if row.chain == chain_of(directory)]
            if not here:
                continue
            try:
                done = done_after(directory, min(row.sequence for row in here))
            except (UnreadableLog, OSError) as error:
                # Rather a record twice than none.
                log.error("a chain cannot be read", error=str(error))
                continue
            found += [row for row in here if _request(row).reference in done]
        return found

    def _take_over(self, transaction: Transaction, rows: list[OutboxRow]) -> list[OutboxRow]:
        """Make rows this process's own, as far as nobody else has done it."""
        ours = []
        chain = self._journal.chain
        for row in rows:
            if transaction.get(OutboxRow, row.outbox_id) == row:
                changed = msgspec.structs.replace(
                    row,
                    chain=chain.chain,
                    sequence=chain.end.sequence,
                    lease_until_ms=now_ms() + LEASE_MS,
                )
                ours.append(transaction.update(changed))
        return ours


def _left(reader: Reader, chains: list[bytes], at_ms: int) -> list[OutboxRow]:
    """Rows of this log's chains, and rows whose lease is over."""
    found = {row.outbox_id: row for row in reader.expired_outbox(at_ms, limit=ROWS_MAX)}
    for chain in chains:
        rows = reader.outbox_of(chain, limit=ROWS_MAX)
        found |= {row.outbox_id: row for row in rows}
    return list(found.values())


def _request(row: OutboxRow) -> Request:
    record = read_record(row.record)
    assert isinstance(record, Request)
    return record


def _recovered(row: OutboxRow, before: list[OutboxRow]) -> Recovered:
    """The record of a row as it is appended now."""
    (chain,) = (one.chain for one in before if one.outbox_id == row.outbox_id)
    record = _request(row)
    fields = msgspec.structs.asdict(record) | {"at_ms": now_ms()}
    return Recovered(**fields, made_ms=record.at_ms, chain=chain)
