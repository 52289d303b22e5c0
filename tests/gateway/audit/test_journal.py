"""The journal: written before the answer, durable if waited for, counted where it must not grow."""

import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import trio
import trio.testing

from hsmux_gateway.audit.floods import OTHERS, SOURCES_MAX, WINDOW_S, Floods
from hsmux_gateway.audit.journal import CLOCK_JUMP_MS, LAG_S, UNLOGGED_MAX, Journal
from hsmux_gateway.audit.layout import SPARE, chain_directories
from hsmux_gateway.audit.records import AnyRecord, Flood
from hsmux_gateway.audit.segments import (
    SEGMENT_SIZE_MIN,
    ChainEnd,
    ChainWriter,
    NoRoom,
    SyncFailed,
    open_chain,
)
from hsmux_gateway.log_sink import LogSink

from .logs import AT_MS, DEPLOYMENT, records_of, request, verified


class Gate:
    """A chain whose syncs wait to be let through, and are counted."""

    def __init__(self, chain: ChainWriter) -> None:
        self._chain = chain
        self.turns = threading.Semaphore(0)
        self.entered = threading.Semaphore(0)
        self.syncs = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._chain, name)

    def sync(self) -> ChainEnd:
        """Sync when it is let."""
        self.syncs += 1
        self.entered.release()
        self.turns.acquire()
        return self._chain.sync()


def _open(root: Path) -> ChainWriter:
    return open_chain(root, DEPLOYMENT, segment_size=SEGMENT_SIZE_MIN)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    """A journal with small segments; its start is written."""
    journal = Journal(_open(tmp_path), software="0.1.0")
    journal.flush()
    yield journal
    journal.close()


def _kinds(records: list[AnyRecord]) -> list[str]:
    return [record.kind for record in records]


def test_a_journal_from_start_to_stop(tmp_path: Path) -> None:
    for _ in range(2):
        journal = Journal(_open(tmp_path), software="0.1.0", libraries="OpenSSL 3.0.22")
        assert [journal.append(request(number)) for number in range(3)] == [2, 3, 4]
        assert (journal.records, journal.written) == (4, 0)
        assert records_of(tmp_path)[-1:] != [request(2)]
        journal.flush()
        assert journal.written == 4
        assert records_of(tmp_path)[-1] == request(2)
        journal.close()
    records = records_of(tmp_path)
    assert _kinds(records) == ["start", *["request"] * 3, "stop"] * 2
    assert cast(Any, records[-1]).records == 5
    assert verified(tmp_path).records == 10


def test_what_was_torn_is_told_first(tmp_path: Path) -> None:
    journal = Journal(_open(tmp_path))
    journal.close()
    path = next(iter(chain_directories(tmp_path)[0].glob("*.log")))
    data = path.read_bytes()
    path.write_bytes(data[: len(data.rstrip(b"\0")) - 3].ljust(len(data), b"\0"))
    Journal(_open(tmp_path)).close()
    assert _kinds(records_of(tmp_path)) == ["start", "torn", "start", "stop"]
    verified(tmp_path)


def test_a_burst_larger_than_a_segment(journal: Journal, tmp_path: Path) -> None:
    for number in range(1000):
        journal.append(request(number))
    journal.flush()
    assert [cast(Any, r).elapsed_us for r in records_of(tmp_path)[1:]] == [
        number * 11 for number in range(1000)
    ]


def test_while_there_is_no_room_nothing_is_ready(tmp_path: Path) -> None:
    journal = Journal(_open(tmp_path))
    blocked = chain_directories(tmp_path)[0] / SPARE
    blocked.mkdir()
    count = 0
    with pytest.raises(NoRoom):
        while True:
            journal.append(request(count))
            count += 1
            journal.flush()
    assert journal.failing and not journal.ready()
    assert journal.written == journal.records - 1
    assert len(records_of(tmp_path)) == journal.written
    # A refused flood takes no room either, and does no harm.
    journal.floods.count("192.0.2.1", "handshake", 0)
    blocked.rmdir()
    journal.flush()
    assert journal.ready() and journal.written == journal.records
    journal.close()
    records = records_of(tmp_path)
    assert [r.reference for r in records if r.kind == "request"] == [  # type: ignore[union-attr]
        request(number).reference for number in range(count)
    ]
    assert _kinds(records[-2:]) == ["flood", "stop"]
    verified(tmp_path)


