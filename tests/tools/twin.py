"""An in-memory twin of `hsmux.Client` for the command: the same methods, real envelopes and real
signatures, no gateway.
"""

import datetime
import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, Self

from cryptography.exceptions import InvalidSignature as WrongSignature
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from hsmux.results import (
    AccessPoint,
    ClientKey,
    Decrypted,
    Encrypted,
    IssuedClientKey,
    Key,
    PublicKey,
    Signature,
    Status,
    TokenStatus,
)
from hsmux_protocol.context import encode_context
from hsmux_protocol.envelope import HEADER_SIZE, SUITE_AES_GCM, make_header, parse_header
from hsmux_protocol.errors import HsmuxError, InvalidCiphertext, InvalidSignature, NotFound
from hsmux_protocol.keys import ALGORITHMS
from hsmux_protocol.limits import ITEM_SIZE_MAX
from hsmux_protocol.references import format_identifier, parse_identifier

MOMENT = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)
HASHES: dict[str, hashes.HashAlgorithm] = {"sha256": hashes.SHA256(), "sha384": hashes.SHA384()}


@dataclass
class Deployment:
    """What a gateway would hold.

    Attributes:
        keys: Every key.
        secrets: AES keys by key id.
        signers: Private keys by key id.
        access_points: Every access point.
        client_keys: Every client key.
        connections: The arguments of each `connect`.
        calls: Each request's method and timeout.
        failure: What the next request raises.
        gateway_keys: Whether a client key without a request comes with a private key.
    """

    keys: list[Key] = field(default_factory=list)
    secrets: dict[str, bytes] = field(default_factory=dict)
    signers: dict[str, ec.EllipticCurvePrivateKey] = field(default_factory=dict)
    access_points: list[AccessPoint] = field(default_factory=list)
    client_keys: list[ClientKey] = field(default_factory=list)
    connections: list[dict[str, Any]] = field(default_factory=list)
    calls: list[tuple[str, float | None]] = field(default_factory=list)
    failure: BaseException | None = None

    def connect(self, addresses: object = None, **arguments: Any) -> "ClientTwin":
        """As `Client.connect`."""
        self.connections.append(arguments)
        return ClientTwin(self)


