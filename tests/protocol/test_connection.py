"""Both ends of a connection: every state with every kind, ids, limits, and who is at fault."""

from collections.abc import Callable
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsmux_protocol.connection import (
    ANNOUNCED_LIMITS,
    VERSION,
    ClientConnection,
    ServerConnection,
    State,
)
from hsmux_protocol.errors import LocalProtocolError, RemoteProtocolError
from hsmux_protocol.frames import (
    FRAMES,
    Cancel,
    Error,
    Frame,
    Goaway,
    Hello,
    Ping,
    Pong,
    Request,
    Result,
    Welcome,
    encode_frame,
)
from hsmux_protocol.limits import FRAME_SIZE_MAX, FRAME_SIZE_MAX_OPENING, PIPELINE_MAX

from .examples import FRAME_EXAMPLES, KEY_ID

HELLO: Final = Hello([VERSION], [], "test")
WELCOME: Final = Welcome(VERSION, [], ANNOUNCED_LIMITS, KEY_ID, "ledger")
GOAWAY: Final = Goaway(0, "")
LAST_ERROR: Final = Error(0, 301, "unauthenticated", False, None, "", "")
OPEN_ID: Final = 1

# One frame of each kind; those with an id speak of the request that `pair` opens.
FRAME_OF_KIND: Final[dict[type[Frame], Frame]] = {
    Hello: HELLO,
    Welcome: WELCOME,
    Request: Request(2, 1, 0, [], {}),
    Result: Result(OPEN_ID, []),
    Error: Error(OPEN_ID, 100, "argument", False, None, "", ""),
    Cancel: Cancel(OPEN_ID),
    Ping: Ping(1),
    Pong: Pong(1),
    Goaway: GOAWAY,
}

# What may pass from the client to the gateway and back, as PROTOCOL.md says it. An ERROR before
# WELCOME is one about the connection.
CLIENT_SENDS: Final[dict[State, set[type[Frame]]]] = {
    State.OPENING: {Hello},
    State.WELCOMING: set(),
    State.OPEN: {Request, Cancel, Ping, Pong},
    State.CLOSING: {Cancel, Ping, Pong},
    State.CLOSED: set(),
}
GATEWAY_RECEIVES: Final = CLIENT_SENDS | {State.CLOSING: {Request, Cancel, Ping, Pong}}
GATEWAY_SENDS: Final[dict[State, set[type[Frame]]]] = {
    State.OPENING: {Error},
    State.WELCOMING: {Welcome, Error},
    State.OPEN: {Result, Error, Ping, Pong, Goaway},
    State.CLOSING: {Result, Error, Ping, Pong},
    State.CLOSED: set(),
}
CLIENT_RECEIVES: Final = GATEWAY_SENDS


def encode(frame: Frame) -> bytes:
    return encode_frame(frame, size_max=FRAME_SIZE_MAX)


def transfer(data: bytes, connection: ClientConnection | ServerConnection) -> Frame:
    connection.receive_data(data)
    frame = connection.next_frame()
    assert frame is not None
    return frame


def pair(state: State) -> tuple[ClientConnection, ServerConnection]:
    """Both ends of a connection in a state, with one open request where there can be one."""
    client, server = ClientConnection(), ServerConnection()
    if state is State.OPENING:
        return client, server
    transfer(client.send(HELLO), server)
    if state is State.WELCOMING:
        return client, server
    transfer(server.send(WELCOME), client)
    transfer(client.send(Request(OPEN_ID, 1, 0, [], {})), server)
    if state is State.CLOSING:
        transfer(server.send(GOAWAY), client)
    elif state is State.CLOSED:
        transfer(server.send(LAST_ERROR), client)
    return client, server


@pytest.mark.parametrize("state", State)
def test_pair_is_in_its_state(state: State) -> None:
    client, server = pair(state)
    assert client.state is server.state is state
    assert f"({state.value}, " in repr(client)


def is_allowed(action: Callable[[], object], error: type[Exception]) -> bool:
    try:
        action()
    except error:
        return False
    return True


