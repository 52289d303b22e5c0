"""Limits of access points: the bucket against a naive one, and one place where they are taken."""

import math
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from hsmux_gateway.access.limits import (
    BURST_S,
    IN_FLIGHT_RETRY_MS,
    NO_LIMIT,
    RETRY_MS_MAX,
    AccessLimits,
    Limit,
    Meter,
    take,
)
from hsmux_gateway.audit.journal import Journal
from hsmux_gateway.audit.outbox import Outbox
from hsmux_gateway.call import Call, Outcome
from hsmux_gateway.engine import Engine, Handler, OverLimit, collect_runs
from hsmux_gateway.metrics import Metrics
from hsmux_gateway.store.rows import AccessPointRow
from hsmux_protocol.columns import pack_column
from hsmux_protocol.errors import Busy, HsmuxError
from tests.gateway.journals import RECORDS, kinds_in, open_journal, records_in
from tests.gateway.parts import PRINCIPAL, make_call
from tests.gateway.test_engine import Everybody, Forgetful
from tests.gateway.test_runs import Doubling

SECOND_NS = 1_000_000_000
POINT = PRINCIPAL.access_point_id

# Powers of two, so that the bucket's floating point is exact and can be compared for equality.
_rates = st.integers(0, 12).map(lambda power: 2**power)
_pauses = st.integers(0, 2**21).map(lambda steps: Fraction(steps, 2**18))
_calls = st.lists(st.tuples(_pauses, st.integers(1, 2**13)), max_size=60)


class Naive:
    """A bucket that counts what it holds."""

    def __init__(self, rate: int) -> None:
        self.rate = rate
        self.holds = Fraction(rate * BURST_S)
        self.at = Fraction(0)

    def take(self, now: Fraction, cost: int) -> Fraction:
        """0, or the time after which it has it."""
        most = Fraction(self.rate * BURST_S)
        self.holds = min(most, self.holds + (now - self.at) * self.rate)
        self.at = now
        lacking = min(Fraction(cost), most) - self.holds
        if lacking > 0:
            return lacking / self.rate
        self.holds -= cost
        return Fraction(0)


@given(_rates, _calls)
def test_a_bucket_does_what_a_naive_one_does(rate: int, calls: list[tuple[Fraction, int]]) -> None:
    naive, full_at, now = Naive(rate), 0.0, Fraction(0)
    for pause, cost in calls:
        now += pause
        taken, wait_s = take(full_at, float(now), cost / rate), naive.take(now, cost)
        if wait_s:
            assert taken == -wait_s
        else:
            full_at = taken
            # What it holds, told from the other side: how long until it holds everything.
            assert full_at == now + BURST_S - naive.holds / rate


@given(
    st.integers(1, 10**7),
    st.lists(st.tuples(st.floats(0, 3), st.integers(1, 10**5)), min_size=1, max_size=60),
    st.floats(0, 3e7),
)
def test_no_more_is_admitted_than_the_rate_brings_and_one_call(
    rate: int, calls: list[tuple[float, int]], start: float
) -> None:
    full_at, now, admitted, largest = 0.0, start, 0, 0
    for pause_s, cost in calls:
        now += pause_s
        taken = take(full_at, now, cost / rate)
        if taken >= 0:
            full_at, admitted, largest = taken, admitted + cost, max(largest, cost)
        assert admitted <= 1.0001 * rate * (now - start + BURST_S) + largest


