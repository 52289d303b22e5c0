"""The pool's state under events in any order: what must hold whatever happens.

The machine plays callers and workers. Of every item it keeps where it is, so it notices a lost one,
one that is told twice, and one that is done by two workers at a time without need.
"""

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

from hsmux_gateway.hsm.decisions import Decision, Deliver, Finish, HangUp, Kill, Send, Start
from hsmux_gateway.hsm.jobs import Arguments, Column, Job, Message, Request
from hsmux_gateway.hsm.pool_state import STATUS_AGAIN, PoolState
from hsmux_gateway.hsm.worker_state import WINDOW_MAX
from hsmux_protocol.columns import pack_column

WORKERS = 3
QUEUE_ITEMS_MAX = 40
TENANTS = (b"a", b"b", b"c")
KEYS = (b"key 1", b"key 2")
KINDS = ("done", "done", "done", "caller", "busy", "missing", "failed", "sessions", "quarantine")


class Asked(Request):
    """A request, and which of its items have not been told what became of them."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.open = set(range(count))

    def tell(self, job: Job, statuses: bytes | None = None) -> None:
        """Items of a job have their fate; those that are for later have none yet."""
        places = job.payload.positions if isinstance(job.payload, Column) else [0]
        for index, place in enumerate(places):
            if statuses is None or statuses[index] != STATUS_AGAIN:
                assert place in self.open, "an item was told twice"
                self.open.discard(place)


class Machine(RuleBasedStateMachine):
    """Callers, workers and time, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.pool = PoolState(
            WORKERS, QUEUE_ITEMS_MAX, keep_alive_s=7.0, age_s=30.0, jitter=lambda: 0.5
        )
        self.starting: list[int] = []
        self.flying: dict[int, list[Message]] = {}
        self.ending: set[int] = set()
        self.asked: list[Asked] = []
        self.numbers: set[int] = set()
        self.take(self.pool.begin(self.now))

    # What the pool decides

    def take(self, decisions: list[Decision], statuses: bytes = b"") -> None:
        for decision in decisions:
            if isinstance(decision, Start):
                self.starting.append(decision.worker)
                assert len(self.starting) + len(self.flying) <= WORKERS
            elif isinstance(decision, Send):
                self.take_send(decision)
            elif isinstance(decision, Kill | HangUp):
                assert decision.worker in self.flying or decision.worker in self.starting
                self.ending.add(decision.worker)
            elif isinstance(decision, Finish):
                self.tell(decision.job, None)
            elif isinstance(decision, Deliver):
                own = statuses[decision.start : decision.stop] if statuses else None
                self.tell(decision.job, own)

    def take_send(self, decision: Send) -> None:
        message = decision.message
        assert decision.worker in self.flying, "sent to a worker that is not ready"
        assert message.number not in self.numbers, "a number was used twice"
        self.numbers.add(message.number)
        if not message.is_control:
            assert decision.worker not in self.ending, "work for a worker that ends"
            others = [m for m in self.flying[decision.worker] if not m.is_control]
            assert len(others) < WINDOW_MAX
            assert not others or not (message.is_alone or any(m.is_alone for m in others))
            assert all(job.deadline > self.now for job in message.jobs), "begun too late"
            assert not any(job.request.abandoned for job in message.jobs)
        self.flying[decision.worker].append(message)

    def tell(self, job: Job, statuses: bytes | None) -> None:
        asked = job.request
        if isinstance(asked, Asked) and not asked.abandoned:
            asked.tell(job, statuses)
            if not asked.open:
                self.asked.remove(asked)

    # Callers

    def submit(self, asked: Asked, job: Job) -> None:
        self.asked.append(asked)
        self.take(self.pool.submit(job, self.now))

    @rule(
        tenant=st.sampled_from(TENANTS),
        key=st.sampled_from(KEYS),
        is_change=st.booleans(),
        patience=st.floats(0.1, 20),
    )
    def ask_value(self, tenant: bytes, key: bytes, is_change: bool, patience: float) -> None:
        asked = Asked(1)
        operation = "generate" if is_change else "sign"
        job = Job(
            asked,
            tenant,
            key,
            operation,
            Arguments([]),
            self.now + patience,
            5.0,
            repeatable=not is_change,
            exclusive=is_change,
        )
        self.submit(asked, job)

    @rule(
        tenant=st.sampled_from(TENANTS),
        key=st.sampled_from(KEYS),
        count=st.integers(1, 9),
        patience=st.floats(0.1, 20),
    )
    def ask_column(self, tenant: bytes, key: bytes, count: int, patience: float) -> None:
        asked = Asked(count)
        items = pack_column([b"x"] * count)
        column = Column((key, "AES_256", b""), items, pack_column([b""]), range(count))
        deadline = self.now + patience
        self.submit(asked, Job(asked, tenant, key, "encrypt", column, deadline, 5.0))

    @precondition(lambda self: self.asked)
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        place = data.draw(st.integers(0, len(self.asked) - 1))
        self.take(self.pool.cancel(self.asked.pop(place), self.now))

    # Workers

    @precondition(lambda self: self.starting)
    @rule(how=st.sampled_from(["ready", "ready", "ready", "dies", "no session", "refused"]))
    def start(self, how: str) -> None:
        number = self.starting.pop(0)
        if number in self.ending:
            how = "dies"
        if how == "ready":
            self.flying[number] = []
            self.take(self.pool.ready_now(number, self.now))
            return
        if how == "no session":
            self.pool.no_session(number, self.now)
        elif how == "refused":
            self.take(self.pool.refuse(number, "PIN", self.now))
        self.ending.discard(number)
        self.take(self.pool.died(number, self.now))

    @precondition(lambda self: any(self.flying.values()))
    @rule(data=st.data(), kind=st.sampled_from(KINDS), leaves=st.integers(0, 9))
    def answer(self, data: st.DataObject, kind: str, leaves: int) -> None:
        number = data.draw(st.sampled_from([n for n, sent in self.flying.items() if sent]))
        message = self.flying[number].pop(0)
        assert self.pool.expects(number, message.number)
        if leaves == 0 or kind == "sessions":
            self.pool.leaving(number, "sessions" if kind == "sessions" else "token", self.now)
            self.ending.add(number)
        statuses = b""
        if kind == "done" and message.jobs and isinstance(message.jobs[0].payload, Column):
            some = st.sampled_from([0, 0, 0, 1, 3, 4, STATUS_AGAIN])
            statuses = bytes(
                data.draw(st.lists(some, min_size=message.count, max_size=message.count))
            )
        self.take(self.pool.answered(number, kind, self.now, statuses), statuses)

    @precondition(lambda self: any(self.flying.values()))
    @rule(data=st.data())
    def go_on(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from([n for n, sent in self.flying.items() if sent]))
        message = self.flying[number][0]
        item = data.draw(st.integers(0, max(0, message.count)))
        self.pool.progressed(number, message.number, item, self.now)

    @precondition(lambda self: self.flying)
    @rule(data=st.data(), ending_first=st.booleans())
    def die(self, data: st.DataObject, ending_first: bool) -> None:
        ending = sorted(self.ending & set(self.flying))
        number = data.draw(
            st.sampled_from(ending if ending and ending_first else sorted(self.flying))
        )
        messages = self.flying.pop(number)
        self.ending.discard(number)
        running = item = 0
        was_running = data.draw(st.booleans())
        if messages and was_running:
            running = messages[0].number
            item = data.draw(st.integers(0, messages[0].count))
        self.take(self.pool.died(number, self.now, running, item))

    @precondition(lambda self: any(self.flying.values()))
    @rule()
    def forget_a_key(self) -> None:
        request = Request()

        def make() -> Job:
            return Job(request, b"", b"", "drop_key", Arguments([]), self.now + 5, 5.0)

        self.take(self.pool.broadcast(make, self.now))

    # Time

    @rule(seconds=st.floats(0.01, 10))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.take(self.pool.tick(self.now))

    @rule()
    def wait_for_the_next_event(self) -> None:
        next_at = self.pool.next_event_at()
        if next_at is not None:
            self.now = max(self.now, next_at)
            self.take(self.pool.tick(self.now))
            after = self.pool.next_event_at()
            assert after is None or after > self.now, "time stands still"

    # What must hold

    @invariant()
    def no_item_is_lost(self) -> None:
        for asked in self.asked:
            places = [
                place
                for job in asked.jobs
                for place in (job.payload.positions if isinstance(job.payload, Column) else [0])
            ]
            assert sorted(places) == sorted(asked.open), "an item is nowhere, or at two places"

    @invariant()
    def jobs_are_where_they_say(self) -> None:
        flying = {id(job) for sent in self.flying.values() for m in sent for job in m.jobs}
        for asked in self.asked:
            for job in asked.jobs:
                assert (job.place == "running") == (id(job) in flying)

    @invariant()
    def permits_are_conserved(self) -> None:
        waiting = sum(
            job.count
            for asked in self.asked
            for job in asked.jobs
            if job.place in ("waiting", "delayed")
        )
        assert self.pool.waiting == waiting

    @invariant()
    def changes_are_never_concurrent(self) -> None:
        changes = [
            job
            for sent in self.flying.values()
            for message in sent
            for job in message.jobs
            if job.exclusive
        ]
        assert len(changes) <= 1

    @invariant()
    def nobody_idles_while_there_is_work(self) -> None:
        queue = self.pool._queue
        if queue.has_shared and queue.next_lone(is_changing=False) is None:
            usable = [w for w in self.pool._workers.values() if w.has_room()]
            assert not usable, "a worker has room while jobs wait"


def test_any_order_of_events() -> None:
    run_state_machine_as_test(
        Machine, settings=settings(max_examples=150, stateful_step_count=50, deadline=None)
    )


@pytest.mark.long
def test_any_order_of_events_for_longer() -> None:
    run_state_machine_as_test(
        Machine, settings=settings(max_examples=5000, stateful_step_count=100, deadline=None)
    )
