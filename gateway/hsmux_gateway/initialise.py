"""`hsmux init`: from an empty token and store to a deployment that can be served.

Each step looks whether it was done, does it durably, and only then the next begins, so a crash
anywhere is mended by running it again. A second host that shares the store goes through the same
steps and finds all done but its own certificate.

    1. the store's tables and the deployment's identity
    2. the root: a token object named by an intent row first, or the development root file
    3. the key-encryption key, sealed by the root, and with it every row: one transaction
    4. the wrapping key in the token, where there is one
    5. the CA: key in the token (or sealed), certificate in the store
    6. the key of the audit log, like that of the CA; its public key as a file
    7. the gateway's own certificate and private key, as files; made anew when they are of another
       CA, do not carry the configured names, or are about to end
    8. the first administrator: client key as files, then its policy, access point and client key in
       the store; another client key where the files are gone, are of one that is revoked, or are
       about to end; on demand its state and policy again, whatever became of them, and no approvals
       wanted any more (see `access.break_glass`)
"""

import datetime
import os
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

import msgspec
import trio
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from hsmux_native import Arena

from .access import first_policies
from .access.administration import client_key_row
from .access.authority import issue, issue_ca, server_names
from .access.break_glass import note_restoration
from .access.policy import Policy, format_policy
from .access.trust import spki_sha256
from .anchor import NO_AUDIT, make_keeper
from .authority_key import DeploymentAuthority, sealed_material, token_private_key
from .clock import now_ms
from .config import Config
from .credentials import make_pair, settle_pair
from .errors import OperatorError
from .hsm.errors import TokenError, Unsupported
from .hsm.token import HsmKey, Token
from .instance import Instance, write_file
from .logs import structlog
from .root import ArenaSealer, FileRoot, HsmRoot, Root, make_kek, open_kek
from .store.rows import (
    AUDIT_KEY,
    CA_KEY,
    WRAPPING_KEY,
    AccessPointRow,
    ClientKeyRow,
    GatewayKeyRow,
    IntentRow,
    PolicyRow,
    RootRow,
    Row,
)
from .store.store import Store
from .store.transaction import Reader, Transaction

__all__ = [
    "ADMINISTRATOR",
    "FIRST_ADMINISTRATOR",
    "RENEWAL",
    "FirstAdministrator",
    "Initialised",
    "administrator_files",
    "find_root",
    "initialise",
    "unlock",
]

log = structlog.get_logger("hsmux.initialise")

ADMINISTRATOR: Final = "administrator"
"""Name of the first access point, and of its policy."""

ADMINISTRATOR_VALIDITY: Final = datetime.timedelta(days=365)

KEY_TIMEOUT_S: Final = 60.0
"""Seconds a token has to make one of the deployment's own keys."""

INTENT_LEASE_MS: Final = 300_000
"""Milliseconds an initialisation has for one key before another may take it over."""

RENEWAL: Final = datetime.timedelta(days=30)
"""How long before its end a certificate is made anew."""


@dataclass(frozen=True, slots=True)
class Initialised:
    """What `initialise` leaves behind.

    Attributes:
        certificate: PEM file of the first administrator's client certificate.
        private_key: PEM file of its private key.
        ca: PEM file of the deployment's CA.
        made: What was not there before, in people's words.
    """

    certificate: Path
    private_key: Path
    ca: Path
    made: tuple[str, ...] = ()


async def _write(store: Store, rows: list[Row]) -> None:
    def work(transaction: Transaction) -> None:
        for row in rows:
            transaction.insert(row)

    await trio.to_thread.run_sync(store.write, work)


async def _intend(store: Store, token: Token, kind: str, spec: str) -> tuple[IntentRow, bool]:
    """The intent for one of the deployment's own keys, and whether an earlier run left it."""

    def work(transaction: Transaction) -> tuple[IntentRow, bool]:
        at_ms = now_ms()
        until_ms = at_ms + INTENT_LEASE_MS
        found = transaction.select(IntentRow, kind=kind, token=token.name)
        if found:
            return transaction.extend_intent(found[0].intent_id, "init", until_ms), True
        intent = IntentRow(
            intent_id=os.urandom(16),
            kind=kind,
            token=token.name,
            cka_id=os.urandom(16),
            key_id=None,
            owner="init",
            arguments=spec.encode(),
            created_at_ms=at_ms,
            lease_until_ms=until_ms,
        )
        return transaction.add_intent(intent), False

    return await trio.to_thread.run_sync(store.write, work)


