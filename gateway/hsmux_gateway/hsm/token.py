"""What the engine knows of a token, and nothing of PKCS#11.

A real token behind its pool of workers and the in-memory twin both satisfy `Token`; one
conformance suite runs on all of them. Deadlines are absolute seconds of `time.monotonic()`
(CLOCK_MONOTONIC), so they mean the same in a worker process. `tenant` names who waits, for the
fair queue: the access point whose request it is, the gateway itself where none is named.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from ..fairness import SYSTEM_TENANT

__all__ = ["DATA_SIZE_MAX", "BatchResult", "FoundObject", "HsmKey", "Token", "TokenStatistics"]

DATA_SIZE_MAX: Final = 1024
"""Bytes of a data object's value: what any token has room for."""


@dataclass(frozen=True, slots=True)
class HsmKey:
    """A token object as the gateway names it.

    Attributes:
        cka_id: The object's CKA_ID, 16 bytes that the gateway chose.
        spec: A name of `hsmux_protocol.keys.KEY_SPECS`.
        proof: What proves the object to be this key before its first use in a login epoch.
        public_key: SubjectPublicKeyInfo DER; empty for a symmetric key.
        role: What it may be used for: "key", "root", "wrapping" or "ca".
    """

    cka_id: bytes
    spec: str
    proof: bytes = field(repr=False)
    public_key: bytes = field(repr=False)
    role: str = "key"

    @property
    def name(self) -> bytes:
        """Names the object together with what proves it."""
        proves = hashlib.blake2b(self.proof + self.public_key, digest_size=8)
        return self.cka_id + proves.digest()


@dataclass(frozen=True, slots=True)
class FoundObject:
    """An object that is in the token."""

    cka_id: bytes
    object_class: str
    key_type: str


@dataclass(frozen=True, slots=True)
class BatchResult:
    """What became of a column of items.

    Attributes:
        outputs: A column; an item that is not done has an empty output.
        statuses: One an item: 0 done, 1 invalid, 2 too large, 3 deadline, 4 unavailable.
    """

    outputs: bytes = field(repr=False)
    statuses: Sequence[int]


@dataclass(frozen=True, slots=True)
class TokenStatistics:
    """How a token fares.

    Attributes:
        name: As configured.
        workers: Worker processes that are ready or busy.
        workers_max: Workers there may be now; fewer than configured while sessions are short.
        busy: Of those, busy ones.
        starting: Workers on their way.
        waiting: Items in the queue.
        login_epoch: Times anybody logged in anew.
        breaker: "closed", "open" or "half-open".
        restarts: Workers replaced.
        failed_logins: Logins the token refused.
        quarantined: Keys that did not prove themselves lately.
    """

    name: str
    workers: int
    workers_max: int
    busy: int
    starting: int
    waiting: int
    login_epoch: int
    breaker: str
    restarts: int
    failed_logins: int
    quarantined: int


class Token(Protocol):
    """One logical token."""

    @property
    def name(self) -> str:
        """As configured."""

    def statistics(self) -> TokenStatistics:
        """How it fares now."""

    async def generate(
        self,
        spec: str,
        cka_id: bytes,
        *,
        deadline: float,
        role: str = "key",
        tenant: bytes = SYSTEM_TENANT,
    ) -> HsmKey:
        """Make a sensitive, non-extractable token object, durable and proven on return.

        Args:
            spec: A name of `hsmux_protocol.keys.KEY_SPECS`.
            cka_id: 16 bytes; no other object may have it.
            deadline: When to give up.
            role: "key", "root" or "ca": what it may be used for.
            tenant: Who waits for it; tenants take turns, for what is made takes seconds.

        Raises:
            TokenError: It was not made; TokenOutcomeUnknown: it may have been.
        """

    async def destroy(self, key: HsmKey, *, deadline: float, tenant: bytes = SYSTEM_TENANT) -> None:
        """Destroy every object with the key's CKA_ID."""

    async def drop_key(self, key: HsmKey, *, deadline: float) -> None:
        """Have every worker forget a key: nothing is done with it on return but by a new lookup.

        For keys that were disabled, destroyed or rotated. A worker that does not answer in time is
        killed.
        """

    async def list_objects(self, *, deadline: float) -> list[FoundObject]:
        """Keys in the token."""

    async def list_data(self, label: str, *, deadline: float) -> list[bytes]:
        """The values of the private data objects that the gateway has put here under a label.

        Raises:
            Unsupported: The token keeps no data objects.
        """

    async def put_data(self, label: str, value: bytes, *, deadline: float) -> None:
        """Keep a value of at most `DATA_SIZE_MAX` bytes as a private data object, durable and read
        back on return; nothing is done if it is there already.

        Raises:
            Unsupported: The token keeps no data objects.
        """

    async def remove_data(self, label: str, value: bytes, *, deadline: float) -> None:
        """Destroy the data objects with this label and value; there may be none."""

    async def encrypt(
        self,
        key: HsmKey,
        plaintexts: bytes,
        associated_data: bytes,
        *,
        deadline: float,
        tenant: bytes,
    ) -> BatchResult:
        """AES-GCM over a column; each output is IV 12 ‖ ciphertext ‖ tag 16.

        `associated_data` is a column of one for all or one for each item.
        """

    async def decrypt(
        self, key: HsmKey, sealed: bytes, associated_data: bytes, *, deadline: float, tenant: bytes
    ) -> BatchResult:
        """Open a column of what `encrypt` made."""

    async def sign(
        self, key: HsmKey, algorithm: str, digest: bytes, *, deadline: float, tenant: bytes
    ) -> bytes:
        """Sign a digest; ECDSA signatures are r ‖ s. `algorithm` is a name without `_RAW`."""

    async def random(self, length: int, *, deadline: float, tenant: bytes = SYSTEM_TENANT) -> bytes:
        """Random bytes of the token."""

    async def seal_slot(
        self,
        root: HsmKey,
        slot: int,
        associated_data: bytes,
        *,
        deadline: float,
        tenant: bytes = SYSTEM_TENANT,
    ) -> bytes:
        """Seal the key in an arena slot under a root key."""

    async def open_slot(
        self,
        root: HsmKey,
        sealed: bytes,
        associated_data: bytes,
        *,
        deadline: float,
        tenant: bytes = SYSTEM_TENANT,
    ) -> int:
        """Open what `seal_slot` made into an arena slot."""

    async def prove(self, key: HsmKey, *, deadline: float, tenant: bytes = SYSTEM_TENANT) -> None:
        """Prove that the token's object is this key; raises KeyMissing or KeyQuarantined."""