@given(
    st.integers(1, 10**7),
    st.lists(st.tuples(st.integers(0, 10**9), st.integers(1, 10**5)), max_size=30),
    st.integers(1, 10**5),
)
def test_who_waits_as_long_as_is_told_is_admitted(
    rate: int, calls: list[tuple[int, int]], last: int
) -> None:
    meter, now_ns = Meter(Limit(bytes_per_s=rate)), 0
    for pause_ns, size in calls:
        now_ns += pause_ns
        meter.take(sized(size), now_ns)
    over = meter.take(sized(last), now_ns)
    if over is not None:
        assert over.limit == "bytes_per_s" and over.value == rate
        # As long as is needed, and no longer than that.
        for early_ms in range(1, min(3, over.retry_after_ms) + 1):
            early_ns = now_ns + (over.retry_after_ms - early_ms) * 1_000_000 - 10_000
            assert early_ns < now_ns or meter.take(sized(last), early_ns) is not None
        assert meter.take(sized(last), now_ns + over.retry_after_ms * 1_000_000) is None


def sized(size: int) -> Call:
    """A call of so many bytes."""
    return make_call("encrypt", None, b"", b"")._replace(size=size)


def test_a_call_takes_from_both_buckets_or_from_neither() -> None:
    meter = Meter(Limit(requests_per_s=2, bytes_per_s=100))
    assert meter.take(sized(100), 0) is None
    for _ in range(5):
        # The bytes are lacking; no request is taken for that.
        over = meter.take(sized(50), 0)
        assert over == ("bytes_per_s", 100, 500)
    assert meter.take(sized(0), 0) is None
    assert meter.take(sized(0), 0) == ("requests_per_s", 2, 500)
    # The one that keeps it waiting longer is named.
    assert meter.take(sized(100), 0) == ("bytes_per_s", 100, 1000)
    assert meter.take(sized(100), SECOND_NS) is None


def test_a_call_that_is_larger_than_the_bucket_waits_for_a_full_one_and_owes_the_rest() -> None:
    meter = Meter(Limit(bytes_per_s=100))
    assert meter.take(sized(1), 0) is None
    assert meter.take(sized(1000), 0) == ("bytes_per_s", 100, 10)
    assert meter.take(sized(1000), 10_000_000) is None
    assert meter.take(sized(1), 10_000_000) == ("bytes_per_s", 100, 9010)


def test_a_batch_counts_as_many_requests_as_it_has_items() -> None:
    meter = Meter(Limit(requests_per_s=10))
    batch = make_call("encrypt_batch", None, b"", None, pack_column([b"x"] * 10))
    assert meter.take(batch, 0) is None
    assert meter.take(sized(1), 0) == ("requests_per_s", 10, 100)
    for nothing in (make_call("encrypt_batch", None, b"", None, pack_column([])), sized(1)):
        meter = Meter(Limit(requests_per_s=1))
        assert meter.take(nothing, 0) is None
        assert meter.take(nothing, 0) is not None


def test_calls_together_cost_what_they_cost_one_by_one_and_make_no_debt() -> None:
    one, many = Meter(Limit(100, 1000)), Meter(Limit(100, 1000))
    calls = [sized(20)] * 40
    assert [one.take(call, 0) for call in calls] == [None] * 40
    assert many.take_together(calls, 0)
    assert many.take(sized(300), 0) == one.take(sized(300), 0) == ("bytes_per_s", 1000, 100)
    assert not many.take_together(calls, 0)
    # More than the bucket holds is admitted as far as it goes, one by one, however full it is.
    assert not many.take_together([sized(1)] * 101, 10 * SECOND_NS)
    assert not many.take_together([sized(501)] * 2, 10 * SECOND_NS)
    assert many.take_together([sized(500)] * 2, 10 * SECOND_NS)
    assert Meter(Limit(in_flight=1)).take_together([sized(500)] * 2000, 0)


def test_calls_in_work_are_bounded_beside_the_buckets() -> None:
    meter = Meter(Limit(requests_per_s=1, in_flight=2))
    over = meter.take(sized(1), 0, in_work=2)
    assert over == ("in_flight", 2, IN_FLIGHT_RETRY_MS)
    assert (
        over is not None and over.text == "over this access point's limit of 2 requests at a time"
    )
    # Nothing was taken for it; and what is over at once is never in work.
    assert meter.take(sized(1), 0, in_work=1) is None
    assert Meter(Limit(in_flight=1)).take(sized(1), 0) is None


