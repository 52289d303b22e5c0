"""What tenants share: nobody gets it all, everybody who waits gets a turn, nothing leaks."""

import random
import threading
from collections.abc import Callable

import pytest
import trio
import trio.testing

from hsmux_gateway.buffers import OWN_SIZE, BufferLease
from hsmux_gateway.fairness import FairBudget, FairQueue, FairThreads, Turns
from hsmux_protocol.errors import Busy

A, B, C = b"a" * 16, b"b" * 16, b"c" * 16


def test_tenants_take_turns_in_a_queue() -> None:
    queue: FairQueue[str] = FairQueue()
    for item in ("a1", "a2", "a3"):
        queue.put(A, item)
    queue.put(B, "b1")
    queue.put(C, "c1")
    assert [queue.pop() for _ in range(len(queue))] == ["a1", "b1", "c1", "a2", "a3"]
    assert not queue.waits(A)


def test_an_item_leaves_a_queue_from_the_middle() -> None:
    queue: FairQueue[str] = FairQueue()
    queue.put(A, "a1")
    queue.put(A, "a2")
    assert queue.remove(A, "a1")
    assert not queue.remove(A, "a1")
    assert not queue.remove(B, "a2")
    assert (len(queue), queue.pop()) == (1, "a2")
    assert len(queue) == 0


def test_one_tenant_gets_half_and_two_get_a_third_each() -> None:
    budget = FairBudget(90)
    while budget.try_take(A, 1):
        pass
    assert budget.held(A) == 45
    while budget.try_take(B, 1):
        pass
    assert budget.held(B) in (22, 23)
    for _ in range(45):
        budget.give_back(A, 1)
    for _ in range(200):
        budget.try_take(random.choice((A, B)), 1)
    assert budget.used < budget.total


def test_the_first_amount_of_a_tenant_only_has_to_fit() -> None:
    budget = FairBudget(100)
    assert budget.try_take(A, 80)
    assert not budget.try_take(A, 1)
    assert not budget.try_take(B, 21)
    assert budget.try_take(B, 20)


@pytest.mark.parametrize("seed", range(20))
def test_a_newcomer_always_finds_room(seed: int) -> None:
    chance = random.Random(seed)
    budget = FairBudget(1000)
    tenants = [bytes([number]) for number in range(5)]
    for _ in range(3000):
        tenant = chance.choice(tenants)
        held = budget.held(tenant)
        if held and chance.random() < 0.3:
            budget.give_back(tenant, chance.randint(1, held))
        else:
            budget.try_take(tenant, chance.randint(1, 50))
        assert budget.used == sum(budget.held(tenant) for tenant in tenants) <= budget.total
    for tenant in tenants:
        if held := budget.held(tenant):
            budget.give_back(tenant, held)
    assert budget.used == 0


async def test_who_waits_for_an_amount_gets_it_in_turn() -> None:
    budget = FairBudget(10)
    budget.take(C, 10)
    order: list[str] = []

    async def wait(tenant: bytes, name: str) -> None:
        await budget.wait_take(tenant, 2)
        order.append(name)
        budget.give_back(tenant, 2)

    async with trio.open_nursery() as nursery:
        for tenant, name in ((A, "a1"), (A, "a2"), (B, "b1")):
            nursery.start_soon(wait, tenant, name)
            await trio.testing.wait_all_tasks_blocked()
        budget.give_back(C, 7)
        await trio.testing.wait_all_tasks_blocked()
    assert sorted(order[:2]) == ["a1", "b1"]
    assert order[2] == "a2"
    assert budget.used == 3


async def test_a_cancelled_waiter_takes_nothing() -> None:
    budget = FairBudget(10)
    budget.take(C, 10)
    with trio.CancelScope() as waiting:
        waiting.cancel()
        await budget.wait_take(A, 5)
    # Cancelled after it was granted: the amount goes back.
    async with trio.open_nursery() as nursery:
        nursery.start_soon(budget.wait_take, A, 5)
        await trio.testing.wait_all_tasks_blocked()
        budget.give_back(C, 10)
        nursery.cancel_scope.cancel()
    assert budget.used == budget.held(A)
    assert budget.held(A) in (0, 5)
    assert "0 waiting" in repr(budget)


