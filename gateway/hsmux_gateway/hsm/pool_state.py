"""The pool as a state and decisions: which worker does what, who waits, who is told no.

Theory of operation
-------------------
Nothing here does I/O, knows a clock or awaits. An event comes in with the time it happened, the
state changes, and a list of decisions goes out; `pool.py` performs them. So every schedule can be
replayed in a test without an HSM.

    events      submit, cancel, answered, progressed, starting, ready_now, leaving, died, tick, …
    decisions   Start a worker, Send it a message, Kill it, HangUp; Deliver an answer to a job,
                Finish a job without one

Queues. Waiting jobs stand in a queue for each tenant, and the tenants take turns, so one that sends
a million records delays another by one message. A worker has at most `WINDOW` messages: one that it
does and one that is there when it is done; of a fast token up to `WINDOW_MAX`, as long as less than
`AHEAD_S` of work waits in them, because the daemon may be busy for so long. Waiting jobs of one key
and operation share a message, as many as the token does in `SHARE_S`. Jobs that change the token go
one at a time over all workers, and in them the tenants take turns as well. These and suspects want
a worker for themselves: one is left to run dry for them.

Death. The worker publishes which message, and which item of it, is running. When it dies, what was
not begun goes back to the front. The item that ran is tried once more, alone; if its second worker
dies too, while the token did other work in between, that (tenant, key, operation) is refused for
`REFUSAL_S`. A job that may not be repeated ends as unknown.

Hanging. A worker whose message makes no progress for its `kill_s` is killed, and that is a death.
Long before, after `STEAL_S`, what waits behind it is given to others, and it gets nothing new. A
caller's own deadline waits for none of this.

Trying again. A job that the token was too busy for, or did not find the key for, goes back after a
pause with jitter, `TRIES` times, alike for an item of a column. A worker that ends on purpose
(`leaving`) has blamed nobody.

Size. Workers are paced at the start: one until the PIN is proven, then `STARTS_MAX` at a time. A
token that has no session left for another worker shrinks the pool to those that are there; it grows
back by one every `GROW_S`. Workers get a sign of life to do, so that idle sessions stay open, and
make place for a new one when they are old.

Breaker. Failures of the device (deaths, failed starts, workers that left because of it) in a row
open it when no worker is ready; success closes it. While it is open everybody is told Unavailable
at once. Half-open is a worker that starts: it logs in and sings its canary before it is ready.

PIN. Once it was refused no worker starts but one every `REFUSED_PAUSE_S`, which asks the PIN marks
and logs in only if the PIN has changed. Workers that are logged in go on.
"""

import itertools
import random
from collections.abc import Callable, Sequence
from typing import Final

from .decisions import Decision, Deliver, Finish, HangUp, Kill, Outcome, Send, Start
from .job_queue import JobQueue
from .jobs import ITEMS_MAX, Arguments, Job, Message, Request
from .worker_state import START_TIMEOUT_S, STEAL_S, WINDOW, WorkerState

__all__ = [
    "AHEAD_S",
    "BREAKER_FAILURES",
    "GROW_S",
    "QUARANTINE_S",
    "REFUSAL_S",
    "REFUSED_PAUSE_S",
    "RETRY_PAUSE_S",
    "STARTS_MAX",
    "START_TIMEOUT_S",
    "STATUS_AGAIN",
    "STEAL_S",
    "TRIES",
    "WINDOW",
    "PoolState",
]

SHARE_S: Final = 0.002
"""Seconds of work that jobs of several callers may share a message for."""

AHEAD_S: Final = 0.002
"""Seconds of work that may wait for a worker: for so long the event loop does other things."""

ANSWER_S: Final = 0.005
"""Seconds that an answer may take to its caller."""

REFUSAL_S: Final = 60.0
"""Seconds that what killed two workers is refused."""

QUARANTINE_S: Final = 60.0
"""Seconds that a key which did not prove itself is refused before it is tried again."""

TRIES: Final = {"busy": 4, "missing": 3, "failed": 2}
"""How often a job is done that ends like this, until its caller hears of it."""

