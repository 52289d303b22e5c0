"""The engine: one decision, one effect, one record, whatever a handler does."""

import json
import os
import resource
import signal
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from structlog.testing import capture_logs

from hsmux_gateway.access.decision import CallFacts
from hsmux_gateway.access.first_policies import EVERYTHING
from hsmux_gateway.access.grants import Grants
from hsmux_gateway.audit.journal import Journal
from hsmux_gateway.audit.outbox import Outbox
from hsmux_gateway.audit.segments import RecordError
from hsmux_gateway.call import Call
from hsmux_gateway.engine import Engine, collect_handlers
from hsmux_gateway.log_sink import LogSink
from hsmux_gateway.metrics import Metrics
from hsmux_protocol.errors import (
    Busy,
    DeadlineExceeded,
    HsmuxError,
    InternalError,
    InvalidArgument,
    NotFound,
    Unauthenticated,
    Unavailable,
)
from tests.gateway.journals import RECORDS, open_journal, records_in, requests_in
from tests.gateway.parts import PRINCIPAL, make_call

Handler = Callable[..., Awaitable[list[Any]]]


class Everybody:
    """Identities that stand until the test says otherwise."""

    def __init__(self) -> None:
        self.enabled = True
        self.valid_until_ms = 2**50
        self.grants = Grants({"everything": EVERYTHING}, {})

    def facts(self, call: Call) -> CallFacts:
        """What a decision may look at."""
        now_ms = time.time_ns() // 1_000_000
        permission = call.operation.permission
        return CallFacts(
            True, self.enabled, self.valid_until_ms, now_ms, permission, grants=self.grants
        )


class Forgetful:
    """A memory of nothing."""

    async def recall(self, call: Call, arguments_hash: bytes) -> list[Any] | None:
        """Never done before."""
        return None


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    """Records in a file."""
    journal = open_journal(tmp_path)
    yield journal
    journal.close()


def make_engine(journal: Journal, handler: Handler, *, requests_max: int = 100) -> Engine:
    """An engine that knows one operation."""
    return Engine(
        {"show_status": handler},
        identities=Everybody(),
        memory=Forgetful(),
        journal=journal,
        records=RECORDS,
        outbox=Outbox(journal, RECORDS),
        metrics=Metrics(),
        requests_max=requests_max,
    )


def outcomes(journal: Journal, tmp_path: Path) -> list[str]:
    """The outcomes on record."""
    journal.flush()
    return [record["outcome"] for record in requests_in(tmp_path)]


async def _fine(call: Call) -> list[Any]:
    return ["fine"]


async def _not_found(call: Call) -> list[Any]:
    raise NotFound("nothing")


async def _defect(call: Call) -> list[Any]:
    raise ZeroDivisionError("a secret")


async def _group(call: Call) -> list[Any]:
    raise ExceptionGroup("many", [ValueError("one"), ExceptionGroup("deep", [KeyError("two")])])


async def _forever(call: Call) -> list[Any]:
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(trio.sleep_forever)
    return []


FAILURES: dict[str, tuple[Handler, type[HsmuxError], str]] = {
    "typed": (_not_found, NotFound, "NotFound"),
    "a defect": (_defect, InternalError, "InternalError"),
    "a group": (_group, InternalError, "InternalError"),
}


@pytest.mark.parametrize("name", FAILURES)
async def test_a_failure_is_typed_recorded_and_named(
    journal: Journal, tmp_path: Path, name: str
) -> None:
    handler, expected, outcome = FAILURES[name]
    engine = make_engine(journal, handler)
    with capture_logs() as logs, pytest.raises(expected) as failed:
        await engine.call(make_call("show_status"))
    assert failed.value.reference == "r-test-1"
    assert "secret" not in failed.value.text
    assert outcomes(journal, tmp_path) == [outcome]
    assert [log["reference"] for log in logs] == ["r-test-1"] * (expected is InternalError)
    assert engine.in_work == 0


async def test_what_is_done_is_recorded(journal: Journal, tmp_path: Path) -> None:
    engine = make_engine(journal, _fine)
    assert await engine.call(make_call("show_status")) == ["fine"]
    assert await engine.call(make_call("show_status"), waits=False) == ["fine"]
    assert outcomes(journal, tmp_path) == ["done", "done"]
    first, second = requests_in(tmp_path)
    assert first["statement"] == second["statement"] == "allowed by everything statement 1"
    assert first["reference"] == "r-test-1" and first["peer"] == "here"


