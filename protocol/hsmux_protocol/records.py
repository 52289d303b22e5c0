"""Records that answers carry: what a key, an access point or a client key looks like to its
reader.
"""

from typing import NamedTuple

__all__ = ["AccessPointRecord", "ClientKeyRecord", "KeyRecord", "TokenRecord"]


class KeyRecord(NamedTuple):
    """A key without its material.

    Attributes:
        key_id: 16 bytes.
        spec: A name of `hsmux_protocol.keys.KEY_SPECS`.
        usage: "ENCRYPT_DECRYPT" or "SIGN_VERIFY".
        protection: "software" or "hardware".
        storage: "hsm" for a hardware-protected key that lives in its token; empty for a
            software-protected one.
        token: The token's configured name; empty for a software-protected key.
        state: A name of `hsmux_protocol.keys.KEY_STATES`.
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


class AccessPointRecord(NamedTuple):
    """An application access point: the identity of one application."""

    access_point_id: bytes
    name: str
    description: str
    state: str
    created_at_ms: int


class ClientKeyRecord(NamedTuple):
    """A client key: a certificate of the gateway's own CA that is bound to an access point."""

    client_key_id: bytes
    access_point: str
    spki_sha256: bytes
    serial: str
    state: str
    not_before_ms: int
    not_after_ms: int


class TokenRecord(NamedTuple):
    """One HSM token as the gateway sees it now."""

    name: str
    state: str
    workers: int
    busy: int
    waiting: int
    restarts: int
