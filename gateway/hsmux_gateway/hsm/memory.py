"""The in-memory twin of a token: the same behaviour without any HSM.

It keeps what PKCS#11 modules keep and answers what they answer, with `cryptography` underneath. The
conformance suite that real tokens pass runs on it too. Keys are ordinary Python objects: it is no
place for a key that matters.
"""

import os
import secrets
import time
from typing import Any, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed, decode_dss_signature
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from hsmux_native import Arena
from hsmux_protocol.columns import pack_column, unpack_column

from .errors import (
    InvalidInput,
    KeyMissing,
    KeyQuarantined,
    TokenDeadlineExceeded,
    TokenUnavailable,
)
from .token import BatchResult, FoundObject, HsmKey, TokenStatistics

__all__ = ["MemoryToken"]

CHALLENGE_SIZE: Final = 32
IV_SIZE: Final = 12

_HASHES: Final = {"256": hashes.SHA256(), "384": hashes.SHA384(), "512": hashes.SHA512()}
_CURVES: Final[dict[str, ec.EllipticCurve]] = {"EC_P256": ec.SECP256R1(), "EC_P384": ec.SECP384R1()}


class MemoryToken:
    """A token in this process; satisfies `Token`.

    Args:
        name: As configured.
        arena: For keys that a root key seals and opens.
    """

    def __init__(self, name: str, arena: Arena) -> None:
        self.name = name
        self.away = False
        self._arena = arena
        self._objects: dict[bytes, tuple[str, Any]] = {}

    def __repr__(self) -> str:
        return f"MemoryToken({self.name}, {len(self._objects)} objects)"

    def statistics(self) -> TokenStatistics:
        """How it fares now."""
        breaker = "open" if self.away else "closed"
        return TokenStatistics(self.name, int(not self.away), 0, 0, 0, 1, breaker, 0, 0)

    def _enter(self, deadline: float) -> None:
        if time.monotonic() >= deadline:
            raise TokenDeadlineExceeded("the deadline passed in the queue")
        if self.away:
            raise TokenUnavailable("the token is away")

    def _find(self, key: HsmKey, deadline: float) -> Any:
        self._enter(deadline)
        spec, found = self._objects.get(key.cka_id, ("", None))
        if spec != key.spec:
            raise KeyMissing(f"0 objects with CKA_ID {key.cka_id.hex()}")
        return found

    def _secret(self, key: HsmKey, deadline: float) -> AESGCM:
        found = AESGCM(self._find(key, deadline))
        challenge, sealed = key.proof[:CHALLENGE_SIZE], key.proof[CHALLENGE_SIZE:]
        try:
            opened = found.decrypt(sealed[:IV_SIZE], sealed[IV_SIZE:], key.cka_id)
        except (InvalidTag, ValueError):
            opened = b""
        if opened != challenge or not challenge:
            raise KeyQuarantined(f"object {key.cka_id.hex()} is not the key it was")
        return found

    async def generate(
        self, spec: str, cka_id: bytes, *, deadline: float, role: str = "key"
    ) -> HsmKey:
        """Make an object."""
        self._enter(deadline)
        proof = public_key = b""
        if spec == "AES_256":
            material: Any = secrets.token_bytes(32)
            challenge, iv = secrets.token_bytes(CHALLENGE_SIZE), secrets.token_bytes(IV_SIZE)
            if role != "wrapping":
                proof = challenge + iv + AESGCM(material).encrypt(iv, challenge, cka_id)
        else:
            curve = _CURVES.get(spec)
            material = (
                ec.generate_private_key(curve)
                if curve
                else rsa.generate_private_key(65537, int(spec.removeprefix("RSA_")))
            )
            public_key = material.public_key().public_bytes(
                serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
            )
        self._objects[cka_id] = (spec, material)
        return HsmKey(cka_id, spec, proof, public_key)

    async def destroy(self, key: HsmKey, *, deadline: float) -> None:
        """Destroy the object with the key's CKA_ID."""
        self._enter(deadline)
        self._objects.pop(key.cka_id, None)

    async def list_objects(self, *, deadline: float) -> list[FoundObject]:
        """Keys in the token."""
        self._enter(deadline)
        return [
            FoundObject(
                cka_id,
                "SECRET_KEY" if spec == "AES_256" else "PRIVATE_KEY",
                spec.partition("_")[0],
            )
            for cka_id, (spec, _) in self._objects.items()
        ]

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
        found = self._secret(key, deadline)
        items, aads = _paired(plaintexts, associated_data)
        outputs = []
        for item, aad in zip(items, aads, strict=True):
            iv = os.urandom(IV_SIZE)
            outputs.append(iv + found.encrypt(iv, item, aad))
        return BatchResult(pack_column(outputs), bytes(len(items)))

    async def decrypt(
        self, key: HsmKey, sealed: bytes, associated_data: bytes, *, deadline: float, tenant: bytes
    ) -> BatchResult:
        """Open a column of what `encrypt` made."""
        found = self._secret(key, deadline)
        outputs, statuses = [], bytearray()
        for item, aad in zip(*_paired(sealed, associated_data), strict=True):
            try:
                outputs.append(found.decrypt(item[:IV_SIZE], item[IV_SIZE:], aad))
                statuses.append(0)
            except (InvalidTag, ValueError):
                outputs.append(b"")
                statuses.append(1)
        return BatchResult(pack_column(outputs), bytes(statuses))

    async def sign(
        self, key: HsmKey, algorithm: str, digest: bytes, *, deadline: float, tenant: bytes
    ) -> bytes:
        """Sign a digest."""
        found = self._find(key, deadline)
        chosen = _HASHES[algorithm[-3:]]
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

    async def random(self, length: int, *, deadline: float) -> bytes:
        """Random bytes."""
        self._enter(deadline)
        return os.urandom(length)

    async def seal_slot(
        self, root: HsmKey, slot: int, associated_data: bytes, *, deadline: float
    ) -> bytes:
        """Seal the key in an arena slot."""
        page = bytearray(32)
        self._arena.store(slot, page)
        iv = os.urandom(IV_SIZE)
        return iv + self._secret(root, deadline).encrypt(iv, bytes(page), associated_data)

    async def open_slot(
        self, root: HsmKey, sealed: bytes, associated_data: bytes, *, deadline: float
    ) -> int:
        """Open what `seal_slot` made."""
        found = self._secret(root, deadline)
        try:
            opened = found.decrypt(sealed[:IV_SIZE], sealed[IV_SIZE:], associated_data)
        except (InvalidTag, ValueError):
            raise InvalidInput("the sealed key does not open under this root key") from None
        return self._arena.load(opened)

    async def prove(self, key: HsmKey, *, deadline: float) -> None:
        """Prove that the object is this key."""
        if key.spec == "AES_256":
            self._secret(key, deadline)
        else:
            self._find(key, deadline)


def _paired(column: bytes, associated_data: bytes) -> tuple[list[bytes], list[bytes]]:
    """Items and the associated data of each."""
    items, aads = unpack_column(column), unpack_column(associated_data)
    return items, aads * len(items) if len(aads) == 1 else aads
