"""A link and its non-blocking socket: moves bytes between them and waits for nothing.

Both clients wait in their own way and then call `receive` and `flush` here. What the socket does
not take at once is kept, and goes first the next time, so that no TLS record is ever torn.
"""

import socket
from collections.abc import Callable
from typing import Final

from ._link import Link

__all__ = ["Wire"]

RECEIVE_SIZE: Final = 256 * 1024
"""Bytes of one read from the socket."""

STALE_S: Final = 1.0
"""Seconds of silence after which a connection is looked at before it is used again."""

USER_TIMEOUT_MS: Final = 30_000
"""Milliseconds sent data may stay unacknowledged before the kernel drops the gateway."""


class Wire:
    """A link on a socket.

    Args:
        link: Not yet begun.
        connected: A connected socket; it becomes non-blocking and belongs to this object.
        clock: Tells the time in seconds.
    """

    def __init__(self, link: Link, connected: socket.socket, clock: Callable[[], float]) -> None:
        connected.setblocking(False)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MS)
        self.link = link
        self.socket = connected
        self._clock = clock
        self._unsent = memoryview(b"")
        self._buffer = memoryview(bytearray(RECEIVE_SIZE))
        self._received_at = clock()

    @property
    def has_unsent(self) -> bool:
        """Whether bytes wait for room in the socket."""
        return len(self._unsent) > 0

    @property
    def is_stale(self) -> bool:
        """Whether nothing is asked and nothing was heard for a while: it may have ended."""
        return self.link.is_idle and self._clock() - self._received_at > STALE_S

    def is_silent_since(self, moment: float) -> bool:
        """Whether nothing at all came since a moment that is some time ago."""
        return self._received_at < moment < self._clock() - STALE_S

    def receive(self) -> None:
        """Take what the socket has now, and let the link see it."""
        if self.link.ended is not None:
            return
        try:
            size = self.socket.recv_into(self._buffer)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self.link.lose(f"the connection broke: {error.strerror}")
            return
        self._received_at = self._clock()
        self.link.receive(self._buffer[:size])

    def flush(self) -> None:
        """Send what the socket takes now."""
        try:
            while self._unsent or (data := self.link.take_outgoing()):
                self._unsent = self._unsent or memoryview(data)
                self._unsent = self._unsent[self.socket.send(self._unsent) :]
        except (BlockingIOError, InterruptedError):
            pass
        except OSError as error:
            self._unsent = memoryview(b"")
            self.link.lose(f"the connection broke: {error.strerror}")
