"""The sans-IO link against the gateway's own state machine, over TLS in memory."""

from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hsmux._link import Link, Slot
from hsmux._tls import ClientClosed, ConnectionLost, make_client_context
from hsmux_protocol import errors
from hsmux_protocol.connection import ANNOUNCED_LIMITS
from hsmux_protocol.frames import (
    Cancel,
    Error,
    Frame,
    Goaway,
    Hello,
    Ping,
    Pong,
    Request,
    Result,
    encode_frame,
)
from hsmux_protocol.limits import FRAME_SIZE_MAX
from hsmux_protocol.operations import OPERATIONS
from tests.client.peer import Certificates, Peer, error_frame, welcome

RANDOM = OPERATIONS["generate_random"]
PLENTY = 10**9


class Pair:
    """A link and a peer, and the wire between them."""

    def __init__(self, certificates: Certificates, piece: int = PLENTY) -> None:
        profile = certificates.profile("localhost:1")
        self.link = Link(make_client_context(profile), "localhost")
        self.peer = Peer(certificates.server_context())
        self.piece = piece
        self.received: list[Frame] = []

    def to_peer(self) -> bool:
        """Move what the link sends; whether there was anything."""
        data = self.link.take_outgoing()
        for start in range(0, len(data), self.piece):
            self.received += self.peer.receive(data[start : start + self.piece])
        return bool(data)

    def to_link(self) -> bool:
        """Move what the peer sends; whether there was anything."""
        data = self.peer.take_outgoing()
        for start in range(0, len(data), self.piece):
            self.link.receive(data[start : start + self.piece])
        return bool(data)

    def exchange(self) -> list[Frame]:
        """Move bytes until both are silent; the frames that the peer received."""
        while self.to_peer() | self.to_link():
            pass
        frames, self.received = self.received, []
        return frames

    def open(self, **limits: int) -> "Pair":
        """Shake hands and greet."""
        (hello,) = self.exchange()
        assert isinstance(hello, Hello)
        self.peer.send(welcome(**limits))
        self.exchange()
        assert self.link.is_open
        return self

    def submit(self, length: int = 1) -> Slot:
        """Send a request that nobody waits for."""
        slot = Slot(RANDOM, lambda: None)
        self.link.submit(slot, [length], 1000, {})
        return slot


@pytest.fixture
def pair(certificates: Certificates) -> Pair:
    """An open link."""
    return Pair(certificates).open()


@pytest.mark.parametrize("piece", [1, 7, PLENTY])
def test_requests_and_answers_pass_in_any_pieces(certificates: Certificates, piece: int) -> None:
    pair = Pair(certificates, piece).open()
    slots = [pair.submit(length) for length in (1, 4096, 2)]
    requests = pair.exchange()
    assert [r.arguments for r in requests if isinstance(r, Request)] == [[1], [4096], [2]]
    for slot in reversed(slots):
        pair.peer.send(Result(slot.id, [slot.id * b"a"]))
    pair.exchange()
    assert [slot.take() for slot in slots] == [[b"a"], [b"aa"], [b"aaa"]]
    assert pair.link.is_idle and not pair.link.is_owed


def test_a_slot_is_woken_once_and_only_by_its_own_answer(pair: Pair) -> None:
    woken: list[str] = []
    slots = {name: Slot(RANDOM, partial(woken.append, name)) for name in "abc"}
    for slot in slots.values():
        pair.link.submit(slot, [1], 1000, {})
    pair.exchange()
    for name in "bca":
        assert not slots[name].is_filled
        pair.peer.send(Result(slots[name].id, [b"x"]))
        pair.exchange()
        assert slots[name].is_filled
    assert woken == ["b", "c", "a"]


