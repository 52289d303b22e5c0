"""The parts of a running gateway, put together: what each is given, and nothing of what it does."""

import datetime
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final

import cryptography
import trio
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from hsmux_native import backend
from hsmux_protocol import __version__
from hsmux_protocol.records import ExpiryRecord
from hsmux_protocol.references import format_key_id

from .access.administration import AdministrationService
from .access.break_glass import forget_restoration, read_restoration
from .access.identities import Identities
from .access.limits import AccessLimits, Limit
from .access.permits import Permits
from .access.policy_service import PolicyService
from .access.quorum import Quorum
from .access.quorum_service import QuorumService
from .access.renewal import ENDING_DAYS, KeyEnds
from .access.rules import AccessRules
from .access.safeguards import Safeguards
from .anchor import AuditEnd, make_keeper
from .audit.calls import CallRecords
from .audit.checkpoints import BadCheckpoint, CheckpointFile
from .audit.explain_service import ExplainService
from .audit.journal import Journal
from .audit.layout import CHECKPOINTS
from .audit.outbox import Outbox
from .audit.records import AdministratorRestored, RollbackAccepted
from .audit.recovery import Recovery
from .audit.retention import Retention
from .audit.segments import ChainDamaged, RecordError, lock_log, open_chain
from .audit.signing import CheckpointSigner
from .authority_key import DeploymentAuthority, open_own_key
from .catalog import Catalog
from .clock import now_ms
from .config import Config, restart_settings
from .connection import ConnectionFacts
from .credentials import Credentials, ServerCredentials
from .effects import Effects
from .engine import Engine, collect_handlers, collect_runs
from .errors import OperatorError
from .fairness import FairBudget, FairThreads, Turns
from .foundation import Foundation, store_url
from .hsm.token import TokenStatistics
from .initialise import RENEWAL
from .keys.batch_service import BatchService
from .keys.cipher import Cipher, HardwareCipher, SoftwareCipher
from .keys.counters import USES_ROTATE, UseCounters
from .keys.cryptography_service import CryptographyService
from .keys.hsm_keys import HsmKeys
from .keys.lifecycle_service import LifecycleService
from .keys.material import Materials
from .keys.reconciliation import Reconciliation
from .listener import Listener, connections_possible
from .log_sink import LogSink
from .logs import structlog
from .metrics import Metrics
from .references import reference_source
from .root import ArenaSealer
from .status_service import StatusService, token_condition
from .store import StoreWriter
from .store.rows import AUDIT_KEY, CA_KEY, GatewayKeyRow

__all__ = ["Gateway"]

log = structlog.get_logger("hsmux.gateway")

SIGNERS_MAX: Final = 8
"""Threads that sign or verify at a time."""

GENERATORS_MAX: Final = 2
"""Threads that make software key pairs at a time: each takes a core for up to seconds."""

ISSUERS_MAX: Final = 2
"""Threads that issue certificates at a time."""

THREAD_QUEUE_MAX: Final = 4096
"""Requests that wait for one of these threads, all together; more are Busy."""

DESCRIPTORS_PER_WORKER: Final = 4
"""A socket, a page, a pipe, and one more while it is being replaced."""

CA_RENEWAL: Final = datetime.timedelta(days=2 * 366)
"""How long before its end the CA is shown: client keys are cut to it, and all need another one."""

WORN_SHOWN_MAX: Final = 8
"""Worn keys that are named at once."""

_CONTEXT_KEY: Final = b"hsmux audit context 1\0"
"""What the key of the contexts' hash is derived from, with the deployment behind it."""

_TOKEN_GAUGES: Final = ("workers", "busy", "waiting", "restarts", "failed_logins")


