"""The health server: what it says, and that nothing sent to it harms the gateway."""

import contextlib
import http.client
import resource
import signal
import socket
import threading
from pathlib import Path

import pytest

from hsmux_protocol import errors
from hsmux_protocol.frames import Goaway
from tests.gateway.journals import requests_in
from tests.gateway.raw_client import RawClient, client_context, connect
from tests.gateway.running import Running, running_gateway, write_config

TIMEOUT_S = 15.0


def ask(
    running: Running, path: str, method: str = "GET", body: bytes | None = None
) -> tuple[int, str]:
    """Status and body of an HTTP request."""
    connection = http.client.HTTPConnection(running.health, timeout=TIMEOUT_S)
    with contextlib.closing(connection):
        connection.request(method, path, body)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()


def test_it_says_how_the_gateway_is(gateway: Running, client: RawClient) -> None:
    client.call("generate_random", 8)
    client.call(
        "create_key", "AES_256", "ENCRYPT_DECRYPT", "software", None, "alias/secret", "", {}
    )
    assert ask(gateway, "/healthz") == (200, "ok\n")
    assert ask(gateway, "/readyz") == (200, "ready\n")
    status, metrics = ask(gateway, "/metrics")
    assert status == 200
    assert 'hsmux_calls_total{operation="generate_random",outcome="done"}' in metrics
    assert 'hsmux_call_seconds_bucket{le="+Inf",operation="generate_random"}' in metrics
    assert "hsmux_connections 1.0" in metrics
    # Names and identifiers have no bound, and are nobody's business here.
    for secret in ("administrator", "secret", "key-", "127.0.0.1"):
        assert secret not in metrics
    assert ask(gateway, "/other")[0] == 404
    assert ask(gateway, "/metrics?key=x")[0] == 404


def test_other_methods_are_refused(gateway: Running) -> None:
    assert ask(gateway, "/readyz", "HEAD") == (200, "")
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH"):
        assert ask(gateway, "/readyz", method)[0] == 405
    assert ask(gateway, "/readyz", "POST", b"x" * 300_000)[0] == 405


GARBAGE = {
    "nothing": b"",
    "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(400),
    "half a request": b"GET /healthz HT",
    "no host": b"GET /healthz HTTP/1.1\r\n\r\n",
    "HTTP/1.0": b"GET /healthz HTTP/1.0\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a huge target": b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    "many headers": b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 5000 + b"\r\n",
    "a header of NUL": b"GET / HTTP/1.1\r\nHost: x\r\nA: \0\r\n\r\n",
    "two lengths": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    "a bad chunk": b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    "two requests": b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n" * 2,
    "a tunnel": b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n",
    "an upgrade": b"GET / HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
}


@pytest.mark.parametrize("name", GARBAGE)
def test_garbage_ends_its_own_exchange_only(gateway: Running, name: str) -> None:
    host, port = gateway.health.rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=TIMEOUT_S) as plain:
        with contextlib.suppress(OSError):
            plain.sendall(GARBAGE[name])
            plain.shutdown(socket.SHUT_WR)
            while plain.recv(65536):
                pass
    assert ask(gateway, "/healthz") == (200, "ok\n")


def test_connections_that_say_nothing_make_room_in_time(
    gateway: Running, client: RawClient
) -> None:
    host, port = gateway.health.rsplit(":", 1)
    with contextlib.ExitStack() as stack:
        for _ in range(100):
            silent = socket.create_connection((host, int(port)), timeout=TIMEOUT_S)
            stack.enter_context(silent)
        assert client.call("generate_random", 8)
        assert len(list(Path(f"/proc/{gateway.process.pid}/fd").iterdir())) < 100
    assert ask(gateway, "/healthz") == (200, "ok\n")


def test_a_gateway_without_a_health_server_serves_until_a_client_is_idle(tmp_path: Path) -> None:
    config = write_config(tmp_path, "[limits]\nidle_timeout_s = 0.3\n")
    config.write_text(
        config.read_text().replace('[health]\nlisten = "127.0.0.1:0"', '[health]\nlisten = ""')
    )
    with running_gateway(config) as running:
        assert running.health == ""
        with connect(running.address, client_context(running.administrator)) as client:
            assert client.call("generate_random", 8)
            with pytest.raises(EOFError):
                client.receive()


def test_a_stopping_gateway_is_not_ready(tmp_path: Path) -> None:
    with running_gateway(write_config(tmp_path)) as running:
        with connect(running.address, client_context(running.administrator)) as client:
            # A frame that has begun keeps the connection until its time is over.
            client.tls.sendall(b"\0\0\0\x10")
            running.process.send_signal(signal.SIGTERM)
            assert isinstance(client.receive(), Goaway)
            assert ask(running, "/readyz") == (503, "gateway: stopping\n")
            assert ask(running, "/healthz") == (200, "ok\n")
        assert running.process.wait(TIMEOUT_S) == 0


def test_a_full_disk_stops_answers_and_nothing_else(tmp_path: Path) -> None:
    with running_gateway(write_config(tmp_path)) as running:
        context = client_context(running.administrator)
        pid = running.process.pid
        with connect(running.address, context) as client:
            aes = ("AES_256", "ENCRYPT_DECRYPT", "software", None, "alias/kept")
            client.call("create_key", *aes, "", {})
            envelope = client.call("encrypt", "alias/kept", {}, b"kept")[0]
            before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
            # Every file of the gateway is at its largest now: audit, log, store.
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (1, before[1]))
            with pytest.raises((EOFError, OSError)):
                while True:
                    client.call("decrypt", None, {}, envelope)
        with connect(running.address, context) as client:
            for _ in range(3):
                with pytest.raises(errors.Unavailable, match="recorded"):
                    client.call("decrypt", None, {}, envelope)
            assert ask(running, "/readyz") == (503, "audit: cannot be written\n")
            resource.prlimit(pid, resource.RLIMIT_FSIZE, before)
            assert _when_written(client, envelope) == b"kept"
            assert ask(running, "/readyz") == (200, "ready\n")
        assert running.stop() == 0
        records = requests_in(running.directory / "audit")
    # What was done when the disk was full is on record, though its answer never left.
    done = [r for r in records if (r["operation"], r["outcome"]) == ("decrypt", "done")]
    assert len(done) == 2


def _when_written(client: RawClient, envelope: bytes) -> bytes:
    pause = threading.Event()
    for _ in range(500):
        try:
            plaintext: bytes = client.call("decrypt", None, {}, envelope)[0]
            return plaintext
        except errors.Unavailable:
            pause.wait(0.02)
    raise AssertionError("it never came back")