def test_a_connection_leases_only_what_is_beyond_its_own() -> None:
    budget = FairBudget(1 << 20)
    lease = BufferLease(budget, A)
    assert lease.try_extend(OWN_SIZE)
    assert budget.used == 0
    assert lease.try_extend(OWN_SIZE + 100)
    assert budget.used == 100
    assert not lease.try_extend(OWN_SIZE + (1 << 20))
    lease.resize(OWN_SIZE + 7)
    assert budget.used == 7
    lease.resize(0)
    assert (budget.used, budget.held(A)) == (0, 0)


async def test_two_leases_that_wait_do_not_hold_one_another_up() -> None:
    budget = FairBudget(100)
    first, second = BufferLease(budget, A), BufferLease(budget, B)
    await first.extend(OWN_SIZE + 80)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(second.extend, OWN_SIZE + 80)
        await trio.testing.wait_all_tasks_blocked()
        # While it waits, what the connection holds is settled again and again.
        second.resize(10)
        first.resize(0)
    assert budget.held(B) == 80


class Gate:
    """A function that blocks its thread until it is let go."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.opened = threading.Event()

    def __call__(self) -> None:
        self.entered.set()
        self.opened.wait()


async def _in_line(
    threads: FairThreads, waiters: list[tuple[bytes, Callable[[], None]]], gate: Gate
) -> None:
    """Block the only thread, let everybody queue in this order, and let go."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(threads.run, C, gate)
        await trio.to_thread.run_sync(gate.entered.wait)
        for tenant, function in waiters:
            nursery.start_soon(threads.run, tenant, function)
            await trio.testing.wait_all_tasks_blocked()
        gate.opened.set()


async def test_a_flood_of_blocking_work_delays_others_by_one() -> None:
    threads = FairThreads(1, FairBudget(1000))
    order: list[str] = []
    flood: list[tuple[bytes, Callable[[], None]]] = [(A, lambda: order.append("a"))] * 30
    await _in_line(threads, [*flood, (B, lambda: order.append("b"))], Gate())
    assert order.index("b") <= 1
    assert repr(threads) == "FairThreads(1 free, 0 waiting)"


async def test_a_full_queue_is_busy_for_the_flood_only() -> None:
    threads = FairThreads(1, FairBudget(10))
    gate, refused = Gate(), 0

    async def run(tenant: bytes) -> None:
        nonlocal refused
        try:
            await threads.run(tenant, lambda: None)
        except Busy as error:
            assert error.retry_after_ms
            refused += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(threads.run, C, gate)
        await trio.to_thread.run_sync(gate.entered.wait)
        for _ in range(30):
            nursery.start_soon(run, A)
        await trio.testing.wait_all_tasks_blocked()
        assert refused == 25
        nursery.start_soon(run, B)
        await trio.testing.wait_all_tasks_blocked()
        assert refused == 25
        gate.opened.set()


async def test_cancelled_work_gives_its_place_on() -> None:
    threads = FairThreads(1, FairBudget(10))
    gate, done = Gate(), []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(threads.run, C, gate)
        await trio.to_thread.run_sync(gate.entered.wait)
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as waiting:
                waiting.start_soon(threads.run, A, lambda: done.append("never"))
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()
        nursery.start_soon(threads.run, B, lambda: done.append("b"))
        await trio.testing.wait_all_tasks_blocked()
        gate.opened.set()
    assert done == ["b"]
    # Who is cancelled while its function runs leaves it alone, and the thread is not lost.
    gate = Gate()
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(threads.run, A, gate)
            await trio.to_thread.run_sync(gate.entered.wait)
            scope.cancel()
    gate.opened.set()
    await threads.run(A, lambda: done.append("a"))
    assert done == ["b", "a"]


