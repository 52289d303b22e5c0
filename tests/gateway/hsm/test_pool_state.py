"""The pool's decisions, without any HSM: every event sequence keeps the rules."""

import itertools

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from hsmux_gateway.hsm.pool_state import (
    BREAKER_FAILURES,
    REFUSAL_S,
    START_TIMEOUT_S,
    WINDOW,
    Decision,
    Finish,
    Job,
    Kill,
    PoolState,
    Send,
    Start,
)

_numbers = itertools.count(1)


def make_job(tenant: bytes = b"a", **changes: object) -> Job:
    """A job with a deadline far away."""
    job = Job(next(_numbers), tenant, b"key", "encrypt", [], 1, 1000.0, 5.0)
    for name, value in changes.items():
        setattr(job, name, value)
    return job


def ready_pool(workers: int = 2, queue_items_max: int = 1000) -> PoolState:
    """A pool whose workers are all ready at time 0."""
    pool = PoolState(workers, queue_items_max)
    decisions = pool.begin(0.0)
    while starts := [d for d in decisions if isinstance(d, Start)]:
        decisions = []
        for start in starts:
            decisions += pool.ready_now(start.worker, 0.0)
    return pool


def sent(decisions: list[Decision]) -> list[Job]:
    """The jobs that were sent."""
    return [d.job for d in decisions if isinstance(d, Send)]


def test_one_worker_proves_the_pin_before_the_others_start() -> None:
    pool = PoolState(4, 10)
    assert pool.begin(0.0) == [Start(1)]
    assert pool.tick(1.0) == []
    assert pool.ready_now(1, 2.0) == [Start(2), Start(3), Start(4)]


def test_jobs_go_to_the_emptiest_worker_and_no_further_than_the_window() -> None:
    pool = ready_pool()
    where = [
        decision.worker
        for _ in range(2 * WINDOW + 3)
        for decision in pool.submit(make_job(), 0.0)
        if isinstance(decision, Send)
    ]
    assert sorted(where[:2]) == [1, 2]
    assert len(where) == 2 * WINDOW
    assert pool.waiting == 3


def test_tenants_take_turns() -> None:
    pool = ready_pool(workers=1)
    flood = [make_job(b"flood") for _ in range(50)]
    for job in flood:
        pool.submit(job, 0.0)
    polite = make_job(b"polite")
    pool.submit(polite, 0.0)
    order: list[Job] = []
    while not order or order[-1] is not polite:
        _, decisions = pool.answered(1, "done", 0.0)
        order += sent(decisions)
        assert len(order) <= 2


def test_a_full_queue_is_busy_and_a_past_deadline_late() -> None:
    pool = ready_pool(workers=1, queue_items_max=1)
    for _ in range(WINDOW + 1):
        pool.submit(make_job(), 0.0)
    job = make_job()
    assert pool.submit(job, 0.0) == [Finish(job, "busy")]
    late = make_job(deadline=1.0)
    assert pool.submit(late, 1.0) == [Finish(late, "deadline")]


def test_a_waiting_job_ends_at_its_deadline() -> None:
    pool = ready_pool(workers=1)
    for _ in range(WINDOW):
        pool.submit(make_job(kill_s=100.0), 0.0)
    job = make_job(deadline=3.0)
    pool.submit(job, 0.0)
    assert pool.next_event_at() == 3.0
    assert pool.tick(3.0) == [Finish(job, "deadline")]
    assert pool.waiting == 0


def test_a_hanging_worker_is_killed_once_and_its_jobs_go_on() -> None:
    pool = ready_pool(workers=1)
    jobs = [make_job() for _ in range(2)]
    for job in jobs:
        pool.submit(job, 0.0)
    assert pool.tick(5.0) == []
    assert pool.tick(5.1) == [Kill(1, "hung")]
    assert pool.tick(6.0) == []
    assert pool.died(1, 6.0) == [Start(2)]
    assert sent(pool.ready_now(2, 7.0)) == [jobs[0]]
    _, decisions = pool.answered(2, "done", 7.0)
    assert sent(decisions) == [jobs[1]]


def test_a_worker_that_does_not_start_is_killed_late_because_of_c_login() -> None:
    pool = PoolState(1, 10)
    pool.begin(0.0)
    assert pool.tick(START_TIMEOUT_S) == []
    assert pool.tick(START_TIMEOUT_S + 0.1) == [Kill(1, "did not start")]


def test_what_killed_two_workers_is_refused_for_a_minute() -> None:
    pool = ready_pool(workers=2)
    job = make_job()
    pool.submit(job, 0.0)
    assert sent(pool.died(1, 1.0)) == [job]
    decisions = pool.died(2, 2.0)
    assert Finish(job, "unavailable") in decisions
    for number in (3, 4):
        pool.ready_now(number, 3.0)
    again = make_job()
    assert pool.submit(again, 4.0) == [Finish(again, "refused")]
    other = make_job(operation="decrypt")
    assert sent(pool.submit(other, 4.0)) == [other]
    late = make_job()
    assert sent(pool.submit(late, 2.1 + REFUSAL_S)) == [late]


def test_a_suspect_is_tried_again_alone() -> None:
    pool = ready_pool(workers=2)
    suspect = make_job()
    pool.submit(suspect, 0.0)
    busy = make_job()
    pool.submit(busy, 0.0)
    assert sent(pool.died(1, 1.0)) == []
    _, decisions = pool.answered(2, "done", 1.0)
    assert sent(decisions) == [suspect]
    assert sent(pool.submit(make_job(), 1.0)) == []


