"""A worker: one process, one thread, one PKCS#11 application.

Theory of operation
-------------------
The process initialises the vendor's module through our adapter, says hello, waits to be told to
log in, and then does what it is asked, one message after the other. A module that hangs, crashes
or is not thread-safe costs this process and nothing else; the daemon kills and replaces it.

Sessions: the login session is opened first, does nothing and is closed last, because closing the
session that logged in logs the whole application out. The work session does everything and is
replaced alone when it answered anything but success or a proven caller's fault.

Handles never leave the process, and are forgotten with the login they belong to. A key is looked
up by CKA_ID, class and type, and there must be exactly one; a symmetric key decrypts its proof
before it is used for the first time. So an old number never means another key.

A failed decrypt whose code could also mean a broken device is a suspect. After each column with
suspects the canary, a key of this process alone, decrypts a text of its own in the same session.
Does it, the suspects are the caller's fault; does it not, they are the device's.

The process ends when the daemon's end of the socket closes, when the daemon dies
(PR_SET_PDEATHSIG), and by itself after a code that speaks of the device, so that the next one
begins with a fresh C_Initialize.
"""

import contextlib
import ctypes
import fcntl
import os
import resource
import secrets
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pkcs11
from pkcs11 import Attribute, KeyType, Mechanism, MechanismFlag, ObjectClass
from pkcs11.util.ec import encode_ec_public_key, encode_named_curve_parameters

from hsmux_native.pkcs11 import BAD_OUTPUT, DEADLINE, IV_SIZE, NOT_STARTED, Pkcs11Loop, SecretPage

from . import softhsm
from .codes import CODE_OF_EXCEPTION, DEVICE_CLASSES, class_of
from .messages import MessageReader, encode_message
from .public_keys import spki_of_rsa
from .specs import ALGORITHMS, CURVES, REQUIRED, ROLES, SPECS

__all__ = ["Worker", "main"]

PR_SET_PDEATHSIG: Final = 1
PR_SET_DUMPABLE: Final = 4

CHALLENGE_SIZE: Final = 32
"""Bytes of the random text a symmetric key's proof encrypts."""

LOOKUP_TRIES: Final = 5
LOOKUP_PAUSE_S: Final = 0.02
"""Between tries to find an object: another process may be writing beside it just now."""

CANARY_TEXT: Final = b"hsmux canary"
_EMPTY_COLUMN: Final = b"\0\0\0\0\0\0\0\0"


class Failure(Exception):
    """An operation failed; the class says whose fault it was."""

    def __init__(self, kind: str, code: int, text: str) -> None:
        super().__init__(text)
        self.kind = kind
        self.code = code
        self.text = text


def _column(item: bytes) -> bytes:
    size = len(item).to_bytes(4, "big")
    return b"\0\0\0\x01\0\0\0\0" + size + item


def _only(column: bytes) -> bytes:
    return column[12:]


