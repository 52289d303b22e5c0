"""The pool's decisions, without any HSM: what each event leads to.

`test_pool_machine.py` puts events in any order; here each rule has its example.
"""

import pytest

from hsmux_gateway.hsm.decisions import Decision, Deliver, Finish, HangUp, Kill, Send, Start
from hsmux_gateway.hsm.jobs import (
    ITEMS_MAX,
    MESSAGE_ITEMS_SIZE_MAX,
    Arguments,
    Column,
    Job,
    Message,
    Request,
)
from hsmux_gateway.hsm.pool_state import (
    AHEAD_S,
    BREAKER_FAILURES,
    GROW_S,
    QUARANTINE_S,
    REFUSAL_S,
    REFUSED_PAUSE_S,
    START_TIMEOUT_S,
    STARTS_MAX,
    STATUS_AGAIN,
    STEAL_S,
    TRIES,
    WINDOW,
    PoolState,
)
from hsmux_gateway.hsm.worker_state import WINDOW_MAX
from hsmux_protocol.columns import pack_column

KILL_S = 5.0


def make_job(tenant: bytes = b"a", *, request: Request | None = None, **changes: object) -> Job:
    """A job that is no column, with a deadline far away."""
    made = Job(request or Request(), tenant, b"key", "sign", Arguments([]), 1000.0, KILL_S)
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def make_column(count: int, tenant: bytes = b"a", key: bytes = b"key") -> Job:
    """A job of many items."""
    items = pack_column([b"%d" % number for number in range(count)])
    column = Column((b"id", "AES_256", b"proof"), items, pack_column([b"aad"]), range(count))
    return make_job(tenant, payload=column, operation="encrypt", key=key)


def make_pool(workers: int = 2, queue_items_max: int = 1000, **changes: float) -> PoolState:
    """A pool whose workers are all ready at time 0."""
    limits = {"keep_alive_s": 1e6, "age_s": 1e6, **changes}
    pool = PoolState(workers, queue_items_max, jitter=lambda: 0.5, **limits)
    get_ready(pool, pool.begin(0.0), 0.0)
    return pool


def get_ready(pool: PoolState, decisions: list[Decision], now: float) -> list[Decision]:
    """Let every worker that is started become ready; what else was decided."""
    others: list[Decision] = []
    while decisions:
        starts = [d for d in decisions if isinstance(d, Start)]
        others += [d for d in decisions if not isinstance(d, Start)]
        decisions = [d for start in starts for d in pool.ready_now(start.worker, now)]
    return others


def sends(decisions: list[Decision]) -> list[tuple[int, Message]]:
    """What was sent to whom."""
    return [(d.worker, d.message) for d in decisions if isinstance(d, Send)]


def sent(decisions: list[Decision]) -> list[Job]:
    """The jobs that were sent."""
    return [job for _, message in sends(decisions) for job in message.jobs]


def finished(decisions: list[Decision]) -> list[tuple[Job, str]]:
    """The jobs that ended without an answer."""
    return [(d.job, d.outcome) for d in decisions if isinstance(d, Finish)]


def delivered(decisions: list[Decision]) -> list[Job]:
    """The jobs that an answer was for."""
    return [d.job for d in decisions if isinstance(d, Deliver)]


# ---- Starting


def test_one_worker_proves_the_pin_before_the_others_start_at_a_pace() -> None:
    pool = PoolState(4, 10)
    assert pool.begin(0.0) == [Start(1)]
    assert pool.tick(1.0) == []
    assert pool.ready_now(1, 2.0) == [Start(2), Start(3)]
    assert STARTS_MAX == 2
    assert pool.ready_now(2, 2.0) == [Start(4)]


def test_a_worker_that_does_not_start_is_killed_late_because_of_c_login() -> None:
    pool = PoolState(1, 10)
    pool.begin(0.0)
    pool.starting_now(1, 20.0)
    assert pool.tick(20.0 + START_TIMEOUT_S - 0.1) == []
    assert pool.next_event_at() == 20.0 + START_TIMEOUT_S
    assert pool.tick(20.0 + START_TIMEOUT_S) == [Kill(1, "did not start")]