async def _make_in_token(
    store: Store, token: Token, kind: str, spec: str, role: str
) -> tuple[HsmKey, IntentRow]:
    """Make a key of the deployment's own in a token, named by an intent first.

    An intent that an earlier run left is taken over: an object it may have made was never used,
    and is destroyed before the key is made anew.
    """
    intent, was_left = await _intend(store, token, kind, spec)
    deadline = time.monotonic() + KEY_TIMEOUT_S
    try:
        if was_left:
            objects = await token.list_objects(deadline=deadline)
            if any(item.cka_id == intent.cka_id for item in objects):
                await token.destroy(HsmKey(intent.cka_id, spec, b"", b""), deadline=deadline)
        key = await token.generate(spec, intent.cka_id, deadline=deadline, role=role)
    except TokenError as error:
        raise OperatorError(f"token {token.name} cannot make a {spec} key: {error}") from error
    return key, intent


def find_root(config: Config, arena: Arena, tokens: dict[str, Token], rows: list[RootRow]) -> Root:
    """The root this gateway is configured for, among those the store knows.

    Raises:
        OperatorError: The store has no such root.
    """
    for row in rows:
        if row.kind == "file" and config.root.file:
            return FileRoot(arena, Path(config.root.file), row)
        if row.kind == "hsm" and row.token == config.root.token:
            return HsmRoot(tokens[row.token], row)
    wanted = config.root.token or config.root.file
    raise OperatorError(f"the store was not initialised with root {wanted}; check the root section")


async def unlock(
    config: Config, arena: Arena, tokens: dict[str, Token], store: Store
) -> ArenaSealer:
    """Open the KEK of an initialised store and give the store its sealer.

    Raises:
        OperatorError: The store is not initialised, or the root does not open it.
    """
    bootstrap = await trio.to_thread.run_sync(store.bootstrap)
    if bootstrap.bare:
        raise OperatorError("the store is not initialised: run `hsmux init`")
    root = find_root(config, arena, tokens, bootstrap.roots)
    sealer = await open_kek(arena, root, store, bootstrap)
    await trio.to_thread.run_sync(store.unlock, sealer)
    return sealer


async def _make_root(
    config: Config, arena: Arena, tokens: dict[str, Token], store: Store
) -> tuple[Root, IntentRow | None]:
    at_ms = now_ms()
    if config.root.file:
        path = Path(config.root.file)
        FileRoot.make_file(path)
        row = RootRow(os.urandom(16), "file", "", b"", b"", "active", at_ms)
        return FileRoot(arena, path, row), None
    token = tokens[config.root.token]
    key, intent = await _make_in_token(store, token, "create_root", "AES_256", "root")
    row = RootRow(os.urandom(16), "hsm", token.name, key.cka_id, key.proof, "active", at_ms)
    return HsmRoot(token, row), intent


async def _seal_store(
    config: Config, arena: Arena, tokens: dict[str, Token], store: Store
) -> ArenaSealer:
    """Steps 2 and 3."""
    root, intent = await _make_root(config, arena, tokens, store)
    sealer, rows = await make_kek(arena, root, store)
    if not config.root.file:
        log.warning(
            "only one root seals this store: without its token nothing opens; keep a backup of it",
            token=config.root.token,
        )

    def work(transaction: Transaction) -> None:
        for row in rows:
            transaction.insert(row)
        if intent is not None:
            transaction.finish_intent(intent.intent_id)

    await trio.to_thread.run_sync(store.reseal, sealer, work)
    return sealer


