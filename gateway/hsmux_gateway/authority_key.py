"""Private keys of the deployment's own, of its CA and its audit log: a token object behind
`cryptography`'s interface, or a sealed software key.

`cryptography`'s certificate builders take any `EllipticCurvePrivateKey`. `TokenPrivateKey` is one
whose `sign` asks the token: it hashes, has the digest signed there and turns r ‖ s into DER. The
builders call it in a thread, so it comes back to the event loop for the token and may block.
"""

import time
from collections.abc import Mapping
from typing import Any, Final

import msgpack
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from hsmux_native import Arena

from .fairness import SYSTEM_TENANT
from .hsm.token import HsmKey, Token
from .keys.signing import der_from_raw
from .store.rows import GatewayKeyRow

__all__ = [
    "DeploymentAuthority",
    "TokenPrivateKey",
    "open_own_key",
    "sealed_material",
    "token_private_key",
]

SIGN_TIMEOUT_S: Final = 10.0
"""Seconds the token has for one signature."""


class TokenPrivateKey(ec.EllipticCurvePrivateKey):
    """An EC P-256 private key that stays in its token; it signs with SHA-256 only."""

    def __init__(self, token: Token, key: HsmKey) -> None:
        public_key = serialization.load_der_public_key(key.public_key)
        assert isinstance(public_key, ec.EllipticCurvePublicKey)
        self._token = token
        self._key = key
        self._public_key = public_key

    def __copy__(self) -> "TokenPrivateKey":
        """The key itself: it is immutable."""
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> "TokenPrivateKey":
        """The key itself: it is immutable."""
        return self

    @property
    def curve(self) -> ec.EllipticCurve:
        """P-256."""
        return self._public_key.curve

    @property
    def key_size(self) -> int:
        """Bits of the curve's order."""
        return self._public_key.key_size

    def public_key(self) -> ec.EllipticCurvePublicKey:
        """The public key."""
        return self._public_key

    def sign(self, data: Any, signature_algorithm: ec.EllipticCurveSignatureAlgorithm) -> bytes:
        """An ECDSA signature as DER; blocks, so only in a thread of `trio.to_thread`.

        Raises:
            TokenError: The token did not sign.
            ValueError: The hash is not SHA-256.
        """
        if not isinstance(signature_algorithm.algorithm, hashes.SHA256):
            raise ValueError("it signs with SHA-256")
        digest = hashes.Hash(hashes.SHA256())
        digest.update(data)
        return der_from_raw(trio.from_thread.run(self._sign, digest.finalize()))

    async def _sign(self, digest: bytes) -> bytes:
        deadline = time.monotonic() + SIGN_TIMEOUT_S
        return await self._token.sign(
            self._key, "ECDSA_SHA_256", digest, deadline=deadline, tenant=SYSTEM_TENANT
        )

    def exchange(self, algorithm: ec.ECDH, peer_public_key: ec.EllipticCurvePublicKey) -> bytes:
        """Refused: the key only signs."""
        raise TypeError("the key only signs")

    def private_numbers(self) -> ec.EllipticCurvePrivateNumbers:
        """Refused: the key does not leave its token."""
        raise TypeError("the key does not leave its token")

    def private_bytes(
        self,
        encoding: serialization.Encoding,
        format: serialization.PrivateFormat,
        encryption_algorithm: serialization.KeySerializationEncryption,
    ) -> bytes:
        """Refused: the key does not leave its token."""
        raise TypeError("the key does not leave its token")


def token_private_key(token: Token, key: HsmKey) -> ec.EllipticCurvePrivateKey:
    """A token object as a private key for `cryptography`."""
    return TokenPrivateKey(token, key)


def _bound_to(deployment: bytes, name: str) -> bytes:
    data: bytes = msgpack.packb([deployment, "gateway-key", name])
    return data


def sealed_material(
    arena: Arena, kek_slot: int, deployment: bytes, name: str, key: ec.EllipticCurvePrivateKey
) -> bytes:
    """A software key, sealed under its name."""
    der = key.private_bytes(
        serialization.Encoding.DER,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return arena.seal_bytes(kek_slot, _bound_to(deployment, name), der)


def open_own_key(
    row: GatewayKeyRow,
    tokens: Mapping[str, Token],
    arena: Arena,
    kek_slot: int,
    deployment: bytes,
) -> ec.EllipticCurvePrivateKey:
    """The private key of a row; using it blocks, so only in a thread."""
    if row.token:
        key = HsmKey(row.cka_id, row.spec, row.proof, row.public_key)
        return TokenPrivateKey(tokens[row.token], key)
    blob = arena.open_blob(kek_slot, _bound_to(deployment, row.name), row.material)
    try:
        private_key = serialization.load_der_private_key(arena.blob(blob), None)
    finally:
        arena.free_blob(blob)
    assert isinstance(private_key, ec.EllipticCurvePrivateKey)
    return private_key


class DeploymentAuthority:
    """The deployment's CA.

    Attributes:
        certificate: The CA's certificate.
    """

    def __init__(
        self,
        row: GatewayKeyRow,
        tokens: Mapping[str, Token],
        arena: Arena,
        kek_slot: int,
        deployment: bytes,
    ) -> None:
        self.certificate = x509.load_der_x509_certificate(row.certificate)
        self._row = row
        self._tokens = tokens
        self._arena = arena
        self._kek_slot = kek_slot
        self._deployment = deployment

    def open_key(self) -> ec.EllipticCurvePrivateKey:
        """The CA's private key; using it blocks, so only in a thread."""
        return open_own_key(self._row, self._tokens, self._arena, self._kek_slot, self._deployment)