class ClientTwin:
    """A connection to a `Deployment`."""

    def __init__(self, deployment: Deployment) -> None:
        self._held = deployment

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        pass

    def _begin(self, method: str, timeout_s: float | None) -> Deployment:
        self._held.calls.append((method, timeout_s))
        if self._held.failure is not None:
            raise self._held.failure
        return self._held

    def _key(self, reference: str) -> Key:
        for key in self._held.keys:
            if reference in (key.key_id, *key.aliases):
                return key
        raise NotFound(f"{reference}: there is no such key", reference="req-1")

    def create_key(
        self,
        *,
        spec: str,
        usage: str,
        protection: str = "software",
        storage: str | None = None,
        alias: str | None = None,
        description: str = "",
        tags: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
        idempotency_token: bytes | None = None,
    ) -> Key:
        held = self._begin("create_key", timeout_s)
        key_id = format_identifier("key-", os.urandom(16))
        if spec == "AES_256":
            held.secrets[key_id] = AESGCM.generate_key(256)
        else:
            held.signers[key_id] = ec.generate_private_key(ec.SECP256R1())
        aliases = (alias,) if alias else ()
        where = storage or ""
        token = "main" if storage else ""
        held.keys.append(
            Key(
                key_id,
                spec,
                usage,
                protection,
                where,
                token,
                "Enabled",
                1,
                aliases,
                description,
                dict(tags or {}),
                MOMENT,
            )
        )
        return held.keys[-1]

    def list_keys(self, *, timeout_s: float | None = None) -> list[Key]:
        return self._begin("list_keys", timeout_s).keys

    def show_key(self, key: str, *, timeout_s: float | None = None) -> Key:
        self._begin("show_key", timeout_s)
        return self._key(key)

    def encrypt(
        self,
        key: str,
        plaintext: bytes,
        *,
        context: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> Encrypted:
        held = self._begin("encrypt", timeout_s)
        assert len(plaintext) <= ITEM_SIZE_MAX
        key_id = self._key(key).key_id
        header = make_header(SUITE_AES_GCM, parse_identifier("key-", key_id), 1)
        nonce = os.urandom(12)
        sealed = AESGCM(held.secrets[key_id]).encrypt(
            nonce, plaintext, header + encode_context(context)
        )
        return Encrypted(header + nonce + sealed, key_id, 1)

    def decrypt(
        self,
        ciphertext: bytes,
        *,
        context: Mapping[str, str] | None = None,
        key: str | None = None,
        timeout_s: float | None = None,
    ) -> Decrypted:
        held = self._begin("decrypt", timeout_s)
        key_id = format_identifier("key-", parse_header(ciphertext).key_id)
        header, sealed = ciphertext[:HEADER_SIZE], ciphertext[HEADER_SIZE:]
        try:
            if key is not None and self._key(key).key_id != key_id:
                raise InvalidTag
            plaintext = AESGCM(held.secrets[key_id]).decrypt(
                sealed[:12], sealed[12:], header + encode_context(context)
            )
        except InvalidTag:
            raise InvalidCiphertext("the ciphertext does not open", reference="req-2") from None
        return Decrypted(plaintext, key_id, 1)

    def sign(
        self,
        key: str,
        message: bytes,
        *,
        algorithm: str,
        digest: bool = False,
        timeout_s: float | None = None,
    ) -> Signature:
        held = self._begin("sign", timeout_s)
        key_id = self._key(key).key_id
        hashed, scheme = _prehashed(message, algorithm, digest)
        return Signature(held.signers[key_id].sign(hashed, scheme), algorithm, key_id, 1)

    def verify(
        self,
        key: str,
        message: bytes,
        signature: bytes,
        *,
        algorithm: str,
        digest: bool = False,
        timeout_s: float | None = None,
    ) -> None:
        held = self._begin("verify", timeout_s)
        public = held.signers[self._key(key).key_id].public_key()
        hashed, scheme = _prehashed(message, algorithm, digest)
        try:
            public.verify(signature, hashed, scheme)
        except WrongSignature:
            raise InvalidSignature("the signature does not fit", reference="req-3") from None

    def public_key(self, key: str, *, timeout_s: float | None = None) -> PublicKey:
        held = self._begin("public_key", timeout_s)
        found = self._key(key)
        der = held.signers[found.key_id].public_key().public_bytes(*_SPKI)
        return PublicKey(der, found.spec, found.key_id, 1)

    def generate_random(self, length: int, *, timeout_s: float | None = None) -> bytes:
        self._begin("generate_random", timeout_s)
        return os.urandom(length)

    def create_access_point(
        self,
        name: str,
        *,
        description: str = "",
        policies: Sequence[str] = (),
        mtls: Sequence[str] = (),
        requests_per_s: int | None = None,
        bytes_per_s: int | None = None,
        in_flight: int | None = None,
        timeout_s: float | None = None,
        idempotency_token: bytes | None = None,
    ) -> AccessPoint:
        held = self._begin("create_access_point", timeout_s)
        identifier = format_identifier("ap-", os.urandom(16))
        held.access_points.append(
            AccessPoint(
                *(identifier, name, description, "Enabled", tuple(policies), (), MOMENT),
                *(tuple(mtls), requests_per_s or 0, bytes_per_s or 0, in_flight or 0),
            )
        )
        return held.access_points[-1]

    def list_access_points(self, *, timeout_s: float | None = None) -> list[AccessPoint]:
        return self._begin("list_access_points", timeout_s).access_points

    def create_client_key(
        self,
        access_point: str,
        *,
        csr: bytes | None = None,
        validity_days: int = 90,
        timeout_s: float | None = None,
        idempotency_token: bytes | None = None,
    ) -> IssuedClientKey:
        held = self._begin("create_client_key", timeout_s)
        made = ClientKey(
            format_identifier("ck-", os.urandom(16)),
            access_point,
            bytes(32),
            "0a",
            "Enabled",
            MOMENT,
            MOMENT + datetime.timedelta(days=validity_days),
        )
        held.client_keys.append(made)
        private_key = None if csr else "-----BEGIN PRIVATE KEY-----\n"
        return IssuedClientKey(made, "certificate\n", "ca\n", private_key)

    def renew_client_key(
        self,
        client_key_id: str | None = None,
        *,
        csr: bytes | None = None,
        force: bool = False,
        timeout_s: float | None = None,
        idempotency_token: bytes | None = None,
    ) -> IssuedClientKey:
        self._begin("force" if force else "renew_client_key", timeout_s)
        renewed = client_key_id or self._held.client_keys[0].client_key_id
        issued = self.create_client_key("billing", csr=csr)
        made = replace(issued.client_key, renews=renewed)
        self._held.client_keys[-1] = made
        return replace(issued, client_key=made)

    def list_client_keys(self, *, timeout_s: float | None = None) -> list[ClientKey]:
        return self._begin("list_client_keys", timeout_s).client_keys

    def revoke_client_key(
        self,
        client_key_id: str,
        *,
        timeout_s: float | None = None,
        idempotency_token: bytes | None = None,
    ) -> ClientKey:
        held = self._begin("revoke_client_key", timeout_s)
        for client_key in held.client_keys:
            if client_key.client_key_id == client_key_id:
                return client_key
        raise NotFound(f"{client_key_id}: there is no such client key")

    def status(self, *, timeout_s: float | None = None) -> Status:
        self._begin("status", timeout_s)
        tokens = (TokenStatus("main", "up", 2, 1, 0, 3),)
        warnings = ("one root only",)
        return Status(
            "1.2.3",
            "00" * 16,
            60,
            "openssl",
            "token main",
            "sqlite",
            7,
            3,
            warnings,
            tokens,
            MOMENT,
            MOMENT,
            0,
            0,
        )


_SPKI = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def _prehashed(message: bytes, algorithm: str, digest: bool) -> tuple[bytes, ec.ECDSA]:
    name = ALGORITHMS[algorithm].hash_name
    hashed = message if digest else hashlib.new(name, message).digest()
    return hashed, ec.ECDSA(utils.Prehashed(HASHES[name]))


def failing(error: HsmuxError | BaseException) -> Deployment:
    """A deployment in which every request fails."""
    return Deployment(failure=error)