async def _find_own(store: Store, name: str) -> GatewayKeyRow | None:
    """A key of the deployment's own, if an earlier run made it."""
    found: GatewayKeyRow | None = await trio.to_thread.run_sync(
        store.read, lambda reader: reader.get(GatewayKeyRow, name)
    )
    return found


async def _keep_own(store: Store, row: GatewayKeyRow, intent: IntentRow | None) -> GatewayKeyRow:
    """Store a key of the deployment's own; its intent ends in the same transaction."""

    def work(transaction: Transaction) -> GatewayKeyRow:
        if intent is not None:
            transaction.finish_intent(intent.intent_id)
        return transaction.insert(row)

    return await trio.to_thread.run_sync(store.write, work)


async def _make_wrapping_key(config: Config, tokens: dict[str, Token], store: Store) -> bool:
    """Step 4; whether one was made. A root file's deployment has no token that could wrap.

    A token that cannot wrap as it must serves all the same, without keys that live outside it.
    """
    if not config.root.token or await _find_own(store, WRAPPING_KEY) is not None:
        return False
    token = tokens[config.root.token]
    try:
        made, intent = await _make_in_token(
            store, token, "create_wrapping_key", "AES_256", WRAPPING_KEY
        )
    except OperatorError as error:
        if not isinstance(error.__cause__, Unsupported):
            raise
        log.warning("no wrapping key", token=token.name, error=str(error.__cause__))
        return False
    row = GatewayKeyRow(
        name=WRAPPING_KEY,
        spec=made.spec,
        token=token.name,
        cka_id=made.cka_id,
        public_key=b"",
        certificate=b"",
        material=b"",
        proof=made.proof,
        state="active",
        created_at_ms=now_ms(),
    )
    await _keep_own(store, row, intent)
    return True


async def _make_ca(
    config: Config, arena: Arena, sealer: ArenaSealer, tokens: dict[str, Token], store: Store
) -> tuple[GatewayKeyRow, bool]:
    """Step 5; the CA, and whether it was made."""
    found = await _find_own(store, CA_KEY)
    if found is not None:
        return found, False
    now = datetime.datetime.now(datetime.UTC)
    key, row, intent = await _make_signing_key(config, arena, sealer, tokens, store, CA_KEY)
    certificate = await trio.to_thread.run_sync(issue_ca, key, store.deployment_id, now)
    der = certificate.public_bytes(serialization.Encoding.DER)
    row = msgspec.structs.replace(row, certificate=der)
    return await _keep_own(store, row, intent), True


async def _make_audit_key(
    config: Config, arena: Arena, sealer: ArenaSealer, tokens: dict[str, Token], store: Store
) -> tuple[GatewayKeyRow, bool]:
    """Step 6; the key of the audit log, and whether it was made."""
    found = await _find_own(store, AUDIT_KEY)
    if found is not None:
        return found, False
    _, row, intent = await _make_signing_key(config, arena, sealer, tokens, store, AUDIT_KEY)
    return await _keep_own(store, row, intent), True


def _write_audit_key(instance: Instance, row: GatewayKeyRow) -> None:
    """The public key as a file, on every host that shares the store."""
    pem = serialization.load_der_public_key(row.public_key).public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    if not instance.audit_key.exists() or instance.audit_key.read_bytes() != pem:
        write_file(instance.audit_key, pem, mode=0o644)


async def _make_signing_key(
    config: Config,
    arena: Arena,
    sealer: ArenaSealer,
    tokens: dict[str, Token],
    store: Store,
    name: str,
) -> tuple[ec.EllipticCurvePrivateKey, GatewayKeyRow, IntentRow | None]:
    """An EC_P256 key of the deployment's own, in the root's token or sealed; not stored yet."""
    token_name, cka_id, material, intent = "", b"", b"", None
    if config.root.token:
        token = tokens[config.root.token]
        role = "ca" if name == CA_KEY else "key"
        made, intent = await _make_in_token(store, token, f"create_{name}", "EC_P256", role)
        key = token_private_key(token, made)
        token_name, cka_id = token.name, made.cka_id
    else:
        key = ec.generate_private_key(ec.SECP256R1())
        material = sealed_material(arena, sealer.slot, store.deployment_id, name, key)
    row = GatewayKeyRow(
        name=name,
        spec="EC_P256",
        token=token_name,
        cka_id=cka_id,
        public_key=key.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        ),
        certificate=b"",
        material=material,
        proof=b"",
        state="active",
        created_at_ms=now_ms(),
    )
    return key, row, intent


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _issue_to(
    authority: DeploymentAuthority,
    key: ec.EllipticCurvePrivateKey,
    common_name: str,
    validity: datetime.timedelta,
) -> x509.Certificate:
    return issue(
        authority.certificate,
        authority.open_key(),
        key.public_key(),
        common_name=common_name,
        now=datetime.datetime.now(datetime.UTC),
        validity=validity,
    )


