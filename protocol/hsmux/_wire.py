"""A link and its non-blocking socket: moves bytes between them and waits for nothing.

Both clients wait in their own way and then call `receive` and `flush` here. What the socket does
not take at once is kept, and goes first the next time, so that no TLS record is ever torn.

A gateway can be gone without the connection ending: stopped, or behind a cable that was pulled out.
It is taken for lost when a request has had its time and nothing at all has come for a while since
an answer is owed. A cancelled request is owed its answer too: otherwise a caller with short
timeouts would begin to wait anew each time and never find out.
"""

import socket
from collections.abc import Callable
from typing import Any, Final

from ._link import Link, Slot
from ._retry import TimedOut, budget_ms

__all__ = ["Wire", "set_options"]

RECEIVE_SIZE: Final = 256 * 1024
"""Bytes of one read from the socket."""

STALE_S: Final = 1.0
"""Seconds of silence after which a connection is looked at before it is used again."""

SILENT_S: Final = 1.0
"""Seconds in which a gateway that owes an answer must let hear something of it."""

USER_TIMEOUT_MS: Final = 30_000
"""Milliseconds sent data may stay unacknowledged before the kernel drops the gateway."""


def set_options(connected: socket.socket) -> None:
    """What a connected socket needs to be a link's.

    Raises:
        OSError: The connection has ended already.
    """
    connected.setblocking(False)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MS)


class Wire:
    """A link on a socket.

    Args:
        link: Not yet begun.
        connected: A connected socket that belongs to this object and was given its options.
        clock: Tells the time in seconds.
    """

    def __init__(self, link: Link, connected: socket.socket, clock: Callable[[], float]) -> None:
        self.link = link
        self.socket = connected
        self._clock = clock
        self._unsent = memoryview(b"")
        self._buffer = memoryview(bytearray(RECEIVE_SIZE))
        self._received_at = self._owed_since = clock()

    @property
    def has_unsent(self) -> bool:
        """Whether bytes wait for room in the socket."""
        return len(self._unsent) > 0

    @property
    def is_stale(self) -> bool:
        """Whether nothing is asked and nothing was heard for a while: it may have ended."""
        return self.link.is_idle and self._clock() - self._received_at > STALE_S

    @property
    def is_silent(self) -> bool:
        """Whether an answer is owed and nothing at all has come for a while."""
        since = max(self._received_at, self._owed_since)
        return self.link.is_owed and self._clock() - since > SILENT_S

    def submit(self, slot: Slot, arguments: list[Any], deadline: float, options: Any) -> None:
        """Send a request with what is left until its deadline.

        Raises:
            ConnectionLost: The link is not open: the request was not sent.
            TimedOut: The deadline has passed: the request was not sent.
            TooLarge: The request is larger than the gateway accepts.
        """
        now = self._clock()
        if now >= deadline:
            raise TimedOut
        if not self.link.is_owed:
            self._owed_since = now
        self.link.submit(slot, arguments, budget_ms(deadline, now), options)
        self.flush()

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
