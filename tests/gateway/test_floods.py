"""Floods: whoever takes everything gets a share, and everybody else goes on."""

import contextlib
import itertools
import json
import random
import re
import resource
import socket
import ssl
import struct
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hsmux_protocol import errors
from hsmux_protocol.columns import pack_column
from hsmux_protocol.envelope import SUITE_XAES_256_GCM, make_header
from hsmux_protocol.fields import write_fields
from hsmux_protocol.frames import Cancel, Error, Ping, Pong, Request, Result
from hsmux_protocol.operations import OPERATIONS
from tests.gateway.certificates import stranger
from tests.gateway.key_updates import update_keys
from tests.gateway.raw_client import RawClient, client_context, connect
from tests.gateway.running import Running, running_gateway, write_config

TIMEOUT_S = 20.0
SLOW = [pytest.param(40, id="few"), pytest.param(1000, id="many", marks=pytest.mark.long)]

LIMITS = """
[limits]
handshake_timeout_s = 60.0
send_timeout_s = 2.0
large_buffer_bytes_max = 16777216
requests_max = 256
"""


@pytest.fixture(scope="module")
def flooded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A gateway with small limits."""
    with running_gateway(write_config(tmp_path_factory.mktemp("flooded"), LIMITS)) as running:
        with connect(running.address, client_context(running.administrator)) as client:
            for name in ("first", "second"):
                _make_identity(running, client, name)
            usage: tuple[Any, ...] = (
                "AES_256",
                "ENCRYPT_DECRYPT",
                "software",
                None,
                "alias/key",
                "",
                {},
            )
            client.call("create_key", *usage)
        yield running
        assert "Traceback" not in running.log.read_text()


def _make_identity(running: Running, client: RawClient, name: str) -> None:
    client.call("create_access_point", name, "", ["administrator"], [], None)
    _, certificate, _, key = client.call("create_client_key", name, None, 30)
    pem = ssl.DER_cert_to_PEM_cert(certificate).encode() + key
    (running.directory / f"{name}.pem").write_bytes(pem)


@pytest.fixture
def first(flooded: Running) -> ssl.SSLContext:
    """TLS as the access point that floods."""
    return _context(flooded, "first")


@pytest.fixture
def second(flooded: Running) -> ssl.SSLContext:
    """TLS as another access point."""
    return _context(flooded, "second")


def _context(running: Running, name: str) -> ssl.SSLContext:
    context = stranger(running.administrator / "ca.pem")
    context.load_cert_chain(running.directory / f"{name}.pem")
    return context


def _batch(number: int, client: RawClient, size: int = 15) -> bytes:
    """A request of about `size` times 64 KiB."""
    operation = OPERATIONS["encrypt_batch"]
    arguments: tuple[Any, ...] = ("alias/key", {}, None, pack_column([bytes(65000)] * size))
    values = write_fields(operation.arguments, arguments)
    return client.protocol.send(Request(number, operation.number, 60_000, values, {}))


def _metric(running: Running, name: str) -> float:
    with urllib.request.urlopen(f"http://{running.health}/metrics", timeout=TIMEOUT_S) as answer:
        text: str = answer.read().decode()
    found = re.search(rf"^{name} (\S+)$", text, re.MULTILINE)
    assert found is not None, text
    return float(found[1])


def _until(holds: Callable[[], bool]) -> None:
    """Ask again and again; something else in the gateway makes it so."""
    pause = threading.Event()
    for _ in range(1000):
        if holds():
            return
        pause.wait(0.02)
    raise AssertionError("it never came")


def test_half_read_frames_of_one_access_point_leave_room_for_another(
    flooded: Running, first: ssl.SSLContext, second: ssl.SSLContext
) -> None:
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(connect(flooded.address, first)) for _ in range(24)]
        frames = [_batch(1, client) for client in slow]
        for client, frame in zip(slow, frames, strict=True):
            client.tls.settimeout(0.5)
            with contextlib.suppress(TimeoutError):
                client.tls.sendall(frame[:-1])
        # 24 frames of a megabyte do not fit: half of the budget is taken, and no more.
        held = _metric(flooded, "hsmux_large_buffer_bytes")
        assert 2 << 20 < held <= 8 << 20
        with connect(flooded.address, second) as other:
            for number in range(1, 4):
                other.tls.sendall(_batch(number, other))
                assert isinstance(other.receive(), Result)
    _until(lambda: _metric(flooded, "hsmux_large_buffer_bytes") == 0)


def test_frames_that_wait_for_room_are_all_answered_in_the_end(
    flooded: Running, first: ssl.SSLContext
) -> None:
    answered = []

    def send_one() -> None:
        with connect(flooded.address, first) as client:
            for number in range(1, 4):
                client.tls.sendall(_batch(number, client))
                frame = client.receive()
                assert isinstance(frame, Result | Error)
                answered.append(frame)

    threads = [threading.Thread(target=send_one) for _ in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(answered) == 72
    assert not [frame for frame in answered if isinstance(frame, Error)]
    assert _metric(flooded, "hsmux_large_buffer_bytes") == 0


def test_peers_that_read_nothing_are_dropped_and_hold_no_memory(
    flooded: Running, first: ssl.SSLContext, second: ssl.SSLContext
) -> None:
    before = _rss(flooded)
    with contextlib.ExitStack() as stack:
        deaf = [stack.enter_context(connect(flooded.address, first)) for _ in range(8)]
        for client in deaf:
            client.tls.settimeout(0.2)
            frame = _batch(1, client)
            with contextlib.suppress(TimeoutError, ssl.SSLError, OSError):
                for number in range(1, 100):
                    client.tls.sendall(frame if number == 1 else _batch(number, client, 8))
        assert _metric(flooded, "hsmux_large_buffer_bytes") <= 16 << 20
        assert _rss(flooded) - before < 64 << 20
        with connect(flooded.address, second) as other:
            assert other.call("encrypt", "alias/key", {}, bytes(60000))
        _until(lambda: _metric(flooded, "hsmux_connections") == 0)
    _until(lambda: _metric(flooded, "hsmux_large_buffer_bytes") == 0)
    assert '"reason": "too slow"' in flooded.log.read_text()


def _rss(running: Running) -> int:
    pages = Path(f"/proc/{running.process.pid}/statm").read_text().split()[1]
    return int(pages) * resource.getpagesize()


def test_an_access_point_with_too_much_work_is_busy_and_another_is_not(
    flooded: Running, first: ssl.SSLContext, second: ssl.SSLContext
) -> None:
    key: tuple[Any, ...] = ("RSA_4096", "SIGN_VERIFY", "software", None, None, "", {})
    with contextlib.ExitStack() as stack:
        flood = [stack.enter_context(connect(flooded.address, first)) for _ in range(3)]
        for client in flood:
            for _ in range(60):
                client.request("create_key", *key, budget_ms=1500)
        other = stack.enter_context(connect(flooded.address, second))
        quick: tuple[Any, ...] = ("EC_P256", "SIGN_VERIFY", "software", None, None, "", {})
        assert other.call("create_key", *quick, budget_ms=60_000)
        numbers = []
        for client in flood:
            for _ in range(60):
                frame = client.receive()
                assert isinstance(frame, Error | Result)
                numbers.append(frame.number if isinstance(frame, Error) else 0)
    assert errors.Busy.number in numbers
    assert set(numbers) <= {0, errors.Busy.number, errors.DeadlineExceeded.number}


def _costly(number: int, client: RawClient) -> bytes:
    """A request that takes the gateway far longer than its sender: ciphertexts of 16,384 keys."""
    header = make_header(SUITE_XAES_256_GCM, bytes(16), 1)
    items = [header[:4] + number.to_bytes(16, "big") + header[20:] for number in range(16384)]
    values = write_fields(
        OPERATIONS["decrypt_batch"].arguments, ("alias/key", {}, None, pack_column(items))
    )
    operation = OPERATIONS["decrypt_batch"].number
    return client.protocol.send(Request(number, operation, 60_000, values, {}))


def test_a_flood_on_many_connections_gets_one_share_of_the_loop(
    flooded: Running, first: ssl.SSLContext, second: ssl.SSLContext
) -> None:
    stop = threading.Event()
    floods = 0

    def flood() -> None:
        nonlocal floods
        with connect(flooded.address, first) as client:
            numbers = itertools.count(1)
            for _ in range(2):
                client.tls.sendall(_costly(next(numbers), client))
            while not stop.is_set():
                assert isinstance(client.receive(), Result | Error)
                floods += 1
                client.tls.sendall(_costly(next(numbers), client))

    threads = [threading.Thread(target=flood) for _ in range(6)]
    for thread in threads:
        thread.start()
    try:
        with connect(flooded.address, second) as other:
            _until(lambda: floods > 12)
            before = floods
            for number in range(100):
                assert other.call("encrypt", "alias/key", {}, b"%d" % number)
            spent = floods - before
    finally:
        stop.set()
        for thread in threads:
            thread.join(TIMEOUT_S)
    assert spent < 120


@pytest.mark.parametrize("says_hello", [True, False], ids=["known", "unknown"])
def test_peers_that_only_change_keys_are_closed_while_others_are_served(
    flooded: Running, first: ssl.SSLContext, second: ssl.SSLContext, says_hello: bool
) -> None:
    stop, closed = threading.Event(), itertools.count()
    host, port = flooded.address.rsplit(":", 1)

    def flood() -> None:
        while not stop.is_set():
            with (
                contextlib.suppress(OSError),
                socket.create_connection((host, int(port)), timeout=TIMEOUT_S) as plain,
                first.wrap_socket(plain, server_hostname="localhost") as tls,
            ):
                if says_hello:
                    RawClient(tls).hello()
                while update_keys(tls):
                    pass
            next(closed)

    before = _metric(flooded, "hsmux_connections_wasteful_total")
    threads = [threading.Thread(target=flood) for _ in range(6)]
    with connect(flooded.address, second) as other:
        for thread in threads:
            thread.start()
        try:
            # Each of these goes on until the gateway closes it, which it does again and again.
            _until(lambda: _metric(flooded, "hsmux_connections_wasteful_total") >= before + 6)
            for number in range(100):
                assert other.call("encrypt", "alias/key", {}, b"%d" % number)
        finally:
            stop.set()
            for thread in threads:
                thread.join(TIMEOUT_S)
    assert next(closed) >= 6
    assert _metric(flooded, "hsmux_connections_wasteful_total") <= before + next(closed)
    if says_hello:
        assert '"reason": "too many records that carry nothing"' in flooded.log.read_text()


def _talk_at_random(client: RawClient, choose: random.Random) -> None:
    """Requests that wait or do not, cancellations, key updates, and a torn frame at the end."""
    key: tuple[Any, ...] = ("RSA_4096", "SIGN_VERIFY", "software", None, None, "", {})
    numbers = [1000]
    for _ in range(choose.randrange(20, 200)):
        kind = choose.randrange(5)
        if kind == 0:
            numbers.append(client.request("create_key", *key, budget_ms=choose.choice((1, 60_000))))
        elif kind == 1:
            numbers.append(client.request("encrypt", "alias/key", {}, bytes(100)))
        elif kind == 2:
            client.tls.sendall(client.protocol.send(Cancel(choose.choice(numbers))))
        elif kind == 3:
            client.tls.sendall(client.protocol.send(Ping(1)))
        else:
            update_keys(client.tls, asks=choose.random() < 0.5)
    torn = client.protocol.send(Ping(2))
    client.tls.sendall(torn[: choose.randrange(len(torn))])
    if choose.random() < 0.5:
        client.tls.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@pytest.mark.parametrize("count", [pytest.param(20, id="few"), SLOW[1]])
def test_peers_that_leave_in_the_middle_of_anything_leave_nothing_behind(
    flooded: Running, first: ssl.SSLContext, count: int
) -> None:
    for number in range(count):
        with connect(flooded.address, first) as client:
            _talk_at_random(client, random.Random(number))
    for name in ("hsmux_connections", "hsmux_calls_in_work", "hsmux_large_buffer_bytes"):
        _until(lambda name=name: _metric(flooded, name) == 0)  # type: ignore[misc]


@pytest.mark.parametrize("count", SLOW)
def test_slow_peers_cost_the_others_nothing(
    flooded: Running, first: ssl.SSLContext, second: ssl.SSLContext, count: int
) -> None:
    with contextlib.ExitStack() as stack:
        dribbling = [stack.enter_context(connect(flooded.address, first)) for _ in range(count)]
        with connect(flooded.address, second) as other:
            for number in range(200):
                # The beginning of a frame of 1,000 bytes, byte by byte.
                byte = b"\0\0\x03\xe8\x96\x03"[number // count :][:1]
                dribbling[number % count].tls.sendall(byte)
                assert other.call("encrypt", "alias/key", {}, b"x")
        assert _rss(flooded) < (256 << 20) + count * (96 << 10)


@pytest.mark.parametrize("count", SLOW)
def test_peers_that_never_say_who_they_are_do_not_keep_others_out(
    flooded: Running, first: ssl.SSLContext, count: int
) -> None:
    host, port = flooded.address.rsplit(":", 1)
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            silent = socket.create_connection((host, int(port)), timeout=TIMEOUT_S)
            stack.enter_context(silent)
        with connect(flooded.address, first) as client:
            assert client.call("generate_random", 8)


@pytest.mark.parametrize("ca", [False, True], ids=["silent", "half a handshake"])
def test_a_flood_of_connections_leaves_room_for_who_is_quick(tmp_path: Path, ca: bool) -> None:
    config = write_config(tmp_path, "[limits]\nconnections_max = 20\nhandshake_timeout_s = 60.0\n")
    with running_gateway(config) as running, contextlib.ExitStack() as stack:
        host, port = running.address.rsplit(":", 1)
        context = client_context(running.administrator)
        for _ in range(60):
            opened = stack.enter_context(
                socket.create_connection((host, int(port)), timeout=TIMEOUT_S)
            )
            if ca:
                opened.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
        clients = []
        for _ in range(20):
            client = stack.enter_context(connect(running.address, context))
            assert client.call("generate_random", 8)
            clients.append(client)
        # Now all places are taken by those who said who they are.
        assert _metric(running, "hsmux_connections_refused_total") >= 60
        last = stack.enter_context(socket.create_connection((host, int(port)), timeout=TIMEOUT_S))
        assert last.recv(1) == b""
        _until(lambda: _metric(running, "hsmux_connections") == 20)
        for client in clients:
            client.tls.sendall(client.protocol.send(Ping(1)))
            assert client.receive() == Pong(1)
        assert running.stop() == 0
        # They are told of in a line or two, not in one each.
        lines = running.log.read_text().splitlines()
        told = [json.loads(line) for line in lines if "not welcomed" in line]
        assert 1 <= len(told) <= 3
        assert sum(line["number"] for line in told) >= 60


def test_a_gateway_with_few_descriptors_keeps_some_for_itself(tmp_path: Path) -> None:
    limits = "[limits]\nhandshake_timeout_s = 60.0\n"
    before = ("prlimit", "--nofile=96:96")
    with running_gateway(write_config(tmp_path, limits), before=before) as running:
        context = client_context(running.administrator)
        host, port = running.address.rsplit(":", 1)
        with contextlib.ExitStack() as stack:
            for _ in range(200):
                stack.enter_context(socket.create_connection((host, int(port)), timeout=TIMEOUT_S))
            with connect(running.address, context) as client:
                for _ in range(20):
                    key: tuple[Any, ...] = (
                        "AES_256",
                        "ENCRYPT_DECRYPT",
                        "software",
                        None,
                        None,
                        "",
                        {},
                    )
                    assert client.call("create_key", *key)
            assert _metric(running, "hsmux_connections") <= 96 - 64
        with connect(running.address, context) as client:
            assert client.call("generate_random", 8)
        assert "Traceback" not in running.log.read_text()
