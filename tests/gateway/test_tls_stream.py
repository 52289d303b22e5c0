"""The TLS stream by itself: what a peer's records may cost, in steps, time and memory."""

import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
import trio
import trio.testing
import trustme
from hypothesis import given
from hypothesis import strategies as st

from hsmux_gateway.fairness import Turns
from hsmux_gateway.tls import (
    RECEIVE_SIZE,
    RECORDS_EMPTY_MAX,
    RECORDS_MAX,
    TlsClosed,
    TlsStream,
    TlsWaste,
    new_server_context,
)
from hsmux_gateway.tls_records import RecordBorders
from hsmux_protocol.connection import ALPN
from tests.gateway.key_updates import update_keys

TENANT = b"t" * 16
UPDATE_SIZE = 27
"""Bytes of a record with a KeyUpdate."""


def _record(size: int) -> bytes:
    return b"\x17\x03\x03" + size.to_bytes(2, "big") + bytes(size)


@given(
    st.lists(st.integers(0, 40), max_size=20),
    st.lists(st.integers(1, 30), min_size=1),
    st.integers(1, 5),
)
def test_borders_are_found_however_the_bytes_come(
    sizes: list[int], pieces: list[int], records_max: int
) -> None:
    data = b"".join(_record(size) for size in sizes)
    ends = {sum(size + 5 for size in sizes[:number]) for number in range(len(sizes) + 1)}
    borders, position, found, turn = RecordBorders(), 0, 0, 0
    while position < len(data):
        piece = memoryview(data)[position : position + pieces[turn % len(pieces)]]
        turn += 1
        while piece:
            passed, records = borders.advance(piece, records_max)
            assert 0 < passed <= len(piece) and records <= records_max
            position, found, piece = position + passed, found + records, piece[passed:]
            # It stops early only between two records.
            assert not piece or (records == records_max and position in ends)
    assert found == len(sizes)


@pytest.fixture(scope="module")
def contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Of the server and of a client that trust one another."""
    ca = trustme.CA()
    server = new_server_context()
    ca.issue_cert("localhost").configure_cert(server)
    ca.configure_trust(server)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.set_alpn_protocols([ALPN])
    ca.issue_cert("client@example.org").configure_cert(client)
    ca.configure_trust(client)
    return server, client


class Peer:
    """The client's end: OpenSSL over memory, so that its bytes can be sent when a test likes."""

    def __init__(self, context: ssl.SSLContext, stream: trio.SocketStream) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname="localhost")
        self.stream = stream

    async def handshake(self) -> None:
        """Shake hands."""
        while True:
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                await self.send()
                self._incoming.write(await self.stream.receive_some())
            else:
                return await self.send()

    async def send(self) -> None:
        """Send what was written."""
        if data := self._outgoing.read():
            await self.stream.send_all(data)

    def updates(self, number: int, *, asks: bool = False) -> None:
        """Write key updates."""
        for _ in range(number):
            assert update_keys(self.tls, asks=asks)


@asynccontextmanager
async def _pair(
    contexts: tuple[ssl.SSLContext, ssl.SSLContext],
    turns: Turns | None = None,
    send_timeout_s: float = 30.0,
) -> AsyncIterator[tuple[TlsStream, Peer]]:
    """Both ends of a connection after its handshake."""
    ours, theirs = (trio.socket.from_stdlib_socket(end) for end in socket.socketpair())
    for end in (ours, theirs):
        for option in (trio.socket.SO_SNDBUF, trio.socket.SO_RCVBUF):
            end.setsockopt(trio.socket.SOL_SOCKET, option, 1 << 20)
    tls = TlsStream(ours, contexts[0], turns=turns, send_timeout_s=send_timeout_s)
    peer = Peer(contexts[1], trio.SocketStream(theirs))
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tls.handshake)
            nursery.start_soon(peer.handshake)
        yield tls, peer
    finally:
        theirs.close()
        await tls.close()


async def _steps_of_decrypting(tls: TlsStream) -> tuple[bytes, int]:
    """What one read brought, and how often others could run while it was decrypted."""
    steps, data = 0, b""

    async def count() -> None:
        nonlocal steps
        while True:
            await trio.lowlevel.checkpoint()
            steps += 1

    await tls.wait(RECEIVE_SIZE)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(count)
        data = await tls.decrypt()
        nursery.cancel_scope.cancel()
    return data, steps


async def test_others_run_between_bounded_numbers_of_records(
    contexts: tuple[ssl.SSLContext, ssl.SSLContext],
) -> None:
    async with _pair(contexts) as (tls, peer):
        peer.updates(RECORDS_EMPTY_MAX)
        await peer.send()
        data, steps = await _steps_of_decrypting(tls)
        assert data == b"" and steps >= RECORDS_EMPTY_MAX // RECORDS_MAX - 3
        for number in range(3000):
            peer.tls.write(bytes([number % 256]))
        await peer.send()
        data, steps = await _steps_of_decrypting(tls)
        assert data == bytes(number % 256 for number in range(3000))
        assert steps >= 3000 // RECORDS_MAX - 3


