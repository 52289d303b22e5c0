"""The in-memory twin of a token: the same behaviour without any HSM.

It keeps what PKCS#11 modules keep and answers what they answer, with `cryptography` underneath. The
conformance suite that real tokens pass runs on it too. Keys are ordinary Python objects: it is no
place for a key that matters.

It does one thing at a time, at most `PART_ITEMS` items of a column, and the tenants take turns.
"""

import os
import secrets
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import trio
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed, decode_dss_signature
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from hsmux_native import Arena
from hsmux_protocol.columns import pack_column, unpack_column
from hsmux_protocol.errors import RemoteProtocolError
from hsmux_protocol.keys import ALGORITHMS, KEY_SPECS

from ..fairness import SYSTEM_TENANT
from .errors import (
    InvalidInput,
    KeyMissing,
    KeyQuarantined,
    TokenDeadlineExceeded,
    TokenUnavailable,
    Unsupported,
)
from .token import DATA_SIZE_MAX, BatchResult, FoundObject, HsmKey, TokenStatistics

__all__ = ["MemoryToken"]

CHALLENGE_SIZE: Final = 32
IV_SIZE: Final = 12
PART_ITEMS: Final = 64
ROLES: Final = ("key", "root", "wrapping", "ca")

_HASHES: Final = {"256": hashes.SHA256(), "384": hashes.SHA384(), "512": hashes.SHA512()}
_CURVES: Final[dict[str, ec.EllipticCurve]] = {"EC_P256": ec.SECP256R1(), "EC_P384": ec.SECP384R1()}


def _bound(cka_id: bytes, role: str) -> bytes:
    """What a proof is bound to: a wrapping key's does not serve to encrypt."""
    return cka_id + b"wrapping" if role == "wrapping" else cka_id


