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
The rules that keep a wake-up from being lost:

* What a thread waits for is looked at under the lock, and so is whether there is a pump. Whoever
  changes either has the lock, and wakes afterwards.
* Whoever leaves `_wait`, for whatever reason, hands on: if there is no pump, one of those who wait
  is woken. One that is woken and leaves hands on in its turn.
* Only the pump receives. Another thread that has to (before it uses a connection that was idle,
  before it takes a gateway for lost) wakes the pump, whose slot may be among those it filled.
* The sockets of an ended link are closed by whoever sees the end, but never under the pump: that is
  woken and does it.

A KeyboardInterrupt can come between any two steps of the main thread. The lock is only ever taken
by `with`, and nothing that sleeps takes it again by itself (as a Condition does), so it is never
left taken. A computation that was cut in two leaves a link nobody can rely on: it is given up as if
the connection had broken, which costs the other threads a repeated request. And a thread that was
about to wake another may be interrupted just then, so nobody sleeps long without looking himself.

After fork the child must not touch the connection: two processes that write into one TLS stream
destroy it. The child closes its descriptors, which the parent does not notice, and nothing else.
"""

import os
import selectors
import socket
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any, Final

from hsmux_protocol.operations import Operation

from ._addresses import share
from ._link import Link, Slot
from ._retry import FAILURES, GRACE_S, TimedOut
from ._tls import ClientClosed, ConnectionLost
from ._wire import Wire, set_options

__all__ = ["BlockingLink", "Ticket", "Waiter", "connect_socket"]

# select is enough for two descriptors, but not for numbers above 1,024; only Windows has no poll.
_Selector: Final[Callable[[], selectors.BaseSelector]] = getattr(
    selectors, "PollSelector", selectors.SelectSelector
)

LOOK_S: Final = 1.0
"""Seconds after which a thread that sleeps looks by itself: what a wake-up that was lost to a
KeyboardInterrupt costs.
"""

_links: "weakref.WeakSet[BlockingLink]" = weakref.WeakSet()


class Waiter:
    """Where one thread sleeps until it is woken or time is up."""

    __slots__ = ("_bed",)

    def __init__(self) -> None:
        self._bed = threading.Lock()
        self._bed.acquire()

    def sleep(self, timeout_s: float) -> None:
        """Sleep for a while; not at all if it was woken since the last time."""
        self._bed.acquire(timeout=max(0.0, min(timeout_s, LOOK_S)))

    def wake(self) -> None:
        """Wake it now or keep it from falling asleep; callers take turns by a lock of their own."""
        if self._bed.locked():
            self._bed.release()


class Ticket:
    """A submitted request and where its thread sleeps while another one is the pump."""

    __slots__ = ("slot", "waiter")

    def __init__(self, operation: Operation) -> None:
        self.waiter = Waiter()
        self.slot = Slot(operation, self.waiter.wake)


class _Whole:
    """Around a computation under the lock: if it is cut in two, the link is given up."""

    __slots__ = ("_link",)

    def __init__(self, link: "BlockingLink") -> None:
        self._link = link

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, *details: object) -> None:
        if kind is not None and not issubclass(kind, FAILURES):
            self._link.lose("a request was interrupted")


class BlockingLink:
    """A link and its socket.

    Args:
        link: Not yet begun.
        connected: A connected socket, which belongs to this object.
        address: Where it is connected to.

    Raises:
        OSError: There are no more descriptors, or the connection has ended; the socket is closed.
    """

    def __init__(self, link: Link, connected: socket.socket, address: str) -> None:
        self.link = link
        self.address = address
        self._lock = threading.Lock()
        self._has_pump = False
        self._waiting: dict[Waiter, None] = {}
        self._wanting_room: dict[Waiter, None] = {}
        self._is_retired = False
        try:
            set_options(connected)
            self._waker, self._woken = socket.socketpair()
        except OSError:
            connected.close()
            raise
        self._wire = Wire(link, connected, time.monotonic)
        self._waker.setblocking(False)
        self._woken.setblocking(False)
        self._selector = _Selector()
        self._selector.register(connected, selectors.EVENT_READ)
        self._selector.register(self._woken, selectors.EVENT_READ)
        _links.add(self)

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
        with self._lock, _Whole(self):
            self._flush()
        self._wait(lambda: self.link.welcome is not None, deadline, Waiter())
        if self.link.welcome is None:
            with self._lock:
                self.lose("the gateway did not answer in time")
            assert self.link.ended is not None
            raise self.link.ended

    def submit(
        self,
        operation: Operation,
        arguments: list[Any],
        options: dict[str, Any],
        deadline: float,
    ) -> Ticket:
        """Send a request.

        Raises:
            ConnectionLost: It was not sent.
            TimedOut: It was not sent: the deadline has passed, or too many requests are open for
                too long.
            TooLarge: It is larger than the gateway accepts.
        """
        while True:
            with self._lock, _Whole(self):
                if self._wire.is_stale:
                    self._look()
                if self.link.has_room or not self.link.is_open:
                    ticket = Ticket(operation)
                    self._wire.submit(ticket.slot, arguments, deadline, options)
                    self._after_flush()
                    return ticket
            self._wait_for_room(deadline)

    def wait(self, ticket: Ticket, deadline: float) -> list[Any]:
        """The answer to a submitted request.

        Raises:
            HsmuxError: The gateway's refusal.
            ConnectionLost: The connection ended first.
            TimedOut: Deadline and grace have passed; the request was cancelled.
        """
        slot = ticket.slot
        if not slot.is_filled:
            try:
                self._wait(lambda: slot.is_filled, deadline + GRACE_S, ticket.waiter)
            finally:
                if not slot.is_filled:
                    self.give_up(ticket)
            if not slot.is_filled:
                self._doubt()
                raise TimedOut
        return slot.take()

    def give_up(self, ticket: Ticket) -> None:
        """Nobody waits for a request any more: cancel it."""
        with self._lock, _Whole(self):
            self.link.give_up(ticket.slot)
            self._flush()

    def retire(self) -> None:
        """No new requests come here: close when the last open one is answered."""
        with self._lock, _Whole(self):
            self._is_retired = True
            self._close_if_retired()

    def close(self) -> None:
        """Say close_notify, as far as the socket takes it, and close; who waits is told."""
        with self._lock, _Whole(self):
            self._close(ClientClosed())

    def lose(self, reason: str) -> None:
        """Give the connection up; the lock is held."""
        self.link.lose(reason)
        self._close_when_unused()

    def drop_in_child(self) -> None:
        """Close the descriptors that a forked child inherited, and send nothing."""
        self._close_sockets()

    @property
    def is_closed(self) -> bool:
        """Whether the sockets are closed."""
        return self._wire.socket.fileno() < 0

    def _close(self, reason: ConnectionLost) -> None:
        self.link.close(reason)
        self._wire.flush()
        self._close_when_unused()

    def _close_if_retired(self) -> None:
        if self._is_retired and (self.link.is_idle or self.link.ended is not None):
            self._close(ConnectionLost("another connection has taken its place"))

    def _doubt(self) -> None:
        """A request has had its time: a gateway that has long said nothing is taken for lost."""
        with self._lock, _Whole(self):
            if self._wire.is_silent:
                # Our own process may have been stopped, and the answers lie in the socket.
                self._look()
            if self._wire.is_silent:
                self.lose("the gateway is silent")

    def _look(self) -> None:
        """Receive what is there already, without being the pump."""
        self._wire.receive()
        self._flush()
        self._wake_pump()
        self._tell_of_room()

    def _wait_for_room(self, deadline: float) -> None:
        waiter = Waiter()
        with self._lock:
            self._wanting_room[waiter] = None
        try:
            self._wait(lambda: self.link.has_room or not self.link.is_open, deadline, waiter)
        finally:
            with self._lock:
                del self._wanting_room[waiter]
        if time.monotonic() >= deadline:
            raise TimedOut

    def _wait(self, is_done: Callable[[], bool], deadline: float, waiter: Waiter) -> None:
        """Wait until something is so, the link has ended or time is up."""
        is_pump = False
        try:
            while True:
                with self._lock, _Whole(self):
                    if is_pump:
                        is_pump = self._has_pump = False
                        self._exchange()
                    remaining_s = deadline - time.monotonic()
                    if is_done() or self.link.ended is not None or remaining_s <= 0:
                        return
                    if self._has_pump:
                        self._waiting[waiter] = None
                    else:
                        self._select_what_is_needed()
                        is_pump = self._has_pump = True
                if is_pump:
                    self._selector.select(remaining_s)
                else:
                    waiter.sleep(remaining_s)
        finally:
            if is_pump:
                # Before the lock, which an interrupted thread may not get.
                self._has_pump = False
            with self._lock, _Whole(self):
                self._waiting.pop(waiter, None)
                self._hand_over()

    def _hand_over(self) -> None:
        """Let another thread be the pump; at the end, all of them look at what has happened."""
        self._close_if_retired()
        if self.link.ended is not None:
            self._close_when_unused()
        elif not self._has_pump and self._waiting:
            waiter = next(iter(self._waiting))
            # It comes again if it sleeps again; one that never comes is not asked twice.
            del self._waiting[waiter]
            waiter.wake()

    def _select_what_is_needed(self) -> None:
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._wire.has_unsent else 0)
        self._selector.modify(self._wire.socket, events)

    def _exchange(self) -> None:
        """Receive and send: what the pump does when the socket is ready."""
        try:
            self._woken.recv(64)
        except BlockingIOError:
            pass
        self._wire.receive()
        self._wire.flush()
        self._tell_of_room()

    def _tell_of_room(self) -> None:
        if self.link.has_room or not self.link.is_open:
            for waiter in self._wanting_room:
                waiter.wake()

    def _flush(self) -> None:
        """Send what the socket takes now."""
        self._wire.flush()
        self._after_flush()

    def _after_flush(self) -> None:
        """What is left over is the pump's to send; an end is everybody's to see."""
        if self.link.ended is not None:
            self._close_when_unused()
        elif self._wire.has_unsent:
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
        for waiter in (*self._waiting, *self._wanting_room):
            waiter.wake()
        if self._has_pump:
            self._wake_pump()
        else:
            self._close_sockets()

    def _close_sockets(self) -> None:
        self._selector.close()
        for each in (self._wire.socket, self._waker, self._woken):
            each.close()


def _drop_inherited() -> None:
    for each in list(_links):
        each.drop_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_drop_inherited)


def connect_socket(host: str, port: int, deadline: float) -> socket.socket:
    """A connected TCP socket.

    Args:
        host: A name or an IP address; looking up a name is not bounded by the deadline.
        port: TCP port.
        deadline: In seconds of `time.monotonic()`, for all addresses the name has.

    Raises:
        ConnectionLost: Nobody can be reached there.
    """
    problem = "no address"
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        for (family, kind, protocol, _, target), until in zip(
            found, share(len(found), deadline, time.monotonic), strict=True
        ):
            connected = socket.socket(family, kind, protocol)
            try:
                connected.settimeout(max(until - time.monotonic(), 0.001))
                connected.connect(target)
                return connected
            except OSError as error:
                connected.close()
                problem = error.strerror or "no answer in time"
            except BaseException:
                connected.close()
                raise
    except (OSError, ValueError) as error:
        problem = getattr(error, "strerror", None) or str(error)
    raise ConnectionLost(f"cannot connect: {problem}")
