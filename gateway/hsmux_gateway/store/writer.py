"""Group commit: many tasks write, one thread commits.

Theory of operation. A durable commit costs a wait for the disk, however much it holds. Tasks
hand their work to a bounded queue; one task takes what has gathered meanwhile, up to
`GROUP_SIZE_MAX`, and does it as one group in a thread of its own. While that group waits for the
disk the next one gathers, so nothing is ever delayed on purpose. A task learns its own result, or
its own error, and only after the commit.

A waiter that is cancelled before its work was taken leaves the queue, and the work is not done.
If it was taken the work goes on: it may be written although nobody waits for it, exactly as if
the connection of the one who asked had been lost a moment later. A waiter with patience stays for
the result all the same, as long as its patience lasts, and then learns that it is not known. When
the writer itself ends, the group in hand is finished, and whoever is still in the queue learns that
the store is away.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import trio

from .errors import CommitUnknown, StoreBusy, StoreError, StoreUnavailable
from .store import Failed, Result, Store
from .transaction import Transaction

__all__ = ["GROUP_SIZE_MAX", "QUEUE_LENGTH_MAX", "StoreWriter", "WriterStatistics"]

QUEUE_LENGTH_MAX: Final = 4096
"""How many works may wait; above it a write is refused at once."""
GROUP_SIZE_MAX: Final = 64
"""How many works share a commit: more would make the first of them wait for the last."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class WriterStatistics:
    """What a writer has done.

    Attributes:
        waiting: Works in the queue now.
        groups: Commits so far.
        works: Works in them, failed ones included.
        refused: Writes refused because the queue was full.
    """

    waiting: int
    groups: int
    works: int
    refused: int


class _Job:
    def __init__(self, work: Callable[[Transaction], Any]) -> None:
        self.work = work
        self.result: Result[Any] | None = None
        self.settled = trio.Event()

    def settle(self, result: Result[Any]) -> None:
        self.result = result
        self.settled.set()


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
        self._queue_length_max = queue_length_max
        self._group_size_max = group_size_max
        self._queue: deque[_Job] = deque()
        self._gathered = trio.Event()
        self._running = False
        self._limiter = trio.CapacityLimiter(1)
        self._groups = 0
        self._works = 0
        self._refused = 0

    def statistics(self) -> WriterStatistics:
        """What has been done so far."""
        return WriterStatistics(len(self._queue), self._groups, self._works, self._refused)

    def __repr__(self) -> str:
        done = f"{self._works} works in {self._groups} groups"
        return f"StoreWriter({len(self._queue)} waiting, {done})"

    async def write(self, work: Callable[[Transaction], T], *, patience_s: float = 0.0) -> T:
        """Do a work together with others; returns once it is durable.

        Args:
            work: What to write.
            patience_s: How long to wait for a work that has been taken although the caller is
                cancelled.

        Raises:
            StoreBusy: The queue is full.
            StoreUnavailable: The writer is not running.
            CommitUnknown: The patience is over.
            What `Store.write` and the work raise.
        """
        if not self._running:
            raise StoreUnavailable("the store's writer has ended")
        if len(self._queue) >= self._queue_length_max:
            self._refused += 1
            raise StoreBusy(f"{self._queue_length_max} writes are waiting already")
        job = _Job(work)
        self._queue.append(job)
        self._gathered.set()
        try:
            await job.settled.wait()
        except trio.Cancelled:
            if job in self._queue:
                self._queue.remove(job)
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
                while not self._queue:
                    self._gathered = trio.Event()
                    await self._gathered.wait()
                size = min(len(self._queue), self._group_size_max)
                await self._do([self._queue.popleft() for _ in range(size)])
        finally:
            self._running = False
            _settle(list(self._queue), [])
            self._queue.clear()

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
