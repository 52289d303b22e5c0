"""Keys whose values the test knows, so that it can tell under which key an output is.

Run as a program: it makes them in the token that the environment names, from the values on stdin,
renames or lists what is there, all through the vendor's module itself.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from hsmux_gateway.hsm.settings import TokenSettings
from hsmux_gateway.hsm.token import HsmKey
from hsmux_native import adapter_path


@dataclass(frozen=True)
class KnownKey:
    """A token object and its value."""

    key: HsmKey
    value: bytes

    def opens(self, sealed: bytes, aad: bytes) -> bytes | None:
        """What an output is under this key; None if it is under another."""
        try:
            return AESGCM(self.value).decrypt(sealed[:12], sealed[12:], aad)
        except InvalidTag:
            return None


def make_known_keys(settings: TokenSettings, pin: str, count: int) -> list[KnownKey]:
    """Make keys in a token, each with the proof it would have been given."""
    made = [(os.urandom(16), os.urandom(32)) for _ in range(count)]
    values = [[cka_id.hex(), value.hex()] for cka_id, value in made]
    run_program(settings, "make", pin, json.dumps(values))
    known = []
    for cka_id, value in made:
        challenge, iv = os.urandom(32), os.urandom(12)
        proof = challenge + iv + AESGCM(value).encrypt(iv, challenge, cka_id)
        known.append(KnownKey(HsmKey(cka_id, "AES_256", proof, b""), value))
    return known


def swap_names(settings: TokenSettings, pin: str, first: HsmKey, second: HsmKey) -> None:
    """Exchange the CKA_IDs of two objects, as somebody could with a vendor's tool."""
    names = json.dumps([first.cka_id.hex(), second.cka_id.hex()])
    run_program(settings, "swap", pin, names)


def run_program(settings: TokenSettings, what: str, pin: str, text: str) -> str:
    """Run this file in a process of its own; what it prints."""
    environment = {
        **os.environ,
        **{n: v for n, v in settings.environment.items() if not n.startswith("HSMUX_")},
        "HSMUX_ADAPTER_MODULE": settings.module,
        "HSMUX_ADAPTER_PARAMETERS": settings.parameters,
    }
    if not settings.parameters:
        del environment["HSMUX_ADAPTER_PARAMETERS"]
    command = [sys.executable, __file__, what, settings.token_label, pin]
    done = subprocess.run(
        command, input=text, env=environment, text=True, check=True, timeout=60, capture_output=True
    )
    return done.stdout


def _program() -> None:
    import pkcs11
    from pkcs11 import Attribute, KeyType, ObjectClass

    what, label, pin = sys.argv[1:]
    session: Any = (
        pkcs11.lib(adapter_path()).get_token(token_label=label).open(rw=True, user_pin=pin)
    )
    if what == "list":
        print(sorted(str(found) for found in session.get_objects({Attribute.TOKEN: True})))
        return
    given = json.loads(sys.stdin.read())
    if what == "make":
        for cka_id, value in given:
            session.create_object(
                {
                    Attribute.CLASS: ObjectClass.SECRET_KEY,
                    Attribute.KEY_TYPE: KeyType.AES,
                    Attribute.ID: bytes.fromhex(cka_id),
                    Attribute.VALUE: bytes.fromhex(value),
                    Attribute.TOKEN: True,
                    Attribute.PRIVATE: True,
                    Attribute.SENSITIVE: True,
                    Attribute.EXTRACTABLE: False,
                    Attribute.ENCRYPT: True,
                    Attribute.DECRYPT: True,
                }
            )
    else:
        names = [bytes.fromhex(name) for name in given]
        objects = [next(iter(session.get_objects({Attribute.ID: name}))) for name in names]
        for found, name in zip(objects, reversed(names), strict=True):
            found[Attribute.ID] = name


if __name__ == "__main__":
    _program()
