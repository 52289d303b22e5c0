"""Databases that are busy, full, broken, killed: typed errors, and back to work afterwards."""

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from operator import methodcaller
from pathlib import Path

import psycopg
import pytest
import sqlalchemy.exc

from hsmux_gateway.store import (
    AliasRow,
    CommitUnknown,
    Conflict,
    IntentRow,
    Store,
    StoreBusy,
    StoreDamaged,
    StoreError,
    StoreFull,
    StoreUnavailable,
    Transaction,
    UnsafeStore,
)
from hsmux_gateway.store.translation import translated
from tests.postgresql import private_cluster

from .sealer import AesSealer

ROOT = Path(__file__).parents[3]
Created = Callable[[str], Store]


def _add(name: str) -> Callable[[Transaction], AliasRow]:
    return lambda transaction: transaction.insert(AliasRow(name, None))


def _names(store: Store) -> list[str]:
    return store.read(lambda reader: [row.name for row in reader.select(AliasRow)])


def _impatient(url: str) -> Store:
    return Store.create(url, deployment_id=b"d" * 16, created_at_ms=1, busy_timeout_s=0.05)


@pytest.fixture(params=["sqlite", "postgresql"])
def impatient(request: pytest.FixtureRequest) -> Iterator[Store]:
    """A store that waits 50 ms for others, in each database."""
    url: str = request.getfixturevalue(f"{request.param}_url")
    with closing(_impatient(url)) as store:
        yield store


def test_a_writer_in_the_way_is_busy(impatient: Store) -> None:
    entered, leave = threading.Event(), threading.Event()

    def slow(transaction: Transaction) -> None:
        entered.set()
        leave.wait()

    holder = threading.Thread(target=impatient.write, args=(slow,))
    holder.start()
    try:
        entered.wait()
        with pytest.raises(StoreBusy):
            impatient.write(_add("late"))
        assert _names(impatient) == []
    finally:
        leave.set()
        holder.join()
    impatient.write(_add("later"))
    assert _names(impatient) == ["later"]


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_two_gateways_hammer_one_name(request: pytest.FixtureRequest, kind: str) -> None:
    """Of two that make, or change, the same row one wins; the other learns it."""
    url: str = request.getfixturevalue(f"{kind}_url")
    wins: list[tuple[str, str]] = []
    together = threading.Barrier(2)

    def hammer(gateway: str) -> None:
        with closing(Store.create(url, deployment_id=b"d" * 16, created_at_ms=1)) as store:
            for number in range(15):
                together.wait()
                with contextlib.suppress(Conflict):
                    store.write(_add(str(number)))
                    wins.append((f"{number} made", gateway))
                together.wait()
                row = store.read(methodcaller("get", AliasRow, str(number)))
                together.wait()
                with contextlib.suppress(Conflict):
                    store.write(methodcaller("update", row))
                    wins.append((f"{number} changed", gateway))

    threads = [threading.Thread(target=hammer, args=(name,)) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wins) == len(dict(wins)) == 30


def test_more_readers_than_connections_are_busy(impatient: Store) -> None:
    def nested(depth: int) -> int:
        return impatient.read(lambda reader: nested(depth + 1))

    with pytest.raises(StoreBusy, match="connections"):
        nested(0)
    assert _names(impatient) == []


def test_a_full_disk(tmp_path: Path) -> None:
    program = [sys.executable, "-m", "tests.gateway.store.fill_disk", str(tmp_path)]
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", *program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.splitlines() == [
        "full True",
        "reads go on True",
        "whole group refused True",
        "nothing of it written True",
        "writes go on True",
    ], done.stderr


