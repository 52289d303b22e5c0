"""The daemon: puts the parts together, serves until a signal, and takes them apart in order.

Start: the instance directory is locked, the C module tests itself, tokens are opened (their PINs
are proven there), the store is unlocked by the root, the catalogue is read, and only then are
addresses listened on. So a gateway that accepts a connection can serve it.

Stop, on SIGTERM or SIGINT: no new connections, GOAWAY on the open ones, open requests are answered
within `server.drain_s`, then the rest is cut. Records and store are closed last. A second signal
cuts at once.
"""

import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TextIO

import structlog
import trio
from cryptography.hazmat.primitives import serialization
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric

import hsmux_native
from hsmux_native import Arena
from hsmux_protocol.limits import FRAME_SIZE_MAX

from .access.administration import AdministrationService
from .access.identities import Identities
from .audit.recorder import Recorder, RecordError
from .authority_key import DeploymentAuthority
from .catalog import Catalog
from .config import Config, Hsm
from .connection import ConnectionFacts
from .effects import Effects
from .engine import Engine, collect_handlers
from .errors import OperatorError
from .health import HealthServer
from .hsm.errors import PinRefused, TokenError
from .hsm.settings import TokenSettings
from .hsm.token import Token
from .initialise import Initialised, initialise, unlock
from .instance import Instance
from .keys.cipher import HardwareCipher, SoftwareCipher
from .keys.counters import UseCounters
from .keys.cryptography_service import CryptographyService
from .keys.hsm_keys import HsmKeys
from .keys.lifecycle_service import LifecycleService
from .keys.material import Materials
from .listener import Listener, open_sockets
from .metrics import Metrics
from .references import reference_source
from .root import ArenaSealer
from .status_service import StatusService
from .store import StoreError, StoreWriter
from .store.store import Store
from .tls import make_server_context

__all__ = [
    "Addresses",
    "Foundation",
    "Gateway",
    "log_to",
    "repr_store",
    "run_init",
    "run_serve",
    "store_url",
    "token_settings",
]

log = structlog.get_logger("hsmux.daemon")

RECONCILE_INTERVAL_S: Final = 60.0
"""Seconds between looks for creations that a crash left unfinished."""


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where the gateway really listens, as `host:port`."""

    server: list[str]
    health: str


@dataclass(frozen=True, slots=True)
class Foundation:
    """What `init` and `serve` both stand on."""

    config: Config
    instance: Instance
    arena: Arena
    tokens: dict[str, Token]
    store: Store


def store_url(config: Config) -> str:
    """The store's URL; a SQLite file in the instance directory unless configured."""
    return config.store.url or f"sqlite:///{Path(config.instance_dir).absolute()}/store.db"


def _create_store(url: str) -> Store:
    """The store at a URL, made if there is none yet."""
    return Store.create(
        url, deployment_id=os.urandom(16), created_at_ms=time.time_ns() // 1_000_000
    )


def token_settings(name: str, hsm: Hsm) -> TokenSettings:
    """What the HSM layer needs to know of a configured token."""
    return TokenSettings(
        name=name,
        module=hsm.module,
        token_label=hsm.token_label,
        pin_file=hsm.pin_file,
        pin_credential=hsm.pin_credential,
        parameters=hsm.parameters,
        environment=dict(hsm.environment),
        workers=hsm.workers,
        queue_items_max=hsm.queue_items_max,
    )


def _make_arena(config: Config) -> Arena:
    try:
        hsmux_native.self_test()
        return Arena(config.native.arena_size_bytes)
    except hsmux_native.NativeError as error:
        raise OperatorError(f"the C module cannot be used: {error}") from None


@asynccontextmanager
async def _open_tokens(
    config: Config, arena: Arena, instance: Instance
) -> AsyncIterator[dict[str, Token]]:
    if not config.hsm:
        yield {}
        return
    # PKCS#11 and everything around it is loaded only where there is a token.
    from .hsm.pool import open_token

    async with AsyncExitStack() as stack:
        tokens: dict[str, Token] = {}
        for name, hsm in config.hsm.items():
            settings = token_settings(name, hsm)
            try:
                opened = open_token(settings, arena, instance.hsm)
                tokens[name] = await stack.enter_async_context(opened)
            except PinRefused as error:
                raise OperatorError(f"token {name}: {error}") from None
            except TokenError as error:
                raise OperatorError(
                    f"token {name} cannot be opened: {error}; see `hsmux hsm probe`"
                ) from None
        yield tokens