def test_a_change_in_flight_ends_as_unknown() -> None:
    pool = ready_pool()
    job = make_job(repeatable=False, exclusive=True)
    pool.submit(job, 0.0)
    assert Finish(job, "unknown") in pool.died(1, 1.0)


def test_changes_go_one_at_a_time() -> None:
    pool = ready_pool(workers=3)
    changes = [make_job(repeatable=False, exclusive=True) for _ in range(3)]
    assert [len(sent(pool.submit(job, 0.0))) for job in changes] == [1, 0, 0]
    _, decisions = pool.answered(1, "done", 0.0)
    assert sent(decisions) == [changes[1]]


def test_device_failures_open_the_breaker_and_a_ready_worker_closes_it() -> None:
    pool = PoolState(1, 100)
    pool.begin(0.0)
    now, number = 0.0, 1
    for _ in range(BREAKER_FAILURES):
        decisions = pool.died(number, now)
        while not (starts := [d for d in decisions if isinstance(d, Start)]):
            next_at = pool.next_event_at()
            assert next_at is not None and next_at > now
            now = next_at
            decisions = pool.tick(now)
        number = starts[0].worker
    assert pool.breaker == "half-open"
    job = make_job()
    assert pool.submit(job, now) == [Finish(job, "unavailable")]
    pool.ready_now(number, now)
    assert pool.breaker == "closed"
    assert sent(pool.submit(make_job(), now))


def test_a_refused_pin_starts_nobody_again() -> None:
    pool = PoolState(2, 10)
    pool.begin(0.0)
    pool.stop("PIN")
    assert pool.died(1, 0.0) == []
    assert pool.next_event_at() is None
    job = make_job()
    assert pool.submit(job, 1.0) == [Finish(job, "unavailable")]


class Machine(RuleBasedStateMachine):
    """Any order of events: no job is lost, done twice at a time, or sent to a dead worker."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.pool = PoolState(3, 40)
        self.starting: list[int] = []
        self.flying: dict[int, list[Job]] = {}
        self.open: set[int] = set()
        self.waiting: dict[int, Job] = {}
        self.take(self.pool.begin(self.now))

    def take(self, decisions: list[Decision]) -> None:
        for decision in decisions:
            if isinstance(decision, Start):
                self.starting.append(decision.worker)
            elif isinstance(decision, Send):
                assert decision.worker in self.flying, "sent to a worker that is not ready"
                self.flying[decision.worker].append(decision.job)
                assert len(self.flying[decision.worker]) <= WINDOW
            elif isinstance(decision, Finish):
                assert decision.job.number in self.open, "finished twice"
                self.open.discard(decision.job.number)

    @rule(
        tenant=st.sampled_from([b"a", b"b", b"c"]),
        repeatable=st.booleans(),
        patience=st.floats(0.1, 20),
    )
    def submit(self, tenant: bytes, repeatable: bool, patience: float) -> None:
        job = make_job(
            tenant,
            repeatable=repeatable,
            exclusive=not repeatable,
            key=bytes([next(_numbers) % 256]),
            deadline=self.now + patience,
        )
        self.open.add(job.number)
        self.waiting[job.number] = job
        self.take(self.pool.submit(job, self.now))

    @precondition(lambda self: self.starting)
    @rule(fails=st.booleans())
    def start(self, fails: bool) -> None:
        number = self.starting.pop(0)
        if fails:
            self.take(self.pool.died(number, self.now))
        else:
            self.flying[number] = []
            self.take(self.pool.ready_now(number, self.now))

    @precondition(lambda self: any(self.flying.values()))
    @rule(data=st.data(), kind=st.sampled_from(["done", "done", "done", "caller", "session"]))
    def answer(self, data: st.DataObject, kind: str) -> None:
        number = data.draw(st.sampled_from([n for n, jobs in self.flying.items() if jobs]))
        expected = self.flying[number].pop(0)
        job, decisions = self.pool.answered(number, kind, self.now)
        assert job is expected
        if not any(isinstance(d, Finish) and d.job is job for d in decisions):
            if not self.pool.is_pending(job):
                assert job.number in self.open or job.abandoned
                self.open.discard(job.number)
        self.take(decisions)

    @precondition(lambda self: self.flying)
    @rule(data=st.data())
    def die(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.flying)))
        del self.flying[number]
        self.take(self.pool.died(number, self.now))

    @rule(seconds=st.floats(0.01, 10))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.take(self.pool.tick(self.now))

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.open)))
        self.pool.cancel(self.waiting[number])
        self.open.discard(number)

    @invariant()
    def every_open_job_is_somewhere(self) -> None:
        for number in self.open:
            assert self.pool.is_pending(self.waiting[number]), "a job was lost"

    @invariant()
    def counts_agree(self) -> None:
        flying = {id(job) for jobs in self.flying.values() for job in jobs}
        queued = [
            job
            for job in self.waiting.values()
            if self.pool.is_pending(job) and id(job) not in flying
        ]
        assert self.pool.waiting == len(queued)
        assert sum(job.exclusive for jobs in self.flying.values() for job in jobs) <= 1


def test_any_order_of_events() -> None:
    run_state_machine_as_test(
        Machine, settings=settings(max_examples=60, stateful_step_count=40, deadline=None)
    )


@pytest.mark.long
def test_any_order_of_events_for_longer() -> None:
    run_state_machine_as_test(
        Machine, settings=settings(max_examples=3000, stateful_step_count=80, deadline=None)
    )
