"""Both ends of a connection as state machines: bytes in, frames out; frames in, bytes out.

Theory of operation
-------------------
A connection is a set of states and two tables: which frames may be received in a state, and which
may be sent, each with the state that follows. Nothing else decides. The states:

    OPENING     the client's HELLO has not been seen; frames are capped at 4 KiB
    WELCOMING   HELLO was seen; the gateway owes WELCOME or an ERROR for the connection
    OPEN        requests and answers; frames are capped at what WELCOME announced
    CLOSING     the gateway said GOAWAY: open requests are answered, requests that crossed it too
    CLOSED      nothing may be sent or received

A request id is open from its REQUEST to its one RESULT or ERROR and free again after that. The
machine keeps the open ids on both ends, so an answer nobody asked for, a second answer, or an id
used twice is a protocol error and never reaches an application. CANCEL of an id that is not open
is nothing: the answer was already on its way.

Pulling is the back pressure. `receive_data` only stores bytes; `next_frame` decodes one frame. An
owner that has enough work stops calling `next_frame`, and reading, and the peer's bytes wait in
the kernel.

Whose fault: `RemoteProtocolError` means the peer broke the format; it is raised again by every
later call, because nothing after it can be trusted. `LocalProtocolError` means the caller did.
"""

import enum
from typing import ClassVar, Final

from .errors import LocalProtocolError, RemoteProtocolError
from .frames import (
    Cancel,
    Error,
    Frame,
    FrameReader,
    Goaway,
    Hello,
    Ping,
    Pong,
    Request,
    Result,
    Welcome,
    decode_frame,
    encode_frame,
)
from .limits import (
    BATCH_ITEMS_MAX,
    CONTEXT_ENTRIES_MAX,
    CONTEXT_SIZE_MAX,
    DEPTH_MAX,
    ELEMENTS_MAX,
    FRAME_SIZE_MAX,
    FRAME_SIZE_MAX_OPENING,
    ITEM_SIZE_MAX,
    PIPELINE_MAX,
    RANDOM_SIZE_MAX,
    REQUESTS_IN_FLIGHT_MAX,
)

__all__ = [
    "ALPN",
    "ANNOUNCED_LIMITS",
    "VERSION",
    "ClientConnection",
    "ServerConnection",
    "State",
]

ALPN: Final = "hsmux/1"
VERSION: Final = 1

ANNOUNCED_LIMITS: Final[dict[str, int]] = {
    "batch_items_max": BATCH_ITEMS_MAX,
    "context_entries_max": CONTEXT_ENTRIES_MAX,
    "context_size_max": CONTEXT_SIZE_MAX,
    "depth_max": DEPTH_MAX,
    "elements_max": ELEMENTS_MAX,
    "frame_size_max": FRAME_SIZE_MAX,
    "frame_size_max_opening": FRAME_SIZE_MAX_OPENING,
    "item_size_max": ITEM_SIZE_MAX,
    "pipeline_max": PIPELINE_MAX,
    "random_size_max": RANDOM_SIZE_MAX,
    "requests_in_flight_max": REQUESTS_IN_FLIGHT_MAX,
}
"""What WELCOME says, by name."""


class State(enum.Enum):
    """Where a connection stands."""

    OPENING = "opening"
    WELCOMING = "welcoming"
    OPEN = "open"
    CLOSING = "closing"
    CLOSED = "closed"


_Table = dict[State, dict[type[Frame], State]]

_FROM_CLIENT: Final[_Table] = {
    State.OPENING: {Hello: State.WELCOMING},
    State.WELCOMING: {},
    State.OPEN: {kind: State.OPEN for kind in (Request, Cancel, Ping, Pong)},
    State.CLOSING: {kind: State.CLOSING for kind in (Request, Cancel, Ping, Pong)},
    State.CLOSED: {},
}
_FROM_GATEWAY: Final[_Table] = {
    State.OPENING: {Error: State.OPENING},
    State.WELCOMING: {Welcome: State.OPEN, Error: State.WELCOMING},
    State.OPEN: {
        **{kind: State.OPEN for kind in (Result, Error, Ping, Pong)},
        Goaway: State.CLOSING,
    },
    State.CLOSING: {kind: State.CLOSING for kind in (Result, Error, Ping, Pong)},
    State.CLOSED: {},
}