def test_who_is_interrupted_while_it_tells_of_the_end_leaves_nobody_untold(pair: Pair) -> None:
    interruptions = [KeyboardInterrupt]

    def wake() -> None:
        if interruptions:
            raise interruptions.pop()

    slots = [Slot(RANDOM, each) for each in (lambda: None, wake, lambda: None)]
    for slot in slots:
        pair.link.submit(slot, [1], 1000, {})
    with pytest.raises(KeyboardInterrupt):
        pair.link.lose("the cable was pulled out")
    pair.link.lose("a request was interrupted")
    for slot in slots:
        with pytest.raises(ConnectionLost, match="cable"):
            slot.take()


def test_an_error_answers_one_request(pair: Pair) -> None:
    slots = [pair.submit(), pair.submit()]
    pair.exchange()
    refusal = errors.Busy("full", reference="r-1", retry_after_ms=7)
    pair.peer.send(error_frame(slots[1].id, refusal), Result(slots[0].id, [b"x"]))
    pair.exchange()
    assert slots[0].take() == [b"x"]
    with pytest.raises(errors.Busy, match="full") as caught:
        slots[1].take()
    assert (caught.value.reference, caught.value.retry_after_ms) == ("r-1", 7)
    assert pair.link.is_open


def test_an_error_of_a_later_version_has_a_type(pair: Pair) -> None:
    slot = pair.submit()
    pair.exchange()
    pair.peer.send(Error(slot.id, 9999, "new", False, None, "news", "r-2"))
    pair.exchange()
    with pytest.raises(errors.InternalError, match="9999: news"):
        slot.take()


def frame_bytes(frame: Frame) -> bytes:
    """A frame as bytes, whether it may be sent or not."""
    return encode_frame(frame, size_max=FRAME_SIZE_MAX)


BREACHES: dict[str, bytes] = {
    "an answer to nothing": frame_bytes(Result(77, [b""])),
    "a second answer": frame_bytes(Result(1, [b"x"])) * 2,
    "a second WELCOME": frame_bytes(welcome()),
    "a client's frame": frame_bytes(Cancel(1)),
    "a length over the cap": (FRAME_SIZE_MAX + 1).to_bytes(4, "big"),
    "an empty frame": bytes(4),
    "no msgpack": b"\0\0\0\x01\xc1",
    "a result of another shape": frame_bytes(Result(1, [])),
    "a result of another type": frame_bytes(Result(1, ["text"])),
    "a result out of range": frame_bytes(Result(1, [bytes(4097)])),
}


@pytest.mark.parametrize("name", BREACHES)
def test_a_breach_of_the_protocol_ends_the_link_and_everybody_is_told(
    pair: Pair, name: str
) -> None:
    slots = [pair.submit(), pair.submit()]
    pair.exchange()
    pair.peer.write(BREACHES[name])
    pair.exchange()
    assert isinstance(pair.link.ended, errors.ProtocolError)
    assert all(slot.is_filled for slot in slots)
    with pytest.raises(ConnectionLost, match="does not speak hsmux/1"):
        slots[1].take()
    assert not pair.link.is_open and pair.link.is_idle
    with pytest.raises(ConnectionLost):
        pair.submit()


@settings(max_examples=60, deadline=None)
@given(garbage=st.binary(min_size=1, max_size=300), opened=st.booleans())
def test_garbage_is_a_protocol_error_or_nothing_yet(
    certificates: Certificates, garbage: bytes, opened: bool
) -> None:
    pair = Pair(certificates)
    if opened:
        pair.open()
    else:
        pair.exchange()
    pair.peer.write(garbage)
    pair.exchange()
    assert pair.link.ended is None or isinstance(pair.link.ended, errors.ProtocolError)


@settings(max_examples=60, deadline=None)
@given(garbage=st.binary(min_size=1, max_size=300))
def test_bytes_that_are_no_tls_end_the_link(certificates: Certificates, garbage: bytes) -> None:
    pair = Pair(certificates).open()
    slot = pair.submit()
    pair.link.receive(garbage)
    pair.link.receive(b"")
    assert isinstance(pair.link.ended, ConnectionLost) and slot.is_filled


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"limits": {}},
        {"limits": {**ANNOUNCED_LIMITS, "pipeline_max": 0}},
    ],
    ids=["version", "no limits", "a limit of 0"],
)
def test_a_welcome_that_promises_nothing_is_refused(
    certificates: Certificates, change: dict[str, object]
) -> None:
    pair = Pair(certificates)
    pair.exchange()
    pair.peer.write(frame_bytes(welcome()._replace(**change)))  # type: ignore[arg-type]
    pair.exchange()
    assert isinstance(pair.link.ended, errors.ProtocolError)
    assert "WELCOME" in str(pair.link.ended)


