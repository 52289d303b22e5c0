"""A link on a blocking socket, shared by threads.

Theory of operation
-------------------
There is no thread of our own. Threads that wait for answers take turns in one role, the pump: it
waits for the socket, receives, and fills everybody's slots, until its own is filled; then it wakes
another waiting thread to take over. A thread alone is its own pump, so a single request costs no
change of threads. A thread that submits a request encrypts and sends it itself, as far as the
socket takes it; what is left over is sent by the pump, which is woken for that through a pair of
sockets. So nobody ever waits for room in the socket without also receiving, and a gateway that
stops reading until its answers are read cannot lock us up.

One lock guards link, socket and roles; it is held for short computations only, never while waiting.
Whoever leaves `_wait` without the role being taken hands it on, so it is never lost with a thread
that gave up.

After fork the child must not touch the connection: two processes that write into one TLS stream
destroy it. `drop_in_child` closes the child's descriptors, which the parent does not notice, and
nothing else.
"""

import selectors
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from hsmux_protocol.operations import Operation

from ._link import Link, Slot
from ._retry import GRACE_S, TimedOut
from ._tls import ConnectionLost
from ._wire import Wire

__all__ = ["BlockingLink", "Ticket", "connect_socket"]

# select is enough for two descriptors, but not for numbers above 1,024; only Windows has no poll.
_Selector: Final[Callable[[], selectors.BaseSelector]] = getattr(
    selectors, "PollSelector", selectors.SelectSelector
)


class Ticket:
    """A submitted request and, while a thread waits behind another's pump, how to wake it."""

    __slots__ = ("sent_at", "slot", "waiter")

    def __init__(self, operation: Operation) -> None:
        self.slot = Slot(operation, self.wake)
        self.sent_at = time.monotonic()
        self.waiter: threading.Condition | None = None

    def wake(self) -> None:
        """Called with the lock held when the slot is filled."""
        if self.waiter is not None:
            self.waiter.notify()


