"""Rows in an SQL database: one backend for both dialects."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any, Final

import sqlalchemy as sa

from .engines import Database
from .errors import DATABASE_FAILED, CommitUnknown, StoreUnavailable
from .rows import Key, Table, Value
from .schema import sql_table
from .sealing import Stored
from .translation import translating

__all__ = ["STREAM_ROWS", "SqlBackend", "SqlRows"]

STREAM_ROWS: Final = 1000
"""How many rows are in memory at once while a table is streamed."""


class SqlBackend:
    """Transactions on a database; satisfies `Backend`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @contextmanager
    def begin(self) -> Iterator["SqlRows"]:
        """A writing transaction."""
        with translating(), self._database.engine.connect() as connection:
            connection = connection.execution_options(**self._database.write_options)
            transaction = connection.begin()
            try:
                yield SqlRows(connection)
            except BaseException:
                transaction.rollback()
                raise
            self._commit(transaction)

    def _commit(self, transaction: sa.RootTransaction) -> None:
        try:
            with translating():
                transaction.commit()
        except StoreUnavailable as error:
            raise CommitUnknown("the connection was lost while committing") from error

    @contextmanager
    def snapshot(self) -> Iterator["SqlRows"]:
        """A reading transaction."""
        with translating(), self._database.engine.connect() as connection:
            connection = connection.execution_options(**self._database.read_options)
            with connection.begin():
                yield SqlRows(connection)

    def close(self) -> None:
        """Close the pool; SQLite's last connection folds the log into the file."""
        self._database.engine.dispose()

    def __repr__(self) -> str:
        return f"SqlBackend({self._database.shown})"


@cache
def _select(table: Table[Any]) -> sa.Select[Any]:
    return sa.select(*sql_table(table).c)


@cache
def _fetch(table: Table[Any], lock: bool) -> sa.Select[Any]:
    columns = sql_table(table).c
    selected = _select(table).where(*(columns[name] == sa.bindparam(name) for name in table.key))
    return selected.with_for_update() if lock else selected


@cache
def _find(
    table: Table[Any], equal: tuple[str, ...], absent: tuple[str, ...], below: str | None
) -> sa.Select[Any]:
    columns = sql_table(table).c
    selected = _select(table).where(
        *(columns[name] == sa.bindparam(name) for name in equal),
        *(columns[name].is_(None) for name in absent),
    )
    if below is not None:
        selected = selected.where(columns[below] < sa.bindparam("below"))
    return selected.order_by(*(columns[name] for name in table.key))


@cache
def _insert(table: Table[Any]) -> sa.Insert:
    return sql_table(table).insert()


@cache
def _update(table: Table[Any]) -> sa.Update:
    columns = sql_table(table).c
    where = [columns[name] == sa.bindparam(f"old_{name}") for name in (*table.key, "row_revision")]
    others = [c.name for c in columns if c.name not in table.key]
    return sql_table(table).update().where(*where).values({n: sa.bindparam(n) for n in others})


@cache
def _names(table: Table[Any]) -> list[str]:
    return sql_table(table).c.keys()


class SqlRows:
    """One transaction; satisfies `Rows`."""

    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection

    def fetch(self, table: Table[Any], key: Key, *, lock: bool = False) -> Stored | None:
        """See `Rows.fetch`."""
        parameters = dict(zip(table.key, key, strict=True))
        with translating():
            found = self._connection.execute(_fetch(table, lock), parameters).one_or_none()
        return None if found is None else tuple(found)

    def find(
        self,
        table: Table[Any],
        equal: Mapping[str, Value],
        *,
        below: tuple[str, int] | None = None,
        limit: int | None = None,
    ) -> list[Stored]:
        """See `Rows.find`."""
        absent = tuple(name for name, value in equal.items() if value is None)
        parameters = {name: value for name, value in equal.items() if value is not None}
        selected = _find(table, tuple(parameters), absent, below[0] if below else None)
        if below is not None:
            parameters["below"] = below[1]
        if limit is not None:
            selected = selected.limit(limit)
        with translating():
            return [tuple(row) for row in self._connection.execute(selected, parameters)]

    def changed(self, table: Table[Any], since_revision: int) -> Iterator[Stored]:
        """See `Rows.changed`."""
        selected = _select(table)
        if since_revision:
            selected = selected.where(sql_table(table).c.row_revision > since_revision)
        with translating():
            options = {"stream_results": True, "max_row_buffer": STREAM_ROWS}
            for part in self._connection.execute(selected, execution_options=options).partitions(
                STREAM_ROWS
            ):
                yield from map(tuple, part)

    def insert(self, table: Table[Any], stored: Stored) -> None:
        """See `Rows.insert`."""
        values = dict(zip(_names(table), stored, strict=True))
        with translating():
            self._connection.execute(_insert(table), values)

    def replace(self, table: Table[Any], stored: Stored, row_revision: int) -> bool:
        """See `Rows.replace`."""
        values = dict(zip(_names(table), stored, strict=True))
        values.update({f"old_{name}": values.pop(name) for name in table.key})
        values["old_row_revision"] = row_revision
        with translating():
            return self._connection.execute(_update(table), values).rowcount == 1

    def remove(self, table: Table[Any], key: Key) -> None:
        """See `Rows.remove`."""
        columns = sql_table(table).c
        wanted = zip(table.key, key, strict=True)
        statement = sql_table(table).delete().where(*(columns[n] == v for n, v in wanted))
        with translating():
            self._connection.execute(statement)

    @contextmanager
    def savepoint(self) -> Iterator[None]:
        """See `Rows.savepoint`."""
        self._do("SAVEPOINT work")
        try:
            yield
        except DATABASE_FAILED:
            # The database may have undone the whole transaction already, savepoints included;
            # the caller gives all of it up.
            raise
        except BaseException:
            self._do("ROLLBACK TO SAVEPOINT work")
            raise
        self._do("RELEASE SAVEPOINT work")

    def _do(self, statement: str) -> None:
        with translating():
            self._connection.exec_driver_sql(statement)