@pytest.mark.parametrize("kind", FRAME_OF_KIND)
@pytest.mark.parametrize("state", State)
def test_every_state_with_every_kind(state: State, kind: type[Frame]) -> None:
    frame = FRAME_OF_KIND[kind]
    if kind is Error and state in (State.OPENING, State.WELCOMING):
        frame = LAST_ERROR
    client, server = pair(state)
    assert is_allowed(lambda: client.send(frame), LocalProtocolError) is (
        kind in CLIENT_SENDS[state]
    )
    client, server = pair(state)
    assert is_allowed(lambda: server.send(frame), LocalProtocolError) is (
        kind in GATEWAY_SENDS[state]
    )
    client, server = pair(state)
    assert is_allowed(lambda: transfer(encode(frame), client), RemoteProtocolError) is (
        kind in CLIENT_RECEIVES[state]
    )
    client, server = pair(state)
    assert is_allowed(lambda: transfer(encode(frame), server), RemoteProtocolError) is (
        kind in GATEWAY_RECEIVES[state]
    )


def test_all_kinds_are_tried() -> None:
    assert set(FRAME_OF_KIND) == {frame_type for frame_type, _ in FRAMES.values()}


@pytest.mark.parametrize("state", State)
def test_a_refused_send_changes_nothing(state: State) -> None:
    client, server = pair(state)
    for connection in (client, server):
        before = (connection.state, set(connection.open_ids))
        for frame in FRAME_OF_KIND.values():
            allowed = CLIENT_SENDS if connection is client else GATEWAY_SENDS
            if type(frame) not in allowed[state]:
                with pytest.raises(LocalProtocolError):
                    connection.send(frame)
        assert (connection.state, connection.open_ids) == before


def test_a_frame_that_does_not_fit_leaves_its_id_unused() -> None:
    client, _ = pair(State.OPEN)
    with pytest.raises(LocalProtocolError):
        client.send(Request(2, 1, 0, [bytes(FRAME_SIZE_MAX)], {}))
    assert client.open_ids == {OPEN_ID}
    client.send(Request(2, 1, 0, [], {}))


def test_an_id_is_open_until_its_answer_and_then_free() -> None:
    client, server = pair(State.OPEN)
    request = Request(OPEN_ID, 1, 0, [], {})
    with pytest.raises(LocalProtocolError, match="already open"):
        client.send(request)
    assert transfer(server.send(Result(OPEN_ID, [])), client) == Result(OPEN_ID, [])
    assert client.open_ids == server.open_ids == set()
    assert transfer(client.send(request), server) == request


def test_the_gateway_refuses_an_id_that_is_open() -> None:
    _, server = pair(State.OPEN)
    with pytest.raises(RemoteProtocolError, match="already open"):
        transfer(encode(Request(OPEN_ID, 1, 0, [], {})), server)


@pytest.mark.parametrize("kind", [Result, Error])
def test_answers_to_nothing_are_refused(kind: type[Frame]) -> None:
    answer = FRAME_OF_KIND[kind]
    client, server = pair(State.OPEN)
    transfer(server.send(answer), client)
    with pytest.raises(LocalProtocolError, match="not open"):
        server.send(answer)
    with pytest.raises(RemoteProtocolError, match="not open"):
        transfer(encode(answer), client)


@pytest.mark.parametrize("state", [State.OPENING, State.WELCOMING])
def test_an_error_for_a_request_before_any_request(state: State) -> None:
    client, server = pair(state)
    with pytest.raises(LocalProtocolError, match="not open"):
        server.send(FRAME_OF_KIND[Error])
    with pytest.raises(RemoteProtocolError, match="not open"):
        transfer(encode(FRAME_OF_KIND[Error]), client)


def test_answers_come_in_any_order() -> None:
    client, server = pair(State.OPEN)
    for number in (2, 3, 2**64 - 1):
        transfer(client.send(Request(number, 1, 0, [], {})), server)
    for number in (2**64 - 1, 1, 3, 2):
        transfer(server.send(Result(number, [])), client)
    assert not client.open_ids and not server.open_ids


def test_cancel_leaves_the_id_open_for_its_one_answer() -> None:
    client, server = pair(State.OPEN)
    assert transfer(client.send(Cancel(OPEN_ID)), server) == Cancel(OPEN_ID)
    assert client.open_ids == server.open_ids == {OPEN_ID}
    transfer(server.send(Result(OPEN_ID, [])), client)


def test_cancel_of_an_id_that_is_not_open_is_nothing() -> None:
    client, server = pair(State.OPEN)
    assert transfer(client.send(Cancel(77)), server) == Cancel(77)
    assert server.state is State.OPEN


def test_after_goaway_open_requests_are_answered_and_crossed_ones_taken() -> None:
    client, server = pair(State.OPEN)
    crossed = client.send(Request(2, 1, 0, [], {}))
    transfer(server.send(GOAWAY), client)
    assert client.state is server.state is State.CLOSING
    with pytest.raises(LocalProtocolError, match="GOAWAY"):
        client.send(Request(3, 1, 0, [], {}))
    transfer(crossed, server)
    for number in (2, 1):
        transfer(server.send(Result(number, [])), client)
    assert not client.open_ids and client.state is State.CLOSING