def test_starts_that_fail_are_put_off_longer_and_longer() -> None:
    pool = PoolState(3, 10, jitter=lambda: 1.0)
    decisions, now, pauses = pool.begin(0.0), 0.0, []
    for _ in range(10):
        (start,) = decisions
        assert isinstance(start, Start)
        assert pool.died(start.worker, now) == []
        next_at = pool.next_event_at()
        assert next_at is not None
        pauses.append(next_at - now)
        now = next_at
        decisions = pool.tick(now)
    assert pauses == sorted(pauses)
    assert pauses[0] < 0.2 and pauses[-2:] == pytest.approx([3.0, 3.0])


def test_after_a_start_that_failed_one_worker_starts_at_a_time() -> None:
    pool = make_pool(workers=3)
    decisions = [d for number in (1, 2, 3) for d in pool.died(number, 1.0)]
    assert decisions == [Start(4), Start(5)]
    assert [d for number in (4, 5) for d in pool.died(number, 1.0)] == []
    assert pool.tick(10.0) == [Start(6)]
    assert pool.ready_now(6, 11.0) == [Start(7), Start(8)]


def test_the_only_worker_without_a_session_is_not_started_again_at_once() -> None:
    pool = PoolState(2, 10)
    pool.begin(0.0)
    pool.no_session(1, 1.0)
    assert pool.died(1, 1.0) == []
    next_at = pool.next_event_at()
    assert next_at is not None and next_at > 1.0
    assert pool.tick(next_at) == [Start(2)]


def test_a_start_that_fails_does_not_shorten_the_pause_after_a_refused_pin() -> None:
    pool = PoolState(3, 10, keep_alive_s=1e6)
    pool.begin(0.0)
    assert pool.ready_now(1, 0.0) == [Start(2), Start(3)]
    pool.refuse(2, "PIN", 0.0)
    assert pool.died(3, 0.0) == pool.died(2, 0.0) == []
    assert pool.tick(REFUSED_PAUSE_S - 0.1) == []
    assert pool.tick(REFUSED_PAUSE_S) == [Start(4)]


def test_a_refused_pin_starts_nobody_until_a_look_whether_it_has_changed() -> None:
    pool = PoolState(2, 10)
    pool.begin(0.0)
    waiting = make_job()
    pool.submit(waiting, 0.0)
    assert finished(pool.refuse(1, "PIN", 0.0)) == [(waiting, "unavailable")]
    assert pool.died(1, 0.0) == []
    assert pool.breaker == "refused"
    job = make_job()
    assert finished(pool.submit(job, 1.0)) == [(job, "unavailable")]
    assert pool.tick(REFUSED_PAUSE_S - 0.1) == []
    assert pool.next_event_at() == REFUSED_PAUSE_S
    assert pool.tick(REFUSED_PAUSE_S) == [Start(2)]
    pool.ready_now(2, 11.0)
    assert pool.breaker == "closed"


def test_workers_that_are_logged_in_go_on_when_the_pin_is_refused() -> None:
    pool = make_pool(2)
    assert pool.died(1, 0.0) == [Start(3)]
    pool.refuse(3, "PIN", 1.0)
    assert pool.died(3, 1.0) == []
    assert sent(pool.submit(job := make_job(), 2.0)) == [job]
    pool.answered(2, "done", 2.0)
    assert pool.tick(1.0 + REFUSED_PAUSE_S) == [Start(4)]


# ---- Queues


def test_jobs_go_to_the_emptiest_worker_and_no_further_than_the_window() -> None:
    pool = make_pool()
    where = [
        worker for _ in range(2 * WINDOW + 3) for worker, _ in sends(pool.submit(make_job(), 0.0))
    ]
    assert sorted(where[:2]) == [1, 2]
    assert len(where) == 2 * WINDOW
    assert pool.waiting == 3


def test_tenants_take_turns() -> None:
    pool = make_pool(workers=1)
    for _ in range(50):
        pool.submit(make_job(b"flood"), 0.0)
    polite = make_job(b"polite")
    pool.submit(polite, 0.0)
    order: list[Job] = []
    while polite not in order:
        order += sent(pool.answered(1, "done", 0.0))
        assert len(order) <= 2


def test_a_full_queue_is_busy_and_a_past_deadline_late() -> None:
    pool = make_pool(workers=1, queue_items_max=1)
    for _ in range(WINDOW + 1):
        pool.submit(make_job(), 0.0)
    job = make_job()
    assert finished(pool.submit(job, 0.0)) == [(job, "busy")]
    late = make_job(deadline=1.0)
    assert finished(pool.submit(late, 1.0)) == [(late, "deadline")]


