"""What every store does, as library code: the same checks for each database and for the twin.

`check_store` runs all of them; `STORE_CHECKS` is the table for a test that wants one at a time.
Each check gets a fresh, bare store and makers of sealers. A check that fails raises
AssertionError.
"""

import threading
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from functools import partial
from operator import methodcaller
from typing import Any, Final, TypeVar

import msgspec

from .errors import (
    Conflict,
    RowsChanged,
    SealBroken,
    StoreDamaged,
    StoreLocked,
    StoreRolledBack,
)
from .rows import (
    STATE,
    AccessPointRow,
    AliasRow,
    ClientKeyRow,
    CounterRow,
    GatewayKeyRow,
    IdempotencyRow,
    IntentRow,
    KekRow,
    KekSealRow,
    KeyRow,
    KeyVersionRow,
    MtlsBindingRow,
    NetworkRuleRow,
    OutboxRow,
    PolicyRow,
    RequestRow,
    RootRow,
    Row,
    SettingRow,
    table_of,
)
from .sealing import INTEGER_MAX, SUM_SIZE, RowSealer
from .store import Store
from .transaction import IDEMPOTENCY_KEPT_MS, PURGE_STEP, Reader, Transaction

__all__ = ["STORE_CHECKS", "Check", "MakeSealer", "check_store", "sample_rows", "seal_store"]

MakeSealer = Callable[[], RowSealer]
Check = Callable[[Store, MakeSealer], None]

_NOW_MS: Final = 1_800_000_000_000
_KEY: Final = b"k" * 16
_OTHER_KEY: Final = b"K" * 16
_ACCESS_POINT: Final = b"a" * 16
_ROOT: Final = b"r" * 16
_THREADS: Final = 4
_WORKS_PER_THREAD: Final = 10

E = TypeVar("E", bound=Exception)
R = TypeVar("R", bound=Row)


def check_store(
    fresh: Callable[[], AbstractContextManager[Store]], make_sealer: MakeSealer
) -> None:
    """Run every check, each on a store of its own.

    Args:
        fresh: Opens a new bare store and closes it again.
        make_sealer: Makes a sealer with a new key.

    Raises:
        AssertionError: The store does not behave.
    """
    for check in STORE_CHECKS:
        with fresh() as store:
            check(store, make_sealer)


def seal_store(store: Store, sealer: RowSealer) -> None:
    """What the end of `init` does to a bare store, with a root that opens nothing."""

    def establish(transaction: Transaction) -> None:
        transaction.insert(RootRow(_ROOT, "hsm", "token", b"c" * 16, b"proof", "active", _NOW_MS))
        transaction.insert(KekRow(sealer.kek_id, "active", _NOW_MS))
        transaction.insert(KekSealRow(sealer.kek_id, _ROOT, b"sealed kek"))

    store.reseal(sealer, establish)


def sample_rows() -> list[Row]:
    """A row of each table that a work can write, with every column filled; `seal_store` has
    written the others. Rows come after those they refer to.
    """
    return [
        GatewayKeyRow(
            "ca", "EC_P256", "token", b"g" * 16, b"spki", b"der", b"material", b"proof",
            "Enabled", _NOW_MS,
        ),
        _key(_KEY),
        KeyVersionRow(_KEY, 1, "Enabled", "token", b"v" * 16, b"spki", b"m", b"proof", _NOW_MS),
        AliasRow("orders/mail", _KEY),
        AliasRow("gone", None),
        AccessPointRow(
            _ACCESS_POINT, "mail", "sends mail \u2709", "Enabled", "a\nb", "office", _NOW_MS
        ),
        ClientKeyRow(
            b"C" * 16, _ACCESS_POINT, b"s" * 32, "01ab", "CN=mail", _NOW_MS, _NOW_MS + 1, "Enabled",
            _NOW_MS, b"B" * 16,
        ),
        PolicyRow("a", "{}", _NOW_MS),
        PolicyRow("gone", "", _NOW_MS),
        NetworkRuleRow("office", "10.0.0.0/8", _NOW_MS),
        MtlsBindingRow("uri:spiffe://example.org/mail", _ACCESS_POINT),
        MtlsBindingRow("uri:spiffe://example.org/gone", None),
        SettingRow("ca-certificate", b"value", b"secret"),
        RequestRow(
            b"q" * 32, _ACCESS_POINT, "put_policy", "{}", "mail", b"approvals", _NOW_MS
        ),
        CounterRow(_KEY, 1, 256),
        IntentRow(
            b"i" * 16, "create_key", "token", b"c" * 16, _KEY, "host/1", b"arguments", _NOW_MS,
            _NOW_MS + 60_000,
        ),
        IdempotencyRow(_ACCESS_POINT, "create_key", b"t" * 16, b"h" * 32, b"result", _NOW_MS),
        OutboxRow(b"x" * 16, b"c" * 16, 7, _NOW_MS, b"record"),
    ]  # fmt: skip


