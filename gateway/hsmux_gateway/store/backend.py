"""What a store stands on: stored rows in transactions. SQL databases and the in-memory twin
satisfy it; everything else (seals, revisions, conflicts) is written once, above it.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

from .rows import Key, Table, Value
from .sealing import Stored

__all__ = ["Backend", "Rows"]


class Rows(Protocol):
    """The stored rows of one transaction."""

    def fetch(self, table: Table[Any], key: Key, *, lock: bool = False) -> Stored | None:
        """The row with this primary key; `lock` keeps other transactions off it."""

    def find(
        self,
        table: Table[Any],
        equal: Mapping[str, Value],
        *,
        below: tuple[str, int] | None = None,
        limit: int | None = None,
    ) -> list[Stored]:
        """The rows whose columns equal these values, in the order of their primary keys.

        Args:
            below: A column and a bound its value must be less than.
            limit: The most rows to return.
        """

    def changed(self, table: Table[Any], since_revision: int) -> Iterator[Stored]:
        """The rows written after a revision, one after the other, in no particular order."""

    def insert(self, table: Table[Any], stored: Stored) -> None:
        """Add a row; its caller has made sure that it fits those that are there."""

    def replace(self, table: Table[Any], stored: Stored, row_revision: int) -> bool:
        """Overwrite the row of this primary key if its revision is still `row_revision`; whether
        it was.
        """

    def remove(self, table: Table[Any], key: Key) -> None:
        """Delete a row."""

    def savepoint(self) -> AbstractContextManager[None]:
        """What happens inside is undone if an exception leaves the block."""


class Backend(Protocol):
    """Where the rows are."""

    def begin(self) -> AbstractContextManager[Rows]:
        """A writing transaction: committed durably at the end of the block, undone if an
        exception leaves it. At most one of a store is between its first `fetch(..., lock=True)`
        and its end.
        """

    def snapshot(self) -> AbstractContextManager[Rows]:
        """A reading transaction that sees one state of all tables."""

    def close(self) -> None:
        """Give up connections; the backend cannot be used afterwards."""
