"""Between the daemon and a worker: length-prefixed msgpack over a socket pair.

The peer is a process of our own, but it runs a vendor's code: lengths and shapes are checked, and
anything unexpected ends the worker, not the daemon.

    worker -> daemon    ["locked"] it is this worker's turn to start on this host
                        ["hello", facts] after C_Initialize and before any login
                        ["ready"] after the login and a canary
                        ["refused", code, text] instead, when the token refused the PIN
                        ["failed", kind, code, text] instead, when it cannot start
                        ["leaving", kind, code, text] it ends after its next answer
                        [number, "done", value] | [number, kind, code, text]
    daemon -> worker    ["login", options] the PIN may be tried
                        ["serve"] what came of it is noted: the next worker may start
                        [number, operation, deadline, arguments...]  at most two unanswered
"""

import struct
from typing import Any, Final

import msgpack

__all__ = ["MESSAGE_SIZE_MAX", "Answer", "MessageError", "MessageReader", "encode_message"]

MESSAGE_SIZE_MAX: Final = 16 << 20
"""Bytes of one message: 64 items of 64 KiB and their associated data."""

PACKER_SIZE: Final = 16 * 1024
"""Bytes a packer begins with: most messages fit, and the heap's allocator has them at hand."""

_LENGTH: Final = struct.Struct(">I")

_SHAPES: Final[dict[str, tuple[type, ...]]] = {
    "locked": (),
    "hello": (dict,),
    "ready": (),
    "refused": (int, str),
    "failed": (str, int, str),
    "leaving": (str, int, str),
}
"""What a worker says of its life."""


class MessageError(Exception):
    """The peer sent something that is no message."""


class Answer:
    """A worker's answer to a message.

    Attributes:
        number: Of the message.
        kind: "done" or how it failed.
        value: What was asked for; None unless done.
        code: The return code behind a failure, or 0.
        text: Why it failed.
    """

    __slots__ = ("code", "kind", "number", "text", "value")

    def __init__(self, number: int, kind: str, value: Any, code: int, text: str) -> None:
        self.number = number
        self.kind = kind
        self.value = value
        self.code = code
        self.text = text

    @classmethod
    def parse(cls, message: list[Any]) -> "Answer | None":
        """An answer, or None for a message of the worker's life.

        Raises:
            MessageError: It is neither.
        """
        first, *rest = message
        if isinstance(first, str):
            shape = _SHAPES.get(first)
            if shape is None or tuple(map(type, rest)) != shape:
                raise MessageError(f"not of a worker's life: {first!r}")
            return None
        if type(first) is int and len(rest) == 2 and rest[0] == "done":
            return cls(first, "done", rest[1], 0, "")
        if type(first) is int and tuple(map(type, rest)) == (str, int, str):
            return cls(first, rest[0], None, rest[1], rest[2])
        raise MessageError("neither an answer nor of a worker's life")


def encode_message(message: list[Any]) -> bytes:
    """The bytes of a message."""
    body: bytes = msgpack.Packer(buf_size=PACKER_SIZE).pack(message)
    return _LENGTH.pack(len(body)) + body


class MessageReader:
    """Cuts a byte stream into messages."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes | memoryview) -> list[list[Any]]:
        """Add bytes; the messages that are whole now.

        Raises:
            MessageError: The stream is not one of messages.
        """
        self._buffer += data
        messages = []
        while len(self._buffer) >= _LENGTH.size:
            (size,) = _LENGTH.unpack_from(self._buffer)
            if size > MESSAGE_SIZE_MAX:
                raise MessageError(f"a message of {size} bytes")
            end = _LENGTH.size + size
            if len(self._buffer) < end:
                break
            with memoryview(self._buffer) as view:
                message = _unpack(view[_LENGTH.size : end])
            messages.append(message)
            del self._buffer[:end]
        return messages


def _unpack(body: memoryview) -> list[Any]:
    with body:
        try:
            message = msgpack.unpackb(body)
        except ValueError as error:
            raise MessageError(f"not msgpack: {error}") from None
    if type(message) is not list or not message:
        raise MessageError("a message is an array of at least one")
    return message