RETRY_PAUSE_S: Final = 0.02
"""Seconds before a job is tried again; twice as long each time."""

BREAKER_FAILURES: Final = 3
"""Failures of the device in a row that open the breaker."""

STARTS_MAX: Final = 2
"""Workers that start at a time: one logs in while the next one loads its module."""

BACKOFF_MIN_S: Final = 0.05
BACKOFF_MAX_S: Final = 3.0
"""Seconds between starts that fail: a token that is back is in service well within ten."""

GROW_S: Final = 30.0
"""Seconds until a pool that ran out of sessions tries one worker more."""

REFUSED_PAUSE_S: Final = 10.0
"""Seconds between looks whether a refused PIN has changed."""

STATUS_AGAIN: Final = 5
"""A worker's status for an item that was not done by nobody's fault."""


class PoolState:
    """Everything the pool knows.

    Args:
        workers: Workers to keep.
        queue_items_max: Items that may wait.
        keep_alive_s: Seconds after which a worker's sessions are used, whatever else it does.
        age_s: Seconds after which a worker makes place for a new one.
        jitter: Makes numbers between 0 and 1.
    """

    def __init__(
        self,
        workers: int,
        queue_items_max: int,
        *,
        keep_alive_s: float = 10.0,
        age_s: float = 4 * 3600.0,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._wanted = workers
        self._limit = workers
        self._grow_at = 0.0
        self._queue_items_max = queue_items_max
        self._keep_alive_s = keep_alive_s
        self._age_s = age_s
        self._jitter = jitter
        self._numbers = itertools.count(1)
        self._worker_numbers = itertools.count(1)
        self._workers: dict[int, WorkerState] = {}
        self._queue = JobQueue()
        self._lone_was_last = False
        self._refused: dict[tuple[bytes, bytes, str], float] = {}
        self._quarantined: dict[bytes, float] = {}
        self._start_at = 0.0
        self._start_failures = 0
        self._failures = 0
        self._proven = False
        self._succeeded_at = -1.0
        self._item_s = SHARE_S / ITEMS_MAX
        self._is_timed = False
        self.restarts = 0
        self.refused = ""
        self.closed = False

    def __repr__(self) -> str:
        return f"Pool({self.busy} busy, {self.idle} idle, {self.waiting} waiting, {self.breaker})"

    # What is seen from outside

    @property
    def ready(self) -> int:
        """Workers that can do jobs."""
        return sum(
            worker.phase == "ready" and not (worker.leaving or worker.killed)
            for worker in self._workers.values()
        )

    @property
    def starting(self) -> int:
        """Workers on their way."""
        return sum(worker.phase != "ready" for worker in self._workers.values())

    @property
    def busy(self) -> int:
        """Workers that do a job."""
        return sum(bool(worker.messages) for worker in self._workers.values())

    @property
    def idle(self) -> int:
        """Workers that are ready and do nothing."""
        return max(0, self.ready - self.busy)

    @property
    def waiting(self) -> int:
        """Items that wait."""
        return self._queue.waiting

    @property
    def limit(self) -> int:
        """Workers there may be now."""
        return min(self._limit, self._wanted)

    @property
    def quarantined(self) -> int:
        """Keys that did not prove themselves lately."""
        return len(self._quarantined)

    @property
    def breaker(self) -> str:
        """ "closed", "open" or "half-open"; "refused" when the PIN was and nobody is logged in."""
        if self.ready:
            return "closed"
        if self.refused or self.closed:
            return "refused"
        if self._failures < BREAKER_FAILURES:
            return "closed"
        return "half-open" if self._workers else "open"

    # Callers

    def submit(self, job: Job, now: float) -> list[Decision]:
        """A caller wants a job done."""
        job.request.jobs.add(job)
        job.number = next(self._numbers)
        if job.deadline <= now:
            return [self._finish(job, "deadline")]
        if self.breaker != "closed" or self.closed:
            return [self._finish(job, "unavailable")]
        if self._refused.get(job.suspicion, 0.0) > now:
            return [self._finish(job, "refused")]
        if self._quarantined.get(job.key, 0.0) > now:
            return [self._finish(job, "quarantined")]
        if self.waiting + job.count > self._queue_items_max:
            return [self._finish(job, "busy")]
        self._queue.add(job)
        return self._schedule(now)

    def cancel(self, request: Request, now: float) -> list[Decision]:
        """Nobody waits for a request any more; what runs goes on, unseen."""
        request.abandoned = True
        if not request.jobs:
            return []
        for job in list(request.jobs):
            if job.place in ("waiting", "delayed"):
                self._queue.remove(job)
                job.place = "done"
                request.jobs.discard(job)
        return self._schedule(now)

    def broadcast(self, make: Callable[[], Job], now: float) -> list[Decision]:
        """Send a job of its own to every worker that is logged in, before anything else it gets."""
        decisions: list[Decision] = []
        for number, worker in self._workers.items():
            if worker.phase == "ready" and not worker.killed:
                job = make()
                job.request.jobs.add(job)
                decisions.append(self._send(number, Message([job], is_control=True), now))
        return decisions

    # Workers: work

    def expects(self, worker: int, number: int) -> bool:
        """Whether the next answer of this worker is to that message."""
        messages = self._workers[worker].messages
        return bool(messages) and messages[0].number == number

    def running(self, worker: int) -> Message:
        """What this worker does."""
        return self._workers[worker].messages[0]

    def answered(
        self, worker: int, kind: str, now: float, statuses: Sequence[int] = ()
    ) -> list[Decision]:
        """A worker answered its running message.

        Args:
            worker: Its number.
            kind: "done" or how it failed.
            now: The time.
            statuses: Of the items, if it was a column that is done.
        """
        state = self._workers[worker]
        message = state.messages.popleft()
        if statuses and message.jobs:
            off_s = (now - state.begun_at) / message.count - self._item_s
            self._item_s += off_s / 2 if off_s > 0 else off_s / 8
            self._is_timed = True
        state.since = state.begun_at = now
        state.item, state.is_slow = 0, False
        if kind in ("done", "caller", "input") and not state.leaving:
            self._failures = 0
            self._succeeded_at = now
        elif kind == "quarantine" and message.jobs:
            self._quarantined[message.jobs[0].key] = now + QUARANTINE_S
        decisions: list[Decision] = []
        start = 0
        for job in message.jobs:
            stop = start + job.count
            if message.is_control:
                decisions.append(self._deliver(job, start))
            else:
                decisions += self._answer(job, kind, now, statuses[start:stop], start)
            start = stop
        return decisions + self._retire(worker) + self._schedule(now)

    def _answer(
        self, job: Job, kind: str, now: float, statuses: Sequence[int], start: int
    ) -> list[Decision]:
        if kind == "sessions":
            self._queue.put_back(job)
            return []
        if kind in TRIES and not job.request.abandoned:
            return [] if self._again(job, kind, now) else [self._deliver(job, start)]
        again = [index for index, status in enumerate(statuses) if status == STATUS_AGAIN]
        if not again or job.request.abandoned:
            return [self._deliver(job, start)]
        decisions: list[Decision] = []
        if len(again) < job.count:
            part = self._part(job, again)
            decisions.append(self._deliver(job, start))
            job = part
        return (
            decisions if self._again(job, "busy", now) else [*decisions, self._finish(job, "busy")]
        )

    def _again(self, job: Job, kind: str, now: float) -> bool:
        """Put a job back for another try after a pause, unless it had enough."""
        job.tries += 1
        if job.tries >= TRIES[kind]:
            return False
        pause_s = RETRY_PAUSE_S * 2 ** (job.tries - 1) * (0.5 + self._jitter())
        self._queue.delay(job, now + pause_s)
        return True

    def progressed(self, worker: int, number: int, item: int, now: float) -> None:
        """What a worker has published: the message it does, and the item of it, from 1."""
        state = self._workers[worker]
        if state.messages and state.messages[0].number == number and item != state.item:
            state.item, state.since = item, now

    # Workers: life

    def begin(self, now: float) -> list[Decision]:
        """Start the first worker; the others follow when it has proven the PIN."""
        return self._start_workers(now)

    def limit_workers(self, workers: int) -> None:
        """The token has sessions for so many workers only."""
        self._wanted = max(1, min(self._wanted, workers))

    def starting_now(self, worker: int, now: float) -> None:
        """It is a worker's turn to load the module, or to log in."""
        state = self._workers[worker]
        state.phase, state.since = "starting", now

    def ready_now(self, worker: int, now: float) -> list[Decision]:
        """A worker has logged in and its canary sang."""
        state = self._workers[worker]
        state.phase = "ready"
        state.since = state.ready_at = state.kept_at = self._succeeded_at = now
        self._proven, self.refused = True, ""
        self._start_failures = self._failures = 0
        self._start_at = now
        return self._start_workers(now) + self._schedule(now)

    def no_session(self, worker: int, now: float) -> None:
        """The token has no session left for this worker, which ends."""
        self._leaves(worker, now)
        others = sum(not other.leaving for other in self._workers.values())
        self._limit = max(1, others)
        self._grow_at = now + GROW_S
        if others == 0:
            self._back_off(now)

    def leaving(self, worker: int, kind: str, now: float) -> None:
        """A worker ends on purpose, because of the device or of its sessions."""
        if kind == "sessions":
            self.no_session(worker, now)
            return
        self._leaves(worker, now)
        if kind != "single":
            self._failures += 1

    def refuse(self, worker: int, reason: str, now: float) -> list[Decision]:
        """The PIN was refused: nobody logs in until it has changed."""
        self._leaves(worker, now)
        self.refused = reason
        self._start_at = now + REFUSED_PAUSE_S
        if self.ready:
            return []
        return [self._finish(job, "unavailable") for job in self._queue.take_all()]

    def _leaves(self, worker: int, now: float) -> None:
        state = self._workers[worker]
        state.leaving, state.since = True, now

    def close(self) -> list[Decision]:
        """The end: nobody starts or waits any more."""
        self.closed = True
        return [self._finish(job, "unavailable") for job in self._queue.take_all()]

    def died(self, worker: int, now: float, running: int = 0, item: int = 0) -> list[Decision]:
        """A worker's process is gone, whatever the reason.

        Args:
            worker: Its number.
            now: The time.
            running: The message it had published as running, or 0.
            item: The item of it, from 1; 0 before the first.
        """
        state = self._workers.pop(worker)
        if state.phase == "ready":
            self.restarts += not state.retiring
            self._failures += not (state.leaving or state.retiring)
        elif not state.leaving:
            self._failures += 1
            self._back_off(now)
        decisions: list[Decision] = []
        for message in reversed(state.messages):
            is_running = message.number == running and not (state.leaving and message.is_repeatable)
            decisions += self._lost(message, item if is_running else -1, now)
        if self.breaker != "closed":
            decisions += [self._finish(job, "unavailable") for job in self._queue.take_all()]
        return decisions + self._start_workers(now) + self._schedule(now)

    def _back_off(self, now: float) -> None:
        self._start_failures += 1
        pause_s = min(BACKOFF_MIN_S * 2 ** min(self._start_failures, 16), BACKOFF_MAX_S)
        self._start_at = max(self._start_at, now + pause_s * (0.5 + self._jitter() / 2))

    def _lost(self, message: Message, item: int, now: float) -> list[Decision]:
        """A message of a dead worker: `item` -1 not begun, 0 before its first, n its nth item."""
        if message.is_control:
            return [self._finish(job, "done") for job in message.jobs]
        suspects: list[Job] = []
        others = list(message.jobs)
        if item == 0:
            suspects, others = others, []
        elif item > 0 and message.jobs:
            job, index = message.locate(item - 1)
            place = others.index(job)
            if job.count == 1:
                suspects = [others.pop(place)]
            else:
                suspects = [self._part(job, [index])]
                rest = [number for number in range(job.count) if number != index]
                others[place] = self._part(job, rest)
                job.request.jobs.discard(job)
                job.place = "done"
        for job in reversed(others):
            self._queue.put_back(job)
        return [decision for job in suspects for decision in self._suspect(job, now)]

    def _suspect(self, job: Job, now: float) -> list[Decision]:
        """A worker died while it did this job: try it once more, alone, or give up."""
        job.deaths += 1
        if not job.repeatable:
            return [self._finish(job, "unknown")]
        if job.request.abandoned:
            return [self._finish(job, "done")]
        if job.deaths == 1:
            job.died_at = now
            self._queue.put_back(job)
            return []
        if self._succeeded_at > job.died_at:
            self._refused[job.suspicion] = now + REFUSAL_S
        return [self._finish(job, "failed")]

    # Time

    def tick(self, now: float) -> list[Decision]:
        """Time passed: kill limits, pauses, signs of life, starts that were put off."""
        decisions: list[Decision] = []
        for number, worker in self._workers.items():
            limit_at = worker.limit_at()
            if limit_at is not None and now >= limit_at:
                worker.killed = True
                decisions.append(Kill(number, worker.why_killed))
            if worker.is_stuck(now):
                worker.is_slow = True
                self._steal(worker)
            if worker.is_usable and now >= worker.kept_at + self._keep_alive_s:
                worker.kept_at = now
                decisions.append(self._send(number, self._sign_of_life(now), now))
        self._queue.wake(now)
        if self._limit < self._wanted and now >= self._grow_at:
            self._limit, self._grow_at = self._limit + 1, now + GROW_S
        self._refused = {what: until for what, until in self._refused.items() if until > now}
        self._quarantined = {key: until for key, until in self._quarantined.items() if until > now}
        decisions += self._retire_oldest(now)
        return decisions + self._start_workers(now) + self._schedule(now)

    def silence(self, request: Request) -> list[Decision]:
        """Kill every worker that still owes an answer to a request."""
        decisions: list[Decision] = []
        for number, worker in self._workers.items():
            owes = any(job in request.jobs for message in worker.messages for job in message.jobs)
            if owes and not worker.killed:
                worker.killed = True
                decisions.append(Kill(number, "silent"))
        return decisions

    def next_event_at(self) -> float | None:
        """When `tick` will have something to do, if nothing else happens before."""
        times = [limit for w in self._workers.values() if (limit := w.limit_at()) is not None]
        for worker in self._workers.values():
            if worker.is_usable:
                times.append(worker.kept_at + self._keep_alive_s)
                if self._may_retire():
                    times.append(worker.ready_at + self._age_s)
                if worker.messages and not worker.is_slow:
                    times.append(worker.since + STEAL_S)
        wake_at = self._queue.next_wake_at()
        if wake_at is not None:
            times.append(wake_at)
        if self._limit < self._wanted:
            times.append(self._grow_at)
        if self._missing() > 0 and not self.closed:
            times.append(self._start_at)
        return min(times, default=None)

    def _steal(self, worker: WorkerState) -> None:
        """Give what waits behind a stuck message to others; its answers will be nobody's."""
        for message in list(worker.messages)[:0:-1]:
            if message.is_control or not message.is_repeatable:
                continue
            for job in reversed(message.jobs):
                self._queue.put_back(job)
            message.jobs = []

    def _sign_of_life(self, now: float) -> Message:
        request = Request()
        job = Job(request, b"", b"", "keep_alive", Arguments([]), now + 60.0, 5.0)
        request.jobs.add(job)
        return Message([job], is_control=True)

    def _retire_oldest(self, now: float) -> list[Decision]:
        """Let one worker that is too old run dry, while the others are all there."""
        old = [
            (worker.ready_at, number)
            for number, worker in self._workers.items()
            if worker.is_usable and now >= worker.ready_at + self._age_s
        ]
        if not old or not self._may_retire():
            return []
        number = min(old)[1]
        self._workers[number].retiring = True
        return self._retire(number)

    def _may_retire(self) -> bool:
        workers = self._workers.values()
        is_whole = all(w.phase == "ready" and not w.retiring for w in workers)
        return is_whole and not self.refused and len(workers) >= self.limit

    def _retire(self, worker: int) -> list[Decision]:
        state = self._workers[worker]
        return [HangUp(worker)] if state.retiring and not state.messages else []

    # Jobs

    def _finish(self, job: Job, outcome: Outcome) -> Finish:
        job.place = "done"
        job.request.jobs.discard(job)
        return Finish(job, outcome)

    def _deliver(self, job: Job, start: int) -> Deliver:
        job.place = "done"
        job.request.jobs.discard(job)
        return Deliver(job, start, start + job.count)

    def _part(self, job: Job, indexes: Sequence[int]) -> Job:
        part = job.part(indexes)
        part.number = next(self._numbers)
        return part

    def _missing(self) -> int:
        """Workers to start, were it time."""
        wanted = self.limit if self._proven and not self.refused else 1
        if self.refused and self.ready:
            wanted = self.ready + 1 if self.ready < self.limit else 0
        if self._start_failures:
            wanted = min(wanted, self.ready + 1)
        return min(wanted - len(self._workers), STARTS_MAX - self.starting)

    def _start_workers(self, now: float) -> list[Decision]:
        """Start what is missing; only one until somebody has proven the PIN."""
        decisions: list[Decision] = []
        while not self.closed and now >= self._start_at and self._missing() > 0:
            number = next(self._worker_numbers)
            self._workers[number] = WorkerState("waiting", now)
            decisions.append(Start(number))
        return decisions

    # Scheduling

    def _schedule(self, now: float) -> list[Decision]:
        """Hand waiting jobs to workers with room, emptiest first."""
        decisions: list[Decision] = []
        # Until something was done nobody knows how fast the token is.
        ahead = int(AHEAD_S / max(self._item_s, 1e-9)) if self._is_timed else 0
        while self._queue.has_any:
            free = {number: w for number, w in self._workers.items() if w.has_room(ahead)}
            if not free:
                break
            number = min(free, key=lambda number: (len(free[number].messages), number))
            lone = self._queue.next_lone(is_changing=self._is_changing())
            is_turn = lone is not None and not (self._lone_was_last and self._queue.has_shared)
            if lone is not None and is_turn:
                if not free[number].messages:
                    self._queue.take_lone(lone)
                    self._lone_was_last = True
                    decisions += self._dispatch(number, [lone], now)
                    continue
                # The emptiest worker runs dry for it; the others go on.
                del free[number]
                if not free:
                    break
                number = min(free, key=lambda number: (len(free[number].messages), number))
            jobs = self._queue.take_shared(self._room())
            if not jobs:
                break
            self._lone_was_last = False
            decisions += self._dispatch(number, jobs, now)
        return decisions

    def _is_changing(self) -> bool:
        return any(
            job.exclusive
            for worker in self._workers.values()
            for message in worker.messages
            for job in message.jobs
        )

    def _room(self) -> int:
        """Items a message may have: what the token does in `SHARE_S`, and a fair share at most."""
        ready = max(1, sum(worker.is_usable for worker in self._workers.values()))
        return min(int(SHARE_S / max(self._item_s, 1e-9)), -(-self.waiting // ready))

    def _dispatch(self, number: int, jobs: list[Job], now: float) -> list[Decision]:
        """Send jobs in one message, but for those whose time has run out."""
        late = [job for job in jobs if job.deadline <= now]
        decisions: list[Decision] = [self._finish(job, "deadline") for job in late]
        due = [job for job in jobs if job.deadline > now]
        if due:
            decisions.append(self._send(number, Message(due), now))
        return decisions

    def _send(self, number: int, message: Message, now: float) -> Send:
        worker = self._workers[number]
        message.number = next(self._numbers)
        patience_s = min(job.deadline for job in message.jobs) - now
        message.margin_s = min(patience_s / 4, ANSWER_S + 2 * self._item_s)
        for job in message.jobs:
            job.place = "running"
        if not worker.messages:
            worker.since = worker.begun_at = now
            worker.item = 0
        worker.messages.append(message)
        return Send(number, message)
