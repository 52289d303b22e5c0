"""`/healthz`, `/readyz` and `/metrics` over plain HTTP/1.1, by default on loopback only.

/healthz says that the event loop turns. /readyz says 200 when requests would succeed, and 503 with
one named reason a line when not. Neither tells a secret or takes a parameter; anything else is 404.
"""

from collections.abc import Callable
from typing import Final

import h11
import structlog
import trio
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from .metrics import Metrics

__all__ = ["HealthServer"]

log = structlog.get_logger("hsmux.health")

REQUEST_TIMEOUT_S: Final = 5.0
"""Seconds for one whole exchange."""

REQUEST_SIZE_MAX: Final = 8192
"""Bytes of request line and headers."""

CONNECTIONS_MAX: Final = 32
"""Exchanges at a time; more wait in the kernel."""


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
        self._room = trio.CapacityLimiter(CONNECTIONS_MAX)

    async def serve(self, listening: trio.socket.SocketType) -> None:
        """Accept until cancelled."""
        listener = trio.SocketListener(listening)
        await trio.serve_listeners(self._serve_one, [listener])

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
        async with self._room:
            with trio.move_on_after(REQUEST_TIMEOUT_S):
                try:
                    await self._exchange(stream)
                except (h11.RemoteProtocolError, trio.BrokenResourceError) as error:
                    log.info("bad health request", error=type(error).__name__)
            with trio.move_on_after(1, shield=True):
                await stream.aclose()

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
        if event.method != b"GET":
            status, content_type, body = 405, "text/plain", b"only GET\n"
        headers = [
            ("content-type", content_type),
            ("content-length", str(len(body))),
            ("connection", "close"),
        ]
        answer = http.send(h11.Response(status_code=status, headers=headers)) or b""
        answer += http.send(h11.Data(data=body)) or b""
        await stream.send_all(answer)
