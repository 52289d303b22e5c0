"""When a silent gateway is taken for lost, by a clock that a test sets."""

import socket
from collections.abc import Iterator

import pytest

from hsmux._link import Link, Slot
from hsmux._retry import TimedOut
from hsmux._tls import ConnectionLost, make_client_context
from hsmux._wire import SILENT_S, STALE_S, Wire, set_options
from hsmux_protocol.errors import Cancelled
from hsmux_protocol.frames import Cancel, Request, Result
from hsmux_protocol.operations import OPERATIONS
from tests.client.peer import Certificates, Peer, error_frame, welcome

PIECE = 1 << 20


class Ends:
    """An open wire and the peer at the other end of its socket.

    Attributes:
        now: What the wire's clock tells.
    """

    def __init__(self, certificates: Certificates) -> None:
        self.now = 100.0
        ours, self.theirs = socket.socketpair()
        ours.setblocking(False)
        context = make_client_context(certificates.profile("localhost:1"))
        self.wire = Wire(Link(context, "localhost"), ours, lambda: self.now)
        self.peer = Peer(certificates.server_context())
        self.exchange()
        self.peer.send(welcome())
        self.exchange()
        assert self.wire.link.is_open

    def exchange(self) -> list[object]:
        """Move everything both ways; the frames that the peer received."""
        frames: list[object] = []
        self.theirs.setblocking(False)
        for _ in range(4):
            self.wire.flush()
            try:
                frames += self.peer.receive(self.theirs.recv(PIECE))
            except BlockingIOError:
                pass
            self.theirs.sendall(self.peer.take_outgoing())
            self.wire.receive()
        return frames

    def submit(self) -> Slot:
        """A request with 10 s."""
        slot = Slot(OPERATIONS["generate_random"], lambda: None)
        self.wire.submit(slot, [1], self.now + 10, {})
        return slot


@pytest.fixture
def ends(certificates: Certificates) -> Iterator[Ends]:
    """An open wire."""
    made = Ends(certificates)
    with made.theirs, made.wire.socket:
        yield made


def test_a_gateway_that_owes_nothing_may_be_silent(ends: Ends) -> None:
    assert not ends.wire.is_stale
    ends.now += 1000
    assert ends.wire.is_stale and not ends.wire.is_silent
    slot = ends.submit()
    assert not ends.wire.is_silent and not ends.wire.is_stale
    ends.exchange()
    ends.peer.send(Result(slot.id, [b"x"]))
    ends.now += 1000
    ends.exchange()
    assert not ends.wire.is_silent and not ends.wire.is_stale


def test_one_that_owes_an_answer_may_not(ends: Ends) -> None:
    ends.submit()
    ends.now += SILENT_S
    assert not ends.wire.is_silent
    ends.now += 0.01
    assert ends.wire.is_silent
    # A sign of life is enough: others' answers count.
    ends.peer.write(b"\0\0\0\x03\x92\x07\x01")
    ends.exchange()
    assert not ends.wire.is_silent


def test_requests_that_were_given_up_are_owed_too(ends: Ends) -> None:
    """A caller whose timeouts are shorter than the silence finds out as well."""
    for _ in range(5):
        slot = ends.submit()
        ends.now += SILENT_S / 4
        ends.wire.link.give_up(slot)
    assert ends.wire.is_silent
    frames = ends.exchange()
    assert len(frames) == 10
    for frame in frames:
        if isinstance(frame, Request):
            ends.peer.send(error_frame(frame.id, Cancelled("cancelled")))
        else:
            assert isinstance(frame, Cancel)
    ends.exchange()
    ends.now += 1000
    assert not ends.wire.is_silent


def test_nothing_leaves_after_its_deadline(ends: Ends) -> None:
    slot = Slot(OPERATIONS["generate_random"], lambda: None)
    with pytest.raises(TimedOut):
        ends.wire.submit(slot, [1], ends.now, {})
    assert ends.exchange() == [] and not ends.wire.link.is_owed
    ends.wire.submit(slot, [1], ends.now + 2.5, {})
    (request,) = ends.exchange()
    assert isinstance(request, Request) and request.budget_ms == 2500


def test_what_the_socket_does_not_take_is_kept_in_order(ends: Ends) -> None:
    ends.wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    slots = []
    for number in range(20):
        slot = Slot(OPERATIONS["encrypt"], lambda: None)
        plaintext = bytes([number]) * 60_000
        ends.wire.submit(slot, ["alias/a", {}, plaintext], ends.now + 10, {})
        slots.append(slot)
    assert ends.wire.has_unsent
    frames: list[object] = []
    while len(frames) < 20:
        frames += ends.exchange()
    assert not ends.wire.has_unsent
    sent = [frame.arguments[2][0] for frame in frames if isinstance(frame, Request)]
    assert sent == list(range(20))


@pytest.mark.parametrize("end", ["shutdown", "reset"])
def test_an_end_of_the_socket_ends_the_link(ends: Ends, end: str) -> None:
    slot = ends.submit()
    if end == "shutdown":
        ends.theirs.shutdown(socket.SHUT_RDWR)
        ends.wire.receive()
    else:
        ends.theirs.close()
        ends.wire.link.give_up(ends.submit())
        ends.wire.flush()
    with pytest.raises(ConnectionLost):
        slot.take()
    ends.wire.receive()
    ends.wire.flush()
    assert STALE_S > 0


def test_a_socket_gets_its_options() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        with socket.create_connection(listening.getsockname()) as connected:
            set_options(connected)
            assert connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 30_000
            assert not connected.getblocking()