@pytest.mark.parametrize("state", [State.OPENING, State.WELCOMING, State.OPEN, State.CLOSING])
def test_an_error_for_the_connection_ends_it(state: State) -> None:
    client, server = pair(state)
    transfer(server.send(LAST_ERROR), client)
    assert client.state is server.state is State.CLOSED


@pytest.mark.parametrize("state", State)
def test_farewell_in_every_state(state: State) -> None:
    client, server = pair(state)
    with pytest.raises(RemoteProtocolError):
        transfer(b"\x00\x00\x00\x01\xc0", server)
    data = server.farewell(FRAME_OF_KIND[Error])  # type: ignore[arg-type]
    if state is not State.CLOSED:
        received = transfer(data, client)
        assert isinstance(received, Error) and received.id == 0
    assert server.state is State.CLOSED


def test_requests_before_a_broken_frame_are_still_answered_until_the_farewell() -> None:
    client, server = pair(State.OPEN)
    request = FRAME_OF_KIND[Request]
    assert isinstance(request, Request)
    for number in (7, 8, 9):
        assert transfer(client.send(request._replace(id=number)), server) is not None
    with pytest.raises(RemoteProtocolError):
        transfer(b"\x00\x00\x00\x01\xc0", server)
    with pytest.raises(LocalProtocolError):
        server.send(Result(7, []))
    assert transfer(server.late_answer(Result(7, [])), client) == Result(7, [])
    for number in (7, 10):
        with pytest.raises(LocalProtocolError, match="is not open"):
            server.late_answer(Result(number, []))
    with pytest.raises(LocalProtocolError):
        server.late_answer(Result(8, [bytes(2**20)]))
    server.farewell(FRAME_OF_KIND[Error])  # type: ignore[arg-type]
    with pytest.raises(LocalProtocolError, match="is not open"):
        server.late_answer(Result(8, []))


def test_close() -> None:
    client, _ = pair(State.OPEN)
    client.close()
    assert client.state is State.CLOSED
    with pytest.raises(LocalProtocolError):
        client.send(Ping(1))


@pytest.mark.parametrize("garbage", [b"\xff\xff\xff\xff", b"\x00\x00\x00\x00", encode(WELCOME)])
def test_the_first_error_sticks(garbage: bytes) -> None:
    _, server = pair(State.OPEN)
    server.receive_data(garbage)
    with pytest.raises(RemoteProtocolError) as first:
        server.next_frame()
    assert server.state is State.CLOSED
    with pytest.raises(RemoteProtocolError) as second:
        server.receive_data(encode(Ping(1)))
    with pytest.raises(RemoteProtocolError) as third:
        server.next_frame()
    assert first.value is second.value is third.value
    with pytest.raises(LocalProtocolError):
        server.send(Pong(1))


@pytest.mark.parametrize("held", [b"\x00", b"\x00\x00\x00\x02", encode(Ping(1))[:-1]])
def test_an_end_inside_a_frame(held: bytes) -> None:
    _, server = pair(State.OPEN)
    server.receive_data(encode(Ping(1)) + held)
    with pytest.raises(RemoteProtocolError, match="inside a frame") as first:
        server.receive_data(b"")
    with pytest.raises(RemoteProtocolError) as second:
        server.next_frame()
    assert first.value is second.value


def test_an_end_behind_whole_frames_loses_none_of_them() -> None:
    _, server = pair(State.OPEN)
    server.receive_data(encode(Ping(1)) + encode(Cancel(9)))
    server.receive_data(b"")
    assert [server.next_frame(), server.next_frame()] == [Ping(1), Cancel(9)]
    assert server.next_frame() is None


def framed(size: int) -> bytes:
    return size.to_bytes(4, "big")


@pytest.mark.parametrize(
    ("state", "end", "size_max"),
    [
        (State.OPENING, 1, FRAME_SIZE_MAX_OPENING),
        (State.WELCOMING, 0, FRAME_SIZE_MAX_OPENING),
        (State.WELCOMING, 1, FRAME_SIZE_MAX_OPENING),
        (State.OPEN, 0, FRAME_SIZE_MAX),
        (State.OPEN, 1, FRAME_SIZE_MAX),
        (State.CLOSING, 0, FRAME_SIZE_MAX),
        (State.CLOSING, 1, FRAME_SIZE_MAX),
    ],
)
def test_size_of_a_frame_by_state(state: State, end: int, size_max: int) -> None:
    edge = pair(state)[end]
    edge.receive_data(framed(size_max))
    assert edge.next_frame() is None
    over = pair(state)[end]
    over.receive_data(framed(size_max + 1))
    with pytest.raises(RemoteProtocolError, match=f"1 to {size_max} are allowed"):
        over.next_frame()


