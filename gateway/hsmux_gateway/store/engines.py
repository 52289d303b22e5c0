"""Connections to the two databases: how they are set up so that a commit is durable and private.

SQLite: WAL with `synchronous=FULL` (NORMAL loses acknowledged commits at a power cut),
`secure_delete` (freed pages are overwritten), foreign keys on, and transactions begun by us: the
driver's own BEGIN comes too late for a snapshot and not at all before SAVEPOINT. A writing
transaction begins IMMEDIATE, so it never finds out in the middle that another one was first. The
file and its directory may be written by nobody else; WAL and shared-memory file inherit the mode.

PostgreSQL: only a server that takes writes is accepted (`target_session_attrs`), which is also how
a new primary is found after a failover; a commit has to wait for the server's disk; every wait
has a limit.
"""

import os
import sqlite3
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

import sqlalchemy as sa
from sqlalchemy import event

from .errors import StoreMissing, StoreUnavailable, UnsafeStore

__all__ = [
    "CONNECT_TIMEOUT_S",
    "CREATION_LOCK",
    "IDLE_IN_TRANSACTION_TIMEOUT_MS",
    "POOL_SIZE",
    "STATEMENT_TIMEOUT_MS",
    "TCP_USER_TIMEOUT_MS",
    "Database",
    "check_url",
    "connect",
    "create_file",
]

CONNECT_TIMEOUT_S: Final = 5
STATEMENT_TIMEOUT_MS: Final = 30_000
IDLE_IN_TRANSACTION_TIMEOUT_MS: Final = 30_000
TCP_USER_TIMEOUT_MS: Final = 10_000
POOL_SIZE: Final = 4
CREATION_LOCK: Final = int.from_bytes(b"hsmux")
"""The advisory lock that keeps two creations in one database apart."""

_PRAGMAS: Final = {
    "journal_mode": "wal",
    "synchronous": 2,
    "secure_delete": 1,
    "foreign_keys": 1,
    "trusted_schema": 0,
}
_FILE_MODE: Final = 0o600


class Database(NamedTuple):
    """A database as the rest of the package needs to know it.

    Attributes:
        engine: Its engine.
        shown: Its URL without a password.
        write_options, read_options: Execution options of the two kinds of transaction.
        creation_lock: A statement that keeps two creations apart; empty where BEGIN does.
    """

    engine: sa.Engine
    shown: str
    write_options: dict[str, Any]
    read_options: dict[str, Any]
    creation_lock: str


def connect(url: str, busy_timeout_s: float) -> Database:
    """Prepare an engine; nothing is connected yet.

    Args:
        url: "sqlite:////absolute/path" or "postgresql://...".
        busy_timeout_s: How long to wait for others that write.

    Raises:
        UnsafeStore: The URL names no supported database.
        StoreUnavailable: The database's driver is not installed.
    """
    try:
        parsed = sa.make_url(url)
    except sa.exc.ArgumentError as error:
        raise UnsafeStore("store.url is not a URL such as sqlite:////path or ...") from error
    make = _KINDS.get(parsed.get_backend_name())
    if make is None:
        raise UnsafeStore(
            f"store.url begins with {parsed.drivername!r}: use sqlite:// or postgresql://"
        )
    try:
        return make(parsed, busy_timeout_s)
    except ImportError as error:
        raise StoreUnavailable(
            f"the driver of {parsed.drivername} is missing: pip install 'hsmux-gateway[postgresql]'"
        ) from error


def check_url(url: str) -> None:
    """Check that a URL names a database this program can use; nothing is connected.

    Raises:
        UnsafeStore, StoreUnavailable: It does not; the text says why.
    """
    connect(url, 0.0).engine.dispose()


def _text(value: bytes) -> str:
    # A damaged text has to reach the check of its seal instead of failing in the driver.
    return value.decode("utf-8", "surrogateescape")