def test_a_job_whose_time_has_run_out_is_not_begun() -> None:
    pool = make_pool(workers=1)
    for _ in range(WINDOW):
        pool.submit(make_job(), 0.0)
    late, good = make_job(deadline=3.0), make_job(b"b")
    pool.submit(late, 0.0)
    pool.submit(good, 0.0)
    decisions = pool.answered(1, "done", 3.0)
    assert finished(decisions) == [(late, "deadline")] and sent(decisions) == [good]
    assert pool.waiting == 0 and not late.request.jobs


def test_nobody_does_what_nobody_waits_for() -> None:
    pool = make_pool(workers=1)
    for _ in range(WINDOW):
        pool.submit(make_job(), 0.0)
    waiting = make_job()
    pool.submit(waiting, 0.0)
    assert pool.cancel(waiting.request, 0.0) == []
    assert pool.waiting == 0 and not waiting.request.jobs
    assert sent(pool.answered(1, "done", 0.0)) == []


def test_jobs_of_one_key_share_a_message_when_there_is_work_for_everybody() -> None:
    pool = make_pool(workers=1)
    pool.submit(make_column(1), 0.0)
    pool.submit(make_column(1), 0.0)
    alike = [make_column(2, tenant) for tenant in (b"a", b"b", b"c")]
    other = make_column(1, b"d", key=b"other key")
    for job in (*alike, other):
        pool.submit(job, 0.0)
    (_, message), (_, second) = sends(pool.answered(1, "done", 1e-4, bytes(1)))
    assert message.jobs == alike and message.count == 6
    number, *rest = message.arguments()
    assert number == int(1000e9)
    assert rest[3:] == [
        pack_column([b"0", b"1"] * 3),
        pack_column([b"aad"]),
        [int((1000.0 - message.margin_s) * 1e9)] * 6,
    ]
    assert second.jobs == [other]


def test_a_shared_message_takes_no_longer_than_a_caller_may_be_held_up() -> None:
    pool = make_pool(workers=1)
    now = 0.0
    for _ in range(50):
        pool.submit(make_column(1), now)
        now += 0.01  # a slow token: 10 ms an item
        pool.answered(1, "done", now, bytes(1))
    for _ in range(WINDOW + 5):
        pool.submit(make_column(1), now)
    assert len(sent(pool.answered(1, "done", now, bytes(1)))) == 1


