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
from hsmux_gateway.audit.recorder import Recorder, RecordError
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
def recorder(tmp_path: Path) -> Iterator[Recorder]:
    """Records in a file."""
    recorder = Recorder(tmp_path / "requests.jsonl")
    yield recorder
    recorder.close()


def make_engine(recorder: Recorder, handler: Handler, *, requests_max: int = 100) -> Engine:
    """An engine that knows one operation."""
    return Engine(
        {"show_status": handler},
        identities=Everybody(),
        memory=Forgetful(),
        recorder=recorder,
        metrics=Metrics(),
        requests_max=requests_max,
    )


def outcomes(recorder: Recorder, tmp_path: Path) -> list[str]:
    """The outcomes on record."""
    recorder.flush()
    lines = (tmp_path / "requests.jsonl").read_text().splitlines()
    return [json.loads(line)["outcome"] for line in lines]


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
    recorder: Recorder, tmp_path: Path, name: str
) -> None:
    handler, expected, outcome = FAILURES[name]
    engine = make_engine(recorder, handler)
    with capture_logs() as logs, pytest.raises(expected) as failed:
        await engine.call(make_call("show_status"))
    assert failed.value.reference == "r-test-1"
    assert "secret" not in failed.value.text
    assert outcomes(recorder, tmp_path) == [outcome]
    assert [log["reference"] for log in logs] == ["r-test-1"] * (expected is InternalError)
    assert engine.in_work == 0


async def test_what_is_done_is_recorded(recorder: Recorder, tmp_path: Path) -> None:
    engine = make_engine(recorder, _fine)
    assert await engine.call(make_call("show_status")) == ["fine"]
    assert await engine.call(make_call("show_status"), waits=False) == ["fine"]
    assert outcomes(recorder, tmp_path) == ["done", "done"]
    text = (tmp_path / "requests.jsonl").read_text()
    assert json.loads(text.splitlines()[0]).keys() == {
        *("at_ms", "reference", "access_point", "client_key", "peer", "operation", "outcome"),
        "elapsed_us",
    }


@pytest.mark.parametrize(("budget_s", "outcome"), [(30.0, "Cancelled"), (0.05, "DeadlineExceeded")])
async def test_a_cancelled_call_is_recorded_and_stays_cancelled(
    recorder: Recorder, tmp_path: Path, budget_s: float, outcome: str
) -> None:
    engine = make_engine(recorder, _forever)
    call = make_call("show_status", budget_s=budget_s)
    with trio.move_on_after(0.1) as scope:
        await engine.call(call)
    assert scope.cancelled_caught
    assert outcomes(recorder, tmp_path) == [outcome]
    assert engine.in_work == 0


@pytest.mark.parametrize("waits", [True, False])
async def test_a_call_whose_time_is_over_is_not_begun(
    recorder: Recorder, tmp_path: Path, waits: bool
) -> None:
    engine = make_engine(recorder, _defect)
    with pytest.raises(DeadlineExceeded):
        await engine.call(make_call("show_status", budget_s=-0.001), waits=waits)
    assert outcomes(recorder, tmp_path) == ["DeadlineExceeded"]


async def test_a_refusal_of_the_front_is_decided_and_recorded(
    recorder: Recorder, tmp_path: Path
) -> None:
    engine = make_engine(recorder, _defect)
    with pytest.raises(InvalidArgument, match="bad"):
        await engine.call(make_call("show_status"), refusal=InvalidArgument("bad"))
    assert isinstance(engine._identities, Everybody)
    engine._identities.enabled = False
    with pytest.raises(Unauthenticated):
        await engine.call(make_call("show_status"), refusal=InvalidArgument("bad"))
    engine._identities.enabled, engine._identities.valid_until_ms = True, 1
    with pytest.raises(Unauthenticated, match="expired"):
        await engine.call(make_call("show_status"))
    assert outcomes(recorder, tmp_path) == [
        "InvalidArgument",
        "Unauthenticated",
        "Unauthenticated",
    ]


async def test_one_access_point_gets_half_of_the_work_and_another_still_some(
    recorder: Recorder, tmp_path: Path
) -> None:
    engine = make_engine(recorder, _forever, requests_max=100)
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
    assert outcomes(recorder, tmp_path).count("Busy") == 1


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
    recorder: Recorder, tmp_path: Path
) -> None:
    done = 0

    async def count(call: Call) -> list[Any]:
        nonlocal done
        done += 1
        return []

    engine = make_engine(recorder, count)
    await engine.call(make_call("show_status"))
    recorder.flush()
    size = (tmp_path / "requests.jsonl").stat().st_size
    await engine.call(make_call("show_status"))
    with full_disk(size + 10):
        with pytest.raises(RecordError):
            recorder.flush()
        for _ in range(3):
            with pytest.raises(Unavailable) as refused:
                await engine.call(make_call("show_status"))
            assert refused.value.retryable
        assert done == recorder.records == 2
        assert recorder.written == 1
    assert not recorder.ready(), "it looks only every RETRY_S"
    recorder._retry_at = 0.0
    assert recorder.ready()
    await engine.call(make_call("show_status"))
    assert outcomes(recorder, tmp_path) == ["done"] * 3


def test_a_line_that_was_cut_short_spoils_no_other(tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    path.write_bytes(b'{"at_ms":1}\n{"at_')
    Recorder(path).close()
    assert path.read_bytes() == b'{"at_ms":1}\n{"at_\n'
    Recorder(path).close()
    assert path.read_bytes() == b'{"at_ms":1}\n{"at_\n'


async def test_records_go_on_in_a_new_file(tmp_path: Path) -> None:
    path, old = tmp_path / "requests.jsonl", tmp_path / "requests.jsonl.1"
    recorder = Recorder(path)
    engine = make_engine(recorder, _fine)
    await engine.call(make_call("show_status"))
    path.rename(old)
    recorder.reopen()()
    assert old.read_text().count("\n") == 1, "what was kept belongs to the old file"
    await engine.call(make_call("show_status"))
    await engine.call(make_call("show_status"))
    recorder.close()
    assert path.read_text().count("\n") == 2
    assert path.stat().st_mode & 0o777 == 0o600


async def test_the_old_file_stays_while_nothing_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    recorder = Recorder(path)
    engine = make_engine(recorder, _fine)
    await engine.call(make_call("show_status"))
    path.rename(tmp_path / "old")
    path.symlink_to("elsewhere")
    with pytest.raises(OSError):
        recorder.reopen()
    path.unlink()
    await engine.call(make_call("show_status"))
    with full_disk((tmp_path / "old").stat().st_size + 10), pytest.raises(RecordError):
        recorder.reopen()
    assert not path.exists()
    recorder.reopen()()
    recorder.close()
    assert (tmp_path / "old").read_text().count("\n") == 2 and path.read_bytes() == b""


async def test_the_request_log_has_the_same_lines_and_may_go(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    recorder = Recorder(tmp_path / "requests.jsonl", log=LogSink(writing))
    engine = make_engine(recorder, _fine)
    await engine.call(make_call("show_status"))
    recorder.flush()
    assert os.read(reading, 4096) == (tmp_path / "requests.jsonl").read_bytes()
    os.close(reading)
    await engine.call(make_call("show_status"))
    recorder.close()
    os.close(writing)
    assert (tmp_path / "requests.jsonl").read_text().count("\n") == 2


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