async def _make_server_certificate(
    config: Config, instance: Instance, authority: DeploymentAuthority
) -> bool:
    """Step 7; whether one was made."""
    settle_pair(instance)
    if _serves(instance, authority.certificate, server_names(config.server.names)):
        return False
    now = datetime.datetime.now(datetime.UTC)
    await trio.to_thread.run_sync(make_pair, instance, authority, config.server.names, now)
    return True


def _serves(instance: Instance, ca: x509.Certificate, names: x509.SubjectAlternativeName) -> bool:
    """Whether the gateway's own certificate is there and good for a while."""
    certificate = _load_pair(instance.server_certificate, instance.server_key)
    if certificate is None:
        return False
    try:
        certificate.verify_directly_issued_by(ca)
        carried = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, TypeError, x509.ExtensionNotFound, InvalidSignature):
        return False
    return carried == names


def _load_pair(certificate: Path, private_key: Path) -> x509.Certificate | None:
    """The certificate of two files, if the key is its own and it does not end soon."""
    try:
        loaded = x509.load_pem_x509_certificate(certificate.read_bytes())
        key = serialization.load_pem_private_key(private_key.read_bytes(), None)
    except (OSError, ValueError, TypeError):
        return None
    until = datetime.datetime.now(datetime.UTC) + RENEWAL
    if key.public_key() != loaded.public_key() or loaded.not_valid_after_utc < until:
        return None
    return loaded


def administrator_files(instance: Instance) -> Initialised:
    """Where the first administrator's client key is, or will be."""
    directory = instance.administrator
    return Initialised(
        directory / "administrator.pem", directory / "administrator.key", directory / "ca.pem"
    )


@dataclass(frozen=True, slots=True)
class FirstAdministrator:
    """What the first administrator gets.

    Attributes:
        policy: What it may do.
        restored: Give it back its state and its policy, whatever became of them.
    """

    policy: Policy = first_policies.ADMINISTRATOR
    restored: bool = False


FIRST_ADMINISTRATOR: Final = FirstAdministrator()
"""As production has it."""


async def _make_administrator(
    instance: Instance, authority: DeploymentAuthority, store: Store, wanted: FirstAdministrator
) -> bool:
    """Step 8; whether a client key was made. The files come first, so a client key that is
    accepted is never without them.
    """
    paths = administrator_files(instance)
    if wanted.restored:
        await trio.to_thread.run_sync(store.write, partial(_restore_administrator, wanted.policy))
    found, accepted = await trio.to_thread.run_sync(store.read, _read_administrator)
    if found is not None and (
        found.state != "Enabled" or ADMINISTRATOR not in found.policies.split("\n")
    ):
        log.warning(
            "the administrator is disabled or lost its policy: run this again with "
            "--restore-administrator to give both back"
        )
    if _is_accepted(paths, accepted):
        return False
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = await trio.to_thread.run_sync(
        _issue_to, authority, key, ADMINISTRATOR, ADMINISTRATOR_VALIDITY
    )
    write_file(paths.private_key, _pem(key))
    write_file(paths.certificate, certificate.public_bytes(serialization.Encoding.PEM))
    ca_pem = authority.certificate.public_bytes(serialization.Encoding.PEM)
    write_file(paths.ca, ca_pem, mode=0o644)
    if found is None:
        at_ms, description = now_ms(), "the first administrator, made by init"
        granted = PolicyRow(ADMINISTRATOR, format_policy(wanted.policy), at_ms)
        row = AccessPointRow(
            os.urandom(16), ADMINISTRATOR, description, "Enabled", granted.name, "", at_ms
        )
        await _write(store, [granted, row, client_key_row(certificate, row.access_point_id)])
    else:
        await _write(store, [client_key_row(certificate, found.access_point_id)])
        directory = str(instance.administrator)
        log.warning("the administrator has another client key now", directory=directory)
    return True