class Gateway:
    """The parts of a running gateway.

    Args:
        base: Config, instance directory, arena, tokens and store.
        sealer: Of the unlocked store; its slot holds the key-encryption key.
        log_requests: Where the request log goes, or None.

    Attributes:
        reconciliation: Compares store and tokens.
        recovery: Compares store and audit log.
        retention: Removes what is old from the audit log.
        stopping: Whether no new connections are taken.
        credentials: Of the listener, once there is one.
    """

    def __init__(self, base: Foundation, sealer: ArenaSealer, log_requests: LogSink | None) -> None:
        config = base.config
        self.base = base
        self.catalog = Catalog()
        self.writer = StoreWriter(base.store)
        self._rules = AccessRules(self.catalog)
        self._key_ends = KeyEnds(self.catalog)
        self._identities = Identities(
            self.catalog, self._rules, config.store.stale_s, self._refresh
        )
        permits = Permits(self._identities)
        self._limits = _access_limits(config, self.catalog)
        self.metrics = Metrics()
        self.journal, self.checkpoints = _open_log(base, sealer, log_requests)
        self.retention = Retention(
            self.journal,
            self.checkpoints,
            keep_days=config.audit.keep_days,
            keep_bytes=config.audit.keep_bytes,
        )
        self._records = CallRecords(_context_mac(base, sealer))
        self.anchor = make_keeper(
            config, base.instance, sealer, base.tokens, base.store, self._audit_end
        )
        self._outbox = Outbox(self.journal, self._records)
        self._safeguards = Safeguards(self.catalog)
        self._quorum = Quorum(self._safeguards)
        self.effects = Effects(
            base.store, self.writer, self.catalog, permits, self._outbox, self._quorum
        )
        self.recovery = Recovery(self._outbox, self.effects, self.journal, _log_directory(base))
        self.materials = Materials(
            base.arena,
            sealer.slot,
            base.store.deployment_id,
            private_keys_max=config.keys.cached_private_keys_max,
            idle_s=config.keys.cached_private_key_idle_s,
        )
        self.turns = Turns()
        self.stopping = False
        self._lacking = ""
        self.credentials: ServerCredentials | None = None
        self._sealer = sealer
        self._hsm_keys = HsmKeys(base.tokens, self.materials)
        self._counters = UseCounters(self._lease_uses)
        self._threads_queue = FairBudget(THREAD_QUEUE_MAX)
        self._token_name = config.root.token or next(iter(config.hsm), None)
        self.catalog.on_key_change(self.materials.drop)
        self.catalog.on_key_change(self._hsm_keys.drop)

        self._lifecycle = LifecycleService(
            self.catalog,
            self.effects,
            self.materials,
            self._hsm_keys,
            self._token_name,
            "gateway",
            self._threads(GENERATORS_MAX),
        )
        self.reconciliation = Reconciliation(self.catalog, self.effects, self._hsm_keys, "gateway")

    def make_listener(self) -> Listener:
        """The listener over an engine with all services; the catalogue must have been read."""
        config = self.base.config
        software = SoftwareCipher(self.materials)
        queues = {name: FairBudget(hsm.queue_items_max) for name, hsm in config.hsm.items()}
        hardware = HardwareCipher(self._hsm_keys, self._counters, queues)
        cryptography = CryptographyService(
            self.catalog,
            self.materials,
            software,
            hardware,
            self._hsm_keys,
            self._token_name,
            self._threads(SIGNERS_MAX),
        )
        ciphers: dict[str, Cipher] = {"software": software, "hardware": hardware}
        batches = BatchService(self.catalog, ciphers, self.turns)
        facts = ConnectionFacts(
            engine=self._make_engine(cryptography, batches),
            authenticate=self._identities.authenticate,
            stands=self._identities.stands,
            runs_inline=cryptography.runs_inline,
            new_reference=reference_source(),
            deployment=self.base.store.deployment_id,
            limits=config.limits,
            buffers=FairBudget(config.limits.large_buffer_bytes_max),
            turns=self.turns,
            always_durable=config.audit.sync == "before-answer",
        )
        workers = sum(hsm.workers for hsm in config.hsm.values())
        possible = connections_possible(
            config.limits.connections_max, workers * DESCRIPTORS_PER_WORKER
        )
        credentials = ServerCredentials(config.tls, self.base.instance, self._authority)
        listener = Listener(lambda: credentials.current.context, facts, possible)
        self.catalog.on_identity_change(listener.recheck)

        def take(current: Credentials) -> None:
            self._identities.trust = current.trust
            listener.recheck()

        credentials.on_change(take)
        self.credentials = credentials
        self._show(listener, facts)
        return listener

    def _threads(self, threads_max: int) -> FairThreads:
        return FairThreads(threads_max, self._threads_queue)

    def _make_engine(self, *services: object) -> Engine:
        config, base = self.base.config, self.base
        safeguards = self._safeguards
        administration = AdministrationService(
            self.catalog, self.effects, self._authority(), self._threads(ISSUERS_MAX), safeguards
        )
        explain = ExplainService(self.catalog, self._rules, _log_directory(base), self._threads(1))
        policies = PolicyService(self.catalog, self._rules, self.effects, safeguards)
        quorum = QuorumService(self._quorum, self.effects)
        status = StatusService(
            self.catalog,
            base.tokens,
            base.store.deployment_id,
            f"token {config.root.token}" if config.root.token else "file (development)",
            _kind_of_store(config),
            self.warnings,
            self.expiry,
            self.anchor.age_s,
        )
        return Engine(
            collect_handlers(
                *services, self._lifecycle, administration, policies, quorum, explain, status
            ),
            identities=self._identities,
            memory=self.effects,
            journal=self.journal,
            records=self._records,
            outbox=self._outbox,
            metrics=self.metrics,
            requests_max=config.limits.requests_max,
            limits=self._limits,
            runs=collect_runs(*services),
        )

    def _authority(self) -> DeploymentAuthority:
        row = self.catalog.gateway_keys.get(CA_KEY)
        if row is None:
            raise OperatorError("the deployment has no CA: run `hsmux init` again")
        base = self.base
        return DeploymentAuthority(
            row, base.tokens, base.arena, self._sealer.slot, base.store.deployment_id
        )

    async def renew_certificate(self) -> None:
        """Renew the gateway's own certificate if it is time."""
        if self.credentials is not None:
            await self.credentials.renew(self.base.config.server.names)

    async def reload(self, load: Callable[[], Config]) -> None:
        """Read the configuration and what it names again; what cannot be used changes nothing.

        Args:
            load: Reads the configuration; may block.
        """
        if self.credentials is None:
            return
        try:
            config = await trio.to_thread.run_sync(load)
            await self.credentials.reload(config.tls)
        except OperatorError as error:
            log.error("not reloaded, everything stays as it was", error=error.text)
            return
        ends = f"{self.credentials.current.certificate.not_valid_after_utc:%Y-%m-%d}"
        names = self.credentials.current.trust.names
        log.info("reloaded", certificate_ends=ends, outside_cas=names)
        if settings := restart_settings(self.base.config, config):
            log.warning("changed settings that need a restart", settings=settings)

    async def _refresh(self) -> None:
        # Who is asking is known before what is changed can be: the two know each other.
        await self.effects.refresh()

    async def _lease_uses(self, key_id: bytes, version: int, amount: int, tenant: bytes) -> int:
        return await self.effects.write(
            lambda transaction: transaction.lease_counter(key_id, version, amount), tenant=tenant
        )

    async def forget_idle_keys(self) -> None:
        """Drop private keys that nobody has used for a while."""
        self.materials.forget_idle(time.monotonic())

    def _audit_end(self) -> AuditEnd:
        chain = self.journal.chain
        return AuditEnd(chain.chain, *chain.synced)

    async def check_anchor(self, *, accept: bool) -> None:
        """Refuse a store that was rolled back, or record that this is accepted.

        Raises:
            OperatorError: It was rolled back, or what to compare it with cannot be read.
            SyncFailed: The process must end.
        """
        accepted = await self.anchor.check(accept=accept)
        if accepted is not None:
            revision = self.catalog.revision
            record = RollbackAccepted(now_ms(), revision, accepted.revision, accepted.at_ms)
            await self.journal.durable(self.journal.append(record))
            await self.anchor.write(accept=True)

    async def look_for_approvers(self) -> None:
        """Warn if more approvals are wanted than can be given: client keys end by themselves."""
        self._lacking = await self.effects.read(self._quorum.lacking)

    async def record_restoration(self) -> None:
        """Record that the first administrator was restored, if that was done meanwhile.

        Raises:
            HsmuxError: The store is away.
            SyncFailed: The process must end.
        """
        restored = await self.effects.read(read_restoration)
        if restored is not None:
            record = AdministratorRestored(now_ms(), *restored)
            await self.journal.durable(self.journal.append(record))
            await self.effects.write(lambda t: forget_restoration(t, restored))

    async def sign_start(self) -> None:
        """Put the start of this process under a checkpoint."""
        await self.journal.durable(self.journal.written)
        await self.checkpoints.sign()

    # What an operator sees

    def warnings(self) -> list[str]:
        """What an operator should mend."""
        found = self.not_ready()
        if self.base.config.root.file:
            found.append("the root key is a file: for development only")
        if self.credentials is not None:
            ends = self.credentials.current.certificate.not_valid_after_utc
            if ends - datetime.datetime.now(datetime.UTC) < RENEWAL:
                found.append(f"the gateway's own certificate ends on {ends:%Y-%m-%d}: renew it")
        found += _ends_in_words(self.expiry())
        found += [
            f"token {name}: {number} objects that this store does not know"
            for name, number in self.reconciliation.unclaimed.items()
            if number
        ]
        found += self.reconciliation.unproven
        found += self.anchor.warnings()
        if self._lacking:
            found.append(self._lacking)
        worn = self._counters.worn()
        found += [
            f"{format_key_id(key_id)} version {version} was used {USES_ROTATE} times: replace it"
            for key_id, version in worn[:WORN_SHOWN_MAX]
        ]
        return found

    def expiry(self) -> ExpiryRecord:
        """What ends, and when."""
        ends_ms = {kind: _end_ms(one) for kind, one in self._certificates().items()}
        ends = self._key_ends.at(now_ms())
        return ExpiryRecord(ends_ms["ca"], ends_ms.get("server", 0), *ends)

    def _certificates(self) -> dict[str, x509.Certificate]:
        found = {"ca": self._authority().certificate}
        if self.credentials is not None:
            found["server"] = self.credentials.current.certificate
        return found

    def not_ready(self) -> list[str]:
        """Why requests would fail now."""
        found = []
        if self.stopping:
            found.append("gateway: stopping")
        if self.catalog.stale_for_s() > self.base.config.store.stale_s:
            found.append("store: away")
        if not self.journal.ready():
            found.append("audit: cannot be written")
        for token in self.base.tokens.values():
            statistics = token.statistics()
            if (condition := token_condition(statistics)) != "up":
                found.append(f"token {statistics.name}: {condition}")
        return found

    def _show(self, listener: Listener, facts: ConnectionFacts) -> None:
        gauges: dict[str, tuple[str, Callable[[], float]]] = {
            "hsmux_connections": ("Open connections.", lambda: len(listener.connections)),
            "hsmux_calls_in_work": ("Calls in work.", lambda: facts.engine.in_work),
            "hsmux_large_buffer_bytes": ("Bytes leased for buffers.", lambda: facts.buffers.used),
            "hsmux_store_age_seconds": (
                "Seconds since the store was known to be followed.",
                self.catalog.stale_for_s,
            ),
        }
        for name, (text, read) in gauges.items():
            self.metrics.add_gauge(name, text, read)
        self.metrics.add_counter(
            "hsmux_connections_refused",
            "Connections closed because there was no room.",
            lambda: listener.refused,
        )
        self.metrics.add_counter(
            "hsmux_connections_wasteful",
            "Connections closed because of what their peers sent for nothing.",
            lambda: listener.wasteful,
        )
        self.metrics.add_gauge(
            "hsmux_client_keys_expiring",
            f"Client keys that end within {ENDING_DAYS} days and are not renewed.",
            lambda: self._key_ends.at(now_ms()).ending,
        )
        self.metrics.add_families(self._certificate_metrics)
        self.metrics.add_families(self._limit_metrics)
        self.metrics.add_families(self._token_metrics)

    def _certificate_metrics(self) -> Iterator[Metric]:
        family = GaugeMetricFamily(
            "hsmux_certificate_not_after_seconds",
            "End of a certificate since 1970 UTC.",
            labels=["kind"],
        )
        for kind, certificate in self._certificates().items():
            family.add_metric([kind], _end_ms(certificate) / 1000)
        yield family

    def _limit_metrics(self) -> Iterator[Metric]:
        family = CounterMetricFamily(
            "hsmux_calls_limited",
            "Calls refused because their access point was over a limit of its own.",
            labels=["limit"],
        )
        for limit, number in self._limits.refused.items():
            family.add_metric([limit], number)
        yield family

    def _token_metrics(self) -> Iterator[Metric]:
        return iter(_token_families([t.statistics() for t in self.base.tokens.values()]))