def test_the_longest_wait_fits_an_answer() -> None:
    meter = Meter(Limit(bytes_per_s=1))
    assert meter.take(sized(2**40), 0) is None
    over = meter.take(sized(1), 0)
    assert over is not None and over.retry_after_ms == RETRY_MS_MAX
    assert math.log2(RETRY_MS_MAX + 1) == 32


def row(**limits: int) -> AccessPointRow:
    """The access point of the tests."""
    return AccessPointRow(POINT, "tester", "", "Enabled", "", "", 0, **limits)


def test_own_limits_stand_before_those_of_the_configuration() -> None:
    limits = AccessLimits(Limit(requests_per_s=5, in_flight=7))
    limits.apply([row(bytes_per_s=100, in_flight=2)])
    assert limits.meters[POINT].limit == (5, 100, 2)
    limits.apply([row()])
    assert limits.meters[POINT].limit == (5, 0, 7)
    none = AccessLimits()
    none.apply([row(in_flight=1)])
    assert repr(none) == "AccessLimits(1 limited)"
    none.apply([row()])
    assert none.meters == {}


def test_another_limit_holds_from_the_next_call_on() -> None:
    limits = AccessLimits()
    limits.set(POINT, Limit(requests_per_s=1))
    meter = limits.meters[POINT]
    assert meter.take(sized(1), 0) is None and meter.take(sized(1), 0) is not None
    limits.set(POINT, Limit(requests_per_s=1000))
    # What was taken is owed: a second of it, at whatever rate.
    assert limits.meters[POINT].take(sized(1), 0) == ("requests_per_s", 1000, 1)
    assert [meter.take(sized(1), SECOND_NS) for _ in range(1000)] == [None] * 1000
    limits.set(POINT, Limit(bytes_per_s=10))
    assert [meter.take(sized(1), SECOND_NS) for _ in range(10)] == [None] * 10
    limits.set(POINT, NO_LIMIT)
    assert POINT not in limits.meters


# In the engine


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    """Records in a file."""
    journal = open_journal(tmp_path)
    yield journal
    journal.close()


async def _batch_done(call: Call, *_: Any) -> list[Any]:
    return [b"\0\0\0\0", b"", b"K" * 16, 1]


class Limited:
    """An engine whose caller has a limit, and what became of its calls."""

    def __init__(self, journal: Journal, limit: Limit, **handlers: Handler) -> None:
        self.service, self.limits, self.metrics = Doubling(), AccessLimits(), Metrics()
        self.limits.set(POINT, limit)
        self.engine = Engine(
            {"decrypt": self.service.decrypt, "encrypt_batch": _batch_done, **handlers},
            identities=Everybody(),
            memory=Forgetful(),
            journal=journal,
            records=RECORDS,
            outbox=Outbox(journal, RECORDS),
            metrics=self.metrics,
            requests_max=100,
            limits=self.limits,
            runs=collect_runs(self.service),
        )

    async def run(self, *sizes: int) -> list[Any]:
        """What becomes of a run: values, or the names of errors."""
        calls = [make_call("decrypt", None, b"", n)._replace(size=n) for n in sizes]
        return [_shown(outcome) for outcome in await self.engine.call_run(calls)]

    async def call(self, size: int = 1) -> Any:
        """What becomes of one call."""
        return (await self.run(size))[0]


def _shown(outcome: Outcome) -> Any:
    return type(outcome).__name__ if isinstance(outcome, HsmuxError) else outcome[0]