class Worker:
    """The PKCS#11 side of a worker, without its socket.

    Args:
        module: The shared object to load: the adapter.
        token_label: Which token.
        page: Secret memory shared with the daemon.
    """

    def __init__(self, module: str, token_label: str, page: SecretPage) -> None:
        self._module = module
        self._page = page
        self._lib = pkcs11.lib(module)
        self._loop = Pkcs11Loop(module)
        found = [
            slot.get_token()
            for slot in self._lib.get_slots(token_present=True)
            if slot.get_token().label.strip("\0 ") == token_label
        ]
        if len(found) != 1:
            raise Failure("token", 0xE0, f"{len(found)} tokens with label {token_label!r}")
        self._token = found[0]
        self.manufacturer = str(self._token.manufacturer_id).strip("\0 ")
        self.login_epoch = 0
        # python-pkcs11's annotations leave out the handles of sessions and keys.
        self._login_session: Any = None
        self._work: Any = None
        self._canary: Any = None
        self._handles: dict[tuple[bytes, str], Any] = {}
        self._proven: dict[bytes, bytes] = {}

    def facts(self) -> dict[str, Any]:
        """What the daemon wants to know before anybody logs in."""
        serial = self._token.serial
        return {
            "serial": serial.decode(errors="replace") if isinstance(serial, bytes) else str(serial),
            "manufacturer": self.manufacturer,
            "model": str(self._token.model).strip("\0 "),
            "flags": int(self._token.flags),
        }

    def log_in(self, pin: str) -> None:
        """Open both sessions and prove with a canary that they work."""
        try:
            self._login_session = self._token.open(rw=True, user_pin=pin)
        except pkcs11.exceptions.PKCS11Error as error:
            raise self._failure(error, "login") from None
        self.login_epoch += 1
        self._open_work_session()
        self._make_canary()
        if not self._canary_sings():
            raise Failure("token", 0x05, "the canary key does not decrypt")

    def _open_work_session(self) -> None:
        self._work = self._token.open(rw=True)
        self._handles.clear()
        self._proven.clear()

    def _renew_work_session(self) -> None:
        with contextlib.suppress(pkcs11.exceptions.PKCS11Error):
            self._work.close()
        try:
            self._open_work_session()
        except pkcs11.exceptions.PKCS11Error as error:
            raise Failure("token", _code_of(error), "no new session") from None

    def _make_canary(self) -> None:
        self._canary = self._login_session.generate_key(
            KeyType.AES,
            256,
            store=False,
            capabilities=MechanismFlag.ENCRYPT | MechanismFlag.DECRYPT,
            template={Attribute.SENSITIVE: True, Attribute.EXTRACTABLE: False},
        )
        sealed, codes = self._loop.gcm(
            self._login_session.handle,
            self._canary.handle,
            _column(CANARY_TEXT),
            _column(b""),
            encrypting=True,
            ivs=secrets.token_bytes(IV_SIZE),
        )
        if codes != [0]:
            raise Failure(self._class_of(codes[0], "encrypt"), codes[0], "the canary")
        self._canary_sealed = sealed

    def _canary_sings(self) -> bool:
        opened, codes = self._loop.gcm(
            self._work.handle,
            self._canary.handle,
            self._canary_sealed,
            _column(b""),
            encrypting=False,
        )
        return codes == [0] and _only(opened) == CANARY_TEXT

    def _class_of(self, code: int, operation: str) -> str:
        return class_of(code, operation, self.manufacturer)

    def _failure(self, error: Exception, operation: str) -> Failure:
        code = _code_of(error)
        name = type(error).__name__
        return Failure(self._class_of(code, operation), code, f"{operation}: {name}")

    @contextlib.contextmanager
    def _translated(self, operation: str) -> Iterator[None]:
        """python-pkcs11's exceptions as failures."""
        try:
            yield
        except pkcs11.exceptions.PKCS11Error as error:
            raise self._failure(error, operation) from None

    def _find(self, cka_id: bytes, object_class: ObjectClass, spec: str) -> Any:
        """The one object with this CKA_ID, class and type."""
        name = (cka_id, object_class.name)
        found = self._handles.get(name)
        if found is not None:
            return found
        template = {
            Attribute.CLASS: object_class,
            Attribute.ID: cka_id,
            Attribute.KEY_TYPE: SPECS[spec].key_type,
        }
        objects: list[Any] = []
        for _ in range(LOOKUP_TRIES):
            with self._translated("find"):
                objects = list(self._work.get_objects(template))
            if len(objects) == 1:
                self._handles[name] = objects[0]
                return objects[0]
            time.sleep(LOOKUP_PAUSE_S)
        raise Failure("key", 0x82, f"{len(objects)} objects with CKA_ID {cka_id.hex()}")

    def _secret_key(self, cka_id: bytes, spec: str, proof: bytes) -> Any:
        """A symmetric key that has proven to be the one its proof was made with."""
        key = self._find(cka_id, ObjectClass.SECRET_KEY, spec)
        if self._proven.get(cka_id) == proof:
            return key
        challenge, sealed = proof[:CHALLENGE_SIZE], proof[CHALLENGE_SIZE:]
        opened, codes = self._loop.gcm(
            self._work.handle, key.handle, _column(sealed), _column(cka_id), encrypting=False
        )
        if codes[0] == 0 and len(challenge) == CHALLENGE_SIZE and _only(opened) == challenge:
            self._proven[cka_id] = proof
            return key
        kind = "caller" if codes[0] == 0 else self._class_of(codes[0], "decrypt")
        if kind in ("caller", "suspect") and self._canary_sings():
            raise Failure("quarantine", 0, f"object {cka_id.hex()} is not the key it was")
        raise Failure("token", codes[0], "a key's proof could not be tried")

    def encrypt(
        self, cka_id: bytes, spec: str, proof: bytes, items: bytes, aads: bytes, deadline_ns: int
    ) -> list[Any]:
        """AES-GCM over a column: outputs and statuses."""
        return self._crypt(cka_id, spec, proof, items, aads, deadline_ns, encrypting=True)

    def decrypt(
        self, cka_id: bytes, spec: str, proof: bytes, items: bytes, aads: bytes, deadline_ns: int
    ) -> list[Any]:
        """The way back: plaintexts and statuses."""
        return self._crypt(cka_id, spec, proof, items, aads, deadline_ns, encrypting=False)

    def _crypt(
        self,
        cka_id: bytes,
        spec: str,
        proof: bytes,
        items: bytes,
        aads: bytes,
        deadline_ns: int,
        *,
        encrypting: bool,
    ) -> list[Any]:
        operation = "encrypt" if encrypting else "decrypt"
        key = self._secret_key(cka_id, spec, proof)
        count = int.from_bytes(items[:4], "big")
        outputs, codes = self._loop.gcm(
            self._work.handle,
            key.handle,
            items,
            aads,
            encrypting=encrypting,
            ivs=secrets.token_bytes(IV_SIZE * count) if encrypting else b"",
            deadline_ns=deadline_ns,
        )
        if not any(codes):
            return [outputs, bytes(count)]
        statuses = [self._status_of(code, operation) for code in codes]
        if "suspect" in statuses and not self._canary_sings():
            self._renew_work_session()
            if not self._canary_sings():
                raise Failure("token", 0x05, "the canary does not decrypt any more")
        return [outputs, bytes(_STATUS[status] for status in statuses)]

    def _status_of(self, code: int, operation: str) -> str:
        """What became of an item; a code that is nobody's data is raised for the whole column."""
        if code == 0:
            return "done"
        if code == DEADLINE:
            return "deadline"
        if code == BAD_OUTPUT:
            raise Failure("token", code, f"{operation}: an output that cannot be")
        if code == NOT_STARTED:
            return "not started"
        kind = self._class_of(code, operation)
        if kind in ("caller", "suspect"):
            return kind
        raise Failure(kind, code, f"{operation}: code 0x{code:x}")

    def sign(self, cka_id: bytes, spec: str, algorithm: str, digest: bytes) -> bytes:
        """A signature over a digest; ECDSA as r ‖ s."""
        key = self._find(cka_id, ObjectClass.PRIVATE_KEY, spec)
        signing = ALGORITHMS[algorithm]
        with self._translated("sign"):
            signature: bytes = key.sign(
                signing.prefix + digest,
                mechanism=signing.mechanism,
                mechanism_param=signing.parameter,
            )
        return signature

    def generate(self, spec: str, cka_id: bytes, role: str) -> list[bytes]:
        """A new token object: its proof and its public key (SPKI DER), one of them empty."""
        since = time.time()
        if SPECS[spec].key_type is KeyType.AES:
            proof, public_key = self._generate_secret(spec, cka_id, role), b""
        else:
            proof, public_key = b"", self._generate_pair(spec, cka_id)
        if self.manufacturer.startswith(softhsm.MANUFACTURER):
            softhsm.make_durable(since)
        return [proof, public_key]

    def _generate_secret(self, spec: str, cka_id: bytes, role: str) -> bytes:
        with self._translated("generate"):
            key: Any = self._work.generate_key(
                KeyType.AES,
                SPECS[spec].size_bits,
                id=cka_id,
                label=f"hsmux {role}",
                store=True,
                capabilities=ROLES[role],
                template=dict(REQUIRED),
            )
        self._check_attributes(key)
        if role == "wrapping":
            return b""
        challenge = secrets.token_bytes(CHALLENGE_SIZE)
        sealed, codes = self._loop.gcm(
            self._work.handle,
            key.handle,
            _column(challenge),
            _column(cka_id),
            encrypting=True,
            ivs=secrets.token_bytes(IV_SIZE),
        )
        if codes != [0]:
            raise Failure(self._class_of(codes[0], "encrypt"), codes[0], "a new key's proof")
        proof = challenge + _only(sealed)
        self._secret_key(cka_id, spec, proof)
        return proof

    def _generate_pair(self, spec: str, cka_id: bytes) -> bytes:
        private = dict(REQUIRED)
        names: dict[str, Any] = {"id": cka_id, "label": "hsmux key", "store": True}
        flags = MechanismFlag.SIGN | MechanismFlag.VERIFY
        with self._translated("generate"):
            if spec in CURVES:
                parameters = self._work.create_domain_parameters(
                    KeyType.EC,
                    {Attribute.EC_PARAMS: encode_named_curve_parameters(CURVES[spec])},
                    local=True,
                )
                public, key = parameters.generate_keypair(
                    capabilities=flags, private_template=private, **names
                )
                public_key = encode_ec_public_key(public)
            else:
                public, key = self._work.generate_keypair(
                    KeyType.RSA,
                    SPECS[spec].size_bits,
                    capabilities=flags,
                    private_template=private,
                    **names,
                )
                public_key = spki_of_rsa(
                    public[Attribute.MODULUS], public[Attribute.PUBLIC_EXPONENT]
                )
        self._check_attributes(key)
        return bytes(public_key)

    def _check_attributes(self, key: Any) -> None:
        with self._translated("read attributes"):
            wrong = [name.name for name, value in REQUIRED.items() if key[name] != value]
        if wrong:
            raise Failure("unsupported", 0, f"the token ignores {', '.join(wrong)}")

    def destroy(self, cka_id: bytes) -> int:
        """Destroy every object with this CKA_ID; how many there were."""
        with self._translated("destroy"):
            objects = list(self._work.get_objects({Attribute.ID: cka_id}))
            for found in objects:
                found.destroy()
        for name in [name for name in self._handles if name[0] == cka_id]:
            del self._handles[name]
        self._proven.pop(cka_id, None)
        return len(objects)

    def list_objects(self) -> list[list[Any]]:
        """Secret and private keys: CKA_ID, class, type."""
        listed = []
        for object_class in (ObjectClass.SECRET_KEY, ObjectClass.PRIVATE_KEY):
            with self._translated("list"):
                for found in self._work.get_objects(
                    {Attribute.CLASS: object_class, Attribute.TOKEN: True}
                ):
                    key_type = found[Attribute.KEY_TYPE]
                    listed.append([bytes(found[Attribute.ID]), object_class.name, key_type.name])
        return listed

    def random(self, length: int) -> bytes:
        """Random bytes of the token."""
        with self._translated("random"):
            return bytes(self._work.generate_random(length * 8))

    def seal_page(self, cka_id: bytes, proof: bytes, aad: bytes, size: int) -> bytes:
        """Encrypt the first `size` bytes of the shared page under a root key."""
        key = self._secret_key(cka_id, "AES_256", proof)
        code, sealed = self._loop.seal_page(
            self._work.handle,
            key.handle,
            secrets.token_bytes(IV_SIZE),
            aad,
            memoryview(self._page.view)[:size],
        )
        if code:
            raise Failure(self._class_of(code, "encrypt"), code, "sealing")
        return sealed

    def open_page(self, cka_id: bytes, proof: bytes, aad: bytes, sealed: bytes) -> int:
        """Decrypt into the shared page; 1 if it opened, 0 if it is not what was sealed."""
        key = self._secret_key(cka_id, "AES_256", proof)
        code = self._loop.open_page(
            self._work.handle, key.handle, sealed, aad, memoryview(self._page.view)
        )
        if code == 0:
            return 1
        kind = self._class_of(code, "decrypt")
        if kind == "caller" or (kind == "suspect" and self._canary_sings()):
            return 0
        raise Failure("token" if kind == "suspect" else kind, code, "opening")

    def prove(self, cka_id: bytes, spec: str, proof: bytes) -> int:
        """Prove that the object is this key."""
        if SPECS[spec].key_type is KeyType.AES:
            self._secret_key(cka_id, spec, proof)
        else:
            self._find(cka_id, ObjectClass.PRIVATE_KEY, spec)
        return 1

    def keep_alive(self) -> int:
        """A cheap real operation, before a token's own idle limit ends the sessions."""
        if not self._canary_sings():
            raise Failure("token", 0x05, "the canary does not decrypt any more")
        return 1

    def mechanisms(self) -> list[str]:
        """Mechanisms the token lists."""
        with self._translated("list mechanisms"):
            found = self._token.slot.get_mechanisms()
        return sorted(m.name if isinstance(m, Mechanism) else hex(m) for m in found)


