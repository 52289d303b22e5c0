"""Answers on their way out: recorded first, in order, and never waited for in vain."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

from hsmux_gateway.answers import PIECE_SIZE, Answers
from hsmux_gateway.audit.recorder import Record, Recorder, RecordError
from hsmux_gateway.tls import TlsClosed, TlsStream
from tests.gateway.test_engine import full_disk

RECORD = Record(1, "r", "a", "k", "p", "o", "done", 1)


class Peer(TlsStream):
    """A peer that takes what it is sent when the test lets it."""

    def __init__(self) -> None:
        self.took = b""
        self.reads = trio.Event()
        self.reads.set()
        self.gone = False

    async def send_all(self, data: bytes | memoryview) -> None:
        """Take bytes."""
        await self.reads.wait()
        if self.gone:
            raise TlsClosed("gone")
        self.took += data


@pytest.fixture
def recorder(tmp_path: Path) -> Iterator[Recorder]:
    """Records in a file."""
    recorder = Recorder(tmp_path / "requests.jsonl")
    yield recorder
    recorder.close()


async def test_answers_leave_in_order_whoever_flushes(recorder: Recorder) -> None:
    peer = Peer()
    answers = Answers(peer, recorder, 10.0)
    peer.reads = trio.Event()
    async with trio.open_nursery() as nursery:
        for number in range(5):
            answers.put(b"%d" % number)
            nursery.start_soon(answers.flush)
        await trio.testing.wait_all_tasks_blocked()
        assert answers.size == 5
        peer.reads.set()
    assert (peer.took, answers.size) == (b"01234", 0)
    assert repr(answers) == "Answers(0 bytes)"


async def test_an_answer_leaves_after_its_record(recorder: Recorder, tmp_path: Path) -> None:
    peer = Peer()
    answers = Answers(peer, recorder, 10.0)
    recorder.append(RECORD)
    with full_disk(1):
        # Whoever is not on record need not wait for it.
        answers.put(b"pong")
        await answers.flush()
        assert peer.took == b"pong"
        answers.put_recorded(b"answer")
        with pytest.raises(RecordError):
            await answers.flush()
    assert peer.took == b"pong"
    assert (tmp_path / "requests.jsonl").read_bytes().count(b"\n") == 0


async def test_a_large_answer_goes_in_pieces_each_with_its_time(
    recorder: Recorder, autojump_clock: trio.testing.MockClock
) -> None:
    class Slow(Peer):
        """Takes a piece in 9 seconds."""

        async def send_all(self, data: bytes | memoryview) -> None:
            """Take bytes, slowly."""
            await trio.sleep(9.0)
            self.took += data

    peer = Slow()
    answers = Answers(peer, recorder, 10.0)
    answers.put(bytes(5 * PIECE_SIZE))
    await answers.flush()
    assert len(peer.took) == 5 * PIECE_SIZE
    peer.reads = trio.Event()
    deaf = Answers(Peer(), recorder, 10.0)
    deaf._tls.reads = trio.Event()  # type: ignore[attr-defined]
    deaf.put(b"x")
    with pytest.raises(trio.TooSlowError):
        await deaf.flush()


async def test_who_waits_learns_that_the_connection_broke(recorder: Recorder) -> None:
    peer = Peer()
    answers = Answers(peer, recorder, 10.0)
    peer.gone = True
    answers.put(b"lost")
    with pytest.raises(TlsClosed, match="gone"):
        await answers.flush()
    # It must not spin: what was lost never leaves.
    with pytest.raises(TlsClosed, match="cut off"):
        await answers.drain()
    answers.put(b"more")
    with pytest.raises(TlsClosed, match="cut off"):
        await answers.flush()


async def test_who_waits_for_another_goes_on_when_there_is_room(recorder: Recorder) -> None:
    peer = Peer()
    answers = Answers(peer, recorder, 10.0)
    peer.reads = trio.Event()
    answers.put(b"first")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(answers.flush)
        await trio.testing.wait_all_tasks_blocked()
        await answers.drain(5)
        nursery.start_soon(answers.drain)
        await trio.testing.wait_all_tasks_blocked()
        peer.reads.set()
    assert answers.size == 0
