"""The daemon: starts the parts in order, serves until a signal, and stops them in order.

Start: the instance directory is locked, the C module tests itself, tokens are opened (their PINs
are proven there), the store is unlocked by the root, the catalogue is read, the store is compared
with its anchor, and only then are addresses listened on. So a gateway that accepts a connection can
serve it.

Stop, on SIGTERM or SIGINT: no new connections, GOAWAY on the open ones, open requests are answered
within `server.drain_s`, then the rest is cut. Journal and store are closed last. A second signal
cuts at once; one that comes before anything is served ends the start in order.

SIGHUP reads the configuration again and what TLS stands on (see `credentials`); what cannot be used
changes nothing.

A journal that could not be made durable ends the process: what is on the disk is not known any
more, and only a start that reads it can go on.
"""

import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Final, TextIO, cast

import trio

from hsmux_protocol.errors import HsmuxError

from .assembly import Gateway
from .audit.recovery import SETTLE_INTERVAL_S
from .audit.segments import RecordError, SyncFailed
from .config import Config
from .errors import EXIT_AGAIN, OperatorError
from .foundation import Foundation, open_foundation, operator_border
from .health import HealthServer
from .heap import fix_heap_sizes
from .initialise import FIRST_ADMINISTRATOR, FirstAdministrator, Initialised, initialise, unlock
from .listener import open_sockets
from .log_sink import LogSink
from .logs import structlog

__all__ = ["Addresses", "log_to", "run_init", "run_serve"]

log = structlog.get_logger("hsmux.daemon")

RECONCILE_INTERVAL_S: Final = 60.0
"""Seconds between looks for creations that a crash left unfinished."""

SURVEY_INTERVAL_S: Final = 3600.0
"""Seconds between looks for objects in the tokens that nobody here knows."""

RECOVER_INTERVAL_S: Final = 30.0
"""Seconds between looks for records of changes whose gateways are gone."""

APPROVERS_INTERVAL_S: Final = 60.0
"""Seconds between looks whether enough approvals could be given."""

FORGET_INTERVAL_S: Final = 3600.0
"""Seconds between looks for idempotency tokens that are over."""

RENEWAL_INTERVAL_S: Final = 3600.0
"""Seconds between looks whether it is time for another certificate of the gateway's own."""

IDLE_KEYS_INTERVAL_S: Final = 5.0
"""Seconds between looks for private keys that nobody uses any more."""


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where the gateway really listens, as `host:port`; `health` is empty without that server."""

    server: list[str]
    health: str


@dataclass
class _Signals:
    """What signals ask for: to stop, `asked` by the first, `scope` cut by the second or an early
    one.
    """

    asked: trio.Event = field(default_factory=trio.Event)
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    serving: bool = False

    async def watch(self, signals: AsyncIterator[int]) -> None:
        async for _ in signals:
            if self.asked.is_set() or not self.serving:
                self.scope.cancel()
            self.asked.set()


async def run_init(
    config: Config, administrator: FirstAdministrator = FIRST_ADMINISTRATOR
) -> Initialised:
    """Initialise a deployment; safe to run again.

    Args:
        config: Of the gateway.
        administrator: What the first administrator gets.

    Raises:
        OperatorError: A step cannot be done; says what to do.
    """
    with operator_border():
        async with open_foundation(config, create=True) as base:
            return await initialise(
                base.config, base.instance, base.arena, base.tokens, base.store, administrator
            )
    raise AssertionError("the border raises what it catches")


async def run_serve(
    config: Config,
    *,
    ready: Callable[[Addresses], None],
    before: Callable[[Foundation], Awaitable[None]] | None = None,
    reload: Callable[[], Config] | None = None,
    log_requests: LogSink | None = None,
    accept_rollback: bool = False,
) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        config: Checked.
        ready: Called once requests are accepted.
        before: Awaited on the foundation first; `hsmux dev` initialises there.
        reload: Reads the configuration again, on SIGHUP; None: SIGHUP does what it does elsewhere.
        log_requests: Where the request log goes, or None.
        accept_rollback: Go on with a store that is older than its anchor.

    Raises:
        OperatorError: The gateway cannot start or go on; says what to do.
    """
    fix_heap_sizes()
    stop = _Signals()
    asking = (signal.SIGTERM, signal.SIGINT)
    with operator_border(), trio.open_signal_receiver(*asking) as signals, _hangups(reload) as hups:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stop.watch, signals)
            with stop.scope:
                async with open_foundation(config, create=before is not None) as base:
                    if before is not None:
                        await before(base)
                    on_hangup = partial(_reload_on, hups, reload)
                    await _serve(base, stop, ready, log_requests, on_hangup, accept_rollback)
            nursery.cancel_scope.cancel()


