"""The in-memory twin of a database: for tests of what stands on the store, and of nothing else.

Tables are dictionaries that are never changed once another transaction can see them: a write
replaces a table by a changed copy. So a snapshot is one reference, and undoing is putting an old
reference back. That costs a copy for each written table, which is right for small stores.

It is a backend of its own and not SQLite's ":memory:", which cannot do what a store needs: its
readers either share the writer's transaction or are locked out by it, so a snapshot beside a
write does not exist there. Seals, revisions and conflicts are not twinned: they are the same code
above all backends.
"""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from .rows import TABLES, Key, Table, Value
from .sealing import Stored

__all__ = ["MemoryBackend", "MemoryRows"]

_Tables = dict[str, dict[Key, Stored]]


class MemoryBackend:
    """Rows in dictionaries; satisfies `Backend`."""

    def __init__(self) -> None:
        self._tables: _Tables = {table.name: {} for table in TABLES}
        self._writing = threading.Lock()

    @contextmanager
    def begin(self) -> Iterator["MemoryRows"]:
        """A writing transaction; they happen one after the other."""
        with self._writing:
            rows = MemoryRows(self._tables)
            yield rows
            self._tables = rows.tables

    @contextmanager
    def snapshot(self) -> Iterator["MemoryRows"]:
        """A reading transaction."""
        yield MemoryRows(self._tables)

    def close(self) -> None:
        """Nothing to give up."""


class MemoryRows:
    """One transaction's view; satisfies `Rows`."""

    def __init__(self, tables: _Tables) -> None:
        self.tables = tables

    def fetch(self, table: Table[Any], key: Key, *, lock: bool = False) -> Stored | None:
        """See `Rows.fetch`."""
        return self.tables[table.name].get(key)

    def find(
        self,
        table: Table[Any],
        equal: Mapping[str, Value],
        *,
        below: tuple[str, int] | None = None,
        limit: int | None = None,
    ) -> list[Stored]:
        """See `Rows.find`."""
        wanted = [(table.clear.index(name), value) for name, value in equal.items()]
        found = [
            stored
            for stored in self.tables[table.name].values()
            if all(stored[position] == value for position, value in wanted)
            and (below is None or stored[table.clear.index(below[0])] < below[1])
        ]
        found.sort(key=lambda stored: stored[: len(table.key)])
        return found[:limit]

    def changed(self, table: Table[Any], since_revision: int) -> Iterator[Stored]:
        """See `Rows.changed`."""
        return (row for row in self.tables[table.name].values() if row[-3] > since_revision)

    def insert(self, table: Table[Any], stored: Stored) -> None:
        """See `Rows.insert`."""
        self._put(table, stored)

    def replace(self, table: Table[Any], stored: Stored, row_revision: int) -> bool:
        """See `Rows.replace`."""
        before = self.tables[table.name].get(stored[: len(table.key)])
        if before is None or before[-3] != row_revision:
            return False
        self._put(table, stored)
        return True

    def remove(self, table: Table[Any], key: Key) -> None:
        """See `Rows.remove`."""
        rows = self.tables[table.name]
        self.tables = {
            **self.tables,
            table.name: {other: row for other, row in rows.items() if other != key},
        }

    @contextmanager
    def savepoint(self) -> Iterator[None]:
        """See `Rows.savepoint`."""
        before = self.tables
        try:
            yield
        except BaseException:
            self.tables = before
            raise

    def _put(self, table: Table[Any], stored: Stored) -> None:
        rows = self.tables[table.name]
        self.tables = {**self.tables, table.name: {**rows, stored[: len(table.key)]: stored}}