def _key(key_id: bytes, description: str = "d\u00e9scription") -> KeyRow:
    return KeyRow(
        key_id, "AES_256", "ENCRYPT_DECRYPT", "hardware", "hsm", "token", "Enabled", 1,
        description, {"zone": "b", "app": "\u00e4"}, _NOW_MS, _ACCESS_POINT,
    )  # fmt: skip


def _insert_all(store: Store, rows: Iterable[Row]) -> list[Row]:
    return store.write(lambda transaction: [transaction.insert(row) for row in rows])


def _insert(store: Store, row: R) -> R:
    return store.write(lambda transaction: transaction.insert(row))


def _get(store: Store, row: Row) -> Row | None:
    return store.read(lambda reader: reader.get(type(row), *table_of(type(row)).key_of(row)))


def _refused(kind: type[E], attempt: Callable[[], object]) -> E:
    try:
        attempt()
    except kind as error:
        return error
    raise AssertionError(f"{kind.__name__} was not raised")


def _check_rows_come_back(store: Store, make_sealer: MakeSealer) -> None:
    seal_store(store, make_sealer())
    before = store.revision()
    written = _insert_all(store, sample_rows())
    assert [_get(store, row) for row in written] == written
    assert {row.row_revision for row in written} == {before + 1} == {store.revision()}
    assert store.read(lambda reader: reader.get(KeyRow, _OTHER_KEY)) is None
    followed = [row for row in written if table_of(type(row)).followed]
    seen: list[Row] = []
    assert store.each_change(before, seen.append) == before + 1
    assert seen == followed


def _check_select(store: Store, make_sealer: MakeSealer) -> None:
    seal_store(store, make_sealer())
    versions = [
        KeyVersionRow(key, number, "Enabled", "", b"", b"", b"m", b"", _NOW_MS)
        for key in (_KEY, _OTHER_KEY)
        for number in (3, 1, 2)
    ]
    _insert_all(store, [_key(_KEY), _key(_OTHER_KEY), *versions])

    def select(reader: Reader) -> list[int]:
        return [row.version for row in reader.select(KeyVersionRow, key_id=_KEY)]

    assert store.read(select) == [1, 2, 3]
    aliases = [AliasRow(name, None) for name in ("b", "a/", "B", "a-", "a", "\u00e4")]
    _insert_all(store, aliases)
    names = store.read(lambda reader: [row.name for row in reader.select(AliasRow)])
    assert names == ["B", "a", "a-", "a/", "b", "\u00e4"]
    assert len(store.read(lambda reader: reader.select(AliasRow, limit=2))) == 2
    named = _insert(store, AliasRow("named", _KEY))
    assert store.read(lambda reader: reader.select(AliasRow, key_id=_KEY)) == [named]
    unnamed = store.read(lambda reader: reader.select(AliasRow, key_id=None))
    assert [row.name for row in unnamed] == names


def _check_taken(store: Store, make_sealer: MakeSealer) -> None:
    seal_store(store, make_sealer())
    samples = sample_rows()
    _insert_all(store, samples)
    for row in samples:
        error = _refused(Conflict, partial(_insert, store, row))
        assert error.what.startswith(table_of(type(row)).name), error
    twin = AccessPointRow(b"b" * 16, "mail", "", "Enabled", "", "", _NOW_MS)
    assert _refused(Conflict, lambda: _insert(store, twin)).what == "access_points.name"
    other = _insert(store, msgspec.structs.replace(twin, name="post"))
    renamed = msgspec.structs.replace(other, name="mail")
    assert _refused(Conflict, lambda: store.write(lambda t: t.update(renamed)))
    assert _get(store, other) == other


