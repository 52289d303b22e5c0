"""A link on a socket that Trio waits for, shared by tasks.

Theory of operation
-------------------
As in `_blocking` there is no task of our own, so a client needs no nursery and raises no exception
groups: tasks that wait for answers take turns as the pump, which waits for the socket, receives for
everybody and sends what is left over, until its own slot is filled. Everything between two awaits
is one step of the event loop, so there is no lock. Whoever leaves `_wait`, for whatever reason,
hands on: if there is no pump, one of those who wait is woken.

Cancelling a task that waits cancels its request with the gateway. A task cancelled in the middle of
a send leaves no torn record: whoever is the pump next goes on with what is left. A
KeyboardInterrupt comes like a cancellation, at an await: between two of them these functions are
protected from it.
"""

import socket
from collections.abc import Callable
from typing import Any

import trio
from trio.lowlevel import enable_ki_protection

from hsmux_protocol.operations import Operation

from ._addresses import share
from ._link import Link, Slot
from ._retry import GRACE_S, TimedOut
from ._tls import ClientClosed, ConnectionLost
from ._wire import Wire, set_options

__all__ = ["TrioLink", "TrioTicket", "connect_socket"]


class _Waiter:
    """Where one task sleeps until it is woken."""

    __slots__ = ("_event",)

    def __init__(self) -> None:
        self._event = trio.Event()

    async def sleep(self) -> None:
        """Sleep; not longer than to the next step of the loop if it was woken since the last
        time.
        """
        await self._event.wait()
        self._event = trio.Event()

    def wake(self) -> None:
        self._event.set()


class TrioTicket:
    """A submitted request and where its task sleeps while another one is the pump."""

    __slots__ = ("slot", "waiter")

    def __init__(self, operation: Operation) -> None:
        self.waiter = _Waiter()
        self.slot = Slot(operation, self.waiter.wake)


