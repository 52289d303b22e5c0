"""Whatever is changed in the database behind the store's back is refused, or changes nothing."""

import itertools
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from hsmux_gateway.store import (
    AliasRow,
    ClientKeyRow,
    DeploymentRow,
    Row,
    RowsChanged,
    SchemaMismatch,
    SealBroken,
    SettingRow,
    StateRow,
    Store,
    StoreLocked,
    StoreRolledBack,
)
from hsmux_gateway.store.conformance import sample_rows, seal_store
from hsmux_gateway.store.rows import DEPLOYMENT, STATE, SUMMED, TABLES, Table, table_of
from hsmux_gateway.store.schema import SEAL_COLUMNS

from .conftest import CREATED_AT_MS, DEPLOYMENT_ID
from .sealer import AesSealer

KEK = bytes(range(48))
TABLE_IDS = [table.name for table in TABLES]


class Sample:
    """A sealed store with a row in each table, and a connection of its own to its file."""

    def __init__(self, path: Path) -> None:
        self.opens_anew = False
        self.url = f"sqlite:///{path}"
        self.store = Store.create(
            self.url, deployment_id=DEPLOYMENT_ID, created_at_ms=CREATED_AT_MS
        )
        seal_store(self.store, AesSealer(KEK))
        self.store.write(lambda transaction: [transaction.insert(row) for row in sample_rows()])
        self.raw = sqlite3.connect(path, isolation_level=None)
        self.raw.execute("PRAGMA synchronous=OFF")

    def close(self) -> None:
        self.raw.close()
        self.store.close()

    def opened(self) -> Store:
        """The store as another process opens it."""
        opened = Store.open(self.url)
        opened.unlock(AesSealer(KEK))
        return opened

    def seen(self, table: Table[Any]) -> list[Row]:
        """The table's rows, and all that processes follow, as whoever loads the store gets them."""
        if table is DEPLOYMENT or table is STATE or self.opens_anew:
            with closing(self.opened()) as opened:
                return [opened.bootstrap().deployment, *self._loaded(opened, table)]
        return self._loaded(self.store, table)

    def _loaded(self, store: Store, table: Table[Any]) -> list[Row]:
        rows: list[Row] = []
        store.each_change(0, rows.append)
        rows += store.read(lambda reader: reader.select(table.row))
        return sorted(rows, key=repr)

    def change(self, table: str, column: str, rowid: int, value: object) -> bool:
        """Set a column behind the store's back; whether the database took it."""
        # What is not UTF-8 gets into a text column only by a cast.
        text = self.kind(table, column) == "TEXT" and isinstance(value, bytes)
        parameter = "CAST(? AS TEXT)" if text else "?"
        try:
            self.raw.execute(
                f"UPDATE {table} SET {column} = {parameter} WHERE rowid = ?", (value, rowid)
            )
        except sqlite3.IntegrityError:
            return False
        return True

    def kind(self, table: str, column: str) -> str:
        """The declared type of a column."""
        query = "SELECT type FROM pragma_table_info(?) WHERE name = ?"
        kind: str = self.raw.execute(query, (table, column)).fetchone()[0]
        return kind


@pytest.fixture
def sample(tmp_path: Path) -> Iterator[Sample]:
    made = Sample(tmp_path / "store.db")
    yield made
    made.close()


def _flips(value: object, masks: Iterator[int]) -> Iterator[object]:
    """The value with one bit of each of its bytes flipped, and made longer and shorter."""
    if value is None:
        yield b"x" * 16
    elif isinstance(value, int):
        for position in range(8):
            flipped = (value ^ next(masks) << 8 * position).to_bytes(8, "big")
            yield int.from_bytes(flipped, "big", signed=True)
    else:
        assert isinstance(value, str | bytes)
        whole = value.encode() if isinstance(value, str) else value
        for position in range(len(whole)):
            yield whole[:position] + bytes([whole[position] ^ next(masks)]) + whole[position + 1 :]
        yield whole + b"x"
        yield whole[:-1] if whole else b"\xff"


def _flip_all(sample: Sample, table: Table[Any], masks: Iterator[int]) -> int:
    """Flip each byte of each column of each row of a table; how many changes were refused."""
    good = sample.seen(table)
    columns = [*table.clear, *SEAL_COLUMNS]
    rows = sample.raw.execute(f"SELECT rowid, {', '.join(columns)} FROM {table.name}").fetchall()
    assert rows
    refused = 0
    for rowid, *values in rows:
        for column, value in zip(columns, values, strict=True):
            for flipped in _flips(value, masks):
                if sample.change(table.name, column, rowid, flipped):
                    _check_refused(sample, table)
                    refused += 1
                    # A singleton's key is the row's number.
                    now = flipped if column == "singleton" else rowid
                    assert isinstance(now, int)
                    assert sample.change(table.name, column, now, value)
    assert sample.seen(table) == good
    return refused


