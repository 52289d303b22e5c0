"""Making, finding and refusing stores."""

import os
import sqlite3
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import alembic.autogenerate
import alembic.config
import alembic.migration
import alembic.script
import psycopg
import pytest
import sqlalchemy as sa

from hsmux_gateway.store import (
    AliasRow,
    OutboxRow,
    SchemaMismatch,
    Store,
    StoreUnavailable,
    UnsafeStore,
)
from hsmux_gateway.store.opening import migrate_database
from hsmux_gateway.store.rows import TABLES
from hsmux_gateway.store.schema import (
    METADATA,
    OLDER_VERSIONS,
    SCHEMA_VERSION,
    SEAL_COLUMNS,
    sql_table,
)

from .sealer import AesSealer

Created = Callable[[str], Store]


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest) -> str:
    """The URL of a database without a store."""
    found: str = request.getfixturevalue(f"{request.param}_url")
    return found


def _execute(url: str, statement: str) -> None:
    made = sa.make_url(url)
    if made.get_backend_name() == "postgresql":
        with psycopg.connect(url) as connection:
            connection.execute(statement.encode())
        return
    assert made.database is not None
    raw = sqlite3.connect(made.database)
    with raw:
        raw.execute(statement)
    raw.close()


def test_what_was_written_is_there_after_opening_again(url: str, created: Created) -> None:
    sealer = AesSealer()
    store = created(url)
    store.reseal(sealer, lambda transaction: transaction.insert(AliasRow("name", None)))
    store.close()
    again = Store.open(url)
    again.unlock(sealer)
    assert [row.name for row in again.read_changes(0).aliases] == ["name"]
    assert again.deployment_id == store.deployment_id
    again.close()


def test_creating_again_opens_what_is_there(url: str, created: Created) -> None:
    created(url).write(lambda transaction: transaction.lease_counter(b"k" * 16, 1, 5))
    again = Store.create(url, deployment_id=b"x" * 16, created_at_ms=7)
    assert again.deployment_id == created(url).deployment_id != b"x" * 16
    assert again.write(lambda transaction: transaction.lease_counter(b"k" * 16, 1, 5)) == 5
    again.close()


