"""Between the daemon and a worker: length-prefixed msgpack over a socket pair.

The peer is a process of our own, but it runs a vendor's code: lengths are checked, and anything
unexpected ends the worker, not the daemon.

    daemon -> worker    [number, operation, arguments...]      at most two unanswered
    worker -> daemon    ["hello", facts] once, after C_Initialize and before any login
                        ["ready", facts] once, after the login and a canary
                        ["refused", code] instead, when the token refused the PIN
                        [number, "done", value] | [number, class, code, text]
"""

import struct
from typing import Any, Final

import msgpack

__all__ = ["ITEMS_MAX", "MESSAGE_SIZE_MAX", "MessageError", "MessageReader", "encode_message"]

MESSAGE_SIZE_MAX: Final = 16 << 20
"""Bytes of one message: 64 items of 64 KiB and their associated data."""

ITEMS_MAX: Final = 64
"""Items of one message: a lost worker loses no more work than that."""

_LENGTH: Final = struct.Struct(">I")


class MessageError(Exception):
    """The peer sent something that is no message."""


def encode_message(message: list[Any]) -> bytes:
    """The bytes of a message."""
    body: bytes = msgpack.packb(message)
    return _LENGTH.pack(len(body)) + body


class MessageReader:
    """Cuts a byte stream into messages."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[list[Any]]:
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
            try:
                message = msgpack.unpackb(memoryview(self._buffer)[_LENGTH.size : end])
            except ValueError as error:
                raise MessageError(f"not msgpack: {error}") from None
            if type(message) is not list or len(message) < 2:
                raise MessageError("a message is an array of at least two")
            messages.append(message)
            del self._buffer[:end]
        return messages