def test_no_message_has_too_many_items() -> None:
    pool = make_pool(workers=1)
    for _ in range(WINDOW):
        pool.submit(make_column(1), 0.0)
    for _ in range(10):
        pool.submit(make_column(ITEMS_MAX // 2), 0.0)
    sent = [message.count for _, message in sends(pool.answered(1, "done", 1e-5, bytes(1)))]
    assert sent and set(sent) == {ITEMS_MAX}


@pytest.mark.parametrize(
    ("item_s", "messages"), [(AHEAD_S / ITEMS_MAX / 3, WINDOW_MAX), (AHEAD_S / ITEMS_MAX, WINDOW)]
)
def test_a_worker_is_sent_more_where_little_of_it_waits(item_s: float, messages: int) -> None:
    pool, now, numbers = make_pool(workers=1, queue_items_max=10_000), 0.0, list[int]()
    for _ in range(60):
        decisions = pool.submit(make_column(ITEMS_MAX), now)
        numbers += [message.number for _, message in sends(decisions)]
    for _ in range(40):
        assert len(numbers) <= WINDOW_MAX
        now += ITEMS_MAX * item_s
        decisions = pool.answered(1, "done", now, bytes(ITEMS_MAX))
        numbers = numbers[1:] + [message.number for _, message in sends(decisions)]
    assert len(numbers) == messages


# ---- Changes and suspects


def test_no_shared_message_has_too_many_bytes() -> None:
    pool = make_pool(workers=1)
    for _ in range(WINDOW):
        pool.submit(make_job(), 0.0)
    large = pack_column([bytes(MESSAGE_ITEMS_SIZE_MAX * 2 // 5)])
    key = (b"id", "AES_256", b"proof")
    jobs = [
        make_job(payload=Column(key, large, pack_column([b"aad"]), range(1)), operation="encrypt")
        for _ in range(3)
    ]
    for job in jobs:
        pool.submit(job, 0.0)
    # There would be room for all their items.
    pool.submit(make_column(30, key=b"other"), 0.0)
    assert sent(pool.answered(1, "done", 0.0)) == jobs[:2]
    assert sent(pool.answered(1, "done", 0.0)) == jobs[2:]


def test_changes_go_one_at_a_time() -> None:
    pool = make_pool(workers=3)
    changes = [make_job(repeatable=False, exclusive=True) for _ in range(3)]
    assert [len(sent(pool.submit(job, 0.0))) for job in changes] == [1, 0, 0]
    assert sent(pool.answered(1, "done", 0.0)) == [changes[1]]


def test_tenants_take_turns_to_change_the_token() -> None:
    pool = make_pool(workers=2)
    flood = [make_job(b"flood", exclusive=True) for _ in range(4)]
    polite = [make_job(b"polite", exclusive=True) for _ in range(2)]
    for job in (*flood, *polite):
        pool.submit(job, 0.0)
    done = [flood[0]]
    while len(done) < 6:
        done += sent(pool.answered(1, "done", 0.0))
    assert done == [flood[0], flood[1], polite[0], flood[2], polite[1], flood[3]]


def test_what_wants_a_worker_alone_does_not_wait_for_changes() -> None:
    pool = make_pool(workers=2)
    for _ in range(3):
        pool.submit(make_job(b"flood", exclusive=True), 0.0)
    alone = make_job(alone=True)
    assert sent(pool.submit(alone, 0.0)) == [alone]


def test_a_waiting_change_does_not_hold_up_other_work() -> None:
    pool = make_pool(workers=2)
    for _ in range(2):
        pool.submit(make_job(exclusive=True), 0.0)
    assert len(sent(pool.submit(job := make_job(), 0.0))) == 1
    assert job.place == "running"


def test_a_worker_runs_dry_for_a_change_under_load() -> None:
    pool = make_pool(workers=2)
    for _ in range(20):
        pool.submit(make_job(), 0.0)
    change = make_job(exclusive=True)
    pool.submit(change, 0.0)
    for _ in range(3 * WINDOW):
        for worker in (1, 2):
            if change.place == "waiting":
                pool.answered(worker, "done", 0.0)
    assert change.place == "running"


def test_what_waited_behind_a_cancelled_change_goes_on() -> None:
    pool = make_pool(workers=1)
    change, job = make_job(exclusive=True), make_job()
    pool.submit(make_job(), 0.0)
    pool.submit(change, 0.0)
    assert sent(pool.submit(job, 0.0)) == []
    assert sent(pool.cancel(change.request, 0.0)) == [job]


def test_changes_do_not_starve_other_work() -> None:
    pool = make_pool(workers=1)
    for _ in range(10):
        pool.submit(make_job(exclusive=True), 0.0)
    job = make_job()
    pool.submit(job, 0.0)
    for _ in range(3):
        if job.place == "waiting":
            pool.answered(1, "done", 0.0)
    assert job.place == "running"


def test_a_change_in_flight_ends_as_unknown_but_only_if_it_was_begun() -> None:
    for begun in (True, False):
        pool = make_pool(workers=1)
        job = make_job(repeatable=False, exclusive=True)
        ((_, message),) = sends(pool.submit(job, 0.0))
        decisions = pool.died(1, 1.0, running=message.number if begun else 0)
        assert finished(decisions) == ([(job, "unknown")] if begun else [])
        assert job.place == ("done" if begun else "waiting")


# ---- Deaths


def test_a_hanging_worker_is_killed_once_and_its_jobs_go_on() -> None:
    pool = make_pool(workers=1)
    jobs = [make_job() for _ in range(2)]
    (_, running), _ = [sends(pool.submit(job, 0.0))[0] for job in jobs]
    assert pool.tick(KILL_S - 0.1) == []
    assert pool.tick(KILL_S) == [Kill(1, "hung")]
    assert pool.tick(KILL_S + 1) == []
    assert pool.died(1, 6.0, running=running.number) == [Start(2)]
    assert sent(pool.ready_now(2, 7.0)) == [jobs[0]]
    assert sent(pool.answered(2, "done", 7.0)) == [jobs[1]]


def test_what_else_a_hanging_worker_is_sent_gives_it_no_time() -> None:
    pool = make_pool(workers=1)
    pool.submit(make_job(), 0.0)
    assert sent(pool.submit(make_job(), STEAL_S / 2))
    assert pool.broadcast(make_job, KILL_S / 2)
    assert pool.tick(KILL_S) == [Kill(1, "hung")]


def test_a_column_that_makes_progress_is_not_hung() -> None:
    pool = make_pool(workers=1)
    ((_, message),) = sends(pool.submit(make_column(10), 0.0))
    for item in range(1, 11):
        pool.progressed(1, message.number, item, item * 4.0)
        assert pool.tick(item * 4.0 + KILL_S - 0.1) == []
    assert pool.tick(40.0 + KILL_S) == [Kill(1, "hung")]


def test_what_waits_behind_a_stuck_message_is_given_to_others() -> None:
    pool = make_pool(workers=2)
    jobs = [make_job() for _ in range(4)]
    where = [sends(pool.submit(job, 0.0))[0] for job in jobs]
    assert [worker for worker, _ in where] == [1, 2, 1, 2]
    pool.answered(2, "done", 0.1)
    pool.answered(2, "done", 0.1)
    assert pool.next_event_at() == STEAL_S
    assert sent(pool.tick(STEAL_S)) == [jobs[2]]
    new = make_job()
    assert [worker for worker, _ in sends(pool.submit(new, 1.0))] == [2]
    # It wakes up again: its second answer is nobody's, and it gets work again.
    assert delivered(pool.answered(1, "done", 2.0)) == [jobs[0]]
    assert pool.expects(1, where[2][1].number)
    assert delivered(pool.answered(1, "done", 2.0)) == []
    assert delivered(pool.answered(2, "done", 2.0)) == [jobs[2]]


def test_what_is_for_a_stuck_worker_alone_is_given_to_nobody_else() -> None:
    pool = make_pool(workers=2)
    pool.submit(make_job(), 0.0)
    request = Request()
    pool.broadcast(lambda: make_job(request=request, operation="drop_key"), 0.0)
    pool.answered(2, "done", 0.1)
    assert pool.tick(STEAL_S) == []
    assert pool.silence(request) == [Kill(1, "silent")]


def test_only_the_item_that_ran_is_a_suspect() -> None:
    pool = make_pool(workers=1)
    first, second = make_column(3, b"a"), make_column(4, b"b")
    for _ in range(WINDOW):
        pool.submit(make_job(), 0.0)
    pool.submit(first, 0.0)
    pool.submit(second, 0.0)
    pool.answered(1, "done", 0.0)
    pool.answered(1, "done", 0.0)
    message = pool.running(1)
    assert message.jobs == [first, second]
    pool.died(1, 1.0, running=message.number, item=3 + 2)
    decisions = pool.ready_now(2, 2.0)
    jobs = sent(decisions)
    while pool.busy:
        running = pool.running(2)
        decisions = pool.answered(2, "done", 2.0, bytes(running.count))
        jobs += sent(decisions)
    by_tenant = {
        job.tenant: list(job.payload.positions)
        for job in jobs
        if isinstance(job.payload, Column) and not job.deaths
    }
    assert by_tenant == {b"a": [0, 1, 2], b"b": [0, 2, 3]}
    (suspect,) = [job for job in jobs if job.deaths]
    assert suspect.request is second.request
    assert isinstance(suspect.payload, Column) and list(suspect.payload.positions) == [1]
    assert not first.request.jobs and not second.request.jobs


def test_what_killed_two_workers_is_refused_for_a_minute() -> None:
    pool = make_pool(workers=2)
    job = make_job()
    ((_, message),) = sends(pool.submit(job, 0.0))
    ((_, again),) = sends(pool.died(1, 1.0, running=message.number))
    assert again.jobs == [job]
    pool.ready_now(3, 1.5)
    decisions = pool.died(2, 2.0, running=again.number)
    assert finished(decisions) == [(job, "failed")]
    pool.ready_now(4, 3.0)
    refused = make_job()
    assert finished(pool.submit(refused, 4.0)) == [(refused, "refused")]
    other = make_job(operation="decrypt")
    assert sent(pool.submit(other, 4.0)) == [other]
    late = make_job()
    assert sent(pool.submit(late, 2.1 + REFUSAL_S)) == [late]


def test_nothing_is_refused_when_the_token_did_no_other_work_meanwhile() -> None:
    pool = make_pool(workers=2)
    job = make_job()
    ((_, message),) = sends(pool.submit(job, 0.0))
    ((_, again),) = sends(pool.died(1, 1.0, running=message.number))
    assert finished(pool.died(2, 6.0, running=again.number)) == [(job, "failed")]
    pool.ready_now(3, 7.0)
    assert len(sent(pool.submit(make_job(), 7.0))) == 1


def test_a_suspect_is_tried_again_alone() -> None:
    pool = make_pool(workers=2)
    suspect, busy = make_job(), make_job()
    ((_, message),) = sends(pool.submit(suspect, 0.0))
    pool.submit(busy, 0.0)
    assert sent(pool.died(1, 1.0, running=message.number)) == []
    assert sent(pool.answered(2, "done", 1.0)) == [suspect]
    assert sent(pool.submit(make_job(), 1.0)) == []


def test_what_was_not_begun_goes_on_without_blame() -> None:
    pool = make_pool(workers=1)
    jobs = [make_job() for _ in range(2)]
    for job in jobs:
        pool.submit(job, 0.0)
    pool.died(1, 1.0)
    assert [job.deaths for job in jobs] == [0, 0]
    assert sent(pool.ready_now(2, 1.0)) == jobs


# ---- Answers


@pytest.mark.parametrize("kind", TRIES)
def test_some_failures_are_tried_again_after_a_pause(kind: str) -> None:
    pool = make_pool(workers=1)
    job = make_job()
    pool.submit(job, 0.0)
    now = 0.0
    for number in range(TRIES[kind] - 1):
        assert delivered(pool.answered(1, kind, now)) == []
        assert job.place == "delayed" and pool.waiting == 1
        next_at = pool.next_event_at()
        assert next_at is not None and 0.01 * 2**number <= next_at - now <= 0.03 * 2**number
        now = next_at
        assert sent(pool.tick(now)) == [job]
    assert delivered(pool.answered(1, kind, now)) == [job]


def test_a_token_without_a_session_left_is_no_callers_error() -> None:
    pool = make_pool(workers=3)
    job = make_job()
    pool.submit(job, 0.0)
    pool.leaving(1, "sessions", 0.0)
    assert [worker for worker, _ in sends(pool.answered(1, "sessions", 0.0))] == [2]
    assert pool.died(1, 0.0) == []
    pool.answered(2, "done", 0.0)
    assert (pool.limit, pool.restarts, pool.breaker) == (2, 1, "closed")
    assert pool.tick(GROW_S - 0.1) == []
    assert pool.tick(GROW_S) == [Start(4)]


def test_a_worker_that_gets_no_session_is_not_missed_for_a_while() -> None:
    pool = PoolState(3, 10, keep_alive_s=1e6)
    pool.begin(0.0)
    assert pool.ready_now(1, 0.0) == [Start(2), Start(3)]
    for worker in (2, 3):
        pool.no_session(worker, 1.0)
        assert pool.died(worker, 1.0) == []
    assert pool.limit == 1
    assert pool.tick(1.0 + GROW_S) == [Start(4)]
    pool.no_session(4, 40.0)
    assert pool.died(4, 40.0) == []
    assert pool.limit == 1


def test_items_that_were_not_done_go_back_alone() -> None:
    pool = make_pool(workers=1)
    job = make_column(4)
    pool.submit(job, 0.0)
    statuses = bytes([0, STATUS_AGAIN, 1, STATUS_AGAIN])
    decisions = pool.answered(1, "done", 0.0, statuses)
    assert decisions == [Deliver(job, 0, 4)]
    (part,) = job.request.jobs
    assert isinstance(part.payload, Column) and part.payload.positions == [1, 3]
    assert sent(pool.tick(1.0)) == [part]
    assert delivered(pool.answered(1, "done", 1.0, bytes(2))) == [part]
    assert not job.request.jobs


def test_a_key_that_did_not_prove_itself_is_refused_for_a_while() -> None:
    pool = make_pool(workers=1)
    job = make_job()
    pool.submit(job, 0.0)
    assert delivered(pool.answered(1, "quarantine", 0.0)) == [job]
    again, other = make_job(), make_job(key=b"other")
    assert finished(pool.submit(again, 1.0)) == [(again, "quarantined")]
    assert sent(pool.submit(other, 1.0)) == [other]
    assert pool.quarantined == 1
    assert sent(pool.submit(later := make_job(), QUARANTINE_S)) == [later]


# ---- Breaker


def test_device_failures_open_the_breaker_and_a_ready_worker_closes_it() -> None:
    pool = PoolState(1, 100)
    pool.begin(0.0)
    now, number = 0.0, 1
    waiting = make_job()
    pool.submit(waiting, now)
    ended: list[tuple[Job, str]] = []
    for _ in range(BREAKER_FAILURES):
        decisions = pool.died(number, now)
        ended += finished(decisions)
        while not (starts := [d for d in decisions if isinstance(d, Start)]):
            next_at = pool.next_event_at()
            assert next_at is not None and next_at > now
            now = next_at
            decisions = pool.tick(now)
        number = starts[0].worker
    assert ended == [(waiting, "unavailable")]
    assert pool.breaker == "half-open"
    job = make_job()
    assert finished(pool.submit(job, now)) == [(job, "unavailable")]
    pool.ready_now(number, now)
    assert pool.breaker == "closed"
    assert sent(pool.submit(make_job(), now))


def test_a_worker_that_leaves_blames_the_device_and_no_job() -> None:
    pool = make_pool(workers=1)
    jobs = [make_job() for _ in range(2)]
    for job in jobs:
        pool.submit(job, 0.0)
    pool.leaving(1, "token", 0.0)
    pool.answered(1, "failed", 0.0)
    assert pool.ready == 0
    assert pool.died(1, 0.0, running=pool.running(1).number) == [Start(2)]
    assert jobs[1].deaths == 0
    assert sent(pool.ready_now(2, 1.0)) == [jobs[1]]


def test_what_a_worker_that_leaves_has_done_is_no_sign_of_health() -> None:
    pool = make_pool(workers=BREAKER_FAILURES)
    for number in range(1, BREAKER_FAILURES + 1):
        pool.submit(make_job(), 0.0)
        pool.leaving(number, "token", 0.0)
        pool.answered(number, "done", 0.0)
    assert pool.breaker == "half-open"


def test_a_worker_that_leaves_is_one_failure_and_one_that_had_a_single_session_none() -> None:
    pool = make_pool(workers=BREAKER_FAILURES)
    for number in range(1, BREAKER_FAILURES + 1):
        pool.leaving(number, "token" if number < BREAKER_FAILURES else "single", 0.0)
    for number in range(1, BREAKER_FAILURES + 1):
        pool.died(number, 0.0)
    assert (pool.ready, pool.breaker) == (0, "closed")


def test_a_worker_that_leaves_and_stays_is_killed() -> None:
    pool = make_pool(workers=1)
    pool.leaving(1, "token", 0.0)
    next_at = pool.next_event_at()
    assert next_at is not None
    assert pool.tick(next_at) == [Kill(1, "does not end")]


# ---- Time


def test_idle_and_busy_workers_give_signs_of_life() -> None:
    pool = make_pool(workers=2, keep_alive_s=10.0)
    pool.submit(make_job(kill_s=100.0), 0.0)
    assert pool.next_event_at() == STEAL_S
    pool.tick(STEAL_S)
    assert pool.next_event_at() == 10.0
    assert [(w, m.jobs[0].operation) for w, m in sends(pool.tick(10.0))] == [
        (1, "keep_alive"),
        (2, "keep_alive"),
    ]
    pool.answered(2, "done", 10.0)
    assert pool.next_event_at() == 20.0


def test_old_workers_make_place_one_at_a_time_when_they_have_nothing_to_do() -> None:
    pool = make_pool(workers=2, age_s=100.0)
    pool.submit(make_job(), 99.0)
    pool.submit(make_job(), 99.0)
    assert pool.tick(100.0) == []
    assert HangUp(1) in pool.answered(1, "done", 101.0)
    assert pool.died(1, 102.0) == [Start(3)]
    assert (pool.restarts, pool.breaker) == (0, "closed")
    pool.answered(2, "done", 102.0)
    assert pool.tick(103.0) == []
    assert pool.ready_now(3, 104.0) == []
    assert pool.tick(104.0) == [HangUp(2)]


def test_every_worker_is_told_to_forget_a_key_and_a_silent_one_is_killed() -> None:
    pool = make_pool(workers=3)
    for _ in range(3 * WINDOW):
        pool.submit(make_job(), 0.0)
    request = Request()
    decisions = pool.broadcast(lambda: make_job(request=request, operation="drop_key"), 1.0)
    assert [worker for worker, _ in sends(decisions)] == [1, 2, 3]
    for _ in range(WINDOW + 1):
        pool.answered(1, "done", 1.0)
    assert len(request.jobs) == 2
    assert pool.silence(request) == [Kill(2, "silent"), Kill(3, "silent")]
    for worker in (2, 3):
        pool.died(worker, 2.0)
    assert not request.jobs
