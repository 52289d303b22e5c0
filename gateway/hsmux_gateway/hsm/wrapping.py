"""The wrapping key: made to wrap and unwrap other keys and nothing else, and how it proves itself.

A key that wraps must not decrypt: with both, whoever may use it wraps a key and decrypts the result
to the key's bytes. So the wrapping key cannot open a challenge as other symmetric keys do. Instead
it wraps a canary, a session key that is sensitive and destroyed at once, and the canary seals the
challenge. The key that unwraps this canary, so that it opens the challenge, is the one it was.

That is also what keys that live outside the token, wrapped, will have done to them: made sensitive
and extractable, wrapped once, and from then on only unwrapped as session keys that cannot leave. A
token that cannot do all of it has no wrapping key, and says so when one is made.

Modules differ in the mechanism; which one works is found out once and stands in the proof. Formats:
RFC 3394 and RFC 5649; what NSS calls CKM_AES_KEY_WRAP_PAD is RFC 3394 over PKCS#7 padding.
"""

import secrets
from typing import Any, Final, NamedTuple

import msgpack
from pkcs11 import Attribute, KeyType, Mechanism, MechanismFlag, ObjectClass

from .application import CHALLENGE_SIZE, Application
from .failures import Ending, Failure
from .function_list import plain_mechanism

__all__ = ["make_wrapping_proof", "require_wrapping_key"]

MECHANISMS: Final = (
    Mechanism.AES_KEY_WRAP_KWP,
    Mechanism.AES_KEY_WRAP_PAD,
    Mechanism.AES_KEY_WRAP,
)
"""In the order in which they are tried: RFC 5649 under its own name first."""

CANARY_BITS: Final = 256

_INSIDE: Final = {Attribute.SENSITIVE: True, Attribute.EXTRACTABLE: False}
_CRYPT: Final = MechanismFlag.ENCRYPT | MechanismFlag.DECRYPT


class _Proof(NamedTuple):
    """What is stored of a wrapping key.

    Attributes:
        mechanism: The number of the mechanism that works.
        wrapped: The canary, wrapped.
        challenge: 32 random bytes.
        sealed: The challenge under the canary: IV 12 ‖ ciphertext ‖ tag 16, bound to the CKA_ID.
    """

    mechanism: int
    wrapped: bytes
    challenge: bytes
    sealed: bytes


def make_wrapping_proof(application: Application, key: Any, cka_id: bytes) -> bytes:
    """The proof of a new wrapping key, made with the first mechanism that really works.

    Raises:
        Failure: "unsupported" if none does.
    """
    why = ""
    for mechanism in MECHANISMS:
        try:
            proof = _try_mechanism(application, key, cka_id, mechanism)
        except Ending:
            raise
        except Failure as failure:
            why = failure.text
            continue
        if _opens(application, key, cka_id, proof):
            data: bytes = msgpack.packb(list(proof))
            return data
        why = f"{mechanism.name} gave another key back"
    raise Failure("unsupported", 0, f"no wrapping mechanism works in this token: {why}")


def require_wrapping_key(application: Application, key: Any, cka_id: bytes, proof: bytes) -> None:
    """Refuse an object that is not the wrapping key its proof was made with.

    Raises:
        Failure: Of kind "quarantine" if it is not, and it is not the session's fault.
    """
    try:
        parsed = _Proof(*msgpack.unpackb(proof))
    except (ValueError, TypeError):
        raise Failure("quarantine", 0, "the proof of the wrapping key is malformed") from None
    if not any(_opens(application, key, cka_id, parsed) for _ in range(2)):
        application.quarantine(cka_id)


def _try_mechanism(
    application: Application, key: Any, cka_id: bytes, mechanism: Mechanism
) -> _Proof:
    with application.translated("wrap"):
        canary: Any = application.work.generate_key(
            KeyType.AES,
            CANARY_BITS,
            store=False,
            capabilities=_CRYPT,
            template={Attribute.SENSITIVE: True, Attribute.EXTRACTABLE: True},
        )
    try:
        challenge = secrets.token_bytes(CHALLENGE_SIZE)
        code, sealed = application.gcm_one(application.work, canary, challenge, cka_id, True)
        if code:
            raise application.failed(code, "encrypt", "the canary of a wrapping key")
        code, wrapped = application.functions.wrap_key(
            application.work.handle, key.handle, canary.handle, plain_mechanism(mechanism)
        )
        if code:
            raise application.failed(code, "wrap", mechanism.name)
    finally:
        with application.translated("destroy"):
            canary.destroy()
    return _Proof(int(mechanism), wrapped, challenge, sealed)


def _opens(application: Application, key: Any, cka_id: bytes, proof: _Proof) -> bool:
    """Whether a key unwraps the canary, as a key that cannot leave, and it opens the challenge."""
    try:
        with application.translated("unwrap"):
            canary: Any = key.unwrap_key(
                ObjectClass.SECRET_KEY,
                KeyType.AES,
                proof.wrapped,
                mechanism=Mechanism(proof.mechanism),
                store=False,
                capabilities=_CRYPT,
                template=dict(_INSIDE),
            )
    except Ending:
        raise
    except Failure as failure:
        # A wrong key is answered like a broken device by some; the canary of the session decides.
        if failure.kind == "busy":
            raise
        return False
    try:
        with application.translated("read attributes"):
            stays = all(canary[name] == value for name, value in _INSIDE.items())
        code, opened = application.gcm_one(application.work, canary, proof.sealed, cka_id, False)
    finally:
        with application.translated("destroy"):
            canary.destroy()
    return stays and code == 0 and opened == proof.challenge