@pytest.mark.parametrize(("budget_s", "outcome"), [(30.0, "Cancelled"), (0.05, "DeadlineExceeded")])
async def test_a_cancelled_call_is_recorded_and_stays_cancelled(
    journal: Journal, tmp_path: Path, budget_s: float, outcome: str
) -> None:
    engine = make_engine(journal, _forever)
    call = make_call("show_status", budget_s=budget_s)
    with trio.move_on_after(0.1) as scope:
        await engine.call(call)
    assert scope.cancelled_caught
    assert outcomes(journal, tmp_path) == [outcome]
    assert engine.in_work == 0


@pytest.mark.parametrize("waits", [True, False])
async def test_a_call_whose_time_is_over_is_not_begun(
    journal: Journal, tmp_path: Path, waits: bool
) -> None:
    engine = make_engine(journal, _defect)
    with pytest.raises(DeadlineExceeded):
        await engine.call(make_call("show_status", budget_s=-0.001), waits=waits)
    assert outcomes(journal, tmp_path) == ["DeadlineExceeded"]


async def test_a_refusal_of_the_front_is_decided_and_recorded(
    journal: Journal, tmp_path: Path
) -> None:
    engine = make_engine(journal, _defect)
    with pytest.raises(InvalidArgument, match="bad"):
        await engine.call(make_call("show_status"), refusal=InvalidArgument("bad"))
    assert isinstance(engine._identities, Everybody)
    engine._identities.enabled = False
    with pytest.raises(Unauthenticated):
        await engine.call(make_call("show_status"), refusal=InvalidArgument("bad"))
    engine._identities.enabled, engine._identities.valid_until_ms = True, 1
    with pytest.raises(Unauthenticated, match="expired"):
        await engine.call(make_call("show_status"))
    assert outcomes(journal, tmp_path) == [
        "InvalidArgument",
        "Unauthenticated",
        "Unauthenticated",
    ]


async def test_one_access_point_gets_half_of_the_work_and_another_still_some(
    journal: Journal, tmp_path: Path
) -> None:
    engine = make_engine(journal, _forever, requests_max=100)
    other = make_call("show_status")._replace(
        principal=PRINCIPAL._replace(access_point_id=b"o" * 16)
    )
    async with trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(engine.call, make_call("show_status"))
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(Busy) as refused:
            await engine.call(make_call("show_status"))
        assert refused.value.retry_after_ms
        nursery.start_soon(engine.call, other)
        await trio.testing.wait_all_tasks_blocked()
        assert engine.in_work == 51
        assert repr(engine).startswith("Engine(51 in work")
        nursery.cancel_scope.cancel()
    assert outcomes(journal, tmp_path).count("Busy") == 1


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """No file of this process grows beyond a size."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


async def test_nothing_is_done_while_nothing_can_be_recorded(
    journal: Journal, tmp_path: Path
) -> None:
    done = 0

    async def count(call: Call) -> list[Any]:
        nonlocal done
        done += 1
        return []

    engine = make_engine(journal, count)
    await engine.call(make_call("show_status"))
    journal.flush()
    await engine.call(make_call("show_status"))
    with full_disk(10):
        with pytest.raises(RecordError):
            journal.flush()
        for _ in range(3):
            with pytest.raises(Unavailable) as refused:
                await engine.call(make_call("show_status"))
            assert refused.value.retryable
        assert done == journal.records - 1 == 2
        assert journal.written == 2
    assert not journal.ready(), "it looks only every RETRY_S"
    journal._retry_at = 0.0
    assert journal.ready()
    await engine.call(make_call("show_status"))
    assert outcomes(journal, tmp_path) == ["done"] * 3


async def test_the_request_log_has_the_same_lines_and_may_go(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    journal = open_journal(tmp_path, log=LogSink(writing))
    engine = make_engine(journal, _fine)
    await engine.call(make_call("show_status"))
    journal.flush()
    journal.write_log()
    lines = os.read(reading, 65536).splitlines()
    assert [json.loads(line) for line in lines] == records_in(tmp_path)
    os.close(reading)
    await engine.call(make_call("show_status"))
    journal.close()
    os.close(writing)
    assert len(requests_in(tmp_path)) == 2


def test_every_operation_has_exactly_one_handler() -> None:
    class Wrong:
        """Its only handler takes other arguments."""

        async def encrypt(self, call: Call, key: str) -> list[Any]:
            """Wrong."""
            return []

    with pytest.raises(TypeError, match="0 handlers"):
        collect_handlers()
    with pytest.raises(TypeError, match="must take call, key, context, plaintext"):
        collect_handlers(Wrong())
