"""Nothing that was acknowledged is lost when a writer, or the server, is killed."""

import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import IO

import pytest

from hsmux_gateway.store import CounterRow, Store
from tests.postgresql import private_cluster

from .crash_writer import GROUP_SIZE
from .sealer import AesSealer

KEK = bytes(range(48))
ROOT = Path(__file__).parents[3]

Created = Callable[[str], Store]


@contextmanager
def _writer(url: str, first: int) -> Iterator[tuple[subprocess.Popen[bytes], IO[bytes]]]:
    program = [sys.executable, "-m", "tests.gateway.store.crash_writer"]
    with subprocess.Popen(
        [*program, url, KEK.hex(), str(first)], cwd=ROOT, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        try:
            yield process, process.stdout
        finally:
            process.kill()


def _acknowledged(lines: list[bytes]) -> dict[str, int]:
    """What whole lines acknowledge: the number written, and at which revision."""
    pairs = (line.split() for line in lines if line.endswith(b"\n"))
    return {number.decode(): int(revision) for number, revision in pairs}


def _killed_round(url: str, first: int, count: int) -> dict[str, int]:
    """Kill a writer after it has acknowledged some; all it has acknowledged by then."""
    with _writer(url, first) as (process, output):
        lines = [output.readline() for _ in range(count)]
        process.kill()
        lines += output.readlines()
    assert len(lines) >= count
    return _acknowledged(lines)


def _check(url: str, acknowledged: dict[str, int]) -> int:
    """Everything acknowledged is there, as a whole; the number after the last one written."""
    with closing(Store.open(url)) as store:
        store.unlock(AesSealer(KEK))
        changes = store.read_changes(0)
        written = {row.name: row.row_revision for row in changes.aliases}
        assert acknowledged.items() <= written.items()
        # The state, the rows and the counter are of the same transactions.
        assert changes.revision == len(written) + 1
        assert sorted(written.values()) == list(range(2, changes.revision + 1))
        counter = store.read(lambda reader: reader.get(CounterRow, b"k" * 16, 1))
        assert counter is not None
        assert counter.leased == len(written)
        assert len(written) % GROUP_SIZE == 0
        return len(written)


def _rounds(url: str, rounds: int) -> None:
    store = Store.create(url, deployment_id=b"d" * 16, created_at_ms=1)
    store.reseal(AesSealer(KEK), lambda transaction: None)
    store.close()
    chosen = random.Random(rounds)
    acknowledged: dict[str, int] = {}
    first = 0
    for _ in range(rounds):
        acknowledged |= _killed_round(url, first, chosen.randint(1, 40))
        first = _check(url, acknowledged)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest) -> str:
    """The URL of a database without a store."""
    found: str = request.getfixturevalue(f"{request.param}_url")
    return found


def test_a_killed_writer_loses_nothing(url: str) -> None:
    _rounds(url, 3)


@pytest.mark.long
def test_many_killed_writers_lose_nothing(url: str) -> None:
    _rounds(url, 250)


def _crash_server(rounds: int) -> None:
    with private_cluster() as cluster:
        url = cluster.address.url()
        store = Store.create(url, deployment_id=b"d" * 16, created_at_ms=1)
        store.reseal(AesSealer(KEK), lambda transaction: None)
        acknowledged: dict[str, int] = {}
        first = 0
        for _ in range(rounds):
            with _writer(url, first) as (_process, output):
                lines = [output.readline() for _ in range(20)]
                cluster.stop(signal.SIGQUIT)
                lines += output.readlines()
            acknowledged |= _acknowledged(lines)
            cluster.start()
            first = _check(url, acknowledged)
            # The pool of this process has only dead connections, and finds that out by itself.
            assert store.revision() == first + 1
        store.close()


def test_a_crashed_server_loses_nothing() -> None:
    _crash_server(2)


@pytest.mark.long
def test_many_crashes_of_the_server_lose_nothing() -> None:
    _crash_server(50)