async def test_the_time_of_decrypting_is_the_tenants(
    contexts: tuple[ssl.SSLContext, ssl.SSLContext],
    autojump_clock: trio.testing.MockClock,
) -> None:
    # Less than any slice takes: the second one parks, and nobody begins another round.
    turns = Turns(quantum_ns=10_000)
    async with _pair(contexts) as (tls, peer), trio.open_nursery() as nursery:
        tls._turns, tls.tenant = turns, TENANT
        peer.updates(2 * RECORDS_MAX)
        peer.tls.write(b"the end")
        await peer.send()
        await tls.wait(RECEIVE_SIZE)
        with trio.move_on_after(5) as scope:
            await tls.decrypt()
        assert scope.cancelled_caught
        # Another tenant has its own time; and what was parked goes on where it was.
        await turns.take(b"another")
        nursery.start_soon(turns.run)
        assert await tls.decrypt() == b"the end"
        nursery.cancel_scope.cancel()


async def test_a_peer_whose_records_carry_nothing_is_closed(
    contexts: tuple[ssl.SSLContext, ssl.SSLContext],
) -> None:
    async with _pair(contexts) as (tls, peer):
        for _ in range(3):
            # What carries something makes up for as much that does not.
            for _ in range(RECORDS_EMPTY_MAX):
                peer.updates(1)
                peer.tls.write(b"x")
            await peer.send()
            assert len(await tls.receive(RECEIVE_SIZE)) == RECORDS_EMPTY_MAX
        peer.updates(RECORDS_EMPTY_MAX)
        peer.tls.write(b"last")
        await peer.send()
        assert await tls.receive(RECEIVE_SIZE) == b"last"
        peer.updates(RECORDS_EMPTY_MAX + 1)
        await peer.send()
        with pytest.raises(TlsWaste):
            await tls.receive(RECEIVE_SIZE)


async def test_answers_to_key_updates_wait_for_the_peer_and_so_do_its_bytes(
    contexts: tuple[ssl.SSLContext, ssl.SSLContext],
    mock_clock: trio.testing.MockClock,
) -> None:
    async with _pair(contexts, send_timeout_s=5.0) as (tls, peer):
        mock_clock.autojump_threshold = 0.1
        tls._socket.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_SNDBUF, 1)
        began = trio.current_time()
        with pytest.raises(trio.TooSlowError):
            while True:
                for _ in range(RECORDS_MAX):
                    peer.updates(1, asks=True)
                    peer.tls.write(b"x")
                await peer.send()
                assert await tls.receive(RECEIVE_SIZE) == b"x" * RECORDS_MAX
                assert tls._outgoing.pending == 0
        assert trio.current_time() - began >= 5.0
        assert tls._outgoing.pending <= RECORDS_MAX * UPDATE_SIZE


async def test_what_the_socket_does_not_take_at_once_leaves_in_order(
    contexts: tuple[ssl.SSLContext, ssl.SSLContext],
) -> None:
    async with _pair(contexts) as (tls, peer):
        pieces = [bytes([number]) * (256 << 10) for number in range(24)]
        at_once = [tls.try_send(piece) for piece in pieces]
        # Nothing overtakes the first piece that did not leave whole.
        assert at_once == sorted(at_once, reverse=True)
        assert at_once[0] and not at_once[-1]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tls.flush)
            nursery.start_soon(tls.flush)
            received = bytearray()
            while len(received) < sum(map(len, pieces)):
                peer._incoming.write(await peer.stream.receive_some())
                with suppress(ssl.SSLWantReadError):
                    while True:
                        received += peer.tls.read(1 << 20)
        assert received == b"".join(pieces)
        assert tls.try_send(b"more")


async def test_a_send_that_is_cut_off_breaks_the_stream(
    contexts: tuple[ssl.SSLContext, ssl.SSLContext],
) -> None:
    async with _pair(contexts) as (tls, _):
        while tls.try_send(bytes(256 << 10)):
            pass
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tls.flush)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        assert tls.broken
        with pytest.raises(TlsClosed, match="cut off"):
            tls.try_send(b"more")


@pytest.mark.parametrize("record_size", [1, 16000])
async def test_a_handshake_longer_than_any_is_cut_off(
    contexts: tuple[ssl.SSLContext, ssl.SSLContext], record_size: int
) -> None:
    ours, theirs = (trio.socket.from_stdlib_socket(end) for end in socket.socketpair())
    tls, stream = TlsStream(ours, contexts[0]), trio.SocketStream(theirs)
    # A ClientHello of 127 KiB, all of which OpenSSL would wait for.
    body = b"\x01" + (127 << 10).to_bytes(3, "big") + bytes(127 << 10)
    pieces = [body[start : start + record_size] for start in range(0, len(body), record_size)]
    hello = b"".join(b"\x16\x03\x01" + len(p).to_bytes(2, "big") + p for p in pieces)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.send_all, hello)
        with pytest.raises(TlsWaste):
            await tls.handshake()
        nursery.cancel_scope.cancel()
    theirs.close()
    await tls.close()
