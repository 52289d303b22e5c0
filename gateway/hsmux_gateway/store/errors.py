"""What can go wrong in the store, typed; nothing of SQLAlchemy or a driver leaves this package."""

from typing import Final

__all__ = [
    "DATABASE_FAILED",
    "CommitUnknown",
    "Conflict",
    "InvalidSeal",
    "RowsChanged",
    "SchemaMismatch",
    "SealBroken",
    "StoreBusy",
    "StoreDamaged",
    "StoreError",
    "StoreFull",
    "StoreLocked",
    "StoreMissing",
    "StoreRolledBack",
    "StoreUnavailable",
    "UnsafeStore",
]


class StoreError(Exception):
    """The base of everything the store raises on its own account."""


class Conflict(StoreError):
    """A row is taken, was changed by somebody else meanwhile, or refers to nothing.

    Attributes:
        what: What conflicts, such as "aliases.name".
    """

    def __init__(self, what: str, reason: str) -> None:
        super().__init__(f"{what}: {reason}")
        self.what = what


class SealBroken(StoreError):
    """A row is not what this deployment wrote: changed, swapped, moved or of another revision.

    Attributes:
        table: The table's name.
        key: The row's primary key as it was found.
    """

    def __init__(self, table: str, key: tuple[object, ...]) -> None:
        shown = ", ".join(part.hex() if isinstance(part, bytes) else repr(part) for part in key)
        super().__init__(f"the row ({shown}) of {table} was changed outside of hsmux")
        self.table = table
        self.key = key


class RowsChanged(SealBroken):
    """Every row is one that this deployment wrote, and together they are not what it wrote: some
    are missing, or were put back to older copies of themselves.
    """

    def __init__(self) -> None:
        super().__init__("state", (1,))
        self.args = (
            "rows were deleted, or put back to older copies of themselves, outside of hsmux",
        )


class SchemaMismatch(StoreError):
    """There is no store here, or it has the layout of another version; the text names the
    remedy.
    """


class UnsafeStore(StoreError):
    """The store could be read, changed or lost because of how it is set up; the text says how."""


class StoreLocked(StoreError):
    """Rows are sealed and the key that opens them has not been given yet (`Store.unlock`)."""


class StoreUnavailable(StoreError):
    """The database cannot be reached now; nothing of this call was written."""


class StoreMissing(StoreUnavailable):
    """The file of the store is not there: it was never made, or it was taken away."""


class CommitUnknown(StoreUnavailable):
    """The connection was lost while committing: the work is written as a whole or not at all.

    Its idempotency token tells which: `Transaction.recall` finds it if it was.
    """


class StoreBusy(StoreError):
    """Others hold the store, or the queue is full; the same work may succeed later."""


class StoreFull(StoreError):
    """There is no room left to write; nothing of this call was written, and reading goes on."""


class StoreDamaged(StoreError):
    """Writing or reading the file failed, or its structure is broken; what the call wrote is
    there as a whole or not at all.

    After a failed fsync nothing later can be trusted, so this sticks to the store object: the
    process has to end, and a new one recovers from the log.
    """


class StoreRolledBack(StoreDamaged):
    """The store is older than this process has seen it: it was put back under a running gateway, or
    a database that took over had not everything.
    """


DATABASE_FAILED: Final = (StoreUnavailable, StoreBusy, StoreFull, StoreDamaged)
"""What ends a transaction with everything in it; other errors concern one piece of work."""


class InvalidSeal(Exception):
    """Raised by a `RowSealer` whose `open` finds that the sealed bytes and the data do not fit."""