@pytest.mark.parametrize("opened", [False, True])
@pytest.mark.parametrize("kind", [errors.Unauthenticated, errors.Unavailable, errors.InternalError])
def test_an_error_of_the_connection_ends_it(
    certificates: Certificates, kind: type[errors.HsmuxError], opened: bool
) -> None:
    pair = Pair(certificates)
    slots = []
    if opened:
        slots = [pair.open().submit(), pair.submit()]
    pair.exchange()
    pair.peer.write(pair.peer.protocol.farewell(error_frame(0, kind("because", reference="r-3"))))
    pair.exchange()
    assert type(pair.link.ended) is kind and not pair.link.is_open
    told = errors.Unauthenticated if kind is errors.Unauthenticated else ConnectionLost
    for slot in slots:
        with pytest.raises(told, match=r"because \(reference r-3\)"):
            slot.take()
    if slots:
        assert slots[0].error is not slots[1].error


def test_after_goaway_what_is_open_is_answered_and_nothing_new_is_sent(pair: Pair) -> None:
    slot = pair.submit()
    pair.exchange()
    pair.peer.send(Goaway(1500, "going"))
    pair.exchange()
    assert pair.link.goaway == Goaway(1500, "going")
    assert not pair.link.is_open and pair.link.ended is None
    with pytest.raises(ConnectionLost, match="closes the connection"):
        pair.submit()
    assert pair.exchange() == []
    pair.peer.send(Ping(1), Result(slot.id, [b"x"]))
    assert pair.exchange() == [Pong(1)]
    assert slot.take() == [b"x"] and pair.link.is_idle


def test_pings_are_answered_but_not_hoarded(pair: Pair) -> None:
    pair.peer.send(Ping(0), Ping(2**64 - 1))
    assert pair.exchange() == [Pong(0), Pong(2**64 - 1)]
    for _ in range(5):
        pair.peer.send(*[Ping(1)] * 1000)
        pair.to_link()
    hoarded = pair.link.take_outgoing()
    assert 60_000 < len(hoarded) < 70_000
    pair.peer.send(Ping(2))
    pair.to_link()
    assert pair.peer.receive(hoarded + pair.link.take_outgoing())[-1] == Pong(2)


def test_no_more_requests_are_open_than_the_gateway_takes(certificates: Certificates) -> None:
    pair = Pair(certificates).open(pipeline_max=2)
    slots = [pair.submit(), pair.submit()]
    assert not pair.link.has_room
    pair.exchange()
    # A cancelled request is open until its answer comes.
    pair.link.give_up(slots[0])
    assert pair.exchange() == [Cancel(slots[0].id)]
    assert not pair.link.has_room and pair.link.is_owed
    pair.peer.send(error_frame(slots[0].id, errors.Cancelled("cancelled")))
    pair.exchange()
    assert pair.link.has_room and not slots[0].is_filled
    third = pair.submit()
    assert third.id not in {slot.id for slot in slots}


def test_a_request_that_is_too_large_costs_nothing(certificates: Certificates) -> None:
    pair = Pair(certificates).open(frame_size_max=64)
    slot = Slot(OPERATIONS["encrypt"], lambda: None)
    with pytest.raises(errors.TooLarge, match="at most 64"):
        pair.link.submit(slot, ["alias/a", {}, bytes(100)], 0, {})
    assert pair.link.is_idle and not pair.link.is_owed and pair.exchange() == []
    small = pair.submit()
    pair.exchange()
    pair.peer.send(Result(small.id, [b"x"]))
    pair.exchange()
    assert small.take() == [b"x"]