def _access_limits(config: Config, catalog: Catalog) -> AccessLimits:
    """The limits of the catalogue's access points, which change as they do."""
    default = config.limits
    limits = AccessLimits(
        Limit(
            default.access_point_requests_per_s,
            default.access_point_bytes_per_s,
            default.access_point_in_flight,
        )
    )
    catalog.on_rule_change(lambda changes: limits.apply(changes.access_points))
    return limits


def _log_directory(base: Foundation) -> Path:
    return Path(base.config.audit.directory or base.instance.path / "audit")


def _open_log(
    base: Foundation, sealer: ArenaSealer, log_requests: LogSink | None
) -> tuple[Journal, CheckpointSigner]:
    """The journal over a chain of the audit log, with the start of this process in it, and who
    signs checkpoints.
    """
    directory = _log_directory(base)
    deployment = base.store.deployment_id
    row = base.store.read(lambda reader: reader.get(GatewayKeyRow, AUDIT_KEY))
    if row is None:
        raise OperatorError("the deployment has no audit key: run `hsmux init` again")
    key = serialization.load_der_public_key(row.public_key)
    assert isinstance(key, ec.EllipticCurvePublicKey)
    try:
        lock = lock_log(directory)
        if lock is None:
            raise OperatorError(
                f"audit: {directory} is in use by another gateway: give each its own"
                " `audit.directory`"
            )
        file = CheckpointFile(directory / CHECKPOINTS, key)
        signed = None if file.last is None else file.last.chains
        size = base.config.audit.segment_bytes
        chain = open_chain(directory, deployment, segment_size=size, checkpointed=signed)
    except OSError as error:
        raise OperatorError(f"audit: {directory} cannot be used: {error.strerror}") from None
    except (BadCheckpoint, ChainDamaged) as error:
        raise OperatorError(f"audit: {error}: `hsmux audit verify` tells more") from None
    journal = Journal(chain, software=__version__, libraries=_libraries(), log=log_requests)
    with suppress(RecordError):
        # Where it cannot be written, it is not ready, and tries again.
        journal.flush()
    open_key = partial(open_own_key, row, base.tokens, base.arena, sealer.slot, deployment)
    return journal, CheckpointSigner(file, journal, deployment, open_key, lock)


