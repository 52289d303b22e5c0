"""The pool as a state and decisions: which worker does what, who waits, who is told no.

Theory of operation
-------------------
Nothing here does I/O, knows a clock or awaits. An event comes in with the time it happened, the
state changes, and a list of decisions goes out; `pool.py` performs them. So every schedule can be
replayed in a test without an HSM.

    events      submit, answered, ready, start_failed, died, cancel, tick
    decisions   Start a worker, Send a job to a worker, Kill a worker, Finish a job without it

Jobs. A job is one message to a worker: at most 64 items of one caller under one key. Waiting jobs
stand in a queue for each tenant, and the tenants take turns, so one that sends a million records
delays another by one job. A worker has at most `WINDOW` jobs: one that it does and one that is
there when it is done. Jobs that change the token (`exclusive`) go one at a time over all workers.

Death. A worker does its jobs in order, so when it dies the first was running and the others were
not begun: those go back to the front. The running one, if it may be repeated, is tried once more,
alone; if its second worker dies too, that (tenant, key, operation) is refused for
`REFUSAL_S`, because it may be what kills them. One that may not be repeated ends as unknown.

Hanging. A worker whose running job takes longer than the job's `kill_s` is killed, and that is a
death. A caller's own deadline does not wait for it.

Breaker. Failures of the device (deaths, failed starts, device codes) in a row open it; any success
closes it. While it is open everybody is told Unavailable at once. Half-open is a worker that
starts: it logs in and sings its canary before it is ready, and ready closes the breaker.
"""

from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from .codes import DEVICE_CLASSES

__all__ = [
    "BREAKER_FAILURES",
    "REFUSAL_S",
    "START_TIMEOUT_S",
    "WINDOW",
    "Decision",
    "Finish",
    "Job",
    "Kill",
    "PoolState",
    "Send",
    "Start",
]

WINDOW: Final = 2
"""Jobs a worker has at a time: one running, one waiting in its socket."""

REFUSAL_S: Final = 60.0
"""Seconds that what killed two workers is refused."""

BREAKER_FAILURES: Final = 3
"""Failures of the device in a row that open the breaker."""

START_TIMEOUT_S: Final = 30.0
"""Seconds a worker has to start and log in: killed in C_Login, some modules lose their token."""

BACKOFF_MIN_S: Final = 0.05
BACKOFF_MAX_S: Final = 5.0

Outcome = Literal["busy", "deadline", "unavailable", "refused", "unknown"]


@dataclass(slots=True, eq=False)
class Job:
    """One message to a worker.

    Attributes:
        number: Names it.
        tenant: Who waits, for the fair queue.
        key: CKA_ID of the key, or empty.
        operation: Of the worker.
        arguments: Of the operation.
        items: How many items it holds.
        deadline: When its caller stops waiting, CLOCK_MONOTONIC seconds.
        kill_s: Seconds it may run before its worker is killed.
        repeatable: Whether doing it twice is the same as once.
        exclusive: Whether only one such job may be in the token at a time.
        deaths: Workers that died doing it.
        abandoned: Nobody waits for it any more.
    """

    number: int
    tenant: bytes
    key: bytes
    operation: str
    arguments: list[Any] = field(repr=False)
    items: int
    deadline: float
    kill_s: float
    repeatable: bool = True
    exclusive: bool = False
    deaths: int = 0
    abandoned: bool = False

    @property
    def suspicion(self) -> tuple[bytes, bytes, str]:
        """What is refused when this job killed two workers."""
        return (self.tenant, self.key, self.operation)


@dataclass(frozen=True, slots=True)
class Start:
    """Start a worker with this number."""

    worker: int


@dataclass(frozen=True, slots=True)
class Send:
    """Send a job to a worker."""

    worker: int
    job: Job


@dataclass(frozen=True, slots=True)
class Kill:
    """Kill a worker; its death is then an event."""

    worker: int
    reason: str


@dataclass(frozen=True, slots=True)
class Finish:
    """Tell a job's caller that it was not done."""

    job: Job
    outcome: Outcome


Decision = Start | Send | Kill | Finish


@dataclass(slots=True)
class _Worker:
    ready: bool
    since: float
    jobs: deque[Job] = field(default_factory=deque)
    killed: bool = False