@pytest.mark.parametrize("piece", [1, PLENTY])
def test_answers_before_close_notify_count(certificates: Certificates, piece: int) -> None:
    pair = Pair(certificates, piece).open()
    slots = [pair.submit(), pair.submit()]
    pair.exchange()
    pair.peer.send(Result(slots[0].id, [b"x"]))
    pair.peer.close_notify()
    pair.exchange()
    assert slots[0].take() == [b"x"]
    with pytest.raises(ConnectionLost, match="closed the connection"):
        slots[1].take()


def test_an_end_in_the_middle_of_an_answer_is_no_answer(certificates: Certificates) -> None:
    answer = frame_bytes(Result(1, [b"x" * 100]))
    for cut in range(0, len(answer), 9):
        pair = Pair(certificates).open()
        slot = pair.submit()
        pair.exchange()
        pair.peer.write(answer[:cut])
        pair.exchange()
        pair.link.receive(b"")
        with pytest.raises(ConnectionLost):
            slot.take()


def test_a_record_that_was_changed_on_its_way_ends_the_link(pair: Pair) -> None:
    slot = pair.submit()
    pair.exchange()
    pair.peer.send(Result(slot.id, [b"x"]))
    record = bytearray(pair.peer.take_outgoing())
    record[-1] ^= 1
    pair.link.receive(bytes(record))
    with pytest.raises(ConnectionLost, match="TLS failed"):
        slot.take()
    # The alert is there to be sent.
    assert pair.link.take_outgoing()
    # Nothing is sent on a link that has ended, and nobody is left to wait for an answer.
    with pytest.raises(ConnectionLost, match="TLS failed"):
        pair.submit()
    pair.link.give_up(slot)
    pair.link.receive(b"more")
    assert pair.link.take_outgoing() == b""


def test_closing_says_so_to_both_sides(pair: Pair) -> None:
    slot = pair.submit()
    pair.exchange()
    pair.link.close(ClientClosed())
    pair.exchange()
    assert pair.peer.ended
    with pytest.raises(ClientClosed):
        slot.take()
    with pytest.raises(ClientClosed):
        pair.submit()


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_order_of_sending_answering_and_giving_up(
    certificates: Certificates, data: st.DataObject
) -> None:
    """Every slot gets its own answer or was given up, and the ids of both ends agree."""
    pair = Pair(certificates, data.draw(st.sampled_from([3, PLENTY]))).open(pipeline_max=5)
    open_slots: list[Slot] = []
    owed: list[int] = []
    given_up: set[int] = set()
    for _ in range(data.draw(st.integers(1, 40))):
        action = data.draw(st.sampled_from(["submit", "answer", "refuse", "give up", "exchange"]))
        if action == "submit" and pair.link.has_room:
            open_slots.append(pair.submit())
            owed.append(open_slots[-1].id)
        elif action in ("answer", "refuse") and owed:
            pair.to_peer()
            request_id = owed.pop(data.draw(st.integers(0, len(owed) - 1)))
            refusal = error_frame(request_id, errors.NotFound(f"no {request_id}"))
            is_answer = action == "answer"
            pair.peer.send(Result(request_id, [b"%d" % request_id]) if is_answer else refusal)
        elif action == "give up" and open_slots:
            slot = open_slots.pop(data.draw(st.integers(0, len(open_slots) - 1)))
            pair.link.give_up(slot)
            given_up.add(slot.id)
        elif action == "exchange":
            pair.exchange()
    pair.exchange()
    for slot in open_slots:
        assert slot.is_filled == (slot.id not in owed)
        if slot.values is not None:
            assert slot.values == [b"%d" % slot.id]
        elif slot.error is not None:
            assert str(slot.error) == f"no {slot.id}"
    assert pair.link.ended is None
    assert pair.link.is_owed == bool(owed)
    assert pair.link.is_idle == (not {slot.id for slot in open_slots} & set(owed))