@asynccontextmanager
async def _foundation(config: Config, *, create: bool) -> AsyncIterator[Foundation]:
    with Instance(Path(config.instance_dir)) as instance:
        arena = _make_arena(config)
        make = _create_store if create else Store.open
        try:
            store = await trio.to_thread.run_sync(make, store_url(config))
        except StoreError as error:
            raise OperatorError(f"store: {error}") from None
        try:
            async with _open_tokens(config, arena, instance) as tokens:
                yield Foundation(config, instance, arena, tokens, store)
        except StoreError as error:
            raise OperatorError(f"store: {error}") from None
        finally:
            store.close()


async def run_init(config: Config) -> Initialised:
    """Initialise a deployment; safe to run again.

    Raises:
        OperatorError: A step cannot be done; says what to do.
    """
    async with _foundation(config, create=True) as base:
        return await initialise(base.config, base.instance, base.arena, base.tokens, base.store)


class Gateway:
    """The parts of a running gateway.

    Args:
        base: Config, instance directory, arena, tokens and store.
        sealer: Of the unlocked store; its slot holds the key-encryption key.
        log_requests: Descriptor for the request log, or None.
    """

    def __init__(self, base: Foundation, sealer: ArenaSealer, log_requests: int | None) -> None:
        config = base.config
        self.base = base
        self.catalog = Catalog()
        self.writer = StoreWriter(base.store)
        self.effects = Effects(base.store, self.writer, self.catalog)
        self.metrics = Metrics()
        directory = Path(config.audit.directory or base.instance.path / "audit")
        try:
            self.recorder = Recorder(directory / "requests.jsonl", log=log_requests)
        except OSError as error:
            raise OperatorError(f"audit: {directory} cannot be used: {error.strerror}") from None
        self.materials = Materials(
            base.arena,
            sealer.slot,
            base.store.deployment_id,
            private_keys_max=config.keys.cached_private_keys_max,
            idle_s=config.keys.cached_private_key_idle_s,
        )
        self._sealer = sealer
        self.hsm_keys = HsmKeys(base.tokens, self.materials)
        self.catalog.on_key_change(self.materials.drop)
        self.catalog.on_key_change(self.hsm_keys.drop)

    def make_engine(self) -> tuple[Engine, CryptographyService, LifecycleService]:
        """The engine and its services; the catalogue must have been read."""
        base, config = self.base, self.base.config
        software = SoftwareCipher(self.materials)
        hardware = HardwareCipher(self.hsm_keys, UseCounters(self._lease_uses))
        token = config.root.token or next(iter(config.hsm), None)
        cryptography = CryptographyService(
            self.catalog, self.materials, software, hardware, self.hsm_keys, token
        )
        lifecycle = LifecycleService(
            self.catalog, self.effects, self.materials, self.hsm_keys, token, "gateway"
        )
        root = f"token {config.root.token}" if config.root.token else "file (development)"
        deployment = base.store.deployment_id
        engine = Engine(
            collect_handlers(
                cryptography,
                lifecycle,
                AdministrationService(self.catalog, self.effects, self.authority()),
                StatusService(
                    self.catalog, base.tokens, deployment, root, repr_store(config), self.warnings
                ),
            ),
            identities=Identities(self.catalog, config.store.stale_s),
            memory=self.effects,
            recorder=self.recorder,
            metrics=self.metrics,
            requests_max=config.limits.requests_max,
        )
        return engine, cryptography, lifecycle

    def authority(self) -> DeploymentAuthority:
        """The deployment's CA."""
        row = self.catalog.gateway_keys.get("ca")
        if row is None:
            raise OperatorError("the deployment has no CA: run `hsmux init` again")
        store = self.base.store
        return DeploymentAuthority(
            row, self.base.tokens, self.base.arena, self._sealer.slot, store.deployment_id
        )

    async def _lease_uses(self, key_id: bytes, version: int, amount: int) -> int:
        return await self.effects.write(
            lambda transaction: transaction.lease_counter(key_id, version, amount)
        )

    def warnings(self) -> list[str]:
        """What an operator should mend."""
        found = self.not_ready()
        if self.base.config.root.file:
            found.append("the root key is a file: for development only")
        return found

    def not_ready(self) -> list[str]:
        """Why requests would fail now."""
        found = []
        if self.catalog.stale_for_s() > self.base.config.store.stale_s:
            found.append("store: away")
        if self.recorder.failing:
            found.append("audit: cannot be written")
        for token in self.base.tokens.values():
            statistics = token.statistics()
            if statistics.workers == 0 or statistics.breaker == "open":
                found.append(f"token {statistics.name}: no worker")
        return found

    def token_metrics(self) -> Any:
        """Metric families of the tokens."""
        return iter(_token_families([t.statistics() for t in self.base.tokens.values()]))


