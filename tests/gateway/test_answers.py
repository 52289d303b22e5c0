"""Answers on their way out: recorded first, in order, and never waited for in vain."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

from hsmux_gateway.answers import PIECE_SIZE, Answers
from hsmux_gateway.audit.journal import Journal
from hsmux_gateway.audit.records import ClockJump
from hsmux_gateway.audit.segments import RecordError
from hsmux_gateway.tls import TlsClosed, TlsStream
from tests.gateway.journals import kinds_in, open_journal
from tests.gateway.test_engine import full_disk

RECORD = ClockJump(1, 2)


class Peer(TlsStream):
    """A peer that takes what it is sent when the test lets it."""

    def __init__(self) -> None:
        self.took = b""
        self.unsent = b""
        self.reads = trio.Event()
        self.reads.set()
        self.gone = False

    def try_send(self, data: bytes | memoryview) -> bool:
        """Take bytes later."""
        self.unsent += data
        return False

    async def flush(self) -> None:
        """Take bytes."""
        await self.reads.wait()
        if self.gone:
            raise TlsClosed("gone")
        self.took += self.unsent
        self.unsent = b""


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    """Records in a file."""
    journal = open_journal(tmp_path)
    yield journal
    journal.close()


async def test_answers_leave_in_order_whoever_flushes(journal: Journal) -> None:
    peer = Peer()
    answers = Answers(peer, journal, 10.0)
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


async def test_an_answer_leaves_after_its_record(journal: Journal, tmp_path: Path) -> None:
    peer = Peer()
    answers = Answers(peer, journal, 10.0)
    journal.append(RECORD)
    with full_disk(1):
        # Whoever is not on record need not wait for it.
        answers.put(b"pong")
        await answers.flush()
        assert peer.took == b"pong"
        answers.put_recorded(b"answer")
        with pytest.raises(RecordError):
            await answers.flush()
    assert peer.took == b"pong"
    assert kinds_in(tmp_path) == ["start"]


async def test_an_answer_that_must_not_be_lost_leaves_after_its_record_is_durable(
    journal: Journal,
) -> None:
    peer = Peer()
    answers = Answers(peer, journal, 10.0)
    journal.append(RECORD)
    answers.put_recorded(b"done")
    await answers.flush()
    assert (peer.took, journal.written, journal.synced) == (b"done", 2, 0)
    journal.append(RECORD)
    answers.put_recorded(b"refused", durable=True)
    peer.reads = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(answers.flush)
        while not journal.synced:
            await trio.testing.wait_all_tasks_blocked()
        assert (peer.took, journal.synced) == (b"done", 3)
        peer.reads.set()
    assert peer.took == b"donerefused"


async def test_a_large_answer_goes_in_pieces_each_with_its_time(
    journal: Journal, autojump_clock: trio.testing.MockClock
) -> None:
    class Slow(Peer):
        """Takes a piece in 9 seconds."""

        async def flush(self) -> None:
            """Take bytes, slowly."""
            await trio.sleep(9.0)
            await super().flush()

    peer = Slow()
    answers = Answers(peer, journal, 10.0)
    answers.put(bytes(5 * PIECE_SIZE))
    await answers.flush()
    assert len(peer.took) == 5 * PIECE_SIZE
    peer.reads = trio.Event()
    deaf = Answers(Peer(), journal, 10.0)
    deaf._tls.reads = trio.Event()  # type: ignore[attr-defined]
    deaf.put(b"x")
    with pytest.raises(trio.TooSlowError):
        await deaf.flush()


async def test_who_waits_learns_that_the_connection_broke(journal: Journal) -> None:
    peer = Peer()
    answers = Answers(peer, journal, 10.0)
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


async def test_who_waits_for_another_goes_on_when_there_is_room(journal: Journal) -> None:
    peer = Peer()
    answers = Answers(peer, journal, 10.0)
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