def test_what_the_gateway_announces_is_what_the_client_may_send() -> None:
    client, server = ClientConnection(), ServerConnection()
    transfer(client.send(HELLO), server)
    limits = ANNOUNCED_LIMITS | {"frame_size_max": 5000, "pipeline_max": 2}
    transfer(server.send(WELCOME._replace(limits=limits)), client)
    assert client.pipeline_max == 2
    room = 5000 - len(encode(Request(1, 1, 0, [bytes(300)], {}))) + 4 + 300
    transfer(client.send(Request(1, 1, 0, [bytes(room)], {})), server)
    with pytest.raises(LocalProtocolError, match="at most 5000"):
        client.send(Request(2, 1, 0, [bytes(room + 1)], {}))
    client.send(Request(2, 1, 0, [], {}))
    with pytest.raises(LocalProtocolError, match="more than 2 open requests"):
        client.send(Request(3, 1, 0, [], {}))


def test_open_requests_at_the_edge_and_one_over() -> None:
    client, server = pair(State.OPEN)
    for number in range(2, PIPELINE_MAX + 1):
        transfer(client.send(Request(number, 1, 0, [], {})), server)
    assert len(client.open_ids) == len(server.open_ids) == PIPELINE_MAX
    one_more = Request(PIPELINE_MAX + 1, 1, 0, [], {})
    with pytest.raises(LocalProtocolError, match=str(PIPELINE_MAX)):
        client.send(one_more)
    with pytest.raises(RemoteProtocolError, match=str(PIPELINE_MAX)):
        transfer(encode(one_more), server)


@pytest.mark.parametrize(
    ("welcome", "text"),
    [
        (WELCOME._replace(version=2), "version 2"),
        (WELCOME._replace(limits={}), "announces no"),
        (
            WELCOME._replace(
                limits={n: v for n, v in ANNOUNCED_LIMITS.items() if n != "pipeline_max"}
            ),
            "announces no pipeline_max",
        ),
        (WELCOME._replace(limits=ANNOUNCED_LIMITS | {"pipeline_max": 0}), "a limit of 0"),
    ],
)
def test_a_welcome_the_client_cannot_work_with(welcome: Welcome, text: str) -> None:
    client, _ = pair(State.WELCOMING)
    with pytest.raises(RemoteProtocolError, match=text):
        transfer(encode(welcome), client)
    assert client.welcome is None and client.pipeline_max == 0


def test_a_welcome_may_announce_more_than_this_version_knows() -> None:
    client, _ = pair(State.WELCOMING)
    transfer(encode(WELCOME._replace(limits=ANNOUNCED_LIMITS | {"later_max": 1})), client)
    assert client.state is State.OPEN


@pytest.mark.parametrize("state", State)
@given(data=st.binary(max_size=100))
def test_garbage_in_every_state(state: State, data: bytes) -> None:
    for connection in pair(state):
        try:
            connection.receive_data(data)
            while connection.next_frame() is not None:
                pass
            connection.receive_data(b"")
        except RemoteProtocolError:
            assert connection.state is State.CLOSED


@given(st.lists(st.tuples(st.booleans(), st.sampled_from(sorted(FRAME_EXAMPLES))), max_size=12))
def test_two_ends_never_break_each_other(steps: list[tuple[bool, str]]) -> None:
    """Whatever either end is asked to send, the other end accepts all that was sent."""
    client, server = ClientConnection(), ServerConnection()
    for is_client, name in [(True, "hello"), (False, "welcome"), *steps]:
        sender: ClientConnection | ServerConnection = client if is_client else server
        receiver: ClientConnection | ServerConnection = server if is_client else client
        try:
            data = sender.send(FRAME_EXAMPLES[name])
        except LocalProtocolError:
            continue
        assert transfer(data, receiver) == FRAME_EXAMPLES[name]
        assert client.state is server.state
        assert client.open_ids == server.open_ids


def test_repr_shows_no_bytes() -> None:
    client, _ = pair(State.OPEN)
    client.receive_data(b"\x00")
    assert repr(client) == "ClientConnection(open, 1 open, 1 bytes buffered)"