def test_many_create_one(url: str) -> None:
    found: list[bytes] = []
    together = threading.Barrier(4)

    def create(number: int) -> None:
        together.wait()
        store = Store.create(url, deployment_id=bytes([number]) * 16, created_at_ms=1)
        found.append(store.deployment_id)
        store.close()

    threads = [threading.Thread(target=create, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(set(found)) == 1


def test_no_store_is_refused(url: str, tmp_path: Path) -> None:
    if url.startswith("sqlite"):
        with pytest.raises(StoreUnavailable, match="hsmux init"):
            Store.open(url)
        (tmp_path / "store.db").touch(0o600)
    with pytest.raises(SchemaMismatch, match="hsmux init"):
        Store.open(url)


@pytest.mark.parametrize("version", [f"{int(SCHEMA_VERSION) + 1:04}", "9999", "x", ""])
def test_a_newer_store_is_refused(url: str, created: Created, version: str) -> None:
    created(url).close()
    _execute(url, f"UPDATE alembic_version SET version_num = '{version}'")
    for refused in (lambda: Store.open(url), lambda: created(url), lambda: migrate_database(url)):
        with pytest.raises(SchemaMismatch, match="newer hsmux"):
            refused()


def test_an_older_store_names_the_remedy(
    url: str, created: Created, monkeypatch: pytest.MonkeyPatch
) -> None:
    created(url).close()
    monkeypatch.setattr("hsmux_gateway.store.opening.SCHEMA_VERSION", "9999")
    monkeypatch.setattr("hsmux_gateway.store.opening.OLDER_VERSIONS", (SCHEMA_VERSION,))
    with pytest.raises(SchemaMismatch, match="hsmux store migrate"):
        Store.open(url)


def test_migrating_a_current_store_changes_nothing(url: str, created: Created) -> None:
    created(url).close()
    assert migrate_database(url) == (SCHEMA_VERSION, SCHEMA_VERSION)
    Store.open(url).close()


def test_a_store_of_the_first_version_is_migrated(url: str, created: Created) -> None:
    created(url).close()
    _execute(url, "DROP TABLE mtls_bindings")
    _execute(url, "DROP TABLE audit_outbox")
    _execute(url, "UPDATE alembic_version SET version_num = '0001'")
    with pytest.raises(SchemaMismatch, match="hsmux store migrate"):
        Store.open(url)
    assert migrate_database(url) == ("0001", SCHEMA_VERSION)
    store = Store.open(url)
    assert store.read(lambda reader: reader.select(OutboxRow)) == []
    store.close()


def test_another_format_is_refused(url: str, created: Created) -> None:
    created(url).close()
    _execute(url, "UPDATE deployment SET format = 2")
    with pytest.raises(SchemaMismatch, match="format 2"):
        Store.open(url)


def test_tables_of_others_are_left_alone(url: str, created: Created, tmp_path: Path) -> None:
    if url.startswith("sqlite"):
        (tmp_path / "store.db").touch(0o600)
    _execute(url, "CREATE TABLE keys (mine INTEGER)")
    with pytest.raises(SchemaMismatch, match="table keys"):
        created(url)
    _execute(url, "INSERT INTO keys VALUES (1)")


def test_the_migrations_make_what_the_structs_say(url: str, created: Created) -> None:
    created(url).close()
    engine = sa.create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    with engine.connect() as connection:
        context = alembic.migration.MigrationContext.configure(
            connection, opts={"compare_type": True}
        )
        assert alembic.autogenerate.compare_metadata(context, METADATA) == []
        for table in TABLES:
            found = sa.inspect(connection).get_columns(table.name)
            assert [column["name"] for column in found] == [*table.clear, *SEAL_COLUMNS]
            assert [c["nullable"] for c in found] == [c.nullable for c in sql_table(table).c]
    engine.dispose()


def test_the_version_is_the_newest_migration() -> None:
    config = alembic.config.Config()
    config.set_main_option("script_location", "hsmux_gateway.store:migrations")
    scripts = alembic.script.ScriptDirectory.from_config(config)
    assert scripts.get_current_head() == SCHEMA_VERSION
    older = [script.revision for script in scripts.walk_revisions()][1:]
    assert list(OLDER_VERSIONS) == older[::-1]


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "nonsense",
        "mysql://localhost/x",
        "sqlite://",
        "sqlite:///:memory:",
        "sqlite:///relative.db",
        "sqlite:////tmp/x.db?mode=memory",
    ],
)
def test_other_urls_are_refused(wrong: str) -> None:
    with pytest.raises(UnsafeStore, match=r"store\.url"):
        Store.open(wrong)
    with pytest.raises(UnsafeStore, match=r"store\.url"):
        Store.create(wrong, deployment_id=b"d" * 16, created_at_ms=1)


def test_a_missing_driver_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(StoreUnavailable, match=r"hsmux-gateway\[postgresql\]"):
        Store.open("postgresql://127.0.0.1/x")


def test_a_password_is_never_shown() -> None:
    with pytest.raises(StoreUnavailable) as caught:
        Store.open("postgresql://user:geheim@127.0.0.1:1/x")
    error: BaseException | None = caught.value
    while error is not None:
        assert "geheim" not in str(error)
        error = error.__cause__


def test_the_files_are_private(sqlite_url: str, created: Created, tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        store = created(sqlite_url)
        store.write(lambda transaction: transaction.lease_counter(b"k" * 16, 1, 5))
    finally:
        os.umask(before)
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == ["store.db", "store.db-shm", "store.db-wal"]
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}


def test_files_others_could_change_are_refused(
    sqlite_url: str, created: Created, tmp_path: Path
) -> None:
    created(sqlite_url).close()
    file = tmp_path / "store.db"
    file.chmod(0o640)
    with pytest.raises(UnsafeStore, match="chmod 600"):
        Store.open(sqlite_url)
    file.chmod(0o600)
    tmp_path.chmod(0o777)
    with pytest.raises(UnsafeStore, match="chmod go-w"):
        Store.open(sqlite_url)
    tmp_path.chmod(0o700)
    file.rename(tmp_path / "real.db")
    file.symlink_to(tmp_path / "real.db")
    with pytest.raises(UnsafeStore, match="regular file"):
        Store.open(sqlite_url)


def test_a_missing_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable, match="cannot be looked at"):
        Store.create(
            f"sqlite:///{tmp_path}/none/store.db", deployment_id=b"d" * 16, created_at_ms=1
        )
