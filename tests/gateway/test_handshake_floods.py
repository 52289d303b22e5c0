"""Floods of those who are nobody: the audit log grows by so much and no more, others are served."""

import contextlib
import datetime
import itertools
import resource
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from hsmux_gateway.audit.chain import FRAME_OVERHEAD
from hsmux_gateway.audit.floods import FLOOD_SIZE_MAX, SOURCES_MAX, WINDOW_S
from hsmux_gateway.audit.reading import export
from hsmux_gateway.audit.records import Flood, write_record
from hsmux_gateway.connection import REFUSALS
from hsmux_gateway.tls import HANDSHAKE_SIZE_MAX
from tests.gateway.certificates import DAY, Identity, self_signed, stranger
from tests.gateway.raw_client import client_context, connect
from tests.gateway.running import Running, running_gateway, write_config

TIMEOUT_S = 20.0
THREADS = 4
SOURCES = 3 * SOURCES_MAX
"""Addresses they come from; all of 127.0.0.0/8 is this host."""

Try = Callable[[socket.socket], None]
"""What somebody does on a connection until it ends."""


def _large(size: int) -> Identity:
    """A certificate of at least so many bytes that nobody else signed."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "large")])
    now = datetime.datetime.now(datetime.UTC)
    filler = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.32473.1"), bytes(size))
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, now - DAY, now + DAY)
        .add_extension(filler, critical=False)
        .sign(key, hashes.SHA256())
    )
    assert len(certificate.public_bytes(serialization.Encoding.DER)) > size
    return Identity([certificate], key)


def _shakes_hands(context: ssl.SSLContext) -> Try:
    def attempt(plain: socket.socket) -> None:
        with context.wrap_socket(plain, server_hostname="localhost") as tls:
            assert tls.recv(1) == b""

    return attempt


def _says(data: bytes) -> Try:
    def attempt(plain: socket.socket) -> None:
        plain.sendall(data)
        while plain.recv(4096):
            pass

    return attempt


def _hangs_up(plain: socket.socket) -> None:
    """Half a handshake, and gone."""
    plain.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")


def _tries(running: Running, directory: Path) -> list[Try]:
    ca = running.administrator / "ca.pem"
    made = []
    for number, identity in enumerate([self_signed(), _large(30 * 1024), _large(40 * 1024)]):
        place = directory / str(number)
        place.mkdir()
        made.append(_shakes_hands(identity.context(ca, place)))
    return [*made, _shakes_hands(stranger(ca)), _says(b"GET / HTTP/1.1\r\n\r\n"), _hangs_up]


class FloodOfTries:
    """Threads that try again and again, from one address after another."""

    def __init__(self, address: str, tries: list[Try]) -> None:
        host, port = address.rsplit(":", 1)
        self._target = host, int(port)
        self._tries = itertools.cycle(tries)
        self._numbers = itertools.count()
        self._stop = threading.Event()
        self.done = 0
        self.surprises: list[BaseException] = []

    @contextlib.contextmanager
    def going_on(self) -> Iterator[None]:
        """While it does."""
        threads = [threading.Thread(target=self._run) for _ in range(THREADS)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            for thread in threads:
                thread.join(TIMEOUT_S)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._try_once()
            except OSError:
                # An alert, or a connection that was ended: as it should be.
                pass
            except BaseException as error:
                self.surprises.append(error)
                return
            self.done += 1

    def _try_once(self) -> None:
        number = next(self._numbers) % SOURCES
        source = f"127.1.{number // 200}.{number % 200 + 1}", 0
        with socket.create_connection(self._target, TIMEOUT_S, source_address=source) as plain:
            next(self._tries)(plain)


def _rss(running: Running) -> int:
    pages = Path(f"/proc/{running.process.pid}/statm").read_text().split()[1]
    return int(pages) * resource.getpagesize()


@pytest.mark.parametrize(
    "seconds", [pytest.param(3, id="short"), pytest.param(60, id="long", marks=pytest.mark.long)]
)
def test_a_flood_of_failed_handshakes_fills_no_disk_and_keeps_nobody_out(
    tmp_path: Path, seconds: int
) -> None:
    with running_gateway(write_config(tmp_path)) as running:
        context = client_context(running.administrator)
        flood = FloodOfTries(running.address, _tries(running, tmp_path))
        rss = _rss(running)
        between, served = [], 0
        began = time.monotonic()
        with connect(running.address, context) as known, flood.going_on():
            while time.monotonic() - began < seconds or flood.done < SOURCES:
                before = flood.done
                assert known.call("generate_random", 8)
                if served % 20 == 0:
                    with connect(running.address, context) as new:
                        assert new.call("generate_random", 8)
                between.append(flood.done - before)
                served += 1
        grown = _rss(running) - rss
        elapsed_s = time.monotonic() - began
        assert running.stop() == 0
        lines = running.log.read_text().splitlines()
    assert flood.surprises == []
    records = [record for _, _, record in export(running.directory / "audit")]
    floods = [record for record in records if isinstance(record, Flood)]
    # All that were refused are counted, and most of those who tried were.
    assert flood.done // 2 <= sum(record.count for record in floods) <= flood.done + THREADS
    assert {record.reason for record in floods} <= set(REFUSALS)
    assert len({record.source for record in floods}) > SOURCES_MAX
    # The bound that `docs/denial-of-service.md` tells, whatever they do.
    windows = elapsed_s // WINDOW_S + 2
    sizes = [len(write_record(record)) + FRAME_OVERHEAD for record in floods]
    assert len(sizes) <= windows * (SOURCES_MAX + len(REFUSALS))
    assert sum(sizes) <= windows * FLOOD_SIZE_MAX
    # No line of the log for each of them, either.
    assert len([line for line in lines if "not welcomed" in line]) <= windows * 33
    assert not [line for line in lines if "Traceback" in line]
    # Who is known is served as before: between two of its answers only a few of them got theirs.
    assert sorted(between)[len(between) * 99 // 100] <= 50
    assert grown < 64 << 20


def test_a_certificate_that_is_larger_than_a_handshake_may_be_is_not_looked_at(
    tmp_path: Path,
) -> None:
    ends: dict[int, tuple[str, str]] = {
        30 * 1024: ("alert unknown ca", "handshake refused: CERTIFICATE_VERIFY_FAILED"),
        90 * 1024: ("closed", "a handshake longer than any"),
    }
    assert 30 * 1024 < HANDSHAKE_SIZE_MAX < 90 * 1024
    with running_gateway(write_config(tmp_path)) as running:
        host, port = running.address.rsplit(":", 1)
        for size, (seen, _) in ends.items():
            place = tmp_path / str(size)
            place.mkdir()
            attempt = _shakes_hands(_large(size).context(running.administrator / "ca.pem", place))
            with socket.create_connection((host, int(port)), TIMEOUT_S) as plain:
                try:
                    attempt(plain)
                    found = "closed"
                except OSError as error:
                    found = str(error)
            assert seen in found
        assert running.stop() == 0
        log = running.log.read_text()
    assert all(f'"reason": "{reason}"' in log for _, reason in ends.values())
