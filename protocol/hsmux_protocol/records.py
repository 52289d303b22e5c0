"""Records that answers carry: what a key, an access point or a client key looks like to its
reader.
"""

from typing import NamedTuple

__all__ = [
    "AccessPointRecord",
    "ClientKeyRecord",
    "ExpiryRecord",
    "KeyRecord",
    "LimitsRecord",
    "NetworkRuleRecord",
    "PolicyRecord",
    "QuorumRecord",
    "RequestRecord",
    "TokenRecord",
]


class KeyRecord(NamedTuple):
    """A key without its material.

    Attributes:
        key_id: 16 bytes that name the key for ever.
        spec: What it is, a name of `hsmux_protocol.keys.KEY_SPECS`.
        usage: The one thing it is for.
        protection: Where its material is used.
        storage: "hsm" for a hardware-protected key that lives in its token; empty for a
            software-protected one.
        token: The token's configured name; empty for a software-protected key.
        state: What may be done with it, a name of `hsmux_protocol.keys.KEY_STATES`.
        version: The newest version's number, from 1.
        aliases: Alias names without `alias/`, ascending.
        description: What the owner wrote.
        tags: The owner's tags.
        created_at_ms: When it was made, in milliseconds since 1970 UTC.
    """

    key_id: bytes
    spec: str
    usage: str
    protection: str
    storage: str
    token: str
    state: str
    version: int
    aliases: list[str]
    description: str
    tags: dict[str, str]
    created_at_ms: int


class LimitsRecord(NamedTuple):
    """What an access point may ask for.

    0 stands for what the deployment has set, and None, in a request, for what there is.

    Attributes:
        requests_per_s: Requests a second; of a batch each item is one.
        bytes_per_s: Bytes of requests a second.
        in_flight: Requests in work at a time.
    """

    requests_per_s: int | None
    bytes_per_s: int | None
    in_flight: int | None


class AccessPointRecord(NamedTuple):
    """An application access point: the identity of one application.

    Attributes:
        access_point_id: 16 bytes that name it for ever.
        name: Unique in the deployment.
        description: What its maker wrote.
        state: Whether it is accepted.
        policies: Names of its policies, ascending.
        network_rules: Names of the network rules from inside one of which it must come; none:
            from anywhere.
        created_at_ms: When it was made, in milliseconds since 1970 UTC.
        mtls: By what it is known in certificates of other CAs, `uri:<URI>` or `spki:<SHA-256>`,
            ascending.
        limits: What it may ask for.
    """

    access_point_id: bytes
    name: str
    description: str
    state: str
    policies: list[str]
    network_rules: list[str]
    created_at_ms: int
    mtls: list[str]
    limits: LimitsRecord


class PolicyRecord(NamedTuple):
    """A policy without its document.

    Attributes:
        name: Unique in the deployment.
        description: What its document says of itself.
        statements: How many it has.
        access_points: How many access points have it.
        updated_at_ms: When it was last put, in milliseconds since 1970 UTC.
    """

    name: str
    description: str
    statements: int
    access_points: int
    updated_at_ms: int


class NetworkRuleRecord(NamedTuple):
    """A named list of networks.

    Attributes:
        name: Unique in the deployment.
        networks: IPv4 and IPv6 networks as CIDR, ascending.
        updated_at_ms: When it was last put, in milliseconds since 1970 UTC.
    """

    name: str
    networks: list[str]
    updated_at_ms: int


class QuorumRecord(NamedTuple):
    """How many approvals a change of administrators needs.

    Attributes:
        approvals: How many; 0: none.
        approvers: Names of access points whose approvals would count now, ascending, as many as are
            shown.
        updated_at_ms: When that was last set, in milliseconds since 1970 UTC; 0: never.
    """

    approvals: int
    approvers: list[str]
    updated_at_ms: int


class RequestRecord(NamedTuple):
    """A request that waits for approvals.

    Attributes:
        request: SHA-256 that names it.
        access_point: The name of the access point that asks.
        operation: What it asks.
        touches: Names of administrators and approvers whose access it would change, as many as are
            shown.
        asked_at_ms: When it was first sent, in milliseconds since 1970 UTC.
        expires_at_ms: When it is forgotten, and its approvals with it.
        approved_by: Names of the access points whose approvals count now.
        missing: How many approvals it wants beside them.
    """

    request: bytes
    access_point: str
    operation: str
    touches: list[str]
    asked_at_ms: int
    expires_at_ms: int
    approved_by: list[str]
    missing: int


class ClientKeyRecord(NamedTuple):
    """A client key: a certificate of the gateway's own CA that is bound to an access point.

    Attributes:
        client_key_id: 16 bytes that name it for ever.
        access_point: The name of the access point it stands for.
        spki_sha256: SHA-256 of the certificate's SubjectPublicKeyInfo, which alone identifies it.
        serial: The certificate's serial number in hexadecimal.
        state: Whether it is accepted.
        not_before_ms: Begin of the certificate, in milliseconds since 1970 UTC.
        not_after_ms: Its end.
        renews: The client key in whose place it was issued, 16 bytes; empty: none.
    """

    client_key_id: bytes
    access_point: str
    spki_sha256: bytes
    serial: str
    state: str
    not_before_ms: int
    not_after_ms: int
    renews: bytes


class ExpiryRecord(NamedTuple):
    """What ends, and when.

    Attributes:
        ca_not_after_ms: End of the deployment's CA, in milliseconds since 1970 UTC.
        server_not_after_ms: End of the gateway's own certificate.
        client_keys_ending: Accepted client keys that end within 30 days and were not renewed.
        client_keys_ended: Client keys that ended in the last 30 days and were not renewed.
    """

    ca_not_after_ms: int
    server_not_after_ms: int
    client_keys_ending: int
    client_keys_ended: int


class TokenRecord(NamedTuple):
    """One HSM token as the gateway sees it now.

    Attributes:
        name: As configured.
        state: "up" (it can be used), "down" (away), "recovering" (coming back) or "pin-refused"
            (the token refused the PIN: an operator must act).
        workers: Worker processes that are ready.
        busy: Of those, busy ones.
        waiting: Items in the queue.
        restarts: Workers replaced since the start.
    """

    name: str
    state: str
    workers: int
    busy: int
    waiting: int
    restarts: int
