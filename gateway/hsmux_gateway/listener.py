"""Listening sockets and the tasks of their connections.

A connection's task owns everything of it. An exception nobody expected ends that connection, is
logged whole, and nothing else: one client's fault, or ours in serving it, stops nobody.

How many: `connections_max`, or fewer where the process may not have so many descriptors; the
store, the tokens and the audit file keep `DESCRIPTORS_RESERVED` of them. More are closed at once.
Peers that have not said who they are get at most one in `OPENING_SHARE` of these places: when
more come, the one that has been opening longest makes room. Who is quick, as a client with a
client key is, gets in beside any number of those who only connect.

What becomes of them is logged a line each `REPORT_INTERVAL_S`, source and reason, not a line each:
nobody unknown can fill a disk with log lines.
"""

import errno
import resource
import socket
import ssl
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from typing import Final

import trio

from .config import split_address
from .connection import Connection, ConnectionFacts
from .errors import OperatorError
from .logs import structlog
from .tls import RECEIVE_SIZE, TlsStream

__all__ = ["Listener", "connections_possible", "open_sockets"]

log = structlog.get_logger("hsmux.listener")

USER_TIMEOUT_MS: Final = 30_000
"""Milliseconds that sent bytes may stay unacknowledged before the kernel drops the peer."""

KEEPALIVE_IDLE_S: Final = 60
"""Seconds of silence before the kernel asks whether the peer is still there."""

ACCEPT_PAUSE_S: Final = 0.1
"""Seconds to wait when the process has no descriptor left for another connection."""

BACKLOG: Final = 1024
"""Connections the kernel keeps until they are accepted."""

DESCRIPTORS_RESERVED: Final = 64
"""Descriptors that are never connections: store, audit, listening sockets, health."""

REPORT_INTERVAL_S: Final = 10.0
"""Seconds between reports of connections that were never welcomed."""

REPORT_LINES_MAX: Final = 32
"""Sources and reasons of one report; what is beyond is counted together."""

OPENING_SHARE: Final = 4
"""One in so many places is for peers that have not said who they are."""

_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})


def connections_possible(wanted: int, others: int = 0) -> int:
    """How many connections the process can have, after raising its limit of descriptors.

    Args:
        wanted: As configured.
        others: Descriptors that workers need.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    reserved = DESCRIPTORS_RESERVED + others
    needed = wanted + reserved
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(hard, needed)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY:
        return wanted
    possible = max(1, min(wanted, soft - reserved))
    if possible < wanted:
        log.warning(
            "fewer connections than configured", possible=possible, wanted=wanted, descriptors=soft
        )
    return possible


def open_sockets(
    addresses: Sequence[str], setting: str = "server.listen"
) -> list[trio.socket.SocketType]:
    """Listening sockets for `host:port` addresses; port 0 lets the kernel choose.

    Args:
        addresses: Where to listen.
        setting: Names them in the configuration.

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
                f"{setting} or stop what uses it"
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


class Listener:
    """Accepts connections and serves each in a task of its own.

    Args:
        context: The TLS context of new connections, as it is now.
        facts: What all connections share.
        connections_max: Open at a time.

    Attributes:
        connections: Those that are open now.
        refused: Connections closed because there was no room, so far.
        wasteful: Connections closed because of what their peers sent for nothing, so far.
    """

    def __init__(
        self, context: Callable[[], ssl.SSLContext], facts: ConnectionFacts, connections_max: int
    ) -> None:
        self._context = context
        self._facts = facts
        self._connections_max = connections_max
        self._opening_max = max(1, connections_max // OPENING_SHARE)
        self._opening: OrderedDict[Connection, None] = OrderedDict()
        self._never_welcomed: Counter[tuple[str, str]] = Counter()
        self._buffer = memoryview(bytearray(RECEIVE_SIZE))
        self._nursery: trio.Nursery | None = None
        self._left = trio.Event()
        self.connections: set[Connection] = set()
        self.refused = 0
        self.wasteful = 0

    def __repr__(self) -> str:
        return f"Listener({len(self.connections)} connections, {len(self._opening)} opening)"

    async def hold_connections(
        self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Own the connections' tasks until cancelled; start it before `serve`."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                task_status.started()
                while True:
                    await trio.sleep(REPORT_INTERVAL_S)
                    self._report()
        finally:
            self._report()

    async def serve(self, sockets: Sequence[trio.socket.SocketType]) -> None:
        """Accept until cancelled, then close the listening sockets; connections go on elsewhere."""
        async with trio.open_nursery() as nursery:
            for listening in sockets:
                nursery.start_soon(self._accept, listening)

    async def drain(self, timeout_s: float) -> None:
        """Tell every connection to finish, and wait for that at most `timeout_s` seconds."""
        for connection in list(self.connections):
            connection.drain()
        with trio.move_on_after(timeout_s):
            while self.connections:
                self._left = trio.Event()
                await self._left.wait()

    def recheck(self) -> None:
        """End the connections whose client keys are not accepted any more."""
        for connection in list(self.connections):
            connection.recheck()

    async def _accept(self, listening: trio.socket.SocketType) -> None:
        with listening:
            while True:
                try:
                    accepted, address = await listening.accept()
                except OSError as error:
                    if error.errno in _EXHAUSTED:
                        log.warning("cannot accept", error=error.strerror)
                        await trio.sleep(ACCEPT_PAUSE_S)
                    continue
                self._take(accepted, address)

    def _take(self, accepted: trio.socket.SocketType, address: tuple[object, ...]) -> None:
        if not self._make_room() or self._nursery is None:
            accepted.close()
            return
        try:
            _set_options(accepted)
        except OSError:
            accepted.close()
            return
        tls = TlsStream(
            accepted,
            self._context(),
            self._buffer,
            turns=self._facts.turns,
            send_timeout_s=self._facts.limits.send_timeout_s,
        )
        host, port = str(address[0]), address[1]
        peer = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        connection = Connection(tls, peer, self._facts, self._opened)
        self.connections.add(connection)
        self._opening[connection] = None
        self._nursery.start_soon(self._serve_one, connection, host, peer)

    def _make_room(self) -> bool:
        """Whether there is room for one more; the slowest of those that are opening makes it."""
        is_full = len(self.connections) >= self._connections_max
        if not is_full and len(self._opening) < self._opening_max:
            return True
        self.refused += 1
        if not self._opening:
            return False
        slowest, _ = self._opening.popitem(last=False)
        slowest.cut()
        return True

    def _opened(self, connection: Connection) -> None:
        self._opening.pop(connection, None)

    async def _serve_one(self, connection: Connection, host: str, peer: str) -> None:
        try:
            reason = await connection.run()
            if connection.was_welcomed:
                log.info("connection closed", peer=peer, reason=reason)
            else:
                self._note(host, reason)
        except Exception as error:
            log.exception("a connection failed", peer=peer, error=type(error).__name__)
        finally:
            self.wasteful += connection.was_wasteful
            self._opening.pop(connection, None)
            self.connections.discard(connection)
            self._left.set()

    def _note(self, host: str, reason: str) -> None:
        """Count a connection that was never welcomed."""
        name = (host, reason)
        if name not in self._never_welcomed and len(self._never_welcomed) >= REPORT_LINES_MAX:
            name = ("others", "")
        self._never_welcomed[name] += 1

    def _report(self) -> None:
        for (host, reason), number in self._never_welcomed.items():
            log.info("connections not welcomed", peer=host, reason=reason, number=number)
        self._never_welcomed.clear()