def _end_ms(certificate: x509.Certificate) -> int:
    """The end of a certificate, milliseconds since 1970 UTC."""
    return int(certificate.not_valid_after_utc.timestamp() * 1000)


def _ends_in_words(expiry: ExpiryRecord) -> list[str]:
    """What an operator should mend of what ends, beside the gateway's own certificate."""
    found = []
    ca_ends = datetime.datetime.fromtimestamp(expiry.ca_not_after_ms / 1000, datetime.UTC)
    if ca_ends - datetime.datetime.now(datetime.UTC) < CA_RENEWAL:
        found.append(f"the deployment's CA ends on {ca_ends:%Y-%m-%d}, and client keys with it")
    if expiry.client_keys_ending:
        found.append(
            f"client keys that end within {ENDING_DAYS} days and are not renewed: "
            f"{expiry.client_keys_ending}"
        )
    if expiry.client_keys_ended:
        found.append(
            f"client keys that ended in the last {ENDING_DAYS} days and were not renewed: "
            f"{expiry.client_keys_ended}"
        )
    return found


def _libraries() -> str:
    return f"{ssl.OPENSSL_VERSION}; cryptography {cryptography.__version__}; native {backend()}"


def _context_mac(base: Foundation, sealer: ArenaSealer) -> Callable[[bytes], bytes]:
    """The keyed hash of contexts, under a key that is derived for it and stays in the arena."""
    arena = base.arena
    label = _CONTEXT_KEY + base.store.deployment_id
    return partial(arena.hmac_sha256, arena.load(arena.hmac_sha256(sealer.slot, label)))


def _kind_of_store(config: Config) -> str:
    """Which kind of store it is; never its URL, which may hold a password."""
    return store_url(config).partition(":")[0].partition("+")[0]


def _token_families(statistics: list[TokenStatistics]) -> list[Metric]:
    up = GaugeMetricFamily("hsmux_token_up", "Token: 1 while it can be used.", labels=["token"])
    for one in statistics:
        up.add_metric([one.name], token_condition(one) == "up")
    families: list[Metric] = [up]
    for name in _TOKEN_GAUGES:
        family = GaugeMetricFamily(f"hsmux_token_{name}", f"Token: {name}.", labels=["token"])
        for one in statistics:
            family.add_metric([one.name], getattr(one, name))
        families.append(family)
    return families