def _check_references(store: Store, make_sealer: MakeSealer) -> None:
    seal_store(store, make_sealer())
    before = store.revision()
    error = _refused(Conflict, lambda: _insert(store, AliasRow("lost", _OTHER_KEY)))
    assert error.what == "aliases.key_id"
    _refused(Conflict, lambda: _insert_all(store, [_key(_KEY), AliasRow("lost", _OTHER_KEY)]))
    assert store.read(lambda reader: reader.get(KeyRow, _KEY)) is None
    assert store.revision() == before


def _check_compare_and_swap(store: Store, make_sealer: MakeSealer) -> None:
    seal_store(store, make_sealer())
    row = _insert(store, _key(_KEY))
    first = msgspec.structs.replace(row, description="first")
    second = msgspec.structs.replace(row, description="second")
    updated = store.write(lambda transaction: transaction.update(first))
    _refused(Conflict, lambda: store.write(lambda transaction: transaction.update(second)))
    assert _get(store, row) == updated
    assert (updated.description, updated.row_revision) == ("first", store.revision())
    _refused(Conflict, lambda: store.write(lambda transaction: transaction.update(_key(b"n" * 16))))


def _check_changes(store: Store, make_sealer: MakeSealer) -> None:
    seal_store(store, make_sealer())
    start = store.revision()
    assert store.read_changes(start).keys == store.read_changes(0).keys == []
    key, alias = store.write(lambda t: (t.insert(_key(_KEY)), t.insert(AliasRow("name", _KEY))))
    changes = store.read_changes(start)
    assert (changes.revision, changes.keys, changes.aliases) == (start + 1, [key], [alias])
    assert store.read_changes(0).keks != []
    gone = store.write(
        lambda transaction: transaction.update(msgspec.structs.replace(alias, key_id=None))
    )
    changes = store.read_changes(start + 1)
    assert (changes.revision, changes.keys, changes.aliases) == (start + 2, [], [gone])
    assert store.read_changes(start + 2).aliases == []


def _check_groups(store: Store, make_sealer: MakeSealer) -> None:
    seal_store(store, make_sealer())
    start = store.revision()

    def fails(transaction: Transaction) -> int:
        transaction.insert(_key(_OTHER_KEY))
        raise ZeroDivisionError

    def counts(transaction: Transaction) -> int:
        transaction.lease_counter(_KEY, 1, 1)
        return transaction.revision

    def taken(transaction: Transaction) -> int:
        transaction.insert(CounterRow(_KEY, 1, 0))
        return 0

    results = store.write_group([counts, fails, counts, taken, counts])
    assert [results[i].get() for i in (0, 2, 4)] == [start + 1, start + 2, start + 3]
    _refused(ZeroDivisionError, results[1].get)
    _refused(Conflict, results[3].get)
    assert store.revision() == start + 3
    assert store.read(lambda reader: reader.get(KeyRow, _OTHER_KEY)) is None
    assert store.write(lambda transaction: transaction.lease_counter(_KEY, 1, 1)) == 3
    assert store.write_group([]) == []
    _refused(ZeroDivisionError, lambda: store.write(fails))
    assert store.revision() == start + 4


def _check_idempotency(store: Store, make_sealer: MakeSealer) -> None:
    seal_store(store, make_sealer())
    token, arguments = b"t" * 16, b"h" * 32

    def once(transaction: Transaction) -> bytes:
        known = transaction.recall(_ACCESS_POINT, "create_key", token, arguments)
        if known is not None:
            return known
        transaction.insert(_key(_KEY))
        transaction.remember(
            _ACCESS_POINT, "create_key", token, arguments, b"answer", now_ms=_NOW_MS
        )
        return b"done"

    assert [result.get() for result in store.write_group([once, once])] == [b"done", b"answer"]
    assert store.write(once) == b"answer"
    _refused(
        Conflict, lambda: store.read(lambda r: r.recall(_ACCESS_POINT, "create_key", token, b"x"))
    )
    for access_point, operation in ((b"b" * 16, "create_key"), (_ACCESS_POINT, "delete_key")):
        again = methodcaller("recall", access_point, operation, token, arguments)
        assert store.read(again) is None

    def fails(transaction: Transaction) -> None:
        transaction.remember(_ACCESS_POINT, "x", token, arguments, b"", now_ms=_NOW_MS)
        raise ZeroDivisionError

    _refused(ZeroDivisionError, lambda: store.write(fails))
    assert store.read(lambda r: r.recall(_ACCESS_POINT, "x", token, arguments)) is None


