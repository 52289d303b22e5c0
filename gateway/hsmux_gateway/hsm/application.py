"""A worker's PKCS#11 application: sessions, the canary, and finding and proving keys.

Theory of operation
-------------------
Sessions. The login session is opened first, does nothing but keep the canary alive, and is closed
last, because closing the session that logged in logs the whole application out. The work session
does everything and is replaced alone (`renew`) when it answered anything but success or a proven
caller's fault: an error in the middle of an operation can leave a session unusable for good. A
token with few sessions gives a worker a single one; then to replace it is to end.

The canary is a key of this process alone, made at login. It sings when it decrypts a text of its
own. At login it is also asked to decrypt a changed text: a module that does so is refused, and the
code that it answers instead is what this module says of bad data. It has to say so `TRIES_TO_BLAME`
times, and to decrypt the right text before and after each: an error that comes in between must not
count as bad data for as long as the worker lives.

Keys. Handles never leave the process and are forgotten with the session they were found in, so an
old number never means another key. A key is looked up by CKA_ID, class and type, and there must be
exactly one. Before its first use in a session it proves to be the key it is taken for: a symmetric
key decrypts the challenge it encrypted when it was made, a private key signs and is verified with
the stored public key. It also has to say of itself that it is private and does not leave the token.
A key that fails is quarantined, but only when the canary sings in the same session.

A lookup that finds nothing in a token that now shows no object at all, and did show some before, is
no missing key: the token was taken away under us.
"""

import contextlib
import os
import secrets
from collections.abc import Iterator
from typing import Any, Final

import pkcs11
from pkcs11 import Attribute, KeyType, MechanismFlag, ObjectClass

from hsmux_native.pkcs11 import BAD_OUTPUT, IV_SIZE, Pkcs11Loop

from . import softhsm
from .codes import class_of, code_of
from .failures import Ending, Failure
from .function_list import CK_UNAVAILABLE, FunctionList
from .public_keys import verifies
from .specs import PROOF_ALGORITHM, REQUIRED, SPECS, Signing

__all__ = ["CHALLENGE_SIZE", "TRIES_TO_BLAME", "Application", "column_of", "only_item"]

CHALLENGE_SIZE: Final = 32
"""Bytes of the random text a symmetric key's proof encrypts."""

CANARY_TEXT: Final = b"hsmux canary"

TRIES_TO_BLAME: Final = 3
"""How often the same must fail while all else works, before its data are said to be bad."""


def column_of(item: bytes) -> bytes:
    """A column of one."""
    size = len(item).to_bytes(4, "big")
    return b"\0\0\0\x01\0\0\0\0" + size + item


def only_item(column: bytes) -> bytes:
    """The item of a column of one."""
    return column[12:]


def _only_token(module: str, token_label: str) -> Any:
    """The one token with a label.

    Raises:
        Failure: There is none, or there are several; the text says what to do.
    """
    tokens = [slot.get_token() for slot in pkcs11.lib(module).get_slots(token_present=True)]
    found = [token for token in tokens if _label(token) == token_label]
    if len(found) == 1:
        return found[0]
    if not tokens:
        raise Failure("token", 0xE0, "the module shows no token in any slot; is the HSM connected?")
    if found:
        text = f"{len(found)} tokens have the label {token_label!r}: only one may, see the vendor's"
        raise Failure("operator", 0xE0, f"{text} tools")
    labels = [repr(label) for token in tokens if (label := _label(token))]
    others = ", ".join(labels) or "empty ones are there"
    raise Failure(
        "operator",
        0xE0,
        f"no token has the label {token_label!r}, only {others}: initialise one "
        "(`hsmux hsm init-token --config FILE`) or correct token_label"
        f"{softhsm.whereabouts(os.environ)}",
    )