def _check_refused(sample: Sample, table: Table[Any]) -> None:
    with pytest.raises((SealBroken, SchemaMismatch)) as caught:
        sample.seen(table)
    if table not in (DEPLOYMENT, STATE):
        assert isinstance(caught.value, SealBroken)
        assert caught.value.table == table.name


@pytest.mark.parametrize("table", TABLES, ids=TABLE_IDS)
def test_every_flipped_byte_is_refused(sample: Sample, table: Table[Any]) -> None:
    """One bit of each byte, a different one from byte to byte."""
    bits = itertools.cycle([0x01, 0x80, 0x10, 0x02, 0x40, 0x08, 0x20, 0x04])
    assert _flip_all(sample, table, bits) > 60


@pytest.mark.long
@pytest.mark.parametrize("table", TABLES, ids=TABLE_IDS)
def test_every_flipped_bit_is_refused(sample: Sample, table: Table[Any]) -> None:
    """Each time by another process, from its opening on."""
    sample.opens_anew = True
    for bit in range(8):
        assert _flip_all(sample, table, itertools.repeat(1 << bit)) > 60


def test_the_refusal_names_table_and_key(sample: Sample) -> None:
    sample.raw.execute("UPDATE aliases SET key_id = NULL WHERE name = 'orders/mail'")
    with pytest.raises(SealBroken, match=r"'orders/mail'.*aliases") as caught:
        sample.store.read_changes(0)
    assert (caught.value.table, caught.value.key) == ("aliases", ("orders/mail",))
    sample.raw.execute("UPDATE client_keys SET state = 'Disabled'")
    with pytest.raises(SealBroken, match=(b"C" * 16).hex()):
        sample.store.read(lambda reader: reader.get(ClientKeyRow, b"C" * 16))


@pytest.mark.parametrize("table", TABLES, ids=TABLE_IDS)
def test_a_row_moved_to_another_key_is_refused(sample: Sample, table: Table[Any]) -> None:
    key = table.key[0]
    rowid, value = sample.raw.execute(f"SELECT rowid, {key} FROM {table.name}").fetchone()
    moved = {int: 2, str: "other", bytes: b"o" * 16}[type(value)]
    assert sample.change(table.name, key, rowid, moved)
    _check_refused(sample, table)


@pytest.mark.parametrize("table", SUMMED, ids=[table.name for table in SUMMED])
def test_a_deleted_row_is_refused(sample: Sample, table: Table[Any]) -> None:
    """Each row in turn, of tables that are kept in memory and of all others."""
    good = sample.seen(table)
    rows = sample.raw.execute(f"SELECT rowid, * FROM {table.name}").fetchall()
    for rowid, *values in rows:
        sample.raw.execute(f"DELETE FROM {table.name} WHERE rowid = ?", (rowid,))
        with pytest.raises(SchemaMismatch if table is DEPLOYMENT else RowsChanged):
            sample.seen(table)
        places = ", ".join("?" * len(values))
        sample.raw.execute(f"INSERT INTO {table.name} VALUES ({places})", values)
    assert sample.seen(table) == good


WRITABLE = [row for row in sample_rows() if not isinstance(row, StateRow | DeploymentRow)]


@pytest.mark.parametrize("row", WRITABLE, ids=lambda row: type(row).__name__)
def test_a_row_put_back_to_an_older_copy_is_refused(sample: Sample, row: Row) -> None:
    """With a seal that opens: it was that row, once."""
    table = table_of(type(row))
    where = " AND ".join(f"{name} = ?" for name in table.key)
    key = table.key_of(row)
    old = sample.raw.execute(f"SELECT * FROM {table.name} WHERE {where}", key).fetchone()
    sample.store.write(
        lambda transaction: transaction.update(_required(transaction.get(type(row), *key)))
    )
    good = sample.seen(table)
    new = sample.raw.execute(f"SELECT * FROM {table.name} WHERE {where}", key).fetchone()
    places = ", ".join("?" * len(old))
    sample.raw.execute(f"REPLACE INTO {table.name} VALUES ({places})", old)
    assert sample.store.read(lambda reader: reader.get(type(row), *key)) is not None
    with pytest.raises(RowsChanged, match="put back to older copies"):
        sample.seen(table)
    sample.raw.execute(f"REPLACE INTO {table.name} VALUES ({places})", new)
    assert sample.seen(table) == good


