"""`/healthz`, `/readyz` and `/metrics` over plain HTTP/1.1, by default on loopback only.

/healthz says that the event loop turns. /readyz says 200 when requests would succeed, and 503 with
one named reason a line when not. Neither tells a secret or takes a parameter; anything else is 404.

Whoever can reach the address may send anything: an exchange has its time and its size, only so many
are accepted at once, and one that fails, for whatever reason, ends alone.
"""

from collections.abc import Callable
from typing import Final

import h11
import trio
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from .logs import structlog
from .metrics import Metrics

__all__ = ["HealthServer"]

log = structlog.get_logger("hsmux.health")

REQUEST_TIMEOUT_S: Final = 5.0
"""Seconds for one whole exchange."""

REQUEST_SIZE_MAX: Final = 8192
"""Bytes of request line and headers."""

CONNECTIONS_MAX: Final = 32
"""Exchanges at a time; more wait in the kernel."""

LINGER_SIZE_MAX: Final = 1 << 20
"""Bytes of a request's body, or after it, that are read and forgotten."""

ACCEPT_PAUSE_S: Final = 0.1
"""Seconds to wait when a connection cannot be accepted: there may be no descriptor for it."""


class HealthServer:
    """Answers one request a connection.

    Args:
        not_ready: Names the reasons why requests would fail now; none means ready.
        metrics: What /metrics shows.
    """

    def __init__(self, not_ready: Callable[[], list[str]], metrics: Metrics) -> None:
        self._not_ready = not_ready
        self._registry = CollectorRegistry()
        self._registry.register(metrics)
        self._room = trio.Semaphore(CONNECTIONS_MAX)

    async def serve(self, listening: trio.socket.SocketType) -> None:
        """Accept until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                await self._room.acquire()
                try:
                    accepted, _ = await listening.accept()
                except OSError as error:
                    self._room.release()
                    log.warning("cannot accept", error=error.strerror)
                    await trio.sleep(ACCEPT_PAUSE_S)
                    continue
                nursery.start_soon(self._serve_one, trio.SocketStream(accepted))

    def respond(self, target: bytes) -> tuple[int, str, bytes]:
        """Status, content type and body for a request target."""
        if target == b"/healthz":
            return 200, "text/plain", b"ok\n"
        if target == b"/readyz":
            reasons = self._not_ready()
            body = "".join(f"{reason}\n" for reason in reasons) or "ready\n"
            return (503 if reasons else 200), "text/plain", body.encode()
        if target == b"/metrics":
            return 200, CONTENT_TYPE_LATEST, generate_latest(self._registry)
        return 404, "text/plain", b"known are /healthz, /readyz and /metrics\n"

    async def _serve_one(self, stream: trio.SocketStream) -> None:
        try:
            with trio.move_on_after(REQUEST_TIMEOUT_S):
                await self._exchange(stream)
        except (h11.RemoteProtocolError, trio.BrokenResourceError) as error:
            log.info("bad health request", error=type(error).__name__)
        except Exception as error:
            log.exception("a health request failed", error=type(error).__name__)
        finally:
            self._room.release()
            await trio.aclose_forcefully(stream)

    async def _exchange(self, stream: trio.SocketStream) -> None:
        http = h11.Connection(h11.SERVER, max_incomplete_event_size=REQUEST_SIZE_MAX)
        while True:
            event = http.next_event()
            if event is h11.NEED_DATA:
                http.receive_data(await stream.receive_some(REQUEST_SIZE_MAX))
            elif isinstance(event, h11.Request):
                break
            else:
                return
        status, content_type, body = self.respond(bytes(event.target))
        if event.method not in (b"GET", b"HEAD"):
            status, content_type, body = 405, "text/plain", b"only GET and HEAD\n"
        headers = [
            ("content-type", content_type),
            ("content-length", str(len(body))),
            ("connection", "close"),
        ]
        answer = http.send(h11.Response(status_code=status, headers=headers)) or b""
        if event.method != b"HEAD":
            answer += http.send(h11.Data(data=body)) or b""
        await stream.send_all(answer)
        await _linger(stream)


async def _linger(stream: trio.SocketStream) -> None:
    """Let the answer arrive: closing with unread bytes would reset the connection."""
    await stream.send_eof()
    left = LINGER_SIZE_MAX
    while left > 0 and (data := await stream.receive_some(REQUEST_SIZE_MAX)):
        left -= len(data)
