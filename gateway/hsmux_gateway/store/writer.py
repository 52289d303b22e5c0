"""Group commit: many tasks write, one thread commits.

Theory of operation. A durable commit costs a wait for the disk, however much it holds. Tasks
hand their work to a bounded queue; one task takes what has gathered meanwhile, up to
`GROUP_SIZE_MAX`, and does it as one group in a thread of its own. While that group waits for the
disk the next one gathers, so nothing is ever delayed on purpose. A task learns its own result, or
its own error, and only after the commit.

Works belong to tenants, who take turns in forming a group and share the room in the queue (see
`fairness`): however much one of them asks for, a work of another is in the next group but one.
Works of the gateway's own, which requests of many wait for, have a queue and room of their own and
go first, for half of a group at most: changes that applications ask for neither refuse nor delay
them, and they delay no change by more than a factor of two. A tenant is named with them too, that
of the request they serve, and the same rules hold among them.

A waiter that is cancelled before its work was taken leaves the queue, and the work is not done.
If it was taken the work goes on: it may be written although nobody waits for it, exactly as if
the connection of the one who asked had been lost a moment later. A waiter with patience stays for
the result all the same, as long as its patience lasts, and then learns that it is not known. When
the writer itself ends, the group in hand is finished, and whoever is still in the queue learns that
the store is away.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import trio

from ..fairness import FairBudget, FairQueue
from .errors import CommitUnknown, StoreBusy, StoreError, StoreUnavailable
from .store import Failed, Result, Store
from .transaction import Transaction

__all__ = ["GROUP_SIZE_MAX", "QUEUE_LENGTH_MAX", "StoreWriter", "WriterStatistics"]

QUEUE_LENGTH_MAX: Final = 4096
"""How many works may wait, and as many of the gateway's own; a tenant that has as many as are left
for the others is refused at once.
"""
GROUP_SIZE_MAX: Final = 64
"""How many works share a commit: more would make the first of them wait for the last."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class WriterStatistics:
    """What a writer has done.

    Attributes:
        waiting: Works in the queues now.
        groups: Commits so far.
        works: Works in them, failed ones included.
        refused: Writes refused because their tenant had its share of the queue.
    """

    waiting: int
    groups: int
    works: int
    refused: int


class _Job:
    def __init__(self, work: Callable[[Transaction], Any], tenant: bytes) -> None:
        self.work = work
        self.tenant = tenant
        self.result: Result[Any] | None = None
        self.settled = trio.Event()

    def settle(self, result: Result[Any]) -> None:
        self.result = result
        self.settled.set()


class _Lane:
    """Works that wait: tenants take turns, and share the room."""

    def __init__(self, length_max: int) -> None:
        self._queue: FairQueue[_Job] = FairQueue()
        self._room = FairBudget(length_max)

    def __len__(self) -> int:
        return len(self._queue)

    def put(self, job: _Job) -> bool:
        """Let a work wait; whether its tenant still had room."""
        if not self._room.try_take(job.tenant, 1):
            return False
        self._queue.put(job.tenant, job)
        return True

    def remove(self, job: _Job) -> bool:
        """Take a work back; whether it was still waiting."""
        if not self._queue.remove(job.tenant, job):
            return False
        self._room.give_back(job.tenant, 1)
        return True

    def take(self, number_max: int) -> list[_Job]:
        """The next works in turn."""
        taken = [self._queue.pop() for _ in range(min(number_max, len(self)))]
        for job in taken:
            self._room.give_back(job.tenant, 1)
        return taken


class StoreWriter:
    """Writes of many tasks, gathered; its owner runs `run` in a nursery."""

    def __init__(
        self,
        store: Store,
        *,
        queue_length_max: int = QUEUE_LENGTH_MAX,
        group_size_max: int = GROUP_SIZE_MAX,
    ) -> None:
        self._store = store
        self._group_size_max = group_size_max
        self._asked = _Lane(queue_length_max)
        self._own = _Lane(queue_length_max)
        self._gathered = trio.Event()
        self._running = False
        self._limiter = trio.CapacityLimiter(1)
        self._groups = 0
        self._works = 0
        self._refused = 0

    def statistics(self) -> WriterStatistics:
        """What has been done so far."""
        return WriterStatistics(self._waiting, self._groups, self._works, self._refused)

    def __repr__(self) -> str:
        done = f"{self._works} works in {self._groups} groups"
        return f"StoreWriter({self._waiting} waiting, {done})"

    @property
    def _waiting(self) -> int:
        return len(self._asked) + len(self._own)

    async def write(
        self,
        work: Callable[[Transaction], T],
        *,
        tenant: bytes,
        is_own: bool = False,
        patience_s: float = 0.0,
    ) -> T:
        """Do a work together with others; returns once it is durable.

        Args:
            work: What to write.
            tenant: The access point that it is for; `SYSTEM_TENANT` if it is for none.
            is_own: Whether it is a work of the gateway's own.
            patience_s: How long to wait for a work that has been taken although the caller is
                cancelled.

        Raises:
            StoreBusy: The tenant has its share of the queue.
            StoreUnavailable: The writer is not running.
            CommitUnknown: The patience is over.
            What `Store.write` and the work raise.
        """
        if not self._running:
            raise StoreUnavailable("the store's writer has ended")
        job, lane = _Job(work, tenant), self._own if is_own else self._asked
        if not lane.put(job):
            self._refused += 1
            raise StoreBusy(f"{self._waiting} writes are waiting already")
        self._gathered.set()
        try:
            await job.settled.wait()
        except trio.Cancelled:
            if lane.remove(job):
                raise
            if not patience_s:
                raise
            with trio.move_on_after(patience_s, shield=True):
                await job.settled.wait()
            if job.result is None:
                raise CommitUnknown("the database has not answered in time") from None
        assert job.result is not None
        value: T = job.result.get()
        return value

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Do the works until cancelled."""
        self._running = True
        task_status.started()
        try:
            while True:
                while not self._waiting:
                    self._gathered = trio.Event()
                    await self._gathered.wait()
                await self._do(self._next_group())
        finally:
            self._running = False
            _settle([*self._own.take(len(self._own)), *self._asked.take(len(self._asked))], [])

    def _next_group(self) -> list[_Job]:
        group = self._own.take(-(-self._group_size_max // 2))
        group += self._asked.take(self._group_size_max - len(group))
        return group + self._own.take(self._group_size_max - len(group))

    async def _do(self, group: list[_Job]) -> None:
        results: Sequence[Result[Any]] = []
        try:
            results = await trio.to_thread.run_sync(
                self._store.write_group, [job.work for job in group], limiter=self._limiter
            )
        except StoreError as error:
            results = [Failed(error)] * len(group)
        finally:
            # Without results the group was not begun, or a defect ends this task.
            _settle(group, results)
        self._groups += 1
        self._works += len(group)


def _settle(jobs: list[_Job], results: Sequence[Result[Any]]) -> None:
    ended = Failed(StoreUnavailable("the store's writer has ended"))
    for position, job in enumerate(jobs):
        job.settle(results[position] if results else ended)