async def test_all_who_wait_share_a_sync(tmp_path: Path) -> None:
    gate = Gate(_open(tmp_path))
    journal = Journal(cast(ChainWriter, gate))
    done: list[int] = []

    async def wait(number: int) -> None:
        await journal.durable(number)
        assert journal.synced >= number
        done.append(number)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait, journal.append(request(0)))
        await trio.to_thread.run_sync(gate.entered.acquire)
        # These come while a sync runs that does not hold them, so it is not theirs.
        for number in range(1, 50):
            nursery.start_soon(wait, journal.append(request(number)))
        await trio.testing.wait_all_tasks_blocked()
        gate.turns.release()
        await trio.to_thread.run_sync(gate.entered.acquire)
        assert done == [2]
        gate.turns.release()
    assert gate.syncs == 2
    assert sorted(done) == list(range(2, 52))
    await journal.durable(2)
    assert gate.syncs == 2
    gate.turns.release()
    journal.close()


async def test_who_waits_can_be_cancelled(tmp_path: Path) -> None:
    gate = Gate(_open(tmp_path))
    journal = Journal(cast(ChainWriter, gate))
    number = journal.append(request(1))
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(journal.durable, number)
            await trio.to_thread.run_sync(gate.entered.acquire)
            nursery.start_soon(journal.durable, number)
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
            gate.turns.release()
    gate.turns.release()
    await journal.durable(number)
    assert journal.synced == number
    gate.turns.release()
    journal.close()


async def test_a_failed_sync_fails_for_all(tmp_path: Path) -> None:
    chain = _open(tmp_path)
    journal = Journal(chain)
    number = journal.append(request(1))
    journal.flush()
    kept = os.dup(chain._file)
    # A descriptor that cannot be synced: what the system says then is an error like any other.
    reading, writing = os.pipe()
    os.dup2(writing, chain._file)
    for _ in range(2):
        with pytest.raises(SyncFailed):
            await journal.durable(number)
    os.dup2(kept, chain._file)
    journal.append(request(2))
    with pytest.raises(SyncFailed):
        journal.flush()
    with pytest.raises(SyncFailed):
        journal.close()
    for file in (reading, writing, kept):
        os.close(file)
    # What is there is found at the next start.
    journal = Journal(_open(tmp_path))
    journal.close()
    assert _kinds(records_of(tmp_path)) == ["start", "request", "start", "stop"]


async def _until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(20):
        while not condition():  # noqa: ASYNC110
            await trio.sleep(LAG_S / 10)


async def test_records_become_durable_by_themselves(tmp_path: Path) -> None:
    wall, monotonic = [AT_MS], [1000.0]
    journal = Journal(_open(tmp_path), wall_ms=lambda: wall[0], monotonic=lambda: monotonic[0])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(journal.keep_durable)
        journal.append(request(1))
        journal.flush()
        await _until(lambda: journal.synced == 2)
        journal.floods.count("192.0.2.1", "certificate expired", AT_MS)
        wall[0] += WINDOW_S * 1000
        monotonic[0] += WINDOW_S
        await _until(lambda: _kinds(records_of(tmp_path))[-1] == "flood")
        nursery.cancel_scope.cancel()
    journal.close()
    assert _kinds(records_of(tmp_path)) == ["start", "request", "flood", "stop"]


async def test_what_no_answer_waits_for_is_written_when_nobody_asks_anything(
    tmp_path: Path,
) -> None:
    wall, monotonic = [AT_MS], [1000.0]
    journal = Journal(_open(tmp_path), wall_ms=lambda: wall[0], monotonic=lambda: monotonic[0])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(journal.keep_durable)
        journal.limited.count("billing", "requests_per_s", AT_MS)
        wall[0] += WINDOW_S * 1000
        monotonic[0] += WINDOW_S
        await _until(lambda: _kinds(records_of(tmp_path)) == ["start", "limited"])
        wall[0] += CLOCK_JUMP_MS
        await _until(lambda: _kinds(records_of(tmp_path))[-1] == "clock_jump")
        await _until(lambda: journal.synced == 3)
        nursery.cancel_scope.cancel()
    journal.close()


