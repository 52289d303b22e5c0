"""Where jobs wait: three lanes with a queue for each tenant in them, and pauses.

In each lane the tenants take turns. One is for jobs that any worker may do beside others. There
jobs of one key and operation are taken together, whoever's they are, each from the front of its
tenant's queue, so nobody is overtaken by a job of their own. Jobs that want a worker alone stand
apart: those that change the token, of which there is one at a time, in a lane of their own, so that
nothing else waits behind what must not begin yet.
"""

import heapq
import itertools
from collections import OrderedDict
from collections.abc import Iterator
from typing import Final

from .jobs import ITEMS_MAX, MESSAGE_ITEMS_SIZE_MAX, Column, Job

__all__ = ["JobQueue"]

SHARED_TENANTS_MAX: Final = 64
"""Tenants that are looked at for jobs that fit into a message."""


class _Lane:
    """Jobs of tenants, who take turns.

    Attributes:
        tenants: Those that wait, whose turn it is first, each with its jobs by number.
    """

    def __init__(self) -> None:
        self.tenants: OrderedDict[bytes, OrderedDict[int, Job]] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self.tenants)

    def add(self, job: Job, *, first: bool) -> None:
        """Let a job wait at the end, or at the front, of its tenant's queue."""
        queue = self.tenants.setdefault(job.tenant, OrderedDict())
        queue[job.number] = job
        if first:
            queue.move_to_end(job.number, last=False)

    def first(self) -> Job | None:
        """The next job in turn, which stays."""
        for queue in self.tenants.values():
            return next(iter(queue.values()))
        return None

    def remove(self, job: Job) -> None:
        """Take a job out."""
        queue = self.tenants[job.tenant]
        del queue[job.number]
        if not queue:
            del self.tenants[job.tenant]

    def end_turn(self, tenant: bytes) -> None:
        """Let a tenant's next job wait for those of the others."""
        if tenant in self.tenants:
            self.tenants.move_to_end(tenant)


class JobQueue:
    """Jobs that wait.

    Attributes:
        waiting: Their items, delayed ones among them.
    """

    def __init__(self) -> None:
        self.waiting = 0
        self._shared, self._lone, self._changing = _Lane(), _Lane(), _Lane()
        self._delayed: list[tuple[float, int, Job]] = []

    @property
    def has_shared(self) -> bool:
        """Whether a job waits that any worker may do beside others."""
        return bool(self._shared)

    @property
    def has_any(self) -> bool:
        """Whether a job waits for a worker."""
        return bool(self._shared or self._lone or self._changing)

    def add(self, job: Job, *, first: bool = False) -> None:
        """Let a job wait, at the end or at the front."""
        self._lane_of(job).add(job, first=first)
        job.place = "waiting"
        self.waiting += job.count

    def _lane_of(self, job: Job) -> _Lane:
        if job.exclusive:
            return self._changing
        return self._lone if job.deaths or job.alone else self._shared

    def put_back(self, job: Job) -> None:
        """Let a job that was begun or delayed wait at the front, unless nobody waits for it."""
        if job.request.abandoned:
            job.place = "done"
            job.request.jobs.discard(job)
        else:
            self.add(job, first=True)

    def delay(self, job: Job, until: float) -> None:
        """Let a job wait at the front, but not before a time."""
        job.place = "delayed"
        self.waiting += job.count
        heapq.heappush(self._delayed, (until, job.number, job))

    def wake(self, now: float) -> None:
        """Let the jobs wait for a worker whose pause is over."""
        while self._delayed and self._delayed[0][0] <= now:
            _, _, job = heapq.heappop(self._delayed)
            if job.place == "delayed":
                self.waiting -= job.count
                self.put_back(job)

    def next_wake_at(self) -> float | None:
        """When the next pause is over."""
        return self._delayed[0][0] if self._delayed else None

    def remove(self, job: Job) -> None:
        """Take a waiting job out; a delayed one stays in its heap and is forgotten there."""
        self.waiting -= job.count
        if job.place != "delayed":
            self._lane_of(job).remove(job)

    def take_all(self) -> Iterator[Job]:
        """Take every job out."""
        lanes = (self._shared, self._lone, self._changing)
        waiting = [
            job for lane in lanes for queue in lane.tenants.values() for job in queue.values()
        ]
        delayed = [job for _, _, job in self._delayed if job.place == "delayed"]
        for job in [*waiting, *delayed]:
            self.remove(job)
            yield job
        self._delayed.clear()

    def next_lone(self, *, is_changing: bool) -> Job | None:
        """The next job that wants a worker alone, which stays; not one that changes while another
        does.
        """
        job = self._lone.first()
        return job if job or is_changing else self._changing.first()

    def take_lone(self, job: Job) -> None:
        """Take what `next_lone` has given; its tenant's turn is then over."""
        self.remove(job)
        self._lane_of(job).end_turn(job.tenant)

    def take_shared(self, room: int) -> list[Job]:
        """Take the next job in turn, and what else fits into its message.

        Args:
            room: Items the message may have; one job is taken whatever it has.
        """
        first = self._shared.first()
        if first is None:
            return []
        self.remove(first)
        self._shared.end_turn(first.tenant)
        jobs = [first]
        if isinstance(first.payload, Column):
            jobs += self._take_fitting(first, min(room, ITEMS_MAX) - first.count)
        return jobs

    def _take_fitting(self, first: Job, room: int) -> list[Job]:
        found: list[Job] = []
        size = _size(first)
        for queue in list(itertools.islice(self._shared.tenants.values(), SHARED_TENANTS_MAX)):
            while room > 0 and queue:
                job = next(iter(queue.values()))
                size += _size(job)
                if job.count > room or not job.joins(first) or size > MESSAGE_ITEMS_SIZE_MAX:
                    break
                self.remove(job)
                found.append(job)
                room -= job.count
        return found


def _size(job: Job) -> int:
    return len(job.payload.items) if isinstance(job.payload, Column) else 0