def test_a_failed_fsync_ends_it(sqlite_url: str, tmp_path: Path) -> None:
    """What the failed call wrote may be there or not; nothing is tried again in this process."""
    library = tmp_path / "failing_sync.so"
    source = Path(__file__).with_name("failing_sync.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    failing = tmp_path / "failing"
    done = subprocess.run(
        [sys.executable, "-m", "tests.gateway.store.fail_sync", sqlite_url, str(failing)],
        cwd=ROOT,
        env={**os.environ, "LD_PRELOAD": str(library), "FAILING_SYNC": str(failing)},
        capture_output=True,
        text=True,
        check=False,
    )
    expected = ["written True", "refused True", "never tried again True"]
    assert done.stdout.splitlines() == expected, done.stderr
    with closing(Store.open(sqlite_url)) as store:
        names = _names(store)
        assert "before" in names
        assert "after" not in names
        store.write(_add("recovered"))


def test_a_broken_file_sticks(sqlite_url: str, created: Created, tmp_path: Path) -> None:
    store = created(sqlite_url)
    store.write(_add("before"))
    store.close()
    file = tmp_path / "store.db"
    content = file.read_bytes()
    # The header stays, so that it is a database; the pages behind it are not.
    file.write_bytes(content[:4096] + b"\xa5" * (len(content) - 4096))
    with pytest.raises(StoreDamaged):
        Store.open(sqlite_url)
    file.write_bytes(b"\xa5" * len(content))
    with pytest.raises(StoreDamaged):
        Store.open(sqlite_url)
    file.write_bytes(content)
    store = Store.open(sqlite_url)
    file.write_bytes(content[:4096] + b"\xa5" * (len(content) - 4096))
    with pytest.raises(StoreDamaged):
        store.write(_add("after"))
    file.write_bytes(content)
    with pytest.raises(StoreDamaged, match="this process has to end"):
        store.write(_add("after"))
    store.close()


def test_a_removed_file_is_unavailable(sqlite_url: str, created: Created, tmp_path: Path) -> None:
    created(sqlite_url).close()
    (tmp_path / "store.db").rename(tmp_path / "away.db")
    with pytest.raises(StoreUnavailable, match="hsmux init"):
        Store.open(sqlite_url)


def test_freed_content_is_overwritten(sqlite_url: str, created: Created, tmp_path: Path) -> None:
    file = tmp_path / "store.db"
    owner = "the owner of an intent"
    intent = IntentRow(b"i" * 16, "create_key", "t", b"c", None, owner, b"", 1, 2)
    store = created(sqlite_url)
    store.write(lambda transaction: transaction.add_intent(intent))
    store.close()
    assert owner.encode() in file.read_bytes()
    store = created(sqlite_url)
    store.write(lambda transaction: transaction.finish_intent(intent.intent_id))
    store.close()
    assert owner.encode() not in file.read_bytes()


class Victim:
    """A store in PostgreSQL, and a connection of its own that can hurt it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.store = _impatient(url)
        self.store.reseal(AesSealer(), lambda transaction: None)
        self.other = psycopg.connect(url, autocommit=True)

    def close(self) -> None:
        self.other.close()
        self.store.close()

    def cut(self) -> int:
        """End all connections of the store; how many there were."""
        return self.other.execute(
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity "
            "WHERE application_name = 'hsmux' AND datname = current_database()"
        ).rowcount


@pytest.fixture
def victim(postgresql_url: str) -> Iterator[Victim]:
    made = Victim(postgresql_url)
    yield made
    made.close()


def test_idle_connections_that_were_cut_are_replaced(victim: Victim) -> None:
    victim.store.write(_add("before"))
    assert victim.cut() > 0
    victim.store.write(_add("after"))
    assert victim.cut() > 0
    assert _names(victim.store) == ["after", "before"]


def test_a_connection_cut_in_a_work_writes_nothing_of_the_group(victim: Victim) -> None:
    def cut(transaction: Transaction) -> None:
        transaction.insert(AliasRow("second", None))
        victim.cut()
        transaction.insert(AliasRow("third", None))

    with pytest.raises(StoreUnavailable) as caught:
        victim.store.write_group([_add("first"), cut, _add("fourth")])
    assert not isinstance(caught.value, CommitUnknown)
    assert _names(victim.store) == []
    victim.store.write(_add("again"))
    assert _names(victim.store) == ["again"]


@pytest.mark.parametrize("deferred", ["INITIALLY DEFERRED", "INITIALLY IMMEDIATE"])
def test_a_connection_lost_while_committing(victim: Victim, deferred: str) -> None:
    """A deferred trigger runs inside COMMIT; an immediate one is the control."""
    victim.other.execute(
        "CREATE FUNCTION cut() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); PERFORM pg_sleep(60); "
        "RETURN NULL; END $$"
    )
    victim.other.execute(
        "CREATE CONSTRAINT TRIGGER cut AFTER INSERT ON aliases "
        f"DEFERRABLE {deferred} FOR EACH ROW EXECUTE FUNCTION cut()".encode()
    )
    with pytest.raises(StoreUnavailable) as caught:
        victim.store.write(_add("perhaps"))
    assert isinstance(caught.value, CommitUnknown) == (deferred == "INITIALLY DEFERRED")
    victim.other.execute("DROP TRIGGER cut ON aliases")
    assert _names(victim.store) == []


def test_what_the_database_refuses_costs_the_others_nothing(victim: Victim) -> None:
    """The second line: what our own checks would have let through."""
    victim.other.execute("ALTER TABLE aliases ADD CONSTRAINT short CHECK (length(name) < 2)")
    results = victim.store.write_group([_add("a"), _add("long"), _add("b")])
    assert isinstance(results[0].get(), AliasRow)
    with pytest.raises(Conflict, match="constraint of the database: 23514"):
        results[1].get()
    assert _names(victim.store) == ["a", "b"]


def test_a_server_that_takes_no_writes_is_unavailable(victim: Victim) -> None:
    victim.other.execute(
        "DO $$ BEGIN EXECUTE 'ALTER DATABASE ' || current_database() || "
        "' SET default_transaction_read_only = on'; END $$"
    )
    assert victim.cut() > 0
    with pytest.raises(StoreUnavailable):
        victim.store.write(_add("late"))
    with pytest.raises(StoreUnavailable):
        Store.open(victim.url)


def test_answers_before_the_disk_are_refused(victim: Victim) -> None:
    victim.other.execute(
        "DO $$ BEGIN EXECUTE 'ALTER DATABASE ' || current_database() || "
        "' SET synchronous_commit = off'; END $$"
    )
    with pytest.raises(UnsafeStore, match="synchronous_commit"):
        Store.open(victim.url)


def test_a_stopped_server_is_unavailable_until_it_is_back() -> None:
    with private_cluster() as cluster, closing(_impatient(cluster.address.url())) as store:
        store.write(_add("before"))
        cluster.stop()
        for attempt in (lambda: store.write(_add("during")), store.revision, store.bootstrap):
            with pytest.raises(StoreUnavailable):
                attempt()
        cluster.start()
        store.write(_add("after"))
        assert _names(store) == ["after", "before"]


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("08006", StoreUnavailable),
        ("23505", Conflict),
        ("25006", StoreUnavailable),
        ("25P03", StoreUnavailable),
        ("28000", UnsafeStore),
        ("3D000", StoreUnavailable),
        ("40001", StoreBusy),
        ("40P01", StoreBusy),
        ("42501", UnsafeStore),
        ("42P01", StoreError),
        ("53100", StoreFull),
        ("53300", StoreUnavailable),
        ("55P03", StoreBusy),
        ("57014", StoreBusy),
        ("57P01", StoreUnavailable),
        ("58030", StoreUnavailable),
        ("XX001", StoreDamaged),
    ],
)
def test_codes_of_postgresql(code: str, kind: type[StoreError]) -> None:
    origin = psycopg.errors.lookup(code)("text with a value in it")
    found = translated(sqlalchemy.exc.DBAPIError.instance("s", {}, origin, psycopg.Error))
    assert type(found) is kind
    assert "value" not in str(found)
