"""A row sealer over AES-256-GCM of `cryptography`."""

import hmac
import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from hsmux_gateway.store import InvalidSeal

NONCE_SIZE = 12


class AesSealer:
    """Seals rows under one random, or one given, key."""

    def __init__(self, key: bytes | None = None) -> None:
        material = os.urandom(48) if key is None else key
        self.kek_id = material[:16]
        self.material = material
        self._aead = AESGCM(material[16:])

    def seal(self, associated_data: bytes, secret: bytes) -> bytes:
        nonce = os.urandom(NONCE_SIZE)
        return nonce + self._aead.encrypt(nonce, secret, associated_data)

    def open(self, associated_data: bytes, sealed: bytes) -> bytes:
        try:
            return self._aead.decrypt(sealed[:NONCE_SIZE], sealed[NONCE_SIZE:], associated_data)
        except (InvalidTag, ValueError) as error:
            raise InvalidSeal from error

    def fingerprint(self, sealed: bytes) -> bytes:
        return hmac.digest(self.material, sealed, "sha512")