class MemoryToken:
    """A token in this process; satisfies `Token`.

    Args:
        name: As configured.
        arena: For keys that a root key seals and opens.

    Attributes:
        away: Set it, and everything is TokenUnavailable.
        keeps_data: Clear it, and it is a token without data objects, like NSS softokn.
    """

    def __init__(self, name: str, arena: Arena) -> None:
        self.name = name
        self.away = False
        self.keeps_data = True
        self._data: list[tuple[str, bytes]] = []
        self._arena = arena
        self._objects: dict[bytes, tuple[str, Any]] = {}
        self._is_busy = False
        self._waiting: OrderedDict[bytes, deque[trio.Event]] = OrderedDict()

    def __repr__(self) -> str:
        return f"MemoryToken({self.name}, {len(self._objects)} objects)"

    def statistics(self) -> TokenStatistics:
        """How it fares now."""
        return TokenStatistics(
            name=self.name,
            workers=int(not self.away),
            workers_max=1,
            busy=int(self._is_busy),
            starting=0,
            waiting=sum(len(events) for events in self._waiting.values()),
            login_epoch=1,
            breaker="open" if self.away else "closed",
            restarts=0,
            failed_logins=0,
            quarantined=0,
        )

    # Turns

    @asynccontextmanager
    async def _turn(self, deadline: float, tenant: bytes = SYSTEM_TENANT) -> AsyncIterator[None]:
        """Wait for this tenant's turn, and keep the token until the end.

        Raises:
            TokenDeadlineExceeded: It did not come in time.
            TokenUnavailable: The token is away.
        """
        if self._is_busy:
            await self._wait(deadline, tenant)
        elif time.monotonic() >= deadline:
            raise TokenDeadlineExceeded("the deadline passed in the queue")
        self._is_busy = True
        try:
            if self.away:
                raise TokenUnavailable("the token is away")
            await trio.lowlevel.checkpoint()
            yield
        finally:
            self._is_busy = False
            self._hand_on()

    async def _wait(self, deadline: float, tenant: bytes) -> None:
        event = trio.Event()
        self._waiting.setdefault(tenant, deque()).append(event)
        try:
            with trio.move_on_after(max(0.0, deadline - time.monotonic())):
                await event.wait()
        except trio.Cancelled:
            if event.is_set():
                self._hand_on()
            raise
        finally:
            self._leave(tenant, event)
        if not event.is_set():
            raise TokenDeadlineExceeded("the deadline passed in the queue")

    def _leave(self, tenant: bytes, event: trio.Event) -> None:
        queue = self._waiting.get(tenant)
        if queue is not None and event in queue:
            queue.remove(event)
        if queue is not None and not queue:
            self._waiting.pop(tenant, None)

    def _hand_on(self) -> None:
        """Let the next tenant in turn go on; it has the token from now."""
        self._is_busy = bool(self._waiting)
        if self._waiting:
            tenant, queue = next(iter(self._waiting.items()))
            self._waiting.move_to_end(tenant)
            event = queue.popleft()
            self._leave(tenant, event)
            event.set()

    # Keys

    def _find(self, key: HsmKey) -> Any:
        spec, found = self._objects.get(key.cka_id, ("", None))
        if spec != key.spec:
            raise KeyMissing(f"0 objects with CKA_ID {key.cka_id.hex()}")
        return found

    def _secret(self, key: HsmKey, role: str = "key") -> AESGCM:
        """A symmetric key that opens its proof, made for a role."""
        found = AESGCM(self._find(key))
        challenge, sealed = key.proof[:CHALLENGE_SIZE], key.proof[CHALLENGE_SIZE:]
        try:
            bound = _bound(key.cka_id, role)
            opened = found.decrypt(sealed[:IV_SIZE], sealed[IV_SIZE:], bound)
        except (InvalidTag, ValueError):
            opened = b""
        if opened != challenge or not challenge:
            raise KeyQuarantined(f"object {key.cka_id.hex()} is not the key it was")
        return found

    def _private(self, key: HsmKey) -> Any:
        """A private key that belongs to its public key."""
        found = self._find(key)
        if _spki_of(found) != key.public_key:
            raise KeyQuarantined(f"object {key.cka_id.hex()} is not the key it was")
        return found

    async def generate(
        self,
        spec: str,
        cka_id: bytes,
        *,
        deadline: float,
        role: str = "key",
        tenant: bytes = SYSTEM_TENANT,
    ) -> HsmKey:
        """Make an object."""
        async with self._turn(deadline, tenant):
            if spec not in KEY_SPECS or role not in ROLES:
                raise Unsupported(f"no key of spec {spec} and role {role} is made here")
            if cka_id in self._objects:
                raise InvalidInput(f"there is an object with CKA_ID {cka_id.hex()}")
            proof = public_key = b""
            if spec == "AES_256":
                material: Any = secrets.token_bytes(32)
                challenge, iv = secrets.token_bytes(CHALLENGE_SIZE), secrets.token_bytes(IV_SIZE)
                proof = (
                    challenge + iv + AESGCM(material).encrypt(iv, challenge, _bound(cka_id, role))
                )
            else:
                material = _make_private_key(spec)
                public_key = _spki_of(material)
            self._objects[cka_id] = (spec, material)
            return HsmKey(cka_id, spec, proof, public_key, role)

    async def destroy(self, key: HsmKey, *, deadline: float, tenant: bytes = SYSTEM_TENANT) -> None:
        """Destroy the object with the key's CKA_ID."""
        async with self._turn(deadline, tenant):
            self._objects.pop(key.cka_id, None)

    async def drop_key(self, key: HsmKey, *, deadline: float) -> None:
        """Nothing is kept of a key but the key."""

    async def list_objects(self, *, deadline: float) -> list[FoundObject]:
        """Keys in the token."""
        async with self._turn(deadline):
            return [
                FoundObject(
                    cka_id,
                    "SECRET_KEY" if spec == "AES_256" else "PRIVATE_KEY",
                    spec.partition("_")[0],
                )
                for cka_id, (spec, _) in self._objects.items()
            ]

    async def list_data(self, label: str, *, deadline: float) -> list[bytes]:
        """The values under a label."""
        async with self._turn(deadline):
            self._require_data()
            return [value for name, value in self._data if name == label]

    async def put_data(self, label: str, value: bytes, *, deadline: float) -> None:
        """Keep a value."""
        async with self._turn(deadline):
            self._require_data()
            if len(value) > DATA_SIZE_MAX:
                raise InvalidInput(f"a data object of {len(value)} bytes")
            if (label, value) not in self._data:
                self._data.append((label, value))

    async def remove_data(self, label: str, value: bytes, *, deadline: float) -> None:
        """Forget a value."""
        async with self._turn(deadline):
            self._require_data()
            if (label, value) in self._data:
                self._data.remove((label, value))

    def _require_data(self) -> None:
        if not self.keeps_data:
            raise Unsupported("this token keeps no data objects")

    async def prove(self, key: HsmKey, *, deadline: float, tenant: bytes = SYSTEM_TENANT) -> None:
        """Prove that the object is this key."""
        async with self._turn(deadline, tenant):
            if key.spec == "AES_256":
                self._secret(key, key.role)
            else:
                self._private(key)

    # Data

    async def encrypt(
        self,
        key: HsmKey,
        plaintexts: bytes,
        associated_data: bytes,
        *,
        deadline: float,
        tenant: bytes,
    ) -> BatchResult:
        """AES-GCM over a column."""

        def seal(found: AESGCM, item: bytes, aad: bytes) -> tuple[bytes, int]:
            iv = os.urandom(IV_SIZE)
            return iv + found.encrypt(iv, item, aad), 0

        return await self._crypt(key, plaintexts, associated_data, deadline, tenant, seal)

    async def decrypt(
        self, key: HsmKey, sealed: bytes, associated_data: bytes, *, deadline: float, tenant: bytes
    ) -> BatchResult:
        """Open a column of what `encrypt` made."""

        def open_item(found: AESGCM, item: bytes, aad: bytes) -> tuple[bytes, int]:
            try:
                return found.decrypt(item[:IV_SIZE], item[IV_SIZE:], aad), 0
            except (InvalidTag, ValueError):
                return b"", 1

        return await self._crypt(key, sealed, associated_data, deadline, tenant, open_item)

    async def _crypt(
        self,
        key: HsmKey,
        column: bytes,
        associated_data: bytes,
        deadline: float,
        tenant: bytes,
        do: Callable[[AESGCM, bytes, bytes], tuple[bytes, int]],
    ) -> BatchResult:
        items, aads = _paired(column, associated_data)
        done: list[tuple[bytes, int]] = []
        for start in range(0, max(1, len(items)), PART_ITEMS):
            stop = start + PART_ITEMS
            async with self._turn(deadline, tenant):
                found = self._secret(key)
                pairs = zip(items[start:stop], aads[start:stop], strict=True)
                done += [do(found, item, aad) for item, aad in pairs]
        outputs = pack_column([output for output, _ in done])
        return BatchResult(outputs, bytes(status for _, status in done))

    async def sign(
        self, key: HsmKey, algorithm: str, digest: bytes, *, deadline: float, tenant: bytes
    ) -> bytes:
        """Sign a digest."""
        async with self._turn(deadline, tenant):
            is_known = algorithm in ALGORITHMS
            if not is_known or ALGORITHMS[algorithm].family != KEY_SPECS[key.spec].family:
                raise Unsupported(f"a key of spec {key.spec} does not sign {algorithm}")
            found, chosen = self._private(key), _HASHES[algorithm[-3:]]
            if isinstance(found, ec.EllipticCurvePrivateKey):
                r, s = decode_dss_signature(found.sign(digest, ec.ECDSA(Prehashed(chosen))))
                size = (found.curve.key_size + 7) // 8
                return r.to_bytes(size, "big") + s.to_bytes(size, "big")
            pad = (
                padding.PSS(padding.MGF1(chosen), chosen.digest_size)
                if "PSS" in algorithm
                else padding.PKCS1v15()
            )
            signature: bytes = found.sign(digest, pad, Prehashed(chosen))
            return signature

    async def random(self, length: int, *, deadline: float, tenant: bytes = SYSTEM_TENANT) -> bytes:
        """Random bytes."""
        async with self._turn(deadline, tenant):
            return os.urandom(length)

    async def seal_slot(
        self,
        root: HsmKey,
        slot: int,
        associated_data: bytes,
        *,
        deadline: float,
        tenant: bytes = SYSTEM_TENANT,
    ) -> bytes:
        """Seal the key in an arena slot."""
        async with self._turn(deadline, tenant):
            page = bytearray(32)
            self._arena.store(slot, page)
            iv = os.urandom(IV_SIZE)
            return iv + self._secret(root).encrypt(iv, bytes(page), associated_data)

    async def open_slot(
        self,
        root: HsmKey,
        sealed: bytes,
        associated_data: bytes,
        *,
        deadline: float,
        tenant: bytes = SYSTEM_TENANT,
    ) -> int:
        """Open what `seal_slot` made."""
        async with self._turn(deadline, tenant):
            found = self._secret(root)
            try:
                opened = found.decrypt(sealed[:IV_SIZE], sealed[IV_SIZE:], associated_data)
            except (InvalidTag, ValueError):
                raise InvalidInput("the sealed key does not open under this root key") from None
            return self._arena.load(opened)


def _make_private_key(spec: str) -> Any:
    curve = _CURVES.get(spec)
    if curve is not None:
        return ec.generate_private_key(curve)
    return rsa.generate_private_key(65537, KEY_SPECS[spec].size_bits)


def _spki_of(key: Any) -> bytes:
    spki: bytes = key.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return spki


def _paired(column: bytes, associated_data: bytes) -> tuple[list[bytes], list[bytes]]:
    """Items and the associated data of each.

    Raises:
        ValueError: They do not fit.
    """
    try:
        items, aads = unpack_column(column), unpack_column(associated_data)
    except RemoteProtocolError as error:
        raise ValueError(str(error)) from None
    if len(aads) not in (1, len(items)):
        raise ValueError(f"{len(aads)} texts of associated data for {len(items)} items")
    return items, aads * len(items) if len(aads) == 1 else aads