async def test_many_connections_of_one_tenant_get_one_share_of_the_loop() -> None:
    turns = Turns(quantum_ns=10)
    slices: list[bytes] = []

    async def work(tenant: bytes, count: int) -> None:
        for _ in range(count):
            await turns.take(tenant)
            slices.append(tenant)
            turns.spend(tenant, 10)
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(turns.run)
        async with trio.open_nursery() as workers:
            for _ in range(40):
                workers.start_soon(work, A, 10)
            workers.start_soon(work, B, 10)
        nursery.cancel_scope.cancel()
    last = max(index for index, tenant in enumerate(slices) if tenant == B)
    # B's ten slices are over long before the four hundred of A: about as many went to each.
    assert slices[: last + 1].count(A) <= 40 + 3 * 10


async def test_a_long_slice_is_paid_for_with_later_rounds() -> None:
    turns = Turns(quantum_ns=10)
    slices: list[bytes] = []

    async def work(tenant: bytes, cost_ns: int, count: int) -> None:
        for _ in range(count):
            await turns.take(tenant)
            slices.append(tenant)
            turns.spend(tenant, cost_ns)
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(turns.run)
        async with trio.open_nursery() as workers:
            workers.start_soon(work, A, 1000, 3)
            workers.start_soon(work, B, 10, 200)
        nursery.cancel_scope.cancel()
    third = [index for index, tenant in enumerate(slices) if tenant == A][2]
    # Two slices of a hundred quanta each are paid for with two hundred rounds, at two a tick.
    assert slices[:third].count(B) >= 90


async def test_nobody_is_parked_below_the_quantum() -> None:
    turns = Turns(quantum_ns=10)
    for _ in range(9):
        await turns.take(A)
        turns.spend(A, 1)
    with trio.move_on_after(0):
        await turns.take(A)
    turns.spend(A, 1)
    with trio.CancelScope() as scope:
        scope.cancel()
        await turns.take(A)
    assert scope.cancelled_caught
    await turns.take(B)
    assert repr(turns) == "Turns(0 parked)"


async def test_a_tenant_that_is_alone_begins_its_rounds_itself() -> None:
    # Nobody runs `turns.run` here, so whoever parked would wait for ever.
    turns, others = Turns(quantum_ns=10), 0

    async def count() -> None:
        nonlocal others
        while True:
            others += 1
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(count)
        for slices in range(1, 21):
            turns.spend(A, 10)
            await turns.take(A)
            assert others >= slices - 1
        nursery.cancel_scope.cancel()
    assert repr(turns) == "Turns(0 parked)"


async def test_two_that_used_their_quantum_wait_for_the_same_round() -> None:
    turns = Turns(quantum_ns=10)
    turns.spend(A, 25)
    turns.spend(B, 15)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(turns.take, A)
        nursery.start_soon(turns.take, B)
        await trio.testing.wait_all_tasks_blocked()
        assert repr(turns) == "Turns(2 parked)"
        assert turns._used_ns == {A: 25, B: 15}
        nursery.start_soon(turns.run)
        while turns._parked:
            await trio.lowlevel.checkpoint()
        assert turns._used_ns == {A: 5}
        nursery.cancel_scope.cancel()


async def test_many_items_are_done_in_slices_and_a_failure_is_paid_for() -> None:
    # No more debt than a few rounds pay off, even where a slice was interrupted.
    turns = Turns(quantum_ns=1000)
    done: list[int] = []
    others = 0

    async def count() -> None:
        nonlocal others
        while len(done) < 50:
            others += 1
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(turns.run)
        nursery.start_soon(count)
        await turns.each(A, range(50), done.append, slice_ns=0)
        assert done == list(range(50))
        assert others > 25
        with pytest.raises(ZeroDivisionError):
            await turns.each(B, range(50), lambda item: 1 // (item - 3), slice_ns=10**9)
        assert turns._used_ns[B] > 0
        nursery.cancel_scope.cancel()