class _Connection:
    """What both ends share: the two tables, the open ids and the sticky first error."""

    _receives: ClassVar[_Table]
    _sends: ClassVar[_Table]

    def __init__(self) -> None:
        self.state = State.OPENING
        self.open_ids: set[int] = set()
        self._reader = FrameReader()
        self._size_max_sent = FRAME_SIZE_MAX_OPENING
        self._failure: RemoteProtocolError | None = None

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.state.value}, {len(self.open_ids)} open, "
            f"{self.buffered_size} bytes buffered)"
        )

    @property
    def buffered_size(self) -> int:
        """Bytes received and not yet decoded."""
        return self._reader.buffered_size

    @property
    def missing_size(self) -> int:
        """Bytes that the frame which has begun still needs; 0 before its length is known."""
        return self._reader.missing_size

    def receive_data(self, data: bytes | bytearray | memoryview) -> None:
        """Store bytes that came; an empty byte string is the peer's end of stream.

        Whole frames that came before the end can still be taken.

        Raises:
            RemoteProtocolError: The stream ended inside a frame, or an earlier error stands.
        """
        if self._failure is not None:
            raise self._failure
        if data:
            self._reader.feed(data)
        elif not self._reader.is_whole():
            self._fail("the connection ended inside a frame")

    def next_frame(self) -> Frame | None:
        """The next frame, or None when more bytes are needed.

        Raises:
            RemoteProtocolError: The peer broke the format; every later call raises it again.
        """
        if self._failure is not None:
            raise self._failure
        try:
            body = self._reader.next_body()
            if body is None:
                return None
            frame = decode_frame(body)
            self._move(frame, self._receives, RemoteProtocolError)
            self._received(frame)
        except RemoteProtocolError as error:
            self._failure = error
            self.state = State.CLOSED
            raise
        return frame

    def send(self, frame: Frame) -> bytes:
        """The bytes to send for a frame.

        Raises:
            LocalProtocolError: The frame may not be sent now, or does not fit the format.
        """
        if type(frame) not in self._sends[self.state]:
            raise LocalProtocolError(f"{type(frame).__name__} while {self.state.value}")
        self._check_sent(frame)
        data = encode_frame(frame, size_max=self._size_max_sent)
        self._move(frame, self._sends, LocalProtocolError)
        self._sent(frame)
        return data

    def close(self) -> None:
        """Nothing may be sent or received any more."""
        self.state = State.CLOSED

    def _move(self, frame: Frame, table: _Table, error: type[Exception]) -> None:
        following = table[self.state].get(type(frame))
        if following is None:
            raise error(f"{type(frame).__name__} while {self.state.value}")
        ends = type(frame) is Error and frame.id == 0
        self.state = State.CLOSED if ends else following

    def _fail(self, text: str) -> None:
        self._failure = RemoteProtocolError(text)
        self.state = State.CLOSED
        raise self._failure

    def _received(self, frame: Frame) -> None:
        """Check a frame that its state allows against the open ids."""

    def _check_sent(self, frame: Frame) -> None:
        """Check a frame that is about to be sent against the open ids."""

    def _sent(self, frame: Frame) -> None:
        """Follow a frame that was encoded."""


class ServerConnection(_Connection):
    """The gateway's end of a connection."""

    _receives = _FROM_CLIENT
    _sends = _FROM_GATEWAY

    def farewell(self, error: Error) -> bytes:
        """The last bytes to send: why the connection ends, as an ERROR with id 0.

        Allowed in every state, so that a peer that broke the format is told so too. No request is
        open after it.
        """
        self.state = State.CLOSED
        self.open_ids.clear()
        return encode_frame(error._replace(id=0), size_max=FRAME_SIZE_MAX_OPENING)

    def late_answer(self, frame: Result | Error) -> bytes:
        """The bytes of an answer after the peer broke the format, to a request that came before.

        Raises:
            LocalProtocolError: The request is not open, or the frame does not fit the format.
        """
        self._check_sent(frame)
        data = encode_frame(frame, size_max=self._size_max_sent)
        self._sent(frame)
        return data

    def _received(self, frame: Frame) -> None:
        if type(frame) is Request:
            if frame.id in self.open_ids:
                raise RemoteProtocolError(f"request id {frame.id} is already open")
            if len(self.open_ids) >= PIPELINE_MAX:
                raise RemoteProtocolError(f"more than {PIPELINE_MAX} open requests")
            self.open_ids.add(frame.id)

    def _check_sent(self, frame: Frame) -> None:
        if isinstance(frame, Result | Error) and frame.id and frame.id not in self.open_ids:
            raise LocalProtocolError(f"request id {frame.id} is not open")

    def _sent(self, frame: Frame) -> None:
        if isinstance(frame, Result | Error):
            self.open_ids.discard(frame.id)
        elif type(frame) is Welcome:
            self._reader.size_max = frame.limits["frame_size_max"]
            self._size_max_sent = frame.limits["frame_size_max"]


class ClientConnection(_Connection):
    """The client's end of a connection.

    Attributes:
        welcome: What the gateway announced, once it has.
    """

    _receives = _FROM_GATEWAY
    _sends = _FROM_CLIENT

    def __init__(self) -> None:
        super().__init__()
        self.welcome: Welcome | None = None

    @property
    def pipeline_max(self) -> int:
        """The most requests that may be open at once."""
        return self.welcome.limits["pipeline_max"] if self.welcome else 0

    def _received(self, frame: Frame) -> None:
        if isinstance(frame, Result | Error) and frame.id:
            if frame.id not in self.open_ids:
                raise RemoteProtocolError(f"an answer to request id {frame.id}, which is not open")
            self.open_ids.discard(frame.id)
        elif type(frame) is Welcome:
            self._open(frame)

    def _open(self, welcome: Welcome) -> None:
        missing = ANNOUNCED_LIMITS.keys() - welcome.limits.keys()
        if missing:
            raise RemoteProtocolError(f"WELCOME announces no {', '.join(sorted(missing))}")
        if welcome.version != VERSION:
            raise RemoteProtocolError(f"WELCOME chose version {welcome.version}")
        if not all(welcome.limits[name] for name in ANNOUNCED_LIMITS):
            raise RemoteProtocolError("WELCOME announces a limit of 0")
        self.welcome = welcome
        self._reader.size_max = welcome.limits["frame_size_max"]
        self._size_max_sent = welcome.limits["frame_size_max"]

    def _check_sent(self, frame: Frame) -> None:
        if type(frame) is Request:
            if self.state is State.CLOSING:
                raise LocalProtocolError("a new request after GOAWAY")
            if frame.id in self.open_ids:
                raise LocalProtocolError(f"request id {frame.id} is already open")
            if len(self.open_ids) >= self.pipeline_max:
                raise LocalProtocolError(f"more than {self.pipeline_max} open requests")

    def _sent(self, frame: Frame) -> None:
        if type(frame) is Request:
            self.open_ids.add(frame.id)
