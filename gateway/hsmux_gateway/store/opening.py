"""Finding, making and migrating the tables of a store.

The version of a database is one row that Alembic writes in the transaction of each migration; a
store is opened only when it is the version this program was made for. Making a store is one
transaction too: the migrations, the deployment and the state, so there is never half of one.
Alembic is loaded only when there is something to migrate: a start does not pay for it.

Seals cover every column, so a migration that adds one to a table of sealed rows also has to seal
those rows anew, in the same transaction and with the root at hand.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, TypeAlias

import sqlalchemy as sa

from .engines import Database, connect, create_file
from .errors import SchemaMismatch
from .rows import Table
from .schema import METADATA, OLDER_VERSIONS, SCHEMA_VERSION, VERSION_TABLE
from .sealing import Stored
from .sql import SqlBackend, SqlRows
from .translation import translating

__all__ = [
    "BUSY_TIMEOUT_S",
    "FirstRows",
    "create_database",
    "migrate_database",
    "open_database",
    "schema_version",
    "store_version",
]

BUSY_TIMEOUT_S: Final = 5.0
"""How long a transaction waits for others that write."""

FirstRows: TypeAlias = Sequence[tuple[Table[Any], Stored]]


def open_database(url: str, busy_timeout_s: float) -> SqlBackend:
    """The backend of an existing store of this version.

    Raises:
        SchemaMismatch: There is none, or it is of another version.
    """
    database = connect(url, busy_timeout_s)
    try:
        with translating(), database.engine.connect() as connection:
            _check_version(schema_version(connection), database.shown)
    except BaseException:
        database.engine.dispose()
        raise
    return SqlBackend(database)


def create_database(url: str, busy_timeout_s: float, first_rows: FirstRows) -> SqlBackend:
    """The same, made with these rows if there is no store yet."""
    database = connect(url, busy_timeout_s)
    create_file(url)
    try:
        with translating(), _migrating(database) as connection:
            version = schema_version(connection)
            if version is None:
                _refuse_foreign_tables(connection, database.shown)
                _upgrade(connection)
                for table, stored in first_rows:
                    SqlRows(connection).insert(table, stored)
            else:
                _check_version(version, database.shown)
    except BaseException:
        database.engine.dispose()
        raise
    return SqlBackend(database)


def migrate_database(url: str, busy_timeout_s: float = BUSY_TIMEOUT_S) -> tuple[str, str]:
    """Bring an older store to this version; the versions before and after.

    Raises:
        SchemaMismatch: There is no store, or it is newer.
    """
    database = connect(url, busy_timeout_s)
    try:
        with translating(), _migrating(database) as connection:
            before = schema_version(connection)
            if before is None or before not in OLDER_VERSIONS:
                _check_version(before, database.shown)
            _upgrade(connection)
    finally:
        database.engine.dispose()
    return str(before), SCHEMA_VERSION


def store_version(url: str, busy_timeout_s: float = BUSY_TIMEOUT_S) -> tuple[str, str | None]:
    """A store's URL without secrets, and the version of its tables or None; changes nothing."""
    database = connect(url, busy_timeout_s)
    try:
        with translating(), database.engine.connect() as connection:
            return database.shown, schema_version(connection)
    finally:
        database.engine.dispose()


def schema_version(connection: sa.Connection) -> str | None:
    """The version of the tables a connection sees, None if there are none."""
    if not sa.inspect(connection).has_table(VERSION_TABLE.name):
        return None
    return connection.execute(sa.select(VERSION_TABLE.c.version_num)).scalar_one_or_none()


def _check_version(version: str | None, shown: str) -> None:
    if version is None:
        raise SchemaMismatch(f"there is no store in {shown}: run `hsmux init --config FILE`")
    if version == SCHEMA_VERSION:
        return
    if version in OLDER_VERSIONS:
        raise SchemaMismatch(
            f"the store in {shown} is of version {version}, this hsmux needs {SCHEMA_VERSION}: "
            "stop all gateways and run `hsmux store migrate --config FILE`"
        )
    raise SchemaMismatch(
        f"the store in {shown} is of version {version!r}, this hsmux knows {SCHEMA_VERSION}: "
        "install the newer hsmux that made it"
    )


def _refuse_foreign_tables(connection: sa.Connection, shown: str) -> None:
    taken = sorted(set(sa.inspect(connection).get_table_names()) & METADATA.tables.keys())
    if taken:
        raise SchemaMismatch(f"{shown} has a table {taken[0]} that hsmux did not make")


@contextmanager
def _migrating(database: Database) -> Iterator[sa.Connection]:
    with database.engine.connect() as plain:
        connection = plain.execution_options(**database.write_options)
        with connection.begin():
            if database.creation_lock:
                connection.exec_driver_sql(database.creation_lock)
            yield connection


def _upgrade(connection: sa.Connection) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", "hsmux_gateway.store:migrations")
    config.attributes["connection"] = connection
    command.upgrade(config, SCHEMA_VERSION)
