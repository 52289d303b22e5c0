"""Where jobs wait: a queue for each tenant, one for those that want a worker alone, and pauses.

The tenants take turns. Jobs of one key and operation are taken together, whoever's they are, each
from the front of its tenant's queue, so nobody is overtaken by a job of their own.
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


class JobQueue:
    """Jobs that wait.

    Attributes:
        waiting: Their items, delayed ones among them.
    """

    def __init__(self) -> None:
        self.waiting = 0
        self._tenants: OrderedDict[bytes, OrderedDict[int, Job]] = OrderedDict()
        self._lone: OrderedDict[int, Job] = OrderedDict()
        self._delayed: list[tuple[float, int, Job]] = []

    @property
    def has_shared(self) -> bool:
        """Whether a job waits that any worker may do beside others."""
        return bool(self._tenants)

    @property
    def has_any(self) -> bool:
        """Whether a job waits for a worker."""
        return bool(self._tenants or self._lone)

    def add(self, job: Job, *, first: bool = False) -> None:
        """Let a job wait, at the end or at the front."""
        is_lone = job.deaths or job.exclusive or job.alone
        queue = self._lone if is_lone else self._tenants.setdefault(job.tenant, OrderedDict())
        queue[job.number] = job
        if first:
            queue.move_to_end(job.number, last=False)
        job.place = "waiting"
        self.waiting += job.count

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
        if job.place == "delayed" or self._lone.pop(job.number, None) is not None:
            return
        queue = self._tenants[job.tenant]
        del queue[job.number]
        if not queue:
            del self._tenants[job.tenant]

    def take_all(self) -> Iterator[Job]:
        """Take every job out."""
        shared = [job for queue in self._tenants.values() for job in queue.values()]
        delayed = [job for _, _, job in self._delayed if job.place == "delayed"]
        for job in [*shared, *self._lone.values(), *delayed]:
            self.remove(job)
            yield job
        self._delayed.clear()

    def next_lone(self, *, is_changing: bool) -> Job | None:
        """The first job that wants a worker alone; not one that changes while another does."""
        for job in self._lone.values():
            if not (job.exclusive and is_changing):
                return job
        return None

    def take_shared(self, room: int) -> list[Job]:
        """Take the next job in turn, and what else fits into its message.

        Args:
            room: Items the message may have; one job is taken whatever it has.
        """
        if not self._tenants:
            return []
        tenant, queue = next(iter(self._tenants.items()))
        first = next(iter(queue.values()))
        self._tenants.move_to_end(tenant)
        self.remove(first)
        jobs = [first]
        if isinstance(first.payload, Column):
            jobs += self._take_fitting(first, min(room, ITEMS_MAX) - first.count)
        return jobs

    def _take_fitting(self, first: Job, room: int) -> list[Job]:
        found: list[Job] = []
        size = _size(first)
        for queue in list(itertools.islice(self._tenants.values(), SHARED_TENANTS_MAX)):
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
