"""What access points share, and how none of them gets it all: an amount, threads, loop time.

Theory of operation
-------------------
A tenant is an access point, by its identifier. However many connections it opens, it is one tenant.
The gateway itself is `SYSTEM_TENANT`.

`FairBudget` is an amount (bytes of buffers, requests in work). A tenant may hold as much as is
left for all others (the dynamic threshold of Choudhury and Hahne, 1998): one alone gets half, two
get a third each, and there is always something left for one that comes new. So nobody can hold
everything, however long. What the shares of many small tenants add up to is never reserved.

`FairThreads` runs blocking functions in at most so many threads. Those who wait stand in a queue a
tenant, and the tenants take turns.

`Turns` shares the event loop. Work that waits for nothing is done by the connection's own task, in
slices; a tenant that has used `QUANTUM_NS` parks its further connections until everybody else who
could run has run once. The first to park only lets everybody run and then begins the round itself,
so a tenant that is alone is not kept waiting by a second task. Time used beyond the quantum is a
debt that later rounds pay off, so one long call does not buy more than many short ones. Nothing
parks while a tenant stays below its quantum, which is the usual case and costs one comparison.

The queue is one structure for both: tenants in turn, first in first out within one.
"""

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from typing import Final, Generic, TypeVar

import trio

from hsmux_protocol.errors import Busy

__all__ = ["SLICE_NS", "SYSTEM_TENANT", "FairBudget", "FairQueue", "FairThreads", "Turns"]

SYSTEM_TENANT: Final = bytes(16)
"""The gateway itself, for what it does on nobody's behalf; no access point has this identifier."""

QUANTUM_NS: Final = 2_000_000
"""Nanoseconds of the event loop a tenant has in a round: so long one flood delays the others."""

SLICE_NS: Final = 2_000_000
"""Nanoseconds of work done in one go, before answers leave and other tasks get their turn."""

RETRY_AFTER_MS: Final = 200
"""What a caller is told to wait when the queue of the threads is full."""

T = TypeVar("T")


class FairQueue(Generic[T]):
    """Items of tenants; the tenants take turns."""

    def __init__(self) -> None:
        self._queues: OrderedDict[bytes, deque[T]] = OrderedDict()
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def __repr__(self) -> str:
        return f"FairQueue({self._length} items of {len(self._queues)} tenants)"

    def tenants(self) -> list[bytes]:
        """Those that wait, whose turn it is first."""
        return list(self._queues)

    def waits(self, tenant: bytes) -> bool:
        """Whether a tenant has an item here."""
        return tenant in self._queues

    def put(self, tenant: bytes, item: T) -> None:
        """Add an item behind the tenant's others."""
        self._queues.setdefault(tenant, deque()).append(item)
        self._length += 1

    def first(self, tenant: bytes) -> T:
        """The tenant's next item, which stays."""
        return self._queues[tenant][0]

    def pop(self, tenant: bytes | None = None) -> T:
        """Take the next item of a tenant, or of the one whose turn it is; its turn is then over."""
        if tenant is None:
            tenant = next(iter(self._queues))
        queue = self._queues[tenant]
        item = queue.popleft()
        self._length -= 1
        if queue:
            self._queues.move_to_end(tenant)
        else:
            del self._queues[tenant]
        return item

    def remove(self, tenant: bytes, item: T) -> bool:
        """Take an item out of the middle; whether it was there."""
        queue = self._queues.get(tenant)
        if queue is None or item not in queue:
            return False
        queue.remove(item)
        self._length -= 1
        if not queue:
            del self._queues[tenant]
        return True