class PoolState:
    """Everything the pool knows.

    Args:
        workers: Workers to keep.
        queue_items_max: Items that may wait.
    """

    def __init__(self, workers: int, queue_items_max: int) -> None:
        self._wanted = workers
        self._queue_items_max = queue_items_max
        self._workers: dict[int, _Worker] = {}
        self._queue: OrderedDict[bytes, deque[Job]] = OrderedDict()
        self._refused: dict[tuple[bytes, bytes, str], float] = {}
        self._next_worker = 1
        self._start_at = 0.0
        self._start_failures = 0
        self._failures = 0
        self._proven = False
        self.waiting = 0
        self.restarts = 0
        self.stopped = ""

    def __repr__(self) -> str:
        return f"Pool({self.busy} busy, {self.idle} idle, {self.waiting} waiting, {self.breaker})"

    @property
    def ready(self) -> int:
        """Workers that can do jobs."""
        return sum(worker.ready for worker in self._workers.values())

    @property
    def starting(self) -> int:
        """Workers on their way."""
        return len(self._workers) - self.ready

    @property
    def busy(self) -> int:
        """Workers that do a job."""
        return sum(bool(worker.jobs) for worker in self._workers.values())

    @property
    def idle(self) -> int:
        """Workers that are ready and do nothing."""
        return self.ready - self.busy

    @property
    def breaker(self) -> str:
        """ "closed", "open" or "half-open"; "refused" when the PIN was."""
        if self.stopped:
            return "refused"
        if self._failures < BREAKER_FAILURES or self.ready:
            return "closed"
        return "half-open" if self._workers else "open"

    def begin(self, now: float) -> list[Decision]:
        """Start the first worker; the others follow when it has proven the PIN."""
        return self._start_workers(now)

    def submit(self, job: Job, now: float) -> list[Decision]:
        """A caller wants a job done."""
        if job.deadline <= now:
            return [Finish(job, "deadline")]
        if self.breaker in ("open", "half-open", "refused"):
            return [Finish(job, "unavailable")]
        if self._refused.get(job.suspicion, 0.0) > now:
            return [Finish(job, "refused")]
        if self.waiting + job.items > self._queue_items_max:
            return [Finish(job, "busy")]
        self._enqueue(job)
        return self._schedule(now)

    def answered(self, worker: int, kind: str, now: float) -> tuple[Job, list[Decision]]:
        """A worker answered its running job.

        Args:
            worker: Its number.
            kind: "done" or the class of the failure.
            now: The time.

        Returns:
            The job, and decisions. If one of them sends, queues or finishes the job again, the
            answer is not for its caller; `is_pending` tells.
        """
        state = self._workers[worker]
        job = state.jobs.popleft()
        state.since = now
        decisions: list[Decision] = []
        if kind in DEVICE_CLASSES:
            self._failures += 1
            decisions += self._fault(job, now)
        elif kind == "session":
            decisions += self._fault(job, now)
        else:
            self._failures = 0
        return job, decisions + self._schedule(now)

    def is_pending(self, job: Job) -> bool:
        """Whether a job still waits or runs."""
        if any(job in worker.jobs for worker in self._workers.values()):
            return True
        return job in self._queue.get(job.tenant, ())

    def ready_now(self, worker: int, now: float) -> list[Decision]:
        """A worker has logged in and its canary sang."""
        state = self._workers[worker]
        state.ready, state.since = True, now
        self._proven = True
        self._start_failures = self._failures = 0
        self._start_at = now
        return self._start_workers(now) + self._schedule(now)

    def stop(self, reason: str) -> list[Decision]:
        """The PIN was refused: nobody starts or waits until an operator acts."""
        self.stopped = reason
        return [Finish(job, "unavailable") for job in self._take_all()]

    def died(self, worker: int, now: float) -> list[Decision]:
        """A worker's process is gone, whatever the reason."""
        state = self._workers.pop(worker)
        self._failures += 1
        if state.ready:
            self.restarts += 1
        else:
            self._start_failures += 1
            pause = BACKOFF_MIN_S * 2 ** min(self._start_failures, 16)
            self._start_at = now + min(pause, BACKOFF_MAX_S)
        decisions: list[Decision] = []
        jobs = list(state.jobs)
        for job in reversed(jobs[1:]):
            self._requeue(job)
        if jobs:
            decisions += self._fault(jobs[0], now)
        if self.breaker in ("open", "half-open"):
            decisions += [Finish(job, "unavailable") for job in self._take_all()]
        return decisions + self._start_workers(now) + self._schedule(now)

    def cancel(self, job: Job) -> None:
        """Nobody waits for a job any more; a running one goes on, unseen."""
        job.abandoned = True
        queue = self._queue.get(job.tenant)
        if queue is not None and job in queue:
            queue.remove(job)
            self._left(job)

    def tick(self, now: float) -> list[Decision]:
        """Time passed: deadlines, kill limits, starts that were put off."""
        decisions: list[Decision] = []
        for number, worker in self._workers.items():
            if worker.killed:
                continue
            limit = START_TIMEOUT_S if not worker.ready else self._limit(worker)
            if limit is not None and now - worker.since > limit:
                worker.killed = True
                decisions.append(Kill(number, "hung" if worker.ready else "did not start"))
        late = [job for queue in self._queue.values() for job in queue if job.deadline <= now]
        for job in late:
            self.cancel(job)
            decisions.append(Finish(job, "deadline"))
        self._refused = {what: until for what, until in self._refused.items() if until > now}
        return decisions + self._start_workers(now) + self._schedule(now)

    def next_event_at(self) -> float | None:
        """When `tick` will have something to do, if nothing else happens before."""
        times = [
            worker.since + limit
            for worker in self._workers.values()
            if not worker.killed
            and (limit := START_TIMEOUT_S if not worker.ready else self._limit(worker)) is not None
        ]
        times += [job.deadline for queue in self._queue.values() for job in queue]
        if len(self._workers) < self._wanted and not self.stopped:
            times.append(self._start_at)
        return min(times, default=None)

    @staticmethod
    def _limit(worker: _Worker) -> float | None:
        return worker.jobs[0].kill_s if worker.jobs else None

    def _fault(self, job: Job, now: float) -> list[Decision]:
        """A job's worker failed under it: try it once more, or give up."""
        job.deaths += 1
        if job.abandoned:
            return []
        if not job.repeatable:
            return [Finish(job, "unknown")]
        if job.deaths > 1:
            self._refused[job.suspicion] = now + REFUSAL_S
            return [Finish(job, "unavailable")]
        self._requeue(job)
        return []

    def _enqueue(self, job: Job) -> None:
        self._queue.setdefault(job.tenant, deque()).append(job)
        self.waiting += job.items

    def _requeue(self, job: Job) -> None:
        if not job.abandoned:
            self._queue.setdefault(job.tenant, deque()).appendleft(job)
            self.waiting += job.items

    def _left(self, job: Job) -> None:
        self.waiting -= job.items
        if not self._queue[job.tenant]:
            del self._queue[job.tenant]

    def _take_all(self) -> Iterator[Job]:
        for tenant in list(self._queue):
            while tenant in self._queue:
                job = self._queue[tenant].popleft()
                self._left(job)
                yield job

    def _start_workers(self, now: float) -> list[Decision]:
        """Start what is missing; only one until somebody has proven the PIN."""
        decisions: list[Decision] = []
        wanted = self._wanted if self._proven else 1
        if self._start_failures:
            wanted = min(wanted, self.ready + 1)
        while len(self._workers) < wanted and not self.stopped and now >= self._start_at:
            number = self._next_worker
            self._next_worker += 1
            self._workers[number] = _Worker(ready=False, since=now)
            decisions.append(Start(number))
        return decisions

    def _schedule(self, now: float) -> list[Decision]:
        """Hand waiting jobs to workers with room, emptiest first."""
        decisions: list[Decision] = []
        while True:
            free = [
                (len(worker.jobs), number)
                for number, worker in self._workers.items()
                if worker.ready and not worker.killed and self._has_room(worker)
            ]
            if not free:
                return decisions
            load, number = min(free)
            job = self._next_job(is_idle=load == 0)
            if job is None:
                return decisions
            worker = self._workers[number]
            if not worker.jobs:
                worker.since = now
            worker.jobs.append(job)
            decisions.append(Send(number, job))

    @staticmethod
    def _has_room(worker: _Worker) -> bool:
        return len(worker.jobs) < WINDOW and not any(job.deaths for job in worker.jobs)

    def _next_job(self, *, is_idle: bool) -> Job | None:
        """The next job in turn that may be sent now; suspects and changes want an idle worker."""
        is_changing = any(job.exclusive for w in self._workers.values() for job in w.jobs)
        for tenant, queue in self._queue.items():
            job = queue[0]
            if (job.deaths or job.exclusive) and not is_idle:
                continue
            if job.exclusive and is_changing:
                continue
            queue.popleft()
            self._queue.move_to_end(tenant)
            self._left(job)
            return job
        return None
