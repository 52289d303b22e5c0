"""One bare PKCS#11 session that encrypts: what a worker is measured against.

It reaches the token through the same adapter and encrypts with the same C loop as a worker does,
under a key that is already in the token. Everything a worker has besides is left out: the message,
the proof, the canary, the statuses. Programs that serve anybody use `worker`.
"""

import os
import secrets
from typing import Any

import pkcs11
from pkcs11 import Attribute, KeyType, ObjectClass

from hsmux_native import adapter_path
from hsmux_native.pkcs11 import IV_SIZE, Pkcs11Loop

from .errors import TokenUnavailable
from .settings import TokenSettings

__all__ = ["RawSession"]


class RawSession:
    """Logs in to a token and finds its one AES key of the role `key`.

    A gateway's workers must have logged in before: some modules rewrite their token's file then.

    Args:
        settings: How the token is reached; its environment becomes this process'.

    Raises:
        TokenUnavailable: There is no such token, or not exactly one such key in it.
    """

    def __init__(self, settings: TokenSettings) -> None:
        os.environ.update(settings.environment)
        os.environ["HSMUX_ADAPTER_MODULE"] = settings.module
        if settings.parameters:
            os.environ["HSMUX_ADAPTER_PARAMETERS"] = settings.parameters
        module = adapter_path()
        token = pkcs11.lib(module).get_token(token_label=settings.token_label)
        pin = settings.pin_path().read_text(encoding="utf-8").rstrip("\r\n")
        # python-pkcs11's annotations leave out the handles of sessions and keys.
        self._session: Any = token.open(rw=True, user_pin=pin)
        self._loop = Pkcs11Loop(module)
        template = {
            Attribute.CLASS: ObjectClass.SECRET_KEY,
            Attribute.KEY_TYPE: KeyType.AES,
            Attribute.LABEL: "hsmux key",
        }
        found: list[Any] = list(self._session.get_objects(template))
        if len(found) != 1:
            raise TokenUnavailable(f"{len(found)} AES keys in {settings.token_label}, not one")
        self._key = found[0]

    def encrypt(self, items: bytes, associated_data: bytes) -> tuple[bytes, list[int]]:
        """AES-GCM over a column: a column of IV ‖ ciphertext ‖ tag, and a code an item."""
        count = int.from_bytes(items[:4], "big")
        return self._loop.gcm(
            self._session.handle,
            self._key.handle,
            items,
            associated_data,
            encrypting=True,
            ivs=secrets.token_bytes(IV_SIZE * count),
        )

    def decrypt(self, items: bytes, associated_data: bytes) -> tuple[bytes, list[int]]:
        """The way back."""
        return self._loop.gcm(
            self._session.handle, self._key.handle, items, associated_data, encrypting=False
        )