@contextmanager
def _hangups(reload: Callable[[], Config] | None) -> Iterator[AsyncIterator[int] | None]:
    """SIGHUP, from the start on, where there is something to do about it."""
    if reload is None:
        yield None
        return
    with trio.open_signal_receiver(signal.SIGHUP) as hangups:
        yield hangups


async def _reload_on(
    hangups: AsyncIterator[int] | None, reload: Callable[[], Config] | None, gateway: Gateway
) -> None:
    """Reload for each SIGHUP; those that come meanwhile are one."""
    if hangups is not None and reload is not None:
        async for _ in hangups:
            await gateway.reload(reload)


async def _serve(
    base: Foundation,
    stop: _Signals,
    ready: Callable[[Addresses], None],
    log_requests: LogSink | None,
    reload: Callable[[Gateway], Awaitable[None]],
    accept_rollback: bool,
) -> None:
    sealer = await unlock(base.config, base.arena, base.tokens, base.store)
    gateway = Gateway(base, sealer, log_requests)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_or_start_again, gateway.journal.keep_durable)
            await nursery.start(_run_writer, gateway)
            await _read_catalogue(gateway)
            await _or_start_again(partial(gateway.check_anchor, accept=accept_rollback))
            await _recover_records(gateway)
            await _or_start_again(gateway.sign_start)
            nursery.start_soon(_or_start_again, gateway.checkpoints.sign_for_ever)
            nursery.start_soon(_or_start_again, gateway.retention.run_for_ever)
            nursery.start_soon(gateway.anchor.keep)
            await _run(gateway, stop, ready, reload)
            nursery.cancel_scope.cancel()
    finally:
        try:
            gateway.journal.close()
        except (OSError, RecordError) as error:
            log.error("records may be lost", error=str(error))
    # In order: the last checkpoint holds the stop as well.
    await _or_start_again(gateway.checkpoints.sign)
    gateway.checkpoints.close()
    await gateway.anchor.write(at_stop=True)


async def _or_start_again(work: Callable[[], Awaitable[None]]) -> None:
    """Do what needs a durable log; without one the process ends."""
    try:
        await work()
    except SyncFailed as error:
        raise OperatorError(f"audit: {error}", exit_code=EXIT_AGAIN) from error


async def _run_writer(gateway: Gateway, task_status: trio.TaskStatus[None]) -> None:
    await gateway.writer.run(task_status=task_status)


async def _read_catalogue(gateway: Gateway) -> None:
    """Read what is kept in memory."""
    with _causes():
        await gateway.effects.refresh()


async def _recover_records(gateway: Gateway) -> None:
    """Append the records that earlier processes left in the store."""
    with _causes():
        await gateway.recovery.recover()
        await _or_start_again(gateway.record_restoration)


@contextmanager
def _causes() -> Iterator[None]:
    """The border tells what was changed from what is away, by the cause of an error."""
    try:
        yield
    except HsmuxError as error:
        raise error.__cause__ or error from None