def _required(row: Row | None) -> Row:
    assert row is not None
    return row


def test_no_write_makes_a_deletion_good(sample: Sample) -> None:
    """What is written later adds to the sum, and a new key-encryption key does not hide it."""
    sample.raw.execute("DELETE FROM aliases WHERE name = 'gone'")
    sample.store.write(lambda transaction: transaction.insert(AliasRow("gone", None)))
    with pytest.raises(RowsChanged):
        sample.store.read_changes(0)
    with pytest.raises(RowsChanged):
        sample.store.reseal(AesSealer(), lambda transaction: None)


def test_a_row_with_the_seal_of_another_is_refused(sample: Sample) -> None:
    columns = ", ".join(SEAL_COLUMNS)
    sample.raw.execute(
        f"UPDATE aliases SET ({columns}) = "
        f"(SELECT {columns} FROM aliases AS other WHERE other.name = 'gone')"
    )
    with pytest.raises(SealBroken, match="orders/mail"):
        sample.store.read_changes(0)


def test_a_row_of_another_deployment_is_refused(sample: Sample, tmp_path: Path) -> None:
    """Even if both have the same key-encryption key."""
    path = tmp_path / "other.db"
    other = Store.create(f"sqlite:///{path}", deployment_id=b"o" * 16, created_at_ms=1)
    seal_store(other, AesSealer(KEK))
    other.write(lambda transaction: transaction.insert(AliasRow("other", None)))
    other.close()
    sample.raw.execute("ATTACH ? AS other", (str(path),))
    sample.raw.execute("INSERT INTO aliases SELECT * FROM other.aliases")
    with pytest.raises(SealBroken, match="'other'"):
        sample.store.read_changes(0)


def test_an_unsealed_row_in_a_sealed_store_is_refused(sample: Sample) -> None:
    sample.raw.execute("UPDATE settings SET row_kek_id = x'', row_sealed = x''")
    with pytest.raises(SealBroken):
        sample.store.read_changes(0)


def test_an_older_state_is_refused_with_newer_rows(sample: Sample) -> None:
    old = sample.raw.execute("SELECT row_revision, row_kek_id, row_sealed FROM state").fetchone()
    sample.store.write(lambda transaction: transaction.insert(AliasRow("new", None)))
    sample.raw.execute("UPDATE state SET row_revision = ?, row_kek_id = ?, row_sealed = ?", old)
    with pytest.raises(StoreRolledBack):
        sample.store.read_changes(0)
    with closing(sample.opened()) as opened, pytest.raises(SealBroken) as caught:
        opened.read_changes(0)
    assert caught.value.table == "state"


def test_nothing_is_written_over_a_broken_state(sample: Sample) -> None:
    sample.raw.execute("UPDATE state SET row_revision = row_revision + 1")
    with pytest.raises(SealBroken):
        sample.store.write(lambda transaction: transaction.insert(AliasRow("new", None)))
    assert sample.raw.execute("SELECT 1 FROM aliases WHERE name = 'new'").fetchall() == []


def test_a_locked_store_gives_nothing_out(sample: Sample) -> None:
    attempts: list[Callable[[Store], object]] = [
        lambda store: store.revision(),
        lambda store: store.read_changes(0),
        lambda store: store.write(lambda transaction: transaction.insert(AliasRow("new", None))),
        lambda store: store.reseal(AesSealer(), lambda transaction: None),
    ]
    with closing(Store.open(sample.url)) as locked:
        for attempt in attempts:
            with pytest.raises(StoreLocked):
                attempt(locked)
        with pytest.raises(SealBroken):
            locked.unlock(AesSealer())
        locked.unlock(AesSealer(KEK))
        assert len(locked.read_changes(0).keys) == 1


def test_secrets_are_neither_in_the_file_nor_in_a_repr(sample: Sample, tmp_path: Path) -> None:
    secret = b"very secret value"
    row = SettingRow("s", b"", secret)
    sample.store.write(lambda transaction: transaction.insert(row))
    for file in tmp_path.iterdir():
        assert secret not in file.read_bytes()
    assert "very" not in repr(row)
    assert "material=<8 bytes>" in repr(sample.store.read_changes(0))
    assert "'material'" not in repr(sample.store.read_changes(0))