class Application:
    """One PKCS#11 application in this process.

    Args:
        module: The shared object to load: the adapter.
        token_label: Which token.

    Raises:
        Failure: There is no such token, or there are several.
    """

    def __init__(self, module: str, token_label: str) -> None:
        self.functions = FunctionList(module)
        self.loop = Pkcs11Loop(module)
        self.token = _only_token(module, token_label)
        self.manufacturer = str(self.token.manufacturer_id).strip("\0 ")
        self.session_number = 0
        # python-pkcs11's annotations leave out the handles of sessions and keys.
        self.work: Any = None
        self._login_session: Any = None
        self._is_single = False
        self._canary: Any = None
        self._canary_sealed = b""
        self._suspect_codes: set[int] = set()
        self._handles: dict[tuple[bytes, str], Any] = {}
        self._proven: dict[tuple[bytes, str], bytes] = {}
        self._had_objects = False

    def facts(self) -> dict[str, Any]:
        """What the daemon wants to know before anybody logs in."""
        serial = self.token.serial
        info = self.functions.token_info(self.token.slot.slot_id)
        limit = info.ulMaxSessionCount if info else 0
        return {
            "serial": serial.decode(errors="replace") if isinstance(serial, bytes) else str(serial),
            "manufacturer": self.manufacturer,
            "model": str(self.token.model).strip("\0 "),
            "flags": int(self.token.flags),
            "sessions_max": 0 if limit == CK_UNAVAILABLE else int(limit),
        }

    # Sessions

    def log_in(self, pin: str, *, is_single: bool) -> None:
        """Open the sessions and prove with a canary that they work.

        Raises:
            Failure: Of kind "auth" if the token refused the PIN.
        """
        self._is_single = is_single
        with self.translated("login"):
            self._login_session = self.token.open(rw=True, user_pin=pin)
        self._make_canary()
        with self.translated("open"):
            self._open_work_session()
        self._require_canary()
        with self.translated("find"):
            self._had_objects = self._has_objects()

    def _open_work_session(self) -> None:
        self.work = self._login_session if self._is_single else self.token.open(rw=True)
        self.session_number += 1
        self._handles.clear()
        self._proven.clear()

    def renew(self, failure: Failure) -> None:
        """Replace the work session after a failure; every key has to prove itself again.

        Raises:
            Ending: That is impossible, or the canary does not sing in the new one.
        """
        if self._is_single:
            raise Ending("single", failure.code, f"the only session failed: {failure.text}")
        with contextlib.suppress(pkcs11.exceptions.PKCS11Error):
            self.work.close()
        try:
            with self.translated("open"):
                self._open_work_session()
        except Failure as error:
            kind = error.kind if error.kind == "sessions" else "token"
            raise Ending(kind, error.code, f"no new session: {error.text}") from None
        self._require_canary()

    # The canary

    def _make_canary(self) -> None:
        with self.translated("generate"):
            self._canary = self._login_session.generate_key(
                KeyType.AES,
                256,
                store=False,
                capabilities=MechanismFlag.ENCRYPT | MechanismFlag.DECRYPT,
                template={Attribute.SENSITIVE: True, Attribute.EXTRACTABLE: False},
            )
        session = self._login_session
        code, self._canary_sealed = self.gcm_one(session, self._canary, CANARY_TEXT, b"", True)
        if code:
            raise self.failed(code, "encrypt", "the canary")
        self._suspect_codes = {self._learn_suspect_code()}

    def _learn_suspect_code(self) -> int:
        """What the module answers to a changed text, and to nothing else.

        Raises:
            Failure: It decrypts the changed text, or is too unsteady to learn from.
        """
        changed = self._canary_sealed[:-1] + bytes([self._canary_sealed[-1] ^ 1])
        codes = set()
        is_steady = self.canary_sings(self._login_session)
        for _ in range(TRIES_TO_BLAME):
            code, _ = self.gcm_one(self._login_session, self._canary, changed, b"", False)
            if code in (0, BAD_OUTPUT):
                raise Failure("module", 0, "the module decrypts under a wrong tag")
            codes.add(code)
            is_steady = is_steady and self.canary_sings(self._login_session)
        if not is_steady or len(codes) > 1:
            raise Failure("token", code, "the canary is answered now like this and now like that")
        return code

    def canary_sings(self, session: Any = None) -> bool:
        """Whether the token still does what it did at login."""
        within = session or self.work
        code, opened = self.gcm_one(within, self._canary, self._canary_sealed, b"", False)
        return code == 0 and opened == CANARY_TEXT

    def _require_canary(self) -> None:
        if not self.canary_sings():
            raise Ending("token", 0x05, "the canary does not decrypt any more")

    def keep_alive(self) -> None:
        """Use both sessions, before the token's own idle limit ends them.

        Raises:
            Ending: One does not work and cannot be replaced alone.
        """
        if not self.canary_sings(self._login_session):
            raise Ending("token", 0x05, "the login session does not work any more")
        if not self._is_single and not self.canary_sings():
            self.renew(Failure("session", 0x05, "the work session does not work any more"))

    # Codes

    def class_of(self, code: int, operation: str) -> str:
        """The class of a return code of this module."""
        kind = class_of(code, operation, self.manufacturer)
        if operation == "decrypt" and code in self._suspect_codes and kind != "caller":
            return "suspect"
        return kind

    @property
    def general_error_is_data(self) -> bool:
        """Whether a column goes on behind an item that was answered CKR_GENERAL_ERROR."""
        return self.class_of(0x05, "decrypt") == "suspect"

    def failed(self, code: int, operation: str, text: str) -> Failure:
        """The failure of a return code."""
        if code == BAD_OUTPUT:
            return Failure("wrong", 0, f"{text}: an output that cannot be right")
        kind = self.class_of(code, operation)
        if kind == "auth" and operation != "login":
            kind = "token"
        return Failure(kind, code, text)

    @contextlib.contextmanager
    def translated(self, operation: str) -> Iterator[None]:
        """python-pkcs11's exceptions as failures."""
        try:
            yield
        except pkcs11.exceptions.PKCS11Error as error:
            raise self.failed(code_of(error), operation, f"{operation}: {_name(error)}") from None

    # Keys

    def gcm_one(
        self, session: Any, key: Any, item: bytes, aad: bytes, encrypting: bool
    ) -> tuple[int, bytes]:
        """AES-GCM of one item: a return code, and its output."""
        outputs, codes = self.loop.gcm(
            session.handle,
            key.handle,
            column_of(item),
            column_of(aad),
            encrypting=encrypting,
            ivs=secrets.token_bytes(IV_SIZE) if encrypting else b"",
        )
        return codes[0], only_item(outputs)

    def _has_objects(self) -> bool:
        for _ in self.work.get_objects({Attribute.TOKEN: True}):
            return True
        return False

    def note_objects(self) -> None:
        """Objects were made or destroyed."""
        with self.translated("find"):
            self._had_objects = self._has_objects()

    def find(self, cka_id: bytes, object_class: ObjectClass, spec: str) -> Any:
        """The one object with this CKA_ID, class and type.

        Raises:
            Failure: There is none, or there are several.
            Ending: The token shows no object at all any more.
        """
        name = (cka_id, object_class.name)
        found = self._handles.get(name)
        if found is not None:
            return found
        template = {
            Attribute.CLASS: object_class,
            Attribute.ID: cka_id,
            Attribute.KEY_TYPE: SPECS[spec].key_type,
        }
        with self.translated("find"):
            objects = list(self.work.get_objects(template))
            is_gone = not objects and self._had_objects and not self._has_objects()
        if is_gone:
            raise Ending("token", 0xE0, "the token shows no object any more")
        if len(objects) != 1:
            raise Failure("missing", 0x82, f"{len(objects)} objects with CKA_ID {cka_id.hex()}")
        self._handles[name] = objects[0]
        return objects[0]

    def secret_key(self, cka_id: bytes, spec: str, proof: bytes) -> Any:
        """A symmetric key that has proven to be the one its proof was made with."""
        key = self.find(cka_id, ObjectClass.SECRET_KEY, spec)
        name = (cka_id, ObjectClass.SECRET_KEY.name)
        if self._proven.get(name) != proof:
            self.require_protected(key, cka_id)
            if not self.opens_proof(key, cka_id, proof):
                self.quarantine(cka_id)
            self._proven[name] = proof
        return key

    def opens_proof(self, key: Any, cka_id: bytes, proof: bytes) -> bool:
        """Whether a key decrypts its challenge; tried twice, because a token may stumble.

        Raises:
            Failure: The token could not try.
        """
        challenge, sealed = proof[:CHALLENGE_SIZE], proof[CHALLENGE_SIZE:]
        for _ in range(2):
            code, opened = self.gcm_one(self.work, key, sealed, cka_id, False)
            if code == 0 and len(challenge) == CHALLENGE_SIZE and opened == challenge:
                return True
            if code and self.class_of(code, "decrypt") not in ("caller", "suspect"):
                raise self.failed(code, "decrypt", "a key's proof could not be tried")
        return False

    def private_key(self, cka_id: bytes, spec: str, public_key: bytes) -> Any:
        """A private key that has proven to belong to its public key."""
        key = self.find(cka_id, ObjectClass.PRIVATE_KEY, spec)
        name = (cka_id, ObjectClass.PRIVATE_KEY.name)
        if self._proven.get(name) != public_key:
            self.require_protected(key, cka_id)
            algorithm = PROOF_ALGORITHM[SPECS[spec].key_type]
            digest = secrets.token_bytes(32)
            signatures = (self.sign_with(key, spec, algorithm, digest) for _ in range(2))
            if not any(verifies(public_key, algorithm.name, digest, s) for s in signatures):
                self.quarantine(cka_id)
            self._proven[name] = public_key
        return key

    def sign_with(self, key: Any, spec: str, algorithm: Signing, digest: bytes) -> bytes:
        """A signature over a digest; ECDSA as r ‖ s."""
        with self.translated("sign"):
            signature: bytes = key.sign(
                algorithm.prefix + digest,
                mechanism=algorithm.mechanism,
                mechanism_param=algorithm.parameter,
            )
        if len(signature) != SPECS[spec].signature_size:
            raise Failure("wrong", 0, f"sign: a signature of {len(signature)} bytes")
        return signature

    def require_protected(self, key: Any, cka_id: bytes) -> None:
        """Refuse an object that does not say that it stays in the token."""
        if self.unprotected(key):
            self.quarantine(cka_id, f"says that it is not {', '.join(self.unprotected(key))}")

    def unprotected(self, key: Any) -> list[str]:
        """What a key should say of itself to stay in the token, and does not."""
        with self.translated("read attributes"):
            return [name.name for name, value in REQUIRED.items() if key[name] != value]

    def quarantine(self, cka_id: bytes, why: str = "is not the key it was") -> None:
        """Refuse a key, if it is the key's fault.

        Raises:
            Failure: Of kind "quarantine" if the canary sings; else the session is to blame.
        """
        if not self.canary_sings():
            raise Failure("session", 0x05, "a key could not be proven, nor does the canary sing")
        raise Failure("quarantine", 0, f"object {cka_id.hex()} {why}")

    def drop(self, cka_id: bytes) -> None:
        """Forget a key."""
        for name in [name for name in self._handles if name[0] == cka_id]:
            del self._handles[name]
            self._proven.pop(name, None)


def _label(token: Any) -> str:
    return str(token.label).strip("\0 ")


def _name(error: Exception) -> str:
    return " ".join(filter(None, (type(error).__name__, str(error))))