_STATUS: Final = {"done": 0, "caller": 1, "suspect": 1, "deadline": 3, "not started": 4}

OPERATIONS: Final = frozenset(
    {
        "encrypt",
        "decrypt",
        "sign",
        "generate",
        "destroy",
        "list_objects",
        "random",
        "seal_page",
        "open_page",
        "prove",
        "keep_alive",
        "mechanisms",
    }
)
REPEATABLE: Final = OPERATIONS - {"generate", "destroy"}


def _code_of(error: Exception) -> int:
    """The return code behind a python-pkcs11 exception; all ones for one without a row."""
    return CODE_OF_EXCEPTION.get(type(error).__name__, 0xFFFFFFFF)


def do(worker: Worker, operation: str, arguments: list[Any]) -> Any:
    """Do one operation; a lost session is replaced and the operation tried once more."""
    if operation not in OPERATIONS:
        raise Failure("module", 0, f"unknown operation {operation}")
    try:
        return getattr(worker, operation)(*arguments)
    except Failure as failure:
        if failure.kind != "session" or operation not in REPEATABLE:
            raise
    worker._renew_work_session()
    return getattr(worker, operation)(*arguments)


def harden() -> None:
    """No core file, no debugger, and no life without the daemon."""
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def read_pin(path: Path) -> str:
    """The PIN in a file, without the newline an editor leaves."""
    return path.read_text(encoding="utf-8").rstrip("\r\n")


