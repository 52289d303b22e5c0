"""What the clients' methods return. No `repr` shows a plaintext or a private key."""

import datetime
from dataclasses import dataclass, field

from ._pem import pem_of

__all__ = [
    "AccessPoint",
    "ClientKey",
    "Decrypted",
    "Encrypted",
    "Explanation",
    "IssuedClientKey",
    "Key",
    "NetworkRule",
    "PendingRequest",
    "Policy",
    "PolicyDecision",
    "PublicKey",
    "Quorum",
    "Signature",
    "Status",
    "TokenStatus",
]


@dataclass(frozen=True, slots=True)
class Key:
    """A key without its material; may be given wherever a key reference is asked for.

    Attributes:
        key_id: `key-<base32>`.
        spec: "AES_256", "EC_P256", ...
        usage: "ENCRYPT_DECRYPT" or "SIGN_VERIFY".
        protection: "software" or "hardware".
        storage: "hsm" for a hardware-protected key that lives in its token, else empty.
        token: The token's configured name; empty for a software-protected key.
        state: "Enabled", "Disabled", ...
        version: The newest version's number, from 1.
        aliases: `alias/<name>`, ascending.
        description: What the owner wrote.
        tags: The owner's tags.
        created_at: When it was made, UTC.
    """

    key_id: str
    spec: str
    usage: str
    protection: str
    storage: str
    token: str
    state: str
    version: int
    aliases: tuple[str, ...]
    description: str
    tags: dict[str, str] = field(hash=False)
    created_at: datetime.datetime


@dataclass(frozen=True, slots=True)
class Encrypted:
    """A ciphertext envelope and the key version it is under.

    Attributes:
        ciphertext: The envelope; it names its key, so nothing else need be kept to decrypt it.
        key_id: `key-<base32>`.
        key_version: From 1.
    """

    ciphertext: bytes
    key_id: str
    key_version: int

    def __repr__(self) -> str:
        return f"Encrypted({len(self.ciphertext)} bytes, {self.key_id}@{self.key_version})"


@dataclass(frozen=True, slots=True)
class Decrypted:
    """A plaintext and the key version it was under.

    Attributes:
        plaintext: Never shown by `repr`.
        key_id: `key-<base32>`.
        key_version: From 1.
    """

    plaintext: bytes
    key_id: str
    key_version: int

    def __repr__(self) -> str:
        return f"Decrypted({len(self.plaintext)} bytes, {self.key_id}@{self.key_version})"


@dataclass(frozen=True, slots=True)
class Signature:
    """A signature and the key version that made it.

    Attributes:
        signature: DER for ECDSA, r ‖ s for the `_RAW` algorithms, modulus-size bytes for RSA.
        algorithm: As it was asked for.
        key_id: `key-<base32>`.
        key_version: From 1.
    """

    signature: bytes
    algorithm: str
    key_id: str
    key_version: int

    def __repr__(self) -> str:
        return f"Signature({self.algorithm}, {self.key_id}@{self.key_version})"


@dataclass(frozen=True, slots=True)
class PublicKey:
    """The public part of a signing key.

    Attributes:
        der: SubjectPublicKeyInfo (RFC 5280 section 4.1.2.7).
        spec: "EC_P256", "RSA_2048", ...
        key_id: `key-<base32>`.
        key_version: From 1.
    """

    der: bytes
    spec: str
    key_id: str
    key_version: int

    @property
    def pem(self) -> str:
        """The same in PEM (RFC 7468 section 13)."""
        return pem_of("PUBLIC KEY", self.der)

    def __repr__(self) -> str:
        return f"PublicKey({self.spec}, {self.key_id}@{self.key_version})"


@dataclass(frozen=True, slots=True)
class AccessPoint:
    """An application access point: the identity of one application.

    Attributes:
        access_point_id: `ap-<base32>`.
        name: Unique in the deployment.
        description: What its maker wrote.
        state: "Enabled", "Disabled" or "Deleted".
        policies: Names of its policies, ascending.
        network_rules: Names of the network rules inside one of which it has to be; none: it may
            be anywhere.
        created_at: When it was made, UTC.
        mtls: By what it is known in certificates of other CAs, `uri:<URI>` or `spki:<SHA-256>`.
        requests_per_s: Requests a second it may send, items of batches counted; 0: as many as the
            gateway's configuration lets an access point that has no limit of its own.
        bytes_per_s: Bytes of requests a second, likewise.
        in_flight: Requests that may be in work at a time, likewise.
    """

    access_point_id: str
    name: str
    description: str
    state: str
    policies: tuple[str, ...]
    network_rules: tuple[str, ...]
    created_at: datetime.datetime
    mtls: tuple[str, ...] = ()
    requests_per_s: int = 0
    bytes_per_s: int = 0
    in_flight: int = 0


@dataclass(frozen=True, slots=True)
class Policy:
    """A policy: what access points that have it may do, and may not.

    Attributes:
        name: Unique in the deployment.
        description: What its document says of itself.
        statements: How many it has.
        access_points: How many access points have it.
        updated_at: When it was last put, UTC.
        document: The document as JSON; empty in lists.
    """

    name: str
    description: str
    statements: int
    access_points: int
    updated_at: datetime.datetime
    document: str = ""