class BlockingLink:
    """A link and its socket.

    Args:
        link: Not yet begun.
        connected: A connected socket; it becomes non-blocking and belongs to this object.
    """

    def __init__(self, link: Link, connected: socket.socket) -> None:
        self.link = link
        self._wire = Wire(link, connected, time.monotonic)
        self._lock = threading.Lock()
        self._has_pump = False
        self._waiting: dict[threading.Condition, None] = {}
        self._wanting_room: dict[threading.Condition, None] = {}
        self._is_retired = False
        self._waker, self._woken = socket.socketpair()
        self._waker.setblocking(False)
        self._woken.setblocking(False)
        self._selector = _Selector()
        self._selector.register(connected, selectors.EVENT_READ)
        self._selector.register(self._woken, selectors.EVENT_READ)

    def __repr__(self) -> str:
        return f"BlockingLink({self.link!r})"

    def open(self, deadline: float) -> None:
        """Shake hands and wait for WELCOME.

        Args:
            deadline: In seconds of `time.monotonic()`.

        Raises:
            HsmuxError: The gateway or this side refused.
            ConnectionLost: It ended, or did not answer in time.
        """
        with self._lock:
            self._flush()
            self._wait(lambda: self.link.welcome is not None, deadline)
            if self.link.welcome is None:
                self.link.lose("the gateway did not answer in time")
                self._close_when_unused()
                assert self.link.ended is not None
                raise self.link.ended

    def submit(
        self,
        operation: Operation,
        arguments: list[Any],
        budget_ms: int,
        options: dict[str, Any],
        deadline: float,
    ) -> Ticket:
        """Send a request.

        Raises:
            ConnectionLost: It was not sent.
            TimedOut: It was not sent, because too many requests are open for too long.
            TooLarge: It is larger than the gateway accepts.
        """
        with self._lock:
            if self._wire.is_stale:
                self._wire.receive()
            if not self.link.has_room:
                self._wait_for_room(deadline)
            ticket = Ticket(operation)
            self.link.submit(ticket.slot, arguments, budget_ms, options)
            self._flush()
        return ticket

    def wait(self, ticket: Ticket, deadline: float) -> list[Any]:
        """The answer to a submitted request.

        Raises:
            HsmuxError: The gateway's refusal.
            ConnectionLost: The connection ended first.
            TimedOut: Deadline and grace have passed; the request was cancelled.
        """
        slot = ticket.slot
        if not slot.is_filled:
            with self._lock:
                ticket.waiter = threading.Condition(self._lock)
                try:
                    self._wait(lambda: slot.is_filled, deadline + GRACE_S, ticket.waiter)
                finally:
                    if not slot.is_filled:
                        self._give_up(ticket)
                if not slot.is_filled:
                    raise TimedOut
        return slot.take()

    def give_up(self, ticket: Ticket) -> None:
        """Nobody waits for a request any more: cancel it."""
        with self._lock:
            self._give_up(ticket)

    def retire(self) -> None:
        """No new requests come here: close when the last open one is answered."""
        with self._lock:
            self._is_retired = True
            self._close_if_retired()

    def close(self) -> None:
        """Say close_notify, as far as the socket takes it, and close; who waits is told."""
        with self._lock:
            self._close()

    def drop_in_child(self) -> None:
        """Close the descriptors that a forked child inherited, and send nothing."""
        self._close_sockets()

    def _close(self) -> None:
        self.link.close()
        self._flush()
        self._close_when_unused()

    def _close_if_retired(self) -> None:
        if self._is_retired and (self.link.is_idle or self.link.ended is not None):
            self._close()

    def _give_up(self, ticket: Ticket) -> None:
        """Cancel; a gateway that has said nothing at all meanwhile is taken for lost."""
        self.link.give_up(ticket.slot)
        self._flush()
        if self._wire.is_silent_since(ticket.sent_at):
            self.link.lose("the gateway is silent")
            self._close_when_unused()

    def _wait_for_room(self, deadline: float) -> None:
        waiter = threading.Condition(self._lock)
        self._wanting_room[waiter] = None
        try:
            self._wait(lambda: self.link.has_room, deadline, waiter)
        finally:
            del self._wanting_room[waiter]
        if not self.link.has_room and self.link.ended is None:
            raise TimedOut

    def _wait(
        self,
        is_done: Callable[[], bool],
        deadline: float,
        waiter: threading.Condition | None = None,
    ) -> None:
        """Wait until something is so, the link has ended or time is up; the lock is held."""
        waiter = waiter or threading.Condition(self._lock)
        try:
            while not is_done() and self.link.ended is None:
                remaining_s = deadline - time.monotonic()
                if remaining_s <= 0:
                    break
                if self._has_pump:
                    self._waiting[waiter] = None
                    waiter.wait(remaining_s)
                    del self._waiting[waiter]
                else:
                    self._pump(remaining_s)
        finally:
            self._waiting.pop(waiter, None)
            self._hand_over()

    def _hand_over(self) -> None:
        """Let another thread be the pump; at the end, all of them look at what has happened."""
        self._close_if_retired()
        if self.link.ended is not None:
            self._close_when_unused()
        elif not self._has_pump and self._waiting:
            next(iter(self._waiting)).notify()

    def _pump(self, timeout_s: float) -> None:
        """One round: wait for the socket without the lock, then receive and send."""
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._wire.has_unsent else 0)
        self._selector.modify(self._wire.socket, events)
        self._has_pump = True
        self._lock.release()
        try:
            self._selector.select(timeout_s)
        finally:
            self._lock.acquire()
            self._has_pump = False
        try:
            self._woken.recv(64)
        except BlockingIOError:
            pass
        self._wire.receive()
        self._wire.flush()
        for waiter in self._wanting_room:
            waiter.notify()

    def _flush(self) -> None:
        """Send what the socket takes now; the rest is the pump's."""
        self._wire.flush()
        if self._wire.has_unsent:
            self._wake_pump()

    def _wake_pump(self) -> None:
        if self._has_pump:
            try:
                self._waker.send(b"\0")
            except BlockingIOError:
                # It has not taken the last one yet.
                pass

    def _close_when_unused(self) -> None:
        """Close the sockets of an ended link, but not under the pump, which does it then."""
        for waiter in self._waiting:
            waiter.notify()
        if self._has_pump:
            self._wake_pump()
        else:
            self._close_sockets()

    def _close_sockets(self) -> None:
        self._selector.close()
        for each in (self._wire.socket, self._waker, self._woken):
            each.close()


def connect_socket(host: str, port: int, timeout_s: float) -> socket.socket:
    """A connected TCP socket.

    Raises:
        ConnectionLost: Nobody can be reached there.
    """
    try:
        return socket.create_connection((host, port), timeout=max(timeout_s, 0.001))
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConnectionLost(f"cannot connect to {host}:{port}: {reason}") from None
