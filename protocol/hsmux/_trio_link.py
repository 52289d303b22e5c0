"""A link on a socket that Trio waits for, shared by tasks.

Theory of operation
-------------------
As in `_blocking` there is no task of our own, so a client needs no nursery and raises no exception
groups: tasks that wait for answers take turns as the pump, which waits for the socket, receives for
everybody and sends what is left over, until its own slot is filled. Everything between two awaits
is one step of the event loop, so there is no lock.

Cancelling a task that waits cancels its request with the gateway. A task cancelled in the middle of
a send leaves no torn record: whoever is the pump next goes on with what is left.
"""

import socket
from collections.abc import Callable
from typing import Any

import trio

from hsmux_protocol.operations import Operation

from ._link import Link, Slot
from ._retry import GRACE_S, TimedOut
from ._tls import ConnectionLost
from ._wire import Wire

__all__ = ["TrioLink", "connect_socket"]


class _Waiter:
    """A task that waits behind another's pump."""

    def __init__(self) -> None:
        self.event = trio.Event()

    def wake(self) -> None:
        self.event.set()


class TrioLink:
    """A link and its socket.

    Args:
        link: Not yet begun.
        connected: A connected socket, which belongs to this object.
    """

    def __init__(self, link: Link, connected: socket.socket) -> None:
        self.link = link
        self._wire = Wire(link, connected, trio.current_time)
        self._pump_scope: trio.CancelScope | None = None
        self._waiting: dict[_Waiter, None] = {}
        self._is_retired = False

    def __repr__(self) -> str:
        return f"TrioLink({self.link!r})"

    async def open(self) -> None:
        """Shake hands and wait for WELCOME.

        Raises:
            HsmuxError: The gateway or this side refused.
            ConnectionLost: It ended.
        """
        self._wire.flush()
        try:
            await self._wait(lambda: self.link.welcome is not None, _Waiter())
        finally:
            if self.link.welcome is None:
                self.link.lose("the gateway did not answer in time")
                self._close_socket()
        if self.link.welcome is None:
            assert self.link.ended is not None
            raise self.link.ended

    async def request(
        self,
        operation: Operation,
        arguments: list[Any],
        budget_ms: int,
        options: dict[str, Any],
        deadline: float,
        on_sent: Callable[[], None],
    ) -> list[Any]:
        """One request and its answer.

        Args:
            operation: Of the table.
            arguments: Encodable.
            budget_ms: Milliseconds the gateway has.
            options: Of the option table.
            deadline: When to give up, `GRACE_S` later; in seconds of `trio.current_time()`.
            on_sent: Called once the request is on its way.

        Raises:
            HsmuxError: The gateway's refusal, or a request that is too large.
            ConnectionLost: The connection ended first.
            TimedOut: Deadline and grace have passed; the request was cancelled.
        """
        waiter = _Waiter()
        with trio.move_on_at(deadline + GRACE_S):
            if self._wire.is_stale:
                self._wire.receive()
            await self._wait(lambda: self.link.has_room, waiter)
            slot = Slot(operation, waiter.wake)
            self.link.submit(slot, arguments, budget_ms, options)
            on_sent()
            sent_at = trio.current_time()
            self._flush()
            try:
                await self._wait(lambda: slot.is_filled, waiter)
            finally:
                if not slot.is_filled:
                    self._give_up(slot, sent_at)
            return slot.take()
        raise TimedOut

    def retire(self) -> None:
        """No new requests come here: close when the last open one is answered."""
        self._is_retired = True
        self._close_if_retired()

    def close(self) -> None:
        """Say close_notify, as far as the socket takes it, and close; who waits is told."""
        self.link.close()
        self._wire.flush()
        self._close_socket()

    def _close_if_retired(self) -> None:
        if self._is_retired and (self.link.is_idle or self.link.ended is not None):
            self.close()

    def _give_up(self, slot: Slot, sent_at: float) -> None:
        """Cancel; a gateway that has said nothing at all meanwhile is taken for lost."""
        self.link.give_up(slot)
        self._flush()
        if self._wire.is_silent_since(sent_at):
            self.link.lose("the gateway is silent")

    async def _wait(self, is_done: Callable[[], bool], waiter: _Waiter) -> None:
        """Wait until something is so or the link has ended."""
        try:
            while not is_done() and self.link.ended is None:
                if self._pump_scope is None:
                    await self._pump()
                    continue
                waiter.event = trio.Event()
                self._waiting[waiter] = None
                try:
                    await waiter.event.wait()
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

    async def _pump(self) -> None:
        """One round: wait for the socket, then receive and send."""
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
        had_room = self.link.has_room
        self._wire.receive()
        self._wire.flush()
        if not had_room:
            for waiter in self._waiting:
                waiter.wake()

    async def _wait_for_either(self) -> None:
        """Wait until the socket has bytes or takes some."""

        async def wait(which: Callable[[socket.socket], Any], scope: trio.CancelScope) -> None:
            try:
                await which(self._wire.socket)
            except trio.ClosedResourceError:
                pass
            scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait, trio.lowlevel.wait_readable, nursery.cancel_scope)
            nursery.start_soon(wait, trio.lowlevel.wait_writable, nursery.cancel_scope)

    def _flush(self) -> None:
        """Send what the socket takes now; a pump that waits for bytes only must look again."""
        self._wire.flush()
        if self._wire.has_unsent and self._pump_scope is not None:
            self._pump_scope.cancel()

    def _close_socket(self) -> None:
        for waiter in self._waiting:
            waiter.wake()
        if self._wire.socket.fileno() >= 0:
            trio.lowlevel.notify_closing(self._wire.socket)
            self._wire.socket.close()


async def connect_socket(host: str, port: int) -> socket.socket:
    """A connected TCP socket.

    Raises:
        ConnectionLost: Nobody can be reached there.
    """
    try:
        stream = await trio.open_tcp_stream(host, port)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConnectionLost(f"cannot connect to {host}:{port}: {reason}") from None
    # Out of Trio's wrappers: what they send and receive by themselves would pass TLS by.
    return socket.socket(fileno=stream.socket.detach())