def _check_purge(store: Store, make_sealer: MakeSealer) -> None:
    seal_store(store, make_sealer())
    old = PURGE_STEP + 3

    def fill(transaction: Transaction) -> None:
        for number in range(old + 1):
            created_at_ms = _NOW_MS if number < old else _NOW_MS + 1
            token = number.to_bytes(16, "big")
            transaction.remember(_ACCESS_POINT, "o", token, b"h", b"", now_ms=created_at_ms)

    store.write(fill)
    now_ms = _NOW_MS + IDEMPOTENCY_KEPT_MS
    assert store.write(lambda transaction: transaction.purge_idempotency(now_ms)) == 0
    purged = [
        store.write(lambda transaction: transaction.purge_idempotency(now_ms + 1)) for _ in range(3)
    ]
    assert purged == [PURGE_STEP, 3, 0]
    left = store.read(lambda reader: reader.select(IdempotencyRow))
    assert [row.created_at_ms for row in left] == [_NOW_MS + 1]


def _check_delete(store: Store, make_sealer: MakeSealer) -> None:
    """Rows that nobody follows go, if they are what was read; the sum follows."""
    seal_store(store, make_sealer())
    _insert_all(store, sample_rows())
    (request,) = store.read(lambda reader: reader.select(RequestRow))
    changed = msgspec.structs.replace(request, touches="somebody else")
    store.write(lambda transaction: transaction.update(changed))
    _refused(Conflict, lambda: store.write(lambda transaction: transaction.delete(request)))
    (request,) = store.read(lambda reader: reader.select(RequestRow))
    assert request.touches == "somebody else"
    store.write(lambda transaction: transaction.delete(request))
    assert store.read(lambda reader: reader.select(RequestRow)) == []
    _refused(Conflict, lambda: store.write(lambda transaction: transaction.delete(request)))
    (point,) = store.read(lambda reader: reader.select(AccessPointRow))
    _refused(ValueError, lambda: store.write(lambda transaction: transaction.delete(point)))
    assert store.read_changes(0).access_points == [point]


def _check_intents(store: Store, make_sealer: MakeSealer) -> None:
    seal_store(store, make_sealer())
    intents = [
        IntentRow(bytes([n]) * 16, "create_key", "t", b"c", None, "me", b"", _NOW_MS, _NOW_MS + n)
        for n in (1, 2, 3)
    ]
    for intent in intents:
        store.write(methodcaller("add_intent", intent))

    def expired(now_ms: int) -> list[int]:
        return [i.intent_id[0] for i in store.read(lambda r: r.expired_intents(now_ms))]

    assert (expired(_NOW_MS + 1), expired(_NOW_MS + 3)) == ([], [1, 2])
    taken = store.write(lambda t: t.extend_intent(intents[0].intent_id, "you", _NOW_MS + 9))
    assert (taken.owner, expired(_NOW_MS + 3)) == ("you", [2])
    store.write(lambda transaction: transaction.finish_intent(intents[1].intent_id))
    assert expired(_NOW_MS + 10) == [1, 3]
    for late in (
        lambda: store.write(lambda t: t.finish_intent(intents[1].intent_id)),
        lambda: store.write(lambda t: t.extend_intent(intents[1].intent_id, "you", _NOW_MS)),
    ):
        assert _refused(Conflict, late).what == "intents"


def _check_outbox(store: Store, make_sealer: MakeSealer) -> None:
    seal_store(store, make_sealer())
    rows = [OutboxRow(bytes([n]) * 16, bytes([n % 2]) * 16, n, n, b"record") for n in range(5)]
    _insert_all(store, rows)

    def left(reader: Reader) -> list[list[int]]:
        found = (reader.outbox_of(bytes([n]) * 16, limit=9) for n in range(2))
        return [[row.sequence for row in of] for of in (*found, reader.expired_outbox(2, limit=9))]

    assert store.read(left) == [[0, 2, 4], [1, 3], [0, 1]]
    for _ in range(2):
        store.write(methodcaller("settle_outbox", [rows[0].outbox_id, rows[3].outbox_id]))
        assert store.read(left) == [[2, 4], [1], [1]]


