"""Listening sockets and the tasks of their connections.

A connection's task owns everything of it. An exception nobody expected ends that connection, is
logged whole, and nothing else: one client's fault, or ours in serving it, stops nobody.
"""

import errno
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import structlog
import trio

from .config import split_address
from .connection import Connection, ConnectionFacts
from .errors import OperatorError
from .tls import TlsStream

__all__ = ["Listener", "open_sockets"]

log = structlog.get_logger("hsmux.listener")

USER_TIMEOUT_MS: Final = 30_000
"""Milliseconds that sent bytes may stay unacknowledged before the kernel drops the peer."""

KEEPALIVE_IDLE_S: Final = 60
"""Seconds of silence before the kernel asks whether the peer is still there."""

ACCEPT_PAUSE_S: Final = 0.1
"""Seconds to wait when the process has no descriptor left for another connection."""

BACKLOG: Final = 1024
"""Connections the kernel keeps until they are accepted."""

_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})


def open_sockets(addresses: Sequence[str]) -> list[trio.socket.SocketType]:
    """Listening sockets for `host:port` addresses; port 0 lets the kernel choose.

    Raises:
        OperatorError: An address cannot be listened on.
    """
    sockets: list[trio.socket.SocketType] = []
    for address in addresses:
        host, port = split_address(address)
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            for family, _, _, _, target in found[:1]:
                sockets.append(_open_socket(socket.AddressFamily(family), target))
        except OSError as error:
            for opened in sockets:
                opened.close()
            raise OperatorError(
                f"cannot listen on {address}: {error.strerror}; choose another address in "
                "server.listen or stop what uses it"
            ) from None
    return sockets


def _open_socket(family: socket.AddressFamily, target: object) -> trio.socket.SocketType:
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family is socket.AF_INET6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listening.bind(target)  # type: ignore[arg-type]
        listening.listen(BACKLOG)
        return trio.socket.from_stdlib_socket(listening)
    except OSError:
        listening.close()
        raise


def _set_options(accepted: trio.socket.SocketType) -> None:
    accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    accepted.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_S)
    accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MS)


@dataclass
class Listener:
    """Accepts connections and serves each in a task of its own.

    Attributes:
        context: The TLS context of new connections.
        facts: What all connections share.
        connections: Those that are open now.
    """

    context: ssl.SSLContext
    facts: ConnectionFacts
    connections: set[Connection] = field(default_factory=set)

    async def serve(self, sockets: Sequence[trio.socket.SocketType]) -> None:
        """Accept until cancelled, then close the listening sockets; connections go on elsewhere."""
        async with trio.open_nursery() as nursery:
            for listening in sockets:
                nursery.start_soon(self._accept, listening)

    def __post_init__(self) -> None:
        self._nursery: trio.Nursery | None = None
        self._left = trio.Event()

    async def hold_connections(
        self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Own the connections' tasks until cancelled; start it before `serve`."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            await trio.sleep_forever()

    async def drain(self, timeout_s: float) -> None:
        """Tell every connection to finish, and wait for that at most `timeout_s` seconds."""
        with trio.move_on_after(timeout_s):
            async with trio.open_nursery() as nursery:
                for connection in list(self.connections):
                    nursery.start_soon(connection.drain)
            while self.connections:
                self._left = trio.Event()
                await self._left.wait()

    async def _accept(self, listening: trio.socket.SocketType) -> None:
        with listening:
            while True:
                try:
                    accepted, address = await listening.accept()
                except OSError as error:
                    if error.errno not in _EXHAUSTED:
                        continue
                    log.warning("cannot accept", error=error.strerror)
                    await trio.sleep(ACCEPT_PAUSE_S)
                    continue
                self._take(accepted, address)

    def _take(self, accepted: trio.socket.SocketType, address: tuple[object, ...]) -> None:
        if len(self.connections) >= self.facts.limits.connections_max or self._nursery is None:
            accepted.close()
            return
        try:
            _set_options(accepted)
        except OSError:
            accepted.close()
            return
        tls = TlsStream(accepted, self.context)
        connection = Connection(tls, f"{address[0]}:{address[1]}", self.facts)
        self.connections.add(connection)
        self._nursery.start_soon(self._serve_one, connection)

    async def _serve_one(self, connection: Connection) -> None:
        try:
            await connection.run()
        except Exception as error:
            log.exception("a connection failed", error=type(error).__name__)
        finally:
            self.connections.discard(connection)
            self._left.set()