async def test_a_run_is_admitted_together_or_as_far_as_it_goes(journal: Journal) -> None:
    # A debt of weeks, so that no time that passes here matters.
    limited = Limited(journal, Limit(bytes_per_s=1000))
    assert await limited.run(1, 2, 3) == [2, 4, 6]
    assert limited.service.runs == [3]
    assert await limited.run(5, 10**12, 7) == [10, "OverLimit", 14]
    limited = Limited(journal, Limit(bytes_per_s=1000))
    assert await limited.run(10**12, 5, 7) == [2 * 10**12, "OverLimit", "OverLimit"]
    assert limited.service.runs == []
    assert limited.limits.refused == {"requests_per_s": 0, "bytes_per_s": 2, "in_flight": 0}


async def test_a_run_takes_its_cost_once_even_if_it_is_done_one_by_one(journal: Journal) -> None:
    # The handler of runs gives up on a 0, and takes a 13 for a defect.
    limited = Limited(journal, Limit(bytes_per_s=1000))
    assert await limited.run(400, 0, 13) == [800, 0, "NotFound"]
    assert limited.service.runs == [3]
    assert await limited.run(500) == [1000]
    # Four hundred and thirteen were taken before, and not twice.
    assert limited.limits.refused["bytes_per_s"] == 0


async def test_over_its_limit_a_call_is_counted_and_not_recorded(
    journal: Journal, tmp_path: Path
) -> None:
    limited = Limited(journal, Limit(requests_per_s=1))
    batch = make_call("encrypt_batch", None, b"", None, pack_column([b"x"] * 10_000))
    assert await limited.engine.call(batch)
    with pytest.raises(OverLimit) as refused:
        await limited.engine.call(make_call("decrypt", None, b"", 1))
    error = refused.value
    assert isinstance(error, Busy) and error.reference == "r-test-1"
    assert error.text == "over this access point's limit of 1 requests a second"
    assert 9_000_000 < (error.retry_after_ms or 0) <= 10_000_000
    for _ in range(1000):
        assert await limited.call() == "OverLimit"
    journal.flush()
    assert kinds_in(tmp_path) == ["start", "request"]
    records = journal.limited.take(0, all_of_it=True)
    assert [(r.access_point, r.limit, r.count) for r in records] == [
        ("tester", "requests_per_s", 1001)
    ]
    (calls,) = [family for family in limited.metrics.collect() if family.name == "hsmux_calls"]
    counted = {(s.labels["operation"], s.labels["outcome"]): s.value for s in calls.samples}
    assert counted["decrypt", "Busy"] == 1001


async def test_who_is_over_its_limit_is_written_down_once_in_a_window(tmp_path: Path) -> None:
    journal = open_journal(tmp_path)
    limited = Limited(journal, Limit(bytes_per_s=1))
    assert await limited.call(10**9) == 2 * 10**9
    assert [await limited.call() for _ in range(50)] == ["OverLimit"] * 50
    journal.close()
    *_, told, stop = records_in(tmp_path)
    assert stop["kind"] == "stop"
    assert (told["kind"], told["access_point"], told["limit"]) == (
        *("limited", "tester", "bytes_per_s"),
    )
    assert told["count"] == 50 and told["first_at"] <= told["last_at"]


async def test_calls_at_a_time_are_bounded_and_give_their_places_back(journal: Journal) -> None:
    gate, begun = trio.Event(), 0

    async def waits(call: Call, *_: Any) -> list[Any]:
        nonlocal begun
        begun += 1
        await gate.wait()
        return [1, b"K" * 16, 1]

    limited = Limited(journal, Limit(in_flight=3), decrypt=waits)
    outcomes: list[Any] = []

    async def ask() -> None:
        try:
            await limited.engine.call(make_call("decrypt", None, b"", 1))
            outcomes.append("done")
        except HsmuxError as error:
            outcomes.append((type(error), error.retry_after_ms))

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        assert begun == 3
        assert outcomes == [(OverLimit, IN_FLIGHT_RETRY_MS)] * 2
        gate.set()
    await ask()
    assert outcomes[2:] == ["done"] * 4
    assert limited.limits.refused["in_flight"] == 2
