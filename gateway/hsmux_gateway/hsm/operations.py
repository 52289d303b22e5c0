"""What a worker is asked to do, and the ladder of what it tries when that fails.

    1. what was never asked of the token, and what it cannot do at all, is told at once
    2. anything else: the work session is replaced, and the canary has to sing in the new one; does
       it not, the worker ends, and a new one with a new C_Initialize and login is the next rung
    3. what may be repeated is done once more in the new session
    4. still failing, it is told, and the pool tries it once more with another worker

So a code that speaks of the device is believed only when the canary agrees; a key or an input that
makes a module answer CKR_DEVICE_ERROR costs no worker. A change that failed is undone before it is
told, so it may be tried again like everything else; where that is impossible its outcome is
unknown.
"""

import secrets
import time
from collections.abc import Callable
from typing import Any, Final

from pkcs11 import Attribute, KeyType, Mechanism, MechanismFlag, ObjectClass
from pkcs11.util.ec import encode_ec_public_key, encode_named_curve_parameters

from hsmux_native.pkcs11 import IV_SIZE, SecretPage

from . import softhsm
from .application import CHALLENGE_SIZE, TRIES_TO_BLAME, Application
from .column_run import ColumnRun, Sampler
from .data_objects import DataObjects
from .failures import Ending, Failure
from .progress import Progress
from .public_keys import spki_of_rsa, verifies
from .specs import ALGORITHMS, CURVES, REQUIRED, ROLES, SPECS
from .wrapping import make_wrapping_proof, require_wrapping_key

__all__ = ["Operations"]

FINAL: Final = frozenset({"input", "unsupported", "busy", "missing", "doubt", "deadline"})
"""Kinds that are told without trying once more here."""

HARMLESS: Final = frozenset({"input", "missing", "deadline"})
"""Kinds after which the session goes on."""

RANDOM_CHUNK_SIZE: Final = 1024
"""Bytes asked of C_GenerateRandom at a time: some modules refuse more."""

_PRESENTED: Final = frozenset(
    {"input", "caller", "unsupported", "busy", "missing", "doubt", "deadline", "key", "quarantine"}
)
"""Kinds that mean the same to the daemon; all others are "failed" there."""