@pytest.mark.parametrize("by_ms", [CLOCK_JUMP_MS, -CLOCK_JUMP_MS])
def test_a_clock_that_jumps_is_recorded_once(tmp_path: Path, by_ms: int) -> None:
    wall, monotonic = [AT_MS], [5.0]
    journal = Journal(_open(tmp_path), wall_ms=lambda: wall[0], monotonic=lambda: monotonic[0])
    for seconds in (1, 10, 100_000):
        wall[0] += seconds * 1000
        monotonic[0] += seconds
        journal.look_at_clock()
    # Small steps are a clock that is kept right.
    wall[0] += by_ms // 2
    journal.look_at_clock()
    wall[0] += by_ms // 2
    journal.look_at_clock()
    journal.look_at_clock()
    journal.close()
    jumps = [r for r in records_of(tmp_path) if r.kind == "clock_jump"]
    assert [r.by_ms for r in jumps] == [by_ms]  # type: ignore[union-attr]


def _logged(log: Path) -> list[str]:
    return [json.loads(line)["kind"] for line in log.read_text().splitlines()]


@pytest.fixture
def log_file(tmp_path: Path) -> Iterator[tuple[Path, LogSink]]:
    """A request log, and what writes into it."""
    path = tmp_path / "requests.log"
    with open(path, "wb", buffering=0) as file:
        yield path, LogSink(file.fileno())


def test_the_log_gets_the_same_records(tmp_path: Path, log_file: tuple[Path, LogSink]) -> None:
    path, sink = log_file
    journal = Journal(_open(tmp_path / "log"), log=sink)
    journal.append(request(1))
    journal.write_log()
    assert _logged(path) == [], "what is not in the chain is in no log"
    journal.flush()
    assert _logged(path) == [], "one record is not worth a write of its own"
    journal.write_log()
    journal.write_log()
    assert _logged(path) == ["start", "request"]
    journal.append(request(2))
    journal.close()
    assert _logged(path) == _kinds(records_of(tmp_path / "log"))


def test_the_log_is_not_kept_waiting_for_long(
    tmp_path: Path, log_file: tuple[Path, LogSink]
) -> None:
    path, sink = log_file
    journal = Journal(_open(tmp_path / "log"), log=sink)
    for number in range(UNLOGGED_MAX - 1):
        journal.append(request(number))
        assert _logged(path) == []
        journal.flush()
    assert _logged(path) == ["start", *["request"] * (UNLOGGED_MAX - 1)]
    journal.close()


async def test_what_is_durable_by_itself_is_logged_by_itself(
    tmp_path: Path, log_file: tuple[Path, LogSink]
) -> None:
    path, sink = log_file
    journal = Journal(_open(tmp_path / "log"), log=sink)
    journal.append(request(1))
    journal.flush()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(journal.keep_durable)
        await _until(lambda: journal.synced == 2)
        assert _logged(path) == ["start", "request"]
        nursery.cancel_scope.cancel()
    journal.close()


def test_a_log_that_nobody_reads_any_more_stops_nothing(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    journal = Journal(_open(tmp_path), log=LogSink(writing))
    os.close(reading)
    journal.append(request(1))
    journal.flush()
    journal.write_log()
    assert journal.written == 2
    os.close(writing)
    journal.close()


def test_floods_are_counted_by_source_and_reason() -> None:
    floods = Floods(Flood)
    for second in range(9):
        floods.count("192.0.2.1", "expired", 1000 * second)
    floods.count("192.0.2.1", "no certificate", 9000)
    assert floods.take(9999) == []
    assert floods.take(10_000) == [
        Flood(10_000, 0, 8000, "192.0.2.1", "expired", 9),
        Flood(10_000, 9000, 9000, "192.0.2.1", "no certificate", 1),
    ]
    assert floods.take(30_000) == []
    floods.count("192.0.2.1", "expired", 50_000)
    # A clock that was set back, and the end of the process.
    assert len(floods.take(40_000)) == 1
    floods.count("192.0.2.1", "expired", 40_000)
    assert len(floods.take(40_001, all_of_it=True)) == 1


def test_more_sources_than_there_is_room_are_others() -> None:
    floods = Floods(Flood)
    for number in range(SOURCES_MAX + 5000):
        floods.count(f"2001:db8::{number:x}", ("expired", "revoked")[number % 2], 5)
    records = floods.take(WINDOW_S * 1000 + 5)
    assert len(records) == SOURCES_MAX + 2
    assert [(r.source, r.count) for r in records[-2:]] == [(OTHERS, 2500)] * 2