async def _run(
    gateway: Gateway,
    stop: _Signals,
    ready: Callable[[Addresses], None],
    reload: Callable[[Gateway], Awaitable[None]],
) -> None:
    """Everything from the first socket to the last answer."""
    config = gateway.base.config
    listener = gateway.make_listener()
    with (
        _sockets(config.server.listen, "server.listen") as sockets,
        _sockets([config.health.listen], "health.listen") as health,
    ):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(gateway.turns.run)
            nursery.start_soon(gateway.effects.poll, config.store.poll_ms / 1000)
            nursery.start_soon(_repeat, RECONCILE_INTERVAL_S, gateway.reconciliation.reconcile)
            nursery.start_soon(_repeat, SURVEY_INTERVAL_S, gateway.reconciliation.survey)
            nursery.start_soon(_repeat, APPROVERS_INTERVAL_S, gateway.look_for_approvers)
            nursery.start_soon(_repeat, FORGET_INTERVAL_S, gateway.effects.forget)
            nursery.start_soon(_repeat, SETTLE_INTERVAL_S, gateway.recovery.settle)
            nursery.start_soon(_repeat, RECOVER_INTERVAL_S, gateway.recovery.recover)
            nursery.start_soon(_repeat, IDLE_KEYS_INTERVAL_S, gateway.forget_idle_keys)
            nursery.start_soon(_repeat, RENEWAL_INTERVAL_S, gateway.renew_certificate)
            nursery.start_soon(reload, gateway)
            for socket in health:
                nursery.start_soon(HealthServer(gateway.not_ready, gateway.metrics).serve, socket)
            await nursery.start(listener.hold_connections)
            stop.serving = True
            async with trio.open_nursery() as accepting:
                accepting.start_soon(listener.serve, sockets)
                ready(Addresses(_addresses(sockets), "".join(_addresses(health))))
                await stop.asked.wait()
                gateway.stopping = True
                accepting.cancel_scope.cancel()
            log.info("stopping", connections=len(listener.connections))
            await listener.drain(config.server.drain_s)
            await _settle_last(gateway)
            nursery.cancel_scope.cancel()


async def _settle_last(gateway: Gateway) -> None:
    """Leave nothing in the outbox that the next start would have to look for."""
    with trio.move_on_after(SETTLE_INTERVAL_S):
        try:
            await gateway.journal.durable(gateway.journal.records)
            await gateway.recovery.settle()
        except (HsmuxError, RecordError) as error:
            log.warning("records of changes are left for the next start", error=str(error))


async def _repeat(interval_s: float, work: Callable[[], Awaitable[None]]) -> None:
    """Do a work of the gateway's own again and again; the store may be away for a while."""
    while True:
        try:
            await work()
        except HsmuxError as error:
            log.warning("put off", work=getattr(work, "__name__", ""), error=error.text)
        await trio.sleep(interval_s)


@contextmanager
def _sockets(addresses: list[str], setting: str) -> Iterator[list[trio.socket.SocketType]]:
    sockets = open_sockets([address for address in addresses if address], setting)
    try:
        yield sockets
    finally:
        for socket in sockets:
            socket.close()


def _addresses(sockets: list[trio.socket.SocketType]) -> list[str]:
    found = [socket.getsockname()[:2] for socket in sockets]
    return [f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in found]


class _Log:
    """A sink as the file that structlog writes to."""

    def __init__(self, sink: LogSink) -> None:
        self._sink = sink

    def write(self, text: str) -> None:
        self._sink.write(text.encode(errors="backslashreplace"))

    def flush(self) -> None:
        """Nothing is held back."""


def log_to(descriptor: int, *, level: str = "info") -> LogSink:
    """Structured log lines, JSON, to an open descriptor; those of a level and above.

    Returns:
        For other lines of the same log.
    """
    sink = LogSink(descriptor)
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(cast(TextIO, _Log(sink))),
        cache_logger_on_first_use=False,
    )
    return sink