@contextlib.contextmanager
def login_lock(path: Path) -> Iterator[None]:
    """One login at a time on this host: modules rewrite their token's file in it."""
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def serve(connection: socket.socket, worker: Worker, pin_file: Path, lock: Path) -> None:
    """Answer the daemon until it closes."""
    send = connection.sendall
    send(encode_message(["hello", worker.facts()]))
    reader = MessageReader()
    while data := connection.recv(1 << 20):
        for message in reader.feed(data):
            if message[0] == "login":
                with login_lock(lock):
                    worker.log_in(read_pin(pin_file))
                    if worker.manufacturer.startswith(softhsm.MANUFACTURER):
                        softhsm.make_durable(0)
                send(encode_message(["ready", {"login_epoch": worker.login_epoch}]))
                continue
            number, operation, *arguments = message
            try:
                value = do(worker, operation, arguments)
            except Failure as failure:
                text = failure.text
                send(encode_message([number, failure.kind, failure.code, text]))
                if failure.kind in DEVICE_CLASSES:
                    return
            else:
                send(encode_message([number, "done", value]))


def main() -> int:
    """The process: `python -m hsmux_gateway.hsm.worker FD PAGE_FD MODULE LABEL PIN_FILE LOCK`."""
    harden()
    fd, page_fd, module, label, pin_file, lock = sys.argv[1:]
    connection = socket.socket(fileno=int(fd))
    try:
        worker = Worker(module, label, SecretPage(int(page_fd)))
        serve(connection, worker, Path(pin_file), Path(lock))
    except Failure as failure:
        kind = "refused" if failure.kind == "auth" else "failed"
        with contextlib.suppress(OSError):
            connection.sendall(encode_message([kind, failure.code, failure.text]))
    except pkcs11.exceptions.PKCS11Error as error:
        with contextlib.suppress(OSError):
            text = f"{type(error).__name__} from {os.environ.get('HSMUX_ADAPTER_MODULE', module)}"
            connection.sendall(encode_message(["failed", _code_of(error), text]))
    except BrokenPipeError:
        pass
    # The module is not finalised: that can hang, and the process ends anyway.
    os._exit(0)


if __name__ == "__main__":
    main()
