"""Group commit: everybody gets their own result, after the commit, whatever happens around them."""

import threading
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest
import trio
import trio.testing

from hsmux_gateway.fairness import SYSTEM_TENANT
from hsmux_gateway.store import (
    AliasRow,
    Conflict,
    Store,
    StoreBusy,
    StoreLocked,
    StoreUnavailable,
    StoreWriter,
    Transaction,
)

from .sealer import AesSealer

Created = Callable[[str], Store]

A, B, C = b"a" * 16, b"b" * 16, b"c" * 16


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, created: Created) -> Iterator[Store]:
    """A sealed store."""
    if request.param == "memory":
        made = Store.in_memory(deployment_id=b"d" * 16, created_at_ms=1)
    else:
        made = created(request.getfixturevalue("sqlite_url"))
    made.reseal(AesSealer(), lambda transaction: None)
    with closing(made):
        yield made


class Gate:
    """A work that stays in its transaction until it is let go."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.opened = threading.Event()

    def work(self, transaction: Transaction) -> int:
        self.entered.set()
        self.opened.wait()
        return transaction.revision

    async def wait_entered(self) -> None:
        await trio.to_thread.run_sync(self.entered.wait)


def _add(name: str) -> Callable[[Transaction], int]:
    def work(transaction: Transaction) -> int:
        transaction.insert(AliasRow(name, None))
        return transaction.revision

    return work


async def _write(
    writer: StoreWriter,
    work: Callable[[Transaction], int],
    tenant: bytes = A,
    is_own: bool = False,
) -> int:
    return await writer.write(work, tenant=tenant, is_own=is_own)


def _names(store: Store) -> list[str]:
    return store.read(lambda reader: [row.name for row in reader.select(AliasRow)])


async def test_works_that_gather_share_a_commit(store: Store) -> None:
    writer = StoreWriter(store, group_size_max=10)
    start = store.revision()
    revisions: dict[int, int] = {}

    async def write(number: int) -> None:
        revisions[number] = await writer.write(_add(str(number)), tenant=A)

    gate = Gate()
    async with trio.open_nursery() as nursery:
        await nursery.start(writer.run)
        async with trio.open_nursery() as writers:
            writers.start_soon(_write, writer, gate.work)
            await gate.wait_entered()
            for number in range(25):
                writers.start_soon(write, number)
            await trio.testing.wait_all_tasks_blocked()
            assert writer.statistics().waiting == 25
            assert repr(writer) == "StoreWriter(25 waiting, 0 works in 0 groups)"
            gate.opened.set()
        nursery.cancel_scope.cancel()
    assert sorted(revisions.values()) == list(range(start + 2, start + 27))
    assert len(_names(store)) == 25
    assert (writer.statistics().works, writer.statistics().groups) == (26, 4)


async def test_nobody_pays_for_the_failure_of_another(store: Store) -> None:
    writer = StoreWriter(store)
    outcomes: dict[str, object] = {}

    def fails(_transaction: Transaction) -> int:
        raise ZeroDivisionError

    async def write(name: str, work: Callable[[Transaction], int]) -> None:
        try:
            outcomes[name] = await writer.write(work, tenant=A)
        except (ZeroDivisionError, Conflict) as error:
            outcomes[name] = type(error)

    gate = Gate()
    async with trio.open_nursery() as nursery:
        await nursery.start(writer.run)
        async with trio.open_nursery() as writers:
            writers.start_soon(_write, writer, gate.work)
            await gate.wait_entered()
            for name, work in [("a", _add("a")), ("b", fails), ("c", _add("a")), ("d", _add("d"))]:
                writers.start_soon(write, name, work)
                await trio.testing.wait_all_tasks_blocked()
            gate.opened.set()
        nursery.cancel_scope.cancel()
    revision = store.revision()
    assert outcomes == {
        "a": revision - 1,
        "b": ZeroDivisionError,
        "c": Conflict,
        "d": revision,
    }
    assert _names(store) == ["a", "d"]


async def test_an_answer_comes_after_the_commit(store: Store) -> None:
    writer = StoreWriter(store)
    async with trio.open_nursery() as nursery:
        await nursery.start(writer.run)
        for number in range(20):
            revision = await writer.write(_add(str(number)), tenant=A)
            assert store.revision() == revision
        nursery.cancel_scope.cancel()


class Order:
    """Works that note in which order, and in which group, they are done."""

    def __init__(self, writer: StoreWriter) -> None:
        self._writer = writer
        self.done: list[str] = []
        self.groups: list[int] = []

    def add(self, name: str) -> Callable[[Transaction], int]:
        """A work of this name."""

        def work(transaction: Transaction) -> int:
            self.done.append(name)
            self.groups.append(self._writer.statistics().groups)
            return transaction.revision

        return work


async def test_tenants_take_turns_in_a_group(store: Store) -> None:
    writer = StoreWriter(store, group_size_max=4)
    order, gate = Order(writer), Gate()
    async with trio.open_nursery() as nursery:
        await nursery.start(writer.run)
        async with trio.open_nursery() as writers:
            writers.start_soon(_write, writer, gate.work)
            await gate.wait_entered()
            for tenant, name, number in ((A, "a", 9), (B, "b", 2), (C, "c", 1)):
                for index in range(number):
                    writers.start_soon(_write, writer, order.add(f"{name}{index}"), tenant)
                    await trio.testing.wait_all_tasks_blocked()
            gate.opened.set()
        nursery.cancel_scope.cancel()
    expected = "a0 b0 c0 a1 b1 a2 a3 a4 a5 a6 a7 a8".split()
    assert order.done == expected
    assert order.groups == [1] * 4 + [2] * 4 + [3] * 4


async def test_works_of_the_gateways_own_go_first_for_half_a_group(store: Store) -> None:
    writer = StoreWriter(store, group_size_max=4)
    order, gate = Order(writer), Gate()
    async with trio.open_nursery() as nursery:
        await nursery.start(writer.run)
        async with trio.open_nursery() as writers:
            writers.start_soon(_write, writer, gate.work)
            await gate.wait_entered()
            for is_own, name, tenant, number in (
                (False, "asked", A, 3),
                (True, "a", A, 6),
                (True, "gateway", SYSTEM_TENANT, 1),
            ):
                for index in range(number):
                    work = order.add(f"{name}{index}")
                    writers.start_soon(_write, writer, work, tenant, is_own)
                    await trio.testing.wait_all_tasks_blocked()
            gate.opened.set()
        nursery.cancel_scope.cancel()
    expected = "a0 gateway0 asked0 asked1 a1 a2 asked2 a3 a4 a5".split()
    assert order.done == expected
    assert order.groups == [1] * 4 + [2] * 4 + [3] * 2


async def test_a_tenant_is_refused_at_once_when_it_has_its_share(store: Store) -> None:
    writer = StoreWriter(store, queue_length_max=6)
    gate = Gate()
    async with trio.open_nursery() as nursery:
        await nursery.start(writer.run)
        async with trio.open_nursery() as writers:
            writers.start_soon(_write, writer, gate.work)
            await gate.wait_entered()
            for name in "abc":
                writers.start_soon(_write, writer, _add(name))
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(StoreBusy):
                await writer.write(_add("d"), tenant=A)
            # Another tenant still has room, and who is told no has none less.
            writers.start_soon(_write, writer, _add("e"), B)
            await trio.testing.wait_all_tasks_blocked()
            # However many works the applications have here, the gateway has room for its own.
            writers.start_soon(_write, writer, _add("f"), SYSTEM_TENANT, True)
            await trio.testing.wait_all_tasks_blocked()
            assert writer.statistics().waiting == 5
            gate.opened.set()
        assert await writer.write(_add("g"), tenant=A) == store.revision()
        nursery.cancel_scope.cancel()
    assert _names(store) == ["a", "b", "c", "e", "f", "g"]
    assert writer.statistics().refused == 1


async def test_room_is_given_back_by_whoever_goes_away(store: Store) -> None:
    writer = StoreWriter(store, queue_length_max=2)
    gate = Gate()
    async with trio.open_nursery() as nursery:
        await nursery.start(writer.run)
        async with trio.open_nursery() as writers:
            writers.start_soon(_write, writer, gate.work)
            await gate.wait_entered()
            for _ in range(5):
                async with trio.open_nursery() as gone:
                    gone.start_soon(_write, writer, _add("gone"))
                    await trio.testing.wait_all_tasks_blocked()
                    with pytest.raises(StoreBusy):
                        await writer.write(_add("refused"), tenant=A)
                    gone.cancel_scope.cancel()
            gate.opened.set()
        assert writer.statistics().waiting == 0
        nursery.cancel_scope.cancel()
    assert _names(store) == []


async def test_a_waiter_cancelled_in_the_queue_writes_nothing(store: Store) -> None:
    writer = StoreWriter(store)
    gate = Gate()
    async with trio.open_nursery() as nursery:
        await nursery.start(writer.run)
        async with trio.open_nursery() as writers:
            writers.start_soon(_write, writer, gate.work)
            await gate.wait_entered()
            with trio.CancelScope() as scope:
                writers.start_soon(_write, writer, _add("stays"))
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()
                await writer.write(_add("gone"), tenant=A)
            assert scope.cancelled_caught
            assert writer.statistics().waiting == 1
            gate.opened.set()
        nursery.cancel_scope.cancel()
    assert _names(store) == ["stays"]


async def test_a_waiter_cancelled_in_the_group_disturbs_nobody(store: Store) -> None:
    writer = StoreWriter(store)
    gate = Gate()
    async with trio.open_nursery() as nursery:
        await nursery.start(writer.run)
        async with trio.open_nursery() as writers:
            writers.start_soon(_write, writer, gate.work)
            await gate.wait_entered()
            # The work is in its transaction already.
            writers.cancel_scope.cancel()
        gate.opened.set()
        await writer.write(_add("next"), tenant=A)
        nursery.cancel_scope.cancel()
    assert _names(store) == ["next"]
    assert writer.statistics().works == 2


async def test_a_writer_that_ends_finishes_its_group_and_lets_the_others_go(store: Store) -> None:
    writer = StoreWriter(store)
    gate = Gate()
    results: list[int] = []

    async def first() -> None:
        results.append(await writer.write(gate.work, tenant=A))

    async def second() -> None:
        with pytest.raises(StoreUnavailable, match="ended"):
            await writer.write(_add("late"), tenant=A)

    async with trio.open_nursery() as waiters, trio.open_nursery() as nursery:
        await nursery.start(writer.run)
        waiters.start_soon(first)
        await gate.wait_entered()
        waiters.start_soon(second)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
        gate.opened.set()
    assert results == [store.revision()]
    assert _names(store) == []
    with pytest.raises(StoreUnavailable, match="ended"):
        await writer.write(_add("later"), tenant=A)


async def test_a_failure_of_the_database_reaches_all_of_the_group(
    sqlite_url: str, created: Created
) -> None:
    store = Store.create(sqlite_url, deployment_id=b"d" * 16, created_at_ms=1, busy_timeout_s=0.01)
    writer = StoreWriter(store)
    gate = Gate()
    errors: list[Exception] = []

    async def write(name: str) -> None:
        with pytest.raises(StoreBusy) as caught:
            await writer.write(_add(name), tenant=A)
        errors.append(caught.value)

    holder = threading.Thread(target=created(sqlite_url).write, args=(gate.work,))
    holder.start()
    async with trio.open_nursery() as nursery:
        await gate.wait_entered()
        await nursery.start(writer.run)
        async with trio.open_nursery() as writers:
            for name in "abc":
                writers.start_soon(write, name)
        gate.opened.set()
        await trio.to_thread.run_sync(holder.join)
        await writer.write(_add("after"), tenant=A)
        nursery.cancel_scope.cancel()
    assert len(errors) == 3
    assert _names(store) == ["after"]
    store.close()


async def test_a_store_sealed_anew_by_another_reaches_the_waiter(
    sqlite_url: str, created: Created
) -> None:
    store = created(sqlite_url)
    store.reseal(AesSealer(), lambda transaction: None)
    other = Store.open(sqlite_url)
    with pytest.raises(StoreLocked):
        other.write(_add("locked"))
    writer = StoreWriter(other)
    async with trio.open_nursery() as nursery:
        await nursery.start(writer.run)
        with pytest.raises(StoreLocked):
            await writer.write(_add("a"), tenant=A)
        with pytest.raises(StoreLocked):
            await writer.write(_add("still running"), tenant=A)
        nursery.cancel_scope.cancel()
    other.close()
