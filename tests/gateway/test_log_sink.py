"""The log's way out: nobody waits for who reads it, nothing is lost silently."""

import json
import os
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio

from hsmux_gateway.config import load_config
from hsmux_gateway.daemon import run_init
from hsmux_gateway.log_sink import KEPT_SIZE_MAX, LogSink
from tests.gateway.raw_client import client_context, connect
from tests.gateway.running import write_config

LINE = b'{"event": "x"}' + b" " * 985 + b"\n"
MANY = 4 * KEPT_SIZE_MAX // len(LINE)
TIMEOUT_S = 20.0

Ends = tuple[int, int]


def _socket_ends() -> Ends:
    reading, writing = socket.socketpair()
    return reading.detach(), writing.detach()


@pytest.fixture(params=[os.pipe, _socket_ends, os.openpty], ids=["pipe", "socket", "terminal"])
def ends(request: pytest.FixtureRequest) -> Iterator[Ends]:
    """A descriptor that a log's reader has, and the one that the log goes to."""
    make: Callable[[], Ends] = request.param
    both = make()
    yield both
    for end in both:
        os.close(end)


@pytest.fixture
def sink(ends: Ends) -> Iterator[LogSink]:
    """A sink for the writing end."""
    opened = LogSink(ends[1])
    yield opened
    opened.close()


def _read_until(reading: int, is_last: Callable[[bytes], bool]) -> list[bytes]:
    """Whole lines up to the one that is looked for."""
    data = bytearray()
    while True:
        data += os.read(reading, 1 << 16).replace(b"\r\n", b"\n")
        lines = bytes(data).splitlines(keepends=True)
        for number, line in enumerate(lines):
            if line.endswith(b"\n") and is_last(line):
                return lines[: number + 1]


def test_a_line_that_finds_room_has_left_at_once(ends: Ends, sink: LogSink) -> None:
    for _ in range(3):
        sink.write(LINE)
        assert _read_until(ends[0], lambda line: line == LINE) == [LINE]


def test_lines_nobody_reads_are_kept_then_dropped_then_told_of(ends: Ends, sink: LogSink) -> None:
    # Waiting for the reader here would be for ever.
    for _ in range(MANY):
        sink.write(LINE)
    assert repr(sink).startswith("LogSink(10")
    lines = _read_until(ends[0], lambda line: b"dropped" in line)
    kept, told = lines[:-1], json.loads(lines[-1])
    assert set(kept) == {LINE}
    assert len(kept) >= KEPT_SIZE_MAX // len(LINE)
    assert told["number"] + len(kept) == MANY
    # Then it is as if nothing had been.
    sink.write(LINE)
    assert _read_until(ends[0], lambda line: line == LINE) == [LINE]


def test_what_cannot_be_opened_again_is_written_by_the_thread(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> int:
        raise PermissionError

    # As another user's is, which was handed to this process.
    monkeypatch.setattr(os, "open", refuse)
    sink = LogSink(ends[1])
    test_lines_nobody_reads_are_kept_then_dropped_then_told_of(ends, sink)
    sink.close()


def test_a_descriptor_that_others_share_stays_as_it_was(ends: Ends, sink: LogSink) -> None:
    assert os.get_blocking(ends[1])


def test_a_reader_that_goes_away_stops_nobody() -> None:
    reading, writing = os.pipe()
    sink = LogSink(writing)
    for _ in range(MANY):
        sink.write(LINE)
    os.close(reading)
    for _ in range(MANY):
        sink.write(LINE)
    sink.close()
    os.close(writing)


def test_lines_of_many_threads_stay_whole(ends: Ends, sink: LogSink) -> None:
    def write() -> None:
        for _ in range(200):
            sink.write(LINE)

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sink.write(b"{}\n")
    assert _read_until(ends[0], lambda line: line == b"{}\n") == [LINE] * 800 + [b"{}\n"]


def test_a_gateway_serves_while_nobody_reads_its_log(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    trio.run(run_init, load_config(config))
    command = [sys.executable, "-m", "hsmux_tools.main", "serve", "--config", str(config)]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        while not (line := process.stderr.readline()).startswith(b"hsmux: serving on"):
            assert line
        address = line.decode().rpartition(" ")[2].strip()
        context: ssl.SSLContext = client_context(tmp_path / "instance" / "administrator")
        with connect(address, context) as client:
            # A pipe holds 64 KiB; each of these is a line of two hundred bytes.
            for _ in range(20):
                for _ in range(100):
                    client.request("generate_random", 8)
                for _ in range(100):
                    client.receive()
        process.terminate()
        assert process.wait(TIMEOUT_S) == 0
