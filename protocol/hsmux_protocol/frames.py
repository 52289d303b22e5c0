"""Frames: `u32` big-endian body length, then one msgpack array whose first element is the kind.

`FRAMES` is the table of kinds. It drives the encoder, the decoder and the format's document; a
frame is a NamedTuple whose fields stand in the array in order, behind the kind.

`FrameReader` cuts a byte stream into bodies. It refuses a frame from its four length bytes, before
anything is kept for it, and its buffer grows only as bytes really come.
"""

from typing import Any, Final, NamedTuple

import msgpack

from .errors import LocalProtocolError, RemoteProtocolError
from .fields import (
    Array,
    Binary,
    Boolean,
    Field,
    Integer,
    Numbers,
    Optional,
    Text,
    ValueMap,
    Values,
    read_fields,
    write_fields,
)
from .limits import ELEMENTS_MAX, FRAME_SIZE_MAX_OPENING, ID_MAX
from .scan import scan

__all__ = [
    "FRAMES",
    "LENGTH_SIZE",
    "Cancel",
    "Error",
    "Frame",
    "FrameReader",
    "Goaway",
    "Hello",
    "Ping",
    "Pong",
    "Request",
    "Result",
    "Welcome",
    "decode_frame",
    "encode_frame",
]

LENGTH_SIZE: Final = 4
_PACKER_SIZE: Final = 1024
_COMPACT_SIZE: Final = 64 * 1024
_VIEW_SIZE: Final = 4 * 1024
"""Bytes of a body from which copying it twice costs more than a view that saves one copy."""
TEXT_SIZE_MAX: Final = 4096


class Hello(NamedTuple):
    """The client's first frame: protocol versions it speaks, features it knows, what it is."""

    versions: list[int]
    features: list[str]
    agent: str


class Welcome(NamedTuple):
    """The gateway's first frame: the version and features chosen, its limits, who the client is."""

    version: int
    features: list[str]
    limits: dict[str, int]
    deployment: bytes
    access_point: str


class Request(NamedTuple):
    """An operation to do within `budget_ms` from receipt; 0 means the operation's default."""

    id: int
    operation: int
    budget_ms: int
    arguments: list[Any]
    options: dict[str, Any]


class Result(NamedTuple):
    """The answer to a request that was done."""

    id: int
    values: list[Any]


class Error(NamedTuple):
    """The answer to a request that was not done; id 0 speaks of the connection and ends it."""

    id: int
    number: int
    family: str
    retryable: bool
    retry_after_ms: int | None
    text: str
    reference: str


class Cancel(NamedTuple):
    """The client no longer wants an answer; it still gets exactly one."""

    id: int


class Ping(NamedTuple):
    """Asks for a Pong with the same number."""

    number: int


class Pong(NamedTuple):
    """Answers a Ping."""

    number: int


class Goaway(NamedTuple):
    """The gateway will close when the open requests are answered; reconnect for new ones."""

    retry_after_ms: int
    text: str


Frame = Hello | Welcome | Request | Result | Error | Cancel | Ping | Pong | Goaway

_ID: Final = Field("id", Integer(ID_MAX, 1))
_FEATURES: Final = Field("features", Array(Text(64, 1), 32))
_NUMBER: Final = Field("number", Integer(ID_MAX))
_TEXT: Final = Field("text", Text(TEXT_SIZE_MAX))
_WAIT_MS_MAX: Final = 2**32 - 1

FRAMES: Final[dict[int, tuple[type[Frame], tuple[Field, ...]]]] = {
    1: (
        Hello,
        (Field("versions", Array(Integer(2**16 - 1, 1), 16)), _FEATURES, Field("agent", Text(128))),
    ),
    2: (
        Welcome,
        (
            Field("version", Integer(2**16 - 1, 1)),
            _FEATURES,
            Field("limits", Numbers()),
            Field("deployment", Binary(16, 16)),
            Field("access_point", Text(128)),
        ),
    ),
    3: (
        Request,
        (
            _ID,
            Field("operation", Integer(2**16 - 1, 1)),
            Field("budget_ms", Integer(_WAIT_MS_MAX)),
            Field("arguments", Values()),
            Field("options", ValueMap()),
        ),
    ),
    4: (Result, (_ID, Field("values", Values()))),
    5: (
        Error,
        (
            Field("id", Integer(ID_MAX)),
            Field("number", Integer(2**16 - 1, 1)),
            Field("family", Text(64, 1)),
            Field("retryable", Boolean()),
            Field("retry_after_ms", Optional(Integer(_WAIT_MS_MAX))),
            _TEXT,
            Field("reference", Text(64)),
        ),
    ),
    6: (Cancel, (_ID,)),
    7: (Ping, (_NUMBER,)),
    8: (Pong, (_NUMBER,)),
    9: (Goaway, (Field("retry_after_ms", Integer(_WAIT_MS_MAX)), _TEXT)),
}

