"""The one place where errors of SQLAlchemy and its drivers become errors of the store.

Codes decide, never texts: SQLite's extended result codes (sqlite.org/rescode.html) by their
names, PostgreSQL's SQLSTATE (PostgreSQL 15 documentation, appendix A) by its longest matching
prefix.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import sqlalchemy.exc

from .errors import (
    Conflict,
    StoreBusy,
    StoreDamaged,
    StoreError,
    StoreFull,
    StoreUnavailable,
    UnsafeStore,
)

__all__ = ["SQLITE_CODES", "SQLSTATES", "translated", "translating"]

SQLITE_CODES: Final[dict[str, type[StoreError]]] = {
    "SQLITE_BUSY": StoreBusy,
    "SQLITE_LOCKED": StoreBusy,
    "SQLITE_FULL": StoreFull,
    "SQLITE_CONSTRAINT": Conflict,
    "SQLITE_IOERR": StoreDamaged,
    "SQLITE_CORRUPT": StoreDamaged,
    "SQLITE_NOTADB": StoreDamaged,
    "SQLITE_CANTOPEN": StoreUnavailable,
    "SQLITE_NOMEM": StoreUnavailable,
    "SQLITE_READONLY": UnsafeStore,
    "SQLITE_PERM": UnsafeStore,
    "SQLITE_AUTH": UnsafeStore,
}

SQLSTATES: Final[dict[str, type[StoreError]]] = {
    "08": StoreUnavailable,  # connection exception
    "23": Conflict,  # integrity constraint violation
    "25006": StoreUnavailable,  # read-only transaction: this server is not the primary any more
    "25P03": StoreUnavailable,  # idle-in-transaction timeout: the server ended the connection
    "28": UnsafeStore,  # invalid authorization
    "3D000": StoreUnavailable,  # no such database
    "40": StoreBusy,  # serialization failure, deadlock
    "42501": UnsafeStore,  # insufficient privilege
    "53": StoreUnavailable,  # insufficient resources
    "53100": StoreFull,  # disk full
    "55P03": StoreBusy,  # lock not available
    "57": StoreUnavailable,  # operator intervention: shutdown, crash
    "57014": StoreBusy,  # query cancelled by a time limit
    "58": StoreUnavailable,  # system error of the server
    "XX": StoreDamaged,  # internal error, data corrupted
}


def _by_prefix(table: dict[str, type[StoreError]], code: str) -> type[StoreError] | None:
    prefixes = (code[:length] for length in range(len(code), 0, -1))
    return next((table[prefix] for prefix in prefixes if prefix in table), None)


def _made(kind: type[StoreError] | None, code: str) -> StoreError:
    if kind is Conflict:
        return Conflict("a constraint of the database", code)
    return (kind or StoreError)(f"the database answered {code}")


def translated(error: sqlalchemy.exc.SQLAlchemyError) -> StoreError:
    """The store's error for one of SQLAlchemy; the caller chains them."""
    if isinstance(error, sqlalchemy.exc.TimeoutError):
        return StoreBusy("all connections to the database are in use")
    if not isinstance(error, sqlalchemy.exc.DBAPIError):
        return StoreError(f"the database layer failed: {type(error).__name__}")
    origin = error.orig
    if isinstance(origin, sqlite3.Error):
        name = getattr(origin, "sqlite_errorname", None) or "no code"
        return _made(_by_prefix(SQLITE_CODES, name), name)
    state = getattr(origin, "sqlstate", None)
    if state is None:
        # Without a SQLSTATE no server has answered: the connection failed or was lost.
        lost = isinstance(error, sqlalchemy.exc.OperationalError | sqlalchemy.exc.InternalError)
        return _made(StoreUnavailable if lost else None, type(origin).__name__)
    return _made(_by_prefix(SQLSTATES, state), state)


@contextmanager
def translating() -> Iterator[None]:
    """Inside, SQLAlchemy's errors leave as the store's."""
    try:
        yield
    except sqlalchemy.exc.SQLAlchemyError as error:
        raise translated(error) from error