class Operations:
    """The operations of one worker.

    Args:
        application: Does them.
        page: Secret memory shared with the daemon.
        progress: Where the running message is published.
        verify_every: One in so many results is verified.
    """

    def __init__(
        self, application: Application, page: SecretPage, progress: Progress, verify_every: int
    ) -> None:
        self._application = application
        self._page = page
        self._progress = progress
        self._sampler = Sampler(verify_every)
        self._last_random = b""
        self._data_objects = DataObjects(application)
        self.ending: Ending | None = None
        self._table: dict[str, Callable[..., Any]] = {
            "encrypt": self._encrypt,
            "decrypt": self._decrypt,
            "sign": self._sign,
            "generate": self._generate,
            "destroy": self._destroy,
            "drop_key": self._drop_key,
            "list_objects": self._list_objects,
            "list_data": self._data_objects.list_values,
            "put_data": self._data_objects.put,
            "remove_data": self._data_objects.remove,
            "random": self._random,
            "seal_page": self._seal_page,
            "open_page": self._open_page,
            "prove": self._prove,
            "keep_alive": self._keep_alive,
            "mechanisms": self._mechanisms,
            "try_quirk": self._try_quirk,
        }

    def do(self, number: int, operation: str, deadline_ns: int, arguments: list[Any]) -> list[Any]:
        """Do what a message asks; the answer to it. `ending` says whether it was the last one."""
        self._progress.begin(number)
        try:
            answer = [number, "done", self._climb(operation, deadline_ns, arguments)]
        except Ending as ending:
            self.ending = ending
            kind = "sessions" if ending.kind == "sessions" else "failed"
            answer = [number, kind, ending.code, f"{operation}: {ending.text}"]
        except Failure as failure:
            kind = failure.kind if failure.kind in _PRESENTED else "failed"
            answer = [number, kind, failure.code, failure.text]
        self._progress.begin(0)
        return answer

    def _climb(self, operation: str, deadline_ns: int, arguments: list[Any]) -> Any:
        """Do an operation, and once more in a new session if that may help."""
        work = self._table.get(operation)
        if work is None:
            raise Failure("unsupported", 0, f"there is no operation {operation}")
        first: Failure | None = None
        while True:
            if time.monotonic_ns() >= deadline_ns:
                raise Failure("deadline", 0, f"{operation}: the deadline passed before its turn")
            try:
                return work(*arguments)
            except Ending:
                raise
            except Failure as failure:
                if failure.kind not in HARMLESS:
                    self._application.renew(failure)
                if failure.kind in FINAL:
                    raise
                if first is not None:
                    raise _second(failure) from None
                first = failure

    # Data

    def _encrypt(self, *arguments: Any) -> list[Any]:
        return self._crypt(*arguments, encrypting=True)

    def _decrypt(self, *arguments: Any) -> list[Any]:
        return self._crypt(*arguments, encrypting=False)

    def _crypt(
        self,
        cka_id: bytes,
        spec: str,
        proof: bytes,
        items: bytes,
        aads: bytes,
        deadlines_ns: list[int],
        *,
        encrypting: bool,
    ) -> list[Any]:
        run = ColumnRun(
            self._application,
            self._progress,
            self._sampler,
            (cka_id, spec, proof),
            items,
            aads,
            deadlines_ns,
            encrypting=encrypting,
        )
        result = run.run()
        self.ending = run.ending
        return result

    def _sign(
        self, cka_id: bytes, spec: str, public_key: bytes, algorithm: str, digest: bytes
    ) -> bytes:
        """A signature over a digest; ECDSA as r ‖ s."""
        application = self._application
        if algorithm not in ALGORITHMS or (algorithm[:3] == "RSA") != (spec[:3] == "RSA"):
            raise Failure("unsupported", 0, f"a key of spec {spec} does not sign {algorithm}")
        key = application.private_key(cka_id, spec, public_key)
        signature = application.sign_with(key, spec, ALGORITHMS[algorithm], digest)
        if self._sampler.choose(application.session_number, cka_id, 1):
            if not verifies(public_key, algorithm, digest, signature):
                raise Failure("wrong", 0, "sign: a signature that does not verify")
        return signature

    def _random(self, length: int) -> bytes:
        """Random bytes of the token, which must not be those it gave before."""
        data = b""
        while len(data) < length:
            size = min(RANDOM_CHUNK_SIZE, length - len(data))
            with self._application.translated("random"):
                chunk = bytes(self._application.work.generate_random(size * 8))
            if len(chunk) != size or (size >= 8 and chunk[:8] in (self._last_random, bytes(8))):
                raise Failure("wrong", 0, "random: bytes that are not random")
            self._last_random = chunk[:8]
            data += chunk
        return data

    # Pages

    def _seal_page(self, cka_id: bytes, spec: str, proof: bytes, aad: bytes, size: int) -> bytes:
        """Encrypt the first `size` bytes of the shared page under a root key."""
        application = self._application
        key = application.secret_key(cka_id, spec, proof)
        secret = memoryview(self._page.view)[:size]
        code, sealed = application.loop.seal_page(
            application.work.handle, key.handle, secrets.token_bytes(IV_SIZE), aad, secret
        )
        if code:
            raise application.failed(code, "encrypt", "sealing")
        scratch = bytearray(len(sealed))
        code = application.loop.open_page(application.work.handle, key.handle, sealed, aad, scratch)
        is_right = code == 0 and scratch[:size] == secret
        scratch[:] = bytes(len(scratch))
        if not is_right:
            raise Failure("wrong", code, "sealing: a seal that does not open")
        return sealed

    def _open_page(self, cka_id: bytes, spec: str, proof: bytes, aad: bytes, sealed: bytes) -> int:
        """Decrypt into the shared page; 1 if it opened, 0 if it is not what was sealed."""
        application = self._application
        key = application.secret_key(cka_id, spec, proof)
        into = memoryview(self._page.view)
        for _ in range(TRIES_TO_BLAME):
            code = application.loop.open_page(
                application.work.handle, key.handle, sealed, aad, into
            )
            if code == 0:
                return 1
            if application.class_of(code, "decrypt") not in ("caller", "suspect"):
                raise application.failed(code, "decrypt", "opening")
            if not application.opens_proof(key, cka_id, proof):
                raise Failure("wrong", code, "opening: the root key does not open its proof")
        return 0

    # Objects

    def _generate(self, spec: str, cka_id: bytes, role: str) -> list[bytes]:
        """A new token object: its proof and its public key (SPKI DER), one of them empty."""
        application = self._application
        if spec not in SPECS or role not in ROLES:
            raise Failure("unsupported", 0, f"no key of spec {spec} and role {role} is made here")
        since = time.time()
        is_softhsm = application.manufacturer.startswith(softhsm.MANUFACTURER)
        with softhsm.alone(is_softhsm):
            self._require_free(cka_id)
            try:
                if SPECS[spec].key_type is KeyType.AES:
                    made = [self._generate_secret(spec, cka_id, role), b""]
                else:
                    made = [b"", self._generate_pair(spec, cka_id, role)]
                application.note_objects()
                if is_softhsm:
                    softhsm.make_durable(since)
            except Failure as failure:
                self._undo(cka_id, failure)
                raise
        return made

    def _require_free(self, cka_id: bytes) -> None:
        """Refuse a CKA_ID that an object has: to undo a creation would destroy that object too."""
        with self._application.translated("find"):
            if list(self._application.work.get_objects({Attribute.ID: cka_id})):
                raise Failure("input", 0, f"there is an object with CKA_ID {cka_id.hex()}")

    def _undo(self, cka_id: bytes, failure: Failure) -> None:
        """Destroy what a failed creation left, so that it may be told as failed.

        Raises:
            Failure: Of kind "doubt": something may be left.
            Ending: The same, and the worker has to end.
        """
        try:
            self._application.renew(failure)
            self._destroy(cka_id)
        except Ending as ending:
            self.ending = ending
            raise Failure("doubt", failure.code, f"{failure.text}; {ending.text}") from None
        except Failure as error:
            raise Failure("doubt", failure.code, f"{failure.text}; {error.text}") from None

    def _generate_secret(self, spec: str, cka_id: bytes, role: str) -> bytes:
        application = self._application
        with application.translated("generate"):
            key: Any = application.work.generate_key(
                KeyType.AES,
                SPECS[spec].size_bits,
                id=cka_id,
                label=f"hsmux {role}",
                store=True,
                capabilities=ROLES[role],
                template=dict(REQUIRED),
            )
        self._require_protection(key)
        if role == "wrapping":
            return make_wrapping_proof(application, key, cka_id)
        challenge = secrets.token_bytes(CHALLENGE_SIZE)
        code, sealed = application.gcm_one(application.work, key, challenge, cka_id, True)
        if code:
            raise application.failed(code, "encrypt", "a new key's proof")
        application.secret_key(cka_id, spec, challenge + sealed)
        return challenge + sealed

    def _generate_pair(self, spec: str, cka_id: bytes, role: str) -> bytes:
        application = self._application
        names: dict[str, Any] = {
            "id": cka_id,
            "label": f"hsmux {role}",
            "store": True,
            "capabilities": MechanismFlag.SIGN | MechanismFlag.VERIFY,
            "private_template": dict(REQUIRED),
        }
        with application.translated("generate"):
            if spec in CURVES:
                parameters = application.work.create_domain_parameters(
                    KeyType.EC,
                    {Attribute.EC_PARAMS: encode_named_curve_parameters(CURVES[spec])},
                    local=True,
                )
                public, key = parameters.generate_keypair(**names)
                public_key = bytes(encode_ec_public_key(public))
            else:
                size_bits = SPECS[spec].size_bits
                public, key = application.work.generate_keypair(KeyType.RSA, size_bits, **names)
                public_key = spki_of_rsa(
                    public[Attribute.MODULUS], public[Attribute.PUBLIC_EXPONENT]
                )
        self._require_protection(key)
        application.private_key(cka_id, spec, public_key)
        return public_key

    def _require_protection(self, key: Any) -> None:
        wrong = self._application.unprotected(key)
        if wrong:
            raise Failure("unsupported", 0, f"the token ignores {', '.join(wrong)}")

    def _destroy(self, cka_id: bytes) -> int:
        """Destroy every object with this CKA_ID; how many there were."""
        application = self._application
        application.drop(cka_id)
        with application.translated("destroy"):
            objects = list(application.work.get_objects({Attribute.ID: cka_id}))
            for found in objects:
                found.destroy()
        application.note_objects()
        if application.manufacturer.startswith(softhsm.MANUFACTURER):
            softhsm.make_durable(0)
        return len(objects)

    def _drop_key(self, cka_id: bytes) -> int:
        self._application.drop(cka_id)
        return 1

    def _list_objects(self) -> list[list[Any]]:
        """Secret and private keys: CKA_ID, class, type."""
        listed = []
        for object_class in (ObjectClass.SECRET_KEY, ObjectClass.PRIVATE_KEY):
            template = {Attribute.CLASS: object_class, Attribute.TOKEN: True}
            with self._application.translated("list"):
                for found in self._application.work.get_objects(template):
                    key_type = found[Attribute.KEY_TYPE]
                    listed.append([bytes(found[Attribute.ID]), object_class.name, key_type.name])
        return listed

    def _prove(self, cka_id: bytes, spec: str, proof: bytes, public_key: bytes, role: str) -> int:
        """Prove that the object is this key, whatever is known of it already."""
        self._application.drop(cka_id)
        if role == "wrapping":
            key = self._application.find(cka_id, ObjectClass.SECRET_KEY, spec)
            self._application.require_protected(key, cka_id)
            require_wrapping_key(self._application, key, cka_id, proof)
        elif SPECS[spec].key_type is KeyType.AES:
            self._application.secret_key(cka_id, spec, proof)
        else:
            self._application.private_key(cka_id, spec, public_key)
        return 1

    # The worker itself

    def _keep_alive(self) -> int:
        self._application.keep_alive()
        return 1

    def _mechanisms(self) -> list[str]:
        """Mechanisms the token lists."""
        with self._application.translated("list mechanisms"):
            found = self._application.token.slot.get_mechanisms()
        return sorted(m.name if isinstance(m, Mechanism) else hex(m) for m in found)

    def _try_quirk(self, name: str) -> str:
        """See `quirks`, which only a probe loads."""
        from .quirks import try_quirk

        return try_quirk(self._application, name)


def _second(failure: Failure) -> Failure:
    """What is told of a failure that came again in a new session."""
    if failure.kind == "wrong":
        return Failure("quarantine", failure.code, failure.text)
    return failure
