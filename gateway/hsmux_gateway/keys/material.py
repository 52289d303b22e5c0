"""Software key material: sealed in the store, open only in the arena.

Theory of operation
-------------------
A version's `material` is a blob sealed under the key-encryption key, bound to deployment, key,
version and spec, so that it opens only as what it was made for. A symmetric key goes from the blob
into an arena slot inside the C module; its bytes are never a Python object. `slot_of` keeps as
many slots as the arena has, least recently used out first; `drop` frees the slots of a key that
changed, at once.

A private key goes from the blob into the arena and from there, through a view of arena memory,
into a `cryptography` object. Those objects hold key bytes on OpenSSL's heap, which is a
documented limit; they are few and short-lived: at most `private_keys_max`, at most `idle_s`
seconds unused.

All of this belongs to the event loop: no thread opens, drops or looks up anything here.
"""

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

import msgpack
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from hsmux_native import Arena, ArenaFull

from ..store.rows import KeyVersionRow

__all__ = ["Materials", "PrivateKey", "generate_private_key"]

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey

_CURVES: Final[dict[str, ec.EllipticCurve]] = {"EC_P256": ec.SECP256R1(), "EC_P384": ec.SECP384R1()}
RSA_PUBLIC_EXPONENT: Final = 65537


def generate_private_key(spec: str) -> PrivateKey:
    """A new private key; blocks for up to seconds for RSA."""
    curve = _CURVES.get(spec)
    if curve is not None:
        return ec.generate_private_key(curve)
    return rsa.generate_private_key(RSA_PUBLIC_EXPONENT, int(spec.removeprefix("RSA_")))


class Materials:
    """Seals, opens and keeps software key material.

    Args:
        arena: The process's key memory.
        kek_slot: The arena slot of the key-encryption key.
        deployment: 16 bytes, bound into every seal.
        private_keys_max: Private key objects kept.
        idle_s: Seconds an unused one is kept.
    """

    def __init__(
        self,
        arena: Arena,
        kek_slot: int,
        deployment: bytes,
        *,
        private_keys_max: int,
        idle_s: float,
    ) -> None:
        self.arena = arena
        self._kek_slot = kek_slot
        self._deployment = deployment
        self._private_keys_max = private_keys_max
        self._idle_s = idle_s
        self._slots: OrderedDict[tuple[bytes, int], int] = OrderedDict()
        self._private_keys: OrderedDict[tuple[bytes, int], tuple[PrivateKey, float]] = OrderedDict()

    def __repr__(self) -> str:
        return f"Materials({len(self._slots)} slots, {len(self._private_keys)} private keys)"

    def _bound_to(self, purpose: str, key_id: bytes, version: int) -> bytes:
        data: bytes = msgpack.packb([self._deployment, purpose, key_id, version])
        return data

    def make_symmetric(self, key_id: bytes, version: int) -> bytes:
        """A new AES-256 key as a sealed blob; it is not kept open."""
        slot = self._with_room(self.arena.generate)
        try:
            return self.arena.seal_slot(
                self._kek_slot, self._bound_to("symmetric", key_id, version), slot
            )
        finally:
            self.arena.free(slot)

    def seal_private_key(self, key: PrivateKey, key_id: bytes, version: int) -> bytes:
        """A private key as a sealed blob."""
        der = key.private_bytes(
            serialization.Encoding.DER,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        return self.arena.seal_bytes(
            self._kek_slot, self._bound_to("private", key_id, version), der
        )

    def seal_proof(self, proof: bytes, key_id: bytes, version: int) -> bytes:
        """What proves a token object to be this key, sealed."""
        return self.arena.seal_bytes(
            self._kek_slot, self._bound_to("proof", key_id, version), proof
        )

    def open_proof(self, version: KeyVersionRow) -> bytes:
        """The proof of a token object."""
        bound_to = self._bound_to("proof", version.key_id, version.version)
        return self.arena.open_bytes(self._kek_slot, bound_to, version.proof)

    def slot_of(self, version: KeyVersionRow) -> int:
        """The arena slot of a symmetric key version, opened if need be."""
        name = (version.key_id, version.version)
        slot = self._slots.get(name)
        if slot is None:
            bound_to = self._bound_to("symmetric", *name)
            slot = self._with_room(
                lambda: self.arena.open_slot(self._kek_slot, bound_to, version.material)
            )
            self._slots[name] = slot
        else:
            self._slots.move_to_end(name)
        return slot

    def _with_room(self, make: Callable[[], int]) -> int:
        """Make a slot; when the arena is full, free the slot that was unused longest first."""
        while True:
            try:
                return make()
            except ArenaFull:
                if not self._slots:
                    raise
                _, oldest = self._slots.popitem(last=False)
                self.arena.free(oldest)

    def private_key(self, version: KeyVersionRow) -> PrivateKey:
        """The private key of a version; opening it takes a fraction of a millisecond."""
        name = (version.key_id, version.version)
        now = time.monotonic()
        kept = self._private_keys.pop(name, None)
        key = kept[0] if kept else self._open_private_key(version)
        self._private_keys[name] = (key, now)
        self.forget_idle(now)
        return key

    def _open_private_key(self, version: KeyVersionRow) -> PrivateKey:
        bound_to = self._bound_to("private", version.key_id, version.version)
        blob = self.arena.open_blob(self._kek_slot, bound_to, version.material)
        try:
            # Its origin and integrity are sealed, so OpenSSL need not test the primes again.
            key = serialization.load_der_private_key(
                self.arena.blob(blob), None, unsafe_skip_rsa_key_validation=True
            )
        finally:
            self.arena.free_blob(blob)
        assert isinstance(key, PrivateKey)
        return key

    def forget_idle(self, now: float) -> None:
        """Drop private keys unused for too long, or too many; `now` is `time.monotonic()`."""
        while self._private_keys:
            name, (_, used) = next(iter(self._private_keys.items()))
            if now - used <= self._idle_s and len(self._private_keys) <= self._private_keys_max:
                return
            del self._private_keys[name]

    def drop(self, key_id: bytes) -> None:
        """Forget everything open of a key, because it changed."""
        for name in [name for name in self._slots if name[0] == key_id]:
            self.arena.free(self._slots.pop(name))
        for name in [name for name in self._private_keys if name[0] == key_id]:
            del self._private_keys[name]