def _restore_administrator(policy: Policy, transaction: Transaction) -> None:
    """Make the first administrator what it was: enabled, with its policy, from anywhere, alone."""
    for point in transaction.select(AccessPointRow, name=ADMINISTRATOR):
        granted = PolicyRow(ADMINISTRATOR, format_policy(policy), now_ms())
        found = transaction.get(PolicyRow, ADMINISTRATOR)
        if found is None:
            transaction.insert(granted)
        else:
            transaction.update(msgspec.structs.replace(granted, row_revision=found.row_revision))
        changed = msgspec.structs.replace(
            point, state="Enabled", policies=ADMINISTRATOR, network_rules=""
        )
        transaction.update(changed)
        note_restoration(transaction, now_ms())
        log.warning("the first administrator has its state and its policy again")


def _read_administrator(reader: Reader) -> tuple[AccessPointRow | None, list[bytes]]:
    """The access point, and SHA-256 of the public keys of its client keys that are accepted."""
    for found in reader.select(AccessPointRow, name=ADMINISTRATOR):
        keys = reader.select(ClientKeyRow, access_point_id=found.access_point_id, state="Enabled")
        return found, [key.spki_sha256 for key in keys]
    return None, []


def _is_accepted(paths: Initialised, accepted: list[bytes]) -> bool:
    """Whether the administrator's files are there, and good for a while."""
    pair = _load_pair(paths.certificate, paths.private_key)
    return pair is not None and paths.ca.exists() and spki_sha256(pair) in accepted


async def initialise(
    config: Config,
    instance: Instance,
    arena: Arena,
    tokens: dict[str, Token],
    store: Store,
    administrator: FirstAdministrator = FIRST_ADMINISTRATOR,
) -> Initialised:
    """Do every step that is not done yet.

    Args:
        config: Names root, store and the gateway's names.
        instance: Locked.
        arena: Key memory.
        tokens: Open tokens by name.
        store: Created; bare or sealed.
        administrator: What the first administrator gets.

    Returns:
        Where the administrator's client key is, and what was made.

    Raises:
        OperatorError: A step cannot be done; the text says what to do, and running it again goes
            on where it stopped.
    """
    bootstrap = await trio.to_thread.run_sync(store.bootstrap)
    make_root = _seal_store if bootstrap.bare else unlock
    sealer = await make_root(config, arena, tokens, store)
    if not bootstrap.bare:
        # What is about to be written would make a store that was rolled back look newer.
        keeper = make_keeper(config, instance, sealer, tokens, store, lambda: NO_AUDIT)
        await keeper.check(accept=False)
    has_wrapping_key = await _make_wrapping_key(config, tokens, store)
    row, has_ca = await _make_ca(config, arena, sealer, tokens, store)
    authority = DeploymentAuthority(row, tokens, arena, sealer.slot, store.deployment_id)
    audit_key, has_audit_key = await _make_audit_key(config, arena, sealer, tokens, store)
    _write_audit_key(instance, audit_key)
    has_client_key = await _make_administrator(instance, authority, store, administrator)
    made = {
        "the root key": bootstrap.bare,
        "the wrapping key": has_wrapping_key,
        "the CA": has_ca,
        "the audit key": has_audit_key,
        "the gateway's certificate": await _make_server_certificate(config, instance, authority),
        "the administrator's client key": has_client_key,
    }
    done = tuple(name for name, is_new in made.items() if is_new)
    return replace(administrator_files(instance), made=done)