def _sqlite(url: sa.URL, busy_timeout_s: float) -> Database:
    path = Path(url.database or "")
    if not path.is_absolute() or url.query:
        raise UnsafeStore("store.url: SQLite needs an absolute path: sqlite:////var/lib/...")

    def connection() -> sqlite3.Connection:
        _check_file(path)
        made = sqlite3.connect(
            f"{path.as_uri()}?mode=rw",
            uri=True,
            timeout=busy_timeout_s,
            isolation_level=None,
            check_same_thread=False,
        )
        made.text_factory = _text
        for name, wanted in _PRAGMAS.items():
            made.execute(f"PRAGMA {name}={wanted}")
            (found,) = made.execute(f"PRAGMA {name}").fetchone()
            if found != wanted:
                made.close()
                raise UnsafeStore(f"{path}: SQLite refuses {name}={wanted}")
        return made

    engine = sa.create_engine(
        "sqlite://",
        creator=connection,
        poolclass=sa.QueuePool,
        pool_size=POOL_SIZE,
        max_overflow=0,
        pool_timeout=busy_timeout_s,
    )

    @event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        options = connection.get_execution_options()
        connection.exec_driver_sql(options.get("sqlite_begin", "BEGIN"))

    return Database(
        engine=engine,
        shown=f"sqlite:///{path}",
        write_options={"sqlite_begin": "BEGIN IMMEDIATE"},
        read_options={},
        creation_lock="",
    )


def _check_file(path: Path) -> None:
    try:
        found = path.lstat()
    except FileNotFoundError as error:
        raise StoreMissing(f"{path} does not exist: `hsmux init` makes it") from error
    except OSError as error:
        raise StoreUnavailable(f"{path} cannot be looked at: {error.strerror}") from error
    if not stat.S_ISREG(found.st_mode):
        raise UnsafeStore(f"{path} is not a regular file")
    if stat.S_IMODE(found.st_mode) & 0o177:
        raise UnsafeStore(f"{path} can be read or changed by others: chmod 600 it")
    _check_directory(path.parent)


def _check_directory(directory: Path) -> None:
    try:
        found = directory.stat()
    except OSError as error:
        raise StoreUnavailable(f"{directory} cannot be looked at: {error.strerror}") from error
    if not stat.S_ISDIR(found.st_mode):
        raise UnsafeStore(f"{directory} is not a directory")
    if stat.S_IMODE(found.st_mode) & 0o022:
        raise UnsafeStore(f"others can replace files in {directory}: chmod go-w it")


def create_file(url: str) -> None:
    """Make the empty file of an SQLite store, durably, if there is none; nothing to do elsewhere.

    Raises:
        UnsafeStore, StoreUnavailable: The directory is missing or open to others.
    """
    parsed = sa.make_url(url)
    if parsed.get_backend_name() != "sqlite" or not parsed.database:
        return
    path = Path(parsed.database)
    _check_directory(path.parent)
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, _FILE_MODE))
    except FileExistsError:
        return
    except OSError as error:
        raise StoreUnavailable(f"{path} cannot be made: {error.strerror}") from error
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _postgresql(url: sa.URL, busy_timeout_s: float) -> Database:
    settings = {
        "lock_timeout": int(busy_timeout_s * 1000),
        "statement_timeout": STATEMENT_TIMEOUT_MS,
        "idle_in_transaction_session_timeout": IDLE_IN_TRANSACTION_TIMEOUT_MS,
    }
    arguments = {
        "target_session_attrs": "read-write",
        "connect_timeout": CONNECT_TIMEOUT_S,
        "tcp_user_timeout": TCP_USER_TIMEOUT_MS,
        "options": " ".join(f"-c {name}={value}" for name, value in settings.items()),
        "application_name": "hsmux",
    }
    engine = sa.create_engine(
        url.set(drivername="postgresql+psycopg"),
        connect_args={k: v for k, v in arguments.items() if k not in url.query},
        pool_size=POOL_SIZE,
        max_overflow=0,
        pool_timeout=busy_timeout_s,
        pool_pre_ping=True,
    )

    @event.listens_for(engine, "connect")
    def check(connection: Any, _record: object) -> None:
        with connection.cursor() as cursor:
            cursor.execute("SELECT current_setting('synchronous_commit'), current_setting('fsync')")
            found = cursor.fetchone()
        connection.rollback()
        if "off" in found:
            connection.close()
            raise UnsafeStore(
                "PostgreSQL answers before a commit is on disk: set fsync and synchronous_commit "
                "to on"
            )

    return Database(
        engine=engine,
        shown=url.render_as_string(hide_password=True),
        write_options={"isolation_level": "READ COMMITTED"},
        read_options={"isolation_level": "REPEATABLE READ", "postgresql_readonly": True},
        creation_lock=f"SELECT pg_advisory_xact_lock({CREATION_LOCK})",
    )


_KINDS: Final[dict[str, Callable[[sa.URL, float], Database]]] = {
    "sqlite": _sqlite,
    "postgresql": _postgresql,
}