def _check_counters(store: Store, make_sealer: MakeSealer) -> None:
    seal_store(store, make_sealer())
    starts: list[int] = []

    def lease(_thread: int) -> None:
        for _ in range(_WORKS_PER_THREAD):
            starts.append(store.write(lambda transaction: transaction.lease_counter(_KEY, 1, 7)))

    _in_threads(lease)
    assert sorted(starts) == [7 * n for n in range(_THREADS * _WORKS_PER_THREAD)]
    assert store.write(lambda transaction: transaction.lease_counter(_KEY, 2, INTEGER_MAX)) == 0
    for amount in (1, 0, -1):
        lease_more = methodcaller("lease_counter", _KEY, 2, amount)
        _refused(Conflict, partial(store.write, lease_more))


def _in_threads(work: Callable[[int], None]) -> None:
    failures: list[BaseException] = []

    def guarded(number: int) -> None:
        try:
            work(number)
        except BaseException as error:
            failures.append(error)
            raise

    threads = [threading.Thread(target=guarded, args=(n,)) for n in range(_THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures


def _check_followers_miss_nothing(store: Store, make_sealer: MakeSealer) -> None:
    seal_store(store, make_sealer())
    start = store.revision()
    finished = threading.Event()
    followed: list[tuple[int, str]] = []

    def follow() -> None:
        revision = start
        while True:
            last = finished.is_set()
            changes = store.read_changes(revision)
            assert all(revision < row.row_revision <= changes.revision for row in changes.aliases)
            followed.extend(sorted((row.row_revision, row.name) for row in changes.aliases))
            revision = changes.revision
            if last:
                return

    def write(thread: int) -> None:
        for number in range(_WORKS_PER_THREAD):
            _insert(store, AliasRow(f"{thread}-{number}", None))

    follower = threading.Thread(target=follow)
    follower.start()
    try:
        _in_threads(write)
    finally:
        finished.set()
        follower.join()
    total = _THREADS * _WORKS_PER_THREAD
    assert [revision for revision, _ in followed] == list(range(start + 1, start + total + 1))
    assert len({name for _, name in followed}) == total


def _check_snapshot(store: Store, make_sealer: MakeSealer) -> None:
    seal_store(store, make_sealer())
    _insert_all(store, [AliasRow("before", None)])

    def look(reader: Reader) -> tuple[int, int]:
        first = len(reader.select(AliasRow))
        writer = threading.Thread(target=_insert_all, args=(store, [AliasRow("after", None)]))
        writer.start()
        writer.join()
        return first, len(reader.select(AliasRow))

    assert store.read(look) == (1, 1)
    assert len(store.read_changes(0).aliases) == 2


def _check_values(store: Store, make_sealer: MakeSealer) -> None:
    seal_store(store, make_sealer())
    wrong: tuple[dict[str, Any], ...] = (
        {"description": "nul \0"},
        {"description": 7.5},
        {"created_at_ms": -1},
        {"created_at_ms": INTEGER_MAX + 1},
        {"current_version": True},
        {"tags": {"k": 1}},
        {"state": None},
        {"created_by": "text"},
        {"description": "\udc80"},
    )
    for fields in wrong:
        row = msgspec.structs.replace(_key(_KEY), **fields)
        _refused(ValueError, partial(_insert, store, row))
    edge = msgspec.structs.replace(
        _key(_KEY), created_at_ms=INTEGER_MAX, description="x" * 8192, tags={}, created_by=b""
    )
    written = _insert(store, edge)
    assert _get(store, edge) == written


def _check_bare(store: Store, make_sealer: MakeSealer) -> None:
    (intent,) = (row for row in sample_rows() if isinstance(row, IntentRow))
    store.write(lambda transaction: transaction.add_intent(intent))
    secret = SettingRow("s", b"", b"secret")
    _refused(StoreLocked, lambda: _insert(store, secret))
    assert store.bootstrap().bare
    sealer = make_sealer()
    _refused(SealBroken, lambda: store.unlock(sealer))
    seal_store(store, sealer)
    bootstrap = store.bootstrap()
    assert not bootstrap.bare
    assert [seal.root_id for seal in bootstrap.kek_seals] == [_ROOT]
    assert _get(store, intent) == msgspec.structs.replace(intent, row_revision=2)
    _insert(store, secret)
    _refused(SealBroken, lambda: store.unlock(make_sealer()))
    assert _get(store, secret) == msgspec.structs.replace(secret, row_revision=3)


def _check_reseal(store: Store, make_sealer: MakeSealer) -> None:
    old = make_sealer()
    seal_store(store, old)
    _insert_all(store, sample_rows())
    new = make_sealer()

    def fails(_transaction: Transaction) -> None:
        raise ZeroDivisionError

    _refused(ZeroDivisionError, lambda: store.reseal(new, fails))
    revision = store.revision()
    store.reseal(new, lambda transaction: transaction.insert(KekRow(new.kek_id, "active", _NOW_MS)))
    assert store.revision() == revision + 1
    for row in sample_rows():
        assert _get(store, row) == msgspec.structs.replace(row, row_revision=revision + 1)
    _refused(SealBroken, lambda: store.unlock(old))
    store.unlock(new)
    assert len(store.read_changes(revision).keys) == 1


def _check_the_sum_follows(store: Store, make_sealer: MakeSealer) -> None:
    """Every kind of write, done and undone, leaves a sum that whoever loads the store finds."""
    seal_store(store, make_sealer())
    key, *_ = _insert_all(store, [_key(_KEY), *sample_rows()[3:]])

    def fails(transaction: Transaction) -> None:
        transaction.insert(_key(_OTHER_KEY))
        transaction.finish_intent(b"i" * 16)
        raise ZeroDivisionError

    def twice(transaction: Transaction) -> None:
        changed = transaction.update(key)
        transaction.update(msgspec.structs.replace(changed, row_revision=transaction.revision))
        transaction.lease_counter(_OTHER_KEY, 1, 3)

    works: list[Callable[[Transaction], object]] = [
        fails,
        twice,
        lambda transaction: None,
        lambda transaction: transaction.extend_intent(b"i" * 16, "you", _NOW_MS),
        lambda transaction: transaction.finish_intent(b"i" * 16),
        lambda transaction: transaction.purge_idempotency(_NOW_MS + IDEMPOTENCY_KEPT_MS + 1),
        fails,
    ]
    results = store.write_group(works)
    _refused(ZeroDivisionError, results[0].get)
    _refused(Conflict, results[-1].get)
    for result in results[1:-1]:
        result.get()
    sums = [store.state().rows_sum]
    assert len(store.read_changes(0).keys) == 1
    store.reseal(make_sealer(), lambda transaction: transaction.insert(_key(_OTHER_KEY)))
    sums.append(store.state().rows_sum)
    assert len(store.read_changes(0).keys) == 2
    assert len({*sums, bytes(SUM_SIZE), b""}) == 4


def _check_missing_and_old_rows(store: Store, make_sealer: MakeSealer) -> None:
    """Rows that were taken out or put back behind the store's back."""
    seal_store(store, make_sealer())
    _insert_all(store, sample_rows())
    table = table_of(AliasRow)
    backend = store._backend
    with backend.begin() as rows:
        old = rows.fetch(table, ("gone",))
        assert old is not None
        rows.remove(table, ("gone",))
    _refused(RowsChanged, lambda: store.read_changes(0))
    with backend.begin() as rows:
        rows.insert(table, old)
    assert len(store.read_changes(0).aliases) == 2
    row = store.read(lambda reader: reader.get(AliasRow, "gone"))
    assert row is not None
    store.write(lambda transaction: transaction.update(row))
    with backend.begin() as rows:
        rows.replace(table, old, store.revision())
    _refused(RowsChanged, lambda: store.read_changes(0))


def _check_rolled_back(store: Store, make_sealer: MakeSealer) -> None:
    """A state that is older than this process has seen it ends its use of the store."""
    seal_store(store, make_sealer())
    with store._backend.snapshot() as rows:
        old = rows.fetch(STATE, (1,))
    assert old is not None
    _insert_all(store, sample_rows())
    with store._backend.begin() as rows:
        rows.replace(STATE, old, store.revision())
    _refused(StoreRolledBack, store.revision)
    _refused(StoreDamaged, lambda: _insert(store, AliasRow("new", None)))


STORE_CHECKS: Final[tuple[Check, ...]] = (
    _check_rows_come_back,
    _check_select,
    _check_taken,
    _check_references,
    _check_compare_and_swap,
    _check_changes,
    _check_groups,
    _check_idempotency,
    _check_purge,
    _check_delete,
    _check_intents,
    _check_outbox,
    _check_counters,
    _check_followers_miss_nothing,
    _check_snapshot,
    _check_values,
    _check_bare,
    _check_reseal,
    _check_the_sum_follows,
    _check_missing_and_old_rows,
    _check_rolled_back,
)
"""Every check, in the order `check_store` runs them."""