def repr_store(config: Config) -> str:
    """Which kind of store it is; never its URL, which may hold a password."""
    return store_url(config).partition(":")[0]


_TOKEN_GAUGES: Final = ("workers", "busy", "waiting", "restarts", "failed_logins")


def _token_families(statistics: list[Any]) -> list[Metric]:
    families: list[Metric] = []
    for name in _TOKEN_GAUGES:
        family = GaugeMetricFamily(f"hsmux_token_{name}", f"Token: {name}.", labels=["token"])
        for one in statistics:
            family.add_metric([one.name], getattr(one, name))
        families.append(family)
    return families


async def run_serve(
    config: Config,
    *,
    ready: Callable[[Addresses], None],
    before: Callable[[Foundation], Awaitable[None]] | None = None,
    log_requests: int | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        config: Checked.
        ready: Called once requests are accepted.
        before: Awaited on the foundation first; `hsmux dev` initialises there.
        log_requests: Descriptor for the request log, or None.

    Raises:
        OperatorError: The gateway cannot start or go on; says what to do.
    """
    async with _foundation(config, create=before is not None) as base:
        if before is not None:
            await before(base)
        sealer = await unlock(config, base.arena, base.tokens, base.store)
        gateway = Gateway(base, sealer, log_requests)
        try:
            await _run(gateway, ready)
        finally:
            try:
                gateway.recorder.close()
            except (OSError, RecordError) as error:
                log.error("records may be lost", error=str(error))


async def _run(gateway: Gateway, ready: Callable[[Addresses], None]) -> None:
    config = gateway.base.config
    async with trio.open_nursery() as nursery:
        await nursery.start(lambda task_status: gateway.writer.run(task_status=task_status))
        await gateway.effects.refresh()
        engine, cryptography, lifecycle = gateway.make_engine()
        listener = Listener(_tls_context(gateway), _facts(gateway, engine, cryptography))
        gateway.metrics.add_gauge(
            "hsmux_connections", "Open connections.", lambda: len(listener.connections)
        )
        gateway.metrics.add_families(gateway.token_metrics)
        sockets = open_sockets(config.server.listen)
        health = open_sockets([config.health.listen] if config.health.listen else [])
        nursery.start_soon(gateway.effects.poll, config.store.poll_ms / 1000)
        nursery.start_soon(_reconcile, lifecycle)
        for socket in health:
            nursery.start_soon(HealthServer(gateway.not_ready, gateway.metrics).serve, socket)
        await nursery.start(listener.hold_connections)
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async with trio.open_nursery() as accepting:
                accepting.start_soon(listener.serve, sockets)
                ready(Addresses([_address(s) for s in sockets], *[_address(s) for s in health]))
                await anext(signals)
                accepting.cancel_scope.cancel()
            log.info("stopping", connections=len(listener.connections))
            async with trio.open_nursery() as draining:
                draining.start_soon(_second_signal, signals, draining.cancel_scope)
                await listener.drain(config.server.drain_s)
                draining.cancel_scope.cancel()
        nursery.cancel_scope.cancel()


async def _second_signal(signals: AsyncIterator[int], scope: trio.CancelScope) -> None:
    await anext(signals)
    scope.cancel()


async def _reconcile(lifecycle: LifecycleService) -> None:
    while True:
        await lifecycle.reconcile()
        await trio.sleep(RECONCILE_INTERVAL_S)


def _address(socket: trio.socket.SocketType) -> str:
    host, port = socket.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _tls_context(gateway: Gateway) -> Any:
    config, instance = gateway.base.config, gateway.base.instance
    ca = gateway.authority().certificate.public_bytes(serialization.Encoding.DER)
    certificate = Path(config.tls.certificate or instance.server_certificate)
    private_key = Path(config.tls.private_key or instance.server_key)
    return make_server_context(certificate, private_key, ca)


def _facts(gateway: Gateway, engine: Engine, cryptography: CryptographyService) -> ConnectionFacts:
    limits = gateway.base.config.limits
    return ConnectionFacts(
        engine=engine,
        authenticate=Identities(gateway.catalog, gateway.base.config.store.stale_s).authenticate,
        runs_inline=cryptography.runs_inline,
        new_reference=reference_source(),
        deployment=gateway.base.store.deployment_id,
        limits=limits,
        large_buffers=trio.Semaphore(max(1, limits.large_buffer_bytes_max // FRAME_SIZE_MAX)),
    )


def log_to(file: TextIO, *, level: str = "info") -> None:
    """Structured log lines, JSON, to an open file; those of a level and above."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(file),
        cache_logger_on_first_use=False,
    )