@dataclass(frozen=True, slots=True)
class NetworkRule:
    """A named list of networks that policies and access points can require.

    Attributes:
        name: Unique in the deployment.
        networks: IPv4 and IPv6 networks as CIDR, ascending.
        updated_at: When it was last put, UTC.
    """

    name: str
    networks: tuple[str, ...]
    updated_at: datetime.datetime


@dataclass(frozen=True, slots=True)
class PolicyDecision:
    """What would be decided of a request.

    Attributes:
        allowed: The effect.
        statement: The statement that decides, or why none does.
        missing: What the statements that could allow it want.
    """

    allowed: bool
    statement: str
    missing: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Explanation:
    """What was decided of a request, and what would be now.

    Attributes:
        at: When it was recorded, UTC.
        access_point: Who asked.
        operation: What for.
        resource: What it was about, as the caller named it.
        outcome: "done", or the name of the error the caller got.
        statement: What decided then.
        policy: The policy of that statement; empty if none decided.
        text: The statement as it is now, JSON; empty if it is not there.
        since: What became of it since: "same", "changed" (its policy was put again), "gone", or
            "none" if none decided.
        statement_now: What would decide now, of a caller with a good client key and no context.
        missing: What the statements that could allow it now want.
    """

    at: datetime.datetime
    access_point: str
    operation: str
    resource: str
    outcome: str
    statement: str
    policy: str
    text: str
    since: str
    statement_now: str
    missing: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Quorum:
    """How many approvals a change of administrators needs.

    Attributes:
        approvals: How many; 0: none.
        approvers: Names of access points whose approvals would count now, the first 100.
        updated_at: When that was last set, UTC; None: never.
    """

    approvals: int
    approvers: tuple[str, ...]
    updated_at: datetime.datetime | None


@dataclass(frozen=True, slots=True)
class PendingRequest:
    """A request that waits for approvals.

    Attributes:
        request: What names it: a SHA-256 over who asks, what, and what would be so when it is done;
            64 hexadecimal digits.
        access_point: The name of the access point that asks.
        operation: What it asks.
        touches: Names of administrators and approvers whose access it would change, the first 8.
        asked_at: When it was first sent, UTC.
        expires_at: When it is forgotten, and its approvals with it, UTC.
        approved_by: Names of the access points whose approvals count now.
        missing: How many approvals it wants beside them.
        arguments: The arguments as JSON; empty in lists.
    """

    request: str
    access_point: str
    operation: str
    touches: tuple[str, ...]
    asked_at: datetime.datetime
    expires_at: datetime.datetime
    approved_by: tuple[str, ...]
    missing: int
    arguments: str = ""


@dataclass(frozen=True, slots=True)
class ClientKey:
    """A client key: a certificate of the gateway's own CA, bound to an access point.

    Attributes:
        client_key_id: `ck-<base32>`.
        access_point: The access point's name.
        spki_sha256: SHA-256 of the SubjectPublicKeyInfo, 32 bytes.
        serial: The certificate's serial number in hexadecimal.
        state: "Enabled", "Disabled" or "Revoked".
        not_before: The certificate's first moment, UTC.
        not_after: The certificate's last moment, UTC.
        renews: The client key in whose place it was issued, `ck-<base32>`; empty: none.
    """

    client_key_id: str
    access_point: str
    spki_sha256: bytes
    serial: str
    state: str
    not_before: datetime.datetime
    not_after: datetime.datetime
    renews: str = ""


@dataclass(frozen=True, slots=True)
class IssuedClientKey:
    """A client key that was just issued.

    Attributes:
        client_key: What the gateway keeps of it.
        certificate_pem: The client certificate.
        ca_pem: The CA that issued it and that signs the gateway's certificate.
        private_key_pem: The private key in PKCS#8, when the gateway made it: it is not kept there
            and never shown again. None when a request was given.
    """

    client_key: ClientKey
    certificate_pem: str
    ca_pem: str
    private_key_pem: str | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class TokenStatus:
    """One HSM token as the gateway sees it.

    Attributes:
        name: Its configured name.
        state: "up", "down", "recovering" or "pin-refused".
        workers: Worker processes.
        busy: Workers at work.
        waiting: Requests that wait for a worker.
        restarts: Workers replaced since the gateway started.
    """

    name: str
    state: str
    workers: int
    busy: int
    waiting: int
    restarts: int


@dataclass(frozen=True, slots=True)
class Status:
    """What a gateway is and how it fares.

    Attributes:
        version: Of the gateway.
        deployment: The deployment's identifier, 32 hexadecimal digits.
        uptime_s: Seconds since the process started.
        native_backend: What computes AES-GCM.
        root: Where the root key is.
        store: Which store it is.
        store_revision: Of the last change this process has seen.
        anchor_age_s: Seconds since what the store says was last written where a copy of the store
            does not bring it back; None while that was not done.
        warnings: What an operator should mend.
        tokens: Every configured token.
        ca_not_after: End of the deployment's CA, UTC.
        server_not_after: End of the gateway's own certificate, UTC.
        client_keys_ending: Accepted client keys that end within 30 days and were not renewed.
        client_keys_ended: Client keys that ended in the last 30 days and were not renewed.
    """

    version: str
    deployment: str
    uptime_s: int
    native_backend: str
    root: str
    store: str
    store_revision: int
    anchor_age_s: int | None
    warnings: tuple[str, ...]
    tokens: tuple[TokenStatus, ...]
    ca_not_after: datetime.datetime
    server_not_after: datetime.datetime
    client_keys_ending: int
    client_keys_ended: int