class FairBudget:
    """An amount that tenants share.

    Args:
        total: All there is.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self.used = 0
        self._held: dict[bytes, int] = {}
        self._waiting: FairQueue[tuple[int, trio.Event]] = FairQueue()

    def __repr__(self) -> str:
        return f"FairBudget({self.used} of {self.total}, {len(self._waiting)} waiting)"

    def held(self, tenant: bytes) -> int:
        """What a tenant holds."""
        return self._held.get(tenant, 0)

    def take(self, tenant: bytes, amount: int) -> None:
        """Take an amount that is already used, whether it is allowed or not."""
        self._held[tenant] = self._held.get(tenant, 0) + amount
        self.used += amount

    def try_take(self, tenant: bytes, amount: int) -> bool:
        """Take an amount if that leaves others their share; whether it was taken."""
        # The first of a tenant adds nothing to it: a share must hold at least one.
        held = self._held.get(tenant, 0)
        if held + amount > self.total - self.used:
            return False
        self._held[tenant] = held + amount
        self.used += amount
        return True

    def try_take_in_turn(self, tenant: bytes, amount: int) -> bool:
        """Take an amount if nobody of the tenant waits for some; whether it was taken."""
        return not self._waiting.waits(tenant) and self.try_take(tenant, amount)

    async def wait_take(self, tenant: bytes, amount: int) -> None:
        """Take an amount, and wait for it behind those of the tenant that wait already."""
        if self.try_take_in_turn(tenant, amount):
            return
        item = (amount, trio.Event())
        self._waiting.put(tenant, item)
        try:
            await item[1].wait()
        except trio.Cancelled:
            if not self._waiting.remove(tenant, item):
                self.give_back(tenant, amount)
            raise

    def give_back(self, tenant: bytes, amount: int) -> None:
        """Give back an amount; those who wait for it get it in turn."""
        left = self._held[tenant] - amount
        if left:
            self._held[tenant] = left
        else:
            del self._held[tenant]
        self.used -= amount
        if self._waiting:
            self._serve()

    def _serve(self) -> None:
        moved = True
        while moved:
            moved = False
            for tenant in self._waiting.tenants():
                amount, event = self._waiting.first(tenant)
                if self.try_take(tenant, amount):
                    self._waiting.pop(tenant)
                    event.set()
                    moved = True


class FairThreads:
    """Runs blocking functions in a bounded number of threads, tenants in turn.

    Args:
        threads_max: Functions at a time.
        waiting: Bounds those who wait, fairly.
    """

    def __init__(self, threads_max: int, waiting: FairBudget) -> None:
        self._free = threads_max
        self._limiter = trio.CapacityLimiter(threads_max)
        self._queue: FairQueue[trio.Event] = FairQueue()
        self._waiting = waiting

    def __repr__(self) -> str:
        return f"FairThreads({self._free} free, {len(self._queue)} waiting)"

    async def run(self, tenant: bytes, function: Callable[[], T]) -> T:
        """Run a function that changes nothing: when its caller is cancelled, it is left alone.

        Raises:
            Busy: Too many wait already.
        """
        await self._enter(tenant)
        try:
            return await trio.to_thread.run_sync(
                function, limiter=self._limiter, abandon_on_cancel=True
            )
        finally:
            self._leave()

    async def _enter(self, tenant: bytes) -> None:
        if self._free:
            self._free -= 1
            return
        if not self._waiting.try_take(tenant, 1):
            raise Busy("too many requests wait for a thread", retry_after_ms=RETRY_AFTER_MS)
        event = trio.Event()
        self._queue.put(tenant, event)
        try:
            await event.wait()
        except trio.Cancelled:
            if not self._queue.remove(tenant, event):
                self._leave()
            raise
        finally:
            self._waiting.give_back(tenant, 1)

    def _leave(self) -> None:
        if self._queue:
            self._queue.pop().set()
        else:
            self._free += 1


class Turns:
    """Time of the event loop.

    Args:
        quantum_ns: What a tenant may use before its connections park for a round.
    """

    def __init__(self, quantum_ns: int = QUANTUM_NS) -> None:
        self._quantum_ns = quantum_ns
        self._used_ns: dict[bytes, int] = {}
        self._parked: FairQueue[trio.Event] = FairQueue()
        self._anybody = trio.Event()
        self._is_ending = False

    def __repr__(self) -> str:
        return f"Turns({len(self._parked)} parked)"

    def is_turn(self, tenant: bytes) -> bool:
        """Whether the tenant may go on at once, as it usually may."""
        return self._used_ns.get(tenant, 0) < self._quantum_ns and not self._parked.waits(tenant)

    async def take(self, tenant: bytes) -> None:
        """Return when it is the tenant's turn, usually at once and without a checkpoint."""
        if self.is_turn(tenant):
            return
        if not self._parked and not self._is_ending:
            await self._end_round()
            if self.is_turn(tenant):
                return
        event = trio.Event()
        self._parked.put(tenant, event)
        self._anybody.set()
        try:
            await event.wait()
        except trio.Cancelled:
            if not self._parked.remove(tenant, event):
                self.spend(tenant, 0)
            raise

    def spend(self, tenant: bytes, used_ns: int) -> None:
        """Account for a slice; the tenant's next one goes on if there is time left."""
        used_ns += self._used_ns.get(tenant, 0)
        self._used_ns[tenant] = used_ns
        if used_ns < self._quantum_ns and self._parked.waits(tenant):
            self._parked.pop(tenant).set()

    async def each(
        self, tenant: bytes, items: Iterable[T], do: Callable[[T], object], slice_ns: int = SLICE_NS
    ) -> None:
        """Do something for each of many items, a slice a turn."""
        left = iter(items)
        is_more = True
        while is_more:
            await self.take(tenant)
            began = time.perf_counter_ns()
            try:
                is_more = _do_slice(left, do, began + slice_ns)
            finally:
                self.spend(tenant, time.perf_counter_ns() - began)
            await trio.lowlevel.checkpoint()

    async def run(self) -> None:
        """Begin a round whenever somebody is parked, until cancelled."""
        while True:
            if not self._parked:
                self._anybody = trio.Event()
                await self._anybody.wait()
            # Everybody who can run does so before this task goes on.
            await trio.lowlevel.checkpoint()
            self._begin_round()

    async def _end_round(self) -> None:
        """Let everybody else who can run do so, and begin a round unless somebody parked."""
        self._is_ending = True
        try:
            await trio.lowlevel.checkpoint()
        finally:
            self._is_ending = False
        if not self._parked:
            self._begin_round()

    def _begin_round(self) -> None:
        self._used_ns = {
            tenant: used_ns - self._quantum_ns
            for tenant, used_ns in self._used_ns.items()
            if used_ns > self._quantum_ns
        }
        for tenant in self._parked.tenants():
            if self._used_ns.get(tenant, 0) < self._quantum_ns:
                self._parked.pop(tenant).set()


def _do_slice(items: Iterator[T], do: Callable[[T], object], until_ns: int) -> bool:
    """Go on until the time is over; whether there may be more."""
    for item in items:
        do(item)
        if time.perf_counter_ns() >= until_ns:
            return True
    return False