_KIND_OF: Final[dict[type[Frame], tuple[int, tuple[Field, ...]]]] = {
    frame_type: (kind, fields) for kind, (frame_type, fields) in FRAMES.items()
}


def encode_frame(frame: Frame, *, size_max: int) -> bytes:
    """The bytes of a frame, length included.

    Args:
        frame: What to send; its values must already be encodable by msgpack.
        size_max: The most bytes the peer accepts for a body.

    Raises:
        LocalProtocolError: A value does not fit its field, the body is larger than `size_max`, or
            it has more values than a peer may accept.
    """
    kind, fields = _KIND_OF[type(frame)]
    # A packer of its own: one for all would mix frames of two threads, and keep what it packed.
    packer = msgpack.Packer(buf_size=_PACKER_SIZE, autoreset=False)
    try:
        packer.pack([kind, *write_fields(fields, frame)])
        # What was packed is not copied before it has its length: an answer can be large.
        with packer.getbuffer() as body:
            size = len(body)
            if size > ELEMENTS_MAX:
                scan(body)
            if size <= size_max:
                return b"".join((size.to_bytes(LENGTH_SIZE, "big"), body))
    except (ValueError, TypeError, OverflowError, RemoteProtocolError) as error:
        raise LocalProtocolError(f"{type(frame).__name__}: {error}") from None
    raise LocalProtocolError(f"{type(frame).__name__}: {size} bytes; at most {size_max}")


def decode_frame(body: bytes) -> Frame:
    """Scan, decode and check the body of one frame.

    Raises:
        RemoteProtocolError: It is not exactly one canonical frame of a known kind.
    """
    scan(body)
    try:
        values = msgpack.unpackb(body)
    except ValueError:
        raise RemoteProtocolError("a text that is not UTF-8") from None
    if type(values) is not list or not values or type(values[0]) is not int:
        raise RemoteProtocolError("a frame is an array that begins with its kind")
    entry = FRAMES.get(values[0])
    if entry is None:
        raise RemoteProtocolError(f"frame kind {values[0]} is unknown")
    frame_type, fields = entry
    try:
        return frame_type(*read_fields(fields, values[1:]))
    except ValueError as error:
        raise RemoteProtocolError(f"{frame_type.__name__}: {error}") from None


class FrameReader:
    """Cuts a byte stream into frame bodies.

    Attributes:
        size_max: The most bytes of a body; raised once by the connection's state.
    """

    __slots__ = ("_buffer", "_start", "size_max")

    def __init__(self, size_max: int = FRAME_SIZE_MAX_OPENING) -> None:
        self.size_max = size_max
        self._buffer = bytearray()
        self._start = 0

    def __repr__(self) -> str:
        return f"FrameReader({self.buffered_size} bytes buffered, at most {self.size_max} a frame)"

    @property
    def buffered_size(self) -> int:
        """Bytes received and not yet returned."""
        return len(self._buffer) - self._start

    @property
    def missing_size(self) -> int:
        """Bytes that the frame which has begun still needs; 0 before its length is known."""
        start = self._start + LENGTH_SIZE
        if len(self._buffer) < start:
            return 0
        end = start + int.from_bytes(self._buffer[self._start : start], "big")
        return max(0, end - len(self._buffer))

    def is_whole(self) -> bool:
        """Whether what is buffered is whole frames and nothing else."""
        position = self._start
        while position + LENGTH_SIZE <= len(self._buffer):
            length = self._buffer[position : position + LENGTH_SIZE]
            position += LENGTH_SIZE + int.from_bytes(length, "big")
        return position == len(self._buffer)

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Add received bytes."""
        if self._start:
            del self._buffer[: self._start]
            self._start = 0
        self._buffer += data

    def next_body(self) -> bytes | None:
        """The next whole body, or None when more bytes are needed.

        Raises:
            RemoteProtocolError: The length is 0 or more than `size_max`.
        """
        start = self._start + LENGTH_SIZE
        if len(self._buffer) < start:
            return None
        size = int.from_bytes(self._buffer[self._start : start], "big")
        if not 0 < size <= self.size_max:
            raise RemoteProtocolError(f"a frame of {size} bytes; 1 to {self.size_max} are allowed")
        end = start + size
        if len(self._buffer) < end:
            return None
        self._start = end
        if size < _VIEW_SIZE:
            body = bytes(self._buffer[start:end])
        else:
            with memoryview(self._buffer) as view:
                body = bytes(view[start:end])
        self._forget()
        return body

    def _forget(self) -> None:
        """Let go of returned bytes: a connection that waits must not hold its last large frame."""
        if self._start == len(self._buffer):
            self._buffer.clear()
            self._start = 0
        elif self._start > _COMPACT_SIZE and 2 * self._start > len(self._buffer):
            del self._buffer[: self._start]
            self._start = 0