class TrioLink:
    """A link and its socket.

    Args:
        link: Not yet begun.
        connected: A connected socket, which belongs to this object.
        address: Where it is connected to.

    Raises:
        OSError: The connection has ended; the socket is closed.
    """

    def __init__(self, link: Link, connected: socket.socket, address: str) -> None:
        self.link = link
        self.address = address
        try:
            set_options(connected)
        except OSError:
            connected.close()
            raise
        self._wire = Wire(link, connected, trio.current_time)
        self._pump_scope: trio.CancelScope | None = None
        self._waiting: dict[_Waiter, None] = {}
        self._wanting_room: dict[_Waiter, None] = {}
        self._is_retired = False

    def __repr__(self) -> str:
        return f"TrioLink({self.link!r})"

    @enable_ki_protection
    async def open(self) -> None:
        """Shake hands and wait for WELCOME.

        Raises:
            HsmuxError: The gateway or this side refused.
            ConnectionLost: It ended.
        """
        self._flush()
        await self._wait(lambda: self.link.welcome is not None, _Waiter())
        if self.link.welcome is None:
            assert self.link.ended is not None
            raise self.link.ended

    @enable_ki_protection
    async def submit(
        self,
        operation: Operation,
        arguments: list[Any],
        options: dict[str, Any],
        deadline: float,
    ) -> TrioTicket:
        """Send a request.

        Args:
            operation: Of the table.
            arguments: Encodable.
            options: Of the option table.
            deadline: What the gateway is told; in seconds of `trio.current_time()`.

        Raises:
            ConnectionLost: It was not sent.
            TimedOut: It was not sent: the deadline has passed, or too many requests are open for
                too long.
            TooLarge: It is larger than the gateway accepts.
        """
        if self._wire.is_stale:
            self._look()
        while not self.link.has_room and self.link.is_open:
            await self._wait_for_room(deadline)
        ticket = TrioTicket(operation)
        self._wire.submit(ticket.slot, arguments, deadline, options)
        self._after_flush()
        return ticket

    @enable_ki_protection
    async def wait(self, ticket: TrioTicket, deadline: float) -> list[Any]:
        """The answer to a submitted request.

        Raises:
            HsmuxError: The gateway's refusal.
            ConnectionLost: The connection ended first.
            TimedOut: Deadline and grace have passed; the request was cancelled.
        """
        slot = ticket.slot
        try:
            with trio.move_on_at(deadline + GRACE_S):
                await self._wait(lambda: slot.is_filled, ticket.waiter)
        finally:
            if not slot.is_filled:
                self.give_up(ticket)
        if not slot.is_filled:
            self._doubt()
            raise TimedOut
        return slot.take()

    @enable_ki_protection
    def give_up(self, ticket: TrioTicket) -> None:
        """Nobody waits for a request any more: cancel it."""
        self.link.give_up(ticket.slot)
        self._flush()

    @enable_ki_protection
    def retire(self) -> None:
        """No new requests come here: close when the last open one is answered."""
        self._is_retired = True
        self._close_if_retired()

    @enable_ki_protection
    def close(self) -> None:
        """Say close_notify, as far as the socket takes it, and close; who waits is told."""
        self._close(ClientClosed())

    @property
    def is_closed(self) -> bool:
        """Whether the socket is closed."""
        return self._wire.socket.fileno() < 0

    def _close(self, reason: ConnectionLost) -> None:
        self.link.close(reason)
        self._wire.flush()
        self._close_socket()

    def _close_if_retired(self) -> None:
        if self._is_retired and (self.link.is_idle or self.link.ended is not None):
            self._close(ConnectionLost("another connection has taken its place"))

    def _doubt(self) -> None:
        """A request has had its time: a gateway that has long said nothing is taken for lost."""
        if self._wire.is_silent:
            # Our own process may have been stopped, and the answers lie in the socket.
            self._look()
        if self._wire.is_silent:
            self.link.lose("the gateway is silent")
            self._close_socket()

    def _look(self) -> None:
        """Receive what is there already, without being the pump."""
        self._wire.receive()
        self._flush()
        self._tell_of_room()
        if self._pump_scope is not None:
            self._pump_scope.cancel()

    @enable_ki_protection
    async def _wait_for_room(self, deadline: float) -> None:
        waiter = _Waiter()
        self._wanting_room[waiter] = None
        try:
            with trio.move_on_at(deadline):
                await self._wait(lambda: self.link.has_room or not self.link.is_open, waiter)
        finally:
            del self._wanting_room[waiter]
        if trio.current_time() >= deadline:
            raise TimedOut

    @enable_ki_protection
    async def _wait(self, is_done: Callable[[], bool], waiter: _Waiter) -> None:
        """Wait until something is so or the link has ended."""
        try:
            while not is_done() and self.link.ended is None:
                if self._pump_scope is None:
                    await self._pump()
                else:
                    self._waiting[waiter] = None
                    try:
                        await waiter.sleep()
                    finally:
                        del self._waiting[waiter]
        finally:
            self._hand_over()

    def _hand_over(self) -> None:
        """Let another task be the pump; at the end, all of them look at what has happened."""
        self._close_if_retired()
        if self.link.ended is not None:
            self._close_socket()
        elif self._pump_scope is None and self._waiting:
            next(iter(self._waiting)).wake()

    @enable_ki_protection
    async def _pump(self) -> None:
        """One round: wait for the socket, then receive and send."""
        try:
            with trio.CancelScope() as self._pump_scope:
                try:
                    if self._wire.has_unsent:
                        await self._wait_for_either()
                    else:
                        await trio.lowlevel.wait_readable(self._wire.socket)
                except trio.ClosedResourceError:
                    pass
        finally:
            self._pump_scope = None
        self._wire.receive()
        self._flush()
        self._tell_of_room()

    @enable_ki_protection
    async def _wait_for_either(self) -> None:
        """Wait until the socket has bytes or takes some."""

        @enable_ki_protection
        async def wait(which: Callable[[socket.socket], Any], scope: trio.CancelScope) -> None:
            try:
                if not self.is_closed:
                    await which(self._wire.socket)
            except trio.ClosedResourceError:
                pass
            scope.cancel()

        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait, trio.lowlevel.wait_readable, nursery.cancel_scope)
                nursery.start_soon(wait, trio.lowlevel.wait_writable, nursery.cancel_scope)
        except BaseExceptionGroup as group:
            # A KeyboardInterrupt or a cancellation, which nobody above expects in a group.
            interrupts = group.split(trio.Cancelled)[1]
            if interrupts is not None:
                raise _innermost(interrupts) from None
            await trio.lowlevel.checkpoint_if_cancelled()

    def _tell_of_room(self) -> None:
        if self.link.has_room or not self.link.is_open:
            for waiter in self._wanting_room:
                waiter.wake()

    def _flush(self) -> None:
        """Send what the socket takes now."""
        self._wire.flush()
        self._after_flush()

    def _after_flush(self) -> None:
        """What is left over is the pump's to send, which must look again; an end is everybody's to
        see.
        """
        if self.link.ended is not None:
            self._close_socket()
        elif self._wire.has_unsent and self._pump_scope is not None:
            self._pump_scope.cancel()

    def _close_socket(self) -> None:
        for waiter in (*self._waiting, *self._wanting_room):
            waiter.wake()
        if not self.is_closed:
            trio.lowlevel.notify_closing(self._wire.socket)
            self._wire.socket.close()


def _innermost(error: BaseException) -> BaseException:
    """The first exception in a group of groups."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def connect_socket(host: str, port: int, deadline: float) -> socket.socket:
    """A connected TCP socket.

    Args:
        host: A name or an IP address.
        port: TCP port.
        deadline: In seconds of `trio.current_time()`, for all addresses the name has.

    Raises:
        ConnectionLost: Nobody can be reached there.
    """
    problem = "no address"
    try:
        found = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        for (family, kind, protocol, _, target), until in zip(
            found, share(len(found), deadline, trio.current_time), strict=True
        ):
            connecting = trio.socket.socket(family, kind, protocol)
            problem = "no answer in time"
            try:
                with trio.move_on_at(until):
                    await connecting.connect(target)
                    # Out of Trio's wrapper: the wire sends and receives by itself.
                    return socket.socket(fileno=connecting.detach())
            except OSError as error:
                problem = error.strerror or str(error)
            finally:
                connecting.close()
    except (OSError, ValueError) as error:
        problem = getattr(error, "strerror", None) or str(error)
    raise ConnectionLost(f"cannot connect: {problem}")
